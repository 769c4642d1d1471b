"""What an FCI twin knows of its own body: kinematics anywhere, the hand as a load, and the URDF that it hands out."""

from __future__ import annotations

import math
from typing import NamedTuple
from xml.sax.saxutils import quoteattr

import numpy as np

from robot_rl.types import Array
from sim._gl import mujoco
from sim._twin import Twin

# Deceleration (rad/s^2) and offset (rad/s) of the velocity limits near the ends of the joints' ranges: the vendor's
# "limits for Franka Research 3"; limit = min(dq_max, max(0, sqrt(2 deceleration (q_max - q)) - offset)).
DECELERATION = np.array([6.0, 2.585, 3.5, 4.0, 17.0, 5.5, 17.0])
OFFSET_RADPS = np.array([0.30, 0.20, 0.20, 0.30, 0.35, 0.35, 0.35])


class Load(NamedTuple):
    """A rigid body on the flange."""

    mass_kg: float
    com_m: Array  # (3,) in the flange's frame
    inertia: Array  # (3, 3) kg m^2 about the centre of mass, in the flange's frame


class Place(NamedTuple):
    """Where a frame of the hand is for some joint angles."""

    rotation: Array  # (3, 3)
    pos_m: Array  # (3,) base frame
    jac: Array  # (6, dof) base frame, linear then angular


def transform(place: Place) -> Array:
    """Homogeneous matrix (4, 4)."""
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = place.rotation, place.pos_m
    return out


class Body:
    """Views of a Twin that no Arm offers. Reads the world, never changes it."""

    def __init__(self, twin: Twin) -> None:
        self.dof = twin.limits.dof
        self.limits = twin.limits
        self._model, self._data = twin._model, twin._data
        self._scratch = mujoco.MjData(self._model)
        self._site = self._model.site("tcp").id
        self._flange = self._model.site("flange").id
        self.flange_to_tcp, self.hand = self._measure_hand()
        self.tcp_to_flange = np.linalg.inv(self.flange_to_tcp)
        self.fingers_move = self._model.nu > self.dof  # a scene may have welded them

    @property
    def constraint_nm(self) -> Array:
        """Joint torques (dof,) that contacts and end stops exert on the arm, in the last step."""
        return self._data.qfrc_constraint[: self.dof]

    def place(self, q_rad: Array) -> Place:
        """Pose and Jacobian of the tcp at ``q_rad`` (dof,)."""
        model, data = self._model, self._scratch
        data.qpos[: self.dof] = q_rad
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        jac = np.zeros((6, model.nv))
        mujoco.mj_jacSite(model, data, jac[:3], jac[3:], self._site)
        return Place(data.site_xmat[self._site].reshape(3, 3).copy(), data.site_xpos[self._site].copy(),
                     jac[:, : self.dof])  # fmt: skip

    def upper_radps(self, q_rad: Array) -> Array:
        """Largest joint velocities (dof,) at ``q_rad``; for the smallest, see ``lower_radps``."""
        left = np.maximum(self.limits.q_max_rad - q_rad, 0.0)
        return np.minimum(self.limits.dq_max_radps, np.maximum(np.sqrt(2.0 * DECELERATION * left) - OFFSET_RADPS, 0.0))

    def lower_radps(self, q_rad: Array) -> Array:
        left = np.maximum(q_rad - self.limits.q_min_rad, 0.0)
        return -np.minimum(self.limits.dq_max_radps, np.maximum(np.sqrt(2.0 * DECELERATION * left) - OFFSET_RADPS, 0.0))

    def _measure_hand(self) -> tuple[Array, Load]:
        """The nominal end effector frame in the flange's, and all that is beyond the flange, fingers as they are now:
        hand, fingers and a tool between them."""
        model, data = self._model, self._scratch
        data.qpos[:] = self._data.qpos
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        rotation, origin = data.site_xmat[self._flange].reshape(3, 3), data.site_xpos[self._flange]
        tcp = np.eye(4)
        tcp[:3, :3] = rotation.T @ data.site_xmat[self._site].reshape(3, 3)
        tcp[:3, 3] = rotation.T @ (data.site_xpos[self._site] - origin)
        root = model.body("hand").id
        bodies = [body for body in range(model.nbody) if self._is_under(body, root)]
        mass_kg = float(sum(model.body_mass[body] for body in bodies))
        com_m = sum(model.body_mass[body] * data.xipos[body] for body in bodies) / mass_kg
        inertia = np.zeros((3, 3))
        for body in bodies:
            axes, arm = data.ximat[body].reshape(3, 3), data.xipos[body] - com_m
            inertia += axes @ np.diag(model.body_inertia[body]) @ axes.T
            inertia += model.body_mass[body] * (arm @ arm * np.eye(3) - np.outer(arm, arm))
        return tcp, Load(mass_kg, rotation.T @ (com_m - origin), rotation.T @ inertia @ rotation)

    def _is_under(self, body: int, root: int) -> bool:
        while body not in (0, root):
            body = int(self._model.body_parentid[body])
        return body == root

    # ------------------------------------------------------------------------------------------------------------- URDF

    def urdf(self) -> str:
        """The arm without its hand as URDF, as ``GetRobotModel`` gives it: ``link0`` .. ``link8`` (the flange), and for
        every joint ``position_based_velocity_limits`` besides its limits. Rotor inertia is no part of it."""
        links = "".join(self._link(number) for number in range(1, self.dof + 1))
        joints = "".join(self._joint(number) for number in range(1, self.dof + 1))
        last, flange = f"link{self.dof}", f"link{self.dof + 1}"
        end = _fixed(f"joint{self.dof + 1}", last, flange, self._model.site_pos[self._flange])
        return (
            f'<?xml version="1.0"?>\n<robot name="fr3">\n<link name="link0"/>\n{links}<link name="{flange}"/>\n'
            f"{joints}{end}</robot>\n"
        )

    def _link(self, number: int) -> str:
        body = self._model.body(f"link{number}")
        axes = _matrix(body.iquat)
        tensor = axes @ np.diag(body.inertia) @ axes.T
        i = {f"i{'xyz'[a]}{'xyz'[b]}": tensor[a, b] for a, b in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))}
        inertia = " ".join(f"{name}={quoteattr(repr(float(value)))}" for name, value in i.items())
        return (
            f'<link name="link{number}"><inertial><origin xyz="{_numbers(body.ipos)}" rpy="0 0 0"/>'
            f'<mass value="{float(body.mass[0])!r}"/><inertia {inertia}/></inertial></link>\n'
        )

    def _joint(self, number: int) -> str:
        k, limits, body = number - 1, self.limits, self._model.body(f"link{number}")
        return (
            f'<joint name="joint{number}" type="revolute"><parent link="link{k}"/><child link="link{number}"/>'
            f'<origin xyz="{_numbers(body.pos)}" rpy="{_numbers(_rpy(_matrix(body.quat)))}"/><axis xyz="0 0 1"/>'
            f'<limit effort="{limits.tau_max_nm[k]}" lower="{limits.q_min_rad[k]}" upper="{limits.q_max_rad[k]}" '
            f'velocity="{limits.dq_max_radps[k]}"/><position_based_velocity_limits '
            f'deceleration_limit="{DECELERATION[k]}" velocity_offset="{OFFSET_RADPS[k]}"/></joint>\n'
        )


def _fixed(name: str, parent: str, child: str, pos_m: Array) -> str:
    return (
        f'<joint name="{name}" type="fixed"><parent link="{parent}"/><child link="{child}"/>'
        f'<origin xyz="{_numbers(pos_m)}" rpy="0 0 0"/></joint>\n'
    )


def _numbers(values: Array) -> str:
    return " ".join(repr(float(value)) for value in values)


def _matrix(quat_wxyz: Array) -> Array:
    out = np.zeros(9)
    mujoco.mju_quat2Mat(out, np.asarray(quat_wxyz, np.float64))
    return out.reshape(3, 3)


def _rpy(rotation: Array) -> Array:
    """Roll, pitch, yaw: R = Rz(yaw) Ry(pitch) Rx(roll)."""
    pitch = math.atan2(-rotation[2, 0], math.hypot(rotation[0, 0], rotation[1, 0]))
    return np.array([
        math.atan2(rotation[2, 1], rotation[2, 2]), pitch, math.atan2(rotation[1, 0], rotation[0, 0]),
    ])  # fmt: skip
