"""What the commands of ``cli.py`` do. Each returns an exit status; results go to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robot_rl.find import nearest
from robot_rl.terminal import say

if TYPE_CHECKING:
    from robot_rl import cli, cli_fleet
    from robot_rl.run import Run

QUICK_BENCHMARKS = ("tick", "env", "learner")  # what `robot-rl bench` runs unasked; others may train for hours


def train(command: cli.Train) -> int:
    """``robot-rl train``: prints the summary as one JSON object."""
    from robot_rl import train as training
    from robot_rl.interrupt import Interrupted

    try:
        if command.resume is not None:
            refuse_besides_resume(command)
            folder = command.resume
            summary = training.resume(folder, command.steps)
        else:
            run = choose(command, command.rig)
            folder = run_folder(command.out, run)
            summary = training.train(run, folder)
    except Interrupted as interrupted:
        say(str(interrupted))
        return interrupted.code
    return report(summary, folder)


def run_folder(out: Path | None, run: Run) -> Path:
    """``out``, or the folder that a run has where none is given."""
    return out or Path("runs") / f"{run.task.replace('/', '-')}-{run.agent}-{run.seed}"


def report(summary: Mapping[str, Any], folder: Path) -> int:
    """Print how a training ended."""
    from robot_rl.log import clock, percent

    print(json.dumps(summary))
    outcome = f"success {percent(summary['success_rate'])} of {summary['eval_episodes']} evaluation episodes"
    say(f"{outcome}, {summary['env_steps']} environment steps, {clock(summary['wall_s'])} on the clock")
    where = shlex.quote(str(folder))
    say(f"everything is in {folder}; next: robot-rl plot {where}, robot-rl video {where}")
    return 0


def refuse_besides_resume(command: cli.Train | cli_fleet.Learner, fine: Sequence[str] = ()) -> None:
    """Raises ValueError where ``command`` has more than --resume, --steps and what is ``fine``."""
    for field in dataclasses.fields(command):
        if field.name not in ("resume", "steps", *fine) and getattr(command, field.name) != field.default:
            raise ValueError(
                f"--{field.name} cannot be changed by --resume: {command.resume}/run.json says it; leave it out, "
                "or train anew into another folder"
            )


def choose(
    command: cli.Train | cli_fleet.Learner, rig_file: Path | None, task: str | None = None, demos: Path | None = None
) -> Run:
    """What is to be trained; ``task``: instead of the command's, with demonstrations of its own."""
    from robot_rl import rig
    from robot_rl.run import GYM, TrainConfig
    from robot_rl.run import choose as choose_run

    if (command.task is None) == (command.gym is None):
        raise ValueError("give either --task NAME (see robot-rl tasks), --gym ID, or --resume DIR")
    train = TrainConfig(seed=command.seed)
    if command.steps is not None:
        train = dataclasses.replace(train, steps=command.steps)
    demos = command.demos if task is None else demos
    task, arm, world = (
        (command.gym, "", GYM) if command.gym else (task or command.task or "", command.arm, command.world)
    )
    settings = rig.words(rig_file, arm, world, sum(command.set, ()))
    device = rig.load(rig_file).teleop
    return choose_run(task, arm, world, command.agent, train, settings, str(demos) if demos else None, device)


def record_demonstrations(command: cli.Record) -> int:
    """``robot-rl demo record``."""
    from robot_rl import build, rig
    from robot_rl.config import as_json
    from robot_rl.demo import demonstrator_of, record
    from robot_rl.interrupt import StopSignals
    from robot_rl.intervention import NOBODY, Config, make_overseer
    from robot_rl.log import Progress
    from robot_rl.run import WORLD, choose_device
    from robot_rl.store import EpisodeWriter, StoreInfo

    if command.episodes < 1:
        raise ValueError(f"--episodes {command.episodes}: give at least 1")
    if command.by == NOBODY:
        raise ValueError(f"--by {NOBODY}: somebody has to demonstrate; give scripted, or a device")
    changes = build.split_settings(sum(command.set, ()), ("teleop", *WORLD))
    device = choose_device(command.by, rig.load(command.rig).teleop, changes.pop("teleop"))
    settings = tuple(f"{section}.{text}" for section, texts in changes.items() for text in texts)
    settings = rig.words(command.rig, command.arm, command.world, settings)
    made = build.make_configs(command.task, command.arm, command.world, settings)
    configs = {section: as_json(config) for section, config in made.items()}
    shown = "rgb_array" if command.view_port and command.world == "sim" else None
    env = build.make_env(command.task, command.arm, command.world, settings, shown)
    with contextlib.ExitStack() as ending:
        ending.callback(env.close)
        person = None
        if device is None:
            demonstrator_of(env)
        else:
            person = make_overseer(Config(by=command.by, view_port=command.view_port), device, env)
            ending.callback(person.close)
        info = StoreInfo.of(env, command.task, command.arm, command.world, configs)
        writer = ending.enter_context(EpisodeWriter(command.out, info))
        progress = ending.enter_context(Progress("demonstrations", command.episodes))
        stop = ending.enter_context(StopSignals(progress.say, "the episodes finished so far"))
        result = record(
            env, writer, command.episodes, command.seed, command.keep_failures, stop=stop, person=person,
            on_episode=lambda now: progress.update(now.kept, {"success": f"{now.succeeded}/{now.tried}"}),
        )  # fmt: skip
        held = len(writer)
    left_out = "" if command.keep_failures else f", {result.failed} failed and were left out"
    say(f"{result.kept} demonstrations added to {command.out}{left_out}; it holds {held}")
    return 128 + stop.signum if stop.signum is not None and result.stopped else 0


def describe_demonstrations(path: Path) -> int:
    """``robot-rl demo info``: prints one JSON object."""
    from robot_rl.store import EpisodeReader

    reader = EpisodeReader(path)
    episodes = [(len(episode), episode.succeeded, episode.total_reward) for episode in reader]
    about = {"task": reader.info.task, "arm": reader.info.arm, "world": reader.info.world, "episodes": len(reader)}
    steps = sum(length for length, _, _ in episodes)
    about |= {
        "successes": sum(succeeded for _, succeeded, _ in episodes),
        "steps": steps,
        "mean_return": sum(total for _, _, total in episodes) / len(episodes) if episodes else None,
        "observation": {name: f"{dtype}{list(shape)}" for name, (shape, dtype) in reader.info.observation.items()},
        "action_dim": reader.info.action_dim,
    }
    print(json.dumps(about))
    return 0


def evaluate(command: cli.Eval) -> int:
    """``robot-rl eval``."""
    from robot_rl import evaluate as evaluation
    from robot_rl import pair_commands
    from robot_rl.energy import describe
    from robot_rl.log import Progress, percent
    from robot_rl.rig import words
    from robot_rl.run import is_pair, load, load_agent

    if command.episodes < 1:
        raise ValueError(f"--episodes {command.episodes}: give at least 1")
    if is_pair(command.dir):
        return pair_commands.evaluate(command)
    chosen = load(command.dir)
    settings = words(command.rig, chosen.arm, command.world or chosen.world, sum(command.set, ()))
    run, env, encoder, agent = load_agent(command.dir, command.checkpoint, settings=settings, world=command.world)
    seed = run.seed if command.seed is None else command.seed
    try:
        with Progress(f"evaluating {run.task} {run.agent}", command.episodes) as progress:
            result = evaluation.evaluate(
                env, agent, encoder, command.episodes, seed,
                lambda count, rate: progress.update(count, {"success": percent(rate)}), sample=command.sample,
            )  # fmt: skip
    finally:
        env.close()
    about = {"task": run.task, "arm": run.arm, "world": run.world, "agent": run.agent}
    if command.json:
        print(json.dumps(about | dataclasses.asdict(result)))
        return 0
    cost = "" if result.mean_cost is None else f", mean cost {result.mean_cost:.4g} per step"
    length = f"mean length {result.mean_length:.1f} steps"
    length += "" if result.cycle_steps is None else f", {result.cycle_steps:.1f} where it succeeds"
    print(f"{run.task} {run.agent}: mean return {result.mean_return:.4g}, {length}{cost}")
    if result.success_interval is None:
        print("success: the environment does not tell it")
    else:
        low, high = result.success_interval
        print(
            f"success: {result.successes} of {result.episodes} episodes, {percent(result.success_rate)} "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
        )
    if result.energy is not None:
        print(describe(result.energy))
    return 0


def plot(command: cli.Plot) -> int:
    """``robot-rl plot``: prints the file."""
    from robot_rl import energy_plot
    from robot_rl.plot import plot as draw

    if not command.dirs:
        raise ValueError("give a run folder, such as runs/reach-rlpd-0")
    if command.energy and len(command.dirs) > 1:
        raise ValueError(f"--energy draws one run, not {len(command.dirs)}: give one folder")
    if command.seed is not None and not command.energy:
        raise ValueError(f"--seed {command.seed} is of the episode that --energy draws: leave it out, or add --energy")
    out = _output(command.out, command.dirs[0] / ("energy.png" if command.energy else "curves.png"), (".png",))
    if command.energy:
        say(energy_plot.plot(command.dirs[0], out, command.seed))
    else:
        draw(command.dirs, out)
    print(out)
    return 0


def study(command: cli.Study) -> int:
    """``robot-rl study passivity``: prints the table."""
    from robot_rl import study as studying

    names = ("task", "arm", "agent", "steps", "budget_j", "seeds", "episodes")
    plan = studying.Plan(**{name: getattr(command, name) for name in names}, settings=sum(command.set, ()))
    return _print_table(studying.study, plan, command.out or Path("runs") / f"passivity-{plan.task}", command.jobs)


def compare(command: cli.Compare) -> int:
    """``robot-rl compare``: prints the table."""
    from robot_rl import compare as comparing

    names = ("task", "arm", "agents", "steps", "seeds", "demos", "episodes", "by")
    plan = comparing.Plan(**{name: getattr(command, name) for name in names}, settings=sum(command.set, ()))
    return _print_table(comparing.compare, plan, command.out or Path("runs") / f"compare-{plan.task}", command.jobs)


def _print_table(make: Callable[..., str], *what: Any) -> int:
    """Print the table that ``make(*what)`` returns; where it was stopped, say how to go on."""
    from robot_rl.interrupt import Interrupted

    try:
        table = make(*what)
    except Interrupted as interrupted:
        say(str(interrupted))
        return interrupted.code
    print(table, end="")
    return 0


def video(command: cli.Video) -> int:
    """``robot-rl video``: prints the file."""
    from robot_rl import gl
    from robot_rl.run import GYM, load, load_agent
    from robot_rl.video import SUFFIXES, film

    if command.episodes < 1:
        raise ValueError(f"--episodes {command.episodes}: give at least 1")
    out = _output(command.out, command.dir / "video.mp4", SUFFIXES)
    gl.prepare(needed=load(command.dir).world != GYM)
    from robot_rl.evaluate import policy

    world = load(command.dir).world
    if world not in ("sim", GYM):
        say(f"no film of world '{world}': the same policy is filmed in sim")
        world = "sim"
    run, env, encoder, agent = load_agent(command.dir, command.checkpoint, render_mode="rgb_array", world=world)
    try:
        seed = run.seed if command.seed is None else command.seed
        outcomes = film(env, lambda: policy(agent, encoder), command.episodes, seed, out)
    finally:
        env.close()
    words = {True: "success", False: "failure", None: "not told"}
    say(f"{len(outcomes)} episodes: {', '.join(words[outcome] for outcome in outcomes)}")
    print(out)
    return 0


def bench(names: Sequence[str]) -> int:
    """``robot-rl bench``: scripts of benchmarks/, the quick ones unless named; their JSON lines go to stdout."""
    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    scripts = {path.stem: path for path in sorted(folder.glob("*.py")) if not path.name.startswith("_")}
    if not scripts:
        raise FileNotFoundError(f"no scripts in {folder}: benchmarks come with the repository, not with the package")
    for name in names:
        if name not in scripts:
            raise LookupError(nearest("benchmark", name, scripts))
    status = 0
    for name in names or QUICK_BENCHMARKS:
        say(f"benchmark {name}")
        status = subprocess.run([sys.executable, str(scripts[name])]).returncode or status
    return status


def _output(given: Path | None, default: Path, suffixes: Sequence[str]) -> Path:
    """The file to write: the default one belongs to the run and is replaced, one that was named must be new."""
    out = given if given is not None else default
    if out.suffix.lower() not in suffixes:
        raise ValueError(f"--out {out}: give a file that ends in {' or '.join(suffixes)}")
    if given is not None and given.exists():
        raise FileExistsError(f"--out {given} exists: give another file, or remove it")
    if given is not None and not given.parent.is_dir():
        raise FileNotFoundError(f"--out {given}: make the folder {given.parent} first")
    return out
