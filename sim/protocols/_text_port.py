"""Ports that take text: what dashboard, script ports and gripper of a UR have in common."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod

from sim.protocols._server import Server


class TextPort(ABC):
    """Connections, what each has said so far, and their ends."""

    max_bytes = 4096  # of what is not whole yet

    def __init__(self, server: Server, *ports: int) -> None:
        self._server = server
        self.silent = False  # a half-open network: nothing goes out, nothing closes
        self.connections: list[socket.socket] = []
        for port in ports:
            server.listen(port, self._accept)

    @abstractmethod
    def hear(self, connection: socket.socket, received: bytearray) -> None:
        """Take what is whole out of ``received``, and act on it."""

    def greet(self, connection: socket.socket) -> None:  # noqa: B027 - most say nothing unasked
        """Called for each new connection."""

    def _accept(self, connection: socket.socket) -> None:
        received = bytearray()
        connection.setblocking(False)
        self.connections.append(connection)

        def on_readable() -> None:
            try:
                some = connection.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                some = b""
            received.extend(some)
            if not some or len(received) > self.max_bytes:
                self.drop(connection)
            else:
                self.hear(connection, received)

        self._server.watch(connection, on_readable)
        self.greet(connection)

    def lines(self, received: bytearray) -> list[str]:
        """Remove every whole line from what was received."""
        whole, newline, rest = bytes(received).rpartition(b"\n")
        if not newline:
            return []
        received[:] = rest
        return whole.decode("latin-1").split("\n")

    def say(self, connection: socket.socket, text: str) -> None:
        if self.silent:
            return
        try:
            connection.sendall(text.encode("latin-1"))
        except OSError:  # it is gone, or reads nothing
            self.drop(connection)

    def drop(self, connection: socket.socket) -> None:
        if connection in self.connections:
            self.connections.remove(connection)
        self._server.drop(connection)
