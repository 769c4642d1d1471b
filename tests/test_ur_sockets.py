"""The UR5e twin behind RTDE, over raw sockets."""

import socket
from types import SimpleNamespace

import numpy as np
import pytest

from robot_rl.config import override
from sim.protocols import _rtde_messages as rtde
from sim.protocols import ur_rtde
from sim.protocols._robotiq import Gripper
from sim.protocols._ur_dashboard import Runtime
from tests.ur_robot import PROGRAM, NoServer, Robot

# ------------------------------------------------------------------------------------------------------------- sockets


class Raw:
    """A client of our own codec; the server runs in the same thread, when we say so."""

    def __init__(self, robot: Robot, port: int = 30004) -> None:
        self.server = robot.server
        self.socket = socket.create_connection((robot.server.host, port))
        self.received = bytearray()

    def send(self, *messages: bytes) -> None:
        self.socket.sendall(b"".join(messages))
        for _ in range(3):
            self.server.serve_sockets(0.02)

    def take(self) -> list[tuple[int, bytes]]:
        self.socket.setblocking(False)
        try:
            while some := self.socket.recv(1 << 20):
                self.received += some
        except BlockingIOError:
            pass
        return rtde.take(self.received)

    def ask(self, *messages: bytes) -> list[tuple[int, bytes]]:
        self.send(*messages)
        return self.take()

    def closed(self) -> bool:
        self.socket.setblocking(True)
        self.socket.settimeout(5.0)
        while some := self.socket.recv(1 << 16):
            self.received += some
        return True


@pytest.fixture
def connect():
    made = []

    def make(robot, port=30004):
        made.append(Raw(robot, port))
        robot.server.serve_sockets(0.1)
        return made[-1]

    yield make
    for client in made:
        client.socket.close()


def test_a_client_sets_up_and_listens(robot, connect):
    client = connect(robot)
    assert client.ask(rtde.pack_protocol(2)) == [(rtde.REQUEST_PROTOCOL, b"\x01")]
    assert rtde.unpack_version(client.ask(rtde.pack(rtde.GET_VERSION))[0][1]) == (5, 26, 0, 1234567)
    ((kind, payload),) = client.ask(rtde.pack_outputs(["timestamp", "actual_q"], 125.0))
    assert (kind, rtde.unpack_types(payload)) == (rtde.SETUP_OUTPUTS, (1, ["DOUBLE", "VECTOR6D"]))
    messages = client.ask(rtde.pack(rtde.START))
    assert messages[0] == (rtde.START, b"\x01")
    robot.tick(40)
    packages = [payload for kind, payload in client.take() if kind == rtde.DATA]
    recipe = rtde.Recipe(1, ["timestamp", "actual_q"], ["DOUBLE", "VECTOR6D"])
    times = [recipe.unpack(payload)[0] for payload in packages]
    np.testing.assert_allclose(np.diff(times), 0.008)
    np.testing.assert_allclose(recipe.unpack(packages[-1])[1], robot.arm.state.q_rad, atol=1e-6)
    assert client.ask(rtde.pack(rtde.PAUSE)) == [(rtde.PAUSE, b"\x01")]
    robot.tick(40)
    assert client.take() == []


def test_protocol_1_has_no_frequency_and_no_recipe_id(robot, connect):
    client = connect(robot)
    assert client.ask(rtde.pack_outputs(["timestamp"])) == [(rtde.SETUP_OUTPUTS, b"DOUBLE")]
    client.ask(rtde.pack(rtde.START))
    robot.tick(4)
    (_, payload), *_ = [message for message in client.take() if message[0] == rtde.DATA]
    assert len(payload) == 8


def test_an_input_belongs_to_one_client(robot, connect):
    first, second = connect(robot), connect(robot)
    for client in (first, second):
        client.ask(rtde.pack_protocol(2))
    assert first.ask(rtde.pack_inputs(["input_int_register_24"])) == [(rtde.SETUP_INPUTS, b"\x01INT32")]
    assert first.ask(rtde.pack_inputs(["input_int_register_24", "speed_slider_mask"])) == [
        (rtde.SETUP_INPUTS, b"\x02INT32,UINT32")
    ]
    assert second.ask(rtde.pack_inputs(["input_int_register_24"])) == [(rtde.SETUP_INPUTS, b"\x00IN_USE")]
    assert second.ask(rtde.pack_inputs(["input_int_register_99", "input_int_register_25"])) == [
        (rtde.SETUP_INPUTS, b"\x00NOT_FOUND,INT32")
    ]
    first.send(rtde.Recipe(1, ["input_int_register_24"], ["INT32"]).pack([-7]))
    assert robot.value("input_int_register_24") == -7
    first.socket.close()
    robot.server.serve_sockets(0.1)
    assert second.ask(rtde.pack_inputs(["input_int_register_24"])) == [(rtde.SETUP_INPUTS, b"\x01INT32")]


def test_what_the_controller_does_not_know_or_take(robot, connect):
    client = connect(robot)
    assert client.ask(rtde.pack_protocol(3)) == [(rtde.REQUEST_PROTOCOL, b"\x00")]
    client.ask(rtde.pack_protocol(2))
    ((_, payload),) = client.ask(rtde.pack_outputs(["timestamp", "mood"], 500.0))
    assert payload == b"\x00DOUBLE,NOT_FOUND"
    names = ["timestamp"] * 205
    assert len(",".join(names)) > rtde.NAMES_MAX_BYTES
    ((_, payload),) = client.ask(rtde.pack_outputs(names, 500.0))
    assert rtde.unpack_types(payload) == (0, ["NOT_FOUND"] * 205)
    client.send(b"\x00\x03Z")
    assert client.closed(), "a message that is none ends the connection"


def test_a_wrong_controller_can_be_had(robot, connect):
    robot.server.faults()["wrong_version"](version="3.2.0.0")
    client = connect(robot)
    assert client.ask(rtde.pack_protocol(2)) == [(rtde.REQUEST_PROTOCOL, b"\x00")]
    assert rtde.unpack_version(client.ask(rtde.pack(rtde.GET_VERSION))[0][1])[:2] == (3, 2)


def listening(robot, connect):
    client = connect(robot)
    client.ask(rtde.pack_protocol(2), rtde.pack_outputs(["timestamp"], 500.0), rtde.pack(rtde.START))
    return client


def test_a_half_open_network_says_nothing_and_closes_nothing(robot, connect):
    client = listening(robot, connect)
    robot.server.faults()["half_open"]()
    robot.tick(50)
    assert client.ask(rtde.pack(rtde.GET_VERSION)) == []
    robot.server.faults()["half_open"](on=False)
    robot.tick(2)
    assert client.take()


def test_a_slow_network_is_late(robot, connect):
    client = listening(robot, connect)
    robot.server.faults()["delay"](seconds=0.1)
    began_s = robot.server.t_s
    robot.tick(60)
    times = [struct_time(payload) for kind, payload in client.take() if kind == rtde.DATA]
    assert times[-1] == pytest.approx(robot.server.t_s - 0.1) and times[0] >= began_s


def struct_time(payload: bytes) -> float:
    return rtde.Recipe(1, ["timestamp"], ["DOUBLE"]).unpack(payload)[0]


def test_a_pulled_cable_closes_everything_and_the_program_runs_on(robot, connect):
    client, dashboard = listening(robot, connect), connect(robot, 29999)
    robot.server.faults()["drop"]()
    assert client.closed() and dashboard.closed()
    assert robot.machine.runtime == Runtime.PLAYING and not robot.server.rtde.clients


def test_a_program_comes_in_through_its_port(robot, connect):
    robot.server.run_script("stop program\n")
    connect(robot, 30003).send(PROGRAM.encode())
    assert robot.machine.runtime == Runtime.PLAYING
    connect(robot, 30001).send(b"stop program\n")
    assert robot.machine.runtime == Runtime.STOPPED


def test_the_dashboard_greets_and_quits(robot, connect):
    client = connect(robot, 29999)
    client.send(b"robotmode\nQUIT\n")
    assert client.closed()
    assert bytes(client.received) == b"Connected: Universal Robots Dashboard Server\nRobotmode: RUNNING\nDisconnected\n"


def test_a_gripper_closes_on_nothing_and_on_something():
    gripper = Gripper(NoServer(), 0.05, 0.0)
    assert gripper.answer("GET POS") == "POS 0\n" and gripper.answer("GET STA") == "STA 3\n"
    assert gripper.answer("SET POS 255 SPE 255 FOR 100 GTO 1") == "ack" and gripper.answer("GET PRE") == "PRE 255\n"
    reading = 0.0
    for _ in range(100):
        reading = gripper.tick(reading, 0.002)
    assert gripper.answer("GET OBJ") == "OBJ 0\n" and 0.0 < reading < 1.0
    held = reading
    for _ in range(200):
        gripper.tick(held, 0.002)
    assert gripper.answer("GET OBJ") == "OBJ 2\n", "closing, it is held up"
    for _ in range(200):
        reading = gripper.tick(1.0, 0.002)
    assert reading == 1.0 and gripper.answer("GET OBJ") == "OBJ 3\n"
    assert gripper.answer("SET POS 300") == "?\n" and gripper.answer("GET NIX") == "NIX ?\n"
    gripper.answer("SET ACT 0")
    assert gripper.answer("GET STA") == "STA 0\n"


def test_in_lockstep_a_servo_command_lasts_as_long_as_it_said(robot):
    server = robot.server
    server.lockstep = True
    server.rtde.clients.append(SimpleNamespace(started=False, unsent=b"", waiting=()))
    assert server.answered()
    robot.put(11, [*robot.arm.state.q_rad, 0, 0, 0.008, 0.1, 300.0])
    ticks = 0
    while server.answered() and ticks < 50:
        robot.tick()
        ticks += 1
    assert ticks == 4
    robot.put(11, [*robot.arm.state.q_rad, 0, 0, 0.002, 0.1, 300.0])
    assert server.answered()
    robot.tick()
    assert not server.answered()
    server.rtde.clients.clear()
    assert server.answered(), "nobody is left to wait for"


@pytest.mark.parametrize(
    "given", ["version=5", "version=5.x", "serial=A1", "tcp=0,0,1", "stop_force_n=0", "ft_bias=0,0,0,0,0,nan"]
)
def test_a_wrong_setting_is_refused(given):
    with pytest.raises(ValueError, match=given.partition("=")[0]):
        override(ur_rtde.Config(), [given])
