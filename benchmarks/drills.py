"""Kills of actors and learner at random moments, many times over: for a night. One JSON line.

    python -m benchmarks.drills [KILLS [SEED]]

Runs of a small task are started one after the other; in each, kill -9 falls on an actor, the learner or both at random
moments, start-up included, until each side has been killed KILLS times. Every run is then held to what
``tests.apart.check`` asks for: each row of each actor's log in the learner's store, byte for byte, once; each step
worth its updates; each episode accounted for once. The first run that is not raises AssertionError.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path

from robot_rl.step_log import StepLog
from tests.apart import Pair

KILLS_PER_RUN = 12
STEPS = 1500
TRY_S = 120.0  # of a run: then it is left to itself, and has to end


def drill(folder: Path, rng: random.Random, kills: dict[str, int]) -> dict:
    """One run."""
    with Pair(folder, steps=STEPS, actors=rng.choice((1, 2))) as pair:
        end_s = time.monotonic() + TRY_S
        for _ in range(KILLS_PER_RUN):
            time.sleep(rng.uniform(0.0, 8.0))
            if pair.learner.popen.poll() is not None or time.monotonic() > end_s:
                break
            victims = rng.choice((("actor",), ("learner",), ("actor", "learner")))
            index = rng.randrange(len(pair.actors))
            for victim in victims:
                (pair.actors[index] if victim == "actor" else pair.learner).kill()
                kills[victim] += 1
            if "learner" in victims:
                pair.start_learner()
            if "actor" in victims:
                pair.actors[index] = pair.start_actor(index)
        summary = pair.finish()
        rows = len(StepLog(pair.run / "steps.zarr"))
    return {"rows": rows, "success_rate": summary["success_rate"]}


def main(wanted: int, seed: int) -> None:
    rng, kills = random.Random(seed), {"actor": 0, "learner": 0}
    rows, rates = 0, []
    began_s = time.monotonic()
    while min(kills.values()) < wanted:
        with tempfile.TemporaryDirectory() as name:
            done = drill(Path(name), rng, kills)
        rows, rates = rows + done["rows"], [*rates, done["success_rate"]]
        left_s = (time.monotonic() - began_s) * (wanted / max(1, min(kills.values())) - 1.0)
        print(f"{len(rates)} runs, kills {kills}, about {max(0.0, left_s):.0f} s left", file=sys.stderr, flush=True)
    print(json.dumps({
        "benchmark": "drills", "seed": seed, "runs": len(rates), "actor_kills": kills["actor"],
        "learner_kills": kills["learner"], "rows": rows,
        "success_rates": rates, "minutes": round((time.monotonic() - began_s) / 60.0, 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 50, int(sys.argv[2]) if sys.argv[2:] else 0)
