"""Environment steps per second of the twin: 10 Hz policy, 1 kHz guarded impedance control, one process, state only.

Prints one JSON line per task and arm: random actions, resets included. Beside it, where gym-hil is importable (here or
in the interpreter named by GYM_HIL_PYTHON), its state environment in the same run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np

from robot_rl.build import make_env
from robot_rl.find import names

STEPS = 1500
ROUNDS = 3

GYM_HIL = """
import json, time, numpy as np, gymnasium, gym_hil
env = gymnasium.make("gym_hil/PandaPickCubeBase-v0", image_obs=False)
env.reset(seed=0)
rng, best = np.random.default_rng(0), 0.0
for _ in range(3):
    begun_s = time.perf_counter()
    for _ in range(150):
        *_, terminated, truncated, _ = env.step(rng.uniform(-0.02, 0.02, env.action_space.shape).astype(np.float32))
        if terminated or truncated:
            env.reset()
    best = max(best, 150 / (time.perf_counter() - begun_s))
print(json.dumps({"benchmark": "env", "env": "gym_hil/PandaPickCubeBase-v0", "env_steps_per_s": round(best, 1)}))
"""


def steps_per_s(task: str, arm: str) -> float:
    """The best of some rounds: other work on the machine only ever makes it slower."""
    env = make_env(task, arm)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1.0, 1.0, (STEPS, *env.action_space.shape))
    env.reset(seed=0)
    env.step(actions[0])  # compiles the tick
    best = 0.0
    for round_ in range(ROUNDS):
        env.reset(seed=round_)
        begun_s = time.perf_counter()
        for step in range(STEPS):
            _, _, terminated, truncated, _ = env.step(actions[step])
            if terminated or truncated:
                env.reset(seed=step)
        best = max(best, STEPS / (time.perf_counter() - begun_s))
    env.close()
    return best


def gym_hil() -> dict[str, object]:
    """gym-hil's figure, or why there is none. It needs an older MuJoCo, so usually an interpreter of its own."""
    python = os.environ.get("GYM_HIL_PYTHON", sys.executable)
    out = subprocess.run(
        [python, "-c", GYM_HIL], capture_output=True, text=True, env={**os.environ, "MUJOCO_GL": "egl"}
    )
    if out.returncode:
        reason = (out.stderr.strip().splitlines() or ["no output"])[-1]
        return {"benchmark": "env", "env": "gym_hil", "skipped": reason}
    return json.loads(out.stdout.strip().splitlines()[-1])


def main() -> None:
    for task in names("tasks"):
        for arm in names("sim"):
            rate = steps_per_s(task, arm)
            row = {
                "benchmark": "env",
                "env": task,
                "arm": arm,
                "env_steps_per_s": round(rate, 1),
                "us_per_tick": round(1e4 / rate, 2),
            }
            print(json.dumps(row), flush=True)
    print(json.dumps(gym_hil()), flush=True)


if __name__ == "__main__":
    main()
