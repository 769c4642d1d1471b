"""Rotations against scipy, over the whole group and close to its two awkward places, 0 and pi."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from robot_rl import geometry

unit = st.floats(-1.0, 1.0)
axes = st.tuples(unit, unit, unit).filter(lambda axis: np.linalg.norm(axis) > 1e-3).map(np.array)
angles = st.one_of(
    st.floats(0.0, math.pi - 1e-6),
    st.floats(-12.0, -2.0).map(lambda power: 10.0**power),
    st.floats(-9.0, -2.0).map(lambda power: math.pi - 10.0**power),
)
rotvecs = st.builds(lambda axis, angle: axis / np.linalg.norm(axis) * angle, axes, angles)


def same_rotation(a: np.ndarray, b: np.ndarray) -> float:
    """Distance of two unit quaternions that may differ in sign."""
    return min(np.abs(a - b).max(), np.abs(a + b).max())


@given(rotvecs)
def test_rotvec_round_trip(rotvec):
    quat = geometry.rotvec_to_quat(rotvec)
    assert abs(np.linalg.norm(quat) - 1.0) < 1e-14
    np.testing.assert_allclose(geometry.quat_to_rotvec(quat), rotvec, rtol=1e-9, atol=1e-14)
    assert same_rotation(quat, Rotation.from_rotvec(rotvec).as_quat()) < 1e-14


@given(rotvecs)
def test_both_signs_of_a_quaternion_are_the_same_rotation(rotvec):
    quat = geometry.rotvec_to_quat(rotvec)
    np.testing.assert_allclose(geometry.quat_to_rotvec(-quat), geometry.quat_to_rotvec(quat), rtol=1e-12, atol=1e-14)


@given(rotvecs)
def test_matrix_round_trip(rotvec):
    quat = geometry.rotvec_to_quat(rotvec)
    matrix = Rotation.from_quat(quat).as_matrix()
    assert same_rotation(geometry.matrix_to_quat(matrix.ravel()), quat) < 1e-12


@given(rotvecs, rotvecs, st.tuples(unit, unit, unit).map(np.array))
def test_products_and_rotated_vectors_agree_with_scipy(a, b, vector):
    qa, qb = geometry.rotvec_to_quat(a), geometry.rotvec_to_quat(b)
    product = geometry.quat_multiply(qa, qb)
    assert same_rotation(product, (Rotation.from_quat(qa) * Rotation.from_quat(qb)).as_quat()) < 1e-13
    np.testing.assert_allclose(geometry.quat_rotate(qa, vector), Rotation.from_quat(qa).apply(vector), atol=1e-13)
    np.testing.assert_allclose(
        geometry.quat_multiply(qa, geometry.quat_conjugate(qa)), [0.0, 0.0, 0.0, 1.0], atol=1e-14
    )


@given(rotvecs, rotvecs)
def test_rotation_between_takes_source_to_target(a, b):
    source, target = geometry.rotvec_to_quat(a), geometry.rotvec_to_quat(b)
    turn = geometry.rotvec_to_quat(geometry.rotation_between(target, source))
    assert same_rotation(geometry.quat_multiply(turn, source), target) < 1e-9


@given(rotvecs, rotvecs, st.tuples(unit, unit, unit).map(np.array))
def test_relative_pose_of_a_moved_frame(origin, turn, shift):
    """A pose made by moving an origin frame by (shift, turn) is seen from it as just that."""
    frame = geometry.rotvec_to_quat(origin)
    quat = geometry.quat_multiply(frame, geometry.rotvec_to_quat(turn))
    pos = np.array([0.3, -0.2, 0.5])
    seen = geometry.relative_pose(pos + geometry.quat_rotate(frame, shift), quat, pos, frame)
    np.testing.assert_allclose(seen[:3], shift, atol=1e-13)
    assert same_rotation(geometry.rotvec_to_quat(seen[3:]), geometry.rotvec_to_quat(turn)) < 1e-9


def test_a_vanished_quaternion_becomes_the_identity():
    assert geometry.quat_normalize(np.zeros(4)).tolist() == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_half_turn_has_norm_pi(sign):
    rotvec = geometry.quat_to_rotvec(np.array([sign, 0.0, 0.0, 0.0]))
    assert np.linalg.norm(rotvec) == pytest.approx(math.pi, abs=1e-15)
