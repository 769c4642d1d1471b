"""Where a learner may listen, and an actor dial, unencrypted: on its own machine, however an address is written."""

from __future__ import annotations

import socket

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from robot_rl.link import security
from robot_rl.link.security import Access, Endpoint


def loops_back(host: str) -> bool:
    """An oracle of its own: by the bits."""
    if host == "localhost":
        return True
    try:
        return socket.inet_pton(socket.AF_INET, host)[0] == 127
    except OSError:
        pass
    try:
        return socket.inet_pton(socket.AF_INET6, host) == bytes(15) + b"\1"
    except OSError:
        return False


NAMES = st.lists(st.text("abxz019-", min_size=1, max_size=6), min_size=1, max_size=4).map(".".join)
HOSTS = st.one_of(
    st.ip_addresses().map(str),
    st.ip_addresses(v=4, network="127.0.0.0/8").map(str),
    st.ip_addresses(v=6, network="::/120").map(str),
    st.ip_addresses(v=6, network="::ffff:127.0.0.0/104").map(str),
    NAMES,
)


@settings(deadline=None)
@given(host=HOSTS, port=st.integers(1, 65535))
@example("0.0.0.0", 5580)
@example("::", 5580)
@example("::1", 5580)
@example("LOCALHOST", 5580)
@example("localhost.evil.example", 5580)
@example("127.0.0.1.evil.example", 5580)
@example("126.255.255.255", 5580)
@example("128.0.0.0", 5580)
@example("127.1", 5580)
@example("2130706433", 5580)
@example("0x7f.1", 5580)
@example("::ffff:127.0.0.1", 5580)
@example("::1%lo", 5580)
@example("unix", 5580)
def test_plaintext_is_for_loopback_only(host: str, port: int) -> None:
    try:
        endpoint = Endpoint(host, port)
    except ValueError:
        assert not loops_back(host)  # what is not an address at all is no way round
        return
    assert Endpoint.parse(str(endpoint)) == endpoint and endpoint.is_loopback == loops_back(host.lower())
    for way in (security.listening, security.connecting):
        if loops_back(host.lower()):
            assert way(endpoint, None) == Access(None, None)
        else:
            with pytest.raises(ValueError, match=r"robot-rl keys make|not dialled") as caught:
                way(endpoint, None)
            assert str(endpoint) in str(caught.value)


WRITTEN = st.tuples(st.text("[]:al0179./%@-", max_size=12), st.text("0123456789", max_size=7)).map(":".join)


@settings(deadline=None)
@given(st.text(max_size=40) | WRITTEN)
def test_whatever_is_written_is_an_endpoint_or_a_sentence(text: str) -> None:
    try:
        endpoint = Endpoint.parse(text)
    except ValueError as error:
        assert repr(text) in str(error) and "give " in str(error)
        return
    assert Endpoint.parse(str(endpoint)) == endpoint and 0 <= endpoint.port <= 65535
    assert endpoint.is_loopback == loops_back(endpoint.host)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("127.0.0.1:5580", "127.0.0.1:5580"),
        ("localhost:0", "localhost:0"),
        ("[::1]:5580", "[::1]:5580"),
        ("[0:0::1]:5580", "[::1]:5580"),
        ("Learner.Lab:5580", "learner.lab:5580"),
    ],
)
def test_endpoints_as_they_are_written(text: str, written: str) -> None:
    assert str(Endpoint.parse(text)) == written


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learner.lab", "no port"),
        ("[::1]", "no port"),
        ("learner.lab:", "port ''"),
        ("learner.lab:65536", "65536"),
        ("learner.lab:-1", "port '-1'"),
        ("learner.lab:٥", "is not a number"),
        (":5580", "no host"),
        ("http://learner.lab:5580", "leave out 'http://'"),
        ("::1:5580", "brackets"),
        ("unix:5580", "gRPC's own"),
        ("a b:5580", "neither an IP address nor a host name"),
        ("[learner.lab]:5580", "neither an IP address"),
    ],
)
def test_errors_of_endpoints(text: str, words: str) -> None:
    with pytest.raises(ValueError, match="give ") as caught:
        Endpoint.parse(text)
    assert words in str(caught.value) and repr(text) in str(caught.value)
