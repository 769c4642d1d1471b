"""What the makers publish about their arms: limits as data.

Sources: Franka control interface documentation and franka_description 1.0.1 (joint limits), Franka Hand product manual,
Universal Robots UR5e technical specifications and "Max. joint torques" article, Robotiq Hand-E manual. What a maker
does not publish says so beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robot_rl.types import ArmLimits, Array


def _array(values: Sequence[float]) -> Array:
    return np.array(values, dtype=np.float64)


_FRANKA_TAU_NM = _array([87.0] * 4 + [12.0] * 3)
_FRANKA_DTAU_NMPS = _array([1000.0] * 7)
_FRANKA_STIFFNESS = _array([3000.0] * 3 + [300.0] * 3)  # largest that the makers' Cartesian impedance takes
_FRANKA_VISCOUS_NMSPR = _array([0.21] * 7)  # the models' own; they have no Coulomb friction
_FRANKA_HAND_WIDTH_M = 0.08
_FRANKA_HAND_FORCE_N = 70.0  # continuous; the hand can do 140 N for a moment

PANDA = ArmLimits(
    q_min_rad=_array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973]),
    q_max_rad=_array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973]),
    dq_max_radps=_array([2.175] * 4 + [2.61] * 3),
    tau_max_nm=_FRANKA_TAU_NM,
    dtau_max_nmps=_FRANKA_DTAU_NMPS,
    speed_max_mps=1.7,
    speed_max_radps=2.5,
    stiffness_max=_FRANKA_STIFFNESS,
    gripper_width_m=_FRANKA_HAND_WIDTH_M,
    gripper_force_n=_FRANKA_HAND_FORCE_N,
    viscous_nmspr=_FRANKA_VISCOUS_NMSPR,
)

FR3 = ArmLimits(
    # The narrowest of the published ranges; later system versions allow up to 0.11 rad more on either side.
    q_min_rad=_array([-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159]),
    q_max_rad=_array([2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159]),
    dq_max_radps=_array([2.62] * 4 + [5.26, 4.18, 5.26]),  # in mid range; the arm allows less near its ends
    tau_max_nm=_FRANKA_TAU_NM,
    dtau_max_nmps=_FRANKA_DTAU_NMPS,
    speed_max_mps=3.0,
    speed_max_radps=2.5,
    stiffness_max=_FRANKA_STIFFNESS,
    gripper_width_m=_FRANKA_HAND_WIDTH_M,
    gripper_force_n=_FRANKA_HAND_FORCE_N,
    viscous_nmspr=_FRANKA_VISCOUS_NMSPR,
)

UR5E = ArmLimits(
    q_min_rad=_array([-2 * np.pi] * 6),
    q_max_rad=_array([2 * np.pi] * 6),
    dq_max_radps=_array([np.pi] * 6),
    tau_max_nm=_array([150.0] * 3 + [28.0] * 3),
    dtau_max_nmps=_array([1000.0] * 6),  # not published: Franka's
    speed_max_mps=1.0,  # "typical"
    speed_max_radps=np.pi,  # not published: that of one joint
    stiffness_max=_array([3000.0] * 3 + [300.0] * 3),  # not published: Franka's
    gripper_width_m=0.05,
    gripper_force_n=185.0,
    viscous_nmspr=_array([0.2] * 6),
)

LIMITS = {"panda": PANDA, "fr3": FR3, "ur5e": UR5E}
"""By the name an arm has everywhere."""
