"""A policy trained on a twin in this process succeeds as often through the makers' client libraries and protocols."""

import json
import subprocess
import sys

import pytest

from robot_rl.children import environment
from tests.ros_children import ROOT, thorough
from tests.served import serve

ARMS = {"fr3": "fci", "ur5e": "rtde"}
MORE = {"fr3": (), "ur5e": ("arm.mode=torque",)}
STEPS = 4000  # enough for a policy that nearly always succeeds
SMALL = ("agent.hidden=128,128", "agent.batch_size=128")  # so is a sixth of the arithmetic
EPISODES = 50
POINTS = 0.05  # of success that the protocol may cost


def robot_rl(*words: str, at_once: int = 1) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "robot_rl.cli", *words],
        cwd=ROOT, env=thorough(PYTHONPATH=str(ROOT), **environment(at_once)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run folder of ``peg_insert`` for each arm, trained side by side."""
    folder = tmp_path_factory.mktemp("policies")
    words = ["train", "--task", "peg_insert", "--steps", str(STEPS), "--set", "train.eval_episodes=1", *SMALL]
    trainings = {arm: robot_rl(*words, "--arm", arm, "--out", str(folder / arm), at_once=len(ARMS)) for arm in ARMS}
    for training in trainings.values():
        said = training.communicate()[1]
        assert training.returncode == 0, said
    return {arm: folder / arm for arm in ARMS}


def success_rate(*words: str) -> float:
    process = robot_rl("eval", *words, "--episodes", str(EPISODES), "--json")
    out, said = process.communicate()
    assert process.returncode == 0, said
    result = json.loads(out)
    assert result["episodes"] == EPISODES
    return result["success_rate"]


@pytest.mark.parametrize("arm", ARMS)
def test_a_policy_succeeds_as_often_behind_the_makers_protocol(runs, arm):
    here = success_rate(str(runs[arm]))
    assert here >= 0.8, "the training itself failed"
    with serve(ARMS[arm], task="peg_insert", lockstep=True) as twin:
        words = ["--world", "hardware", "--set", f"arm.address={twin.host}", "arm.twin=lockstep", *MORE[arm]]
        there = success_rate(str(runs[arm]), *words)
        assert twin.stop() == 0
    assert there >= here - POINTS - 1e-9, f"{there:.0%} through {ARMS[arm]}, {here:.0%} in process"
