"""Label sets on disk, where labels come from, and what becomes of hard negatives."""

import threading

import numpy as np
import pytest

from robot_rl.episode import Episode
from robot_rl.reward.collect import label_by_presses
from robot_rl.reward.labels import NEGATIVE, POSITIVE, UNKNOWN, LabelSet, Origin
from robot_rl.reward.mining import mine, review
from robot_rl.reward.sources import Trajectory, label_as_told, label_by_end, open_source, thin
from robot_rl.store import EpisodeWriter, StoreInfo
from tests.reward_sets import CAMERA, FIELDS, episode, label_set, linear_classifier
from tests.step_rows import EPISODE, LAYOUT, rows_of


def test_what_is_added_is_read_back_with_where_it_is_from(tmp_path):
    labels = label_set(tmp_path / "labels.zarr", episodes=4)
    frames = LabelSet(tmp_path / "labels.zarr").frames()
    rng = np.random.default_rng(0)
    for index in range(4):
        observation, label = episode(rng, 9, index % 2 == 0)
        of = frames.take(frames.episode == index)
        assert of.keys == [("toy", index, index)] and of.step.tolist() == list(range(9))
        assert np.array_equal(of.label, label) and np.array_equal(of.observation[CAMERA], observation[CAMERA])
        assert np.array_equal(of.observation["height"], observation["height"])
    assert labels.counts() == {"entries": 4, "episodes": 4, "positive": 6, "negative": 30, "unknown": 0}


def test_a_correction_is_added_and_nothing_is_changed(tmp_path):
    labels = label_set(tmp_path / "labels.zarr", episodes=2)
    before = (tmp_path / "labels.zarr/000000/label/c/0").read_bytes()
    changed = labels.labels()[0].copy()
    changed[-1] = UNKNOWN
    labels.correct(0, changed)
    assert labels.labels()[0].tolist() == changed.tolist() and len(labels.frames()) == 17
    assert (tmp_path / "labels.zarr/000000/label/c/0").read_bytes() == before
    labels.correct(0, np.zeros(9))
    assert labels.counts()["positive"] == 0
    with pytest.raises(ValueError, match="is a correction itself: correct entry 0"):
        labels.correct(2, np.zeros(9))
    with pytest.raises(ValueError, match="entry 1 has 9 frames"):
        labels.correct(1, np.zeros(3))


def test_several_may_add_at_once_and_none_is_lost(tmp_path):
    label_set(tmp_path / "labels.zarr", episodes=1)

    def add(worker):
        labels = LabelSet(tmp_path / "labels.zarr")
        for index in range(3):
            observation, label = episode(np.random.default_rng(worker), 3, True)
            labels.append(observation, label, np.arange(3), Origin(f"worker {worker}", index))

    workers = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert {origin.key for origin in LabelSet(tmp_path / "labels.zarr").origins().values()} == {
        ("toy", 0, 0), *((f"worker {number}", index, -1) for number in range(4) for index in range(3)),
    }  # fmt: skip


def test_what_a_killed_process_left_is_not_seen(tmp_path):
    labels = label_set(tmp_path / "labels.zarr", episodes=2)
    (tmp_path / "labels.zarr/.entry.x.tmp/label").mkdir(parents=True)
    assert len(labels) == 2 and len(labels.frames()) == 18


def test_damage_is_named(tmp_path):
    labels = label_set(tmp_path / "labels.zarr", episodes=2)
    chunk = tmp_path / "labels.zarr/000001/frame/height/c/0/0"
    chunk.write_bytes(b"\x00" + chunk.read_bytes()[1:])
    with pytest.raises(ValueError, match="000001/frame/height is missing or damaged"):
        labels.frames()


def test_frames_of_other_observations_are_refused(tmp_path):
    labels = label_set(tmp_path / "labels.zarr", episodes=1)
    rows, label = episode(np.random.default_rng(0), 3, True)
    with pytest.raises(ValueError, match="'camera/wrist' is missing"):
        labels.append({"height": rows["height"]}, label, np.arange(3), Origin("x", 0))
    with pytest.raises(ValueError, match=r"'height' is float64\(3, 1\): the label set holds float32"):
        labels.append(rows | {"height": rows["height"].astype(float)}, label, np.arange(3), Origin("x", 0))
    with pytest.raises(ValueError, match="labels"):
        labels.append(rows, np.full(3, 2), np.arange(3), Origin("x", 0))
    with pytest.raises(ValueError, match=r"other observations \('height' is \(\(1,\), 'float32'\) there, \(\(2,\)"):
        LabelSet(tmp_path / "labels.zarr", FIELDS | {"height": ((2,), "float32")})
    with pytest.raises(FileNotFoundError, match="no label set at"):
        LabelSet(tmp_path / "none.zarr")
    with pytest.raises(ValueError, match="holds no labelled frame"):
        LabelSet(tmp_path / "new.zarr", FIELDS).frames()


def trajectory(told, finished=True):
    told = np.array(told, np.int8)
    return Trajectory("s", 0, {"height": np.zeros((len(told), 1), np.float32)}, told, finished)


def test_labels_by_how_an_episode_ended():
    success = trajectory([-1, 0, 0, 0, 0, 1])
    assert label_by_end(success, last=1, margin=2).tolist() == [0, 0, 0, -1, -1, 1]
    assert label_by_end(success, last=2, margin=9).tolist() == [-1, -1, -1, -1, 1, 1]
    assert label_by_end(trajectory([-1, 0, 1, 0]), 1, 1).tolist() == [0, 0, 0, 0]
    assert label_by_end(trajectory([-1, 0, 0], finished=False), 1, 1).tolist() == [-1, -1, -1]
    assert label_as_told(trajectory([-1, 0, 0, 1, 1, 0, 1]), margin=1).tolist() == [-1, 0, -1, 1, 1, -1, 1]


def test_labels_by_keys():
    pressed = {2: frozenset({"success"}), 6: frozenset({"fail"})}
    presses = [pressed.get(index, frozenset()) for index in range(8)]
    assert label_by_presses(presses, margin=1).tolist() == [0, -1, 1, 1, 1, -1, 0, 0]
    assert label_by_presses([frozenset()] * 3, margin=1).tolist() == [0, 0, 0]


def test_what_is_kept_of_an_episode_are_the_hard_ones_first():
    label = np.array([0] * 20 + [1] * 6, np.int8)
    kept = thin(label, 2, 6, np.random.default_rng(0))
    assert np.sum(kept == POSITIVE) == 2 and np.sum(kept == NEGATIVE) == 6
    assert (kept[17:20] == NEGATIVE).all() and not (kept[label == POSITIVE] == NEGATIVE).any()
    assert np.array_equal(thin(label, 99, 99, np.random.default_rng(0)), label)


def test_episodes_of_a_store_and_of_a_log_of_steps(tmp_path):
    info = StoreInfo("toy", "none", "sim", {"height": ((1,), "float32")}, 1, costs=False)
    end = np.array([False, False, True])
    with EpisodeWriter(tmp_path / "demos.zarr", info) as writer:
        for success in (True, False):
            height = np.arange(4, dtype=np.float32)[:, None]
            steps = np.zeros((3, 1), np.float32), np.zeros(3, np.float32)
            writer.append(
                Episode({"height": height}, *steps, end & success, end & (not success), end & success, seed=7)
            )
    source = open_source(tmp_path)  # finds it in a run folder
    good, bad = source
    assert source.about["task"] == "toy" and good.succeeded and not bad.succeeded and good.seed == 7
    assert good.told.tolist() == [-1, 0, 0, 1] and len(good.observation["height"]) == 4


def test_episodes_of_actors_are_told_apart_in_one_log(tmp_path):
    from robot_rl.step_log import StepLog

    first, second = rows_of(5, 2 * (EPISODE + 1)), rows_of(6, EPISODE + 1)
    mixed = np.concatenate([first[:2], second[:3], first[2:], second[3:]])
    with StepLog(tmp_path / "steps.zarr", LAYOUT, {"run": "r"}) as log:
        log.append(mixed)
    found = list(open_source(tmp_path / "steps.zarr"))
    assert sorted(len(one.told) for one in found) == [EPISODE + 1] * 3 and len({one.episode for one in found}) == 3
    with pytest.raises(ValueError, match="holds no episodes"):
        open_source(tmp_path / "steps.zarr" / "c")


@pytest.fixture
def mined(tmp_path):
    """A label set, and a classifier whose logit is the height, over episodes that failed."""
    info = StoreInfo("toy", "none", "sim", {"height": ((1,), "float32")}, 1, costs=False)
    heights = ([0.0, 3.0, 1.0, 0.0], [0.0, 0.5, 2.0, 0.0], [0.0, 9.0, 9.0, 9.0])
    with EpisodeWriter(tmp_path / "demos.zarr", info) as writer:
        for index, height in enumerate(heights):
            success = np.array([False, False, index == 2])
            end = np.array([False, False, True])
            steps = np.zeros((3, 1), np.float32), np.zeros(3, np.float32)
            rows = {"height": np.array(height, np.float32)[:, None]}
            writer.append(Episode(rows, *steps, end & success, end & ~success, success, seed=index))
    return LabelSet(tmp_path / "labels.zarr", info.observation), open_source(tmp_path / "demos.zarr")


def test_the_surest_frames_of_failures_are_mined_once(mined):
    labels, source = mined
    classifier = linear_classifier("height", [1.0], 0.0)
    assert mine(classifier, source, labels, 2, 1, confirmed=True) == 2
    frames = labels.frames()
    assert sorted(frames.observation["height"][:, 0].tolist()) == [2.0, 3.0] and (frames.label == NEGATIVE).all()
    assert mine(classifier, source, labels, 2, 1, confirmed=False) == 2  # the next ones
    assert sorted(labels.frames(known=False).observation["height"][:, 0].tolist()) == [0.5, 1.0, 2.0, 3.0]


def test_a_person_has_the_last_word(mined, tmp_path):
    labels, source = mined
    mine(linear_classifier("height", [1.0], 0.0), source, labels, 3, 2, confirmed=False)
    assert labels.counts()["unknown"] == 3
    answers, said = iter(["5 what", "2\n"]), []
    assert review(labels, tmp_path / "sheet.png", lambda question: next(answers), said.append) == 3
    assert labels.counts()["positive"] == 1 and labels.counts()["negative"] == 2
    assert any("give numbers from 1 to 3" in line for line in said) and (tmp_path / "sheet.png").stat().st_size > 1000
    assert review(labels, tmp_path / "sheet.png", lambda question: None, said.append) == 0
