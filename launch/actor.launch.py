"""A policy for an arm whose node runs already.

`ros2 launch robot_rl actor.launch.py --show-args` lists the arguments.
"""

from typing import Any

from robot_rl.ros_launch import launch_description


def generate_launch_description() -> Any:
    return launch_description("actor")
