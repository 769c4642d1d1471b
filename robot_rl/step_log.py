"""An append-only log of steps on disk, whole up to its last step whatever kills the process that writes it.

One zarr array of bytes, one row a step, uncompressed, so that rows lie where their number says, in plain files:

    steps.zarr/
      zarr.json   attributes: format, layout (the fields of a row), about (whose log it is)
      c/<n>/0     rows n * chunk to (n + 1) * chunk; allocated whole when it is begun, so that a disk that is full says
                  so there, and never in the middle of a row

A row is an observation and the step that led to it: the first row of an episode has an observation only, each row
after it completes a transition. So every row that is there is of use, also the last before a crash, and every image is
stored once. A row begins with a checksum; rows end where the checksums end, and nothing else has to be kept in step.
The actor writes such a log beside the robot, the learner one of all rows that reached it, byte for byte the same rows.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from robot_rl.files import FolderLock, disk_errors, read_json, sync_folder, write_json

FORMAT = 1
CHUNK_BYTES = 4 << 20
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
        fields += [("energy", "<f4", (4,))]  # of the step, as ``energy.OF_STEP`` names them; NaN: not told
        fields += [(f"extra/{name}", "<f4", tuple(shape)) for name, shape in sorted(self.extra.items())]
        return np.dtype(fields)

    def as_json(self) -> dict[str, Any]:
        """For ``from_json``; equal layouts give equal values."""
        return {
            "observation": {name: [list(shape), dtype] for name, (shape, dtype) in sorted(self.observation.items())},
            "action_dim": self.action_dim,
            "extra": {name: list(shape) for name, shape in sorted(self.extra.items())},
        }

    @classmethod
    def from_json(cls, value: Any) -> Layout:
        """Raises ValueError where ``value`` is none, and for dtypes that hold anything but numbers."""
        try:
            observation = {
                str(name): (tuple(int(n) for n in shape), np.dtype(str(dtype)).name)
                for name, (shape, dtype) in value["observation"].items()
            }
            extra = {str(name): tuple(int(n) for n in shape) for name, shape in value["extra"].items()}
            layout = cls(observation, int(value["action_dim"]), extra)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"not a layout of steps ({error!r})") from error
        if bad := [name for name, (_, dtype) in observation.items() if np.dtype(dtype).kind not in "fiub"]:
            raise ValueError(f"not a layout of steps (observation '{bad[0]}' does not hold numbers)")
        return layout

    def difference(self, here: Layout) -> str:
        """The first field in which this layout differs from ``here``, in words; empty where it does not."""
        mine, other = self.as_json(), here.as_json()
        for name in mine:
            if mine[name] != other[name]:
                return f"{name} is {mine[name]} there, {other[name]} here"
        return ""


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
        self._full: list[int] = []  # handles of full chunks that are not known to be on the disk
        self._prepared = -1  # the last chunk that has its room on the disk
        if layout is not None and not (self.path / "zarr.json").exists():
            _create(self.path, layout, about or {})
        if not (self.path / "zarr.json").is_file():
            raise FileNotFoundError(f"no log of steps at {self.path}: give the folder that an actor or a learner made")
        if layout is not None:
            self._lock = FolderLock(self.path)
        try:
            self.layout, self.about, self._chunk_rows = _describe(self.path)
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
        for handle in (*self._full, *([self._handle] if self._handle >= 0 else ())):
            os.close(handle)
        self._full, self._handle, self._chunk = [], -1, -1
        if self._lock is not None:
            self._lock.release()

    def append(self, rows: np.ndarray) -> None:
        """Add sealed ``rows`` (k,) of ``layout.dtype``. Raises OSError where the disk is full; what was there stays."""
        if self._lock is None:
            raise ValueError(f"{self.path} was opened to read: give its layout to write")
        size = self._dtype.itemsize
        with disk_errors(self.path):
            done = 0
            while done < len(rows):
                chunk, row = divmod(self._count + done, self._chunk_rows)
                if chunk != self._chunk:
                    self._begin(chunk)
                part = rows[done : done + self._chunk_rows - row]
                _write_all(self._handle, np.ascontiguousarray(part).tobytes(), row * size)
                done += len(part)
            self._count += len(rows)

    def sync(self) -> int:
        """Force everything appended to the disk, and make room for what comes next; returns how many rows are safe.

        Raises OSError where that fails, with all rows still there for another try.
        """
        count, current, full = self._count, self._handle, list(self._full)
        with disk_errors(self.path):
            for handle in full:
                os.fdatasync(handle)
                self._full.remove(handle)
                os.close(handle)
            if current >= 0 and current not in full:
                os.fdatasync(current)
            if 2 * (count % self._chunk_rows) >= self._chunk_rows:
                self._make_room(count // self._chunk_rows + 1)
        return count

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
        if chunk > self._prepared:
            self._make_room(chunk)
        handle = os.open(self._file(chunk), os.O_RDWR)
        if self._handle >= 0:
            self._full.append(self._handle)
        self._handle, self._chunk = handle, chunk

    def _make_room(self, chunk: int) -> None:
        """Let ``chunk`` be there with room for all its rows."""
        if chunk <= self._prepared:
            return
        path, size = self._file(chunk), self._chunk_rows * self._dtype.itemsize
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if os.fstat(handle).st_size < size:
                os.posix_fallocate(handle, 0, size)
                os.fsync(handle)
        finally:
            os.close(handle)
        sync_folder(path.parent)
        sync_folder(path.parent.parent)
        _resize(self.path, (chunk + 1) * self._chunk_rows)
        self._prepared = chunk

    def _recover(self, writable: bool) -> int:
        """How many rows there are: up to the first that is not whole. What lies behind it is wiped, if ``writable``."""
        chunks = sorted(int(path.name) for path in (self.path / "c").glob("*") if path.name.isdigit())
        if missing := [chunk for chunk in range(max(chunks, default=-1) + 1) if not self._file(chunk).is_file()]:
            raise ValueError(f"{self._file(missing[0])} is missing: {_RESTORE}")
        filled = next((chunk for chunk in reversed(chunks) if self._whole_rows(chunk)), 0)
        first = max(0, filled - 1)  # a machine that lost its power may have kept a chunk, and not the end of the last
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
        with open(self._file(chunk), "r+b") as file:
            file.seek(start)
            if any(file.read()):
                file.seek(start)
                file.write(bytes(self._chunk_rows * self._dtype.itemsize - start))
                file.flush()
                os.fsync(file.fileno())


def _write_all(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
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
        path.mkdir(parents=True, exist_ok=True)
        sync_folder(path.parent)
        write_json(path / "zarr.json", metadata)


def _resize(path: Path, rows: int) -> None:
    metadata = read_json(path / "zarr.json", _RESTORE)
    if metadata["shape"][0] < rows:
        metadata["shape"][0] = rows
        write_json(path / "zarr.json", metadata)


def _describe(path: Path) -> tuple[Layout, dict[str, Any], int]:
    """Layout, whose log it is, and the rows of a chunk."""
    metadata = read_json(path / "zarr.json", _RESTORE)
    attributes = metadata.get("attributes", {})
    if attributes.get("format") != FORMAT:
        raise ValueError(
            f"{path} has log format {attributes.get('format')}, this version reads {FORMAT}: "
            "use the version of robot-rl that wrote it"
        )
    try:
        layout = Layout.from_json(attributes["layout"])
        chunk_rows, size = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        about = dict(attributes["about"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path / 'zarr.json'} is damaged ({error!r}): {_RESTORE}") from error
    if size != layout.dtype.itemsize or not 1 <= chunk_rows <= CHUNK_ROWS:
        raise ValueError(f"{path / 'zarr.json'} is damaged (a row has {size} bytes): {_RESTORE}")
    return layout, about, int(chunk_rows)
