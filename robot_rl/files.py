"""Files that are whole or not there: atomic writes, one lock per folder, and words for a full disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_LOOK_S = 0.05


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that replaces ``path`` at the end, or leaves it as it was; no partial file stays behind.

    Raises OSError, in words that help, where the disk is full or ``path`` forbidden.
    """
    with disk_errors(path):
        name = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # mkstemp's only their owner may read
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            name.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` at once or not at all; raises as ``atomic_file`` does."""
    with atomic_file(Path(path)) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """``value`` as readable JSON, written atomically. Raises ValueError for NaN and infinity, which are not JSON."""
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in ``path``; raises ValueError that names the file, the place of the damage and ``remedy``."""
    try:
        value = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged (not a JSON object): {remedy}")
    return value


def sync_file(path: Path) -> None:
    """Force the content of ``path`` to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


sync_folder = sync_file  # a folder's names are its content


def sync_tree(folder: Path) -> None:
    """Force every file and folder below ``folder`` to the disk."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync_file(path)
    sync_folder(folder)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say what to do where writing ``path`` finds the disk full, its quota used up, or itself forbidden."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno,
                f"the disk is full while writing {path}: free some space and give the command again; "
                "everything finished before is unharmed",
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise OSError(
                error.errno, f"no permission to write {path}: choose another folder or change its rights"
            ) from error
        raise


def is_locked(folder: Path) -> bool:
    """Whether a process holds the FolderLock of ``folder``; it only looks. False where it cannot."""
    try:
        handle = os.open(folder / ".lock", os.O_RDONLY)
    except OSError:
        return False  # never locked, or not ours to read
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


class FolderLock:
    """The right to write into a folder. It ends with the process, however that ends."""

    def __init__(self, folder: Path) -> None:
        """Raises BlockingIOError, naming the holder, where another process is writing into ``folder``."""
        path = folder / ".lock"
        with disk_errors(path):
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_LOOK_S)  # ``is_locked`` holds it while it looks
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._handle, 32, 0).decode(errors="replace").strip()
            os.close(self._handle)
            raise BlockingIOError(
                errno.EWOULDBLOCK,
                f"{folder} is being written by another process (pid {holder or 'unknown'}): "
                "wait until it ends, or give another folder",
            ) from error
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """May be called twice."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
