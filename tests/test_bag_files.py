"""Recordings on disk: split, in a ring, cut short anywhere, damaged, mended."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("mcap")
from controllers import bag_reader, bag_writer
from controllers.bag_writer import BagWriter, Message
from tests.bags import recorded, stream, text, topic_of, witnessed, write


def test_a_recording_is_read_back_as_it_was_written(tmp_path):
    sent = stream(500, topic=topic_of("/a", "best_effort")) + stream(20, topic=topic_of("/b", durability="volatile"))
    write(tmp_path / "bag", sent)
    assert list(bag_reader.messages(tmp_path / "bag")) == sent


def test_files_follow_each_other_by_size_and_by_time(tmp_path):
    sent = stream(200, size=100_000)
    write(tmp_path / "size", sent, split_bytes=2e6)
    files = bag_reader.files_of(tmp_path / "size")
    assert [path.name for path in files] == [f"size_{i}.mcap" for i in range(len(files))] and len(files) > 2
    assert all(path.stat().st_size < 4e6 for path in files)
    assert [message.data for message in bag_reader.messages(tmp_path / "size")] == [message.data for message in sent]
    assert witnessed(tmp_path / "size")["/a"] == [message.data for message in sent]
    write(tmp_path / "time", stream(200), split_s=0.5)
    assert [bag_reader.summarize(path).messages for path in bag_reader.files_of(tmp_path / "time")] == [50] * 4


def test_more_than_ten_files_keep_their_order(tmp_path):
    sent = stream(120)
    write(tmp_path / "bag", sent, split_s=0.1)
    assert list(bag_reader.messages(tmp_path / "bag")) == sent


def test_a_ring_keeps_the_newest_and_what_is_latched(tmp_path):
    latched = Message(topic_of("/state", durability="transient_local"), text("holding"), 1, 1, 1)
    sent = stream(400, size=100_000)
    writer = write(tmp_path / "bag", [latched, *sent], ring_bytes=8e6)
    out = tmp_path / "bag"
    assert writer.removed > 2 and writer.written_bytes > 15e6
    assert sum(path.stat().st_size for path in out.iterdir()) < 8e6
    found = recorded(out)
    assert found["/a"] == [message.data for message in sent][-len(found["/a"]) :] and len(found["/a"]) > 80
    assert found["/state"] == [latched.data]
    assert witnessed(out) == found


def cut_points(size: int) -> list[int]:
    return [0, 3, 8, 30, *range(100, size, size // 23), size - 1]


def test_a_file_that_ends_anywhere_is_read_up_to_there_and_mended(tmp_path):
    sent = stream(300, size=50_000)
    write(tmp_path / "bag", sent)
    (whole,) = bag_reader.files_of(tmp_path / "bag")
    counts = []
    for size in cut_points(whole.stat().st_size):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "cut_0.mcap").write_bytes(whole.read_bytes()[:size])
        found = list(bag_reader.messages(folder))
        assert found == sent[: len(found)]
        bag_reader.recover(folder)
        assert bag_reader.cut_short(folder) == [] and list(bag_reader.messages(folder)) == found
        if found:
            assert witnessed(folder)["/a"] == [message.data for message in found]
        counts.append(len(found))
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == 300 and len(set(counts)) > 5


def test_a_damaged_chunk_is_left_out_and_the_others_stay(tmp_path):
    sent = stream(300, size=50_000)
    write(tmp_path / "bag", sent)
    (path,) = bag_reader.files_of(tmp_path / "bag")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    summary = bag_writer.FileSummary(path)
    found = list(bag_reader.read_file(path, summary))
    assert 250 < len(found) < 300 and not summary.complete
    assert set(found) < set(sent) and found[-1] == sent[-1]


def test_a_disk_that_fills_at_the_end_says_so_and_loses_nothing_written(tmp_path, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    writer = BagWriter(tmp_path / "bag", 1e9, 1e9)
    writer.write(stream(1)[0])
    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(OSError, match="the disk is full while writing"):
        writer.close()
    writer.abandon()
    assert len(list(bag_reader.messages(tmp_path / "bag"))) == 1


def test_no_recording_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="robot-rl record-bag --out"):
        list(bag_reader.messages(tmp_path / "nothing"))
