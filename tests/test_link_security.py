"""The link's security, over real sockets: whoever should not be heard is not, and the others go on being heard."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from robot_rl.link import keys, security
from robot_rl.link.security import CHANNEL_OPTIONS, SERVER_OPTIONS, Access, Endpoint, TokenGuard, bearer

DEADLINE_S = 20.0  # ends a test that would hang; nothing here takes any of it
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("link") / "keys"
    keys.make(path, ["learner.lab", "127.0.0.3"], keep_ca=True)
    return path


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> Path:
    """Keys of another learner."""
    path = tmp_path_factory.mktemp("link") / "others"
    keys.make(path, ["learner.lab"])
    return path


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


class Served:
    """A server with an echo that notes every message it reads."""

    def __init__(self, access: Access) -> None:
        self.read: list[bytes] = []
        self.guard = TokenGuard(access.token) if access.token else None
        self.access = access
        self.port = 0

    async def start(self, hosts: tuple[str, ...] = ("127.0.0.1",)) -> Served:
        self.server = grpc.aio.server(interceptors=[self.guard] if self.guard else [], options=SERVER_OPTIONS)
        methods = {
            "Echo": grpc.unary_unary_rpc_method_handler(self._echo, self._note),
            "Twice": grpc.unary_stream_rpc_method_handler(self._twice, self._note),
        }
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", methods),))
        for host in hosts:
            at = f"{host}:{self.port}"
            if self.access.credentials is None:
                self.port = self.server.add_insecure_port(at)
            else:
                self.port = self.server.add_secure_port(at, self.access.credentials)
        await self.server.start()
        return self

    def _note(self, data: bytes) -> bytes:
        self.read.append(data)
        return data

    async def _echo(self, request: bytes, context: Any) -> bytes:
        return request

    async def _twice(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield request
        yield request

    async def call(
        self,
        credentials: Any,
        metadata: Any = (),
        host: str = "127.0.0.1",
        data: bytes = b"hello",
        method: str = "Echo",
    ) -> Any:
        """The reply, or the status of a refusal."""
        at = str(Endpoint(host, self.port))
        if credentials is None:
            channel = grpc.aio.insecure_channel(at, options=CHANNEL_OPTIONS)
        else:
            channel = grpc.aio.secure_channel(at, credentials, options=CHANNEL_OPTIONS)
        async with channel:
            try:
                if method == "Twice":
                    stream = channel.unary_stream("/t/Twice")(data, timeout=DEADLINE_S, metadata=metadata)
                    return b"".join([reply async for reply in stream])
                return await channel.unary_unary(f"/t/{method}")(data, timeout=DEADLINE_S, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                return error.code()


@pytest.fixture(scope="module")
def served(loop, folder) -> Iterator[Served]:
    server = Served(security.listening(Endpoint("127.0.0.1", 0), folder))
    loop.run(server.start(("127.0.0.1", "127.0.0.2", "127.0.0.3")))
    yield server
    loop.run(server.server.stop(None))


@pytest.fixture(scope="module")
def good(folder) -> Access:
    return security.connecting(Endpoint("127.0.0.1", 1), folder)


def pem(path: Path, side: str) -> tuple[bytes, bytes, bytes]:
    return tuple((path / name).read_bytes() for name in ("ca.crt", f"{side}.key", f"{side}.crt"))  # type: ignore[return-value]


def issue(folder: Path, side: str, usage: Any, from_days: float, to_days: float) -> bytes:
    """A certificate of the folder's own authority for the key of ``side`` and 127.0.0.1."""
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    authority_key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    key = serialization.load_pem_private_key((folder / f"{side}.key").read_bytes(), None)
    now = datetime.datetime.now(datetime.UTC)
    start, end = (now + datetime.timedelta(days=days) for days in (from_days, to_days))
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "made by a test")])
    builder = x509.CertificateBuilder(
        authority.subject, subject, key.public_key(), x509.random_serial_number(), start, end
    )
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    return builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def strangers(folder: Path, others: Path) -> dict[str, tuple[Any, str]]:
    """Clients that know the token and the host, and still must not be heard: credentials, host."""
    ca, key, certificate = pem(folder, "actor")
    _, other_key, other_certificate = pem(others, "actor")
    _, learner_key, learner_certificate = pem(folder, "learner")
    expired = issue(folder, "actor", CLIENT, -3, -1)
    early = issue(folder, "actor", CLIENT, 1, 3)
    tls = grpc.ssl_channel_credentials
    return {
        "plaintext": (None, "127.0.0.1"),
        "no certificate": (tls(ca), "127.0.0.1"),
        "certificate of another authority": (tls(ca, other_key, other_certificate), "127.0.0.1"),
        "authority of others": (tls((others / "ca.crt").read_bytes(), key, certificate), "127.0.0.1"),
        "expired": (tls(ca, key, expired), "127.0.0.1"),
        "not valid yet": (tls(ca, key, early), "127.0.0.1"),
        "server certificate": (tls(ca, learner_key, learner_certificate), "127.0.0.1"),
        "another host name": (tls(ca, key, certificate), "127.0.0.2"),
        "system's authorities": (tls(None, key, certificate), "127.0.0.1"),
    }


STRANGERS = [
    "plaintext",
    "no certificate",
    "certificate of another authority",
    "authority of others",
    "expired",
    "not valid yet",
    "server certificate",
    "another host name",
    "system's authorities",
]


@pytest.mark.parametrize("who", STRANGERS)
def test_a_stranger_is_refused_before_the_token_is_looked_at(loop, served, good, folder, others, who) -> None:
    known = strangers(folder, others)
    assert list(known) == STRANGERS  # none is left out
    credentials, host = known[who]
    read, refused = len(served.read), served.guard.refused
    assert loop.run(served.call(credentials, bearer(good.token), host)) is grpc.StatusCode.UNAVAILABLE
    assert (len(served.read), served.guard.refused) == (read, refused)
    assert loop.run(served.call(good.credentials, bearer(good.token))) == b"hello"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.3"])
def test_right_keys_are_heard_at_every_host_of_the_certificate(loop, served, good, host) -> None:
    for method, reply in (("Echo", b"hello"), ("Twice", b"hellohello")):
        assert loop.run(served.call(good.credentials, bearer(good.token), host, method=method)) == reply


def test_a_certificate_made_like_the_expired_one_is_heard(loop, served, good, folder) -> None:
    """So it is the date and the usage that the others are refused for."""
    ca, key, _ = pem(folder, "actor")
    credentials = grpc.ssl_channel_credentials(ca, key, issue(folder, "actor", CLIENT, -1, 1))
    assert loop.run(served.call(credentials, bearer(good.token))) == b"hello"


@pytest.mark.parametrize(
    ("usage", "days", "heard"), [(SERVER, (-1, 1), True), (CLIENT, (-1, 1), False), (SERVER, (-3, -1), False)]
)
def test_an_actor_hears_no_false_learner(loop, good, folder, usage, days, heard) -> None:
    """An actor's certificate, or one that has expired, opens no learner's port."""
    ca, key, _ = pem(folder, "learner")
    pair = (key, issue(folder, "learner", usage, *days))
    server = Served(Access(grpc.ssl_server_credentials([pair], ca, require_client_auth=True), good.token))
    loop.run(server.start())
    answer = loop.run(server.call(good.credentials, bearer(good.token)))
    loop.run(server.server.stop(None))
    assert answer == (b"hello" if heard else grpc.StatusCode.UNAVAILABLE)
    assert len(server.read) == heard


def test_a_tls_client_tells_nothing_to_a_plaintext_server(loop, good) -> None:
    server = Served(security.listening(Endpoint("127.0.0.1", 0), None))
    loop.run(server.start())
    assert loop.run(server.call(good.credentials, bearer(good.token))) is grpc.StatusCode.UNAVAILABLE
    assert server.read == []
    assert loop.run(server.call(None)) == b"hello"
    loop.run(server.server.stop(None))


def wrong_tokens(token: str) -> list[Any]:
    said = [("authorization", value) for value in ("", "Bearer ", "Bearer", token, f"Basic {token}")]
    said += [*bearer("0" * 64), *bearer(token[:-1]), *bearer(token + "0"), *bearer(token.upper()), *bearer(token[::-1])]
    return [(), *((one,) for one in said), bearer(token) * 2, (*bearer("0" * 64), *bearer(token))]


@pytest.mark.parametrize("method", ["Echo", "Twice", "NotThere"])
def test_without_the_token_no_message_is_read(loop, served, good, method) -> None:
    read, refused, wrong = len(served.read), served.guard.refused, wrong_tokens(good.token)
    for metadata in wrong:
        answer = loop.run(served.call(good.credentials, metadata, data=bytes(3 << 20), method=method))
        assert answer is grpc.StatusCode.UNAUTHENTICATED
    assert len(served.read) == read and served.guard.refused == refused + len(wrong)
    answer = loop.run(served.call(good.credentials, bearer(good.token), method=method))
    expected = {"Echo": b"hello", "Twice": b"hellohello", "NotThere": grpc.StatusCode.UNIMPLEMENTED}
    assert answer == expected[method] and served.guard.refused == refused + len(wrong)


def test_the_refusal_never_asks_for_a_message_and_compares_in_constant_time(loop, monkeypatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = security.hmac.compare_digest
    monkeypatch.setattr(security.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))

    async def go_on(details: Any) -> str:
        return "handler"

    async def abort(code: grpc.StatusCode, words: str) -> None:
        raise PermissionError(code, words)

    guard = TokenGuard("secret")
    details = SimpleNamespace(method="/t/Echo", invocation_metadata=bearer("secrex"))
    handler = loop.run(guard.intercept_service(go_on, details))
    assert (
        handler.request_streaming and handler.response_streaming and compared == [(b"Bearer secrex", b"Bearer secret")]
    )
    with pytest.raises(PermissionError) as caught:  # object() has no messages to ask for
        loop.run(handler.stream_stream(object(), SimpleNamespace(abort=abort)))
    assert caught.value.args[0] is grpc.StatusCode.UNAUTHENTICATED and "secre" not in str(caught.value)
    details = SimpleNamespace(method="/t/Echo", invocation_metadata=bearer("secret"))
    assert loop.run(guard.intercept_service(go_on, details)) == "handler" and guard.refused == 1
    with pytest.raises(ValueError, match="token is empty"):
        TokenGuard("")


def test_a_port_is_not_shared(loop, served) -> None:
    second = Served(served.access)
    second.port = served.port
    with pytest.raises(RuntimeError, match="bind"):
        loop.run(second.start())


def test_no_proxy_hears_what_is_meant_for_loopback(loop, monkeypatch) -> None:
    server = loop.run(Served(Access(None, None)).start())
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        for name in ("grpc_proxy", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        assert loop.run(server.call(None)) == b"hello"
        with pytest.raises(BlockingIOError):
            proxy.accept()
    loop.run(server.server.stop(None))


def test_what_can_only_be_listened_at_is_not_dialled(folder) -> None:
    for endpoint in (Endpoint("127.0.0.1", 0), Endpoint("0.0.0.0", 5580), Endpoint("::", 5580)):
        assert security.listening(endpoint, folder).credentials is not None
        with pytest.raises(ValueError, match="not dialled"):
            security.connecting(endpoint, folder)


def test_with_keys_loopback_is_encrypted_as_well(folder) -> None:
    for access in (
        security.listening(Endpoint("localhost", 0), folder),
        security.connecting(Endpoint("::1", 5580), folder),
    ):
        assert access.credentials is not None and access.token == (folder / "token").read_text().strip()
    with pytest.raises(ValueError, match="come together"):
        Access(None, "token")
    with pytest.raises(dataclasses.FrozenInstanceError):
        access.token = None  # type: ignore[misc]


def test_no_secret_is_written_anywhere(loop, served, good, folder, caplog, capfd) -> None:
    caplog.set_level(logging.DEBUG)
    texts = [f"{thing!r} {thing}" for thing in (good, served.access, served.guard, keys.load(folder, "actor"))]
    for metadata in (bearer(good.token), *wrong_tokens(good.token)):
        loop.run(served.call(good.credentials, metadata))
    texts += [caplog.text, *capfd.readouterr()]
    secrets = [good.token, good.token[:-1], good.token[::-1]]
    for name in ("actor.key", "learner.key", "ca.key"):
        secrets += (folder / name).read_text().splitlines()[1:-1]
    assert len(secrets) >= 9 and not [secret for secret in secrets for text in texts if secret in text]
