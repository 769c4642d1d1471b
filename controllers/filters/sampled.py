"""The energy ledger of an arm that closes its torque loop elsewhere: in the vendor's box, at a higher rate than ours.

The torques are not ours to count, but the springs are: with the reference standing still, what they give to the arm
between two samples is exactly the fall of their potential V. So

    L[k+1] = L[k] - (V(x[k]) - V(x[k+1])) - leak,    leak = T_in K v^2 / 2 per second,

where the leak is what a spring that is itself sampled every T_in creates (Colgate and Schenkel), and no damping is
credited. The filter of references is the same as in a torque loop. This is sound while the inner loop's damping D is at
least K T_in / 2 and its springs are no other than these; there is no valve, for the torque is not ours.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from controllers import impedance
from controllers.filters.ledger import EnergyLimits, EnergyMemory, book
from controllers.guard import GuardMemory
from controllers.impedance import Law, spring_potential
from robot_rl.types import Arm

Array = NDArray[np.float64]


def spring_of(arm: Arm) -> Law:
    """The spring of an arm's own impedance loop: its default stiffness, without clipping."""
    config = impedance.Config(tuple(arm.default_stiffness.tolist()), clip_m=(10.0,) * 3, clip_rad=math.pi)
    return impedance.make_law(config, arm.limits, np.zeros(arm.limits.dof))


def charge(
    limits: EnergyLimits,
    energy: EnergyMemory,
    memory: GuardMemory,
    pos_m: Array,
    quat_xyzw: Array,
    twist: Array,
    law: Law,
    dt_s: float,
) -> None:
    """Charge what springs and leak gave since the last sample, ``dt_s`` ago, with the reference in ``memory``.

    A sample that is not finite charges nothing: V stays promised until there is one again.
    """
    if not math.isfinite(float(np.sum(pos_m) + np.sum(quat_xyzw) + np.sum(twist))):
        return
    now_j = spring_potential(pos_m, quat_xyzw, memory.pos_m, memory.quat_xyzw, memory.stiffness, law)
    leak_j = 0.5 * limits.inner_period_s * dt_s * float(np.sum(memory.stiffness * twist * twist))
    if energy.known[0]:
        book(limits, energy, energy.potential_j[0] - now_j + leak_j, 0.0)
    energy.known[0] = 1
    energy.potential_j[0] = now_j
