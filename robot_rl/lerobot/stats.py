"""What LeRobot normalises with: min, max, mean, std, count and quantiles of every feature, by episode and of all.

Statistics of all episodes are exact, but for quantiles of numbers in datasets of more than ``SAMPLE`` frames, which are
those of every second, fourth ... frame. Pictures are counted by their 256 values, every pixel, and told in [0, 1].
Numbers beyond float32 count as its largest: whoever normalises has float32, and squares stay finite.
"""

from __future__ import annotations

from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
SAMPLE = 65_536  # frames

Statistics = dict[str, np.ndarray]


def of_rows(rows: np.ndarray) -> Statistics:
    """Statistics (D,) of rows (T,) or (T, D); ``count`` (1,) is T."""
    values = _values(rows)
    told = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    told |= {"count": np.array([len(rows)])}
    return told | dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values()), axis=0), strict=True))


def _values(rows: np.ndarray) -> np.ndarray:
    most = float(np.finfo(np.float32).max)
    return np.clip(rows.reshape(len(rows), -1).astype(np.float64), -most, most)


def histogram(images: np.ndarray) -> np.ndarray:
    """How often each value is there: (T, H, W, C) uint8 to (C, 256)."""
    return np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[-1])])


def of_histogram(counts: np.ndarray, frames: int) -> Statistics:
    """Statistics (C, 1, 1) in [0, 1] of pixels counted in (C, 256); ``count`` (1,) is ``frames``."""
    values, total = np.arange(256.0), counts.sum(1)
    mean = counts @ values / total
    spread = np.sqrt((counts * (values - mean[:, None]) ** 2).sum(1) / total)
    there = counts > 0
    told = {"min": there.argmax(1), "max": 255 - there[:, ::-1].argmax(1), "mean": mean, "std": spread}
    cumulated = np.cumsum(counts, axis=1)
    for name, quantile in QUANTILES.items():  # interpolated as numpy does
        rank = quantile * (total - 1)
        ranks = (np.floor(rank), np.ceil(rank))
        low, high = ([np.searchsorted(c, r, "right") for c, r in zip(cumulated, rs, strict=True)] for rs in ranks)
        told[name] = np.array(low) + (rank - ranks[0]) * (np.array(high) - np.array(low))
    return {name: np.asarray(value)[:, None, None] / 255.0 for name, value in told.items()} | {
        "count": np.array([frames])
    }


class Running:
    """Statistics of rows that come episode by episode."""

    def __init__(self) -> None:
        self._count = 0
        self._first: Statistics = {}
        self._kept: list[np.ndarray] = []  # rows of the sample
        self._stride = 1

    def add(self, rows: np.ndarray, told: Statistics) -> None:
        """Rows (T, D) and their ``of_rows``."""
        values = _values(rows)
        self._kept.append(values[(np.arange(len(rows)) + self._count) % self._stride == 0])
        if sum(len(part) for part in self._kept) > SAMPLE:
            self._kept, self._stride = [np.concatenate(self._kept)[::2]], 2 * self._stride
        if not self._count:
            self._first = dict(told)
        else:
            both, ours = self._count + len(rows), self._first
            shift = told["mean"] - ours["mean"]
            squares = self._count * ours["std"] ** 2 + len(rows) * told["std"] ** 2
            spread = squares / both + shift**2 * (self._count * len(rows) / both**2)
            self._first = {
                "min": np.minimum(ours["min"], told["min"]),
                "max": np.maximum(ours["max"], told["max"]),
                "mean": ours["mean"] + shift * (len(rows) / both),
                "std": np.sqrt(spread),
            }
        self._count += len(rows)

    def statistics(self) -> Statistics:
        """Of all rows so far."""
        quantiles = np.quantile(np.concatenate(self._kept), list(QUANTILES.values()), axis=0)
        return self._first | {"count": np.array([self._count])} | dict(zip(QUANTILES, quantiles, strict=True))


def as_json(told: Statistics) -> dict[str, Any]:
    """As stats.json has them."""
    return {name: value.tolist() for name, value in told.items()}
