"""The guard: what can be clipped is clipped and counted, what cannot trips into a hold, and nothing clears itself."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controllers.guard import Config, make_limits
from controllers.guarded_arm import GuardedArm
from robot_rl.geometry import quat_multiply, rotation_between, rotvec_to_quat
from robot_rl.types import ArmCommand, Bounds
from tests.mock_arm import LIMITS, MockArm

DOWN = np.array([1.0, 0.0, 0.0, 0.0])
HOME = np.array([0.5, 0.0, 0.3])
BOUNDS = Bounds(
    box_lower_m=(0.4, -0.1, 0.2),
    box_upper_m=(0.6, 0.1, 0.4),
    box_quat_xyzw=(1.0, 0.0, 0.0, 0.0),
    box_rot_rad=(0.2, 0.3, 0.4),
    speed_mps=0.5,
    speed_radps=1.0,
    force_n=20.0,
    torque_nm=5.0,
    trip_force_n=100.0,
)


def guarded(**changes) -> tuple[GuardedArm, MockArm]:
    arm = MockArm()
    return GuardedArm(arm, replace(BOUNDS, **changes), Config(control_hz=100.0)), arm


def move(guard: GuardedArm, pos=HOME, quat=DOWN, dt_s: float = 0.1, **fields):
    guard.command(ArmCommand(np.asarray(pos, float), np.asarray(quat, float), **fields))
    return guard.wait(dt_s)


def test_a_command_inside_the_bounds_passes_unchanged():
    guard, _ = guarded(force_n=math.inf, torque_nm=math.inf)
    goal, turn = HOME + [0.01, -0.02, 0.015], quat_multiply(rotvec_to_quat(np.array([0.03, 0.0, -0.05])), DOWN)
    state = move(guard, goal, turn, dt_s=0.2)
    np.testing.assert_allclose(state.tcp_pos_m, goal, atol=1e-12)
    np.testing.assert_allclose(rotation_between(state.tcp_quat_xyzw, turn), 0.0, atol=1e-12)
    assert guard.fault == "" and guard.clips["box"] == guard.clips["rotation"] == guard.clips["force"] == 0


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_no_command_leaves_the_box_or_outruns_the_limits(seed):
    """A search for a violation: far, turned and stiff targets; every reference the arm is given is checked."""
    rng = np.random.default_rng(seed)
    guard, arm = guarded()
    period_s = 0.01
    for _ in range(6):
        before, count = arm.state, len(arm.given)
        stiffness = rng.uniform(0.0, 1e4, 6) if rng.random() < 0.5 else None
        move(guard, HOME + rng.normal(size=3), rotvec_to_quat(3.0 * rng.normal(size=3)), stiffness=stiffness)
        for command in arm.given[count:]:
            assert np.all(command.tcp_pos_m >= np.array(BOUNDS.box_lower_m) - 1e-12)
            assert np.all(command.tcp_pos_m <= np.array(BOUNDS.box_upper_m) + 1e-12)
            assert np.all(np.abs(rotation_between(command.tcp_quat_xyzw, DOWN)) <= np.array(BOUNDS.box_rot_rad) + 1e-2)
            step = command.tcp_pos_m - before.tcp_pos_m
            turn = rotation_between(command.tcp_quat_xyzw, before.tcp_quat_xyzw)
            assert np.linalg.norm(step) <= BOUNDS.speed_mps * period_s + 1e-9
            assert np.linalg.norm(turn) <= BOUNDS.speed_radps * period_s + 1e-9
            assert np.linalg.norm(command.stiffness[:3] * step) <= BOUNDS.force_n + 1e-9
            assert np.linalg.norm(command.stiffness[3:] * turn) <= BOUNDS.torque_nm + 1e-9
            assert np.all(command.stiffness <= LIMITS.stiffness_max)
            assert abs(np.linalg.norm(command.tcp_quat_xyzw) - 1.0) < 1e-12
            before = replace(before, tcp_pos_m=command.tcp_pos_m, tcp_quat_xyzw=command.tcp_quat_xyzw)


@pytest.mark.parametrize(
    "zero", [{"speed_mps": 0.0}, {"force_n": 0.0}, {"box_lower_m": tuple(HOME), "box_upper_m": tuple(HOME)}]
)
def test_a_bound_of_zero_is_a_bound(zero):
    guard, _ = guarded(**zero)
    state = move(guard, HOME + [0.05, 0.05, 0.05])
    np.testing.assert_allclose(state.tcp_pos_m, HOME, atol=1e-12)


def test_a_rotation_box_of_zero_is_a_bound():
    guard, _ = guarded(box_rot_rad=(0.0, 0.0, 0.0))
    state = move(guard, quat=quat_multiply(rotvec_to_quat(np.array([0.1, 0.1, 0.1])), DOWN))
    np.testing.assert_allclose(rotation_between(state.tcp_quat_xyzw, DOWN), 0.0, atol=1e-12)


def test_every_clip_is_counted():
    guard, _ = guarded(speed_mps=1.0)
    move(guard, HOME + [1.0, 0.0, 0.0], quat_multiply(rotvec_to_quat(np.array([1.0, 0.0, 0.0])), DOWN), dt_s=0.3)
    clips = guard.clips
    assert all(clips[name] > 0 for name in ("box", "rotation", "speed")) and clips["lease"] > 0
    guard, _ = guarded(force_n=1.0)
    move(guard, HOME + [0.05, 0.0, 0.0])
    assert guard.clips["force"] > 0


def test_an_expired_lease_holds_where_the_reference_is():
    guard, arm = guarded()
    move(guard, HOME + [0.09, 0.0, 0.0], dt_s=0.05, valid_s=0.05)
    held = arm.given[-1].tcp_pos_m
    assert 0.0 < held[0] - HOME[0] < 0.09
    guard.wait(1.0)
    np.testing.assert_array_equal(arm.given[-1].tcp_pos_m, held)
    assert guard.clips["lease"] == 100 and guard.fault == ""
    state = move(guard, HOME + [0.09, 0.0, 0.0], dt_s=0.5, valid_s=1.0)  # a new lease goes on
    np.testing.assert_allclose(state.tcp_pos_m, HOME + [0.09, 0.0, 0.0], atol=1e-12)


@pytest.mark.parametrize(
    ("measured", "fault"),
    [
        ({"tcp_wrench": np.array([0.0, 0.0, 101.0, 0.0, 0.0, 0.0])}, "contact force"),
        ({"dq_radps": np.array([0.0, -1.9, 0.0, 0.0, 0.0, 0.0])}, "joint speed"),
        ({"q_rad": np.array([0.0, np.nan, 0.0, 0.0, 0.0, 0.0])}, "not finite"),
        ({"tcp_quat_xyzw": np.array([1.0, 0.0, 0.0, np.inf])}, "not finite"),
    ],
)
def test_what_cannot_be_clipped_trips_into_a_hold_that_lasts(measured, fault):
    guard, arm = guarded()
    sane = arm.state
    arm.state = replace(arm.state, **measured)
    move(guard, HOME + [0.05, 0.0, 0.0])
    assert guard.fault == fault
    np.testing.assert_allclose(arm.given[-1].tcp_pos_m, HOME, atol=1e-12)
    arm.state = sane  # the cause is gone; the fault is not
    for _ in range(5):
        move(guard, HOME + [0.05, 0.0, 0.0])
    assert guard.fault == fault
    np.testing.assert_allclose(arm.given[-1].tcp_pos_m, HOME, atol=1e-12)
    guard.clear_fault()
    state = move(guard, HOME + [0.05, 0.0, 0.0], dt_s=0.15)
    assert guard.fault == "" and state.tcp_pos_m[0] > HOME[0] + 0.04


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        ({"tcp_pos_m": np.array([np.nan, 0.0, 0.0])}, "tcp_pos_m"),
        ({"tcp_pos_m": np.zeros(2)}, "tcp_pos_m"),
        ({"tcp_quat_xyzw": np.array([0.0, 0.0, 0.0, np.inf])}, "tcp_quat_xyzw"),
        ({"tcp_quat_xyzw": np.array([0.0, 0.0, 0.0, 2.0])}, "tcp_quat_xyzw"),
        ({"stiffness": np.full(6, -1.0)}, "stiffness"),
        ({"stiffness": np.full(6, np.nan)}, "stiffness"),
        ({"gripper": math.nan}, "gripper"),
        ({"valid_s": math.inf}, "valid_s"),
    ],
)
def test_a_bad_command_is_refused_and_changes_nothing(bad, name):
    guard, arm = guarded()
    with pytest.raises(ValueError, match=name):
        guard.command(replace(ArmCommand(HOME + [0.05, 0.0, 0.0], DOWN), **bad))
    guard.wait(0.1)
    np.testing.assert_array_equal(arm.given[-1].tcp_pos_m, HOME)
    assert guard.fault == ""


def test_a_command_the_arm_cannot_follow_is_refused():
    arm = MockArm(replace(LIMITS, cannot=frozenset({"stiffness"})))
    guard = GuardedArm(arm, BOUNDS, Config(control_hz=100.0))
    with pytest.raises(ValueError, match="cannot change its stiffness"):
        guard.command(ArmCommand(HOME, DOWN, stiffness=np.full(6, 100.0)))
    move(guard)
    assert arm.given[-1].stiffness is None


def test_bounds_looser_than_the_arm_are_refused():
    with pytest.raises(ValueError, match=r"speed_mps is 1\.5: this arm allows at most 1\.0"):
        make_limits(replace(BOUNDS, speed_mps=1.5), LIMITS, Config())
    with pytest.raises(ValueError, match="lower <= upper"):
        replace(BOUNDS, box_lower_m=(1.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="force_n"):
        replace(BOUNDS, force_n=math.nan)


def test_an_expired_lease_outside_the_box_moves_nothing():
    guard, arm = guarded()
    away = HOME + [0.2, 0.0, 0.0]
    arm.state = replace(arm.state, tcp_pos_m=away)
    guard.clear_fault()
    guard.wait(0.3)
    np.testing.assert_array_equal(arm.given[-1].tcp_pos_m, away)


def test_a_held_arm_that_is_pushed_gives_way():
    """The leash follows the arm, so an expired lease never pulls with more than the force bound."""
    guard, arm = guarded(force_n=10.0)
    guard.wait(0.02)
    arm.state = replace(arm.state, tcp_pos_m=HOME + [0.05, 0.0, 0.0])
    count = len(arm.given)
    guard.wait(0.01)
    pull = arm.given[count].stiffness[:3] * (arm.given[count].tcp_pos_m - (HOME + [0.05, 0.0, 0.0]))
    assert np.linalg.norm(pull) == pytest.approx(10.0, rel=1e-9)


def test_a_fault_freezes_the_gripper():
    guard, arm = guarded()
    move(guard, gripper=0.3)
    arm.state = replace(arm.state, tcp_wrench=np.array([0.0, 0.0, 101.0, 0.0, 0.0, 0.0]))
    move(guard, gripper=1.0)
    assert guard.fault == "contact force" and arm.given[-1].gripper == 0.3


def test_a_late_loop_ages_the_lease_by_what_has_passed():
    class Late(MockArm):
        def wait(self, dt_s):
            return super().wait(10 * dt_s)

    arm = Late()
    guard = GuardedArm(arm, BOUNDS, Config(control_hz=100.0))
    guard.command(ArmCommand(HOME + [0.09, 0.0, 0.0], DOWN, valid_s=0.2))
    guard.wait(0.1)  # ten ticks, a whole second late
    assert guard.clips["lease"] >= 7


def test_stop_and_clear_on_a_state_that_is_not_finite_command_nothing_of_it():
    guard, arm = guarded()
    arm.state = replace(arm.state, tcp_pos_m=np.full(3, np.nan))
    guard.stop()
    guard.wait(0.05)
    assert guard.fault == "not finite"
    np.testing.assert_array_equal(arm.given[-1].tcp_pos_m, HOME)
    arm.state = replace(arm.state, tcp_pos_m=np.full(3, np.nan))
    with pytest.raises(ValueError, match="no pose to hold"):
        guard.clear_fault()
    assert guard.fault == "not finite"


def test_bounds_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="box_lower_m"):
        replace(BOUNDS, box_lower_m=(math.nan, 0.0, 0.0))
    with pytest.raises(ValueError, match="unit quaternion"):
        replace(BOUNDS, box_quat_xyzw=(1.0, 1.0, 0.0, 0.0))


def test_stop_forgets_the_command_and_may_be_called_twice():
    guard, arm = guarded()
    guard.command(ArmCommand(HOME + [0.05, 0.0, 0.0], DOWN, valid_s=10.0))
    guard.stop()
    guard.stop()
    guard.wait(0.2)
    np.testing.assert_array_equal(arm.given[-1].tcp_pos_m, HOME)
    assert arm.stopped == 2
