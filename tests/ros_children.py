"""Processes that play a part in a graph of the tests, and how to wait for what they do."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PATIENCE_S = 60.0  # a busy machine is no failure
# Goes before a command that is to end with this process, even where that is killed: left in its ROS domain or at its
# address it would answer the tests that come there next.
TIED = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []

# XLA in half the time; what it makes is slower, which no test that computes for seconds notices.
QUICK_XLA = "--xla_backend_optimization_level=0"


def thorough(**added: str) -> dict[str, str]:
    """The environment, and what is ``added``, for a process that computes for minutes, as a user's does."""
    environment = {**os.environ, **added}
    return environment | {"XLA_FLAGS": environment.get("XLA_FLAGS", "").replace(QUICK_XLA, "").strip()}


def until(condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """The first true value of ``condition()``; AssertionError where there is none for a long time."""
    end_s = time.monotonic() + patience_s
    while time.monotonic() < end_s:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"still not so after {patience_s:g} s")


def child_processes() -> set[str]:
    """Pids of the processes that this one has started. A thread may end while they are read, its children with it."""
    found = set[str]()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.update((task / "children").read_text().split())
    return found


@contextlib.contextmanager
def child(code: str, *args: str, log: Path | None = None) -> Iterator[subprocess.Popen]:
    """Python ``code`` in a process of its own, killed at the end if it still runs."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open(log or os.devnull, "ab") as err:
        words = [*TIED, sys.executable, "-c", code, *args]
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stderr=err)
        try:
            yield process
        finally:
            kill(process)


def kill(process: subprocess.Popen) -> None:
    """kill -9, also of what is stopped."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait()
