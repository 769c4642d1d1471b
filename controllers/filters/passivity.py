"""The passivity filter: no command and no torque that the energy ledger cannot pay for.

In the order of one control tick: ``charge`` enters what the last torque did; ``limit_reference`` lets a stiffening
(gamma) and a step of the reference (alpha) through as far as the springs' potential V stays within L - reserve;
``limit_torque`` is the hard valve (beta), which keeps L >= 0 whatever law, contact or policy do: it always leaves as
much as bringing the torque down at the arm's own torque rate can cost. An empty ledger floats: torque to zero,
reference at the measured pose, until a person or a new episode grants energy. It needs one assumption, that no joint
is faster than the guard's trip. docs/passivity.md has the proof, line by line with its tests.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controllers.filters.ledger import FLOAT, HOLD, NORMAL, THROTTLE, EnergyLimits, EnergyMemory
from controllers.guard import ENERGY, NO_FAULT, NOT_FINITE, GuardMemory
from controllers.impedance import Law, spring_potential
from controllers.jit import kernel
from robot_rl.geometry import quat_multiply, quat_normalize, rotation_between, rotvec_to_quat

Array = NDArray[np.float64]

HALVINGS = 21  # of a bisection: to within 5e-7 of the whole step


class Reference(NamedTuple):
    """Where the springs are anchored, and how stiff they are."""

    pos_m: Array  # (3,)
    quat_xyzw: Array  # (4,)
    stiffness: Array  # (6,)


@kernel
def reference_of(memory: GuardMemory) -> Reference:
    """A copy of the guard's reference, to be taken before its tick."""
    return Reference(memory.pos_m.copy(), memory.quat_xyzw.copy(), memory.stiffness.copy())


@kernel
def _part(before: Reference, wanted: GuardMemory, step_rad: Array, alpha: float) -> Reference:
    """The reference after a share of its step, along the straight line and the shortest turn; stiffness as before."""
    turn = rotvec_to_quat(alpha * step_rad)
    return Reference(
        before.pos_m + alpha * (wanted.pos_m - before.pos_m),
        quat_normalize(quat_multiply(turn, before.quat_xyzw)),
        before.stiffness,
    )


@kernel
def limit_reference(
    limits: EnergyLimits,
    energy: EnergyMemory,
    memory: GuardMemory,
    before: Reference,
    pos_m: Array,
    quat_xyzw: Array,
    law: Law,
) -> None:
    """Take back from the reference in ``memory`` what the ledger cannot pay for.

    ``before`` is the reference that the springs had until now. What lowers V is free. The rest may raise it up to
    ``max(V, L - reserve)``: softening first, then as much of the stiffening (gamma) as that allows, then as much of
    the step (alpha). A fault other than an empty ledger holds the measured pose, whose V is zero.
    """
    energy.alpha[0] = energy.gamma[0] = 1.0
    if memory.fault[0] == NOT_FINITE:
        return  # there is no pose to measure V at, and the torque is on its way down
    if energy.state[0] == FLOAT:
        if memory.fault[0] == NO_FAULT:
            memory.fault[0] = ENERGY
        memory.pos_m[:] = pos_m
        memory.quat_xyzw[:] = quat_xyzw
        energy.potential_j[0] = 0.0
        return
    held_j = spring_potential(pos_m, quat_xyzw, before.pos_m, before.quat_xyzw, before.stiffness, law)
    wanted_j = spring_potential(pos_m, quat_xyzw, memory.pos_m, memory.quat_xyzw, memory.stiffness, law)
    payable_j = energy.ledger_j[0] - limits.reserve_j
    energy.state[0] = NORMAL if held_j <= payable_j else HOLD
    energy.potential_j[0] = wanted_j
    ceiling_j = max(held_j, payable_j)
    if not limits.enforce or wanted_j <= ceiling_j:
        return
    _stiffen(energy, memory, before, pos_m, quat_xyzw, law, ceiling_j)
    _advance(energy, memory, before, pos_m, quat_xyzw, law, ceiling_j)
    if energy.state[0] == NORMAL:
        energy.state[0] = THROTTLE


@kernel
def _stiffen(
    energy: EnergyMemory,
    memory: GuardMemory,
    before: Reference,
    pos_m: Array,
    quat_xyzw: Array,
    law: Law,
    ceiling_j: float,
) -> None:
    """Set ``before.stiffness`` and ``memory.stiffness`` to the largest share of the stiffening below the ceiling.

    V rises with it, so the bisection ends at the one crossing there is.
    """
    soft = np.minimum(memory.stiffness, before.stiffness)
    added = memory.stiffness - soft
    low, high = 0.0, 1.0
    before.stiffness[:] = memory.stiffness
    if spring_potential(pos_m, quat_xyzw, before.pos_m, before.quat_xyzw, before.stiffness, law) <= ceiling_j:
        return
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        before.stiffness[:] = soft + middle * added
        if spring_potential(pos_m, quat_xyzw, before.pos_m, before.quat_xyzw, before.stiffness, law) <= ceiling_j:
            low = middle
        else:
            high = middle
    before.stiffness[:] = soft + low * added
    memory.stiffness[:] = before.stiffness
    energy.gamma[0] = low


@kernel
def _advance(
    energy: EnergyMemory,
    memory: GuardMemory,
    before: Reference,
    pos_m: Array,
    quat_xyzw: Array,
    law: Law,
    ceiling_j: float,
) -> None:
    """Set the reference in ``memory`` to the largest share of its step that stays below the ceiling."""
    wanted_j = spring_potential(pos_m, quat_xyzw, memory.pos_m, memory.quat_xyzw, memory.stiffness, law)
    energy.potential_j[0] = wanted_j
    if wanted_j <= ceiling_j:
        return
    step_rad = rotation_between(memory.quat_xyzw, before.quat_xyzw)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        part = _part(before, memory, step_rad, middle)
        if spring_potential(pos_m, quat_xyzw, part.pos_m, part.quat_xyzw, part.stiffness, law) <= ceiling_j:
            low = middle
        else:
            high = middle
    part = _part(before, memory, step_rad, low)
    energy.potential_j[0] = spring_potential(pos_m, quat_xyzw, part.pos_m, part.quat_xyzw, part.stiffness, law)
    memory.pos_m[:] = part.pos_m
    memory.quat_xyzw[:] = part.quat_xyzw
    energy.alpha[0] = low


@kernel
def ramp_cost(limits: EnergyLimits, tau_nm: Array, dt_s: float) -> float:
    """rho(tau), J: the most that ``tau_nm`` (dof,) and the fastest way down from it can deliver.

    Per joint, with d the torque that the rate allows per tick and v its top speed:
    ``T v (|tau| + (|tau| - d) + (|tau| - 2 d) + ... )`` down to zero, so ``rho(tau) = T v |tau| + rho(tau - d)``.
    """
    total = 0.0
    for i in range(len(tau_nm)):
        torque, step = abs(tau_nm[i]), limits.dtau_nmps[i] * dt_s
        if torque != 0.0:  # NaN, too, so that no ledger pays for it
            ticks = math.floor(torque / step) if torque > step else 0  # before the last, on the way down
            series = (ticks + 1) * torque - (0.5 * step * ticks * (ticks + 1) if ticks > 0 else 0.0)
            total += limits.speed_radps[i] * series
    return total * dt_s * limits.hold_ticks


@kernel
def limit_torque(
    limits: EnergyLimits, energy: EnergyMemory, wanted_nm: Array, previous_nm: Array, dt_s: float
) -> Array:
    """The hard valve: the torque (dof,) to command, between ``wanted_nm`` and the fastest way down.

    ``wanted_nm`` is within the torque rate of ``previous_nm``, the last one commanded. What is in flight is set aside
    first; of the rest the torque chosen has to leave its own ``ramp_cost``, so that the next tick can still go down.
    A torque that is no number is the fastest way down. ``dt_s`` is the control period, however late the tick is.
    """
    energy.beta[0] = 1.0
    tau_nm = wanted_nm
    if limits.enforce:
        payable_j = energy.ledger_j[0]
        for tick in range(len(energy.in_flight_nm)):
            for i in range(len(wanted_nm)):
                held_s = dt_s * limits.hold_ticks
                payable_j -= abs(energy.in_flight_nm[tick, i]) * limits.speed_radps[i] * held_s
        if not ramp_cost(limits, wanted_nm, dt_s) <= payable_j:
            tau_nm = _between(limits, energy, wanted_nm, previous_nm, payable_j, dt_s)
            if energy.state[0] == NORMAL:
                energy.state[0] = THROTTLE
    last = len(energy.in_flight_nm) - 1
    for tick in range(last):
        energy.in_flight_nm[tick, :] = energy.in_flight_nm[tick + 1, :]
    if last >= 0:
        energy.in_flight_nm[last, :] = tau_nm
    return tau_nm


@kernel
def _between(
    limits: EnergyLimits, energy: EnergyMemory, wanted_nm: Array, previous_nm: Array, payable_j: float, dt_s: float
) -> Array:
    """The torque nearest to ``wanted_nm``, from the fastest way down, whose ramp cost is payable.

    The cost is convex on the line between the two, and payable at its lower end, so there is one crossing.
    """
    down = np.zeros(len(wanted_nm))
    for i in range(len(down)):
        step = limits.dtau_nmps[i] * dt_s
        down[i] = previous_nm[i] - min(max(previous_nm[i], -step), step)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        if ramp_cost(limits, down + middle * (wanted_nm - down), dt_s) <= payable_j:
            low = middle
        else:
            high = middle
    energy.beta[0] = low
    return down + low * (wanted_nm - down) if low > 0.0 else down  # 0 * NaN is NaN
