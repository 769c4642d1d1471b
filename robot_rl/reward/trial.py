"""A classifier on episodes that it has not seen: in use, in a world that knows the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_rl.episode import episode_seed, flatten
from robot_rl.evaluate import wilson
from robot_rl.reward.collect import KINDS, Act, drive

if TYPE_CHECKING:
    import gymnasium as gym


@dataclass(frozen=True)
class Outcome:
    """How one episode ended."""

    kind: str
    judged: bool
    true: bool
    steps: int
    probability: float
    obs: Mapping[str, np.ndarray]  # the last one

    @property
    def false_positive(self) -> bool:
        return self.judged and not self.true

    @property
    def missed(self) -> bool:
        """It ended as a success that the classifier did not see."""
        return self.true and not self.judged


def play_trial(
    env: gym.Env,
    episodes: int,
    seed: int,
    policy: Callable[[int], Act] | None = None,
    on_episode: Callable[[list[Outcome]], None] = lambda outcomes: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Outcome]:
    """Play ``episodes`` of an ``env`` whose success is a classifier's; they end where it says so, or at their limit.

    Without a ``policy`` (seed -> driver) the kinds of ``collect`` take turns: an expert, one that is pushed aside, a
    wanderer. Raises ValueError where the world does not know the truth.
    """
    size = int((env.action_space.shape or (1,))[0])
    horizon = int(getattr(getattr(env.unwrapped, "task", None), "max_steps", 100))
    outcomes: list[Outcome] = []
    for index in range(episodes):
        drawn = episode_seed(seed, "eval", index)
        kind = "policy" if policy is not None else KINDS[index % len(KINDS)]
        if policy is not None:
            act = policy(drawn)
        else:
            make = getattr(env.unwrapped, "demonstrator", None)
            expert = None if make is None else make(np.random.default_rng([drawn, 1]))
            act = drive(kind, expert, size, np.random.default_rng([drawn, 23]), horizon)
        outcome = _play(env, act, drawn, kind, stop)
        if outcome is None:
            break
        outcomes.append(outcome)
        on_episode(outcomes)
    return outcomes


def _play(env: gym.Env, act: Act, seed: int, kind: str, stop: Callable[[], bool]) -> Outcome | None:
    obs, info = env.reset(seed=seed)
    steps, ended = 0, False
    while not ended:
        if stop():
            return None
        obs, _, terminated, truncated, info = env.step(np.asarray(act(obs), np.float32))
        steps, ended = steps + 1, bool(terminated or truncated)
    if "true_success" not in info:
        raise ValueError(f"{env.unwrapped} does not know the truth beside the classifier's word: try it in --world sim")
    judged, true = bool(info["success"]), bool(info["true_success"])
    return Outcome(kind, judged, true, steps, float(info["success_probability"]), flatten(obs))


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """Counts and rates with 95 % intervals (Wilson)."""
    count = len(outcomes)
    wrong = sum(outcome.false_positive for outcome in outcomes)
    missed = sum(outcome.missed for outcome in outcomes)
    return {
        "episodes": count,
        "judged_successes": sum(outcome.judged for outcome in outcomes),
        "true_successes": sum(outcome.true for outcome in outcomes),
        "false_positive_episodes": wrong,
        "false_positive_rate": wrong / count if count else None,
        "false_positive_interval": list(wilson(wrong, count)),
        "missed_episodes": missed,
        "by_kind": {
            kind: [sum(o.false_positive for o in outcomes if o.kind == kind), sum(o.kind == kind for o in outcomes)]
            for kind in sorted({outcome.kind for outcome in outcomes})
        },
    }
