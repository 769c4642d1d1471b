"""The learner's end of the link: takes rows of many actors into one log, and gives them policies.

One thread with an event loop speaks to the actors, another writes to the disk; the learner's own thread only asks how
many rows there are, publishes a policy, and says how far it has come. Nothing that arrives is trusted: a message is
refused unless its version, its sender and its size are right and every row is whole, of the layout, and the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import grpc
import numpy as np

from robot_rl.link import link_pb2 as pb
from robot_rl.link import wire
from robot_rl.link.receive import Log, Refused, check_rows, read_logs
from robot_rl.link.security import Endpoint, TokenGuard, listening
from robot_rl.step_log import StepLog

CONNECTIONS = 128  # at once: far more than there are arms, few enough to stay small under attack
CALLS = 4  # under way at once on each; with a place for all of them, nobody's calls keep out another's
READ_S = 3.0  # a call has to send its message
PENDING_BYTES = 64 << 20  # of messages that wait for the disk; beyond it they have to be sent again
LAYOUT_CHARS = 1 << 16
BEHIND_ROWS = 8192  # received and not yet learned from: beyond it actors are asked to wait
HEARTBEAT_S = 1.0
SILENT_S = 5.0  # an actor that is silent for longer is not counted as there


@dataclass
class Peer:
    """What is known of an actor."""

    name: str
    log: Log
    heard_s: float = field(default_factory=time.monotonic)
    health: Any = field(default_factory=pb.Health)
    followers: set[asyncio.Event] = field(default_factory=set)

    @property
    def present(self) -> bool:
        return time.monotonic() - self.heard_s < SILENT_S


class LinkServer:
    """Serves one run. ``store`` takes the rows; it is the caller's to close, after this."""

    def __init__(
        self,
        endpoint: Endpoint,
        keys: Path | None,
        run: str,
        choice: Mapping[str, Any],
        store: StepLog,
        paced: bool,
        held: bool = False,
    ) -> None:
        """``run`` is its id, ``choice`` what an actor builds its environment from. Where ``paced`` actors take no more
        steps than ``allow`` says; else, at a real arm, as many as they like. Where ``held`` they hear nothing, and do
        not begin, before ``begin``.

        Raises ValueError for an endpoint beyond loopback without ``keys``, OSError where the port is taken.
        """
        self._endpoint, self._access = endpoint, listening(endpoint, keys)
        self._run, self._choice, self._store, self._paced = run, json.dumps(choice), store, paced
        self._peers: dict[int, Peer] = {}
        self._logs = read_logs(store)
        self._safe = len(store)
        self._env_steps = sum(log.steps for log in self._logs.values())
        self._learned, self._allowed, self._stop = self._safe, 0, False
        self._policy = 0, b""  # version and message
        self._pending = 0  # bytes of messages that wait for the disk
        self._news = threading.Condition()  # of rows, for the learner's thread
        self._failure: OSError | None = None
        self._disk = ThreadPoolExecutor(1, "link-disk")
        self._guard = TokenGuard(self._access.token) if self._access.token is not None else None
        self._refused = 0  # messages
        self._held = held
        self._told: set[int] = set()  # logs whose actors know that the run has what it wants
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # to send a message, by connection
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="link", daemon=True)
        self._error: Exception | None = None
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._thread.join()
            self._disk.shutdown()
            raise self._error

    # ------------------------------------------------------------------------------------------ the learner's side

    @property
    def address(self) -> Endpoint:
        """Where it listens; with the port that was found where 0 was asked for."""
        return Endpoint(self._endpoint.host, self._port)

    @property
    def rows(self) -> int:
        """Rows of the store that are safe. Raises the OSError with which writing one failed."""
        if self._failure is not None:
            raise self._failure
        return self._safe

    def wait_for_rows(self, more_than: int, timeout_s: float) -> bool:
        """Until there are ``more_than`` rows; whether there are."""
        with self._news:
            return self._news.wait_for(lambda: self._safe > more_than or self._failure is not None, timeout_s)

    def publish(self, version: int, env_steps: int, policy: Mapping[str, np.ndarray]) -> None:
        """Let actors have this policy, and none before it."""
        message = pb.News(version=version, env_steps=env_steps, policy=wire.pack(policy)).SerializeToString()
        self._policy = version, message
        self._tell()

    def begin(self) -> None:
        """Let actors that were held begin; the policy that was published is theirs from their first step on."""
        self._held = False
        self._tell()

    def allow(self, env_steps: int, learned_rows: int) -> None:
        """How many steps the whole run may have, and how many rows have been learned from."""
        changed = env_steps != self._allowed
        self._allowed, self._learned = env_steps, learned_rows
        if changed and self._paced:
            self._tell()

    def stop_actors(self) -> None:
        """Tell every actor that the run has what it wants."""
        self._stop = True
        self._tell()

    @property
    def present(self) -> dict[str, Any]:
        """Health of the actors that are there, by name."""
        return {peer.name: peer.health for peer in list(self._peers.values()) if peer.present}

    @property
    def refused(self) -> int:
        """Messages that were not taken, and calls without the token."""
        return self._refused + (self._guard.refused if self._guard is not None else 0)

    @property
    def following(self) -> int:
        """How many actors listen."""
        return sum(bool(peer.followers) for peer in list(self._peers.values()))

    @property
    def untold(self) -> int:
        """How many of the run's actors, as far as their logs are here, do not know yet that it has what it wants."""
        return len(set(self._logs) - self._told)

    def close(self) -> None:
        """End all calls. May be called twice."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()
        self._disk.shutdown()

    # ------------------------------------------------------------------------------------------ the event loop's side

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._loop.close()

    async def _main(self) -> None:
        self._closing = asyncio.Event()
        server = grpc.aio.server(
            interceptors=[] if self._guard is None else [self._guard],
            options=wire.server_options(CONNECTIONS, CALLS, self._store.layout.dtype.itemsize),
            maximum_concurrent_rpcs=CALLS * CONNECTIONS,
        )
        calls = {"Describe": self._describe, "Join": self._join, "Append": self._append, "Follow": self._follow}
        # As streams of bytes: a message is read, and refused in words, here, and not waited for without end.
        handlers = {name: grpc.stream_stream_rpc_method_handler(self._reading(call)) for name, call in calls.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wire.SERVICE, handlers),))
        try:
            credentials, text = self._access.credentials, str(self._endpoint)
            self._port = (
                server.add_insecure_port(text) if credentials is None else server.add_secure_port(text, credentials)
            )
            await server.start()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is told to whoever waits for this server
            self._error = OSError(f"cannot listen at {self._endpoint} ({error}): is another learner running there?")
            self._ready.set()
            return
        self._ready.set()
        await self._closing.wait()
        self._wake()
        await server.stop(0.2)

    def _tell(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:
            if self._thread.is_alive():  # else the server has closed, and nobody is left to tell
                raise

    def _wake(self) -> None:
        for peer in self._peers.values():
            for event in peer.followers:
                event.set()

    def _reading(
        self, call: Callable[[bytes, Any], AsyncGenerator[bytes, None]]
    ) -> Callable[..., AsyncIterator[bytes]]:
        async def read(requests: object, context: Any) -> AsyncIterator[bytes]:
            # One at a time on each connection: so what half a message takes of memory is bounded.
            turn = self._turns.setdefault(context.peer(), asyncio.Lock())
            try:
                async with asyncio.timeout(READ_S), turn:
                    data = await context.read()
            except TimeoutError:
                late = f"the message did not arrive within {READ_S:g} s: the network, or the learner's machine, is slow"
                await self._refuse(Refused(grpc.StatusCode.DEADLINE_EXCEEDED, late), context)
            if data is grpc.aio.EOF:
                await self._refuse(Refused(grpc.StatusCode.INVALID_ARGUMENT, "there is no message"), context)
            async with contextlib.aclosing(call(data, context)) as answers:
                async for answer in answers:
                    yield answer

        return read

    async def _describe(self, data: bytes, context: Any) -> AsyncGenerator[bytes, None]:
        async def answer() -> Any:
            request = wire.parse(pb.DescribeRequest, data)
            self._check_schema(request.schema)
            return pb.Description(schema=wire.SCHEMA, run=self._run, choice=self._choice)

        yield await self._answer(answer, context)

    async def _join(self, data: bytes, context: Any) -> AsyncGenerator[bytes, None]:
        async def answer() -> Any:
            request = wire.parse(pb.JoinRequest, data)
            sender = request.sender
            self._check_run(sender)
            if len(request.layout) > LAYOUT_CHARS:
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"a layout has at most {LAYOUT_CHARS} characters")
            try:
                layout = type(self._store.layout).from_json(json.loads(request.layout))
            except (json.JSONDecodeError, RecursionError, ValueError) as error:
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
            if different := layout.difference(self._store.layout):
                raise Refused(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"the actor's steps are not those of this run ({different}): use the same version of robot-rl, "
                    "and the settings that the learner describes",
                )
            return self._receipt(self._admit(sender))

        yield await self._answer(answer, context)

    def _admit(self, sender: Any) -> Peer:
        """The peer of an actor that joins. Raises Refused where another one has its name."""
        if len(sender.actor) > 64 or not sender.actor.isprintable() or not sender.actor:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "an actor's name has 1 to 64 characters")
        for other in self._peers.values():
            if other.name == sender.actor and other.log.id != sender.log and other.present:
                raise Refused(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"there is an actor '{sender.actor}' already, with another log: give this one another --index",
                )
        if sender.log not in self._peers and len(self._peers) >= CONNECTIONS:
            self._forget_absent()
        log = self._logs.setdefault(sender.log, Log(sender.log))
        self._check_incarnation(log, sender)
        if sender.incarnation > log.incarnation:
            log.incarnation = sender.incarnation
            if sender.log in self._peers:  # what follows it are the calls of its past
                for event in self._peers[sender.log].followers:
                    event.set()
        peer = self._peers.setdefault(sender.log, Peer(sender.actor, log))
        peer.name, peer.heard_s = sender.actor, time.monotonic()
        return peer

    def _forget_absent(self) -> None:
        """Make a place for one that joins; the forgotten may join again. Raises Refused where all are there."""
        absent = [peer for peer in self._peers.values() if not (peer.present or peer.followers or peer.log.waiting)]
        if not absent:
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, f"there are {len(self._peers)} actors: no more are taken")
        for peer in absent:
            del self._peers[peer.log.id]
            if not peer.log.rows:
                del self._logs[peer.log.id]

    async def _append(self, data: bytes, context: Any) -> AsyncGenerator[bytes, None]:
        async def answer() -> Any:
            if self._pending > PENDING_BYTES:
                raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "the learner's disk is behind: wait, and send again")
            request = wire.parse(pb.AppendRequest, data)
            peer = self._peer(request.sender)
            peer.heard_s = time.monotonic()
            health = request.health
            if not all(map(math.isfinite, (health.period_p50_s, health.period_p99_s, health.policy_age_s))):
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "the actor's health has a number that is not finite")
            peer.health.CopyFrom(health)
            if request.count or request.rows:
                if self._safe - self._learned > BEHIND_ROWS:
                    raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "the learner is behind: wait, and send again")
                peer.log.waiting += 1
                kept = self._loop.run_in_executor(self._disk, self._keep, peer.log, request)
                kept.add_done_callback(lambda _: setattr(peer.log, "waiting", peer.log.waiting - 1))
                await asyncio.shield(kept)  # it goes on where the call does not
            return self._receipt(peer)

        self._pending += len(data)
        try:
            yield await self._answer(answer, context)
        finally:
            self._pending -= len(data)

    def _keep(self, log: Log, request: Any) -> None:
        """Write the rows that are new; on the disk's thread, one message after the other."""
        if self._failure is not None:  # also by a message before this one, whose rows may be in the file
            raise Refused(grpc.StatusCode.UNAVAILABLE, f"the learner cannot store steps: {self._failure}")
        rows = check_rows(request, log, self._store.layout)
        if not len(rows):
            return
        try:
            self._store.append(rows)
            self._store.sync()
        except OSError as error:
            self._failure = error
            with self._news:
                self._news.notify_all()
            raise Refused(grpc.StatusCode.UNAVAILABLE, f"the learner cannot store steps: {error}") from error
        log.take(rows)
        with self._news:
            self._safe = len(self._store)
            self._env_steps = sum(log.steps for log in list(self._logs.values()))
            self._news.notify_all()

    async def _follow(self, data: bytes, context: Any) -> AsyncGenerator[bytes, None]:
        try:
            request = wire.parse(pb.FollowRequest, data)
            peer = self._peer(request.sender)
        except (Refused, ValueError) as error:
            await self._refuse(error, context)
            return
        changed, sent = asyncio.Event(), 0
        peer.followers.add(changed)
        try:
            while not self._closing.is_set() and peer.log.incarnation == request.sender.incarnation:
                changed.clear()
                version, policy = self._policy
                news = pb.News(granted=self._granted(peer), stop=self._stop).SerializeToString()
                peer.heard_s = time.monotonic()
                if not self._held:
                    self._note_told(peer)
                    yield (policy if version != sent else b"") + news  # messages are merged by joining their bytes
                    sent = version
                try:
                    await asyncio.wait_for(changed.wait(), HEARTBEAT_S)
                except TimeoutError:
                    continue
        finally:
            peer.followers.discard(changed)

    def _granted(self, peer: Peer) -> int:
        """Steps of this log that may be taken: those it has, and its part of those that are still allowed, rounded up.

        So at any moment n actors are granted less than n steps too many. One that joins takes its part of what the
        others were granted, which they hear of within a heartbeat.
        """
        if not self._paced:
            return wire.UNLIMITED
        left = self._allowed - self._env_steps
        others = sum(other.present for other in self._peers.values())
        return max(0, peer.log.steps + -(-max(0, left) // max(1, others)))

    def _receipt(self, peer: Peer) -> Any:
        self._note_told(peer)
        return pb.Receipt(cursor=peer.log.rows, stop=self._stop)

    def _note_told(self, peer: Peer) -> None:
        if self._stop:
            self._told.add(peer.log.id)

    def _peer(self, sender: Any) -> Peer:
        """Who sent a message; raises Refused for one that has not joined, and for what an actor's past sends."""
        self._check_run(sender)
        if sender.log not in self._peers:
            raise Refused(grpc.StatusCode.NOT_FOUND, "join first: the learner was started anew")
        peer = self._peers[sender.log]
        self._check_incarnation(peer.log, sender)
        return peer

    def _check_run(self, sender: Any) -> None:
        self._check_schema(sender.schema)
        if sender.run != self._run:
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the actor's log is of run '{sender.run[:64]}', this learner's run is '{self._run}': "
                "give the actor another --out",
            )

    def _check_incarnation(self, log: Log, sender: Any) -> None:
        if sender.incarnation < log.incarnation:
            raise Refused(
                grpc.StatusCode.ABORTED, "this actor was started again in the meantime: only the newer one is heard"
            )

    def _check_schema(self, schema: int) -> None:
        if schema != wire.SCHEMA:
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the actor speaks version {schema} of the link, the learner {wire.SCHEMA}: "
                "install the same robot-rl on both",
            )

    async def _answer(self, answer: Callable[[], Any], context: Any) -> bytes:
        try:
            message = await answer()
            return message.SerializeToString()
        except (Refused, ValueError) as error:
            await self._refuse(error, context)
            return b""

    async def _refuse(self, error: Exception, context: Any) -> None:
        self._refused += 1
        code = error.code if isinstance(error, Refused) else grpc.StatusCode.INVALID_ARGUMENT
        await context.abort(code, str(error)[:500])
