"""Where our types meet messages: topic names, QoS and conversions of the arm's graph. Standard messages only.
Pictures are in ``images.py``, RViz markers in ``markers.py``.

Names and QoS are those that CRISP's ros2_control controllers and its Python client expect. All topics are relative to
the arm's namespace. State is published by best effort and subscribed to by best effort, since a reliable subscriber
would not match; in lock-step, where every message counts, both sides are reliable. Commands are reliable with depth 1;
what a latecomer has to know is latched.

    target_pose       PoseStamped         in   pose of the tcp in the base frame
    target_stiffness  Float64MultiArray   in   6 numbers N/m, Nm/rad
    target_gripper    Float64MultiArray   in   1 number, 0 open .. 1 closed
    heartbeat         Header              in   50 Hz, from whoever commands
    step              Float64MultiArray   in   lock-step only: STEP, the rest of a command and the time to let pass
    current_pose, current_twist, joint_states, external_wrench, gripper in joint_states    out, one stamp
    applied_target    PoseStamped         out  the reference after guard and energy filter, and when it was applied
    energy_state      Float64MultiArray   out  ENERGY
    guard_state       Float64MultiArray   out  GUARD
    props             MultiDOFJointState  out  poses of the scene's objects, where something measures them
    safety_state      String              out  latched: mode and cause, in words
    estop_state       Bool                out  latched
    episode_step      JointState          out of a policy: what it did in which state (hardware/ros.py)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose as PoseMessage
from geometry_msgs.msg import PoseStamped, Transform, TwistStamped, WrenchStamped
from numpy.typing import NDArray
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState, MultiDOFJointState
from std_msgs.msg import Float64MultiArray, MultiArrayDimension

from controllers.guard import CLIPS
from robot_rl.types import ArmState, Pose

Array = NDArray[np.float64]

TARGET_POSE, TARGET_STIFFNESS, TARGET_GRIPPER = "target_pose", "target_stiffness", "target_gripper"
HEARTBEAT, STEP_TOPIC = "heartbeat", "step"
CURRENT_POSE, CURRENT_TWIST, JOINT_STATES, WRENCH = "current_pose", "current_twist", "joint_states", "external_wrench"
APPLIED_TARGET, ENERGY_STATE, GUARD_STATE, PROPS = "applied_target", "energy_state", "guard_state", "props"
SAFETY_STATE, ESTOP_STATE, EPISODE_STEP = "safety_state", "estop_state", "episode_step"
NODE = "arm"
"""Name of the arm's node: its services are NODE/clear_fault and so on."""

COMMAND_QOS = QoSProfile(depth=1)  # reliable
INPUT_QOS = QoSProfile(depth=20)  # the same, where it is taken: a stranger must not push out the commander's
STATE_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
ENERGY_QOS = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)  # where a policy adds it up
LOCKSTEP_QOS = QoSProfile(depth=10)  # reliable
LATCHED_QOS = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
DIAGNOSTICS_QOS = QoSProfile(depth=10)

MODES = ("inactive", "holding", "following", "floating", "homing", "fault", "emergency stop")
"""What the arm's node does; ``guard_state`` gives the index."""
ENERGY = (
    "sec", "nanosec", "share", "alpha_min",
    "ledger_j", "potential_j", "free_j", "free_min_j", "ledger_min_j", "work_j", "credit_j", "spill_j",
    "alpha", "gamma", "beta", "intervened", "negative", "force_max_n", "cost",
)  # fmt: skip
"""Columns of ``energy_state``: stamp, what a policy is shown, and ``ledger.summarize`` since the last message."""
GUARD = ("sec", "nanosec", "world", "mode", "fault", "energy_state", "refused", *CLIPS)
"""Columns of ``guard_state``: stamp, how often a twin was put into a state, indices into MODES, ``guard.FAULTS`` and
``ledger.STATES``, counters."""
STEP = ("target_sec", "target_nanosec", "dt_s", "valid_s", "gripper", *(f"stiffness_{i}" for i in range(6)))
"""Columns of ``step``: it is carried out once the target of this stamp was; NaN stiffness is the arm's default."""
GRIPPER_JOINT = "gripper"
"""Joint of ``joint_states`` whose position is the gripper's, 0 open .. 1 closed."""


class Names(NamedTuple):
    """What an arm's joints and frames are called."""

    joints: tuple[str, ...]
    base: str
    tcp: str


_UR = tuple(f"{name}_joint" for name in ("shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3"))


def names_of(arm: str, dof: int) -> Names:
    """The makers' names where they are known, else ``joint1..n``, ``base`` and ``tcp``."""
    if arm in ("panda", "fr3"):
        return Names(tuple(f"{arm}_joint{i + 1}" for i in range(dof)), "base", f"{arm}_hand_tcp")
    if arm.startswith("ur"):
        return Names(_UR, "base", "tool0")
    return Names(tuple(f"joint{i + 1}" for i in range(dof)), "base", "tcp")


# ---------------------------------------------------------------------------------------------------------------------
# Stamps


def to_stamp(stamp_ns: int) -> Time:
    return Time(sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000)


def to_ns(stamp: Time) -> int:
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


# ---------------------------------------------------------------------------------------------------------------------
# Poses and states


def to_pose(pos_m: Array, quat_xyzw: Array) -> PoseMessage:
    message = PoseMessage()
    message.position.x, message.position.y, message.position.z = (float(v) for v in pos_m)
    _set_quat(message.orientation, quat_xyzw)
    return message


def to_pose_stamped(pos_m: Array, quat_xyzw: Array, frame: str, stamp_ns: int) -> PoseStamped:
    message = PoseStamped(pose=to_pose(pos_m, quat_xyzw))
    message.header.frame_id, message.header.stamp = frame, to_stamp(stamp_ns)
    return message


def from_pose(message: PoseMessage) -> Pose:
    p, q = message.position, message.orientation
    return Pose(np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w]))


def _set_quat(message: Any, quat_xyzw: Array) -> None:
    message.x, message.y, message.z, message.w = (float(v) for v in quat_xyzw)


def _set_vector(message: Any, vector: Array) -> None:
    message.x, message.y, message.z = (float(v) for v in vector)


class StateMessages(NamedTuple):
    """One ArmState as the four messages of the same stamp."""

    pose: PoseStamped
    twist: TwistStamped
    joints: JointState
    wrench: WrenchStamped


def to_state(state: ArmState, names: Names, stamp_ns: int, tare: Array | None = None) -> StateMessages:
    """``joints`` has the gripper behind the joints; twist and wrench have the axes of the base frame. ``tare`` (6,) N,
    Nm is taken from the wrench."""
    stamp = to_stamp(stamp_ns)
    pose = to_pose_stamped(state.tcp_pos_m, state.tcp_quat_xyzw, names.base, stamp_ns)
    twist, wrench, joints = TwistStamped(), WrenchStamped(), JointState()
    for message in (twist, wrench, joints):
        message.header.frame_id, message.header.stamp = names.base, stamp
    _set_vector(twist.twist.linear, state.tcp_twist[:3])
    _set_vector(twist.twist.angular, state.tcp_twist[3:])
    measured = state.tcp_wrench if tare is None else state.tcp_wrench - tare
    _set_vector(wrench.wrench.force, measured[:3])
    _set_vector(wrench.wrench.torque, measured[3:])
    joints.name = [*names.joints, GRIPPER_JOINT]
    joints.position = [*state.q_rad.tolist(), float(state.gripper)]
    joints.velocity = [*state.dq_radps.tolist(), 0.0]
    joints.effort = [*state.tau_nm.tolist(), 0.0]
    return StateMessages(pose, twist, joints, wrench)


def from_state(messages: StateMessages, joints: Sequence[str], gripper: str | None = GRIPPER_JOINT) -> ArmState:
    """The ArmState of four messages; ``t_s`` is the stamp of the pose. Joints are found by name, velocities or efforts
    that a driver leaves out are 0. Raises ValueError that names a joint that is not there."""
    pose, twist, wrench = from_pose(messages.pose.pose), messages.twist.twist, messages.wrench.wrench
    order = _indices(messages.joints, joints)
    grip = 0.0 if gripper is None else float(messages.joints.position[_indices(messages.joints, [gripper])[0]])
    return ArmState(
        t_s=to_ns(messages.pose.header.stamp) * 1e-9,
        q_rad=_pick(messages.joints.position, order),
        dq_radps=_pick(messages.joints.velocity, order),
        tau_nm=_pick(messages.joints.effort, order),
        tcp_pos_m=pose.pos_m,
        tcp_quat_xyzw=pose.quat_xyzw,
        tcp_twist=np.array([*_vector(twist.linear), *_vector(twist.angular)]),
        tcp_wrench=np.array([*_vector(wrench.force), *_vector(wrench.torque)]),
        gripper=grip,
    )


def _indices(message: JointState, joints: Sequence[str]) -> list[int]:
    where = {name: index for index, name in enumerate(message.name)}
    missing = [name for name in joints if name not in where]
    if missing:
        raise ValueError(f"joint_states has no joint {', '.join(missing)}: it has {', '.join(where)}")
    return [where[name] for name in joints]


def _pick(values: Sequence[float], order: Sequence[int]) -> Array:
    return np.array([values[i] for i in order] if len(values) else [0.0] * len(order))


def _vector(message: Any) -> tuple[float, float, float]:
    return message.x, message.y, message.z


# ---------------------------------------------------------------------------------------------------------------------
# Arrays with named columns


def to_columns(columns: Sequence[str], values: Sequence[float]) -> Float64MultiArray:
    """A row of numbers whose single dimension is labelled with the names of its columns."""
    message = Float64MultiArray()
    message.layout.dim = [MultiArrayDimension(label=",".join(columns), size=len(columns), stride=len(columns))]
    message.data = [float(value) for value in values]
    return message


def from_columns(message: Float64MultiArray, columns: Sequence[str]) -> dict[str, float]:
    """Raises ValueError where the message has other columns."""
    label = message.layout.dim[0].label if message.layout.dim else ""
    if label != ",".join(columns) or len(message.data) != len(columns):
        raise ValueError(
            f"a message with the columns '{label}': '{','.join(columns)}' is needed; are both of one version?"
        )
    return dict(zip(columns, message.data, strict=True))


def stamp_columns(stamp_ns: int) -> tuple[float, float]:
    """``sec, nanosec``: both whole, so that they are exact in float64."""
    return float(stamp_ns // 1_000_000_000), float(stamp_ns % 1_000_000_000)


def columns_ns(row: Mapping[str, float], prefix: str = "") -> int:
    return int(row[f"{prefix}sec"]) * 1_000_000_000 + int(row[f"{prefix}nanosec"])


# ---------------------------------------------------------------------------------------------------------------------
# Objects of the scene


def to_props(poses: Mapping[str, Array], frame: str, stamp_ns: int) -> MultiDOFJointState:
    """``poses``: name -> (7,) m, xyzw in the base frame."""
    message = MultiDOFJointState()
    message.header.frame_id, message.header.stamp = frame, to_stamp(stamp_ns)
    message.joint_names = list(poses)
    for pose in poses.values():
        transform = Transform()
        _set_vector(transform.translation, pose[:3])
        _set_quat(transform.rotation, pose[3:])
        message.transforms.append(transform)
    return message


def from_props(message: MultiDOFJointState) -> dict[str, Array]:
    out = {}
    for name, transform in zip(message.joint_names, message.transforms, strict=True):
        q = transform.rotation
        out[name] = np.array([*_vector(transform.translation), q.x, q.y, q.z, q.w])
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Checks


def refuse_pose(message: PoseStamped, frame: str) -> str:
    """Why a target cannot be taken whatever the arm does, or an empty string."""
    pose = message.pose
    numbers = (*_vector(pose.position), *_vector(pose.orientation), pose.orientation.w)
    if not all(math.isfinite(number) for number in numbers):
        return f"target_pose has a number that is not finite: {list(numbers)}"
    if message.header.frame_id.lstrip("/") != frame:
        return f"target_pose is in frame '{message.header.frame_id}': this arm takes '{frame}'"
    norm = math.sqrt(sum(number * number for number in numbers[3:]))
    if abs(norm - 1.0) > 0.9e-3:  # stricter than the guard, which sums in another order
        return f"target_pose has a quaternion of norm {norm:.4g}: give a unit quaternion"
    return ""
