"""What a policy is shown of a task: cameras, and what becomes of the objects' readings; and the twins' cameras."""

import json

import numpy as np
import pytest

from robot_rl import build, run, vision
from robot_rl.demo import demonstrator_of
from robot_rl.episode import rollout
from robot_rl.find import names
from robot_rl.geometry import quat_multiply, rotvec_to_quat
from robot_rl.spaces import Encoder


def settings(**changes):
    return [f"vision.{name}={value}" for name, value in ({"cameras": "wrist,side", "size_px": 32} | changes).items()]


@pytest.fixture(scope="module")
def env():
    made = build.make_env("peg_insert", "panda", settings=settings())
    yield made
    made.close()


def test_without_cameras_nothing_is_different():
    configs = build.make_configs("reach")
    assert "vision" not in configs
    plain = build.make_env("reach")
    assert plain.observation_space == plain.task.observation_space


@pytest.mark.parametrize("objects", ["hidden", "critic", "seen"])
@pytest.mark.parametrize("task", names("tasks"))
def test_every_task_says_which_readings_are_of_objects(task, objects):
    """And all of them are found in its space; what is hidden reaches nobody, what is the critics' no actor."""
    space, _ = build.make_spaces(task, "panda", "sim", settings(objects=objects))
    whole, _ = build.make_spaces(task, "panda", "sim")
    keys = build.find("tasks", task).make(build.make_configs(task)["task"]).object_keys
    assert set(keys) <= set(whole.spaces)
    images = {"camera/wrist", "camera/side"}
    given = {"hidden": set(), "critic": {f"critic/{key}" for key in keys}, "seen": set(keys)}[objects]
    assert set(space.spaces) == (set(whole.spaces) - set(keys)) | given | images
    assert all(space[name].shape == (32, 32, 3) and space[name].dtype == np.uint8 for name in images)
    encoded = Encoder.from_space(space).space.spaces
    assert ("privileged" in encoded) == (objects == "critic" and bool(keys))


@pytest.mark.parametrize("task", names("tasks"))
def test_nothing_that_moves_with_an_object_is_left_out_of_object_keys(task):
    """The arm stays and each object is moved, one at a time: whatever else then reads otherwise would tell of it."""
    env = build.make_env(task)
    env.reset(seed=0)
    made, state, readings = env.task, env.state, env._readings()
    before = made.observe(state, readings, state)
    tools = {prop.name for prop in made.scene.props if prop.kind == "tool"}
    changed = set()
    for name in readings:
        if not name.startswith("prop/") or name.removeprefix("prop/") in tools:
            continue
        moved = readings[name] + [0.011, -0.013, 0.017, 0.0, 0.0, 0.0, 0.0]
        moved[3:] = quat_multiply(moved[3:], rotvec_to_quat(np.array([0.05, -0.04, 0.2])))
        after = made.observe(state, {**readings, name: moved}, state)
        changed |= {key for key in before if not np.array_equal(before[key], after[key])}
    env.close()
    told = {"goal"} if task == "wall_push" else set()  # its gauge is no object: the demand is told, as a person would
    assert {key for key in changed if not key.startswith("sim/")} == set(made.object_keys) | told


def test_images_are_of_now(env):
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    moved = obs
    for _ in range(5):
        moved, *_ = env.step(np.array([1.0, 0, 0, 0, 0, 0]))
    assert env.observation_space.contains(moved)
    twin = env.arm.unguarded
    for name in ("wrist", "side"):
        assert not np.array_equal(obs[f"camera/{name}"], moved[f"camera/{name}"])
        np.testing.assert_array_equal(moved[f"camera/{name}"], twin.render(32, 32, name, plain=True))


def test_the_same_seed_gives_the_same_images(env):
    first, second, other = (env.reset(seed=seed)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first["camera/wrist"], second["camera/wrist"])
    assert not np.array_equal(first["camera/wrist"], other["camera/wrist"])


def test_the_expert_sees_what_the_policy_does_not(env):
    episode, success = rollout(env, demonstrator_of(env)(np.random.default_rng(0)), seed=0)
    assert success
    assert "goal" not in episode.observation
    assert episode.observation["camera/wrist"].shape == (len(episode) + 1, 32, 32, 3)


@pytest.mark.parametrize("arm", names("sim"))
def test_the_wrist_camera_goes_with_the_hand_and_sees_tip_and_hole(arm):
    """The peg is orange, the block blue: both are in sight, and the peg stays where it is in the picture."""
    env = build.make_env("peg_insert", arm, settings=settings(size_px=64, cameras="wrist"))
    obs, _ = env.reset(seed=1)
    seen = [obs["camera/wrist"].astype(int)]
    for _ in range(4):
        obs, *_ = env.step(np.array([0.5, 0.5, 0, 0, 0, 0]))
        seen.append(obs["camera/wrist"].astype(int))
    env.close()
    red, _, blue = np.moveaxis(np.stack(seen), -1, 0)
    peg, block = red > blue + 60, blue > red + 60
    assert peg.sum((1, 2)).min() > 64 * 64 / 40 and block.sum((1, 2)).min() > 64 * 64 / 20
    assert (peg[0] ^ peg[-1]).mean() < 0.02 < (block[0] ^ block[-1]).mean()


@pytest.mark.parametrize(
    ("changes", "world", "error", "message"),
    [
        ({"cameras": "wrist,wirst"}, "sim", LookupError, "Did you mean 'wrist'"),
        ({"cameras": "wrist,wrist"}, "sim", ValueError, "cameras = wrist,wrist: name each once"),
        ({"size_px": 3}, "sim", ValueError, r"size_px = 3: give a number in \[16, 512\]"),
        ({"objects": "hiden"}, "sim", ValueError, "Did you mean 'hidden'"),
        ({}, "hardware", ValueError, "only a twin's cameras reach a policy; leave it empty in world 'hardware'"),
    ],
)
def test_what_cannot_be_is_named(changes, world, error, message):
    with pytest.raises(error, match=message):
        build.make_env("peg_insert", "panda", world, settings(**changes))


def test_goal_views_are_of_vectors():
    with pytest.raises(ValueError, match="a GoalEnv of images is not offered"):
        build.make_env("peg_insert", "panda", settings=settings(), goal=True)


def test_a_run_remembers_what_it_saw():
    chosen = run.choose("peg_insert", "panda", "sim", "drq", run.TrainConfig(), settings(objects="critic"))
    again = run.from_description(json.loads(json.dumps(run.describe(chosen))), "here")
    assert build.make_configs("peg_insert", settings=again.settings)["vision"] == vision.Config(
        ("wrist", "side"), 32, "critic"
    )
    blind = run.choose("peg_insert", "panda", "sim", "drq", run.TrainConfig())
    again = run.from_description(json.loads(json.dumps(run.describe(blind))), "here")
    assert not any(setting.startswith("vision.") for setting in again.settings)
