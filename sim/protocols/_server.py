"""What the twins behind vendors' protocols share: sockets, the pace of time, and a door for tests and policies.

One thread does everything, in one order: what came in, then a tick of the twin, then what goes out. Time passes

- by the wall clock (real time), or
- as fast as the protocol's client answers, ``lockstep``: a slow machine loses no packet, or
- tick by tick as someone at the door grants it (``controllers/door.py``): the same commands give the same numbers.
"""

from __future__ import annotations

import errno
import json
import selectors
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from controllers import door
from robot_rl.types import Pose, Start
from sim._twin import Twin

BEHIND_S = 0.1  # so late, time is lost rather than caught up
IDLE_S = 0.1  # between two calls of ``idle`` while time is held


class Server(ABC):
    """A twin with sockets in front of it. Subclasses ``listen`` in their constructor, and say what a tick is."""

    idle_s = IDLE_S
    behind_s = BEHIND_S

    def __init__(self, twin: Twin, host: str, period_s: float, lockstep: bool = False) -> None:
        """Raises OSError, naming address and port, where the door's port is taken."""
        self.twin, self.host, self.period_s, self.lockstep = twin, host, period_s, lockstep
        self.ticks = 0
        self.late = 0  # ticks in real time that began more than half a period after their time
        # epoll's time-outs are whole milliseconds: too coarse for a tick.
        self._selector = selectors.SelectSelector()
        self._sockets: list[socket.socket] = []
        self._holder: socket.socket | None = None  # who holds time
        self._granted = 0
        self._owed: socket.socket | None = None  # who waits for ticks to pass
        self._faults: Mapping[str, Callable[..., object]] = {}
        try:
            self.listen(door.PORT, self._open_door)
        except OSError:
            self.close()
            raise

    @property
    def t_s(self) -> float:
        """The time of the robot: ticks since it was switched on; no new world sets it back."""
        return self.ticks * self.period_s

    # ------------------------------------------------------------------------------------------- what a protocol fills

    @abstractmethod
    def tick(self) -> None:
        """Let ``period_s`` pass: physics with the newest commands, then the state goes out."""

    def answered(self) -> bool:
        """Whether the client has said all that the next tick waits for in lock-step."""
        return True

    def idle(self) -> None:  # noqa: B027 - most protocols need nothing
        """Called now and then while time is held: keep connections alive without letting time pass."""

    def faults(self) -> Mapping[str, Callable[..., object]]:
        """What ``Door.cause`` can make go wrong: name -> what does it; its keywords come from the client."""
        return {}

    # ---------------------------------------------------------------------------------------------------------- sockets

    def listen(self, port: int, on_accept: Callable[[socket.socket], None]) -> None:
        """Take connections at ``port``; ``on_accept`` gets each, and watches it. Raises OSError with the address."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._sockets.append(listener)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self.host, port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            remedy = "is another twin there? Give this one another" if taken else "this machine cannot; give another"
            raise OSError(
                f"cannot serve at {self.host}:{port} ({error.strerror}): {remedy} --address, such as 127.0.0.2"
            ) from error
        listener.listen()

        def accept() -> None:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets.append(connection)
            on_accept(connection)

        self.watch(listener, accept)

    def datagrams(self) -> socket.socket:
        """A UDP socket at the twin's address, closed by ``drop`` or at the end."""
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sockets.append(udp)
        udp.setblocking(False)
        udp.bind((self.host, 0))
        return udp

    def watch(self, connection: socket.socket, on_readable: Callable[[], None]) -> None:
        """Call ``on_readable`` whenever there is something to read; it must not wait."""
        self._selector.register(connection, selectors.EVENT_READ, on_readable)

    def drop(self, connection: socket.socket) -> None:
        """Close a connection and forget it; may be called twice."""
        if connection in self._selector.get_map():
            self._selector.unregister(connection)
        if connection in self._sockets:
            self._sockets.remove(connection)
        connection.close()
        if connection is self._owed:
            self._owed = None
        if connection is self._holder:  # nobody is left to let time pass
            self._holder, self._granted = None, 0

    def serve_sockets(self, timeout_s: float) -> None:
        """Handle what has come, waiting at most ``timeout_s`` for something."""
        for key, _ in self._selector.select(max(timeout_s, 0.0)):
            if key.fileobj in self._selector.get_map():  # not dropped by one before it
                key.data()

    def close(self) -> None:
        """Close every socket; may be called twice."""
        for connection in list(self._sockets):
            self.drop(connection)
        self._selector.close()
        self.twin.close()

    # ------------------------------------------------------------------------------------------------------------- time

    def run(self, stopping: Callable[[], bool]) -> None:
        """Serve until ``stopping()``; it is asked at least ten times a second."""
        self._faults = self.faults()
        deadline_s = idled_s = time.monotonic()
        while not stopping():
            now_s = time.monotonic()
            if self._holder is not None:
                deadline_s = now_s
                if self._granted and self.answered():
                    self.serve_sockets(0.0)  # a command that was sent before the ticks were granted counts
                    self._advance()
                    idled_s = now_s
                elif self._owed is not None and not self._granted and self.answered():
                    owed, self._owed = self._owed, None
                    self._say(owed, {"t_s": self.t_s})
                else:
                    if now_s > idled_s + self.idle_s:
                        idled_s = now_s
                        self.idle()
                    self.serve_sockets(self.idle_s / 4)
                continue
            if now_s < deadline_s or (self.lockstep and not self.answered()):
                if now_s >= deadline_s and now_s > idled_s + self.idle_s:  # the client thinks
                    idled_s = now_s
                    self.idle()
                self.serve_sockets(deadline_s - now_s if now_s < deadline_s else IDLE_S)
                continue
            self.late += now_s > deadline_s + 0.5 * self.period_s
            self.serve_sockets(0.0)
            if self._holder is None:  # nobody came just now to hold it
                self._advance()
                deadline_s = max(deadline_s, now_s - self.behind_s) + self.period_s

    def _advance(self) -> None:
        self._granted = max(self._granted - 1, 0)
        self.ticks += 1
        self.tick()

    # ------------------------------------------------------------------------------------------------------------- door

    def _open_door(self, connection: socket.socket) -> None:
        received = bytearray()
        connection.setblocking(False)

        def on_readable() -> None:
            try:
                some = connection.recv(65536)
            except OSError:
                some = b""
            if not some:
                self.drop(connection)
                return
            received.extend(some)
            while b"\n" in received:
                line, _, rest = bytes(received).partition(b"\n")
                received[:] = rest
                self._answer(connection, line)

        self.watch(connection, on_readable)

    def _answer(self, connection: socket.socket, line: bytes) -> None:
        try:
            request = json.loads(line)
            do = request.pop("do")
            actions: dict[str, Callable[..., Any]] = {
                "hold": partial(self._hold, connection), "free": partial(self._free, connection),
                "advance": partial(self._grant, connection), "props": self._place_props, "place": self._place,
                "truth": self._truth, "cause": self._cause,
            }  # fmt: skip
            if do not in actions:
                raise ValueError(f"unknown request '{do}': there is {', '.join(actions)}")
            answer = actions[do](**request)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            answer = {"error": f"{error}"}
        if answer is not None:
            self._say(connection, answer)

    def _say(self, connection: socket.socket, answer: Mapping[str, Any]) -> None:
        try:
            connection.sendall(json.dumps(answer).encode() + b"\n")
        except OSError:  # it is gone, or reads nothing
            self.drop(connection)

    def _hold(self, connection: socket.socket) -> dict[str, Any]:
        if self._holder not in (None, connection):
            raise ValueError("someone else holds time")
        self._holder = connection
        return {"t_s": self.t_s}

    def _free(self, connection: socket.socket) -> dict[str, Any]:
        if self._holder is connection:
            self._holder, self._granted = None, 0
        return {}

    def _grant(self, connection: socket.socket, ticks: int) -> None:
        if self._holder is not connection:
            raise ValueError("advance without hold: hold time first")
        if not 1 <= ticks <= 1_000_000:
            raise ValueError(f"ticks = {ticks}: give a number in [1, 1000000]")
        self._granted, self._owed = ticks, connection

    def _place_props(self, props: Mapping[str, Any]) -> dict[str, Any]:
        self.twin.place_props({name: _pose(values) for name, values in props.items()})
        return {}

    def _place(self, tcp: list[float], gripper: float, props: Mapping[str, Any]) -> dict[str, Any]:
        """The whole world; the subclass refuses where a client controls the arm, which would see it jump."""
        self.twin.place(Start(_pose(tcp), gripper, {name: _pose(values) for name, values in props.items()}))
        return {"t_s": self.t_s}

    def _truth(self) -> dict[str, Any]:
        state = self.twin.read()
        props = {name.removeprefix("prop/"): pose.tolist() for name, pose in self.twin.readings().items()}
        return {
            "t_s": self.t_s, "q_rad": state.q_rad.tolist(), "gripper": state.gripper, "props": props,
            "tcp": [*state.tcp_pos_m, *state.tcp_quat_xyzw], "wrench": state.tcp_wrench.tolist(),
        }  # fmt: skip

    def _cause(self, fault: str, **how: Any) -> dict[str, Any]:
        if fault not in self._faults:
            raise ValueError(f"unknown fault '{fault}': there is {', '.join(sorted(self._faults)) or 'none'}")
        self._faults[fault](**how)
        return {}


def _pose(values: list[float]) -> Pose:
    if len(values) != 7 or not np.isfinite(values).all():
        raise ValueError(f"pose {values}: give 7 finite numbers, m and xyzw")
    quat = np.array(values[3:], np.float64)
    if abs(np.linalg.norm(quat) - 1.0) > 1e-6:
        raise ValueError(f"pose {values}: its quaternion has norm {np.linalg.norm(quat):g}, give 1")
    return Pose(np.array(values[:3], np.float64), quat)
