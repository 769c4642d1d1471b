"""Hard negatives: the frames of failures that a classifier likes best, and a person's word on what nobody knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from robot_rl.reward.classifier import Classifier
from robot_rl.reward.labels import NEGATIVE, POSITIVE, UNKNOWN, EpisodeKey, LabelSet, Origin
from robot_rl.reward.network import is_image
from robot_rl.reward.pictures import MOST, draw_sheet
from robot_rl.reward.sources import Source


def mine(
    classifier: Classifier, source: Source, labels: LabelSet, count: int, per_episode: int, confirmed: bool,
    stop: Callable[[], bool] = lambda: False,
) -> int:  # fmt: skip
    """Add the ``count`` frames of failed and unfinished episodes with the highest probability, of each episode at most
    ``per_episode``; returns how many. A frame that the label set has already is left out.

    ``confirmed``: whoever asks is sure that none of them shows a success, so they are negative; otherwise they have no
    label until ``review``.
    """
    known: dict[EpisodeKey, set[int]] = {origin.key: set() for origin in labels.origins().values()}
    for entry, origin in labels.origins().items():
        known[origin.key] |= set(labels.steps(entry).tolist())
    best: list[tuple[float, int, int]] = []  # probability, episode, step
    for trajectory in source:
        if stop():
            break
        if trajectory.finished and trajectory.succeeded:
            continue
        probability = classifier.probabilities(trajectory.observation)
        probability[trajectory.told == POSITIVE] = -1.0  # once a success, whatever came after it
        taken = known.get((trajectory.source, trajectory.episode, trajectory.seed), set())
        probability[[step for step in taken if step < len(probability)]] = -1.0
        order = np.argsort(-probability, kind="stable")[:per_episode]
        best += [(float(probability[step]), trajectory.episode, int(step)) for step in order if probability[step] >= 0]
    chosen: dict[int, list[int]] = {}
    for _, episode, step in sorted(best, reverse=True)[:count]:
        chosen.setdefault(episode, []).append(step)
    for trajectory in source:  # again, so that pictures of one episode are in memory at a time
        if steps := sorted(chosen.get(trajectory.episode, [])):
            label = np.full(len(steps), NEGATIVE if confirmed else UNKNOWN, np.int8)
            by = f"mined by version {classifier.version}"
            origin = Origin(trajectory.source, trajectory.episode, trajectory.seed, by)
            rows = {name: trajectory.observation[name][steps] for name in labels.observation}
            labels.append(rows, label, np.array(steps), origin)
    return sum(map(len, chosen.values()))


def review(labels: LabelSet, sheet: Path, ask: Callable[[str], str | None], say: Callable[[str], None]) -> int:
    """Show the frames without a label, a sheet of pictures at a time, and take a person's word; returns how many frames
    got one.

    ``ask`` gives the answer to a question, or None where nobody is left to answer.
    """
    reviewed = 0
    cameras = [name for name, kind in labels.observation.items() if is_image(*kind)]
    waiting = [(entry, int(at)) for entry, now in labels.labels().items() for at in np.flatnonzero(now == UNKNOWN)]
    for start in range(0, len(waiting), MOST):
        page = waiting[start : start + MOST]
        pictures = {name: np.stack([labels.read(entry, name)[at] for entry, at in page]) for name in cameras}
        captions = [
            f"{number}: entry {entry}, step {labels.steps(entry)[at]}" for number, (entry, at) in enumerate(page, 1)
        ]
        draw_sheet(pictures, captions, f"Which of these are a success? ({labels.path.name})", sheet)
        say(f"{len(page)} frames are in {sheet}")
        answer = _numbers("numbers of those that show a success (none, all, skip): ", len(page), ask, say)
        if answer is None:
            return reviewed
        if answer is SKIP:
            continue
        for entry in sorted({entry for entry, _ in page}):
            label = labels.labels()[entry].copy()
            for number, (of, at) in enumerate(page, 1):
                if of == entry:
                    label[at] = POSITIVE if number in answer else NEGATIVE
            labels.correct(entry, label, "review")
        reviewed += len(page)
    return reviewed


SKIP: frozenset[int] = frozenset({-1})


def _numbers(
    question: str, most: int, ask: Callable[[str], str | None], say: Callable[[str], None]
) -> frozenset[int] | None:
    """The numbers that were answered, of 1 to ``most``; SKIP, or None where nobody answers."""
    while (text := ask(question)) is not None:
        words = text.replace(",", " ").split()
        if words == ["skip"]:
            return SKIP
        if words == ["all"]:
            return frozenset(range(1, most + 1))
        if words == ["none"]:
            return frozenset()
        if words and all(word.isdigit() and 1 <= int(word) <= most for word in words):
            return frozenset(map(int, words))
        say(f"'{text.strip()}': give numbers from 1 to {most}, or none, all, or skip")
    return None
