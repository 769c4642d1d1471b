"""The numbers of a comparison, against numbers computed by hand, scipy's, and draws whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robot_rl import statistics
from robot_rl.statistics import area, estimate, interquartile_mean, paired_difference, probability_of_improvement

VALUES = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=1, max_size=12)
FEW_DRAWS = settings(max_examples=40, deadline=None)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([8, 1, 7, 2, 6, 3, 5, 4], 4.5),  # of 3, 4, 5, 6
        ([0, 0, 10, 100], 5.0),  # of 0, 10
        ([1, 2, 3, 4, 90], 3.0),  # 5 // 4 = 1 off each end
        ([1, 2, 6], 3.0),  # three have no quarter: the mean
        ([7], 7.0),
        ([1, 2, 3, math.inf], 2.5),  # one of four never got there: it is outside the middle half
        ([1, 2, math.inf, math.inf], math.inf),
    ],
)
def test_interquartile_mean_by_hand(values, expected):
    assert interquartile_mean(np.array(values, float)) == pytest.approx(expected)


@given(VALUES)
@FEW_DRAWS
def test_interquartile_mean_is_scipys_trimmed_mean(values):
    found = interquartile_mean(np.array(values))
    assert found == pytest.approx(stats.trim_mean(values, 0.25), abs=1e-9)
    assert min(values) - 1e-9 <= found <= max(values) + 1e-9
    assert interquartile_mean(np.array([values, values]))[1] == found  # over the last axis


@given(VALUES, st.floats(-10, 10), st.floats(0.1, 10))
@FEW_DRAWS
def test_an_interval_moves_with_its_values_and_lies_among_them(values, shift, scale):
    first = estimate([values])
    other = estimate([[scale * value + shift for value in values]])
    assert other.value == pytest.approx(scale * first.value + shift, abs=1e-6)
    if len(values) == 1:
        assert first.low is None and first.high is None and other.low is None
        return
    assert min(values) - 1e-9 <= first.low <= first.high <= max(values) + 1e-9
    assert (other.low, other.high) == pytest.approx((scale * first.low + shift, scale * first.high + shift), abs=1e-6)
    assert estimate([values]) == first  # seeded


def test_resampling_stays_within_its_stratum():
    apart = estimate([[0.0, 0.0], [1.0, 1.0]], statistics.mean)
    assert (apart.value, apart.low, apart.high) == (0.5, 0.5, 0.5)
    together = estimate([[0.0, 0.0, 1.0, 1.0]], statistics.mean)
    assert (together.low, together.high) == (0.0, 1.0)
    assert estimate([[0.0], [1.0]]).low is None  # two tasks with one seed each tell nothing of seeds
    with pytest.raises(ValueError, match="give at least one run"):
        estimate([[], []])


@pytest.mark.parametrize("draw", ["normal", "beta"])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(draw):
    """Of 300 experiments with 10 seeds each; a success rate is bounded and skew, as the beta distribution is."""
    rng = np.random.default_rng(4)
    sample = {"normal": lambda n: rng.normal(size=n), "beta": lambda n: rng.beta(8, 2, size=n)}[draw]
    truth = float(interquartile_mean(sample((100_000, 10))).mean())
    found = [estimate([sample(10)], seed=index) for index in range(300)]
    assert 0.88 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.99
    few = [estimate([sample(3)], seed=index) for index in range(300)]
    assert np.mean([one.low <= truth <= one.high for one in few]) < 0.85  # which docs/runs.md warns of


def test_probability_of_improvement_by_hand():
    found = probability_of_improvement([[1, 2]], [[2, 3]])
    assert found.value == 0.875  # 2 > 1, 2 = 2 (half), 3 > 1, 3 > 2: 3.5 of 4
    assert found.low <= 0.875 <= found.high
    assert probability_of_improvement([[1, 2]], [[2, 3]], higher_is_better=False).value == 0.125
    never = probability_of_improvement([[300, math.inf]], [[200, math.inf]], higher_is_better=False)
    assert never.value == (1 + 1 + 0 + 0.5) / 4  # two that never got there are even
    strata = probability_of_improvement([[0, 0], [5, 5], []], [[1, 1], [4, 4], [3]])
    assert (strata.value, strata.low, strata.high) == (0.5, 0.5, 0.5)  # 1 in one task, 0 in the other
    one = probability_of_improvement([[1, 2, 3]], [[9]])
    assert (one.value, one.low, one.high) == (1.0, None, None)
    assert probability_of_improvement([[]], [[1]]) is None


@given(VALUES, VALUES)
@FEW_DRAWS
def test_probability_of_improvement_is_mann_and_whitneys(a, b):
    found = probability_of_improvement([a], [b]).value
    assert found == pytest.approx(stats.mannwhitneyu(b, a).statistic / (len(a) * len(b)))
    assert found + probability_of_improvement([b], [a]).value == pytest.approx(1.0)


def test_paired_differences_by_hand():
    found = paired_difference([[0.2, 0.5, 0.8]], [[0.4, 0.7, 1.0]])
    assert found.pairs == 3
    assert (found.difference.value, found.difference.low, found.difference.high) == pytest.approx((0.2, 0.2, 0.2))
    part = paired_difference([[100, 200, math.inf]], [[50, math.inf, 10]])
    assert part.pairs == 1 and part.difference.value == -50 and part.difference.low is None
    assert paired_difference([[math.inf]], [[1.0]]) is None and paired_difference([[]], [[]]) is None


def test_pairing_sees_what_seeds_have_in_common():
    """Seeds differ by 1, the methods by 0.1: the difference is clear in pairs, and not in two intervals."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=12)
    b = a + 0.1 + rng.normal(scale=0.02, size=12)
    paired = paired_difference([a], [b]).difference
    assert 0.05 < paired.low < 0.1 < paired.high < 0.15
    assert estimate([b]).low < estimate([a]).high


def test_steps_to_a_rate_by_hand():
    steps, success = [10, 20, 30, 40, 50], [1, 0, 1, 1, 1]
    assert statistics.steps_to(steps, success, 1.0, 3) == 50
    assert statistics.steps_to(steps, success, 0.6, 3) == 30  # not 10: three episodes must have been
    assert statistics.steps_to(steps, success, 1.0, 4) is None
    assert statistics.steps_to(steps[:2], success[:2], 0.5, 3) is None
    twenty = [0.0] + [1.0] * 19
    assert statistics.steps_to(range(20), twenty, 0.95, 20) == 19  # 19 of 20 are 95 %


def test_the_area_under_a_curve_by_hand():
    assert area([10, 30], [0.0, 1.0], 30) == pytest.approx(20 / 30)
    assert area([10, 30], [0.0, 1.0], 20) == pytest.approx(10 / 20)  # the second episode is cut
    assert area([10, 30], [0.0, 1.0], 31) is None and area([], [], 5) is None
    with pytest.raises(ValueError, match="horizon = 0"):
        area([1], [1], 0)


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1, max_size=20), st.floats(0.01, 1.0))
@FEW_DRAWS
def test_the_area_is_the_mean_over_the_steps(episodes, part):
    steps = np.cumsum([length for length, _ in episodes])
    values = [value for _, value in episodes]
    horizon = max(1, int(part * steps[-1]))
    by_step = np.repeat(values, [length for length, _ in episodes])[:horizon]
    assert area(steps, values, horizon) == pytest.approx(by_step.mean(), abs=1e-9)
