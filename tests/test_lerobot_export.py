"""What is on the disk after ``demo export``, against the layout of LeRobot's datasets v3.0."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robot_rl import cli
from robot_rl.lerobot import export as exporting
from robot_rl.lerobot import layout, stats
from robot_rl.lerobot.export import Options, export
from robot_rl.store import EpisodeReader, StoreInfo
from tests.lerobot_sets import assert_equal_folders, info, make_episode, record

LENGTHS = (7, 1, 12, 5)
CAMERA = "observation.images.camera.front"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("source") / "demos.zarr", info(), LENGTHS)


@pytest.fixture(scope="module")
def dataset(source: Path) -> Path:
    out = source.parent / "dataset"
    export(source, out, Options(instruction="put the peg in", environment=("goal",)))
    return out


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def frames(dataset: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(dataset.glob("data/*/*.parquet"))])


def rows(dataset: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(dataset.glob("meta/episodes/*/*")) for row in pq.read_table(path).to_pylist()]


def column(dataset: Path, name: str) -> np.ndarray:
    return np.asarray(frames(dataset).column(name).to_pylist())


def test_the_folder_holds_what_the_layout_names_and_nothing_else(dataset: Path) -> None:
    files = {str(path.relative_to(dataset)) for path in dataset.rglob("*") if path.is_file()}
    assert files == {
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        "meta/robot_rl.json",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-000.parquet",
        f"videos/{CAMERA}/chunk-000/file-000.mp4",
    }
    assert not [path for path in dataset.parent.iterdir() if path.name.startswith(".")]


def test_info_says_version_rate_totals_templates_and_features(dataset: Path) -> None:
    about = read(dataset / "meta/info.json")
    features = about.pop("features")
    assert about == {
        "codebase_version": "v3.0",
        "robot_type": "ur5e",
        "total_episodes": 4,
        "total_frames": 25,
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": 10,
        "splits": {"train": "0:4"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    assert isinstance(about["fps"], int)
    names = ["mode", "pose/xy.0", "pose/xy.1"]
    assert features["observation.state"] == {"dtype": "float32", "shape": [3], "names": names}
    assert features["observation.environment_state"]["names"] == ["goal.0", "goal.1"]
    assert features["action"] == {"dtype": "float32", "shape": [3], "names": ["action.0", "action.1", "action.2"]}
    assert features[CAMERA]["dtype"] == "video" and features[CAMERA]["shape"] == [32, 48, 3]
    assert features[CAMERA]["names"] == ["height", "width", "channels"]
    assert features["next.reward"] == {"dtype": "float32", "shape": [1], "names": None}
    for name in ("next.done", "next.terminated", "next.truncated", "next.success"):
        assert features[name]["dtype"] == "bool"
    assert all("/" not in name for name in features)  # LeRobot refuses those


def test_data_has_the_columns_and_types_that_info_declares(dataset: Path) -> None:
    features, schema = read(dataset / "meta/info.json")["features"], frames(dataset).schema
    assert set(schema.names) == {name for name, one in features.items() if one["dtype"] != "video"}
    for name in schema.names:
        kind, size = schema.field(name).type, features[name]["shape"][0]
        if size > 1:
            assert pa.types.is_fixed_size_list(kind) and kind.list_size == size, name
            kind = kind.value_type
        assert str(kind) == {"float32": "float", "float64": "double"}.get(
            features[name]["dtype"], features[name]["dtype"]
        )


def test_counters_and_ends_of_every_frame(source: Path, dataset: Path) -> None:
    np.testing.assert_array_equal(column(dataset, "index"), np.arange(25))
    np.testing.assert_array_equal(column(dataset, "episode_index"), np.repeat(np.arange(4), LENGTHS))
    count = np.concatenate([np.arange(steps) for steps in LENGTHS])
    np.testing.assert_array_equal(column(dataset, "frame_index"), count)
    np.testing.assert_array_equal(column(dataset, "timestamp"), (count / 10).astype(np.float32))
    assert not column(dataset, "task_index").any()
    episodes = list(EpisodeReader(source))
    for name, attribute in (("next.terminated", "terminated"), ("next.truncated", "truncated")):
        np.testing.assert_array_equal(column(dataset, name), np.concatenate([getattr(e, attribute) for e in episodes]))
    either = column(dataset, "next.terminated") | column(dataset, "next.truncated")
    np.testing.assert_array_equal(column(dataset, "next.done"), either)
    np.testing.assert_array_equal(column(dataset, "action"), np.concatenate([e.action for e in episodes]))


def test_rows_of_the_episodes_lead_to_their_frames(dataset: Path) -> None:
    told = rows(dataset)
    assert [row["length"] for row in told] == list(LENGTHS)
    assert [row["tasks"] for row in told] == [["put the peg in"]] * 4
    assert [row["dataset_to_index"] for row in told] == np.cumsum(LENGTHS).tolist()
    assert [row["dataset_from_index"] for row in told] == [0, *np.cumsum(LENGTHS)[:-1].tolist()]
    for index, row in enumerate(told):
        assert row["episode_index"] == index
        for name in ("data", "meta/episodes", f"videos/{CAMERA}"):
            assert (row[f"{name}/chunk_index"], row[f"{name}/file_index"]) == (0, 0)


def test_tasks_are_a_pandas_frame_indexed_by_instruction(dataset: Path) -> None:
    table = pq.read_table(dataset / "meta/tasks.parquet")
    assert table.to_pydict() == {"task_index": [0], "task": ["put the peg in"]}
    assert json.loads(table.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    assert table.schema.field("task_index").type == pa.int64()


@pytest.mark.parametrize("codec", ["av1", "h264"])
def test_films_hold_each_episode_where_its_row_says(source: Path, tmp_path: Path, codec: Any) -> None:
    export(source, tmp_path / "d", Options(codec=codec))
    with av.open(str(tmp_path / f"d/videos/{CAMERA}/chunk-000/file-000.mp4")) as film:
        stream = film.streams.video[0]
        said = read(tmp_path / "d/meta/info.json")["features"][CAMERA]["info"]
        assert (said["video.height"], said["video.width"]) == (stream.height, stream.width) == (32, 48)
        assert said["video.codec"] == stream.codec.canonical_name == codec
        assert said["video.pix_fmt"] == stream.pix_fmt == "yuv420p"
        assert said["video.fps"] == stream.average_rate == 10
        found = [
            (float(frame.time), frame.key_frame, frame.to_ndarray(format="rgb24")) for frame in film.decode(stream)
        ]
    assert len(found) == sum(LENGTHS) + len(LENGTHS)  # and the last observation of each episode
    keys = [key for _, key, _ in found]
    assert keys[0] and all(a or b for a, b in itertools.pairwise(keys))  # LeRobot jumps to any frame
    times_s = np.array([time_s for time_s, _, _ in found])
    for row, episode in zip(rows(tmp_path / "d"), EpisodeReader(source), strict=True):
        from_s, to_s = row[f"videos/{CAMERA}/from_timestamp"], row[f"videos/{CAMERA}/to_timestamp"]
        assert to_s - from_s == pytest.approx(row["length"] / 10)
        for step in range(len(episode)):  # as LeRobot looks a frame up: the nearest, within 1e-4 s
            nearest = int(np.argmin(np.abs(times_s - (from_s + np.float32(step / 10)))))
            assert abs(times_s[nearest] - (from_s + np.float32(step / 10))) < 1e-4
            wanted = episode.observation["camera/front"][step].astype(float)
            assert np.abs(found[nearest][2] - wanted).mean() < 6.0


def test_statistics_are_those_of_numpy(source: Path, dataset: Path) -> None:
    episodes = list(EpisodeReader(source))
    told, of_each = read(dataset / "meta/stats.json"), rows(dataset)
    assert told.keys() == read(dataset / "meta/info.json")["features"].keys()

    def check(one: dict[str, Any], values: np.ndarray, count: int) -> None:
        assert one["count"] == [count]
        for name, function in (("min", np.min), ("max", np.max), ("mean", np.mean), ("std", np.std)):
            np.testing.assert_allclose(np.ravel(one[name]), function(values, axis=0), rtol=1e-9, atol=1e-12)
        for name, quantile in (("q01", 0.01), ("q10", 0.1), ("q50", 0.5), ("q90", 0.9), ("q99", 0.99)):
            np.testing.assert_allclose(np.ravel(one[name]), np.quantile(values, quantile, axis=0), atol=1e-12)

    for name in ("action", "next.reward", "next.done", "observation.state", "exact.pose.xy", "timestamp"):
        values = column(dataset, name).reshape(25, -1).astype(np.float64)
        check(told[name], values, 25)
        starts = np.cumsum((0, *LENGTHS))
        for index, row in enumerate(of_each):
            one = {key.split("/")[2]: value for key, value in row.items() if key.startswith(f"stats/{name}/")}
            check(one, values[starts[index] : starts[index + 1]], LENGTHS[index])
    pixels = [e.observation["camera/front"][:-1].reshape(-1, 3) / 255.0 for e in episodes]
    check(told[CAMERA], np.concatenate(pixels), 25)
    assert np.shape(told[CAMERA]["mean"]) == (3, 1, 1)  # LeRobot checks it
    one = {key.split("/")[2]: value for key, value in of_each[2].items() if key.startswith(f"stats/{CAMERA}/")}
    check(one, pixels[2], LENGTHS[2])


def test_statistics_of_many_frames_come_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "SAMPLE", 200)
    values = np.random.default_rng(0).normal(3.0, 2.0, (5_000, 2))
    running = stats.Running()
    for part in np.split(values, 100):
        running.add(part, stats.of_rows(part))
    assert sum(len(part) for part in running._kept) <= 200
    told = running.statistics()
    np.testing.assert_allclose(told["mean"], values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(told["std"], values.std(0), rtol=1e-12)
    np.testing.assert_allclose(told["q50"], np.quantile(values, 0.5, axis=0), atol=0.5)
    assert told["count"] == [5_000]


def test_full_files_and_folders_are_followed_by_others(tmp_path: Path) -> None:
    source = record(tmp_path / "demos.zarr", info(), [80, 75, 70, 72])  # what an encoder still holds has no size yet
    out = tmp_path / "d"
    export(source, out, Options(data_file_mb=1e-4, video_file_mb=1e-4, chunk_files=2))
    chunks = ["chunk-000/file-000", "chunk-000/file-001", "chunk-001/file-000", "chunk-001/file-001"]
    for folder, suffix in ((out / "data", ".parquet"), (out / "videos" / CAMERA, ".mp4")):
        found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
        assert found == [f"{chunk}{suffix}" for chunk in chunks]
    about = read(out / "meta/info.json")
    for row in rows(out):
        path = about["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        assert set(pq.read_table(out / path).column("episode_index").to_pylist()) == {row["episode_index"]}
        assert row[f"videos/{CAMERA}/from_timestamp"] == 0.0
    back = tmp_path / "back.zarr"
    assert cli.main(["demo", "import", str(out), "--out", str(back)]) == 0
    assert_equal_folders(source, back, tolerance=6.0)


def test_rows_of_many_episodes_are_written_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "ROWS_KEPT", 3)
    export(record(tmp_path / "demos.zarr", info(cameras=False), [2] * 8), tmp_path / "d", Options(data_file_mb=0.03))
    told = rows(tmp_path / "d")
    assert [row["episode_index"] for row in told] == list(range(8))
    paths = sorted((tmp_path / "d/meta/episodes").rglob("*.parquet"))
    assert len(paths) == 3  # three rows are more than 0.03 MB
    for file, path in enumerate(paths):
        assert set(pq.read_table(path).column("meta/episodes/file_index").to_pylist()) == {file}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (Options(leave_out=("nothing",)), LookupError, "--leave-out nothing: the observations are camera/front, goal"),
        (Options(environment=("hole",)), LookupError, "--environment-state hole: the observations are"),
        (Options(fps=-1.0), ValueError, "--fps -1.0: give steps per second"),
        (Options(data_file_mb=0.0), ValueError, "--data-file-mb 0.0: give megabytes"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    source: Path, tmp_path: Path, options: Options, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        export(source, tmp_path / "d", options)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(FileExistsError, match="d exists: give another folder, or remove it"):
        export(source, tmp_path / "d")
    assert not list((tmp_path / "d").iterdir())


def test_pictures_that_are_not_rgb_or_of_one_name_are_named(tmp_path: Path) -> None:
    def about(**observation: Any) -> StoreInfo:
        return StoreInfo("reach", "panda", "sim", observation, 1)

    with pytest.raises(ValueError, match="'depth' is a picture of 1 channels, LeRobot's have 3: --leave-out depth"):
        layout.places(about(depth=((8, 8, 1), "uint8")))
    one = ((2,), "float64")
    with pytest.raises(ValueError, match=r"'a.b' and 'a/b' would both be 'exact.a.b' there: --leave-out one of them"):
        layout.places(about(**{"a/b": one, "a.b": one}))
    with pytest.raises(ValueError, match="no pictures of 9 x 8, an odd size: --codec av1"):
        exporting.Film(tmp_path / "x.mp4", 9, 8, 10, "h264")


def test_episodes_without_a_rate_ask_for_it(tmp_path: Path) -> None:
    about = StoreInfo("Tiny-v0", "", "gym", {"x": ((1,), "float32")}, 1)
    path = record(tmp_path / "demos.zarr", about, [3])
    with pytest.raises(ValueError, match="Tiny-v0 do not say how many steps a second has: give --fps"):
        export(path, tmp_path / "d")
    export(path, tmp_path / "d", Options(fps=12.5))
    assert read(tmp_path / "d/meta/info.json")["fps"] == 12.5
    np.testing.assert_array_equal(column(tmp_path / "d", "timestamp"), np.float32([0.0, 0.08, 0.16]))
    assert column(tmp_path / "d", "observation.state").shape == (3,)  # one number is no list there


def test_a_full_disk_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporting, "sync_tree", full)
    with pytest.raises(OSError, match="the disk is full while writing"):
        export(source, tmp_path / "d")
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from robot_rl.lerobot.export import export
export(Path(sys.argv[1]), Path(sys.argv[2]), on_episode=lambda n, of: n < of or os.kill(os.getpid(), signal.SIGKILL))
"""


def test_kill_9_leaves_nothing_that_looks_finished(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "d"
    status = subprocess.run([sys.executable, "-c", KILLED, str(source), str(out)], cwd=Path(__file__).parent.parent)
    assert status.returncode == -signal.SIGKILL
    assert not out.exists() and not list(tmp_path.rglob("info.json"))
    export(source, out)
    assert (out / "meta/info.json").is_file()


def test_a_missing_extra_is_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert cli.main(["demo", "export", str(source), "--out", str(tmp_path / "d")]) == 2
    assert "av is needed for LeRobot datasets and is not installed: pip install 'robot-rl[lerobot]'" in (
        capsys.readouterr().err
    )
    assert not os.path.exists(tmp_path / "d")


def test_the_package_that_owns_the_format_reads_it(
    source: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where lerobot happens to be installed; it is no dependency."""
    owner = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = owner.LeRobotDataset("me/demos", root=dataset)
    assert len(loaded) == 25 and loaded.num_episodes == 4
    episode = EpisodeReader(source)[2]
    item = loaded[8 + 3]
    assert item["task"] == "put the peg in" and int(item["episode_index"]) == 2
    np.testing.assert_array_equal(item["action"].numpy(), episode.action[3])
    shown = item[CAMERA].numpy().transpose(1, 2, 0) * 255.0
    assert np.abs(shown - episode.observation["camera/front"][3]).mean() < 6.0


def test_the_frames_of_a_picture_are_smooth_and_all_different() -> None:
    """What the tests of the films stand on."""
    episode = make_episode(0, 12, info()).observation["camera/front"].astype(float)
    apart = [np.abs(a - b).mean() for i, a in enumerate(episode) for b in episode[:i]]
    assert min(apart) > 3.0
