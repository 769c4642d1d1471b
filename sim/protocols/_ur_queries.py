"""What ur_rtde's program answers at once: settings, kinematics, dynamics, states; and its registers."""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.protocols import _ur_kinematics as kin
from sim.protocols._ur_arm import PERIOD_S, Arm, Payload

Array = NDArray[np.float64]

MATRIX_REGISTERS = (*range(24), *range(36, 48))  # where a (6, 6) matrix goes, column by column


class Registers:
    """Inputs and outputs by their index in the program, ``offset`` lower than RTDE's."""

    def __init__(self, inputs: MutableMapping[str, Any], outputs: MutableMapping[str, Any], offset: int) -> None:
        self._inputs, self._outputs, self.offset = inputs, outputs, offset

    def integer(self, index: int) -> int:
        return round(self._inputs[f"input_int_register_{index + self.offset}"])

    def double(self, index: int) -> float:
        """Raises ValueError for what is not finite."""
        value = float(self._inputs[f"input_double_register_{index + self.offset}"])
        if not math.isfinite(value):
            raise ValueError(f"input_double_register_{index + self.offset} is {value}")
        return value

    def vector(self, index: int, size: int = 6) -> Array:
        return np.array([self.double(index + i) for i in range(size)])

    def frame(self, index: int) -> Array:
        """(4, 4) of a pose."""
        return kin.to_matrix(self.vector(index))

    def put(self, index: int, value: int) -> None:
        self._outputs[f"output_int_register_{index + self.offset}"] = value

    def reply(self, values: Array) -> None:
        for index, value in enumerate(values):
            self._outputs[f"output_double_register_{index + self.offset}"] = float(value)

    def reply_matrix(self, matrix: Array) -> None:
        """Without the offset: it takes lower and upper registers."""
        for register, value in zip(MATRIX_REGISTERS, matrix.T.reshape(-1), strict=True):
            self._outputs[f"output_double_register_{register}"] = float(value)


class Queries:
    """``table`` has every command that takes no time. Those that need a solution raise ValueError where there is none,
    as URScript does."""

    def __init__(self, arm: Arm, registers: Registers, contact_n: float, dynamics: bool) -> None:
        """``dynamics``: whether the program asks for mass matrix and Jacobian, as one for new controllers does."""
        self._arm, self._registers, self._contact_n, self._dynamics = arm, registers, contact_n, dynamics

    def table(self) -> dict[int, Callable[[], None]]:
        arm, registers = self._arm, self._registers
        always: dict[int, Callable[[], None]] = {
            8: arm.zero_sensor, 17: self._set_payload, 20: lambda: self._set("damping"), 21: lambda: self._set("gain"),
            25: lambda: self._say(arm.contact_steps(registers.vector(0, 3), self._contact_n)),
            26: lambda: registers.reply(np.array([PERIOD_S])), 27: self._history, 28: self._waypoint,
            29: self._set_tcp, 30: lambda: registers.reply(self.solve(True)),
            36: self._pose_within_limits, 37: lambda: self._say(self._within_limits(registers.vector(0))),
            38: lambda: registers.reply(arm.state.tau_nm - arm.twin.terms().coriolis_nm),
            39: lambda: registers.reply(kin.to_pose(registers.frame(0) @ registers.frame(6))),
            40: lambda: registers.reply(kin.to_pose(arm.tcp)),
            43: lambda: registers.reply(kin.to_pose(arm.tcp_frame())),
            44: lambda: registers.reply(kin.to_pose(kin.forward(registers.vector(0), registers.frame(6)))),
            46: lambda: registers.reply(self.solve(False)), 47: lambda: self._say(arm.steady), 54: lambda: self._say(0),
            58: lambda: registers.reply(kin.to_pose(arm.flange_frame())),
            59: lambda: setattr(arm, "gravity", registers.vector(0, 3)),
            60: self._has_solution, 61: lambda: self._has_solution(True), 65: self._set_target_payload,
        }  # fmt: skip
        dynamics: dict[int, Callable[[], None]] = {
            67: lambda: registers.reply_matrix(arm.twin.terms().mass),
            68: lambda: registers.reply(arm.twin.terms().coriolis_nm),
            69: lambda: registers.reply(arm.target.ddq_radps2),
            70: lambda: registers.reply_matrix(self._jacobian()),
            71: lambda: registers.reply_matrix(self._jacobian_derivative()),
        }
        return always | dynamics if self._dynamics else always

    def _say(self, value: int) -> None:
        self._registers.put(1, int(value))

    def _set_payload(self) -> None:
        cog = self._registers.vector(1, 3)
        self._arm.payload = Payload(self._registers.double(0), cog if cog.any() else self._arm.payload.cog_m)

    def _set_target_payload(self) -> None:
        self._set_payload()
        self._arm.inertia = self._registers.vector(4)

    def _set_tcp(self) -> None:
        self._arm.tcp = self._registers.frame(0)

    def _set(self, name: str) -> None:
        setattr(self._arm, name, self._registers.double(0))

    def solve(self, near: bool) -> Array:
        """Joint angles (6,) of the pose in the first registers, near those in the next or where the arm is."""
        return kin.inverse(
            self._registers.frame(0), self._arm.tcp, self._registers.vector(6) if near else self._arm.state.q_rad
        )

    def _has_solution(self, near: bool = False) -> None:
        try:
            self.solve(near)
        except ValueError:
            self._say(0)
        else:
            self._say(1)

    def _within_limits(self, q_rad: Array) -> bool:
        limits = self._arm.twin.limits
        return bool(np.all((q_rad >= limits.q_min_rad) & (q_rad <= limits.q_max_rad)))

    def _pose_within_limits(self) -> None:
        try:
            self._say(self._within_limits(self.solve(False)))
        except ValueError:
            self._say(0)

    def _waypoint(self) -> None:
        self._registers.reply(kin.to_pose(kin.forward(self._arm.target.q_rad, self._arm.tcp)))

    def _history(self) -> None:
        back = min(max(self._registers.integer(1), 0) + 1, len(self._arm.q_history))
        self._registers.reply(self._arm.q_history[-back])

    def _jacobian(self) -> Array:
        return kin.jacobian(kin.links(self._arm.state.q_rad), self._arm.tcp)[0]

    def _jacobian_derivative(self) -> Array:
        step_s = 1e-6
        later = kin.links(self._arm.state.q_rad + step_s * self._arm.state.dq_radps)
        return (kin.jacobian(later, self._arm.tcp)[0] - self._jacobian()) / step_s
