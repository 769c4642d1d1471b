"""The log of steps: whatever happens to its files or its writer, what is found again is a whole beginning of it."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robot_rl import step_log
from robot_rl.step_log import Layout, StepLog, intact
from tests.ros_children import child, until
from tests.step_rows import LAYOUT, rows_of

ROWS = 5  # of a chunk, in these tests
SIZE = LAYOUT.dtype.itemsize
LOG = 7
ABOUT = {"log": LOG}
FUZZ = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch) -> None:
    monkeypatch.setattr(step_log, "CHUNK_ROWS", ROWS)


@contextlib.contextmanager
def copy_of(path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copytree(path, Path(folder) / "steps.zarr"))


def chunk(path: Path, number: int) -> Path:
    return path / "c" / str(number) / "0"


def same_rows(data: bytes, original: bytes) -> int:
    """How many rows, from the first on, are the same."""
    ends = range(SIZE, len(original) + 1, SIZE)
    return next((end // SIZE - 1 for end in ends if data[end - SIZE : end] != original[end - SIZE : end]), len(ends))


def written(path: Path, count: int, sync: bool = True) -> Path:
    """A log of ``count`` rows, each appended by itself."""
    with StepLog(path, LAYOUT, ABOUT) as log:
        for number in range(count):
            log.append(rows_of(LOG, 1, number))
            if sync:
                log.sync()
    return path


def assert_holds(path: Path, count: int) -> None:
    """Opened to read, and to write, ``path`` holds the first ``count`` rows and nothing behind them; and goes on."""
    reader = StepLog(path)
    assert len(reader) == count and reader.read(0, 10**9, verify=True).tobytes() == rows_of(LOG, count).tobytes()
    with StepLog(path, LAYOUT) as log:
        assert len(log) == count and log.read(0, count).tobytes() == rows_of(LOG, count).tobytes()
        for file in path.glob("c/*/0"):
            behind = max(0, count - int(file.parent.name) * ROWS) * SIZE
            assert not any(file.read_bytes()[behind:]), f"something stale in {file}"
        log.append(rows_of(LOG, 1, count))
        log.sync()
    reader = StepLog(path)
    assert len(reader) == count + 1 and reader.read(0, count + 1).tobytes() == rows_of(LOG, count + 1).tobytes()


@pytest.mark.parametrize("parts", [[1] * 13, [13], [4, 1, 5, 3], [11, 0, 2]])
def test_rows_come_back_across_chunks_and_openings(tmp_path, parts) -> None:
    path, done = tmp_path / "steps.zarr", 0
    for count in parts:
        with StepLog(path, LAYOUT, ABOUT) as log:
            assert len(log) == done and log.about == ABOUT
            log.append(rows_of(LOG, count, done))
            done += count
    reader = StepLog(path)
    assert (len(reader), reader.layout, reader.about) == (13, LAYOUT, ABOUT)
    expected = rows_of(LOG, 13)
    for start in range(14):
        for stop in range(start, 15):
            assert reader.read(start, stop, verify=True).tobytes() == expected[start:stop].tobytes()
    assert b"".join(block.tobytes() for block in reader.blocks(2, 13)) == expected[2:].tobytes()
    assert all(len(block) <= ROWS for block in reader.blocks(0, 13))


@pytest.mark.parametrize("sync_each", [True, False])
def test_it_is_a_zarr_array(tmp_path, sync_each) -> None:
    path = written(tmp_path / "steps.zarr", 12, sync=sync_each)
    with StepLog(path, LAYOUT) as log:
        log.sync()
    array = zarr.open_array(path, mode="r")
    assert array.shape[1] == SIZE and array.shape[0] >= 12 and array.attrs["about"] == ABOUT
    raw = np.asarray(array[:])
    assert raw[:12].tobytes() == rows_of(LOG, 12).tobytes() and not raw[12:].any()


@pytest.fixture(scope="module")
def thirteen(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_log, "CHUNK_ROWS", ROWS)
        return written(tmp_path_factory.mktemp("log") / "steps.zarr", 13)


@FUZZ
@given(at=st.integers(5 * SIZE, 15 * SIZE - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_ends_the_log_before_its_row(thirteen, at, bit) -> None:
    """In the last two chunks that hold rows, which are all that a crash can harm."""
    with copy_of(thirteen) as path:
        file = chunk(path, at // (ROWS * SIZE))
        data = bytearray(file.read_bytes())
        data[at % (ROWS * SIZE)] ^= 1 << bit
        file.write_bytes(data)
        assert_holds(path, min(at // SIZE, 13))


@FUZZ
@given(row=st.integers(0, ROWS - 1), byte=st.integers(0, SIZE - 1))
def test_a_flipped_byte_further_back_is_named_when_it_is_read(thirteen, row, byte) -> None:
    with copy_of(thirteen) as path:
        data = bytearray(chunk(path, 0).read_bytes())
        data[row * SIZE + byte] ^= 0x10
        chunk(path, 0).write_bytes(data)
        assert not intact(StepLog(path).read(row, row + 1)).any()
        with pytest.raises(ValueError, match=rf"row {row} is damaged; restore it"):
            StepLog(path).read(0, 13, verify=True)
        assert len(StepLog(path).read(ROWS, 13, verify=True)) == 13 - ROWS


@FUZZ
@given(size=st.integers(0, ROWS * SIZE), garbage=st.binary(max_size=3 * SIZE))
def test_a_cut_tail_and_garbage_behind_it(thirteen, size, garbage) -> None:
    """Of the last chunk ``size`` bytes are left, and ``garbage`` behind them; it may even go on past the chunk."""
    with copy_of(thirteen) as path:
        last = chunk(path, 2)
        whole = last.read_bytes()
        damaged = whole[:size] + garbage
        last.write_bytes(damaged)
        assert_holds(path, 10 + same_rows(damaged, whole[: 3 * SIZE]))


@FUZZ
@given(torn=st.integers(5 * SIZE, 10 * SIZE - SIZE // 2), stale=st.integers(1, 5))
def test_a_later_chunk_behind_a_torn_one_is_not_found_again(thirteen, torn, stale) -> None:
    """A machine that loses its power may have kept a later chunk, and not all of the one before."""
    with copy_of(thirteen) as path:
        data = chunk(path, 1).read_bytes()
        chunk(path, 1).write_bytes(data[: torn - 5 * SIZE].ljust(len(data), b"\0"))
        chunk(path, 2).write_bytes(rows_of(LOG, stale, 10).tobytes().ljust(len(data), b"\0"))
        kept = 5 + same_rows(chunk(path, 1).read_bytes(), data)
        assert_holds(path, kept)
        with StepLog(path, LAYOUT) as log:  # up to the very row where the stale ones were
            log.append(rows_of(LOG, 10 - len(log), len(log)))
        assert len(StepLog(path)) == 10


def test_many_chunks_that_were_never_synced_lose_no_more_than_the_first_torn_one(tmp_path) -> None:
    """What the disk has of chunks that were never forced there may be any of them."""
    path = written(tmp_path / "steps.zarr", 7)
    with StepLog(path, LAYOUT) as log:
        log.append(rows_of(LOG, 25, 7))
    data = chunk(path, 2).read_bytes()
    chunk(path, 2).write_bytes(data[: 2 * SIZE + 3].ljust(len(data), b"\0"))
    assert_holds(path, 12)


def test_a_chunk_that_was_lost_before_it_was_synced_ends_the_log(tmp_path) -> None:
    path = written(tmp_path / "steps.zarr", 7)
    with StepLog(path, LAYOUT) as log:
        log.append(rows_of(LOG, 25, 7))
    chunk(path, 3).unlink()
    assert_holds(path, 15)


def test_a_chunk_that_was_safe_and_is_gone_is_named(thirteen) -> None:
    for lost in (0, 1, 2):
        with copy_of(thirteen) as path:
            chunk(path, lost).unlink()
            with pytest.raises(ValueError, match=rf"c/{lost}/0 is missing: restore it"):
                StepLog(path, LAYOUT)


@pytest.mark.parametrize("leftover", ["c/1", "c/2"])
def test_killed_between_a_folder_and_its_file(tmp_path, leftover) -> None:
    path = written(tmp_path / "steps.zarr", 5, sync=False)
    (path / leftover).mkdir(parents=True)
    (path / ".zarr.json.0a.tmp").touch()
    assert_holds(path, 5)
    assert not list(path.glob(".zarr.json.*"))


WRITER = """
import os, sys
from robot_rl import step_log
from tests.step_rows import LAYOUT, rows_of
step_log.CHUNK_ROWS = 5
path, synced = sys.argv[1:]
log = step_log.StepLog(path, LAYOUT, {"log": 7})
told = os.open(synced, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while True:
    log.append(rows_of(7, 1 + len(log) % 7, len(log)))
    if len(log) % 3 == 0:
        os.write(told, b"%d\\n" % log.sync())
"""


def test_kill_minus_nine_loses_nothing_that_was_safe(tmp_path) -> None:
    """Killed at any moment, and opened by the next writer: whole rows, and all that were called safe."""
    path, synced, rng = tmp_path / "steps.zarr", tmp_path / "synced", random.Random(3)
    synced.touch()
    for _ in range(5):
        wanted = last_number(synced) + rng.randrange(1, 200)
        with child(WRITER, str(path), str(synced)) as process:
            until(lambda wanted=wanted: last_number(synced) >= wanted or process.poll() is not None)
            assert process.poll() is None
        reader = StepLog(path)
        assert len(reader) >= last_number(synced) > 0
        assert reader.read(0, len(reader), verify=True).tobytes() == rows_of(LOG, len(reader)).tobytes()


def last_number(path: Path) -> int:
    """In the last whole line."""
    return int(([0, *path.read_text().split("\n")[:-1]])[-1])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_full_disk_keeps_what_was_there_and_goes_on_when_there_is_room(tmp_path) -> None:
    mount, path = tmp_path / "mount", tmp_path / "mount" / "steps.zarr"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], capture_output=True).returncode:
        pytest.skip("mounting is forbidden here")
    try:
        with StepLog(path, LAYOUT, ABOUT) as log:
            with pytest.raises(OSError, match=r"the disk is full while writing .*free some space") as caught:
                for _ in range(10_000):
                    log.append(rows_of(LOG, 7, len(log)))
                    log.sync()
            assert caught.value.errno == errno.ENOSPC
            count = len(log)
            assert count > 2 * ROWS and log.read(0, count, verify=True).tobytes() == rows_of(LOG, count).tobytes()
            with pytest.raises(OSError, match="the disk is full"):
                log.append(rows_of(LOG, 3 * ROWS, count))
            assert (len(log), len(StepLog(path))) == (count, count)
            subprocess.run(["mount", "-o", "remount,size=1m", str(mount)], check=True)
            log.append(rows_of(LOG, 3 * ROWS, count))
            assert log.sync() == count + 3 * ROWS
        assert_holds(path, count + 3 * ROWS)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_rows_of_an_append_that_failed_are_not_found_behind_the_next(tmp_path, monkeypatch) -> None:
    full, real = [False], os.posix_fallocate

    def fallocate(handle: int, offset: int, size: int) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    path = tmp_path / "steps.zarr"
    with StepLog(path, LAYOUT, ABOUT) as log:
        log.append(rows_of(LOG, 1))
        full[0] = True
        with pytest.raises(OSError, match="the disk is full"):
            log.append(rows_of(LOG, 9, 1))
        assert len(log) == 1 and log.sync() == 1
        log.append(rows_of(LOG, 1, 1))
        full[0] = False
    assert_holds(path, 2)


def test_one_writer_and_any_number_of_readers(tmp_path) -> None:
    path = tmp_path / "steps.zarr"
    with StepLog(path, LAYOUT, ABOUT) as log:
        log.append(rows_of(LOG, 3))
        with pytest.raises(BlockingIOError, match=f"written by another process .pid {os.getpid()}.: wait"):
            StepLog(path, LAYOUT, {"log": 8})
        one, two = StepLog(path), StepLog(path)
        log.append(rows_of(LOG, 4, 3))
        assert (len(one), len(two), len(StepLog(path))) == (3, 3, 7)
        with pytest.raises(ValueError, match="opened to read: give its layout"):
            one.append(rows_of(LOG, 1, 3))
    with StepLog(path, LAYOUT) as log:
        assert log.about == ABOUT


def test_of_two_that_make_a_log_the_second_leaves_it_alone(tmp_path, monkeypatch) -> None:
    path, both = tmp_path / "steps.zarr", threading.Barrier(2)
    real = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: (real(self), self.name == "zarr.json" and both.wait(0.2))[0])
    results: list[StepLog | BaseException] = []

    def make(number: int) -> None:
        try:
            results.append(StepLog(path, LAYOUT, {"log": number}))
        except (OSError, threading.BrokenBarrierError) as error:
            results.append(error)

    threads = [threading.Thread(target=make, args=(number,)) for number in (1, 2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sum(isinstance(result, BlockingIOError) for result in results) == 1


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Layout(LAYOUT.observation, 3, LAYOUT.extra), "action_dim is 2 there, 3 here"),
        (Layout({}, 2, LAYOUT.extra), "observation 'state' is .* there, missing here"),
        (Layout(LAYOUT.observation, 2, {"proposed": (3,)}), r"extra 'proposed' is \[2\] there, \[3\] here"),
        (
            Layout({**LAYOUT.observation, "state": ((3,), "float64")}, 2, LAYOUT.extra),
            r"observation 'state' is \[\[3\], 'float32'\] there, \[\[3\], 'float64'\] here",
        ),
    ],
)
def test_a_log_of_other_rows_is_refused_with_the_field(thirteen, other, words) -> None:
    with pytest.raises(ValueError, match=f"{words}.: give another folder"):
        StepLog(thirteen, other)
    with pytest.raises(ValueError, match="rows of its layout only"), copy_of(thirteen) as path:
        StepLog(path, LAYOUT).append(np.zeros(1, other.dtype))


def test_what_is_no_log_is_refused_in_words(tmp_path, thirteen) -> None:
    with pytest.raises(FileNotFoundError, match=r"no log of steps at .*give the folder"):
        StepLog(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    zarr.create_array(tmp_path / "other", shape=(3,), dtype="uint8")
    with pytest.raises(ValueError, match="is not a log of steps: give"):
        StepLog(tmp_path / "other")
    for old, new in (
        ('"format": 2', '"format": 1'),
        ('"action_dim": 2', '"action_dim": 3'),
        ('"attributes": {', '"attributes": 3, "x": {'),
        ("{", ""),
        (f"{ROWS},", "0,"),
    ):
        with copy_of(thirteen) as path:
            (path / "zarr.json").write_text((path / "zarr.json").read_text().replace(old, new, 1))
            with pytest.raises(ValueError, match=r"(use the version|restore it|give the folder)"):
                StepLog(path)


def test_one_thread_appends_while_another_syncs_and_reads(tmp_path) -> None:
    expected, failures = rows_of(LOG, 3000), []
    done = threading.Event()
    path = tmp_path / "steps.zarr"

    def look(log: StepLog) -> None:
        try:
            at = 0
            while not done.is_set() or at < len(log):
                safe = log.sync()
                if (rows := log.read(at, safe, verify=True)).tobytes() != expected[at:safe].tobytes():
                    raise AssertionError(f"rows {at} to {safe} differ")
                at += len(rows)
        except Exception as error:  # noqa: BLE001  # for the main thread
            failures.append(error)

    with StepLog(path, LAYOUT, ABOUT) as log:
        thread = threading.Thread(target=look, args=(log,))
        thread.start()
        at = 0
        while at < len(expected) and not failures:
            log.append(expected[at : at + 1 + at % 4])
            at += 1 + at % 4
        done.set()
        thread.join()
        assert not failures and log.sync() == len(expected)
    assert_holds(path, len(expected))
    assert zarr.open_array(path, mode="r").shape[0] >= len(expected)


def test_files_stay_few_while_nobody_syncs(tmp_path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with StepLog(tmp_path / "steps.zarr", LAYOUT, ABOUT) as log:
        log.append(rows_of(LOG, 40 * ROWS))
        assert len(os.listdir("/proc/self/fd")) <= before + 3  # the lock and one chunk
