"""A recording on disk as rosbag2 lays it out: MCAP files that follow each other, and a metadata.yaml. Needs no ROS.

    NAME/
      NAME_0.mcap     profile ros2; schemas ros2msg, messages cdr; whole after a second, whatever happens next
      NAME_1.mcap
      metadata.yaml   what `ros2 bag info` shows; lists the files that are finished

A file without its end (a crash, a full disk) is read up to its last flush; ``bag_reader.recover`` gives it an end.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

try:
    import yaml
    from mcap.writer import CompressionType, Writer
except ImportError as _error:
    raise ImportError(f"recordings need a package that is not here ({_error}): pip install 'robot-rl[ros]'") from _error

METADATA = "metadata.yaml"
VERSION = 9  # of metadata.yaml, as Jazzy and Kilted write it
CHUNK_BYTES = 1 << 20
FLUSH_S = 1.0  # what a crash may cost
_ENDED = ", or keep only the newest with --max-mb; recording has ended, and what was written before is readable"


class Topic(NamedTuple):
    """A topic as a file describes it."""

    name: str
    type: str  # such as std_msgs/msg/String
    definition: str  # the .msg texts of the type and all it contains; "" where nobody knows
    offered_qos: str  # YAML list of the publishers' QoS, as rosbag2 writes it
    type_hash: str = ""

    @property
    def latched(self) -> bool:
        """Whether a latecomer gets the newest message: all its publishers are transient local."""
        return bool(profiles := self.profiles) and all(p.get("durability") in ("transient_local", 1) for p in profiles)

    @property
    def reliable(self) -> bool:
        """Whether no publisher is best effort."""
        return all(profile.get("reliability") not in ("best_effort", 2) for profile in self.profiles)

    @property
    def profiles(self) -> list[dict[str, Any]]:
        """The QoS of each publisher; numbers instead of words in files of older ROS versions."""
        return _profiles(self.offered_qos)


@functools.lru_cache(maxsize=1024)
def _profiles(text: str) -> list[dict[str, Any]]:
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError:  # another tool's own words: as if it had said nothing
        return []
    return [profile for profile in loaded if isinstance(profile, dict)] if isinstance(loaded, list) else []


class Message(NamedTuple):
    """One message as it came over the wire."""

    topic: Topic
    data: bytes  # CDR with its encapsulation header
    log_ns: int  # when it arrived, system clock
    publish_ns: int  # when it left
    sequence: int = 0  # its publisher's count; 0 where unknown


@dataclass
class FileSummary:
    """What a file holds."""

    path: Path
    start_ns: int = 0
    end_ns: int = 0
    counts: dict[Topic, int] = field(default_factory=dict)
    complete: bool = False  # it has its end, and every tool can read it

    @property
    def messages(self) -> int:
        return sum(self.counts.values())

    def add(self, message: Message) -> None:
        first = not self.counts
        self.start_ns = message.log_ns if first else min(self.start_ns, message.log_ns)
        self.end_ns = message.log_ns if first else max(self.end_ns, message.log_ns)
        self.counts[message.topic] = self.counts.get(message.topic, 0) + 1


class McapFile:
    """One MCAP file being written. Nobody else may repair it meanwhile: it is locked."""

    def __init__(self, path: Path) -> None:
        self.summary = FileSummary(path)
        self._handle: IO[bytes] = open(path, "xb")  # noqa: SIM115
        fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _sync_folder(path.parent)
        self._writer = Writer(self._handle, chunk_size=CHUNK_BYTES, compression=CompressionType.ZSTD)
        self._writer.start(profile="ros2", library="robot-rl")
        self._schemas: dict[str, int] = {}
        self._channels: dict[Topic, int] = {}
        self._finished_bytes = 0

    @property
    def size_bytes(self) -> int:
        return self._finished_bytes if self._handle.closed else self._handle.tell()

    def write(self, message: Message) -> None:
        channel = self._channels.get(message.topic)
        if channel is None:
            channel = self._channels[message.topic] = self._register(message.topic)
        self._writer.add_message(
            channel, message.log_ns, message.data, message.publish_ns, message.sequence & 0xFFFFFFFF
        )
        self.summary.add(message)

    def _register(self, topic: Topic) -> int:
        if topic.type not in self._schemas:
            encoding = "ros2msg" if topic.definition else ""
            self._schemas[topic.type] = self._writer.register_schema(topic.type, encoding, topic.definition.encode())
        metadata = {"offered_qos_profiles": topic.offered_qos, "topic_type_hash": topic.type_hash}
        return self._writer.register_channel(topic.name, "cdr", self._schemas[topic.type], metadata)

    def flush(self) -> None:
        """What was written before survives a crash of the process, and of the machine."""
        self._writer.flush()
        os.fdatasync(self._handle.fileno())

    def finish(self) -> FileSummary:
        """Write index and end."""
        self.flush()
        self._writer.finish()
        self._handle.flush()
        os.fdatasync(self._handle.fileno())
        self._finished_bytes = self._handle.tell()
        self._handle.close()
        self.summary.complete = True
        return self.summary

    def abandon(self) -> None:
        """Close after an error, without an end; what is on the disk stays readable."""
        with contextlib.suppress(OSError):  # its buffer finds the disk as full as before
            self._handle.close()


def _sync_folder(folder: Path) -> None:
    """Let the names of its files survive a crash of the machine, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class BagWriter:
    """Writes messages into ``folder``, a new file whenever the present one is too long; for one thread.

    Given ``ring_bytes``, the oldest files go when all together are larger; the newest message of a latched topic is
    kept: it moves to the present file.
    """

    def __init__(self, folder: Path, split_bytes: float, split_s: float, ring_bytes: float | None = None) -> None:
        """Raises FileExistsError where the folder holds something already."""
        self.folder = folder
        with disk_words(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise FileExistsError(f"{folder} is not empty: give another folder, or remove it")
        self._split_bytes = split_bytes if ring_bytes is None else min(split_bytes, ring_bytes / 4)
        self._split_ns, self._ring_bytes = split_s * 1e9, ring_bytes
        self._done: list[FileSummary] = []
        self._latched: dict[str, tuple[int, Message]] = {}
        self._index, self._finished_bytes, self._removed = 0, 0, 0
        with disk_words(folder, _ENDED):
            self._file = McapFile(self._path())
        self._flushed_s = time.monotonic()

    @property
    def written_bytes(self) -> int:
        """Everything written, removed files included."""
        return self._finished_bytes + (0 if self._file.summary.complete else self._file.size_bytes)

    @property
    def removed(self) -> int:
        """Files that the ring gave up."""
        return self._removed

    def write(self, message: Message) -> None:
        """Raises OSError in words where the disk does not take it."""
        with disk_words(self.folder, _ENDED):
            summary = self._file.summary
            too_long = bool(summary.counts) and message.log_ns - summary.start_ns >= self._split_ns
            if too_long or self._file.size_bytes >= self._split_bytes:
                self._rotate()
            self._write(message)

    def _write(self, message: Message) -> None:
        self._file.write(message)
        if self._ring_bytes is not None and message.topic.latched:
            self._latched[message.topic.name] = (self._index, message)

    def flush(self) -> None:
        """At most every ``FLUSH_S`` seconds: let a crash not cost more than that."""
        if time.monotonic() - self._flushed_s >= FLUSH_S:
            with disk_words(self.folder, _ENDED):
                self._file.flush()
            self._flushed_s = time.monotonic()

    def close(self) -> None:
        """Finish the last file and metadata.yaml."""
        with disk_words(self.folder, _ENDED):
            self._finish()

    def abandon(self) -> None:
        """After an error of ``write`` or ``flush``: let go of the file; what is on the disk stays readable."""
        self._file.abandon()

    def _finish(self) -> None:
        self._done.append(self._file.finish())
        self._finished_bytes += self._file.size_bytes
        write_metadata(self.folder, self._done)

    def _path(self) -> Path:
        return self.folder / f"{self.folder.resolve().name}_{self._index}.mcap"

    def _rotate(self) -> None:
        self._finish()
        self._index += 1
        self._file = McapFile(self._path())
        if self._ring_bytes is None:
            return
        sizes = [done.path.stat().st_size for done in self._done]
        while len(sizes) > 1 and sum(sizes) > self._ring_bytes - self._split_bytes:
            oldest = self._done.pop(0)
            sizes.pop(0)
            self._removed += 1
            oldest.path.unlink()
            write_metadata(self.folder, self._done)
            number, now_ns = self._index - len(self._done) - 1, self._done[-1].end_ns
            for index, message in list(self._latched.values()):
                if index == number:
                    self._write(message._replace(log_ns=now_ns))


@contextlib.contextmanager
def disk_words(path: Path, advice: str = "") -> Iterator[None]:
    """Say what to do where the disk takes no more."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(
                error.errno,
                f"the disk is full while writing {path}: free some space{advice}",
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise OSError(
                error.errno, f"no permission to write {path}: choose another folder or change its rights"
            ) from error
        raise


class _Dumper(yaml.SafeDumper):
    """Writes out what is there twice, instead of pointing at it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def write_metadata(folder: Path, files: Sequence[FileSummary]) -> None:
    """metadata.yaml for ``files`` of ``folder``; replaces the old one at once or not at all."""
    held = [file for file in files if file.counts]
    start_ns = min((file.start_ns for file in held), default=0)
    end_ns = max((file.end_ns for file in held), default=0)
    counts: dict[str, tuple[Topic, int]] = {}
    for file in held:
        for topic, count in file.counts.items():
            counts[topic.name] = (topic, counts.get(topic.name, (topic, 0))[1] + count)
    about = {
        "version": VERSION,
        "storage_identifier": "mcap",
        "duration": {"nanoseconds": end_ns - start_ns},
        "starting_time": {"nanoseconds_since_epoch": start_ns},
        "message_count": sum(file.messages for file in files),
        "topics_with_message_count": [
            {
                "topic_metadata": {
                    "name": topic.name,
                    "type": topic.type,
                    "serialization_format": "cdr",
                    "offered_qos_profiles": topic.profiles,
                    "type_description_hash": topic.type_hash,
                },
                "message_count": count,
            }
            for topic, count in counts.values()
        ],
        "compression_format": "",
        "compression_mode": "",
        "relative_file_paths": [file.path.name for file in files],
        "files": [
            {
                "path": file.path.name,
                "starting_time": {"nanoseconds_since_epoch": file.start_ns},
                "duration": {"nanoseconds": file.end_ns - file.start_ns},
                "message_count": file.messages,
            }
            for file in files
        ],
        "custom_data": {},
        "ros_distro": os.environ.get("ROS_DISTRO", ""),
    }
    temporary = folder / f".{METADATA}.tmp"
    with open(temporary, "w") as text:
        yaml.dump({"rosbag2_bagfile_information": about}, text, _Dumper, sort_keys=False)
        text.flush()
        os.fsync(text.fileno())
    os.replace(temporary, folder / METADATA)
    _sync_folder(folder)
