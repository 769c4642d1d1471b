"""The arm's node in front of an arm that runs CRISP's controllers.

`ros2 launch robot_rl crisp.launch.py --show-args` lists the arguments.
"""

from typing import Any

from robot_rl.ros_launch import launch_description


def generate_launch_description() -> Any:
    return launch_description("crisp")
