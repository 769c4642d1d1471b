"""What the protocols of served twins share: the pace of time, the door, and how it all ends."""

import socket
import threading
import time

import numpy as np
import pytest

from controllers import door
from robot_rl.build import make_configs
from robot_rl.find import find
from robot_rl.types import Pose
from sim.protocols._server import Server
from tests.ros_children import until
from tests.served import address, threaded

PORT = 31999
HOLE = [0.5, 0.05, 0.0, 0.0, 0.0, 0.0, 1.0]


class Echo(Server):
    """A protocol of one byte: the client answers each tick, and a tick waits for it in lock-step."""

    def __init__(self, twin, host, lockstep=False):
        super().__init__(twin, host, 0.001, lockstep)
        self.client, self.waits_for = None, 0
        self.caused: list[int] = []
        self.listen(PORT, self.accept)

    def accept(self, connection):
        self.client = connection

        def on_readable():
            try:
                got = connection.recv(100)
            except ConnectionResetError:  # of a client that had not read everything
                got = b""
            if not got:
                self.client, self.waits_for = None, 0
                self.drop(connection)
            self.waits_for -= len(got)

        self.watch(connection, on_readable)

    def answered(self):
        return self.waits_for <= 0

    def tick(self):
        self.twin.drive(np.zeros(self.twin.limits.dof), 1.0)
        if self.client is not None:
            self.waits_for += 1
            self.client.sendall(b".")

    def faults(self):
        return {"number": lambda value: self.caused.append(value)}


@pytest.fixture
def served():
    """Make a server that runs in a thread; all of them are closed at the end."""
    with threaded() as run:

        def make(**how):
            config = make_configs("peg_insert", "fr3")
            task = find("tasks", "peg_insert").make(config["task"])
            server = Echo(find("sim", "fr3").make(config["arm"], task.scene), address(), **how)
            server.twin.drive(np.zeros(server.twin.limits.dof), 0.0)  # compiles it: the door waits for 10 s only
            server.twin.place(task.reset(np.random.default_rng(0)))
            return run(server)

        yield make


def test_time_passes_by_the_clock(served):
    server = served()
    until(lambda: server.t_s > 0.05)
    at_the_door = door.Door(server.host)
    at_the_door.hold()  # else a tick may come between the two numbers
    assert server.ticks == round(server.t_s / 0.001)
    at_the_door.close()


def test_lock_step_waits_for_every_answer(served):
    server = served(lockstep=True)
    with socket.create_connection((server.host, PORT)) as client:
        until(lambda: server.client)
        assert client.recv(1) == b"."
        until(lambda: server.waits_for == 1)
        before = server.ticks
        time.sleep(0.05)
        assert server.ticks == before
        for _ in range(10):
            client.sendall(b".")
            assert client.recv(1) == b"."
        assert server.ticks == before + 10
    until(lambda: server.ticks > before + 20)  # nobody is left to wait for


def test_time_that_is_held_passes_in_advance_only(served):
    server = served()
    at_the_door = door.Door(server.host)
    held_s = at_the_door.hold()
    time.sleep(0.03)
    assert at_the_door.truth()["t_s"] == held_s
    assert at_the_door.advance(25) == pytest.approx(held_s + 0.025, abs=1e-9)
    other = door.Door(server.host)
    with pytest.raises(ValueError, match="someone else holds time"):
        other.hold()
    with pytest.raises(ValueError, match="hold time first"):
        other.advance(1)
    with pytest.raises(ValueError, match=r"give a number in \[1"):
        at_the_door.advance(0)
    other.close()
    at_the_door.close()  # as when its process dies: time goes on
    until(lambda: server.t_s > held_s + 0.1)


def test_advance_is_answered_once_the_client_has_spoken(served):
    server = served()
    with socket.create_connection((server.host, PORT)) as client:
        until(lambda: server.client)
        at_the_door = door.Door(server.host)
        at_the_door.hold()
        client.settimeout(0.2)
        owed = 0  # where time was held before the first tick, it stays so
        with pytest.raises(TimeoutError):
            while True:
                owed += len(client.recv(10000))
        client.settimeout(10.0)
        client.sendall(b"." * owed)
        until(server.answered)
        answers = []
        waiting = threading.Thread(target=lambda: answers.append(at_the_door.advance(1)))
        waiting.start()
        assert client.recv(1) == b"."
        waiting.join(0.05)
        assert waiting.is_alive() and not answers
        client.sendall(b".")
        waiting.join(10.0)
        assert answers == [server.t_s]
        at_the_door.close()


def test_the_door_tells_the_truth_and_moves_the_world(served):
    server = served()
    at_the_door = door.Door(server.host)
    at_the_door.hold()
    truth = at_the_door.truth()
    state = server.twin.read()
    np.testing.assert_array_equal(truth["tcp"], [*state.tcp_pos_m, *state.tcp_quat_xyzw])
    np.testing.assert_array_equal(truth["q_rad"], state.q_rad)
    hole = Pose(np.array(HOLE[:3]), np.array(HOLE[3:]))
    at_the_door.place_props({"hole": hole})
    np.testing.assert_allclose(at_the_door.props()["prop/hole"], HOLE)
    q_rad = at_the_door.truth()["q_rad"]
    np.testing.assert_array_equal(q_rad, truth["q_rad"])
    lifted = [truth["tcp"][0], truth["tcp"][1], truth["tcp"][2] + 0.05, *truth["tcp"][3:]]
    answer = at_the_door.ask("place", tcp=lifted, gripper=1.0, props={"hole": HOLE})
    assert answer["t_s"] == truth["t_s"]  # a new world does not set the robot's clock back
    np.testing.assert_allclose(at_the_door.truth()["tcp"][:3], lifted[:3], atol=1e-6)
    at_the_door.close()


def test_a_fault_is_caused_with_its_numbers(served):
    server = served()
    at_the_door = door.Door(server.host)
    at_the_door.cause("number", value=7)
    assert server.caused == [7]
    at_the_door.close()


@pytest.mark.parametrize(
    ("request_line", "says"),
    [
        ({"do": "dance"}, "unknown request 'dance': there is"),
        ({"do": "props", "props": {"moon": HOLE}}, "props names 'moon'"),
        ({"do": "props", "props": {"hole": HOLE[:3]}}, "give 7 finite numbers"),
        ({"do": "props", "props": {"hole": [*HOLE[:6], 2.0]}}, "norm 2, give 1"),
        ({"do": "props", "props": {"hole": [float("nan"), *HOLE[1:]]}}, "give 7 finite numbers"),
        ({"do": "advance", "much": 3}, "unexpected keyword"),
        ({"do": "cause", "fault": "flood"}, "unknown fault 'flood': there is number"),
    ],
)
def test_a_request_that_cannot_be_met_is_answered(served, request_line, says):
    server = served()
    at_the_door = door.Door(server.host)
    before = at_the_door.truth()["props"]
    with pytest.raises(ValueError, match=says):
        at_the_door.ask(**request_line)
    assert at_the_door.truth()["props"] == before
    at_the_door.close()


def test_garbage_at_the_door_is_answered_and_does_no_harm(served):
    server = served()
    with socket.create_connection((server.host, door.PORT)) as stranger:
        stranger.sendall(b"\x00\xff{\n[]\n17\n")
        lines = stranger.makefile("rb")
        assert all(b"error" in lines.readline() for _ in range(3))
    before = server.ticks
    until(lambda: server.ticks > before)


def test_nobody_at_the_door_is_said():
    with pytest.raises(ConnectionError, match=r"no twin behind .*: start one with robot-rl twin serve"):
        door.Door(address())


def test_what_is_no_twin_at_the_door_is_said():
    with socket.create_server((address(), door.PORT)) as listener:
        stranger = door.Door(listener.getsockname()[0])
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n")
            with pytest.raises(ConnectionError, match="no twin: is the address right"):
                stranger.hold()
        stranger.close()


def test_an_address_that_is_taken_is_named(served):
    server = served()
    with pytest.raises(OSError, match=f"cannot serve at {server.host}:.*Give this one another --address"):
        Echo(server.twin, server.host)
