"""What a few seeds can tell: interquartile means, bootstrap intervals, paired differences, and measures of a curve.

After Agarwal, Schwarzer, Castro, Courville and Bellemare, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (2021), arXiv 2108.13264. Everything is a pure function of its arguments; random draws come from a seed, so
the same runs give the same numbers each time.

A stratum holds the runs of one task: resampling is within strata, so that each draw has as many runs of every task as
there really are. Values may be infinite (a run that never got there): they are ordered, not added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from robot_rl.plot import rolling_mean

DRAWS = 10_000  # of a bootstrap
LEVEL = 0.95
Strata = Sequence[Sequence[float]]
Statistic = Callable[[np.ndarray], np.ndarray]
"""(..., n) to (...): a statistic over the last axis, such as ``interquartile_mean``."""


@dataclass(frozen=True)
class Estimate:
    """A statistic and its 95 % confidence interval; ``low`` and ``high`` are None where the data cannot give one."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Paired:
    """The mean of B - A over the seeds that both have."""

    difference: Estimate
    pairs: int


def mean(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis, (..., n) to (...); infinite where a value is."""
    return np.mean(values, axis=-1)


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """The mean of the middle half over the last axis, (..., n) to (...): floor(n / 4) values are left out at each end.

    Agarwal et al. 2021, section 4.3. Fewer than 4 values have no quarter to leave out: the ordinary mean.
    """
    ordered = np.sort(np.asarray(values, np.float64), axis=-1)
    cut = ordered.shape[-1] // 4
    return np.mean(ordered[..., cut : ordered.shape[-1] - cut], axis=-1)


def estimate(strata: Strata, statistic: Statistic = interquartile_mean, seed: int = 0) -> Estimate:
    """``statistic`` of all values, with the percentile interval of a stratified bootstrap.

    Agarwal et al. 2021, section 4.1. There is no interval where every stratum has one value: nothing tells then how
    far another seed would have been. Raises ValueError where there is no value at all.
    """
    arrays = _arrays(strata)
    if not arrays:
        raise ValueError("a statistic of no values: give at least one run")
    value = float(statistic(np.concatenate(arrays)))
    if max(len(array) for array in arrays) < 2:
        return Estimate(value, None, None)
    rng = np.random.default_rng(seed)
    return Estimate(value, *_interval(statistic(np.concatenate([_resample(array, rng) for array in arrays], axis=1))))


def probability_of_improvement(
    baseline: Strata, other: Strata, higher_is_better: bool = True, seed: int = 0
) -> Estimate | None:
    """How likely a run of ``other`` is better than one of ``baseline``, drawn from the same stratum; ties count half.

    Mann and Whitney's U over n m, averaged over the strata (Agarwal et al. 2021, section 4.3); both are resampled.
    The strata of the two correspond, and one that is empty on a side is left out; None where that leaves nothing. No
    interval where a side has one value a stratum: what another seed would have given is then unknown.
    """
    sign = 1.0 if higher_is_better else -1.0
    sides = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(baseline, other, strict=True)]
    sides = [(sign * a, sign * b) for a, b in sides if len(a) and len(b)]
    if not sides:
        return None
    value = float(np.mean([_wins(a[None], b[None])[0] for a, b in sides]))
    if min(max(map(len, side)) for side in zip(*sides, strict=True)) < 2:
        return Estimate(value, None, None)
    rng = np.random.default_rng(seed)
    drawn = np.mean([_wins(_resample(a, rng), _resample(b, rng)) for a, b in sides], axis=0)
    return Estimate(value, *_interval(drawn))


def paired_difference(baseline: Strata, other: Strata, seed: int = 0) -> Paired | None:
    """The mean of ``other - baseline``, pair by pair, with the percentile interval of a bootstrap over pairs.

    Strata and values correspond one to one. A pair with an infinite side has no difference and is left out; None where
    no pair is left, and no interval where each stratum has one pair.
    """
    strata = []
    for a, b in zip(baseline, other, strict=True):
        pairs = [y - x for x, y in zip(a, b, strict=True) if np.isfinite(x) and np.isfinite(y)]
        if pairs:
            strata.append(pairs)
    if not strata:
        return None
    return Paired(estimate(strata, mean, seed), sum(map(len, strata)))


def steps_to(steps: Sequence[float], success: Sequence[float], threshold: float, window: int) -> float | None:
    """The first of ``steps`` (E,) at which at least ``threshold`` of the last ``window`` episodes had succeeded.

    ``success`` (E,) is 0 or 1; there must have been ``window`` episodes. None where it never came to that.
    """
    rate = rolling_mean(np.asarray(success, np.float64), window)
    there = np.flatnonzero(rate[window - 1 :] >= threshold - 1e-9)  # 0.95 of 20 is 19, whatever rounding says
    return float(steps[window - 1 + int(there[0])]) if len(there) else None


def area(steps: Sequence[float], values: Sequence[float], horizon: float) -> float | None:
    """The mean height of a curve over the steps from 0 to ``horizon``: the area under it over ``horizon``.

    ``values`` (E,) hold for the steps of the episode that ends at each of ``steps`` (E,), in ascending order. None
    where the curve ends before ``horizon``.
    """
    if horizon <= 0:
        raise ValueError(f"horizon = {horizon}: give a positive number of steps")
    if not len(steps) or steps[-1] < horizon:
        return None
    ends = np.minimum(np.asarray(steps, np.float64), horizon)
    widths = np.diff(ends, prepend=0.0)
    return float(widths @ np.asarray(values, np.float64) / horizon)


def _arrays(strata: Strata) -> list[np.ndarray]:
    return [np.asarray(values, np.float64) for values in strata if len(values)]


def _resample(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(DRAWS, n) of ``values`` (n,), drawn with replacement."""
    return values[rng.integers(len(values), size=(DRAWS, len(values)))]


def _wins(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The share of pairs in which b (R, m) is above a (R, n), ties half: (R,)."""
    left, right = a[:, :, None], b[:, None, :]
    return np.mean(right > left, axis=(1, 2)) + 0.5 * np.mean(right == left, axis=(1, 2))


def _interval(drawn: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of ``drawn`` (R,). Its ends are values that were drawn: nothing is interpolated to infinity."""
    tail = 50.0 * (1.0 - LEVEL)
    low = np.percentile(drawn, tail, method="lower")
    high = np.percentile(drawn, 100.0 - tail, method="higher")
    return float(low), float(high)
