"""What a twin looks like: a visual model of its own, which no physics moves. Only drawing needs a GL library."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from robot_rl.find import nearest
from robot_rl.geometry import matrix_to_quat
from robot_rl.types import Geom, Pose, Scene
from sim._gl import Canvas, mujoco
from sim._scene import SHAPES, bend_cable, hold_cable, place_prop

CAMERAS: dict[str, dict[str, Any]] = {
    "front": {"lookat": (0.32, 0.0, 0.3), "distance": 1.3, "azimuth": 145.0, "elevation": -18.0},
    "side": {"lookat": (0.5, 0.0, 0.06), "distance": 0.5, "azimuth": 145.0, "elevation": -25.0},
    "wrist": {},
}
"""Views by name: where the camera looks (m, base frame), from how far (m) and from which side (degrees). ``wrist``
moves with the hand: _scene.WRIST."""
_VISIBLE = (1, 1, 1, 0, 0, 0)  # geom groups: surroundings, props and visuals; not what only collides
_OPTIONS = mujoco.MjvOption()
_OPTIONS.geomgroup[:] = _VISIBLE
_NAMES = {int(kind): name for name, kind in SHAPES.items()} | {int(mujoco.mjtGeom.mjGEOM_ELLIPSOID): "sphere"}


class Picture:
    """The visual model of one arm in one scene, and its renderer. ``move`` or write ``data``, then look."""

    def __init__(self, build: Callable[[], mujoco.MjModel], scene: Scene, dof: int, finger_open_m: float) -> None:
        self._build, self._scene = build, scene
        self._dof, self._finger_open_m = dof, finger_open_m
        self._canvases: dict[bool, Canvas] = {}  # by whether it is plain

    @cached_property
    def _model(self) -> mujoco.MjModel:
        """Made when it is first needed: most twins are never looked at."""
        return self._build()

    @cached_property
    def data(self) -> mujoco.MjData:
        return mujoco.MjData(self._model)

    def fovy_rad(self, camera: str) -> float:
        """The vertical field of view of a camera; pixels are square."""
        if CAMERAS[camera]:
            return math.radians(self._model.vis.global_.fovy)
        return math.radians(self._model.camera(camera).fovy[0])

    def move(self, q_rad: np.ndarray, gripper: float, props: Mapping[str, np.ndarray]) -> None:
        """Take a configuration. ``props``: part -> (7,) m, xyzw, of every prop but tools, whose poses are not read.

        Raises ValueError for joints or props that the model does not have.
        """
        self.bend(q_rad, gripper)
        tools = {prop.name for prop in self._scene.props if prop.kind == "tool"}
        movable = {part for prop in self._scene.props if prop.name not in tools for part in prop.parts}
        if set(props) - tools != movable:
            raise ValueError(
                f"props are {sorted(props)}, the scene has {sorted(movable | tools)}: is it the same task?"
            )
        if not all(np.isfinite(pose).all() for pose in props.values()):
            raise ValueError("a prop's pose is not finite")
        for prop in self._scene.props:
            if prop.kind == "cable":
                mujoco.mj_kinematics(self._model, self.data)
                site, held = self.data.site("tcp"), props[prop.name]
                tcp = Pose(site.xpos.copy(), matrix_to_quat(site.xmat))
                hold_cable(self._model, self.data, prop, Pose(held[:3], held[3:]), tcp)
                bend_cable(self.data, prop, [props[part][3:] for part in prop.parts])
            elif prop.kind != "tool":
                place_prop(self._model, self.data, prop.name, props[prop.name][:3], props[prop.name][3:])

    def bend(self, q_rad: np.ndarray, gripper: float) -> None:
        """``move`` of the arm alone."""
        if np.shape(q_rad) != (self._dof,):
            raise ValueError(f"q_rad has the shape {np.shape(q_rad)}: this arm has {self._dof} joints")
        if not np.isfinite([*q_rad, gripper]).all():
            raise ValueError(f"q_rad {list(q_rad)}, gripper {gripper}: they are not finite")
        self.data.qpos[: self._dof] = q_rad
        if self._scene.locked_gripper is None:
            self.data.qpos[self._dof : self._dof + 2] = (1.0 - gripper) * self._finger_open_m

    def draw(self, width: int, height: int, camera: str, shadows: bool = True, plain: bool = False) -> np.ndarray:
        """A picture, uint8 (height, width, 3); shadows take two thirds of the time, ``plain`` (_gl.Canvas) a twentieth.

        Raises ValueError for a size that the renderer does not take, LookupError for a camera that is not in CAMERAS,
        and OSError where nothing can draw, which says what to install.
        """
        if camera not in CAMERAS:
            raise LookupError(nearest("camera", camera, CAMERAS))
        largest = self._model.vis.global_
        if not (0 < width <= largest.offwidth and 0 < height <= largest.offheight):
            raise ValueError(
                f"a picture of {width} x {height} px: give at most {largest.offwidth} x {largest.offheight}"
            )
        mujoco.mj_kinematics(self._model, self.data)
        mujoco.mj_comPos(self._model, self.data)  # lights and cameras are placed from it
        mujoco.mj_camlight(self._model, self.data)
        canvas = self._canvas(width, height, plain)
        return canvas.draw(self._model, self.data, self._look(camera), _OPTIONS, shadows)

    def _canvas(self, width: int, height: int, plain: bool) -> Canvas:
        """The one of this kind, made anew where the size has changed."""
        canvas = self._canvases.get(plain)
        if canvas is None or canvas.size != (width, height):
            if canvas is not None:
                canvas.close()
            canvas = self._canvases[plain] = Canvas(self._model, width, height, plain)
        return canvas

    def _look(self, camera: str) -> mujoco.MjvCamera:
        view, look = CAMERAS[camera], mujoco.MjvCamera()
        if not view:
            look.type, look.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, self._model.camera(camera).id
            return look
        look.lookat[:] = view["lookat"]
        look.distance, look.azimuth, look.elevation = view["distance"], view["azimuth"], view["elevation"]
        return look

    def arm(self) -> tuple[list[Geom], np.ndarray]:
        """The arm's geoms in the base frame, without props, and the pose of its tcp (7,) m, xyzw.

        An ellipsoid is a sphere of three radii.
        """
        model, data = self._model, self.data
        mujoco.mj_kinematics(model, data)
        props = {model.body(part).id for prop in self._scene.props for part in prop.parts}
        geoms = []
        for index in range(model.ngeom):
            kind, body = int(model.geom_type[index]), int(model.geom_bodyid[index])
            if body in props or kind not in _NAMES or not _VISIBLE[model.geom_group[index]]:
                continue
            material = model.geom_matid[index]
            rgba = model.mat_rgba[material] if material >= 0 else model.geom_rgba[index]
            shape: Any = _NAMES[kind]
            # MuJoCo pads sizes to three numbers.
            count = {"sphere": 1, "box": 3}.get(shape, 2) if kind != mujoco.mjtGeom.mjGEOM_ELLIPSOID else 3
            x, y, z = data.geom_xpos[index].tolist()
            qx, qy, qz, qw = matrix_to_quat(data.geom_xmat[index]).tolist()
            red, green, blue, alpha = rgba.tolist()
            size = tuple(model.geom_size[index, :count].tolist())
            geoms.append(Geom(shape, size, (x, y, z), (qx, qy, qz, qw), (red, green, blue, alpha)))
        site = data.site("tcp")
        return geoms, np.concatenate([site.xpos, matrix_to_quat(site.xmat)])

    def close(self) -> None:
        for canvas in self._canvases.values():
            canvas.close()
        self._canvases.clear()
