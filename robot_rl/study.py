"""The passivity study: do policies trained to respect energy still need the passivity filter?

{agnostic, aware} x {filter off, on in training} x {filter off, on in deployment}. Each training and each evaluation is
a child process, the very command a user could give. What is finished is found again, so a study that was broken off
goes on where it was.

DIR/demos/<seed>.zarr      demonstrations, shared by the trainings of a seed
DIR/runs/<training>/       run folders (robot_rl/run.py)
DIR/cells/<evaluation>.json
DIR/logs/<job>.log         what the children said
DIR/study.json, table.md, deployment.png, energy.png, training.png
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.children import Job, environment, run_jobs
from robot_rl.files import FolderLock, disk_errors, read_json, write_atomic, write_json
from robot_rl.interrupt import Interrupted, StopSignals
from robot_rl.log import Progress, read_columns, read_metrics
from robot_rl.run import WORLD, Run, TrainConfig, choose, configs, make_env, origin
from robot_rl.terminal import say

FORMAT = 1
EVAL_SEED = 0  # of the evaluation episodes, whatever the seed of the training: the same ones in every cell
FILTER = {"off": "energy.enforce=false", "on": "energy.enforce=true"}
_FRESH = "delete it and give the command again"


@dataclass(frozen=True)
class Variant:
    """One way to train, told apart from the others by its settings."""

    name: str
    settings: tuple[str, ...]


VARIANTS = (Variant("agnostic", ("agent.constraint=none",)), Variant("aware", ("agent.constraint=lagrangian",)))


@dataclass(frozen=True)
class Training:
    """One of the trainings of a study."""

    variant: Variant
    filter: str  # "off" or "on" while training
    seed: int

    @property
    def name(self) -> str:
        return f"{self.variant.name}-filter_{self.filter}-seed{self.seed}"

    def cell(self, deployed: str) -> str:
        """The name of its evaluation with the filter ``deployed``, "off" or "on"."""
        return f"{self.name}-deployed_{deployed}"


@dataclass(frozen=True)
class Plan:
    """What a study does; raises ValueError for what it cannot do."""

    task: str = "maze"
    arm: str = "panda"
    agent: str = "rlpd"
    steps: int = 4_000
    budget_j: float = 0.6
    seeds: tuple[int, ...] = (0, 1, 2)
    episodes: int = 50
    settings: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = VARIANTS

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"--seeds {' '.join(map(str, self.seeds))}: give at least one, and each once")
        if self.episodes < 1:
            raise ValueError(f"--episodes {self.episodes}: give at least 1")
        own = {"energy.enforce", "energy.budget_j", "train.seed", "train.steps"}
        own |= {setting.partition("=")[0] for variant in self.variants for setting in variant.settings}
        for setting in self.settings:
            if setting.partition("=")[0] in own:
                raise ValueError(f"--set {setting}: the study sets this itself; leave it out")

    @property
    def shared(self) -> tuple[str, ...]:
        """The settings that all trainings have in common."""
        return (f"energy.budget_j={self.budget_j}", *self.settings)

    @property
    def trainings(self) -> list[Training]:
        return [
            Training(variant, filter, seed) for seed in self.seeds for variant in self.variants for filter in FILTER
        ]

    def run_of(self, training: Training, folder: Path) -> Run:
        """The Run of one training; raises ValueError or LookupError for a wrong name or setting."""
        config = TrainConfig(steps=self.steps, seed=training.seed, eval_episodes=0)  # the study evaluates
        settings = (*self.shared, *training.variant.settings, FILTER[training.filter])
        return choose(self.task, self.arm, "sim", self.agent, config, settings, str(demos_of(folder, training.seed)))

    def command(self, folder: Path, jobs: int) -> str:
        """What to type to go on with this study."""
        words = ["robot-rl", "study", "passivity", "--out", str(folder), "--task", self.task, "--arm", self.arm]
        words += ["--agent", self.agent, "--steps", str(self.steps), "--budget-j", str(self.budget_j)]
        words += ["--seeds", *map(str, self.seeds)]
        words += ["--episodes", str(self.episodes), "--jobs", str(jobs)]
        return shlex.join([*words, *(["--set", *self.settings] if self.settings else [])])


def demos_of(folder: Path, seed: int) -> Path:
    return folder / "demos" / f"seed{seed}.zarr"


def study(plan: Plan, folder: Path, jobs: int = 2) -> str:
    """Do what of ``plan`` is not done yet, ``jobs`` processes at a time; returns the table as Markdown.

    Raises ValueError or FileExistsError for a folder that holds something else, before anything is started;
    RuntimeError, naming the logs, where a training or an evaluation failed; Interrupted after Ctrl-C or SIGTERM.
    """
    from robot_rl import study_plot

    if jobs < 1:
        raise ValueError(f"--jobs {jobs}: give at least 1")
    runs = {training: plan.run_of(training, folder) for training in plan.trainings}
    wanted = {training: json.loads(json.dumps(configs(run))) for training, run in runs.items()}
    make_env(next(iter(runs.values()))).close()  # what it refuses is found before anything is written
    _open(plan, folder)
    lock = FolderLock(folder)
    try:
        for training in plan.trainings:
            check_run(folder / "runs" / training.name, runs[training], wanted[training])
        with StopSignals(say, "the running episodes") as stop:
            phases = (
                ("demonstrations", lambda: _demonstrations(plan, folder, runs)),
                ("training", lambda: _trainings(plan, folder)),
                ("evaluation", lambda: _evaluations(plan, folder)),
            )
            for name, make in phases:
                _work(name, plan, folder, list(make()), jobs, stop)
            if stop.signum is not None:
                raise Interrupted(f"stopped; go on with: {plan.command(folder, jobs)}", stop.signum)
        result = collect(plan, folder, jobs)
        write_json(folder / "study.json", result)
        table = tabulate(result)
        write_atomic(folder / "table.md", table.encode())
        study_plot.plot(result, folder)
        return table
    finally:
        lock.release()


# ---------------------------------------------------------------------------------------------------------------------
# What is there already


def _open(plan: Plan, folder: Path) -> None:
    """Make the folder, or find that it holds this study; seeds may be added."""
    path = folder / "study.json"
    here, held = held_plan(path, plan, "study")
    with disk_errors(folder):
        for name in ("demos", "runs", "cells", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    if not held:
        write_json(path, {"format": FORMAT, "plan": here, **origin()})


def held_plan(
    path: Path, plan: Any, what: str, grows: Collection[str] = ("seeds",), words: Callable[[Any], str] = repr
) -> tuple[dict[str, Any], bool]:
    """``plan``, a dataclass, as JSON values, and whether its folder is there already and has them in ``path``.

    What ``grows`` may differ; ``words`` is how an error writes a value. Raises ValueError where the folder holds
    another ``what``, FileExistsError where it holds something else.
    """
    folder, here = path.parent, json.loads(json.dumps(dataclasses.asdict(plan)))
    if path.is_file():
        there = read_json(path, _FRESH).get("plan", {})
        for name in (name for name in here if name not in grows):
            if there.get(name) != here[name]:
                raise ValueError(
                    f"{folder} holds a {what} with {name} {words(there.get(name))}, this one has {words(here[name])}: "
                    "give the same, or another --out"
                )
        return here, True
    if folder.exists() and (not folder.is_dir() or any(child.name != ".lock" for child in folder.iterdir())):
        raise FileExistsError(f"{folder} exists and holds no {what}: give another --out")
    return here, False


def check_run(folder: Path, run: Run, wanted: Mapping[str, Any]) -> None:
    """Raises ValueError where ``folder`` holds another run than the study wants, or a broken one."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / "run.json").is_file():
        raise ValueError(f"{folder} is a broken run (it has no run.json): {_FRESH}")
    values = read_json(folder / "run.json", _FRESH)
    there = {name: values.get(name) for name in ("task", "arm", "agent")} | values.get("configs", {})
    here = {"task": run.task, "arm": run.arm, "agent": run.agent, **wanted}
    for section in here:
        if there.get(section) != here[section]:
            raise ValueError(f"{folder} was trained otherwise (its {section} differs): {_FRESH}")


# ---------------------------------------------------------------------------------------------------------------------
# What is to be done


def _demonstrations(plan: Plan, folder: Path, runs: Mapping[Training, Run]) -> Iterator[Job]:
    from robot_rl.store import EpisodeReader

    # As a person shows it who knows of no budget: without the filter.
    settings = [FILTER["off"], *(setting for setting in plan.shared if setting.partition(".")[0] in WORLD)]
    for run in {run.seed: run for run in runs.values()}.values():
        path = demos_of(folder, run.seed)
        held = len(EpisodeReader(path)) if path.exists() else 0
        if run.demo_share > 0 and held < run.train.demo_episodes:
            args = ["demo", "record", "--task", plan.task, "--arm", plan.arm, "--seed", str(run.seed)]
            args += ["--out", str(path), "--episodes", str(run.train.demo_episodes - held)]
            yield _job(folder, f"demos-seed{run.seed}", args, settings)


def _trainings(plan: Plan, folder: Path) -> Iterator[Job]:
    for training in plan.trainings:
        out = folder / "runs" / training.name
        if (out / "summary.json").is_file():
            continue
        if (out / "run.json").is_file():
            yield _job(folder, training.name, ["train", "--resume", str(out)])
            continue
        args = ["train", "--task", plan.task, "--arm", plan.arm, "--agent", plan.agent, "--steps", str(plan.steps)]
        args += ["--seed", str(training.seed), "--out", str(out)]
        if (demos := demos_of(folder, training.seed)).exists():
            args += ["--demos", str(demos)]
        settings = ("train.eval_episodes=0", *plan.shared, *training.variant.settings, FILTER[training.filter])
        yield _job(folder, training.name, args, settings)


def _evaluations(plan: Plan, folder: Path) -> Iterator[Job]:
    for training in plan.trainings:
        for deployed, setting in FILTER.items():
            name = training.cell(deployed)
            path = folder / "cells" / f"{name}.json"
            if path.is_file():
                read_json(path, _FRESH)
                continue
            args = ["eval", str(folder / "runs" / training.name), "--episodes", str(plan.episodes), "--json"]
            # A blind policy without memory needs chance to leave a corner: some stand still when deterministic.
            yield _job(folder, name, [*args, "--sample", "--seed", str(EVAL_SEED)], [setting], path)


def _job(folder: Path, name: str, args: Sequence[str], settings: Sequence[str] = (), result: Path | None = None) -> Job:
    words = (*args, "--set", *settings) if settings else tuple(args)
    return Job(name, tuple(words), folder / "logs" / f"{name}.log", result)


def _work(phase: str, plan: Plan, folder: Path, jobs: list[Job], at_once: int, stop: StopSignals) -> None:
    """Run the jobs of one phase, telling how far it is."""
    if not jobs or stop():
        return
    steps = phase == "training"
    total = plan.steps * len(plan.trainings) if steps else len(jobs)

    def count(finished: int) -> int:
        return (
            sum(steps_done(folder / "runs" / each.name, plan.steps) for each in plan.trainings) if steps else finished
        )

    with Progress(phase, total, count(0), every_s=30.0) as progress:

        def tell(finished: int, running: Sequence[str]) -> None:
            progress.update(
                count(finished), {"finished": f"{finished}/{len(jobs)}", "now": ", ".join(running) or "none"}
            )

        run_jobs(jobs, at_once, environment(at_once), stop, tell)


def steps_done(folder: Path, most: int) -> int:
    """How far a training has come, by its metrics."""
    path = folder / "metrics.csv"
    rows = read_metrics(path) if path.is_file() else []
    return min(most, int(rows[-1].get("env_steps") or rows[-1]["updates"])) if rows else 0


# ---------------------------------------------------------------------------------------------------------------------
# What came out


def collect(plan: Plan, folder: Path, jobs: int) -> dict[str, Any]:
    """Everything that study.json holds: each cell by seed and as a mean over the seeds, and the trainings."""
    cells, trainings = [], []
    for variant in plan.variants:
        for filter in FILTER:
            group = [Training(variant, filter, seed) for seed in plan.seeds]
            about = {"policy": variant.name, "trained": filter}
            by_seed = {str(each.seed): training_numbers(folder / "runs" / each.name) for each in group}
            trainings.append(about | {"seeds": by_seed, "mean": mean(by_seed.values())})
            for deployed in FILTER:
                paths = {str(each.seed): folder / "cells" / f"{each.cell(deployed)}.json" for each in group}
                by_seed = {seed: cell_numbers(read_json(path, _FRESH)) for seed, path in paths.items()}
                cells.append(about | {"deployed": deployed, "seeds": by_seed, "mean": mean(by_seed.values())})
    result = {"format": FORMAT, "plan": dataclasses.asdict(plan), **origin(), "command": plan.command(folder, jobs)}
    return result | {"environment": environment(jobs), "cells": cells, "trainings": trainings}


def cell_numbers(cell: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of one evaluation (``robot-rl eval --json``), those of its energy beside the others."""
    numbers = {name: cell[name] for name in ("episodes", "success_rate", "mean_return", "mean_length")}
    return numbers | (cell["energy"] or {})


def training_numbers(folder: Path) -> dict[str, float | None]:
    """What happened while training: episodes, their violations, cost and intervention share."""
    columns = {name: np.asarray(values) for name, values in read_columns(folder / "metrics.csv").items()}
    count = len(columns["updates"])
    nothing = np.full(count, np.nan)
    known = {name: columns.get(name, nothing) for name in ("energy_free_min_j", "energy_intervened", "cost")}
    free_j = known["energy_free_min_j"]
    numbers = {
        "episodes": float(count),
        "negative_episodes": np.mean(free_j[np.isfinite(free_j)] < 0.0) if np.isfinite(free_j).any() else np.nan,
        "free_min_j": np.nanmin(free_j, initial=np.inf),
        "intervened_ticks": _finite_mean(known["energy_intervened"]),
        "cost": _finite_mean(known["cost"]),
        "wall_s": read_json(folder / "summary.json", _FRESH)["wall_s"],
    }
    return {name: float(value) if np.isfinite(value) else None for name, value in numbers.items()}


def _finite_mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")


def mean(rows: Iterable[Mapping[str, float | None]]) -> dict[str, float | None]:
    """The mean over seeds of each number; None where a seed does not tell it."""
    rows = list(rows)
    columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    return {
        name: None if None in values else float(np.mean(np.asarray(values, np.float64)))
        for name, values in columns.items()
    }


_CELL_COLUMNS = (
    ("success %", "success_rate", 100.0, ".1f"),
    ("steps", "mean_length", 1.0, ".1f"),
    ("episodes E<0 %", "negative_episodes", 100.0, ".1f"),
    ("ticks E<0 %", "negative_ticks", 100.0, ".2f"),
    ("least E, J", "free_min_mean_j", 1.0, ".3f"),
    ("delivered, J", "work_j", 1.0, ".3f"),
    ("filter acts, % of ticks", "intervened_ticks", 100.0, ".2f"),
    ("peak force, N", "force_peak_n", 1.0, ".1f"),
)
_TRAINING_COLUMNS = (
    ("episodes", "episodes", 1.0, ".0f"),
    ("episodes E<0 %", "negative_episodes", 100.0, ".1f"),
    ("least E of all, J", "free_min_j", 1.0, ".3f"),
    ("cost per step", "cost", 1.0, ".3f"),
    ("filter acts, % of ticks", "intervened_ticks", 100.0, ".2f"),
    ("minutes", "wall_s", 1 / 60.0, ".1f"),
)


def tabulate(result: Mapping[str, Any]) -> str:
    """The tables of a study as Markdown: deployment, then training; means over the seeds."""
    plan = result["plan"]
    seeds = ", ".join(map(str, plan["seeds"]))
    about = f"`{plan['task']}` on `{plan['arm']}`, {plan['agent']}, {plan['steps']:,} steps, {plan['budget_j']:g} J "
    about += f"an episode; means over seeds {seeds}"
    where = ("policy", "trained", "deployed")
    return (
        f"{about}; {plan['episodes']} evaluation episodes a cell, the same in all, actions sampled. Least E and "
        f"peak force: means of the episodes' extremes.\n\n{_markdown(where, _CELL_COLUMNS, result['cells'])}\n"
        f"While training:\n\n{_markdown(where[:2], _TRAINING_COLUMNS, result['trainings'])}\n`{result['command']}`\n"
    )


def _markdown(where: Sequence[str], columns: Sequence[tuple], rows: Sequence[Mapping[str, Any]]) -> str:
    titles = {"policy": "policy", "trained": "filter in training", "deployed": "filter in deployment"}
    lines = [[titles[name] for name in where] + [column[0] for column in columns]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        values = [(row["mean"].get(name), factor, form) for _, name, factor, form in columns]
        lines.append([row[name] for name in where])
        lines[-1] += ["–" if value is None else format(factor * value, form) for value, factor, form in values]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
