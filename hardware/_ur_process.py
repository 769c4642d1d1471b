"""ur_rtde's control interface in a process of its own.

Where its connection breaks, that interface connects again in its own receiving thread, and from then on two threads of
it read one socket: the heap does not survive that for long (ur_rtde 1.6.5, ``receiveCallback``, ``ThreadUtility``). It
also loads its program onto the robot again, unasked. A process can be ended, whatever its threads are at; what is left
of a robot that nobody commands is its own watchdog's.

JSON lines: ``["servoL", [...]]`` is answered by ``{"result": ..., "connected": true}`` or ``{"error": "..."}``. Run as
a script, only the standard library and ur_rtde are imported.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

CONNECT_S = 20.0
ANSWER_S = 10.0  # longest that a function of the robot takes to answer
END_S = 1.0


class Control:
    """A client of the process. A process that dies, hangs or loses its connection is ``connected`` no longer."""

    def __init__(self, address: str) -> None:
        """Raises RuntimeError with ur_rtde's words where it cannot connect."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for us, who bring the arm to rest first
        )
        self._received = b""
        self.connected = True
        try:
            self._take(CONNECT_S)
        except BaseException:
            self.close()
            raise

    def call(self, function: str, args: Sequence[Any] = (), within_s: float = ANSWER_S) -> Any:
        """What ``function`` of RTDEControlInterface returns. Raises RuntimeError: its words, or that it is gone."""
        if not self.connected:
            raise RuntimeError("the connection is lost")
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([function, list(args)]).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            self.connected = False
            raise RuntimeError(f"ur_rtde has ended ({error})") from error
        return self._take(within_s)

    def _take(self, within_s: float) -> Any:
        """The next answer."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while b"\n" not in self._received:
            ready, _, _ = select.select([fd], [], [], within_s)
            some = os.read(fd, 65536) if ready else b""
            if not some:
                self.connected = False
                raise RuntimeError("ur_rtde has ended" if ready else f"ur_rtde does not answer within {within_s:g} s")
            self._received += some
        line, _, self._received = self._received.partition(b"\n")
        answer = json.loads(line)
        self.connected = self.connected and answer.get("connected", False)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """End the process; may be called twice."""
        self.connected = False
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except OSError:  # it read nothing to the end
                self._process.kill()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def main(address: str) -> None:
    """Serve until our stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the library's own words go to stderr

    def say(**answer: Any) -> None:
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()

    try:
        from rtde_control import RTDEControlInterface

        control = RTDEControlInterface(address)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other process raises it
        say(error=f"{error}")
        os._exit(1)
    say(result=None, connected=control.isConnected())
    for line in sys.stdin.buffer:
        function, args = json.loads(line)
        try:
            result = getattr(control, function)(*args)
            say(result=result, connected=control.isConnected())
        except Exception as error:  # noqa: BLE001 - as above
            say(error=f"{error}", connected=control.isConnected())
    os._exit(0)  # its destructors wait for a robot that may be gone


if __name__ == "__main__":
    main(sys.argv[1])
