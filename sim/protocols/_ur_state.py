"""What the controller says of itself in RTDE's outputs, and what its inputs for lights and switches do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.protocols import _ur_kinematics as kin
from sim.protocols._ur_dashboard import RobotMode

if TYPE_CHECKING:
    from sim.protocols.ur_rtde import Server

TORQUE_PER_AMPERE = 10.0  # Nm/A; Universal Robots does not publish it
JOINT_RUNNING, JOINT_IDLE, JOINT_POWER_OFF = 253, 255, 239
VOLTS, ROOM_C = 48.0, 30.0
ELBOW = 2  # index of the DH frame whose origin is the elbow


class State:
    """``value(name)`` of every output; a value is computed once a period, and only if somebody wants it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._known: dict[str, Any] = {}
        self._compute = self._table()

    def renew(self) -> None:
        """Time has passed, or something was changed."""
        self._known.clear()

    def value(self, name: str) -> Any:
        """A number, or a sequence of numbers for a vector."""
        if name.startswith("output_") and "_register" in name:
            return self._server.outputs[name]
        if name.startswith("input_"):
            return self._server.inputs[name]
        if name not in self._known:
            value = self._compute[name]()
            self._known[name] = value.tolist() if isinstance(value, np.ndarray) else value
        return self._known[name]

    def _table(self) -> dict[str, Callable[[], Any]]:
        return self._motion() | self._forces() | self._status() | self._rest()

    def _motion(self) -> dict[str, Callable[[], Any]]:
        server, arm = self._server, self._server.arm
        step_s = 1e-6

        def target_twist() -> np.ndarray:
            return kin.jacobian(kin.links(arm.target.q_rad), arm.tcp)[0] @ arm.target.dq_radps

        def elbow() -> np.ndarray:
            return kin.links(arm.state.q_rad)[ELBOW][:3, 3]

        def elbow_velocity() -> np.ndarray:
            return (kin.links(arm.state.q_rad + step_s * arm.state.dq_radps)[ELBOW][:3, 3] - elbow()) / step_s

        return {
            "timestamp": lambda: server.t_s,
            "target_q": lambda: arm.target.q_rad, "target_qd": lambda: arm.target.dq_radps,
            "target_qdd": lambda: arm.target.ddq_radps2, "actual_qdd": lambda: arm.target.ddq_radps2,
            "actual_q": lambda: arm.state.q_rad, "actual_qd": lambda: arm.state.dq_radps,
            "actual_TCP_pose": lambda: kin.to_pose(arm.tcp_frame()), "actual_TCP_speed": arm.tcp_twist,
            "target_TCP_pose": lambda: kin.to_pose(kin.forward(arm.target.q_rad, arm.tcp)),
            "target_TCP_speed": target_twist, "tcp_offset": lambda: kin.to_pose(arm.tcp),
            "elbow_position": elbow, "elbow_velocity": elbow_velocity,
            "speed_scaling": lambda: server.speed_fraction, "target_speed_fraction": lambda: server.speed_fraction,
            "joint_position_deviation_ratio": lambda: arm.deviation,
        }  # fmt: skip

    def _forces(self) -> dict[str, Callable[[], Any]]:
        arm = self._server.arm

        def total_nm() -> np.ndarray:
            return np.array(self.value("actual_current_as_torque"))

        def target_nm() -> np.ndarray:
            terms = arm.twin.terms()
            return terms.mass @ arm.target.ddq_radps2 + terms.coriolis_nm + terms.gravity_nm

        def momentum() -> float:
            terms = arm.twin.terms()
            mobility = terms.jac @ np.linalg.solve(terms.mass, terms.jac.T) + 1e-9 * np.eye(6)
            return float(np.linalg.norm(np.linalg.solve(mobility, arm.state.tcp_twist)[:3]))

        return {
            "target_moment": target_nm,
            "target_current": lambda: np.array(self.value("target_moment")) / TORQUE_PER_AMPERE,
            "actual_current_as_torque": lambda: arm.state.tau_nm + arm.twin.terms().gravity_nm,
            "actual_current": lambda: total_nm() / TORQUE_PER_AMPERE,
            "actual_current_window": lambda: [0.0] * 6, "joint_control_output": lambda: total_nm() / TORQUE_PER_AMPERE,
            "actual_TCP_force": arm.tcp_force, "ft_raw_wrench": arm.raw_wrench,
            "tcp_force_scalar": lambda: float(np.linalg.norm(arm.tcp_force()[:3])),
            "actual_tool_accelerometer": lambda: arm.flange_frame()[:3, :3].T @ arm.gravity,
            "actual_momentum": momentum, "collision_detection_ratio": lambda: arm.collision,
            "actual_robot_current": lambda: float(np.abs(total_nm()).sum()) / TORQUE_PER_AMPERE,
            "payload": lambda: arm.payload.mass_kg, "payload_cog": lambda: arm.payload.cog_m,
            "payload_inertia": lambda: arm.inertia,
        }  # fmt: skip

    def _status(self) -> dict[str, Callable[[], Any]]:
        machine = self._server.machine

        def joint_modes() -> list[int]:
            mode = {RobotMode.RUNNING: JOINT_RUNNING, RobotMode.IDLE: JOINT_IDLE}.get(machine.mode, JOINT_POWER_OFF)
            return [mode] * 6

        return {
            "robot_mode": lambda: int(machine.mode), "joint_mode": joint_modes,
            "safety_mode": lambda: int(machine.safety), "safety_status": lambda: int(machine.safety),
            "runtime_state": lambda: int(machine.runtime), "robot_status_bits": lambda: machine.status_bits,
            "safety_status_bits": lambda: machine.safety_bits,
            "actual_robot_voltage": lambda: VOLTS if machine.powered else 0.0,
            "actual_joint_voltage": lambda: [VOLTS if machine.powered else 0.0] * 6,
            "tool_mode": lambda: JOINT_RUNNING if machine.powered else JOINT_POWER_OFF,
        }  # fmt: skip

    def _rest(self) -> dict[str, Callable[[], Any]]:
        """Inputs and outputs; what the twin has not is zero."""
        server = self._server
        absent = (
            "actual_digital_input_bits actual_execution_time standard_analog_input0 standard_analog_input1 io_current "
            "tool_analog_input_types tool_analog_input0 tool_analog_input1 tool_output_voltage tool_output_current "
            "tool_output_mode tool_digital_output0_mode tool_digital_output1_mode script_control_line"
        )
        zeros: dict[str, Callable[[], Any]] = {name: lambda: 0 for name in absent.split()}
        return zeros | {
            "actual_digital_output_bits": lambda: server.digital_outputs,
            "standard_analog_output0": lambda: server.analog_outputs[0],
            "standard_analog_output1": lambda: server.analog_outputs[1],
            "analog_io_types": lambda: server.analog_types << 2,
            "actual_main_voltage": lambda: VOLTS, "joint_temperatures": lambda: [ROOM_C] * 6,
            "tool_temperature": lambda: ROOM_C,
        }  # fmt: skip


def take_io(server: Server, names: Sequence[str]) -> None:
    """Speed slider and outputs, as masks and values among the inputs that came."""
    inputs = server.inputs
    if "speed_slider_mask" in names and inputs["speed_slider_mask"]:
        server.speed_fraction = min(max(float(inputs["speed_slider_fraction"]), 0.0), 1.0)
    for kind, shift in (("standard", 0), ("configurable", 8), ("tool", 16)):
        if f"{kind}_digital_output_mask" in names:
            mask = int(inputs[f"{kind}_digital_output_mask"]) << shift
            wanted = int(inputs[f"{kind}_digital_output"]) << shift
            server.digital_outputs = (server.digital_outputs & ~mask) | (wanted & mask)
    if "standard_analog_output_mask" in names:
        mask, kinds = int(inputs["standard_analog_output_mask"]), int(inputs["standard_analog_output_type"])
        server.analog_types = (server.analog_types & ~mask) | (kinds & mask)
        for index in range(2):
            if mask >> index & 1:
                share = min(max(float(inputs[f"standard_analog_output_{index}"]), 0.0), 1.0)
                volts = bool(kinds >> index & 1)
                server.analog_outputs[index] = 10.0 * share if volts else 0.004 + 0.016 * share
