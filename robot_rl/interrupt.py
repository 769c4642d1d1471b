"""Stopping when asked to, at a moment when nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar, Self


class Interrupted(Exception):
    """Training was asked to stop, and stopped with everything saved. ``code``: the process's exit status."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.code = 128 + signum


class StopSignals:
    """Inside ``with``: the first Ctrl-C (SIGINT) or SIGTERM is only noted, the second acts at once.

    Calling it tells whether one was noted, and the first time also says so: a handler that prints while the program
    prints would raise "reentrant call".
    """

    _heard: ClassVar[int | None] = None  # what ``stop_process`` was given
    _inside: ClassVar[list[StopSignals]] = []

    def __init__(self, say: Callable[[str], None], after: str = "this episode") -> None:
        self.signum: int | None = None
        self._say, self._after = say, after
        self._said = False
        self._previous: dict[int, Any] = {}

    def __call__(self) -> bool:
        if self.signum is not None and not self._said:
            self._said = True
            self._say(f"Stopping after {self._after}; once more to stop at once.")
        return self.signum is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set a handler
            self._previous = {sig: signal.signal(sig, self._note) for sig in (signal.SIGINT, signal.SIGTERM)}
        StopSignals._inside.append(self)
        self.signum = self.signum or StopSignals._heard
        return self

    def __exit__(self, *_: object) -> None:
        StopSignals._inside.remove(self)
        for sig, handler in self._previous.items():
            signal.signal(sig, handler)

    def note(self) -> None:
        """As if Ctrl-C had been heard once."""
        self.signum = self.signum or signal.SIGINT

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum

    @classmethod
    def stop_process(cls, signum: int = signal.SIGTERM) -> None:
        """As if ``signum`` had come once, for work in other threads than the main one, which no signal reaches: to all
        that runs in this process now, and all that it begins later."""
        cls._heard = cls._heard or signum
        for each in list(cls._inside):
            each.signum = each.signum or signum
