"""Ways to learn against each other: on the same demonstrations, with the same budget, from the same starts.

Of each seed all agents get the same demonstrations and as many environment steps; one that learns offline gets the
gradient updates that the others make in them. The evaluations of a seed begin in the same states, and so does the
demonstrator's own. Each training is a child process, the very command that a user could give; what is finished is found
again, so a comparison that was broken off goes on where it was.

DIR/compare.json           what is compared
DIR/demos/<seed>.zarr      demonstrations, shared by the agents of a seed
DIR/demonstrator/<seed>.json
DIR/runs/<agent>-seed<n>/  run folders (robot_rl/run.py), which `robot-rl runs compare` and `plot` take as well
DIR/logs/<job>.log, table.md
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.children import Job, environment, run_jobs
from robot_rl.demo import demonstrator_of
from robot_rl.evaluate import measure, wilson
from robot_rl.files import FolderLock, disk_errors, read_json, write_atomic, write_json
from robot_rl.interrupt import Interrupted, StopSignals
from robot_rl.intervention import NOBODY, SCRIPTED
from robot_rl.log import Progress, percent, read_columns
from robot_rl.pace import control_period_s
from robot_rl.run import WORLD, Run, TrainConfig, choose, configs, make_env, origin
from robot_rl.study import check_run, held_plan, steps_done
from robot_rl.terminal import say

FORMAT = 1
_FRESH = "delete it and give the command again"
_OWN = ("train.seed", "train.steps", "train.eval_episodes", "train.demo_episodes", "intervention.by")


@dataclass(frozen=True)
class Training:
    agent: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.agent}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """What is compared; raises ValueError for what cannot be."""

    task: str
    arm: str = "panda"
    agents: tuple[str, ...] = ("rlpd", "hg_dagger", "bc")
    steps: int = 10_000
    seeds: tuple[int, ...] = (0, 1, 2)
    demos: int = 20
    episodes: int = 100
    by: str = SCRIPTED  # who intervenes, where an agent acts
    settings: tuple[str, ...] = ()  # of all; one of an agent alone begins with its name and a colon

    def __post_init__(self) -> None:
        for name in ("agents", "seeds"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise ValueError(f"--{name} {' '.join(map(str, given))}: give at least one, and each once")
        for name in ("steps", "demos", "episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: give at least 1")
        if self.by not in (NOBODY, SCRIPTED):
            raise ValueError(f"--by {self.by}: give {SCRIPTED} or {NOBODY}; a person would not do the same twice")
        for setting in self.settings:
            agent, colon, _ = setting.partition("=")[0].rpartition(":")
            if colon and agent not in self.agents:
                raise ValueError(f"--set {setting}: '{agent}' is none of the agents {', '.join(self.agents)}")
            if setting.partition("=")[0].rpartition(":")[2] in _OWN:
                raise ValueError(f"--set {setting}: the comparison sets this itself; leave it out")

    @property
    def trainings(self) -> list[Training]:
        return [Training(agent, seed) for seed in self.seeds for agent in self.agents]

    def settings_of(self, agent: str) -> tuple[str, ...]:
        """What is set for ``agent``."""
        parted = [setting.partition(":") if ":" in setting.partition("=")[0] else ("", "", setting) for setting in
                  self.settings]  # fmt: skip
        own = tuple(text for name, _, text in parted if name in ("", agent))
        return (*own, f"train.eval_episodes={self.episodes}", f"train.demo_episodes={self.demos}")

    def run_of(self, training: Training, folder: Path) -> Run:
        """The Run of one training; raises ValueError or LookupError for a wrong name or setting."""
        demos, settings = str(demos_of(folder, training.seed)), self.settings_of(training.agent)
        config = TrainConfig(steps=self.steps, seed=training.seed)
        run = choose(self.task, self.arm, "sim", training.agent, config, settings, demos)
        if not run.offline:
            return choose(
                self.task, self.arm, "sim", training.agent, config, (*settings, f"intervention.by={self.by}"), demos
            )
        config = dataclasses.replace(config, steps=self.steps * self._updates_per_step())
        return choose(self.task, self.arm, "sim", training.agent, config, settings, demos)

    def _updates_per_step(self) -> int:
        """Of the first agent that acts."""
        chosen = [choose(self.task, self.arm, "sim", agent, TrainConfig(), self.settings_of(agent))
                  for agent in self.agents]  # fmt: skip
        return next((int(run.agent_config.utd_ratio) for run in chosen if not run.offline), 1)

    def command(self, folder: Path, jobs: int) -> str:
        """What to type to go on."""
        words = ["robot-rl", "compare", "--task", self.task, "--out", str(folder), "--arm", self.arm]
        words += ["--agents", *self.agents, "--steps", str(self.steps), "--seeds", *map(str, self.seeds)]
        words += ["--demos", str(self.demos), "--episodes", str(self.episodes), "--by", self.by, "--jobs", str(jobs)]
        return shlex.join([*words, *(["--set", *self.settings] if self.settings else [])])


def demos_of(folder: Path, seed: int) -> Path:
    return folder / "demos" / f"seed{seed}.zarr"


def compare(plan: Plan, folder: Path, jobs: int = 1) -> str:
    """Do what of ``plan`` is not done yet, ``jobs`` processes at a time; returns the table as Markdown.

    Raises ValueError or FileExistsError for a folder that holds something else, before anything is started;
    RuntimeError, naming the logs, where a training failed; Interrupted after Ctrl-C or SIGTERM.
    """
    if jobs < 1:
        raise ValueError(f"--jobs {jobs}: give at least 1")
    runs = {training: plan.run_of(training, folder) for training in plan.trainings}
    env = make_env(next(iter(runs.values())))  # what it refuses is found before anything is written
    try:
        demonstrator_of(env)
        _open(plan, folder)
        lock = FolderLock(folder)
        try:
            for training, run in runs.items():
                check_run(folder / "runs" / training.name, run, json.loads(json.dumps(configs(run))))
            with StopSignals(say, "the running trainings") as stop:
                _demonstrator(plan, folder, env, stop)
                _work("demonstrations", list(_demonstrations(plan, folder)), {}, folder, jobs, stop)
                planned = {training.name: run.train.steps for training, run in runs.items()}
                _work("training", list(_trainings(folder, runs)), planned, folder, jobs, stop)
                if stop.signum is not None:
                    raise Interrupted(f"stopped; go on with: {plan.command(folder, jobs)}", stop.signum)
            table = tabulate(plan, folder, control_period_s(env))
            write_atomic(folder / "table.md", table.encode())
            return table
        finally:
            lock.release()
    finally:
        env.close()


def _open(plan: Plan, folder: Path) -> None:
    """Make the folder, or find that it holds this comparison; agents and seeds may be added."""
    path = folder / "compare.json"
    here, held = held_plan(path, plan, "comparison", grows=("seeds", "agents"))
    with disk_errors(folder):
        for name in ("demos", "demonstrator", "runs", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    if not held:
        write_json(path, {"format": FORMAT, "plan": here, **origin()})


def _demonstrator(plan: Plan, folder: Path, env: Any, stop: StopSignals) -> None:
    """What the scripted expert does from the starts that the agents are evaluated from."""
    make = demonstrator_of(env)

    def expert(drawn: int) -> Callable[[Any], np.ndarray]:
        return make(np.random.default_rng([drawn, 1]))

    for seed in plan.seeds:
        path = folder / "demonstrator" / f"seed{seed}.json"
        if path.is_file() or stop():
            continue
        with Progress("demonstrator", plan.episodes) as progress:
            result = measure(env, expert, plan.episodes, seed, _teller(progress), stop)
        if result.episodes == plan.episodes:
            write_json(path, {name: getattr(result, name) for name in ("episodes", "successes", "cycle_steps")})


def _teller(progress: Progress) -> Callable[[int, float | None], None]:
    return lambda count, rate: progress.update(count, {"success": percent(rate)})


def _demonstrations(plan: Plan, folder: Path) -> Iterator[Job]:
    from robot_rl.store import EpisodeReader

    shared = [text for text in plan.settings if text.partition(".")[0] in WORLD]
    for seed in plan.seeds:
        path = demos_of(folder, seed)
        held = len(EpisodeReader(path)) if path.exists() else 0
        if held < plan.demos:
            args = ["demo", "record", "--task", plan.task, "--arm", plan.arm, "--seed", str(seed), "--out", str(path)]
            args += ["--episodes", str(plan.demos - held)]
            yield _job(folder, f"demos-seed{seed}", args, shared)


def _trainings(folder: Path, runs: dict[Training, Run]) -> Iterator[Job]:
    for training, run in runs.items():
        out = folder / "runs" / training.name
        if (out / "summary.json").is_file():
            continue
        if (out / "run.json").is_file():
            yield _job(folder, training.name, ["train", "--resume", str(out)])
            continue
        args = ["train", "--task", run.task, "--arm", run.arm, "--agent", run.agent, "--steps", str(run.train.steps)]
        args += ["--seed", str(run.seed), "--out", str(out), "--demos", str(run.demos)]
        yield _job(folder, training.name, args, [*run.settings, *_own_settings(run)])


def _own_settings(run: Run) -> list[str]:
    """Of the agent and of who intervenes, as words: what differs from the defaults."""
    fresh = choose(run.task, run.arm, run.world, run.agent, TrainConfig())
    words = []
    for section, made, default in (
        ("agent", run.agent_config, fresh.agent_config),
        ("train", run.train, TrainConfig(steps=run.train.steps, seed=run.seed)),
        ("intervention", run.intervention, fresh.intervention),
    ):
        for field in dataclasses.fields(made):
            value = getattr(made, field.name)
            if value != getattr(default, field.name):
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                words.append(f"{section}.{field.name}={text}")
    return words


def _job(folder: Path, name: str, args: Sequence[str], settings: Sequence[str] = ()) -> Job:
    words = (*args, "--set", *settings) if settings else tuple(args)
    return Job(name, tuple(words), folder / "logs" / f"{name}.log")


def _work(phase: str, jobs: list[Job], planned: dict[str, int], folder: Path, at_once: int, stop: StopSignals) -> None:
    """Run the jobs of one phase, telling how far it is: in steps of the trainings ``planned``, or in jobs."""
    if not jobs or stop():
        return

    def count(finished: int) -> int:
        steps = [steps_done(folder / "runs" / name, most) for name, most in planned.items()]
        return sum(steps) if planned else finished

    with Progress(phase, sum(planned.values()) if planned else len(jobs), count(0), every_s=30.0) as progress:

        def tell(finished: int, running: Sequence[str]) -> None:
            facts = {"finished": f"{finished}/{len(jobs)}", "now": ", ".join(running) or "none"}
            progress.update(count(finished), facts)

        run_jobs(jobs, at_once, environment(at_once), stop, tell)


def tabulate(plan: Plan, folder: Path, period_s: float | None) -> str:
    """All seeds together, as Markdown: success with its 95 % interval, and the mean length of the successes."""
    experts = [read_json(folder / "demonstrator" / f"seed{seed}.json", _FRESH) for seed in plan.seeds]
    successes, episodes = (sum(expert[name] for expert in experts) for name in ("successes", "episodes"))
    lines = [
        f"{plan.task} on {plan.arm}: {plan.demos} demonstrations, {plan.steps} environment steps, seeds "
        f"{', '.join(map(str, plan.seeds))}, {plan.episodes} evaluation episodes each, interventions by {plan.by}",
        "",
        "| | success | 95 % interval | cycle, steps | cycle, s | interventions | updates | minutes |",
        "|---|---|---|---|---|---|---|---|",
        _line("demonstrator", successes, episodes, [expert["cycle_steps"] for expert in experts], period_s, ("",) * 3),
    ]
    for agent in plan.agents:
        folders = [folder / "runs" / Training(agent, seed).name for seed in plan.seeds]
        summaries = [read_json(each / "summary.json", _FRESH) for each in folders]
        episodes = sum(summary["eval_episodes"] for summary in summaries)
        successes = round(sum(summary["success_rate"] * summary["eval_episodes"] for summary in summaries))
        more = (
            f"{np.mean([_interventions(each) for each in folders]):.0f}",
            f"{np.mean([summary['updates'] for summary in summaries]):.0f}",
            f"{np.mean([summary['wall_s'] for summary in summaries]) / 60:.1f}",
        )
        lines.append(_line(agent, successes, episodes, [each["cycle_steps"] for each in summaries], period_s, more))
    return "\n".join(lines) + "\n"


def _line(
    name: str, successes: int, episodes: int, cycles: Sequence[float | None], period_s: float | None,
    more: Sequence[str],
) -> str:  # fmt: skip
    low, high = wilson(successes, episodes)
    known = [cycle for cycle in cycles if cycle is not None]
    steps = f"{np.mean(known):.1f}" if known else "none"
    seconds = f"{np.mean(known) * period_s:.2f}" if known and period_s is not None else ""
    success = f"{successes}/{episodes}", f"{100 * low:.1f} to {100 * high:.1f} %"
    return f"| {' | '.join((name, *success, steps, seconds, *more))} |"


def _interventions(folder: Path) -> float:
    """How often somebody took over in a training."""
    return float(np.nansum(read_columns(folder / "metrics.csv").get("interventions", [0.0])))
