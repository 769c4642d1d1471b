"""What both ends of the link agree on: its version, its limits, its calls, and arrays as typed bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from robot_rl.link import link_pb2 as pb
from robot_rl.link.security import CHANNEL_OPTIONS, SERVER_OPTIONS
from robot_rl.step_log import DTYPES

SCHEMA = 2
SERVICE = "robot_rl.link.Link"
APPEND_BYTES = 1 << 20  # of rows in a message, or one row where that is more
MESSAGE_BYTES = 128 << 10  # the largest message that a learner takes has that much more
WINDOW_BYTES = 128 << 10  # that a learner takes of a call before it has a place for it; more only helps far networks
POLICY_BYTES = 512 << 20  # the largest that an actor takes: its learner is one that it knows
UNLIMITED = 2**64 - 1
KEEP_ALIVE_MS = 2_000  # a peer that is silent for twice as long is taken for gone
DEADLINE_S = 5.0  # of a call; it may be made again

M = TypeVar("M")

CLIENT_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.keepalive_time_ms", KEEP_ALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEP_ALIVE_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", POLICY_BYTES),
    ("grpc.max_send_message_length", -1),
    *CHANNEL_OPTIONS,
    ("grpc.use_local_subchannel_pool", 1),
]


def server_options(connections: int, calls: int, row_bytes: int) -> list[tuple[str, Any]]:
    """For a server that takes rows of ``row_bytes`` from at most ``connections`` peers, each in ``calls`` at once."""
    return [
        *SERVER_OPTIONS,
        ("grpc.max_receive_message_length", max(APPEND_BYTES, row_bytes) + MESSAGE_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", 8 << 10),
        ("grpc.absolute_max_metadata_size", 16 << 10),
        ("grpc.max_concurrent_streams", calls),
        # A window that grows with what a slow machine takes for a long way would let every peer send all it wants.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.server_handshake_timeout_ms", 3_000),
        ("grpc.max_connection_idle_ms", 5_000),
        ("grpc.keepalive_time_ms", KEEP_ALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEP_ALIVE_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 0),  # on a busy machine pings bunch up: no reason to hang up on an actor
    ]


def parse(kind: type[M], data: bytes) -> M:
    """The message in ``data``. Raises ValueError where there is none."""
    message: Any = kind()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from None
    return message


def pack(arrays: Mapping[str, np.ndarray]) -> list[Any]:
    """Arrays as messages. Raises TypeError for one that does not hold numbers."""
    messages = []
    for name, array in arrays.items():
        if array.dtype.name not in DTYPES:
            raise TypeError(f"array '{name}' holds {array.dtype}: only numbers go over the link")
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        messages.append(pb.Array(name=name, dtype=array.dtype.name, shape=array.shape, data=little.tobytes()))
    return messages


def unpack(messages: Iterable[Any]) -> dict[str, np.ndarray]:
    """Arrays of messages, by name; read-only. Raises ValueError, naming the array, where type, shape and size do not
    fit one another."""
    arrays: dict[str, np.ndarray] = {}
    for message in messages:
        if message.dtype not in DTYPES:
            raise ValueError(f"array '{message.name}' has type '{message.dtype}': not one of numbers")
        dtype = np.dtype(message.dtype).newbyteorder("<")
        size = dtype.itemsize * math.prod(message.shape)  # Python's integers: no shape overflows them
        room = math.prod(max(1, length) for length in message.shape)  # numpy wants it small of an empty one, too
        if size != len(message.data) or len(message.shape) > 32 or dtype.itemsize * room > POLICY_BYTES:
            raise ValueError(
                f"array '{message.name}' has {len(message.data)} bytes and shape {list(message.shape)[:32]}: they do "
                "not fit"
            )
        if message.name in arrays:
            raise ValueError(f"array '{message.name}' is there twice")
        arrays[message.name] = np.frombuffer(message.data, dtype).reshape(tuple(message.shape))
    return arrays


def words(error: BaseException) -> str:
    """What a failed call says, in a line."""
    if isinstance(error, grpc.RpcError):
        return str(error.details() or error.code().name).splitlines()[0]
    return str(error)
