"""The arithmetic of a classifier that is to be trusted: calibration, its error, and a threshold for a budget.

Scores are logits (n,), labels are 0 or 1 (n,), all numpy. A frame is one observation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from robot_rl.evaluate import wilson

BINS = 15  # of the reliability diagram, as in Guo et al. 2017


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(logit, np.float64)))


def log_loss(logit: np.ndarray, label: np.ndarray) -> float:
    """The mean of -log p(label), balanced: each class has half of the weight, however many frames it has."""
    each = np.logaddexp(0.0, np.where(np.asarray(label) > 0, -1.0, 1.0) * np.asarray(logit, np.float64))
    return float(np.sum(each * balanced(label)))


def balanced(label: np.ndarray) -> np.ndarray:
    """Weights (n,) that sum to 1 and give either class half, or the one class that there is all."""
    label = np.asarray(label) > 0
    weight = np.where(label, 1.0 / max(1, label.sum()), 1.0 / max(1, (~label).sum()))
    return weight / weight.sum()


def temperature(logit: np.ndarray, label: np.ndarray) -> float:
    """The T > 0 that minimises the log loss of logit / T: Guo et al. 2017, arXiv 1706.04599, section 4.2.

    Either class has half of the weight, and its targets are Platt's, (n + 1) / (n + 2): with 0 and 1 a set that is
    separated without error would let T go to 0, as if nothing could ever be mistaken. Newton's method on the inverse
    temperature, in which the loss is convex; held within [0.05, 20].
    """
    logit, label, weight = np.asarray(logit, np.float64), np.asarray(label) > 0, balanced(label)
    target = np.where(label, (label.sum() + 1.0) / (label.sum() + 2.0), 1.0 / ((~label).sum() + 2.0))
    inverse = 1.0
    for _ in range(100):
        probability = sigmoid(inverse * logit)
        slope = np.sum(weight * (probability - target) * logit)
        curve = np.sum(weight * probability * (1.0 - probability) * logit**2)
        step = slope / max(curve, 1e-12)
        inverse = float(np.clip(inverse - np.clip(step, -inverse, 0.5 * inverse), 0.05, 20.0))
    return 1.0 / inverse


def brier(probability: np.ndarray, label: np.ndarray) -> float:
    """The mean square of probability - label (Brier 1950)."""
    return float(np.mean((np.asarray(probability, np.float64) - label) ** 2))


def reliability(probability: np.ndarray, label: np.ndarray, bins: int = BINS) -> np.ndarray:
    """(bins, 3): mean probability, share of positives, and number of frames in each of equally wide bins; NaN means of
    an empty one. A probability on a border belongs to the bin above it, 1.0 to the last."""
    probability, label = np.asarray(probability, np.float64), np.asarray(label, np.float64)
    index = np.minimum((probability * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    sums = np.stack([np.bincount(index, values, bins) for values in (probability, label)], axis=1)
    with np.errstate(invalid="ignore"):
        return np.column_stack([sums / count[:, None], count])


def calibration_error(probability: np.ndarray, label: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error, sum_b n_b / n |share of positives - mean probability| (Guo et al. 2017, eq. 3)."""
    mean, share, count = reliability(probability, label, bins).T
    filled = count > 0
    return float(np.sum(count[filled] * np.abs(share - mean)[filled]) / count.sum())


def hold_scores(logit: np.ndarray, episode: np.ndarray, step: np.ndarray, hold: int) -> np.ndarray:
    """The least logit of every ``hold`` frames that follow one another in one episode: what it takes to be held.

    ``episode`` and ``step`` (n,) in order. A shorter run of frames counts by its least, since nobody knows what came
    beside it: with unlabelled frames around, it might have been held.
    """
    if not len(logit):
        return np.zeros(0)
    cut = np.flatnonzero((np.diff(episode) != 0) | (np.diff(step) != 1)) + 1
    out = []
    for run in np.split(np.asarray(logit, np.float64), cut):
        width = min(hold, len(run))
        out.append(np.lib.stride_tricks.sliding_window_view(run, width).min(axis=-1))
    return np.concatenate(out)


def per_step(budget: float, steps: int) -> float:
    """The rate per step that gives an episode of ``steps`` a probability ``budget``: 1 - (1 - budget)^(1 / steps).

    This takes steps for independent. False positives come in clusters, so the episode's true rate is at most that.
    """
    return -math.expm1(math.log1p(-budget) / steps)


def per_episode(rate: float, steps: int) -> float:
    """The inverse of ``per_step``."""
    return -math.expm1(steps * math.log1p(-rate)) if rate < 1.0 else 1.0


@dataclass(frozen=True)
class Threshold:
    """A threshold on the logit, and what it came to on the data it was chosen on."""

    logit: float
    recall: float  # share of positive frames at or above it
    false_positives: int  # of the negatives
    negatives: int
    episode_rate_bound: float  # upper end of the 95 % Wilson interval of the rate per step, for a whole episode

    @property
    def probability(self) -> float:
        return float(sigmoid(np.array(self.logit)))


def choose_threshold(positive: np.ndarray, negative: np.ndarray, budget: float, steps: int, recall: float) -> Threshold:
    """The threshold for at most ``budget`` false positives per episode of ``steps``.

    ``positive``, ``negative``: scores of held-out data (``hold_scores`` of negatives). At most ``per_step(budget)`` of
    the negatives may reach it, which gives the least that is allowed. Where that leaves more than the wanted ``recall``
    the threshold goes to the middle, in logits, between there and where recall would fall below it: few negatives say
    little about rare ones, and a margin on both sides is the best that can be had. Raises ValueError without positives
    or negatives.
    """
    if not len(positive) or not len(negative):
        raise ValueError(
            f"{len(positive)} positive and {len(negative)} negative frames are held out: label more episodes of both"
        )
    allowed = math.floor(per_step(budget, steps) * len(negative))
    ordered = np.sort(negative)[::-1]
    least = float(ordered[allowed]) if allowed < len(ordered) else float(ordered[-1])
    most = float(np.quantile(positive, 1.0 - recall, method="lower"))
    chosen = (least + most) / 2 if least < most else float(np.nextafter(least, np.inf))
    reached = int(np.sum(negative >= chosen))
    bound = per_episode(wilson(reached, len(negative))[1], steps)
    return Threshold(chosen, float(np.mean(positive >= chosen)), reached, len(negative), bound)
