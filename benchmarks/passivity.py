"""What the passivity filter reaches under adversaries, on the energy-exact plants of the tests; one JSON line each.

``adversary``: worst figures over random worlds and policies. ``push``: the force on a wall of 10 kN/m after a target
was set 0.25 m behind it, at 3000 N/m and without clip, with and without the filter, beside the bound sqrt(2 K L).
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the plants belong to the tests

from controllers.filters import ledger
from tests import test_passivity as checks
from tests.plants import World, arm_limits, trial

TRIALS, TICKS = 60, 2000


def adversary(policy: str) -> dict[str, object]:
    """Worlds without noise in the encoders, so that every figure is the filter's own."""
    rng = np.random.default_rng(7)
    excess_j, identity_j, least_j, free_j, ticks = 0.0, 0.0, math.inf, math.inf, 0
    for seed in range(TRIALS):
        world = checks.draw_world(rng)._replace(quantum_m=0.0, nan_share=0.0)
        log, energy, limits = trial(
            policy, world, checks.config_of(world), ticks=TICKS, seed=seed, limits=arm_limits(rate=4e3),
            speed_mps=np.inf, clip_m=10.0, damping_ratio=0.3,
        )  # fmt: skip
        work_j = float(np.sum(log.tau_n[:-1] * np.diff(log.q_m, axis=0)))
        spent_j = limits.budget_j - log.rows[-1, checks.LEDGER] - energy.spill_j[0] + energy.granted_j[0]
        identity_j = max(identity_j, abs(spent_j - work_j))
        excess_j = max(excess_j, float(np.diff(checks.storage(log)).max()))
        least_j = min(least_j, float(log.rows[:, checks.LEDGER].min()))
        free_j = min(free_j, float(checks.free_j(log).min()))
        ticks += TICKS
    figures = {"identity_error_j": identity_j, "storage_excess_j": excess_j, "least_ledger_j": least_j}
    rounded = {name: float(f"{value:.3g}") for name, value in (figures | {"least_free_j": free_j}).items()}
    return {"benchmark": "passivity", "case": "adversary", "policy": policy, "ticks": ticks} | rounded


def push(budget_j: float) -> dict[str, object]:
    force_n = {}
    for enforce in (True, False):
        log, *_ = trial(
            "push", World(wall_npm=1e4, viscous=40.0), ledger.Config(enforce=enforce, budget_j=budget_j), ticks=6000,
            clip_m=10.0, speed_mps=0.1, damping_ratio=1.0, limits=arm_limits(rate=4e3),
        )  # fmt: skip
        force_n[enforce] = (log.rows[:, checks.WALL].max(), log.rows[-1, checks.WALL])
    names = {"peak_n": force_n[True][0], "settled_n": force_n[True][1], "bound_n": math.sqrt(2.0 * 3000.0 * budget_j)}
    names |= {"unfiltered_peak_n": force_n[False][0], "unfiltered_settled_n": force_n[False][1]}
    rounded = {name: round(float(value), 1) for name, value in names.items()}
    return {"benchmark": "passivity", "case": "push", "budget_j": budget_j} | rounded


def main() -> None:
    for policy in checks.POLICIES:
        print(json.dumps(adversary(policy)), flush=True)
    for budget_j in (0.25, 1.0, 2.0):
        print(json.dumps(push(budget_j)), flush=True)


if __name__ == "__main__":
    main()
