"""The world ``ros``: number by number what one process computes, and the same tasks in real time."""

import importlib
import json
import threading

import numpy as np
import pytest

pytest.importorskip("rclpy")

from robot_rl.build import make_env
from tests.ros_graph import PATIENCE_S, arm_node, robot_rl


def play(env, seed: int, steps: int):
    """Everything that an episode of the demonstrator gives out."""
    out = [env.reset(seed=seed)]
    act = env.unwrapped.demonstrator(np.random.default_rng(seed))
    for _ in range(steps):
        action = act(out[-1][0])
        out.append(env.step(action))
        if out[-1][2] or out[-1][3]:
            break
    return out


@pytest.mark.parametrize(
    ("task", "settings", "steps"),
    [
        ("reach", [], 25),
        ("peg_insert", [], 25),
        ("pick_place", [], 40),
        ("cable_route", [], 15),
        ("maze", ["energy.budget_j=0.6"], 30),
    ],
)
def test_lock_step_gives_the_numbers_of_one_process(ros_domain, task, settings, steps):
    """Observations, rewards, costs and infos, over episodes on end; bit for bit."""
    more = [word for setting in settings for word in ("--set", setting)]
    with arm_node(ros_domain, "panda", *more, task=task, lockstep=True) as node:
        near, far = make_env(task, settings=settings), make_env(task, world="ros")
        try:
            for seed in (3, 4):
                for here, there in zip(play(near, seed, steps), play(far, seed, steps), strict=True):
                    assert here[0].keys() == there[0].keys()
                    for key, value in here[0].items():
                        np.testing.assert_array_equal(there[0][key], value, err_msg=key)
                    assert there[1:-1] == here[1:-1]
                    np.testing.assert_equal(there[-1], here[-1])
        finally:
            near.close()
            far.close()
        assert node.stop() == 0 and "WARN" not in node.log(), node.log()


@pytest.fixture(scope="module")
def real_time(module_domain):
    with arm_node(module_domain, "panda", task="reach") as process:
        yield module_domain
        assert process.stop() == 0, process.log()


def test_an_episode_in_real_time_succeeds_by_absolute_deadlines(real_time):
    """Simulated time goes on with the wall clock: steps are 0.1 s apart by the stamps of the states, less what ``late``
    tells."""
    env = make_env("reach", world="ros")
    try:
        arm = env.unwrapped.arm
        env.reset(seed=0)
        act, stamps = env.unwrapped.demonstrator(np.random.default_rng(0)), []
        obs, _ = env.reset(seed=0)
        for _ in range(50):
            obs, reward, terminated, truncated, info = env.step(act(obs))
            stamps.append(arm.read().t_s)
            if terminated or truncated:
                break
        assert terminated and info["success"] and reward == 1.0 and info["fault"] == ""
        apart = np.diff(stamps)
        # deadlines that were kept are 0.1 s apart; a state is at most as old as the busiest tick of the node
        assert np.median(apart) == pytest.approx(0.1, abs=0.05)
        assert arm.late <= len(stamps)
    finally:
        env.close()


def test_late_counts_the_deadlines_that_a_policy_missed(real_time):
    import time

    env = make_env("reach", world="ros")
    try:
        env.reset(seed=1)
        nothing = np.zeros(env.action_space.shape)
        env.step(nothing)
        before = env.unwrapped.arm.late
        time.sleep(0.15)
        env.step(nothing)
        assert env.unwrapped.arm.late == before + 1
    finally:
        env.close()


def test_reset_after_a_fault_goes_on(real_time, capsys):
    from tests.ros_graph import Commander

    env = make_env("reach", world="ros")
    try:
        env.reset(seed=2)
        with Commander(real_time) as person:
            assert person.estop(True)[0]
            nothing = np.zeros(env.action_space.shape)
            *_, truncated, info = env.step(nothing)
            while not truncated:
                *_, truncated, info = env.step(nothing)
            assert info["fault"] == "emergency stop"
            waiting = threading.Thread(target=env.reset, kwargs={"seed": 3})
            waiting.start()  # it waits for a person, and says so
            said = ""
            while "waits for a person" not in said:
                assert waiting.is_alive(), said
                waiting.join(0.05)
                said += capsys.readouterr().err
            assert waiting.is_alive()
            assert person.estop(False)[0] and person.call("clear_fault")[0]
            waiting.join(PATIENCE_S)
            assert not waiting.is_alive()
            assert env.step(nothing)[-1]["fault"] == ""
            assert person.set(watchdog__heartbeat_fault_s=1e-3)[0]  # no heart beats so fast
            truncated = False
            while not truncated:
                *_, truncated, info = env.step(nothing)
            assert info["fault"] == "heartbeat lost"
            assert person.set(watchdog__heartbeat_fault_s=0.0)[0]
            env.reset(seed=4)  # a twin's new world has no fault
            assert env.step(nothing)[-1]["fault"] == ""
    finally:
        env.close()


def test_demonstrations_are_recorded_over_ros(real_time, tmp_path):
    out = tmp_path / "demos.zarr"
    words = ["demo", "record", "--task", "reach", "--world", "ros", "--episodes", "2", "--out", str(out)]
    status, said = robot_rl(real_time, *words)
    assert status == 0 and "Traceback" not in said, said
    reader = importlib.import_module("robot_rl.store").EpisodeReader(out)
    assert len(reader) == 2 and reader.info.world == "ros"
    assert json.dumps(reader.info.task) == '"reach"'
