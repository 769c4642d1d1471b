"""What a wrench reads in free air: weight the arm was not told of, and bias. Found by least squares, and taken away.

Signs are those of ``ArmState.tcp_wrench``: what the surroundings exert on the arm, at the tcp, in the base frame; here
it is turned into the tcp's frame, where bias of a sensor in the wrist and the centre of mass stand still. With g the
gravity that the tcp sees, R^T (0, 0, -9.81) m/s^2:

    force  = mass g + force bias
    torque = com x mass g + torque bias

An arm that was told of its payload subtracts it by itself: then what is found here is what is left of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from robot_rl.geometry import quat_conjugate, quat_rotate

Array = NDArray[np.float64]

GRAVITY_MPS2 = 9.81
LEAST_READINGS = 6
_LEAST_SPREAD = 0.1  # rms of g across its mean, as a share of g, along the worst axis: some 6 degrees


class Payload(NamedTuple):
    """In the tcp's frame."""

    mass_kg: float
    com_m: Array  # (3,)
    force_bias_n: Array  # (3,)
    torque_bias_nm: Array  # (3,)

    def wrench(self, quat_xyzw: Array) -> Array:
        """(6,) N, Nm in the base frame: what the wrench reads in free air at an orientation of the tcp."""
        weight = self.mass_kg * gravity_at(quat_xyzw)
        force, torque = weight + self.force_bias_n, np.cross(self.com_m, weight) + self.torque_bias_nm
        return np.concatenate([quat_rotate(quat_xyzw, force), quat_rotate(quat_xyzw, torque)])


def payload_of(numbers: Sequence[float]) -> Payload:
    """From ten numbers: mass, centre of mass, force bias, torque bias."""
    if len(numbers) != 10:
        raise ValueError(f"{tuple(numbers)}: give 10 numbers, mass, centre of mass, force bias and torque bias")
    return Payload(float(numbers[0]), *(np.array(numbers[i : i + 3], np.float64) for i in (1, 4, 7)))


class Fit(NamedTuple):
    payload: Payload
    residual_n: float  # rms, one axis
    residual_nm: float
    mass_sigma_kg: float  # standard deviation
    com_sigma_m: float  # the same, of the worst axis; inf without mass
    spread: float  # how far the readings were turned: see ``spread_of``


def gravity_at(quat_xyzw: Array) -> Array:
    """(3,) m/s^2 in the tcp's frame."""
    return quat_rotate(quat_conjugate(quat_xyzw), np.array([0.0, 0.0, -GRAVITY_MPS2]))


def spread_of(quats: Sequence[Array]) -> tuple[float, Array]:
    """How well the directions of gravity are told apart: their rms across the mean, as a share of g, along the axis
    (3,), in the tcp's frame, about which the arm was turned least; the second smallest, for a mean and two tilts are
    all that is needed."""
    seen = np.stack([gravity_at(quat) for quat in quats]) / GRAVITY_MPS2
    _, values, axes = np.linalg.svd(seen - seen.mean(axis=0), full_matrices=False)
    return float(values[1] / np.sqrt(len(quats))), axes[1]


def fit(quats: Sequence[Array], wrenches: Sequence[Array]) -> Fit:
    """From orientations (4,) xyzw of the tcp and wrenches (6,) N, Nm, base frame, at rest and in free air.

    Raises ValueError for fewer than ``LEAST_READINGS``, or where the arm was turned too little to tell weight and bias
    apart.
    """
    if len(quats) < LEAST_READINGS:
        raise ValueError(f"{len(quats)} readings: at least {LEAST_READINGS} orientations are needed")
    spread, axis = spread_of(quats)
    if spread < _LEAST_SPREAD:
        raise ValueError(
            f"the arm was turned too little to tell weight from bias: gravity moved by {spread:.3f} of itself along "
            f"{np.round(axis, 2).tolist()} of the tcp's frame, at least {_LEAST_SPREAD} is needed; tilt it further, "
            "20 degrees and more, about two axes across gravity"
        )
    forces = np.concatenate([quat_rotate(quat_conjugate(q), w[:3]) for q, w in zip(quats, wrenches, strict=True)])
    torques = np.concatenate([quat_rotate(quat_conjugate(q), w[3:]) for q, w in zip(quats, wrenches, strict=True)])
    pulls = [gravity_at(quat) for quat in quats]
    rows = np.concatenate([np.column_stack([pull, np.eye(3)]) for pull in pulls])
    (mass_kg, *force_bias_n), residual_n, sigma = _least_squares(rows, forces)
    rows = np.concatenate([np.column_stack([-_cross(pull), np.eye(3)]) for pull in pulls])
    found, residual_nm, torque_sigma = _least_squares(rows, torques)
    com_m = found[:3] / mass_kg if abs(mass_kg) > 3.0 * sigma[0] else np.zeros(3)
    com_sigma_m = float(torque_sigma[:3].max()) / abs(mass_kg) if com_m.any() else np.inf
    payload = Payload(float(mass_kg), com_m, np.array(force_bias_n), found[3:])
    return Fit(payload, residual_n, residual_nm, float(sigma[0]), com_sigma_m, spread)


def _least_squares(rows: Array, wanted: Array) -> tuple[Array, float, Array]:
    """Solution, rms of what is left, and the standard deviations of the solution."""
    found = np.asarray(np.linalg.lstsq(rows, wanted, rcond=None)[0], np.float64)
    left = wanted - rows @ found
    variance = float(left @ left) / max(len(wanted) - len(found), 1)
    sigma = np.sqrt(variance * np.diag(np.linalg.inv(rows.T @ rows)))
    return found, float(np.sqrt(np.mean(left**2))), sigma


def _cross(v: Array) -> Array:
    """The matrix (3, 3) with ``_cross(v) @ u == v x u``."""
    return np.array([[0.0, -v[2], v[1]], [v[2], 0.0, -v[0]], [-v[1], v[0], 0.0]])
