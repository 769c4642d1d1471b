"""A classifier as the success of an environment: held for some frames, renewed between episodes, its frames kept.

This module also has the ``Config`` of the section of settings ``reward``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_rl.config import check, choice, number

if TYPE_CHECKING:
    from robot_rl.reward.classifier import Classifier
    from robot_rl.reward.labels import Fields, LabelSet

KEPT = 4  # frames of an episode that go into ``reward.review``, at most


@dataclass(frozen=True)
class Config:
    """Section ``reward`` of an environment's settings."""

    classifier: str = ""  # folder of a classifier, or one of its .ckpt files; empty: the task's own success
    threshold: float | None = number(None, 0.0, 1.0, "probability that makes a success; none: the trained one")
    hold_steps: int | None = number(None, 1, 1000, "frames in a row that reach it; none: the trained ones")
    follow: bool = True  # take over a newer version of the folder between two episodes
    review: str = ""  # label set that the frames which decided an episode are added to; empty: none
    vice: str = ""  # label set of goals: instead of a classifier, one that is learned from them during the run
    vice_inputs: tuple[str, ...] = ()  # observations that it judges by; none: every camera
    vice_every: int = number(1, 1, 10_000, "batches to one update of it")
    vice_reward: str = choice("probability", ("probability", "binary"), "of success; binary: 1 from 0.5 on")

    def __post_init__(self) -> None:
        check(self)
        for name in ("classifier", "review", "vice"):  # a run goes on wherever it is resumed from
            if text := getattr(self, name):
                object.__setattr__(self, name, str(Path(text).expanduser().resolve()))
        if self.classifier and self.vice:
            raise ValueError(f"vice = '{self.vice}': there is a classifier as well; give one of them")
        if not self.classifier:
            for name, default in (("threshold", None), ("hold_steps", None), ("review", "")):
                if getattr(self, name) != default:
                    raise ValueError(
                        f"{name} = {getattr(self, name)!r}: it is of a classifier, and there is none; give "
                        "reward.classifier=DIR as well"
                    )


class Nobody:
    """Says success of nothing: where the reward is learned during the run, episodes run to their limit."""

    def reset(self, seed: int | None = None) -> None:
        """There is nothing to forget."""

    def __call__(self, obs: Mapping[str, np.ndarray], truth: bool | None = None) -> bool:
        return False

    def info(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def close(self) -> None:
        """There is nothing to keep."""


class Judge:
    """Says of each observation of an episode whether the episode has succeeded by now."""

    def __init__(
        self,
        config: Config,
        fields: Fields,
        about: Mapping[str, str] | None = None,
        cameras: Collection[str] = (),
        look: Callable[[str, int, int], np.ndarray] | None = None,
    ) -> None:
        """``fields``: what the environment observes. ``look(name, height, width)`` gives the picture of one of
        ``cameras`` that the policy is not shown, as it is when called. Raises FileNotFoundError, and ValueError where
        the classifier was trained on other pictures than there are here."""
        self.config = config
        self._folder = Path(config.classifier)
        self._fields, self._about = dict(fields), dict(about or {})
        self._cameras, self._look = cameras, look
        self._apart: dict[str, tuple[int, int]] = {}  # cameras to look at besides
        self._classifier: Classifier = self._load()
        self._review: LabelSet | None = None
        if config.review:
            from robot_rl.reward.labels import LabelSet

            kept = {name: kind for name, kind in sorted(self._fields.items()) if not name.startswith("sim/")}
            self._review = LabelSet(Path(config.review), kept, self._about)
        self._episode, self._seed, self._held, self._step = -1, -1, 0, 0
        self._seen: list[_Frame] = []
        self._begin(-1)

    @property
    def version(self) -> int:
        return self._classifier.version

    @property
    def threshold(self) -> float:
        return self.config.threshold if self.config.threshold is not None else self._classifier.threshold

    @property
    def hold_steps(self) -> int:
        return self.config.hold_steps or self._classifier.hold_steps

    def reset(self, seed: int | None = None) -> None:
        """An episode begins: what was held is let go, a newer version is taken over."""
        self.close()
        if self.config.follow and self._folder.suffix != ".ckpt":
            from robot_rl.reward.classifier import newest

            if int(newest(self._folder).stem) != self.version:
                self._classifier = self._load()
        self._begin(-1 if seed is None else seed)

    def __call__(self, obs: Mapping[str, np.ndarray], truth: bool | None = None) -> bool:
        """Whether this frame, after those before it, makes a success. ``truth``, where the world knows it, only labels
        what is kept for review."""
        if self._look is not None and self._apart:
            obs = {**obs, **{name: self._look(name, *size) for name, size in self._apart.items()}}
        self.probability = self._classifier.probability(obs)
        self._held = self._held + 1 if self.probability >= self.threshold else 0
        if self._review is not None:
            self._note(obs, truth)
        self._step += 1
        return self._held >= self.hold_steps

    def info(self) -> dict[str, Any]:
        """Of the last frame, for ``info`` of the step."""
        return {"success_probability": self.probability, "classifier_version": self.version}

    def close(self) -> None:
        """Keep the frames that decided the episode: those that the classifier was surest of. May be called twice."""
        if self._review is None or not self._seen:
            return
        from robot_rl.reward.labels import UNKNOWN, Origin

        kept = sorted(self._seen, key=lambda frame: frame.step)
        observation = {name: np.stack([frame.obs[name] for frame in kept]) for name in kept[0].obs}
        label = np.array([UNKNOWN if frame.truth is None else int(frame.truth) for frame in kept], np.int8)
        by = f"review of version {self.version}" if UNKNOWN in label else "truth"
        origin = Origin(f"env:{self._about.get('task', '')}", self._episode, self._seed, by)
        self._review.append(observation, label, np.array([frame.step for frame in kept]), origin)
        self._seen = []

    def _begin(self, seed: int) -> None:
        self._held, self._step, self._seed = 0, 0, seed
        self.probability = 0.0
        self._episode += 1
        self._seen = []

    def _note(self, obs: Mapping[str, np.ndarray], truth: bool | None) -> None:
        """Keep the frame if it is among the surest, and not one like the last that was."""
        assert self._review is not None
        if len(self._seen) == KEPT and self.probability <= min(frame.probability for frame in self._seen):
            return
        observation = {name: np.array(obs[name], dtype) for name, (_, dtype) in self._review.observation.items()}
        self._seen.append(_Frame(self._step, self.probability, observation, truth))
        self._seen = sorted(self._seen, key=lambda frame: -frame.probability)[:KEPT]

    def _load(self) -> Classifier:
        from robot_rl.reward.classifier import load

        found = load(self._folder)
        for image in found.preprocessing.images:
            if image.name not in self._fields and image.name in self._cameras:
                self._apart[image.name] = image.shape[:2]
                self._fields[image.name] = (image.shape, "uint8")
        if different := found.difference(self._fields):
            raise ValueError(
                f"reward.classifier = {found.path} was trained on other observations ({different}): show it what it "
                "was trained on (the cameras, their size), or train one on frames of this environment, "
                "robot-rl reward train"
            )
        found.probability({name: np.zeros(*field) for name, field in found.preprocessing.fields.items()})
        return found  # compiled here, not in a control step


@dataclass(frozen=True)
class _Frame:
    step: int
    probability: float
    obs: dict[str, np.ndarray]
    truth: bool | None
