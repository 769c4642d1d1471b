"""The command line: ``robot-rl tasks | demo | train | eval | runs | plot | video | study | bench``, and ``cli_ros.py``.

Only what parses the command is imported here; each command imports what it needs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import (
    FlagCreatePairsOff,
    OmitArgPrefixes,
    OmitSubcommandPrefixes,
    Positional,
    arg,
    subcommand,
)

from robot_rl.cli_fleet import Actor, Learner, Sweep
from robot_rl.cli_keys import Keys
from robot_rl.cli_lerobot import Export, Import
from robot_rl.cli_rig import Arm, Calibrate
from robot_rl.cli_ros import ROS_ARGS, Call, Doctor, Node, RecordBag, ReplayBag, Settings, Up, split_ros_args
from robot_rl.cli_runs import Runs

PACKAGES = ("robot_rl", "controllers", "tasks", "sim", "hardware")


@dataclass(frozen=True)
class Tasks:
    """List the tasks, arms and agents there are."""

    def execute(self) -> int:
        from robot_rl import catalogue

        print(catalogue.describe())
        return 0


@dataclass(frozen=True)
class Record:
    """Record demonstrations of a task's scripted expert or of a person at a device; adds to what the folder holds."""

    task: str
    """see `robot-rl tasks`"""
    out: Path
    """episode folder, such as demos.zarr"""
    arm: str = "panda"
    world: str = "sim"
    episodes: int = 20
    """successful ones to add"""
    seed: int = 0
    by: str = "scripted"
    """or the device of a person: spacemouse, gamepad, keyboard; its keys end episodes as success, fail or discard"""
    view_port: int = 0
    """for a person who steers a twin: it is shown at http://127.0.0.1:PORT"""
    keep_failures: bool = False
    """keep demonstrations that failed, too"""
    rig: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """facts of the lab, such as rig.toml: the arm's address, the lab's bounds"""
    set: Settings = ()
    """settings of task, arm, guard, energy, lab and teleop, such as task.max_steps=80"""

    def execute(self) -> int:
        from robot_rl.commands import record_demonstrations

        return record_demonstrations(self)


@dataclass(frozen=True)
class Info:
    """Say what an episode folder holds."""

    path: Positional[Path]

    def execute(self) -> int:
        from robot_rl.commands import describe_demonstrations

        return describe_demonstrations(self.path)


@dataclass(frozen=True)
class Demo:
    """Demonstrations: record them, say what a folder of them holds, exchange them with LeRobot."""

    command: (
        Annotated[Record, subcommand("record")]
        | Annotated[Info, subcommand("info")]
        | Annotated[Export, subcommand("export")]
        | Annotated[Import, subcommand("import")]
    )

    def execute(self) -> int:
        return self.command.execute()


@dataclass(frozen=True)
class Train:
    """Train an agent on a task, and evaluate it at the end."""

    task: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """see `robot-rl tasks`"""
    gym: Annotated[str | None, arg(metavar="ID", help_behavior_hint="")] = None
    """instead of a task: the id of any Gymnasium environment with continuous actions"""
    arm: str = "panda"
    world: str = "sim"
    agent: str = "rlpd"
    steps: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: 20000)")] = None
    """environment steps, or updates for an agent that learns offline"""
    seed: int = 0
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: runs/TASK-AGENT-SEED)")] = None
    """run folder, not there yet"""
    demos: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: the run records its own)")] = None
    """demonstrations to learn from"""
    reset_task: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """the task that undoes --task: both are learned in turns on the one arm, and nobody puts anything back"""
    reset_demos: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: recorded, too)")] = None
    """demonstrations of --reset-task"""
    resume: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """go on with this run folder; only --steps may be given besides, and what is about actors"""
    apart: Annotated[bool, arg(name="async")] = False
    """actor and learner in processes of their own, as `robot-rl actor` and `robot-rl learner` on one machine"""
    actors: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """this many twins act at once for the one learner, through Ray; implies --async"""
    cluster: Annotated[str | None, arg(metavar="HOST:PORT", help_behavior_hint="(default: on this machine)")] = None
    """the actors go to this Ray cluster, which this machine has joined"""
    listen: Annotated[str | None, arg(metavar="HOST:PORT", help_behavior_hint="(default: any port of loopback)")] = None
    """where the learner of --async listens; beyond loopback only with --keys"""
    keys: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """made by `robot-rl keys make`; at the same path on all machines of a cluster"""
    rig: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """facts of the lab, such as rig.toml: the arm's address, the lab's bounds"""
    set: Settings = ()
    """settings of agent, task, arm, guard, energy, lab and train, such as agent.utd_ratio=8 train.eval_every=2000"""

    def execute(self) -> int:
        from robot_rl.commands import train
        from robot_rl.fleet_commands import is_apart, train_apart
        from robot_rl.run import is_pair

        about_actors = (self.actors, self.cluster, self.listen, self.keys)
        apart = self.apart or any(given is not None for given in about_actors)
        if apart or (self.resume is not None and is_apart(self.resume)):
            if self.reset_task is not None:
                raise ValueError("--reset-task trains in one process: leave out what is about actors")
            return train_apart(self)
        if self.reset_task is not None or (self.resume is not None and is_pair(self.resume)):
            from robot_rl import pair_commands

            return pair_commands.train(self)
        return train(self)


@dataclass(frozen=True)
class Eval:
    """Evaluate a trained policy on episodes it was not trained on."""

    dir: Positional[Path]
    """run folder"""
    episodes: int = 100
    seed: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: the run's)")] = None
    """of the episodes"""
    checkpoint: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: the newest)")] = None
    """a folder in DIR/checkpoints"""
    world: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: the run's)")] = None
    """another world than it was trained in: sim, ros for an arm behind its ROS 2 node, hardware for our own driver"""
    rig: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """facts of the lab, such as rig.toml: the arm's address, the lab's bounds"""
    sample: bool = False
    """draw actions as in training, instead of taking the most likely ones"""
    json: bool = False
    """print one JSON object"""
    set: Settings = ()
    """settings of task, arm, guard, energy and lab to change for the evaluation, such as energy.enforce=false"""

    def execute(self) -> int:
        from robot_rl.commands import evaluate

        return evaluate(self)


@dataclass(frozen=True)
class Plot:
    """Draw learning curves of runs to a PNG: mean and 95 % confidence band over the seeds of each task and agent.

    With --energy, one evaluation episode of one run instead: ledger, filter and contact force over time.
    """

    dirs: Positional[tuple[Path, ...]]
    """run folders"""
    out: Annotated[
        Path | None, arg(metavar="FILE", help_behavior_hint="(default: curves.png or energy.png in the first DIR)")
    ] = None
    """PNG file, not there yet"""
    energy: bool = False
    """play an episode in simulation and draw its energy"""
    seed: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: the run's)")] = None
    """of the episode that --energy draws"""

    def execute(self) -> int:
        from robot_rl.commands import plot

        return plot(self)


@dataclass(frozen=True)
class Video:
    """Film a trained policy, without a display, in real time."""

    dir: Positional[Path]
    """run folder"""
    episodes: int = 3
    seed: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: the run's)")] = None
    """of the episodes"""
    checkpoint: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: the newest)")] = None
    """a folder in DIR/checkpoints"""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: video.mp4 in DIR)")] = None
    """.mp4 or .gif file, not there yet"""

    def execute(self) -> int:
        from robot_rl.commands import video

        return video(self)


@dataclass(frozen=True)
class Study:
    """Do policies trained to respect energy need the passivity filter? Trains {agnostic, aware} x {filter off, on},
    evaluates each without and with the filter, and makes a table and plots. Given again, it goes on where it was."""

    name: Positional[Literal["passivity"]]
    """the only study there is"""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: runs/passivity-TASK)")] = None
    """folder of the study"""
    task: str = "maze"
    arm: str = "panda"
    agent: str = "rlpd"
    steps: int = 4_000
    """environment steps of each training"""
    budget_j: float = 0.6
    """energy that an episode may spend"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """of the trainings"""
    episodes: int = 50
    """of each evaluation, the same ones in all of them"""
    jobs: int = 2
    """trainings and evaluations at a time, one thread each where they are several"""
    set: Settings = ()
    """settings that all trainings share, such as task.friction=0.5"""

    def execute(self) -> int:
        from robot_rl.commands import study

        return study(self)


@dataclass(frozen=True)
class Compare:
    """Train agents on the same demonstrations with the same budget, and evaluate them, and the scripted demonstrator,
    from the same starts. What is finished is found again."""

    task: str
    """see `robot-rl tasks`"""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: runs/compare-TASK)")] = None
    arm: str = "panda"
    agents: tuple[str, ...] = ("rlpd", "hg_dagger", "bc")
    steps: int = 10_000
    """environment steps of those that act; one that learns offline gets their gradient updates"""
    seeds: tuple[int, ...] = (0, 1, 2)
    demos: int = 20
    """demonstrations of each seed, shared by its agents"""
    episodes: int = 100
    """of each evaluation"""
    by: str = "scripted"
    """who intervenes where an agent acts: scripted or nobody"""
    jobs: int = 1
    """trainings at a time, one thread each where they are several"""
    set: Settings = ()
    """settings that all share, such as task.max_steps=80, or of one agent: rlpd:agent.utd_ratio=8"""

    def execute(self) -> int:
        from robot_rl.commands import compare

        return compare(self)


@dataclass(frozen=True)
class Bench:
    """Run the repository's benchmarks; each prints one JSON line."""

    names: Annotated[Positional[tuple[str, ...]], arg(help_behavior_hint="(default: tick env learner)")] = ()
    """others are not quick: sample_efficiency trains for a long time"""

    def execute(self) -> int:
        from robot_rl.commands import bench

        return bench(self.names)


@dataclass(frozen=True)
class Twin:
    """Serve a twin at a vendor's own ports: the vendor's clients drive it as they drive an arm. Until Ctrl-C."""

    action: Positional[Literal["serve"]]
    protocol: Literal["fci", "rtde"]
    """fci: a Franka FR3; rtde: a UR5e"""
    task: str = "peg_insert"
    """whose scene is around it"""
    arm: Annotated[str, arg(metavar="NAME", help_behavior_hint="(default: the one that speaks the protocol)")] = ""
    address: str = "127.0.0.1"
    """to listen at; several arms: 127.0.0.2, 127.0.0.3 ..."""
    lockstep: bool = False
    """time passes as fast as the client answers, not by the clock"""
    set: Settings = ()
    """settings of task, arm and protocol"""

    def execute(self) -> int:
        from robot_rl.twin_serve import serve

        return serve(self.protocol, self.arm, self.task, self.address, self.lockstep, sum(self.set, ()))


Command = (
    Annotated[Tasks, subcommand("tasks")]
    | Annotated[Demo, subcommand("demo")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Learner, subcommand("learner")]
    | Annotated[Actor, subcommand("actor")]
    | Annotated[Sweep, subcommand("sweep")]
    | Annotated[Eval, subcommand("eval")]
    | Annotated[Runs, subcommand("runs")]
    | Annotated[Plot, subcommand("plot")]
    | Annotated[Video, subcommand("video")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Study, subcommand("study")]
    | Annotated[Bench, subcommand("bench")]
    | Annotated[Twin, subcommand("twin")]
    | Annotated[Arm, subcommand("arm")]
    | Annotated[Calibrate, subcommand("calibrate")]
    | Annotated[Doctor, subcommand("doctor")]
    | Annotated[Up, subcommand("up")]
    | Annotated[Node, subcommand("node")]
    | Annotated[Call, subcommand("call")]
    | Annotated[RecordBag, subcommand("record-bag")]
    | Annotated[ReplayBag, subcommand("replay-bag")]
    | Annotated[Keys, subcommand("keys")]
)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status. What a user can mend is one line on stderr, and 2."""
    words = list(sys.argv[1:] if args is None else args)
    words, ROS_ARGS[:] = split_ros_args(words)
    command: Any = tyro.cli(
        Command,
        prog="robot-rl",
        description="Real-world reinforcement learning for robot arms.",
        args=words,
        config=(OmitSubcommandPrefixes, OmitArgPrefixes, FlagCreatePairsOff),
    )
    try:
        return command.execute()
    except KeyboardInterrupt:
        print("robot-rl: stopped; what was finished before is safe", file=sys.stderr)
        return 130
    except (ValueError, LookupError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        if not raised_on_purpose(error):
            raise
        print(f"robot-rl: error: {message(error)}", file=sys.stderr)
        return 2


def message(error: Exception) -> str:
    """What ``error`` says to a user."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename is not None else "")
    return str(error.args[0]) if error.args else type(error).__name__


def raised_on_purpose(error: Exception) -> bool:
    """Whether a ``raise`` in our own code, or the operating system, raised ``error``; else it is a fault of ours, and
    its traceback is needed."""
    if isinstance(error, OSError) and error.errno is not None:
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    path = trace.tb_frame.f_code.co_filename
    ours = any(Path(__file__).parents[1] / package in Path(path).parents for package in PACKAGES)
    return ours and linecache.getline(path, trace.tb_lineno).lstrip().startswith("raise ")


if __name__ == "__main__":
    sys.exit(main())
