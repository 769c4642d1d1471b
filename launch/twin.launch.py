"""The arm's node around a twin, with cameras, a policy and a recording where wanted.

`ros2 launch robot_rl twin.launch.py --show-args` lists the arguments.
"""

from typing import Any

from robot_rl.ros_launch import launch_description


def generate_launch_description() -> Any:
    return launch_description("twin")
