"""How many environment steps and minutes a task takes to learn: one JSON line per task and seed.

    python benchmarks/sample_efficiency.py --tasks reach peg_insert pick_place --seeds 0 1 2

Trains RLPD with its defaults from 20 scripted demonstrations, as ``robot-rl train`` does, and evaluates 100 fresh
episodes. ``steps_to_95``: training steps after which 19 of the last 20 training episodes had succeeded. Takes about
five minutes per line on two cores.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

STEPS = {
    "reach": 6000,
    "peg_insert": 12000,
    "pick_place": 16000,
    "object_relocation": 16000,
    "object_relocation_back": 16000,
    "cable_route": 6000,
}


def steps_to_95(metrics: Path) -> int | None:
    """The first environment step in ``metrics.csv`` with a rolling success rate of at least 95 %."""
    with metrics.open() as file:
        for row in csv.DictReader(file):
            if row["success_rate"] and float(row["success_rate"]) >= 0.95 and int(row["episodes"]) >= 20:
                return int(row["env_steps"])
    return None


def measure(task: str, arm: str, seed: int, steps: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "robot_rl.cli", "train", "--task", task, "--arm", arm, "--agent", "rlpd"]
        subprocess.run(
            [*command, "--seed", str(seed), "--steps", str(steps), "--out", str(out)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        summary = json.loads((out / "summary.json").read_text())
        return {
            "benchmark": "sample_efficiency",
            **{name: summary[name] for name in ("task", "arm", "seed", "success_rate", "env_steps")},
            "steps_to_95": steps_to_95(out / "metrics.csv"),
            "minutes": round(summary["wall_s"] / 60.0, 1),
            "mean_length": summary["mean_length"],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--arm", default="panda")
    parser.add_argument("--steps", type=int, help="instead of each task's own number")
    args = parser.parse_args()
    for task in args.tasks:
        for seed in args.seeds:
            print(json.dumps(measure(task, args.arm, seed, args.steps or STEPS[task])), flush=True)


if __name__ == "__main__":
    main()
