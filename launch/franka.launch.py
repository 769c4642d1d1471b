"""A Franka arm: its driver with CRISP's controllers, the arm's node in front of them, a policy.

`ros2 launch robot_rl franka.launch.py --show-args` lists the arguments.
"""

from typing import Any

from robot_rl.ros_launch import launch_description


def generate_launch_description() -> Any:
    return launch_description("franka")
