"""The energy ledger: what the controller may still spend, kept from the torque really applied and the joints' motion.

    L[k+1] = min(cap, L[k] - tau[k]^T (q[k+1] - q[k]) + credit[k]),    L[0] = budget

A torque held between two samples does exactly the work ``tau^T dq``, whatever happens in between, so no model of arm,
contact or Jacobian is in it. Kinetic energy + L then never rises by more than the surroundings put in, for any policy
and any controller: arm and controller are passive as long as L >= 0 (docs/passivity.md). What the virtual springs hold,
V, is promised already; the rest, E = L - V, is free to be spent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controllers.jit import kernel
from robot_rl.config import check, number
from robot_rl.types import ArmLimits

Array = NDArray[np.float64]

STATES = ("normal", "throttle", "hold", "float")
NORMAL, THROTTLE, HOLD, FLOAT = range(4)
TRACE = ("ledger_j", "potential_j", "free_j", "alpha", "gamma", "beta", "force_n")
"""Columns of the trace: one row per control tick."""
LEDGER, POTENTIAL, FREE, ALPHA, GAMMA, BETA, FORCE = range(7)


@dataclass(frozen=True)
class Config:
    """The ledger always watches; with ``enforce`` the passivity filter acts on what it says."""

    enforce: bool = True
    budget_j: float | None = number(None, 0.0, 1000.0, "J at the start of an episode; none: the task's Bounds.energy_j")
    cap_j: float = number(5.0, 0.0, 1000.0, "J, most that the ledger ever holds; at least the budget")
    reserve_j: float = number(0.05, 0.0, 10.0, "J never promised to springs; a ledger below it is depleted")
    low_share: float = number(0.3, 1e-3, 1.0, "share of the budget; with less of it free a policy step has a cost")
    friction_credit: float = number(0.0, 0.0, 0.8, "share of the arm's identified joint friction that is credited")
    credit_deadband_rad: float = number(2e-5, 0.0, 1e-2, "rad per tick that are not credited: the encoders' noise")
    hold_ticks: int = number(1, 1, 50, "control ticks one torque may be held for; torque loops only")
    delay_ticks: int = number(0, 0, 10, "control ticks until a torque is applied; torque loops only")
    inner_period_s: float = number(0.001, 1e-5, 0.01, "s, period of the law where it runs inside the vendor's box")

    def __post_init__(self) -> None:
        check(self)
        if self.budget_j is not None and self.budget_j > self.cap_j:
            raise ValueError(f"budget_j = {self.budget_j}: give at most cap_j = {self.cap_j}, or raise cap_j with it")


class EnergyLimits(NamedTuple):
    """A Config, a budget and an arm's limits as what the kernels read."""

    enforce: bool
    budget_j: float
    cap_j: float
    reserve_j: float
    speed_radps: Array  # (dof,) that no joint exceeds: the maker's limit, inf for none
    dtau_nmps: Array  # (dof,) fastest that a torque can change
    coulomb_nm: Array  # (dof,) credited share of the Coulomb friction
    viscous_nmspr: Array  # (dof,) Nm s/rad, credited share of the viscous friction
    credit_deadband_rad: float
    hold_ticks: float
    inner_period_s: float


class EnergyMemory(NamedTuple):
    """What ledger and filter remember; arrays, so that compiled and plain code change the same numbers."""

    ledger_j: Array  # (1,) L
    potential_j: Array  # (1,) V of the reference that was last let through
    work_j: Array  # (1,) done by the torques so far, net
    credit_j: Array  # (1,) friction credited so far
    spill_j: Array  # (1,) cut off at the cap so far
    granted_j: Array  # (1,) given anew by ``grant`` so far
    q_rad: Array  # (dof,) at the last sample
    known: NDArray[np.int64]  # (1,) whether there is a last sample
    in_flight_nm: Array  # (delay, dof) commanded, not applied yet; oldest first
    alpha: Array  # (1,) share of the last reference step that was let through
    gamma: Array  # (1,) share of the last stiffening
    beta: Array  # (1,) 1: the torque wanted; 0: the fastest way down
    state: NDArray[np.int64]  # (1,)
    trace: Array  # (ticks, 7) of the last period, see TRACE
    row: NDArray[np.int64]  # (1,) ticks since the period began


def make_limits(config: Config, energy_j: float, limits: ArmLimits, speed_radps: Array) -> EnergyLimits:
    """``energy_j`` is the task's budget, ``speed_radps`` (dof,) what no joint exceeds: the maker's limit.

    Raises ValueError for a budget above the cap, and for a friction credit on an arm whose friction is not known.
    """
    if config.friction_credit > 0.0 and limits.coulomb_nm is None and limits.viscous_nmspr is None:
        raise ValueError(
            f"friction_credit = {config.friction_credit}: the friction of this arm's joints is not known; give 0.0"
        )
    budget_j = energy_j if config.budget_j is None else config.budget_j
    if not budget_j <= config.cap_j:
        raise ValueError(f"a budget of {budget_j} J is more than cap_j = {config.cap_j} J: raise energy.cap_j")
    if not budget_j > config.reserve_j:
        raise ValueError(
            f"a budget of {budget_j} J is not more than reserve_j = {config.reserve_j} J: nothing could move; raise "
            "energy.budget_j or the task's Bounds.energy_j"
        )
    return EnergyLimits(
        enforce=config.enforce,
        budget_j=float(budget_j),
        cap_j=float(config.cap_j),
        reserve_j=float(config.reserve_j),
        speed_radps=np.asarray(speed_radps, np.float64),
        dtau_nmps=np.asarray(limits.dtau_max_nmps, np.float64),
        coulomb_nm=config.friction_credit * _friction(limits.coulomb_nm, limits.dof),
        viscous_nmspr=config.friction_credit * _friction(limits.viscous_nmspr, limits.dof),
        credit_deadband_rad=float(config.credit_deadband_rad),
        hold_ticks=float(config.hold_ticks),
        inner_period_s=float(config.inner_period_s),
    )


def _friction(coefficients: Array | None, dof: int) -> Array:
    return np.zeros(dof) if coefficients is None else np.asarray(coefficients, np.float64)


def make_memory(limits: EnergyLimits, delay_ticks: int = 0, ticks: int = 0) -> EnergyMemory:
    """A full ledger. ``ticks``: rows of the trace."""
    dof = len(limits.speed_radps)
    return EnergyMemory(
        ledger_j=np.full(1, limits.budget_j),
        potential_j=np.zeros(1),
        work_j=np.zeros(1),
        credit_j=np.zeros(1),
        spill_j=np.zeros(1),
        granted_j=np.zeros(1),
        q_rad=np.zeros(dof),
        known=np.zeros(1, np.int64),
        in_flight_nm=np.zeros((delay_ticks, dof)),
        alpha=np.ones(1),
        gamma=np.ones(1),
        beta=np.ones(1),
        state=np.zeros(1, np.int64),
        trace=np.zeros((ticks, len(TRACE))),
        row=np.zeros(1, np.int64),
    )


def grant(limits: EnergyLimits, memory: EnergyMemory) -> None:
    """Fill the ledger up to the budget and leave FLOAT: the explicit act that nothing does by itself."""
    if memory.ledger_j[0] < limits.budget_j:
        memory.granted_j[0] += limits.budget_j - memory.ledger_j[0]
        memory.ledger_j[0] = limits.budget_j
    memory.state[0] = NORMAL


@kernel
def book(limits: EnergyLimits, memory: EnergyMemory, work_j: float, credit_j: float) -> None:
    """Enter one interval; a ledger below its reserve is depleted, and stays so until it is granted anew."""
    memory.work_j[0] += work_j
    memory.credit_j[0] += credit_j
    ledger_j = memory.ledger_j[0] - work_j + credit_j
    if ledger_j > limits.cap_j:
        memory.spill_j[0] += ledger_j - limits.cap_j
        ledger_j = limits.cap_j
    memory.ledger_j[0] = ledger_j
    if limits.enforce and ledger_j < limits.reserve_j:
        memory.state[0] = FLOAT


@kernel
def charge(limits: EnergyLimits, memory: EnergyMemory, tau_nm: Array, q_rad: Array, dt_s: float) -> None:
    """Charge the work of ``tau_nm`` (dof,), the torque that was applied since the last sample, ``dt_s`` ago: where
    samples were lost, the time that has really passed, at most ``hold_ticks`` periods.

    Friction took at least ``c |dq| + b dq^2 / dt`` meanwhile, by whatever way the joint went (Cauchy and Schwarz).
    Where either sample is not finite, the most that the torque can have done is charged; a sample that jumps further
    than the joint can go earns no more work than the joint could, and no credit.
    """
    total = 0.0
    for i in range(len(q_rad)):
        total += q_rad[i]
    finite = math.isfinite(total)
    work_j, credit_j = 0.0, 0.0
    if finite and memory.known[0]:
        for i in range(len(q_rad)):
            moved_rad = q_rad[i] - memory.q_rad[i]
            reach_rad = limits.speed_radps[i] * dt_s
            slid_rad = max(abs(moved_rad) - limits.credit_deadband_rad, 0.0) if abs(moved_rad) <= reach_rad else 0.0
            if tau_nm[i] != 0.0:  # a joint without a speed limit and without a torque does no work
                work_j += max(tau_nm[i] * moved_rad, -abs(tau_nm[i]) * reach_rad)
            credit_j += limits.coulomb_nm[i] * slid_rad + limits.viscous_nmspr[i] * slid_rad * slid_rad / dt_s
    else:
        for i in range(len(q_rad)):
            if tau_nm[i] != 0.0:
                work_j += abs(tau_nm[i]) * limits.speed_radps[i] * dt_s
    memory.known[0] = finite
    if finite:
        for i in range(len(q_rad)):
            memory.q_rad[i] = q_rad[i]
    book(limits, memory, work_j, credit_j)


@kernel
def record(memory: EnergyMemory, wrench: Array) -> None:
    """Write the tick that is now finished into the trace."""
    row = memory.row[0]
    memory.row[0] = row + 1
    if row >= len(memory.trace):
        return
    memory.trace[row, LEDGER] = memory.ledger_j[0]
    memory.trace[row, POTENTIAL] = memory.potential_j[0]
    memory.trace[row, FREE] = memory.ledger_j[0] - memory.potential_j[0]
    memory.trace[row, ALPHA] = memory.alpha[0]
    memory.trace[row, GAMMA] = memory.gamma[0]
    memory.trace[row, BETA] = memory.beta[0]
    memory.trace[row, FORCE] = math.sqrt(wrench[0] ** 2 + wrench[1] ** 2 + wrench[2] ** 2)


def summarize(limits: EnergyLimits, memory: EnergyMemory, low_share: float) -> dict[str, float]:
    """The last period in numbers: J, N and shares of its control ticks.

    ``cost`` is 0 while ``low_share`` of the budget stays free, and rises linearly to 1 where nothing does.
    """
    trace = memory.trace[: memory.row[0]]
    ledger_j, potential_j = float(memory.ledger_j[0]), float(memory.potential_j[0])
    free_min_j = float(trace[:, FREE].min(initial=ledger_j - potential_j))
    return {
        "ledger_j": ledger_j,
        "potential_j": potential_j,
        "free_j": ledger_j - potential_j,
        "free_min_j": free_min_j,
        "ledger_min_j": float(trace[:, LEDGER].min(initial=ledger_j)),
        "work_j": float(memory.work_j[0]),
        "credit_j": float(memory.credit_j[0]),
        "spill_j": float(memory.spill_j[0]),
        "alpha": float(trace[:, ALPHA].mean()) if len(trace) else 1.0,
        "gamma": float(trace[:, GAMMA].mean()) if len(trace) else 1.0,
        "beta": float(trace[:, BETA].mean()) if len(trace) else 1.0,
        "intervened": float((trace[:, ALPHA : BETA + 1] < 1.0).any(axis=1).mean()) if len(trace) else 0.0,
        "negative": float((trace[:, FREE] < 0.0).mean()) if len(trace) else 0.0,
        "force_max_n": float(trace[:, FORCE].max(initial=0.0)),
        "cost": min(max(1.0 - free_min_j / max(low_share * limits.budget_j, 1e-9), 0.0), 1.0),
    }


_LEAST, _MOST = ("free_min_j", "ledger_min_j"), ("force_max_n", "cost")
_MEAN = ("alpha", "gamma", "beta", "intervened", "negative")


def combine(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The summaries of consecutive periods, equally long and at least one, as that of all of them."""
    out = dict(parts[-1])
    out |= {name: min(part[name] for part in parts) for name in _LEAST}
    out |= {name: max(part[name] for part in parts) for name in _MOST}
    return out | {name: sum(part[name] for part in parts) / len(parts) for name in _MEAN}


def audit(tau_nm: Array, q_rad: Array, budget_j: float, cap_j: float = math.inf) -> Array:
    """The ledger (T + 1,) J over a log: torques (T, dof) applied between the samples (T + 1, dof), without credit."""
    work_j = np.sum(tau_nm * np.diff(q_rad, axis=0), axis=1)
    ledger_j = np.empty(len(work_j) + 1)
    ledger_j[0] = budget_j
    for k, spent_j in enumerate(work_j):
        ledger_j[k + 1] = min(cap_j, ledger_j[k] - spent_j)
    return ledger_j
