"""Rewards made when a batch is drawn: VICE, and successes that a newer classifier takes back."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from gymnasium import spaces

from robot_rl import run
from robot_rl.agents import sac
from robot_rl.episode import action_key
from robot_rl.replay import ReplayBuffer
from robot_rl.reward import classifier as classifiers
from robot_rl.reward import vice
from robot_rl.reward.judge import Config
from robot_rl.reward.labels import LabelSet, Origin
from robot_rl.reward.relabel import Corrected
from robot_rl.reward.training import TrainConfig
from robot_rl.spaces import Encoder
from robot_rl.train import resume, train
from robot_rl.types import DEMONSTRATION, POLICY, Transition
from tests.reward_sets import linear_classifier

SPACE = spaces.Dict({"point": spaces.Box(-2.0, 2.0, (1,)), "speed": spaces.Box(-1.0, 1.0, (2,))})
FIELDS = {"point": ((1,), "float32"), "speed": ((2,), "float32")}
GOAL, STEPS = 1.2, 8


def goals(count=30):
    rng = np.random.default_rng(3)
    return {
        "point": rng.normal(GOAL, 0.05, (count, 1)).astype(np.float32),
        "speed": rng.uniform(-1, 1, (count, 2)).astype(np.float32),
    }


def make_vice(encoder, **changes):
    config = TrainConfig(
        label_smoothing=0.2, mixup=1.0, gradient_penalty=10.0, batch_size=32, hidden=32, inputs=("point",),
        learning_rate=3e-3, **changes,
    )  # fmt: skip
    return vice.from_goals(config, goals(), FIELDS, encoder, seed=0)


def observed(point, rng):
    return {"point": np.array([point], np.float32), "speed": rng.uniform(-1, 1, 2).astype(np.float32)}


def test_names_and_units_come_back_from_what_is_encoded():
    encoder = Encoder.from_space(SPACE)
    rng = np.random.default_rng(0)
    rows = [observed(point, rng) for point in (-1.5, 0.3)]
    back = encoder.decode({"state": np.stack([encoder.encode(row)["state"] for row in rows])})
    assert encoder.names == set(FIELDS)
    for name in FIELDS:
        assert back[name] == pytest.approx(np.stack([row[name] for row in rows]), abs=1e-6)


def play(agent, encoder, explore, episode, rng, add=None):
    """One episode of a point that the action moves; returns where it ended."""
    point = float(rng.uniform(-2.0, 2.0))
    encoded = encoder.encode(observed(point, rng))
    for step in range(STEPS):
        if agent is None:
            action = rng.uniform(-1, 1, 1).astype(np.float32)
        else:
            drawn, _, _ = agent.act(encoded, None, action_key(0, episode * STEPS + step), explore)
            action = np.asarray(drawn, np.float32)
        point = float(np.clip(point + 0.5 * action[0], -2, 2))
        following = encoder.encode(observed(point, rng))
        if add is not None:
            add(encoded, action, 0.0, False, step == STEPS - 1, following, episode)
        encoded = following
    return point


def test_a_policy_learns_from_examples_of_success_alone():
    encoder, rng = Encoder.from_space(SPACE), np.random.default_rng(1)
    rates = {"actor_learning_rate": 3e-3, "critic_learning_rate": 3e-3}
    config = sac.Config(hidden=(32, 32), discount=0.9, init_temperature=0.05, **rates)
    agent = sac.make(config, encoder.space, spaces.Box(-1.0, 1.0, (1,)), 0)
    replay = ReplayBuffer(4000, encoder.space, 1)
    reward = make_vice(encoder)
    for episode in range(100):
        play(agent if episode >= 10 else None, encoder, True, episode, rng, replay.add)
        for _ in range(STEPS if episode >= 10 else 0):
            agent, _ = agent.update(reward(replay.sample(rng, (1, 64))))
    ends = [play(agent, encoder, False, 0, rng) for _ in range(20)]
    assert np.mean(np.abs(np.array(ends) - GOAL) < 0.5) >= 0.9, ends
    at = np.linspace(-2, 2, 41, dtype=np.float32)[:, None]
    paid = reward.probabilities({"point": at, "speed": np.zeros((41, 2), np.float32)})
    assert abs(float(at[np.argmax(paid), 0]) - GOAL) < 0.4 and paid.max() > paid[0] + 0.2


def drawn_batch(replay, encoder, rng):
    for episode in range(3):
        play(None, encoder, True, episode, rng, replay.add)
    return replay.sample(rng, (2, 16))


def test_it_goes_on_from_a_checkpoint_as_if_nothing_had_been(tmp_path):
    encoder, rng = Encoder.from_space(SPACE), np.random.default_rng(0)
    batch = drawn_batch(ReplayBuffer(99, encoder.space, 1), encoder, rng)
    one, other = make_vice(encoder), make_vice(encoder)
    one(batch)
    one.save(tmp_path)
    other.load(tmp_path)
    first, second = one(batch), other(batch)
    assert np.array_equal(first.reward, second.reward) and one.row() == other.row()
    assert not np.array_equal(first.reward, make_vice(encoder)(batch).reward)
    assert np.array_equal(first.discount, batch.discount) and 0.0 <= first.reward.min() <= first.reward.max() <= 1.0


def test_it_learns_every_so_many_batches_and_may_pay_one_or_nothing():
    encoder, rng = Encoder.from_space(SPACE), np.random.default_rng(0)
    batch = drawn_batch(ReplayBuffer(99, encoder.space, 1), encoder, rng)
    found = make_vice(encoder)
    found.every, found.binary = 2, True
    before = found.params
    assert set(np.unique(found(batch).reward)) <= {0.0, 1.0}
    learned = found.params
    found(batch)
    assert found.params is learned and learned is not before


def test_goals_are_needed(tmp_path):
    LabelSet(tmp_path / "l.zarr", FIELDS).append(
        goals(2), np.zeros(2), np.arange(2), Origin("x", 0)
    )  # no success among them
    encoder = Encoder.from_space(SPACE)
    with pytest.raises(ValueError, match="no frame of success to learn from"):
        vice.make(Config(vice=str(tmp_path / "l.zarr"), vice_inputs=("point",)), encoder, 8, 0)
    with pytest.raises(ValueError, match="'pint' is not among point, speed"):
        vice.make(Config(vice=str(tmp_path / "l.zarr"), vice_inputs=("pint",)), encoder, 8, 0)
    with pytest.raises(ValueError, match="there is a classifier as well"):
        Config(vice="l.zarr", classifier="c")


def test_a_run_with_it_is_resumed_to_the_same_numbers(tmp_path):
    chosen = run.choose("reach", "panda", "sim", "sac", run.TrainConfig())
    env = run.make_env(chosen)
    fields = {name: (box.shape, "float32") for name, box in env.observation_space.spaces.items()}
    labels = LabelSet(tmp_path / "goals.zarr", fields)
    rows = {name: np.zeros((4, *shape), np.float32) for name, (shape, _) in fields.items()}
    labels.append(rows, np.ones(4), np.arange(4), Origin("x", 0))
    env.close()
    words = ["task.max_steps=5", "agent.hidden=8", "agent.batch_size=8", "agent.start_steps=5"]
    words += ["agent.learning_starts=5", f"reward.vice={labels.path}", "reward.vice_inputs=tcp_pose"]
    config = run.TrainConfig(steps=15, eval_episodes=1, checkpoint_every=5, tracker="none")
    chosen = run.choose("reach", "panda", "sim", "sac", config, words)
    train(chosen, tmp_path / "whole")
    train(replace(chosen, train=replace(config, steps=10)), tmp_path / "halves")
    resume(tmp_path / "halves", 15)

    def agent_of(folder):
        return classifiers.checkpoint._read(run.newest(folder) / "agent.ckpt")[1]

    whole, halves = agent_of(tmp_path / "whole"), agent_of(tmp_path / "halves")
    assert jax.tree.all(jax.tree.map(np.array_equal, whole, halves))
    text = (tmp_path / "whole/metrics.csv").read_text()
    assert "vice_loss" in text and "true_success" in text
    summary_row = text.splitlines()[-1].split(",")
    assert summary_row[text.splitlines()[0].split(",").index("length")] == "5"  # nobody said success


def test_a_success_that_a_newer_version_does_not_see_is_taken_back(tmp_path):
    encoder, rng = Encoder.from_space(SPACE), np.random.default_rng(0)
    classifiers.save(linear_classifier("point", [4.0], 0.0), tmp_path / "c")
    correct = Corrected(Config(str(tmp_path / "c")), encoder)
    points = np.array([[1.0, -1.0, 1.5, 1.0, 1.0]])  # of the next observations
    state = np.stack([[encoder.encode(observed(point, rng))["state"] for point in row] for row in points])
    extra = {"source": np.array([[POLICY, POLICY, POLICY, DEMONSTRATION, POLICY]])}
    extra["called"] = np.array([[False, False, False, False, True]])
    reward, discount = np.array([[[1.0, 0.0, 1.0, 1.0, 1.0]], [[0.0, 1.0, 0.0, 0.0, 0.0]]], np.float32)
    batch = Transition({"state": state}, np.zeros((1, 5, 1)), reward, discount, {"state": state}, extra)
    assert correct(batch) is batch  # all of it was judged by the only version there is
    classifiers.save(linear_classifier("point", [4.0], -5.0), tmp_path / "c")  # from 1.25 on
    after = correct(batch)
    assert after.reward.tolist() == [[0.0, 0.0, 1.0, 1.0, 1.0]]  # a demonstration, and what a person said, stand
    assert after.discount.tolist() == [[1.0, 1.0, 0.0, 0.0, 0.0]]
    assert batch.reward.tolist() == [[1.0, 0.0, 1.0, 1.0, 1.0]] and correct.row() == {"taken_back": 0.5}
