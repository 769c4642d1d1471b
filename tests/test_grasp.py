"""A gripper as a choice: its own critic, its own penalty, nobody else's business."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from robot_rl import checkpoint, losses
from robot_rl.agents import _grasp, rlpd, sac
from robot_rl.types import DEMONSTRATION, POLICY, Transition

OBSERVATIONS = spaces.Dict(state=spaces.Box(-1.0, 1.0, (3,), np.float32))
ACTIONS = spaces.Box(-1.0, 1.0, (4,), np.float32)
SMALL: dict[str, Any] = {"hidden": (32, 32), "critics": 2, "gripper": "discrete", "critic_learning_rate": 3e-3}


def build(**changes: Any) -> sac.SAC:
    return rlpd.make(rlpd.Config(**SMALL | changes), OBSERVATIONS, ACTIONS, 0)


def batch(rng: np.random.Generator, rewarded: Any, source: int = POLICY, size: int = 64) -> Transition:
    """One step each: ``rewarded(state, choice)`` says where a choice of the gripper is worth 1; nothing follows."""
    state = rng.uniform(-1.0, 1.0, (4, size, 3)).astype(np.float32)
    action = rng.uniform(-1.0, 1.0, (4, size, 4)).astype(np.float32)
    choice = rng.integers(0, 3, (4, size))
    action[..., -1] = np.array(_grasp.CHOICES)[choice]
    reward = rewarded(state[..., 0], choice).astype(np.float32)
    obs, following = {"state": state}, {"state": np.zeros_like(state)}
    extra = {"source": np.full(reward.shape, source, np.uint8)}
    return Transition(obs, action, reward, np.zeros_like(reward), following, extra)


def close_on_the_right(state: np.ndarray, choice: np.ndarray) -> np.ndarray:
    return np.where(state > 0.0, choice == 2, choice == 0)


def choices(agent: sac.SAC, states: np.ndarray) -> np.ndarray:
    action, _, _ = agent.act({"state": states}, None, np.zeros(2, np.uint32), False)
    return np.asarray(action)[..., -1]


def same(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_the_target_is_picked_by_one_network_and_valued_by_the_other():
    """By hand: the online network prefers choice 2, the target gives it 0.5; a true end is worth its reward."""
    next_q, next_target_q = jnp.array([[0.1, 0.2, 0.9]] * 2), jnp.array([[3.0, 2.0, 0.5]] * 2)
    target = losses.double_q_target(jnp.array([1.0, 1.0]), jnp.array([1.0, 0.0]), next_q, next_target_q, 0.9)
    np.testing.assert_allclose(target, [1.0 + 0.9 * 0.5, 1.0])


def test_the_margin_by_hand():
    """Expert's choice 1: the others are raised by 0.2, the best of them is 0.7 against 0.4; the second row is clear."""
    q = jnp.array([[0.5, 0.4, 0.1], [0.0, 1.0, 0.7], [9.0, 0.0, 0.0]])
    value = losses.large_margin_loss(q, jnp.array([1, 1, 1]), jnp.array([True, True, False]), 0.2)
    np.testing.assert_allclose(value, (0.3 + 0.0) / 3, rtol=1e-6)


def test_continuous_commands_are_one_of_three_choices():
    action = jnp.zeros((7, 4)).at[:, -1].set(jnp.array([-1.0, -0.51, -0.5, 0.0, 0.5, 0.51, 1.0]))
    assert _grasp.choice_of(action).tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_it_learns_when_to_open_and_when_to_close():
    rng, agent = np.random.default_rng(0), build()
    for _ in range(150):
        agent, metrics = agent.update(batch(rng, close_on_the_right))
    states = np.array([[0.6, 0.0, 0.0], [-0.6, 0.3, -0.2]], np.float32)
    assert choices(agent, states).tolist() == [1.0, -1.0]
    assert 0.6 < float(metrics["grasp_commands"]) < 0.73  # two of three choices move it


def test_what_earns_the_same_is_left_alone():
    """Every choice is worth 1: a command costs the penalty, so the gripper stays."""
    rng, agent = np.random.default_rng(1), build(grasp_penalty=0.3)
    for _ in range(100):
        agent, _ = agent.update(batch(rng, lambda state, choice: np.ones(choice.shape)))
    assert (choices(agent, rng.uniform(-1, 1, (50, 3)).astype(np.float32)) == 0.0).all()


def test_the_penalty_touches_nothing_but_the_grasp_critic():
    """Bit for bit: actor, critics and temperature are those of an agent without the penalty."""
    cheap, dear = build(grasp_penalty=0.0), build(grasp_penalty=5.0)
    for seed in range(3):
        step = batch(np.random.default_rng(seed), close_on_the_right)
        cheap, dear = cheap.update(step)[0], dear.update(step)[0]
    for part in ("actor", "critic", "target", "temperature"):
        assert same(getattr(cheap, part), getattr(dear, part))
    assert not same(cheap.grasp, dear.grasp)


def test_what_was_shown_stays_ahead_of_what_nobody_ever_did():
    """Demonstrations only ever stay, and earn little. With the margin no other choice comes nearer than that."""
    rng = np.random.default_rng(2)
    step = batch(rng, lambda state, choice: np.full(choice.shape, -0.5), DEMONSTRATION)
    step.action[..., -1] = 0.0
    ahead = {}
    for margin in (0.0, 0.2):
        agent = build(grasp_margin=margin, grasp_penalty=0.0)
        for _ in range(100):
            agent, _ = agent.update(step)
        q = np.asarray(_grasp._values(agent.config, agent.grasp.critic.params, step.obs["state"].reshape(-1, 3)))
        np.testing.assert_allclose(q[:, 1], -0.5, atol=0.1)
        ahead[margin] = float(np.min(q[:, 1] - np.maximum(q[:, 0], q[:, 2])))
    assert ahead[0.2] > 0.15 > ahead[0.0]


def test_it_explores_as_often_as_it_says():
    agent = build(grasp_epsilon=0.3)
    states = np.zeros((3000, 3), np.float32)
    best = float(choices(agent, states[:1])[0])
    action, _, _ = agent.act({"state": states}, None, np.array([1, 2], np.uint32), True)
    last = np.asarray(action)[:, -1]
    assert set(last.tolist()) == {-1.0, 0.0, 1.0} and action.shape == (3000, 4)
    assert np.mean(last != best) == pytest.approx(0.3 * 2 / 3, abs=0.03)


def test_an_actor_gets_it_with_the_policy_and_a_checkpoint_has_it(tmp_path):
    rng, agent = np.random.default_rng(0), build()
    trained, _ = agent.update(batch(rng, close_on_the_right))
    states = rng.uniform(-1, 1, (20, 3)).astype(np.float32)
    given = agent.with_policy(trained.policy)
    np.testing.assert_array_equal(*(each.act({"state": states}, None, None, False)[0] for each in (given, trained)))
    checkpoint.save(tmp_path / "agent.ckpt", trained, {})
    loaded = checkpoint.load(tmp_path / "agent.ckpt", build())
    assert same(loaded, trained)
    again = batch(rng, close_on_the_right)
    assert same(loaded.update(again)[0], trained.update(again)[0])


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="learns costs of continuous actions"):
        build(constraint="lagrangian")
    with pytest.raises(ValueError, match="only component of the action"):
        rlpd.make(rlpd.Config(**SMALL), OBSERVATIONS, spaces.Box(-1.0, 1.0, (1,), np.float32), 0)
