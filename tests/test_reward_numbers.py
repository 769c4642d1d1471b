"""Calibration, its measures, and thresholds for a budget, against their formulas."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.reward import numbers


def test_log_loss_gives_either_class_half_of_the_weight():
    logit, label = np.array([2.0, -1.0, -1.0, -1.0]), np.array([1, 0, 0, 0])
    positive, negative = -math.log(numbers.sigmoid(np.array(2.0))), -math.log(1 - numbers.sigmoid(np.array(-1.0)))
    assert numbers.log_loss(logit, label) == pytest.approx((positive + negative) / 2)
    assert np.isfinite(numbers.log_loss(np.array([-1e4, 1e4]), np.array([1, 0])))


def test_the_temperature_is_the_one_the_labels_were_drawn_with():
    rng = np.random.default_rng(0)
    true = rng.normal(0.0, 2.0, 40_000)
    label = (rng.random(len(true)) < numbers.sigmoid(true)).astype(int)
    for heat in (0.5, 1.0, 3.0):
        assert numbers.temperature(true * heat, label) == pytest.approx(heat, rel=0.05)


def test_the_temperature_is_where_the_loss_is_least():
    rng = np.random.default_rng(1)
    logit = rng.normal(0.0, 3.0, 200)
    label = (logit + rng.normal(0.0, 3.0, 200) > 0).astype(int)
    heat = numbers.temperature(logit, label)
    here = numbers.log_loss(logit / heat, label)
    assert here < numbers.log_loss(logit / (1.3 * heat), label) and here < numbers.log_loss(logit * 1.3 / heat, label)


def test_a_set_without_an_error_does_not_make_it_sure_of_everything():
    heat = numbers.temperature(np.array([-3.0] * 10 + [3.0] * 10), np.array([0] * 10 + [1] * 10))
    assert numbers.sigmoid(np.array(3.0 / heat)) == pytest.approx(11 / 12, abs=1e-3)  # Platt's target


def test_calibration_error_and_brier_by_hand():
    probability, label = np.array([0.1, 0.1, 0.1, 0.9]), np.array([0, 0, 1, 1])
    assert numbers.calibration_error(probability, label, bins=2) == pytest.approx(
        0.75 * abs(1 / 3 - 0.1) + 0.25 * abs(1.0 - 0.9)
    )
    assert numbers.brier(probability, label) == pytest.approx((0.01 + 0.01 + 0.81 + 0.01) / 4)
    mean, share, count = numbers.reliability(probability, label, bins=2).T
    assert count.tolist() == [3, 1] and mean == pytest.approx([0.1, 0.9]) and share == pytest.approx([1 / 3, 1.0])
    assert numbers.reliability(np.array([0.0, 1.0]), np.array([0, 1]))[[0, -1], 2].tolist() == [1, 1]


def test_what_is_held_is_the_least_of_frames_that_follow_one_another():
    logit = np.array([1.0, 3.0, 2.0, 5.0, 4.0, 9.0])
    episode, step = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 1, 2, 5, 6, 7])
    assert numbers.hold_scores(logit, episode, step, 2).tolist() == [1.0, 2.0, 5.0, 4.0]
    assert numbers.hold_scores(logit, episode, step, 1).tolist() == logit.tolist()


@given(st.floats(1e-4, 0.4), st.integers(1, 500))
def test_rates_per_step_and_per_episode_are_inverse(budget, steps):
    rate = numbers.per_step(budget, steps)
    assert 1 - (1 - rate) ** steps == pytest.approx(budget, rel=1e-6)
    assert numbers.per_episode(rate, steps) == pytest.approx(budget, rel=1e-9)


@settings(max_examples=200)
@given(
    st.lists(st.floats(-9, 9), min_size=1, max_size=60),
    st.lists(st.floats(-9, 9), min_size=1, max_size=300),
    st.floats(0.001, 0.3),
    st.integers(1, 5),
)
def test_a_threshold_keeps_its_budget(positive, negative, budget, steps):
    positive, negative = np.array(positive), np.array(negative)
    chosen = numbers.choose_threshold(positive, negative, budget, steps, 0.9)
    assert chosen.false_positives == np.sum(negative >= chosen.logit)
    assert chosen.false_positives <= numbers.per_step(budget, steps) * len(negative)
    assert chosen.recall == np.mean(positive >= chosen.logit)
    if negative.max() < positive.min() - 1e-6:  # told apart without an error: margin on both sides
        assert negative.max() < chosen.logit < positive.min() and chosen.recall == 1.0
    assert chosen.episode_rate_bound >= numbers.per_episode(chosen.false_positives / len(negative), steps)


def test_a_threshold_needs_both():
    with pytest.raises(ValueError, match="0 positive and 1 negative frames"):
        numbers.choose_threshold(np.zeros(0), np.zeros(1), 0.01, 100, 0.9)
