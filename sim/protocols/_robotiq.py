"""A Robotiq gripper as its URCap serves it on port 63352: ``GET POS`` is answered by ``POS 255``, ``SET POS 0 GTO 1``
by ``ack`` without an end of line. Positions, speeds and forces are 0 .. 255; 0 is open.
"""

from __future__ import annotations

import socket

from sim.protocols._server import Server
from sim.protocols._text_port import TextPort

PORT = 63352
SETTABLE = ("ACT", "GTO", "ATR", "ARD", "FOR", "SPE", "POS")
STA_RESET, STA_ACTIVE = 0, 3
MOVING, STOPPED_OPENING, STOPPED_CLOSING, AT_REQUEST = range(4)  # OBJ
CLOSE_ENOUGH = 3  # of 255, between request and reading
STILL = 0.5  # of 255 per period, or less: it does not move
STILL_PERIODS = 50
SLOW_MPS, FAST_MPS = 0.02, 0.15  # Hand-E manual: speed of closing at SPE 0 and 255


class Gripper(TextPort):
    """``tick`` gives the next control, 0 open .. 1 closed, from the reading. Its force is the model's: FOR is kept, and
    changes nothing."""

    def __init__(self, server: Server, width_m: float, reading: float, port: int = PORT) -> None:
        self._width_m = width_m
        self._values = {"ACT": 1, "GTO": 1, "ATR": 0, "ARD": 0, "FOR": 255, "SPE": 255, "POS": round(255 * reading)}
        self._control, self._reading = reading, 255.0 * reading
        self._still = STILL_PERIODS
        super().__init__(server, port)

    def tick(self, reading: float, period_s: float) -> float:
        self._still = self._still + 1 if abs(255.0 * reading - self._reading) < STILL else 0
        self._reading = 255.0 * reading
        if self._values["ACT"] and self._values["GTO"]:
            wanted = self._values["POS"] / 255.0
            speed_mps = SLOW_MPS + (FAST_MPS - SLOW_MPS) * self._values["SPE"] / 255.0
            step = speed_mps * period_s / self._width_m
            self._control += min(max(wanted - self._control, -step), step)
        return self._control

    def hear(self, connection: socket.socket, received: bytearray) -> None:
        for line in self.lines(received):
            self.say(connection, self.answer(line))

    def answer(self, line: str) -> str:
        """The reply to one line; ``?`` where there is no such variable or value."""
        words = line.split()
        if len(words) == 2 and words[0] == "GET":
            return f"{words[1]} {self._get(words[1])}\n"
        if len(words) >= 3 and len(words) % 2 and words[0] == "SET":
            pairs = list(zip(words[1::2], words[2::2], strict=True))
            if all(name in SETTABLE and value.isdigit() and int(value) < 256 for name, value in pairs):
                self._values.update({name: int(value) for name, value in pairs})
                self._still = 0
                return "ack"
        return "?\n"

    def _get(self, name: str) -> str:
        known = self._values | {
            "POS": round(self._reading), "PRE": self._values["POS"], "FLT": 0, "OBJ": self._object(),
            "STA": STA_ACTIVE if self._values["ACT"] else STA_RESET, "COU": 0,
        }  # fmt: skip
        return str(known.get(name, "?"))

    def _object(self) -> int:
        """Whether it is at its request, on the way, or held up."""
        missing = self._values["POS"] - self._reading
        if abs(missing) <= CLOSE_ENOUGH:
            return AT_REQUEST
        if self._still < STILL_PERIODS:
            return MOVING
        return STOPPED_CLOSING if missing > 0 else STOPPED_OPENING
