"""What ``robot-rl record-bag`` and ``replay-bag`` do; ROS is reached by name and at run time."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robot_rl import cli_ros


def record_bag(command: cli_ros.RecordBag, ros_args: Sequence[str]) -> int:
    """Record until Ctrl-C; returns 0."""
    bag: Any = importlib.import_module("controllers.bag")
    sizes = {name: getattr(command, name) for name in ("split_mb", "split_s", "max_mb", "queue_mb")}
    return int(bag.record(command.out, command.topics, command.namespace, **sizes, ros_args=ros_args))


def replay_bag(command: cli_ros.ReplayBag, ros_args: Sequence[str]) -> int:
    """Play, export or mend a recording; returns 0."""
    if command.recover:
        reader: Any = importlib.import_module("controllers.bag_reader")
        for summary in reader.recover(command.dir):
            _say(f"{summary.path}: {summary.messages} messages are whole and readable by every tool")
    if command.export is not None:
        from robot_rl.bag_export import export

        settings = sum(command.set, ())
        result = export(
            command.dir, command.export, command.namespace, command.arm, command.world, settings, command.successes_only
        )
        _say(f"{command.export}: {result}")
    elif not command.recover:
        replay: Any = importlib.import_module("controllers.bag_replay")
        rate, topics = command.rate, command.topics
        return int(replay.replay(command.dir, rate, topics, command.loop, command.namespace_prefix, ros_args=ros_args))
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
