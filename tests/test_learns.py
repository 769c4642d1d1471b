"""Something trivial is learned in seconds, and values whose truth is known come out."""

import jax
import numpy as np
import pytest
from gymnasium import spaces

from robot_rl.find import find
from robot_rl.replay import ReplayBuffer

STATES = spaces.Dict(state=spaces.Box(-1.0, 1.0, (1,), np.float32))
ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)


def best_action(state):
    return np.concatenate([0.8 * state, -0.5 * state], axis=-1)


def bandit(buffer, rng, act, count):
    """One-step episodes with reward 1 - |a - a*(s)|^2; returns the mean reward."""
    rewards = []
    for i in range(count):
        state = rng.uniform(-1, 1, 1).astype(np.float32)
        action = act(state, i)
        rewards.append(1.0 - float(np.sum((action - best_action(state)) ** 2)))
        buffer.add({"state": state}, action, rewards[-1], True, False, {"state": state}, i)
    return float(np.mean(rewards))


def evaluate(agent):
    state = np.linspace(-1, 1, 101, dtype=np.float32)[:, None]
    action = agent.act({"state": state}, agent.start(), np.zeros(2, np.uint32), False)[0]
    return float(np.mean(1.0 - np.sum((action - best_action(state)) ** 2, axis=-1)))


def learn(name, seed):
    """60 rounds of 32 one-step episodes and 32 critic updates."""
    module, rng = find("robot_rl.agents", name), np.random.default_rng(seed)
    settings = {"critics": 4} if name == "rlpd" else {}
    config = module.Config(
        hidden=(64, 64), actor_learning_rate=3e-3, critic_learning_rate=3e-3, temperature_learning_rate=1e-2, **settings
    )
    agent = module.make(config, STATES, ACTIONS, seed)
    buffer = ReplayBuffer(2000, STATES, 2)
    returns = []
    for step in range(60):

        def act(state, i, agent=agent, step=step):
            key = np.array([step, i], np.uint32)
            return np.asarray(agent.act({"state": state}, agent.start(), key, True)[0])

        returns.append(bandit(buffer, rng, act, 32))
        for _ in range(8):
            agent, _ = agent.update(buffer.sample(rng, (4, 64)))
    return agent, returns


@pytest.mark.parametrize("name", ["sac", "rlpd"])
def test_a_bandit_is_learnt(name):
    agent, returns = learn(name, 0)
    assert returns[0] < 0.5
    assert evaluate(agent) > 0.98


def test_learning_repeats_under_a_seed():
    (first, returns), (again, same_returns) = learn("sac", 5), learn("sac", 5)
    assert returns == same_returns
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("loss", ["log_likelihood", "squared_error"])
def test_an_expert_is_cloned(loss):
    module, rng = find("robot_rl.agents", "bc"), np.random.default_rng(0)
    buffer = ReplayBuffer(500, STATES, 2)
    noise = np.random.default_rng(1)
    bandit(buffer, rng, lambda state, i: np.clip(best_action(state) + 0.1 * noise.standard_normal(2), -1, 1), 500)
    agent = module.make(module.Config(hidden=(64, 64), learning_rate=3e-3, loss=loss), STATES, ACTIONS, 0)
    for _ in range(20):
        agent, _ = agent.update(buffer.sample(rng, (20, 64)))
    assert evaluate(agent) > 0.99


@pytest.mark.parametrize(("terminated", "value"), [(False, 5.0), (True, 1.0)])
def test_a_time_out_bootstraps_and_a_true_end_does_not(terminated, value):
    """Reward 1 in every step of one-step episodes: 1 / (1 - 0.8) where the time ran out, 1 where it was the end."""
    module, rng = find("robot_rl.agents", "sac"), np.random.default_rng(0)
    config = module.Config(hidden=(32, 32), discount=0.8, polyak=0.1, backup_entropy=False, critic_learning_rate=3e-3)
    agent = module.make(config, STATES, ACTIONS, 0)
    buffer = ReplayBuffer(200, STATES, 2)
    for i in range(200):
        obs = {"state": rng.uniform(-1, 1, 1).astype(np.float32)}
        buffer.add(obs, rng.uniform(-1, 1, 2), 1.0, terminated, not terminated, obs, i)
    for _ in range(30):
        agent, metrics = agent.update(buffer.sample(rng, (20, 64)))
    assert float(metrics["q"]) == pytest.approx(value, rel=0.03)
