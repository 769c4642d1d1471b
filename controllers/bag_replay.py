"""A recording played again into the graph, for RViz, Foxglove and whatever looks at states. Never commands."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from controllers.bag_reader import files_of, messages, summarize
from controllers.bag_types import chosen, message_type
from controllers.bag_writer import Topic
from controllers.ros import RosContext, require_ros

COMMANDS = ("heartbeat", "step", "joint_trajectory", "commands", "cmd_vel")
"""Last words of topics that move something; so do all that begin with ``target_``."""
NOT_STATE = ("/rosout", "/parameter_events")  # every node has its own
WAIT_S = 0.05  # longest time until Ctrl-C is noticed
MEET_S = 1.0  # for publishers and subscribers to find each other


def is_command(name: str) -> bool:
    """Whether a topic tells something to move."""
    last = name.rsplit("/", 1)[-1]
    return last in COMMANDS or last.startswith("target_")


def select(recorded: Sequence[str], topics: Sequence[str], prefix: str) -> list[str]:
    """What is to be played of the ``recorded`` topics: those like one of ``topics``, or all; commands only where they
    are named and go elsewhere.

    Raises ValueError for a command that would go where it came from, LookupError where nothing is left.
    """
    named = [name for name in recorded if topics and chosen(name, None, topics)]
    if commands := [name for name in named if is_command(name) and not prefix]:
        raise ValueError(
            f"--topics {' '.join(commands)}: a recorded command could move an arm; leave it out, or put it elsewhere, "
            "--namespace-prefix /replay"
        )
    left = named or [name for name in recorded if not topics and not is_command(name) and name not in NOT_STATE]
    if not left:
        raise LookupError(f"nothing to play; the recording has {', '.join(recorded) or 'no messages'}")
    return left


def replay(
    bag: Path,
    rate: float = 1.0,
    topics: Sequence[str] = (),
    loop: bool = False,
    namespace_prefix: str = "",
    meet_s: float = MEET_S,
    ros_args: Sequence[str] = (),
) -> int:
    """``robot-rl replay-bag``: publish the recorded bytes at ``rate`` times their pace, each topic with its own QoS,
    until the end, SIGINT or SIGTERM; returns 0.

    Raises FileNotFoundError, LookupError and ValueError in words; ValueError, too, where somebody publishes one of the
    topics already: who listens could not tell the recording from the arm.
    """
    if not rate > 0.0:
        raise ValueError(f"--rate {rate:g}: give a number > 0")
    rclpy = require_ros()
    recorded = topics_of(bag)
    prefix = f"/{namespace_prefix.strip('/')}" if namespace_prefix.strip("/") else ""
    wanted = select(sorted(recorded), topics, prefix)
    stop = [False]

    def on_signal(signum: int, frame: FrameType | None) -> None:
        stop[0] = True

    previous = {sig: signal.signal(sig, on_signal) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        with RosContext(ros_args) as ros:
            node = ros.add(
                rclpy.create_node("replay", context=ros.context, enable_rosout=False, start_parameter_services=False)
            )
            _pause(time.monotonic() + meet_s, stop)
            publishers = _publishers(node, [recorded[name] for name in wanted], prefix)
            commands = [name for name in sorted(recorded) if is_command(name) and name not in publishers]
            left_out = f"; commands are never played: {', '.join(commands)}" if commands else ""
            _say(f"playing {len(publishers)} topics of {bag}{f' below {prefix}' if prefix else ''}{left_out}")
            _pause(time.monotonic() + meet_s, stop)
            count = _play(bag, publishers, rate, stop)
            while loop and count and not stop[0]:
                count += _play(bag, publishers, rate, stop)
            _wait_for_subscribers(publishers, stop)
    finally:
        for sig, handler in previous.items():
            signal.signal(sig, handler)
    _say(f"{count} messages played")
    return 0


def topics_of(bag: Path) -> dict[str, Topic]:
    """The recorded topics by name; of one that changed its QoS, the first."""
    found: dict[str, Topic] = {}
    for path in files_of(bag):
        summary = summarize(path)
        if not summary.complete:
            _say(
                f"{path} was cut short, {summary.messages} messages are whole; to mend it: "
                f"robot-rl replay-bag {bag} --recover"
            )
        for topic in summary.counts:
            found.setdefault(topic.name, topic)
    return found


def _publishers(node: Any, topics: Sequence[Topic], prefix: str) -> dict[str, Any]:
    """By recorded name. A type that is not installed is named and left out."""
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

    made = {}
    for topic in topics:
        name = prefix + topic.name
        if node.count_publishers(name):
            raise ValueError(
                f"{name} is being published already: who listens could not tell the recording from the arm; "
                "put it elsewhere, --namespace-prefix /replay"
            )
        try:
            type_ = message_type(topic.type)
        except LookupError as error:
            _say(f"{topic.name} is not played: {error.args[0]}")
            continue
        qos = QoSProfile(
            depth=max(1, len(topic.profiles)) if topic.latched else 100,  # the newest of each publisher
            reliability=ReliabilityPolicy.RELIABLE if topic.reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if topic.latched else DurabilityPolicy.VOLATILE,
        )
        made[topic.name] = node.create_publisher(type_, name, qos)
    return made


def _play(bag: Path, publishers: dict[str, Any], rate: float, stop: list[bool]) -> int:
    """Once from beginning to end; returns the messages published."""
    count, begin_s, first_ns = 0, time.monotonic(), None
    for message in messages(bag, publishers.__contains__):
        first_ns = message.log_ns if first_ns is None else first_ns
        _pause(begin_s + (message.log_ns - first_ns) * 1e-9 / rate, stop)
        if stop[0]:
            break
        publishers[message.topic.name].publish(message.data)
        count += 1
    return count


def _pause(until_s: float, stop: list[bool]) -> None:
    while not stop[0] and (left_s := until_s - time.monotonic()) > 0.0:
        time.sleep(min(left_s, WAIT_S))


def _wait_for_subscribers(publishers: dict[str, Any], stop: list[bool]) -> None:
    """What is reliable is gone with its publisher: let it arrive."""
    from rclpy.duration import Duration

    for publisher in publishers.values():
        if not stop[0]:
            publisher.wait_for_all_acked(Duration(seconds=2))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
