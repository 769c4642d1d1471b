"""Demonstrations by the scripted expert of a task, or by a person at a device, through the same environment that the
policy acts in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from robot_rl.episode import episode_seed, rollout
from robot_rl.intervention import Overseer, Turns
from robot_rl.pace import Pace, control_period_s
from robot_rl.run import Run, Spaces, configs
from robot_rl.store import EpisodeReader, EpisodeWriter, StoreInfo

if TYPE_CHECKING:
    import gymnasium as gym


@dataclass(frozen=True)
class Recording:
    """What came of a recording."""

    kept: int
    succeeded: int
    failed: int
    discarded: int  # by the person
    skipped: int  # episodes of these seeds that the folder held already
    stopped: bool = False

    @property
    def tried(self) -> int:
        return self.succeeded + self.failed


def demonstrator_of(env: gym.Env | Spaces) -> Callable[[np.random.Generator], Callable[[Any], np.ndarray]]:
    """What makes the scripted expert of an episode; raises ValueError where the environment has none."""
    make = getattr(env.unwrapped, "demonstrator", None)
    if make is None:
        raise ValueError(
            f"{env.unwrapped} has no scripted demonstrator: give episodes that were recorded otherwise (--demos), "
            "or learn without (--set agent.demo_share=0, or --agent sac)"
        )
    return make


def _resting(env: gym.Env) -> Callable[[np.random.Generator], Callable[[Any], np.ndarray]]:
    """What acts where a person does not: it stays."""
    rest = np.zeros(env.action_space.shape or (), np.float32)
    return lambda rng: lambda obs: rest


def check_demonstrations(run: Run, env: gym.Env | Spaces, with_costs: bool) -> None:
    """Raises ValueError where there are no demonstrations of this task, and none can be recorded."""
    if not run.demos:
        demonstrator_of(env)
        return
    reader = EpisodeReader(run.demos)
    here = StoreInfo.of(env, run.task, run.arm, run.world, configs(run))
    if different := reader.info.difference(here, same_robot=False):  # another arm may show how
        raise ValueError(
            f"--demos {run.demos} is not of this task ({different}): train with the settings it was recorded with, "
            "or record some with these, robot-rl demo record"
        )
    if not len(reader):
        raise ValueError(f"--demos {run.demos} holds no finished episode: record some, robot-rl demo record")
    if with_costs and not reader.info.costs:
        raise ValueError(
            f"--demos {run.demos} was recorded by a version that kept no costs, which this agent's constraint learns "
            "from: record it again, robot-rl demo record, or train with --set agent.constraint=none"
        )
    there, own = (info.configs.get("energy", {}) for info in (reader.info, here))
    for name in ("budget_j", "low_share") if with_costs else ():
        if there.get(name) != own.get(name):
            raise ValueError(
                f"--demos {run.demos} was recorded with energy.{name} = {there.get(name)}, here it is {own.get(name)}, "
                "so its costs mean something else: record it again with these settings, robot-rl demo record"
            )


def record(
    env: gym.Env,
    writer: EpisodeWriter,
    episodes: int,
    seed: int,
    keep_failures: bool = False,
    on_episode: Callable[[Recording], None] = lambda recording: None,
    stop: Callable[[], bool] = lambda: False,
    person: Overseer | None = None,
) -> Recording:
    """Append demonstrations to ``writer`` until ``episodes`` are kept; a failure is kept out unless asked for. They are
    the scripted expert's or, where there is one, a ``person``'s, who may also discard an episode, or stop.

    Episode i of a ``seed`` always begins the same; one whose seed the folder holds is not recorded again. Raises
    RuntimeError after more than ``10 * episodes + 10`` failures: such an expert is broken.
    """
    make = demonstrator_of(env) if person is None else _resting(env)
    pace = Pace(control_period_s(env), person is not None and person.paced)
    held = set(writer.seeds)
    result = Recording(kept=0, succeeded=0, failed=0, discarded=0, skipped=0)
    index = 0
    while result.kept < episodes:
        drawn = episode_seed(seed, "demo", index)
        index += 1
        if drawn in held:
            result = replace(result, skipped=result.skipped + 1)
            continue
        turns = None if person is None else Turns(person, drawn)
        pace.restart()
        played = rollout(env, make(np.random.default_rng([drawn, 1])), drawn, stop, lambda info: pace.step(), turns)
        if turns is not None and turns.event == "stop":
            cast(Any, env.unwrapped).arm.stop()
        if played is None or (turns is not None and turns.event == "stop"):
            return replace(result, stopped=True)
        if turns is not None and turns.event == "discard":
            result = replace(result, discarded=result.discarded + 1)
            on_episode(result)
            continue
        episode, success = played
        if success or success is None:
            result = replace(result, succeeded=result.succeeded + 1)
        else:
            result = replace(result, failed=result.failed + 1)
        if keep_failures or success or success is None:
            writer.append(episode)
            result = replace(result, kept=result.kept + 1)
        elif result.failed > 10 * episodes + 10:
            raise RuntimeError(
                f"{result.failed} demonstrations failed and {result.kept} succeeded: the expert does not fit these "
                "settings of the task and the arm; give others, or keep failures (--keep-failures)"
            )
        on_episode(result)
    return result
