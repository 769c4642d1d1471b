"""Twins behind vendors' protocols as processes of their own, each at an address of its own."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from controllers.door import Door
from tests.ros_children import PATIENCE_S, ROOT, TIED, kill

_numbers = itertools.cycle(range(1, 255))


def address() -> str:
    """One of 127.0.0.0/8 that no other test has: the vendors' clients know one port only."""
    pid = os.getpid()
    return f"127.{1 + pid % 250}.{1 + pid // 250 % 250}.{next(_numbers)}"


class Served:
    """A running ``robot-rl twin serve``."""

    def __init__(self, host: str, process: subprocess.Popen, log: Path) -> None:
        self.host, self.process, self._log = host, process, log
        self._doors: list[Door] = []

    def door(self) -> Door:
        """A new connection to its door, closed at the end."""
        self._doors.append(Door(self.host))
        return self._doors[-1]

    def log(self) -> str:
        return self._log.read_text()

    def stop(self) -> int:
        """Ctrl-C; the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        """kill -9."""
        kill(self.process)

    def close(self) -> None:
        for door in self._doors:
            door.close()
        self.kill()


@contextlib.contextmanager
def threaded() -> Iterator[Callable[[Any], Any]]:
    """What runs a server in a thread of this process, and returns it; all of them are closed at the end."""
    made = []

    def run(server):
        stopping = threading.Event()
        thread = threading.Thread(target=server.run, args=(stopping.is_set,))
        thread.start()
        made.append((server, stopping, thread))
        return server

    yield run
    for server, stopping, thread in made:
        stopping.set()
        thread.join(PATIENCE_S)
        server.close()
        assert not thread.is_alive()


@contextlib.contextmanager
def serve(
    protocol: str,
    arm: str = "",
    task: str = "peg_insert",
    lockstep: bool = False,
    settings: tuple[str, ...] | list[str] = (),
    host: str | None = None,
) -> Iterator[Served]:
    """A served twin, listening; killed at the end if it still runs."""
    host = host or address()
    words = ["twin", "serve", "--protocol", protocol, "--task", task, "--address", host]
    words += ["--arm", arm] if arm else []
    words += ["--lockstep"] if lockstep else []
    words += [word for setting in settings for word in ("--set", setting)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with open(log, "wb") as err:
            process = subprocess.Popen(
                [*TIED, sys.executable, "-m", "robot_rl.cli", *words],
                cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=err, stderr=err,
            )  # fmt: skip
        twin = Served(host, process, log)
        try:
            end_s = time.monotonic() + PATIENCE_S
            while "is serving" not in twin.log():
                assert process.poll() is None and time.monotonic() < end_s, twin.log()
                time.sleep(0.02)
            yield twin
        finally:
            twin.close()
