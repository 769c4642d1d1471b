from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from gymnasium import spaces

from robot_rl import store
from robot_rl.episode import Episode, episode_seed
from robot_rl.replay import ReplayBuffer
from robot_rl.spaces import Encoder
from robot_rl.store import EpisodeReader, EpisodeWriter, StoreInfo, load_into

SPACE = spaces.Dict(
    {
        "pose": spaces.Dict({"xy": spaces.Box(-1.0, 1.0, (2,), np.float64)}),
        "camera": spaces.Box(0, 255, (8, 6, 3), np.uint8),
    }
)
INFO = StoreInfo("reach", "panda", "sim", {"pose/xy": ((2,), "float64"), "camera": ((8, 6, 3), "uint8")}, 3)


def make_episode(seed: int, steps: int | None = None) -> Episode:
    """Everything about it follows from its seed, so that another process can make it again."""
    rng = np.random.default_rng(seed)
    steps = steps or int(rng.integers(1, 90))
    ends = np.arange(steps) == steps - 1
    terminated = bool(rng.integers(2))
    return Episode(
        {"pose/xy": rng.normal(size=(steps + 1, 2)), "camera": rng.integers(0, 255, (steps + 1, 8, 6, 3), np.uint8)},
        rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
        rng.normal(size=steps).astype(np.float32),
        ends & terminated,
        ends & (not terminated),
        ends & terminated,
        seed,
    )


def assert_equal(a: Episode, b: Episode) -> None:
    assert a.seed == b.seed and a.observation.keys() == b.observation.keys()
    pairs = [(a.observation[name], b.observation[name]) for name in a.observation]
    pairs += [(getattr(a, n), getattr(b, n)) for n in ("action", "reward", "terminated", "truncated", "success")]
    for x, y in pairs:
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of three episodes."""
    with EpisodeWriter(tmp_path / "demos.zarr", INFO) as writer:
        for seed in range(3):
            writer.append(make_episode(seed, steps=70))
    return tmp_path / "demos.zarr"


def test_what_was_appended_comes_back(tmp_path: Path) -> None:
    for seed in range(12):  # a fresh writer every few episodes
        with EpisodeWriter(tmp_path / "demos.zarr", INFO) as writer:
            writer.append(make_episode(seed))
    reader = EpisodeReader(tmp_path / "demos.zarr")
    assert len(reader) == 12 and list(reader.seeds) == list(range(12))
    for seed, episode in enumerate(reader):
        assert_equal(episode, make_episode(seed))
    assert_equal(reader[-1], make_episode(11))
    with pytest.raises(IndexError, match="has 12"):
        reader[12]


def test_other_tools_read_it_as_plain_zarr(path: Path) -> None:
    group = zarr.open_group(path, mode="r")
    ends = np.asarray(group["meta/episode_ends"])
    assert ends.tolist() == [71, 142, 213]
    np.testing.assert_array_equal(group["data/observation/camera"][71:142], make_episode(1, 70).observation["camera"])
    assert group["data/action"][70].tolist() == [0, 0, 0]  # the last row of an episode is padding


def test_costs_come_back_and_are_0_where_none_were_told(tmp_path: Path) -> None:
    told = replace(make_episode(1, steps=5), cost=np.linspace(0.0, 1.0, 5, dtype=np.float32))
    with EpisodeWriter(tmp_path / "demos.zarr", INFO) as writer:
        writer.append(told)
        writer.append(make_episode(2, steps=3))
        with pytest.raises(ValueError, match="cost holds NaN"):
            writer.append(replace(told, cost=told.cost * np.nan))
    first, second = EpisodeReader(tmp_path / "demos.zarr")
    np.testing.assert_array_equal(first.cost, told.cost)
    np.testing.assert_array_equal(second.cost, np.zeros(3, np.float32))
    encoder = Encoder.from_space(SPACE)
    buffer = ReplayBuffer(10, encoder.space, 3, {"cost": (), "proposed": (3,)})
    load_into(buffer, EpisodeReader(tmp_path / "demos.zarr"), encoder)
    batch = buffer.gather(buffer.capacity + np.arange(8))
    np.testing.assert_array_equal(batch.extra["cost"], np.append(told.cost, np.zeros(3)))
    np.testing.assert_array_equal(batch.extra["proposed"], batch.action)


def test_folders_of_before_there_were_costs_are_read_and_added_to(tmp_path: Path) -> None:
    path = tmp_path / "demos.zarr"
    with EpisodeWriter(path, replace(INFO, costs=False)) as writer:
        writer.append(make_episode(0))
    about = json.loads((path / "zarr.json").read_text())
    del about["attributes"]["costs"]  # as those versions left it
    (path / "zarr.json").write_text(json.dumps(about))
    assert not (path / "data/cost").exists()
    with EpisodeWriter(path, INFO) as writer:
        writer.append(replace(make_episode(1, steps=4), cost=np.ones(4, np.float32)))
    for seed, episode in enumerate(EpisodeReader(path)):
        assert_equal(episode, make_episode(seed, None if seed == 0 else 4))
        assert episode.cost is None
    assert not (path / "data/cost").exists() and not EpisodeReader(path).info.costs


def test_a_reader_sees_what_was_there_when_it_opened(path: Path) -> None:
    reader = EpisodeReader(path)
    with EpisodeWriter(path, INFO) as writer:
        writer.append(make_episode(3))
        assert len(reader) == 3
        assert_equal(reader[2], make_episode(2, 70))
        assert len(EpisodeReader(path)) == 4  # while the writer is still open


def test_the_second_writer_is_told_who_is_first(path: Path) -> None:
    with (
        EpisodeWriter(path, INFO),
        pytest.raises(BlockingIOError, match=f"written by another process \\(pid {os.getpid()}\\)"),
    ):
        EpisodeWriter(path, INFO)
    EpisodeWriter(path, INFO).close()


WRITER = """
import sys
sys.path.insert(0, {folder!r})
from test_store import INFO, EpisodeWriter, make_episode
with EpisodeWriter({path!r}, INFO) as writer:
    for seed in range(len(writer), 10_000):
        writer.append(make_episode(seed))
        print(seed, flush=True)
"""


def test_kill_9_loses_no_finished_episode(tmp_path: Path) -> None:
    path = tmp_path / "demos.zarr"
    code = WRITER.format(folder=str(Path(__file__).parent), path=str(path))
    draw = random.Random(0)
    acknowledged = -1
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(draw.randint(1, 6)):  # killed somewhere in the middle of the episode after these
            acknowledged = int(process.stdout.readline())
        try:
            process.wait(timeout=draw.uniform(0.0, 0.05))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        process.wait()
        acknowledged = int(rest[-1]) if rest else acknowledged
        reader = EpisodeReader(path)
        assert acknowledged + 1 <= len(reader) <= acknowledged + 2  # the last may be safe without having said so
    for seed, episode in enumerate(EpisodeReader(path)):
        assert_equal(episode, make_episode(seed))


def test_leftovers_behind_the_commit_are_cut(path: Path) -> None:
    """What a writer leaves that dies just before its commit: longer arrays, and a half-written file."""
    before = (path / "commit.json").read_bytes()
    with EpisodeWriter(path, INFO) as writer:
        writer.append(make_episode(3, steps=80))
    (path / "commit.json").write_bytes(before)
    (path / "data/action/c/0.1234.partial").write_bytes(b"half")
    assert len(EpisodeReader(path)) == 3
    with EpisodeWriter(path, INFO) as writer:
        assert zarr.open_array(path, path="data/action", mode="r").shape == (213, 3)
        assert not list(path.rglob("*.partial"))
        writer.append(make_episode(4))
    assert [episode.seed for episode in EpisodeReader(path)] == [0, 1, 2, 4]
    assert_equal(EpisodeReader(path)[3], make_episode(4))


@pytest.mark.parametrize(
    "other",
    [
        StoreInfo("peg_insert", "panda", "sim", INFO.observation, 3),
        StoreInfo("reach", "panda", "sim", {"pose/xy": ((3,), "float64")}, 3),
        StoreInfo("reach", "panda", "sim", INFO.observation, 7),
        StoreInfo("reach", "ur5e", "sim", INFO.observation, 3),
        StoreInfo("reach", "panda", "real", INFO.observation, 3),
        StoreInfo("reach", "panda", "sim", INFO.observation, 3, {"task": {"control_hz": 5.0}}),
    ],
)
def test_episodes_of_something_else_are_refused(path: Path, other: StoreInfo) -> None:
    with pytest.raises(ValueError, match=r"holds other episodes .* record into another folder \(--out\)"):
        EpisodeWriter(path, other)
    assert len(EpisodeReader(path)) == 3
    EpisodeWriter(path, INFO).close()  # the refused one holds no lock


def test_the_first_field_that_differs_is_named_with_both_values(tmp_path: Path) -> None:
    def info(arm: str = "panda", **task: object) -> StoreInfo:
        config = {"max_steps": 50, "size_m": (0.1, 0.2)} | task
        return StoreInfo("reach", arm, "sim", INFO.observation, 3, {"task": config, "train": {"steps": len(task)}})

    with EpisodeWriter(tmp_path / "demos.zarr", info()) as writer:
        writer.append(make_episode(0))
    stored = EpisodeReader(tmp_path / "demos.zarr").info
    assert stored.difference(info(), same_robot=True) == ""  # tuples come back as lists, which is no difference
    assert stored.difference(info(size_m=[0.1, 0.2]), same_robot=True) == ""  # and other sections may differ
    assert stored.difference(info(max_steps=9, size_m=[0.1]), same_robot=True) == "task.max_steps is 50 there, 9 here"
    assert stored.difference(info(new=1), same_robot=False) == "task.new is None there, 1 here"
    assert stored.difference(info("ur5e"), same_robot=True) == "arm is 'panda' there, 'ur5e' here"
    assert stored.difference(info("ur5e"), same_robot=False) == ""


def test_a_store_that_got_no_episode_is_removed(tmp_path: Path, path: Path) -> None:
    with pytest.raises(RuntimeError, match="the expert broke"), EpisodeWriter(tmp_path / "new.zarr", INFO):
        raise RuntimeError("the expert broke")
    assert not (tmp_path / "new.zarr").exists()
    with EpisodeWriter(path, INFO):
        pass
    assert len(EpisodeReader(path)) == 3


def test_a_writer_that_cannot_open_gives_the_lock_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(writer: EpisodeWriter) -> None:
        raise ValueError("damaged")

    with monkeypatch.context() as patch:
        patch.setattr(EpisodeWriter, "_cut", broken)
        with pytest.raises(ValueError, match="damaged"):
            EpisodeWriter(path, INFO)
    EpisodeWriter(path, INFO).close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": np.zeros((4, 2), np.float32)}, "action is float32"),
        ({"reward": np.array([0, np.nan, 0, 0], np.float32)}, "reward holds NaN"),
        ({"observation": {}}, "the episode lacks observation"),
        ({"terminated": np.array([True, False, False, False])}, "before the last step"),
        ({"success": np.zeros(4, np.int64)}, "success is int64"),
    ],
)
def test_a_bad_episode_is_refused_and_leaves_no_trace(path: Path, change: dict, message: str) -> None:
    values = {name: getattr(make_episode(9, steps=4), name) for name in Episode.__dataclass_fields__} | change
    with EpisodeWriter(path, INFO) as writer:
        with pytest.raises(ValueError, match=message):
            writer.append(Episode(**values))
        writer.append(make_episode(3))
    assert [episode.seed for episode in EpisodeReader(path)] == [0, 1, 2, 3]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("commit.json", lambda p: p.write_text('{"episodes": 3'), "commit.json is damaged"),
        ("commit.json", lambda p: p.write_text('{"episodes": -3, "rows": 1}'), "episodes is -3"),
        ("commit.json", lambda p: p.write_text('{"episodes": 3, "rows": 300}'), "is missing|does not fit"),
        ("commit.json", Path.unlink, "not an episode folder"),
        ("zarr.json", lambda p: p.write_text("[]"), "zarr.json is damaged"),
        ("zarr.json", lambda p: p.write_text('{"attributes": {"format": 99}}'), "episode format 99"),
        ("data/action/zarr.json", lambda p: p.write_text("{}"), "data/action/zarr.json is missing or damaged"),
        ("data/reward/zarr.json", Path.unlink, "data/reward/zarr.json is missing or damaged"),
        ("data/reward/c/1", Path.unlink, "data/reward/c/1 is missing"),
        ("data/reward/c/1", _truncate, "data/reward is damaged between rows"),
        ("data/observation/camera/c/2/0/0/0", _flip, "data/observation/camera is damaged between rows"),
        ("meta/episode_ends/c/0", _flip, "episode_ends"),
    ],
)
def test_damage_is_named_with_its_file(path: Path, file: str, damage, message: str) -> None:
    damage(path / file)
    with pytest.raises(ValueError, match=message) as raised:
        list(EpisodeReader(path))
    assert (
        "restore it" in str(raised.value) or "give one" in str(raised.value) or "use the version" in str(raised.value)
    )


def test_what_is_no_store_is_said_so_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no episodes at"):
        EpisodeReader(tmp_path / "nothing")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/mine.txt").write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(ValueError, match="is not an episode folder"):
            EpisodeWriter(tmp_path / name, INFO)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder/mine.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder", "mine.txt"]


def test_a_full_disk_loses_nothing_finished(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = store.sync_file, iter(range(10**6))

    def full(file: Path) -> None:
        if next(calls) >= 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    with EpisodeWriter(path, INFO) as writer:
        monkeypatch.setattr(store, "sync_file", full)
        with pytest.raises(OSError, match=r"the disk is full while writing .*free some space") as raised:
            writer.append(make_episode(3))
        assert raised.value.errno == errno.ENOSPC
        monkeypatch.undo()
        writer.append(make_episode(4))  # space again: the same writer goes on
    for episode, seed in zip(EpisodeReader(path), (0, 1, 2), strict=False):
        assert_equal(episode, make_episode(seed, 70))
    assert_equal(EpisodeReader(path)[3], make_episode(4))


def test_a_really_full_disk(tmp_path: Path) -> None:
    """A file system of 1 MB, where the machine allows one to be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system here")
    try:
        kept = 0
        with EpisodeWriter(disk / "demos.zarr", INFO) as writer, pytest.raises(OSError, match="the disk is full"):
            for kept in range(1000):
                writer.append(make_episode(kept))
        assert 0 < kept < 1000
        assert [episode.seed for episode in EpisodeReader(disk / "demos.zarr")] == list(range(kept))
        assert not list(disk.rglob("*.partial")) and not list(disk.rglob("*.tmp"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_loading_into_a_replay_buffer_keeps_ends_and_episodes_apart(path: Path) -> None:
    encoder = Encoder.from_space(SPACE)
    buffer = ReplayBuffer(1000, encoder.space, 3)
    assert load_into(buffer, EpisodeReader(path), encoder, episodes=2) == buffer.demonstrations == 140
    batch = buffer.gather(buffer.capacity + np.arange(140))
    for segment in range(2):
        episode, rows = make_episode(segment, 70), slice(70 * segment, 70 * (segment + 1))
        np.testing.assert_array_equal(batch.obs["state"][rows], episode.observation["pose/xy"][:-1].astype(np.float32))
        np.testing.assert_array_equal(batch.next_obs["camera"][rows], episode.observation["camera"][1:])
        np.testing.assert_array_equal(batch.action[rows], episode.action)
        np.testing.assert_array_equal(batch.discount[rows], 1.0 - episode.terminated)  # truncated goes on


def test_observations_of_another_environment_are_refused(path: Path) -> None:
    encoder = Encoder.from_space(spaces.Box(-1.0, 1.0, (5,), np.float32))
    with pytest.raises(ValueError, match=r"pose/xy float64\[2\].*state float32\[5\]"):
        load_into(ReplayBuffer(10, encoder.space, 3), EpisodeReader(path), encoder)


def test_seeds_of_different_purposes_never_meet() -> None:
    drawn = {p: {episode_seed(s, p, i) for s in range(20) for i in range(100)} for p in ("train", "eval", "demo")}
    assert not (drawn["train"] & drawn["eval"] or drawn["train"] & drawn["demo"] or drawn["eval"] & drawn["demo"])
    assert all(0 <= seed < 2**31 for seeds in drawn.values() for seed in seeds)
    assert len(drawn["train"]) > 1990  # and within one they hardly repeat


def test_the_description_is_plain_json(path: Path) -> None:
    attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    assert attributes["task"] == "reach" and attributes["observation"]["camera"] == [[8, 6, 3], "uint8"]
