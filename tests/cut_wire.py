"""A wire between a client and a port of this machine that can be cut: bytes stop, and nobody is told."""

import socket
import threading
from typing import Self


class CutWire:
    """Forwards to ``127.0.0.1:port`` from a port of its own. While cut, it swallows nothing and closes nothing: it only
    no longer reads, as a cable that was pulled; new connections are taken and get no answer."""

    def __init__(self, port: int) -> None:
        self._to = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._flows, self._ended = threading.Event(), False
        self._flows.set()
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._flows.set()
        for one in (self._listener, *self._sockets):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it had ended by itself
            finally:
                one.close()
        for thread in self._threads:
            thread.join(5.0)

    def cut(self) -> None:
        self._flows.clear()

    def mend(self) -> None:
        self._flows.set()

    def _accept(self) -> None:
        while not self._ended:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._to)
            except OSError:  # no learner there: as a refused connection
                if not self._ended and "client" in locals():
                    client.close()
                continue
            self._sockets += [client, server]
            for pair in ((client, server), (server, client)):
                self._threads.append(threading.Thread(target=self._carry, args=pair, daemon=True))
                self._threads[-1].start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                self._flows.wait()
                sink.sendall(data)
        except OSError:
            return  # the other end has gone
        finally:
            for one in (source, sink):
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
