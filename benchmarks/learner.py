"""Learner updates per second, as a share of what the machine can do at all. One JSON line per configuration.

    python benchmarks/learner.py --critics 2 10

An update is one critic update on 256 transitions (observations of 24, actions of 7, networks of 256-256) with its
target and its Polyak step, and a twentieth of an actor and a temperature update: the replay ratio is 20. Sampling the
batch from a replay buffer is part of it. Peak is numpy's float32 matrix product, measured between the repetitions;
only the matrix products of the networks count as work (no optimiser, normalisation, activation or sampling).
sbx-rl's SAC does the same work beside it where it is installed (``pip install sbx-rl``).
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium import spaces

from robot_rl.agents import rlpd, sac
from robot_rl.replay import ReplayBuffer

STATE_DIM, ACTION_DIM, BATCH, RATIO, HIDDEN = 24, 7, 256, 20, (256, 256)
OBSERVATION_SPACE = spaces.Dict(state=spaces.Box(-1.0, 1.0, (STATE_DIM,), np.float32))
ACTION_SPACE = spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)


def dense_flops(inputs: int, outputs: int) -> tuple[int, int]:
    """Of one forward pass, and of its first layer alone, in multiply-adds times two."""
    sizes = [inputs, *HIDDEN, outputs]
    layers = [2 * BATCH * a * b for a, b in itertools.pairwise(sizes)]
    return sum(layers), layers[0]


def update_flops(critics: int, target_critics: int) -> float:
    """Of one update: forward, weight gradients, and input gradients where something learnt lies below."""
    critic, critic_first = dense_flops(STATE_DIM + ACTION_DIM, 1)
    actor, actor_first = dense_flops(STATE_DIM, 2 * ACTION_DIM)
    critic_update = critics * (3 * critic - critic_first) + target_critics * critic + actor
    to_action = critic - critic_first * STATE_DIM // (STATE_DIM + ACTION_DIM)
    actor_update = 3 * actor - actor_first + critics * (critic + to_action)
    return critic_update + actor_update / RATIO


def peak_gflops(size: int = 2048) -> float:
    a = np.random.default_rng(0).standard_normal((size, size), np.float32)
    start = time.perf_counter()
    for _ in range(2):
        a @ a
    return 2 * 2 * size**3 / (time.perf_counter() - start) / 1e9


def filled_buffer(size: int = 20_000) -> ReplayBuffer:
    rng = np.random.default_rng(0)
    buffer = ReplayBuffer(100_000, OBSERVATION_SPACE, ACTION_DIM)
    states = rng.uniform(-1, 1, (size + 1, STATE_DIM)).astype(np.float32)
    actions = rng.uniform(-1, 1, (size, ACTION_DIM)).astype(np.float32)
    for i in range(size):
        end = i % 50 == 49
        buffer.add({"state": states[i]}, actions[i], float(end), end, False, {"state": states[i + 1]}, i // 50)
    return buffer


def ours(critics: int, layer_norm: bool, buffer: ReplayBuffer) -> Callable[[], None]:
    """One call is RATIO updates, sampling included."""
    config = rlpd.Config(
        critics=critics, critic_layer_norm=layer_norm, hidden=HIDDEN, batch_size=BATCH, utd_ratio=RATIO
    )
    rng = np.random.default_rng(0)
    agent = sac.make(config, OBSERVATION_SPACE, ACTION_SPACE, seed=0)

    def run() -> None:
        nonlocal agent
        agent, _ = agent.update(buffer.sample(rng, (RATIO, BATCH)))
        jax.block_until_ready(agent)

    return run


class _Space(gymnasium.Env):
    """Only the spaces: sbx-rl wants an environment."""

    observation_space = OBSERVATION_SPACE["state"]
    action_space = ACTION_SPACE

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        return np.zeros(STATE_DIM, np.float32), {}


def sbx(critics: int, layer_norm: bool) -> Callable[[], None]:
    """The same with sbx-rl's SAC: its own buffer, RATIO gradient steps a call, the actor's every RATIO-th."""
    import sbx as library  # an optional extra, slow to import
    from stable_baselines3.common.logger import Logger

    model = library.SAC(
        "MlpPolicy",
        _Space(),
        batch_size=BATCH,
        gradient_steps=RATIO,
        policy_delay=RATIO,
        buffer_size=20_000,
        policy_kwargs={"net_arch": list(HIDDEN), "n_critics": critics, "layer_norm": layer_norm},
        seed=0,
    )
    model.set_logger(Logger(None, []))
    rng = np.random.default_rng(0)
    for i in range(20_000):
        obs, next_obs = rng.uniform(-1, 1, (2, 1, STATE_DIM)).astype(np.float32)
        action = rng.uniform(-1, 1, (1, ACTION_DIM)).astype(np.float32)
        model.replay_buffer.add(obs, next_obs, action, np.zeros(1), np.array([i % 50 == 49]), [{}])

    def run() -> None:
        model.train(gradient_steps=RATIO, batch_size=BATCH)
        jax.block_until_ready((model.policy.qf_state.params, model.policy.actor_state.params))

    return run


def measure(runs: dict[str, Callable[[], None]], repeats: int) -> tuple[dict[str, float], float]:
    """Best updates/s of each and best GFLOP/s of numpy, taken in turns so that all see the same machine."""
    for run in runs.values():
        run()  # compiles
    best, peak = dict.fromkeys(runs, 0.0), 0.0
    for _ in range(repeats):
        peak = max(peak, peak_gflops())
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            best[name] = max(best[name], RATIO / (time.perf_counter() - start))
    return best, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--critics", type=int, nargs="+", default=[2, 10])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--plain", action="store_true", help="critics without LayerNorm")
    arguments = parser.parse_args()
    buffer = filled_buffer()
    for critics in arguments.critics:
        runs = {"robot_rl": ours(critics, not arguments.plain, buffer)}
        targets = {"robot_rl": 2, "sbx": critics}
        if importlib.util.find_spec("sbx"):
            runs["sbx"] = sbx(critics, not arguments.plain)
        updates, peak = measure(runs, arguments.repeats)
        for name, updates_per_s in updates.items():
            gflops = updates_per_s * update_flops(critics, targets[name]) / 1e9
            line = {
                "learner": name,
                "critics": critics,
                "layer_norm": not arguments.plain,
                "updates_per_s": round(updates_per_s, 1),
                "gflops": round(gflops, 1),
                "peak_gflops": round(peak, 1),
                "share_of_peak": round(gflops / peak, 3),
                "sampling_included": True,
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
