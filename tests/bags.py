"""What the tests of recordings share: recorders and players in processes of their own, messages, and a witness."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rosbags.highlevel import AnyReader

from controllers import bag_reader, bag_types
from controllers.bag_writer import BagWriter, Message, Topic
from tests.ros_children import TIED

ROOT = Path(__file__).parent.parent
WAIT_S = 60.0
RECORD = """
import sys
from pathlib import Path
sys.modules.update(dict.fromkeys({blocked!r}))
from controllers.{module} import {function}
from robot_rl.cli import message, raised_on_purpose
try:
    status = {function}(Path(sys.argv[1]), **{options!r})
except (ValueError, LookupError, OSError) as error:
    assert raised_on_purpose(error), error
    print(message(error), file=sys.stderr)
    status = 2
print("ended", file=sys.stderr)
sys.exit(status)
"""


class Child:
    """A recorder or a player in a process of its own; what it says is in ``said``."""

    def __init__(self, folder: Path, out: Path, module: str, function: str, blocked: list[str], **options: Any) -> None:
        code = RECORD.format(module=module, function=function, blocked=blocked, options=options)
        self._log = folder / f"{function}.{time.monotonic_ns()}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen([*TIED, sys.executable, "-c", code, str(out)], stderr=log, cwd=ROOT)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def await_words(self, words: str) -> None:
        wait_for(lambda: words in self.said or self.process.poll() is not None, lambda: self.said)
        assert words in self.said

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(WAIT_S)


def wait_for(condition: Callable[[], bool], why: Callable[[], str] = lambda: "") -> None:
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s, f"waited in vain; {why()}"
        time.sleep(0.01)


@contextmanager
def ros_node() -> Iterator[Any]:
    """A node of this process; nobody spins it."""
    from controllers.ros import RosContext, require_ros

    rclpy = require_ros()
    with RosContext() as ros:
        yield ros.add(rclpy.create_node("tester", context=ros.context, enable_rosout=False))


@contextmanager
def starter(folder: Path) -> Iterator[Callable[..., Child]]:
    """Starts children and leaves none."""
    children: list[Child] = []

    def start(out: Path, *, module: str = "bag", function: str = "record", **options: Any) -> Child:
        children.append(Child(folder, out, module, function, options.pop("blocked", []), **options))
        return children[-1]

    try:
        yield start
    finally:
        for child in children:
            child.process.kill()
            child.process.wait()


def text(data: str) -> bytes:
    """A std_msgs/String on the wire, where RTPS pads it to four bytes."""
    from rclpy.serialization import serialize_message
    from std_msgs.msg import String

    serialized = serialize_message(String(data=data))
    return serialized + bytes(-len(serialized) % 4)


def noise(size: int) -> bytes:
    """A std_msgs/String that does not get smaller."""
    return text(os.urandom(size // 2).hex())


def topic_of(name: str, reliability: str = "reliable", durability: str = "volatile") -> Topic:
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

    policies = ReliabilityPolicy[reliability.upper()], DurabilityPolicy[durability.upper()]
    qos = bag_types.describe_qos([QoSProfile(depth=1, reliability=policies[0], durability=policies[1])])
    return Topic(name, "std_msgs/msg/String", bag_types.definition("std_msgs/msg/String"), qos)


def publisher(node: Any, name: str, best_effort: bool = False, latched: bool = False) -> Any:
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
    from std_msgs.msg import String

    qos = QoSProfile(
        depth=50,
        reliability=ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )
    return node.create_publisher(String, name, qos)


def publish(publisher: Any, datas: list[bytes], pause_s: float = 0.003) -> None:
    wait_for(lambda: publisher.get_subscription_count() > 0, lambda: f"nobody listens to {publisher.topic_name}")
    for data in datas:
        publisher.publish(data)
        time.sleep(pause_s)
    await_arrival(publisher)


def await_arrival(publisher: Any) -> None:
    """Until all that was sent has arrived with its listeners; where it is best effort nobody tells."""
    from rclpy.duration import Duration

    assert publisher.wait_for_all_acked(Duration(seconds=WAIT_S)), f"waited in vain; {publisher.topic_name}"


def recorded(out: Path) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for message in bag_reader.messages(out):
        found.setdefault(message.topic.name, []).append(message.data)
    return found


def witnessed(out: Path) -> dict[str, list[bytes]]:
    """What an independent reader of rosbag2 folders finds."""
    found: dict[str, list[bytes]] = {}
    with AnyReader([out]) as reader:
        for connection, _, data in reader.messages():
            assert reader.deserialize(data, connection.msgtype) is not None
            found.setdefault(connection.topic, []).append(bytes(data))
    return found


def write(out: Path, messages: list[Message], **options: Any) -> BagWriter:
    writer = BagWriter(out, **({"split_bytes": 1e9, "split_s": 1e9} | options))
    for message in messages:
        writer.write(message)
    writer.close()
    return writer


def stream(count: int, size: int = 100, topic: Topic | None = None, step_s: float = 0.01) -> list[Message]:
    topic = topic or topic_of("/a")
    return [Message(topic, noise(size), round(i * step_s * 1e9) + 1, i, i) for i in range(count)]
