"""Times of control steps: how long they took, how many were late, and simulated ones that last as long as real ones."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np

LATE = 1.1  # periods that a control step may take
PERIODS = 600  # of the last control steps that percentiles are taken of: a minute at 10 Hz


class Pace:
    """Times of control steps; in ``real_time`` it makes a simulated one last as long as it says."""

    def __init__(self, period_s: float | None, real_time: bool) -> None:
        """``period_s`` None: nothing is late."""
        self._period_s, self._real_time = period_s, real_time
        self._periods: deque[float] = deque(maxlen=PERIODS)
        self._last_s: float | None = None
        self.steps = self.late = 0

    def restart(self) -> None:
        """An episode begins: the time since the last step is none of its."""
        self._last_s = time.monotonic()

    def step(self) -> None:
        """One control step is over."""
        assert self._last_s is not None
        ended_s = now_s = time.monotonic()
        if self._real_time and self._period_s is not None:
            due_s = self._last_s + self._period_s
            time.sleep(max(0.0, due_s - now_s))
            ended_s = now_s = time.monotonic()
            if now_s < due_s + (LATE - 1.0) * self._period_s:  # else the next one would be rushed
                ended_s = due_s
        self._periods.append(now_s - self._last_s)
        self.late += self._period_s is not None and self._periods[-1] > LATE * self._period_s
        self.steps += 1
        self._last_s = ended_s

    def percentile(self, share: float) -> float:
        """Of the last control steps, s; 0 before the first."""
        periods = list(self._periods)
        return float(np.quantile(periods, share)) if periods else 0.0


def control_period_s(env: Any) -> float | None:
    """The time that a step of ``env`` is meant to last; None where it does not tell."""
    control_hz = getattr(getattr(env.unwrapped, "task", None), "control_hz", None)
    return None if control_hz is None else 1.0 / control_hz
