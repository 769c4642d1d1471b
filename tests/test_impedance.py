"""The impedance law: exact projections, a conservative spring, limits that hold."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from controllers import impedance
from controllers.jacobian import project_null, row_space, wrench_of
from robot_rl.geometry import quat_multiply, rotvec_to_quat
from robot_rl.types import ArmLimits

DOF = 7
LIMITS = ArmLimits(
    q_min_rad=np.full(DOF, -2.0),
    q_max_rad=np.full(DOF, 2.0),
    dq_max_radps=np.full(DOF, 2.0),
    tau_max_nm=np.array([87.0] * 4 + [12.0] * 3),
    dtau_max_nmps=np.full(DOF, 1000.0),
    speed_max_mps=1.0,
    speed_max_radps=2.0,
    stiffness_max=np.array([3000.0] * 3 + [300.0] * 3),
    gripper_width_m=0.08,
    gripper_force_n=70.0,
)
numbers = st.integers(0, 2**32 - 1)


def make_law(**changes) -> impedance.Law:
    return impedance.make_law(impedance.Config(**changes), LIMITS, np.zeros(DOF))


def jacobian_of_rank(rng: np.random.Generator, rank: int) -> np.ndarray:
    return rng.normal(size=(6, rank)) @ rng.normal(size=(rank, DOF))


@given(numbers, st.integers(0, 6))
def test_the_null_space_projector_is_exact_at_any_rank(seed, rank):
    rng = np.random.default_rng(seed)
    jac = jacobian_of_rank(rng, rank) if rank else np.zeros((6, DOF))
    space, tau = row_space(jac), rng.normal(size=DOF)
    projected = project_null(space, tau)
    expected = tau - np.linalg.pinv(jac, rcond=1e-9) @ (jac @ tau)
    assert space.rank == rank
    np.testing.assert_allclose(projected, expected, atol=1e-7)
    assert np.abs(jac @ projected).max() < 1e-12 * max(1.0, np.abs(jac).max())  # no wrench leaks into the task
    np.testing.assert_allclose(project_null(space, projected), projected, atol=1e-14)


@given(numbers)
def test_a_wrench_is_found_again_behind_its_joint_torques(seed):
    rng = np.random.default_rng(seed)
    jac, wrench = rng.normal(size=(6, DOF)), rng.normal(size=6)
    condition = np.linalg.cond(jac)
    np.testing.assert_allclose(wrench_of(row_space(jac), jac.T @ wrench), wrench, atol=1e-13 * condition**2 + 1e-12)


def test_a_direction_the_arm_cannot_feel_reads_zero():
    jac = np.zeros((6, DOF))
    jac[0, 0], jac[1, 1] = 1.0, 2.0
    np.testing.assert_allclose(wrench_of(row_space(jac), np.arange(1.0, 8.0)), [1.0, 1.0, 0, 0, 0, 0])


def test_translation_is_a_clipped_spring():
    law = make_law(stiffness=(1000.0, 2000.0, 3000.0, 50.0, 50.0, 50.0), clip_m=(0.01, 0.02, 0.0))
    here = np.array([0.004, -0.5, 0.3])
    identity = np.array([0.0, 0.0, 0.0, 1.0])
    wrench = impedance.spring_wrench(here, identity, np.zeros(3), identity, law.stiffness, law)
    np.testing.assert_allclose(wrench, [-4.0, 2000.0 * 0.02, 0.0, 0, 0, 0], atol=1e-12)


@given(st.floats(1e-6, 0.05))
def test_small_rotations_feel_the_stiffness_per_radian(angle):
    law = make_law(stiffness=(0.0, 0.0, 0.0, 20.0, 40.0, 60.0), clip_rad=1.0)
    for axis in range(3):
        quat = rotvec_to_quat(angle * np.eye(3)[axis])
        zero, identity = np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0])
        wrench = impedance.spring_wrench(zero, quat, zero, identity, law.stiffness, law)
        expected = np.zeros(6)
        expected[3 + axis] = -law.stiffness[3 + axis] * math.sin(angle)  # exact about one axis; K theta when small
        np.testing.assert_allclose(wrench, expected, atol=1e-12)


def potential(quat: np.ndarray, target: np.ndarray, stiffness: np.ndarray, clip_rad: float) -> float:
    """V of the module's docstring, computed with scipy."""
    error = (Rotation.from_quat(quat) * Rotation.from_quat(target).inv()).as_quat(canonical=True)
    value = 2.0 * float(error[:3] @ (stiffness * error[:3]))
    limit = 0.5 * stiffness.mean() * clip_rad**2
    return value if value <= limit else 2.0 * math.sqrt(value * limit) - limit


@given(numbers, st.sampled_from([0.05, 0.3, 4.0]))
@settings(max_examples=200)
def test_the_moment_is_minus_the_gradient_of_the_potential(seed, clip_rad):
    """By finite differences, for anisotropic stiffness, inside the clip, at its corner and beyond."""
    rng = np.random.default_rng(seed)
    stiffness = np.concatenate([np.zeros(3), rng.uniform(0.0, 100.0, 3)])
    law = make_law(clip_rad=min(clip_rad, math.pi))
    target = rotvec_to_quat(rng.normal(size=3))
    away = rng.normal(size=3)
    quat = quat_multiply(rotvec_to_quat(away / np.linalg.norm(away) * rng.uniform(0.01, 2.8)), target)
    zero = np.zeros(3)
    moment = impedance.spring_wrench(zero, quat, zero, target, stiffness, law)[3:]
    step = 1e-6
    for axis in range(3):
        sides = [
            potential(
                quat_multiply(rotvec_to_quat(s * step * np.eye(3)[axis]), quat), target, stiffness[3:], law.clip_rad
            )
            for s in (1, -1)
        ]
        assert moment[axis] == pytest.approx(-(sides[0] - sides[1]) / (2 * step), abs=2e-6 * (1 + stiffness.max()))


def closed_loop_work(law: impedance.Law, stiffness: np.ndarray) -> float:
    """Work of the spring's moment along a closed path of orientations that reaches about 1 rad."""
    work, zero, target = 0.0, np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0])
    phase = np.linspace(0.0, 2.0 * np.pi, 4001)
    path = [rotvec_to_quat(np.array([0.8 * np.sin(p), 0.9 * np.cos(p) - 0.9, 0.5 * np.sin(2 * p)])) for p in phase]
    for a, b in pairwise(path):
        turn = Rotation.from_quat(b) * Rotation.from_quat(a).inv()
        middle = (Rotation.from_rotvec(0.5 * turn.as_rotvec()) * Rotation.from_quat(a)).as_quat()
        work += impedance.spring_wrench(zero, middle, zero, target, stiffness, law)[3:] @ turn.as_rotvec()
    return work


def test_no_energy_leaks_over_a_closed_rotation():
    """control theory's reason for this law: the quaternion-vector law leaks joules on the same path."""
    stiffness = np.array([0.0, 0.0, 0.0, 5.0, 20.0, 60.0])
    for clip_rad in (math.pi, 0.3):
        assert abs(closed_loop_work(make_law(clip_rad=clip_rad), stiffness)) < 1e-4


def test_torque_obeys_limits_and_rate():
    law = make_law()
    previous = np.array([86.9, -86.9, 0.0, 5.0, 12.0, -12.0, 0.0])
    wanted = np.array([1e6, -1e6, 0.5, -1e6, 1e6, 1e6, np.float64(-0.2)])
    tau = impedance.limit_torque(wanted, previous, law, 0.001)
    np.testing.assert_allclose(tau, [87.0, -87.0, 0.5, 4.0, 12.0, -11.0, -0.2])


def test_joint_limits_repel_inside_their_zone_only():
    law = make_law(joint_zone_rad=0.1, joint_stiffness=50.0)
    q = np.array([0.0, 1.95, -1.95, 1.9, -1.9, 2.1, -2.1])
    expected = [0.0, -2.5, 2.5, 0.0, 0.0, -10.0, 10.0]
    np.testing.assert_allclose(impedance.joint_limit_torque(q, law), expected, atol=1e-9)


@given(numbers)
def test_posture_never_disturbs_the_tcp(seed):
    """With the tcp on target and at rest, what is left of the law produces no tcp wrench."""
    rng = np.random.default_rng(seed)
    law, jac = make_law(posture_stiffness=20.0), rng.normal(size=(6, DOF))
    space, q = row_space(jac), rng.uniform(-1.0, 1.0, DOF)
    pos, quat = rng.normal(size=3), rotvec_to_quat(rng.normal(size=3))
    tau = impedance.impedance_torque(
        q, np.zeros(DOF), jac, space, pos, quat, pos, quat, law.stiffness, np.zeros(DOF), law
    )
    np.testing.assert_allclose(jac @ tau, 0.0, atol=1e-9)


@given(numbers)
def test_damping_takes_energy_out(seed):
    rng = np.random.default_rng(seed)
    law, jac = make_law(posture_stiffness=0.0), rng.normal(size=(6, DOF))
    dq, pos, quat = rng.normal(size=DOF), rng.normal(size=3), rotvec_to_quat(rng.normal(size=3))
    tau = impedance.impedance_torque(
        np.zeros(DOF), dq, jac, row_space(jac), pos, quat, pos, quat, law.stiffness, np.zeros(DOF), law
    )
    assert tau @ dq < 0.0


def test_more_stiffness_than_the_arm_allows_is_refused():
    with pytest.raises(ValueError, match="at most"):
        make_law(stiffness=(4000.0, 2000.0, 2000.0, 50.0, 50.0, 50.0))
