"""ROS graphs for tests: nodes as child processes, a commander to talk to them, and nothing left at the end.

Run as a program it is a policy to be killed: ``python -m tests.ros_graph stream NAMESPACE`` streams targets and a
heartbeat; ``env NAMESPACE TASK`` steps ``make_env(world="ros")`` and prints the error that ends it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from tests.ros_children import PATIENCE_S, TIED, child_processes

ROOT = Path(__file__).parent.parent
DOMAINS = range(1, 100)  # above, the ports of a domain lie where the kernel hands out its own
CHOICES = ("ROS_AUTOMATIC_DISCOVERY_RANGE", "FASTDDS_DEFAULT_PROFILES_FILE")
OUR_THREADS = {"ros", "control", "heartbeat"}
MAIN = {"cli": ["-m", "robot_rl.cli"], "child": ["-m", "tests.ros_policies"]}


@contextlib.contextmanager
def reserved_domain() -> Iterator[int]:
    """A ROS_DOMAIN_ID that no other test of this machine has; a lock file keeps it."""
    for domain in DOMAINS:
        with open(Path(tempfile.gettempdir()) / f"robot-rl-domain-{domain}.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield domain
            return
    raise RuntimeError(f"every domain in {DOMAINS} is in use")


def wait_until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """The first true value of ``condition``."""
    end_s = time.monotonic() + patience_s
    while not (value := condition()):
        if time.monotonic() > end_s:
            raise AssertionError(f"waited {patience_s:g} s in vain: {what}")
        time.sleep(0.005)
    return value


# ---------------------------------------------------------------------------------------------------------------------
# Processes


class Process:
    """A child process in a domain, with its log; dead when the ``with`` ends."""

    def __init__(self, domain: int, args: list[str], main: str = "cli", env: dict[str, str] | None = None) -> None:
        clean = {name: value for name, value in os.environ.items() if name not in CHOICES}
        clean |= {"ROS_DOMAIN_ID": str(domain), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"} | (env or {})
        clean["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by end()
        self._popen = subprocess.Popen(
            [*TIED, sys.executable, *MAIN[main], *args], env=clean, stdout=self._log, stderr=subprocess.STDOUT, cwd=ROOT
        )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def log(self) -> str:
        return os.pread(self._log.fileno(), 1 << 20, 0).decode(errors="replace")

    def await_line(self, text: str) -> Self:
        """Wait until the log holds ``text``; fails with the log where the process ends before."""

        def there() -> bool:
            ended = not self.alive
            if text in self.log():
                return True
            assert not ended, f"ended with {self._popen.returncode} before '{text}':\n{self.log()}"
            return False

        try:
            wait_until(there, f"'{text}' in the log")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None
        return self

    def send(self, signum: int) -> None:
        self._popen.send_signal(signum)

    def wait(self) -> int:
        """The exit status."""
        return self._popen.wait(PATIENCE_S)

    def stop(self, signum: int = signal.SIGINT) -> int:
        self.send(signum)
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.alive:
            self._popen.kill()
        self._popen.wait(PATIENCE_S)
        self._log.close()


def arm_node(domain: int, namespace: str, *more: str, task: str = "reach", lockstep: bool = False) -> Process:
    """``robot-rl node arm``, active; at 100 Hz in real time, so that it fits on a busy machine."""
    mode = ["--lockstep"] if lockstep else ["--rate", "100"]
    process = Process(domain, ["node", "arm", "--task", task, "--namespace", namespace, *mode, *more])
    try:
        return process.await_line("is active")
    except BaseException:
        process.__exit__()
        raise


def stream(domain: int, namespace: str, *more: str) -> Process:
    """A policy of its own process that streams targets and heartbeats; running."""
    process = Process(domain, ["stream", namespace, *more], "child")
    try:
        return process.await_line("streaming")
    except BaseException:
        process.__exit__()
        raise


def robot_rl(domain: int, *args: str) -> tuple[int, str]:
    """Run one command to its end; exit status and what it printed."""
    with Process(domain, list(args)) as process:
        return process.wait(), process.log()


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Fails where the block leaves a shared-memory file, a thread or a child process of this process behind."""

    def segments() -> set[str]:
        return {name for name in os.listdir("/dev/shm") if "fastrtps" in name or "fastdds" in name}

    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name in OUR_THREADS}

    before = segments(), child_processes(), threads()
    yield
    wait_until(lambda: child_processes() <= before[1], "children are gone")
    assert segments() <= before[0]
    assert threads() <= before[2]


# ---------------------------------------------------------------------------------------------------------------------
# A commander


class Commander:
    """Listens to an arm's node and, if told to, commands it. Its messages are kept in order of arrival."""

    def __init__(self, domain: int, namespace: str = "panda", lockstep: bool = False) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from geometry_msgs.msg import PoseStamped, TwistStamped
        from rclpy.node import Node
        from sensor_msgs.msg import JointState
        from std_msgs.msg import Bool, Float64MultiArray, Header, String

        from controllers import messages
        from controllers.ros import RosContext

        os.environ["ROS_DOMAIN_ID"] = str(domain)
        self.m, self.namespace = messages, "/" + namespace
        self._ros = RosContext()
        self._node = self._ros.add(
            Node("commander", context=self._ros.context, namespace=self.namespace, use_global_arguments=False)
        )
        state = messages.LOCKSTEP_QOS if lockstep else messages.STATE_QOS
        kinds: dict[str, tuple[type, Any]] = {
            messages.CURRENT_POSE: (PoseStamped, state),
            messages.CURRENT_TWIST: (TwistStamped, state),
            messages.JOINT_STATES: (JointState, state),
            messages.APPLIED_TARGET: (PoseStamped, state),
            messages.ENERGY_STATE: (Float64MultiArray, state),
            messages.GUARD_STATE: (Float64MultiArray, state),
            messages.TARGET_POSE: (PoseStamped, messages.COMMAND_QOS),
            messages.SAFETY_STATE: (String, messages.LATCHED_QOS),
            messages.ESTOP_STATE: (Bool, messages.LATCHED_QOS),
            "/diagnostics": (DiagnosticArray, messages.DIAGNOSTICS_QOS),
        }
        self.heard: dict[str, deque[Any]] = {topic: deque(maxlen=5000) for topic in kinds}
        for topic, (kind, qos) in kinds.items():
            self._node.create_subscription(kind, topic, self._listener(topic), qos)
        make = self._node.create_publisher
        self._target = make(PoseStamped, messages.TARGET_POSE, messages.COMMAND_QOS)
        self._beat = make(Header, messages.HEARTBEAT, messages.STATE_QOS)
        self.stiffness = make(Float64MultiArray, messages.TARGET_STIFFNESS, messages.COMMAND_QOS)
        self.gripper = make(Float64MultiArray, messages.TARGET_GRIPPER, messages.COMMAND_QOS)
        self.step = make(Float64MultiArray, messages.STEP_TOPIC, messages.LOCKSTEP_QOS)
        self._goal: tuple[np.ndarray, np.ndarray] | None = None
        self._beating = False
        self._node.create_timer(0.02, self._tick)
        self._clients: dict[str, Any] = {}
        self._ros.start()

    def _listener(self, topic: str) -> Callable[[Any], None]:
        return lambda message: self.heard[topic].append(message)

    def _tick(self) -> None:
        if self._beating:
            self.beat()
        if self._goal is not None:
            self.target(*self._goal)

    def close(self) -> None:
        self._ros.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---------------------------------------------------------------------------------------------------------- hears

    def newest(self, topic: str) -> Any:
        """The newest message, waited for."""
        return wait_until(lambda: self.heard[topic] and [self.heard[topic][-1]], f"a message on {topic}")[0]

    def next(self, topic: str, count: int = 1) -> Any:
        """A message that comes after this call, the ``count``-th."""
        seen = list(self.heard[topic])
        before = seen[-1] if seen else None

        def fresh() -> list[Any]:
            now = list(self.heard[topic])
            later = now[max((i for i, message in enumerate(now) if message is before), default=-1) + 1 :]
            return later[count - 1 : count]

        return wait_until(fresh, f"{count} new messages on {topic}")[0]

    def pose(self) -> tuple[np.ndarray, np.ndarray]:
        """The newest measured pose: (3,) m, (4,) xyzw."""
        pose = self.m.from_pose(self.newest(self.m.CURRENT_POSE).pose)
        return pose.pos_m, pose.quat_xyzw

    def speed_mps(self) -> float:
        v = self.next(self.m.CURRENT_TWIST).twist.linear
        return float(np.linalg.norm([v.x, v.y, v.z]))

    def guard(self) -> dict[str, float]:
        """A row of guard_state that came after this call."""
        return self.m.from_columns(self.next(self.m.GUARD_STATE), self.m.GUARD)

    def safety(self) -> str:
        return self.newest(self.m.SAFETY_STATE).data

    def await_safety(self, text: str) -> None:
        try:
            wait_until(lambda: self.heard[self.m.SAFETY_STATE] and text in self.safety(), f"safety_state '{text}'")
        except AssertionError as error:
            said = [message.data for message in self.heard[self.m.SAFETY_STATE]]
            raise AssertionError(f"{error}; it said {said[-10:]}, diagnostics {self.diagnostics('targets')}") from None

    def diagnostics(self, name: str) -> tuple[int, str, dict[str, str]]:
        """Level, message and values of the next status of this name of our arm."""
        full = f"{self.namespace}/{self.m.NODE}: {name}"
        while True:
            for status in self.next("/diagnostics").status:
                if status.name == full:
                    return ord(status.level), status.message, {pair.key: pair.value for pair in status.values}

    def await_refusal(self, text: str) -> None:
        """Until diagnostics tell of a refusal with ``text``."""
        wait_until(lambda: text in self.diagnostics("targets")[2]["last_refusal"], f"refusal '{text}'")

    def rows(self, topic: str) -> tuple[np.ndarray, np.ndarray]:
        """Stamps (N,) ns and positions (N, 3) of a topic of poses, as they came."""
        heard = list(self.heard[topic])
        return (
            np.array([self.m.to_ns(message.header.stamp) for message in heard], np.int64),
            np.array([self.m.from_pose(message.pose).pos_m for message in heard]).reshape(-1, 3),
        )

    def modes(self) -> list[tuple[int, str]]:
        """Stamp in ns and mode of every guard_state that came."""
        rows = [self.m.from_columns(message, self.m.GUARD) for message in list(self.heard[self.m.GUARD_STATE])]
        return [(self.m.columns_ns(row), self.m.MODES[int(row["mode"])]) for row in rows]

    # -------------------------------------------------------------------------------------------------------- commands

    def connect(self) -> Self:
        """Wait until the node hears our targets."""
        try:
            wait_until(lambda: self._target.get_subscription_count() > 1, "the node takes targets")  # one is our own
            wait_until(lambda: self._beat.get_subscription_count() > 0, "the node takes heartbeats")
            self.newest(self.m.CURRENT_POSE)
        except BaseException:
            self.close()
            raise
        return self

    def target(
        self, pos_m: np.ndarray, quat_xyzw: np.ndarray, stamp_ns: int | None = None, frame: str = "base"
    ) -> None:
        stamp_ns = time.time_ns() if stamp_ns is None else stamp_ns
        self._target.publish(self.m.to_pose_stamped(pos_m, quat_xyzw, frame, stamp_ns))

    def beat(self) -> None:
        from std_msgs.msg import Header

        self._beat.publish(Header(stamp=self.m.to_stamp(time.time_ns())))

    def numbers(self, publisher: Any, values: Any) -> None:
        from std_msgs.msg import Float64MultiArray

        publisher.publish(Float64MultiArray(data=[float(value) for value in values]))

    def stream(self, pos_m: np.ndarray, quat_xyzw: np.ndarray, heartbeat: bool = True) -> None:
        """Send this target at 50 Hz until ``silence``."""
        self._goal, self._beating = (np.array(pos_m), np.array(quat_xyzw)), heartbeat

    def silence(self) -> None:
        self._goal, self._beating = None, False

    def client(self, kind: Any, service: str) -> Any:
        if service not in self._clients:
            self._clients[service] = self._node.create_client(kind, f"{self.namespace}/{self.m.NODE}/{service}")
            assert self._clients[service].wait_for_service(PATIENCE_S), service
        return self._clients[service]

    def ask(self, kind: Any, service: str, request: Any) -> Any:
        """Call a service of the node."""
        future = self.client(kind, service).call_async(request)
        wait_until(future.done, f"an answer of {service}")
        return future.result()

    def call(self, service: str) -> tuple[bool, str]:
        from std_srvs.srv import Trigger

        answer = self.ask(Trigger, service, Trigger.Request())
        return answer.success, answer.message

    def estop(self, pressed: bool) -> tuple[bool, str]:
        from std_srvs.srv import SetBool

        answer = self.ask(SetBool, "estop", SetBool.Request(data=pressed))
        return answer.success, answer.message

    def transition(self, label: str) -> bool:
        """A lifecycle transition by its standard service."""
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        ids = {
            "configure": Transition.TRANSITION_CONFIGURE,
            "cleanup": Transition.TRANSITION_CLEANUP,
            "activate": Transition.TRANSITION_ACTIVATE,
            "deactivate": Transition.TRANSITION_DEACTIVATE,
        }
        request = ChangeState.Request(transition=Transition(id=ids[label]))
        return bool(self.ask(ChangeState, "change_state", request).success)

    def lifecycle(self) -> str:
        from lifecycle_msgs.srv import GetState

        return str(self.ask(GetState, "get_state", GetState.Request()).current_state.label)

    def get(self, name: str) -> Any:
        from rcl_interfaces.srv import GetParameters
        from rclpy.parameter import parameter_value_to_python

        values = self.ask(GetParameters, "get_parameters", GetParameters.Request(names=[name])).values
        return parameter_value_to_python(values[0]) if values else None

    def set(self, **values: Any) -> tuple[bool, str]:
        """Set parameters atomically; ``limits__force_n=3.0`` is limits.force_n."""
        from rcl_interfaces.srv import SetParametersAtomically
        from rclpy.parameter import Parameter

        parameters = [
            Parameter(name.replace("__", "."), value=value).to_parameter_msg() for name, value in values.items()
        ]
        request = SetParametersAtomically.Request(parameters=parameters)
        result = self.ask(SetParametersAtomically, "set_parameters_atomically", request).result
        return bool(result.successful), str(result.reason)

    def place(self, start: Any) -> tuple[bool, str]:
        """Put a twin's world into a Start."""
        from controllers.arm_parameters import from_start

        return self.set(**{name.replace(".", "__"): value for name, value in from_start(start).items()})
