"""Success classifiers from pixels: at most 200 positive frames of a twin, then 200 fresh episodes of it in use.

Prints one JSON line per task (arguments; peg_insert and object_relocation unless given): held-out accuracy, episodes
with a false positive, missed successes, and how long a frame takes to judge. Label sets, classifiers and pictures of
what went wrong stay in classifiers/<task> beside where it was started; labels that are there are used again.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from robot_rl.build import make_env
from robot_rl.cli import main
from robot_rl.reward import classifier as classifiers
from robot_rl.reward.labels import LabelSet

TASKS = ("peg_insert", "object_relocation")
CAMERAS = ("vision.cameras=wrist,side", "vision.size_px=128")
LABELLED, POSITIVES, EPISODES = 110, 200, 200
TRAINING = ("size=128", "hold_steps=3", "recall=0.85")
ROUNDS = 200


def judging_s(path: Path, task: str) -> float:
    """The median time of judging one frame."""
    found = classifiers.load(path)
    env = make_env(task, settings=CAMERAS)
    obs, _ = env.reset(seed=0)
    env.close()
    times = []
    for _ in range(ROUNDS):
        begun_s = time.perf_counter()
        found.probability(obs)
        times.append(time.perf_counter() - begun_s)
    return float(np.median(times))


def measure(task: str) -> dict[str, object]:
    folder = Path("classifiers") / task
    labels, versions = folder / "labels.zarr", folder / "versions"
    if not labels.exists():
        words = ["--episodes", str(LABELLED), "--negatives", "25", "--most-positives", str(POSITIVES)]
        _run("label", str(labels), "--task", task, *words, "--set", *CAMERAS)
    begun_s = time.perf_counter()
    _run("train", str(labels), "--out", str(versions), "--fresh", "--set", *TRAINING)
    train_s = time.perf_counter() - begun_s
    words = ["--task", task, "--episodes", str(EPISODES), "--out", str(folder / "eval")]
    _run("eval", str(versions), "--labels", str(labels), *words, "--set", *CAMERAS)
    report = json.loads((folder / "eval/report.json").read_text())
    about = {"benchmark": "classifier", "task": task, "positive_frames": LabelSet(labels).counts()["positive"]}
    held = {name: report["labels"][name] for name in ("accuracy", "accuracy_interval", "calibration_error")}
    times = {"train_s": round(train_s, 1), "judge_ms": round(1000 * judging_s(versions, task), 2)}
    return about | {f"held_out_{name}": value for name, value in held.items()} | report["episodes"] | times


def _run(*words: str) -> None:
    if status := main(["reward", *words]):
        sys.exit(status)


if __name__ == "__main__":
    lines = [json.dumps(measure(task)) for task in sys.argv[1:] or TASKS]
    print("\n".join(lines))
