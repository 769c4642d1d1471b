"""What ROS 2 says of itself and of an arm: the half of ``robot-rl doctor`` that runs in a process of its own.

    python -m controllers.ros_doctor [--namespace panda] [--round-trip]

prints one JSON object per line and stage, so that what was found before a crash is kept:

    {"installation": {...}}   rclpy's version and place, middleware, domain, profile, discovery range
    {"graph": {...}}          nodes and image topics in the domain, and the namespaces of arm nodes
    {"arm": {...}}            state, parameters and topics of the arm node in the namespace
    {"round_trip": {...}}     ms there and back between two processes
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import GetParameters
from rclpy.parameter import parameter_value_to_python
from rclpy.utilities import get_rmw_implementation_identifier
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray, Header, String

from controllers import messages
from controllers.ros import PROFILE, RosContext

LOOK_S = 1.5  # discovery takes up to about a second
ARM_S = 3.0
LISTEN_S = 1.0
PEER_S = 4.0  # an interpreter has to start and to be discovered
PING_S = 1.0
TOPICS: dict[str, tuple[type, Any]] = {
    messages.CURRENT_POSE: (PoseStamped, messages.STATE_QOS),
    messages.CURRENT_TWIST: (TwistStamped, messages.STATE_QOS),
    messages.JOINT_STATES: (JointState, messages.STATE_QOS),
    messages.WRENCH: (WrenchStamped, messages.STATE_QOS),
    messages.APPLIED_TARGET: (PoseStamped, messages.STATE_QOS),
    messages.ENERGY_STATE: (Float64MultiArray, messages.STATE_QOS),
    messages.GUARD_STATE: (Float64MultiArray, messages.STATE_QOS),
    messages.SAFETY_STATE: (String, messages.LATCHED_QOS),
    messages.ESTOP_STATE: (Bool, messages.LATCHED_QOS),
}
FACTS = ("arm.name", "arm.task", "arm.rate_hz", "arm.lockstep")
"""Parameters of an arm node that say what it is."""
_IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")


def spin(ros: RosContext, limit_s: float, until: Callable[[], bool] = lambda: False) -> bool:
    """Serve callbacks until ``until()`` or for ``limit_s``; returns which of the two."""
    end_s = time.monotonic() + limit_s
    ros.spin(until=lambda: until() or time.monotonic() > end_s)
    return until()


def installation() -> dict[str, Any]:
    profile = os.environ.get("FASTDDS_DEFAULT_PROFILES_FILE", "")
    return {
        "version": version(),
        "path": os.path.dirname(rclpy.__file__),
        "middleware": get_rmw_implementation_identifier(),
        "domain": int(os.environ.get("ROS_DOMAIN_ID") or 0),
        "profile": profile,
        "profile_is_ours": profile == str(PROFILE),
    }


def version() -> str:
    """Of rclpy; empty where it does not tell."""
    for name in ("ros-rclpy", "rclpy"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


def graph(ros: RosContext, node: Any) -> dict[str, Any]:
    """Who else is in the domain."""
    spin(ros, LOOK_S)
    found = [(name, space) for name, space in node.get_node_names_and_namespaces() if name != node.get_name()]
    topics = node.get_topic_names_and_types()
    return {
        "nodes": sorted(f"{space.rstrip('/')}/{name}" for name, space in found if not name.startswith("_")),
        "arms": sorted(space.strip("/") for name, space in found if name == messages.NODE),
        "images": sorted(topic for topic, types in topics if set(types) & set(_IMAGES)),
    }


def arm(ros: RosContext, node: Any, namespace: str) -> dict[str, Any]:
    """State, parameters, topics and what they say; ``{"found": False}`` where there is no such node."""
    base = f"/{namespace}" if namespace else ""
    here = (messages.NODE, base or "/")
    if not spin(ros, ARM_S, lambda: here in node.get_node_names_and_namespaces()):
        return {"found": False}
    state = _call(ros, node, GetState, GetState.Request(), f"{base}/{messages.NODE}/get_state")
    asked = GetParameters.Request(names=FACTS)
    values = None  # a node that hangs need not be asked twice
    if state is not None:
        values = _call(ros, node, GetParameters, asked, f"{base}/{messages.NODE}/get_parameters")
    told = [parameter_value_to_python(value) for value in values.values] if values is not None else []
    counts, last = _listen(ros, node, base)
    row = last.get(messages.GUARD_STATE)
    guard = messages.from_columns(row, messages.GUARD) if row is not None else {}
    safety, estop = last.get(messages.SAFETY_STATE), last.get(messages.ESTOP_STATE)
    return {
        "found": True,
        "lifecycle": state.current_state.label if state is not None else None,
        "parameters": dict(zip(FACTS, told, strict=False)) if values is not None else None,
        "silent": [topic for topic, count in counts.items() if count == 0],
        "mode": messages.MODES[int(guard["mode"])] if guard else None,
        "safety": safety.data if safety is not None else None,
        "estop": estop.data if estop is not None else None,
        "commanders": node.count_publishers(f"{base}/{messages.TARGET_POSE}"),
    }


def _call(ros: RosContext, node: Any, kind: Any, request: Any, name: str) -> Any:
    """The response, or None where none came in time."""
    client = node.create_client(kind, name)
    try:
        if not spin(ros, ARM_S, client.service_is_ready):
            return None
        for _ in range(2):  # the first answer is lost where the other side has not discovered this client yet
            answer = client.call_async(request)
            if spin(ros, 0.5 * ARM_S, answer.done):
                return answer.result()
        return None
    finally:
        node.destroy_client(client)


def _listen(ros: RosContext, node: Any, base: str) -> tuple[dict[str, int], dict[str, Any]]:
    """How many messages came by topic, and the last ones."""
    counts, last = dict.fromkeys(TOPICS, 0), dict[str, Any]()

    def on(topic: str) -> Callable[[Any], None]:
        def note(message: Any) -> None:
            counts[topic] += 1
            last[topic] = message

        return note

    subscriptions = [
        node.create_subscription(kind, f"{base}/{topic}", on(topic), qos) for topic, (kind, qos) in TOPICS.items()
    ]
    spin(ros, LISTEN_S, lambda: all(counts.values()))
    for subscription in subscriptions:
        node.destroy_subscription(subscription)
    return counts, last


# ---------------------------------------------------------------------------------------------------------------------
# Round trip


def round_trip(ros: RosContext, node: Any, seconds_s: float = PING_S) -> dict[str, float]:
    """One message at a time to another process and back, in the user's own environment; empty without an answer."""
    name, got = f"robot_rl_doctor_{os.getpid()}", list[int]()
    sender = node.create_publisher(Header, f"/{name}/ping", messages.COMMAND_QOS)
    node.create_subscription(Header, f"/{name}/pong", lambda m: got.append(int(m.frame_id)), messages.COMMAND_QOS)
    peer = subprocess.Popen([sys.executable, "-m", "controllers.ros_doctor", "--echo", name], stdin=subprocess.DEVNULL)
    times_ms: list[float] = []
    try:
        if not spin(ros, PEER_S, lambda: sender.get_subscription_count() and node.count_publishers(f"/{name}/pong")):
            return {}
        end_s = time.monotonic() + seconds_s
        while time.monotonic() < end_s:
            number, begun_s = len(times_ms), time.perf_counter()
            sender.publish(Header(frame_id=str(number)))
            if not spin(ros, 1.0, lambda number=number: bool(got) and got[-1] == number):  # type: ignore[misc]
                continue  # the first may be lost while the two sides find each other
            times_ms.append(1e3 * (time.perf_counter() - begun_s))
    finally:
        peer.kill()
        peer.wait()
    if not times_ms:
        return {}
    p50, p99, worst = np.quantile(times_ms, [0.5, 0.99, 1.0]).round(3).tolist()
    return {"p50_ms": p50, "p99_ms": p99, "max_ms": worst, "count": len(times_ms)}


def echo(name: str) -> None:
    """Send back what comes, until the parent ends."""
    parent = os.getppid()
    with RosContext() as ros:
        node = ros.add(rclpy.create_node(f"{name}_echo", context=ros.context))
        answer = node.create_publisher(Header, f"/{name}/pong", messages.COMMAND_QOS)
        node.create_subscription(Header, f"/{name}/ping", answer.publish, messages.COMMAND_QOS)
        ros.spin(until=lambda: os.getppid() != parent)


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What ROS 2 says of itself and of an arm.")
    parser.add_argument("--namespace", help="of an arm node to ask")
    parser.add_argument("--round-trip", action="store_true", help="measure it")
    parser.add_argument("--echo", metavar="NAME", help="be the other process of a round trip")
    given = parser.parse_args(args)
    if given.echo:
        echo(given.echo)
        return 0

    def tell(stage: str, facts: dict[str, Any]) -> None:
        print(json.dumps({stage: facts}), flush=True)

    with RosContext() as ros:
        node = ros.add(rclpy.create_node(f"robot_rl_doctor_{os.getpid()}", context=ros.context))
        tell("installation", installation())
        tell("graph", graph(ros, node))
        if given.namespace is not None:
            tell("arm", arm(ros, node, given.namespace.strip("/")))
        if given.round_trip:
            tell("round_trip", round_trip(ros, node))
    return 0


if __name__ == "__main__":
    sys.exit(main())
