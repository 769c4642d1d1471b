"""The Franka driver against the twin that speaks FCI, through the unmodified franky and libfranka."""

import contextlib
import os
import sys
import threading

import numpy as np
import pytest

from hardware import franka
from hardware._franka import fault_of
from robot_rl.find import find
from robot_rl.types import ArmCommand, Pose, Scene
from tests.ros_children import until
from tests.served import address, serve

franky = pytest.importorskip("franky")

DT_S = 0.01
FINGERS_STAY = Scene(locked_gripper=0.8)
DOWN = np.array([1.0, 0.0, 0.0, 0.0])


@pytest.fixture(scope="module")
def served():
    with serve("fci", "fr3") as twin:
        yield twin


@pytest.fixture
def twin(served):
    """The module's twin in the same state as for every other test, and nobody connected."""
    hole = [0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    served.door().ask("place", tcp=[0.5, 0.0, 0.2, *DOWN], gripper=0.8, props={"hole": hole})
    yield served
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("franka")]


def make(host, scene=FINGERS_STAY, **fields):
    fields = {"twin": "lockstep", "stale_s": 5.0} | fields
    return franka.make(franka.Config(address=host, **fields), "fr3", "peg_insert", scene, None)


@pytest.fixture
def arm(twin):
    made = make(twin.host)
    yield made
    made.close()


def to(state, by_m=(0.0, 0.0, 0.0), **fields):
    return ArmCommand(state.tcp_pos_m + by_m, state.tcp_quat_xyzw, **fields)


def follow(arm, command, seconds):
    """Give ``command`` at each of the next ticks; the last state."""
    for _ in range(round(seconds / DT_S)):
        arm.command(command)
        state = arm.wait(DT_S)
    return state


# ------------------------------------------------------------------------------------------------------------ an arm


def test_it_reads_what_is_so(twin, arm):
    state, truth = arm.read(), twin.door().truth()
    np.testing.assert_allclose(state.tcp_pos_m, truth["tcp"][:3], atol=1e-6)
    np.testing.assert_allclose(np.abs(state.tcp_quat_xyzw @ truth["tcp"][3:]), 1.0, atol=1e-6)
    np.testing.assert_allclose(state.q_rad, truth["q_rad"], atol=1e-6)
    assert state.gripper == 0.8 and arm.fault == ""
    moving = follow(arm, to(state, (0.0, 0.05, 0.0)), 0.1)
    later = arm.wait(DT_S)
    assert later.t_s - moving.t_s == pytest.approx(DT_S, abs=1e-9)
    np.testing.assert_allclose(
        (moving.tcp_twist + later.tcp_twist)[:3] / 2, (later.tcp_pos_m - moving.tcp_pos_m) / DT_S, atol=2e-3
    )
    assert moving.tcp_twist[1] > 0.05


def test_it_follows_and_comes_to_rest(arm):
    state = arm.read()
    there = follow(arm, to(state, (0.0, 0.02, 0.03)), 1.5)
    np.testing.assert_allclose(there.tcp_pos_m - state.tcp_pos_m, (0.0, 0.02, 0.03), atol=2e-4)
    assert np.abs(there.dq_radps).max() < 1e-2
    arm.stop()
    arm.stop()
    assert np.abs(arm.wait(0.5).tcp_pos_m - there.tcp_pos_m).max() < 1e-3


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (ArmCommand(np.array([np.nan, 0.0, 0.3]), DOWN), "all of them finite"),
        (ArmCommand(np.zeros(3), DOWN, gripper=np.inf), "all of them finite"),
        (ArmCommand(np.zeros(2), DOWN), "three numbers"),
        (ArmCommand(np.zeros(3), np.zeros(4)), "unit quaternion"),
        (ArmCommand(np.zeros(3), DOWN, stiffness=np.full(6, 3001.0)), "give 0 to"),
        (ArmCommand(np.zeros(3), DOWN, stiffness=np.array([-1.0] + [0.0] * 5)), "give 0 to"),
    ],
)
def test_what_it_cannot_take_is_refused_and_moves_nothing(arm, command, says):
    before = arm.read()
    with pytest.raises(ValueError, match=says):
        arm.command(command)
    np.testing.assert_allclose(arm.wait(0.1).tcp_pos_m, before.tcp_pos_m, atol=1e-5)


def test_each_axis_has_its_own_stiffness(arm):
    state = arm.read()
    springs = np.array([0.0, 2000.0, 2000.0, 80.0, 80.0, 80.0])
    follow(arm, to(state, stiffness=springs), 0.2)
    moved = follow(arm, to(state, (0.02, 0.02, 0.0), stiffness=springs), 0.5).tcp_pos_m - state.tcp_pos_m
    assert abs(moved[0]) < 0.002 and moved[1] > 0.015


def test_the_wrench_is_what_the_surroundings_exert(twin):
    """The peg's tip on the block's rim, gently: as the twin's own estimate says, and up."""
    twin.door().ask("place", tcp=[0.5, 0.0, 0.08, *DOWN], gripper=0.8, props={"hole": [0.5, 0.022, 0, 0, 0, 0, 1]})
    arm = make(twin.host)
    quat_xyzw = arm.read().tcp_quat_xyzw
    for height_m in np.linspace(0.078, 0.062, 17):
        state = follow(arm, ArmCommand(np.array([0.5, 0.0, height_m]), quat_xyzw), 0.1)
    state = follow(arm, ArmCommand(np.array([0.5, 0.0, height_m]), quat_xyzw), 0.5)
    truth = twin.door().truth()
    assert state.tcp_wrench[2] > 10.0
    np.testing.assert_allclose(state.tcp_wrench, truth["wrench"], atol=1.0)
    arm.close()


def test_a_stale_target_becomes_the_pose_where_the_arm_is(twin):
    arm = make(twin.host, stale_s=0.2)
    try:
        state = arm.read()
        arm.command(to(state, (0.0, 0.0, 0.1)))
        held = arm.wait(0.3).tcp_pos_m
        later = arm.wait(0.7)
        assert 0.01 < later.tcp_pos_m[2] - state.tcp_pos_m[2] < 0.06
        assert np.abs(later.tcp_pos_m - held).max() < 0.02 and np.abs(later.dq_radps).max() < 0.05
        assert arm.fault == ""
        follow(arm, to(later, (0.0, 0.02, 0.0)), 0.5)  # the next one moves it again
        assert arm.read().tcp_pos_m[1] - later.tcp_pos_m[1] > 0.015
    finally:
        arm.close()


def test_two_runs_are_the_same(twin):
    def run():
        twin.door().ask("place", tcp=[0.5, 0.0, 0.075, *DOWN], gripper=0.8, props={"hole": [0.51, 0, 0, 0, 0, 0, 1]})
        arm, rows = make(twin.host), []
        try:
            state = arm.read()
            for step in range(70):
                arm.command(to(state, (0.005 * np.sin(step / 9), 0.0, -0.0002 * step)))
                seen = arm.wait(DT_S)
                rows.append(np.concatenate([seen.q_rad, seen.dq_radps, seen.tau_nm, seen.tcp_wrench]))
        finally:
            arm.close()
        return np.array(rows)

    first = run()
    assert np.abs(first[:, -6:]).max() > 2.0  # it has touched the block
    np.testing.assert_array_equal(first, run())


def test_an_episode_begins_with_the_props_in_their_places(twin):
    task = find("tasks", "peg_insert").make(find("tasks", "peg_insert").Config())
    start, arm = task.reset(np.random.default_rng(1)), make(twin.host, task.scene)
    try:
        arm.prepare(start)
        assert twin.door().truth()["props"]["hole"][1] > 2.0  # out of the moving arm's way
        readings = arm.readings()
        np.testing.assert_allclose(readings["prop/hole"][:3], start.props["hole"].pos_m)
        assert set(readings) == {"prop/hole", "prop/peg"}
    finally:
        arm.close()


def test_no_thread_of_ours_gets_a_real_time_priority(arm):
    """libfranka raises that of the thread that connects; a learner's threads would inherit it."""
    follow(arm, to(arm.read()), 0.05)
    policies = set[int]()
    for name in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # a thread may end while they are read
            policies.add(os.sched_getscheduler(int(name)))
    assert policies and not policies & {os.SCHED_FIFO, os.SCHED_RR}


def test_about_says_what_is_connected(twin, arm):
    about = arm.about()
    assert about["server"] == "FCI version 10" and "libfranka" in about["library"]
    assert about["address"] == twin.host and about["fault"] == "none"
    assert "120 N" in about["collision force"] and "Hz" in about["control rate"]


@pytest.mark.alone  # the robot stops after 20 ms without a command
def test_in_real_time_a_thread_holds_a_stale_target(twin):
    arm = make(twin.host, twin="realtime", stale_s=0.2)
    try:
        state, door = arm.read(), twin.door()

        def moves():
            arm.command(to(state, (0.0, 0.0, 0.3)))
            return door.truth()["tcp"][2] - state.tcp_pos_m[2] > 0.005

        until(moves)
        until(lambda: arm._held)
        stopped = door.truth()["tcp"]
        assert 0.005 < stopped[2] - state.tcp_pos_m[2] < 0.25
        arm.command(to(arm.read(), (0.0, 0.0, -0.1)))
        stopping = threading.Thread(target=arm.stop)
        stopping.start()
        stopping.join()
        assert arm._held and arm.fault == ""
        assert arm.wait(DT_S).t_s > state.t_s
    finally:
        arm.close()
        arm.close()


# ---------------------------------------------------------------------------------------------------------- the hand


def test_the_hand_opens_closes_and_grasps():
    task = find("tasks", "pick_place").make(find("tasks", "pick_place").Config())
    with serve("fci", "fr3", task="pick_place") as twin:
        arm = make(twin.host, task.scene)
        try:
            state = arm.read()

            def told(gripper):
                follow(arm, to(state, gripper=gripper), 1.5)
                return until(lambda: abs(arm.wait(DT_S).gripper - twin.door().truth()["gripper"]) < 0.02)

            assert told(1.0) and arm.read().gripper > 0.95
            assert told(0.0) and arm.read().gripper < 0.05
            between = Pose(arm.read().tcp_pos_m, np.array([0.0, 0.0, 0.0, 1.0]))
            twin.door().place_props({"cube": between})
            for _ in range(120):  # a cube in the air falls unless it is held up while the fingers come
                arm.command(to(state, gripper=1.0))
                twin.door().place_props({"cube": between})
                arm.wait(DT_S)
            held = follow(arm, to(state, (0.0, 0.0, 0.03), gripper=1.0), 1.0)
            assert 0.3 < held.gripper < 0.9
            assert abs(twin.door().props()["prop/cube"][2] - held.tcp_pos_m[2]) < 0.02
            assert arm.fault == ""
        finally:
            arm.close()


# -------------------------------------------------------------------------------------------------------------- faults


def stays_in_fault(twin, arm):
    """It holds, takes no command, raises nothing and clears nothing."""
    fault, seen = arm.fault, twin.door().truth()
    state = follow(arm, to(arm.read(), (0.0, 0.05, 0.0)), 0.3)
    truth = twin.door().truth()
    assert arm.fault == fault and arm.read() is state
    assert truth["t_s"] > seen["t_s"]  # time goes on
    assert np.abs(np.subtract(truth["tcp"], seen["tcp"])).max() < 0.01
    arm.stop()
    assert arm.fault == fault


def goes_on(arm):
    """It has recovered: it holds where it is, and follows."""
    assert arm.fault == ""
    state = arm.read()
    assert np.abs(arm.wait(0.2).tcp_pos_m - state.tcp_pos_m).max() < 1e-3
    assert follow(arm, to(state, (0.0, 0.02, 0.0)), 0.7).tcp_pos_m[1] - state.tcp_pos_m[1] > 0.015


@pytest.mark.alone  # states that a busy client has not taken within 0.1 s of held time are a lost connection, too
@pytest.mark.parametrize(
    ("cause", "how", "named"),
    [
        ("delay", {"ms": 50}, "communication constraints violation"),
        ("reflex", {"name": "joint_velocity_violation"}, "reflex: joint velocity violation"),
        ("reflex", {"name": "communication_constraints_violation"}, "communication constraints violation"),
        ("drop", {"count": 25}, "communication constraints violation"),
        ("close", {}, "connection lost"),
        ("half_open", {}, "connection lost"),
        ("corrupt", {}, "connection lost"),
    ],
)
def test_a_fault_is_named_held_and_cleared_by_a_person_only(twin, arm, cause, how, named):
    follow(arm, to(arm.read(), (0.0, 0.05, 0.0)), 0.1)
    twin.door().cause(cause, **how)
    follow(arm, to(arm.read(), (0.0, 0.05, 0.0)), 0.3)
    assert arm.fault == named
    stays_in_fault(twin, arm)
    twin.door().cause("delay", ms=0)
    arm.recover()
    goes_on(arm)


@pytest.mark.parametrize(
    ("cause", "how", "after"),
    [
        ("drop", {"count": 5}, {}),
        ("drop", {"share": 0.05}, {"share": 0.0}),
        ("reorder", {"count": 10}, {}),
    ],
)
def test_a_line_that_is_bad_now_and_then_is_no_fault(twin, arm, cause, how, after):
    twin.door().cause(cause, **how)
    try:
        goes_on(arm)
    finally:
        if after:
            twin.door().cause(cause, **after)


def test_an_arm_that_falls_silent_counts_as_lost(twin, arm):
    follow(arm, to(arm.read(), (0.0, 0.05, 0.0)), 0.1)
    twin.door().cause("mute")
    asked = threading.Thread(target=follow, args=(arm, to(arm.read(), (0.0, 0.05, 0.0)), 0.3))
    asked.start()
    assert until(lambda: arm.fault) == "connection lost"
    asked.join()
    twin.door().cause("mute", on=False)
    arm.recover()
    goes_on(arm)


def test_a_user_stop_has_to_be_released_first(twin, arm):
    follow(arm, to(arm.read(), (0.0, 0.05, 0.0)), 0.1)
    twin.door().cause("user_stop")
    follow(arm, to(arm.read(), (0.0, 0.05, 0.0)), 0.1)
    assert arm.fault == "user stop"
    stays_in_fault(twin, arm)
    with pytest.raises(RuntimeError, match=r"user stop\): release the stop"):
        arm.recover()
    assert arm.fault == "user stop"
    twin.door().cause("release_user_stop")
    stays_in_fault(twin, arm)
    arm.recover()
    goes_on(arm)


def test_a_motion_that_does_not_begin_is_a_word_and_not_the_vendors_error(twin, arm, monkeypatch):
    twin.door().cause("reflex", name="joint_velocity_violation")
    arm.wait(0.1)

    def refuse():
        raise franky.ControlException("libfranka: Move command rejected")

    with monkeypatch.context() as patch:
        patch.setattr(arm._session, "_begin", refuse)
        with pytest.raises(RuntimeError, match="does not begin: motion ended: rejected"):
            arm.recover()
    assert arm.fault == "reflex: joint velocity violation"
    arm.recover()
    goes_on(arm)


def test_an_arm_that_is_stopped_when_we_come_waits_for_a_person(twin):
    twin.door().cause("reflex", name="cartesian_reflex")
    arm = make(twin.host)
    try:
        assert arm.fault == "reflex: cartesian reflex"
        stays_in_fault(twin, arm)
        arm.recover()
        goes_on(arm)
    finally:
        arm.close()


def test_an_arm_that_dies_is_a_fault_until_it_is_back():
    host = address()
    with serve("fci", "fr3", host=host) as twin:
        arm = make(host)
        follow(arm, to(arm.read(), (0.0, 0.02, 0.0)), 0.1)
        twin.kill()
        state = arm.wait(DT_S)
        assert until(lambda: arm.fault) == "connection lost"
        arm.command(to(state))
        assert arm.wait(DT_S) is arm.read() is state
        arm.stop()
        with pytest.raises(RuntimeError, match="still away: no twin behind"):
            arm.recover()
        assert arm.fault == "connection lost"
    with serve("fci", "fr3", host=host):
        arm.recover()
        goes_on(arm)
        arm.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("franka")]


@pytest.mark.parametrize(
    ("error", "text", "named"),
    [
        ("ControlException", "libfranka: Move command aborted: User Stop pressed!", "user stop"),
        (
            "ControlException",
            'libfranka: Move command aborted: motion aborted by reflex! ["cartesian_reflex"]\nrate: 1',
            "reflex: cartesian reflex",
        ),
        ("ControlException", "libfranka: Move command preempted due to activated safety function!", "safety function"),
        ("ControlException", "libfranka: Move command preempted!", "motion ended: preempted!"),
        ("NetworkException", "libfranka: UDP receive: Timeout", "connection lost"),
    ],
)
def test_what_the_vendor_throws_has_a_name(error, text, named):
    assert fault_of(getattr(franky, error)(text)) == named


# --------------------------------------------------------------------------------------------- what is missing or wrong


def test_another_version_names_both_and_the_wheel():
    said = "FCI version 5, the installed franky-control version 10: pip install"
    with serve("fci", "fr3", settings=["protocol.version=5"]) as twin, pytest.raises(RuntimeError, match=said):
        make(twin.host)


def test_a_missing_wheel_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "franky", None)
    with pytest.raises(ImportError, match=r"pip install 'robot-rl\[franka\]'"):
        make("127.0.0.1", twin="")


def test_nobody_there_is_said():
    with pytest.raises(ConnectionError, match="no twin behind"):
        make(address())
    with pytest.raises(ConnectionError, match=r"no arm at .*FCI active"):
        make(address(), twin="")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"ee_quat_xyzw": (0.0, 0.0, 0.0, 0.5)}, "give a unit quaternion"),
        ({"collision_torque_nm": (20.0,)}, "give 7 numbers"),
        ({"collision_force_n": 1000.0}, r"give a number in \[5, 200\]"),
        ({"stiffness": (2000.0,) * 6}, "stiffness"),
        ({"twin": "slow"}, "twin = 'slow'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        make("127.0.0.1", **{"twin": ""} | fields)


def test_only_a_franka_arm():
    with pytest.raises(LookupError, match="Franka arm"):
        franka.make(franka.Config(), "ur5e", "reach", FINGERS_STAY, None)
