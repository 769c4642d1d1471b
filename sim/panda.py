"""Franka Emika Panda (FER): seven joints and the Franka Hand."""

from controllers import impedance
from robot_rl.types import Scene
from sim._models import PANDA
from sim._twin import Twin

Config = impedance.Config


def make(config: impedance.Config, scene: Scene) -> Twin:
    return Twin(PANDA, config, scene)
