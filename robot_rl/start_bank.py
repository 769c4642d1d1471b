"""Which episodes begin along a demonstration, and where on it. Pure: numbers and drawn indices, no world.

The mixing probability is that of DR-PO (arXiv 2404.08495), annealed by measured success instead of by steps; where on
the way to begin is weighted by failure, as in the adaptive sampling of SkillMimic-V2 (arXiv 2505.02094). Starts are in
groups by how much of the way is behind them, because a single one is hardly ever tried twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import numpy as np

S = TypeVar("S")
UNKNOWN = 0.5  # success rate of a group before it was tried
FORGET = 0.1  # weight of an outcome in the rate of its group
_STREAM = 3  # any number: separates these draws from other uses of an episode's seed


def share(largest: float, success_rate: float | None, until: float) -> float:
    """The probability that an episode begins in the bank: ``largest`` while no ordinary start succeeds, falling
    linearly to 0 at a success rate of ``until``; a rate of None is not known yet."""
    return largest * min(max(1.0 - (success_rate or 0.0) / until, 0.0), 1.0)


def weights(rates: Sequence[float], focus: float) -> np.ndarray:
    """Probabilities (K,) of groups with success rates (K,): exp(-focus * rate), normalised. 0 is uniform."""
    unnormalised = np.exp(-focus * np.asarray(rates, np.float64))
    return unnormalised / unnormalised.sum()


class Drawn(NamedTuple, Generic[S]):
    """A start of the bank."""

    start: S
    group: int


@dataclass
class StartBank(Generic[S]):
    """Starts in K groups, from the beginning of the way to its end, and how often each group led to success lately."""

    groups: Sequence[Sequence[S]]  # none of them empty
    largest_share: float
    until: float
    focus: float
    rates: list[float] = field(default_factory=list)  # (K,)

    def __post_init__(self) -> None:
        self.rates = self.rates or [UNKNOWN] * len(self.groups)

    def draw(self, seed: int, success_rate: float | None) -> Drawn[S] | None:
        """Where the episode of this seed begins, given the success rate of ordinary starts; None: where the task draws.

        It depends on the arguments and the rates only.
        """
        rng = np.random.default_rng([seed, _STREAM])
        if rng.random() >= share(self.largest_share, success_rate, self.until):
            return None
        group = int(rng.choice(len(self.groups), p=weights(self.rates, self.focus)))
        return Drawn(self.groups[group][int(rng.integers(len(self.groups[group])))], group)

    def count(self, group: int, success: bool) -> None:
        """Tell how an episode ended that began in ``group``."""
        self.rates[group] += FORGET * (float(success) - self.rates[group])


def in_groups(ways: Sequence[Sequence[S]], count: int) -> list[list[S]]:
    """Starts of several ways, each from its beginning to its end, in up to ``count`` groups by the share of the way."""
    groups: list[list[S]] = [[] for _ in range(count)]
    for way in ways:
        for index, start in enumerate(way):
            groups[index * count // len(way)].append(start)
    return [group for group in groups if group]
