"""The twins as arms: compiled and plain ticks agree, physics holds what the law promises, and every arm keeps the
contract of ``robot_rl.types.Arm``."""

import dataclasses

import numpy as np
import pytest

from controllers.guarded_arm import GuardedArm
from robot_rl.build import make_env
from robot_rl.find import find, names
from robot_rl.geometry import rotation_between, rotvec_to_quat
from robot_rl.types import ArmCommand, Bounds, Geom, Pose, Prop, Scene, Start
from sim._twin import Twin

ARMS = names("sim")
DOWN = np.array([1.0, 0.0, 0.0, 0.0])
HOME = np.array([0.45, 0.0, 0.3])
BOUNDS = Bounds((0.2, -0.3, 0.0), (0.7, 0.3, 0.6), (1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
WALL = Scene((Prop("wall", "fixture", (Geom("box", (0.1, 0.1, 0.02)),)),))


def make(arm: str, scene: Scene | None = None, compiled: bool = True, **config) -> Twin:
    module = find("sim", arm)
    twin = module.make(dataclasses.replace(module.Config(), **config), scene or Scene())
    if not compiled:
        twin._compiled = False
        twin._plant = twin._plant._replace(model=twin._model, data=twin._data)
    return twin


def start(**props: Pose) -> Start:
    return Start(Pose(HOME, DOWN), props=props)


def wall_at(height_m: float) -> dict[str, Pose]:
    return {"wall": Pose(np.array([HOME[0], HOME[1], height_m - 0.02]), np.array([0.0, 0.0, 0.0, 1.0]))}


def test_there_are_the_promised_arms():
    assert set(ARMS) >= {"panda", "fr3", "ur5e"}


@pytest.mark.parametrize("arm", ARMS)
def test_compiled_and_plain_ticks_are_the_same(arm):
    """The same lines: after contact, clipping and joint motion the two differ by less than 1e-12."""
    states = []
    for compiled in (True, False):
        guard = GuardedArm(make(arm, WALL, compiled), BOUNDS)
        guard.place(start(**wall_at(0.285)))
        for turn in (0.1, -0.2):
            guard.command(ArmCommand(HOME + [0.02, -0.03, -0.05], quat_turned(turn), gripper=0.7))
            state = guard.wait(0.1)
        states.append(state)
        assert np.linalg.norm(state.tcp_wrench[:3]) > 1.0, "the trial has to include contact"
    for field in dataclasses.fields(states[0]):
        a, b = (getattr(state, field.name) for state in states)
        np.testing.assert_allclose(a, b, rtol=0.0, atol=1e-12, err_msg=field.name)


def quat_turned(angle: float) -> np.ndarray:
    """Tool down, turned about the vertical."""
    half = rotvec_to_quat(np.array([0.0, 0.0, angle]))
    return np.array([half[3], half[2], 0.0, 0.0])


@pytest.mark.parametrize("arm", ARMS)
def test_the_clock_is_physics(arm):
    twin = make(arm)
    before = twin.read().t_s
    assert twin.wait(0.05).t_s - before == pytest.approx(0.05, abs=1e-9)
    with pytest.raises(ValueError, match="multiple"):
        twin.wait(0.0105)


@pytest.mark.parametrize("arm", ARMS)
def test_the_arm_goes_where_it_is_told(arm):
    guard = GuardedArm(make(arm), BOUNDS)
    guard.place(start())
    goal = HOME + [0.05, -0.06, 0.04]
    guard.command(ArmCommand(goal, quat_turned(0.3), valid_s=10.0))
    state = guard.wait(3.0)
    np.testing.assert_allclose(state.tcp_pos_m, goal, atol=1e-3)
    assert np.linalg.norm(rotation_between(state.tcp_quat_xyzw, quat_turned(0.3))) < 0.01
    assert np.abs(state.dq_radps).max() < 1e-3
    assert guard.fault == "" and guard.clips["lease"] == 0


@pytest.mark.parametrize("arm", ARMS)
def test_contact_force_is_bounded_by_stiffness_times_clip(arm):
    """A target 20 cm inside a wall presses with no more than K * clip at rest; the wall's reaction is what is read."""
    clip_m, stiffness = 0.005, 2000.0
    guard = GuardedArm(make(arm, WALL, clip_m=(clip_m,) * 3), dataclasses.replace(BOUNDS, force_n=100.0))
    guard.place(start(**wall_at(0.28)))
    guard.command(ArmCommand(HOME - [0.0, 0.0, 0.2], DOWN, gripper=1.0, valid_s=10.0))
    state = guard.wait(3.0)
    assert state.tcp_wrench[2] == pytest.approx(stiffness * clip_m, rel=0.02)
    assert np.abs(state.tcp_wrench[:2]).max() < 1.0
    assert guard.fault == ""


def test_the_force_bound_of_a_task_is_tighter_than_the_clip():
    guard = GuardedArm(make("panda", WALL), dataclasses.replace(BOUNDS, force_n=8.0))
    guard.place(start(**wall_at(0.28)))
    guard.command(ArmCommand(HOME - [0.0, 0.0, 0.2], DOWN, gripper=1.0, valid_s=10.0))
    assert guard.wait(3.0).tcp_wrench[2] == pytest.approx(8.0, rel=0.02)
    assert guard.clips["force"] > 0


@pytest.mark.parametrize("arm", ARMS)
def test_an_expired_lease_holds_the_arm(arm):
    guard = GuardedArm(make(arm), BOUNDS)
    guard.place(start())
    guard.command(ArmCommand(HOME + [0.2, 0.0, 0.0], DOWN, valid_s=0.2))
    guard.wait(1.0)
    held = guard.read().tcp_pos_m
    assert held[0] < HOME[0] + 0.1
    np.testing.assert_allclose(guard.wait(1.0).tcp_pos_m, held, atol=1e-3)


def test_a_trip_holds_the_twin_until_it_is_cleared():
    guard = GuardedArm(make("panda", WALL), dataclasses.replace(BOUNDS, force_n=100.0, trip_force_n=5.0))
    guard.place(start(**wall_at(0.28)))
    command = ArmCommand(HOME - [0.0, 0.0, 0.2], DOWN, gripper=1.0, valid_s=10.0)
    guard.command(command)
    guard.wait(1.0)
    assert guard.fault == "contact force"
    held = guard.wait(0.5)
    guard.command(command)
    np.testing.assert_allclose(guard.wait(0.5).tcp_pos_m, held.tcp_pos_m, atol=1e-4)
    assert guard.fault == "contact force"
    guard.clear_fault()
    assert guard.fault == ""


@pytest.mark.parametrize("broken", ["qvel", "qpos", "wrench"])
def test_a_state_that_is_not_finite_lets_the_torque_go(broken):
    """There is no pose to hold: torque ramps to zero at the rate limit, gravity compensation stays."""
    twin = make("panda")
    guard = GuardedArm(twin, BOUNDS)
    guard.place(start())
    guard.command(ArmCommand(HOME + [0.1, 0.0, 0.0], DOWN, valid_s=10.0))
    guard.wait(0.2)
    {"qvel": twin._data.qvel, "qpos": twin._data.qpos, "wrench": twin._tick.wrench}[broken][0] = np.nan
    guard.wait(0.2)
    if broken == "wrench":  # one bad sample: the filter starts anew, and what it measures next is a number
        assert guard.fault == ""
        return
    assert guard.fault == "not finite"
    assert np.abs(guard.read().tau_nm).max() == 0.0
    with pytest.raises(ValueError, match="no pose to hold"):
        guard.clear_fault()
    assert guard.fault == "not finite"
    guard.place(start())  # a new world
    assert guard.fault == "" and np.isfinite(guard.wait(0.1).q_rad).all()


def test_a_lost_measurement_ends_the_episode_with_the_last_good_observation():
    env = make_env("reach")
    env.reset(seed=0)
    good, *_ = env.step(np.zeros(6))
    env.unwrapped.arm._arm._data.qvel[2] = np.nan
    obs, reward, terminated, truncated, info = env.step(np.ones(6))
    assert info["fault"] == "not finite" and truncated and not terminated and reward == 0.0
    for key in good:
        np.testing.assert_array_equal(obs[key], good[key])
    obs, _ = env.reset(seed=1)
    assert all(np.isfinite(value).all() for value in obs.values())


@pytest.mark.parametrize("arm", ARMS)
def test_stop_twice_and_the_arm_stays(arm):
    twin = make(arm)
    twin.place(start())
    twin.command(ArmCommand(HOME + [0.05, 0.0, 0.0], DOWN, valid_s=10.0))
    twin.wait(0.1)
    twin.stop()
    twin.stop()
    stopped = twin.read().tcp_pos_m
    assert np.linalg.norm(twin.wait(1.0).tcp_pos_m - stopped) < 0.02
    twin.close()
    twin.close()


def test_a_bare_twin_refuses_what_is_not_finite():
    twin = make("panda")
    with pytest.raises(ValueError, match="tcp_pos_m"):
        twin.command(ArmCommand(np.array([np.nan, 0.0, 0.0]), DOWN))


@pytest.mark.parametrize("arm", ARMS)
def test_placing_reaches_the_pose_or_says_it_cannot(arm):
    twin = make(arm)
    rng = np.random.default_rng(0)
    for _ in range(20):
        pose = Pose(HOME + rng.uniform(-0.1, 0.1, 3), quat_turned(rng.uniform(-0.5, 0.5)))
        state = twin.place(Start(pose))
        np.testing.assert_allclose(state.tcp_pos_m, pose.pos_m, atol=1e-5)
        assert np.linalg.norm(rotation_between(state.tcp_quat_xyzw, pose.quat_xyzw)) < 1e-4
        assert np.all(state.q_rad >= twin.limits.q_min_rad) and np.all(state.q_rad <= twin.limits.q_max_rad)
        assert np.all(state.dq_radps == 0.0) and state.t_s == 0.0
    with pytest.raises(ValueError, match="out of reach"):
        twin.place(Start(Pose(np.array([3.0, 0.0, 0.3]), DOWN)))


def test_a_start_that_forgets_a_prop_is_refused():
    with pytest.raises(ValueError, match="wall"):
        make("panda", WALL).place(start())


@pytest.mark.parametrize("arm", ARMS)
def test_the_gripper_opens_and_closes(arm):
    guard = GuardedArm(make(arm), BOUNDS)
    guard.place(start())
    assert guard.read().gripper == pytest.approx(0.0, abs=0.01)
    for wanted in (1.0, 0.4, 0.0):
        guard.command(ArmCommand(HOME, DOWN, gripper=wanted, valid_s=10.0))
        assert guard.wait(1.5).gripper == pytest.approx(wanted, abs=0.02)


def test_the_joint_limit_repulsion_keeps_the_arm_off_its_stops():
    """Dragged to the edge of the reach, no joint enters the last tenth of the repulsion zone."""
    guard = GuardedArm(make("panda"), dataclasses.replace(BOUNDS, box_upper_m=(2.0, 0.3, 0.6)))
    guard.place(start())
    guard.command(ArmCommand(np.array([1.2, 0.0, 0.3]), DOWN, valid_s=20.0))
    state = guard.wait(8.0)
    assert state.tcp_pos_m[0] > 0.6
    assert np.all(state.q_rad > guard.limits.q_min_rad) and np.all(state.q_rad < guard.limits.q_max_rad)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_vendors_controller_drives_a_twin(compiled):
    """Computed torque with the twin's own terms holds a pose and follows a step as the second-order system it makes."""
    twin = make("fr3", compiled=compiled)
    state = twin.read()
    goal = state.q_rad + 0.01
    omega, begun_s = 30.0, state.t_s
    for _ in range(300):
        terms, state = twin.terms(), twin.read()
        pull = omega**2 * (goal - state.q_rad) - 2.0 * omega * state.dq_radps
        twin.drive(terms.mass @ pull + terms.coriolis_nm, 0.5)
    state = twin.read()
    assert state.t_s == pytest.approx(begun_s + 0.3)
    passed = omega * 0.3
    expected = 0.01 * (1.0 + passed) * np.exp(-passed)  # left of a critically damped step
    np.testing.assert_allclose(goal - state.q_rad, expected, atol=2e-4)
    assert 0.2 < state.gripper < 0.8


def test_compiled_and_plain_drive_are_equal():
    plain, quick = make("fr3", compiled=False), make("fr3")
    rng = np.random.default_rng(0)
    for _ in range(50):
        tau_nm = rng.normal(0.0, 3.0, 7)
        plain.drive(tau_nm, 0.0)
        quick.drive(tau_nm, 0.0)
    here, there = plain.read(), quick.read()
    for name in ("q_rad", "dq_radps", "tcp_pos_m", "tcp_wrench", "tau_nm"):
        np.testing.assert_allclose(getattr(here, name), getattr(there, name), rtol=0.0, atol=1e-12)


def test_inverse_kinematics_leaves_the_world_alone():
    twin = make("ur5e")
    before = twin.read()
    pose = Pose(before.tcp_pos_m + 0.05, before.tcp_quat_xyzw)
    q_rad = twin.solve_pose(pose, before.q_rad)
    np.testing.assert_array_equal(twin.read().q_rad, before.q_rad)
    assert 0.01 < np.abs(q_rad - before.q_rad).max() < 0.5
    np.testing.assert_allclose(twin.solve_pose(pose, q_rad), q_rad, atol=1e-6)
    with pytest.raises(ValueError, match="out of reach"):
        twin.solve_pose(Pose(before.tcp_pos_m + 2.0, before.tcp_quat_xyzw))
