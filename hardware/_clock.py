"""How time passes for a driver: by the wall clock, or, where the arm is a served twin in lock-step, while we wait."""

from __future__ import annotations

import time

from controllers.door import Door


class WallClock:
    """Absolute deadlines: a late step does not delay those after it."""

    def __init__(self) -> None:
        self._deadline_s = time.monotonic()

    def wait(self, dt_s: float) -> None:
        """Sleep to the next deadline; one that was missed by more than ``dt_s`` is forgotten."""
        now_s = time.monotonic()
        self._deadline_s = max(self._deadline_s + dt_s, now_s - dt_s)
        if self._deadline_s > now_s:
            time.sleep(self._deadline_s - now_s)


class TwinClock:
    """Time of a served twin that stands still between two waits."""

    def __init__(self, door: Door, period_s: float) -> None:
        self._door, self._period_s = door, period_s
        self.t_s = door.hold()

    def wait(self, dt_s: float) -> None:
        """Let ``dt_s``, a whole number of the protocol's periods, pass. Raises ValueError, ConnectionError."""
        ticks = round(dt_s / self._period_s)
        if ticks < 1 or abs(ticks * self._period_s - dt_s) > 1e-9:
            raise ValueError(f"{dt_s:g} s is no multiple of the arm's period, {self._period_s:g} s: change the rate")
        self.t_s = self._door.advance(ticks)
