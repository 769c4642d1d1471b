"""Every setting of an agent does something: one that is read by nobody is found here.

What an agent does is compared as the program that JAX traces of it, its numbers included, and as the networks that it
begins with; nothing has to be compiled for that.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from gymnasium import spaces

from robot_rl.agents import bc, sac
from robot_rl.types import DEMONSTRATION, Transition

ACTIONS = spaces.Box(-1.0, 1.0, (3,), np.float32)
IMAGES = spaces.Dict(
    state=spaces.Box(-1.0, 1.0, (4,), np.float32),
    wrist=spaces.Box(0, 255, (16, 16, 3), np.uint8),
    side=spaces.Box(0, 255, (16, 16, 3), np.uint8),
)
STATE = spaces.Dict(state=IMAGES["state"])
SESSION = {"batch_size", "utd_ratio", "demo_share", "start_steps", "learning_starts", "online", "pretrain_updates"}
"""Read by what trains an agent (session.py, train.py, learner.py, run.py), and tested with those."""

LAGRANGIAN, RECOVERY = {"constraint": "lagrangian"}, {"constraint": "recovery"}
DISCRETE, SEEN = {"gripper": "discrete"}, {"seen": True}
CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {  # another value, and what else has to be so
    "hidden": ((8,), {}),
    "activation": ("tanh", {}),
    "kernel_init": ("xavier", {}),
    "actor_layer_norm": (True, {}),
    "critic_layer_norm": (True, {}),
    "layer_norm": (False, {}),
    "log_std_range": ((-4.0, 1.0), {}),
    "loss": ("squared_error", {}),
    "learning_rate": (1e-3, {}),
    "weight_decay": (1e-2, {}),
    "critics": (5, {}),
    "target_critics": (3, {"critics": 4}),
    "actor_critics": ("mean", {}),
    "discount": (0.5, {}),
    "polyak": (0.5, {}),
    "backup_entropy": (False, {}),
    "cloning_weight": (3.0, {}),
    "init_temperature": (0.7, {}),
    "target_entropy": (-1.0, {}),
    "actor_learning_rate": (1e-3, {}),
    "critic_learning_rate": (1e-3, {}),
    "temperature_learning_rate": (1e-3, {}),
    "constraint": ("recovery", {}),
    "cost_discount": (0.5, LAGRANGIAN),
    "cost_limit": (0.5, LAGRANGIAN),
    "init_multiplier": (0.5, LAGRANGIAN),
    "multiplier_learning_rate": (0.5, LAGRANGIAN),
    "risk_threshold": (0.5, RECOVERY),
    "candidates": (10, RECOVERY),
    "gripper": ("discrete", {}),
    "grasp_penalty": (0.5, DISCRETE),
    "grasp_epsilon": (0.5, DISCRETE),
    "grasp_margin": (0.5, DISCRETE),
    "encoder": ("resnet10", SEEN),
    "pool": ("mean", SEEN),
    "latent": (16, SEEN),
    "dropout": (0.3, SEEN),
    "shift_px": (2, SEEN),
}
ELSEWHERE = {"pretrained", "frozen"}  # of a file: tests/test_encoders.py, tests/test_pixels.py
FIELDS = [(module, field.name) for module in (sac, bc) for field in dataclasses.fields(module.Config)]


def signature(module: Any, seen: bool = False, **settings: Any) -> tuple[Any, ...]:
    """What an agent with ``settings`` begins with, does when it acts, and does when it learns."""
    space = IMAGES if seen else STATE
    agent = module.make(module.Config(**{"hidden": (16,)} | settings), space, ACTIONS, 0)
    rng, rows = np.random.default_rng(0), (2, 4)
    obs = {
        name: rng.uniform(-1, 1, (*rows, *box.shape)).astype(np.float32)
        if box.dtype == np.float32
        else rng.integers(0, 256, (*rows, *box.shape), np.uint8)
        for name, box in space.spaces.items()
    }
    action, number = np.zeros((*rows, 3), np.float32), np.zeros(rows, np.float32)
    extra = {"source": np.full(rows, DEMONSTRATION), "cost": number, "proposed": action}
    batch = Transition(obs, action, number, number, obs, extra)
    one = {name: value[0, 0] for name, value in obs.items()}
    key = np.zeros(2, np.uint32)
    learns = jax.make_jaxpr(lambda agent: agent.update(batch))(agent)
    acts = [
        jax.make_jaxpr(lambda agent, explore=explore: agent.act(one, None, key, explore)[0])(agent)
        for explore in (False, True)
    ]
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(agent)]
    return str(learns), *map(str, acts), leaves


@cache
def begun_with(module: Any, settings: tuple[tuple[str, Any], ...]) -> tuple[Any, ...]:
    return signature(module, **dict(settings))


@pytest.mark.parametrize(("module", "name"), FIELDS, ids=[f"{module.__name__[16:]}-{name}" for module, name in FIELDS])
def test_a_setting_changes_something(module, name):
    if name in SESSION | ELSEWHERE:
        assert name not in CHANGES
        return
    assert name in CHANGES, f"say here what {name} changes"
    value, rest = CHANGES[name]
    assert signature(module, **rest | {name: value}) != begun_with(module, tuple(rest.items()))


def test_every_setting_that_is_left_out_here_is_one():
    known = {name for _, name in FIELDS}
    assert known >= SESSION | ELSEWHERE | CHANGES.keys()
