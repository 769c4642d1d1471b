"""One episode: its arrays, its seed, and the loop that plays it.

Observations are kept as the environment gives them, under flat names: a nested ``Dict`` joins its keys with ``/``, a
plain ``Box`` is called ``state`` or ``image``, as in ``spaces.Encoder``, which reads the flat names as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np

from robot_rl.energy import EpisodeEnergy
from robot_rl.spaces import flat_boxes, flat_values
from robot_rl.types import INTERVENTION, POLICY

if TYPE_CHECKING:
    from robot_rl.intervention import Turns

Purpose = Literal["train", "eval", "demo"]
_PURPOSES = {"train": 0, "eval": 1, "demo": 2}
_KEY_STREAM = 7  # any number: separates the keys of actions from other uses of the seed
_SUCCESS_KEYS = ("success", "is_success", "succeed")  # ours and Meta-World's; GoalEnv's; gym-hil's


@dataclass(frozen=True)
class Episode:
    """T steps. Row t of the step arrays tells what happened between the observations t and t + 1."""

    observation: dict[str, np.ndarray]  # flat name -> (T + 1, ...)
    action: np.ndarray  # (T, A) float32 in [-1, 1]
    reward: np.ndarray  # (T,) float32
    terminated: np.ndarray  # (T,) bool: a true end, nothing follows
    truncated: np.ndarray  # (T,) bool: cut off, something would have followed
    success: np.ndarray  # (T,) bool; all False where the environment does not tell
    seed: int = 0  # what the environment was reset with
    cost: np.ndarray | None = None  # (T,) float32; None where the environment does not tell

    def __len__(self) -> int:
        return len(self.action)

    @property
    def succeeded(self) -> bool:
        """Whether the last step was a success."""
        return bool(self.success[-1])

    @property
    def total_reward(self) -> float:
        """The undiscounted sum of rewards."""
        return float(np.sum(self.reward, dtype=np.float64))


@dataclass
class EpisodeAccount:
    """What an episode came to, step by step."""

    total: float = 0.0
    length: int = 0
    faults: int = 0
    success: bool | None = None
    interventions: int = 0
    intervened: int = 0  # steps
    discarded: bool = False
    costs: list[float | None] = field(default_factory=list)
    energy: EpisodeEnergy = field(default_factory=EpisodeEnergy)
    _source: int = POLICY  # of the last step

    def add(self, reward: float, cost: float | None, info: Mapping[str, Any]) -> None:
        """Count one step."""
        self.total, self.length = self.total + reward, self.length + 1
        self.costs.append(cost)
        self.success, self.faults = success_of(info), self.faults + bool(info.get("fault"))
        intervened = info.get("source", POLICY) == INTERVENTION
        self.interventions += intervened and self._source == POLICY
        self.intervened, self._source = self.intervened + intervened, info.get("source", POLICY)
        if info.get("discarded"):
            self.discarded, self.success = True, None
        self.energy.add(info)

    def row(self) -> dict[str, Any]:
        """Its columns in metrics.csv."""
        row: dict[str, Any] = {"return": self.total, "length": self.length, "faults": self.faults}
        row |= {"interventions": self.interventions, "intervened_share": self.intervened / max(self.length, 1)}
        row |= {"discarded": int(self.discarded)}
        row |= self.energy.row()
        if None not in self.costs:
            row["cost"] = float(np.mean(np.asarray(self.costs, np.float64)))
        return row | {"success": None if self.success is None else int(self.success)}


def episode_seed(seed: int, purpose: Purpose, index: int, actor: int = 0) -> int:
    """The seed in [0, 2**31) of episode ``index`` of an actor. Seeds of different purposes never meet."""
    entropy = [seed, _PURPOSES[purpose], index, *([actor] if actor else [])]
    drawn = np.random.SeedSequence(entropy).generate_state(1)[0]
    return (int(drawn) >> 3) << 2 | _PURPOSES[purpose]


def action_key(seed: int, step: int, actor: int = 0) -> np.ndarray:
    """The key (2,) uint32 of the action at an environment step, counted by its actor."""
    return np.array([_key_word(seed, actor), step], np.uint32)


@cache
def _key_word(seed: int, actor: int) -> int:
    return int(np.random.SeedSequence([seed, _KEY_STREAM, *([actor] if actor else [])]).generate_state(1)[0])


def success_of(info: Mapping[str, Any]) -> bool | None:
    """Whether a step's ``info`` reports a success; None where the environment does not tell."""
    for key in _SUCCESS_KEYS:
        if key in info:
            return bool(np.all(info[key]))
    return None


def cost_of(info: Mapping[str, Any]) -> float | None:
    """What a step cost by its ``info["cost"]``; None where the environment does not tell.

    Raises ValueError where it is no finite number.
    """
    if "cost" not in info:
        return None
    try:
        cost = float(info["cost"])
    except (TypeError, ValueError):
        cost = math.nan
    if not math.isfinite(cost):
        raise ValueError(f"info['cost'] is {info['cost']!r}: the environment has to report one finite number per step")
    return cost


def rollout(
    env: gym.Env,
    act: Callable[[Any], np.ndarray],
    seed: int,
    stop: Callable[[], bool] = lambda: False,
    on_info: Callable[[Mapping[str, Any]], None] = lambda info: None,
    turns: Turns | None = None,
    begun: Any = None,
) -> tuple[Episode, bool | None] | None:
    """Play one episode with ``act(obs) -> action``; ``on_info`` is given the info of each step. With ``turns``,
    somebody looks after it, may take over, and says how it ended. ``begun``: the first observation, where the
    environment has been reset already.

    Returns the episode and whether it succeeded (None: the environment does not tell), or None where ``stop`` said so
    before its end.
    """
    obs = env.reset(seed=seed)[0] if begun is None else begun
    rows = [flatten(obs)]
    steps: list[tuple[np.ndarray, float, bool, bool, bool]] = []
    costs: list[float | None] = []
    success: bool | None = None
    terminated = truncated = False
    while not (terminated or truncated):
        if stop():
            return None
        action = np.asarray(act(obs), np.float32)
        if turns is not None:
            action, _ = turns.choose(obs, action, {})
        obs, reward, terminated, truncated, info = env.step(action)
        if turns is not None:
            reward, terminated, truncated, info = turns.settle(float(reward), bool(terminated), bool(truncated), info)
        on_info(info)
        success = success_of(info)
        rows.append(flatten(obs))
        steps.append((action, float(reward), bool(terminated), bool(truncated), bool(success)))
        costs.append(cost_of(info))
    columns = list(zip(*steps, strict=True))
    episode = Episode(
        observation={name: np.stack([row[name] for row in rows]) for name in rows[0]},
        action=np.stack(columns[0]),
        reward=np.asarray(columns[1], np.float32),
        terminated=np.asarray(columns[2]),
        truncated=np.asarray(columns[3]),
        success=np.asarray(columns[4]),
        seed=seed,
        cost=None if None in costs else np.asarray(costs, np.float32),
    )
    return episode, success


def flatten(obs: Any) -> dict[str, np.ndarray]:
    """An observation under flat names; the arrays are copies, since an environment may reuse its own."""
    return {name: np.array(value) for name, value in flat_values(obs)}


def fields_of(space: gym.Space) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each flat name of an observation space; raises ValueError on a space without arrays."""
    return {name: (box.shape, np.dtype(box.dtype).name) for name, box in flat_boxes(space)}
