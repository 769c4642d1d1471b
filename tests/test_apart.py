"""Actors and learner as processes that are killed, stopped, cut off and short of room: nothing is lost, nothing is
there twice, and the run ends as it would have. `benchmarks/drills.py` does the same many times over."""

import json
import random
import shutil
import signal
import subprocess
import time

import pytest

from robot_rl import cli
from robot_rl.step_log import StepLog
from tests.apart import SETTINGS, TASK, Pair, Process, pause
from tests.cut_wire import CutWire
from tests.ros_children import ROOT, child_processes, until


@pytest.fixture(autouse=True)
def _tiny_env_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests"))


def test_kill_both_sides_at_random_moments(tmp_path):
    """Two actors; each process is killed once or more, the learner twice, and once all of them at one moment."""
    rng = random.Random(7)
    with Pair(tmp_path, steps=1000, actors=2) as pair:
        pair.wait_for_rows(rng.randrange(30, 120))
        pair.actors[0].kill()
        pair.actors[0] = pair.start_actor(0)
        pair.wait_for_rows(rng.randrange(150, 250))
        pair.learner.kill()
        pair.start_learner()
        pair.wait_for_rows(rng.randrange(300, 420))
        for process in (pair.learner, *pair.actors):
            process.kill()
        pair.start_learner()
        pair.actors = [pair.start_actor(index) for index in range(2)]
        pair.wait_for_rows(rng.randrange(700, 900))
        pair.learner.kill()
        pair.start_learner()
        summary = pair.finish()
        logs = [StepLog(pair.place(index) / "steps.zarr") for index in range(2)]
    assert 1000 <= summary["env_steps"] < 1002, "what is left is shared among the actors, rounded up"
    assert summary["success_rate"] >= 0.6, "in one process, without a kill, it is 0.78 to 1"
    assert all(len(log) > 100 for log in logs), "both actors acted"
    incarnations = [json.loads((pair.place(index) / "actor.json").read_text())["incarnation"] for index in range(2)]
    assert min(incarnations) >= 2, "each was killed with its folder open"


def test_a_stopped_or_cut_off_learner_is_waited_for(tmp_path):
    """SIGSTOP of each side, then a cut of the wire between them that outlasts every deadline."""
    with Pair(tmp_path, steps=500, actors=0) as pair, CutWire(pair.port) as wire:
        pair.actors = [pair.start_actor(0, at=f"127.0.0.1:{wire.port}")]
        pair.wait_for_rows(60)
        pause(pair.learner, 6.0, time.sleep)
        pair.wait_for_rows(120)
        pause(pair.actors[0], 6.0, time.sleep)
        pair.wait_for_rows(200)
        wire.cut()
        before = pair.rows()
        time.sleep(30.0)
        assert pair.rows() - before <= 16, "at most what had arrived"
        assert pair.actors[0].popen.poll() is None and pair.learner.popen.poll() is None
        wire.mend()
        summary = pair.finish()
        assert "no answer from the learner" in pair.actors[0].said and "answers again" in pair.actors[0].said
    assert summary["env_steps"] == 500


def test_a_replaced_learner_gets_everything_from_the_log(tmp_path):
    """The learner's store is lost: the same run begins from nothing, and is caught up by the actor's log."""
    with Pair(tmp_path, steps=400) as pair:
        pair.wait_for_rows(150)
        pair.learner.kill()
        shutil.rmtree(pair.run / "steps.zarr")
        shutil.rmtree(pair.run / "checkpoints", ignore_errors=True)
        pair.start_learner()
        assert pair.finish()["env_steps"] == 400


def test_a_store_that_was_put_back_is_told_from_its_checkpoint(tmp_path):
    with Pair(tmp_path, steps=400) as pair:
        until(lambda: list(pair.run.glob("checkpoints/0*")), 240.0)
        pair.learner.kill()
        shutil.rmtree(pair.run / "steps.zarr")
        again = pair.start_learner()
        assert again.end() == 2 and "it was put back to an older copy" in again.said


def test_a_full_disk_ends_a_learner_in_words_and_it_goes_on_with_room(tmp_path, small_disk):
    with Pair(tmp_path, steps=500, disk=small_disk) as pair:
        pair.wait_for_rows(100)
        filler = small_disk / "filler"
        with open(filler, "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(1 << 12))
        assert pair.learner.end() == 2 and "the disk is full while writing" in pair.learner.said
        assert pair.actors[0].popen.poll() is None, "the actor waits"
        filler.unlink()
        pair.start_learner()
        assert pair.finish()["env_steps"] == 500


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 24 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True)
    if made.returncode != 0:
        pytest.skip("only root may make a disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_ctrl_c_stops_both_and_they_go_on(tmp_path):
    with Pair(tmp_path, steps=400) as pair:
        pair.wait_for_rows(100)
        pair.learner.signal(signal.SIGINT)
        assert pair.learner.end() == 130 and "go on with: robot-rl learner --resume" in pair.learner.said
        pair.actors[0].signal(signal.SIGTERM)
        assert pair.actors[0].end() == 143
        pair.actors = [pair.start_actor(0)]
        pair.start_learner()
        assert pair.finish()["env_steps"] == 400


def test_train_async_is_one_command_and_leaves_no_process(tmp_path):
    before = child_processes()
    folder = tmp_path / "run"
    words = ["train", "--async", *TASK, "--steps", "300", "--out", str(folder), "--set", *SETTINGS]
    first = Process(tmp_path / "log", *words)
    until(lambda: (folder / "checkpoints").exists() and list(folder.glob("checkpoints/0*")), 240.0)
    first.kill()  # and with it, by itself, its actor
    again = Process(tmp_path / "log", "train", "--resume", str(folder))
    assert again.end() == 0, again.said
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["env_steps"] == 300 and summary["eval_episodes"] == 20
    assert child_processes() <= before
    assert cli.main(["eval", str(folder), "--episodes", "5"]) == 0
