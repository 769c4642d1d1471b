"""The two sides of an FCI twin's network, TCP and UDP, and what can go wrong on the way."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from sim.protocols._fci_messages import ROBOT_COMMAND, message, split
from sim.protocols._server import Server


class Port:
    """A TCP port with one client at a time, as the robot has it; a second is turned away."""

    def __init__(
        self,
        server: Server,
        number: int,
        header: struct.Struct,
        answer: Callable[[int, int, bytes], None],
        lost: Callable[[], None],
    ) -> None:
        """``answer`` gets command, command id and payload; ``lost`` is called when the client has gone. Raises OSError
        where the port is taken."""
        self._server, self._header, self._answer, self._lost = server, header, answer, lost
        self._client: socket.socket | None = None
        server.listen(number, self._welcome)

    def _welcome(self, connection: socket.socket) -> None:
        if self._client is not None:
            self._server.drop(connection)
            return
        self._client = connection
        connection.setblocking(False)
        # A reset instead of an orderly end, even when this process dies: libfranka 0.21 does not notice the latter
        # while it waits for an answer, and spins.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        received = bytearray()

        def on_readable() -> None:
            some = b""
            with contextlib.suppress(OSError):
                some = connection.recv(65536)
            if connection is not self._client:  # it is half open: what it says goes nowhere
                if not some:
                    self._server.drop(connection)
                return
            received.extend(some)
            try:
                for command, command_id, payload in split(received, self._header):
                    self._answer(command, command_id, payload)
            except ValueError:  # it talks nonsense
                some = b""
            if not some:
                self.close()

        self._server.watch(connection, on_readable)

    @property
    def peer(self) -> str:
        """The client's address."""
        return "" if self._client is None else str(self._client.getpeername()[0])

    def send(self, command: int, command_id: int, payload: bytes) -> None:
        if self._client is None:
            return
        try:
            self._client.sendall(message(self._header, command, command_id, payload))
        except OSError:  # gone, or does not read
            self.close()

    def close(self) -> None:
        """May be called twice."""
        client, self._client = self._client, None
        if client is not None:
            self._server.drop(client)
            self._lost()

    def freeze(self) -> None:
        """The connection stays open, and nothing comes through any more; a new client is welcome."""
        if self._client is not None:
            self._client = None
            self._lost()


class Link:
    """Commands that have arrived, oldest first. Faults are drawn from a seeded generator: the same each time."""

    def __init__(self) -> None:
        self.mute = False
        self._corrupt = self._drop = self._reorder = self._delay = 0
        self._share = 0.0
        self._rng = np.random.default_rng(0)
        self._socket: socket.socket | None = None
        self._peer: tuple[str, int] = ("", 0)
        self.clear()

    def clear(self, since_id: int = 0) -> None:
        """A new motion begins: forget what has come, and what answers states up to ``since_id`` and is still on its
        way."""
        self._since_id = since_id
        self._arrived: list[tuple[int, Any]] = []  # when it may be seen, and the record
        self._kept: tuple[int, Any] | None = None
        self.answered_id = 0

    def open(self, udp: socket.socket, peer: tuple[str, int]) -> None:
        """States go to ``peer``, which sends its commands back to ``udp``."""
        self._socket, self._peer = udp, peer
        self.clear()

    def close(self) -> None:
        self._socket = None

    # ---------------------------------------------------------------------------------------------------------- traffic

    def send(self, state: bytes) -> None:
        if self._socket is None or self.mute:
            return
        if self._corrupt:
            self._corrupt -= 1
            state = state[: len(state) // 2]
        try:
            self._socket.sendto(state, self._peer)
        except OSError:  # nobody listens, or the buffer is full
            return

    def receive(self, ticks: int) -> Any | None:
        """Take one datagram in; the record where it was a whole one, lost or not."""
        if self._socket is None:
            return None
        try:
            data, _ = self._socket.recvfrom(65536)
        except OSError:
            return None
        if len(data) != ROBOT_COMMAND.itemsize:
            return None
        command = np.frombuffer(data, ROBOT_COMMAND)[0]
        if command["message_id"] <= self._since_id:
            return None
        self.answered_id = max(self.answered_id, int(command["message_id"]))
        if self._lost():
            return None
        self._queue(ticks + 1 + self._delay, command)  # to be seen in the next tick, or later
        return command

    def _lost(self) -> bool:
        if self._drop:
            self._drop -= 1
            return True
        return self._share > 0.0 and self._rng.random() < self._share

    def _queue(self, due: int, command: Any) -> None:
        if self._reorder and self._kept is None:
            self._reorder -= 1
            self._kept = (due, command)
            return
        self._arrived.append((due, command))
        if self._kept is not None:  # what was kept back comes right behind its successor
            self._arrived.append(self._kept)
            self._kept = None

    def take(self, ticks: int, state_id: int) -> Any | None:
        """The command that answers the last state, ``state_id``, where it has arrived by now. One that answers an
        earlier state is too late, and lost: it says where the arm should have been."""
        taken = [command for due, command in self._arrived if due <= ticks and command["message_id"] == state_id]
        self._arrived = [(due, command) for due, command in self._arrived if due > ticks]
        return taken[-1] if taken else None

    # ----------------------------------------------------------------------------------------------------------- faults

    def drop(self, count: int = 0, share: float = 0.0) -> None:
        """Lose the next ``count`` commands, and from now on a ``share`` of those after them."""
        self._drop, self._share = count, share

    def delay(self, ms: int) -> None:
        """Commands arrive so many ticks later, which is too late."""
        self._delay = ms

    def reorder(self, count: int = 1) -> None:
        """Swap the next ``count`` commands with their successors."""
        self._reorder = count

    def corrupt(self, count: int = 1) -> None:
        """Cut the next ``count`` states short."""
        self._corrupt = count

    def silence(self, on: bool = True) -> None:
        """No states go out; the robot's clock goes on."""
        self.mute = on
