"""hardware/ur.py over unmodified ur_rtde and a served twin: compliance, faults by name, nothing that clears itself."""

import contextlib
import sys
import time

import numpy as np
import pytest

from hardware import ur
from hardware._ur_link import version_of
from robot_rl.find import find
from robot_rl.types import ArmCommand, Bounds, Pose, Scene
from tests.ros_children import PATIENCE_S
from tests.served import serve

pytest.importorskip("rtde_control")

MODES = ("admittance", "torque")
DOWN = np.array([1.0, 0.0, 0.0, 0.0])
ABOVE = Pose(np.array([0.5, 0.1, 0.05]), DOWN)
"""The tip of the peg is 4 cm below, the table 1 cm below that."""
HOLE = [0.5, -0.2, 0.0, 0.0, 0.0, 0.0, 1.0]
FREE = Bounds((-1.0,) * 3, (1.0,) * 3, (0.0, 0.0, 0.0, 1.0), (3.2,) * 3)


def scene(task="peg_insert") -> Scene:
    module = find("tasks", task)
    return module.make(module.Config()).scene


@pytest.fixture(scope="module")
def twin():
    with serve("rtde", "ur5e", settings=["protocol.unlock_after_s=0.1", "protocol.boot_s=0.1"]) as served:
        yield served


def place(twin) -> None:
    """The arm at ABOVE, the hole out of the way; no client is connected."""
    door = twin.door()
    door.ask("place", tcp=[*ABOVE.pos_m, *ABOVE.quat_xyzw], gripper=0.8, props={"hole": HOLE})
    door.close()


@contextlib.contextmanager
def connected(served, **changes):
    config = ur.Config(address=served.host, **{"twin": "lockstep", **changes})
    arm = ur.make(config, "ur5e", "peg_insert", scene(), FREE)
    try:
        yield arm
    finally:
        arm.close()
        arm.close()


@pytest.fixture
def arm(twin):
    place(twin)
    with connected(twin) as arm:
        yield arm


def go(arm, target: Pose, seconds: float, stiffness=None, speed_mps: float = 0.05):
    """Towards ``target``, its way no faster than ``speed_mps``, at 100 Hz; the last state."""
    state = arm.read()
    at_m = state.tcp_pos_m
    for _ in range(round(seconds * ur.CONTROL_HZ)):
        step = target.pos_m - at_m
        at_m = at_m + step * min(1.0, speed_mps / ur.CONTROL_HZ / max(float(np.linalg.norm(step)), 1e-12))
        arm.command(ArmCommand(at_m, target.quat_xyzw, stiffness=stiffness))
        state = arm.wait(1.0 / ur.CONTROL_HZ)
    return state


def lifted(x=0.0, y=0.0, z=0.0) -> Pose:
    return Pose(ABOVE.pos_m + np.array([x, y, z]), DOWN)


def test_time_passes_in_wait_alone_and_by_exactly_so_much(arm):
    state = arm.read()
    np.testing.assert_allclose(state.tcp_pos_m, ABOVE.pos_m, atol=1e-4)
    assert np.isfinite(np.concatenate([state.q_rad, state.dq_radps, state.tau_nm, state.tcp_twist])).all()
    assert arm.limits.dof == 6 and state.gripper == 0.8 and arm.limits.cannot == frozenset()
    for dt_s in (0.01, 0.1, 0.002):
        assert arm.wait(dt_s).t_s == pytest.approx(state.t_s + dt_s, abs=1e-9)
        state = arm.read()
    time.sleep(0.05)
    assert arm.wait(0.01).t_s == pytest.approx(state.t_s + 0.01, abs=1e-9)
    with pytest.raises(ValueError, match="no multiple of the arm's period"):
        arm.wait(0.003)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (ArmCommand(np.array([np.nan, 0, 0]), DOWN), "finite"),
        (ArmCommand(np.zeros(3), np.array([2.0, 0, 0, 0])), "unit quaternion"),
        (ArmCommand(np.zeros(3), DOWN, stiffness=np.full(6, 5000.0)), "this arm allows"),
        (ArmCommand(np.zeros(3), DOWN, stiffness=np.zeros(3)), r"give \(6,\)"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(arm, command, words):
    with pytest.raises(ValueError, match=words):
        arm.command(command)
    np.testing.assert_allclose(arm.wait(0.2).tcp_pos_m, ABOVE.pos_m, atol=3e-4)


@pytest.mark.parametrize("mode", MODES)
def test_it_follows_a_target_and_repeats_its_numbers(twin, mode):
    ends = []
    for _ in range(2):
        place(twin)
        with connected(twin, mode=mode) as arm:
            turned = Pose(lifted(0.02, -0.01, 0.01).pos_m, np.array([np.cos(0.05), np.sin(0.05), 0.0, 0.0]))
            state = go(arm, turned, 1.2)
            assert arm.fault == ""
            np.testing.assert_allclose(state.tcp_pos_m, turned.pos_m, atol=1e-3)
            assert abs(state.tcp_quat_xyzw @ turned.quat_xyzw) > np.cos(0.5 * 0.02)
            np.testing.assert_allclose(state.dq_radps, 0.0, atol=0.02)
            ends.append(np.concatenate([state.q_rad, arm.wait(0.1).q_rad]))
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-6)


@pytest.mark.parametrize(("mode", "stiffness"), [("admittance", 2000.0), ("admittance", 600.0), ("torque", 2000.0)])
def test_it_presses_with_the_bound_of_the_springs_and_no_more(twin, mode, stiffness):
    """3 cm into the table: the clip of 15 mm bounds the force. What is measured is what is true, and its sign."""
    place(twin)
    with connected(twin, mode=mode) as arm:
        soft = np.array([stiffness] * 3 + [80.0] * 3)
        state = go(arm, lifted(z=-0.03), 2.0, soft)
        assert arm.fault == ""
        assert state.tcp_wrench[2] == pytest.approx(0.015 * stiffness, abs=1.0)
        np.testing.assert_allclose(state.tcp_wrench, arm._door.truth()["wrench"], atol=0.3)
        arm.command(ArmCommand(lifted(z=-0.03).pos_m, DOWN, stiffness=soft))
        assert abs(arm.wait(0.1).tcp_wrench[2] - state.tcp_wrench[2]) < 0.2


@pytest.mark.parametrize("mode", MODES)
def test_it_holds_where_it_is_when_no_command_is_fresh(twin, mode):
    place(twin)
    with connected(twin, mode=mode, stale_s=0.05) as arm:
        go(arm, lifted(y=0.05), 0.4)
        arm.command(ArmCommand(lifted(y=0.05).pos_m, DOWN))
        first = arm.wait(0.3)
        later = arm.wait(0.5)
        np.testing.assert_allclose(later.tcp_pos_m, first.tcp_pos_m, atol=2e-3)
        assert np.linalg.norm(later.tcp_pos_m - lifted(y=0.05).pos_m) > 0.02
        assert arm.fault == ""
        arm.stop()
        arm.stop()
        np.testing.assert_allclose(arm.wait(0.2).tcp_pos_m, later.tcp_pos_m, atol=5e-4)


FAULTS = [
    ("protective_stop", {}, "protective stop"),
    ("program_stop", {}, "program stopped"),
    ("drop", {}, "connection lost"),
]


@pytest.mark.parametrize(("cause", "how", "name"), FAULTS)
def test_a_fault_in_mid_motion_is_named_holds_the_arm_and_waits_for_a_person(twin, cause, how, name):
    place(twin)
    with connected(twin) as arm:
        go(arm, lifted(y=0.06), 0.3)
        door = arm._door
        door.cause(cause, **how)
        arm.command(ArmCommand(lifted(y=0.06).pos_m, DOWN))
        arm.wait(0.1)
        assert arm.fault.startswith(name)
        begun = arm.read().t_s
        arm.wait(0.2)
        held = np.array(door.truth()["q_rad"])
        for _ in range(10):
            arm.command(ArmCommand(lifted(y=0.06).pos_m, DOWN))
            assert arm.wait(0.01).t_s == begun
        np.testing.assert_allclose(door.truth()["q_rad"], held, atol=2e-4)
        assert arm.fault.startswith(name)
        arm.recover()
        assert arm.fault == ""
        np.testing.assert_allclose(arm.wait(0.2).q_rad, held, atol=5e-3)
        np.testing.assert_allclose(go(arm, lifted(), 1.0).tcp_pos_m, ABOVE.pos_m, atol=1e-3)


def test_an_emergency_stop_is_released_by_hand_before_anything_else(twin):
    place(twin)
    with connected(twin, power_on=True) as arm:
        go(arm, lifted(y=0.06), 0.3)
        arm._door.cause("emergency_stop")
        arm.wait(0.1)
        assert arm.fault == "emergency stop"
        with pytest.raises(RuntimeError, match=r"emergency stop: release .* by hand"):
            arm.recover()
        assert arm.fault == "emergency stop"
        arm._door.cause("release_emergency_stop")
        arm.wait(0.1)
        assert arm.fault == "emergency stop"
        arm.recover()
        assert arm.fault == ""
        np.testing.assert_allclose(go(arm, lifted(), 1.0).tcp_pos_m, ABOVE.pos_m, atol=1e-3)


def test_it_powers_nothing_on_and_takes_no_control_that_nobody_gave(twin):
    place(twin)
    with connected(twin, power_on=True) as arm:
        for changed, words in (({"power_on": False}, "powered off: press ON"), ({}, "not in remote control")):
            arm._config = ur.Config(address=twin.host, twin="lockstep", **{"power_on": True, **changed})
            if changed:
                arm._door.cause("emergency_stop")
                arm._door.cause("release_emergency_stop")
            else:
                arm._door.cause("remote_control", on=False)
                arm._door.cause("program_stop")
            arm.wait(0.1)
            with pytest.raises(RuntimeError, match=words):
                arm.recover()
            arm._config = ur.Config(address=twin.host, twin="lockstep", power_on=True)
            arm._door.cause("remote_control", on=True)
            arm.recover()
            assert arm.fault == ""


def test_a_silent_robot_is_a_lost_connection(twin, monkeypatch):
    """Half open: sockets stand, nothing comes."""
    monkeypatch.setattr(ur, "_LOCKSTEP_S", 1.0)
    place(twin)
    with connected(twin) as arm:
        arm._door.cause("half_open")
        arm.wait(0.1)
        assert arm.fault.startswith("connection lost")
        arm._door.cause("half_open", on=False)
        arm.recover()
        assert arm.fault == ""
        np.testing.assert_allclose(go(arm, lifted(), 0.5).tcp_pos_m, ABOVE.pos_m, atol=1e-3)


def test_a_killed_robot_is_a_lost_connection_until_there_is_one_again():
    with serve("rtde", "ur5e") as first, connected(first) as arm:
        arm.wait(0.1)
        first.kill()
        arm.wait(0.1)
        assert arm.fault.startswith("connection lost")
        with pytest.raises(RuntimeError, match=first.host):
            arm.recover()
        arm.wait(0.1)
        with serve("rtde", "ur5e", host=first.host):
            arm.recover()
            assert arm.fault == ""
            begun_s = arm.read().t_s
            assert arm.wait(0.1).t_s == pytest.approx(begun_s + 0.1, abs=1e-9)


def until(true) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.02)


@pytest.mark.alone
def test_in_real_time_a_dead_loop_is_a_fault_and_the_robot_stops_its_program(twin, monkeypatch):
    place(twin)
    with connected(twin, twin="realtime", watchdog_hz=2.0, zero_ft=False) as arm:
        begun_s = arm.read().t_s
        until(lambda: arm.wait(0.01).t_s > begun_s + 0.2)
        assert arm.fault == ""
        assert version_of(arm.about()["polyscope"]) == (5, 26)
        arm.zero_ft()

        def die(*_):
            raise FloatingPointError("a bug")

        monkeypatch.setattr(arm._law, "send", die)
        until(lambda: arm.fault == "control loop: a bug")
        until(lambda: arm._link.fault() == "program stopped")
        monkeypatch.undo()
        arm.recover()
        assert arm.fault == ""


def test_settings_that_cannot_be_are_refused_before_the_robot_is_asked():
    for changes, words in (
        ({"address": ""}, "address"),
        ({"address": "127.0.0.1", "delay_s": 0.1}, "contact oscillates"),
        ({"address": "127.0.0.1", "stiffness": (9e3,) * 6}, "allows at most"),
    ):
        with pytest.raises(ValueError, match=words):
            ur.make(ur.Config(**changes), "ur5e", "peg_insert", scene(), FREE)
    with pytest.raises(ValueError, match=r"arm.gripper=robotiq"):
        ur.make(ur.Config(address="127.0.0.1"), "ur5e", "pick_place", scene("pick_place"), FREE)
    with pytest.raises(LookupError, match="ur5e"):
        ur.make(ur.Config(address="127.0.0.1"), "ur5", "peg_insert", scene(), FREE)
    with pytest.raises(ConnectionError, match=r"127\.9\.9\.9"):
        ur.make(ur.Config(address="127.9.9.9"), "ur5e", "peg_insert", scene(), FREE)


def test_without_the_wheel_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rtde_control", None)
    with pytest.raises(ImportError, match=r"pip install 'robot-rl\[ur\]'"):
        ur.make(ur.Config(address="127.9.9.9"), "ur5e", "peg_insert", scene(), FREE)


def test_an_old_robot_has_no_direct_torque_and_a_tcp_that_it_does_not_keep_is_named():
    assert version_of("URSoftware 5.21.3.123 (Mar 01 2026)") == (5, 21)
    with serve("rtde", "ur5e", settings=["protocol.version=5.21.0.1"]) as old:
        with pytest.raises(ValueError, match=r"PolyScope .*5\.21.*5\.26"):
            ur.make(ur.Config(address=old.host, mode="torque"), "ur5e", "peg_insert", scene(), FREE)
        with connected(old, payload_kg=1.5, tcp_offset=(0.0, 0.0, 0.1, 0.0, 0.0, 0.0)) as arm:
            truth = arm._door.truth()["tcp"]
            assert np.linalg.norm(arm.read().tcp_pos_m - truth[:3]) == pytest.approx(0.0577, abs=1e-4)
            assert arm.about()["tcp offset"].startswith("[0.0, 0.0, 0.1")
            assert arm.about()["payload"].startswith("1.500 kg")


def test_a_robotiq_gripper_moves_beside_the_arm():
    with serve("rtde", "ur5e", "pick_place") as served:
        config = ur.Config(address=served.host, twin="lockstep", gripper="robotiq", gripper_speed=1.0)
        arm = ur.make(config, "ur5e", "pick_place", scene("pick_place"), FREE)
        try:
            here = arm.read()
            assert here.gripper < 0.1

            def closing(goal: float) -> float:
                arm.command(ArmCommand(here.tcp_pos_m, here.tcp_quat_xyzw, gripper=goal))
                return arm.wait(0.02).gripper

            until(lambda: closing(1.0) > 0.9)
            until(lambda: closing(0.0) < 0.1)
            assert arm.fault == ""
        finally:
            arm.close()
