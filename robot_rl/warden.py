"""Ends process groups whose supervisor is gone, by whatever cause, kill -9 included.

    python -m robot_rl.warden 2:10 15:5 9:5

reads lines "+group" and "-group"; at the end of its input it ends what is left, by these signals and seconds.

A death signal alone would not do: `ros2 launch`, for one, leaves its own children behind when it is terminated.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

Ladder = Sequence[tuple[signal.Signals, float]]
LADDER: Ladder = ((signal.SIGINT, 10.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
"""Signals, and how long each is given to act, in seconds."""
_POLL_S = 0.05


def send(group: int, signum: int) -> None:
    """A signal to every process of a group, if there is one left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signum)


def alive(groups: Iterable[int]) -> set[int]:
    """Those of ``groups`` in which a process still runs. A process that has ended and was not waited for does not."""
    wanted, found = set(groups), set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            if state not in "ZX" and int(group) in wanted:
                found.add(int(group))
    return found


class Warden:
    """The supervisor's side: ``watch`` and ``release`` groups; outside ``with`` nothing is watched any more."""

    def __init__(self, ladder: Ladder = LADDER) -> None:
        self._ladder = ladder

    def __enter__(self) -> Self:
        steps = [f"{int(signum)}:{grace_s}" for signum, grace_s in self._ladder]
        command = [sys.executable, "-m", "robot_rl.warden", *steps]
        # In a session of its own, where no Ctrl-C reaches it.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def watch(self, group: int) -> None:
        self._tell(f"+{group}\n")

    def release(self, group: int) -> None:
        self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # somebody killed it: the death signals are still there
                self._process.stdin.write(line)
                self._process.stdin.flush()


def main() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line[0] == "+":
            groups.add(group)
        else:
            groups.discard(group)
    for step in sys.argv[1:]:
        number, grace_s = step.split(":")
        groups = alive(groups)
        for group in groups:
            send(group, int(number))
        deadline_s = time.monotonic() + float(grace_s)
        while alive(groups) and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)


if __name__ == "__main__":
    main()
