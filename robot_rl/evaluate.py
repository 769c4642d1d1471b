"""How good a policy is, in episodes it was never trained on: with its most likely actions, or with drawn ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_rl.energy import EpisodeEnergy, summarize
from robot_rl.episode import Episode, episode_seed, rollout

if TYPE_CHECKING:
    import gymnasium as gym

    from robot_rl.spaces import Encoder
    from robot_rl.types import Agent

_KEY = np.zeros(2, np.uint32)  # a deterministic policy draws nothing from it
_KEY_STREAM = 5  # any number: separates the keys of actions from other uses of an episode's seed


@dataclass(frozen=True)
class Evaluation:
    """Of ``episodes`` episodes. Success is None where the environment does not tell it."""

    episodes: int
    successes: int | None
    success_rate: float | None
    success_interval: tuple[float, float] | None  # 95 % (Wilson)
    mean_return: float | None
    mean_length: float | None  # steps
    cycle_steps: float | None  # mean length of the episodes that succeeded
    mean_cost: float | None  # per step; None where the environment does not tell it
    seed: int
    sampled: bool = False  # whether actions were drawn
    energy: dict[str, float | None] | None = None  # energy.summarize; None where the environment does not tell


def policy(agent: Agent, encoder: Encoder, seed: int | None = None) -> Callable[[Any], np.ndarray]:
    """The policy of one episode: observation in, action in [-1, 1] out. Make a fresh one per episode.

    Actions are the most likely ones; with a ``seed`` they are drawn, as in training.
    """
    carry = agent.start()
    word = 0 if seed is None else int(np.random.SeedSequence([seed, _KEY_STREAM]).generate_state(1)[0])
    step = 0

    def act(obs: Any) -> np.ndarray:
        nonlocal carry, step
        key = _KEY if seed is None else np.array([word, step], np.uint32)
        action, carry, _ = agent.act(encoder.encode(obs), carry, key, seed is not None)
        step += 1
        return np.asarray(action, np.float32)

    return act


def evaluate(
    env: gym.Env,
    agent: Agent,
    encoder: Encoder,
    episodes: int,
    seed: int,
    on_episode: Callable[[int, float | None], None] = lambda count, success_rate: None,
    stop: Callable[[], bool] = lambda: False,
    sample: bool = False,
) -> Evaluation:
    """Play ``episodes`` episodes whose seeds no training with any seed uses; fewer where ``stop`` says so.

    ``sample``: draw actions as in training. A policy without memory may need it where it cannot see what holds it.
    """

    def make_act(drawn: int) -> Callable[[Any], np.ndarray]:
        return policy(agent, encoder, drawn if sample else None)

    return replace(measure(env, make_act, episodes, seed, on_episode, stop), sampled=sample)


def measure(
    env: gym.Env,
    make_act: Callable[[int], Callable[[Any], np.ndarray]],
    episodes: int,
    seed: int,
    on_episode: Callable[[int, float | None], None] = lambda count, success_rate: None,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """``evaluate`` of anything that acts: ``make_act(seed of the episode)`` gives what maps observations to actions."""
    played: list[Episode] = []
    energies: list[EpisodeEnergy] = []
    successes: int | None = None
    for index in range(episodes):
        energy, drawn = EpisodeEnergy(), episode_seed(seed, "eval", index)
        result = rollout(env, make_act(drawn), drawn, stop, energy.add)
        if result is None:
            break
        episode, success = result
        played.append(episode)
        energies.append(energy)
        if success is not None:
            successes = (successes or 0) + success
        on_episode(len(played), None if successes is None else successes / len(played))
    return judge(played, energies, successes, seed)


def judge(played: list[Episode], energies: list[EpisodeEnergy], successes: int | None, seed: int) -> Evaluation:
    """What episodes come to."""
    count = len(played)
    cycles = [len(episode) for episode in played if episode.succeeded]
    costs = [episode.cost for episode in played if episode.cost is not None]
    cycles = [len(episode) for episode in played if episode.succeeded]
    return Evaluation(
        episodes=count,
        successes=successes,
        success_rate=successes / count if successes is not None and count else None,
        success_interval=wilson(successes, count) if successes is not None and count else None,
        mean_return=float(np.mean([episode.total_reward for episode in played])) if count else None,
        mean_length=float(np.mean([len(episode) for episode in played])) if count else None,
        cycle_steps=float(np.mean(cycles)) if cycles else None,
        mean_cost=float(np.mean(np.concatenate(costs), dtype=np.float64)) if costs else None,
        seed=seed,
        energy=summarize(energies),
    )


def wilson(successes: int, episodes: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a rate (E. B. Wilson, 1927); 95 % by default. (0, 1) for no episodes."""
    if episodes == 0:
        return 0.0, 1.0
    rate = successes / episodes
    centre = (rate + z * z / (2 * episodes)) / (1 + z * z / episodes)
    half = z * math.sqrt(rate * (1 - rate) / episodes + z * z / (4 * episodes**2)) / (1 + z * z / episodes)
    return max(0.0, centre - half), min(1.0, centre + half)
