"""Learners and actors that are nothing but their ends of the link."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from robot_rl.link import link_pb2 as pb
from robot_rl.link import wire
from robot_rl.link.client import Identity, LinkClient
from robot_rl.link.courier import Courier
from robot_rl.link.security import CHANNEL_OPTIONS, Endpoint
from robot_rl.link.server import LinkServer
from robot_rl.step_log import STEP, Layout, StepLog
from tests.ros_children import child, until
from tests.step_rows import LAYOUT, rows_of

RUN = "a1b2"
STORE = "store.zarr"
DEADLINE_S = 20.0  # ends a test that would hang; nothing here takes any of it


@contextlib.contextmanager
def serving(
    folder: Path, port: int = 0, paced: bool = False, keys: Path | None = None, layout: Layout = LAYOUT
) -> Iterator[LinkServer]:
    """A learner's end, with its store in ``folder``."""
    with StepLog(folder / STORE, layout, {"run": RUN}) as store:
        server = LinkServer(Endpoint("127.0.0.1", port), keys, RUN, {"task": "reach"}, store, paced)
        try:
            yield server
        finally:
            server.close()


SERVER = """
import os, resource, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[3]),) * 2)
from pathlib import Path
from tests.links import serving
with serving(Path(sys.argv[1]), keys=Path(sys.argv[2]) if sys.argv[2] else None) as server:
    told = Path(sys.argv[1], "port.new")
    told.write_text(f"{server.address.port}")
    os.replace(told, Path(sys.argv[1], "port"))
    while True:
        time.sleep(1)
"""


@contextlib.contextmanager
def served(folder: Path, keys: Path | None = None, files: int = 1024) -> Iterator[tuple[Any, int]]:
    """The same in a process of its own, whose stderr is in ``folder / "stderr"``: the process, and its port."""
    folder.mkdir(exist_ok=True)
    with child(SERVER, str(folder), str(keys or ""), str(files), log=folder / "stderr") as process:
        until(lambda: (folder / "port").exists() or process.poll() is not None)
        assert process.poll() is None, (folder / "stderr").read_text()
        yield process, int((folder / "port").read_text())


def stored(folder: Path) -> dict[int, bytes]:
    """The rows of each log that a learner has on its disk."""
    rows = StepLog(folder / STORE).read(0, 1 << 60, verify=True)
    return {int(log): rows[rows["log"] == log].tobytes() for log in np.unique(rows["log"])}


def identity(log: int = 1, incarnation: int = 1, actor: str = "", run: str = RUN) -> Identity:
    return Identity(run, actor or f"actor{log}", log, incarnation)


def client_of(port: int, keys: Path | None = None) -> LinkClient:
    return LinkClient(Endpoint("127.0.0.1", port), keys)


def append(client: LinkClient, who: Identity, rows: np.ndarray, first: int | None = None, count: int = -1) -> int:
    """The cursor after it."""
    start = int(rows["sequence"][0]) if first is None else first
    return client.append(who, start, len(rows) if count < 0 else count, rows.tobytes(), pb.Health()).cursor


def all_rows(*counts: int) -> dict[int, bytes]:
    """What ``stored`` gives where there are so many of the logs 1, 2, ..."""
    return {log: rows_of(log, count).tobytes() for log, count in enumerate(counts, 1) if count}


def refusal(call: Callable[..., Any], *args: Any) -> tuple[grpc.StatusCode, str]:
    """How ``call`` is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*args)
    return caught.value.code(), caught.value.details()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LinkServer]:
    with serving(tmp_path) as started:
        yield started


@pytest.fixture
def client(server: LinkServer) -> Iterator[LinkClient]:
    made = client_of(server.address.port)
    yield made
    made.close()


class Raw:
    """A channel that sends any bytes."""

    def __init__(self, port: int) -> None:
        options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 500)]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, method: str, data: bytes, metadata: Any = ()) -> bytes | grpc.StatusCode:
        """The answer (of a stream the first), or the status of a refusal."""
        path = f"/{wire.SERVICE}/{method}"
        try:
            if method == "Follow":
                call = self._channel.unary_stream(path)(data, timeout=DEADLINE_S, metadata=metadata)
                first = next(iter(call))
                call.cancel()
                return first
            return self._channel.unary_unary(path)(data, timeout=DEADLINE_S, metadata=metadata)
        except grpc.RpcError as error:
            return error.code()


class Actor:
    """A log of its own, and a courier."""

    def __init__(self, folder: Path, port: int, log: int = 1, incarnation: int = 1, send_every: int = 8) -> None:
        self.number, self.said = log, list[str]()
        self.log = StepLog(folder / f"log{log}.zarr", LAYOUT, {"log": log})
        self.courier = Courier(
            client_of(port), identity(log, incarnation), self.log, send_every, self._health, self.said.append
        )

    def _health(self) -> Any:
        return pb.Health(unsent=self.courier.unsent, steps=1)

    def act(self, count: int) -> None:
        """Append rows, one by one, as a control loop does."""
        for row in range(len(self.log), len(self.log) + count):
            self.log.append(rows_of(self.number, 1, row))
            self.courier.notify()

    @property
    def steps(self) -> int:
        return int(np.count_nonzero(self.log.read(0, len(self.log))["kind"] == STEP))

    @property
    def sent(self) -> bool:
        assert self.courier.failure is None, self.courier.failure
        return self.courier.cursor == len(self.log)

    def close(self, patience_s: float = DEADLINE_S) -> int:
        try:
            return self.courier.close(patience_s)
        finally:
            self.log.close()


@contextlib.contextmanager
def actors(folder: Path, port: int, count: int, **changes: Any) -> Iterator[list[Actor]]:
    """``count`` of them; at the end none of theirs may be unsent."""
    some = [Actor(folder, port, log, **changes) for log in range(1, count + 1)]
    try:
        yield some
    finally:
        unsent = [actor.close() for actor in some]
    assert unsent == [0] * count


def resident_mb(pid: int) -> float:
    """Memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
