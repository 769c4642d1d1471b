"""The UR5e twin and unmodified ur_rtde, over loopback. The twin is a process of its own: ur_rtde's constructors keep
Python's lock while they wait."""

import contextlib
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from dashboard_client import DashboardClient
from rtde_control import RTDEControlInterface
from rtde_io import RTDEIOInterface
from rtde_receive import RTDEReceiveInterface

from tests.ros_children import PATIENCE_S
from tests.served import serve

QUICK = ("protocol.unlock_after_s=0.2", "protocol.boot_s=0.05")


def until(condition) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.005)


class Clients:
    """What a program that controls a UR has open."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.receive = RTDEReceiveInterface(host)
        self.control = RTDEControlInterface(host)
        self.dashboard = DashboardClient(host)
        self.dashboard.connect()

    @property
    def pose(self) -> np.ndarray:
        return np.array(self.receive.getActualTCPPose())

    def close(self) -> None:
        self.control.disconnect()
        self.receive.disconnect()
        self.dashboard.disconnect()

    def ready(self) -> None:
        """As a person would make it, whatever a test has left."""
        self.dashboard.closeSafetyPopup()
        until(lambda: not self.receive.isProtectiveStopped() or self.unlocked())
        self.dashboard.brakeRelease()
        until(lambda: self.receive.getRobotMode() == 7)
        self.control.reuploadScript()
        until(self.control.isProgramRunning)

    def unlocked(self) -> bool:
        with contextlib.suppress(RuntimeError, ValueError):  # too soon
            self.dashboard.unlockProtectiveStop()
        return not self.receive.isProtectiveStopped()


@pytest.fixture(scope="module")
def twin():
    with serve("rtde", settings=QUICK) as served:
        yield served


@pytest.fixture(scope="module")
def connected(twin):
    clients = Clients(twin.host)
    yield clients
    clients.close()


@pytest.fixture
def robot(connected, twin):
    connected.ready()
    return connected


@pytest.fixture
def door(twin):
    return twin.door()


def test_moves_arrive_and_kinematics_agree(robot, door):
    q = np.array(robot.receive.getActualQ())
    assert robot.control.moveJ((q + [0.1, 0, 0, 0, 0, 0]).tolist(), 1.0, 2.0)
    goal = robot.pose + [0, 0, 0.05, 0, 0, 0]
    assert robot.control.moveL(goal.tolist(), 0.25, 1.0)
    until(lambda: np.allclose(robot.pose, goal, rtol=0.0, atol=1e-4))  # the receiver's newest state is a little older
    truth = door.truth()
    np.testing.assert_allclose(robot.control.getForwardKinematics()[:3], truth["tcp"][:3], atol=1e-5)
    found = robot.control.getInverseKinematics(goal.tolist(), truth["q_rad"])
    np.testing.assert_allclose(robot.control.getForwardKinematics(found, [0, 0, 0.1577, 0, 0, 0]), goal, atol=1e-8)
    assert robot.control.isPoseWithinSafetyLimits(goal.tolist())
    assert not robot.control.isPoseWithinSafetyLimits([2.0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(robot.control.getTCPOffset(), [0, 0, 0.1577, 0, 0, 0])
    until(lambda: robot.control.getMassMatrix()[0] > 0.1)  # at times ur_rtde returns before the answer is there
    assert robot.control.moveL((goal + [0.02, 0, 0, 0, 0, 0]).tolist(), 0.1, 1.0, True)
    until(lambda: robot.control.getAsyncOperationProgress() < 0)
    until(robot.control.isSteady)
    until(lambda: robot.pose[0] == pytest.approx(goal[0] + 0.02, abs=1e-4))


def test_force_mode_presses(robot):
    goal = robot.pose
    goal[1], goal[2] = 0.15, 0.045
    robot.control.moveL((goal + [0, 0, 0.08, 0, 0, 0]).tolist(), 0.5, 2.0)
    robot.control.moveL([*goal[:3], np.pi, 0, 0], 0.25, 1.0)
    assert robot.control.zeroFtSensor()
    frame, axes, limits = [0.0] * 6, [0, 0, 1, 0, 0, 0], [2.0, 2.0, 0.05, 1.0, 1.0, 1.0]
    assert robot.control.forceMode(frame, axes, [0.0, 0.0, -10.0, 0.0, 0.0, 0.0], 2, limits)
    until(lambda: robot.receive.getActualTCPForce()[2] == pytest.approx(10.0, abs=0.5))
    assert robot.control.forceModeStop()
    robot.control.moveL((robot.pose + [0, 0, 0.1, 0, 0, 0]).tolist(), 0.5, 2.0)
    until(lambda: abs(robot.receive.getActualTCPForce()[2]) < 1.0)


def test_servo_and_speed_commands_stream(robot):
    start = np.array(robot.receive.getActualQ())
    for step in range(100):
        begun = robot.control.initPeriod()
        assert robot.control.servoJ((start + [0, 0, 0, 0, 0, 0.001 * step]).tolist(), 0, 0, 0.002, 0.05, 500)
        robot.control.waitPeriod(begun)
    until(lambda: abs(robot.receive.getActualQ()[5] - start[5] - 0.099) < 1e-3)
    assert robot.control.servoStop()
    assert robot.control.speedL([0, 0, 0.05, 0, 0, 0], 0.5)
    until(lambda: robot.receive.getActualTCPSpeed()[2] > 0.045)
    assert robot.control.speedStop()
    until(lambda: abs(robot.receive.getActualTCPSpeed()[2]) < 1e-3)


def test_a_protective_stop_refuses_until_it_is_unlocked(robot, door):
    door.cause("protective_stop", code="C153")
    until(robot.receive.isProtectiveStopped)
    q = robot.receive.getActualQ()
    until(lambda: not robot.control.moveJ(q, 0.5, 0.5))
    assert robot.dashboard.safetystatus() == "Safetystatus: PROTECTIVE_STOP"
    until(robot.unlocked)
    assert robot.control.reuploadScript()
    until(robot.control.isProgramRunning)
    assert robot.control.moveJ((np.array(q) + [0.05, 0, 0, 0, 0, 0]).tolist(), 0.5, 1.0)


def test_an_emergency_stop_needs_power_and_brakes_again(robot, door):
    door.cause("emergency_stop")
    until(robot.receive.isEmergencyStopped)
    until(lambda: not robot.control.servoJ(robot.receive.getActualQ(), 0, 0, 0.002, 0.1, 300))
    door.cause("release_emergency_stop")
    until(lambda: not robot.receive.isEmergencyStopped())
    assert robot.dashboard.robotmode() == "Robotmode: POWER_OFF"
    robot.dashboard.powerOn()
    until(lambda: robot.receive.getRobotMode() == 5)
    robot.dashboard.brakeRelease()
    until(lambda: robot.receive.getRobotMode() == 7)


def test_a_program_stop_ends_control(robot, door):
    door.cause("program_stop")
    until(lambda: not robot.control.isProgramRunning())
    assert not robot.control.servoJ(robot.receive.getActualQ(), 0, 0, 0.002, 0.1, 300)
    robot.dashboard.stop()
    assert not robot.dashboard.running()


def test_a_watchdog_ends_the_program(robot):
    assert robot.control.setWatchdog(1.0)  # Hz: a busy computer may keep us waiting between two kicks
    for _ in range(70):
        assert robot.control.kickWatchdog()
        time.sleep(0.02)
    until(lambda: not robot.control.isProgramRunning())


def test_inputs_and_outputs(robot, twin):
    io = RTDEIOInterface(twin.host)
    try:
        assert io.setStandardDigitalOut(3, True) and io.setToolDigitalOut(1, True)
        until(lambda: robot.receive.getActualDigitalOutputBits() == 1 << 3 | 1 << 17)
        assert io.setSpeedSlider(0.5)
        until(lambda: robot.receive.getSpeedScaling() == 0.5)
        assert io.setSpeedSlider(1.0)
    finally:
        io.disconnect()


MOVES_UP = """
import sys, time
from rtde_control import RTDEControlInterface
control = RTDEControlInterface(sys.argv[1])
control.speedL([0, 0, 0.02, 0, 0, 0], 0.5)
time.sleep(600)
"""


def test_a_pulled_cable_is_seen_and_another_client_takes_over():
    """ur_rtde's control interface reconnects by itself in a thread that it then destroys: it gets a process."""
    with serve("rtde") as served:
        receive, door = RTDEReceiveInterface(served.host), served.door()
        with subprocess.Popen([sys.executable, "-c", MOVES_UP, served.host]) as client:
            try:
                until(lambda: receive.getActualTCPSpeed()[2] > 0.015)
                client.kill()
                client.wait()
                before = door.truth()["t_s"]
                until(lambda: door.truth()["t_s"] > before + 0.1)
                assert receive.getActualTCPSpeed()[2] > 0.015, "as a UR does: the program runs on"
                door.cause("drop")
                until(lambda: not receive.isConnected())
            finally:
                client.kill()
        assert receive.reconnect()
        control = RTDEControlInterface(served.host)
        until(lambda: np.abs(receive.getActualQd()).max() < 1e-3)
        assert control.moveJ((np.array(receive.getActualQ()) + [0.05, 0, 0, 0, 0, 0]).tolist(), 0.5, 1.0)
        control.disconnect()
        receive.disconnect()


def test_held_time_loses_no_connection(robot, door):
    stood_s = door.hold()
    time.sleep(3.0)  # ur_rtde gives up after 2.5 s without a package
    assert robot.receive.isConnected() and robot.control.isConnected()
    assert robot.receive.getTimestamp() == pytest.approx(stood_s)
    assert robot.control.zeroFtSensor(), "what takes no time is done"
    assert door.advance(5) == pytest.approx(stood_s + 0.01)
    until(lambda: robot.receive.getTimestamp() == pytest.approx(stood_s + 0.01))
    door.free()
    until(lambda: robot.receive.getTimestamp() > stood_s + 0.05)


def follow(host: str, door) -> list[float]:
    """Servo under held time; what the joints did."""
    door.hold()
    receive, control = RTDEReceiveInterface(host), RTDEControlInterface(host)
    try:
        start, seen = np.array(receive.getActualQ()), []
        for step in range(150):
            assert control.servoJ((start + [0.002 * step, 0, 0, 0, 0, 0]).tolist(), 0, 0, 0.002, 0.05, 500)
            door.advance(1)
            seen += door.truth()["q_rad"]
        assert seen[-6] - start[0] == pytest.approx(0.3 - 0.05, abs=0.02)
        return seen
    finally:
        control.disconnect()
        receive.disconnect()


def test_two_robots_at_once_and_the_same_twice():
    with serve("rtde", lockstep=True) as one, serve("rtde", lockstep=True) as other:
        first, second = (partial(follow, served.host, served.door()) for served in (one, other))
        assert one.host != other.host and first() == second()
