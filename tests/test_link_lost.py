"""What becomes of rows when a learner, its disk or its store is lost: none is, and the control loop never waits."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Iterator

import grpc
import pytest

from robot_rl.link import wire
from robot_rl.step_log import StepLog
from tests import links
from tests.links import STORE, Actor, all_rows, append, client_of, identity, refusal, served, serving, stored
from tests.ros_children import until
from tests.step_rows import LAYOUT, rows_of


@pytest.fixture(autouse=True)
def short_deadline(monkeypatch) -> None:
    monkeypatch.setattr(wire, "DEADLINE_S", 1.0)


server, client = links.server, links.client  # fixtures


def test_a_courier_that_was_silenced_says_why(tmp_path, server, client) -> None:
    actor = Actor(tmp_path, server.address.port)
    actor.act(20)
    until(lambda: actor.sent)
    client.join(identity(incarnation=2), LAYOUT)
    until(lambda: actor.courier.ended)
    assert isinstance(actor.courier.failure, ConnectionError) and "started again" in str(actor.courier.failure)
    actor.act(1)
    assert actor.close() == 1


def test_another_server_on_the_same_store_goes_on(tmp_path) -> None:
    with serving(tmp_path) as first:
        port = first.address.port
        some = [Actor(tmp_path, port, log) for log in (1, 2)]
        for actor in some:
            actor.act(40)
        until(lambda: all(actor.sent for actor in some))
        for actor in some:
            actor.act(3)
    for actor in some:
        actor.act(50)
    with serving(tmp_path, port) as second:
        until(lambda: all(actor.sent for actor in some))
        assert second.rows == 186 and [actor.close() for actor in some] == [0, 0]
    assert stored(tmp_path) == all_rows(93, 93)
    for actor in some:
        assert sum("no answer from the learner" in line for line in actor.said) == 1
        assert sum("answers again" in line for line in actor.said) == 1


def test_a_learner_with_an_empty_store_gets_everything_again(tmp_path) -> None:
    (tmp_path / "other").mkdir()
    with serving(tmp_path) as first:
        port = first.address.port
        actor = Actor(tmp_path, port)
        actor.act(40)
        until(lambda: actor.sent)
    with serving(tmp_path / "other", port) as second:
        until(lambda: second.rows == 40)
        actor.act(20)
        assert actor.close() == 0
    assert stored(tmp_path / "other") == all_rows(60)


def test_a_learner_that_has_more_than_the_log_is_not_written_over(tmp_path, server, client) -> None:
    """The actor's folder was put back to an older copy: what it does now is not what the learner has."""
    client.join(identity(), LAYOUT)
    append(client, identity(), rows_of(1, 12))
    actor = Actor(tmp_path, server.address.port, incarnation=2)
    until(lambda: actor.courier.ended)
    assert "put back to an older copy; give the actor another --out" in str(actor.courier.failure)
    actor.close()


@pytest.mark.parametrize("broken", ["append", "sync"])
def test_a_full_disk_at_the_learner_acknowledges_nothing_that_is_not_there(tmp_path, monkeypatch, broken) -> None:
    with serving(tmp_path / "full") as server:
        port = server.address.port
        three = [Actor(tmp_path, port, log) for log in (1, 2, 3)]
        real = getattr(StepLog, broken)

        def fail(self, *args):
            if self.path.name == STORE and len(self) > 30:
                raise OSError(errno.ENOSPC, f"the disk is full while writing {self.path}")
            return real(self, *args)

        monkeypatch.setattr(StepLog, broken, fail)
        for actor in three:
            actor.act(40)
        with pytest.raises(OSError, match="the disk is full"):
            until(lambda: server.rows < 0)
        assert server.wait_for_rows(10**9, 60.0)  # the learner's thread is woken
        until(lambda: all(actor.sent or any("cannot store steps" in line for line in actor.said) for actor in three))
        safe = {actor.number: actor.courier.cursor for actor in three}
        monkeypatch.setattr(StepLog, broken, real)
    there = stored(tmp_path / "full")
    for log, cursor in safe.items():
        assert there.get(log, b"").startswith(rows_of(log, cursor).tobytes())
    with serving(tmp_path / "full", port):  # with room again it goes on, and nothing is there twice
        assert [actor.close() for actor in three] == [0, 0, 0]
    assert stored(tmp_path / "full") == all_rows(40, 40, 40)


def test_after_a_failed_write_nothing_is_stored_until_the_store_is_read_anew(tmp_path, monkeypatch) -> None:
    """The rows whose ``sync`` failed may be in the file: written once more, they would be there twice."""
    rows, real = rows_of(1, 9), StepLog.sync
    with serving(tmp_path) as server:
        client = client_of(server.address.port)
        client.join(identity(), LAYOUT)
        assert append(client, identity(), rows[:3]) == 3

        def fail(log: StepLog) -> int:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(StepLog, "sync", fail)
        for healed in (False, False, True):
            if healed:
                monkeypatch.setattr(StepLog, "sync", real)
            code, words = refusal(append, client, identity(), rows[3:6])
            assert code is grpc.StatusCode.UNAVAILABLE and "cannot store steps: " in words
        client.close()
    with serving(tmp_path) as server:
        client = client_of(server.address.port)
        cursor = client.join(identity(incarnation=2), LAYOUT).cursor
        assert cursor in (3, 6) and append(client, identity(incarnation=2), rows[cursor:]) == 9
        client.close()
    assert stored(tmp_path) == all_rows(9)


@contextlib.contextmanager
def nobody() -> Iterator[int]:
    """A port where nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextlib.contextmanager
def silence(backlog: int = 8) -> Iterator[int]:
    """A port that takes connections, and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(backlog)
        yield listening.getsockname()[1]


@pytest.mark.parametrize("peer", [nobody, silence])
def test_a_control_loop_never_waits_for_a_learner_that_is_not_there(tmp_path, peer) -> None:
    with peer() as port:
        actor = Actor(tmp_path, port)
        actor.act(500)  # would take hours if each row waited for a deadline
        assert actor.courier.newest() is None and actor.courier.cursor == 0 and not actor.courier.ended
        until(lambda: actor.courier.retries)
        assert actor.close(patience_s=0.1) == 500
    assert StepLog(tmp_path / "log1.zarr").read(0, 500, verify=True).tobytes() == rows_of(1, 500).tobytes()


def test_a_control_loop_never_waits_for_a_learner_that_is_stopped(tmp_path) -> None:
    with served(tmp_path / "learner") as (process, port):
        actor = Actor(tmp_path, port)
        actor.act(30)
        until(lambda: actor.sent)
        process.send_signal(signal.SIGSTOP)
        retries = actor.courier.retries
        until(lambda: (actor.act(10), actor.courier.newest(), actor.courier.retries > retries)[-1])
        count = len(actor.log)
        assert count > 30 + actor.courier.retries and actor.courier.cursor < count
        process.send_signal(signal.SIGCONT)
        until(lambda: actor.sent)
        assert actor.close() == 0
    assert stored(tmp_path / "learner") == all_rows(count)


def test_what_is_unsent_is_told_at_the_end_and_sent_by_the_next(tmp_path) -> None:
    with serving(tmp_path) as server:
        port = server.address.port
        actor = Actor(tmp_path, port)
        actor.act(20)
        until(lambda: actor.sent)
    actor.act(13)
    assert actor.close(patience_s=0.1) == 13
    with serving(tmp_path, port):
        again = Actor(tmp_path, port, incarnation=2)
        assert again.close() == 0
    assert stored(tmp_path) == all_rows(33)


def test_rows_are_safe_and_files_few_while_no_learner_lets_an_actor_join(tmp_path) -> None:
    """Its own disk is kept in step whoever answers."""
    with silence() as port:
        actor = Actor(tmp_path, port)
        before = len(os.listdir("/proc/self/fd"))
        actor.act(200)
        until(lambda: actor.log._synced == 200)
        assert len(os.listdir("/proc/self/fd")) <= before + 8
        actor.close(patience_s=0.1)
