"""Cartesian impedance control as one pure function: state, target and Jacobian in, joint torque out.

    tau = J^T (F_spring - D J dq) + N tau_posture + tau_joint_limits + tau_coriolis, then |tau| clip, then rate limit

The translational spring is clipped per axis (SERL's law: the clip bounds the contact force at ``stiffness * clip``).
The rotational spring is the gradient of a potential, so that it is conservative for ANY diagonal stiffness; the usual
quaternion-vector and logarithm laws are so only for an isotropic one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from controllers.jacobian import RowSpace, project_null
from controllers.jit import kernel
from robot_rl.config import check, number
from robot_rl.geometry import quat_conjugate, quat_multiply
from robot_rl.types import ArmLimits

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Config:
    """Gains of the law. The defaults suit contact tasks on a Panda-sized arm."""

    stiffness: tuple[float, ...] = number((2000.0, 2000.0, 2000.0, 80.0, 80.0, 80.0), 0.0, 1e4, "N/m, Nm/rad")
    damping_ratio: float = number(1.0, 0.0, 5.0, "1 is critical for the reference inertia")
    reference_inertia: tuple[float, ...] = number((3.0, 3.0, 3.0, 0.2, 0.2, 0.2), 1e-6, 100.0, "kg, kg m^2")
    clip_m: tuple[float, ...] = number((0.015, 0.015, 0.015), 0.0, 10.0, "m per axis")
    clip_rad: float = number(0.15, 0.0, math.pi, "rad")
    posture_stiffness: float = number(5.0, 0.0, 100.0, "Nm/rad, null space")
    posture_damping: float = number(2.0, 0.0, 100.0, "Nms/rad, null space")
    joint_zone_rad: float = number(0.1, 0.0, 1.0, "rad before a joint limit where repulsion begins")
    joint_stiffness: float = number(50.0, 0.0, 1e3, "Nm/rad of repulsion inside the zone")

    def __post_init__(self) -> None:
        check(self)
        for name, length in (("stiffness", 6), ("reference_inertia", 6), ("clip_m", 3)):
            if len(getattr(self, name)) != length:
                raise ValueError(f"{name} = {getattr(self, name)}: give {length} numbers")


class Law(NamedTuple):
    """A Config and an arm's limits as the arrays the kernels read."""

    stiffness: Array  # (6,) default
    damping_ratio: float
    reference_inertia: Array  # (6,)
    clip_m: Array  # (3,)
    clip_rad: float
    posture_rad: Array  # (dof,)
    posture_stiffness: float
    posture_damping: float
    joint_zone_rad: float
    joint_stiffness: float
    q_min_rad: Array  # (dof,)
    q_max_rad: Array  # (dof,)
    tau_max_nm: Array  # (dof,)
    dtau_max_nmps: Array  # (dof,)


def make_law(config: Config, limits: ArmLimits, posture_rad: Array) -> Law:
    """The law of one arm; raises ValueError where the stiffness is more than the arm allows."""
    stiffness = np.asarray(config.stiffness, np.float64)
    if np.any(stiffness > limits.stiffness_max):
        raise ValueError(f"stiffness = {config.stiffness}: this arm allows at most {limits.stiffness_max.tolist()}")
    return Law(
        stiffness=stiffness,
        damping_ratio=float(config.damping_ratio),
        reference_inertia=np.asarray(config.reference_inertia, np.float64),
        clip_m=np.asarray(config.clip_m, np.float64),
        clip_rad=float(config.clip_rad),
        posture_rad=np.asarray(posture_rad, np.float64).copy(),
        posture_stiffness=float(config.posture_stiffness),
        posture_damping=float(config.posture_damping),
        joint_zone_rad=float(config.joint_zone_rad),
        joint_stiffness=float(config.joint_stiffness),
        q_min_rad=np.asarray(limits.q_min_rad, np.float64),
        q_max_rad=np.asarray(limits.q_max_rad, np.float64),
        tau_max_nm=np.asarray(limits.tau_max_nm, np.float64),
        dtau_max_nmps=np.asarray(limits.dtau_max_nmps, np.float64),
    )


class Damped(Protocol):
    """A Config, a Law, or a driver's own Config."""

    @property
    def damping_ratio(self) -> float: ...
    @property
    def reference_inertia(self) -> Any: ...


def damping_of(config: Damped, stiffness: Array) -> Array:
    """Damping (6,) Ns/m, Nms/rad of a stiffness (6,), per axis: ``2 damping_ratio sqrt(stiffness inertia)``."""
    return 2.0 * config.damping_ratio * np.sqrt(stiffness * np.asarray(config.reference_inertia))


@kernel
def turned(quat_xyzw: Array, target_quat_xyzw: Array) -> Array:
    """The quaternion (4,) of R R_d^T with the scalar part >= 0: the shorter way round."""
    error = quat_multiply(quat_xyzw, quat_conjugate(target_quat_xyzw))
    if error[3] < 0.0:
        for i in range(4):
            error[i] = -error[i]
    return error


@kernel
def axis_potential(stiffness: float, error_m: float, clip_m: float) -> float:
    """Energy, J, of one axis of the translational spring."""
    error_m = abs(error_m)
    return stiffness * (0.5 * error_m * error_m if error_m <= clip_m else clip_m * error_m - 0.5 * clip_m * clip_m)


@kernel
def saturated(potential_j: float, limit_j: float) -> float:
    """Energy, J, of the rotational spring, whose unsaturated potential is given."""
    return potential_j if potential_j <= limit_j else 2.0 * math.sqrt(potential_j * limit_j) - limit_j


@kernel
def saturation_j(stiffness: Array, clip_rad: float) -> float:
    """The potential V_c beyond which the rotational spring pulls no harder."""
    return 0.5 * (stiffness[3] + stiffness[4] + stiffness[5]) / 3.0 * clip_rad * clip_rad


@kernel
def spring_wrench(
    pos_m: Array, quat_xyzw: Array, target_pos_m: Array, target_quat_xyzw: Array, stiffness: Array, law: Law
) -> Array:
    """Force and moment (6,) N, Nm, base frame, of the spring between tcp and target.

    Translation, per axis: ``-k e`` for ``|e| <= clip``, constant beyond. Rotation: with the quaternion (eps, eta),
    eta >= 0, of R R_d^T the potential is ``V = 2 eps^T K eps`` and the moment ``-2 (eta I - [eps]x)^T K eps``; small
    angles give ``K theta``. Beyond ``V_c = k clip^2 / 2`` (k the mean of K) the potential continues as
    ``2 sqrt(V V_c) - V_c``, which scales the moment by ``sqrt(V_c / V)`` and so leaves it a gradient.
    """
    out = np.zeros(6)
    for i in range(3):
        error = pos_m[i] - target_pos_m[i]
        out[i] = -stiffness[i] * min(max(error, -law.clip_m[i]), law.clip_m[i])
    ex, ey, ez, eta = turned(quat_xyzw, target_quat_xyzw)
    kx, ky, kz = stiffness[3] * ex, stiffness[4] * ey, stiffness[5] * ez
    potential = 2.0 * (ex * kx + ey * ky + ez * kz)
    limit = saturation_j(stiffness, law.clip_rad)
    scale = -2.0 if potential <= limit else -2.0 * math.sqrt(limit / potential)
    # (eta I - [eps]x)^T k = eta k + eps x k
    out[3] = scale * (eta * kx + ey * kz - ez * ky)
    out[4] = scale * (eta * ky + ez * kx - ex * kz)
    out[5] = scale * (eta * kz + ex * ky - ey * kx)
    return out


@kernel
def spring_potential(
    pos_m: Array, quat_xyzw: Array, target_pos_m: Array, target_quat_xyzw: Array, stiffness: Array, law: Law
) -> float:
    """Energy, J, that the spring of ``spring_wrench`` holds: the wrench is minus its gradient.

    It is never negative, and at any pose it is increasing and concave in each stiffness.
    """
    total = 0.0
    for i in range(3):
        total += axis_potential(stiffness[i], pos_m[i] - target_pos_m[i], law.clip_m[i])
    ex, ey, ez, _ = turned(quat_xyzw, target_quat_xyzw)
    potential = 2.0 * (stiffness[3] * ex * ex + stiffness[4] * ey * ey + stiffness[5] * ez * ez)
    return total + saturated(potential, saturation_j(stiffness, law.clip_rad))


@kernel
def joint_limit_torque(q_rad: Array, law: Law) -> Array:
    """Repulsion (dof,) Nm from the joint limits: a spring inside the zone before each, none elsewhere."""
    out = np.zeros(len(q_rad))
    for i in range(len(q_rad)):
        below = law.q_min_rad[i] + law.joint_zone_rad - q_rad[i]
        above = q_rad[i] - (law.q_max_rad[i] - law.joint_zone_rad)
        if below > 0.0:
            out[i] = law.joint_stiffness * below
        elif above > 0.0:
            out[i] = -law.joint_stiffness * above
    return out


@kernel
def braking_torque(dq_radps: Array, law: Law) -> Array:
    """Torque (dof,) Nm that only slows the joints down."""
    return -law.posture_damping * dq_radps


@kernel
def limit_torque(tau_nm: Array, previous_nm: Array, law: Law, dt_s: float) -> Array:
    """Clip torques (dof,) to the arm's limits, then to its torque rate from ``previous_nm``."""
    out = np.empty(len(tau_nm))
    for i in range(len(tau_nm)):
        step = law.dtau_max_nmps[i] * dt_s
        clipped = min(max(tau_nm[i], -law.tau_max_nm[i]), law.tau_max_nm[i])
        out[i] = min(max(clipped, previous_nm[i] - step), previous_nm[i] + step)
    return out


@kernel
def impedance_torque(
    q_rad: Array,
    dq_radps: Array,
    jac: Array,
    space: RowSpace,
    pos_m: Array,
    quat_xyzw: Array,
    target_pos_m: Array,
    target_quat_xyzw: Array,
    stiffness: Array,
    coriolis_nm: Array,
    law: Law,
) -> Array:
    """Joint torque (dof,) Nm before clipping and rate limit; without gravity, which the arm compensates itself.

    ``jac`` (6, dof) is the geometric Jacobian of the tcp in the base frame, ``space`` its row space. Damping is
    ``2 damping_ratio sqrt(stiffness * reference_inertia)`` per axis.
    """
    dof = len(q_rad)
    wrench = spring_wrench(pos_m, quat_xyzw, target_pos_m, target_quat_xyzw, stiffness, law)
    for i in range(6):
        rate = 0.0
        for j in range(dof):
            rate += jac[i, j] * dq_radps[j]
        wrench[i] -= 2.0 * law.damping_ratio * math.sqrt(stiffness[i] * law.reference_inertia[i]) * rate
    posture = np.empty(dof)
    for j in range(dof):
        posture[j] = law.posture_stiffness * (law.posture_rad[j] - q_rad[j]) - law.posture_damping * dq_radps[j]
    tau = project_null(space, posture)
    repulsion = joint_limit_torque(q_rad, law)
    for j in range(dof):
        for i in range(6):
            tau[j] += jac[i, j] * wrench[i]
        tau[j] += repulsion[j] + coriolis_nm[j]
    return tau
