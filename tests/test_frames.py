"""Relative frames turn, and only turn: the mistakes of an adjoint that moves as well cannot be made here.

A peer multiplied delta poses by a 6 x 6 adjoint with its blocks in the wrong order: with the arm 0.55 m out, a unit
step forward also turned the tool by 0.55.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from robot_rl.geometry import quat_multiply, quat_rotate
from robot_rl.types import ArmState
from tasks import _common as common

UNIT = st.floats(-1.0, 1.0)
VECTOR = st.tuples(UNIT, UNIT, UNIT).map(np.array)
SIX = st.tuples(*[UNIT] * 6).map(np.array)
TURN = st.tuples(*[st.floats(-3.0, 3.0)] * 3).map(lambda rotvec: Rotation.from_rotvec(rotvec).as_quat())
FUZZ = settings(max_examples=100, deadline=None)


def state_of(pos_m: np.ndarray, quat_xyzw: np.ndarray, twist: Any = None, wrench: Any = None) -> ArmState:
    zero = np.zeros(7)
    sixes = (np.zeros(6) if six is None else six for six in (twist, wrench))
    return ArmState(0.0, zero, zero, zero, pos_m, quat_xyzw, *sixes, 0.5)


@FUZZ
@given(VECTOR, TURN, SIX, SIX)
def test_twist_and_wrench_are_turned_into_the_tools_frame_half_by_half(pos, quat, twist, wrench):
    seen = common.proprioception(state_of(pos, quat, twist, wrench), state_of(pos, quat), gripper=False)
    turn = Rotation.from_quat(quat).inv()
    for name, six in (("tcp_twist", twist), ("tcp_wrench", wrench)):
        expected = np.concatenate([turn.apply(six[:3]), turn.apply(six[3:])])
        np.testing.assert_allclose(seen[name], expected, atol=1e-12)


@FUZZ
@given(VECTOR, TURN, VECTOR, TURN, VECTOR, TURN, SIX, SIX)
def test_where_the_robot_stands_is_not_seen(pos, quat, start, start_quat, shift, turn, twist, wrench):
    """Base, start and arm moved together: proprioception is the same, so what was learned in one place holds in all."""

    def moved(state: ArmState) -> ArmState:
        sixes = [np.concatenate([quat_rotate(turn, six[:3]), quat_rotate(turn, six[3:])])
                 for six in (state.tcp_twist, state.tcp_wrench)]  # fmt: skip
        return dataclasses.replace(
            state,
            tcp_pos_m=shift + quat_rotate(turn, state.tcp_pos_m),
            tcp_quat_xyzw=quat_multiply(turn, state.tcp_quat_xyzw),
            tcp_twist=sixes[0],
            tcp_wrench=sixes[1],
        )

    here, origin = state_of(pos, quat, twist, wrench), state_of(start, start_quat)
    seen = common.proprioception(here, origin, gripper=True)
    there = common.proprioception(moved(here), moved(origin), gripper=True)
    for name in seen.keys() - {"tcp_pose"}:
        np.testing.assert_allclose(there[name], seen[name], atol=1e-9)
    np.testing.assert_allclose(there["tcp_pose"][:3], seen["tcp_pose"][:3], atol=1e-9)
    angles = [Rotation.from_rotvec(each["tcp_pose"][3:]) for each in (seen, there)]
    assert (angles[0].inv() * angles[1]).magnitude() < 1e-6


@FUZZ
@given(VECTOR, TURN, SIX)
def test_an_action_moves_the_target_in_the_tools_frame_and_back(pos, quat, action):
    state = state_of(pos, quat)
    target, target_quat = common.moved(state, action, 0.02, 0.1)
    turn = Rotation.from_quat(quat)
    np.testing.assert_allclose(turn.inv().apply(target - pos) / 0.02, action[:3], atol=1e-9)
    turned = (turn.inv() * Rotation.from_quat(target_quat)).as_rotvec() / 0.1
    np.testing.assert_allclose(turned, action[3:6], atol=1e-9)


@pytest.mark.parametrize("axis", range(3))
def test_far_out_a_step_forward_turns_nothing_and_a_turn_shifts_nothing(axis):
    far = state_of(np.array([0.55, 0.1, 0.3]), Rotation.from_euler("xyz", [3.0, 0.3, 0.4]).as_quat())
    unit = np.eye(6)
    _, quat = common.moved(far, unit[axis], 0.05, 0.1)
    assert (Rotation.from_quat(quat) * Rotation.from_quat(far.tcp_quat_xyzw).inv()).magnitude() < 1e-12
    pos, _ = common.moved(far, unit[3 + axis], 0.05, 0.1)
    np.testing.assert_array_equal(pos, far.tcp_pos_m)


@FUZZ
@given(VECTOR, TURN, SIX)
def test_what_a_person_pushes_is_the_action_that_does_it(pos, quat, twist):
    """Base frame to tool frame and back gives the twist, or a shorter one along it."""
    state = state_of(pos, quat)
    action = common.steered(twist, state)
    assert np.abs(action).max() <= 1.0 + 1e-12
    target, target_quat = common.moved(state, action, 0.02, 0.1)
    done = (target - pos) / 0.02, (Rotation.from_quat(target_quat) * Rotation.from_quat(quat).inv()).as_rotvec() / 0.1
    for half, wanted in zip(done, (twist[:3], twist[3:]), strict=True):
        if np.linalg.norm(wanted) > 1e-6:
            share = half @ wanted / (wanted @ wanted)
            assert 0.5 < share <= 1.0 + 1e-9
            np.testing.assert_allclose(half, share * wanted, atol=1e-9)
