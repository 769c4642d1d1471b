"""The door of a twin that speaks a vendor's protocol: what no robot offers, so that a test or a policy can have it.

JSON lines over TCP, one request, one answer: ``{"do": "advance", "ticks": 2}`` is answered by ``{"t_s": 0.4}``, a
request that cannot be met by ``{"error": "..."}``. Through it a client holds the twin's time and lets it pass tick by
tick (lock-step), puts objects where an episode wants them, reads what is true, and causes faults. The other end is
``sim/protocols/_server.py``.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.types import Pose

PORT = 31415
ASIDE_M = np.array([0.0, 5.0, 0.0])


class Door:
    """A client. Time that it holds is let go when it closes, or when its process dies."""

    def __init__(self, host: str, port: int = PORT, timeout_s: float = 10.0) -> None:
        try:
            self._socket = socket.create_connection((host, port), timeout_s)
        except OSError as error:
            raise ConnectionError(
                f"no twin behind {host}:{port} ({error.strerror or error}): start one with robot-rl twin serve "
                "--protocol fci or rtde, or leave arm.twin empty for a real arm"
            ) from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lines = self._socket.makefile("rb")
        self._pending: dict[str, Pose] = {}
        self._where = f"{host}:{port}"

    def ask(self, do: str, **what: Any) -> dict[str, Any]:
        """The answer. Raises ValueError with the twin's reason, ConnectionError where nobody answers."""
        try:
            self._socket.sendall(json.dumps({"do": do, **what}).encode() + b"\n")
            line = self._lines.readline()
        except OSError as error:
            raise ConnectionError(f"the twin behind {self._where} does not answer: {error}") from error
        if not line:
            raise ConnectionError(f"the twin behind {self._where} has closed its door: it was stopped, or it died")
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise ConnectionError(f"what answers at {self._where} is no twin: is the address right?") from None
        if "error" in answer:
            raise ValueError(f"twin: {answer['error']}")
        return answer

    def hold(self) -> float:
        """From now on time passes in ``advance`` only; returns the twin's time, s."""
        return float(self.ask("hold")["t_s"])

    def free(self) -> None:
        """Time passes by itself again."""
        self.ask("free")

    def advance(self, ticks: int) -> float:
        """Let control ticks pass, and the protocol's client answer the last; returns the twin's time, s."""
        return float(self.ask("advance", ticks=ticks)["t_s"])

    def place_props(self, props: Mapping[str, Pose]) -> None:
        """Put fixtures and free props somewhere, at rest; the arm stays."""
        self.ask("props", props={name: [*pose.pos_m, *pose.quat_xyzw] for name, pose in props.items()})

    def set_aside(self, props: Mapping[str, Pose]) -> None:
        """Move props out of the way of an arm that is about to go where an episode begins, so that it does not drag its
        tool out of the last one's; the next ``props`` puts them in their places."""
        self._pending = dict(props)
        self.place_props({name: Pose(pose.pos_m + ASIDE_M, pose.quat_xyzw) for name, pose in props.items()})

    def truth(self) -> dict[str, Any]:
        """What no sensor says: ``t_s``, ``q_rad`` (dof,), ``tcp`` (7,) m, xyzw, ``wrench`` (6,) at the tcp, ``props``
        name -> (7,), and the ``gripper``."""
        return self.ask("truth")

    def props(self) -> dict[str, NDArray[np.float64]]:
        """``prop/<name>``: pose (7,) m, xyzw; of those that were set aside, once they are in their places."""
        if self._pending:
            self.place_props(self._pending)
            self._pending = {}
        return {f"prop/{name}": np.array(pose) for name, pose in self.truth()["props"].items()}

    def cause(self, fault: str, **how: Any) -> None:
        """Make something go wrong; which faults there are is the protocol's."""
        self.ask("cause", fault=fault, **how)

    def close(self) -> None:
        """May be called twice."""
        self._lines.close()
        self._socket.close()
