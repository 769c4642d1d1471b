"""The energy ledger of an arm that closes its torque loop elsewhere: in the vendor's box, at a higher rate than ours.

The torques are not ours to count, but the springs are: with the reference standing still, what they give to the arm
between two samples is exactly the fall of their potential V. So

    L[k+1] = L[k] - (V(x[k]) - V(x[k+1])) - leak + credit,    leak = T_in K v^2 / 2 per second,

where the leak is what a spring that is itself sampled every T_in creates (Colgate and Schenkel). An arm that knows the
damping D of its own loop (``DampedArm``) is credited for what that took at least: by Cauchy and Schwarz a damper takes
D dx^2 / dt or more in a time dt in which the arm moved by dx, whatever way it went. Without that, moving through free
air spends the budget. The filter of references is the same as in a torque loop. This is sound while the inner loop's
damping is at least K T_in / 2 and D, and its springs are no other than these; there is no valve, for the torque is not
ours.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from controllers import impedance
from controllers.filters.ledger import EnergyLimits, EnergyMemory, book
from controllers.guard import GuardMemory
from controllers.impedance import Law, spring_potential
from robot_rl.geometry import rotation_between
from robot_rl.types import Arm, Pose

Array = NDArray[np.float64]

CREDITED = 0.9
"""Share of the damping that is credited: what is not known of it."""
_NOISE = np.array([2e-5] * 3 + [1e-4] * 3)  # m, rad between two samples that may be no motion


def spring_of(arm: Arm) -> Law:
    """The spring of an arm's own impedance loop: its default stiffness, without clipping."""
    config = impedance.Config(tuple(arm.default_stiffness.tolist()), clip_m=(10.0,) * 3, clip_rad=math.pi)
    return impedance.make_law(config, arm.limits, np.zeros(arm.limits.dof))


@runtime_checkable
class DampedArm(Protocol):
    """An arm whose own impedance loop dissipates by a law that it knows."""

    def damping_of(self, stiffness: Array) -> Array:
        """(6,) Ns/m, Nms/rad along the base axes, that the loop has with springs of ``stiffness`` (6,)."""
        ...


def damping_credit(damping: Array, before: Pose, pos_m: Array, quat_xyzw: Array, dt_s: float) -> float:
    """Least energy, J, that dampers (6,) took while the tcp went from ``before`` to a pose within ``dt_s``."""
    if dt_s <= 0.0:
        return 0.0
    moved = np.concatenate([pos_m - before.pos_m, rotation_between(quat_xyzw, before.quat_xyzw)])
    moved = np.maximum(np.abs(moved) - _NOISE, 0.0)
    return CREDITED * float(np.sum(damping * moved**2)) / dt_s


def charge(
    limits: EnergyLimits,
    energy: EnergyMemory,
    memory: GuardMemory,
    pos_m: Array,
    quat_xyzw: Array,
    twist: Array,
    law: Law,
    dt_s: float,
    credit_j: float = 0.0,
) -> None:
    """Charge what springs and leak gave since the last sample, ``dt_s`` ago, with the reference in ``memory``; credit
    what dampers took.

    A sample that is not finite charges nothing: V stays promised until there is one again.
    """
    if not math.isfinite(float(np.sum(pos_m) + np.sum(quat_xyzw) + np.sum(twist))):
        return
    now_j = spring_potential(pos_m, quat_xyzw, memory.pos_m, memory.quat_xyzw, memory.stiffness, law)
    leak_j = 0.5 * limits.inner_period_s * dt_s * float(np.sum(memory.stiffness * twist * twist))
    if energy.known[0]:
        book(limits, energy, energy.potential_j[0] - now_j + leak_j, credit_j)
    energy.known[0] = 1
    energy.potential_j[0] = now_j
