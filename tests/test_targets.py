"""Which targets an arm takes: never a stale, far or foreign one, whatever comes in which order."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controllers.targets import PROCESS, Gate
from controllers.watchdog import Config
from robot_rl.geometry import quat_multiply, rotvec_to_quat
from robot_rl.types import Pose
from tests.mock_arm import MockArm

STATE = MockArm().state
NOW_NS = 1_800_000_000_000_000_000
A, B = b"process-one!" + b"\0\0\0\1", b"process-two!" + b"\0\0\0\1"
HERE = Pose(STATE.tcp_pos_m, STATE.tcp_quat_xyzw)
numbers = st.floats(-2.0, 2.0)


def beside(gap_m=(0.0, 0.0, 0.0), turn_rad=(0.0, 0.0, 0.0)) -> Pose:
    turned = quat_multiply(rotvec_to_quat(np.array(turn_rad)), STATE.tcp_quat_xyzw)
    return Pose(STATE.tcp_pos_m + np.array(gap_m), turned)


def offer(gate: Gate, who: bytes, stamp_ns: int, now_s: float, pose: Pose = HERE, now_ns: int = NOW_NS) -> str:
    """One target as the node judges it."""
    reason = gate.admits(who, 1, now_s) or gate.judge(stamp_ns, now_ns, pose, STATE)
    if reason:
        gate.refuse(reason)
    else:
        gate.take(who, stamp_ns, now_s)
    return reason


@given(st.tuples(numbers, numbers, numbers), st.tuples(numbers, numbers, numbers))
def test_a_far_target_never_passes(gap_m, turn_rad):
    gate = Gate(Config())
    near = np.linalg.norm(gap_m) <= 0.0999 and np.linalg.norm(turn_rad) <= 0.499
    far = np.linalg.norm(gap_m) > 0.1001 or np.linalg.norm(turn_rad) > 0.501
    reason = offer(gate, A, NOW_NS, 0.0, beside(gap_m, turn_rad))
    if near:
        assert reason == ""
    if far and np.linalg.norm(turn_rad) < np.pi:
        assert "from the arm" in reason and "0.1 m" in reason


@given(st.integers(-(10**12), 10**12))
def test_a_stale_target_never_passes(age_ns):
    reason = offer(Gate(Config()), A, NOW_NS - age_ns, 0.0)
    assert (reason == "") == (abs(age_ns * 1e-9) <= 0.2)
    assert reason == "" or ("ago" if age_ns > 0 else "ahead") in reason


def test_without_a_stamp_a_target_is_as_old_as_its_arrival():
    gate = Gate(Config())
    assert offer(gate, A, NOW_NS, 0.0) == "" and offer(gate, A, 0, 0.1) == "" and offer(gate, A, NOW_NS, 0.2) == ""


@given(st.lists(st.integers(0, 200), min_size=2, max_size=20))
def test_accepted_stamps_never_go_backwards_unless_it_was_said(ages_ms):
    """Each step back is refused by name; what comes after it is believed."""
    gate, taken = Gate(Config()), []
    for index, age_ms in enumerate(ages_ms):
        stamp_ns = NOW_NS - age_ms * 1_000_000
        reason = offer(gate, A, stamp_ns, index * 1e-3)
        if reason:
            assert "went backwards" in reason and taken and stamp_ns < taken[-1]
            taken.append(stamp_ns)  # from here on
        else:
            assert not taken or stamp_ns >= taken[-1]
            taken.append(stamp_ns)


def test_a_clock_that_is_set_back_is_named_once_and_then_believed():
    """Sender and arm share the clock: both are set back by an hour."""
    gate, hour_ns = Gate(Config()), 3600 * 10**9
    assert offer(gate, A, NOW_NS, 0.0) == ""
    assert "went backwards by 3599.9" in offer(gate, A, NOW_NS - hour_ns + 10**8, 0.1, now_ns=NOW_NS - hour_ns + 10**8)
    for step in range(2, 5):
        at_ns = NOW_NS - hour_ns + step * 10**8
        assert offer(gate, A, at_ns, step * 0.1, now_ns=at_ns) == ""
    # A sender alone whose clock was set back stays refused: its stamps are stale.
    assert "went backwards" in offer(gate, A, NOW_NS - 2 * hour_ns, 0.6, now_ns=NOW_NS - hour_ns + 6 * 10**8)
    assert "ago" in offer(gate, A, NOW_NS - 2 * hour_ns + 10**8, 0.7, now_ns=NOW_NS - hour_ns + 7 * 10**8)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from([A, B]), st.floats(0.0, 1.5), st.booleans()), min_size=1, max_size=30))
def test_one_commander_at_a_time(messages):
    """In any interleaving: a target is taken only from who commands, or after ``float_s`` without any of his."""
    gate, now_s, commander, heard_s = Gate(Config()), 0.0, None, -np.inf
    for who, pause_s, good in messages:
        now_s += pause_s
        may = commander in (None, who) or now_s - heard_s >= 1.0
        reason = offer(gate, who, NOW_NS, now_s, HERE if good else beside((1.0, 0.0, 0.0)))
        assert (reason == "") == (may and good)
        assert may or "second publisher" in reason
        if reason == "":
            commander = who
        if who == commander:
            heard_s = now_s


def test_a_silent_commander_loses_the_arm_and_does_not_get_it_back_by_speaking():
    gate = Gate(Config())
    assert offer(gate, A, NOW_NS, 0.0) == ""
    assert "second publisher" in offer(gate, B, NOW_NS, 0.99)
    assert offer(gate, B, NOW_NS, 1.0) == ""
    assert "second publisher" in offer(gate, A, NOW_NS, 1.1)
    assert gate.refused == 2 and "second publisher" in gate.reason


def test_refused_targets_keep_the_arm_held():
    """Who sends nothing but nonsense is there all the same: nobody takes the arm from under him."""
    gate = Gate(Config())
    assert offer(gate, A, NOW_NS, 0.0) == ""
    for step in range(1, 11):
        assert offer(gate, A, NOW_NS, 0.1 * step, beside((1.0, 0.0, 0.0))) != ""
    assert "second publisher" in offer(gate, B, NOW_NS, 1.05)
    assert offer(gate, B, NOW_NS, 2.05) == ""


@given(st.integers(0, 5))
def test_where_publishers_have_no_names_only_one_may_be_there(publishers):
    reason = Gate(Config()).admits(b"", publishers, 0.0)
    assert (reason == "") == (publishers <= 1)
    assert publishers <= 1 or str(publishers) in reason


def test_only_the_heartbeat_of_the_commanders_process_counts():
    gate, other_topic = Gate(Config()), A[:PROCESS] + b"\0\0\0\7"
    assert not gate.beat(other_topic, 0.0)  # nobody commands yet
    assert gate.beats(A) and not gate.beats(B)
    offer(gate, A, NOW_NS, 0.1)
    assert gate.beat(other_topic, 0.2) and not gate.beat(B, 0.2)


def test_whether_somebody_sends_heartbeats_is_forgotten():
    gate = Gate(Config())
    gate.beat(A, 0.0)
    gate.beat(B, 100.0)
    assert not gate.beats(A) and gate.beats(B)


def test_take_tells_a_new_commander():
    gate = Gate(Config())
    assert gate.take(A, NOW_NS, 0.0) and not gate.take(A, NOW_NS, 0.1) and gate.take(B, NOW_NS, 5.0)


def test_a_new_commander_with_a_slower_clock_is_not_called_backwards():
    """Another machine, 50 ms behind: only its own stamps have to be in order."""
    gate = Gate(Config())
    offer(gate, A, NOW_NS, 0.0)
    assert offer(gate, B, NOW_NS - 50_000_000, 2.0) == ""


@pytest.mark.parametrize("turn", [0.49, -0.49])
def test_the_distance_is_measured_from_where_the_arm_is(turn):
    moved = replace(STATE, tcp_pos_m=STATE.tcp_pos_m + [0.5, 0.0, 0.0])
    gate = Gate(Config())
    assert "0.500 m" in gate.judge(NOW_NS, NOW_NS, beside(turn_rad=(0.0, 0.0, turn)), moved)
    assert gate.judge(NOW_NS, NOW_NS, beside((0.45, 0.0, 0.0), (0.0, 0.0, turn)), moved) == ""
