"""The UR5e's kinematics as its controller computes them: standard DH parameters of Universal Robots' article "DH
parameters for calculations of kinematics and dynamics". Poses as URScript has them: ``p[x, y, z, rx, ry, rz]``, m and
rotation vector in rad, in the base frame.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from robot_rl.geometry import matrix_to_quat, quat_to_rotvec, rotvec_to_quat

Array = NDArray[np.float64]

D_M = (0.1625, 0.0, 0.0, 0.1333, 0.0997, 0.0996)
A_M = (0.0, -0.425, -0.3922, 0.0, 0.0, 0.0)
ALPHA = ((0.0, 1.0), (1.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.0, -1.0), (1.0, 0.0))  # cosine and sine
CLOSE = 1e-10  # m, rad: an inverse that is this good is one


def to_matrix(pose: Array) -> Array:
    """Homogeneous (4, 4) of a pose (6,)."""
    return frame_of(pose[:3], rotvec_to_quat(np.asarray(pose[3:], np.float64)))


def frame_of(pos_m: Array, quat_xyzw: Array) -> Array:
    """Homogeneous (4, 4) of a position (3,) and a unit quaternion (4,)."""
    x, y, z, w = quat_xyzw.tolist()
    out = np.eye(4)
    out[:3, :3] = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    out[:3, 3] = pos_m
    return out


def to_pose(matrix: Array) -> Array:
    """Pose (6,) of a homogeneous (4, 4)."""
    return np.concatenate([matrix[:3, 3], rotvec_of(matrix[:3, :3])])


def rotvec_of(rotation: Array) -> Array:
    """Rotation vector (3,) of a rotation matrix (3, 3)."""
    return quat_to_rotvec(matrix_to_quat(rotation.reshape(9)))


def cross(a: Array, b: Array) -> Array:
    """Vector product (3,); numpy's takes ten times as long."""
    (ax, ay, az), (bx, by, bz) = a.tolist(), b.tolist()
    return np.array((ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx))


def invert(matrix: Array) -> Array:
    """Inverse of a homogeneous (4, 4)."""
    out = np.eye(4)
    out[:3, :3] = matrix[:3, :3].T
    out[:3, 3] = -matrix[:3, :3].T @ matrix[:3, 3]
    return out


def links(q_rad: Array) -> list[Array]:
    """Homogeneous (4, 4) of the base and of the DH frames 1 to 6, the last being the tool flange's."""
    frame = np.eye(4)
    out = [frame]
    for q, d, a, (ca, sa) in zip(q_rad.tolist(), D_M, A_M, ALPHA, strict=True):
        c, s = math.cos(q), math.sin(q)
        frame = frame @ np.array(
            ((c, -s * ca, s * sa, a * c), (s, c * ca, -c * sa, a * s), (0.0, sa, ca, d), (0.0, 0.0, 0.0, 1.0))
        )
        out.append(frame)
    return out


def forward(q_rad: Array, tcp: Array) -> Array:
    """The tcp (4, 4), which ``tcp`` (4, 4) places on the flange."""
    frame: Array = links(q_rad)[-1] @ tcp
    return frame


def jacobian(frames: list[Array], tcp: Array) -> tuple[Array, Array]:
    """(6, 6), linear then angular, of the tcp, and the tcp (4, 4), from ``links``."""
    end = frames[-1] @ tcp
    axes = np.array([frame[:3, 2] for frame in frames[:-1]])
    arms = end[:3, 3] - np.array([frame[:3, 3] for frame in frames[:-1]])
    out = np.empty((6, 6))
    out[0] = axes[:, 1] * arms[:, 2] - axes[:, 2] * arms[:, 1]
    out[1] = axes[:, 2] * arms[:, 0] - axes[:, 0] * arms[:, 2]
    out[2] = axes[:, 0] * arms[:, 1] - axes[:, 1] * arms[:, 0]
    out[3:] = axes.T
    return out, end


def gap(target: Array, frame: Array) -> Array:
    """Twist (6,) that takes ``frame`` to ``target`` in one second, both (4, 4), in the base frame."""
    return np.concatenate([target[:3, 3] - frame[:3, 3], rotvec_of(target[:3, :3] @ frame[:3, :3].T)])


def inverse(target: Array, tcp: Array, near_rad: Array) -> Array:
    """Joint angles (6,) nearest ``near_rad`` that put the tcp at ``target`` (4, 4), by damped Newton steps. Raises
    ValueError where there are none."""
    q_rad = near_rad.astype(np.float64)
    for _ in range(60):
        jac, end = jacobian(links(q_rad), tcp)
        miss = gap(target, end)
        if np.abs(miss).max() < CLOSE:
            return q_rad
        damping = min(1e-3, 0.1 * float(miss @ miss))  # none near the solution, where it would only slow down
        step = jac.T @ np.linalg.solve(jac @ jac.T + damping * np.eye(6) + 1e-14 * np.eye(6), miss)
        q_rad = q_rad + step * min(1.0, 0.5 / max(float(np.abs(step).max()), 1e-12))
    raise ValueError(f"no inverse kinematics for {np.round(to_pose(target), 4).tolist()}")
