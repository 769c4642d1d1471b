"""Which library MuJoCo draws with, chosen where ``MUJOCO_GL`` says nothing. Physics needs none of them."""

from __future__ import annotations

import ctypes
import os
import sys

VARIABLE = "MUJOCO_GL"
PACKAGES = "apt-get install libegl1 libegl-mesa0 libosmesa6 libgl1 libgles2"
_LIBRARIES = {"egl": ("libEGL.so.1",), "osmesa": ("libOSMesa.so.8", "libOSMesa.so.6"), "glfw": ()}
_UNDECIDED = ("", "enable", "enabled", "on", "true", "1")


def backend() -> str:
    """ "glfw" where there is a display, else "egl" or "osmesa", whichever is there; or what the variable says.

    Raises OSError, naming the variable and the Debian packages, where nothing can draw.
    """
    said = os.environ.get(VARIABLE, "").lower().strip()
    if sys.platform != "linux":
        return said if said not in _UNDECIDED else "glfw"
    if said in _UNDECIDED:
        if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
            return "glfw"
        found = next((name for name in ("egl", "osmesa") if _loads(name)), None)
        if found is None:
            raise OSError(f"nothing to draw with: no display, no libEGL.so.1, no libOSMesa: {PACKAGES}")
        return found
    if said not in _LIBRARIES:
        raise OSError(f"{VARIABLE}={said} draws nothing: unset it, or give one of {', '.join(_LIBRARIES)}")
    if not _loads(said):
        raise OSError(f"no {_LIBRARIES[said][0]}, which {VARIABLE}={said} needs to draw: {PACKAGES}, or unset it")
    return said


def prepare(needed: bool = True) -> None:
    """Write the choice into the environment, where whatever imports MuJoCo later finds it. Raises as ``backend`` where
    it is ``needed``."""
    try:
        os.environ[VARIABLE] = backend()
    except OSError:
        if needed:
            raise


def _loads(name: str) -> bool:
    return not _LIBRARIES[name] or any(map(_opens, _LIBRARIES[name]))


def _opens(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
