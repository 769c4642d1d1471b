"""What other people's tools meet: Gymnasium ids, and Stable-Baselines3 unmodified."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest

import robot_rl.envs  # noqa: F401  (registers the ids)


def test_gymnasium_makes_a_task_by_its_id_alone():
    code = (
        "import gymnasium; env = gymnasium.make('robot_rl.envs:robot_rl/PegInsert-v0', arm='ur5e');"
        "print(env.reset(seed=0)[0].keys())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "tcp_pose" in out.stdout, out.stderr


def test_settings_pass_through_make():
    env = gymnasium.make("robot_rl/Reach-v0", settings=("task.max_steps=3",))
    env.reset(seed=0)
    ends = [env.step(np.zeros(6, np.float32))[3] for _ in range(3)]
    assert ends == [False, False, True]


def test_stable_baselines3_trains_on_the_plain_and_the_goal_view():
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.env_checker import check_env

    env = gymnasium.make("robot_rl/PegInsert-v0")
    check_env(env.unwrapped, warn=False)
    model = sb3.SAC("MultiInputPolicy", env, learning_starts=20, batch_size=16, seed=0, device="cpu")
    before = [p.detach().clone() for p in model.actor.parameters()]
    model.learn(60)
    assert any(
        not np.array_equal(a.numpy(), b.detach().numpy()) for a, b in zip(before, model.actor.parameters(), strict=True)
    )

    goal_env = gymnasium.make("robot_rl/ReachGoal-v0")
    hindsight = sb3.SAC(
        "MultiInputPolicy",
        goal_env,
        replay_buffer_class=sb3.HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": 4, "goal_selection_strategy": "future"},
        learning_starts=60,
        batch_size=32,
        seed=0,
        device="cpu",
    )
    hindsight.learn(120)
    rewards = hindsight.replay_buffer.sample(256).rewards.numpy()
    assert set(np.unique(rewards)) == {0.0, 1.0}, "relabelled goals have to be rewarded"
