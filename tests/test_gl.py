"""Physics needs no GL library; pictures find one, or say what to install."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from robot_rl import gl

ROOT = Path(__file__).parent.parent
STEP = """
import sys
from robot_rl import build
env = build.make_env("reach", "panda", settings={settings})
obs, _ = env.reset(seed=0)
obs, *_ = env.step(env.action_space.sample() * 0)
print(sorted(obs), [name for name in ("OpenGL", "mujoco.egl", "mujoco.osmesa", "mujoco.glfw") if name in sys.modules])
"""


def run(settings=(), **environment):
    unset = ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    env |= {"PYTHONPATH": str(ROOT), **environment}
    code = STEP.format(settings=list(settings))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT)


def test_a_state_environment_runs_whatever_mujoco_gl_says_and_loads_no_gl():
    done = run(MUJOCO_GL="garbage")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]") and "tcp_pose" in done.stdout


def test_pictures_find_their_library_by_themselves():
    done = run(["vision.cameras=wrist"])
    assert done.returncode == 0, done.stderr
    assert "camera/wrist" in done.stdout and "mujoco." in done.stdout


def test_what_cannot_draw_is_refused_before_anything_moves():
    done = run(["vision.cameras=wrist"], MUJOCO_GL="garbage")
    assert done.returncode != 0
    assert "MUJOCO_GL=garbage draws nothing: unset it, or give one of egl, osmesa, glfw" in done.stderr


@pytest.fixture
def bare(monkeypatch):
    for name in (gl.VARIABLE, "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    return monkeypatch


def test_the_choice_is_the_display_then_egl_then_osmesa(bare):
    there = {"egl": ("libc.so.6",), "osmesa": ("libc.so.6",), "glfw": ()}
    absent = ("libNotThere.so.1",)
    bare.setattr(gl, "_LIBRARIES", there)
    assert gl.backend() == "egl"
    bare.setattr(gl, "_LIBRARIES", there | {"egl": absent})
    assert gl.backend() == "osmesa"
    bare.setenv("DISPLAY", ":0")
    assert gl.backend() == "glfw"
    bare.setenv(gl.VARIABLE, "osmesa")
    assert gl.backend() == "osmesa"


def test_a_missing_library_names_the_packages_and_the_variable(bare):
    bare.setattr(gl, "_LIBRARIES", {"egl": ("libNotThere.so.1",), "osmesa": ("libNotThere.so.2",), "glfw": ()})
    with pytest.raises(OSError, match=r"no display, no libEGL.so.1, no libOSMesa: apt-get install libegl1"):
        gl.backend()
    gl.prepare(needed=False)
    assert gl.VARIABLE not in os.environ
    bare.setenv(gl.VARIABLE, "egl")
    with pytest.raises(OSError, match=r"no libNotThere.so.1, which MUJOCO_GL=egl needs to draw: apt-get install"):
        gl.prepare()
