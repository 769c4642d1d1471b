"""The MuJoCo twin of an arm: an Arm whose clock is physics, with guard and law inside the control tick."""

from __future__ import annotations

import math
from typing import Any

import mujoco
import numpy as np
from scipy.optimize import least_squares

from controllers import guard as guarding
from controllers import impedance
from robot_rl.geometry import matrix_to_quat, rotation_between
from robot_rl.types import ArmCommand, ArmState, Pose, Scene, Start
from sim import _tick
from sim._models import Model
from sim._scene import build, from_wxyz, to_wxyz

WRENCH_CUTOFF_HZ = 30.0  # low-pass of the estimated contact wrench, as vendors filter theirs
CAMERA = {"lookat": (0.42, 0.0, 0.22), "distance": 1.35, "azimuth": 145.0, "elevation": -22.0}


class Twin:
    """One arm in one scene. ``compiled=False`` runs the same ticks in plain Python (for tests and debuggers)."""

    def __init__(self, model: Model, config: impedance.Config, scene: Scene, compiled: bool = True) -> None:
        self.name = model.name
        self.limits = model.limits
        self.default_stiffness = np.asarray(config.stiffness, np.float64)
        self._ready_rad = np.asarray(model.ready_rad, np.float64)
        self._xml_path = model.xml_path
        self._model = build(model.xml_path, scene, visual=False)
        self._data = mujoco.MjData(self._model)
        self._scene = scene
        self._site = self._model.site("tcp").id
        self._dt_s = float(self._model.opt.timestep)
        self._law = impedance.make_law(config, model.limits, self._ready_rad)
        self._compiled = compiled
        self._plant = self._make_plant(model)
        self._tick = _tick.TickMemory(np.zeros(model.limits.dof), np.zeros(6))
        self._open = guarding.open_limits(model.limits)
        self._finger_open_m = model.finger_open_m
        self._picture: tuple[mujoco.MjModel, mujoco.MjData, mujoco.Renderer] | None = None
        self.peak_force_n = 0.0
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[: self.limits.dof] = self._ready_rad
        self._settle()
        self._own = guarding.make_memory(self.read(), self.default_stiffness)

    def _make_plant(self, model: Model) -> _tick.Plant:
        m, d = self._model, self._data
        return _tick.Plant(
            model=m._address if self._compiled else m,
            data=d._address if self._compiled else d,
            qpos=d.qpos,
            qvel=d.qvel,
            ctrl=d.ctrl,
            site_pos=d.site_xpos[self._site],
            site_mat=d.site_xmat[self._site],
            bias=d.qfrc_bias,
            gravcomp=d.qfrc_gravcomp,
            constraint=d.qfrc_constraint,
            jac=np.zeros((6, m.nv)),
            site=self._site,
            finger_open_m=model.finger_open_m,
            filter_share=1.0 - math.exp(-2.0 * math.pi * WRENCH_CUTOFF_HZ * self._dt_s),
        )

    # ------------------------------------------------------------------------------------------------------------ Arm

    def read(self) -> ArmState:
        dof, d = self.limits.dof, self._data
        mujoco.mj_jacSite(self._model, d, self._plant.jac[:3], self._plant.jac[3:], self._site)
        width = d.qpos[dof] + d.qpos[dof + 1]
        return ArmState(
            t_s=d.time,
            q_rad=d.qpos[:dof].copy(),
            dq_radps=d.qvel[:dof].copy(),
            tau_nm=self._tick.tau_nm.copy(),
            tcp_pos_m=self._plant.site_pos.copy(),
            tcp_quat_xyzw=matrix_to_quat(self._plant.site_mat),
            tcp_twist=self._plant.jac[:, :dof] @ d.qvel[:dof],
            tcp_wrench=self._tick.wrench.copy(),
            gripper=min(max(1.0 - width / (2.0 * self._finger_open_m), 0.0), 1.0),
        )

    def command(self, command: ArmCommand) -> None:
        guarding.take_command(self._own, command, self.default_stiffness)

    def wait(self, dt_s: float) -> ArmState:
        """Step physics without limits; a policy gets a GuardedArm instead, which calls ``wait_guarded``."""
        return self.wait_guarded(self._open, self._own, dt_s)

    def wait_guarded(self, limits: guarding.GuardLimits, memory: guarding.GuardMemory, dt_s: float) -> ArmState:
        """Step ``dt_s`` (a whole number of physics steps) with guard and law in every tick."""
        ticks = round(dt_s / self._dt_s)
        if abs(ticks * self._dt_s - dt_s) > 1e-9:
            raise ValueError(f"wait({dt_s}): give a multiple of the twin's control tick, {self._dt_s} s")
        run: Any = _tick.run_ticks_compiled if self._compiled else _tick.run_ticks
        self.peak_force_n = run(ticks, self._dt_s, self._plant, self._tick, self._law, limits, memory)
        return self.read()

    def stop(self) -> None:
        guarding.hold_here(self._own, self.read())

    def close(self) -> None:
        if self._picture is not None:
            self._picture[2].close()
            self._picture = None

    # ---------------------------------------------------------------------------------------------------------- world

    def place(self, start: Start) -> ArmState:
        """Put the world into ``start``: arm, gripper and every prop, at rest. A twin's reset, which no real arm has.

        Raises ValueError for a tcp pose out of reach or a prop the scene does not have.
        """
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[: self.limits.dof] = self._solve_pose(start.tcp)
        self._data.qpos[self.limits.dof : self.limits.dof + 2] = (1.0 - start.gripper) * self._finger_open_m
        movable = {prop.name for prop in self._scene.props if prop.kind != "tool"}
        if set(start.props) != movable:
            raise ValueError(f"Start.props names {sorted(start.props)}: the scene places {sorted(movable)}")
        for name, pose in start.props.items():
            mocap = int(self._model.body(name).mocapid[0])
            if mocap >= 0:
                self._data.mocap_pos[mocap] = pose.pos_m
                self._data.mocap_quat[mocap] = to_wxyz(pose.quat_xyzw)
            else:
                where = self._data.joint(name).qpos
                where[:3], where[3:] = pose.pos_m, to_wxyz(pose.quat_xyzw)
        self._settle()
        self._own = guarding.make_memory(self.read(), self.default_stiffness)
        self._own.target_gripper[0] = start.gripper
        return self.read()

    def readings(self) -> dict[str, np.ndarray]:
        """The true pose (7,) m, xyzw of every prop, as ``prop/<name>``."""
        out = {}
        for prop in self._scene.props:
            body = self._data.body(prop.name)
            out[f"prop/{prop.name}"] = np.concatenate([body.xpos, from_wxyz(body.xquat)])
        return out

    def render(self, width: int = 640, height: int = 480) -> np.ndarray:
        """A picture, uint8 (height, width, 3). Needs a GL library; the error says which."""
        if self._picture is not None and (self._picture[2].width, self._picture[2].height) != (width, height):
            self.close()
        if self._picture is None:
            model = build(self._xml_path, self._scene, visual=True)
            self._picture = (model, mujoco.MjData(model), mujoco.Renderer(model, height, width))
        model, data, renderer = self._picture
        data.qpos[:] = self._data.qpos
        data.mocap_pos[:], data.mocap_quat[:] = self._data.mocap_pos, self._data.mocap_quat
        mujoco.mj_forward(model, data)
        camera = mujoco.MjvCamera()
        camera.lookat[:] = CAMERA["lookat"]
        camera.distance, camera.azimuth, camera.elevation = CAMERA["distance"], CAMERA["azimuth"], CAMERA["elevation"]
        options = mujoco.MjvOption()
        options.geomgroup[:] = (1, 1, 1, 0, 0, 0)
        renderer.update_scene(data, camera, options)
        return renderer.render()

    def _settle(self) -> None:
        self._tick.tau_nm[:] = 0.0
        self._tick.wrench[:] = 0.0
        self.peak_force_n = 0.0
        mujoco.mj_step1(self._model, self._data)

    def _solve_pose(self, pose: Pose) -> np.ndarray:
        """Joint angles (dof,) that put the tcp at ``pose``, near the ready pose."""
        dof, d, m = self.limits.dof, self._data, self._model
        weight = 1e-4  # on the distance from the ready pose: decides the redundant joint, leaves the pose exact

        def reach(q_rad: np.ndarray) -> None:
            d.qpos[:dof] = q_rad
            mujoco.mj_kinematics(m, d)
            mujoco.mj_comPos(m, d)

        def residual(q_rad: np.ndarray) -> np.ndarray:
            reach(q_rad)
            turn = rotation_between(matrix_to_quat(self._plant.site_mat), pose.quat_xyzw)
            return np.concatenate([self._plant.site_pos - pose.pos_m, turn, weight * (q_rad - self._ready_rad)])

        def jacobian(q_rad: np.ndarray) -> np.ndarray:
            reach(q_rad)
            mujoco.mj_jacSite(m, d, self._plant.jac[:3], self._plant.jac[3:], self._site)
            return np.vstack([self._plant.jac[:, :dof], weight * np.eye(dof)])

        bounds = (self.limits.q_min_rad, self.limits.q_max_rad)
        q_rad = least_squares(residual, self._ready_rad, jacobian, bounds, xtol=1e-12, ftol=1e-14, gtol=1e-12).x
        miss = np.abs(residual(q_rad)[:6]).max()
        if miss > 1e-4:
            raise ValueError(
                f"start pose {np.round(pose.pos_m, 4).tolist()} m is out of reach of {self.name} (misses by {miss:.3g})"
            )
        return q_rad
