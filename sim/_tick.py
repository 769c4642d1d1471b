"""The control tick of a twin: guard, law and physics in one loop, compiled by numba.

Compiled code calls libmujoco by symbol on the addresses of mjModel and mjData; plain code calls the Python bindings on
the objects. Both run the same lines, so ``run_ticks`` and ``run_ticks_compiled`` differ in nothing but speed.
"""

from __future__ import annotations

import ctypes
import glob
import math
import os
from typing import Any, NamedTuple

import mujoco
import numba
import numpy as np
from numba import types as nb
from numba.extending import overload
from numpy.typing import NDArray

from controllers.guard import NO_FAULT, NOT_FINITE, GuardLimits, GuardMemory, guard_tick
from controllers.impedance import Law, impedance_torque, limit_torque
from controllers.jacobian import row_space, wrench_of
from robot_rl.geometry import matrix_to_quat

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


def run_ticks(
    ticks: int,
    dt_s: float,
    plant: Plant,
    tick: TickMemory,
    law: Law,
    guard: GuardLimits,
    memory: GuardMemory,
) -> float:
    """Run control ticks; the return value is the largest contact force in N seen in them.

    Order within a tick: measure, guard, law, torque clip and rate limit, physics with the torque held.
    """
    dof = len(tick.tau_nm)
    peak_n = 0.0
    for _ in range(ticks):
        step1(plant.model, plant.data)
        jac_site(plant.model, plant.data, plant.jac, plant.site)
        jac = plant.jac[:, :dof].copy()
        space = row_space(jac)
        sample = wrench_of(space, plant.constraint[:dof])
        for i in range(6):
            tick.wrench[i] += plant.filter_share * (sample[i] - tick.wrench[i])
        peak_n = max(peak_n, math.sqrt(tick.wrench[0] ** 2 + tick.wrench[1] ** 2 + tick.wrench[2] ** 2))
        q, dq = plant.qpos[:dof], plant.qvel[:dof]
        quat = matrix_to_quat(plant.site_mat)
        guard_tick(guard, memory, q, dq, plant.site_pos, quat, tick.wrench, dt_s)
        if memory.fault[0] == NOT_FINITE:
            wanted = np.zeros(dof)  # no pose to hold: ramp the torque down, gravity compensation stays
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
        tick.tau_nm[:] = limit_torque(wanted, tick.tau_nm, law, dt_s)
        plant.ctrl[:dof] = tick.tau_nm
        if memory.fault[0] == NO_FAULT:
            plant.ctrl[dof:] = (1.0 - memory.target_gripper[0]) * plant.finger_open_m
        step2(plant.model, plant.data)
    step1(plant.model, plant.data)  # positions, velocities and contacts of the state that is now
    return peak_n


run_ticks_compiled = numba.njit(cache=True, nogil=True)(run_ticks)
