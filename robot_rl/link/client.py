"""The actor's end of the link: one channel, calls with deadlines, each of which may be made again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from robot_rl.link import link_pb2 as pb
from robot_rl.link import wire
from robot_rl.link.security import Endpoint, bearer, connecting
from robot_rl.step_log import Layout

RETRY_S = 0.5
_PASSING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,  # what a connection that breaks in the middle of a message looks like
    }
)
"""Statuses after which the same call may succeed."""


def passing(error: grpc.RpcError) -> bool:
    """Whether the same call may succeed later."""
    return error.code() in _PASSING


@dataclass(frozen=True)
class Identity:
    """Who an actor is, towards the learner."""

    run: str
    actor: str
    log: int
    incarnation: int

    def message(self) -> Any:
        return pb.Sender(schema=wire.SCHEMA, run=self.run, actor=self.actor, log=self.log, incarnation=self.incarnation)


class LinkClient:
    """Calls of an actor. All raise grpc.RpcError; none waits longer than its deadline."""

    def __init__(self, learner: Endpoint, keys: Path | None) -> None:
        """Raises ValueError for a learner beyond loopback without ``keys``. Connects with the first call."""
        self.learner = learner
        access = connecting(learner, keys)
        self._metadata = bearer(access.token) if access.token is not None else ()
        if access.credentials is None:
            self._channel = grpc.insecure_channel(str(learner), wire.CLIENT_OPTIONS)
        else:
            self._channel = grpc.secure_channel(str(learner), access.credentials, wire.CLIENT_OPTIONS)

    def describe(self) -> tuple[str, dict[str, Any]]:
        """Id of the run, and what an environment is built from. Raises ValueError where the versions differ."""
        data = self._call("Describe", pb.DescribeRequest(schema=wire.SCHEMA), wire.DEADLINE_S)
        description = wire.parse(pb.Description, data)
        if description.schema != wire.SCHEMA:
            raise ValueError(
                f"the learner speaks version {description.schema} of the link, this actor {wire.SCHEMA}: "
                "install the same robot-rl on both"
            )
        return description.run, json.loads(description.choice)

    def join(self, sender: Identity, layout: Layout) -> Any:
        """A Receipt: from which row on the log is wanted."""
        request = pb.JoinRequest(sender=sender.message(), layout=json.dumps(layout.as_json()))
        return wire.parse(pb.Receipt, self._call("Join", request, wire.DEADLINE_S))

    def append(self, sender: Identity, first: int, count: int, rows: bytes, health: Any) -> Any:
        """A Receipt: how many rows of the log are safe."""
        request = pb.AppendRequest(sender=sender.message(), first=first, count=count, rows=rows, health=health)
        return wire.parse(pb.Receipt, self._call("Append", request, wire.DEADLINE_S))

    def follow(self, sender: Identity) -> tuple[Iterator[Any], Callable[[], Any]]:
        """News as they come, and what ends them."""
        call = self._channel.unary_stream(f"/{wire.SERVICE}/Follow")(
            pb.FollowRequest(sender=sender.message()).SerializeToString(), metadata=self._metadata
        )
        return (wire.parse(pb.News, data) for data in call), call.cancel

    def close(self) -> None:
        """Ends every call."""
        self._channel.close()

    def _call(self, name: str, request: Any, timeout_s: float) -> bytes:
        call = self._channel.unary_unary(f"/{wire.SERVICE}/{name}")
        return call(request.SerializeToString(), timeout=timeout_s, metadata=self._metadata)


def described(
    client: LinkClient, say: Callable[[str], None], wait: Callable[[float], bool]
) -> Mapping[str, Any] | None:
    """What the learner says of the run ("run" is its id), however long it takes to come up; None where ``wait(s)`` says
    to stop. Raises ConnectionError where it answers, and refuses."""
    told = False
    while True:
        try:
            run, choice = client.describe()
            return {**choice, "run": run}
        except grpc.RpcError as error:
            if not passing(error):
                raise ConnectionError(f"the learner at {client.learner} refuses: {wire.words(error)}") from None
            if not told:
                told = True
                say(f"waiting for the learner at {client.learner} ({wire.words(error)})")
        if wait(RETRY_S):
            return None
