"""The arm behind an FCI twin: its modes, commands, controllers, reflexes, and the state that it streams.

Knows nothing of sockets: ``franka_fci`` hands it requests and the newest command, and lets it ``step``.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

from robot_rl.types import Array
from sim._twin import Twin
from sim.protocols import _fci_motion as motions
from sim.protocols._fci_messages import (
    ERRORS,
    ROBOT_STATE,
    Controller,
    Generator,
    MoveStatus,
    RecoveryStatus,
    RobotMode,
    SetStatus,
    StopStatus,
)
from sim.protocols._fci_model import Body, transform
from sim.protocols._fci_motion import DT_S, Violation

LOST_IN_A_ROW = 20  # commands, after which a motion ends
FIRST_COMMAND_TICKS = 500  # a motion that nobody begins ends as well
EXTERNAL_CUTOFF_HZ = 30.0
MEASURED_MARGIN = 1.05  # an arm that follows a generator at its limit overshoots a little
TORQUE_RATE_SLACK_NMPS = 1.0  # single precision of the torque that clients limit their rate from

JOINT_STIFFNESS = np.array([3000.0, 3000.0, 3000.0, 2500.0, 2500.0, 2000.0, 2000.0])  # Nm/rad, at switching on
CARTESIAN_STIFFNESS = np.array([3000.0, 3000.0, 3000.0, 300.0, 300.0, 300.0])
JOINT_STIFFNESS_MAX = 14250.0
CARTESIAN_STIFFNESS_RANGE = (np.array([10.0] * 3 + [1.0] * 3), np.array([3000.0] * 3 + [300.0] * 3))
TORQUE_THRESHOLDS_NM = np.array([20.0, 20.0, 18.0, 18.0, 16.0, 14.0, 12.0])  # as the vendor's examples set them
FORCE_THRESHOLDS = np.array([20.0, 20.0, 20.0, 25.0, 25.0, 25.0])
GRAVITY_MPS2 = 9.81


class Robot:
    """``status = command(request)`` for what TCP brings, ``step(command)`` for every millisecond."""

    def __init__(self, twin: Twin) -> None:
        self.twin, self.body = twin, Body(twin)
        self.mode = RobotMode.IDLE
        self.errors: set[str] = set()
        self.last_motion_errors: set[str] = set()
        self.finished: MoveStatus | None = None  # the answer that the running Move has not had yet
        self.controller, self.generator_kind = Controller.OTHER, Generator.IDLE
        self.commanded = False  # the running motion has had its first command
        self.gripper = twin.read().gripper
        self._waited = self._lost = 0
        self._received: deque[bool] = deque(maxlen=100)
        self.joint_stiffness, self.cartesian_stiffness = JOINT_STIFFNESS, CARTESIAN_STIFFNESS
        self._thresholds = (TORQUE_THRESHOLDS_NM, TORQUE_THRESHOLDS_NM, FORCE_THRESHOLDS, FORCE_THRESHOLDS)
        self.nominal_to_ee, self.ee_to_k = np.eye(4), np.eye(4)
        self.load = (0.0, np.zeros(3), np.zeros(9))
        self._share = 1.0 - math.exp(-2.0 * math.pi * EXTERNAL_CUTOFF_HZ * DT_S)
        self.out = np.zeros(1, ROBOT_STATE)
        self._record = {name: self.out[name] for name in ROBOT_STATE.names or ()}
        self.settle()

    def settle(self) -> None:
        """Hold where the twin is now; for a world that someone else has moved."""
        self._tau_d = np.zeros(self.body.dof)
        self._tau_nm = self._tau_before_nm = np.zeros(self.body.dof)
        self._external_nm = np.zeros(self.body.dof)
        self._collision = np.zeros(self.body.dof), np.zeros(6)
        self._sense()
        self._hold_here()
        self._frames()
        self._fill()

    def _hold_here(self) -> None:
        self.goal = motions.make_generator(Generator.NONE, self.body, self.state.q_rad, self.nominal_to_ee)

    # --------------------------------------------------------------------------------------------------------- commands

    @property
    def moving(self) -> bool:
        return self.mode == RobotMode.MOVE

    def start_move(self, request: Any) -> MoveStatus:
        """MOTION_STARTED, or why not."""
        deviations = np.concatenate([request["maximum_path_deviation"], request["maximum_goal_pose_deviation"]])
        known = request["controller_mode"] < Controller.OTHER and request["motion_generator_mode"] < Generator.NONE
        external = request["controller_mode"] == Controller.EXTERNAL
        torque_only = int(request["motion_generator_mode"]) + 1 == Generator.NONE
        if self.mode != RobotMode.IDLE:
            return MoveStatus.COMMAND_NOT_POSSIBLE
        if not known or (torque_only and not external) or not (deviations >= 0.0).all():
            return MoveStatus.INVALID_ARGUMENT
        if request["use_async_motion_generator"]:  # plans on the robot, which the twin does not
            return MoveStatus.INVALID_ARGUMENT
        self.controller = Controller(int(request["controller_mode"]))
        self.generator_kind = Generator(int(request["motion_generator_mode"]) + 1)
        self.goal = motions.make_generator(self.generator_kind, self.body, self.goal.q_d, self.nominal_to_ee)
        if external:
            self._tau_d = np.zeros(self.body.dof)
        self.mode, self.commanded, self.finished = RobotMode.MOVE, False, None
        self._lost = self._waited = 0
        self._received.clear()
        self.last_motion_errors = set()
        return MoveStatus.MOTION_STARTED

    def stop_move(self) -> StopStatus:
        """A motion that runs is preempted, and the arm held; where none runs there is nothing to refuse."""
        if self.mode == RobotMode.USER_STOPPED:
            return StopStatus.EMERGENCY_ABORTED
        if self.moving:
            self._end(MoveStatus.PREEMPTED, RobotMode.IDLE)
        return StopStatus.SUCCESS

    def recover(self) -> RecoveryStatus:
        """Clear the errors; only this does."""
        if self.mode == RobotMode.USER_STOPPED or self.moving:
            return RecoveryStatus.COMMAND_NOT_POSSIBLE
        self.errors = set()
        self._collision = np.zeros(self.body.dof), np.zeros(6)
        self.mode = RobotMode.IDLE
        return RecoveryStatus.SUCCESS

    def configure(self, values: dict[str, Array]) -> SetStatus:
        """One of the setters, by the fields of its request."""
        if self.moving:
            return SetStatus.COMMAND_NOT_POSSIBLE
        if not all(np.isfinite(value).all() for value in values.values()):
            return SetStatus.INVALID_ARGUMENT
        (setter,) = (do for field, do in self._setters.items() if field in values)
        return SetStatus.SUCCESS if setter(self, values) else SetStatus.INVALID_ARGUMENT

    def _set_collision(self, values: dict[str, Array]) -> bool:
        nominal = [values[f"{end}_{kind}_thresholds_nominal"] for kind in ("torque", "force")
                   for end in ("lower", "upper")]  # fmt: skip
        if any((value < 0.0).any() for value in values.values()):
            return False
        if (nominal[0] > nominal[1]).any() or (nominal[2] > nominal[3]).any():
            return False
        self._thresholds = (nominal[0], nominal[1], nominal[2], nominal[3])
        return True

    def _set_joint_impedance(self, values: dict[str, Array]) -> bool:
        wanted = values["K_theta"]
        if (wanted < 0.0).any() or (wanted > JOINT_STIFFNESS_MAX).any():
            return False
        self.joint_stiffness = wanted
        return True

    def _set_cartesian_impedance(self, values: dict[str, Array]) -> bool:
        wanted, (low, high) = values["K_x"], CARTESIAN_STIFFNESS_RANGE
        if (wanted < low).any() or (wanted > high).any():
            return False
        self.cartesian_stiffness = wanted
        return True

    def _set_guiding(self, values: dict[str, Array]) -> bool:
        return True  # says what a hand on the pilot's buttons may move; nobody guides a twin

    def _set_frame(self, values: dict[str, Array]) -> bool:
        ((name, value),) = values.items()
        pose = value.reshape(4, 4).T.copy()
        rotation = pose[:3, :3]
        if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0.0:
            return False
        if name == "EE_T_K":
            self.ee_to_k = pose
        else:
            self.nominal_to_ee = pose
            self.goal = motions.make_generator(Generator.NONE, self.body, self.goal.q_d, pose)
        self._frames()
        return True

    def _set_load(self, values: dict[str, Array]) -> bool:
        mass_kg = float(values["m_load"])
        if mass_kg < 0.0:
            return False
        self.load = (mass_kg, values["F_x_Cload"], values["I_load"])
        self._frames()
        return True

    _setters = {  # noqa: RUF012 - a table of methods
        "lower_torque_thresholds_nominal": _set_collision, "K_theta": _set_joint_impedance,
        "K_x": _set_cartesian_impedance, "guiding_mode": _set_guiding, "EE_T_K": _set_frame, "NE_T_EE": _set_frame,
        "m_load": _set_load,
    }  # fmt: skip

    # ------------------------------------------------------------------------------------------------- ends of a motion

    def fail(self, *names: str) -> None:
        """Errors: a motion ends, the arm is held, and moves no more until ``recover``."""
        self.errors |= set(names)
        self.last_motion_errors = set(names)
        if self.mode != RobotMode.USER_STOPPED:
            self._end(MoveStatus.REFLEX_ABORTED, RobotMode.REFLEX)

    def user_stop(self) -> None:
        """The external activation device is pressed."""
        self._end(MoveStatus.EMERGENCY_ABORTED, RobotMode.USER_STOPPED)

    def release_user_stop(self) -> None:
        if self.mode == RobotMode.USER_STOPPED:
            self.mode = RobotMode.REFLEX if self.errors else RobotMode.IDLE

    def _end(self, status: MoveStatus, mode: RobotMode) -> None:
        if self.moving:
            self.finished = status
            smooth = status == MoveStatus.SUCCESS and self.generator_kind != Generator.NONE
            at_rest = smooth and self.controller != Controller.EXTERNAL and np.abs(self.goal.dq_d).max() < 0.01
            if at_rest:  # an arm that has arrived goes on holding what was commanded
                self.goal = motions.make_generator(Generator.NONE, self.body, self.goal.q_d, self.nominal_to_ee)
            else:
                self._hold_here()
        elif mode == RobotMode.USER_STOPPED:
            self._hold_here()
        self.mode = mode
        self.controller, self.generator_kind, self.commanded = Controller.OTHER, Generator.IDLE, False
        self._received.clear()

    # ------------------------------------------------------------------------------------------------------------ ticks

    def ends(self, command: Any) -> bool:
        """Whether a command says that the motion is finished; if so it is."""
        if not self.moving or not (command["motion_generation_finished"] or command["torque_command_finished"]):
            return False
        self._end(MoveStatus.SUCCESS, RobotMode.IDLE)
        return True

    def step(self, command: Any | None) -> None:
        """One millisecond with the command for it, or None where none has come."""
        try:
            self._tau_d = self._control(command)
        except Violation as violation:
            self.fail(*violation.errors)
            self._tau_d = self._hold()
        self.twin.drive(self._tau_d + self._load_nm, self.gripper)
        self._sense()
        if self.moving:
            self._watch()
        self._fill()

    def _control(self, command: Any | None) -> Array:
        if not self.moving:
            return self._hold()
        if command is None and not self.commanded:
            self._waited += 1
            if self._waited > FIRST_COMMAND_TICKS:
                raise Violation("communication_constraints_violation")
            return self._hold()
        self.commanded = True
        self._received.append(command is not None)
        self._lost = 0 if command is not None else self._lost + 1
        if self._lost >= LOST_IN_A_ROW:
            raise Violation("communication_constraints_violation")
        self.goal.step(command, self.state.q_rad, self.state.dq_radps)
        if self.controller == Controller.EXTERNAL:
            return self._take_torque(command)
        if self.controller == Controller.CARTESIAN_IMPEDANCE:
            rotation = self._stiffness_pose[:3, :3]
            tau_nm = motions.cartesian_impedance(
                self.cartesian_stiffness, rotation, self.terms.mass, self._place, self.state.dq_radps,
                self.state.q_rad, self.goal,
            )  # fmt: skip
        else:
            tau_nm = motions.joint_impedance(
                self.joint_stiffness, self.terms.mass, self.state.q_rad, self.state.dq_radps, self.goal
            )
        return self._within_range(tau_nm + self.terms.coriolis_nm)

    def _hold(self) -> Array:
        if self.mode == RobotMode.REFLEX and (np.abs(self._wrench) > 0.25 * self._thresholds[3]).any():
            self._hold_here()  # what it has hit pushes the arm off
        still = self.goal
        still.dq_d, still.ddq_d = np.zeros(self.body.dof), np.zeros(self.body.dof)
        return self._within_range(
            motions.joint_impedance(JOINT_STIFFNESS, self.terms.mass, self.state.q_rad, self.state.dq_radps, still)
            + self.terms.coriolis_nm
        )

    def _within_range(self, tau_nm: Array) -> Array:
        return np.clip(tau_nm, -self.body.limits.tau_max_nm, self.body.limits.tau_max_nm)

    def _take_torque(self, command: Any | None) -> Array:
        if command is None:
            return self._tau_d  # as documented: the last one
        tau_nm, limits = command["tau_J_d"].copy(), self.body.limits
        rate_nmps = np.abs(tau_nm - self._tau_d).max() / DT_S
        if not rate_nmps <= limits.dtau_max_nmps.max() + TORQUE_RATE_SLACK_NMPS:
            raise Violation("controller_torque_discontinuity")
        if (np.abs(tau_nm) > limits.tau_max_nm).any():
            raise Violation("tau_J_range_violation")
        return tau_nm

    def _sense(self) -> None:
        """Read the twin, and estimate what acts on the arm from outside."""
        self.state, self.terms = self.twin.read(), self.twin.terms()
        self._place = self.body.place(self.state.q_rad)
        tcp = transform(self._place)
        self._pose = tcp @ self.nominal_to_ee
        self._stiffness_pose = self._pose @ self.ee_to_k
        mass_kg, com_m, _ = self.load
        self._load_nm = np.zeros(self.body.dof)
        if mass_kg:
            com = tcp @ self.body.tcp_to_flange @ np.append(com_m, 1.0)
            self._load_nm = mass_kg * GRAVITY_MPS2 * self._jac_at(com[:3])[2]
        self._tau_before_nm, self._tau_nm = self._tau_nm, self._tau_d + self.terms.gravity_nm + self._load_nm
        # The robot's own sign: what the arm exerts on its surroundings.
        external_nm = -self.body.constraint_nm - self._load_nm
        self._external_nm = self._external_nm + self._share * (external_nm - self._external_nm)
        jac = self._jac_at(self._stiffness_pose[:3, 3])
        self._wrench = np.linalg.solve(jac @ jac.T + 1e-9 * np.eye(6), jac @ self._external_nm)

    def _jac_at(self, point_m: Array) -> Array:
        """Jacobian (6, dof) of a point that moves with the hand."""
        jac = self._place.jac.copy()
        x, y, z = point_m - self._place.pos_m
        jac[:3] -= np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]]) @ jac[3:]
        return jac

    def _watch(self) -> None:
        """Collisions, and what the arm must not do while it moves."""
        _, upper_nm, _, upper = self._thresholds
        joints, axes = np.abs(self._external_nm) > upper_nm, np.abs(self._wrench) > upper
        limits, q, dq = self.body.limits, self.state.q_rad, self.state.dq_radps
        speed_mps = math.sqrt(self.state.tcp_twist[:3] @ self.state.tcp_twist[:3])
        found = {
            "joint_reflex": joints.any(),
            "cartesian_reflex": axes.any(),
            "joint_position_limits_violation": (q < limits.q_min_rad).any() or (q > limits.q_max_rad).any(),
            "joint_velocity_violation": (np.abs(dq) > MEASURED_MARGIN * limits.dq_max_radps).any(),
            "cartesian_velocity_violation": speed_mps > limits.speed_max_mps,
        }
        if any(found.values()):
            self._collision = joints.astype(float), axes.astype(float)
            self.fail(*(name for name, is_so in found.items() if is_so))

    # ------------------------------------------------------------------------------------------------------------ state

    def _frames(self) -> None:
        """What only setters change."""
        out, hand = self._record, self.body.hand
        out["F_T_NE"][0] = self.body.flange_to_tcp.T.ravel()
        out["NE_T_EE"][0] = self.nominal_to_ee.T.ravel()
        out["F_T_EE"][0] = (self.body.flange_to_tcp @ self.nominal_to_ee).T.ravel()
        out["EE_T_K"][0] = self.ee_to_k.T.ravel()
        out["m_ee"][0], out["F_x_Cee"][0], out["I_ee"][0] = hand.mass_kg, hand.com_m, hand.inertia.ravel()
        out["m_load"][0], out["F_x_Cload"][0], out["I_load"][0] = self.load
        out["O_ddP_O"][0] = (0.0, 0.0, -GRAVITY_MPS2)

    def _fill(self) -> None:
        out, state, goal = self._record, self.state, self.goal
        rotation = self._stiffness_pose[:3, :3]
        lower_nm, _, lower, _ = self._thresholds
        out["O_T_EE"][0] = self._pose.T.ravel()
        out["O_T_EE_d"][0] = (transform(goal.place) @ self.nominal_to_ee).T.ravel()
        out["elbow"][0], out["elbow_d"][0] = motions.elbow(state.q_rad), motions.elbow(goal.q_d)
        out["tau_J"][0], out["tau_J_d"][0] = self._tau_nm, self._tau_d
        out["dtau_J"][0] = (self._tau_nm - self._tau_before_nm) / DT_S
        out["q"][0], out["dq"][0] = out["theta"][0], out["dtheta"][0] = state.q_rad, state.dq_radps
        out["q_d"][0], out["dq_d"][0], out["ddq_d"][0] = goal.q_d, goal.dq_d, goal.ddq_d
        out["joint_contact"][0] = np.abs(self._external_nm) > lower_nm
        out["cartesian_contact"][0] = np.abs(self._wrench) > lower
        out["joint_collision"][0], out["cartesian_collision"][0] = self._collision
        out["tau_ext_hat_filtered"][0] = self._external_nm
        out["O_F_ext_hat_K"][0] = self._wrench
        out["K_F_ext_hat_K"][0] = np.concatenate([rotation.T @ self._wrench[:3], rotation.T @ self._wrench[3:]])
        out["O_dP_EE_d"][0] = goal.place.jac @ goal.dq_d
        out["elbow_c"][0] = goal.elbow_c
        out["delbow_c"][0, 0], out["ddelbow_c"][0, 0] = goal.delbow_c, goal.ddelbow_c
        out["O_T_EE_c"][0] = goal.pose_c.T.ravel()
        out["O_dP_EE_c"][0], out["O_ddP_EE_c"][0] = goal.twist_c, goal.acceleration_c

    def fill_modes(self) -> None:
        """What a command or a fault may change between two ticks."""
        out = self._record
        out["motion_generator_mode"][0], out["controller_mode"][0] = self.generator_kind, self.controller
        out["errors"][0] = [name in self.errors for name in ERRORS]
        out["reflex_reason"][0] = [name in self.last_motion_errors for name in ERRORS]
        out["robot_mode"][0] = self.mode
        success = sum(self._received) / len(self._received) if self._received else 0.0
        out["control_command_success_rate"][0] = success
