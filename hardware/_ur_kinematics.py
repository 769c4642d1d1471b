"""The UR5e's joint axes, for the Jacobian of its tcp.

Denavit-Hartenberg parameters: Universal Robots, "DH Parameters for calculations of kinematics and dynamics" (UR5e).
They are nominal; each robot's calibration differs by a millimetre or so, which a Jacobian does not feel. Poses come
from the robot itself.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

A_M = (0.0, -0.425, -0.3922, 0.0, 0.0, 0.0)
D_M = (0.1625, 0.0, 0.0, 0.1333, 0.0997, 0.0996)
ALPHA_RAD = (math.pi / 2, 0.0, 0.0, math.pi / 2, -math.pi / 2, 0.0)


def flange(q_rad: Array) -> tuple[Array, Array, Array, Array]:
    """Origins (6, 3) m and axes (6, 3) of the joints in the base frame, then the flange's position (3,) and rotation
    (3, 3)."""
    origins, axes = np.zeros((6, 3)), np.zeros((6, 3))
    pos, rot = np.zeros(3), np.eye(3)
    for i in range(6):
        origins[i], axes[i] = pos, rot[:, 2]
        cos, sin, ca, sa = math.cos(q_rad[i]), math.sin(q_rad[i]), math.cos(ALPHA_RAD[i]), math.sin(ALPHA_RAD[i])
        pos = pos + rot @ np.array([A_M[i] * cos, A_M[i] * sin, D_M[i]])
        rot = rot @ np.array([[cos, -sin * ca, sin * sa], [sin, cos * ca, -cos * sa], [0.0, sa, ca]])
    return origins, axes, pos, rot


def jacobian(q_rad: Array, tcp_pos_m: Array) -> Array:
    """(6, 6) of the tcp at ``tcp_pos_m``: m/s and rad/s in the base frame for rad/s of the joints."""
    origins, axes, _, _ = flange(q_rad)
    out = np.empty((6, 6))
    arm = tcp_pos_m - origins
    out[0] = axes[:, 1] * arm[:, 2] - axes[:, 2] * arm[:, 1]
    out[1] = axes[:, 2] * arm[:, 0] - axes[:, 0] * arm[:, 2]
    out[2] = axes[:, 0] * arm[:, 1] - axes[:, 1] * arm[:, 0]
    out[3:] = axes.T
    return out
