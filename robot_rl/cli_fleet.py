"""The commands of several processes at once: ``robot-rl learner | actor | sweep``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from robot_rl.cli_ros import Settings


@dataclass(frozen=True)
class Learner:
    """Train from the steps of actors that run elsewhere, beside their robots; see `robot-rl actor`."""

    task: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """see `robot-rl tasks`"""
    gym: Annotated[str | None, arg(metavar="ID", help_behavior_hint="")] = None
    """instead of a task: the id of any Gymnasium environment with continuous actions"""
    arm: str = "panda"
    world: str = "sim"
    """of the actors: sim, ros, crisp or hardware"""
    agent: str = "rlpd"
    steps: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: 20000)")] = None
    """environment steps, of all actors together"""
    seed: int = 0
    listen: Annotated[str | None, arg(metavar="HOST:PORT", help_behavior_hint="(default: 127.0.0.1:5580)")] = None
    """beyond loopback only with --keys"""
    keys: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """made by `robot-rl keys make`: certificates and token of learner and actors"""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: runs/TASK-AGENT-SEED)")] = None
    """run folder, not there yet"""
    demos: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: a twin records its own)")] = None
    """demonstrations to learn from"""
    resume: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """go on with this run folder; only --steps, --listen and --keys may be given besides"""
    set: Settings = ()
    """settings of agent, task, arm, guard, energy, lab and train, such as agent.utd_ratio=8 train.lead_steps=32"""

    def execute(self) -> int:
        from robot_rl.fleet_commands import learner

        return learner(self)


@dataclass(frozen=True)
class Actor:
    """Act for a learner: it says what to do, this machine has the robot. Ctrl-C is safe; given again, it goes on."""

    learner: Annotated[str, arg(metavar="HOST:PORT")]
    """where `robot-rl learner` listens"""
    out: Annotated[Path, arg(metavar="DIR")]
    """folder of this actor, with its log of every step; the same one again to go on"""
    index: int = 0
    """of this actor in its run: each has another one"""
    keys: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """of `robot-rl keys make`: an actor needs ca.crt, actor.crt, actor.key and token"""
    rig: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """facts of the lab, such as rig.toml: the arm's address, the lab's bounds"""
    real_time: bool = False
    """let a twin's steps last as long as an arm's"""
    set: Settings = ()
    """settings of arm, lab and reward on this machine, such as arm.address=172.16.0.2"""

    def execute(self) -> int:
        from robot_rl.fleet_commands import actor

        return actor(self)


@dataclass(frozen=True)
class Sweep:
    """Train once for every combination of values and seeds, some at a time, through Ray. Given again, it goes on where
    it was: what is finished is skipped, what was begun is resumed."""

    out: Annotated[Path, arg(metavar="DIR")]
    """folder of the sweep; each training is a run folder in it"""
    task: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """see `robot-rl tasks`"""
    gym: Annotated[str | None, arg(metavar="ID", help_behavior_hint="")] = None
    """instead of a task: the id of any Gymnasium environment with continuous actions"""
    arm: str = "panda"
    agent: str = "rlpd"
    steps: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: 20000)")] = None
    """environment steps of each training, or updates for an agent that learns offline"""
    demos: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: each run records its own)")] = None
    """demonstrations to learn from"""
    seeds: tuple[int, ...] = (0, 1, 2)
    vary: Settings = ()
    """settings and the values they take, such as agent.utd_ratio=2,4,8; for values with commas hidden=32,32;64,64"""
    jobs: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: 2, or all that a cluster takes)")] = (
        None
    )
    """trainings at a time, one compute thread each where they are several"""
    cluster: Annotated[str | None, arg(metavar="HOST:PORT", help_behavior_hint="(default: on this machine)")] = None
    """the trainings go to this Ray cluster, which this machine has joined, and whose machines share --out"""
    set: Settings = ()
    """settings that all trainings share, such as train.eval_episodes=50"""

    def execute(self) -> int:
        from robot_rl.fleet_commands import sweep

        return sweep(self)
