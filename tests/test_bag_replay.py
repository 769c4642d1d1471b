"""Recordings played into the graph: states at any pace, commands never."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("mcap")
from controllers import bag_replay
from controllers.bag_writer import Message
from tests.bags import WAIT_S, Child, publisher, ros_node, starter, stream, text, topic_of, wait_for, write


@pytest.fixture
def node(ros_domain: int) -> Iterator[Any]:
    with ros_node() as node:
        yield node


@pytest.fixture
def start(tmp_path: Path, ros_domain: int) -> Iterator[Callable[..., Child]]:
    with starter(tmp_path) as start:
        yield start


def listen(node: Any, name: str, latched: bool = False) -> Callable[[], list[bytes]]:
    """Collects the bytes that arrive on a topic."""
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from std_msgs.msg import String

    durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
    qos = QoSProfile(depth=1000, durability=durability)
    subscription = node.create_subscription(String, name, lambda message: None, qos, raw=True)
    heard: list[bytes] = []

    def take() -> list[bytes]:
        while (got := subscription.handle.take_message(String, True)) is not None:
            heard.append(got[0])
        return heard

    return take


def play(start: Callable[..., Child], out: Path, **options: Any) -> Child:
    return start(out, module="bag_replay", function="replay", **options)


def a_day(out: Path) -> list[Message]:
    """A recording of a day with a state, a latched state and commands."""
    sent = stream(100, topic=topic_of("/arm/state"), step_s=864.0)
    latched = Message(topic_of("/arm/mode", durability="transient_local"), text("holding"), 2, 2)
    command = Message(topic_of("/arm/target_pose"), text("go"), 3, 3)
    beat = Message(topic_of("/arm/heartbeat"), text("tick"), 3, 3)
    write(out, [sent[0], latched, command, beat, *sent[1:]])
    return sent


def test_states_are_played_at_any_rate_and_commands_never(tmp_path, node, start):
    sent = a_day(tmp_path / "bag")
    state, target = listen(node, "/arm/state"), listen(node, "/arm/target_pose")
    player = play(start, tmp_path / "bag", rate=86400.0)
    assert player.process.wait(WAIT_S) == 0  # a day, in a second and what starting takes
    wait_for(lambda: len(state()) == len(sent))
    assert state() == [message.data for message in sent] and target() == []
    assert "commands are never played: /arm/heartbeat, /arm/target_pose" in player.said
    assert "101 messages played" in player.said


def test_it_loops_elsewhere_until_ctrl_c_and_latecomers_get_what_is_latched(tmp_path, node, start):
    sent = a_day(tmp_path / "bag")
    state, here = listen(node, "/replay/arm/state"), listen(node, "/arm/state")
    commands = listen(node, "/replay/arm/target_pose")
    player = play(
        start,
        tmp_path / "bag",
        rate=864000.0,
        loop=True,
        namespace_prefix="replay",
        topics=["*state", "*mode", "*pose"],
    )
    wait_for(lambda: len(state()) > 2 * len(sent), lambda: player.said)
    assert state()[: 2 * len(sent)] == 2 * [message.data for message in sent] and here() == []
    assert commands()[0] == text("go")  # asked for by name, and where no arm listens
    mode = listen(node, "/replay/arm/mode", latched=True)
    wait_for(lambda: bool(mode()))
    assert player.interrupt() == 0


def test_commands_are_refused_where_an_arm_could_hear_them(tmp_path):
    a_day(tmp_path / "bag")
    with pytest.raises(ValueError, match=r"/arm/target_pose: a recorded command could move an arm"):
        bag_replay.replay(tmp_path / "bag", topics=["/arm/target_pose"])
    with pytest.raises(LookupError, match=r"nothing to play; the recording has /arm/heartbeat"):
        bag_replay.replay(tmp_path / "bag", topics=["/other"])
    with pytest.raises(ValueError, match="--rate 0: give a number > 0"):
        bag_replay.replay(tmp_path / "bag", rate=0.0)


def test_a_topic_that_lives_is_not_played_over(tmp_path, node, start):
    a_day(tmp_path / "bag")
    alive = publisher(node, "/arm/state")
    player = play(start, tmp_path / "bag")
    assert player.process.wait(WAIT_S) == 2
    assert f"{alive.topic_name} is being published already" in player.said and "--namespace-prefix" in player.said
