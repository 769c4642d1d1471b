"""The keyboard of a terminal, also over SSH (``ssh -t``): each press of a key is full speed for ``hold_s``.

Terminals tell no releases, but repeat a key that is held: the arm moves in steps of ``hold_s`` for taps, and steadily,
after the short wait before repeating begins, for held keys. Slow down with ``scale``.

The terminal is switched to single keys without echo. That is undone by ``close``, at exit, after an exception and on
SIGINT (Ctrl-C goes on stopping the program), SIGTERM and SIGHUP; after SIGKILL, ``stty sane`` does it. Ctrl-Z is off:
who holds an arm is not suspended.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import select
import signal
import sys
import termios
import threading
import time
from dataclasses import dataclass
from types import FrameType

import numpy as np

from hardware.teleop._device import Clock, Device, DeviceConfig, Sample
from robot_rl.config import number

HELP = """\
  w s  forward, back      u o  roll left, right     space  gripper: close, open    q  stop
  a d  left, right        i k  pitch down, up       enter  success                 t  take over
  r f  up, down           j l  yaw left, right      x fail   c discard             h  hand back      ?  this help
"""
MOTIONS = {
    "w": (0, 1.0), "s": (0, -1.0), "a": (1, 1.0), "d": (1, -1.0), "r": (2, 1.0), "f": (2, -1.0),
    "u": (3, -1.0), "o": (3, 1.0), "i": (4, 1.0), "k": (4, -1.0), "j": (5, 1.0), "l": (5, -1.0),
}  # fmt: skip
"""Key -> person's axis, from 0, and sign."""
ACTIONS = {
    " ": "gripper", "\r": "success", "\n": "success", "x": "fail", "c": "discard", "q": "stop", "t": "take_over",
    "h": "hand_back",
}  # fmt: skip
_ESCAPE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[ -~]|[^\[O])")  # an arrow key, a function key, Alt and a key
_BEGUN = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|O)?\Z")  # one of them, cut off
_PASTE = 64  # bytes at once that no hand types
_QUEUE = 4096  # bytes a terminal keeps


@dataclass(frozen=True)
class Config(DeviceConfig):
    hold_s: float = number(0.2, 0.02, 2.0, "s of motion for each press of a key")
    show_help: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hold_s > self.timeout_s:
            raise ValueError(f"hold_s = {self.hold_s:g}: give at most timeout_s, {self.timeout_s:g}, or raise that too")


def split(data: bytes) -> tuple[str, bytes, int]:
    """The keys in what a terminal sent, the beginning of an escape sequence at its end, and how many things in it were
    no key: escape sequences and bytes that are not ASCII."""
    rest = _BEGUN.search(data)
    tail = rest.group() if rest else b""
    whole = data[: len(data) - len(tail)]
    text, escapes = _ESCAPE.subn(b"", whole)
    keys = "".join(chr(byte) for byte in text if byte < 0x80)
    return keys, tail, escapes + len(text) - len(keys)


def make(config: Config, clock: Clock = time.monotonic, fd: int | None = None) -> Keyboard:
    """Take the terminal ``fd``, standard input unless said. Raises RuntimeError where it is no terminal, or another
    program's."""
    return Keyboard(config, clock, fd)


class Keyboard(Device):
    name = "keyboard"

    def __init__(self, config: Config, clock: Clock, fd: int | None) -> None:
        self.config = config
        self._fd = _standard_input() if fd is None else fd
        self._terminal: _Terminal | None = None
        super().__init__(config, clock)
        if config.show_help:
            print(HELP, file=sys.stderr, end="", flush=True)

    def _open(self) -> None:
        self._terminal = _Terminal(self._fd)
        self._poller = select.poll()
        self._poller.register(self._fd, select.POLLIN)
        self._signs, self._until_s = np.zeros(6), np.full(6, -np.inf)
        self._tail = b""
        self._heard_s = -np.inf

    def _poll(self, now_s: float) -> Sample:
        data = self._take()
        keys, tail, strange = split(self._tail + data)
        self._tail = tail if data else b""  # nothing followed: it was the Escape key
        self.ignored += strange
        presses = tuple(ACTIONS[key] for key in keys if key in ACTIONS)
        if len(data) > _PASTE:  # a text that was pasted is no wish
            self.ignored += 1
            keys, presses = "", tuple(press for press in presses if press == "stop")
        for key in keys:
            if key in MOTIONS:
                axis, self._signs[axis] = MOTIONS[key]
                self._until_s[axis] = now_s + self.config.hold_s
                self._heard_s = now_s
            elif key == "?":
                print(HELP, file=sys.stderr, end="", flush=True)
            elif key not in ACTIONS:
                self.ignored += 1
        if "stop" in presses:
            self._until_s[:] = -np.inf
        return Sample(np.where(self._until_s > now_s, self._signs, 0.0), presses, self._heard_s)

    def _take(self) -> bytes:
        """What was typed; raises OSError where the terminal is gone."""
        for _, flags in self._poller.poll(0):
            if flags & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
                raise OSError("its terminal hung up")
            return os.read(self._fd, _QUEUE)
        return b""

    def _shut(self) -> None:
        if self._terminal is not None:
            self._terminal.restore()
            self._terminal = None


def _standard_input() -> int:
    try:
        return sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):  # none, or one that something else put there
        raise RuntimeError(_NO_TERMINAL.format("standard input")) from None


_NO_TERMINAL = "keyboard: {} is no terminal; run it in one, over SSH with 'ssh -t', or choose another device"


class _Terminal:
    """A terminal in single-key mode, until ``restore``."""

    def __init__(self, fd: int) -> None:
        if not os.isatty(fd):
            raise RuntimeError(_NO_TERMINAL.format("standard input" if fd == 0 else f"file {fd}"))
        with contextlib.suppress(OSError):  # not our controlling terminal: nobody else's either
            if os.tcgetpgrp(fd) != os.getpgrp():
                raise RuntimeError("keyboard: this program is in the background: bring it to the foreground with 'fg'")
        self._fd, self._pid = fd, os.getpid()
        self._before = termios.tcgetattr(fd)
        self._restored = False
        self._ours: list[signal.Signals] = []
        atexit.register(self.restore)
        self._catch()
        mode = termios.tcgetattr(fd)
        mode[3] &= ~(termios.ICANON | termios.ECHO)  # Ctrl-C stays a signal
        mode[6][termios.VMIN] = mode[6][termios.VTIME] = 0  # reading never waits
        mode[6][termios.VSUSP] = os.fpathconf(fd, "PC_VDISABLE").to_bytes()
        termios.tcflush(fd, termios.TCIFLUSH)  # what was typed before is not for us
        termios.tcsetattr(fd, termios.TCSANOW, mode)

    def _catch(self) -> None:
        """Restore on signals that would end the process at once; whoever handles them ends it in order."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets no other thread set a handler
        for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(which) is signal.SIG_DFL:
                signal.signal(which, self._end)
                self._ours.append(which)

    def _end(self, which: int, frame: FrameType | None) -> None:
        self.restore()
        signal.signal(which, signal.SIG_DFL)
        os.kill(os.getpid(), which)

    def restore(self) -> None:
        if self._restored or os.getpid() != self._pid:  # a child's exit is not ours
            return
        self._restored = True
        atexit.unregister(self.restore)
        if threading.current_thread() is threading.main_thread():
            for which in self._ours:
                if signal.getsignal(which) == self._end:
                    signal.signal(which, signal.SIG_DFL)
        # In the background, setting a terminal would suspend us.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            with contextlib.suppress(termios.error):  # hung up: there is nothing left to restore
                termios.tcflush(self._fd, termios.TCIFLUSH)  # keys for the arm are not for the shell
                termios.tcsetattr(self._fd, termios.TCSANOW, self._before)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
