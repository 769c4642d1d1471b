"""Actors and a learner over a real socket: every row arrives once and in order, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
import re
import threading

import grpc
import numpy as np
import pytest

from robot_rl.link import link_pb2 as pb
from robot_rl.link import server as servers
from robot_rl.link import wire
from robot_rl.link.client import described
from robot_rl.step_log import Layout
from tests import links
from tests.links import RUN, Actor, actors, all_rows, append, client_of, identity, refusal, serving, stored
from tests.ros_children import until
from tests.step_rows import EPISODE, LAYOUT, rows_of

server, client = links.server, links.client  # fixtures


def test_rows_of_three_actors_arrive_byte_for_byte(tmp_path, server) -> None:
    with actors(tmp_path, server.address.port, 3) as three:
        threads = [threading.Thread(target=actor.act, args=(100 + actor.number,)) for actor in three]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        until(lambda: all(actor.sent for actor in three))
        assert server.rows == 306 and set(server.present) == {"actor1", "actor2", "actor3"}
    assert stored(tmp_path) == all_rows(101, 102, 103)
    assert server.refused == 0


def test_the_learner_says_what_it_trains(server, client) -> None:
    assert described(client, pytest.fail, pytest.fail) == {"task": "reach", "run": RUN}
    assert client._call("Describe", pb.DescribeRequest(schema=wire.SCHEMA), 5.0)
    code, words = refusal(client._call, "Describe", pb.DescribeRequest(schema=wire.SCHEMA + 1), 5.0)
    assert code is grpc.StatusCode.FAILED_PRECONDITION and "install the same robot-rl on both" in words


@pytest.mark.parametrize("seed", range(3))
def test_messages_again_and_overlapping_are_stored_once(tmp_path, server, client, seed) -> None:
    rows, rng, who = rows_of(1, 60), np.random.default_rng(seed), identity()
    cursor = client.join(who, LAYOUT).cursor
    while cursor < len(rows):
        first = int(rng.integers(max(0, cursor - 12), cursor + 1))
        part = rows[first : first + int(rng.integers(1, 20))]
        assert append(client, who, part) == max(cursor, first + len(part))
        cursor = max(cursor, first + len(part))
        assert client.join(who, LAYOUT).cursor == cursor
    assert stored(tmp_path) == all_rows(60) and server.rows == 60


def test_a_gap_is_answered_with_where_to_go_on(tmp_path, server, client) -> None:
    who = identity()
    client.join(who, LAYOUT)
    append(client, who, rows_of(1, 7))
    code, words = refusal(append, client, who, rows_of(1, 3, 8))
    assert code is grpc.StatusCode.OUT_OF_RANGE and "go on with row 7" in words
    assert append(client, who, rows_of(1, 3, 7)) == 10
    assert stored(tmp_path) == all_rows(10)


OTHER = Layout({**LAYOUT.observation, "state": ((4,), "float32")}, 2, LAYOUT.extra)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"schema": 1}, grpc.StatusCode.FAILED_PRECONDITION, "speaks version 1 .* learner 2: install the same"),
        ({"run": "other"}, grpc.StatusCode.FAILED_PRECONDITION, "run 'other', this learner's run is 'a1b2': .*--out"),
        ({"actor": ""}, grpc.StatusCode.INVALID_ARGUMENT, "name has 1 to 64"),
        ({"actor": "x" * 65}, grpc.StatusCode.INVALID_ARGUMENT, "name has 1 to 64"),
        ({"actor": "a\nb"}, grpc.StatusCode.INVALID_ARGUMENT, "name has 1 to 64"),
        (
            {"layout": OTHER},
            grpc.StatusCode.FAILED_PRECONDITION,
            r"'state' is \[\[4\], 'float32'\] there.*same version",
        ),
        ({"layout": "[" * 50_000}, grpc.StatusCode.INVALID_ARGUMENT, "recursion"),
        ({"layout": " " * 80_000}, grpc.StatusCode.INVALID_ARGUMENT, "at most"),
        ({"layout": "{"}, grpc.StatusCode.INVALID_ARGUMENT, "Expecting"),
        ({"layout": '{"action_dim": 1e999}'}, grpc.StatusCode.INVALID_ARGUMENT, "not a layout"),
    ],
)
def test_who_may_not_join(server, client, change, code, words) -> None:
    layout = change.get("layout", LAYOUT)
    sender = identity().message()
    for name, value in change.items() if "layout" not in change else ():
        setattr(sender, name, value)
    text = layout if isinstance(layout, str) else json.dumps(layout.as_json())
    got, said = refusal(client._call, "Join", pb.JoinRequest(sender=sender, layout=text), 5.0)
    assert got is code and re.search(words, said), said
    assert server.refused == 1


def test_only_who_has_joined_is_heard(tmp_path, server, client) -> None:
    for call in (lambda who: append(client, who, rows_of(1, 1)), lambda who: next(client.follow(who)[0])):
        code, words = refusal(call, identity())
        assert code is grpc.StatusCode.NOT_FOUND and "join first" in words
    client.join(identity(1), LAYOUT)
    assert refusal(append, client, identity(2), rows_of(2, 1))[0] is grpc.StatusCode.NOT_FOUND
    code, words = refusal(append, client, identity(1), rows_of(2, 1))
    assert code is grpc.StatusCode.INVALID_ARGUMENT and "of another log" in words
    assert stored(tmp_path) == {}


def test_a_newer_incarnation_silences_the_older(tmp_path, server, client) -> None:
    old, new = identity(incarnation=1), identity(incarnation=2)
    client.join(old, LAYOUT)
    append(client, old, rows_of(1, 3))
    news = client.follow(old)[0]
    next(news)
    assert client.join(new, LAYOUT).cursor == 3
    assert not [item for item in news if item.policy]  # it ends
    for call in (lambda: append(client, old, rows_of(1, 2, 3)), lambda: client.join(old, LAYOUT)):
        code, words = refusal(call)
        assert code is grpc.StatusCode.ABORTED and "only the newer one is heard" in words
    assert refusal(lambda: next(client.follow(old)[0]))[0] is grpc.StatusCode.ABORTED
    assert append(client, new, rows_of(1, 2, 3)) == 5
    assert stored(tmp_path) == all_rows(5)


def test_one_name_is_one_actors(server, client, monkeypatch) -> None:
    client.join(identity(1, actor="left"), LAYOUT)
    code, words = refusal(client.join, identity(2, actor="left"), LAYOUT)
    assert code is grpc.StatusCode.FAILED_PRECONDITION and "another --index" in words
    client.join(identity(2, actor="right"), LAYOUT)
    monkeypatch.setattr(servers, "SILENT_S", 0.0)  # as if it had been silent for long
    client.join(identity(3, actor="left"), LAYOUT)


def test_actors_that_are_gone_make_place_for_others(tmp_path, server, client, monkeypatch) -> None:
    monkeypatch.setattr(servers, "CONNECTIONS", 3)
    for log in (1, 2, 3):
        client.join(identity(log), LAYOUT)
    append(client, identity(1), rows_of(1, 4))
    code, words = refusal(client.join, identity(4), LAYOUT)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "there are 3 actors" in words
    news = client.follow(identity(2))[0]
    next(news)
    monkeypatch.setattr(servers, "SILENT_S", 0.0)
    client.join(identity(4), LAYOUT)
    monkeypatch.setattr(servers, "SILENT_S", 60.0)
    assert set(server.present) == {"actor2", "actor4"}  # who follows is there
    assert client.join(identity(1), LAYOUT).cursor == 4 and append(client, identity(1), rows_of(1, 2, 4)) == 6
    assert stored(tmp_path) == all_rows(6)


def test_a_learner_that_is_behind_holds_rows_back_and_loses_none(tmp_path, server, monkeypatch) -> None:
    monkeypatch.setattr(servers, "BEHIND_ROWS", 20)
    monkeypatch.setattr(wire, "APPEND_BYTES", 4 * LAYOUT.dtype.itemsize)
    with actors(tmp_path, server.address.port, 2) as two:
        for actor in two:
            actor.act(100)
        until(lambda: server.refused > 3)
        assert 20 < server.rows <= 20 + 2 * 4
        most = 0
        while server.rows < 200:
            assert server.wait_for_rows(server.rows, 5.0) or server.refused
            most = max(most, server.rows - server._learned)
            server.allow(0, server.rows)
        assert most <= 20 + 2 * 4
        until(lambda: all(actor.sent for actor in two))
    assert stored(tmp_path) == all_rows(100, 100)
    assert all(actor.courier.retries and not actor.said for actor in two)  # it is nothing to worry about


def test_an_actor_whose_rows_wait_for_the_disk_is_not_forgotten(tmp_path, server, client, monkeypatch) -> None:
    monkeypatch.setattr(servers, "CONNECTIONS", 1)
    writing, free = threading.Event(), threading.Event()
    real = server._store.append
    monkeypatch.setattr(server._store, "append", lambda rows: (writing.set(), free.wait(), real(rows)))
    client.join(identity(1), LAYOUT)
    thread = threading.Thread(target=append, args=(client, identity(1), rows_of(1, 4)))
    thread.start()
    writing.wait()
    monkeypatch.setattr(servers, "SILENT_S", 0.0)
    other = client_of(server.address.port)
    try:
        assert refusal(other.join, identity(2), LAYOUT)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    finally:
        free.set()
        thread.join()
    until(lambda: joins(other, 2))
    monkeypatch.setattr(servers, "CONNECTIONS", 2)
    assert other.join(identity(1), LAYOUT).cursor == 4
    other.close()


def joins(client, log: int) -> bool:
    try:
        return client.join(identity(log), LAYOUT) is not None
    except grpc.RpcError:
        return False


def policy(version: int, size: int = 3) -> dict[str, np.ndarray]:
    return {"weights": np.full(size, version, np.float32)}


def test_the_newest_policy_wins(tmp_path, server) -> None:
    with actors(tmp_path, server.address.port, 1) as (actor,):
        courier = actor.courier
        assert courier.newest() is None
        for version in range(1, 6):
            server.publish(version, 10 * version, policy(version))
            until(lambda version=version: courier._policy is not None and courier._policy.version == version)
        newest = courier.newest()
        assert (newest.version, newest.env_steps, newest.arrays["weights"].tolist()) == (5, 50, [5.0] * 3)
        assert courier.newest() is None and courier.superseded == 4
        server.publish(2, 1, policy(2))  # of a learner that was put back
        assert until(courier.newest).version == 2 and courier.superseded == 4


def test_a_policy_is_sent_once(server, client) -> None:
    client.join(identity(), LAYOUT)
    server.publish(1, 10, policy(1))
    news = client.follow(identity())[0]
    first = next(news)
    assert (first.version, len(first.policy), first.stop) == (1, 1, False)
    server.stop_actors()
    again = next(item for item in news if item.stop or item.policy)
    assert (again.version, len(again.policy), again.stop) == (0, 0, True)


def turn(server) -> None:
    """Let the event loop do what it has to do."""
    for _ in range(5):
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.002), server._loop).result()


def test_a_slow_follower_gets_no_queue_of_policies_and_keeps_nobody_waiting(server, client) -> None:
    client.join(identity(1), LAYOUT)
    news = client.follow(identity(1))[0]
    next(news)
    for version in range(1, 41):  # 80 MB of them, none of which is read
        server.publish(version, version, policy(version, 1 << 19))
        turn(server)
    got = []
    while not got or got[-1] != 40:
        if item := next(news).version:
            got.append(item)
    assert got == sorted(set(got)) and len(got) < 15


def test_grants_share_what_is_allowed(tmp_path) -> None:
    with serving(tmp_path, paced=True) as server, actors(tmp_path, server.address.port, 3) as three:
        couriers_ = [actor.courier for actor in three]
        until(lambda: all(courier.heard for courier in couriers_))
        for allowed, lasting in ((0, 0), (10, 12), (11, 12), (100, 102)):
            server.allow(allowed, 0)
            until(lambda lasting=lasting: sum(courier.granted for courier in couriers_) == lasting)
        three[0].act(5 * (EPISODE + 1))
        until(lambda: three[0].sent)
        until(lambda: 100 <= sum(courier.granted for courier in couriers_) <= 102 and couriers_[0].granted == 47)
    with serving(tmp_path) as server, actors(tmp_path, server.address.port, 1, incarnation=2) as (one,):
        until(lambda: one.courier.heard)
        assert one.courier.granted == wire.UNLIMITED


def test_paced_actors_take_what_is_allowed_and_little_more(tmp_path) -> None:
    """Each goes as far as it may as fast as it can, while the learner allows more and more."""
    lead, count = 40, 3
    with serving(tmp_path, paced=True) as server, actors(tmp_path, server.address.port, count) as three:
        ended = threading.Event()

        def play(actor: Actor) -> None:
            courier = actor.courier
            while not ended.is_set():
                if actor.steps < courier.granted:
                    actor.act(1)
                else:
                    courier.notify(flush=True)
                    courier.wait_for(lambda: actor.steps < courier.granted, 0.05)

        threads = [threading.Thread(target=play, args=(actor,)) for actor in three]
        [thread.start() for thread in threads]
        for allowed in range(lead, 300, 20):
            server.allow(allowed, server.rows)
            until(lambda allowed=allowed: sum(log.steps for log in server._logs.values()) >= allowed)
            assert sum(actor.steps for actor in three) <= allowed + lead + count
        ended.set()
        [thread.join() for thread in threads]


def test_stop_reaches_actors_by_both_ways(tmp_path, server, client) -> None:
    client.join(identity(9), LAYOUT)
    with actors(tmp_path, server.address.port, 2) as two:
        until(lambda: all(actor.courier.heard for actor in two))
        assert server.following == 2 and not any(actor.courier.ended for actor in two)
        server.stop_actors()
        until(lambda: all(actor.courier.stop for actor in two))
        assert all(actor.courier.ended and actor.courier.failure is None for actor in two)
    until(lambda: not server.following)
    assert client.append(identity(9), 0, 0, b"", pb.Health()).stop
