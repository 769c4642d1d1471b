"""Grippers of a Universal Robots arm: Robotiq's over the text socket of its URCap, or one on a tool output.

The URCap listens at port 63352 of the robot and takes ``GET POS`` and ``SET POS 128``, one line each, with the register
names of the Robotiq manuals: ACT activate, GTO go, POS 0 open .. 255 closed, SPE and FOR 0 .. 255, STA 3 active, OBJ.
"""

from __future__ import annotations

import socket
import threading
from typing import Any, Protocol

PORT = 63352
_POLL_S = 0.05
_ACTIVE = 3
_ACTIVATE_S = 10.0


class Gripper(Protocol):
    fault: str
    """why it does not follow, or an empty string"""

    def move(self, closed: float) -> None:
        """0 open .. 1 closed; returns at once."""

    def read(self) -> float: ...
    def close(self) -> None: ...


class Still:
    """Fingers that nobody moves."""

    fault = ""

    def __init__(self, closed: float) -> None:
        self._closed = closed

    def move(self, closed: float) -> None:
        return

    def read(self) -> float:
        return self._closed

    def close(self) -> None:
        return


class Digital:
    """One tool output: high closes. What it reads is what it was told; connecting tells it nothing."""

    fault = ""

    def __init__(self, address: str, output: int, io: Any, closed: bool) -> None:
        self._io, self._output, self._closed = io(address), output, closed

    def move(self, closed: float) -> None:
        if (closed > 0.5) != self._closed:
            self._closed = closed > 0.5
            try:
                self._io.setToolDigitalOut(self._output, self._closed)
            except RuntimeError as error:
                self.fault = f"gripper: {error}"

    def read(self) -> float:
        return float(self._closed)

    def close(self) -> None:
        self._io.disconnect()


class Robotiq:
    """Its own thread asks and tells, so that no control period waits for the socket."""

    def __init__(self, address: str, force: float, speed: float, port: int = PORT) -> None:
        """Activates it, which opens and closes the fingers once. Raises ConnectionError, RuntimeError."""
        try:
            self._socket = socket.create_connection((address, port), 2.0)
        except OSError as error:
            raise ConnectionError(
                f"no Robotiq gripper behind {address}:{port} ({error.strerror or error}): is its URCap installed and "
                "the gripper powered at the pendant?"
            ) from error
        self._wanted = self._position = 0
        self._told = -1
        self.fault = ""
        self._ending = threading.Event()
        try:
            self._activate(round(255 * force), round(255 * speed))
        except BaseException:
            self._shut()
            raise
        self._thread = threading.Thread(target=self._run, name="robotiq", daemon=True)
        self._thread.start()

    def _activate(self, force: int, speed: int) -> None:
        if self._get("STA") != _ACTIVE:
            self._set(ACT=0)
            self._set(ACT=1)
            for _ in range(round(_ACTIVATE_S / _POLL_S)):
                if self._get("STA") == _ACTIVE:
                    break
                self._ending.wait(_POLL_S)
            else:
                raise RuntimeError("the Robotiq gripper does not get active: look at its light and its URCap's page")
        self._set(SPE=speed, FOR=force, GTO=1)
        self._wanted = self._position = self._get("POS")

    def move(self, closed: float) -> None:
        self._wanted = round(255 * min(max(closed, 0.0), 1.0))

    def read(self) -> float:
        return self._position / 255

    def _run(self) -> None:
        while not self._ending.wait(_POLL_S):
            try:
                wanted = self._wanted
                if wanted != self._told and not (self._told < 0 and wanted == self._position):
                    self._set(POS=wanted)
                    self._told = wanted
                self._position = self._get("POS")
            except (OSError, ValueError) as error:
                if not self._ending.is_set():
                    self.fault = f"gripper: connection lost ({error})"
                return

    def _set(self, **registers: int) -> None:
        words = " ".join(f"{name} {value}" for name, value in registers.items())
        if (answer := self._say(f"SET {words}")) != "ack":
            raise ValueError(f"the gripper answered '{answer}' to SET {words}")

    def _get(self, register: str) -> int:
        name, _, value = self._say(f"GET {register}").partition(" ")
        if name != register:
            raise ValueError(f"the gripper answered '{name} {value}' to GET {register}")
        return int(value)

    def _say(self, line: str) -> str:
        self._socket.sendall(line.encode() + b"\n")
        answer = self._socket.recv(1024)  # one answer to one line; not all of them end with a new line
        if not answer:
            raise ConnectionError("it closed the connection")
        return answer.decode().strip()

    def close(self) -> None:
        """The fingers stay as they are; may be called twice."""
        self._ending.set()
        self._thread.join(5.0)
        self._shut()

    def _shut(self) -> None:
        self._socket.close()
