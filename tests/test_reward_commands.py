"""``robot-rl reward``: from nothing to a classifier that is in use, and what it says to a person."""

import json

import numpy as np
import pytest

from robot_rl.cli import main
from robot_rl.reward import classifier as classifiers
from robot_rl.reward import commands
from robot_rl.reward.collect import _Pushed, drive
from robot_rl.reward.labels import LabelSet
from tests.reward_sets import label_set

QUICK = ("steps=40", "check_every=20", "batch_size=16", "hidden=16", "inputs=goal,tcp_pose", "hold_steps=1")


def said(capsys):
    """The last line on stdout, which is JSON."""
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture(scope="module")
def reach(tmp_path_factory):
    """Labels of ``reach``, by what the twin knows, and a classifier of them."""
    folder = tmp_path_factory.mktemp("reward")
    words = ["--task", "reach", "--episodes", "10", "--negatives", "8", "--set", "task.max_steps=40"]
    assert main(["reward", "label", str(folder / "labels.zarr"), *words]) == 0
    assert main(["reward", "train", str(folder / "labels.zarr"), "--out", str(folder / "c"), "--set", *QUICK]) == 0
    return folder


def test_a_twin_labels_its_own_frames(reach):
    labels = LabelSet(reach / "labels.zarr")
    assert labels.about == {"task": "reach", "arm": "panda", "world": "sim"}
    counts = labels.counts()
    assert counts["episodes"] == 10 and counts["positive"] >= 10 and counts["negative"] >= 50
    assert not any(name.startswith("sim/") for name in labels.observation)
    frames = labels.frames()
    distance = np.linalg.norm(frames.observation["goal"][:, :3], axis=1)
    assert distance[frames.label == 1].max() < distance[frames.label == 0].max() / 2


def test_more_episodes_are_other_ones(reach, tmp_path, capsys):
    word = ["reward", "label", str(tmp_path / "l.zarr"), "--task", "reach", "--set", "task.max_steps=10"]
    for _ in range(2):
        assert main([*word, "--episodes", "2", "--most-positives", "1"]) == 0
    origins = LabelSet(tmp_path / "l.zarr").origins().values()
    assert sorted(origin.episode for origin in origins) == [0, 1, 2, 3]
    assert len({origin.seed for origin in origins}) == 4


def test_a_version_has_its_report_and_the_next_goes_on_from_it(reach, capsys):
    found = classifiers.load(reach / "c")
    about = json.loads((reach / "c/000001.json").read_text())
    assert about["report"]["held_out"]["balanced_accuracy"] > 0.8
    assert about["origin"]["labels"] == str(reach / "labels.zarr") and about["origin"]["task"] == "reach"
    assert found.preprocessing.names == ("goal", "tcp_pose") and found.hold_steps == 1


def test_a_trial_counts_what_it_got_wrong(reach, tmp_path, capsys):
    words = ["--labels", str(reach / "labels.zarr"), "--task", "reach", "--episodes", "5", "--out", str(tmp_path / "e")]
    settings = ["--set", "task.max_steps=30", "reward.threshold=0.0001", "reward.hold_steps=2"]
    assert main(["reward", "eval", str(reach / "c"), *words, *settings]) == 0
    report = said(capsys)
    assert report["episodes"]["judged_successes"] == 5 == report["episodes"]["episodes"]
    assert report["episodes"]["false_positive_episodes"] >= 4  # so low a threshold calls anything a success
    held = report["labels"]
    assert held["episodes"] == 10 - len(classifiers.load(reach / "c").about["trained_on"])
    assert held["positive"] + held["negative"] == sum(
        held[name] for name in ("true_positive", "false_positive", "true_negative", "false_negative")
    )
    assert {path.name for path in (tmp_path / "e").iterdir()} == {"reliability.png", "worst.png", "report.json"}


def test_labels_follow_from_recorded_episodes_once(tmp_path, capsys):
    words = ["--out", str(tmp_path / "d.zarr"), "--episodes", "2"]
    assert main(["demo", "record", "--task", "reach", *words]) == 0
    word = ["reward", "label", str(tmp_path / "l.zarr"), "--source", str(tmp_path / "d.zarr")]
    for _ in range(2):
        assert main([*word, "--last", "2", "--margin", "1", "--negatives", "3"]) == 0
        assert said(capsys) == {"entries": 2, "episodes": 2, "positive": 4, "negative": 6, "unknown": 0}


def test_one_frame_is_corrected(tmp_path, capsys):
    labels = label_set(tmp_path / "l.zarr", episodes=2)
    assert main(["reward", "label", str(labels.path), "--correct", "0:8=0", "1:2=-1"]) == 0
    assert said(capsys) | {"entries": 0} == {"entries": 0, "episodes": 2, "positive": 2, "negative": 15, "unknown": 1}
    for wrong, says in (("7:0=1", "has no entry 7"), ("0:99=1", "entry 0 has steps"), ("0=1", "ENTRY:STEP=LABEL")):
        assert main(["reward", "label", str(labels.path), "--correct", wrong]) == 2
        assert says in capsys.readouterr().err


def test_new_labels_make_new_versions_until_it_is_stopped(tmp_path, monkeypatch, capsys):
    labels = label_set(tmp_path / "l.zarr")
    fitted = []
    real = commands._fit_version

    def fit(command, found, config, stop):
        seen = real(command, found, config, stop)
        fitted.append(len(classifiers.versions(tmp_path / "c")))
        if len(fitted) == 1:
            labels.correct(1, np.array([1, *[0] * 8]))
        else:
            commands.StopSignals.stop_process()
        return seen

    monkeypatch.setattr(commands, "_fit_version", fit)
    monkeypatch.setattr(commands.StopSignals, "_heard", None)
    word = ["reward", "train", str(labels.path), "--out", str(tmp_path / "c"), "--follow", "--json"]
    quick = ["steps=20", "check_every=20", "batch_size=16", "hidden=8", "inputs=height"]
    assert main([*word, "--set", *quick]) == 128 + 15
    assert fitted == [1, 2]
    assert said(capsys)["version"].endswith("000002.ckpt")


@pytest.mark.parametrize(
    "words, says",
    [
        (["label", "l.zarr"], "where labels come from"),
        (["label", "l.zarr", "--task", "reach", "--mine", "c"], "give --source DIR as well"),
        (["label", "l.zarr", "--task", "reach", "--episodes", "0"], "--episodes 0: give at least 1"),
        (["label", "l.zarr", "--source", "nothing"], "no episodes at"),
        (["label", "l.zarr", "--task", "reach", "--policy", "p"], "leave out --task"),
        (["train", "none.zarr", "--out", "c"], "no label set at none.zarr"),
        (["eval", "none", "--task", "reach"], "train one, robot-rl reward train"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reward", *words]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "l.zarr").exists()


def test_a_near_miss_is_an_expert_pushed_aside_for_a_while():
    rng = np.random.default_rng(0)
    act = drive("near miss", lambda obs: np.full(3, 0.1), 3, rng, 20)
    assert isinstance(act, _Pushed)
    actions = np.stack([act(None) for _ in range(60)])
    pushed = ~np.all(actions == 0.1, axis=1)
    assert 5 <= pushed.sum() < 60 and np.abs(actions).max() <= 1.0 and not pushed[50:].any()
    wander = drive("wandering", None, 3, np.random.default_rng(0), 20)
    paths = np.stack([wander(None) for _ in range(40)])
    assert 4 <= len(np.unique(paths, axis=0)) <= 20
