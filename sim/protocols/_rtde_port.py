"""Port 30004: RTDE clients, what each wants to hear and may say, and the packages that go out."""

from __future__ import annotations

import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from sim.protocols import _rtde_messages as rtde
from sim.protocols._rtde_fields import INPUTS, OUTPUTS
from sim.protocols._server import Server

PORT = 30004
RATE_HZ = 500.0
PROTOCOLS = (1, 2)


class Client:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = bytearray()
        self.protocol = 1  # until it asks for another
        self.recipe: rtde.Recipe | None = None
        self.every = 1  # ticks between two packages
        self.inputs: dict[int, rtde.Recipe] = {}
        self.started = False
        self.unsent = b""  # what the network did not take at once
        self.newest = b""
        self.waiting: deque[tuple[int, bytes]] = deque()  # (due tick, package) of a slow network


class RtdePort:
    """``value(name)`` says what an output is; ``put(names, values)`` takes inputs, ``heard()`` follows."""

    def __init__(
        self,
        server: Server,
        version: tuple[int, int, int, int],
        value: Callable[[str], Any],
        put: Callable[[Sequence[str], Sequence[Any]], None],
    ) -> None:
        self._server, self._value, self._put = server, value, put
        self.version = version
        self.protocols: Sequence[int] = PROTOCOLS
        self.clients: list[Client] = []
        self.silent = False  # a half-open network: nothing comes in, nothing goes out, nothing closes
        self.delay_ticks = 0
        server.listen(PORT, self._accept)

    # -------------------------------------------------------------------------------------------------------- incoming

    def _accept(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        client = Client(connection)
        self.clients.append(client)
        self._server.watch(connection, lambda: self._read(client))

    def _read(self, client: Client) -> None:
        try:
            some = client.connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            some = b""
        if not some:
            self.drop(client)
            return
        if self.silent:
            return
        client.received.extend(some)
        try:
            for kind, payload in rtde.take(client.received):
                self._handle(client, kind, payload)
        except (ValueError, IndexError, LookupError, rtde.struct.error) as error:
            print(f"RTDE: {error}; the connection is closed", file=sys.stderr, flush=True)
            self.drop(client)

    def _handle(self, client: Client, kind: int, payload: bytes) -> None:
        if kind == rtde.DATA:
            recipe = client.inputs[payload[0]]
            self._put(recipe.names, recipe.unpack(payload))
        elif kind == rtde.REQUEST_PROTOCOL:
            wanted = rtde.unpack_protocol(payload)
            if wanted in self.protocols:
                client.protocol = wanted
            self._send(client, rtde.pack_accepted(kind, wanted in self.protocols))
        elif kind == rtde.GET_VERSION:
            self._send(client, rtde.pack_version(self.version))
        elif kind == rtde.SETUP_OUTPUTS:
            self._setup_outputs(client, payload)
        elif kind == rtde.SETUP_INPUTS:
            self._setup_inputs(client, payload)
        elif kind in (rtde.START, rtde.PAUSE):
            client.started = kind == rtde.START
            self._send(client, rtde.pack_accepted(kind, True))
            if client.started:
                self._send_state(client)
        elif kind == rtde.TEXT:
            text = rtde.unpack_text(payload, client.protocol)
            print(f"RTDE client {text.source}: {text.message}", file=sys.stderr, flush=True)
        else:
            raise ValueError(f"message kind {kind} ({chr(kind)!r}) is none of RTDE's")

    def _setup_outputs(self, client: Client, payload: bytes) -> None:
        frequency_hz, names = rtde.unpack_outputs(payload, client.protocol)
        types = self._types(payload[0 if client.protocol == 1 else 8 :], names, OUTPUTS)
        number = None if client.protocol == 1 else 1
        found = bool(names) and rtde.NOT_FOUND not in types
        client.recipe = rtde.Recipe(number, names, types) if found else None
        wanted_hz = RATE_HZ / 4 if frequency_hz is None else min(max(frequency_hz, 1.0), RATE_HZ)
        client.every = max(round(RATE_HZ / wanted_hz), 1)
        self._send(client, rtde.pack_types(rtde.SETUP_OUTPUTS, number and number * found, types))

    def _setup_inputs(self, client: Client, payload: bytes) -> None:
        names = rtde.unpack_names(payload)
        types = self._types(payload, names, INPUTS)
        others = [recipe for other in self.clients if other is not client for recipe in other.inputs.values()]
        taken = {name for recipe in others for name in recipe.names}
        types = [rtde.IN_USE if name in taken else kind for name, kind in zip(names, types, strict=True)]
        number = 0
        if names and not {rtde.IN_USE, rtde.NOT_FOUND} & set(types):
            number = len(client.inputs) + 1
            client.inputs[number] = rtde.Recipe(number, names, types)
        self._send(client, rtde.pack_types(rtde.SETUP_INPUTS, number, types))

    def _types(self, listed: bytes, names: Sequence[str], known: dict[str, str]) -> list[str]:
        """Of each name; none is found where the list is longer than the controller takes."""
        if len(listed) > rtde.NAMES_MAX_BYTES:
            print(f"RTDE: {len(listed)} bytes of names, at most {rtde.NAMES_MAX_BYTES}", file=sys.stderr, flush=True)
            return [rtde.NOT_FOUND for _ in names]
        return [known.get(name, rtde.NOT_FOUND) for name in names]

    # -------------------------------------------------------------------------------------------------------- outgoing

    def send_due(self) -> None:
        """The state of this tick, to whom it is due."""
        for client in list(self.clients):
            if client.started and client.recipe is not None and self._server.ticks % client.every == 0:
                self._send_state(client)
            elif client.unsent or client.waiting:
                self._flush(client)

    def send_all(self) -> None:
        """The state to everybody, though no time has passed: registers may have changed, and clients give up a
        connection that is quiet (ur_rtde after 2.5 s)."""
        for client in list(self.clients):
            if client.started:
                self._send_state(client)

    def say(self, message: str, level: int = rtde.ERROR) -> None:
        """A text for people, to every started client and to stderr."""
        print(f"robot: {message}", file=sys.stderr, flush=True)
        for client in list(self.clients):
            if client.started:
                self._send(client, rtde.pack_text(rtde.Text(message, "controller", level), client.protocol))

    def _send_state(self, client: Client) -> None:
        if client.recipe is not None:
            package = client.recipe.pack([self._value(name) for name in client.recipe.names])
            if self.delay_ticks:
                client.waiting.append((self._server.ticks + self.delay_ticks, package))
                self._flush(client)
            elif client.unsent:
                client.newest = package  # what is older is skipped, as the controller does
                self._flush(client)
            else:
                self._send(client, package)

    def _send(self, client: Client, message: bytes) -> None:
        if not self.silent:
            client.unsent += message
            self._flush(client)

    def _flush(self, client: Client) -> None:
        if self.silent:
            client.waiting.clear()
            return
        while client.waiting and client.waiting[0][0] <= self._server.ticks:
            client.unsent += client.waiting.popleft()[1]
        try:
            while client.unsent:
                client.unsent = client.unsent[client.connection.send(client.unsent) :]
                if not client.unsent:
                    client.unsent, client.newest = client.newest, b""
        except BlockingIOError:
            return
        except OSError:
            self.drop(client)

    def drop(self, client: Client) -> None:
        """Close a connection; what it alone might say is free for others."""
        if client in self.clients:
            self.clients.remove(client)
        self._server.drop(client.connection)

    def drop_all(self) -> None:
        for client in list(self.clients):
            self.drop(client)
