"""The newcomer's path on a real task: train on the twin, evaluate, draw, film. And it does learn."""

import json
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from tests.ros_children import thorough


def robot_rl(*args: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "robot_rl.cli", *args]
    out = subprocess.run(words, capture_output=True, text=True, env=thorough())
    assert out.returncode == 0, out.stderr
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "reach"
    robot_rl("train", "--task", "reach", "--agent", "rlpd", "--steps", "3000", "--seed", "0", "--out", str(folder))
    return folder


def test_it_learns(run):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["success_rate"] >= 0.9 and summary["eval_episodes"] == 100
    assert 3000 <= summary["env_steps"] < 3050
    assert {"wall_s", "env_steps_per_s", "updates_per_s"} <= summary.keys()


def test_the_run_folder_is_complete(run):
    about = json.loads((run / "run.json").read_text())
    assert about["task"] == "reach" and about["configs"]["agent"]["critics"] == 4
    assert about["versions"]["mujoco"] and "robot" in about["command"]
    assert (run / "metrics.csv").stat().st_size > 0
    assert list(run.glob("**/events.out.tfevents*")) and list((run / "checkpoints").iterdir())


def test_evaluation_is_one_json_object_and_repeatable(run):
    first, second = (json.loads(robot_rl("eval", str(run), "--episodes", "20", "--json").stdout) for _ in range(2))
    assert first["success_rate"] == second["success_rate"] >= 0.8


def test_curve_and_video(run, tmp_path):
    robot_rl("plot", str(run), "--out", str(tmp_path / "curve.png"))
    curve = imageio.imread(tmp_path / "curve.png")
    assert curve.shape[0] > 200 and curve.std() > 5
    robot_rl("video", str(run), "--episodes", "1", "--out", str(tmp_path / "policy.mp4"))
    frames = imageio.imread(tmp_path / "policy.mp4", plugin="FFMPEG")
    assert len(frames) >= 3 and frames[0].std() > 10
    assert np.abs(frames[0].astype(float) - frames[-1]).max() > 30, "the arm has to move"
