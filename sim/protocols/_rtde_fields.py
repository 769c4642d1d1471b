"""The variables of RTDE and their types: tables "Robot controller outputs" and "inputs" of Universal Robots' guide."""

from __future__ import annotations

REGISTERS = 48  # of integers, and of doubles; the lower 24 are for fieldbuses, the upper for RTDE clients


def _table(rows: dict[str, str]) -> dict[str, str]:
    return {name: kind for kind, names in rows.items() for name in names.split()}


def _registers(way: str) -> dict[str, str]:
    return (
        {f"{way}_bit_registers0_to_31": "UINT32", f"{way}_bit_registers32_to_63": "UINT32"}
        | {f"{way}_bit_register_{index}": "BOOL" for index in range(64, 128)}
        | {f"{way}_int_register_{index}": "INT32" for index in range(REGISTERS)}
        | {f"{way}_double_register_{index}": "DOUBLE" for index in range(REGISTERS)}
    )


INPUTS = (
    _table({
        "UINT32": "speed_slider_mask",
        "UINT8": "standard_digital_output_mask standard_digital_output configurable_digital_output_mask "
                 "configurable_digital_output tool_digital_output_mask tool_digital_output "
                 "standard_analog_output_mask standard_analog_output_type",
        "DOUBLE": "speed_slider_fraction standard_analog_output_0 standard_analog_output_1",
        "VECTOR6D": "external_force_torque",
    }) | _registers("input")
)  # fmt: skip

OUTPUTS = (
    _table({
        "DOUBLE": "timestamp actual_execution_time speed_scaling target_speed_fraction actual_momentum "
                  "actual_main_voltage actual_robot_voltage actual_robot_current standard_analog_input0 "
                  "standard_analog_input1 standard_analog_output0 standard_analog_output1 io_current "
                  "tool_analog_input0 tool_analog_input1 tool_output_current tool_temperature tcp_force_scalar "
                  "payload joint_position_deviation_ratio collision_detection_ratio",
        "VECTOR6D": "target_q target_qd target_qdd target_current target_moment actual_q actual_qd actual_qdd "
                    "actual_current actual_current_as_torque actual_current_window joint_control_output "
                    "actual_TCP_pose actual_TCP_speed actual_TCP_force target_TCP_pose target_TCP_speed "
                    "joint_temperatures actual_joint_voltage payload_inertia ft_raw_wrench tcp_offset",
        "VECTOR3D": "actual_tool_accelerometer elbow_position elbow_velocity payload_cog",
        "UINT64": "actual_digital_input_bits actual_digital_output_bits",
        "INT32": "robot_mode safety_mode safety_status tool_output_voltage",
        "VECTOR6INT32": "joint_mode",
        "UINT32": "runtime_state robot_status_bits safety_status_bits analog_io_types tool_mode "
                  "tool_analog_input_types script_control_line",
        "UINT8": "tool_output_mode tool_digital_output0_mode tool_digital_output1_mode",
    }) | _registers("output") | _registers("input")
)  # fmt: skip

ZEROS = {"VECTOR3D": (0.0,) * 3, "VECTOR6D": (0.0,) * 6, "VECTOR6INT32": (0,) * 6, "DOUBLE": 0.0, "BOOL": False}


def zero(kind: str) -> object:
    """The value a variable has before anybody gives it one."""
    return ZEROS.get(kind, 0)
