"""Fixtures for tests that use ROS 2: a domain of their own, and a look at what they leave behind."""

import os

import pytest

from tests.ros_graph import CHOICES, nothing_left, reserved_domain


@pytest.fixture
def ros_domain(monkeypatch):
    """A ROS_DOMAIN_ID that no other test of this machine has, set in the environment."""
    with reserved_domain() as domain:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
        for name in CHOICES:
            monkeypatch.delenv(name, raising=False)
        yield domain


@pytest.fixture(scope="module")
def module_domain():
    """The same for a whole module, whose nodes go on from test to test."""
    with pytest.MonkeyPatch.context() as patch, reserved_domain() as domain, nothing_left():
        patch.setenv("ROS_DOMAIN_ID", str(domain))
        for name in CHOICES:
            patch.delenv(name, raising=False)
        yield domain
        assert os.environ["ROS_DOMAIN_ID"] == str(domain)


@pytest.fixture
def clock(monkeypatch):
    """The control loop's time, moved by hand."""
    from controllers import control_loop
    from tests.loops import Clock

    fake = Clock()
    monkeypatch.setattr(control_loop, "time", fake)
    return fake


@pytest.fixture
def make_robot():
    """Make UR5e twins behind RTDE whose ticks are the test's (``tests.ur_robot.Robot``)."""
    from tests.ur_robot import Robot

    made = []

    def make(*given, **named):
        made.append(Robot(*given, **named))
        return made[-1]

    yield make
    for robot in made:
        robot.server.close()


@pytest.fixture
def robot(make_robot):
    """One of them."""
    return make_robot()


@pytest.fixture
def fci_twin():
    """Make FR3 twins behind FCI that run in a thread; all of them are closed at the end."""
    from robot_rl.twin_serve import make_server
    from tests.served import address, threaded

    with threaded() as run:
        yield lambda task="reach", lockstep=True: run(make_server("fci", "fr3", task, address(), lockstep))
