"""Rewards that are computed when a batch is drawn, from what a classifier says now. U updates, B batch.

What is stored stays as it was. A reward that is learned changes while it is learned from, and off-policy learning wants
all of a batch judged by the same (Lipschitz GAIL, arXiv 2006.16785, section 5).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from robot_rl.spaces import Encoder
from robot_rl.types import DEMONSTRATION, Transition

if TYPE_CHECKING:
    from robot_rl.reward.judge import Config
    from robot_rl.run import Run


class Relabel(Protocol):
    """What a session does with each batch before it is learned from."""

    def __call__(self, batch: Transition) -> Transition: ...
    def row(self) -> dict[str, float]:
        """For metrics.csv."""
        ...

    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None: ...


def make_relabel(run: Run, encoder: Encoder) -> Relabel | None:
    """What the settings of ``run`` ask for; None: nothing. Raises as ``Judge`` and ``Vice`` do."""
    from robot_rl import build
    from robot_rl.run import GYM

    if run.world == GYM:
        return None
    config: Config | None = build.make_configs(run.task, run.arm, run.world, run.settings).get("reward")
    if config is None:
        return None
    if config.vice:
        from robot_rl.reward.vice import make

        return make(config, encoder, run.agent_config.batch_size, run.seed)
    folder = Path(config.classifier)
    return Corrected(config, encoder) if config.follow and folder.suffix != ".ckpt" else None


class Corrected:
    """Takes back successes that a newer version of the classifier does not see.

    Such a transition had ended its episode with reward 1. It then is one like any other that was cut off: reward 0,
    and something would have followed. The opposite cannot be mended, since what would have been success was played on.
    Demonstrations, and what a person called a success, are somebody's word, and stay. Until the folder has a second
    version nothing is done.
    """

    def __init__(self, config: Config, encoder: Encoder) -> None:
        from robot_rl.reward.classifier import load, versions

        self._config, self._encoder, self._folder = config, encoder, Path(config.classifier)
        self._first = int(versions(self._folder)[0].stem) if versions(self._folder) else 0
        self._classifier = load(self._folder)
        missing = set(self._classifier.preprocessing.names) - encoder.names
        self._possible = not missing  # a camera that only the judge sees is not in the replay
        self._taken_back = self._asked = 0

    def __call__(self, batch: Transition) -> Transition:
        from robot_rl.reward.classifier import load, newest

        if not self._possible:
            return batch
        if int(newest(self._folder).stem) != self._classifier.version:
            self._classifier = load(self._folder)
        if self._classifier.version == self._first:
            return batch
        ended = (np.asarray(batch.discount) == 0.0) & (np.asarray(batch.reward) > 0.0)
        extra = batch.extra or {}
        if "source" in extra:
            ended &= (np.asarray(extra["source"]) != DEMONSTRATION) & ~np.asarray(extra["called"])
        if not ended.any():
            return batch
        seen = {name: np.asarray(rows)[ended] for name, rows in batch.next_obs.items()}
        threshold = self._config.threshold if self._config.threshold is not None else self._classifier.threshold
        wrong = self._classifier.probabilities(self._encoder.decode(seen)) < threshold
        at = tuple(axis[wrong] for axis in np.nonzero(ended))
        reward, discount = np.array(batch.reward), np.array(batch.discount)
        reward[at], discount[at] = 0.0, 1.0
        self._taken_back, self._asked = self._taken_back + int(wrong.sum()), self._asked + len(wrong)
        return batch._replace(reward=reward, discount=discount)

    def row(self) -> dict[str, float]:
        """The share of the successes drawn since the last row that were taken back."""
        share = self._taken_back / self._asked if self._asked else 0.0
        self._taken_back = self._asked = 0
        return {"taken_back": share}

    def save(self, folder: Path) -> None:
        """There is nothing to keep: the classifier has its own folder."""

    def load(self, folder: Path) -> None:
        """As ``save``."""
