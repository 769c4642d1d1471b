"""How the tests share a machine, and their fixtures: for ROS 2 a domain of their own, and a look at what they leave."""

import os
import signal
import tempfile

import pytest

from robot_rl.children import environment
from tests.ros_children import QUICK_XLA

# Modules that take half a minute or more, the longest first.
LONGEST = (
    "test_vendor_policies", "test_end_to_end", "test_hardware_drills", "test_constraint", "test_agents",
    "test_arm_contract", "test_arm_node", "test_drills", "test_ros_world", "test_train", "test_study", "test_up",
    "test_franka_driver", "test_ur_driver", "test_ur_rtde_clients", "test_learns", "test_losses",
)  # fmt: skip

# Nothing that reads these (numpy, JAX, MuJoCo) may be imported above or by this module.
os.environ.setdefault("MUJOCO_GL", "egl")
WORKER = "PYTEST_XDIST_WORKER" in os.environ
if WORKER:
    os.environ.update(environment(at_once=2))
if QUICK_XLA not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_XLA}".strip()
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in a shell's background; children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """What XLA has compiled once, in this process or a child, need not be compiled again by another."""
    if not WORKER and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="robot-rl-compiled-", ignore_cleanup_errors=True)
        config.add_cleanup(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_collection_modifyitems(items):
    """Where workers take module after module, the longest go first: one at the end would leave the others idle."""
    if WORKER:
        order = {name: index for index, name in enumerate(LONGEST)}
        items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture
def ros_domain(monkeypatch):
    """A ROS_DOMAIN_ID that no other test of this machine has, set in the environment."""
    from tests.ros_graph import CHOICES, reserved_domain

    with reserved_domain() as domain:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
        for name in CHOICES:
            monkeypatch.delenv(name, raising=False)
        yield domain


@pytest.fixture(scope="module")
def module_domain():
    """The same for a whole module, whose nodes go on from test to test."""
    from tests.ros_graph import CHOICES, nothing_left, reserved_domain

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
