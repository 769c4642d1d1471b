"""Reading recordings, also those that a crash left without an end, and giving them one. Needs no ROS.

Messages stay the bytes they were on the wire. What decodes them is rclpy, where they are needed as messages: it has the
very types that ``controllers/messages.py`` is written for.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from controllers.bag_writer import FileSummary, McapFile, Message, Topic, disk_words, write_metadata

try:
    from mcap.exceptions import McapError
    from mcap.reader import SeekingReader
    from mcap.records import Channel, Chunk, Footer, McapRecord, Schema
    from mcap.records import Message as Record
    from mcap.stream_reader import StreamReader, breakup_chunk
    from zstandard import ZstdError
except ImportError as _error:
    raise ImportError(f"recordings need a package that is not here ({_error}): pip install 'robot-rl[ros]'") from _error

RECORD_LIMIT_BYTES = 1 << 30
# A short file, a bad checksum, a number cut in two, a chunk that does not decompress (zstd; lz4), a foreign channel.
_DAMAGE = (McapError, ValueError, struct.error, ZstdError, RuntimeError, LookupError)


def files_of(bag: Path) -> list[Path]:
    """The files of a recording in their order: a folder's, or one file alone.

    Raises FileNotFoundError where there are none.
    """
    if bag.is_file():
        return [bag]
    found = [path for path in bag.glob("*.mcap") if not path.name.startswith(".")] if bag.is_dir() else []
    if not found:
        raise FileNotFoundError(f"no recording at {bag}: give the folder that `robot-rl record-bag --out {bag}` makes")
    return sorted(found, key=_number)


def _number(path: Path) -> tuple[int, str]:
    number = re.search(r"_(\d+)$", path.stem)
    return int(number[1]) if number else -1, path.name


def read_file(path: Path, summary: FileSummary | None = None) -> Iterator[Message]:
    """The messages of one file, in the order they were written, as far as they are whole.

    A damaged chunk is left out. ``summary`` counts them, and says at the end whether the file was complete.
    """
    summary = summary if summary is not None else FileSummary(path)
    schemas: dict[int, Schema] = {}
    topics: dict[int, Topic] = {}
    damaged = ended = False
    with path.open("rb") as file:
        records = StreamReader(file, emit_chunks=True, record_size_limit=RECORD_LIMIT_BYTES).records
        while True:
            try:
                record = next(records)
                inner = breakup_chunk(record, validate_crc=True) if isinstance(record, Chunk) else [record]
                found = list(_messages(inner, schemas, topics))
            except StopIteration:
                break
            except _DAMAGE:
                damaged = True  # one chunk; or the stream itself, which then says StopIteration
                continue
            for message in found:
                summary.add(message)
                yield message
            ended = isinstance(record, Footer)
    summary.complete = ended and not damaged


def _messages(records: list[McapRecord], schemas: dict[int, Schema], topics: dict[int, Topic]) -> Iterator[Message]:
    """What ``records`` say; fills ``schemas`` and ``topics`` by their numbers."""
    for record in records:
        if isinstance(record, Schema):
            schemas[record.id] = record
        elif isinstance(record, Channel):
            topics[record.id] = _topic(record, schemas)
        elif isinstance(record, Record):
            yield Message(topics[record.channel_id], record.data, record.log_time, record.publish_time, record.sequence)


def _topic(channel: Channel, schemas: Mapping[int, Schema]) -> Topic:
    schema = schemas[channel.schema_id]
    definition = schema.data.decode() if schema.encoding == "ros2msg" else ""
    about = channel.metadata
    return Topic(
        channel.topic, schema.name, definition, about.get("offered_qos_profiles", ""), about.get("topic_type_hash", "")
    )


def messages(bag: Path, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[Message]:
    """The messages of a recording whose topic is ``wanted``, file by file; raises FileNotFoundError."""
    for path in files_of(bag):
        for message in read_file(path):
            if wanted(message.topic.name):
                yield message


def summarize(path: Path) -> FileSummary:
    """What a file holds: from its index, or where there is none by reading it."""
    try:
        with path.open("rb") as file:
            index = SeekingReader(file).get_summary()
    except (*_DAMAGE, OSError):  # OSError: too short for an index
        index = None
    if index is not None and index.statistics is not None:
        told = index.statistics
        counts = {
            _topic(index.channels[number], index.schemas): count
            for number, count in told.channel_message_counts.items()
        }
        return FileSummary(path, told.message_start_time, told.message_end_time, counts, complete=True)
    summary = FileSummary(path)
    for _ in read_file(path, summary):
        pass
    return summary


def cut_short(bag: Path) -> list[Path]:
    """Files without an end: a crash, a full disk, or a recorder that is still at it."""
    return [path for path in files_of(bag) if not summarize(path).complete]


def recover(bag: Path) -> list[FileSummary]:
    """Give every file of ``bag`` its end and index, and the folder its metadata.yaml: other tools need them.

    Whatever is whole is kept; each file is replaced at once or not at all. Returns the files that were mended. Raises
    BlockingIOError while the recorder is still writing.
    """
    mended, summaries = [], []
    for path in files_of(bag):
        summary = summarize(path)
        if not summary.complete:
            summary = _rewrite(path)
            mended.append(summary)
        summaries.append(summary)
    folder = bag if bag.is_dir() else bag.parent
    if bag.is_dir():
        with disk_words(folder):
            write_metadata(folder, summaries)
    return mended


def _rewrite(path: Path) -> FileSummary:
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_words(path), path.open("r+b") as damaged:
        try:
            fcntl.flock(damaged, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, f"{path} is still being recorded: end the recorder first") from error
        temporary.unlink(missing_ok=True)  # of a recovery that was itself cut short
        file = McapFile(temporary)
        try:
            for message in read_file(path):
                file.write(message)
            summary = file.finish()
        except BaseException:
            file.abandon()
            temporary.unlink()
            raise
        os.replace(temporary, path)
    summary.path = path
    return summary
