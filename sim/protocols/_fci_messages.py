"""The messages of Franka's control interface, robot version 10 and gripper version 3, as data.

Packed little endian, from the vendor's ``libfranka-common`` (``research_interface/robot`` and ``gripper``). Matrices
are column-major. Commands and answers are TCP messages behind a header; robot state and robot command are UDP datagrams
of fixed size; the state's floats are single precision, the command's double.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any

import numpy as np

VERSION = 10
GRIPPER_VERSION = 3
PORT = 1337
GRIPPER_PORT = 1338

HEADER = struct.Struct("<III")  # command, command id, size with the header
GRIPPER_HEADER = struct.Struct("<HII")
CONNECT = struct.Struct("<HH")  # version, UDP port
CONNECTED = struct.Struct("<BH")  # status, version
GRIPPER_CONNECTED = struct.Struct("<HH")
STATUS = struct.Struct("<B")
GRIPPER_STATUS = struct.Struct("<H")
LARGEST = 4096  # of a request; the largest there is has 440 bytes


class Command(IntEnum):
    CONNECT = 0
    MOVE = 1
    STOP_MOVE = 2
    SET_COLLISION_BEHAVIOR = 3
    SET_JOINT_IMPEDANCE = 4
    SET_CARTESIAN_IMPEDANCE = 5
    SET_GUIDING_MODE = 6
    SET_EE_TO_K = 7
    SET_NE_TO_EE = 8
    SET_LOAD = 9
    AUTOMATIC_ERROR_RECOVERY = 10
    GET_ROBOT_MODEL = 11


class GripperCommand(IntEnum):
    CONNECT = 0
    HOMING = 1
    GRASP = 2
    MOVE = 3
    STOP = 4


class ConnectStatus(IntEnum):
    SUCCESS = 0
    INCOMPATIBLE_LIBRARY_VERSION = 1


class Status(IntEnum):
    """Of GetRobotModel, and where a command has no list of its own."""

    SUCCESS = 0
    COMMAND_NOT_POSSIBLE = 1
    SAFETY_FUNCTIONS = 2


class SetStatus(IntEnum):
    """Of the seven setters."""

    SUCCESS = 0
    COMMAND_NOT_POSSIBLE = 1
    INVALID_ARGUMENT = 2
    SAFETY_FUNCTIONS = 3


class MoveStatus(IntEnum):
    SUCCESS = 0
    MOTION_STARTED = 1
    PREEMPTED = 2
    PREEMPTED_SAFETY_FUNCTIONS = 3
    SAFETY_FUNCTIONS = 4
    COMMAND_NOT_POSSIBLE = 5
    START_AT_SINGULAR_POSE = 6
    INVALID_ARGUMENT = 7
    REFLEX_ABORTED = 8
    EMERGENCY_ABORTED = 9
    INPUT_ERROR_ABORTED = 10
    ABORTED = 11


class StopStatus(IntEnum):
    SUCCESS = 0
    COMMAND_NOT_POSSIBLE = 1
    SAFETY_FUNCTIONS = 2
    EMERGENCY_ABORTED = 3
    REFLEX_ABORTED = 4
    ABORTED = 5


class RecoveryStatus(IntEnum):
    SUCCESS = 0
    COMMAND_NOT_POSSIBLE = 1
    SAFETY_FUNCTIONS = 2
    MANUAL_RECOVERY_REQUIRED = 3
    REFLEX_ABORTED = 4
    EMERGENCY_ABORTED = 5
    ABORTED = 6


class GripperStatus(IntEnum):
    SUCCESS = 0
    FAIL = 1
    UNSUCCESSFUL = 2
    ABORTED = 3


class Controller(IntEnum):
    """In the request and in the state; the state has OTHER where no motion runs."""

    JOINT_IMPEDANCE = 0
    CARTESIAN_IMPEDANCE = 1
    EXTERNAL = 2
    OTHER = 3


class Generator(IntEnum):
    """In the state; a request counts the same from JOINT_POSITION = 0."""

    IDLE = 0
    JOINT_POSITION = 1
    JOINT_VELOCITY = 2
    CARTESIAN_POSITION = 3
    CARTESIAN_VELOCITY = 4
    NONE = 5


class RobotMode(IntEnum):
    OTHER = 0
    IDLE = 1
    MOVE = 2
    GUIDING = 3
    REFLEX = 4
    USER_STOPPED = 5
    AUTOMATIC_ERROR_RECOVERY = 6


ERRORS = (
    "joint_position_limits_violation", "cartesian_position_limits_violation", "self_collision_avoidance_violation",
    "joint_velocity_violation", "cartesian_velocity_violation", "force_control_safety_violation", "joint_reflex",
    "cartesian_reflex", "max_goal_pose_deviation_violation", "max_path_pose_deviation_violation",
    "cartesian_velocity_profile_safety_violation", "joint_position_motion_generator_start_pose_invalid",
    "joint_motion_generator_position_limits_violation", "joint_motion_generator_velocity_limits_violation",
    "joint_motion_generator_velocity_discontinuity", "joint_motion_generator_acceleration_discontinuity",
    "cartesian_position_motion_generator_start_pose_invalid", "cartesian_motion_generator_elbow_limit_violation",
    "cartesian_motion_generator_velocity_limits_violation", "cartesian_motion_generator_velocity_discontinuity",
    "cartesian_motion_generator_acceleration_discontinuity", "cartesian_motion_generator_elbow_sign_inconsistent",
    "cartesian_motion_generator_start_elbow_invalid", "force_controller_desired_force_tolerance_violation",
    "start_elbow_sign_inconsistent", "communication_constraints_violation", "power_limit_violation",
    "cartesian_motion_generator_joint_position_limits_violation",
    "cartesian_motion_generator_joint_velocity_limits_violation",
    "cartesian_motion_generator_joint_velocity_discontinuity",
    "cartesian_motion_generator_joint_acceleration_discontinuity",
    "cartesian_position_motion_generator_invalid_frame_flag", "controller_torque_discontinuity",
    "joint_p2p_insufficient_torque_for_planning", "tau_J_range_violation", "instability_detected",
    "joint_move_in_wrong_direction", "cartesian_spline_motion_generator_violation",
    "joint_via_motion_generator_planning_joint_limit_violation", "base_acceleration_initialization_timeout",
    "base_acceleration_invalid_reading",
)  # fmt: skip
"""The vendor's names by index in the state's ``errors`` and ``reflex_reason``."""

F4, F8 = "<f4", "<f8"

ROBOT_STATE = np.dtype([
    ("message_id", "<u8"), ("O_T_EE", F4, 16), ("O_T_EE_d", F4, 16), ("F_T_EE", F4, 16), ("EE_T_K", F4, 16),
    ("F_T_NE", F4, 16), ("NE_T_EE", F4, 16), ("m_ee", F4), ("I_ee", F4, 9), ("F_x_Cee", F4, 3), ("m_load", F4),
    ("I_load", F4, 9), ("F_x_Cload", F4, 3), ("elbow", F4, 2), ("elbow_d", F4, 2), ("tau_J", F4, 7),
    ("tau_J_d", F4, 7), ("dtau_J", F4, 7), ("q", F4, 7), ("q_d", F4, 7), ("dq", F4, 7), ("dq_d", F4, 7),
    ("ddq_d", F4, 7), ("joint_contact", F4, 7), ("cartesian_contact", F4, 6), ("joint_collision", F4, 7),
    ("cartesian_collision", F4, 6), ("tau_ext_hat_filtered", F4, 7), ("O_F_ext_hat_K", F4, 6),
    ("K_F_ext_hat_K", F4, 6), ("O_dP_EE_d", F4, 6), ("O_ddP_O", F4, 3), ("elbow_c", F4, 2), ("delbow_c", F4, 2),
    ("ddelbow_c", F4, 2), ("O_T_EE_c", F4, 16), ("O_dP_EE_c", F4, 6), ("O_ddP_EE_c", F4, 6), ("theta", F4, 7),
    ("dtheta", F4, 7), ("accelerometer_top", F4, (6, 3)), ("accelerometer_bottom", F4, (6, 3)),
    ("motion_generator_mode", "u1"), ("controller_mode", "u1"), ("errors", "u1", 41), ("reflex_reason", "u1", 41),
    ("robot_mode", "u1"), ("control_command_success_rate", F4),
])  # fmt: skip

ROBOT_COMMAND = np.dtype([
    ("message_id", "<u8"), ("q_c", F8, 7), ("dq_c", F8, 7), ("O_T_EE_c", F8, 16), ("O_dP_EE_c", F8, 6),
    ("elbow_c", F8, 2), ("valid_elbow", "u1"), ("motion_generation_finished", "u1"), ("tau_J_d", F8, 7),
    ("torque_command_finished", "u1"),
])  # fmt: skip

REQUESTS = {
    Command.CONNECT: np.dtype([("version", "<u2"), ("udp_port", "<u2")]),
    Command.MOVE: np.dtype([
        ("controller_mode", "<u4"), ("motion_generator_mode", "<u4"), ("maximum_path_deviation", F8, 3),
        ("maximum_goal_pose_deviation", F8, 3), ("use_async_motion_generator", "u1"), ("maximum_velocity", F8, 7),
    ]),
    Command.STOP_MOVE: np.dtype([]),
    Command.SET_COLLISION_BEHAVIOR: np.dtype([
        ("lower_torque_thresholds_acceleration", F8, 7), ("upper_torque_thresholds_acceleration", F8, 7),
        ("lower_torque_thresholds_nominal", F8, 7), ("upper_torque_thresholds_nominal", F8, 7),
        ("lower_force_thresholds_acceleration", F8, 6), ("upper_force_thresholds_acceleration", F8, 6),
        ("lower_force_thresholds_nominal", F8, 6), ("upper_force_thresholds_nominal", F8, 6),
    ]),
    Command.SET_JOINT_IMPEDANCE: np.dtype([("K_theta", F8, 7)]),
    Command.SET_CARTESIAN_IMPEDANCE: np.dtype([("K_x", F8, 6)]),
    Command.SET_GUIDING_MODE: np.dtype([("guiding_mode", "u1", 6), ("nullspace", "u1")]),
    Command.SET_EE_TO_K: np.dtype([("EE_T_K", F8, 16)]),
    Command.SET_NE_TO_EE: np.dtype([("NE_T_EE", F8, 16)]),
    Command.SET_LOAD: np.dtype([("m_load", F8), ("F_x_Cload", F8, 3), ("I_load", F8, 9)]),
    Command.AUTOMATIC_ERROR_RECOVERY: np.dtype([]),
    Command.GET_ROBOT_MODEL: np.dtype([]),
}  # fmt: skip
"""What follows the header of each request."""

GRIPPER_REQUESTS = {
    GripperCommand.CONNECT: np.dtype([("version", "<u2"), ("udp_port", "<u2")]),
    GripperCommand.HOMING: np.dtype([]),
    GripperCommand.GRASP: np.dtype([
        ("width", F8), ("epsilon_inner", F8), ("epsilon_outer", F8), ("speed", F8), ("force", F8),
    ]),
    GripperCommand.MOVE: np.dtype([("width", F8), ("speed", F8)]),
    GripperCommand.STOP: np.dtype([]),
}  # fmt: skip

GRIPPER_STATE = np.dtype([
    ("message_id", "<u4"), ("width", F8), ("max_width", F8), ("is_grasped", "u1"), ("temperature", "<u2"),
])  # fmt: skip


def split(received: bytearray, header: struct.Struct) -> list[tuple[int, int, bytes]]:
    """Take the whole messages out of what has come so far: command, command id, payload of each.

    Raises ValueError for a size that no message has.
    """
    messages = []
    while len(received) >= header.size:
        command, command_id, size = header.unpack_from(received)
        if not header.size <= size <= LARGEST:
            raise ValueError(f"a message of {size} bytes")
        if len(received) < size:
            break
        messages.append((command, command_id, bytes(received[header.size : size])))
        del received[:size]
    return messages


def message(header: struct.Struct, command: int, command_id: int, payload: bytes) -> bytes:
    """One TCP message."""
    return header.pack(command, command_id, header.size + len(payload)) + payload


def decode(payload: bytes, layout: np.dtype) -> Any:
    """The record of a layout. Raises ValueError for a payload of another size."""
    if len(payload) != layout.itemsize:
        raise ValueError(f"a payload of {len(payload)} bytes: the layout has {layout.itemsize}")
    return np.frombuffer(payload, layout)[0] if layout.itemsize else None


def encode(layout: np.dtype, **fields: Any) -> bytes:
    """The bytes of a layout; fields that are not given are zero. Raises ValueError for one that it does not have."""
    record = np.zeros(1, layout)
    for name, value in fields.items():
        record[name][0] = value
    return record.tobytes()
