"""Rotations and poses: one quaternion order (xyzw), one frame convention, plain numpy.

Written element by element because the same lines run uncompiled here and compiled inside the control tick
(``controllers/jit.py``); every function is checked against ``scipy.spatial.transform`` by property tests.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def quat_multiply(a: Array, b: Array) -> Array:
    """Hamilton product ``a * b`` of quaternions (4,) xyzw: rotate by ``b``, then by ``a``."""
    ax, ay, az, aw = a[0], a[1], a[2], a[3]
    bx, by, bz, bw = b[0], b[1], b[2], b[3]
    out = np.empty(4)
    out[0] = aw * bx + ax * bw + ay * bz - az * by
    out[1] = aw * by - ax * bz + ay * bw + az * bx
    out[2] = aw * bz + ax * by - ay * bx + az * bw
    out[3] = aw * bw - ax * bx - ay * by - az * bz
    return out


def quat_conjugate(quat: Array) -> Array:
    """Inverse of a unit quaternion (4,) xyzw."""
    out = np.empty(4)
    out[0], out[1], out[2], out[3] = -quat[0], -quat[1], -quat[2], quat[3]
    return out


def quat_normalize(quat: Array) -> Array:
    """Unit quaternion (4,) along ``quat``; identity for a quaternion shorter than 1e-12."""
    norm = math.sqrt(quat[0] * quat[0] + quat[1] * quat[1] + quat[2] * quat[2] + quat[3] * quat[3])
    out = np.zeros(4)
    if norm < 1e-12:
        out[3] = 1.0
        return out
    for i in range(4):
        out[i] = quat[i] / norm
    return out


def quat_rotate(quat: Array, vector: Array) -> Array:
    """``R(quat) @ vector`` for a unit quaternion (4,) xyzw and a vector (3,)."""
    x, y, z, w = quat[0], quat[1], quat[2], quat[3]
    tx = 2.0 * (y * vector[2] - z * vector[1])
    ty = 2.0 * (z * vector[0] - x * vector[2])
    tz = 2.0 * (x * vector[1] - y * vector[0])
    out = np.empty(3)
    out[0] = vector[0] + w * tx + y * tz - z * ty
    out[1] = vector[1] + w * ty + z * tx - x * tz
    out[2] = vector[2] + w * tz + x * ty - y * tx
    return out


def quat_to_rotvec(quat: Array) -> Array:
    """Rotation vector (3,) in rad, of norm <= pi, of a unit quaternion (4,) xyzw."""
    sign = 1.0 if quat[3] >= 0.0 else -1.0
    sine = math.sqrt(quat[0] * quat[0] + quat[1] * quat[1] + quat[2] * quat[2])
    # atan2 keeps full precision at both ends: 2/cos for tiny angles, pi/1 for half turns.
    scale = 2.0 * sign if sine < 1e-12 else 2.0 * sign * math.atan2(sine, sign * quat[3]) / sine
    out = np.empty(3)
    for i in range(3):
        out[i] = scale * quat[i]
    return out


def rotvec_to_quat(rotvec: Array) -> Array:
    """Unit quaternion (4,) xyzw with ``w >= 0`` for angles up to pi, of a rotation vector (3,) in rad."""
    angle = math.sqrt(rotvec[0] * rotvec[0] + rotvec[1] * rotvec[1] + rotvec[2] * rotvec[2])
    # sin(a/2)/a by its series below 1e-4 rad: the neglected term is a^4/3840 < 1e-19.
    scale = 0.5 - angle * angle / 48.0 if angle < 1e-4 else math.sin(0.5 * angle) / angle
    out = np.empty(4)
    for i in range(3):
        out[i] = scale * rotvec[i]
    out[3] = math.cos(0.5 * angle)
    return out


def matrix_to_quat(matrix: Array) -> Array:
    """Unit quaternion (4,) xyzw of a rotation matrix given as (9,) row-major (Shepperd's method)."""
    m00, m01, m02 = matrix[0], matrix[1], matrix[2]
    m10, m11, m12 = matrix[3], matrix[4], matrix[5]
    m20, m21, m22 = matrix[6], matrix[7], matrix[8]
    out = np.empty(4)
    trace = m00 + m11 + m22
    if trace >= m00 and trace >= m11 and trace >= m22:
        out[0], out[1], out[2], out[3] = m21 - m12, m02 - m20, m10 - m01, 1.0 + trace
    elif m00 >= m11 and m00 >= m22:
        out[0], out[1], out[2], out[3] = 1.0 + m00 - m11 - m22, m01 + m10, m02 + m20, m21 - m12
    elif m11 >= m22:
        out[0], out[1], out[2], out[3] = m01 + m10, 1.0 - m00 + m11 - m22, m12 + m21, m02 - m20
    else:
        out[0], out[1], out[2], out[3] = m02 + m20, m12 + m21, 1.0 - m00 - m11 + m22, m10 - m01
    return quat_normalize(out)


def rotation_between(target: Array, source: Array) -> Array:
    """Rotation vector (3,) in rad, base frame, that takes orientation ``source`` to ``target`` (xyzw)."""
    return quat_to_rotvec(quat_multiply(target, quat_conjugate(source)))


def relative_pose(pos: Array, quat: Array, origin_pos: Array, origin_quat: Array) -> Array:
    """Pose (6,) m, rad (rotation vector) of ``pos, quat`` seen from the frame ``origin_pos, origin_quat``."""
    inverse = quat_conjugate(origin_quat)
    out = np.empty(6)
    out[:3] = quat_rotate(inverse, pos - origin_pos)
    out[3:] = quat_to_rotvec(quat_multiply(inverse, quat))
    return out
