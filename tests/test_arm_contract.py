"""The one contract of an arm, over every arm there is: a mock, the twins, an arm behind ROS, one behind each vendor's
protocol. All of it goes through ``robot_rl.types.Arm`` and, where the arm is not guarded elsewhere, a GuardedArm."""

import contextlib
import dataclasses
import math
import threading

import numpy as np
import pytest

from controllers.guarded_arm import GuardedArm
from robot_rl import build
from robot_rl.find import find
from robot_rl.geometry import quat_multiply, rotation_between, rotvec_to_quat
from robot_rl.types import ArmCommand
from tests.mock_arm import MockArm

TASK = "reach"  # nothing to touch, and the gripper stays as it is
ARMS = ("mock", "sim panda", "sim fr3", "sim ur5e", "ros panda", "hardware fr3", "hardware ur5e")
PROTOCOL = {"fr3": "fci", "ur5e": "rtde"}
STEP_S = 0.1
NAN = float("nan")


@contextlib.contextmanager
def opened(name: str):
    """The arm that a policy is given (guarded here or in its node), and the bare one, where it is in this process."""
    world, _, arm = name.partition(" ")
    if world == "mock":
        task = find("tasks", TASK).make(find("tasks", TASK).Config())
        bare = MockArm()
        yield GuardedArm(bare, task.bounds), bare
        return
    with contextlib.ExitStack() as stack:
        settings = []
        if world == "ros":
            pytest.importorskip("rclpy")
            from tests.ros_graph import arm_node, reserved_domain

            domain = stack.enter_context(reserved_domain())
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setenv("ROS_DOMAIN_ID", str(domain))
            stack.enter_context(arm_node(domain, arm, task=TASK, lockstep=True))
        elif world == "hardware":
            from tests.served import serve

            twin = stack.enter_context(serve(PROTOCOL[arm], task=TASK, lockstep=True))
            settings = [f"arm.address={twin.host}", "arm.twin=lockstep"]
        env = build.make_env(TASK, arm, world, settings)
        stack.callback(env.close)
        env.reset(seed=0)
        guarded = env.unwrapped.arm
        yield guarded, guarded.unguarded if isinstance(guarded, GuardedArm) else None


@pytest.fixture(scope="module", params=ARMS)
def arms(request):
    with opened(request.param) as found:
        yield found


def settle(arm, command=None, steps=15):
    """The state after some steps, with the same command in each."""
    for _ in range(steps):
        if command is not None:
            arm.command(command)
        state = arm.wait(STEP_S)
    return state


def test_limits_say_what_the_arm_is(arms):
    arm, _ = arms
    limits = arm.limits
    names = [field.name for field in dataclasses.fields(limits)]
    for name in ("q_min_rad", "q_max_rad", "dq_max_radps", "tau_max_nm", "dtau_max_nmps"):
        assert getattr(limits, name).shape == (limits.dof,) and np.isfinite(getattr(limits, name)).all(), name
    assert (limits.q_min_rad < limits.q_max_rad).all() and (limits.dq_max_radps > 0).all()
    assert limits.stiffness_max.shape == arm.default_stiffness.shape == (6,)
    assert (arm.default_stiffness <= limits.stiffness_max).all() and (arm.default_stiffness > 0).all()
    assert limits.cannot <= {field.name for field in dataclasses.fields(ArmCommand)} and "cannot" in names


def test_a_state_is_whole(arms):
    arm, _ = arms
    state = arm.wait(STEP_S)
    dof = arm.limits.dof
    sizes = dict.fromkeys(("q_rad", "dq_radps", "tau_nm"), dof) | {"tcp_pos_m": 3, "tcp_quat_xyzw": 4}
    for name, size in (sizes | {"tcp_twist": 6, "tcp_wrench": 6}).items():
        value = getattr(state, name)
        assert value.shape == (size,) and value.dtype == np.float64 and np.isfinite(value).all(), name
    assert np.linalg.norm(state.tcp_quat_xyzw) == pytest.approx(1.0, abs=1e-6)
    assert 0.0 <= state.gripper <= 1.0 and math.isfinite(state.t_s)
    assert (state.q_rad >= arm.limits.q_min_rad).all() and (state.q_rad <= arm.limits.q_max_rad).all()


def test_a_state_stays_what_it_was(arms):
    """What was read does not change under its reader."""
    arm, _ = arms
    state = arm.read()
    before = {field.name: np.copy(getattr(state, field.name)) for field in dataclasses.fields(state)}
    up = state.tcp_pos_m + [0.0, 0.0, 0.02]
    after = settle(arm, ArmCommand(up, state.tcp_quat_xyzw, state.gripper), 3)
    assert after.t_s > state.t_s
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(state, name), value)


def test_time_passes_in_wait_only(arms):
    arm, _ = arms
    begun_s = arm.wait(STEP_S).t_s
    assert arm.read().t_s == begun_s
    for count in range(1, 4):
        assert arm.wait(STEP_S).t_s == pytest.approx(begun_s + count * STEP_S, abs=1e-6)


def test_it_goes_where_it_is_told(arms):
    arm, _ = arms
    state = settle(arm)
    aside = state.tcp_pos_m + [-0.02, 0.02, 0.015]
    turned = quat_multiply(rotvec_to_quat(np.array([0.0, 0.0, 0.1])), state.tcp_quat_xyzw)
    after = settle(arm, ArmCommand(aside, turned, state.gripper), 30)
    assert arm.fault == ""
    assert np.linalg.norm(after.tcp_pos_m - aside) < 2e-3
    assert np.linalg.norm(rotation_between(turned, after.tcp_quat_xyzw)) < 0.02
    back = settle(arm, ArmCommand(state.tcp_pos_m, state.tcp_quat_xyzw, state.gripper), 30)
    assert np.linalg.norm(back.tcp_pos_m - state.tcp_pos_m) < 2e-3


def test_its_twist_is_the_way_it_goes(arms):
    arm, bare = arms
    if isinstance(bare, MockArm):
        pytest.skip("a mock jumps")
    state = settle(arm)
    up = state.tcp_pos_m + [0.0, 0.0, 0.05]
    for _ in range(3):
        arm.command(ArmCommand(up, state.tcp_quat_xyzw, state.gripper))
        seen = arm.wait(0.01)
    arm.command(ArmCommand(up, state.tcp_quat_xyzw, state.gripper))
    later = arm.wait(0.01)
    measured = (later.tcp_pos_m - seen.tcp_pos_m) / (later.t_s - seen.t_s)
    np.testing.assert_allclose((seen.tcp_twist[:3] + later.tcp_twist[:3]) / 2, measured, atol=0.02)
    assert later.tcp_twist[2] > 0.02
    settle(arm, ArmCommand(state.tcp_pos_m, state.tcp_quat_xyzw, state.gripper), 20)


def test_without_a_command_it_stays(arms):
    arm, _ = arms
    before = settle(arm)
    after = settle(arm)
    assert np.linalg.norm(after.tcp_pos_m - before.tcp_pos_m) < 5e-4
    assert np.abs(after.dq_radps).max() < 0.02


def test_a_command_expires(arms):
    arm, _ = arms
    state = settle(arm)
    far = state.tcp_pos_m + [0.0, 0.0, 0.08]
    arm.command(ArmCommand(far, state.tcp_quat_xyzw, state.gripper, valid_s=0.1))
    after = settle(arm)
    assert 0.0 < after.tcp_pos_m[2] - state.tcp_pos_m[2] < 0.05  # as far as 0.1 s at 0.25 m/s go, and no farther
    settle(arm, ArmCommand(state.tcp_pos_m, state.tcp_quat_xyzw, state.gripper), 20)


@pytest.mark.parametrize(
    "change",
    [{"tcp_pos_m": np.array([0.4, NAN, 0.2])}, {"tcp_quat_xyzw": np.full(4, np.inf)}, {"gripper": NAN}],
    ids=["position", "rotation", "gripper"],
)
def test_what_is_no_number_is_refused(arms, change):
    """By the guard, and by the arm itself, which nothing may rely on being guarded."""
    arm, bare = arms
    state = settle(arm, steps=3)
    command = dataclasses.replace(ArmCommand(state.tcp_pos_m, state.tcp_quat_xyzw, state.gripper), **change)
    for each in (arm, bare):
        if each is not None and not isinstance(each, MockArm):
            with pytest.raises(ValueError, match="finite"):
                each.command(command)
    after = settle(arm, steps=3)
    assert arm.fault == "" and np.linalg.norm(after.tcp_pos_m - state.tcp_pos_m) < 1e-3


def test_what_it_cannot_do_is_refused(arms):
    arm, bare = arms
    state = arm.read()
    command = ArmCommand(state.tcp_pos_m, state.tcp_quat_xyzw, state.gripper, arm.default_stiffness)
    if "stiffness" not in arm.limits.cannot:
        arm.command(command)
        assert np.isfinite(arm.wait(STEP_S).tcp_pos_m).all() and arm.fault == ""
        return
    for each in (arm, bare):
        with pytest.raises(ValueError, match="stiffness"):
            each.command(command)


def test_it_stops_from_any_thread_and_goes_on(arms):
    arm, _ = arms
    state = settle(arm)
    up = state.tcp_pos_m + [0.0, 0.0, 0.06]
    settle(arm, ArmCommand(up, state.tcp_quat_xyzw, state.gripper), 1)
    for _ in range(2):
        thread = threading.Thread(target=arm.stop)
        thread.start()
        thread.join(30.0)
        assert not thread.is_alive()
    stopped = settle(arm)
    assert np.abs(stopped.dq_radps).max() < 0.02 and stopped.tcp_pos_m[2] < up[2] - 0.01
    after = settle(arm, ArmCommand(state.tcp_pos_m, state.tcp_quat_xyzw, state.gripper), 20)
    assert np.linalg.norm(after.tcp_pos_m - state.tcp_pos_m) < 2e-3


@pytest.mark.parametrize("name", ARMS)
def test_it_closes_twice(name):
    before = {thread.name for thread in threading.enumerate()}
    with opened(name) as (arm, _):
        arm.wait(STEP_S)
        arm.close()
        arm.close()
    assert {thread.name for thread in threading.enumerate()} <= before
