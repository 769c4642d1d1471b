"""How fast and how punctual the ROS 2 graph is: twin node and measuring process apart, over the middleware in use.

Prints one JSON line per measurement:

- ``round_trip``: a small message to another process and back;
- ``latency``: from publishing a target that differs to the first ``applied_target`` that moved, by the stamp that the
  node gives it and by its arrival here;
- ``stream``: the four state topics at 500 Hz: messages lost by publication number, and stamps that are missing;
- ``crisp_py``: the same stream and a motion through CRISP's own Python client, where that is installed;
- ``deadline``: periods of a policy at 10 Hz (an untrained RLPD agent in ``ArmEnv`` over ``--world ros``).

    python benchmarks/ros.py [--minutes 10] [--only latency stream]

CRISP_PY may name a folder with crisp_py: ``pip install --no-deps --target DIR crisp_python``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))

import rclpy
from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.utilities import get_rmw_implementation_identifier
from sensor_msgs.msg import JointState

from controllers import messages, ros_doctor
from controllers.ros import RosContext

NAMESPACE, TASK, ARM = "bench", "peg_insert", "panda"
READY_S = 60.0
STEP_M = 0.002  # by which targets differ
SETTLED = 3  # equal applied targets on end
MOVED_M = 1e-6
DEEP = 200  # messages kept for this process: what is lost then, the middleware lost


@contextlib.contextmanager
def arm_node(*args: str) -> Iterator[None]:
    """A twin's node in a process of its own, active; stopped as by Ctrl-C."""
    command = [sys.executable, "-m", "robot_rl.cli", "node", "arm", "--world", "sim", "--arm", ARM, "--task", TASK]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with open(log, "w") as file:
            process = subprocess.Popen([*command, "--namespace", NAMESPACE, *args], stdout=file, stderr=file)
        try:
            end_s = time.monotonic() + READY_S
            while "is active" not in log.read_text():
                if process.poll() is not None or time.monotonic() > end_s:
                    raise RuntimeError(f"the node does not become active:\n{log.read_text()}")
                time.sleep(0.1)
            yield
        except Exception as error:
            error.add_note(f"the node said:\n{log.read_text()}")
            raise
        finally:
            process.send_signal(signal.SIGINT)
            try:
                status = process.wait(20.0)
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
            if status != 0 or "Traceback" in log.read_text():
                print(f"the node ended with status {status}:\n{log.read_text()}", file=sys.stderr)


@contextlib.contextmanager
def client() -> Iterator[tuple[RosContext, Any]]:
    with RosContext() as ros:
        yield ros, ros.add(rclpy.create_node(f"bench_{os.getpid()}", context=ros.context, namespace=NAMESPACE))


def make_env() -> Any:
    """The task over the node, at the start of an episode."""
    from robot_rl import build

    env = build.make_env(TASK, ARM, "ros", [f"arm.namespace={NAMESPACE}"])
    env.reset(seed=0)
    return env


def quantiles_ms(values_ms: list[float]) -> dict[str, float]:
    p50, p99, worst = np.quantile(values_ms, [0.5, 0.99, 1.0]).round(3).tolist()
    return {"p50_ms": p50, "p99_ms": p99, "max_ms": worst}


# ---------------------------------------------------------------------------------------------------------------------
# Measurements


def round_trip() -> dict[str, Any]:
    with client() as (ros, node):
        return ros_doctor.round_trip(ros, node, seconds_s=5.0)


def latency(rate_hz: float, count: int) -> dict[str, Any]:
    """The target steps to and fro at random phases of the node's tick."""
    with arm_node("--rate", str(rate_hz)), client() as (ros, node):
        make_env().close()  # its reset has put the arm into the task's box, where targets are not clipped
        seen: list[tuple[int, int, float]] = []  # arrival ns, stamp ns, x

        def on_applied(message: PoseStamped) -> None:
            seen.append((time.time_ns(), messages.to_ns(message.header.stamp), message.pose.position.x))

        def has_moved(before_m: float) -> bool:
            return bool(seen) and abs(seen[-1][2] - before_m) > MOVED_M

        poses: list[PoseStamped] = []
        subscription = node.create_subscription(PoseStamped, messages.CURRENT_POSE, poses.append, messages.STATE_QOS)
        node.create_subscription(PoseStamped, messages.APPLIED_TARGET, on_applied, messages.STATE_QOS)
        publisher = node.create_publisher(PoseStamped, messages.TARGET_POSE, messages.COMMAND_QOS)
        must(ros, lambda: bool(poses and seen) and publisher.get_subscription_count() > 0, "state")
        node.destroy_subscription(subscription)
        target, rng = poses[0], np.random.default_rng(0)
        base_m = target.pose.position.x
        by_stamp: list[float] = []
        by_arrival: list[float] = []
        unheard = 0
        for index in range(count):
            target.pose.position.x = base_m + (STEP_M if index % 2 == 0 else 0.0)
            ros_doctor.spin(ros, 0.03)
            must(ros, lambda: len({round(x, 9) for _, _, x in seen[-SETTLED:]}) == 1, "a settled target")
            before_m = seen[-1][2]
            seen.clear()
            # What ends a spin is an arrival, and that is tied to the node's tick: only a sleep is at any phase of it.
            time.sleep(rng.uniform(0.0, 2.0 / rate_hz))
            sent_ns = time.time_ns()
            target.header.stamp = messages.to_stamp(sent_ns)
            publisher.publish(target)
            if not ros_doctor.spin(ros, 1.0, lambda before_m=before_m: has_moved(before_m)):
                unheard += 1
                continue
            arrival_ns, stamp_ns, _ = seen[-1]
            by_stamp.append(1e-6 * (stamp_ns - sent_ns))
            by_arrival.append(1e-6 * (arrival_ns - sent_ns))
    about = {f"stamp_{name}": value for name, value in quantiles_ms(by_stamp).items()}
    about |= {f"arrival_{name}": value for name, value in quantiles_ms(by_arrival).items()}
    return {"rate_hz": rate_hz, "targets": count, "unheard": unheard} | about


def must(ros: RosContext, until: Callable[[], Any], what: str) -> None:
    if not ros_doctor.spin(ros, 10.0, lambda: bool(until())):
        raise TimeoutError(f"{what} does not come within 10 s")


class Count:
    """Messages of one topic: their publication numbers and stamps."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.stamps_ns: list[int] = []

    def __call__(self, message: Any, info: dict[str, Any]) -> None:
        self.numbers.append(info["publication_sequence_number"])
        self.stamps_ns.append(messages.to_ns(message.header.stamp))

    def summary(self) -> dict[str, Any]:
        published = self.numbers[-1] - self.numbers[0] + 1
        steps_ms = np.diff(self.stamps_ns) * 1e-6
        return {
            "published": published,
            "lost": published - len(set(self.numbers)),
            "rate_hz": round(1e3 / float(np.mean(steps_ms)), 2),
            "stamp_p99_ms": round(float(np.quantile(steps_ms, 0.99)), 3),
            "stamp_max_ms": round(float(steps_ms.max()), 3),
        }


def stream(seconds_s: float) -> dict[str, Any]:
    """``lost_share``: by the middleware, with a deep queue here; ``lost_share_client``: with the contract's depth."""
    deep = QoSProfile(depth=DEEP, reliability=ReliabilityPolicy.BEST_EFFORT)
    kinds = {
        messages.CURRENT_POSE: PoseStamped,
        messages.CURRENT_TWIST: TwistStamped,
        messages.JOINT_STATES: JointState,
        messages.WRENCH: WrenchStamped,
    }
    with arm_node(), client() as (ros, node):
        counts = {topic: Count() for topic in kinds}
        for topic, kind in kinds.items():
            node.create_subscription(kind, topic, counts[topic], deep)
        shallow = Count()
        node.create_subscription(PoseStamped, messages.CURRENT_POSE, shallow, messages.STATE_QOS)
        must(ros, lambda: all(len(count.numbers) > 100 for count in (*counts.values(), shallow)), "state")
        for count in (*counts.values(), shallow):
            count.numbers.clear()
            count.stamps_ns.clear()
        ros_doctor.spin(ros, seconds_s)
    each = [count.summary() for count in counts.values()]
    one = shallow.summary()
    return {
        "seconds": seconds_s,
        "published": sum(row["published"] for row in each),
        "lost": sum(row["lost"] for row in each),
        "lost_share": sum(row["lost"] for row in each) / sum(row["published"] for row in each),
        "lost_share_client": one["lost"] / one["published"],
        "rate_hz": min(row["rate_hz"] for row in each),
        "stamp_p99_ms": max(row["stamp_p99_ms"] for row in each),
        "stamp_max_ms": max(row["stamp_max_ms"] for row in each),
    }


def deadline(minutes: float) -> dict[str, Any]:
    """``missed_share``: of the policy's steps, those more than 10 % longer than the period."""
    from robot_rl.evaluate import policy
    from robot_rl.find import find
    from robot_rl.spaces import Encoder

    with arm_node():
        env = make_env()
        try:
            encoder = Encoder.from_space(env.observation_space)
            module = find("robot_rl.agents", "rlpd")
            agent = module.make(module.Config(), encoder.space, env.action_space, 0)
            env_any: Any = env.unwrapped
            period_ms = 1e3 / env_any.task.control_hz
            periods_ms: list[float] = []
            episodes, end_s = 0, time.monotonic() + 60.0 * minutes
            while time.monotonic() < end_s:
                act = policy(agent, encoder)
                obs, _ = env.reset(seed=episodes)
                act(obs)  # compiles
                ended, last_s = False, 0.0
                while not ended and time.monotonic() < end_s:
                    obs, _, terminated, truncated, _ = env.step(act(obs))
                    now_s = time.perf_counter()
                    if last_s:
                        periods_ms.append(1e3 * (now_s - last_s))
                    last_s, ended = now_s, terminated or truncated
                episodes += 1
        finally:
            env.close()
    missed = sum(period > 1.1 * period_ms for period in periods_ms)
    about = {"minutes": minutes, "episodes": episodes, "steps": len(periods_ms), "missed": missed}
    return about | {"missed_share": missed / len(periods_ms)} | quantiles_ms(periods_ms)


# CRISP's switcher of controllers and its joint trajectory client need message packages that are not on PyPI; its Robot
# does not need them to follow poses, so they are left out.
CRISP = """
import json, sys, time
from unittest.mock import MagicMock
import numpy as np
for name in ("control_msgs", "control_msgs.action", "controller_manager_msgs", "controller_manager_msgs.srv",
             "tf2_ros", "tf2_ros.buffer", "tf2_ros.transform_listener"):
    try:
        __import__(name)
    except ImportError:
        sys.modules[name] = MagicMock()
from crisp_py.robot import make_robot_config, robot as module
module.ControllerSwitcherClient = module.JointTrajectoryControllerClient = lambda *args, **kwargs: None

class Counting(module.Robot):
    poses = 0
    def _callback_current_pose(self, message):
        self.poses += 1
        super()._callback_current_pose(message)

robot = Counting(namespace=sys.argv[1], robot_config=make_robot_config("panda"))
robot.wait_until_ready(timeout=20.0)
begun_s, before = time.monotonic(), robot.poses
time.sleep(10.0)
rate_hz = (robot.poses - before) / (time.monotonic() - begun_s)
start = robot.end_effector_pose.position
robot.move_to(position=start + [0.0, 0.03, 0.02], speed=0.05)
time.sleep(2.0)
moved = robot.end_effector_pose.position - start
about = {"moved_mm": np.linalg.norm(moved), "move_error_mm": np.linalg.norm(moved - [0.0, 0.03, 0.02])}
about = {name: round(1e3 * float(value), 3) for name, value in about.items()}
print(json.dumps({"pose_rate_hz": round(rate_hz, 1)} | about), flush=True)
import os; os._exit(0)  # its thread spins on and would abort an ordinary end
"""


def crisp_py() -> dict[str, Any]:
    """What CRISP's client makes of our node, or why there is no figure."""
    from controllers.ros import prepare_environment

    prepare_environment()
    paths = [os.environ.get("CRISP_PY", ""), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    version = "import importlib.metadata as m; print(m.version('crisp_python'))"
    found = subprocess.run([sys.executable, "-c", version], capture_output=True, text=True, env=env)
    if found.returncode:
        return {"skipped": "crisp_python is not installed"}
    with arm_node():
        make_env().close()
        command = [sys.executable, "-c", CRISP, NAMESPACE]
        out = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120.0)
    if out.returncode:
        return {"skipped": (out.stderr.strip().splitlines() or ["no output"])[-1]}
    return {"version": found.stdout.strip()} | json.loads(out.stdout.strip().splitlines()[-1])


def main() -> None:
    measurements: dict[str, Callable[[], dict[str, Any]]] = {
        "round_trip": round_trip,
        "latency": lambda: latency(200.0, given.targets),
        "stream": lambda: stream(given.seconds),
        "crisp_py": crisp_py,
        "deadline": lambda: deadline(given.minutes),
    }
    parser = argparse.ArgumentParser(description="Latency, loss and punctuality of the ROS 2 graph.")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the policy's deadline")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the state stream")
    parser.add_argument("--targets", type=int, default=2000, help="whose latency is measured")
    parser.add_argument("--only", nargs="+", choices=list(measurements), default=list(measurements))
    given = parser.parse_args()
    machine = {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "rclpy": ros_doctor.version(),
        "middleware": get_rmw_implementation_identifier(),
    }
    for name in given.only:
        load = {"load": round(os.getloadavg()[0], 2)}
        print(json.dumps({"benchmark": "ros", "measure": name} | measurements[name]() | machine | load), flush=True)


if __name__ == "__main__":
    main()
