"""``demo import``: what other programs write, what they leave open, and our own exports back again."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from robot_rl import cli
from robot_rl.episode import Episode
from robot_rl.lerobot import export as exporting
from robot_rl.lerobot import source as reading
from robot_rl.lerobot.export import export
from robot_rl.lerobot.importing import Imported, Options, import_dataset, info_of
from robot_rl.lerobot.pictures import FilmReader
from robot_rl.lerobot.source import Dataset
from robot_rl.store import EpisodeReader, EpisodeWriter, StoreInfo
from tests.lerobot_sets import STEP_FIELDS, assert_equal_folders, foreign, info, make_episode, record

LENGTHS = (4, 3)
FRAMES = sum(LENGTHS)
LAST = np.isin(np.arange(FRAMES), np.cumsum(LENGTHS) - 1)  # of each episode
OURS = StoreInfo("reach", "panda", "sim", {"tcp": ((3,), "float32"), "goal": ((2,), "float64")}, 2)
NAMES = ("observation.state[0:3]=tcp", "observation.state[3:]=goal")


def columns(**more: np.ndarray) -> dict[str, np.ndarray]:
    """State of 5, action of 2; ``next_reward=...`` adds next.reward."""
    state = np.arange(5.0 * FRAMES, dtype=np.float32).reshape(FRAMES, 5)
    action = np.linspace(-1.0, 1.0, 2 * FRAMES, dtype=np.float32).reshape(FRAMES, 2)
    named = {name.replace("_", ".", 1): rows for name, rows in more.items()}
    return {"observation.state": state, "action": action} | named


def read(root: Path, out: Path, about: StoreInfo = OURS, **options: Any) -> tuple[Imported, list[Episode]]:
    done = import_dataset(Dataset(root), out, about, Options(**({"rename": NAMES} | options)))
    return done, list(EpisodeReader(out))


def reward() -> np.ndarray:
    return (LAST & (np.arange(FRAMES) < LENGTHS[0])).astype(np.float32)  # the first succeeds, the second does not


def test_slices_of_a_state_become_observations(tmp_path: Path) -> None:
    given = columns(next_reward=reward(), complementary_info_=np.zeros(FRAMES))
    done, (first, second) = read(foreign(tmp_path / "d", given, LENGTHS), tmp_path / "out.zarr")
    assert (done.episodes, done.steps, done.successes, done.unused) == (2, 7, 1, ("complementary.info_",))
    state = given["observation.state"]
    np.testing.assert_array_equal(first.observation["tcp"][:-1], state[:4, :3])
    np.testing.assert_array_equal(second.observation["goal"][:-1], state[4:, 3:])
    assert first.observation["goal"].dtype == np.float64
    np.testing.assert_array_equal(first.observation["tcp"][-1], first.observation["tcp"][-2])  # nobody saw the next one
    np.testing.assert_array_equal(np.concatenate([first.action, second.action]), given["action"])
    assert (first.seed, second.seed) == (-1, -2)  # no environment was reset with these


def test_names_that_are_equal_need_no_rename_and_one_that_is_left_takes_the_state(tmp_path: Path) -> None:
    given = columns(next_reward=reward(), observation_goal=np.ones((FRAMES, 2), np.float64))
    given["observation.state"] = given["observation.state"][:, :3]
    _, (first, _) = read(foreign(tmp_path / "d", given, LENGTHS), tmp_path / "out.zarr", rename=())
    np.testing.assert_array_equal(first.observation["tcp"][:-1], given["observation.state"][:4])
    np.testing.assert_array_equal(first.observation["goal"], np.ones((5, 2)))


def test_names_of_other_programs_are_renamed(tmp_path: Path) -> None:
    given = columns(next_reward=reward())
    theirs = {"state": given["observation.state"], "actions": given["action"], "r": reward()}
    names = ("state[:3]=tcp", "state[3:5]=goal", "actions=action", "r=next.reward")
    read(foreign(tmp_path / "a", given, LENGTHS), tmp_path / "a.zarr")
    read(foreign(tmp_path / "b", theirs, LENGTHS), tmp_path / "b.zarr", rename=names)
    assert_equal_folders(tmp_path / "a.zarr", tmp_path / "b.zarr")


DONE, TIME_OUT = LAST.copy(), LAST & (np.arange(FRAMES) >= LENGTHS[0])


@pytest.mark.parametrize(
    ("given", "options", "terminated", "truncated"),
    [
        # a time-out is never a true end: told by next.truncated, else by there being no success
        ({"next_done": DONE, "next_truncated": TIME_OUT}, {}, [True, False], [False, True]),
        ({"next_done": LAST & ~TIME_OUT, "next_truncated": TIME_OUT}, {}, [True, False], [False, True]),
        ({"next_done": DONE}, {}, [True, False], [False, True]),
        ({"next_done": DONE}, {"terminal": "done"}, [True, True], [False, False]),
        ({}, {}, [True, False], [False, True]),  # an episode that does not say ends where it ends
        ({"next_done": DONE & TIME_OUT}, {}, [False, False], [True, True]),  # the first was cut off by somebody
        ({"next_terminated": TIME_OUT}, {}, [False, True], [True, False]),
        ({"next_terminated": LAST, "next_truncated": LAST}, {}, [True, True], [True, True]),
        ({"next_success": TIME_OUT}, {}, [False, True], [True, False]),  # which the reward does not overrule
        ({}, {"success_reward": 0.0}, [True, True], [False, False]),
        ({}, {"success_reward": 2.0}, [False, False], [True, True]),
    ],
)
def test_ends(tmp_path: Path, given: dict, options: dict, terminated: list[bool], truncated: list[bool]) -> None:
    root = foreign(tmp_path / "d", columns(next_reward=reward(), **given), LENGTHS)
    _, episodes = read(root, tmp_path / "out.zarr", **options)
    assert [bool(episode.terminated[-1]) for episode in episodes] == terminated
    assert [bool(episode.truncated[-1]) for episode in episodes] == truncated
    assert not any((episode.terminated | episode.truncated)[:-1].any() for episode in episodes)


def test_what_goes_on_behind_done_is_cut_when_asked(tmp_path: Path) -> None:
    done = LAST | (np.arange(FRAMES) == 1)
    root = foreign(tmp_path / "d", columns(next_reward=reward(), next_done=done), LENGTHS)
    with pytest.raises(ValueError, match=r"episode 0 is done at frame 1 and goes on to 3: --cut-at-done drops"):
        read(root, tmp_path / "out.zarr")
    _, (first, second) = read(root, tmp_path / "out.zarr", cut_at_done=True)
    assert (len(first), len(second)) == (2, 3)
    np.testing.assert_array_equal(first.observation["tcp"], columns()["observation.state"][:3, :3])  # the next is known
    assert first.truncated.tolist() == [False, True]


def test_rewards_and_successes_that_are_missing_are_assumed_when_asked(tmp_path: Path) -> None:
    root = foreign(tmp_path / "d", columns(), LENGTHS)
    with pytest.raises(ValueError, match=r"neither next.reward nor next.success: .*--assume success"):
        read(root, tmp_path / "out.zarr")
    _, (first, _) = read(root, tmp_path / "good.zarr", assume="success")
    assert first.reward.tolist() == [0, 0, 0, 1] and first.succeeded and first.terminated[-1]
    _, (first, _) = read(root, tmp_path / "bad.zarr", assume="failure")
    assert not first.reward.any() and not first.success.any() and first.truncated[-1]


def test_actions_are_scaled_or_clipped_or_refused(tmp_path: Path) -> None:
    given = columns(next_reward=reward())
    given["action"] = given["action"] * np.float32([0.02, 3.0])
    root = foreign(tmp_path / "d", given, LENGTHS)
    message = r"episode 0, frame 0: component 1 of action is -2.53846, .* in \[-1, 1\]: give --action-scale"
    with pytest.raises(ValueError, match=message):
        read(root, tmp_path / "out.zarr")
    _, episodes = read(root, tmp_path / "scaled.zarr", action_scale=(0.02, 3.0))
    np.testing.assert_allclose(np.concatenate([e.action for e in episodes]), columns()["action"], rtol=1e-6)
    _, episodes = read(root, tmp_path / "clipped.zarr", clip_actions=True)
    np.testing.assert_array_equal(np.concatenate([e.action for e in episodes]), given["action"].clip(-1, 1))
    with pytest.raises(ValueError, match="--action-scale 1 2 3: give one number > 0, or one for each of the 2"):
        read(root, tmp_path / "out.zarr", action_scale=(1, 2, 3))


BAD = np.full(FRAMES, np.nan, np.float32)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"rename": ()}, r"nothing for observation 'tcp' \(float32 \[3\]\); it has observation.state \[5\]: say"),
        ({}, {"rename": NAMES[:1]}, r"nothing for observation 'goal'.*as in --rename 'observation.state\[0:2\]=goal'"),
        (
            {},
            {"rename": ("observation.state=tcp", NAMES[1])},
            r"state has 5 numbers of 5, observation 'tcp'",
        ),
        ({}, {"rename": ("observation.state[3:9]=tcp", NAMES[1])}, r"state\[3:9\] has 2 numbers of 5, .* takes 3"),
        ({}, {"rename": ("observation.states=tcp",)}, r"--rename observation.states=...: the dataset has observation"),
        ({}, {"rename": ("observation.state=pose",)}, r"--rename ...=pose: the names here are goal, tcp, action"),
        ({}, {"rename": ("observation.state",)}, r"--rename observation.state: write it as THEIRS=OURS"),
        ({}, {"rename": (*NAMES, "action=tcp")}, r"--rename action=tcp: tcp is given twice"),
        (
            {"action": np.zeros((FRAMES, 3), np.float32)},
            {},
            r"action has 3 numbers of 3, action \(2\) takes 2",
        ),
        ({"next.reward": np.zeros((FRAMES, 2))}, {}, r"next.reward has 2 numbers of 2, next.reward takes 1"),
        ({"next.reward": BAD}, {}, r"episode 0: reward holds NaN"),
        ({"action": np.full((FRAMES, 2), np.nan)}, {}, r"component 0 of action is nan"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_written(
    tmp_path: Path, change: dict, options: dict, message: str
) -> None:
    root = foreign(tmp_path / "d", columns(next_reward=reward()) | change, LENGTHS)
    with pytest.raises((ValueError, LookupError), match=message):
        read(root, tmp_path / "out.zarr", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_an_action_is_needed_and_an_output_that_is_there_refused(tmp_path: Path) -> None:
    given = columns(next_reward=reward())
    del given["action"]
    root = foreign(tmp_path / "d", given, LENGTHS)
    with pytest.raises(LookupError, match=r"no feature 'action': say which it is, --rename THEIRS=action"):
        read(root, tmp_path / "out.zarr")
    (tmp_path / "out.zarr").mkdir()
    with pytest.raises(FileExistsError, match=r"out.zarr exists: give another folder"):
        read(root, tmp_path / "out.zarr")


def _set(path: Path, **change: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: _set(d / "meta/info.json", codebase_version="v2.1"), r"'v2.1', v3.0 is read: convert it"),
        (lambda d: _set(d / "meta/info.json", total_episodes=3), r"has 2 episodes, meta/info.json says 3"),
        (lambda d: _set(d / "meta/info.json", fps=0), r"info.json: fps is 0"),
        (
            lambda d: _set(d / "meta/info.json", features={"x": {"dtype": "int64"}}),
            r"feature x has no dtype or no shape",
        ),
        (lambda d: (d / "meta/info.json").write_text("{"), r"info.json is damaged"),
        (lambda d: (d / "meta/info.json").unlink(), r"is no LeRobot dataset \(it has no meta/info.json\)"),
        (lambda d: (d / "data/chunk-000/file-000.parquet").unlink(), r"data has no parquet file"),
        (lambda d: (d / "data/chunk-000/file-000.parquet").write_bytes(b"PAR1"), r"file-000.parquet is damaged"),
        (shutil.rmtree, r"no dataset at"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Any, message: str) -> None:
    root = foreign(tmp_path / "d", columns(next_reward=reward()), LENGTHS)
    damage(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read(root, tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()


def test_frames_that_do_not_fit_the_episodes_are_named(tmp_path: Path) -> None:
    root = foreign(tmp_path / "d", columns(next_reward=reward()), LENGTHS)
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 6), path)
    with pytest.raises(ValueError, match="3 frames of episode 1 are expected, there are 2 of episode 1"):
        read(root, tmp_path / "out.zarr")
    pq.write_table(table.slice(0, 4), path)
    with pytest.raises(ValueError, match="3 frames of episode 1 are expected, there are none"):
        read(root, tmp_path / "out.zarr")
    pq.write_table(table.take([0, 2, 1, 3, 4, 5, 6]), path)
    with pytest.raises(ValueError, match="frame_index of episode 0 is not 0 to 3 in order"):
        read(root, tmp_path / "out.zarr")


@pytest.mark.parametrize("images", ["video", "png"])
def test_an_export_comes_back_as_it_was(tmp_path: Path, images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BATCH_ROWS", 5)  # batches and episodes end at different frames
    record(tmp_path / "demos.zarr", info(costs=images == "video"), (7, 1, 12, 5))
    arguments = ["--images", images, "--environment-state", "goal"]
    assert cli.main(["demo", "export", str(tmp_path / "demos.zarr"), "--out", str(tmp_path / "d"), *arguments]) == 0
    assert cli.main(["demo", "import", str(tmp_path / "d"), "--out", str(tmp_path / "back.zarr")]) == 0
    assert_equal_folders(tmp_path / "demos.zarr", tmp_path / "back.zarr", tolerance=6.0 if images == "video" else 0.0)


def test_without_what_our_export_noted_it_is_read_as_anybodys(tmp_path: Path) -> None:
    """As after an edit by another tool, which copies neither meta/robot_rl.json nor columns it does not know."""
    source = record(tmp_path / "demos.zarr", info(), (6, 4))
    export(source, tmp_path / "d")
    (tmp_path / "d/meta/robot_rl.json").unlink()
    dataset = Dataset(tmp_path / "d")
    with pytest.raises(ValueError, match=r"not written by robot-rl, or changed since: say whose .* --task NAME"):
        info_of(dataset)
    import_dataset(dataset, tmp_path / "back.zarr", info(), Options(("observation.state[0:2]=goal",)))
    for a, b in zip(EpisodeReader(source), EpisodeReader(tmp_path / "back.zarr"), strict=True):
        for name in STEP_FIELDS:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        for name in a.observation:
            x, y = a.observation[name].astype(float), b.observation[name].astype(float)
            np.testing.assert_allclose(x[:-1], y[:-1], atol=60.0 if x.ndim == 4 else 0.0)


def test_episodes_that_others_recorded_into_our_export_end_like_theirs(tmp_path: Path) -> None:
    """Their rows lack what we note; the picture behind their last frame is another episode's, if there is one."""
    source = record(tmp_path / "demos.zarr", info(), (6, 4, 5))
    export(source, tmp_path / "d")
    path = tmp_path / "d/meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    seeds = pa.array([0, None, 2], pa.int64())
    pq.write_table(table.set_column(table.schema.get_field_index("robot_rl/seed"), "robot_rl/seed", seeds), path)
    dataset = Dataset(tmp_path / "d")
    import_dataset(dataset, tmp_path / "back.zarr", info_of(dataset))
    ours, theirs, _ = EpisodeReader(tmp_path / "back.zarr")
    for name, rows in theirs.observation.items():
        np.testing.assert_array_equal(rows[-1], rows[-2], err_msg=name)
    np.testing.assert_array_equal(ours.observation["goal"], EpisodeReader(source)[0].observation["goal"])
    assert (ours.seed, theirs.seed) == (0, -2)


def test_observations_that_were_left_out_do_not_come_back(tmp_path: Path) -> None:
    record(tmp_path / "demos.zarr", info(), (3,))
    out = ["--out", str(tmp_path / "d"), "--leave-out", "camera/front", "mode"]
    assert cli.main(["demo", "export", str(tmp_path / "demos.zarr"), *out]) == 0
    assert cli.main(["demo", "import", str(tmp_path / "d"), "--out", str(tmp_path / "back.zarr")]) == 0
    assert EpisodeReader(tmp_path / "back.zarr").info.observation.keys() == {"goal", "pose/xy"}
    assert not (tmp_path / "d/videos").exists()


def test_pictures_of_another_size_are_resized(tmp_path: Path) -> None:
    export(record(tmp_path / "demos.zarr", info(), (3,)), tmp_path / "d")
    (tmp_path / "d/meta/robot_rl.json").unlink()
    small = StoreInfo("peg_insert", "ur5e", "sim", {"cam": ((16, 24, 3), "uint8")}, 3)
    import_dataset(Dataset(tmp_path / "d"), tmp_path / "back.zarr", small)
    (episode,) = EpisodeReader(tmp_path / "back.zarr")
    wanted = make_episode(0, 3, info()).observation["camera/front"][:3].astype(float)
    halved = wanted.reshape(3, 16, 2, 24, 2, 3).mean(axis=(2, 4))
    assert np.abs(episode.observation["cam"][:3] - halved).mean() < 8.0


def test_a_film_that_is_missing_or_too_short_is_named(tmp_path: Path) -> None:
    export(record(tmp_path / "demos.zarr", info(), (3, 4)), tmp_path / "d")
    (film,) = (tmp_path / "d").rglob("*.mp4")
    reader = FilmReader()
    assert reader.read(film, np.array([0.4, 0.5]), 32, 48, 0.04).shape == (2, 32, 48, 3)
    first = reader.read(film, np.array([0.0]), 32, 48, 0.04)  # backwards, too
    assert np.abs(first[0].astype(float) - make_episode(0, 3, info()).observation["camera/front"][0]).mean() < 6.0
    with pytest.raises(ValueError, match=r"file-000.mp4 has no picture at 5.000 s"):
        reader.read(film, np.array([5.0]), 32, 48, 0.04)
    reader.close()
    film.write_bytes(film.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"file-000.mp4 is damaged"):
        import_dataset(Dataset(tmp_path / "d"), tmp_path / "out.zarr", info())
    film.unlink()
    with pytest.raises(ValueError, match=r"file-000.mp4 is missing: fetch the dataset with its films"):
        import_dataset(Dataset(tmp_path / "d"), tmp_path / "out.zarr", info())
    assert not (tmp_path / "out.zarr").exists()


def test_the_command_checks_a_task_and_its_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = np.zeros((FRAMES, 30), np.float32)
    given = columns(next_reward=reward()) | {"observation.state": state, "action": np.zeros((FRAMES, 6), np.float32)}
    root = foreign(tmp_path / "d", given, LENGTHS)
    out = ["--out", str(tmp_path / "out.zarr"), "--task", "reach"]
    names = ["tcp_pose", "tcp_twist", "tcp_wrench", "goal", "goal_near"]
    rename = ["--rename", *[f"observation.state[{6 * i}:{6 * i + 6}]={name}" for i, name in enumerate(names)]]
    assert cli.main(["demo", "import", str(root), *out, *rename, "--set", "task.control_hz=20"]) == 2
    assert "has 10 frames per second, reach acts at 20 Hz: give --set task.control_hz=10" in capsys.readouterr().err
    assert cli.main(["demo", "import", str(root), *out, *rename, "--arm", "ur5e"]) == 0
    reader = EpisodeReader(tmp_path / "out.zarr")
    assert (reader.info.task, reader.info.arm, len(reader)) == ("reach", "ur5e", 2)
    assert "2 episodes, 1 of them successes, 7 steps" in capsys.readouterr().err


def test_an_export_is_not_taken_for_another_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(record(tmp_path / "demos.zarr", info(cameras=False), (2,)), tmp_path / "d")
    assert cli.main(["demo", "import", str(tmp_path / "d"), "--task", "reach", "--out", str(tmp_path / "o.zarr")]) == 2
    assert "was exported from peg_insert; leave --task out" in capsys.readouterr().err


@st.composite
def folders(draw: st.DrawFn) -> tuple[StoreInfo, list[Episode]]:
    """Any observations of numbers, and episodes of them with any of the numbers that a store takes."""
    dtypes = st.sampled_from(["float32", "float64", "int64", "int8", "uint8", "bool"])
    shapes = st.sampled_from([(), (1,), (3,), (2, 2)])
    names = st.sampled_from(["a", "b", "c/x", "c/y", "c/z/x"])  # as nested Dict spaces give them
    fields = draw(st.dictionaries(names, st.tuples(shapes, dtypes), min_size=1, max_size=4))
    size, costs = draw(st.integers(1, 3)), draw(st.booleans())
    about = StoreInfo("reach", "panda", "sim", fields, size, {"task": {"control_hz": 7.5}}, costs)

    def rows(shape: tuple[int, ...], dtype: str) -> np.ndarray:
        finite = {"allow_nan": False, "allow_infinity": False} if np.dtype(dtype).kind == "f" else None
        return draw(arrays(dtype, shape, elements=finite))

    episodes = []
    for _ in range(draw(st.integers(1, 3))):
        steps = draw(st.integers(1, 4))
        last = np.arange(steps) == steps - 1
        episodes.append(
            Episode(
                {name: rows((steps + 1, *shape), dtype) for name, (shape, dtype) in fields.items()},
                rows((steps, about.action_dim), "float32"),
                rows((steps,), "float32"),
                last & draw(st.booleans()),
                last & draw(st.booleans()),
                rows((steps,), "bool"),
                draw(st.integers(-(2**63), 2**63 - 1)),
                rows((steps,), "float32") if about.costs else None,
            )
        )
    return about, episodes


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking writes to the disk for minutes
)
@given(folders(), st.booleans())
def test_any_numbers_come_back_bit_for_bit(folder: tuple[StoreInfo, list[Episode]], split: bool) -> None:
    about, episodes = folder
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        with EpisodeWriter(path / "demos.zarr", about) as writer:
            for episode in episodes:
                writer.append(episode)
        limit = {"data_file_mb": 1e-6} if split else {}
        export(path / "demos.zarr", path / "d", exporting.Options(**limit))
        dataset = Dataset(path / "d")
        import_dataset(dataset, path / "back.zarr", info_of(dataset))
        assert_equal_folders(path / "demos.zarr", path / "back.zarr")
