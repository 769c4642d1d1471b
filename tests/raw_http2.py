"""As much of HTTP/2 as an attacker needs: calls of gRPC that a client of gRPC would never make."""

from __future__ import annotations

import contextlib
import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, SETTINGS, PING, _GOAWAY, _WINDOW = 0, 1, 4, 6, 7, 8
_ACK = 1


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def headers(stream: int, path: str) -> bytes:
    """The beginning of a call, nothing compressed."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers"}
    block = b""
    for name, value in (fields | {"content-type": "application/grpc"}).items():
        block += b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
    return frame(_HEADERS, 4, stream, block)


class Attacker:
    """One connection, which answers pings, so that it is not taken for gone."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0))
        self.socket.setblocking(False)
        self._windows = {0: 65535}
        self._received = b""
        self.open = True

    def begin(self, stream: int, path: str, length: int) -> None:
        """A call whose message is said to have ``length`` bytes."""
        self._windows[stream] = 65535
        with contextlib.suppress(OSError):
            self.socket.sendall(headers(stream, path))
            self.socket.sendall(frame(_DATA, 0, stream, struct.pack(">BI", 0, length)))
        self._spend(stream, 5)

    def fill(self, stream: int, count: int) -> int:
        """Send up to ``count`` bytes of it, as the peer allows; returns how many."""
        self.listen()
        size = max(0, min(count, self._windows[0], self._windows[stream], 16384))
        if not (self.open and size):
            return 0
        self.socket.setblocking(True)
        try:
            self.socket.sendall(frame(_DATA, 0, stream, bytes(size)))
        except OSError:
            self.open = False
            return 0
        finally:
            self.socket.setblocking(False)
        self._spend(stream, size)
        return size

    def listen(self) -> bool:
        """Take what the peer says; whether the connection is open."""
        try:
            while self.open:
                data = self.socket.recv(1 << 16)
                self.open = bool(data)
                self._received += data
        except BlockingIOError:
            pass  # that is all for now
        except OSError:
            self.open = False
        while len(self._received) >= 9 and len(self._received) >= (end := 9 + int.from_bytes(self._received[:3])):
            kind, flags, stream = self._received[3], self._received[4], int.from_bytes(self._received[5:9])
            self._hear(kind, flags, stream, self._received[9:end])
            self._received = self._received[end:]
        return self.open

    def _hear(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _WINDOW:
            self._windows[stream] = self._windows.get(stream, 0) + int.from_bytes(payload)
        elif kind in (SETTINGS, PING) and not flags & _ACK:
            if kind == SETTINGS:
                for at in range(0, len(payload), 6):
                    name, value = struct.unpack(">HI", payload[at : at + 6])
                    if name == 4:  # the window of each stream
                        self._windows = {s: w + value - 65535 if s else w for s, w in self._windows.items()}
            with contextlib.suppress(OSError):
                self.socket.sendall(frame(kind, _ACK, 0, payload if kind == PING else b""))

    def _spend(self, stream: int, count: int) -> None:
        self._windows[0] -= count
        self._windows[stream] -= count
