"""MuJoCo, imported so that physics needs no GL library; and what pictures are drawn on, made when one is asked for.

MuJoCo loads a GL library while it is imported, and fails where ``MUJOCO_GL`` names none that works. So everything here
takes ``mujoco`` from this module, which asks for no library at that moment, unless the user chose one that works.
"""

from __future__ import annotations

import importlib
import os
import sys
import weakref
from typing import Any

import numpy as np

from robot_rl import gl


def _import_mujoco() -> None:
    said = os.environ.get(gl.VARIABLE)
    if "mujoco" not in sys.modules and not _works(said):
        os.environ[gl.VARIABLE] = "disable"
        try:
            importlib.import_module("mujoco")
        finally:
            if said is None:
                del os.environ[gl.VARIABLE]
            else:
                os.environ[gl.VARIABLE] = said


def _works(said: str | None) -> bool:
    """Whether MuJoCo may load what it would. Without a display it would load glfw, which then does not draw."""
    if not said:
        return sys.platform != "linux" or bool(os.environ.get("DISPLAY"))
    try:
        return gl.backend() == said
    except OSError:
        return False


_import_mujoco()
import mujoco  # noqa: E402  now it is there, and means the same to a type checker

_PLAIN_FACES = 16, 8  # around a cylinder or capsule, and along its caps


class Canvas:
    """Draws scenes of one model at one size. ``plain``: without shadows, reflections and multisampling, for policies
    that look at a few thousand pixels; a picture for people takes twenty times as long."""

    def __init__(self, model: mujoco.MjModel, width: int, height: int, plain: bool) -> None:
        self.size, self._plain = (width, height), plain
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._context = _context_class(gl.backend())(width, height)
        self._context.make_current()
        quality, frame = model.vis.quality, model.vis.global_
        kept = quality.offsamples, quality.numslices, quality.numstacks, frame.offwidth, frame.offheight
        try:
            if plain:
                quality.offsamples, quality.numslices, quality.numstacks = 0, *_PLAIN_FACES
                frame.offwidth, frame.offheight = width, height
            self._drawing = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        finally:
            quality.offsamples, quality.numslices, quality.numstacks, frame.offwidth, frame.offheight = kept
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._drawing)
        self._rect = mujoco.MjrRect(0, 0, width, height)
        # Before the interpreter takes its modules down, whoever forgets to close.
        self._free = weakref.finalize(self, _free, self._context, self._drawing)

    def draw(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        camera: mujoco.MjvCamera,
        options: mujoco.MjvOption,
        shadows: bool,
    ) -> np.ndarray:
        """uint8 (height, width, 3); ``data`` has its kinematics, cameras and lights computed."""
        self._context.make_current()
        mujoco.mjv_updateScene(model, data, options, None, camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        flags = self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows and not self._plain
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = not self._plain
        flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = not self._plain
        width, height = self.size
        picture = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_render(self._rect, self._scene, self._drawing)
        mujoco.mjr_readPixels(picture, None, self._rect, self._drawing)
        return np.ascontiguousarray(picture[::-1])  # GL counts rows from below

    def close(self) -> None:
        self._free()


def _free(context: Any, drawing: mujoco.MjrContext) -> None:
    context.make_current()
    drawing.free()
    context.free()


def _context_class(name: str) -> Any:
    """Raises OSError where the library is there and does not start."""
    if sys.platform != "linux":
        return mujoco.GLContext
    try:
        return importlib.import_module(f"mujoco.{name}").GLContext
    except (ImportError, AttributeError, RuntimeError) as error:
        raise OSError(f"{gl.VARIABLE}={name} does not start: {error}; {gl.PACKAGES}, or set another") from error
