"""A learner and its actors as processes, to be killed; and what must hold of their files whatever happened."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from robot_rl import checkpoint, run
from robot_rl.children import environment
from robot_rl.log import read_metrics
from robot_rl.step_log import STEP, StepLog
from robot_rl.types import INTERVENTION
from tests.ros_children import ROOT, kill, until

TASK = ("--gym", "tiny_env:Tiny-v0")
SETTINGS = (
    "agent.hidden=32,32", "agent.batch_size=64", "agent.utd_ratio=2", "agent.critics=3", "agent.learning_starts=20",
    "train.demo_episodes=4", "train.eval_episodes=20", "train.checkpoint_every=100", "train.lead_steps=16",
    "intervention.by=scripted", "intervention.patience_steps=3", "intervention.hold_steps=2",
)  # fmt: skip
UTD, STARTS = 2, 20
PATIENCE_S = 240.0  # several processes import JAX side by side


class Process:
    """One ``robot-rl`` command; what it says is appended to ``log``."""

    def __init__(self, log: Path, *words: str) -> None:
        path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
        self.log = log
        with open(log, "a") as file:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "robot_rl.cli", *words],
                cwd=ROOT, env={**os.environ, "PYTHONPATH": path, **environment(2)},
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, process_group=0,
            )  # fmt: skip

    def kill(self) -> None:
        """kill -9."""
        kill(self.popen)

    def signal(self, signum: int) -> None:
        self.popen.send_signal(signum)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def end(self) -> int:
        """Its exit status, once it has ended by itself."""
        try:
            return until(lambda: self.popen.poll() is not None and (self.popen.returncode,), PATIENCE_S)[0]
        except AssertionError as error:
            raise AssertionError(f"{error}; it said:\n{self.said[-3000:]}") from None


class Pair:
    """A learner at a port of its own and actors, in ``folder``; all are killed at the end."""

    def __init__(
        self, folder: Path, steps: int = 600, actors: int = 1, settings: Sequence[str] = (), disk: Path | None = None
    ) -> None:
        """``disk``: where the learner has its run, if not in ``folder``."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.steps = folder, steps
        self.run = (disk or folder) / "run"
        self._words = ("--steps", str(steps), "--seed", "3", "--set", *SETTINGS, *settings)
        self._made: list[Process] = []
        self.learner = self.start_learner()
        self.actors = [self.start_actor(index) for index in range(actors)]

    def __enter__(self) -> "Pair":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._made:
            process.kill()

    def _start(self, name: str, *words: str) -> Process:
        self._made.append(Process(self.folder / f"{name}.log", *words))
        return self._made[-1]

    def start_learner(self) -> Process:
        """The first one, or one that goes on."""
        here = ("--listen", f"127.0.0.1:{self.port}")
        if (self.run / "run.json").exists():
            self.learner = self._start("learner", "learner", "--resume", str(self.run), *here)
        else:
            self.learner = self._start("learner", "learner", *TASK, "--out", str(self.run), *here, *self._words)
        return self.learner

    def start_actor(self, index: int = 0, at: str = "") -> Process:
        where = ("--learner", at or f"127.0.0.1:{self.port}", "--index", str(index), "--out", str(self.place(index)))
        return self._start(f"actor{index}", "actor", *where)

    def place(self, index: int) -> Path:
        return self.folder / f"actor{index}"

    def rows(self) -> int:
        """That the learner has."""
        try:
            return len(StepLog(self.run / "steps.zarr"))
        except (FileNotFoundError, ValueError):  # not made yet, or just being made
            return 0

    def wait_for_rows(self, count: int) -> None:
        try:
            until(lambda: self.rows() >= count, PATIENCE_S)
        except AssertionError as error:
            said = "\n".join(f"{process.log}:\n{process.said[-2000:]}" for process in self._made[-3:])
            raise AssertionError(f"{error}: {self.rows()} of {count} rows\n{said}") from None

    def finish(self) -> dict:
        """Wait until the run is done, and check everything; returns the learner's summary."""
        assert self.learner.end() == 0, self.learner.said
        for actor in self.actors:
            assert actor.end() == 0, actor.said
        return check(self)


def check(pair: Pair) -> dict:
    """What a run must be, whatever happened on its way."""
    store = StepLog(pair.run / "steps.zarr")
    rows = store.read(0, len(store), verify=True)
    logs = {}
    for index in range(len(pair.actors)):
        log = StepLog(pair.place(index) / "steps.zarr")
        logs[log.about["log"]] = log.read(0, len(log), verify=True)
    assert set(rows["log"].tolist()) == set(logs), "the store has rows of the logs, and of no other"
    for log_id, mine in logs.items():
        theirs = rows[rows["log"] == log_id]
        assert mine["sequence"].tolist() == list(range(len(mine))), "a log has each of its rows once, in order"
        assert len(theirs) == len(mine), "nothing is lost and nothing is there twice"
        assert theirs.tobytes() == mine.tobytes(), "byte for byte"
        before, after = mine[:-1], mine[1:]
        follows = (after["step"] > 1) & (after["episode"] == before["episode"])
        changes = follows & (after["source"] != before["source"])
        assert (after["segment"] - before["segment"])[follows].tolist() == changes[follows].tolist()
    assert (rows["source"] == INTERVENTION).any(), "the script took over, and what it did was sent"
    seeds = [(row["log"], row["episode"]) for row in rows if row["step"] == 0]
    assert len(set(seeds)) == len(seeds), "an episode begins once"
    assert rows["policy"][rows["kind"] == STEP].all(), "no step is random where there are demonstrations"
    counters = checkpoint.load_metadata(run.newest(pair.run) / "agent.ckpt")["counters"]
    learned = rows[: counters["rows"]]
    assert counters["env_steps"] == np.count_nonzero(learned["kind"] == STEP) >= pair.steps
    assert counters["updates"] == UTD * (pair.steps - STARTS), "each step is worth its updates, once"
    episodes = [int(row["episodes"]) for row in read_metrics(pair.run / "metrics.csv")]
    ended = np.count_nonzero(learned["terminated"] | learned["truncated"])
    assert episodes == list(range(1, ended + 1)), "each episode is accounted for once"
    assert counters["episodes"] == ended
    return json.loads((pair.run / "summary.json").read_text())


def pause(process: Process, seconds: float, wait) -> None:
    """SIGSTOP for a while."""
    process.signal(signal.SIGSTOP)
    wait(seconds)
    process.signal(signal.SIGCONT)
