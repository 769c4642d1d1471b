"""Whatever is sent to a learner's port: nothing reaches its store, its memory is bounded, and its actors go on."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from robot_rl.link import keys, wire
from robot_rl.link import link_pb2 as pb
from robot_rl.link.security import Endpoint, bearer, connecting
from robot_rl.step_log import FIRST, STEP, seal
from tests.links import STORE, Actor, Raw, client_of, identity, refusal, resident_mb, served, stored
from tests.raw_http2 import PREFACE, SETTINGS, Attacker, frame, headers
from tests.ros_children import child, until
from tests.step_rows import LAYOUT, rows_of

GROWTH_MB = 300.0
METHODS = ["Describe", "Join", "Append", "Follow"]
APPEND = f"/{wire.SERVICE}/Append"
FUZZ = settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@dataclasses.dataclass
class Besieged:
    """A learner in a process of its own, with a good actor."""

    folder: Path
    process: Any
    port: int
    actor: Actor
    base_mb: float
    joined: int = 100

    def store(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted((self.folder / STORE).rglob("*")) if path.is_file()}

    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def check(self) -> None:
        """All is well: memory, the good actor, and one that comes now."""
        assert self.process.poll() is None, self.stderr()
        assert resident_mb(self.process.pid) - self.base_mb < GROWTH_MB
        self.actor.act(10)
        until(lambda: self.actor.sent)
        self.joined += 1
        client = client_of(self.port)
        assert until(lambda: joins(client, self.joined))
        client.close()
        assert len(self.stderr()) < 4000, self.stderr()


def joins(client: Any, log: int) -> bool:
    try:
        return client.join(identity(log), LAYOUT).cursor == 0
    except grpc.RpcError as error:
        assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)  # it is full as yet
        return False


@pytest.fixture(scope="module")
def siege(tmp_path_factory) -> Iterator[Besieged]:
    folder = tmp_path_factory.mktemp("siege")
    with served(folder / "learner") as (process, port):
        actor = Actor(folder, port)
        actor.act(20)
        until(lambda: actor.sent)
        yield Besieged(folder / "learner", process, port, actor, resident_mb(process.pid))
        assert actor.close() == 0 and not actor.said, actor.said  # it has not felt any of it
    there = stored(folder / "learner")
    assert there[1] == (folder / "log1.zarr" / "c" / "0" / "0").read_bytes()[: len(there[1])]


@contextlib.contextmanager
def unharmed(siege: Besieged) -> Iterator[None]:
    """What is done inside changes no byte of the store and leaves all well."""
    before = siege.store()
    yield
    assert siege.store() == before
    siege.check()


GREETING = PREFACE + frame(SETTINGS, 0, 0)
NOISE = st.binary(max_size=300)


@pytest.mark.parametrize(
    "greeting", [b"", GREETING, GREETING + headers(1, APPEND)], ids=["noise", "http2", "in a call"]
)
def test_noise_on_the_port(siege, greeting) -> None:
    @FUZZ
    @given(NOISE)
    @example(b"")
    @example(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    @example(frame(0, 0, 1, struct.pack(">BI", 0, 2**32 - 1)))  # a message of 4 GiB
    @example(frame(0, 1, 1, struct.pack(">BI", 1, 5) + b"12345"))  # compressed with nothing
    @example(b"".join(headers(stream, APPEND) for stream in range(3, 4001, 2)))
    @example(frame(1, 4, 3, b"\x00" + b"\x7f\xff\xff\xff\x7f" + b"a" * 60000))  # a header of 256 MiB
    @example(frame(4, 0, 0, struct.pack(">HI", 4, 2**31 - 1) * 2000) * 3)
    @example(frame(6, 0, 0, bytes(8)) * 5000)
    def noise(data: bytes) -> None:
        with socket.create_connection(("127.0.0.1", siege.port)) as peer, contextlib.suppress(OSError):
            peer.sendall(greeting + data)
            peer.shutdown(socket.SHUT_WR)

    with unharmed(siege):
        noise()


@pytest.mark.parametrize("method", METHODS)
def test_noise_as_messages(siege, method) -> None:
    with unharmed(siege), Raw(siege.port) as raw:

        @FUZZ
        @given(st.binary(max_size=200))
        def noise(data: bytes) -> None:
            assert raw.call(method, data) in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)

        noise()
        assert raw.call("Other", b"") is grpc.StatusCode.UNIMPLEMENTED


@pytest.fixture
def known(siege) -> Iterator[pb.AppendRequest]:
    """A message as it was sent before by an actor that is there: six rows."""
    client = client_of(siege.port)
    siege.joined += 1
    who = identity(siege.joined)
    client.join(who, LAYOUT)
    rows = rows_of(siege.joined, 6)
    client.append(who, 0, 6, rows.tobytes(), pb.Health())
    client.close()
    return pb.AppendRequest(sender=who.message(), first=0, count=6, rows=rows.tobytes(), health=pb.Health(steps=3))


def test_flipped_bits_in_a_message_that_is_known(siege, known) -> None:
    """It is refused, or what it says again is known."""
    data = known.SerializeToString()
    with unharmed(siege), Raw(siege.port) as raw:

        @FUZZ
        @given(st.lists(st.tuples(st.integers(0, len(data) - 1) | st.integers(0, 60), st.integers(0, 7)), min_size=1))
        def flipped(bits: list[tuple[int, int]]) -> None:
            changed = bytearray(data)
            for at, bit in bits:
                changed[at] ^= 1 << bit
            answer = raw.call("Append", bytes(changed))
            assert isinstance(answer, grpc.StatusCode) or pb.Receipt.FromString(answer).cursor == 6

        flipped()


def test_flipped_bits_in_rows_that_are_new(siege, known) -> None:
    rows = rows_of(known.sender.log, 4, 6).tobytes()
    with unharmed(siege), Raw(siege.port) as raw:

        @FUZZ
        @given(st.integers(0, len(rows) - 1), st.integers(0, 7))
        def flipped(at: int, bit: int) -> None:
            changed = bytearray(rows)
            changed[at] ^= 1 << bit
            request = pb.AppendRequest(sender=known.sender, first=6, count=4, rows=bytes(changed))
            assert raw.call("Append", request.SerializeToString()) is grpc.StatusCode.INVALID_ARGUMENT

        flipped()


def test_counts_and_sizes_that_do_not_fit(siege, known) -> None:
    rows = rows_of(known.sender.log, 4, 6).tobytes()
    size = LAYOUT.dtype.itemsize
    with unharmed(siege), Raw(siege.port) as raw:
        for first, count, sent in (
            (6, 2**32 - 1, rows),
            (6, 2**32 - 1, b""),
            (6, 5, rows),
            (6, 3, rows),
            (6, 0, rows),
            (6, 4, rows[:-1]),
            (6, 4, b""),
            (2**64 - 1, 4, rows),
            (7, 4, rows),
            (5, 4, rows),
            (0, 4, rows),
            (6, 4, rows[size:] + rows[:size]),
            (6, 4, rows[:size] * 4),
        ):
            request = pb.AppendRequest(sender=known.sender, first=first, count=count, rows=sent)
            answer = raw.call("Append", request.SerializeToString())
            if (first, count) == (0, 4):  # is taken for known
                assert pb.Receipt.FromString(answer).cursor == 6
            else:
                assert answer in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE), (first, count)
        for value in (math.nan, math.inf):
            for name in ("period_p50_s", "period_p99_s", "policy_age_s"):
                request = pb.AppendRequest(sender=known.sender, first=6, health=pb.Health(**{name: value}))
                assert raw.call("Append", request.SerializeToString()) is grpc.StatusCode.INVALID_ARGUMENT
        for large in (APPEND_TOO_MUCH, 20 << 20):
            request = pb.AppendRequest(sender=known.sender, first=6, count=4, rows=bytes(large))
            assert raw.call("Append", request.SerializeToString()) is grpc.StatusCode.RESOURCE_EXHAUSTED


APPEND_TOO_MUCH = wire.APPEND_BYTES + wire.MESSAGE_BYTES + 1


@dataclasses.dataclass
class Nonsense:
    """A value in one of four rows, for which row ``wrong`` is refused."""

    field: str
    value: Any
    at: int = 2
    wrong: int = 2
    byte: bool = False

    def put(self, rows: np.ndarray) -> None:
        if self.byte:
            rows[self.field].view(np.uint8)[self.at] = self.value
        else:
            rows[self.field][self.at] = self.value


NONSENSE = [
    *(Nonsense("obs/state", [0, value, 0]) for value in (math.nan, math.inf, -math.inf, 1e35)),
    *(Nonsense("action", [0, value]) for value in (math.nan, math.inf, 1.0001, -2)),
    *(Nonsense("reward", value) for value in (math.nan, math.inf)),
    *(Nonsense("cost", value) for value in (math.inf, -math.inf)),
    Nonsense("energy", [0, 0, math.inf, 0]),
    Nonsense("extra/proposed", [math.nan, 0]),
    *(Nonsense("success", value) for value in (-128, -2, 2, 127)),
    *(Nonsense(name, 2, byte=True) for name in ("terminated", "truncated", "fault", "obs/touch")),
    *(Nonsense("kind", value) for value in (0, FIRST, 3, 2**32 - 1)),
    *(Nonsense("log", value) for value in (0, 1)),
    *(Nonsense("sequence", value) for value in (0, 1, 3, 2**63, 2**64 - 1)),
    *(Nonsense("episode", value) for value in (2, -1, -(2**63), 2**63 - 1)),
    *(Nonsense("step", value) for value in (0, 1, 3, -1, 2**63 - 1)),
    Nonsense("kind", STEP, at=0, wrong=0),
    Nonsense("step", 1, at=0, wrong=0),
    Nonsense("episode", -1, at=0, wrong=0),
    *(Nonsense(name, True, at=1) for name in ("terminated", "truncated")),  # and yet another step follows
]


@pytest.mark.parametrize("at_once", [True, False], ids=["one message", "row by row"])
def test_nonsense_in_rows_that_are_whole(siege, at_once) -> None:
    """Sealed by somebody who knows how: what no environment gives, and what does not follow the row before."""
    client = client_of(siege.port)
    for nonsense in NONSENSE:
        siege.joined += 1
        who, good = identity(siege.joined), rows_of(siege.joined, 4)
        bad = good.copy()
        nonsense.put(bad)
        seal(bad)
        begin, end = (0, 4) if at_once else (nonsense.wrong, nonsense.wrong + 1)
        client.join(who, LAYOUT)
        if begin:
            client.append(who, 0, begin, bad[:begin].tobytes(), pb.Health())
        before = siege.store()
        code, words = refusal(client.append, who, begin, end - begin, bad[begin:end].tobytes(), pb.Health())
        assert code is grpc.StatusCode.INVALID_ARGUMENT and words, nonsense
        assert siege.store() == before, nonsense
        if at_once or nonsense.at >= nonsense.wrong:  # so it was nothing else
            assert client.append(who, begin, 4 - begin, good[begin:].tobytes(), pb.Health()).cursor == 4
    client.close()
    siege.check()


FLOOD = """
import resource, socket, sys, time
port, count, greeting = int(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[5]),) * 2)
peers = []
for _ in range(count):
    try:
        peers.append(socket.create_connection(("127.0.0.1", port), timeout=5.0))
        peers[-1].sendall(greeting)
    except OSError:
        pass
open(sys.argv[4], "w").write(str(len(peers)))
while True:
    time.sleep(1)
"""


@pytest.mark.parametrize(
    ("count", "greeting"),
    [(10_000, b""), (1000, PREFACE[:10]), (1000, GREETING), (1000, GREETING + headers(1, APPEND))],
    ids=["silent", "half a greeting", "greeting", "call"],
)
def test_connections_by_the_thousand(siege, tmp_path, count, greeting) -> None:
    """Held open for as long as the learner lets them; who comes after has a place again."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    count = count if limit == resource.RLIM_INFINITY else min(count, limit - 100)
    told = tmp_path / "told"
    arguments = (str(siege.port), str(count), greeting.hex(), str(told), str(count + 100))
    with child(FLOOD, *arguments), unharmed(siege):
        until(lambda: told.exists() and told.read_text())
        assert int(told.read_text()) > min(count, 500)


def test_half_messages_on_many_connections(siege) -> None:
    """Each peer lets four calls wait for the last byte of a message as large as is allowed."""
    with unharmed(siege):
        peers = [Attacker(siege.port) for _ in range(110)]
        size = wire.APPEND_BYTES
        left = {}
        for peer in peers:
            peer.listen()
            for stream in (1, 3, 5, 7):
                peer.begin(stream, APPEND, size)
                left[peer, stream] = size - 1
        sent = quiet = 0
        while quiet < 50:
            took = sum(take(left, peer, stream) for peer, stream in left)
            sent, quiet = sent + took, 0 if took else quiet + 1
            time.sleep(0.0 if took else 0.02)
        # All that is taken is one message of each connection, and what HTTP/2 lets the others send unasked.
        assert (20 << 20) < sent < len(peers) * (size + 8 * wire.WINDOW_BYTES)
    for peer in peers:
        peer.socket.close()


def take(left: dict[tuple[Attacker, int], int], peer: Attacker, stream: int) -> int:
    sent = peer.fill(stream, left[peer, stream])
    left[peer, stream] -= sent
    return sent


def test_calls_that_never_say_anything(siege) -> None:
    ended = threading.Event()

    def nothing() -> Iterator[bytes]:
        ended.wait()
        yield from ()

    channels = [grpc.insecure_channel(f"127.0.0.1:{siege.port}", wire.CLIENT_OPTIONS) for _ in range(8)]
    calls = [
        channel.stream_unary(f"/{wire.SERVICE}/{method}").future(nothing(), timeout=60)
        for channel in channels
        for method in METHODS
    ]
    siege.actor.act(10)
    until(lambda: siege.actor.sent)
    codes = [until(lambda call=call: call.code()) for call in calls]
    assert set(codes) == {grpc.StatusCode.DEADLINE_EXCEEDED}, "a slow network looks the same, and may try again"
    ended.set()
    for channel in channels:
        channel.close()
    siege.check()


def test_nobody_without_the_token(tmp_path) -> None:
    keys.make(tmp_path / "keys", ["127.0.0.1"])
    with served(tmp_path / "learner", tmp_path / "keys") as (process, port):
        access = connecting(Endpoint("127.0.0.1", port), tmp_path / "keys")
        good = client_of(port, tmp_path / "keys")
        who = identity(1)
        good.join(who, LAYOUT)
        rows = rows_of(1, 6)
        assert good.append(who, 0, 3, rows[:3].tobytes(), pb.Health()).cursor == 3
        before = {path: path.read_bytes() for path in (tmp_path / "learner" / STORE).rglob("*") if path.is_file()}
        request = pb.AppendRequest(sender=who.message(), first=3, count=3, rows=rows[3:].tobytes())
        with grpc.secure_channel(f"127.0.0.1:{port}", access.credentials, wire.CLIENT_OPTIONS) as channel:
            for method in METHODS:
                for metadata in ((), bearer("0" * 64), bearer(access.token[:-1])):
                    call = channel.unary_unary(f"/{wire.SERVICE}/{method}")
                    data = request.SerializeToString()
                    code, _ = refusal(lambda: call(data, metadata=metadata, timeout=20))  # noqa: B023
                    assert code is grpc.StatusCode.UNAUTHENTICATED
        with Raw(port) as plain:
            assert plain.call("Append", request.SerializeToString()) is grpc.StatusCode.UNAVAILABLE
        with contextlib.ExitStack() as held:  # handshakes that are begun, and never ended
            for _ in range(300):
                peer = held.enter_context(socket.create_connection(("127.0.0.1", port)))
                with contextlib.suppress(ConnectionError):
                    peer.sendall(b"\x16\x03\x01\x02\x00\x01")
            late = client_of(port, tmp_path / "keys")
            until(lambda: joins(late, 2))
            late.close()
        assert all(path.read_bytes() == data for path, data in before.items())
        assert good.append(who, 3, 3, rows[3:].tobytes(), pb.Health()).cursor == 6
        good.close()
        assert process.poll() is None and len((tmp_path / "learner" / "stderr").read_text()) < 4000
    assert stored(tmp_path / "learner") == {1: rows.tobytes()}
