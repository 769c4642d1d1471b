"""The control tick of a twin: guard, law and physics in one loop, compiled by numba.

Compiled code calls libmujoco by symbol on the addresses of mjModel and mjData; plain code calls the Python bindings on
the objects. Both run the same lines, so ``run_ticks`` and ``run_ticks_compiled`` differ in nothing but speed.
"""

from __future__ import annotations

import ctypes
import glob
import hashlib
import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types as nb
from numba.extending import overload
from numpy.typing import NDArray

from controllers import guard as guarding
from controllers import impedance, jacobian, jit
from controllers.filters import ledger, passivity
from controllers.filters.ledger import FLOAT, EnergyLimits, EnergyMemory
from controllers.guard import NOT_FINITE, GuardLimits, GuardMemory, guard_tick
from controllers.impedance import Law, braking_torque, impedance_torque, limit_torque
from controllers.jacobian import RowSpace, row_space, wrench_of
from controllers.jit import kernel
from robot_rl import geometry
from robot_rl.geometry import matrix_to_quat
from sim._gl import mujoco

Array = NDArray[np.float64]


def _load_libmujoco() -> None:
    """Make libmujoco's symbols visible to compiled code; the bindings have loaded the very same file."""
    folder = os.path.dirname(mujoco.__file__)
    found = sorted(glob.glob(os.path.join(folder, "libmujoco*.so*")) + glob.glob(os.path.join(folder, "*.dylib")))
    if not found:
        raise ImportError(f"no libmujoco in {folder}: reinstall the mujoco wheel")
    ctypes.CDLL(found[0], mode=ctypes.RTLD_GLOBAL)


_load_libmujoco()
_mj_step1: Any = nb.ExternalFunction("mj_step1", nb.void(nb.intp, nb.intp))
_mj_step2: Any = nb.ExternalFunction("mj_step2", nb.void(nb.intp, nb.intp))
_mj_jac_site: Any = nb.ExternalFunction("mj_jacSite", nb.void(nb.intp, nb.intp, nb.intp, nb.intp, nb.int32))


class Plant(NamedTuple):
    """An mjModel and mjData (objects in plain code, addresses in compiled code) and views of what a tick reads."""

    model: Any
    data: Any
    qpos: Array
    qvel: Array
    ctrl: Array
    site_pos: Array  # (3,) of the tcp
    site_mat: Array  # (9,)
    bias: Array  # (nv,) gravity and Coriolis
    gravcomp: Array  # (nv,)
    constraint: Array  # (nv,) contact and joint-limit forces of the last step
    jac: Array  # (6, nv) buffer
    site: int
    finger_open_m: float  # finger control when open
    filter_share: float  # of a new wrench sample in the low-pass, per tick


class TickMemory(NamedTuple):
    """What the loop carries from tick to tick."""

    tau_nm: Array  # (dof,) applied in the last tick
    wrench: Array  # (6,) filtered


def step1(model: Any, data: Any) -> None:
    mujoco.mj_step1(model, data)


def step2(model: Any, data: Any) -> None:
    mujoco.mj_step2(model, data)


def jac_site(model: Any, data: Any, jac: Array, site: int) -> None:
    mujoco.mj_jacSite(model, data, jac[:3], jac[3:], site)


@overload(step1, strict=False)
def _compiled_step1(model, data):  # numba wants the very signature of what it returns
    return lambda model, data: _mj_step1(model, data)


@overload(step2, strict=False)
def _compiled_step2(model, data):
    return lambda model, data: _mj_step2(model, data)


@overload(jac_site, strict=False)
def _compiled_jac_site(model, data, jac, site):
    return lambda model, data, jac, site: _mj_jac_site(
        model, data, jac[:3].ctypes.data, jac[3:].ctypes.data, np.int32(site)
    )


@kernel
def sense_wrench(plant: Plant, tick: TickMemory, space: RowSpace) -> None:
    """Low-pass the wrench (6,) at the tcp that explains the constraint forces of the last step."""
    sample = wrench_of(space, plant.constraint[: len(tick.tau_nm)])
    for i in range(6):
        if math.isfinite(tick.wrench[i]):
            tick.wrench[i] += plant.filter_share * (sample[i] - tick.wrench[i])
        else:  # start anew: a filter would never forget
            tick.wrench[i] = sample[i]


def run_ticks(
    ticks: int,
    dt_s: float,
    plant: Plant,
    tick: TickMemory,
    law: Law,
    guard: GuardLimits,
    memory: GuardMemory,
    limits: EnergyLimits,
    energy: EnergyMemory,
) -> None:
    """Run control ticks.

    Order within a tick: measure, charge the last torque, guard, energy filter of the reference, law, torque clip and
    rate limit, energy valve of the torque, physics with the torque held.
    """
    dof = len(tick.tau_nm)
    for _ in range(ticks):
        step1(plant.model, plant.data)
        jac_site(plant.model, plant.data, plant.jac, plant.site)
        jac = plant.jac[:, :dof].copy()
        space = row_space(jac)
        sense_wrench(plant, tick, space)
        q, dq = plant.qpos[:dof], plant.qvel[:dof]
        quat = matrix_to_quat(plant.site_mat)
        ledger.charge(limits, energy, tick.tau_nm, q, dt_s)
        before = passivity.reference_of(memory)
        guard_tick(guard, memory, q, dq, plant.site_pos, quat, tick.wrench, dt_s)
        passivity.limit_reference(limits, energy, memory, before, plant.site_pos, quat, law)
        if memory.fault[0] == NOT_FINITE:
            wanted = np.zeros(dof)  # no pose to hold: ramp the torque down, gravity compensation stays
            energy.potential_j[0] = 0.0  # the springs are off
        elif energy.state[0] == FLOAT:
            wanted = braking_torque(dq, law)  # no energy to hold one
        else:
            wanted = impedance_torque(
                q,
                dq,
                jac,
                space,
                plant.site_pos,
                quat,
                memory.pos_m,
                memory.quat_xyzw,
                memory.stiffness,
                plant.bias[:dof] - plant.gravcomp[:dof],
                law,
            )
        wanted = limit_torque(wanted, tick.tau_nm, law, dt_s)
        tick.tau_nm[:] = passivity.limit_torque(limits, energy, wanted, tick.tau_nm, dt_s)
        ledger.record(energy, tick.wrench)
        plant.ctrl[:dof] = tick.tau_nm
        plant.ctrl[dof:] = (1.0 - memory.gripper[0]) * plant.finger_open_m
        step2(plant.model, plant.data)
    step1(plant.model, plant.data)  # positions, velocities and contacts of the state that is now


def drive_tick(plant: Plant, tick: TickMemory, tau_nm: Array, gripper: float) -> None:
    """One physics step under torques (dof,) Nm that a vendor's controller has computed; the state is whole after it."""
    dof = len(tick.tau_nm)
    tick.tau_nm[:] = tau_nm
    plant.ctrl[:dof] = tau_nm
    plant.ctrl[dof:] = (1.0 - gripper) * plant.finger_open_m
    step2(plant.model, plant.data)
    step1(plant.model, plant.data)
    jac_site(plant.model, plant.data, plant.jac, plant.site)
    sense_wrench(plant, tick, row_space(plant.jac[:, :dof].copy()))


def _cache_folder() -> str:
    """Where compiled ticks are kept: a folder named by the lines that go into them.

    numba's own check looks at this file alone; an edited guard would go on running as it was.
    """
    digest = hashlib.sha256()
    for module in (sys.modules[__name__], guarding, ledger, passivity, impedance, jacobian, jit, geometry):
        digest.update(Path(str(module.__file__)).read_bytes())
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for parent in (home, Path(tempfile.gettempdir()) / f"robot-rl-{os.getuid()}"):
        folder = parent / "robot-rl" / digest.hexdigest()[:16]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return str(folder)
    raise OSError(f"neither {home} nor {tempfile.gettempdir()} can be written: set XDG_CACHE_HOME to a folder that can")


def _compile(function: Callable[..., None]) -> Any:
    """``function`` compiled; numba takes the cache folder from its configuration at this very moment."""
    config: Any = numba.config
    before, config.CACHE_DIR = config.CACHE_DIR, _cache_folder()
    try:
        return numba.njit(cache=True, nogil=True)(function)
    finally:
        config.CACHE_DIR = before


run_ticks_compiled = _compile(run_ticks)
drive_tick_compiled = _compile(drive_tick)
