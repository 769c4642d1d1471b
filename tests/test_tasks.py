"""Every task on every arm: Gymnasium's contract, seeds bit for bit, honest time-outs, demonstrators that work."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from robot_rl.build import make_env
from robot_rl.env import public
from robot_rl.envs import env_id
from robot_rl.find import names
from sim import _twin  # noqa: F401  (fails early and clearly where MuJoCo is missing)

TASKS, ARMS = names("tasks"), names("sim")


def play(env, seed: int, actions=None) -> list[dict[str, np.ndarray]]:
    """Observations of one episode, with the demonstrator's actions unless others are given."""
    obs, _ = env.reset(seed=seed)
    expert = env.unwrapped.demonstrator(np.random.default_rng(seed))
    seen = [obs]
    for step in range(env.unwrapped.task.max_steps):
        action = expert(obs) if actions is None else actions[step]
        obs, reward, terminated, truncated, info = env.step(action)
        seen.append(obs | {"reward": np.array(reward), "success": np.array(info["success"])})
        if terminated or truncated:
            break
    return seen


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("goal", [False, True])
def test_gymnasium_is_content(task, goal):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Goals are unbounded by nature; Gymnasium advises against it and says so.
        warnings.filterwarnings("ignore", message=".*(minimum|maximum) value is.*infinity")
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version.*")
        env = gymnasium.make(env_id(task, goal))
        check_env(env if goal else env.unwrapped, skip_render_check=True)
    env.close()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("arm", ARMS)
def test_the_demonstrator_succeeds_through_the_same_step(task, arm):
    env = make_env(task, arm)
    ends = [play(env, seed)[-1] for seed in range(10)]
    assert sum(bool(end["success"]) for end in ends) >= 9


@pytest.mark.parametrize("task", TASKS)
def test_same_seed_same_episode_bit_for_bit(task):
    first = play(make_env(task), seed=3)
    env = make_env(task)
    play(env, seed=4)  # another episode before must leave no trace
    second = play(env, seed=3)
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert np.array_equal(a[key], b[key]), key
    goals = []
    for seed in (3, 5):
        env.reset(seed=seed)
        goals.append(env.unwrapped.task.goal(env.unwrapped.private_obs)[1])
    assert not np.array_equal(*goals)


@pytest.mark.parametrize("task", TASKS)
def test_a_time_out_truncates_and_never_terminates(task):
    env = make_env(task, settings=("task.max_steps=4",))
    env.reset(seed=0)
    for step in range(4):
        _, reward, terminated, truncated, info = env.step(np.zeros(env.action_space.shape))
        assert not terminated and reward == 0.0 and not info["success"]
        assert truncated == (step == 3)


@pytest.mark.parametrize("task", TASKS)
def test_success_terminates_and_pays_one(task):
    env = make_env(task)
    env.reset(seed=0)
    end = play(env, seed=0)
    assert bool(end[-1]["success"]) and end[-1]["reward"] == 1.0
    assert all(step["reward"] == 0.0 for step in end[1:-1])


@pytest.mark.parametrize("task", TASKS)
def test_random_actions_keep_every_number_in_its_space(task):
    env = make_env(task)
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    for _ in range(200):
        obs, reward, terminated, truncated, info = env.step(rng.uniform(-1, 1, env.action_space.shape))
        assert env.observation_space.contains(obs)
        assert np.isfinite(reward) and reward == sum(info["reward_terms"].values())
        if terminated or truncated:
            env.reset(seed=int(rng.integers(1000)))


@pytest.mark.parametrize("task", TASKS)
def test_a_zero_action_holds_the_arm(task):
    env = make_env(task)
    env.reset(seed=1)
    before = env.unwrapped.arm.read()
    action = np.zeros(env.action_space.shape)
    if len(action) == 7:
        action[6] = -1.0
    for _ in range(10):
        env.step(action)
    after = env.unwrapped.arm.read()
    assert np.linalg.norm(after.tcp_pos_m - before.tcp_pos_m) < 1e-3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_action_that_is_not_finite_is_refused_before_anything_moves(bad):
    env = make_env("reach")
    env.reset(seed=0)
    before = env.unwrapped.arm.read()
    with pytest.raises(ValueError, match="finite"):
        env.step(np.array([0, 0, bad, 0, 0, 0]))
    after = env.unwrapped.arm.read()
    assert after.t_s == before.t_s and np.array_equal(after.q_rad, before.q_rad)
    env.step(np.zeros(6))  # and it goes on


def test_a_misshapen_action_and_a_step_before_reset_are_refused():
    env = make_env("reach")
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros(6))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"\(7,\).*\(6,\)"):
        env.step(np.zeros(7))


@pytest.mark.parametrize("task", TASKS)
def test_goal_view_rewards_agree_with_the_task(task):
    """compute_reward on stored goals, alone and in a batch, gives what step gave."""
    env = make_env(task, goal=True)
    obs, _ = env.reset(seed=2)
    expert = env.unwrapped.demonstrator(np.random.default_rng(2))
    achieved, desired, rewards = [], [], []
    for _ in range(env.unwrapped.task.max_steps):
        obs, reward, terminated, truncated, _ = env.step(expert(env.unwrapped.private_obs))
        achieved.append(obs["achieved_goal"])
        desired.append(obs["desired_goal"])
        rewards.append(reward)
        assert env.unwrapped.task.success(env.unwrapped.private_obs) == (reward == 1.0)
        if terminated or truncated:
            break
    batch = env.compute_reward(np.array(achieved), np.array(desired), [{}] * len(rewards))
    np.testing.assert_array_equal(batch, rewards)
    assert rewards[-1] == 1.0
    relabelled = env.compute_reward(np.array(achieved), np.array(achieved), None)
    assert relabelled[-1] == 1.0


@pytest.mark.parametrize("task", TASKS)
def test_the_goal_views_observation_does_not_show_the_goal(task):
    """Else a relabelled transition would show the old goal beside the new one."""
    env = make_env(task, goal=True)
    obs, _ = env.reset(seed=0)
    arm_env = env.unwrapped
    for key in arm_env.task.goal_keys:
        arm_env._obs[key] = arm_env._obs[key] + 0.01
    changed = env._view(public(arm_env._obs, arm_env.observation_space))
    np.testing.assert_array_equal(changed["observation"], obs["observation"])
    assert all("goal" not in key for key in env._keys)


def test_a_control_rate_the_twin_cannot_keep_is_refused_at_once():
    with pytest.raises(ValueError, match="multiple"):
        make_env("reach", settings=("task.control_hz=7",))
    with pytest.raises(ValueError, match="lock-step"):
        make_env("reach", settings=("guard.control_hz=500",))


def test_a_seat_that_could_be_the_rim_is_refused():
    with pytest.raises(ValueError, match="seated_m"):
        make_env("peg_insert", settings=("task.depth_m=0.005", "task.seated_m=0.01"))


def test_a_shaped_reward_is_an_option_and_changes_no_success():
    for task in TASKS:
        env = make_env(task, settings=("task.reward_kind=shaped",))
        seen = play(env, seed=0)
        assert any(0.0 < step["reward"] < 1.0 for step in seen[1:-1])
        assert bool(seen[-1]["success"])


def test_the_hole_is_drawn_within_its_spread_and_the_fit_is_tight():
    env = make_env("peg_insert")
    task = env.unwrapped.task
    starts = [task.reset(np.random.default_rng(seed)) for seed in range(300)]
    holes = np.array([start.props["hole"].pos_m for start in starts])
    yaws = np.array([2 * np.arctan2(*start.props["hole"].quat_xyzw[[2, 3]]) for start in starts])
    assert np.abs(holes[:, 0] - 0.5).max() <= 0.02 and np.abs(holes[:, 1]).max() <= 0.02
    assert holes[:, 0].std() > 0.009 and np.abs(yaws).max() <= np.deg2rad(10.0) and yaws.std() > 0.08
    assert task.config.clearance_m <= 0.0005


def test_a_misaligned_peg_stays_on_the_rim():
    """Contact is real: pressed 2 mm off the axis the peg does not enter, and is not called seated."""
    env = make_env("peg_insert", settings=("task.start_spread_m=0", "task.start_spread_rad=0"))
    env.reset(seed=0)
    for _ in range(60):
        goal = env.unwrapped.private_obs["goal"]
        move = np.array([*(goal[:2] + [0.002, 0.0]) / 0.01, 0.5, *goal[3:] / 0.05])
        _, _, terminated, truncated, info = env.step(np.clip(move, -1, 1))
        if terminated or truncated:
            break
    assert not info["success"]
    assert env.unwrapped.private_obs["goal"][2] > 0.02, "the tip is still at the rim, 25 mm above the bottom"


@pytest.mark.parametrize("world", ["peg_insert"])
def test_unknown_names_say_what_there_is(world):
    with pytest.raises(LookupError, match="Did you mean 'peg_insert'"):
        make_env("peg_inset")
    with pytest.raises(LookupError, match="panda"):
        make_env(world, "pandas")
    with pytest.raises(LookupError, match="sim"):
        make_env(world, world="simm")
    with pytest.raises(ValueError, match="Did you mean 'max_steps'"):
        make_env(world, settings=("task.max_step=3",))
    with pytest.raises(ValueError, match="max_steps = 0"):
        make_env(world, settings=("task.max_steps=0",))
    with pytest.raises(ValueError, match="section"):
        make_env(world, settings=("tsk.max_steps=3",))
