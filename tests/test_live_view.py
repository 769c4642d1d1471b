"""A page that shows a person what they steer: real HTTP over loopback."""

from __future__ import annotations

import http.client
import io
import socket
import threading
from urllib.parse import urlsplit

import imageio.v3 as images
import numpy as np
import pytest

from robot_rl import intervention
from robot_rl.live_view import LiveView
from tests.ros_children import until


def connect(view: LiveView) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(view.address).netloc, timeout=10.0)


def next_picture(stream: io.BufferedIOBase) -> np.ndarray:
    """The next part of a multipart stream."""
    while not (line := stream.readline()).lower().startswith(b"content-length"):
        assert line, "the stream ended"
    stream.readline()
    return images.imread(stream.read(int(line.split(b":")[1])), extension=".jpg")


@pytest.fixture
def view():
    shown = LiveView(0)
    yield shown
    shown.close()
    shown.close()


def test_pictures_come_as_they_are_made(view):
    page = connect(view)
    page.request("GET", "/")
    assert b'src="/pictures"' in page.getresponse().read()
    assert not view.watched
    streams = [connect(view) for _ in range(2)]  # of two people
    for stream in streams:
        stream.request("GET", "/pictures")
    until(lambda: view._watching == 2)
    answers = [stream.getresponse() for stream in streams]
    assert answers[0].headers["Content-Type"].startswith("multipart/x-mixed-replace")
    for grey in (40, 200):
        picture = np.full((48, 64, 3), grey, np.uint8)
        picture[:, :32, 0] = 255 - grey
        view.show(picture)
        for answer in answers:
            assert np.abs(next_picture(answer).astype(int) - picture).mean() < 12  # JPEG, with its edge
    for stream, answer in zip(streams, answers, strict=True):
        answer.close()
        stream.close()
    view.show(picture)
    until(lambda: not view.watched)


def test_it_is_seen_from_this_machine_only_and_ends_with_its_threads():
    before = set(threading.enumerate())
    view = LiveView(0)
    host, port = view._server.server_address[:2]
    assert host == "127.0.0.1"
    with pytest.raises(OSError, match=rf"port {port} of 127\.0\.0\.1 cannot be listened at"):
        LiveView(port)
    stream = connect(view)
    stream.request("GET", "/pictures")
    until(lambda: view.watched)
    nothing = connect(view)
    nothing.request("GET", "/etc/passwd")
    assert nothing.getresponse().status == 404
    view.close()
    until(lambda: set(threading.enumerate()) <= before)
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        pass


def test_what_cannot_be_shown_is_refused(monkeypatch):
    class Env:
        task = type("Task", (), {"steer": None})
        render_mode = None
        unwrapped = property(lambda self: self)

    with pytest.raises(ValueError, match="only a twin can be shown"):
        intervention.make_overseer(intervention.Config(by="keyboard", view_port=8099), None, Env())
