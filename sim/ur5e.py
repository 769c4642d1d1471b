"""Universal Robots UR5e: six joints and a two-finger gripper of Hand-E size."""

from controllers import impedance
from robot_rl.types import Scene
from sim._models import UR5E
from sim._twin import Twin

Config = impedance.Config


def make(config: impedance.Config, scene: Scene) -> Twin:
    return Twin(UR5E, config, scene)
