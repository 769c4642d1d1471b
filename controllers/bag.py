"""The flight recorder: every topic, byte for byte, into MCAP files that a crash cannot take with it.

It subscribes with the QoS that publishers offer, so that nothing about the graph changes, and takes messages as bytes.
No executor: a loop empties all subscriptions some 200 times a second, which costs a tenth of a callback per message;
arrival times are the middleware's. Writing has a thread of its own behind a queue of bounded size. What does not fit is
dropped and counted, and so is what never arrived, by the gaps in the publishers' counts.
"""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from controllers.bag_types import chosen, definition, describe_qos, message_type
from controllers.bag_writer import BagWriter, Message, Topic
from controllers.polling import take_all
from controllers.ros import RosContext, require_ros

POLL_S = 0.005
DISCOVERY_S = 0.02  # a topic that appears is heard that soon
RECHECK_S = 1.0  # whether publishers with another QoS have come
DEPTH = 200  # messages a topic may bring between two polls
OVERHEAD_BYTES = 200  # of a message in memory, besides its data


# ---------------------------------------------------------------------------------------------------------------------
# From the graph into the queue


@dataclass
class _Subscribed:
    topic: Topic
    type: Any
    subscription: Any
    reliable: bool
    latched: bool
    counts: dict[bytes, int] = field(default_factory=dict)  # publisher -> its newest sequence number


class Ears:
    """Subscribes to what there is and takes what arrives; for one thread."""

    def __init__(self, node: Any, wanted: Callable[[str], bool], say: Callable[[str], None]) -> None:
        self._node, self._wanted, self._say = node, wanted, say
        self._topics: dict[str, _Subscribed] = {}
        self._skipped: set[str] = set()
        self._taken: list[Message] = []
        self._recheck_s = 0.0
        self.lost = 0
        self.tells_losses = False  # older ROS versions do not say whose a message is

    def __len__(self) -> int:
        return len(self._topics)

    def discover(self) -> None:
        """Subscribe to topics that have a publisher by now; a type that is not installed is named once."""
        recheck = time.monotonic() >= self._recheck_s
        if recheck:
            self._recheck_s = time.monotonic() + RECHECK_S
        for name, types in self._node.get_topic_names_and_types():
            known = self._topics.get(name)
            if name in self._skipped or (known and not recheck) or not self._wanted(name):
                continue
            offers = self._node.get_publishers_info_by_topic(name)
            if not offers:
                continue
            reliable = all(offer.qos_profile.reliability.name == "RELIABLE" for offer in offers)
            latched = all(offer.qos_profile.durability.name == "TRANSIENT_LOCAL" for offer in offers)
            if known is None:
                self._subscribe(name, types, offers, reliable, latched)
            elif (known.reliable and not reliable) or (known.latched and not latched):
                self._weaken(known, known.reliable and reliable, known.latched and latched)

    def _subscribe(self, name: str, types: Sequence[str], offers: Sequence[Any], reliable: bool, latched: bool) -> None:
        try:
            if len(types) > 1:
                raise LookupError(f"it has several types, {', '.join(types)}")
            type_ = message_type(types[0])
        except LookupError as error:
            self._skipped.add(name)
            self._say(f"{name} is not recorded: {error.args[0]}")
            return
        offered = describe_qos([offer.qos_profile for offer in offers])
        topic = Topic(name, types[0], definition(types[0]), offered, _hash(offers[0]))
        self._topics[name] = _Subscribed(topic, type_, self._open(name, type_, reliable, latched), reliable, latched)
        self._say(f"recording {name} [{types[0]}]")

    def _weaken(self, known: _Subscribed, reliable: bool, latched: bool) -> None:
        """A publisher has come that offers less: a subscription that asks for more would not hear it."""
        self._say(f"{known.topic.name}: another publisher offers less; subscribing again")
        self._drain(known)
        self._node.destroy_subscription(known.subscription)
        known.reliable, known.latched = reliable, latched
        known.subscription = self._open(known.topic.name, known.type, reliable, latched)

    def _open(self, name: str, type_: Any, reliable: bool, latched: bool) -> Any:
        from rclpy.event_handler import SubscriptionEventCallbacks
        from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

        qos = QoSProfile(
            depth=DEPTH,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )
        quiet = SubscriptionEventCallbacks(use_default_callbacks=False)
        return self._node.create_subscription(type_, name, _never, qos, event_callbacks=quiet, raw=True)

    def take(self) -> list[Message]:
        """Everything that has arrived, in the order of arrival."""
        for heard in self._topics.values():
            self._drain(heard)
        taken, self._taken = self._taken, []
        taken.sort(key=lambda message: message.log_ns)
        return taken

    def _drain(self, heard: _Subscribed) -> None:
        for data, info in take_all(heard.subscription, raw=True, most=DEPTH):
            self._taken.append(self._message(heard, data, info))

    def _message(self, heard: _Subscribed, data: bytes, info: Any) -> Message:
        log_ns = info["received_timestamp"] or time.time_ns()  # 0 where the middleware does not tell
        sequence = info.get("publication_sequence_number") or 0
        publisher = info.get("publisher_gid")
        if sequence and publisher:
            gid, self.tells_losses = bytes(publisher["data"]), True
            self.lost += max(0, sequence - heard.counts.get(gid, sequence - 1) - 1)
            heard.counts[gid] = sequence
        return Message(heard.topic, data, log_ns, info["source_timestamp"] or log_ns, sequence)


def _never(message: Any) -> None:
    raise RuntimeError("the recorder's node must not be spun: Ears.take reads its subscriptions")


def _hash(offer: Any) -> str:
    """``RIHS01_...`` of a publisher's type, where this ROS tells it."""
    found = re.search(r"RIHS\d\d_[0-9a-f]{64}", str(offer))
    return found[0] if found else ""


class BoundedQueue:
    """Messages on their way to the disk, at most ``limit_bytes`` of them; those beyond are dropped and counted."""

    def __init__(self, limit_bytes: float) -> None:
        self._limit_bytes = limit_bytes
        self._ready = threading.Condition()
        self._waiting: list[Message] = []
        self._bytes = self._taken_bytes = 0
        self._closed = False
        self.dropped = 0

    def put(self, messages: Sequence[Message]) -> None:
        """Never waits."""
        with self._ready:
            for message in messages:
                size_bytes = len(message.data) + OVERHEAD_BYTES
                if self._bytes + size_bytes > self._limit_bytes:
                    self.dropped += 1
                    continue
                self._bytes += size_bytes
                self._waiting.append(message)
            self._ready.notify()

    def take(self, timeout_s: float) -> list[Message] | None:
        """All that wait, or an empty list after ``timeout_s``; None once closed and empty. What was taken counts until
        the next call, since it is in memory until it is written."""
        with self._ready:
            self._bytes -= self._taken_bytes
            self._taken_bytes = 0
            self._ready.wait_for(lambda: bool(self._waiting) or self._closed, timeout_s)
            taken, self._waiting = self._waiting, []
            self._taken_bytes = self._bytes
            return taken if taken or not self._closed else None

    def close(self) -> None:
        with self._ready:
            self._closed = True
            self._ready.notify()


def write_all(queue: BoundedQueue, writer: BagWriter) -> None:
    """Empty ``queue`` into ``writer`` until it is closed; raises OSError in words, and what was flushed is readable."""
    try:
        while (batch := queue.take(0.2)) is not None:
            for message in batch:
                writer.write(message)
            writer.flush()
        writer.close()
    except BaseException:
        writer.abandon()
        raise


# ---------------------------------------------------------------------------------------------------------------------
# The command


def record(
    out: Path,
    topics: Sequence[str] = (),
    namespace: str | None = None,
    split_mb: float = 256.0,
    split_s: float = 600.0,
    max_mb: float | None = None,
    queue_mb: float = 64.0,
    ros_args: Sequence[str] = (),
) -> int:
    """``robot-rl record-bag``: record into the new folder ``out`` until SIGINT or SIGTERM; returns 0.

    Raises FileExistsError where ``out`` holds something, ValueError for a size that is none, OSError in words where the
    disk takes no more; what was recorded before is then readable.
    """
    sizes = {"split-mb": split_mb, "split-s": split_s, "max-mb": max_mb, "queue-mb": queue_mb}
    for name, value in sizes.items():
        if value is not None and not value > 0.0:
            raise ValueError(f"--{name} {value:g}: give a number > 0")
    rclpy = require_ros()
    out = Path(out)
    ring_bytes = None if max_mb is None else max_mb * 1e6
    queue = BoundedQueue(queue_mb * 1e6)
    stop = [False]

    def on_signal(signum: int, frame: FrameType | None) -> None:
        stop[0] = True

    previous = {sig: signal.signal(sig, on_signal) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        with RosContext(ros_args) as ros, ThreadPoolExecutor(1, thread_name_prefix="bag") as pool:
            writer = BagWriter(out, split_mb * 1e6, split_s, ring_bytes)
            node = rclpy.create_node(
                "recorder", context=ros.context, enable_rosout=False, start_parameter_services=False
            )
            ears = Ears(ros.add(node), lambda name: chosen(name, namespace, topics), _say)
            writing = pool.submit(write_all, queue, writer)
            _say(f"recording into {out}; Ctrl-C ends it")
            try:
                messages = _listen(ears, queue, writing, stop)
            finally:
                queue.close()
            writing.result()
    finally:
        for sig, handler in previous.items():
            signal.signal(sig, handler)
    _say(f"{out} holds {_status(messages, writer, ears, queue)}")
    return 0


def _listen(ears: Ears, queue: BoundedQueue, writing: Future[None], stop: list[bool]) -> int:
    """Until a signal, or the writer's end, which before a signal is its error; returns the messages heard."""
    messages, discover_s, told_s, missed = 0, 0.0, time.monotonic(), 0
    while not stop[0] and not writing.done():
        now_s = time.monotonic()
        if now_s >= discover_s:
            ears.discover()
            discover_s = now_s + DISCOVERY_S
        taken = ears.take()
        messages += len(taken)
        if taken:
            queue.put(taken)
        if now_s - told_s >= 1.0:
            told_s = now_s
            if ears.lost + queue.dropped != missed or sys.stderr.isatty():
                missed = ears.lost + queue.dropped
                _say(f"{messages} messages of {len(ears)} topics, {_missed(ears, queue)}")
        time.sleep(POLL_S)
    taken = ears.take()
    queue.put(taken)
    return messages + len(taken)


def _status(messages: int, writer: BagWriter, ears: Ears, queue: BoundedQueue) -> str:
    gone = f", {writer.removed} oldest files removed" if writer.removed else ""
    kept = messages - queue.dropped
    return f"{kept} messages of {len(ears)} topics, {writer.written_bytes / 1e6:.1f} MB{gone}, {_missed(ears, queue)}"


def _missed(ears: Ears, queue: BoundedQueue) -> str:
    lost = f"{ears.lost} lost on the way" if ears.tells_losses else "this ROS does not tell what is lost on the way"
    return f"{queue.dropped} dropped because the disk was too slow, {lost}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
