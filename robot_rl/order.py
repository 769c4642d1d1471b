"""What starts when, and what it means that a process ended: the same for ``robot-rl up`` and for ``ros2 launch``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from robot_rl.graph import Process

RESPAWN_DELAY_S = 2.0
RESPAWN_LIMIT = 5  # times in the life of a graph
Verdict = Literal["go on", "start again", "stop"]

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_KEPT = 4096  # characters in which a text may be split over messages


class Order:
    """Told what processes do, it tells which are due. Knows neither processes nor clocks itself."""

    def __init__(self, processes: Sequence[Process]) -> None:
        """Raises ValueError where two have one name, or one waits for what does not come before it."""
        self._processes: dict[str, Process] = {}
        for process in processes:
            missing = [name for name in process.after if name not in self._processes]
            if process.name in self._processes or missing:
                raise ValueError(f"process '{process.name}': its name is taken, or {missing} does not come before it")
            self._processes[process.name] = process
        self._waiting = list(processes)
        self._ready: set[str] = set()
        self._ended: Counter[str] = Counter()
        self._heard: dict[str, str] = {}

    def due(self) -> list[Process]:
        """Those that may start now, each given once."""
        due = [process for process in self._waiting if self._ready.issuperset(process.after)]
        self._waiting = [process for process in self._waiting if process not in due]
        return due

    def awaited(self) -> list[Process]:
        """Those that run, or ran, and that others still wait for."""
        names = {name for process in self._waiting for name in process.after} - self._ready
        waiting = {process.name for process in self._waiting}
        return [self._processes[name] for name in self._processes if name in names - waiting]

    def started(self, name: str) -> None:
        process = self._processes[name]
        if not process.ready and process.kind != "step":
            self._ready.add(name)

    def heard(self, name: str, text: str) -> None:
        """A piece of output, of any length."""
        process = self._processes[name]
        if process.ready and process.kind != "step" and name not in self._ready:
            heard = _COLOURS.sub("", self._heard.get(name, "") + text)
            self._heard[name] = heard[-_KEPT:]
            if process.ready in heard:
                self._ready.add(name)

    def ended(self, name: str, status: int) -> Verdict:
        """What follows from the end of a process that nobody stopped."""
        process = self._processes[name]
        if process.kind == "step" and status == 0:
            self._ready.add(name)
            return "go on"
        self._ended[name] += 1
        self._heard.pop(name, None)
        if not process.respawn:
            return "stop"
        if self._ended[name] <= RESPAWN_LIMIT:
            return "start again"
        return "go on" if name in self._ready else "stop"  # what no other waits for is done without
