"""An arm's node over real DDS, from another process: lifecycle, services, parameters, topics, and how it ends."""

import os
import signal

import numpy as np
import pytest

pytest.importorskip("rclpy")

from controllers import messages as m
from controllers.watchdog import Config as Timing
from robot_rl.types import Pose, Start
from tests.ros_graph import Commander, Process, arm_node, nothing_left, reserved_domain, robot_rl, wait_until

HOME = np.array([0.5, 0.0, 0.25])
DOWN = np.array([1.0, 0.0, 0.0, 0.0])
ASIDE = HOME + [0.0, 0.03, 0.0]


def place(commander: Commander) -> None:
    """A new world: no fault, no commander, the arm at HOME."""
    assert commander.place(Start(Pose(HOME, DOWN), 0.0, aside("cube", "platform"))) == (True, "")


def aside(*names: str) -> dict[str, Pose]:
    """Props out of the way."""
    upright = np.array([0.0, 0.0, 0.0, 1.0])
    return {name: Pose(np.array([0.5, 0.2 * (-1) ** i, 0.05]), upright) for i, name in enumerate(names)}


@pytest.fixture(scope="module")
def node(module_domain):
    """pick_place: the one task that needs fingers; a second arm lives beside it in the same domain."""
    with arm_node(module_domain, "panda", task="pick_place") as process:
        yield process
        assert process.alive, process.log()
        assert process.stop() == 0, process.log()
        assert "Traceback" not in process.log()


@pytest.fixture(scope="module")
def shared(node, module_domain):
    with Commander(module_domain).connect() as commander:
        yield commander


@pytest.fixture
def arm(shared):
    """The commander, in a fresh world."""
    shared.silence()
    shared.estop(False)
    if shared.lifecycle() == "inactive":
        assert shared.transition("activate")
    shared.call("clear_fault")
    place(shared)
    shared.await_safety("holding: no target yet")
    yield shared
    shared.silence()


# ------------------------------------------------------------------------------------------------------------ topics


def test_it_follows_and_publishes_one_instant_under_one_stamp(arm):
    arm.stream(ASIDE, DOWN)
    arm.await_safety("following")
    wait_until(lambda: np.linalg.norm(arm.pose()[0] - ASIDE) < 0.01, "it arrives")
    arm.next(m.GUARD_STATE, 20)
    stamps = {
        topic: [m.to_ns(message.header.stamp) for message in list(arm.heard[topic])]
        for topic in (m.CURRENT_POSE, m.CURRENT_TWIST, m.JOINT_STATES)
    }
    for topic, there in stamps.items():
        assert np.all(np.diff(there) >= 0), topic  # a place tells its instant once more
        assert set(there[-50:-5]) & set(stamps[m.CURRENT_POSE]), topic
    rows = [m.from_columns(message, m.ENERGY) for message in list(arm.heard[m.ENERGY_STATE])[-10:-5]]
    assert all(m.columns_ns(row) in stamps[m.CURRENT_POSE] for row in rows)
    assert arm.newest(m.JOINT_STATES).name[-1] == "gripper"


def test_gripper_and_stiffness_come_with_the_pose(arm, node):
    arm.numbers(arm.gripper, [1.0])
    arm.numbers(arm.stiffness, [200.0] * 3 + [20.0] * 3)
    arm.stream(ASIDE, DOWN)
    wait_until(lambda: arm.newest(m.JOINT_STATES).position[-1] > 0.9, "the gripper closes")
    arm.numbers(arm.gripper, [0.0])
    wait_until(lambda: arm.newest(m.JOINT_STATES).position[-1] < 0.1, "the gripper opens")
    for publisher, bad in ((arm.gripper, [1.5]), (arm.gripper, []), (arm.stiffness, [-1.0] * 6), (arm.stiffness, [1])):
        before = arm.guard()["refused"]
        arm.numbers(publisher, bad)
        wait_until(lambda before=before: arm.guard()["refused"] > before, f"{bad} is refused")
    for said in ("target_gripper is [1.5]", "target_stiffness is [-1.0,"):  # another of a kind is only counted
        node.await_line(said)
    assert arm.newest(m.JOINT_STATES).position[-1] < 0.1


def test_a_strangers_gripper_is_not_the_commanders(arm, module_domain):
    arm.stream(ASIDE, DOWN)
    arm.await_safety("following")
    with Commander(module_domain) as stranger:
        wait_until(lambda: stranger.gripper.get_subscription_count() > 0, "it is heard")
        for _ in range(10):
            stranger.numbers(stranger.gripper, [1.0])
            arm.next(m.GUARD_STATE)
    assert arm.newest(m.JOINT_STATES).position[-1] < 0.1


def test_qos_fits_crisps_client(arm):
    """Its subscribers: best effort, depth 5; its publishers: the system's default."""
    from geometry_msgs.msg import PoseStamped
    from rclpy.node import Node
    from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_system_default
    from sensor_msgs.msg import JointState

    from controllers.ros import RosContext

    heard = []
    with RosContext() as ros:
        crisp = ros.add(Node("crisp_py", context=ros.context, namespace="/panda", use_global_arguments=False))
        best = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
        crisp.create_subscription(PoseStamped, "current_pose", lambda message: heard.append("pose"), best)
        crisp.create_subscription(JointState, "joint_states", lambda message: heard.append("joints"), best)
        publisher = crisp.create_publisher(PoseStamped, "target_pose", qos_profile_system_default)
        crisp.create_timer(
            0.02,
            lambda: publisher.publish(m.to_pose_stamped(ASIDE, DOWN, "base", crisp.get_clock().now().nanoseconds)),
        )
        ros.start()
        wait_until(lambda: {"pose", "joints"} <= set(heard), "state comes")
        arm.await_safety("following")


def test_a_latecomer_is_told_how_things_stand(arm, module_domain):
    arm.estop(True)
    arm.await_safety("emergency stop")
    with Commander(module_domain) as late:
        assert "emergency stop" in late.safety() and late.newest(m.ESTOP_STATE).data is True


def test_diagnostics_say_four_things(arm):
    level, _, values = arm.diagnostics("control loop")
    assert level in (0, 1) and float(values["frequency_hz"]) > 1.0 and "p99_lateness_ms" in values
    arm.stream(ASIDE, DOWN)
    arm.await_safety("following")
    wait_until(lambda: arm.diagnostics("targets")[1] == "fresh", "targets are fresh")
    assert arm.diagnostics("energy")[:2] == (0, "normal")
    # A busy computer may have held for a moment.
    wait_until(lambda: arm.diagnostics("arm")[:2] == (0, "following"), "the arm's status is fine")
    arm.silence()
    arm.estop(True)
    wait_until(lambda: arm.diagnostics("arm")[0] == 2, "the arm's status is an error")
    assert "clear_fault" in arm.diagnostics("arm")[1]


# ---------------------------------------------------------------------------------------------------------- services


def test_an_emergency_stop_latches_until_released_and_cleared(arm):
    arm.stream(ASIDE, DOWN)
    arm.await_safety("following")
    assert arm.estop(True)[0]
    arm.await_safety("emergency stop")
    assert arm.guard()["fault"] == 5
    assert arm.call("clear_fault") == (
        False,
        "the emergency stop is pressed: release it first (estop with data: false)",
    )
    success, message = arm.call("home")
    assert not success and "emergency stop" in message
    assert "emergency stop" in arm.set(start__tcp=[0.0] * 7)[1] or not arm.set(start__tcp=[0.0] * 7)[0]
    assert arm.estop(False)[0]
    assert arm.guard()["fault"] == 5
    wait_until(lambda: arm.newest(m.ESTOP_STATE).data is False, "estop_state tells of the release")
    assert arm.call("clear_fault") == (True, "cleared: emergency stop")
    arm.await_safety("following")
    assert arm.call("clear_fault") == (True, "there was no fault")


def test_home_moves_there_unless_somebody_commands(arm):
    arm.stream(ASIDE, DOWN)
    arm.await_safety("following")
    assert arm.call("home") == (False, "somebody commands the arm: stop that first")
    arm.silence()
    arm.await_safety("floating")
    success, message = arm.call("home")
    assert success and "safety_state" in message
    arm.await_safety("homing")
    wait_until(lambda: "homing" not in arm.safety(), "it is there")
    assert arm.safety() == "holding: no target yet"


def test_zero_ft_tares_what_is_published_and_reset_energy_fills_the_ledger(arm):
    success, message = arm.call("zero_ft")
    assert success and message.startswith("tared by [")
    arm.stream(ASIDE, DOWN)
    arm.await_safety("following")
    wait_until(lambda: arm.call("reset_energy") == (True, "the ledger holds 2 J"), "the arm is at rest")
    spent = m.from_columns(arm.next(m.ENERGY_STATE, 3), m.ENERGY)
    assert spent["ledger_j"] > 1.9


# -------------------------------------------------------------------------------------------------------- parameters


def test_parameters_change_live(arm):
    assert arm.set(limits__speed_mps=0.01) == (True, "")
    arm.heard[m.APPLIED_TARGET].clear()
    arm.stream(ASIDE, DOWN)
    arm.await_safety("following")
    arm.next(m.APPLIED_TARGET, 30)
    stamps_ns, pos_m = arm.rows(m.APPLIED_TARGET)
    passed_s = np.diff(stamps_ns) * 1e-9
    assert np.linalg.norm(np.diff(pos_m, axis=0), axis=1).max() <= 0.01 * max(0.02, passed_s.max()) + 1e-9
    assert arm.set(limits__speed_mps=0.25, task__k_pos_x=700.0)[0] and arm.get("task.k_pos_x") == 700.0
    assert arm.set(watchdog__hold_s=0.4)[0]
    arm.silence()
    arm.await_safety("no heartbeat for 0.1 s")
    assert arm.set(watchdog__hold_s=0.2, task__k_pos_x=1000.0)[0]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"limits__speed_mps": 99.0}, ["limits.speed_mps"]),
        ({"limits__force_n": -1.0}, ["limits.force_n"]),
        ({"limits__force_n": float("nan")}, ["force_n"]),
        ({"limits__force_n": "much"}, ["type"]),  # ROS itself does not say which
        ({"limits__box_lower_m": [float("nan")] * 3}, ["box_lower_m"]),
        ({"limits__box_lower_m": [0.1, 0.1]}, ["box_lower_m"]),
        ({"limits__box_lower_m": [9.0] * 3}, ["box_lower_m"]),
        ({"watchdog__hold_s": 4.0}, ["hold_s", "float_s"]),
        ({"watchdog__late_ticks": 0}, ["watchdog.late_ticks"]),
        ({"task__k_rot_x": 1e6}, ["task.k_rot_x"]),
        ({"arm__task": "reach"}, ["arm.task"]),
        ({"start__tcp": [0.5, 0.0, 0.3, 1.0, 0.0, 0.0, 0.0]}, ["start.gripper", "together"]),
        ({"limits__torque_nm": 1.0, "limits__force_n": 1e9}, ["limits.force_n"]),  # all or none
    ],
)
def test_what_is_out_of_bounds_is_refused_by_name(arm, values, names):
    before = {name: arm.get(name.replace("__", ".")) for name in values}
    success, reason = arm.set(**values)
    assert not success and all(name in reason for name in names), reason
    np.testing.assert_equal({name: arm.get(name.replace("__", ".")) for name in values}, before)


@pytest.mark.parametrize(
    "start",
    [
        {"start__prop_names": ["nothing"], "start__prop_poses": [0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]},
        {"start__prop_names": ["cube"], "start__prop_poses": [0.5]},
        {"start__tcp": [0.0] * 7},
        {"start__tcp": [9.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]},
        {"start__tcp": [float("nan")] * 7},
    ],
)
def test_a_start_that_cannot_be_is_refused_and_the_node_lives(arm, start):
    values = {
        "start__tcp": [*HOME, *DOWN],
        "start__gripper": 0.0,
        "start__prop_names": [""],
        "start__prop_poses": [0.0],
    } | start
    success, reason = arm.set(**values)
    assert not success and reason
    assert arm.guard()["fault"] == 0


# --------------------------------------------------------------------------------------------------------- lifecycle


def test_deactivate_and_activate_hold_and_take_targets_again(arm):
    arm.stream(ASIDE, DOWN)
    arm.await_safety("following")
    assert arm.transition("deactivate") and arm.lifecycle() == "inactive"
    arm.await_safety("inactive: deactivated")
    assert arm.call("home") == (False, "the node is not active: activate it first")
    arm.silence()
    assert not arm.transition("cleanup") or arm.lifecycle() == "unconfigured"
    assert arm.get("arm.task") is None
    arm.await_safety("inactive: not configured")
    assert arm.transition("configure") and arm.transition("activate") and arm.get("arm.task") == "pick_place"
    arm.await_safety("holding: no target yet")
    arm.connect()
    place(arm)
    arm.stream(ASIDE, DOWN)
    arm.await_safety("following")


def test_an_emergency_stop_pressed_while_inactive_holds_what_is_activated(arm):
    assert arm.transition("deactivate")
    success, message = arm.estop(True)
    assert success and "until estop is released" in message
    assert arm.transition("activate")
    arm.await_safety("emergency stop")
    arm.connect()
    arm.stream(ASIDE, DOWN)
    before = arm.pose()[0]
    arm.next(m.GUARD_STATE, 20)
    np.testing.assert_allclose(arm.pose()[0], before, atol=2e-3)
    assert arm.guard()["fault"] == 5


def test_configure_fails_in_words_and_works_at_the_second_try(ros_domain):
    """An arm that is not there, then is: nothing but the transition is repeated."""
    from controllers.arm_node import About, ArmNode
    from controllers.arm_node import Config as NodeConfig
    from controllers.guard import Config as GuardConfig
    from controllers.guarded_arm import GuardedArm
    from controllers.ros import RosContext
    from tests.test_control_loop_modes import BOUNDS, Sleeper

    tries = []

    def make_arm():
        tries.append(1)
        if len(tries) == 1:
            raise OSError("192.168.1.11: no route to the arm")
        return GuardedArm(Sleeper(), BOUNDS, GuardConfig(control_hz=100.0))

    with nothing_left(), RosContext() as ros:
        timing = Timing(late_ticks=10_000, state_s=1.0)
        node = ros.add(
            ArmNode(
                make_arm,
                About("mock", "none", False, BOUNDS),
                NodeConfig(rate_hz=100.0, state_hz=100.0),
                timing,
                context=ros.context,
                namespace="mock",
            )
        )
        ros.start()
        try:
            with Commander(ros_domain, "mock") as commander:
                assert not commander.transition("configure") and commander.lifecycle() == "unconfigured"
                commander.await_safety("inactive: 192.168.1.11: no route to the arm")
                assert commander.transition("configure") and commander.transition("activate")
                commander.connect()
                commander.await_safety("holding: no target yet")
                node._loop.arm.unguarded.dead = True
                commander.await_safety("OSError: the cable is out")
                for service in ("clear_fault", "home", "zero_ft", "reset_energy"):
                    success, message = commander.call(service)
                    assert not success and "the cable is out" in message
                assert not commander.estop(True)[0] and not commander.set(limits__force_n=3.0)[0]
                commander.estop(False)
                assert commander.transition("deactivate") and commander.transition("cleanup")
                assert commander.transition("configure") and commander.transition("activate")
                commander.await_safety("holding: no target yet")
        finally:
            ros.stop()
            ros._thread.join()
            node.disconnect()


# ------------------------------------------------------------------------------------------------- processes and graphs


def test_two_arms_in_one_domain_and_another_in_its_own(arm, module_domain):
    """Named by --ros-args, as `ros2 launch` does; parameters given there count."""
    override = ["--ros-args", "-r", "__ns:=/left", "-p", "limits.speed_mps:=0.05"]
    with (
        reserved_domain() as other,
        arm_node(module_domain, "unused", *override) as second,
        arm_node(other, "panda") as third,
    ):
        with Commander(module_domain, "left").connect() as left:
            assert left.get("arm.task") == "reach" and left.get("limits.speed_mps") == 0.05
            assert left.place(Start(Pose(HOME, DOWN), 0.0, aside("goal"))) == (True, "")
            left.heard[m.APPLIED_TARGET].clear()
            left.stream(ASIDE, DOWN)
            left.await_safety("following")
            left.next(m.APPLIED_TARGET, 20)
            assert "following" not in arm.safety()
            stamps_ns, pos_m = left.rows(m.APPLIED_TARGET)
            passed_s = max(0.02, (np.diff(stamps_ns) * 1e-9).max())
            assert np.linalg.norm(np.diff(pos_m, axis=0), axis=1).max() <= 0.05 * passed_s + 1e-9
        with Commander(other).connect() as foreign:
            assert foreign.get("arm.task") == "reach"  # not the pick_place of the first
            foreign.estop(True)
            foreign.await_safety("emergency stop")
        os.environ["ROS_DOMAIN_ID"] = str(module_domain)
        assert "emergency stop" not in arm.safety()
        assert second.stop(signal.SIGTERM) == 0 and third.stop(signal.SIGINT) == 0
        assert "Traceback" not in second.log() + third.log()


def test_call_says_what_the_node_says(arm, module_domain):
    status, said = robot_rl(module_domain, "call", "estop")
    assert status == 0 and "stopped: the arm holds" in said
    status, said = robot_rl(module_domain, "call", "clear_fault")
    assert status == 1 and "release it first" in said
    status, said = robot_rl(module_domain, "call", "release_estop")
    assert status == 0 and "released" in said
    status, said = robot_rl(module_domain, "call", "home", "--namespace", "nobody", "--wait", "0.5")
    assert status == 2 and "nobody offers /nobody/arm/home" in said and f"ROS_DOMAIN_ID {module_domain}" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--task", "reach", "--world", "ros", "--lockstep"], "other end of such a node"),
        (["--task", "reach", "--arm", "fr3", "--world", "crisp", "--lockstep"], "lock-step is for twins"),
        (["--task", "reach", "--set", "watchdog.hold_s=9"], "hold_s"),
        (["--task", "reach", "--set", "nod.rate_hz=9"], "node"),
        (["--task", "reech"], "reach"),
    ],
)
def test_what_cannot_be_started_is_one_line(ros_domain, args, words):
    status, said = robot_rl(ros_domain, "node", "arm", *args)
    assert status == 2 and words in said and "Traceback" not in said


def test_a_node_that_is_stopped_while_it_starts_ends_in_order(ros_domain):
    """Whenever the signal comes after the log says that it is active."""
    with nothing_left(), Process(ros_domain, ["node", "arm", "--task", "reach", "--rate", "100"]) as process:
        process.await_line("is active")
        assert process.stop(signal.SIGTERM) == 0, process.log()


def test_a_parameter_out_of_bounds_at_the_start_ends_it_in_words(ros_domain):
    override = ["--ros-args", "-p", "limits.force_n:=99999.0"]
    with Process(ros_domain, ["node", "arm", "--task", "reach", *override]) as process:
        assert process.wait() == 2
        assert "cannot configure" in process.log() and "limits.force_n" in process.log()
        assert "Traceback" not in process.log()
