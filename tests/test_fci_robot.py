"""The arm and hand behind an FCI twin, without sockets: generators, controllers, checks, reflexes."""

import numpy as np
import pytest

from robot_rl.build import make_arm, make_configs
from robot_rl.find import find
from sim.protocols import _fci_messages as fci
from sim.protocols._fci_gripper import Hand
from sim.protocols._fci_messages import Command, Controller, Generator, GripperCommand, GripperStatus, RobotMode
from sim.protocols._fci_messages import MoveStatus as Moved
from sim.protocols._fci_messages import RecoveryStatus as Recovered
from sim.protocols._fci_messages import SetStatus as Set
from sim.protocols._fci_robot import Robot

JOINTS = (Controller.JOINT_IMPEDANCE, Generator.JOINT_POSITION)
SPEEDS = (Controller.JOINT_IMPEDANCE, Generator.JOINT_VELOCITY)
POSES = (Controller.CARTESIAN_IMPEDANCE, Generator.CARTESIAN_POSITION)
TWISTS = (Controller.CARTESIAN_IMPEDANCE, Generator.CARTESIAN_VELOCITY)
TORQUES = (Controller.EXTERNAL, Generator.NONE)


def make_robot(task: str = "reach") -> Robot:
    configs = make_configs(task, "fr3", "sim", [])
    made = find("tasks", task).make(configs["task"])
    twin = make_arm(task, "fr3", "sim", configs, made)
    twin.place(made.reset(np.random.default_rng(0)))
    return Robot(twin)


@pytest.fixture
def robot() -> Robot:
    return make_robot()


def start(robot: Robot, mode: tuple[Controller, Generator], **fields) -> Moved:
    request = fci.encode(
        fci.REQUESTS[Command.MOVE], controller_mode=mode[0], motion_generator_mode=mode[1] - 1, **fields
    )
    return robot.start_move(fci.decode(request, fci.REQUESTS[Command.MOVE]))


def command(**fields):
    return fci.decode(fci.encode(fci.ROBOT_COMMAND, **fields), fci.ROBOT_COMMAND)


def pose_of(robot: Robot, name: str = "O_T_EE_c") -> np.ndarray:
    return robot.out[name][0].astype(float).reshape(4, 4).T


def smooth(t: float) -> float:
    """From 0 to 1 in a second, with bounded acceleration and jerk; its rate."""
    t = min(max(t, 0.0), 1.0)
    return t**3 * (10.0 - 15.0 * t + 6.0 * t**2)


def rate(t: float) -> float:
    return 30.0 * t**2 * (1.0 - t) ** 2 if 0.0 < t < 1.0 else 0.0


def test_an_idle_arm_stays_where_it_is(robot):
    before = robot.state.q_rad
    for _ in range(500):
        robot.step(None)
    np.testing.assert_allclose(robot.state.q_rad, before, atol=1e-5)
    assert robot.mode == RobotMode.IDLE
    np.testing.assert_allclose(robot.out["O_T_EE"][0], robot.out["O_T_EE_d"][0], atol=1e-5)
    np.testing.assert_allclose(robot.out["tau_J"][0], robot.terms.gravity_nm, atol=0.01)


def test_joint_positions_are_followed(robot):
    q0 = robot.goal.q_d.copy()
    way = np.array([0.1, -0.1, 0.1, 0.1, 0.2, -0.2, 0.2])
    assert start(robot, JOINTS) == Moved.MOTION_STARTED
    worst = 0.0
    for k in range(1200):
        robot.step(command(q_c=q0 + way * smooth(k / 1000)))
        worst = max(worst, np.abs(robot.state.q_rad - robot.goal.q_d).max())
    assert robot.mode == RobotMode.MOVE and worst < 1e-3
    assert robot.ends(command(motion_generation_finished=1)) and robot.finished == Moved.SUCCESS
    np.testing.assert_allclose(robot.state.q_rad, q0 + way, atol=1e-4)


def test_joint_velocities_are_followed(robot):
    q0 = robot.goal.q_d.copy()
    start(robot, SPEEDS)
    for k in range(1200):
        robot.step(command(dq_c=np.full(7, 0.1) * rate(k / 1000)))
    assert robot.mode == RobotMode.MOVE
    np.testing.assert_allclose(robot.state.q_rad, q0 + 0.1, atol=1e-3)


@pytest.mark.parametrize("controller", [Controller.JOINT_IMPEDANCE, Controller.CARTESIAN_IMPEDANCE])
def test_cartesian_poses_are_followed(robot, controller):
    start(robot, (controller, Generator.CARTESIAN_POSITION))
    first = pose_of(robot)
    for k in range(1300):
        wanted = first.copy()
        wanted[:3, 3] += np.array([0.03, 0.05, -0.04]) * smooth(k / 1000)
        robot.step(command(O_T_EE_c=wanted.T.ravel()))
    assert robot.mode == RobotMode.MOVE, robot.errors
    np.testing.assert_allclose(pose_of(robot, "O_T_EE"), wanted, atol=5e-4)


def test_cartesian_velocities_are_followed(robot):
    start(robot, TWISTS)
    first = pose_of(robot)
    for k in range(1300):
        robot.step(command(O_dP_EE_c=np.array([0.05, 0.0, 0.0, 0.0, 0.0, 0.2]) * rate(k / 1000)))
    now = pose_of(robot, "O_T_EE")
    assert robot.mode == RobotMode.MOVE, robot.errors
    np.testing.assert_allclose(now[:3, 3] - first[:3, 3], [0.05, 0.0, 0.0], atol=5e-4)
    turned = now[:3, :3] @ first[:3, :3].T
    np.testing.assert_allclose(np.arctan2(turned[1, 0], turned[0, 0]), 0.2, atol=1e-3)


def test_an_elbow_moves_joint_3_and_leaves_the_hand(robot):
    start(robot, POSES)
    first, elbow = pose_of(robot), robot.goal.elbow_c.copy()
    for k in range(1300):
        wanted = [elbow[0] + 0.1 * smooth(k / 1000), elbow[1]]
        robot.step(command(O_T_EE_c=first.T.ravel(), elbow_c=wanted, valid_elbow=1))
    assert robot.mode == RobotMode.MOVE, robot.errors
    np.testing.assert_allclose(robot.out["elbow"][0], [elbow[0] + 0.1, -1.0], atol=2e-3)
    np.testing.assert_allclose(pose_of(robot, "O_T_EE")[:3, 3], first[:3, 3], atol=5e-4)


def test_torques_act_and_the_last_one_is_held_where_one_is_missing(robot):
    start(robot, TORQUES)
    robot.step(command())
    for k in range(5):
        robot.step(command(tau_J_d=[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.2 * (k + 1)]))
    robot.step(None)
    np.testing.assert_allclose(robot.out["tau_J_d"][0], [0, 0, 0, 0, 0, 0, 1.0], atol=1e-6)
    assert robot.state.dq_radps[6] > 0.01
    assert robot.out["control_command_success_rate"][0] == 0.0  # filled as the state goes out
    robot.fill_modes()
    assert robot.out["control_command_success_rate"][0] == pytest.approx(6 / 7)


def far(robot):  # first command beside where the arm is
    robot.step(command(q_c=robot.goal.q_d + 0.01))


def steps(field, *values):
    def do(robot):
        for value in values:
            robot.step(command(**{field: value}))

    return do


def tilted(robot):
    pose = pose_of(robot)
    pose[0, 0] += 0.1
    robot.step(command(O_T_EE_c=pose.T.ravel()))


def beside(robot):
    pose = pose_of(robot)
    pose[0, 3] += 0.01
    robot.step(command(O_T_EE_c=pose.T.ravel()))


def flipped(robot):
    robot.step(command(O_T_EE_c=pose_of(robot).T.ravel(), elbow_c=[robot.goal.elbow_c[0], 1.0], valid_elbow=1))


def to_the_end_of_joint_7(robot):
    k = 0
    while robot.moving and k < 5000:
        speed = min(0.004 * k, 2.0)
        robot.step(command(dq_c=[0.0] * 6 + [speed]))
        k += 1


def fast(robot):
    for k in range(1500):
        robot.step(command(dq_c=[min(0.004 * k, 3.0)] + [0.0] * 6))


ONE, LAST = np.eye(7)[0], np.eye(7)[6]
X = np.eye(6)[0]

CASES = [
    (JOINTS, far, "joint_position_motion_generator_start_pose_invalid"),
    (SPEEDS, steps("dq_c", 0.05 * ONE), "joint_motion_generator_velocity_discontinuity"),
    (SPEEDS, steps("dq_c", 0.009 * ONE), "joint_motion_generator_acceleration_discontinuity"),
    (SPEEDS, fast, "joint_motion_generator_velocity_limits_violation"),
    (SPEEDS, steps("dq_c", np.full(7, np.nan)), "joint_motion_generator_position_limits_violation"),
    (SPEEDS, to_the_end_of_joint_7, "joint_motion_generator_velocity_limits_violation"),
    (POSES, tilted, "cartesian_position_motion_generator_invalid_frame_flag"),
    (POSES, beside, "cartesian_position_motion_generator_start_pose_invalid"),
    (POSES, flipped, "cartesian_motion_generator_elbow_sign_inconsistent"),
    (TWISTS, steps("O_dP_EE_c", 4.0 * X), "cartesian_motion_generator_velocity_limits_violation"),
    (TWISTS, steps("O_dP_EE_c", 0.05 * X), "cartesian_motion_generator_velocity_discontinuity"),
    (TWISTS, steps("O_dP_EE_c", 0.008 * X), "cartesian_motion_generator_acceleration_discontinuity"),
    (TORQUES, steps("tau_J_d", 1.5 * ONE), "controller_torque_discontinuity"),
    (TORQUES, steps("tau_J_d", np.nan * ONE), "controller_torque_discontinuity"),
    (TORQUES, steps("tau_J_d", *[0.9 * k * LAST for k in range(20)]), "tau_J_range_violation"),
]


@pytest.mark.parametrize(("mode", "do", "name"), CASES, ids=[case[2] + str(k) for k, case in enumerate(CASES)])
def test_what_breaks_a_limit_ends_the_motion_by_name(robot, mode, do, name):
    robot._thresholds = tuple(np.full(n, 1e3) for n in (7, 7, 6, 6))
    assert start(robot, mode) == Moved.MOTION_STARTED
    do(robot)
    assert robot.errors == {name}
    assert robot.mode == RobotMode.REFLEX and robot.finished == Moved.REFLEX_ABORTED
    robot.fill_modes()
    assert [fci.ERRORS[k] for k in np.flatnonzero(robot.out["errors"][0])] == [name]
    assert start(robot, TORQUES) == Moved.COMMAND_NOT_POSSIBLE
    for _ in range(500):
        robot.step(None)
    assert np.abs(robot.state.dq_radps).max() < 5e-3, "braked and held"
    assert robot.recover() == Recovered.SUCCESS and not robot.errors and robot.last_motion_errors == {name}
    assert start(robot, TORQUES) == Moved.MOTION_STARTED


def test_lost_commands_go_on_with_constant_acceleration_and_20_in_a_row_end_the_motion(robot):
    start(robot, SPEEDS)
    for k in range(6):
        robot.step(command(dq_c=0.004 * k * ONE))
    ddq, dq = robot.goal.ddq_d.copy(), robot.goal.dq_d.copy()
    for _ in range(3):
        robot.step(None)
    np.testing.assert_allclose(robot.goal.dq_d, dq + 3 * ddq * 1e-3, atol=1e-12)
    robot.step(command(dq_c=0.004 * 9 * ONE))  # where the extrapolation has led
    assert robot.mode == RobotMode.MOVE
    for _ in range(19):
        robot.step(None)
    assert robot.mode == RobotMode.MOVE
    robot.step(None)
    assert robot.errors == {"communication_constraints_violation"}


def test_a_motion_that_nobody_begins_ends(robot):
    start(robot, TORQUES)
    before = robot.state.q_rad
    for _ in range(501):
        robot.step(None)
    np.testing.assert_allclose(robot.state.q_rad, before, atol=1e-4)
    assert robot.errors == {"communication_constraints_violation"}


def test_the_table_trips_a_reflex_that_only_recovery_clears(robot):
    before_m = robot.state.tcp_pos_m[2]
    start(robot, TWISTS)
    k = 0
    while robot.moving and k < 8000:
        robot.step(command(O_dP_EE_c=[0.0, 0.0, -min(0.0005 * k, 0.08), 0.0, 0.0, 0.0]))
        k += 1
    assert "cartesian_reflex" in robot.errors and robot.finished == Moved.REFLEX_ABORTED
    assert robot.state.tcp_pos_m[2] < min(before_m, 0.02)
    assert robot.out["cartesian_collision"][0][2] == 1.0
    assert robot.out["O_F_ext_hat_K"][0][2] < -10.0, "what the arm exerts on the table: downwards"
    assert robot.out["tau_ext_hat_filtered"][0][1] * robot._place.jac[2, 1] < 0.0
    for _ in range(300):
        robot.step(None)
    assert robot.out["cartesian_collision"][0][2] == 1.0
    assert robot.recover() == Recovered.SUCCESS
    robot.step(None)
    assert not robot.out["cartesian_collision"][0].any()


def test_a_user_stop_ends_all_and_recovery_waits_for_its_release(robot):
    start(robot, TORQUES)
    robot.step(command())
    robot.user_stop()
    assert robot.finished == Moved.EMERGENCY_ABORTED and robot.mode == RobotMode.USER_STOPPED
    assert start(robot, TORQUES) == Moved.COMMAND_NOT_POSSIBLE
    assert robot.recover() == Recovered.COMMAND_NOT_POSSIBLE
    assert robot.stop_move() == fci.StopStatus.EMERGENCY_ABORTED
    robot.release_user_stop()
    assert robot.mode == RobotMode.IDLE and start(robot, TORQUES) == Moved.MOTION_STARTED


def test_what_a_move_may_ask_for(robot):
    nothing = np.zeros(3)
    assert start(robot, (Controller.JOINT_IMPEDANCE, Generator.NONE)) == Moved.INVALID_ARGUMENT
    assert start(robot, (Controller.OTHER, Generator.JOINT_POSITION)) == Moved.INVALID_ARGUMENT
    assert start(robot, JOINTS, maximum_path_deviation=nothing - 1.0) == Moved.INVALID_ARGUMENT
    assert start(robot, JOINTS, use_async_motion_generator=1) == Moved.INVALID_ARGUMENT
    assert start(robot, JOINTS) == Moved.MOTION_STARTED
    assert start(robot, JOINTS) == Moved.COMMAND_NOT_POSSIBLE
    assert robot.configure({"K_theta": np.full(7, 100.0)}) == Set.COMMAND_NOT_POSSIBLE
    assert robot.recover() == Recovered.COMMAND_NOT_POSSIBLE
    assert robot.stop_move() == fci.StopStatus.SUCCESS and robot.finished == Moved.PREEMPTED
    assert robot.stop_move() == fci.StopStatus.SUCCESS, "an abort's clean-up must not fail"


BEHAVIOR = {name: np.full(fci.REQUESTS[Command.SET_COLLISION_BEHAVIOR][name].shape, 10.0)
            for name in fci.REQUESTS[Command.SET_COLLISION_BEHAVIOR].names}  # fmt: skip


@pytest.mark.parametrize(
    "values",
    [
        {"K_theta": np.full(7, 15000.0)}, {"K_theta": np.full(7, np.nan)}, {"K_x": np.full(6, 1000.0)},
        {"K_x": np.zeros(6)}, {"EE_T_K": np.zeros(16)}, {"NE_T_EE": np.full(16, np.inf)},
        {"m_load": np.float64(-1.0), "F_x_Cload": np.zeros(3), "I_load": np.zeros(9)},
        {**BEHAVIOR, "lower_force_thresholds_nominal": np.full(6, 11.0)},
        {**BEHAVIOR, "upper_torque_thresholds_acceleration": np.full(7, -1.0)},
    ],
)  # fmt: skip
def test_arguments_that_are_refused(robot, values):
    assert robot.configure(values) == Set.INVALID_ARGUMENT


def test_frames(robot):
    ee = np.eye(4)
    ee[2, 3] = 0.05
    np.testing.assert_allclose(robot.out["F_T_EE"][0][12:15], [0.0, 0.0, 0.1034], atol=1e-6)
    assert robot.out["F_T_EE"][0][1] == pytest.approx(-np.sqrt(0.5)), "the hand is turned by -45 deg"
    before = pose_of(robot, "O_T_EE")
    np.testing.assert_allclose(before[:3, 3], robot.state.tcp_pos_m, atol=1e-6)
    assert robot.configure({"NE_T_EE": ee.T.ravel()}) == Set.SUCCESS
    assert robot.configure({"EE_T_K": ee.T.ravel()}) == Set.SUCCESS
    robot.step(None)
    np.testing.assert_allclose(pose_of(robot, "O_T_EE"), before @ ee, atol=1e-5)
    np.testing.assert_allclose(robot.out["F_T_EE"][0][14], 0.1534, atol=1e-6)
    np.testing.assert_allclose(robot._stiffness_pose, before @ ee @ ee, atol=1e-5)
    start(robot, POSES)
    first = pose_of(robot)
    for _ in range(50):
        robot.step(command(O_T_EE_c=first.T.ravel()))
    assert robot.mode == RobotMode.MOVE
    np.testing.assert_allclose(pose_of(robot, "O_T_EE"), before @ ee, atol=1e-4)


def test_softer_joints_give_more(robot):
    """The same push from outside, against two stiffnesses."""
    gave = []
    for stiffness in (3000.0, 300.0):
        assert robot.configure({"K_theta": np.full(7, stiffness)}) == Set.SUCCESS
        start(robot, JOINTS)
        q0 = robot.goal.q_d.copy()
        body = robot.twin._model.body("hand").id
        robot.twin._data.xfrc_applied[body, 1] = 15.0
        for _ in range(1000):
            robot.step(command(q_c=q0))
        gave.append(np.abs(robot.state.q_rad - q0).max())
        robot.twin._data.xfrc_applied[:] = 0.0
        robot.stop_move()
    assert gave[1] > 5.0 * gave[0]


def test_a_load_that_is_not_there_is_pushed_up(robot):
    """The robot compensates the load that it is told of, and expects to feel it."""
    robot.configure({"m_load": np.float64(1.0), "F_x_Cload": np.zeros(3), "I_load": np.zeros(9)})
    robot.step(None)
    for _ in range(200):
        robot.step(None)
    assert robot.out["m_load"][0] == 1.0
    assert robot.out["O_F_ext_hat_K"][0][2] == pytest.approx(-9.81, rel=0.05)


def test_a_hand_grasps_the_cube():
    robot = make_robot("pick_place")
    hand = Hand(0.08, 70.0, (1.0 - robot.state.gripper) * 0.08, locked=False)

    def run(kind, **fields):
        assert hand.start(kind, fields) is None
        for _ in range(6000):
            robot.gripper = hand.gripper
            robot.step(None)
            hand.step((1.0 - robot.state.gripper) * 0.08)
            if hand.finished is not None:
                return hand.finished
        raise AssertionError("no end")

    assert run(GripperCommand.MOVE, width=0.05, speed=0.05) == GripperStatus.SUCCESS
    assert hand.width_m == pytest.approx(0.05, abs=1e-3)
    assert run(GripperCommand.HOMING) == GripperStatus.SUCCESS and hand.width_m > 0.079
    empty = {"width": 0.03, "speed": 0.1, "force": 30.0, "epsilon_inner": 0.005, "epsilon_outer": 0.005}
    assert run(GripperCommand.GRASP, **empty) == GripperStatus.UNSUCCESSFUL and not hand.grasped
    run(GripperCommand.MOVE, width=0.08, speed=0.1)
    (cube,) = [prop for prop in robot.twin._scene.props if prop.kind == "free"]
    name = cube.name
    at = robot.twin._data.joint(name).qpos
    at[:3], at[3:] = robot.state.tcp_pos_m, (1.0, 0.0, 0.0, 0.0)
    around = {
        "width": 2.0 * cube.geoms[0].size_m[0],
        "speed": 0.1,
        "force": 30.0,
        "epsilon_inner": 0.01,
        "epsilon_outer": 0.01,
    }
    robot.twin._model.opt.gravity[:] = 0.0  # the cube hangs between the fingers until they close
    robot.twin._data.joint(name).qvel[:] = 0.0
    assert run(GripperCommand.GRASP, **around) == GripperStatus.SUCCESS and hand.grasped
    robot.twin._model.opt.gravity[2] = -9.81
    for _ in range(500):
        robot.gripper = hand.gripper
        robot.step(None)
        hand.step((1.0 - robot.state.gripper) * 0.08)
    assert hand.grasped
    np.testing.assert_allclose(at[:3], robot.state.tcp_pos_m, atol=0.02)


def test_fingers_that_the_scene_has_locked():
    hand = Hand(0.08, 70.0, 0.02, locked=True)
    assert hand.start(GripperCommand.MOVE, {"width": 0.06, "speed": 0.1}) == GripperStatus.FAIL
    assert hand.start(GripperCommand.MOVE, {"width": 0.02, "speed": 0.1}) == GripperStatus.SUCCESS
    assert hand.start(GripperCommand.HOMING, None) == GripperStatus.FAIL
    assert hand.start(GripperCommand.STOP, None) == GripperStatus.SUCCESS


@pytest.mark.parametrize("fields", [{"width": 0.2, "speed": 0.1}, {"width": 0.02, "speed": 0.0},
                                    {"width": np.nan, "speed": 0.1}])  # fmt: skip
def test_arguments_that_the_hand_refuses(fields):
    assert Hand(0.08, 70.0, 0.02, locked=False).start(GripperCommand.MOVE, fields) == GripperStatus.FAIL
