"""Bin to bin and back: one scene, each direction begins where the other ends, and an object can be picked anywhere."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot_rl.build import make_env
from robot_rl.find import find
from robot_rl.geometry import quat_multiply, quat_rotate, rotvec_to_quat
from robot_rl.types import IDENTITY_XYZW, Pose
from tasks import object_relocation as relocation

DIRECTIONS = ("object_relocation", "object_relocation_back")


def make(name, **changes):
    module = find("tasks", name)
    return module.make(module.Config(**changes))


def finish(env, obs, seed):
    """Play the demonstrator to the end; its length where it succeeds, else None."""
    expert = env.unwrapped.demonstrator(np.random.default_rng(seed))
    for step in range(env.unwrapped.task.max_steps):
        obs, _, terminated, truncated, _ = env.step(expert(obs))
        if terminated or truncated:
            return step + 1 if terminated else None
    return None


def test_both_directions_share_a_scene_and_its_bounds():
    there, back = (make(name) for name in DIRECTIONS)
    assert there.scene == back.scene and there.bounds == back.bounds
    assert there.observation_space == back.observation_space


@pytest.mark.parametrize("name", DIRECTIONS)
def test_each_direction_begins_where_the_other_ends_and_within_its_spreads(name):
    task, other = make(name), make(*(set(DIRECTIONS) - {name}))
    starts = [task.reset(np.random.default_rng(seed)) for seed in range(300)]
    cubes = np.array([start.props["cube"].pos_m for start in starts])
    bins = np.array([start.props["bins"].pos_m for start in starts])
    ends = np.column_stack([cubes, np.zeros(300)])
    goals = [np.column_stack([bins + way._goal_in_bins_m, np.zeros(300)]) for way in (task, other)]
    assert other.reached(ends, goals[1]).all() and not task.reached(ends, goals[0]).any()
    assert np.abs(cubes - goals[1][:, :3])[:, :2].max() <= task.config.cube_spread_m
    assert (cubes - goals[1][:, :3])[:, :2].std(axis=0).min() > 0.5 * task.config.cube_spread_m
    assert np.abs(bins - relocation.CENTRE_M).max() <= task.config.bins_spread_m and bins[:, 1].std() > 0.01
    homes = np.array([start.tcp.pos_m for start in starts])
    assert np.abs(homes - relocation.CENTRE_M - [0, 0, relocation.HOME_M]).max() <= task.config.start_spread_m


SYMMETRIES = [
    quat_multiply(
        rotvec_to_quat(np.pi / 2 * i * np.eye(3)[0]),
        quat_multiply(rotvec_to_quat(np.pi / 2 * j * np.eye(3)[1]), rotvec_to_quat(np.pi / 2 * k * np.eye(3)[2])),
    )
    for i, j, k in itertools.product(range(4), repeat=3)
]


@given(st.floats(-10.0, 10.0), st.sampled_from(SYMMETRIES))
def test_a_quarter_turn_is_the_same_whichever_face_is_up(yaw_rad, symmetry):
    turned = quat_multiply(rotvec_to_quat(np.array([0.0, 0.0, yaw_rad])), symmetry)
    turn = relocation.quarter_turn(turned)
    assert -np.pi / 4 <= turn <= np.pi / 4
    off = (turn - yaw_rad) / (np.pi / 2)
    assert abs(off - round(off)) < 1e-9
    level = quat_multiply(rotvec_to_quat(np.array([0.0, 0.0, -turn])), turned)
    along = np.abs([quat_rotate(level, axis) for axis in np.eye(3)])
    np.testing.assert_allclose(np.sort(along, axis=None), [0] * 6 + [1] * 3, atol=1e-9)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_the_demonstrator_succeeds_at_a_human_pace(name):
    env = make_env(name)
    lengths = [finish(env, env.reset(seed=seed)[0], seed) for seed in range(12)]
    done = [length for length in lengths if length is not None]
    assert len(done) >= 11 and np.mean(done) > 30


def test_only_what_lies_between_the_walls_and_is_let_go_counts():
    task = make(DIRECTIONS[0])
    desired = np.array([0.5, 0.06, relocation.CUBE_HALF_M, 0.0])
    assert task.reached(desired + [0.05, -0.05, 0.001, 0.1], desired)
    for off in ([0, 0, 0, 0.375], [0, 0, 0.02, 0.0], [0, 0, relocation.WALL_HEIGHT_M, 0.0], [0.09, 0, 0, 0.0]):
        assert not task.reached(desired + off, desired), off


@pytest.mark.parametrize("corner", [(-1, -1), (-1, 1), (1, -1), (1, 1)])
def test_an_object_in_a_corner_is_within_reach_of_every_hand(corner):
    """Else a loop without a person would end there."""
    inner = np.array(relocation.BIN_HALF_M) - relocation.CUBE_HALF_M - 0.001
    for arm in ("panda", "ur5e"):
        env = make_env(DIRECTIONS[0], arm, settings=("task.bins_spread_m=0",))
        env.reset(seed=0)
        place = relocation.CENTRE_M + [corner[0] * inner[0], -relocation.BIN_Y_M + corner[1] * inner[1], 0.015]
        env.unwrapped.arm.unguarded.place_props({"cube": Pose(place, np.array(IDENTITY_XYZW))})
        obs, *_ = env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
        assert finish(env, obs, seed=1) is not None, (arm, corner)


@pytest.mark.parametrize("side_m", [-0.006, 0.006])
def test_a_cube_dropped_on_the_wall_between_the_bins_ends_in_one_of_them(side_m):
    """So there is no place between the two tasks; and which bin it is in is what counts."""
    env = make_env(DIRECTIONS[0], settings=("task.bins_spread_m=0",))
    env.reset(seed=0)
    twin = env.unwrapped.arm.unguarded
    twin.place_props({"cube": Pose(relocation.CENTRE_M + [0.0, side_m, 0.06], np.array(IDENTITY_XYZW))})
    for _ in range(15):
        *_, info = env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
    cube = twin.readings()["prop/cube"]
    assert np.sign(cube[1]) == np.sign(side_m) and cube[2] == pytest.approx(relocation.CUBE_HALF_M, abs=1e-3)
    assert info["success"] == (side_m > 0)
