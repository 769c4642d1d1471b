"""RTDE on the wire, both directions: Universal Robots' "Real-Time Data Exchange (RTDE) Guide".

Big endian; every message is a header of uint16 size (itself included) and uint8 kind, then a payload. Protocol 1 has no
frequency in the outputs' set-up, no recipe id in what the controller sends, and shorter text messages.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

HEADER = struct.Struct(">HB")
REQUEST_PROTOCOL, GET_VERSION, TEXT, DATA = ord("V"), ord("v"), ord("M"), ord("U")
SETUP_OUTPUTS, SETUP_INPUTS, START, PAUSE = ord("O"), ord("I"), ord("S"), ord("P")
NAMES_MAX_BYTES = 2048  # of the names of one set-up

TYPES = {
    "BOOL": "?", "UINT8": "B", "UINT32": "I", "UINT64": "Q", "INT32": "i", "DOUBLE": "d",
    "VECTOR3D": "3d", "VECTOR6D": "6d", "VECTOR6INT32": "6i", "VECTOR6UINT32": "6I",
}  # fmt: skip
NOT_FOUND, IN_USE = "NOT_FOUND", "IN_USE"  # in the place of a type
EXCEPTION, ERROR, WARNING, INFO = range(4)  # levels of a text message


def pack(kind: int, payload: bytes = b"") -> bytes:
    """One message. Raises ValueError where it is longer than its header can say."""
    size = HEADER.size + len(payload)
    if size > 0xFFFF:
        raise ValueError(f"a message of {size} bytes: RTDE has at most 65535")
    return HEADER.pack(size, kind) + payload


def take(received: bytearray) -> list[tuple[int, bytes]]:
    """Remove every whole message from what was received, as (kind, payload). Raises ValueError on a size below that of
    a header: whoever sends it speaks something else."""
    messages = []
    while len(received) >= HEADER.size:
        size, kind = HEADER.unpack_from(received)
        if size < HEADER.size:
            raise ValueError(f"a message of size {size}: a header alone has {HEADER.size} bytes")
        if len(received) < size:
            break
        messages.append((kind, bytes(received[HEADER.size : size])))
        del received[:size]
    return messages


def pack_protocol(version: int) -> bytes:
    """A client's wish for a protocol."""
    return pack(REQUEST_PROTOCOL, struct.pack(">H", version))


def unpack_protocol(payload: bytes) -> int:
    return int(struct.unpack(">H", payload)[0])


def pack_accepted(kind: int, accepted: bool) -> bytes:
    """The controller's answer to a protocol, a start and a pause."""
    return pack(kind, struct.pack(">?", accepted))


def unpack_accepted(payload: bytes) -> bool:
    return bool(struct.unpack(">?", payload)[0])


def pack_version(version: tuple[int, int, int, int]) -> bytes:
    """The controller's software: major, minor, bugfix, build."""
    return pack(GET_VERSION, struct.pack(">4I", *version))


def unpack_version(payload: bytes) -> tuple[int, ...]:
    return struct.unpack(">4I", payload)


def pack_outputs(names: Sequence[str], frequency_hz: float | None = None) -> bytes:
    """A client's set-up of what it wants to hear; no frequency in protocol 1."""
    begin = b"" if frequency_hz is None else struct.pack(">d", frequency_hz)
    return pack(SETUP_OUTPUTS, begin + ",".join(names).encode())


def unpack_outputs(payload: bytes, protocol: int) -> tuple[float | None, list[str]]:
    if protocol == 1:
        return None, unpack_names(payload)
    return float(struct.unpack_from(">d", payload)[0]), unpack_names(payload[8:])


def pack_inputs(names: Sequence[str]) -> bytes:
    """A client's set-up of what it wants to say."""
    return pack(SETUP_INPUTS, ",".join(names).encode())


def unpack_names(payload: bytes) -> list[str]:
    """Comma-separated names; ur_rtde ends them with a comma."""
    return [name for name in payload.decode("latin-1").split(",") if name]


def pack_types(kind: int, recipe: int | None, types: Sequence[str]) -> bytes:
    """The controller's answer to a set-up; no recipe id for outputs in protocol 1."""
    return pack(kind, (b"" if recipe is None else struct.pack(">B", recipe)) + ",".join(types).encode())


def unpack_types(payload: bytes, protocol: int = 2) -> tuple[int | None, list[str]]:
    return (None, unpack_names(payload)) if protocol == 1 else (payload[0], unpack_names(payload[1:]))


class Text(NamedTuple):
    """A message for people."""

    message: str
    source: str
    level: int


def pack_text(text: Text, protocol: int = 2) -> bytes:
    """Texts are cut to what one byte can count."""
    message, source = (part.encode("latin-1", "replace")[:255] for part in (text.message, text.source))
    if protocol == 1:
        return pack(TEXT, struct.pack(">B", text.level) + message)
    return pack(TEXT, bytes([len(message)]) + message + bytes([len(source)]) + source + bytes([text.level]))


def unpack_text(payload: bytes, protocol: int = 2) -> Text:
    if protocol == 1:
        return Text(payload[1:].decode("latin-1"), "", payload[0])
    end = 1 + payload[0]
    message, rest = payload[1:end], payload[end:]
    return Text(message.decode("latin-1"), rest[1 : 1 + rest[0]].decode("latin-1"), rest[1 + rest[0]])


class Recipe:
    """What the data packages of one set-up consist of."""

    def __init__(self, number: int | None, names: Sequence[str], types: Sequence[str]) -> None:
        """``number`` is None for the outputs of protocol 1. Raises KeyError for an unknown type."""
        self.number, self.names, self.types = number, tuple(names), tuple(types)
        self._sizes = [int(TYPES[kind][:-1] or 1) for kind in types]
        self._struct = struct.Struct(">" + ("" if number is None else "B") + "".join(TYPES[kind] for kind in types))

    def pack(self, values: Sequence[Any]) -> bytes:
        """A data package of one value (a number, or a sequence of numbers) for each name."""
        flat: list[Any] = [] if self.number is None else [self.number]
        for size, value in zip(self._sizes, values, strict=True):
            if size > 1:
                flat.extend(value)
            else:
                flat.append(value)
        return pack(DATA, self._struct.pack(*flat))

    def unpack(self, payload: bytes) -> list[Any]:
        """The values; a vector is a tuple. Raises ValueError for a payload of another length."""
        if len(payload) != self._struct.size:
            raise ValueError(f"a data package of {len(payload)} bytes: recipe {self.number} has {self._struct.size}")
        flat = list(self._struct.unpack(payload))[0 if self.number is None else 1 :]
        values: list[Any] = []
        for size in self._sizes:
            values.append(tuple(flat[:size]) if size > 1 else flat[0])
            del flat[:size]
        return values
