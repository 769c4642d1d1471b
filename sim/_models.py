"""The arms of ``sim/assets``: published limits as data, and the file each model is in.

Sources: Franka control interface documentation and franka_description 1.0.1 (joint limits), Franka Hand product manual,
Universal Robots UR5e technical specifications and "Max. joint torques" article, Robotiq Hand-E manual. What a maker
does not publish says so beside it.

In every model the joints are ``joint1..n``, ``finger_joint1`` and ``finger_joint2``; the actuators ``motor1..n`` (Nm),
``finger1`` and ``finger2`` (m, 0 closed; their force limit is the grasping force); the sites ``flange`` and ``tcp`` (z
out of the hand, y along the opening); the finger tips ``pad1`` and ``pad2``. Gravity is compensated inside, as in the
real arms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robot_rl.types import ArmLimits, Array

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True, eq=False)
class Model:
    """One arm with its hand."""

    name: str
    limits: ArmLimits
    ready_rad: Array  # (dof,) the model's keyframe "ready": tool straight down, in front of the base

    @property
    def xml_path(self) -> Path:
        return ASSETS / f"{self.name}.xml"

    @property
    def finger_open_m(self) -> float:
        """Control of each finger when the hand is open; 0 closes it."""
        return self.limits.gripper_width_m / 2


def _array(values: Sequence[float]) -> Array:
    return np.array(values, dtype=np.float64)


_QUARTER = np.pi / 4
_FRANKA_TAU_NM = _array([87.0] * 4 + [12.0] * 3)
_FRANKA_DTAU_NMPS = _array([1000.0] * 7)
_FRANKA_STIFFNESS = _array([3000.0] * 3 + [300.0] * 3)  # largest that the makers' Cartesian impedance takes
_FRANKA_READY_RAD = _array([0.0, -_QUARTER, 0.0, -3 * _QUARTER, 0.0, 2 * _QUARTER, _QUARTER])
_FRANKA_VISCOUS_NMSPR = _array([0.21] * 7)  # the models' own; they have no Coulomb friction
_FRANKA_HAND_WIDTH_M = 0.08
_FRANKA_HAND_FORCE_N = 70.0  # continuous; the hand can do 140 N for a moment

PANDA = Model(
    name="panda",
    limits=ArmLimits(
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
    ),
    ready_rad=_FRANKA_READY_RAD,
)

FR3 = Model(
    name="fr3",
    limits=ArmLimits(
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
    ),
    ready_rad=_FRANKA_READY_RAD,
)

UR5E = Model(
    name="ur5e",
    limits=ArmLimits(
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
    ),
    ready_rad=_array([2.8408577340, -1.7154159780, 1.7811525950, -1.6365329440, -1.5707963268, -1.8715312460]),
)
