"""The ladder of a silent commander, as pure rules."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllers.watchdog import FAULT, FLOAT, FOLLOW, HOLD, Config, rung

SEVERITY = {FOLLOW: 0, HOLD: 1, FLOAT: 2, FAULT: 3}
ages = st.none() | st.floats(0.0, 1000.0)


@st.composite
def configs(draw):
    """Any ladder that Config takes."""
    target = sorted(draw(st.tuples(st.floats(0.05, 5.0), st.floats(0.05, 5.0))))
    beat = sorted(draw(st.tuples(st.floats(0.05, 5.0), st.floats(0.05, 5.0))))
    fault_s = draw(st.just(0.0) | st.floats(0.01, 600.0))
    return Config(
        hold_s=target[0],
        float_s=target[1],
        heartbeat_hold_s=beat[0],
        heartbeat_float_s=beat[1],
        heartbeat_fault_s=fault_s,
    )


@given(configs(), st.floats(0.0, 1000.0), st.floats(0.0, 1000.0), st.floats(0.0, 10.0), st.floats(0.0, 10.0))
def test_the_ladder_only_climbs_with_silence(config, target_s, beat_s, more_target_s, more_beat_s):
    first = rung(config, target_s, beat_s)
    later = rung(config, target_s + more_target_s, beat_s + more_beat_s)
    assert SEVERITY[later.level] >= SEVERITY[first.level]


@given(configs(), ages, ages)
def test_a_heartbeat_can_only_make_it_stricter(config, target_s, beat_s):
    assert SEVERITY[rung(config, target_s, beat_s).level] >= SEVERITY[rung(config, target_s, None).level]


@given(configs(), ages, ages)
def test_it_follows_only_what_is_fresh_and_says_why_not(config, target_s, beat_s):
    level, cause = rung(config, target_s, beat_s)
    fresh = target_s is not None and target_s <= config.hold_s
    lives = beat_s is None or beat_s <= config.heartbeat_hold_s
    if config.heartbeat_fault_s and beat_s is not None:
        lives = lives and beat_s <= config.heartbeat_fault_s
    assert (level == FOLLOW) == (fresh and lives)
    assert (cause == "") == (level == FOLLOW)


@given(configs(), st.floats(0.0, 1000.0), ages)
def test_the_cause_does_not_change_while_it_lasts(config, target_s, beat_s):
    """safety_state tells changes; a cause with a running number in it would be told at every tick."""
    first, later = rung(config, target_s, beat_s), rung(config, target_s + 1e-3, beat_s)
    assert first.level != later.level or first.cause == later.cause


@given(ages)
def test_nothing_moves_or_floats_before_the_first_target(beat_s):
    assert rung(Config(), None, beat_s) == (HOLD, "no target yet")


@pytest.mark.parametrize(
    ("target_s", "beat_s", "level", "cause"),
    [
        (0.2, None, FOLLOW, ""),
        (0.21, None, HOLD, "no target for 0.2 s"),
        (1.0, None, HOLD, "no target for 0.2 s"),
        (1.01, None, FLOAT, "no target for 1 s"),
        (0.1, 0.1, FOLLOW, ""),
        (0.1, 0.11, HOLD, "no heartbeat for 0.1 s"),
        (0.1, 0.51, FLOAT, "no heartbeat for 0.5 s"),
        (0.1, 1e6, FLOAT, "no heartbeat for 0.5 s"),
    ],
)
def test_the_stated_figures(target_s, beat_s, level, cause):
    assert rung(Config(), target_s, beat_s) == (level, cause)


def test_a_fault_for_a_lost_heartbeat_is_asked_for():
    config = dataclasses.replace(Config(), heartbeat_fault_s=2.0)
    assert rung(config, 0.0, 2.0).level == FLOAT
    assert rung(config, 0.0, 2.1) == (FAULT, "no heartbeat for 2 s")
    assert rung(config, 0.0, None).level == FOLLOW  # who never sent one cannot lose it


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"hold_s": 1.5}, ["hold_s", "1.5", "float_s"]),
        ({"heartbeat_hold_s": 0.6}, ["heartbeat_hold_s", "0.6", "heartbeat_float_s"]),
        ({"ramp_s": -1.0}, ["ramp_s"]),
        ({"jump_m": float("nan")}, ["jump_m"]),
    ],
)
def test_a_ladder_with_its_rungs_in_the_wrong_order_is_refused(values, names):
    with pytest.raises(ValueError) as error:
        Config(**values)
    assert all(name in str(error.value) for name in names)
