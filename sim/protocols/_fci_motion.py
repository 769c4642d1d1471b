"""Motion generators and internal controllers of an FCI twin.

A generator turns commands into desired joint angles, 1000 times a second, and refuses what breaks the limits that the
vendor publishes ("Robot and interface specifications") of velocity, acceleration (which it calls a velocity
discontinuity) and jerk (acceleration discontinuity). Where a command is missing it goes on with constant acceleration,
as the vendor documents.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from robot_rl.geometry import matrix_to_quat, rotation_between, rotvec_to_quat
from robot_rl.types import Array
from sim.protocols._fci_messages import Generator
from sim.protocols._fci_model import Body, Place, transform

DT_S = 1e-3
ELBOW_FLIP_RAD = -0.467002423653011  # of joint 4: where the elbow's sign changes
START_TOLERANCE = 1e-3  # rad or m, between where the arm is and the first commanded position

# What differences of single-precision positions, which clients compute their commands from, may be wrong by. The robot
# sends its state as such.
VELOCITY_SLACK, ACCELERATION_SLACK, JERK_SLACK = 1e-3, 1.0, 2000.0


class Bound(NamedTuple):
    velocity: float
    acceleration: float
    jerk: float


JOINT = Bound(math.nan, 10.0, 5000.0)  # velocity: by position
TRANSLATION = Bound(3.0, 9.0, 4500.0)
ROTATION = Bound(2.5, 17.0, 8500.0)
ELBOW = Bound(1.5, 10.0, 5000.0)


class Violation(Exception):
    """What ends a motion: the names of the errors."""

    def __init__(self, *errors: str) -> None:
        super().__init__(", ".join(errors))
        self.errors = errors


class Following:
    """No motion generator runs: what is desired is what is."""

    def __init__(self, body: Body, q_rad: Array, ee: Array) -> None:
        self.body = body
        self.ee = ee  # (4, 4) end effector in the tcp's frame
        self.q_d, self.dq_d, self.ddq_d = q_rad.copy(), np.zeros(body.dof), np.zeros(body.dof)
        self.place = body.place(self.q_d)
        self.pose_c = self._ee_pose()
        self.twist_c, self.acceleration_c = np.zeros(6), np.zeros(6)
        self.elbow_c = elbow(self.q_d)
        self.delbow_c = self.ddelbow_c = 0.0
        self._lost = self._since = 0

    def _loosen(self, command: Any | None) -> float:
        """How much farther than usual a command may be from where this one thinks the arm is: after ``n`` lost commands
        constant acceleration is wrong by ``(1 + n)^3`` times what it is wrong by after one, for the next three."""
        self._lost, self._since = (self._lost + 1, 0) if command is None else (self._lost, self._since + 1)
        if self._since > 3:
            self._lost = 0
        return float((1 + min(self._lost, 3)) ** 3)

    def step(self, command: Any | None, q_rad: Array, dq_radps: Array) -> None:
        """One millisecond with a command, a record of ``ROBOT_COMMAND``, or without. Raises Violation."""
        self.q_d, self.dq_d = q_rad, dq_radps
        self._arrive()

    def _arrive(self) -> None:
        self.place = self.body.place(self.q_d)
        self.pose_c = self._ee_pose()
        self.elbow_c = elbow(self.q_d)

    def _ee_pose(self) -> Array:
        return transform(self.place) @ self.ee


class JointGenerator(Following):
    """Joint positions or joint velocities."""

    def __init__(self, body: Body, q_rad: Array, ee: Array, positions: bool) -> None:
        super().__init__(body, q_rad, ee)
        self._positions, self._begun = positions, False

    def step(self, command: Any | None, q_rad: Array, dq_radps: Array) -> None:
        q, dq = self.q_d, self.dq_d
        if command is None:
            dq_next = dq + self.ddq_d * DT_S
            q_next = q + dq_next * DT_S
        elif self._positions:
            q_next = command["q_c"].copy()
            if not self._begun and np.abs(q_next - q).max() > START_TOLERANCE:
                raise Violation("joint_position_motion_generator_start_pose_invalid")
            dq_next = (q_next - q) / DT_S
        else:
            dq_next = command["dq_c"].copy()
            q_next = q + dq_next * DT_S
        self._begun = self._begun or command is not None
        ddq_next = (dq_next - dq) / DT_S
        loose = self._loosen(command)
        _check_joints(self.body, "joint_motion_generator", q_next, dq_next, ddq_next, self.ddq_d, loose)
        self.q_d, self.dq_d, self.ddq_d = q_next, dq_next, ddq_next
        self._arrive()


class CartesianGenerator(Following):
    """End effector poses or twists; joint 3 where the command has an elbow, else by the shortest way."""

    def __init__(self, body: Body, q_rad: Array, ee: Array, positions: bool) -> None:
        super().__init__(body, q_rad, ee)
        self._positions, self._begun, self._inverse = positions, False, np.linalg.inv(ee)

    def step(self, command: Any | None, q_rad: Array, dq_radps: Array) -> None:
        wanted = None
        if command is None:
            twist = self.twist_c + self.acceleration_c * DT_S
        elif self._positions:
            wanted = command["O_T_EE_c"].reshape(4, 4).T.copy()
            self._check_frame(wanted)
            twist = _between(wanted, self.pose_c) / DT_S
        else:
            twist = command["O_dP_EE_c"].copy()
        self._begun = self._begun or command is not None
        acceleration = (twist - self.twist_c) / DT_S
        loose = self._loosen(command)
        _check_cartesian(twist, acceleration, (acceleration - self.acceleration_c) / DT_S, loose)
        self._move_elbow(command)
        self.pose_c = _moved(self.pose_c, twist * DT_S) if wanted is None else wanted
        self.twist_c, self.acceleration_c = twist, acceleration
        self._follow(None if command is None or not command["valid_elbow"] else float(self.elbow_c[0]), loose)

    def _check_frame(self, pose: Array) -> None:
        rotation = pose[:3, :3]
        rigid = np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-3 and np.linalg.det(rotation) > 0.0
        if not rigid or np.abs(pose[3] - (0.0, 0.0, 0.0, 1.0)).max() > 1e-6:
            raise Violation("cartesian_position_motion_generator_invalid_frame_flag")
        if not self._begun and np.abs(_between(pose, self.pose_c)).max() > START_TOLERANCE:
            raise Violation("cartesian_position_motion_generator_start_pose_invalid")

    def _move_elbow(self, command: Any | None) -> None:
        if command is None or not command["valid_elbow"]:
            self.elbow_c = elbow(self.q_d)
            self.delbow_c = self.ddelbow_c = 0.0
            return
        wanted = command["elbow_c"]
        if wanted[1] != self.elbow_c[1]:
            raise Violation("cartesian_motion_generator_elbow_sign_inconsistent")
        if abs(wanted[0] - self.elbow_c[0]) > START_TOLERANCE * 10:
            raise Violation("cartesian_motion_generator_start_elbow_invalid")
        speed = float(wanted[0] - self.elbow_c[0]) / DT_S
        acceleration = (speed - self.delbow_c) / DT_S
        if abs(speed) > ELBOW.velocity + VELOCITY_SLACK or abs(acceleration) > ELBOW.acceleration + ACCELERATION_SLACK:
            raise Violation("cartesian_motion_generator_elbow_limit_violation")
        self.elbow_c, self.delbow_c, self.ddelbow_c = wanted.copy(), speed, acceleration

    def _follow(self, elbow_rad: float | None, loose: float) -> None:
        """Joint angles for the commanded pose by Newton's steps from the last ones: 1 ms on, two are plenty."""
        target, q = self.pose_c @ self._inverse, self.q_d.copy()
        for _ in range(10):
            place = self.body.place(q)
            gap = np.empty(6)
            gap[:3] = target[:3, 3] - place.pos_m
            gap[3:] = _rotation_gap(target[:3, :3], place.rotation)
            if np.abs(gap).max() < 1e-10 and (elbow_rad is None or abs(q[2] - elbow_rad) < 1e-10):
                break
            q += _joint_step(place.jac, gap, None if elbow_rad is None else elbow_rad - q[2])
        dq_next = (q - self.q_d) / DT_S
        ddq_next = (dq_next - self.dq_d) / DT_S
        _check_joints(self.body, "cartesian_motion_generator_joint", q, dq_next, ddq_next, self.ddq_d, loose)
        self.q_d, self.dq_d, self.ddq_d, self.place = q, dq_next, ddq_next, place


def make_generator(kind: Generator, body: Body, q_rad: Array, ee: Array) -> Following:
    """A motion generator at rest at ``q_rad``; ``ee`` (4, 4) is the end effector in the tcp's frame."""
    if kind in (Generator.JOINT_POSITION, Generator.JOINT_VELOCITY):
        return JointGenerator(body, q_rad, ee, kind == Generator.JOINT_POSITION)
    if kind in (Generator.CARTESIAN_POSITION, Generator.CARTESIAN_VELOCITY):
        return CartesianGenerator(body, q_rad, ee, kind == Generator.CARTESIAN_POSITION)
    return Following(body, q_rad, ee)


def elbow(q_rad: Array) -> Array:
    """Angle of joint 3, and the sign of the elbow (2,)."""
    return np.array([q_rad[2], np.sign(q_rad[3] - ELBOW_FLIP_RAD)])


def _check_joints(body: Body, who: str, q: Array, dq: Array, ddq: Array, ddq_before: Array, loose: float) -> None:
    limits = body.limits
    if not np.isfinite(q).all() or (q < limits.q_min_rad).any() or (q > limits.q_max_rad).any():
        raise Violation(f"{who}_position_limits_violation")
    if (dq > body.upper_radps(q) + VELOCITY_SLACK).any() or (dq < body.lower_radps(q) - VELOCITY_SLACK).any():
        raise Violation(f"{who}_velocity_limits_violation")
    if np.abs(ddq).max() > JOINT.acceleration + ACCELERATION_SLACK + (loose - 1.0) * JOINT.jerk * DT_S:
        raise Violation(f"{who}_velocity_discontinuity")
    if np.abs(ddq - ddq_before).max() / DT_S > loose * (JOINT.jerk + JERK_SLACK):
        raise Violation(f"{who}_acceleration_discontinuity")


def _check_cartesian(twist: Array, acceleration: Array, jerk: Array, loose: float) -> None:
    for part, bound in ((slice(0, 3), TRANSLATION), (slice(3, 6), ROTATION)):
        # A comparison that is false for what is not a number.
        if not _norm(twist[part]) <= bound.velocity + VELOCITY_SLACK:
            raise Violation("cartesian_motion_generator_velocity_limits_violation")
        if not _norm(acceleration[part]) <= bound.acceleration + ACCELERATION_SLACK + (loose - 1.0) * bound.jerk * DT_S:
            raise Violation("cartesian_motion_generator_velocity_discontinuity")
        if not _norm(jerk[part]) <= loose * (bound.jerk + JERK_SLACK):
            raise Violation("cartesian_motion_generator_acceleration_discontinuity")


def _norm(vector: Array) -> float:
    return math.sqrt(vector @ vector)


def _rotation_gap(target: Array, source: Array) -> Array:
    return rotation_between(matrix_to_quat(target.ravel()), matrix_to_quat(source.ravel()))


def _between(target: Array, source: Array) -> Array:
    """What leads from one pose (4, 4) to another: metres, then a rotation vector, base frame (6,)."""
    return np.concatenate([target[:3, 3] - source[:3, 3], _rotation_gap(target[:3, :3], source[:3, :3])])


def _moved(pose: Array, step: Array) -> Array:
    out = pose.copy()
    out[:3, 3] += step[:3]
    out[:3, :3] = quat_matrix(rotvec_to_quat(step[3:])) @ pose[:3, :3]
    return out


def quat_matrix(quat: Array) -> Array:
    """Rotation matrix (3, 3) of a unit quaternion (4,) xyzw."""
    x, y, z, w = quat
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def _joint_step(jac: Array, gap: Array, elbow_gap: float | None) -> Array:
    """Smallest joint step (dof,) that closes a gap (6,), or the one that also turns joint 3 by ``elbow_gap``."""
    if elbow_gap is not None:
        row = np.zeros((1, jac.shape[1]))
        row[0, 2] = 1.0
        jac, gap = np.vstack([jac, row]), np.append(gap, elbow_gap)
    # Next to a singular pose the damping keeps the step finite; the joints' limits are checked after it.
    return jac.T @ np.linalg.solve(jac @ jac.T + 1e-9 * np.eye(len(jac)), gap)


# --------------------------------------------------------------------------------------------------------- controllers


def joint_impedance(stiffness: Array, mass: Array, q: Array, dq: Array, goal: Following) -> Array:
    """Springs of ``stiffness`` (dof,) Nm/rad at the joints, critically damped for the inertia that each sees; torques
    (dof,) Nm without gravity and Coriolis."""
    damping = 2.0 * np.sqrt(stiffness * mass.diagonal())
    return stiffness * (goal.q_d - q) + damping * (goal.dq_d - dq) + mass @ goal.ddq_d


def cartesian_impedance(
    stiffness: Array, rotation: Array, mass: Array, now: Place, dq: Array, q: Array, goal: Following
) -> Array:
    """Springs (6,) N/m, Nm/rad between the tcp and its desired pose along the axes of ``rotation`` (3, 3), critically
    damped for the tcp's inertia, and a soft posture spring in the nullspace; torques (dof,) Nm without gravity and
    Coriolis."""
    turn = np.zeros((6, 6))
    turn[:3, :3] = turn[3:, 3:] = rotation.T
    jac = turn @ now.jac
    gap = turn @ np.concatenate([
        goal.place.pos_m - now.pos_m, _rotation_gap(goal.place.rotation, now.rotation),
    ])  # fmt: skip
    inverse = np.linalg.inv(mass)
    mobility = jac @ inverse @ jac.T + 1e-6 * np.eye(6)
    inertia = np.linalg.inv(mobility)
    damping = 2.0 * np.sqrt(stiffness * inertia.diagonal())
    tau = jac.T @ (stiffness * gap + damping * (jac @ (goal.dq_d - dq)))
    posture = 20.0 * (goal.q_d - q) + 2.0 * np.sqrt(20.0 * mass.diagonal()) * (goal.dq_d - dq)
    return tau + posture - jac.T @ (inertia @ (jac @ (inverse @ posture))) + mass @ goal.ddq_d
