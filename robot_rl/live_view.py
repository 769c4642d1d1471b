"""Pictures of what happens, for a person who steers what they cannot see: a page for any browser, on loopback only.

From another machine: ``ssh -L 8090:127.0.0.1:8090 the-robots-machine``, then http://127.0.0.1:8090 there.
"""

from __future__ import annotations

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

LOOPBACK = "127.0.0.1"
_BOUNDARY = "frame"
_WAIT_S = 1.0  # for a picture, before looking whether the page is still there
_PAGE = """<!doctype html><meta charset="utf-8"><title>robot-rl</title>
<style>body {margin: 0; background: #222} img {width: 100vw; height: 100vh; object-fit: contain}</style>
<img src="/pictures" alt="waiting for the first picture">
"""


class LiveView:
    """The newest picture, at http://127.0.0.1:``port``; a picture that nobody looks at costs nothing."""

    def __init__(self, port: int) -> None:
        """Port 0 takes any that is free. Raises OSError where the port is taken."""
        self._changed = threading.Condition()
        self._jpeg, self._count, self._closed = b"", 0, False
        self._watching = 0
        view = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/":
                    view._answer(self, _PAGE.encode(), "text/html; charset=utf-8")
                elif self.path == "/pictures":
                    view._stream(self)
                else:
                    self.send_error(404)

            def log_message(self, format: str, *args: Any) -> None:
                """Not to the terminal, where a person steers."""

        try:
            self._server = ThreadingHTTPServer((LOOPBACK, port), Handler)
        except OSError as error:
            raise OSError(error.errno, f"port {port} of {LOOPBACK} cannot be listened at ({error.strerror})") from None
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self._server.server_port}"

    @property
    def watched(self) -> bool:
        """Whether anybody looks."""
        return self._watching > 0

    def show(self, picture: np.ndarray) -> None:
        """Make ``picture``, uint8 (H, W, 3), the newest."""
        import imageio.v3 as images

        jpeg = images.imwrite("<bytes>", picture, extension=".jpg")
        with self._changed:
            self._jpeg, self._count = jpeg, self._count + 1
            self._changed.notify_all()

    def close(self) -> None:
        """May be called twice."""
        with self._changed:
            closed, self._closed = self._closed, True
            self._changed.notify_all()
        if not closed:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler, body: bytes, kind: str) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _stream(self, handler: BaseHTTPRequestHandler) -> None:
        """Pictures as they come, until the page or this view is closed."""
        handler.send_response(200)
        handler.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
        handler.end_headers()
        with self._changed:
            self._watching += 1
        seen = 0
        try:
            with contextlib.suppress(ConnectionError):  # the page was closed
                while not self._closed:
                    with self._changed:
                        if self._count == seen and not self._closed:
                            self._changed.wait(_WAIT_S)
                        jpeg, seen = self._jpeg, self._count
                    head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    if jpeg:
                        handler.wfile.write(head.encode() + jpeg + b"\r\n")
        finally:
            with self._changed:
                self._watching -= 1
