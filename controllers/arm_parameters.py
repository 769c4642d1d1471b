"""The parameters of an arm's node: facts that a client reads, and gains, limits and watchdogs that change live.

Every live number declares its range, so that ``ros2 param describe`` tells it and ROS itself refuses what is outside.
The stiffness has the names that CRISP's controllers use.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

from controllers import watchdog
from controllers.control_loop import ControlLoop
from controllers.messages import Names
from robot_rl.types import ArmLimits, Bounds, Pose, Start

STIFFNESS = tuple(f"task.k_{kind}_{axis}" for kind in ("pos", "rot") for axis in "xyz")
BOUNDS = ("speed_mps", "speed_radps", "force_n", "torque_nm", "trip_force_n")
BOXES = ("box_lower_m", "box_upper_m")
START = ("start.tcp", "start.gripper", "start.prop_names", "start.prop_poses")
"""Set together, atomically, they put a twin's world into a state: tcp (7,) m, xyzw; gripper; names; poses (7 N,)."""
_LIMIT_FIELDS = ("q_min_rad", "q_max_rad", "dq_max_radps", "tau_max_nm", "dtau_max_nmps", "stiffness_max")


def declare(node: Any, name: str, value: Any, doc: str, low: float | None = None, high: float | None = None) -> None:
    """One live parameter; ``high`` None or infinite is no range."""
    descriptor = ParameterDescriptor(description=doc)
    if low is not None and high is not None and math.isfinite(high) and math.isfinite(value):
        if isinstance(value, int):
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=0)]
        else:
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=float(low), to_value=float(high), step=0.0)
            ]
    node.declare_parameter(name, value, descriptor)


def declare_fact(node: Any, name: str, value: Any, doc: str) -> None:
    """A parameter that only tells."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    node.declare_parameter(name, value, ParameterDescriptor(description=doc, read_only=True), ignore_override=True)


def declare_facts(node: Any, about: Any, loop: ControlLoop, names: Names) -> None:
    """What a client needs to know before it commands this arm; ``about``: an ``arm_node.About``."""
    limits = loop.arm.limits
    declare_fact(node, "arm.name", about.arm, "which arm")
    declare_fact(node, "arm.task", about.task, "whose bounds guard it")
    declare_fact(node, "arm.lockstep", loop.lockstep, "time passes on 'step' only")
    declare_fact(node, "arm.twin", loop.twin, "a simulation, which can be put into a state")
    declare_fact(node, "arm.rate_hz", 1.0 / loop.period_s, "Hz of the control loop")
    declare_fact(node, "arm.joints", list(names.joints), "joint names")
    declare_fact(node, "arm.base_frame", names.base, "frame of targets and state")
    declare_fact(node, "arm.tcp_frame", names.tcp, "the frame that is commanded")
    declare_fact(node, "arm.default_stiffness", loop.arm.default_stiffness, "N/m, Nm/rad")
    declare_fact(node, "arm.bounds", _bounds_row(about.bounds), "the task's Bounds, field by field")
    for name in _LIMIT_FIELDS:
        declare_fact(node, f"arm.limits.{name}", getattr(limits, name), "of the arm")
    rest = [limits.speed_max_mps, limits.speed_max_radps, limits.gripper_width_m, limits.gripper_force_n]
    declare_fact(node, "arm.limits.scalars", [float(x) for x in rest], "speed m/s, rad/s; gripper m, N")
    declare_fact(node, "arm.limits.cannot", sorted(limits.cannot) or [""], "what it has to refuse")


def declare_live(node: Any, loop: ControlLoop) -> None:
    limits, bounds = loop.arm.limits, loop.arm.bounds
    for index, name in enumerate(STIFFNESS):
        stiffness = float(loop.arm.default_stiffness[index])
        declare(node, name, stiffness, "N/m" if index < 3 else "Nm/rad", 0.0, float(limits.stiffness_max[index]))
    for name in BOUNDS:
        bound = float(getattr(bounds, name))
        declare(node, f"limits.{name}", bound, "bound of the guard, at most the task's", 0.0, bound)
    for name in BOXES:
        box_m = [float(x) for x in getattr(bounds, name)]
        declare(node, f"limits.{name}", box_m, "m, workspace of the tcp, inside of the task's")
    for field in dataclasses.fields(watchdog.Config):
        value, meta = getattr(loop.config, field.name), field.metadata
        declare(node, f"watchdog.{field.name}", value, meta["doc"], meta["low"], meta["high"])
    if loop.twin:
        for name, value in zip(START, ([0.0] * 7, 0.0, [""], [0.0]), strict=True):
            declare(node, name, value, "set all four together: the world is put into this state")


def apply_overrides(node: Any, loop: ControlLoop) -> None:
    """Take what `--ros-args -p` or a launch file gave; raises ValueError as ``apply`` does."""
    live = [name for name in names_declared(node) if name.startswith(("task.", "limits.", "watchdog."))]
    apply(loop, {name: node.get_parameter(name).value for name in live})


def names_declared(node: Any) -> list[str]:
    """What ``declare_facts`` and ``declare_live`` declared, to be taken back."""
    prefixes = ("arm.", "task.", "limits.", "watchdog.", "start.")
    return [name for name in node._parameters if name.startswith(prefixes)]


def apply(loop: ControlLoop, changes: dict[str, Any]) -> None:
    """Take live changes, all or none; raises ValueError that names what cannot be. Bounds can be tightened, never
    loosened beyond the task's."""
    stiffness = loop.arm.default_stiffness.copy()
    for index, name in enumerate(STIFFNESS):
        stiffness[index] = changes.get(name, stiffness[index])
    if "stiffness" in loop.arm.limits.cannot and not np.array_equal(stiffness, loop.arm.default_stiffness):
        raise ValueError("task.k_*: this arm cannot change its stiffness, and the guard has to know the true one")
    fields = {name.removeprefix("limits."): value for name, value in changes.items() if name.startswith("limits.")}
    for name in BOXES:
        if name in fields and len(fields[name]) != 3:
            raise ValueError(f"limits.{name} has {len(fields[name])} numbers: give 3, m in x, y, z")
        widest, inwards = getattr(loop.widest, name), 1.0 if name == "box_lower_m" else -1.0
        if name in fields and not all(inwards * (a - b) >= 0.0 for a, b in zip(fields[name], widest, strict=True)):
            raise ValueError(
                f"limits.{name} = {list(fields[name])} is outside of the task's, {list(map(float, widest))}"
            )
    given: dict[str, Any] = {name: tuple(value) if name in BOXES else value for name, value in fields.items()}
    bounds = dataclasses.replace(loop.arm.bounds, **given)
    timing = {name.removeprefix("watchdog."): value for name, value in changes.items() if name.startswith("watchdog.")}
    config = dataclasses.replace(loop.config, **timing)

    def change() -> None:
        loop.arm.set_bounds(bounds)
        loop.arm.default_stiffness = stiffness
        loop.config = config

    loop.ask(change)


def to_start(changes: dict[str, Any]) -> Start:
    """The Start of the four parameters START; raises ValueError where one is missing or misshapen."""
    missing = [name for name in START if name not in changes]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing: set {', '.join(START)} together, atomically")
    tcp = np.asarray(changes["start.tcp"], np.float64)
    names = [name for name in changes["start.prop_names"] if name]
    poses = np.asarray(changes["start.prop_poses"], np.float64)
    if tcp.shape != (7,) or not np.isfinite(tcp).all():
        raise ValueError(f"start.tcp = {tcp.tolist()}: give 7 finite numbers, m and xyzw")
    if not np.isfinite(poses).all():
        raise ValueError(f"start.prop_poses = {poses.tolist()}: every number has to be finite")
    if names and poses.shape != (7 * len(names),):
        raise ValueError(f"start.prop_poses has {poses.size} numbers: {len(names)} props take {7 * len(names)}")
    rows = poses.reshape(-1, 7) if names else np.zeros((0, 7))
    for name, row in zip(["start.tcp", *names], [tcp, *rows], strict=True):
        if abs(np.linalg.norm(row[3:]) - 1.0) > 1e-3:
            raise ValueError(f"{name} has the quaternion {row[3:].tolist()}: give one of norm 1, xyzw")
    props = {name: Pose(row[:3].copy(), row[3:].copy()) for name, row in zip(names, rows, strict=True)}
    return Start(Pose(tcp[:3], tcp[3:]), float(changes["start.gripper"]), props)


def from_start(start: Start) -> dict[str, Any]:
    """The other way round, for a client."""
    rows = [np.concatenate([pose.pos_m, pose.quat_xyzw]) for pose in start.props.values()]
    return {
        "start.tcp": np.concatenate([start.tcp.pos_m, start.tcp.quat_xyzw]).tolist(),
        "start.gripper": float(start.gripper),
        "start.prop_names": list(start.props) or [""],
        "start.prop_poses": np.concatenate(rows).tolist() if rows else [0.0],
    }


def to_limits(facts: dict[str, Any]) -> ArmLimits:
    """The ArmLimits that ``declare_facts`` told."""
    arrays = {name: np.asarray(facts[f"arm.limits.{name}"], np.float64) for name in _LIMIT_FIELDS}
    speed_mps, speed_radps, width_m, force_n = facts["arm.limits.scalars"]
    return ArmLimits(
        **arrays,
        speed_max_mps=speed_mps,
        speed_max_radps=speed_radps,
        gripper_width_m=width_m,
        gripper_force_n=force_n,
        cannot=frozenset(name for name in facts["arm.limits.cannot"] if name),
    )


def fact_names() -> Sequence[str]:
    """What ``to_limits`` and a client ask for."""
    own = ("name", "task", "lockstep", "twin", "rate_hz", "joints", "base_frame", "tcp_frame", "default_stiffness")
    limits = (*_LIMIT_FIELDS, "scalars", "cannot")
    return [f"arm.{name}" for name in (*own, "bounds")] + [f"arm.limits.{name}" for name in limits]


def _bounds_row(bounds: Bounds) -> list[float]:
    """Every number of a Bounds in the order of its fields; to be compared."""
    return [float(x) for value in dataclasses.astuple(bounds) for x in np.atleast_1d(np.asarray(value, np.float64))]


def bounds_differ(bounds: Bounds, row: Sequence[float]) -> bool:
    """Whether a node's ``arm.bounds`` are others than these."""
    return not np.allclose(_bounds_row(bounds), np.asarray(row, np.float64), rtol=1e-9, atol=1e-12)
