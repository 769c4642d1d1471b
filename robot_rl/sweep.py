"""One training for every combination of values and seeds, some at a time, through Ray.

Each is the very ``robot-rl train`` that a user could give, with the same numbers. What is finished is found again, and
what was begun goes on, so a sweep that was broken off goes on where it was.

DIR/<name>/          run folders (robot_rl/run.py), such as utd_ratio=4-seed1
DIR/logs/<name>.log  what the trainings said
DIR/sweep.json       the plan, the command, versions, the commit
DIR/table.md         means over the seeds
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json
import re
import shlex
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl import cluster
from robot_rl.children import environment
from robot_rl.files import FolderLock, disk_errors, read_json, write_atomic, write_json
from robot_rl.interrupt import Interrupted, StopSignals
from robot_rl.log import Progress
from robot_rl.run import GYM, Run, TrainConfig, choose, configs, make_env, origin
from robot_rl.study import check_run, held_plan, steps_done
from robot_rl.terminal import say

FORMAT = 1
TRIES = 3  # of a training whose process dies
_POLL_S = 0.2
_COUNT_S = 2.0  # between looks at how far all are
_FRESH = "delete it and give the command again"
_OWN = {"train.seed": "--seeds", "train.steps": "--steps"}


@dataclass(frozen=True)
class Varied:
    """A setting and the values it takes, as text."""

    setting: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Varied:
        """From "agent.utd_ratio=2,4"; values with commas of their own are parted by semicolons. Raises ValueError."""
        setting, equals, values = text.partition("=")
        parted = tuple(value.strip() for value in values.split(";" if ";" in values else ","))
        if not equals or "." not in setting or not all(parted) or len(set(parted)) < len(parted):
            raise ValueError(
                f"--vary {text}: give section.name=value,value with each value once, such as agent.utd_ratio=2,4,8; "
                "for values with commas, agent.hidden=32,32;64,64"
            )
        return cls(setting, parted)

    def __str__(self) -> str:
        return f"{self.setting}={(';' if any(',' in value for value in self.values) else ',').join(self.values)}"


@dataclass(frozen=True)
class Training:
    """One of the trainings of a sweep."""

    name: str
    values: tuple[str, ...]  # of what is varied, in its order
    settings: tuple[str, ...]  # which say the same
    seed: int


@dataclass(frozen=True)
class Plan:
    """What a sweep trains; raises ValueError for what it cannot."""

    task: str | None = None
    gym: str | None = None
    arm: str = "panda"
    agent: str = "rlpd"
    steps: int | None = None
    demos: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    vary: tuple[Varied, ...] = ()
    settings: tuple[str, ...] = ()  # that all trainings share

    def __post_init__(self) -> None:
        if (self.task is None) == (self.gym is None):
            raise ValueError("give either --task NAME (see robot-rl tasks) or --gym ID")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"--seeds {' '.join(map(str, self.seeds))}: give at least one, and each once")
        shared = {setting.partition("=")[0] for setting in self.settings}
        varied = [each.setting for each in self.vary]
        for name in varied:
            if varied.count(name) > 1 or name in shared:
                raise ValueError(f"{name} is given twice: vary it once, and leave it out of --set")
        for name in (*varied, *shared):
            if name in _OWN:
                raise ValueError(f"{name} is what {_OWN[name]} says: leave it out")
        if len({each.name for each in self.trainings}) < len(self.trainings):
            raise ValueError(
                f"--vary {' '.join(map(str, self.vary))}: two values would share a folder; name them apart"
            )

    @cached_property
    def trainings(self) -> list[Training]:
        """All values with the first seed, then all with the next."""
        last = [each.setting.rpartition(".")[2] for each in self.vary]
        short = last if len(set(last)) == len(last) else [each.setting for each in self.vary]
        made = []
        for seed in self.seeds:
            for values in itertools.product(*(each.values for each in self.vary)):
                words = [f"{name}={value}" for name, value in zip(short, values, strict=True)]
                name = re.sub(r"[^\w.,=+-]", "_", "-".join([*words, f"seed{seed}"]))
                settings = tuple(f"{each.setting}={value}" for each, value in zip(self.vary, values, strict=True))
                made.append(Training(name, values, settings, seed))
        return made

    def run_of(self, training: Training) -> Run:
        """The Run of one training; raises ValueError or LookupError for a wrong name or setting."""
        config = TrainConfig(seed=training.seed)
        if self.steps is not None:
            config = dataclasses.replace(config, steps=self.steps)
        task, arm, world = (self.gym, "", GYM) if self.gym is not None else (self.task or "", self.arm, "sim")
        return choose(task, arm, world, self.agent, config, (*self.settings, *training.settings), self.demos)

    def words(self, training: Training, folder: Path) -> tuple[str, ...]:
        """Of the ``robot-rl`` command that begins a training."""
        settings = (*self.settings, *training.settings)
        words = ["train", *self._choice(), "--seed", str(training.seed), "--out", str(folder / training.name)]
        return (*words, *(["--set", *settings] if settings else []))

    def command(self, folder: Path) -> str:
        """What to type to go on with this sweep."""
        words = ["robot-rl", "sweep", *self._choice(), "--seeds", *map(str, self.seeds)]
        words += ["--vary", *map(str, self.vary)] if self.vary else []
        words += ["--set", *self.settings] if self.settings else []
        return shlex.join([*words, "--out", str(folder)])

    def _choice(self) -> list[str]:
        what = ["--gym", self.gym] if self.gym is not None else ["--task", self.task or "", "--arm", self.arm]
        steps = ["--steps", str(self.steps)] if self.steps is not None else []
        return [*what, "--agent", self.agent, *steps, *(["--demos", self.demos] if self.demos is not None else [])]


@dataclass(frozen=True)
class Outcome:
    """What came of a sweep: a table as Markdown of what is finished, and what failed, in words."""

    table: str
    failed: list[str]


def sweep(plan: Plan, folder: Path, jobs: int | None = None, address: str | None = None) -> Outcome:
    """Do what of ``plan`` is not done yet, ``jobs`` trainings at a time, on this machine or the Ray cluster at
    ``address``, where every machine has to see ``folder``.

    Raises ValueError or FileExistsError for a folder that holds something else, before anything is started, and
    Interrupted after Ctrl-C or SIGTERM. A training that fails does not stop the others.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs {jobs}: give at least 1")
    runs = {training.name: plan.run_of(training) for training in plan.trainings}
    wanted = {name: json.loads(json.dumps(configs(run))) for name, run in runs.items()}
    make_env(next(iter(runs.values()))).close()  # what it refuses is found before anything is written
    folder = folder.resolve()
    _open(plan, folder)
    lock = FolderLock(folder)
    try:
        for name, run in runs.items():
            check_run(folder / name, run, wanted[name])
        left = [training for training in plan.trainings if not (folder / training.name / "summary.json").is_file()]
        failed: list[str] = []
        with StopSignals(say, "the running episodes") as stop:
            if left:
                at_once = min(len(left), jobs or (2 if address is None else len(left)))
                with cluster.connected(address, at_once, sweep_environment(at_once)) as ray:
                    at_once = min(at_once, max(1, ray.slots))
                    failed = _train(_Work(plan, folder, runs, ray, stop), left, at_once)
            if stop.signum is not None:
                raise Interrupted(f"stopped; go on with: {plan.command(folder)}", stop.signum)
        table = tabulate(plan, folder)
        write_atomic(folder / "table.md", table.encode())
        return Outcome(table, failed)
    finally:
        lock.release()


def sweep_environment(at_once: int) -> dict[str, str]:
    """One compute thread each where they are several; of a GPU's memory each takes what it needs."""
    return environment(at_once) | ({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if at_once > 1 else {})


def _open(plan: Plan, folder: Path) -> None:
    """Make the folder, or find that it holds this sweep; seeds may be added."""
    path = folder / "sweep.json"
    here, _ = held_plan(path, plan, "sweep", words=_words)
    with disk_errors(folder):
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    about = origin()
    about["versions"] |= {"ray": importlib.metadata.version("ray")}
    write_json(path, {"format": FORMAT, "plan": here, **about})


def _words(value: Any) -> str:
    """A value of a plan, as in a command."""
    if isinstance(value, list):
        return " ".join(str(Varied(**each)) if isinstance(each, dict) else str(each) for each in value) or "none"
    return "none" if value is None else str(value)


# ---------------------------------------------------------------------------------------------------------------------
# Training


@dataclass
class _Work:
    """What the loop over the trainings needs."""

    plan: Plan
    folder: Path
    runs: Mapping[str, Run]
    ray: cluster.Cluster
    stop: StopSignals

    def begin(self, worker: Any, training: Training) -> Any:
        """Let ``worker`` begin a training, or go on with it."""
        out = self.folder / training.name
        words = self.plan.words(training, self.folder)
        if (out / "run.json").is_file():
            words = ("train", "--resume", str(out))
        return worker.train.remote(list(words), str(self.log(training)))

    def log(self, training: Training) -> Path:
        return self.folder / "logs" / f"{training.name}.log"

    @property
    def steps(self) -> int:
        """Of all trainings that there are, so far."""
        return sum(steps_done(self.folder / name, run.train.steps) for name, run in self.runs.items())


def _train(work: _Work, left: Sequence[Training], at_once: int) -> list[str]:
    """Train what is ``left``, ``at_once`` side by side; returns what failed, in words."""
    waiting, idle, failed = deque(left), list[Any](), list[str]()
    busy: dict[Any, tuple[Any, Training]] = {}
    tries = dict.fromkeys(left, 0)
    total, told, counted_s = sum(run.train.steps for run in work.runs.values()), False, 0.0
    try:
        with Progress("sweep", total, work.steps, every_s=30.0) as progress:
            while busy or (waiting and not work.stop()):
                while waiting and len(busy) < at_once and not work.stop():
                    worker = idle.pop() if idle else _worker(work)
                    training = waiting.popleft()
                    tries[training] += 1
                    busy[work.begin(worker, training)] = worker, training
                if work.stop() and not told:
                    told = True
                    for worker, _ in busy.values():
                        worker.stop.remote()
                for begun in work.ray.ray.wait(list(busy), timeout=_POLL_S)[0]:
                    worker, training = busy.pop(begun)
                    error, died = _outcome(work, begun)
                    if died and tries[training] < TRIES:
                        progress.say(f"{training.name}: {error}; it goes on from its last checkpoint")
                        waiting.appendleft(training)
                    elif error and not told:
                        failed.append(f"{training.name}: {error} ({work.log(training)})")
                        progress.say(f"failed, the others go on: {failed[-1]}")
                    if not died:
                        idle.append(worker)
                if time.monotonic() - counted_s > _COUNT_S or not busy:
                    counted_s = time.monotonic()
                    now = ", ".join(training.name for _, training in busy.values())
                    done = len(left) - len(waiting) - len(busy)
                    progress.update(work.steps, {"finished": f"{done}/{len(left)}", "now": now or "none"})
    finally:
        for worker in (*idle, *(worker for worker, _ in busy.values())):
            work.ray.kill(worker)
    return failed


def _outcome(work: _Work, begun: Any) -> tuple[str, bool]:
    """Why a training failed, if it did, and whether its process died."""
    try:
        return work.ray.outcome(begun), False
    except ChildProcessError as error:
        return f"its process died ({error})", True


def _worker(work: _Work) -> Any:
    """A new worker, of which it is known that it sees the sweep's folder. Raises RuntimeError for another."""
    worker, path = work.ray.worker(), work.folder / "sweep.json"
    if work.ray.elsewhere and not work.ray.outcome(worker.sees.remote(str(path), path.read_text())):
        host = work.ray.outcome(worker.where.remote())[0]
        raise RuntimeError(f"--out {work.folder} is not there on {host}: give a folder that all machines share")
    return worker


# ---------------------------------------------------------------------------------------------------------------------
# What came out

_COLUMNS: tuple[tuple[str, str, float, str], ...] = (
    ("success %", "success_rate", 100.0, ".1f"),
    ("return", "mean_return", 1.0, ".4g"),
    ("steps of an episode", "mean_length", 1.0, ".1f"),
    ("minutes", "wall_s", 1 / 60.0, ".1f"),
)


def tabulate(plan: Plan, folder: Path) -> str:
    """What is finished, as Markdown: means over the seeds of each combination of values."""
    lines = [[each.setting for each in plan.vary] + ["seeds"] + [title for title, *_ in _COLUMNS]]
    lines.append(["---"] * len(lines[0]))
    for values, group in _groups(plan):
        paths = [folder / training.name / "summary.json" for training in group]
        summaries = [read_json(path, _FRESH) for path in paths if path.is_file()]
        row = [*values, f"{len(summaries)} of {len(group)}"]
        for _, name, factor, form in _COLUMNS:
            told = [summary[name] for summary in summaries if summary[name] is not None]
            row.append(format(factor * float(np.mean(told)), form) if told else "–")
        lines.append(row)
    about = f"{plan.task or plan.gym}, {plan.agent}; means over the seeds {', '.join(map(str, plan.seeds))}"
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{about}\n\n{table}\n`{plan.command(folder)}`\n"


def _groups(plan: Plan) -> Iterator[tuple[tuple[str, ...], list[Training]]]:
    """The trainings that differ in their seed only."""
    for values in dict.fromkeys(training.values for training in plan.trainings):
        yield values, [training for training in plan.trainings if training.values == values]
