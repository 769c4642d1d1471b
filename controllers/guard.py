"""The guard between a policy and an arm. It runs at the control rate, in every world, by the same lines.

What can be clipped is clipped and counted: workspace box in position and rotation, speed of the reference, spring force
and moment. What cannot be clipped trips into a hold that only ``clear_fault`` ends: a measured value that is not
finite, a joint faster than its limit, a contact force above the trip level. A command is a lease: after ``valid_s``
without a new one the reference stands still. There is no safety rating on any of this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controllers.jit import kernel
from robot_rl.config import check, number
from robot_rl.geometry import quat_multiply, quat_normalize, rotation_between, rotvec_to_quat
from robot_rl.types import ArmCommand, ArmLimits, ArmState, Bounds

Array = NDArray[np.float64]

# What the guard did in a tick; each has its own counter.
CLIPS = ("box", "rotation", "speed", "force", "lease")
BOX, ROTATION, SPEED, FORCE, LEASE = range(5)
# Why it tripped; 0 is no fault.
FAULTS = (
    "", "not finite", "joint speed", "contact force", "energy depleted",
    "emergency stop", "state too old", "clock went backwards", "control loop late", "heartbeat lost", "arm stopped",
)  # fmt: skip
NO_FAULT, NOT_FINITE, JOINT_SPEED, CONTACT_FORCE, ENERGY = range(5)
# These are found by whoever runs the control loop, and given to ``GuardedArm.trip``; the last one by the arm itself.
EMERGENCY_STOP, STATE_TOO_OLD, CLOCK_BACKWARDS, LOOP_LATE, HEARTBEAT_LOST, ARM_STOPPED = range(5, 11)


def code_of(fault: str) -> int:
    """The code of a fault by its name, whatever follows a colon; -1 for an unknown one."""
    name = fault.partition(":")[0]
    return FAULTS.index(name) if name in FAULTS else -1


@dataclass(frozen=True)
class Config:
    control_hz: float = number(1000.0, 10.0, 4000.0, "Hz, rate of the guard and of the law")
    joint_speed_share: float = number(0.9, 0.0, 1.0, "share of the arm's joint speed limit at which it trips")

    def __post_init__(self) -> None:
        check(self)


class GuardLimits(NamedTuple):
    """Bounds of a task and limits of an arm as the arrays the kernel reads. ``inf`` is no bound; 0.0 is one."""

    box_lower_m: Array  # (3,)
    box_upper_m: Array  # (3,)
    box_quat_xyzw: Array  # (4,)
    box_rot_rad: Array  # (3,)
    speed_mps: float
    speed_radps: float
    force_n: float
    torque_nm: float
    trip_force_n: float
    trip_radps: Array  # (dof,)
    stiffness_max: Array  # (6,)


class GuardMemory(NamedTuple):
    """What the guard remembers between ticks; arrays, so that compiled and plain code change the same numbers."""

    target_pos_m: Array  # (3,) as commanded
    target_quat_xyzw: Array  # (4,)
    target_stiffness: Array  # (6,)
    target_gripper: Array  # (1,)
    age_s: Array  # (1,) of the command
    valid_s: Array  # (1,) its lease
    pos_m: Array  # (3,) reference the law is given
    quat_xyzw: Array  # (4,)
    stiffness: Array  # (6,)
    gripper: Array  # (1,)
    fault: NDArray[np.int64]  # (1,)
    clips: NDArray[np.int64]  # (5,) ticks in which each clip acted


def make_limits(bounds: Bounds, limits: ArmLimits, config: Config) -> GuardLimits:
    """Raises ValueError where a bound is looser than the arm's own limit."""
    for name, limit in (("speed_mps", limits.speed_max_mps), ("speed_radps", limits.speed_max_radps)):
        if getattr(bounds, name) > limit:
            raise ValueError(f"Bounds.{name} is {getattr(bounds, name)}: this arm allows at most {limit}")
    return GuardLimits(
        box_lower_m=np.asarray(bounds.box_lower_m, np.float64),
        box_upper_m=np.asarray(bounds.box_upper_m, np.float64),
        box_quat_xyzw=np.asarray(bounds.box_quat_xyzw, np.float64),
        box_rot_rad=np.asarray(bounds.box_rot_rad, np.float64),
        speed_mps=float(bounds.speed_mps),
        speed_radps=float(bounds.speed_radps),
        force_n=float(bounds.force_n),
        torque_nm=float(bounds.torque_nm),
        trip_force_n=float(bounds.trip_force_n),
        trip_radps=np.asarray(limits.dq_max_radps, np.float64) * config.joint_speed_share,
        stiffness_max=np.asarray(limits.stiffness_max, np.float64),
    )


def open_limits(limits: ArmLimits) -> GuardLimits:
    """Limits that never act: what a bare twin, without a GuardedArm around it, runs the same lines with."""
    inf = math.inf
    return GuardLimits(
        box_lower_m=np.full(3, -inf),
        box_upper_m=np.full(3, inf),
        box_quat_xyzw=np.array([0.0, 0.0, 0.0, 1.0]),
        box_rot_rad=np.full(3, inf),
        speed_mps=inf,
        speed_radps=inf,
        force_n=inf,
        torque_nm=inf,
        trip_force_n=inf,
        trip_radps=np.full(limits.dof, inf),
        stiffness_max=np.full(6, inf),
    )


def make_memory(state: ArmState, stiffness: Array) -> GuardMemory:
    """A guard that holds the arm where it is."""
    memory = GuardMemory(
        target_pos_m=np.zeros(3),
        target_quat_xyzw=np.zeros(4),
        target_stiffness=np.asarray(stiffness, np.float64).copy(),
        target_gripper=np.zeros(1),
        age_s=np.zeros(1),
        valid_s=np.zeros(1),
        pos_m=np.zeros(3),
        quat_xyzw=np.zeros(4),
        stiffness=np.asarray(stiffness, np.float64).copy(),
        gripper=np.zeros(1),
        fault=np.zeros(1, np.int64),
        clips=np.zeros(len(CLIPS), np.int64),
    )
    hold_here(memory, state)
    return memory


def is_finite(state: ArmState) -> bool:
    """Whether every measured number is one."""
    arrays = (state.q_rad, state.dq_radps, state.tcp_pos_m, state.tcp_quat_xyzw, state.tcp_wrench)
    return all(bool(np.isfinite(array).all()) for array in arrays) and math.isfinite(state.gripper)


def hold_here(memory: GuardMemory, state: ArmState) -> None:
    """Forget the command and take the measured pose as the reference. Raises ValueError where it is not finite."""
    if not is_finite(state):
        raise ValueError(f"the arm measures no numbers (tcp at {state.tcp_pos_m.tolist()}): there is no pose to hold")
    memory.pos_m[:] = memory.target_pos_m[:] = state.tcp_pos_m
    memory.quat_xyzw[:] = memory.target_quat_xyzw[:] = state.tcp_quat_xyzw
    memory.gripper[0] = memory.target_gripper[0] = state.gripper
    drop_command(memory)


def drop_command(memory: GuardMemory) -> None:
    """End the lease: from the next tick on the reference stands still."""
    memory.age_s[0], memory.valid_s[0] = 0.0, 0.0


def take_command(memory: GuardMemory, command: ArmCommand, stiffness: Array) -> None:
    """Begin a new lease. Raises ValueError, changing nothing, for a command not finite or of the wrong shape."""
    wanted = stiffness if command.stiffness is None else np.asarray(command.stiffness, np.float64)
    for name, value, size in (
        ("tcp_pos_m", command.tcp_pos_m, 3),
        ("tcp_quat_xyzw", command.tcp_quat_xyzw, 4),
        ("stiffness", wanted, 6),
    ):
        if np.shape(value) != (size,):
            raise ValueError(f"ArmCommand.{name} has shape {np.shape(value)}: give ({size},)")
        if not math.isfinite(float(np.sum(value))):  # any NaN or infinity leaves its mark on the sum
            raise ValueError(f"ArmCommand.{name} is {np.asarray(value).tolist()}: every number has to be finite")
    norm = math.sqrt(float(np.dot(command.tcp_quat_xyzw, command.tcp_quat_xyzw)))
    if abs(norm - 1.0) > 1e-3:
        raise ValueError(f"ArmCommand.tcp_quat_xyzw has norm {norm:g}: give a unit quaternion")
    if not (math.isfinite(command.gripper) and math.isfinite(command.valid_s) and command.valid_s >= 0.0):
        raise ValueError(f"ArmCommand: gripper {command.gripper} and valid_s {command.valid_s} have to be finite, >= 0")
    if np.any(wanted < 0.0):
        raise ValueError(f"ArmCommand.stiffness is {wanted.tolist()}: every number has to be >= 0")
    memory.target_pos_m[:] = command.tcp_pos_m
    memory.target_quat_xyzw[:] = np.asarray(command.tcp_quat_xyzw) / norm
    memory.target_stiffness[:] = wanted
    memory.target_gripper[0] = min(max(command.gripper, 0.0), 1.0)
    memory.age_s[0], memory.valid_s[0] = 0.0, command.valid_s


@kernel
def _shorten(vector: Array, longest: float) -> bool:
    """Scale a vector (3,) in place to at most ``longest``; whether that changed it."""
    norm = math.sqrt(vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2])
    if norm <= longest:
        return False
    scale = longest / norm
    for i in range(3):
        vector[i] *= scale
    return True


@kernel
def _clip_each(vector: Array, lower: Array, upper: Array) -> bool:
    """Clip a vector (3,) in place, per axis; whether that changed it."""
    changed = False
    for i in range(3):
        clipped = min(max(vector[i], lower[i]), upper[i])
        if clipped != vector[i]:
            vector[i] = clipped
            changed = True
    return changed


@kernel
def find_fault(
    limits: GuardLimits, q_rad: Array, dq_radps: Array, pos_m: Array, quat_xyzw: Array, wrench: Array
) -> int:
    """The code of what cannot be clipped, or NO_FAULT."""
    total = 0.0
    for i in range(len(q_rad)):
        total += abs(q_rad[i]) + abs(dq_radps[i])
    for i in range(3):
        total += abs(pos_m[i]) + abs(quat_xyzw[i]) + abs(wrench[i]) + abs(wrench[i + 3])
    if not math.isfinite(total + abs(quat_xyzw[3])):
        return NOT_FINITE
    for i in range(len(dq_radps)):
        if abs(dq_radps[i]) > limits.trip_radps[i]:
            return JOINT_SPEED
    if math.sqrt(wrench[0] ** 2 + wrench[1] ** 2 + wrench[2] ** 2) > limits.trip_force_n:
        return CONTACT_FORCE
    return NO_FAULT


@kernel
def _step_position(limits: GuardLimits, memory: GuardMemory, dt_s: float) -> None:
    """Move the reference position towards the target: into the box, no faster than the speed limit."""
    goal = memory.target_pos_m.copy()
    if _clip_each(goal, limits.box_lower_m, limits.box_upper_m):
        memory.clips[BOX] += 1
    step = goal - memory.pos_m
    if _shorten(step, limits.speed_mps * dt_s):
        memory.clips[SPEED] += 1
    for i in range(3):
        memory.pos_m[i] += step[i]


@kernel
def _step_rotation(limits: GuardLimits, memory: GuardMemory, dt_s: float) -> None:
    """The same for the orientation. The target is clipped, each axis of its rotation vector from the box's centre; the
    shortest way to it may bulge out of the box by some thousandths of a radian."""
    away = rotation_between(memory.target_quat_xyzw, limits.box_quat_xyzw)
    goal = memory.target_quat_xyzw
    if _clip_each(away, -limits.box_rot_rad, limits.box_rot_rad):
        goal = quat_multiply(rotvec_to_quat(away), limits.box_quat_xyzw)
        memory.clips[ROTATION] += 1
    step = rotation_between(goal, memory.quat_xyzw)
    if _shorten(step, limits.speed_radps * dt_s):
        memory.clips[SPEED] += 1
    memory.quat_xyzw[:] = quat_normalize(quat_multiply(rotvec_to_quat(step), memory.quat_xyzw))


@kernel
def _leash(limits: GuardLimits, memory: GuardMemory, pos_m: Array, quat_xyzw: Array) -> None:
    """Keep the reference so near the arm that the springs pull with at most ``force_n`` and ``torque_nm``."""
    spring = memory.stiffness[:3] * (memory.pos_m - pos_m)
    force = math.sqrt(spring[0] ** 2 + spring[1] ** 2 + spring[2] ** 2)
    if force > limits.force_n:
        for i in range(3):
            memory.pos_m[i] = pos_m[i] + limits.force_n / force * (memory.pos_m[i] - pos_m[i])
        memory.clips[FORCE] += 1
    lead = rotation_between(memory.quat_xyzw, quat_xyzw)
    spring = memory.stiffness[3:] * lead
    moment = math.sqrt(spring[0] ** 2 + spring[1] ** 2 + spring[2] ** 2)
    if moment > limits.torque_nm:
        for i in range(3):
            lead[i] *= limits.torque_nm / moment
        memory.quat_xyzw[:] = quat_multiply(rotvec_to_quat(lead), quat_xyzw)
        memory.clips[FORCE] += 1


@kernel
def guard_tick(
    limits: GuardLimits,
    memory: GuardMemory,
    q_rad: Array,
    dq_radps: Array,
    pos_m: Array,
    quat_xyzw: Array,
    wrench: Array,
    dt_s: float,
) -> None:
    """One control tick: from what was measured and commanded to the reference in ``memory``.

    Order: fault, finite check and trips, lease, box, speed, leash. A fault freezes the reference and the gripper; an
    expired lease only lets the leash act, so that an arm pushed away gives way.
    """
    fault = find_fault(limits, q_rad, dq_radps, pos_m, quat_xyzw, wrench)
    if memory.fault[0] != NO_FAULT and fault != NOT_FINITE:  # no hold, for whatever reason, outlives its measurements
        return
    if fault != NO_FAULT:
        memory.fault[0] = fault
        if fault != NOT_FINITE:  # else the last reference stands: there is no pose to trust
            memory.pos_m[:] = pos_m
            memory.quat_xyzw[:] = quat_xyzw
        return
    for i in range(6):
        memory.stiffness[i] = min(memory.target_stiffness[i], limits.stiffness_max[i])
    memory.gripper[0] = memory.target_gripper[0]
    if memory.age_s[0] >= memory.valid_s[0]:
        memory.clips[LEASE] += 1
    else:
        memory.age_s[0] += dt_s
        _step_position(limits, memory, dt_s)
        _step_rotation(limits, memory, dt_s)
    _leash(limits, memory, pos_m, quat_xyzw)
