"""The motion side of the controller: drives that follow a target, force mode, free drive, the force/torque sensor, and
what trips a protective stop. All of it acts on the twin by joint torques, so that contacts are physical.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from robot_rl.types import ArmState
from sim._twin import Twin
from sim.protocols import _ur_kinematics as kin
from sim.protocols._ur_motion import Motion, ServoJ, SpeedJ, SpeedL, Stop, Target

Array = NDArray[np.float64]

PERIOD_S = 0.002  # of the controller
SUBSTEPS = 2  # of physics in a period
STIFFNESS, DAMPING = 8800.0, 190.0  # 1/s^2, 1/s: drives of 15 Hz, critically damped
HAND_DAMPING = 2.0  # Nms/rad of a joint that is moved by hand
FORCE_DAMPING = np.array([100.0] * 3 + [4.0] * 3)  # Ns/m, Nms/rad of a compliant axis without damping asked for
MORE_DAMPING = np.array([2000.0] * 3 + [80.0] * 3)  # what damping 1 adds
BRAKE_RADPS2 = 15.0  # of a stop that no program asked for
HISTORY = 500  # periods that joint positions and forces are remembered
CONTACT_BEGAN_N = 1.0  # a contact goes back to the first force above this
GRAVITY_MPS2 = 9.81


class Payload(NamedTuple):
    """What hangs on the flange: kg, and its centre of mass (3,) m in the flange's frame."""

    mass_kg: float
    cog_m: Array


class Force(NamedTuple):
    """A running force_mode."""

    frame: Array  # (3, 3) of the task frame in the base
    compliant: NDArray[np.bool_]  # (6,)
    wrench: Array  # (6,) N, Nm that the arm shall exert, in the task frame
    limits: Array  # (6,) m/s, rad/s where compliant; m, rad of deviation elsewhere
    hold: Array  # (4, 4) of the tcp where it began


class Trips(NamedTuple):
    """What stops the arm."""

    force_n: float
    torque_nm: float
    path_rad: float


class Arm:
    """``tick`` is one period. ``trip`` then says why a protective stop is due, or is empty."""

    def __init__(self, twin: Twin, tcp: Array, payload: Payload, bias: Array, trips: Trips) -> None:
        """``tcp`` (6,) pose on the flange of the twin's own tcp, ``payload`` what really hangs there, ``bias`` (6,) N,
        Nm that the sensor adds in the flange's frame."""
        self.twin, self._limits, self._trips = twin, twin.limits, trips
        self._from_twin_tcp = kin.invert(kin.to_matrix(tcp))  # to the flange
        self._real_payload, self._bias = payload, bias
        self.tcp = kin.to_matrix(tcp)  # (4, 4) that the controller was told
        self.payload = payload
        self.inertia = np.zeros(6)
        self.gravity = np.array([0.0, 0.0, GRAVITY_MPS2])  # as set_gravity has it: the acceleration the base feels
        self.state: ArmState = twin.read()
        self._flange: tuple[ArmState | None, Array] = (None, np.eye(4))  # of which state
        self.target = Target(self.state.q_rad.copy())
        self.motion: Motion | None = None
        self.force: Force | None = None
        self.torque_nm: Array | None = None  # a running direct_torque
        self.free = False  # a person's hand moves it
        self.scale = 1.0  # of speed
        self.gain, self.damping = 1.0, 0.005  # force_mode's defaults
        self.gripper = self.state.gripper
        self.trip = ""
        self._zero = np.zeros(6)
        self._still_s = 1.0
        self.q_history: deque[Array] = deque([self.state.q_rad], HISTORY)
        self._force_history: deque[Array] = deque([np.zeros(3)], HISTORY)

    # ---------------------------------------------------------------------------------------------------------- motion

    def tick(self) -> None:
        """One period. Raises ValueError where the motion cannot go on; the arm then brakes."""
        before = Target(self.target.q_rad, self.target.dq_radps)
        if self.torque_nm is not None or self.free or (self.force is not None and self.motion is None):
            self.target.rest_at(self.state.q_rad)
            before = Target(self.target.q_rad)
        elif self.motion is not None:
            try:
                if self.motion.step(self.target, PERIOD_S, self.scale):
                    self.motion, self.target.dq_radps = None, np.zeros(6)  # exactly at rest
                    if self.force is not None:
                        self.force = self.force._replace(hold=kin.forward(self.target.q_rad, self.tcp))
            except ValueError:
                self.brake()
                raise
        else:
            self.target.ddq_radps2 = np.zeros(6)
        for index in range(SUBSTEPS):
            share = index / SUBSTEPS
            q = before.q_rad + share * (self.target.q_rad - before.q_rad)
            dq = before.dq_radps + share * (self.target.dq_radps - before.dq_radps)
            tau_nm = self._torque(q, dq, self.target.ddq_radps2)
            self.twin.drive(np.clip(tau_nm, -self._limits.tau_max_nm, self._limits.tau_max_nm), self.gripper)
            self.state = self.twin.read()
        self.q_history.append(self.state.q_rad)
        self._force_history.append(self.state.tcp_wrench[:3])
        self._still_s = 0.0 if self.target.dq_radps.any() else self._still_s + PERIOD_S
        self.trip = self._find_trip()

    def _torque(self, q_rad: Array, dq_radps: Array, ddq_radps2: Array) -> Array:
        state, terms = self.state, self.twin.terms()
        if self.torque_nm is not None:
            return self.torque_nm
        if self.free:
            free: Array = terms.coriolis_nm - HAND_DAMPING * state.dq_radps
            return free
        if self.force is not None:
            return self._press(self.force, q_rad, dq_radps, ddq_radps2, terms.mass, terms.coriolis_nm, terms.jac)
        wanted = ddq_radps2 + STIFFNESS * (q_rad - state.q_rad) + DAMPING * (dq_radps - state.dq_radps)
        tau_nm: Array = terms.mass @ wanted + terms.coriolis_nm + self._viscous() * dq_radps
        return tau_nm

    def _viscous(self) -> Array:
        """(6,) Nms/rad of joint friction that the controller knows, and compensates."""
        viscous = self._limits.viscous_nmspr
        return np.zeros(6) if viscous is None else viscous

    def friction(self, viscous_scale: Array) -> Array:
        """(6,) Nm that compensate this share of the joints' viscous friction; of Coulomb friction the twin has none."""
        compensated: Array = viscous_scale * self._viscous() * self.state.dq_radps
        return compensated

    def _press(
        self, force: Force, q_rad: Array, dq_radps: Array, ddq: Array, mass: Array, coriolis_nm: Array, jac: Array
    ) -> Array:
        """Along compliant axes a force and damping, along the others the drives' stiffness, both in the task frame."""
        state, turn = self.state, np.kron(np.eye(2), force.frame)
        here = self.tcp_frame()
        jac = self._at_tcp(jac, here)
        goal = force.hold if self.motion is None else kin.forward(q_rad, self.tcp)
        off = kin.gap(goal, here)
        twist = jac @ state.dq_radps
        follow = turn.T @ (jac @ ddq + STIFFNESS * off + DAMPING * (jac @ dq_radps - twist))
        felt = turn.T @ self.tcp_force()
        wanted = force.wrench + self.gain * (force.wrench + felt)
        needed = (1.0 + self.gain) * np.abs(force.wrench) / np.maximum(force.limits, 1e-3)
        damping = np.maximum(FORCE_DAMPING + self.damping * MORE_DAMPING, needed)
        push = wanted - damping * (turn.T @ twist)
        # What the other axes need, given that the compliant ones get their push, less what the contact takes of it.
        mobility = turn.T @ jac @ np.linalg.solve(mass, jac.T) @ turn + 1e-9 * np.eye(6)
        free, stiff = force.compliant, ~force.compliant
        needed = follow[stiff] - mobility[np.ix_(stiff, free)] @ (push + felt)[free]
        push[stiff] = np.linalg.solve(mobility[np.ix_(stiff, stiff)], needed)
        tau_nm: Array = jac.T @ (turn @ push) + coriolis_nm
        return tau_nm

    def _at_tcp(self, jac: Array, here: Array) -> Array:
        """The twin's Jacobian, of its own tcp, for the tcp that the controller was told."""
        arm = here[:3, 3] - self.state.tcp_pos_m
        return np.vstack([jac[:3] + np.cross(jac[3:], arm, axisa=0, axisb=0).T, jac[3:]])

    def start(self, motion: Motion) -> None:
        self.motion, self.free, self.torque_nm = motion, False, None

    def brake(self, deceleration_radps2: float = BRAKE_RADPS2) -> None:
        """To rest from wherever the arm is and however it moves; force mode and free drive end."""
        if self.force is not None or self.free or self.torque_nm is not None:
            self.target.q_rad, self.target.dq_radps = self.state.q_rad.copy(), self.state.dq_radps.copy()
        self.force, self.free, self.torque_nm = None, False, None
        self.motion = Stop(self.target, deceleration_radps2)

    def give_way(self) -> None:
        """To rest from where the arm really is: what it was driven into is not pressed any more."""
        self.target.q_rad, self.target.dq_radps = self.state.q_rad.copy(), self.state.dq_radps.copy()
        self.force, self.free, self.torque_nm = None, False, None
        self.motion = Stop(self.target, 2.0 * BRAKE_RADPS2)

    def press(self, frame: Array, compliant: NDArray[np.bool_], wrench: Array, limits: Array) -> None:
        """Begin force_mode, or change it."""
        hold = self.force.hold if self.force is not None else kin.forward(self.target.q_rad, self.tcp)
        self.force = Force(frame, compliant, wrench, limits, hold)

    def end_force(self) -> None:
        """The drives hold the arm where it is."""
        if self.force is not None:
            self.force = None
            self.target.q_rad, self.target.dq_radps = self.state.q_rad.copy(), self.state.dq_radps.copy()

    def _find_trip(self) -> str:
        state, limits = self.state, self._limits
        if np.any(np.abs(state.dq_radps) > limits.dq_max_radps):
            return f"joint {np.abs(state.dq_radps / limits.dq_max_radps).argmax() + 1}: speed limit exceeded"
        beyond = (state.q_rad < limits.q_min_rad) | (state.q_rad > limits.q_max_rad)
        if beyond.any():
            return f"joint {beyond.argmax() + 1}: position limit exceeded"
        if np.linalg.norm(state.tcp_wrench[:3]) > self._trips.force_n:
            return "C157: collision detected, force limit at the tool exceeded"
        if np.linalg.norm(state.tcp_wrench[3:]) > self._trips.torque_nm:
            return "C157: collision detected, torque limit at the tool exceeded"
        if self.force is not None:
            off = np.kron(np.eye(2), self.force.frame).T @ kin.gap(self.force.hold, self.tcp_frame())
            if self.motion is None and np.any(
                np.abs(off)[~self.force.compliant] > self.force.limits[~self.force.compliant]
            ):
                return "force mode: deviation limit of a non-compliant axis exceeded"
        elif np.any(np.abs(self.target.q_rad - state.q_rad) > self._trips.path_rad):
            joint = np.abs(self.target.q_rad - state.q_rad).argmax() + 1
            return f"C153: position deviates from path, joint {joint}"
        return ""

    # --------------------------------------------------------------------------------------------------------- sensing

    @property
    def deviation(self) -> float:
        """How far the joints are from their path, as a share of what trips."""
        return float(np.abs(self.target.q_rad - self.state.q_rad).max()) / self._trips.path_rad

    @property
    def collision(self) -> float:
        """The contact force at the tool, as a share of what trips."""
        return float(np.linalg.norm(self.state.tcp_wrench[:3])) / self._trips.force_n

    @property
    def streaming(self) -> bool:
        """Whether it follows commands that are to come again and again."""
        return self.torque_nm is not None or isinstance(self.motion, ServoJ | SpeedJ | SpeedL)

    @property
    def steady(self) -> bool:
        """Still, with a target that has been still for half a second."""
        return self._still_s >= 0.5 and self.motion is None

    def flange_frame(self) -> Array:
        """(4, 4) of the tool flange."""
        if self._flange[0] is not self.state:
            frame = kin.frame_of(self.state.tcp_pos_m, self.state.tcp_quat_xyzw) @ self._from_twin_tcp
            self._flange = (self.state, frame)
        return self._flange[1]

    def tcp_frame(self) -> Array:
        """(4, 4) of the tcp that the controller was told."""
        frame: Array = self.flange_frame() @ self.tcp
        return frame

    def tcp_twist(self) -> Array:
        """(6,) of that tcp."""
        state = self.state
        arm = self.tcp_frame()[:3, 3] - state.tcp_pos_m
        return np.concatenate([state.tcp_twist[:3] + kin.cross(state.tcp_twist[3:], arm), state.tcp_twist[3:]])

    def raw_wrench(self) -> Array:
        """(6,) N, Nm at the flange in its own frame, with the tool's weight: what the sensor says."""
        flange, state = self.flange_frame(), self.state
        force = state.tcp_wrench[:3]
        torque = state.tcp_wrench[3:] + kin.cross(state.tcp_pos_m - flange[:3, 3], force)
        back = flange[:3, :3].T
        return np.concatenate([back @ force, back @ torque]) + self._weight(self._real_payload, flange) + self._bias

    def _weight(self, payload: Payload, flange: Array) -> Array:
        weight = -payload.mass_kg * (flange[:3, :3].T @ self.gravity)
        return np.concatenate([weight, kin.cross(payload.cog_m, weight)])

    def tcp_force(self) -> Array:
        """(6,) N, Nm that the surroundings exert on the tool, at the tcp, in the base frame: the sensor's reading less
        the weight of the payload that was set and less what it read when it was zeroed."""
        flange = self.flange_frame()
        clean = self.raw_wrench() - self._weight(self.payload, flange) - self._zero
        force, torque = flange[:3, :3] @ clean[:3], flange[:3, :3] @ clean[3:]
        return np.concatenate([force, torque - kin.cross(flange[:3, :3] @ self.tcp[:3, 3], force)])

    def zero_sensor(self) -> None:
        self._zero = self.raw_wrench() - self._weight(self.payload, self.flange_frame())

    def contact_steps(self, direction: Array, contact_n: float) -> int:
        """tool_contact: how many periods ago a contact began that resists a motion along ``direction`` (3,) (zeros: any
        motion), 0 where there is none."""
        length = float(np.linalg.norm(direction))

        def resistance(force: Array) -> float:
            return float(np.linalg.norm(force)) if length == 0.0 else float(-force @ direction) / length

        if resistance(self._force_history[-1]) < contact_n:
            return 0
        steps = 0
        for force in reversed(self._force_history):
            if resistance(force) < CONTACT_BEGAN_N:
                break
            steps += 1
        return steps
