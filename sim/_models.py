"""The arms of ``sim/assets``: the makers' limits, and the file each model is in.

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

from controllers import arms
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
_FRANKA_READY_RAD = _array([0.0, -_QUARTER, 0.0, -3 * _QUARTER, 0.0, 2 * _QUARTER, _QUARTER])

PANDA = Model("panda", arms.PANDA, _FRANKA_READY_RAD)
FR3 = Model("fr3", arms.FR3, _FRANKA_READY_RAD)
UR5E = Model(
    "ur5e", arms.UR5E, _array([2.8408577340, -1.7154159780, 1.7811525950, -1.6365329440, -1.5707963268, -1.8715312460])
)
