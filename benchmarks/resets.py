"""How long a pair of policies keeps going by itself: one JSON line.

    python benchmarks/resets.py --steps 20000 --episodes 500 --seed 0
    python benchmarks/resets.py --dir runs/pair --episodes 500          # of a pair that has been trained

Trains ``object_relocation`` and its way back in turns on one twin, as ``robot-rl train --reset-task`` does, and lets
the two policies alternate for ``--episodes`` episodes. ``person_resets`` and ``longest_without_person`` say how often
the world had to be placed anew, and how many episodes went by without; ``success_last_100`` is that of both roles.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TASKS = ("object_relocation", "object_relocation_back")


def robot_rl(*words: str) -> dict[str, object]:
    """The JSON object that a command prints."""
    command = [sys.executable, "-m", "robot_rl.cli", *words]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def measure(folder: Path | None, arm: str, seed: int, steps: int, episodes: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as temporary:
        trained: dict[str, object] = {}
        begun_s = time.monotonic()
        if folder is None:
            folder = Path(temporary) / "pair"
            words = ["--task", TASKS[0], "--reset-task", TASKS[1], "--arm", arm, "--agent", "rlpd"]
            words += ["--seed", str(seed), "--steps", str(steps), "--set", "train.eval_episodes=0"]
            summary = robot_rl("train", *words, "--out", str(folder))
            trained = {name: summary[name] for name in ("env_steps", "training_person_resets")}
            trained["training_minutes"] = round((time.monotonic() - begun_s) / 60.0, 1)
        told = robot_rl("eval", str(folder), "--episodes", str(episodes), "--json")
        return {"benchmark": "resets", **told, **trained}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, help="a pair that has been trained, instead of training one")
    parser.add_argument("--arm", default="panda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20_000, help="environment steps of each role")
    parser.add_argument("--episodes", type=int, default=500, help="of both roles together")
    args = parser.parse_args()
    print(json.dumps(measure(args.dir, args.arm, args.seed, args.steps, args.episodes)), flush=True)


if __name__ == "__main__":
    main()
