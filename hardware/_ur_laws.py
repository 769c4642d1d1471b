"""Two ways to be compliant on a Universal Robots arm, one period at a time: what is measured in, what is sent out."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from controllers import admittance, impedance
from controllers.jacobian import row_space
from hardware._ur_kinematics import jacobian
from hardware._ur_link import PERIOD_S, Link, Measured
from robot_rl.geometry import quat_to_rotvec
from robot_rl.types import ArmLimits, Pose

Array = NDArray[np.float64]


class Compliance(Protocol):
    tau_nm: Array
    """(6,) what the joints give against the contact, without gravity"""

    def begin(self, measured: Measured) -> None:
        """At rest where the arm is."""

    def rest(self, measured: Measured) -> Pose:
        """The target with which the arm stays where it is now."""
        ...

    def send(self, link: Link, measured: Measured, target: Pose, stiffness: Array) -> bool:
        """One period; whether the robot took it."""
        ...


class Servoing:
    """servoL after an admittance: the arm takes positions, its force is measured."""

    def __init__(
        self, config: admittance.Config, limits: ArmLimits, lookahead_s: float, gain: float, lead_s: float
    ) -> None:
        self._mass = admittance.Admittance(config, limits, PERIOD_S, lead_s)
        self._lookahead_s, self._gain = lookahead_s, gain
        self.tau_nm = np.zeros(limits.dof)

    def begin(self, measured: Measured) -> None:
        self._mass.begin(_sample(measured))

    def rest(self, measured: Measured) -> Pose:
        """Where the virtual mass is: the arm lags behind it, and would be pulled back."""
        return Pose(self._mass.pos_m.copy(), self._mass.quat_xyzw.copy())

    def send(self, link: Link, measured: Measured, target: Pose, stiffness: Array) -> bool:
        pose = self._mass.step(_sample(measured), target, stiffness)
        self.tau_nm = -jacobian(measured.q_rad, measured.pos_m).T @ measured.wrench
        return link.servo([*pose.pos_m, *quat_to_rotvec(pose.quat_xyzw)], self._lookahead_s, self._gain)


class Torquing:
    """direct_torque with the impedance law of the twins: what the arm feels needs no sensor."""

    def __init__(self, config: impedance.Config, limits: ArmLimits) -> None:
        self._law = impedance.make_law(config, limits, np.zeros(limits.dof))  # six joints: no posture is left to hold
        self.tau_nm = np.zeros(limits.dof)

    def begin(self, measured: Measured) -> None:
        self.tau_nm = np.zeros(len(self.tau_nm))

    def rest(self, measured: Measured) -> Pose:
        return Pose(measured.pos_m.copy(), measured.quat_xyzw.copy())

    def send(self, link: Link, measured: Measured, target: Pose, stiffness: Array) -> bool:
        jac = jacobian(measured.q_rad, measured.pos_m)
        wanted = impedance.impedance_torque(
            measured.q_rad,
            measured.dq_radps,
            jac,
            row_space(jac),
            measured.pos_m,
            measured.quat_xyzw,
            target.pos_m,
            target.quat_xyzw,
            stiffness,
            np.zeros(len(self.tau_nm)),  # Coriolis torques are small at the speeds of contact
            self._law,
        )
        self.tau_nm = impedance.limit_torque(wanted, self.tau_nm, self._law, PERIOD_S)
        return link.torque(self.tau_nm)


def _sample(measured: Measured) -> admittance.Sample:
    return admittance.Sample(measured.pos_m, measured.quat_xyzw, measured.wrench)
