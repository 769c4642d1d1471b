"""Rows of steps as an actor would log them, every one told by its log and number alone."""

from __future__ import annotations

import numpy as np

from robot_rl.step_log import FIRST, STEP, UNKNOWN, Layout, seal

LAYOUT = Layout(
    {"state": ((3,), "float32"), "wrist": ((2, 2, 3), "uint8"), "touch": ((), "bool")}, 2, {"proposed": (2,)}
)
EPISODE = 4  # steps


def rows_of(log: int, count: int, first: int = 0, layout: Layout = LAYOUT) -> np.ndarray:
    """Rows ``first`` to ``first + count`` of a log of episodes of EPISODE steps; the last step of each truncates."""
    rows = np.zeros(count, layout.dtype)
    sequence = first + np.arange(count)
    rows["log"], rows["sequence"] = log, sequence
    rows["episode"], rows["step"] = sequence // (EPISODE + 1), sequence % (EPISODE + 1)
    rows["kind"] = np.where(rows["step"] == 0, FIRST, STEP)
    for at, number in enumerate(sequence):
        rng = np.random.default_rng([log, int(number)])
        for name, (shape, dtype) in layout.observation.items():
            kind = np.dtype(dtype).kind
            drawn = rng.normal(size=shape) if kind == "f" else rng.integers(0, 2 if kind == "b" else 256, shape)
            rows[at][f"obs/{name}"] = drawn
        if rows[at]["kind"] == STEP:
            rows[at]["action"] = rng.uniform(-1.0, 1.0, layout.action_dim)
            rows[at]["reward"], rows[at]["cost"] = rng.integers(-8, 9) / 8, rng.integers(0, 9) / 8
            for name, shape in layout.extra.items():
                rows[at][f"extra/{name}"] = rng.uniform(-1.0, 1.0, shape)
    step = rows["kind"] == STEP
    rows["truncated"], rows["policy"] = step & (rows["step"] == EPISODE), np.where(step, 1 + sequence // 3, 0)
    rows["success"] = np.where(step, rows["step"] % 2, UNKNOWN)
    rows["energy"] = np.nan
    seal(rows)
    return rows
