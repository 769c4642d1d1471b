"""Stopping when asked to, at a moment when nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self


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
        return self

    def __exit__(self, *_: object) -> None:
        for sig, handler in self._previous.items():
            signal.signal(sig, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum
