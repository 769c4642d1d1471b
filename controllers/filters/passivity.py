"""The passivity filter: no command and no torque that the energy ledger cannot pay for.

In the order of one control tick: ``charge`` enters what the last torque did; ``limit_reference`` lets a stiffening
(gamma) and a step of the reference (alpha) through as far as the springs' potential V stays within L - reserve, and
has the reference give way where it does not; ``limit_torque`` is the hard valve (beta), which keeps L >= 0 whatever
law, contact or policy do: it always leaves as much as bringing the torque down at the arm's own torque rate can cost.
An empty ledger floats: the joints are only braked, the reference lies at the measured pose, until a person or a new
episode grants energy. It needs one assumption, that no joint is faster than the arm's maker allows. docs/passivity.md
has the proof, line by line with its tests.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controllers.filters.ledger import FLOAT, HOLD, NORMAL, THROTTLE, EnergyLimits, EnergyMemory
from controllers.guard import ENERGY, NO_FAULT, NOT_FINITE, GuardMemory
from controllers.impedance import Law, axis_potential, saturated, saturation_j, spring_potential, turned
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
def limit_reference(
    limits: EnergyLimits,
    energy: EnergyMemory,
    memory: GuardMemory,
    before: Reference,
    pos_m: Array,
    quat_xyzw: Array,
    law: Law,
) -> None:
    """Take back from the reference in ``memory`` what the ledger cannot pay for; afterwards V <= max(L - reserve, 0).

    ``before`` is the reference that the springs had until now. Softening is free. Where V is too much even so, because
    the surroundings stretched the springs or the ledger fell, the reference gives way towards the measured pose. Then
    as much of the stiffening (gamma) and of the step (alpha) follows as can be paid.
    """
    energy.alpha[0] = energy.gamma[0] = 1.0
    if memory.fault[0] == NOT_FINITE:
        return  # there is no pose to measure V at, and the torque is on its way down
    if energy.state[0] == FLOAT:
        if memory.fault[0] == NO_FAULT:
            memory.fault[0] = ENERGY
        memory.pos_m[:] = pos_m
        memory.quat_xyzw[:] = quat_xyzw
        energy.potential_j[0] = energy.alpha[0] = energy.gamma[0] = 0.0
        return
    payable_j = max(energy.ledger_j[0] - limits.reserve_j, 0.0)
    held_j = spring_potential(pos_m, quat_xyzw, before.pos_m, before.quat_xyzw, before.stiffness, law)
    wanted_j = spring_potential(pos_m, quat_xyzw, memory.pos_m, memory.quat_xyzw, memory.stiffness, law)
    energy.state[0] = HOLD if limits.enforce and held_j > payable_j else NORMAL
    energy.potential_j[0] = wanted_j
    if not limits.enforce or wanted_j <= payable_j:
        return
    stiffness = memory.stiffness.copy()
    before.stiffness[:] = np.minimum(before.stiffness, stiffness)
    _retreat(before, pos_m, quat_xyzw, law, payable_j)
    energy.gamma[0] = _stiffen(before, stiffness, pos_m, quat_xyzw, law, payable_j)
    memory.stiffness[:] = before.stiffness
    energy.alpha[0] = _advance(memory, before, pos_m, quat_xyzw, law, payable_j)
    energy.potential_j[0] = spring_potential(pos_m, quat_xyzw, memory.pos_m, memory.quat_xyzw, memory.stiffness, law)
    if energy.state[0] == NORMAL:
        energy.state[0] = THROTTLE


@kernel
def _retreat(before: Reference, pos_m: Array, quat_xyzw: Array, law: Law, payable_j: float) -> None:
    """Move the reference towards the measured pose, along the straight line and the shortest turn, until V is payable.

    V falls all the way to zero on it, so there is one crossing.
    """
    if spring_potential(pos_m, quat_xyzw, before.pos_m, before.quat_xyzw, before.stiffness, law) <= payable_j:
        return
    lead_rad = rotation_between(before.quat_xyzw, quat_xyzw)
    angle_rad = math.sqrt(lead_rad[0] ** 2 + lead_rad[1] ** 2 + lead_rad[2] ** 2)
    about = 0.0  # 2 a^T K a of the axis a of the turn
    for i in range(3):
        about += 2.0 * before.stiffness[3 + i] * lead_rad[i] ** 2 / max(angle_rad * angle_rad, 1e-300)
    limit_j = saturation_j(before.stiffness, law.clip_rad)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        total_j = saturated(about * math.sin(0.5 * middle * angle_rad) ** 2, limit_j)
        for i in range(3):
            total_j += axis_potential(before.stiffness[i], middle * (pos_m[i] - before.pos_m[i]), law.clip_m[i])
        if total_j <= payable_j:
            low = middle
        else:
            high = middle
    before.pos_m[:] = pos_m + low * (before.pos_m - pos_m)
    before.quat_xyzw[:] = quat_normalize(quat_multiply(rotvec_to_quat(low * lead_rad), quat_xyzw))


@kernel
def _stiffen(before: Reference, wanted: Array, pos_m: Array, quat_xyzw: Array, law: Law, payable_j: float) -> float:
    """Stiffen ``before``, whose stiffness (6,) is nowhere above ``wanted``, by the share that is payable; returns it.

    V rises with it, so there is one crossing. In translation V is linear in the share; in rotation the unsaturated
    potential and its limit are.
    """
    eps = turned(quat_xyzw, before.quat_xyzw)
    moved_j, moved_more_j, turned_j, turned_more_j = 0.0, 0.0, 0.0, 0.0
    for i in range(3):
        unit_j = axis_potential(1.0, pos_m[i] - before.pos_m[i], law.clip_m[i])
        moved_j += before.stiffness[i] * unit_j
        moved_more_j += (wanted[i] - before.stiffness[i]) * unit_j
        turned_j += 2.0 * before.stiffness[3 + i] * eps[i] * eps[i]
        turned_more_j += 2.0 * (wanted[3 + i] - before.stiffness[3 + i]) * eps[i] * eps[i]
    limit_j = saturation_j(before.stiffness, law.clip_rad)
    limit_more_j = saturation_j(wanted, law.clip_rad) - limit_j
    if moved_j + moved_more_j + saturated(turned_j + turned_more_j, limit_j + limit_more_j) <= payable_j:
        before.stiffness[:] = wanted
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        share = 0.5 * (low + high)
        turn_j = saturated(turned_j + share * turned_more_j, limit_j + share * limit_more_j)
        if moved_j + share * moved_more_j + turn_j <= payable_j:
            low = share
        else:
            high = share
    before.stiffness[:] = before.stiffness + low * (wanted - before.stiffness)
    return low


@kernel
def _advance(
    memory: GuardMemory, before: Reference, pos_m: Array, quat_xyzw: Array, law: Law, payable_j: float
) -> float:
    """Shorten the step from ``before`` to the reference in ``memory`` to the share that is payable; returns it.

    Along the straight line and the shortest turn; stiffness as in both. A share that is tried and found payable is
    kept, so V is payable afterwards even where a large turn makes it cross more than once.
    """
    if spring_potential(pos_m, quat_xyzw, memory.pos_m, memory.quat_xyzw, memory.stiffness, law) <= payable_j:
        return 1.0
    step_rad = rotation_between(memory.quat_xyzw, before.quat_xyzw)
    angle_rad = math.sqrt(step_rad[0] ** 2 + step_rad[1] ** 2 + step_rad[2] ** 2)
    ax, ay, az = step_rad / max(angle_rad, 1e-300)
    # After a share of the turn, half of it h, the error's quaternion has the vector cos(h) v - sin(h) (w a + v x a).
    vx, vy, vz, w = turned(quat_xyzw, before.quat_xyzw)
    bx, by, bz = w * ax + vy * az - vz * ay, w * ay + vz * ax - vx * az, w * az + vx * ay - vy * ax
    k = memory.stiffness
    limit_j = saturation_j(k, law.clip_rad)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        share = 0.5 * (low + high)
        cos, sin = math.cos(0.5 * share * angle_rad), math.sin(0.5 * share * angle_rad)
        ex, ey, ez = cos * vx - sin * bx, cos * vy - sin * by, cos * vz - sin * bz
        total_j = saturated(2.0 * (k[3] * ex * ex + k[4] * ey * ey + k[5] * ez * ez), limit_j)
        for i in range(3):
            error_m = pos_m[i] - before.pos_m[i] - share * (memory.pos_m[i] - before.pos_m[i])
            total_j += axis_potential(k[i], error_m, law.clip_m[i])
        if total_j <= payable_j:
            low = share
        else:
            high = share
    memory.pos_m[:] = before.pos_m + low * (memory.pos_m - before.pos_m)
    if angle_rad > 0.0:
        memory.quat_xyzw[:] = quat_normalize(quat_multiply(rotvec_to_quat(low * step_rad), before.quat_xyzw))
    return low


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
    With ``enforce`` a torque that is no number becomes the fastest way down. ``dt_s`` is the control period, however
    late the tick is.
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
