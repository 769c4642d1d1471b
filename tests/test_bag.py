"""The flight recorder: real processes over DDS, crashes, a full disk, and another tool's reader."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("mcap")
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from controllers import bag, bag_reader, bag_replay, bag_types
from tests.bags import (
    Child,
    await_arrival,
    noise,
    publish,
    publisher,
    recorded,
    ros_node,
    starter,
    text,
    topic_of,
    wait_for,
    witnessed,
)  # fmt: skip


@pytest.fixture
def node(ros_domain: int) -> Iterator[Any]:
    with ros_node() as node:
        yield node


@pytest.fixture
def start(tmp_path: Path, ros_domain: int) -> Iterator[Callable[..., Child]]:
    with starter(tmp_path) as start:
        yield start


def test_every_byte_of_every_kind_of_topic_is_recorded_and_other_tools_read_it(tmp_path, node, start):
    latched = publisher(node, "/arm/safety_state", latched=True)
    latched.publish(text("holding"))  # before anybody listened
    quick, sure = publisher(node, "/arm/quick", best_effort=True), publisher(node, "/arm/sure")
    recorder = start(tmp_path / "bag")
    sent = {"/arm/quick": [text(f"q{i}") for i in range(40)], "/arm/sure": [noise(3000) for i in range(40)]}
    publish(quick, sent["/arm/quick"])
    publish(sure, sent["/arm/sure"])
    late = publisher(node, "/late")  # a topic that appears while recording
    sent |= {"/late": [text("now")], "/arm/safety_state": [text("holding")]}
    publish(late, sent["/late"])
    recorder.await_words("recording /arm/safety_state [std_msgs/msg/String]")
    await_arrival(latched)
    wait_for(lambda: len(recorded(tmp_path / "bag").get("/arm/quick", ())) == 40, lambda: recorder.said)
    assert recorder.interrupt() == 0
    assert "0 dropped" in recorder.said and "0 lost" in recorder.said
    out = tmp_path / "bag"
    assert {name: datas for name, datas in recorded(out).items() if name in sent} == sent
    assert {name: datas for name, datas in witnessed(out).items() if name in sent} == sent
    assert bag_reader.cut_short(out) == []
    times = [(message.publish_ns, message.log_ns) for message in bag_reader.messages(out)]
    assert all(left <= arrived for left, arrived in times)
    assert [arrived for _, arrived in times] == sorted(arrived for _, arrived in times)
    topics = bag_replay.topics_of(out)
    assert topics["/arm/safety_state"].latched and topics["/arm/safety_state"].reliable
    assert not topics["/arm/quick"].reliable and not topics["/arm/quick"].latched
    with AnyReader([out]) as reader:
        counts = {connection.topic: connection.msgcount for connection in reader.connections}
        hashes = {connection.topic: connection.digest for connection in reader.connections}
    assert {name: counts[name] for name in sent} == {name: len(datas) for name, datas in sent.items()}
    assert all(hashes[name].startswith("RIHS01_") for name in sent)


def test_kill_9_costs_a_second_and_the_rest_is_readable_and_mendable(tmp_path, node, start):
    out, sure = tmp_path / "bag", publisher(node, "/sure")
    recorder = start(out, topics=["/sure"])
    sent: list[bytes] = []
    path = out / "bag_0.mcap"
    wait_for(lambda: sure.get_subscription_count() > 0, lambda: recorder.said)

    def more_is_flushed() -> bool:
        sent.append(text(f"message {len(sent)}"))
        sure.publish(sent[-1])
        return path.stat().st_size > 1000

    wait_for(more_is_flushed)
    with pytest.raises(BlockingIOError, match="still being recorded"):
        bag_reader.recover(out)
    recorder.process.kill()
    recorder.process.wait()
    found = recorded(out)["/sure"]
    assert found and found == sent[: len(found)]
    assert bag_reader.cut_short(out) == [path]
    with pytest.raises(Exception, match=r"metadata|[Mm]agic|File"):  # others cannot read it as it is
        witnessed(out)
    (mended,) = bag_reader.recover(out)
    assert mended.messages == len(found) and bag_reader.cut_short(out) == []
    assert recorded(out)["/sure"] == witnessed(out)["/sure"] == found
    assert sorted(file.name for file in out.iterdir()) == ["bag_0.mcap", "metadata.yaml"]
    assert bag_reader.recover(out) == []


def test_a_full_disk_ends_it_in_words_and_leaves_what_was_written(tmp_path, node, start):
    out, sure = tmp_path / "bag", publisher(node, "/sure")
    recorder = start(out, topics=["/sure"])
    recorder.await_words("recording /sure")
    resource.prlimit(recorder.process.pid, resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
    sent: list[bytes] = []
    wait_for(lambda: sure.get_subscription_count() > 0)

    def has_ended() -> bool:
        sent.append(noise(100_000))
        sure.publish(sent[-1])
        time.sleep(0.02)
        return recorder.process.poll() is not None

    wait_for(has_ended, lambda: recorder.said)
    assert recorder.process.returncode == 2
    assert "the disk is full while writing" in recorder.said and "--max-mb" in recorder.said
    found = recorded(out)["/sure"]
    assert found and found == sent[: len(found)]
    bag_reader.recover(out)
    assert witnessed(out)["/sure"] == found


def test_a_type_that_is_not_installed_is_named_once_and_skipped(tmp_path, node, start):
    from geometry_msgs.msg import PoseStamped

    odd, sure = node.create_publisher(PoseStamped, "/odd", 10), publisher(node, "/sure")
    recorder = start(tmp_path / "bag", blocked=["geometry_msgs"])
    publish(sure, [text("a")] * 100, pause_s=0.02)
    recorder.await_words("/odd is not recorded: the message type geometry_msgs/msg/PoseStamped is not installed")
    odd.publish(PoseStamped())
    assert recorder.interrupt() == 0
    assert recorder.said.count("/odd") == 1
    found = recorded(tmp_path / "bag")
    assert found["/sure"] == [text("a")] * 100 and "/odd" not in found


def test_what_the_queue_cannot_hold_is_counted(tmp_path, node, start):
    sure = publisher(node, "/sure")
    recorder = start(tmp_path / "bag", topics=["/sure"], queue_mb=0.02)
    publish(sure, [text("small"), *[noise(30_000)] * 7, text("small")])
    recorder.await_words("7 dropped because the disk was too slow")  # said while it records
    assert recorder.interrupt() == 0
    assert recorded(tmp_path / "bag")["/sure"] == [text("small")] * 2
    assert "2 messages of 1 topics" in recorder.said


def test_a_publisher_that_offers_less_is_heard_too(tmp_path, node, start):
    sure = publisher(node, "/both")
    recorder = start(tmp_path / "bag", topics=["/both"])
    publish(sure, [text("sure")])
    quick = publisher(node, "/both", best_effort=True)
    recorder.await_words("/both: another publisher offers less")
    publish(quick, [text("quick")])
    wait_for(lambda: len(recorded(tmp_path / "bag").get("/both", ())) == 2, lambda: recorder.said)
    assert recorder.interrupt() == 0
    assert recorded(tmp_path / "bag")["/both"] == [text("sure"), text("quick")]


def test_what_never_arrived_is_counted_by_publisher():
    ears = bag.Ears(None, lambda name: True, print)
    heard = bag._Subscribed(topic_of("/a"), None, None, True, False)
    for gid, sequence in ((b"a", 5), (b"b", 1), (b"a", 6), (b"a", 9), (b"b", 2)):
        about = {"implementation_identifier": "x", "data": gid}
        info = {"source_timestamp": 1, "received_timestamp": 2}
        ears._message(heard, b"", info | {"publication_sequence_number": sequence, "publisher_gid": about})
    assert ears.lost == 2 and bag._missed(ears, bag.BoundedQueue(1)).endswith("2 lost on the way")
    silent = bag.Ears(None, lambda name: True, print)
    message = silent._message(heard, b"", {"source_timestamp": 0, "received_timestamp": 0})
    assert message.publish_ns == message.log_ns > 0
    assert "does not tell" in bag._missed(silent, bag.BoundedQueue(1))


def test_bad_sizes_and_used_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--split-mb 0: give a number > 0"):
        bag.record(tmp_path / "bag", split_mb=0.0)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="is not empty: give another folder"):
        bag.record(tmp_path)


@pytest.mark.parametrize(
    ("name", "namespace", "topics", "expected"),
    [
        ("/panda/step", None, (), True),
        ("/panda/_action/status", None, (), False),
        ("/panda/step", "panda", (), True),
        ("/panda/step", "/panda/", (), True),
        ("/panda2/step", "panda", (), False),
        ("/tf", "panda", ("/tf*",), True),
        ("/tf_static", None, ("tf*",), True),
        ("/panda/tf", None, ("tf*",), False),
        ("/panda/camera/image", None, ("*/image",), True),
    ],
)
def test_topics_are_chosen_by_namespace_and_pattern(name, namespace, topics, expected):
    assert bag_types.chosen(name, namespace, topics) is expected


@pytest.mark.parametrize("word", ["sensor_msgs/msg/MultiDOFJointState", "visualization_msgs/msg/MarkerArray"])
def test_definitions_are_whole(word):
    """Another parser finds every type that is needed, and the hash of what it read is ROS's own."""
    definition = bag_types.definition(word)
    types = get_types_from_msg(definition, word)
    store = get_typestore(Stores.EMPTY)
    store.register(types)
    package, _, name = word.split("/")
    (path,) = [folder / f"{name}.json" for folder in bag_types._message_folders(package)][:1]
    assert store.hash_rihs01(word) in path.read_text()
    assert definition.count("=" * 80) == len(types) - 1
