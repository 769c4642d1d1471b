"""An append-only log of steps on disk, whole up to its last step whatever kills the process that writes it.

One zarr array of bytes, one row a step, uncompressed, so that rows lie where their number says, in plain files:

    steps.zarr/
      zarr.json   attributes: format, layout (the fields of a row), about (whose log it is)
      c/<n>/0     rows n * chunk to (n + 1) * chunk; allocated whole when it is begun, so that a disk that is full says
                  so there, and never in the middle of a row

The shape of the array follows the files only once all before its last two chunks is on the disk: what a machine that
lost its power has not kept is looked for behind there.

A row is an observation and the step that led to it: the first row of an episode has an observation only, each row
after it completes a transition. So every row that is there is of use, also the last before a crash, and every image is
stored once. A row begins with a checksum; rows end where the checksums end, and nothing else has to be kept in step.
The actor writes such a log beside the robot, the learner one of all rows that reached it, byte for byte the same rows.
"""

from __future__ import annotations

import contextlib
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from robot_rl.files import FolderLock, disk_errors, read_json, sync_folder, write_json

FORMAT = 2
CHUNK_BYTES = 16 << 20
CHUNK_ROWS = 8192  # at most: the last chunk is read whole when a log is opened
FIRST, STEP = 1, 2  # kinds of rows; 0 is a row that was never written
UNKNOWN = -1  # success, where the environment does not tell
HEADER: list[tuple[str, str]] = [
    ("checksum", "<u4"),  # CRC-32 of the rest of the row
    ("kind", "<u4"),  # FIRST or STEP
    ("log", "<u8"),  # random, of the actor's log that the row was first written to
    ("sequence", "<u8"),  # which row of that log
    ("episode", "<i8"),  # of that actor
    ("step", "<i8"),  # of the episode; 0 is its first row
    ("policy", "<u8"),  # version of the policy that acted; 0: none did
]
DTYPES = frozenset({"bool", "float16", "float32", "float64"}) | {
    f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)
}  # of arrays, in rows and over the link
ROW_VALUES = 1 << 26  # at most in a row: far more than any set of cameras gives
_RESTORE = "restore it from a copy, or begin another run"


@dataclass(frozen=True)
class Layout:
    """The fields of a row, beside its header: what two ends have to agree on."""

    observation: Mapping[str, tuple[tuple[int, ...], str]]  # flat name -> shape, dtype
    action_dim: int
    extra: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # what ``act`` returned, float32 by shape

    @cached_property
    def dtype(self) -> np.dtype:
        """Of a row; packed, little-endian."""
        fields: list[Any] = list(HEADER)
        for name, (shape, dtype) in sorted(self.observation.items()):
            fields.append((f"obs/{name}", np.dtype(dtype).newbyteorder("<"), tuple(shape)))
        fields += [("action", "<f4", (self.action_dim,)), ("reward", "<f4"), ("cost", "<f4")]  # cost NaN: not told
        fields += [("terminated", "?"), ("truncated", "?"), ("success", "<i1"), ("fault", "?")]
        fields += [("source", "u1"), ("segment", "<u4")]  # who acted (robot_rl.types), in which stretch
        fields += [("discarded", "?")]  # with the last step: the episode is not to be learned from
        fields += [("called", "?")]  # how it ended is a person's word
        fields += [("true_success", "<i1"), ("classifier", "<u4")]  # where a classifier says success; 0: none does
        fields += [("energy", "<f4", (4,))]  # of the step, as ``energy.OF_STEP`` names them; NaN: not told
        fields += [(f"extra/{name}", "<f4", tuple(shape)) for name, shape in sorted(self.extra.items())]
        return np.dtype(fields)

    def as_json(self) -> dict[str, Any]:
        """For ``from_json``; equal layouts give equal values."""
        return {
            "observation": {
                name: [list(shape), np.dtype(dtype).name] for name, (shape, dtype) in sorted(self.observation.items())
            },
            "action_dim": self.action_dim,
            "extra": {name: list(shape) for name, shape in sorted(self.extra.items())},
        }

    @classmethod
    def from_json(cls, value: Any) -> Layout:
        """Raises ValueError, naming the field, where ``value`` is none: another machine may have sent it."""
        try:
            observation = {name: (tuple(shape), dtype) for name, (shape, dtype) in value["observation"].items()}
            extra = {name: tuple(shape) for name, shape in value["extra"].items()}
            action_dim = value["action_dim"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"not a layout of steps ({error!r})"[:200]) from error
        if bad := [
            name for name, (_, dtype) in observation.items() if not (isinstance(dtype, str) and dtype in DTYPES)
        ]:
            raise ValueError(f"not a layout of steps (observation '{bad[0]}' does not hold numbers)")
        shapes = {f"observation '{name}'": shape for name, (shape, _) in observation.items()}
        shapes |= {f"extra '{name}'": shape for name, shape in extra.items()} | {"action_dim": (action_dim,)}
        values = 0
        for name, shape in shapes.items():
            if len(shape) > 32 or not all(type(length) is int and 0 <= length <= ROW_VALUES for length in shape):
                raise ValueError(f"not a layout of steps ({name} has shape {shape})"[:200])
            values += math.prod(shape)
        if values > ROW_VALUES:
            raise ValueError(f"not a layout of steps (a row has {values} numbers, more than {ROW_VALUES})")
        return cls(observation, action_dim, extra)

    def difference(self, here: Layout) -> str:
        """The first field in which this layout differs from ``here``, in words; empty where it does not."""
        mine, other = self._fields(), here._fields()
        for name in sorted(mine.keys() | other.keys()):
            if mine.get(name) != other.get(name):
                return f"{name} is {mine.get(name, 'missing')} there, {other.get(name, 'missing')} here"
        return ""

    def _fields(self) -> dict[str, Any]:
        value = self.as_json()
        fields = {f"{kind} '{name}'": one for kind in ("observation", "extra") for name, one in value[kind].items()}
        return fields | {"action_dim": value["action_dim"]}


def seal(rows: np.ndarray) -> None:
    """Write the checksum of each of ``rows`` (k,), in place."""
    rows["checksum"] = _checksums(rows)


def intact(rows: np.ndarray) -> np.ndarray:
    """Which of ``rows`` (k,) are as they were sealed: (k,) bool. A row that was never written is not."""
    return (rows["kind"] != 0) & (_checksums(rows) == rows["checksum"])


def _checksums(rows: np.ndarray) -> np.ndarray:
    """(k,) uint32, each of all of a row but its own place."""
    raw, size = _bytes_of(rows), rows.dtype.itemsize
    return np.array([zlib.crc32(raw[at + 4 : at + size]) for at in range(0, len(raw), size)], np.uint32)


def _bytes_of(rows: np.ndarray) -> memoryview:
    """The memory of ``rows`` (k,), which lie one behind the other."""
    return memoryview(rows.view(np.uint8).reshape(-1)) if len(rows) else memoryview(b"")  # type: ignore[arg-type]


class StepLog:
    """The rows of one log. One process may open it to write, any number to read what is there at that moment.

    ``append`` hands rows to the operating system, which keeps them through the death of this process; after ``sync``
    they survive that of the machine, too. One thread may append while another calls ``sync`` and ``read``: all waiting
    for the disk is in ``sync``, so that a control loop can append.
    """

    def __init__(self, path: Path | str, layout: Layout | None = None, about: Mapping[str, Any] | None = None) -> None:
        """With a ``layout``: open to write, made where there is none, with ``about`` as whose log it is. Without: to
        read.

        Raises FileNotFoundError, ValueError that names what is damaged or different, and BlockingIOError while another
        process writes.
        """
        self.path = Path(path)
        self._lock: FolderLock | None = None
        self._chunk, self._handle = -1, -1  # open for writing
        self._synced = 0  # rows that are known to be on the disk
        self._rooms = 0  # chunks that have their room
        if layout is not None:
            with disk_errors(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.path)  # first: of two that make a log at once one must lose
        try:
            if layout is not None:
                for leftover in self.path.glob(".zarr.json.*.tmp"):  # of a writer that was killed
                    leftover.unlink()
                if not (self.path / "zarr.json").exists():
                    _create(self.path, layout, about or {})
            if not (self.path / "zarr.json").is_file():
                raise FileNotFoundError(
                    f"no log of steps at {self.path}: give the folder that an actor or a learner made"
                )
            self.layout, self.about, self._chunk_rows, self._shaped = _describe(self.path)
            if layout is not None and (different := self.layout.difference(layout)):
                raise ValueError(f"{self.path} holds other steps ({different}): give another folder")
            self._dtype = self.layout.dtype
            self._count = self._recover(writable=layout is not None)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """Let others write. May be called twice."""
        if self._handle >= 0:
            os.close(self._handle)
        self._handle, self._chunk = -1, -1
        if self._lock is not None:
            self._lock.release()

    def append(self, rows: np.ndarray) -> None:
        """Add sealed ``rows`` (k,) of ``layout.dtype``. Raises OSError where the disk is full; what was there stays."""
        if self._lock is None:
            raise ValueError(f"{self.path} was opened to read: give its layout to write")
        if rows.dtype != self._dtype:
            raise ValueError(f"rows of {rows.dtype}: {self.path} holds rows of its layout only")
        size = self._dtype.itemsize
        with disk_errors(self.path):
            # Room for all first: rows of an append that fails must not be found again behind those of the next one.
            self._make_room(-(-(self._count + len(rows)) // self._chunk_rows))
            done = 0
            while done < len(rows):
                chunk, row = divmod(self._count + done, self._chunk_rows)
                if chunk != self._chunk:
                    self._begin(chunk)
                part = rows[done : done + self._chunk_rows - row]
                _write_all(self._handle, _bytes_of(np.ascontiguousarray(part)), row * size)
                done += len(part)
            self._count += len(rows)

    def sync(self) -> int:
        """Force everything appended to the disk, and make room for what comes next; returns how many rows are safe.

        Raises OSError where that fails, with all rows still there for another try.
        """
        with disk_errors(self.path):
            count = self._count
            begun = -(-count // self._chunk_rows)
            rooms = max(begun, self._rooms)
            for chunk in range(self._synced // self._chunk_rows, begun):
                _sync_data(self._file(chunk))
            if rooms > self._shaped:
                for room in range(self._shaped, rooms):
                    sync_folder(self._file(room).parent)
                sync_folder(self.path / "c")
                sync_folder(self.path)
                # The next chunk may have its room already, but a row in the one after it none that is safe.
                self._reshape(min(rooms, count // self._chunk_rows + 2))
            self._synced = count
        self._make_next_room(count)
        return count

    def _reshape(self, chunks: int) -> None:
        metadata = read_json(self.path / "zarr.json", _RESTORE)
        metadata["shape"][0] = chunks * self._chunk_rows
        write_json(self.path / "zarr.json", metadata)
        self._shaped = chunks

    def _make_next_room(self, count: int) -> None:
        """Half a chunk ahead, so that ``append`` need not. Where the disk is full ``append`` says so, when it comes."""
        with contextlib.suppress(OSError):
            self._make_room((count + (self._chunk_rows + 1) // 2) // self._chunk_rows + 1)

    def read(self, start: int, stop: int, verify: bool = False) -> np.ndarray:
        """Rows ``start`` to ``stop`` (or to the last) as a fresh array (k,).

        Raises ValueError that names the row where ``verify`` finds it damaged, or a file is gone.
        """
        stop = min(stop, self._count)
        rows = np.empty(max(0, stop - start), self._dtype)
        raw, size, done = _bytes_of(rows), self._dtype.itemsize, 0
        while done < len(rows):
            chunk, row = divmod(start + done, self._chunk_rows)
            count = min(self._chunk_rows - row, len(rows) - done)
            self._read_chunk(chunk, row, raw[done * size : (done + count) * size])
            done += count
        if verify and not (good := intact(rows)).all():
            raise ValueError(f"{self.path}: row {start + int(np.argmin(good))} is damaged; {_RESTORE}")
        return rows

    def blocks(self, start: int, stop: int, verify: bool = False) -> Iterator[np.ndarray]:
        """The same rows in pieces of about a chunk, so that memory stays small."""
        step = max(1, self._chunk_rows)
        for at in range(start, min(stop, self._count), step):
            yield self.read(at, min(at + step, stop), verify)

    def _read_chunk(self, chunk: int, row: int, into: memoryview) -> None:
        path = self._file(chunk)
        try:
            with open(path, "rb", buffering=0) as file:
                file.seek(row * self._dtype.itemsize)
                got = 0
                while got < len(into):
                    read = file.readinto(into[got:])
                    if not read:
                        raise ValueError(f"{path} is cut short: {_RESTORE}")
                    got += read
        except FileNotFoundError:
            raise ValueError(f"{path} is missing: {_RESTORE}") from None

    def _file(self, chunk: int) -> Path:
        return self.path / "c" / str(chunk) / "0"

    def _begin(self, chunk: int) -> None:
        """Open ``chunk`` to write."""
        handle = os.open(self._file(chunk), os.O_RDWR)
        if self._handle >= 0:
            os.close(self._handle)
        self._handle, self._chunk = handle, chunk

    def _make_room(self, chunks: int) -> None:
        """Let the first ``chunks`` be there with room for all their rows. Two threads may: the second finds it done."""
        size = self._chunk_rows * self._dtype.itemsize
        for chunk in range(self._rooms, chunks):
            path = self._file(chunk)
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if os.fstat(handle).st_size < size:
                    os.posix_fallocate(handle, 0, size)
            finally:
                os.close(handle)
            self._rooms = chunk + 1

    def _recover(self, writable: bool) -> int:
        """How many rows there are: up to the first that is not whole. What lies behind it is wiped, if ``writable``."""
        names = [path.parent.name for path in (self.path / "c").glob("*/0")]
        chunks = sorted(int(name) for name in names if name.isascii() and name.isdecimal())
        if missing := sorted(set(range(self._shaped)) - set(chunks)):
            raise ValueError(f"{self._file(missing[0])} is missing: {_RESTORE}")
        filled = next((chunk for chunk in reversed(chunks) if self._whole_rows(chunk)), 0)
        first = max(0, min(filled - 1, self._shaped - 2))  # see above; with a damaged tail, one more
        count = first * self._chunk_rows
        for chunk in range(first, filled + 1):
            whole = self._whole_rows(chunk) if chunk in chunks else 0
            count += whole
            if whole < self._chunk_rows:
                break
        if writable:
            for chunk in chunks:
                if (chunk + 1) * self._chunk_rows > count:
                    self._wipe(chunk, max(0, count - chunk * self._chunk_rows))
        self._synced, self._rooms = first * self._chunk_rows, count // self._chunk_rows
        return count

    def _whole_rows(self, chunk: int) -> int:
        """How many rows of ``chunk`` are whole, from its first on."""
        have = min(self._file(chunk).stat().st_size // self._dtype.itemsize, self._chunk_rows)
        rows = np.empty(have, self._dtype)
        self._read_chunk(chunk, 0, _bytes_of(rows))
        good = intact(rows)
        return have if good.all() else int(np.argmin(good))

    def _wipe(self, chunk: int, row: int) -> None:
        """Zeros in ``chunk`` from ``row`` on, where there is anything else."""
        start = row * self._dtype.itemsize
        end = self._chunk_rows * self._dtype.itemsize
        with disk_errors(self.path), open(self._file(chunk), "r+b") as file:
            file.seek(start)
            if any(file.read(end - start)):
                file.seek(start)
                file.write(bytes(end - start))
            if file.seek(0, os.SEEK_END) > end:
                file.truncate(end)
            file.flush()
            os.fsync(file.fileno())


def _write_all(handle: int, view: memoryview, offset: int) -> None:
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


def _create(path: Path, layout: Layout, about: Mapping[str, Any]) -> None:
    size = layout.dtype.itemsize
    chunk_rows = max(1, min(CHUNK_ROWS, CHUNK_BYTES // size))
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [0, size],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk_rows, size]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes"}],
        "attributes": {"format": FORMAT, "layout": layout.as_json(), "about": dict(about)},
    }
    with disk_errors(path):
        sync_folder(path.parent)
        write_json(path / "zarr.json", metadata)


def _sync_data(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fdatasync(handle)
    finally:
        os.close(handle)


def _describe(path: Path) -> tuple[Layout, dict[str, Any], int, int]:
    """Layout, whose log it is, the rows of a chunk, and how many chunks its shape has."""
    metadata = read_json(path / "zarr.json", _RESTORE)
    attributes = metadata.get("attributes")
    if not isinstance(attributes, dict) or "format" not in attributes:
        raise ValueError(f"{path} is not a log of steps: give the folder that an actor or a learner made")
    if attributes["format"] != FORMAT:
        raise ValueError(
            f"{path} has log format {attributes['format']}, this version reads {FORMAT}: "
            "use the version of robot-rl that wrote it"
        )
    try:
        layout = Layout.from_json(attributes["layout"])
        chunk_rows, size = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        about, shaped = dict(attributes["about"]), int(metadata["shape"][0])
        fits = size == layout.dtype.itemsize and 1 <= chunk_rows <= CHUNK_ROWS and shaped >= 0
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path / 'zarr.json'} is damaged ({error!r}): {_RESTORE}") from error
    if not fits:
        raise ValueError(f"{path / 'zarr.json'} is damaged (a row has {size} bytes): {_RESTORE}")
    return layout, about, int(chunk_rows), -(-shaped // int(chunk_rows))
