"""What episodes cost in energy: the arm's own reports of every step, in a few numbers.

An environment that keeps no energy ledger (any Gymnasium environment from outside) has no ``info["energy"]`` and gets
None. What the names in it mean: ``robot_rl/env.py``. Shares of control ticks are means over policy steps, which all
last equally many ticks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

COLUMNS = ("energy_free_min_j", "energy_work_j", "energy_intervened", "force_max_n")
"""Of an episode, in metrics.csv."""
OF_STEP = ("free_min_j", "work_j", "intervened", "force_max_n")
"""What of a step's ``info["energy"]`` they are made of."""


@dataclass
class EpisodeEnergy:
    """One episode; ``add`` takes the ``info`` of each of its steps."""

    steps: list[Mapping[str, float]] = field(default_factory=list)  # info["energy"]
    fault: str = ""  # the last one
    depleted: bool = False

    def add(self, info: Mapping[str, Any]) -> None:
        """Take one step; one without ``info["energy"]`` is left out."""
        if "energy" not in info:
            return
        self.steps.append(info["energy"])
        self.fault = info.get("fault") or self.fault
        self.depleted = self.depleted or bool(info.get("energy_depleted", False))

    def column(self, name: str) -> np.ndarray:
        """The finite values of one number, step by step: a force that could not be measured is left out."""
        values = np.array([step[name] for step in self.steps], np.float64)
        return values[np.isfinite(values)]

    def row(self) -> dict[str, float | None]:
        """COLUMNS of metrics.csv; nothing where the environment tells nothing."""
        if not self.steps:
            return {}
        values = (self.least("free_min_j"), self.last("work_j"), self.mean("intervened"), self.greatest("force_max_n"))
        return dict(zip(COLUMNS, values, strict=True))

    def least(self, name: str) -> float | None:
        return float(values.min()) if len(values := self.column(name)) else None

    def greatest(self, name: str) -> float | None:
        return float(values.max()) if len(values := self.column(name)) else None

    def mean(self, name: str) -> float | None:
        return float(values.mean()) if len(values := self.column(name)) else None

    def last(self, name: str) -> float | None:
        """At the episode's end: of what the ledger adds up itself."""
        return float(values[-1]) if len(values := self.column(name)) else None


def summarize(episodes: Sequence[EpisodeEnergy]) -> dict[str, float | None] | None:
    """What ``robot-rl eval`` and summary.json say of episodes; None where the environment tells nothing.

    ``negative_*``: free energy E below zero; ``overdrawn_episodes``: the ledger L itself below zero, which no passive
    controller does; ``*_episodes`` and ``*_ticks`` are shares. ``work_j`` is the net work of the torques by the end of
    an episode, ``withheld`` the mean of 1 - alpha, ``force_peak_n`` the mean of the episodes' greatest contact forces.
    """
    known = [episode for episode in episodes if episode.steps]
    if not known:
        return None
    steps = EpisodeEnergy([step for episode in known for step in episode.steps])
    alpha = steps.mean("alpha")
    return {
        "negative_episodes": _mean((episode.least("free_min_j") or 0.0) < 0.0 for episode in known),
        "negative_ticks": steps.mean("negative"),
        "overdrawn_episodes": _mean((episode.least("ledger_min_j") or 0.0) < 0.0 for episode in known),
        "depleted_episodes": _mean(episode.depleted for episode in known),
        "fault_episodes": _mean(episode.fault != "" for episode in known),
        "free_min_j": steps.least("free_min_j"),
        "free_min_mean_j": _mean(episode.least("free_min_j") for episode in known),
        "ledger_min_j": steps.least("ledger_min_j"),
        "work_j": _mean(episode.last("work_j") for episode in known),
        "spill_j": _mean(episode.last("spill_j") for episode in known),
        "intervened_ticks": steps.mean("intervened"),
        "withheld": None if alpha is None else 1.0 - alpha,
        "force_peak_n": _mean(episode.greatest("force_max_n") for episode in known),
        "force_max_n": steps.greatest("force_max_n"),
    }


def describe(energy: Mapping[str, float | None]) -> str:
    """A summary in two lines, for people."""
    least, work, force = (_number(energy[name]) for name in ("free_min_j", "work_j", "force_peak_n"))
    acted = f"the filter acted in {_percent(energy['intervened_ticks'])} of control ticks"
    return (
        f"energy: {work} J delivered, free energy at least {least} J and negative in "
        f"{_percent(energy['negative_episodes'])} of episodes, {_percent(energy['negative_ticks'])} of control ticks\n"
        f"        {acted}, {_percent(energy['depleted_episodes'])} of episodes ran out; peak contact force {force} N"
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    return float(np.mean(known)) if known else None


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.3g} %"
