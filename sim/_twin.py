"""The MuJoCo twin of an arm: an Arm whose clock is physics, with guard and law inside the control tick."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from controllers import guard as guarding
from controllers import impedance
from controllers.filters import ledger
from robot_rl.geometry import matrix_to_quat, rotation_between
from robot_rl.types import ArmCommand, ArmState, Geom, Pose, Prop, Scene, Start
from sim import _tick
from sim._gl import mujoco
from sim._models import Model
from sim._picture import Picture
from sim._scene import build, from_wxyz, hold_cable, place_prop

WRENCH_CUTOFF_HZ = 30.0  # low-pass of the estimated contact wrench, as vendors filter theirs


class Terms(NamedTuple):
    """What the arm's equations of motion consist of, in the state that is now."""

    jac: np.ndarray  # (6, dof) of the tcp, base frame, linear then angular
    mass: np.ndarray  # (dof, dof) kg m^2, with the armature of the drives
    gravity_nm: np.ndarray  # (dof,) torque that holds the arm against gravity, which it compensates by itself
    coriolis_nm: np.ndarray  # (dof,)


class Twin:
    """One arm in one scene. ``compiled=False`` runs the same ticks in plain Python (for tests and debuggers)."""

    def __init__(self, model: Model, config: impedance.Config, scene: Scene, compiled: bool = True) -> None:
        self.name = model.name
        self.limits = model.limits
        self.default_stiffness = np.asarray(config.stiffness, np.float64)
        self._ready_rad = np.asarray(model.ready_rad, np.float64)
        make_model = partial(build, model.xml_path, scene, model.finger_open_m)
        self._model = make_model(visual=False)
        self._picture = Picture(partial(make_model, visual=True), scene, model.limits.dof, model.finger_open_m)
        self._data = mujoco.MjData(self._model)
        # For kinematics that no physics sees, of a model in which no cable has been moved: the last bits depend on it.
        self._scratch = mujoco.MjData(copy.copy(self._model))
        self._scene = scene
        self._movable = {prop.name: prop for prop in scene.props if prop.kind != "tool"}
        self._site = self._model.site("tcp").id
        self._dt_s = float(self._model.opt.timestep)
        self.control_hz = 1.0 / self._dt_s
        self._law = impedance.make_law(config, model.limits, self._ready_rad)
        self._compiled = compiled
        self._plant = self._make_plant(model)
        self._tick = _tick.TickMemory(np.zeros(model.limits.dof), np.zeros(6))
        self._open = guarding.open_limits(model.limits)
        self._watch = ledger.make_limits(ledger.Config(enforce=False), 1.0, model.limits, self._open.trip_radps)
        self._finger_open_m = model.finger_open_m
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[: self.limits.dof] = self._ready_rad
        self._settle()
        self._begin()

    def _begin(self) -> None:
        """What a bare twin, without a GuardedArm around it, runs its ticks with."""
        self._own = guarding.make_memory(self.read(), self.default_stiffness)
        self._own_energy = ledger.make_memory(self._watch)

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
        jac = np.zeros_like(self._plant.jac)  # its own: a running tick may be using the other
        mujoco.mj_jacSite(self._model, d, jac[:3], jac[3:], self._site)
        return ArmState(
            t_s=d.time,
            q_rad=d.qpos[:dof].copy(),
            dq_radps=d.qvel[:dof].copy(),
            tau_nm=self._tick.tau_nm.copy(),
            tcp_pos_m=self._plant.site_pos.copy(),
            tcp_quat_xyzw=matrix_to_quat(self._plant.site_mat),
            tcp_twist=jac[:, :dof] @ d.qvel[:dof],
            tcp_wrench=self._tick.wrench.copy(),
            gripper=self._read_gripper(),
        )

    def _read_gripper(self) -> float:
        if self._scene.locked_gripper is not None:
            return self._scene.locked_gripper
        dof = self.limits.dof
        width = self._data.qpos[dof] + self._data.qpos[dof + 1]
        return float(min(max(1.0 - width / (2.0 * self._finger_open_m), 0.0), 1.0))

    def command(self, command: ArmCommand) -> None:
        guarding.take_command(self._own, command, self.default_stiffness)

    def wait(self, dt_s: float) -> ArmState:
        """Step physics without limits; a policy gets a GuardedArm instead, which calls ``wait_guarded``."""
        return self.wait_guarded(self._open, self._own, self._watch, self._own_energy, dt_s)

    def wait_guarded(
        self,
        guard: guarding.GuardLimits,
        memory: guarding.GuardMemory,
        limits: ledger.EnergyLimits,
        energy: ledger.EnergyMemory,
        dt_s: float,
    ) -> ArmState:
        """Step ``dt_s`` (a whole number of physics steps) with guard, energy filter and law in every tick."""
        ticks = self.ticks(dt_s)
        run: Any = _tick.run_ticks_compiled if self._compiled else _tick.run_ticks
        run(ticks, self._dt_s, self._plant, self._tick, self._law, guard, memory, limits, energy)
        return self.read()

    def ticks(self, dt_s: float) -> int:
        """How many control ticks ``dt_s`` is; raises ValueError where it is not a whole number."""
        ticks = round(dt_s / self._dt_s)
        if ticks < 1 or abs(ticks * self._dt_s - dt_s) > 1e-9:
            raise ValueError(f"a period of {dt_s:g} s is no multiple of the twin's control tick, {self._dt_s} s")
        return ticks

    def stop(self) -> None:
        guarding.hold_here(self._own, self.read())

    def close(self) -> None:
        self._picture.close()

    # ------------------------------------------------------------------------- for controllers of a vendor, not of ours

    def drive(self, tau_nm: np.ndarray, gripper: float) -> None:
        """One physics step under joint torques (dof,) Nm, gravity compensated besides, without law or limits; the
        gripper goes to 0 open .. 1 closed. For twins behind a vendor's protocol, whose own controllers close the loop.
        """
        run: Any = _tick.drive_tick_compiled if self._compiled else _tick.drive_tick
        run(self._plant, self._tick, tau_nm, float(gripper))

    def terms(self) -> Terms:
        """Jacobian, mass matrix, gravity and Coriolis torques."""
        dof, d = self.limits.dof, self._data
        jac = np.zeros_like(self._plant.jac)
        mujoco.mj_jacSite(self._model, d, jac[:3], jac[3:], self._site)
        mass = np.zeros((self._model.nv, self._model.nv))
        mujoco.mj_fullM(self._model, d, mass)
        gravity_nm = d.qfrc_gravcomp[:dof].copy()
        return Terms(jac[:, :dof], mass[:dof, :dof], gravity_nm, d.qfrc_bias[:dof] - gravity_nm)

    # ---------------------------------------------------------------------------------------------------------- world

    def place_props(self, props: Mapping[str, Pose]) -> None:
        """Put any props but tools somewhere, at rest; the arm stays. Raises ValueError for an unknown one."""
        for name in props:
            if name not in self._movable:
                raise ValueError(f"props names '{name}': the scene places {', '.join(sorted(self._movable)) or 'none'}")
        here = Pose(self._plant.site_pos.copy(), matrix_to_quat(self._plant.site_mat))
        for name, pose in props.items():
            self._put(self._movable[name], pose, here)
        mujoco.mj_step1(self._model, self._data)

    def _put(self, prop: Prop, pose: Pose, tcp: Pose) -> None:
        """Somewhere, at rest; a cable relative to where the tcp is."""
        if prop.kind == "cable":
            hold_cable(self._model, self._data, prop, pose, tcp)
            return
        place_prop(self._model, self._data, prop.name, pose.pos_m, pose.quat_xyzw)
        if prop.kind == "free":
            self._data.joint(prop.name).qvel[:] = 0.0

    def place(self, start: Start) -> ArmState:
        """Put the world into ``start``: arm, gripper and every prop, at rest. A twin's reset, which no real arm has.

        Raises ValueError for a tcp pose out of reach or a prop the scene does not have.
        """
        if set(start.props) != set(self._movable):
            raise ValueError(f"Start.props names {sorted(start.props)}: the scene places {sorted(self._movable)}")
        q_rad = self.solve_pose(start.tcp)  # a pose out of reach leaves the world as it is
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[: self.limits.dof] = q_rad
        if self._scene.locked_gripper is None:
            self._data.qpos[self.limits.dof : self.limits.dof + 2] = (1.0 - start.gripper) * self._finger_open_m
        for name, pose in start.props.items():
            self._put(self._movable[name], pose, start.tcp)
        self._settle()
        self._begin()
        self._own.target_gripper[0] = self._own.gripper[0] = start.gripper
        return self.read()

    def readings(self) -> dict[str, np.ndarray]:
        """The true pose (7,) m, xyzw of every part of every prop, as ``prop/<part>``."""
        out = {}
        for part in (part for prop in self._scene.props for part in prop.parts):
            body = self._data.body(part)
            out[f"prop/{part}"] = np.concatenate([body.xpos, from_wxyz(body.xquat)])
        return out

    def render(self, width: int = 640, height: int = 480, camera: str = "front", plain: bool = False) -> np.ndarray:
        """A picture, uint8 (height, width, 3); ``plain`` as a policy is given it, in a twentieth of the time.

        Needs a GL library; the error says which.
        """
        shown = self._picture.data
        shown.qpos[:] = self._data.qpos
        shown.mocap_pos[:], shown.mocap_quat[:] = self._data.mocap_pos, self._data.mocap_quat
        shown.model.body_pos[:], shown.model.body_quat[:] = self._model.body_pos, self._model.body_quat  # of cables
        return self._picture.draw(width, height, camera, plain=plain)

    def show(
        self,
        q_rad: np.ndarray,
        gripper: float,
        props: Mapping[str, np.ndarray],
        width: int = 640,
        height: int = 480,
        camera: str = "front",
        shadows: bool = True,
    ) -> np.ndarray:
        """``render`` of another configuration, which physics knows nothing of: joints (dof,), gripper 0 open .. 1
        closed, and the pose (7,) m, xyzw of every part of every prop by name; a tool's is not read. Without shadows it
        takes a third of the time.

        Raises ValueError for joints, props or a size that there are not, LookupError for such a camera.
        """
        self._picture.move(q_rad, gripper, props)
        return self._picture.draw(width, height, camera, shadows)

    def geoms(self, q_rad: np.ndarray, gripper: float) -> tuple[list[Geom], np.ndarray]:
        """What the arm looks like at ``q_rad``, as geoms in the base frame, and its tcp's pose (7,) m, xyzw."""
        self._picture.bend(q_rad, gripper)
        return self._picture.arm()

    def fovy_rad(self, camera: str = "front") -> float:
        """The vertical field of view of a camera's pictures; pixels are square."""
        return self._picture.fovy_rad(camera)

    def _settle(self) -> None:
        self._tick.tau_nm[:] = 0.0
        self._tick.wrench[:] = 0.0
        mujoco.mj_step1(self._model, self._data)

    def solve_pose(self, pose: Pose, near_rad: np.ndarray | None = None) -> np.ndarray:
        """Joint angles (dof,) that put the tcp at ``pose``, near the ready pose or ``near_rad``, by Gauss-Newton; the
        world is not touched. Raises ValueError for a pose out of reach.

        Ten lines instead of scipy's least squares, which took 3 ms: a sixteenth of the time of a short episode.
        """
        dof, data = self.limits.dof, self._scratch
        near_rad = self._ready_rad if near_rad is None else near_rad
        q_rad = near_rad.copy()
        jac = np.zeros_like(self._plant.jac)
        pull = 1e-8  # towards where it began: decides the redundant joint, leaves the pose exact
        for _ in range(100):
            data.qpos[:dof] = q_rad
            mujoco.mj_kinematics(data.model, data)
            mujoco.mj_comPos(data.model, data)
            mujoco.mj_jacSite(data.model, data, jac[:3], jac[3:], self._site)
            turn = rotation_between(pose.quat_xyzw, matrix_to_quat(data.site_xmat[self._site]))
            gap = np.concatenate([pose.pos_m - data.site_xpos[self._site], turn])
            pulled = jac[:, :dof].T @ gap + pull * (near_rad - q_rad)
            step = np.linalg.solve(jac[:, :dof].T @ jac[:, :dof] + pull * np.eye(dof), pulled)
            step *= min(1.0, 0.3 / np.abs(step).max())
            moved = np.clip(q_rad + step, self.limits.q_min_rad, self.limits.q_max_rad)
            if np.abs(moved - q_rad).max() < 1e-9:
                break
            q_rad = moved
        if np.abs(gap).max() > 1e-5:
            raise ValueError(
                f"start pose {np.round(pose.pos_m, 4).tolist()} m is out of reach of {self.name} "
                f"(misses by {np.abs(gap).max():.3g})"
            )
        return q_rad
