"""``robot-rl up``: a graph of processes without the ROS launch tool, started in order and stopped as one."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from robot_rl.children import end_with_parent
from robot_rl.graph import Process, find, parse
from robot_rl.interrupt import StopSignals
from robot_rl.order import RESPAWN_DELAY_S, Order
from robot_rl.warden import LADDER, Ladder, Warden, send

_POLL_S = 0.1
_TELL_S = 10.0
_LAST_LINES = 15
_CHUNK = 65_536


def up(name: str, words: Sequence[str], log_dir: Path | None = None) -> int:
    """Run the graph ``name`` with arguments such as ``arm:=panda``; returns its exit status, see ``Supervisor.run``.

    Raises LookupError, ValueError or FileNotFoundError before anything starts where that cannot be.
    """
    processes = find(name).processes(parse(words))
    folder = log_dir or Path("runs") / "up" / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    return Supervisor(processes, folder).run()


def table(name: str, words: Sequence[str]) -> str:
    """The processes of a graph as JSON; starts none. Raises as ``up`` does."""
    processes = find(name).processes(parse(words))
    return json.dumps([dataclasses.asdict(process) | {"argv": process.argv()} for process in processes], indent=2)


@dataclass
class _Child:
    """A process that runs, in a group of its own that has its number."""

    process: Process
    popen: subprocess.Popen[bytes]
    log: Path
    line: bytes = b""  # what it has not ended with a newline yet
    last: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_LINES))

    @property
    def name(self) -> str:
        return self.process.name


class Supervisor:
    """Starts ``processes`` in their order, and stops all of them in reverse once it is asked to, a job ends, or one
    ends that should not. Output goes to ``log_dir``/NAME.log, and to stderr with the name in front."""

    def __init__(self, processes: Sequence[Process], log_dir: Path, ladder: Ladder = LADDER) -> None:
        """``ladder``: signals to stop with, and how long each is given to act, in seconds."""
        for process in processes:
            program = process.argv()[0]
            if shutil.which(program) is None:
                raise FileNotFoundError(
                    f"{process.name}: there is no program '{program}' on the PATH; one of ROS 2 is there once the "
                    "setup file of your workspace is sourced"
                )
        self._order = Order(processes)
        self._log_dir = log_dir
        self._ladder = ladder
        self._selector = selectors.DefaultSelector()
        self._running: list[_Child] = []  # in the order in which they started
        self._again: list[tuple[float, Process]] = []  # when to start which again
        self._warden = Warden(ladder)
        self._status: int | None = None  # the graph's, once it is over
        self._quiet_s = time.monotonic()  # since when nothing has changed

    def run(self) -> int:
        """Until all is over; returns the job's exit status, 128 + n where signal n ended the graph, or else that of
        the process that ended (1 where it said 0)."""
        self._log_dir.mkdir(parents=True, exist_ok=True)
        _say(f"logs in {self._log_dir}")
        with StopSignals(_say, "every process has ended") as stop, self._warden:
            try:
                while not stop() and self._status is None:
                    self._start_due()
                    self._serve()
                for child in reversed(self._running.copy()):
                    self._stop(child)
            finally:
                for child in self._running.copy():  # none, unless somebody is in a hurry
                    send(child.popen.pid, signal.SIGKILL)
                    child.popen.wait()
                    self._forget(child)
                self._selector.close()
        if stop.signum is not None:
            return 128 + stop.signum
        return self._status or 0

    def _start_due(self) -> None:
        now_s = time.monotonic()
        due = self._order.due() + [process for at_s, process in self._again if at_s <= now_s]
        self._again = [(at_s, process) for at_s, process in self._again if at_s > now_s]
        for process in due:
            self._start(process)
        if due:
            self._quiet_s = now_s
        elif now_s - self._quiet_s > _TELL_S and (awaited := self._order.awaited()):
            self._quiet_s = now_s
            words = [f"{process.name} to {f'say {process.ready!r}' if process.ready else 'end'}" for process in awaited]
            _say(f"waiting for {', '.join(words)}")

    def _start(self, process: Process) -> None:
        _say(f"starts {process.name}")
        popen = subprocess.Popen(
            process.argv(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            process_group=0,
            preexec_fn=functools.partial(end_with_parent, signal.SIGINT),  # `ros2 launch` takes its own along on SIGINT
        )
        self._warden.watch(popen.pid)
        assert popen.stdout is not None
        os.set_blocking(popen.stdout.fileno(), False)
        child = _Child(process, popen, self._log_dir / f"{process.name}.log")
        self._selector.register(popen.stdout, selectors.EVENT_READ, child)
        self._running.append(child)
        self._order.started(process.name)

    def _serve(self) -> None:
        """Take what comes within ``_POLL_S``: output, and ends."""
        for key, _ in self._selector.select(_POLL_S) if self._selector.get_map() else ():
            self._read(key.data)
        if not self._selector.get_map():
            time.sleep(_POLL_S)
        for child in self._running.copy():
            # Not waited for before the rest of its group has ended: so nobody else can have its number yet.
            if os.waitid(os.P_PID, child.popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                send(child.popen.pid, signal.SIGKILL)
                self._forget(child)
                self._judge(child)

    def _read(self, child: _Child) -> None:
        """All that is there of its output."""
        assert child.popen.stdout is not None
        while True:
            try:
                chunk = os.read(child.popen.stdout.fileno(), _CHUNK)
            except BlockingIOError:
                return
            if not chunk:
                if child.popen.stdout in self._selector.get_map():
                    self._selector.unregister(child.popen.stdout)
                return
            with open(child.log, "ab") as log:
                log.write(chunk)
            *lines, child.line = (child.line + chunk).split(b"\n")
            for line in lines:
                self._show(child, line)
            self._order.heard(child.name, chunk.decode(errors="replace"))

    def _show(self, child: _Child, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip().rpartition("\r")[2]
        child.last.append(text)
        _print(f"[{child.name}] {text}")

    def _forget(self, child: _Child) -> None:
        """One that has ended, with its last words."""
        assert child.popen.stdout is not None
        child.popen.wait()
        self._warden.release(child.popen.pid)
        self._read(child)
        if child.line:
            self._show(child, child.line)
        if child.popen.stdout in self._selector.get_map():
            self._selector.unregister(child.popen.stdout)
        child.popen.stdout.close()
        self._running.remove(child)

    def _judge(self, child: _Child) -> None:
        """What follows from its end; nothing where the graph is over already."""
        if self._status is not None:
            return
        code = child.popen.returncode
        how = f"ended with status {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        verdict = self._order.ended(child.name, code)
        if child.process.kind != "server" and code == 0:
            _say(f"{child.name} has ended well")
        else:
            _say("\n    ".join([f"{child.name} {how}; the last lines of {child.log}:", *child.last]))
        if verdict == "start again":
            _say(f"starts {child.name} again in {RESPAWN_DELAY_S:g} s")
            self._again.append((time.monotonic() + RESPAWN_DELAY_S, child.process))
        elif verdict == "stop":
            self._status = code if code > 0 else 128 - code if code < 0 else int(child.process.kind == "server")
        elif child.process.kind == "server":
            _say(f"goes on without {child.name}")

    def _stop(self, child: _Child) -> None:
        """Up the ladder, until it has ended; the others are served meanwhile."""
        self._status = self._status or 0
        for signum, grace_s in self._ladder:
            if child not in self._running:
                return
            if signum != self._ladder[0][0]:
                _say(f"{child.name} does not end: {signum.name}")
            send(child.popen.pid, signum)
            deadline_s = time.monotonic() + grace_s
            while child in self._running and time.monotonic() < deadline_s:
                self._serve()


def _say(text: str) -> None:
    _print(f"[up] {text}")


def _print(text: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that is gone is no reason to stop an arm at once
        print(text, file=sys.stderr, flush=True)
