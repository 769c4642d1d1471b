"""What seeing costs. Two JSON lines:

    image steps per second of peg_insert with two cameras of 128 x 128 px, physics and resets included, on ONE core;
    milliseconds per critic update of `drq` on batches of 128, two cameras of 64 x 64 px, and of one action

Beside the first, where gym-hil is importable (here or in the interpreter named by GYM_HIL_PYTHON), its environment
with as many cameras, of the same size, on the same core, in the same run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

SIZE_PX, STEPS, ROUNDS = 128, 100, 3
LEARNED_PX, UPDATES = 64, 8

GYM_HIL = """
import json, time, numpy as np, gymnasium, gym_hil
env = gymnasium.make("gym_hil/PandaPickCubeBase-v0", image_obs=True)
obs, _ = env.reset(seed=0)
rng, steps = np.random.default_rng(0), 10
begun_s = time.perf_counter()
for _ in range(steps):
    *_, terminated, truncated, _ = env.step(rng.uniform(-0.02, 0.02, env.action_space.shape).astype(np.float32))
    if terminated or truncated:
        env.reset()
print(json.dumps({"image_steps_per_s": round(steps / (time.perf_counter() - begun_s), 2),
                  "shapes": [list(image.shape) for image in obs["pixels"].values()]}))
"""


def image_steps() -> dict[str, float]:
    """Steps per second in the best of some rounds, and milliseconds of this process's own time per step: other work on
    the machine only ever makes the first worse, and hardly the second."""
    import numpy as np

    from robot_rl.build import make_env

    env = make_env("peg_insert", "panda", settings=["vision.cameras=wrist,side", f"vision.size_px={SIZE_PX}"])
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (STEPS, *env.action_space.shape))
    env.reset(seed=0)
    env.step(actions[0])  # compiles the tick
    best, own_s = 0.0, float("inf")
    for round_ in range(ROUNDS):
        begun_s, used_s = time.perf_counter(), time.process_time()
        env.reset(seed=round_)
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset(seed=round_)
        best = max(best, STEPS / (time.perf_counter() - begun_s))
        own_s = min(own_s, time.process_time() - used_s)
    env.close()
    return {"image_steps_per_s": round(best, 1), "cpu_ms_per_step": round(1e3 * own_s / STEPS, 2)}


def gym_hil() -> dict[str, Any]:
    """gym-hil's figure, or why there is none. It needs an older MuJoCo, so usually an interpreter of its own."""
    python = os.environ.get("GYM_HIL_PYTHON", sys.executable)
    out = subprocess.run(
        [python, "-c", GYM_HIL], capture_output=True, text=True, env={**os.environ, "MUJOCO_GL": "egl"}
    )
    if out.returncode:
        return {"skipped": (out.stderr.strip().splitlines() or ["no output"])[-1]}
    return json.loads(out.stdout.strip().splitlines()[-1])


def learner() -> dict[str, Any]:
    import jax
    import numpy as np
    from gymnasium import spaces

    from robot_rl.agents import drq
    from robot_rl.types import Transition

    config, cameras = drq.Config(), ("camera/side", "camera/wrist")
    image, shape = spaces.Box(0, 255, (LEARNED_PX, LEARNED_PX, 3), np.uint8), (config.utd_ratio, config.batch_size)
    space = spaces.Dict({"state": spaces.Box(-1.0, 1.0, (18,), np.float32)} | dict.fromkeys(cameras, image))
    agent = drq.make(config, space, spaces.Box(-1.0, 1.0, (6,), np.float32), 0)
    rng = np.random.default_rng(0)

    def seen() -> dict[str, np.ndarray]:
        images = {name: rng.integers(0, 256, (*shape, *image.shape), np.uint8) for name in cameras}
        return {"state": rng.uniform(-1, 1, (*shape, 18)).astype(np.float32), **images}

    action, reward = rng.uniform(-1, 1, (*shape, 6)).astype(np.float32), rng.random(shape).astype(np.float32)
    batch = Transition(seen(), action, reward, np.ones(shape, np.float32), seen(), {})
    one, key = {name: value[0, 0] for name, value in batch.obs.items()}, np.zeros(2, np.uint32)
    times: dict[str, list[float]] = {"update": [], "act": [], "used": []}
    for _ in range(UPDATES + 1):
        begun_s, used_s = time.perf_counter(), time.process_time()
        agent = jax.block_until_ready(agent.update(batch)[0])
        times["update"].append(time.perf_counter() - begun_s)
        times["used"].append(time.process_time() - used_s)
        begun_s = time.perf_counter()
        np.asarray(agent.act(one, None, key, True)[0])
        times["act"].append(time.perf_counter() - begun_s)
    ms = {name: 1e3 * min(values[1:]) for name, values in times.items()}  # the first of each compiles
    update_ms, used_ms = (round(ms[name] / config.utd_ratio, 1) for name in ("update", "used"))
    return {
        "ms_per_critic_update": update_ms,
        "cpu_ms_per_critic_update": used_ms,
        "ms_per_action": round(ms["act"], 2),
    }


def main() -> None:
    row: dict[str, Any] = learner()
    row |= {"benchmark": "vision", "agent": "drq", "cameras": 2, "size_px": LEARNED_PX}
    print(json.dumps(row | {"cores": len(os.sched_getaffinity(0))}), flush=True)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ["LP_NUM_THREADS"] = "0"  # Mesa's software renderer, which would start a thread a core
    row = {"benchmark": "vision", "env": "peg_insert", "cameras": 2, "size_px": SIZE_PX, "cores": 1}
    row |= image_steps() | {"gym_hil": gym_hil()}
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
