"""How long two policies that undo each other keep going by themselves, and how well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robot_rl.alternation import ROLES, Alternation, begin_turn
from robot_rl.energy import EpisodeEnergy
from robot_rl.episode import Episode, episode_seed, rollout
from robot_rl.evaluate import Evaluation, judge, policy

if TYPE_CHECKING:
    import gymnasium as gym

    from robot_rl.spaces import Encoder
    from robot_rl.types import Agent

Player = tuple["gym.Env", "Agent", "Encoder"]


@dataclass(frozen=True)
class PairEvaluation:
    """Episodes of both roles in the order in which they came."""

    outcomes: tuple[bool, ...]
    person_resets: int  # after the beginning; in simulation each is a teleport
    longest_without_person: int  # episodes
    roles: Mapping[str, Evaluation]

    @property
    def episodes(self) -> int:
        return len(self.outcomes)

    @property
    def success_rate(self) -> float | None:
        return sum(self.outcomes) / len(self.outcomes) if self.outcomes else None

    @property
    def success_last_100(self) -> float | None:
        last = self.outcomes[-100:]
        return sum(last) / len(last) if last else None


def evaluate_pair(
    players: Mapping[str, Player],
    episodes: int,
    seed: int,
    ask_after: int,
    world: str,
    say: Callable[[str], None],
    on_episode: Callable[[int, float | None], None] = lambda count, success_rate: None,
    stop: Callable[[], bool] = lambda: False,
) -> PairEvaluation:
    """Alternate the most likely actions of both for ``episodes`` episodes, fewer where ``stop`` says so."""
    turns, outcomes = Alternation(), list[bool]()
    played: dict[str, list[Episode]] = {role: [] for role in ROLES}
    energies: dict[str, list[EpisodeEnergy]] = {role: [] for role in ROLES}
    envs = {role: player[0] for role, player in players.items()}
    streak = longest = 0
    while len(outcomes) < episodes:
        drawn = episode_seed(seed, "eval", len(outcomes))
        before = turns.placements
        obs = begin_turn(
            envs, turns, dict.fromkeys(ROLES, drawn), min(ROLES, key=lambda role: len(played[role])), say, world
        )
        streak = 0 if turns.placements > before else streak
        env, agent, encoder = players[turns.role]
        energy = EpisodeEnergy()
        result = rollout(env, policy(agent, encoder), drawn, stop, energy.add, begun=obs)
        if result is None:
            break
        episode, success = result
        played[turns.role].append(episode)
        energies[turns.role].append(energy)
        outcomes.append(bool(success))
        streak += 1
        longest = max(longest, streak)
        turns.count(bool(success), env.unwrapped.arm.fault != "", ask_after)  # type: ignore[attr-defined]
        on_episode(len(outcomes), sum(outcomes) / len(outcomes))
    roles = {role: judge(played[role], energies[role], sum(e.succeeded for e in played[role]), seed) for role in ROLES}
    return PairEvaluation(tuple(outcomes), turns.person_resets, longest, roles)
