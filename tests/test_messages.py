"""Conversions between our types and messages, there and back."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

pytest.importorskip("rclpy")

from controllers import images
from controllers import messages as m
from controllers.guard import CLIPS
from robot_rl.types import ArmState
from sim.panda import Config, make

finite = st.floats(allow_nan=False, allow_infinity=False)
any_number = st.floats()
stamps_ns = st.integers(0, (2**31 - 1) * 10**9 + 999_999_999)


def vectors(size, numbers=finite):
    return st.lists(numbers, min_size=size, max_size=size).map(lambda values: np.array(values, np.float64))


@st.composite
def states(draw, dof=7):
    return ArmState(
        t_s=0.0,
        q_rad=draw(vectors(dof)),
        dq_radps=draw(vectors(dof)),
        tau_nm=draw(vectors(dof)),
        tcp_pos_m=draw(vectors(3)),
        tcp_quat_xyzw=draw(vectors(4)),
        tcp_twist=draw(vectors(6)),
        tcp_wrench=draw(vectors(6)),
        gripper=draw(finite),
    )


def same(one: ArmState, other: ArmState) -> None:
    """Bit for bit, but for the time."""
    for name in ("q_rad", "dq_radps", "tau_nm", "tcp_pos_m", "tcp_quat_xyzw", "tcp_twist", "tcp_wrench", "gripper"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@given(stamps_ns)
def test_stamps_keep_every_nanosecond(stamp_ns):
    assert m.to_ns(m.to_stamp(stamp_ns)) == stamp_ns


@given(stamps_ns)
def test_stamp_columns_are_exact_in_float64(stamp_ns):
    sec, nanosec = m.stamp_columns(stamp_ns)
    assert m.columns_ns({"sec": sec, "nanosec": nanosec}) == stamp_ns
    assert m.columns_ns({"target_sec": sec, "target_nanosec": nanosec}, "target_") == stamp_ns


@given(states(), stamps_ns)
def test_a_state_comes_back_bit_for_bit(state, stamp_ns):
    names = m.names_of("panda", 7)
    out = m.to_state(state, names, stamp_ns)
    back = m.from_state(out, names.joints)
    same(state, back)
    assert back.t_s == stamp_ns * 1e-9
    for message in out:
        assert m.to_ns(message.header.stamp) == stamp_ns and message.header.frame_id == "base"


@given(states(dof=6), st.permutations(range(7)))
def test_joints_are_found_by_name_in_any_order(state, order):
    """Drivers publish them sorted by name, and MuJoCo does not."""
    names = m.names_of("ur5e", 6)
    out = m.to_state(state, names, 1)
    joints = out.joints
    for field in ("name", "position", "velocity", "effort"):
        setattr(joints, field, [getattr(joints, field)[i] for i in order])
    same(state, m.from_state(out, names.joints))


def test_what_a_driver_leaves_out_is_zero_and_a_missing_joint_has_a_name():
    state = make(Config(), scene()).read()
    names = m.names_of("panda", 7)
    out = m.to_state(state, names, 1)
    out.joints.velocity, out.joints.effort = [], []
    back = m.from_state(out, names.joints)
    np.testing.assert_array_equal(back.q_rad, state.q_rad)
    assert not back.dq_radps.any() and not back.tau_nm.any()
    assert m.from_state(out, names.joints, gripper=None).gripper == 0.0
    with pytest.raises(ValueError, match=r"no joint elbow_joint.*panda_joint1"):
        m.from_state(out, ["elbow_joint", "panda_joint1"])


def scene():
    from robot_rl.types import Scene

    return Scene()


@given(states(), vectors(6, st.floats(-1e3, 1e3)))
def test_a_tare_is_taken_from_the_wrench_alone(state, tare):
    names = m.names_of("panda", 7)
    tared, plain = (m.from_state(m.to_state(state, names, 1, t), names.joints) for t in (tare, None))
    np.testing.assert_array_equal(tared.tcp_wrench, state.tcp_wrench - tare)
    np.testing.assert_array_equal(tared.q_rad, plain.q_rad)


@given(st.dictionaries(st.text("abcdef_", min_size=1), vectors(7), max_size=5), stamps_ns)
def test_props_come_back_bit_for_bit(poses, stamp_ns):
    message = m.to_props(poses, "base", stamp_ns)
    back = m.from_props(message)
    assert list(back) == list(poses) and m.to_ns(message.header.stamp) == stamp_ns
    for name, pose in poses.items():
        np.testing.assert_array_equal(back[name], pose)


@given(st.lists(any_number, min_size=len(m.ENERGY), max_size=len(m.ENERGY)))
def test_columns_come_back_bit_for_bit(values):
    back = m.from_columns(m.to_columns(m.ENERGY, values), m.ENERGY)
    assert list(back) == list(m.ENERGY)
    np.testing.assert_array_equal(list(back.values()), values)


def test_columns_of_another_version_are_refused_by_name():
    message = m.to_columns(("sec", "nanosec", "joy"), (1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match=r"sec,nanosec,joy.*share"):
        m.from_columns(message, m.ENERGY)
    short = m.to_columns(m.GUARD, [0.0] * len(m.GUARD))
    short.data = short.data[:-1]
    with pytest.raises(ValueError, match="one version"):
        m.from_columns(short, m.GUARD)
    bare = m.to_columns((), ())
    bare.layout.dim = []
    with pytest.raises(ValueError, match="columns ''"):
        m.from_columns(bare, m.STEP)


def test_columns_are_what_the_contract_says():
    assert m.GUARD[-len(CLIPS) :] == CLIPS
    for columns in (m.ENERGY, m.GUARD, m.STEP):
        assert len(set(columns)) == len(columns) and not any("," in name for name in columns)


@given(vectors(3, st.floats(-10.0, 10.0)), vectors(4, st.floats(-1.0, 1.0)), stamps_ns)
def test_a_unit_pose_in_the_right_frame_passes(pos_m, quat, stamp_ns):
    norm = float(np.linalg.norm(quat))
    assume(norm > 1e-3)
    for frame in ("base", "/base"):
        assert m.refuse_pose(m.to_pose_stamped(pos_m, quat / norm, frame, stamp_ns), "base") == ""
    back = m.from_pose(m.to_pose(pos_m, quat / norm))
    np.testing.assert_array_equal(back.pos_m, pos_m)
    np.testing.assert_array_equal(back.quat_xyzw, quat / norm)


@given(st.integers(0, 6), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_any_number_that_is_not_finite_is_refused(index, bad):
    numbers = np.array([0.4, 0.0, 0.3, 0.0, 0.0, 0.0, 1.0])
    numbers[index] = bad
    assert "not finite" in m.refuse_pose(m.to_pose_stamped(numbers[:3], numbers[3:], "base", 1), "base")


@given(vectors(4, st.floats(-2.0, 2.0)))
def test_what_is_no_rotation_is_refused(quat):
    refused = m.refuse_pose(m.to_pose_stamped(np.zeros(3), quat, "base", 1), "base")
    assert ("norm" in refused) == (abs(np.linalg.norm(quat) - 1.0) > 1e-3)


@pytest.mark.parametrize("frame", ["", "world", "base_link", "panda/base", "Base"])
def test_a_wrong_frame_is_refused_by_both_names(frame):
    message = m.to_pose_stamped(np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0]), frame, 1)
    assert f"'{frame}'" in m.refuse_pose(message, "base") and "'base'" in m.refuse_pose(message, "base")


def test_a_picture_keeps_its_pixels():
    picture = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    message = images.to_image(picture[:, ::-1], "camera", 5)  # not contiguous
    assert (message.height, message.width, message.step, message.encoding) == (4, 6, 18, "rgb8")
    np.testing.assert_array_equal(np.frombuffer(message.data, np.uint8).reshape(4, 6, 3), picture[:, ::-1])


@pytest.mark.parametrize(("arm", "dof"), [("panda", 7), ("fr3", 7), ("ur5e", 6), ("kinova", 7)])
def test_every_joint_has_one_name(arm, dof):
    names = m.names_of(arm, dof)
    assert len(set(names.joints)) == dof and m.GRIPPER_JOINT not in names.joints and names.base == "base"
