"""Who may speak on the link: plaintext on this machine only, else TLS with certificates on both sides and a token.

TLS says which machine it is and hides what is said; the token, in every call, says that it is this learner's actor.
Both come from the folder that ``keys.make`` writes. Nothing here falls back to less than it was asked for.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from robot_rl.link.keys import canonical_host, load

# A server whose port is taken must say so, not share the port, and the calls, with whoever has it.
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (("grpc.so_reuseport", 0),)
# With http_proxy set, gRPC would send even what is meant for loopback to that proxy, in plaintext.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (("grpc.enable_http_proxy", 0),)
_LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
_ANY = ("0.0.0.0", "::")
# gRPC reads "dns:5580" as the scheme dns: what is dialled would not be what was checked.
_SCHEMES = frozenset(
    {"dns", "fd", "google-c2p", "ipv4", "ipv6", "passthrough", "unix", "unix-abstract", "vsock", "xds"}
)
_EXAMPLE = "give host:port, such as 127.0.0.1:5580, learner.lab:5580 or [::1]:5580"


@dataclass(frozen=True)
class Endpoint:
    """Where a learner listens or is dialled. ``host``: an address or a name, without brackets; ``port``: 0 to 65535,
    0 to listen at any that is free. Raises ValueError, with the remedy, for anything else."""

    host: str
    port: int

    def __post_init__(self) -> None:
        if not self.host:
            raise ValueError(f"address ':{self.port}' has no host: {_EXAMPLE}")
        object.__setattr__(self, "host", canonical_host(self.host))  # as certificates have it
        if self.host in _SCHEMES:
            raise ValueError(f"host {self.host!r} is a word of gRPC's own: give the machine's full name or its address")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port {self.port} of {self.host} does not exist: give one from 0 to 65535")

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """``host:port``, IPv6 in brackets. Raises ValueError that names ``text`` and the remedy."""
        if "://" in text:
            raise ValueError(
                f"address {text!r} has a scheme: leave out {text.partition('://')[0] + '://'!r}; {_EXAMPLE}"
            )
        host, colon, port = text.rpartition(":")
        if not colon or text.endswith("]"):
            raise ValueError(f"address {text!r} has no port: {_EXAMPLE}")
        if host.startswith("[") and host.endswith("]") and ":" in host:
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"address {text!r} has more than one colon, and IPv6 goes into brackets: {_EXAMPLE}")
        if not (port.isascii() and port.isdecimal() and int(port[:6]) <= 65535):
            raise ValueError(f"address {text!r}: port {port!r} is not a number from 0 to 65535: {_EXAMPLE}")
        try:
            return cls(host, int(port))
        except ValueError as error:
            raise ValueError(f"address {text!r}: {error}") from error

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether nothing but this machine is reached by it: 127.0.0.0/8, ::1 or localhost. No other name is looked
        up: what it means may change between the look and the use."""
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return self.host == "localhost"
        return any(address in network for network in _LOOPBACK)


@dataclass(frozen=True)
class Access:
    """How to open a port or a channel. ``credentials``: grpc.ServerCredentials or grpc.ChannelCredentials, None for
    plaintext; ``token``: what every call has to say, None on plaintext, where it could be overheard."""

    credentials: Any | None
    token: str | None = field(repr=False)

    def __post_init__(self) -> None:
        if (self.credentials is None) != (self.token is None):
            raise ValueError("credentials and token come together: give both, or None for both")

    def __repr__(self) -> str:
        return f"Access({'plaintext' if self.credentials is None else 'TLS, token hidden'})"


def listening(endpoint: Endpoint, keys: Path | str | None) -> Access:
    """How a learner opens ``endpoint``: with the folder ``keys`` mutual TLS, on loopback as well; without, plaintext.

    Raises ValueError for plaintext beyond loopback, and as ``keys.load`` does.
    """
    if keys is None:
        _refuse_beyond_loopback(endpoint, "bind")
        return Access(None, None)
    have = load(keys, "learner")
    credentials = grpc.ssl_server_credentials([(have.key, have.certificate)], have.ca, require_client_auth=True)
    return Access(credentials, have.token)


def connecting(endpoint: Endpoint, keys: Path | str | None) -> Access:
    """How an actor dials ``endpoint``, by the same rule; the learner's certificate has to name ``endpoint.host``.

    Raises ValueError for plaintext beyond loopback and for what can only be listened at, and as ``keys.load`` does.
    """
    if endpoint.port == 0 or endpoint.host in _ANY:
        raise ValueError(f"address {endpoint} can be listened at, not dialled: give the learner's own host and port")
    if keys is None:
        _refuse_beyond_loopback(endpoint, "connection")
        return Access(None, None)
    have = load(keys, "actor")
    return Access(grpc.ssl_channel_credentials(have.ca, have.key, have.certificate), have.token)


def _refuse_beyond_loopback(endpoint: Endpoint, what: str) -> None:
    if not endpoint.is_loopback:
        host = "LEARNER" if endpoint.host in _ANY else endpoint.host
        raise ValueError(
            f"address {endpoint} without keys: a plaintext {what} beyond loopback is refused, as the network could "
            f"read and forge it. Make keys with `robot-rl keys make --out keys --host {host}` and give both "
            "sides theirs, or use 127.0.0.1"
        )


def bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata of a call that says ``token``; none for None."""
    return () if token is None else (("authorization", f"Bearer {token}"),)


class TokenGuard(grpc.aio.ServerInterceptor):
    """Refuses calls that do not say the token, with UNAUTHENTICATED, before a byte of their messages is read.

    Put it first. What is refused learns nothing: one answer to a missing and to a wrong token, whatever the method.
    ``refused`` counts.
    """

    def __init__(self, token: str) -> None:
        """Raises ValueError for an empty token, which everybody knows."""
        if not token:
            raise ValueError("token is empty: give the one in the folder of keys")
        self.refused = 0
        self._expected = bearer(token)[0][1].encode()

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        said = [value for name, value in handler_call_details.invocation_metadata or () if name == "authorization"]
        given = said[0] if len(said) == 1 else b""
        if hmac.compare_digest(given.encode() if isinstance(given, str) else bytes(given), self._expected):
            return await continuation(handler_call_details)
        self.refused += 1
        return _REFUSAL


async def _refuse(requests: object, context: Any) -> None:
    # Of a stream, gRPC reads a message only when it is asked for; of a unary call it would read all of it first.
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED,
        "the token is missing or wrong: use the keys that were made together with this learner's",
    )


_REFUSAL = grpc.stream_stream_rpc_method_handler(_refuse)
