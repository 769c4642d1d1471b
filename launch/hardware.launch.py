"""The arm's node around our own driver of a real arm.

`ros2 launch robot_rl hardware.launch.py --show-args` lists the arguments.
"""

from typing import Any

from robot_rl.ros_launch import launch_description


def generate_launch_description() -> Any:
    return launch_description("hardware")
