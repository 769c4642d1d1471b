"""Checks of ROS 2 and of an arm node for ``robot-rl doctor``.

What only ROS can tell is asked in a child process (controllers/ros_doctor.py), once; the checks judge its facts. So a
middleware that crashes or hangs is a finding like any other.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from robot_rl.find import nearest
from robot_rl.finding import Finding, ask

ASKED_MODULE = "controllers.ros_doctor"
GET_ROS = "pip install 'robot-rl[ros]', or source the setup file of your ROS 2 (Jazzy or newer)"
_LIMIT_S = 14.0
_DISTROS = {"3": "Humble", "7": "Jazzy", "9": "Kilted", "10": "Lyrical"}  # by rclpy's major version
_OLDEST = 7
_RANGES = ("OFF", "LOCALHOST", "SUBNET", "SYSTEM_DEFAULT")
_DOMAIN_MAX = 232
_PORT_BASE, _PORT_GAIN = 7400, 250  # DDS: the ports of domain d begin at 7400 + 250 d
_SLOW_MS = 10.0
_START = "robot-rl node arm --world sim --arm panda --task peg_insert --namespace"

Facts = Mapping[str, Any]


def ros_checks(namespace: str | None, quick: bool) -> dict[str, Callable[[], Finding]]:
    """The checks by name, in order; the first three need no ROS. Facts are asked for by the first that wants them."""
    checks: dict[str, Callable[[], Finding]] = {"ROS": installed, "domain": domain, "discovery range": discovery_range}
    if importlib.util.find_spec("rclpy") is None:
        return checks if namespace is None else checks | {"arm": lambda: _unreachable(namespace, "without ROS")}
    asked: list[Facts] = []

    def facts() -> Facts:
        if not asked:
            asked.append(ask_ros(namespace, quick))
        return asked[0]

    checks |= {
        "middleware": lambda: middleware(facts()),
        "participants": lambda: participants(facts()),
        "ROS images": lambda: images(facts()),
        "arm": lambda: arm(facts(), namespace),
    }
    return checks if quick else checks | {"round trip": lambda: round_trip(facts())}


def ask_ros(namespace: str | None, quick: bool) -> Facts:
    """The stages of controllers/ros_doctor.py that ended, and under ``trouble`` why the others did not."""
    args = ["-m", ASKED_MODULE]
    args += ["--namespace", namespace] if namespace is not None else []
    args += [] if quick else ["--round-trip"]
    child = ask(args, _LIMIT_S)
    facts: dict[str, Any] = {"trouble": child.trouble}
    for line in child.out.splitlines():
        if line.startswith("{"):
            facts |= json.loads(line)
    return facts


def _silent(name: str, facts: Facts) -> Finding:
    """The finding where ROS's process ended before it came to this; one that never began failed in ``middleware``."""
    if "installation" not in facts:
        return Finding(name, "note", "not asked, as ROS does not start")
    says = f"ROS did not get so far: {facts['trouble'] or 'it said nothing'}"
    return Finding(name, "fail", says, "try with RMW_IMPLEMENTATION and FASTDDS_DEFAULT_PROFILES_FILE unset")


# ---------------------------------------------------------------------------------------------------------------------
# Without asking ROS


def installed() -> Finding:
    """Which ROS 2 Python finds; two of them on the paths load each other's libraries."""
    spec = importlib.util.find_spec("rclpy")
    if spec is None or spec.origin is None:
        return Finding("ROS", "note", "not here; everything but --world ros and nodes works without", GET_ROS)
    here = Path(spec.origin).parent
    paths = [Path(path) / "rclpy" for path in sys.path if path]
    paths += [
        found
        for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
        if prefix
        for found in Path(prefix).glob("lib/python3*/site-packages/rclpy")
    ]
    others = sorted({str(path) for path in paths if path.is_dir() and path.resolve() != here.resolve()})
    if others:
        says = f"two at once: {here} is used, {', '.join(others)} is on the paths, too"
        remedy = "use one: a shell without the system's setup file, or an environment without the ros-* wheels"
        return Finding("ROS", "warn", says, remedy)
    kind = "wheels" if importlib.util.find_spec("ros_wheels_bootstrapper") else "system"
    return Finding("ROS", "ok", f"{kind}, {here}")


def domain(ports: Path = Path("/proc/sys/net/ipv4/ip_local_port_range")) -> Finding:
    """Valid, and clear of the ports that the kernel hands out to any program."""
    text = os.environ.get("ROS_DOMAIN_ID", "")
    if text and not (text.isdecimal() and int(text) <= _DOMAIN_MAX):
        return Finding("domain", "fail", f"ROS_DOMAIN_ID is '{text}'", f"give an integer from 0 to {_DOMAIN_MAX}")
    number = int(text or 0)
    first = _PORT_BASE + _PORT_GAIN * number
    says = f"{number}{'' if text else ' (ROS_DOMAIN_ID is not set)'}, ports {first} to {first + _PORT_GAIN - 1}"
    low, high = (int(word) for word in ports.read_text().split())
    if first <= high and first + _PORT_GAIN > low:
        free = max(0, (low - _PORT_BASE) // _PORT_GAIN - 1)
        says += f", which the kernel also gives to other programs ({low} to {high})"
        return Finding("domain", "warn", says, f"export ROS_DOMAIN_ID to a number from 0 to {free}")
    return Finding("domain", "ok", says)


def discovery_range() -> Finding:
    """Which machines can see, and command, what runs here."""
    chosen = os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "")
    profile = os.environ.get("FASTDDS_DEFAULT_PROFILES_FILE", "")
    server = os.environ.get("ROS_DISCOVERY_SERVER", "")
    name = "discovery range"
    if chosen and chosen not in _RANGES:
        says = f"ROS_AUTOMATIC_DISCOVERY_RANGE: {nearest('range', chosen, _RANGES)}"
        return Finding(name, "fail", says, "unset ROS_AUTOMATIC_DISCOVERY_RANGE for this machine only, or set SUBNET")
    if profile and not Path(profile).is_file():
        says = f"FASTDDS_DEFAULT_PROFILES_FILE is {profile}, which is not there"
        return Finding(name, "fail", says, "unset it for our profile, or give a file that exists")
    if chosen == "OFF":
        return Finding(name, "warn", "OFF: no process finds another one", "unset ROS_AUTOMATIC_DISCOVERY_RANGE")
    if server:
        return Finding(name, "ok", f"whoever asks the discovery server {server}")
    if chosen == "SUBNET" or (chosen == "SYSTEM_DEFAULT" and not profile):
        remedy = "unset ROS_AUTOMATIC_DISCOVERY_RANGE to keep to this machine; do so unless the network is yours alone"
        return Finding(name, "note", f"{chosen}: every machine of this network in the same domain", remedy)
    if chosen == "LOCALHOST":
        return Finding(name, "ok", "LOCALHOST: this machine only")
    if profile:
        return Finding(name, "ok", f"as your profile {profile} says")
    return Finding(name, "ok", "this machine only; ROS_AUTOMATIC_DISCOVERY_RANGE=SUBNET reaches others")


# ---------------------------------------------------------------------------------------------------------------------
# From the facts


def middleware(facts: Facts) -> Finding:
    about = facts.get("installation")
    if about is None:
        says = f"ROS does not start: {facts['trouble'] or 'it said nothing'}"
        remedy = f"mend what failed above; else unset RMW_IMPLEMENTATION, or install what it names; else {GET_ROS}"
        return Finding("middleware", "fail", says, remedy)
    major = about["version"].split(".")[0]
    distro = _DISTROS.get(major, "unknown distro")
    whose = "our profile" if about["profile_is_ours"] else about["profile"] or "no profile file"
    says = f"{about['middleware']}, {whose}; rclpy {about['version'] or 'of unknown version'} ({distro})"
    if major.isdigit() and int(major) < _OLDEST:
        return Finding("middleware", "warn", says, "use Jazzy or newer: older ones are not tested")
    return Finding("middleware", "ok", says)


def participants(facts: Facts) -> Finding:
    about = facts.get("graph")
    if about is None:
        return _silent("participants", facts)
    return Finding("participants", "ok", ", ".join(about["nodes"]) or "no other node in this domain")


def images(facts: Facts) -> Finding:
    about = facts.get("graph")
    if about is None:
        return _silent("ROS images", facts)
    return Finding("ROS images", "ok", ", ".join(about["images"]) or "no image topic in this domain")


def arm(facts: Facts, namespace: str | None) -> Finding:
    """Whether the arm node in ``namespace`` answers, and what it lacks; None: only which there are."""
    about = facts.get("graph")
    if about is None or (namespace is not None and "arm" not in facts):
        return _silent("arm", facts) if namespace is None else _unreachable(namespace, "as ROS does not answer")
    there = [space or "/" for space in about["arms"]]
    if namespace is None:
        if there:
            return Finding("arm", "ok", f"in {', '.join(there)}; --namespace {there[0]} asks it")
        return Finding("arm", "note", "no arm node in this domain", f"to start one: {_START} panda")
    return _judge(facts["arm"], namespace, there)


def _judge(told: Mapping[str, Any], namespace: str, there: list[str]) -> Finding:
    name = f"/{namespace.strip('/')}/arm"
    if not told["found"]:
        others = f"; there is one in {', '.join(there)}" if there else ""
        return Finding("arm", "fail", f"no {name} in this domain{others}", f"to start one: {_START} {namespace}")
    facts = told["parameters"] or {}
    kind = f"{facts.get('arm.name') or 'arm'}, {facts.get('arm.task') or 'no task'}"
    says = f"{name} ({kind}) is {told['lifecycle'] or 'silent'}, {told['mode'] or 'mode not known'}"
    stamped = [] if facts.get("arm.lockstep") else told["silent"]  # in lock-step it speaks when it is stepped
    if told["lifecycle"] is None or told["parameters"] is None:
        return Finding("arm", "fail", f"{says}: its services do not answer", "it hangs or was killed: start it again")
    if told["lifecycle"] != "active":
        return Finding("arm", "warn", says, f"ros2 lifecycle set {name} activate, or start it again")
    if told["estop"]:
        remedy = f"when it is safe: robot-rl call release_estop --namespace {namespace}"
        return Finding("arm", "warn", f"{says}: {told['safety']}", remedy)
    if told["mode"] == "fault":
        remedy = f"remove the cause, then: robot-rl call clear_fault --namespace {namespace}"
        return Finding("arm", "warn", f"{says}: {told['safety']}", remedy)
    if stamped:
        remedy = "see what the node says on its terminal; start it again"
        return Finding("arm", "warn", f"{says}; silent: {', '.join(stamped)}", remedy)
    if told["commanders"] > 1:
        remedy = "end all but one: the arm refuses every one of them"
        return Finding("arm", "warn", f"{says}; {told['commanders']} publishers of target_pose", remedy)
    return Finding("arm", "ok", says)


def _unreachable(namespace: str, why: str) -> Finding:
    return Finding("arm", "fail", f"/{namespace.strip('/')}/arm cannot be asked {why}", GET_ROS)


def round_trip(facts: Facts) -> Finding:
    about = facts.get("round_trip")
    if about is None:
        return _silent("round trip", facts)
    if not about:
        remedy = "unset RMW_IMPLEMENTATION and FASTDDS_DEFAULT_PROFILES_FILE; allow UDP on loopback in the firewall"
        return Finding("round trip", "fail", "two processes on this machine do not reach each other", remedy)
    says = f"p50 {about['p50_ms']:.2f} ms, p99 {about['p99_ms']:.2f} ms, max {about['max_ms']:.2f} ms between processes"
    if about["p99_ms"] > _SLOW_MS:
        remedy = "end other work on this machine; unset FASTDDS_DEFAULT_PROFILES_FILE to compare with our profile"
        return Finding("round trip", "warn", says, remedy, about)
    return Finding("round trip", "ok", says, measured=about)
