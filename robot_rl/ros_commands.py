"""What the commands of ``cli.py`` that need ROS 2 do; ROS itself is reached by name, at run time."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robot_rl import cli_ros


def node_arm(command: cli_ros.NodeArm) -> int:
    """``robot-rl node arm``."""
    from robot_rl import rig, ros_nodes
    from robot_rl.cli_ros import ROS_ARGS

    settings = list(rig.words(command.rig, command.arm, command.world, sum(command.set, ())))
    if command.rate is not None:
        settings.append(f"node.rate_hz={command.rate}")
    return ros_nodes.arm(
        command.task, command.arm, command.world, command.namespace, command.lockstep, settings, ROS_ARGS
    )


def node_camera(command: cli_ros.NodeCamera) -> int:
    """``robot-rl node camera``."""
    from robot_rl import ros_nodes
    from robot_rl.cli_ros import ROS_ARGS

    return ros_nodes.camera(
        command.task, command.arm, command.namespace, command.name, command.rate, command.width, command.height,
        list(sum(command.set, ())), ROS_ARGS,
    )  # fmt: skip


def call(command: cli_ros.Call) -> int:
    """``robot-rl call``: prints what the node answers; 1 where it refuses."""
    link = importlib.import_module("hardware._link").Link(command.namespace, "person")
    messages = importlib.import_module("controllers.messages")
    services = importlib.import_module("std_srvs.srv")
    hint = "is the arm's node running, and is this its namespace? robot-rl doctor looks for it"
    try:
        if command.service in ("estop", "release_estop"):
            kind, name = services.SetBool, "estop"
            request = kind.Request(data=command.service == "estop")
        else:
            kind, name = services.Trigger, command.service
            request = kind.Request()
        answer = link.call(kind, f"{messages.NODE}/{name}", request, command.wait, hint)
    finally:
        link.close()
    print(answer.message)
    return 0 if answer.success else 1
