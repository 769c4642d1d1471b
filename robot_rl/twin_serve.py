"""``robot-rl twin serve``: a twin behind a vendor's own protocol, for our drivers and for anybody's program."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import numpy as np

from robot_rl import build
from robot_rl.find import find, nearest

PROTOCOLS = {"fci": ("sim.protocols.franka_fci", "fr3"), "rtde": ("sim.protocols.ur_rtde", "ur5e")}
"""Protocol -> module, and the arm that speaks it."""


def make_server(protocol: str, arm: str, task: str, address: str, lockstep: bool, settings: Sequence[str] = ()) -> Any:
    """A server that listens; ``arm`` may be empty. Raises LookupError for what there is not, ValueError for an arm that
    does not speak the protocol or a setting that cannot be taken, OSError where the address is taken."""
    if protocol not in PROTOCOLS:
        raise LookupError(nearest("protocol", protocol, PROTOCOLS))
    name, speaker = PROTOCOLS[protocol]
    if arm and arm != speaker:
        raise ValueError(f"--arm {arm}: the twin that speaks {protocol} is {speaker}; leave --arm out, or give that")
    configs = build.make_configs(task, speaker, "sim", settings, {"protocol": name})
    built = find("tasks", task).make(configs["task"])
    twin = build.make_arm(task, speaker, "sim", configs, built)
    start = built.reset(np.random.default_rng(0))  # inside the task's bounds, with its objects about
    twin.place(start)
    twin.drive(np.zeros(twin.limits.dof), start.gripper)  # the first tick may have to be compiled: not before a client
    twin.place(start)
    return importlib.import_module(name).make(configs["protocol"], twin, address, lockstep)


def serve(protocol: str, arm: str, task: str, address: str, lockstep: bool, settings: Sequence[str] = ()) -> int:
    """Serve until SIGINT or SIGTERM; returns 0. Raises as ``make_server`` does."""
    server = make_server(protocol, arm, task, address, lockstep, settings)
    stopped: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        stopped.append(signum)

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        pace = "in lock-step" if lockstep else "in real time"
        print(f"{server.twin.name} with {task} is serving {protocol} at {address}, {pace}", file=sys.stderr, flush=True)
        server.run(lambda: bool(stopped))
    finally:
        server.close()
        for signum, handler in before.items():
            signal.signal(signum, handler)
    print(f"stopped after {server.t_s:.1f} s of the robot, {server.late} ticks late", file=sys.stderr)
    return 0
