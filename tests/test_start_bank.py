"""The start bank: its gate and weights as numbers, its starts in the twin, and training that repeats with it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot_rl import learner, train
from robot_rl.build import make_env
from robot_rl.demo_starts import starts_along
from robot_rl.episode import rollout
from robot_rl.link.security import Endpoint
from robot_rl.log import WALL_CLOCK, read_metrics
from robot_rl.run import TrainConfig, choose
from robot_rl.start_bank import FORGET, UNKNOWN, StartBank, in_groups, share, weights

RATE = st.floats(0.0, 1.0)


@given(st.floats(0.0, 0.95), RATE, RATE, st.floats(0.01, 1.0))
def test_the_share_falls_as_success_rises_and_ends(largest, low, high, until):
    low, high = sorted((low, high))
    assert 0.0 <= share(largest, high, until) <= share(largest, low, until) <= largest
    assert share(largest, None, until) == share(largest, 0.0, until) == largest
    if high >= until:
        assert share(largest, high, until) == 0.0


@given(st.lists(RATE, min_size=1, max_size=12), st.floats(0.0, 100.0))
def test_weights_are_probabilities_that_prefer_failure(rates, focus):
    drawn = weights(rates, focus)
    assert drawn.sum() == pytest.approx(1.0) and (drawn >= 0.0).all()
    order = np.argsort(rates, kind="stable")
    assert (np.diff(drawn[order]) <= 1e-12).all()
    if focus == 0.0:
        np.testing.assert_allclose(drawn, 1.0 / len(rates))


def test_weights_by_the_formula():
    np.testing.assert_allclose(weights([0.0, 1.0], 3.0), np.array([1.0, np.exp(-3.0)]) / (1.0 + np.exp(-3.0)))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 12))
def test_groups_hold_every_start_once_in_the_order_of_the_way(lengths, count):
    ways = [[(way, index) for index in range(length)] for way, length in enumerate(lengths)]
    groups = in_groups(ways, count)
    assert 1 <= len(groups) <= count and all(groups)
    assert sorted(start for group in groups for start in group) == sorted(start for way in ways for start in way)
    for way, length in enumerate(lengths):
        places = [index / length for group in groups for other, index in group if other == way]
        assert places == sorted(places)


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=60))
def test_rates_stay_rates_and_follow_what_happens(told):
    bank = StartBank([["a"], ["b"], ["c"]], 0.5, 0.9, 3.0)
    for group, success in told:
        before = bank.rates[group]
        bank.count(group, success)
        assert bank.rates[group] == before + FORGET * (success - before)
    assert all(0.0 <= rate <= 1.0 for rate in bank.rates)
    tried = {group for group, _ in told}
    assert all(bank.rates[group] == UNKNOWN for group in {0, 1, 2} - tried)


def test_a_draw_depends_on_its_seed_and_rates_and_has_their_frequencies():
    bank = StartBank([["a"], ["b", "c"]], 0.6, 1.0, 2.0, [0.0, 1.0])
    drawn = [bank.draw(seed, 0.25) for seed in range(4000)]
    assert drawn == [bank.draw(seed, 0.25) for seed in range(4000)]
    begun = [each for each in drawn if each is not None]
    assert len(begun) / 4000 == pytest.approx(0.6 * 0.75, abs=0.03)
    assert np.mean([each.group == 0 for each in begun]) == pytest.approx(weights([0.0, 1.0], 2.0)[0], abs=0.03)
    assert {each.start for each in begun} == {"a", "b", "c"}
    assert all(bank.draw(seed, 1.0) is None for seed in range(100))


@pytest.fixture(scope="module")
def way():
    """An environment, an episode of its expert, and the states along it."""
    env = make_env("object_relocation")
    episode, success = rollout(env, env.unwrapped.demonstrator(np.random.default_rng(1)), seed=5)
    assert success
    (found,) = starts_along(env, [episode])
    return env, episode, found


def test_the_states_along_a_demonstration_are_those_it_went_through(way):
    env, episode, found = way
    assert len(found) == len(episode)
    for index in (0, len(found) // 2, len(found) - 1):
        obs, info = env.reset(seed=9, options={"start": found[index]})
        assert not info["success"]
        seen = episode.observation["cube"][index]
        np.testing.assert_allclose(obs["cube"], seen, atol=2e-4)
        np.testing.assert_allclose(obs["gripper"], episode.observation["gripper"][index], atol=1e-4)


def test_what_is_held_at_such_a_start_stays_in_the_hand(way):
    env, episode, found = way
    lifted = int(np.argmax(episode.observation["height"][:, 0]))
    obs, _ = env.reset(seed=9, options={"start": found[lifted]})
    height_m = obs["height"][0]
    assert height_m > 0.02
    for _ in range(5):
        obs, *_ = env.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    assert obs["height"][0] == pytest.approx(height_m, abs=0.004) and obs["gripper"][0] > 0.3


def test_a_demonstration_that_fails_when_played_again_gives_no_starts(way):
    env, episode, _ = way
    assert starts_along(env, [replace(episode, seed=6)]) == []


def run(**changes):
    config = {"steps": 30, "seed": 2, "demo_episodes": 2, "eval_episodes": 0, "checkpoint_every": 15, "window": 5}
    config |= {"bank_share": 0.9, "bank_groups": 3, "tracker": "none"} | changes
    small = ("agent.hidden=16,16", "agent.batch_size=16", "agent.utd_ratio=1", "agent.critics=2", "task.max_steps=15")
    return choose("reach", "panda", "sim", "rlpd", TrainConfig(**config), (*small, "agent.learning_starts=10"))


def rows(folder):
    return [{k: v for k, v in row.items() if k not in WALL_CLOCK} for row in read_metrics(folder / "metrics.csv")]


def test_training_with_a_bank_repeats_after_a_resume(tmp_path):
    train.train(run(steps=60), tmp_path / "whole")
    train.train(run(), tmp_path / "parts")
    train.resume(tmp_path / "parts", 60)
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    begun = [row for row in rows(tmp_path / "whole") if row.get("bank_group")]
    assert begun and all(row["success"] == "" and row["bank_success"] in ("0", "1") for row in begun)


def test_a_learner_whose_actors_are_apart_has_no_bank(tmp_path):
    serving = learner.Serving(Endpoint.parse("127.0.0.1:0"), None)
    with pytest.raises(ValueError, match="bank_share"):
        learner.learn(run(), tmp_path / "run", serving)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("changes", "says"), [({"world": "ros"}, "only a twin"), ({"agent": "bc"}, "does not act")])
def test_a_bank_without_a_twin_or_a_learner_that_acts_is_refused(tmp_path, changes, says):
    chosen = {"task": "reach", "arm": "panda", "world": "sim", "agent": "rlpd"} | changes
    with pytest.raises(ValueError, match=f"bank_share.*{says}"):
        train.train(choose(**chosen, train=TrainConfig(bank_share=0.5)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
