"""A classifier as the success of an environment."""

import csv
import json

import jax
import numpy as np
import pytest

from robot_rl import build, encoders, run
from robot_rl.episode import rollout, success_of, truth_of
from robot_rl.evaluate import evaluate
from robot_rl.reward import classifier as classifiers
from robot_rl.reward.classifier import Classifier
from robot_rl.reward.judge import Config, Judge
from robot_rl.reward.labels import LabelSet
from robot_rl.reward.network import make_network, prepare
from robot_rl.train import resume, train
from tests.reward_sets import linear_classifier

HEIGHT = {"height": ((1,), "float32"), "sim/hidden": ((1,), "float32")}


def at(height):
    return {"height": np.array([height], np.float32), "sim/hidden": np.zeros(1, np.float32)}


def saved(folder, **kwargs):
    classifiers.save(linear_classifier("height", [4.0], 0.0, **kwargs), folder)
    return str(folder)


def test_success_has_to_be_held_and_is_of_one_episode(tmp_path):
    judge = Judge(Config(saved(tmp_path / "c", hold_steps=3)), HEIGHT)
    judge.reset()
    assert [judge(at(h)) for h in (1, 1, -1, 1, 1, 1, 1, -1)] == [False] * 5 + [True, True, False]
    judge.reset()
    assert [judge(at(h)) for h in (1, 1)] == [False, False]
    judge.reset()
    assert [judge(at(h)) for h in (1, -1)] == [False, False]  # what the last episode held is forgotten


def test_threshold_and_hold_of_the_settings_win(tmp_path):
    path = saved(tmp_path / "c", hold_steps=3, threshold=0.5)
    judge = Judge(Config(path, threshold=0.99, hold_steps=1), HEIGHT)
    judge.reset()
    assert not judge(at(1.0)) and judge(at(2.0)) and judge.probability > 0.99


def test_a_newer_version_is_taken_over_between_episodes(tmp_path):
    folder = tmp_path / "c"
    judge, pinned = Judge(Config(saved(folder)), HEIGHT), Judge(Config(str(folder / "000001.ckpt")), HEIGHT)
    judge.reset()
    assert judge(at(1.0))
    classifiers.save(linear_classifier("height", [-4.0], 0.0), folder)
    assert judge(at(1.0)) and judge.info()["classifier_version"] == 1  # not in the middle of an episode
    judge.reset()
    pinned.reset()
    assert not judge(at(1.0)) and judge.info()["classifier_version"] == 2
    assert pinned(at(1.0)) and pinned.version == 1


def test_the_frames_that_decided_an_episode_are_kept_for_review(tmp_path):
    config = Config(saved(tmp_path / "c"), review=str(tmp_path / "review.zarr"))
    judge = Judge(config, HEIGHT, {"task": "toy"})
    judge.reset(7)
    for height in (-3.0, 0.5, -1.0, 2.0, -2.0, 1.0):
        judge(at(height), truth=height > 1.5)
    judge.reset(8)
    judge(at(0.0))
    judge.close()
    labels = LabelSet(tmp_path / "review.zarr")
    assert "sim/hidden" not in labels.observation
    frames = labels.frames(known=False)
    first = frames.take(frames.step >= 0).observation["height"][:, 0].tolist()
    assert first == [0.5, -1.0, 2.0, 1.0, 0.0]  # the four surest of the first episode, in order
    assert frames.label.tolist() == [0, 0, 1, 0, -1]
    assert [origin.seed for origin in labels.origins().values()] == [7, 8]


def test_another_observation_is_refused_before_anything_starts(tmp_path):
    path = saved(tmp_path / "c")
    with pytest.raises(ValueError, match=r"reward.classifier = .*trained on other observations .'height' is float32"):
        build.make_env("reach", settings=[f"reward.classifier={path}"])
    with pytest.raises(FileNotFoundError, match="train one, robot-rl reward train"):
        build.make_env("reach", settings=[f"reward.classifier={tmp_path / 'none'}"])


def test_settings_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"threshold = 0.5: it is of a classifier"):
        build.make_configs("reach", settings=["reward.threshold=0.5"])
    with pytest.raises(ValueError, match=r"reward: threshold = 1.5: give a number in"):
        build.make_configs("reach", settings=["reward.classifier=c", "reward.threshold=1.5"])
    with pytest.raises(ValueError, match=r"leave out one of task.reward_kind and reward.classifier"):
        build.make_configs("peg_insert", settings=["reward.classifier=c", "task.reward_kind=shaped"])
    assert "reward" not in build.make_configs("reach")


def untrained(camera, size, folder):
    """A classifier of one camera as it is before training."""
    fields = {camera: ((size, size, 3), "uint8")}
    preprocessing = prepare(fields, (), (), size, {})
    network = make_network(preprocessing, encoders.Settings(latent=4), 4)
    params = jax.tree.map(lambda leaf: leaf[None], network.init(preprocessing, np.random.default_rng(0)))
    classifiers.save(Classifier(preprocessing, network, params, 1.0, 0.99, 2), folder)
    return folder


def test_it_looks_at_a_camera_that_the_policy_is_not_shown(tmp_path):
    path = untrained("camera/wrist", 32, tmp_path / "c")
    words = [f"reward.classifier={path}", f"reward.review={tmp_path / 'review.zarr'}"]
    env = build.make_env("reach", settings=words)
    obs, info = env.reset(seed=0)
    assert "camera/wrist" not in obs and 0.0 < info["success_probability"] < 1.0
    for _ in range(5):
        *_, info = env.step(np.full(env.action_space.shape, 0.9))
    env.close()
    frames = LabelSet(tmp_path / "review.zarr").frames()
    assert frames.observation["camera/wrist"].shape == (4, 32, 32, 3) and frames.observation["camera/wrist"].std() > 5.0


def test_a_picture_of_another_size_is_refused(tmp_path):
    path = untrained("camera/wrist", 32, tmp_path / "c")
    words = [f"reward.classifier={path}", "vision.cameras=wrist", "vision.size_px=48"]
    with pytest.raises(ValueError, match=r"'camera/wrist' is uint8\[32, 32, 3\] there and uint8\[48, 48, 3\] here"):
        build.make_env("reach", settings=words)
    env = build.make_env("reach", settings=[*words[:2], "vision.size_px=32"])
    assert "camera/wrist" in env.reset(seed=0)[0]
    assert env.step(np.zeros(env.action_space.shape))[-1]["classifier_version"] == 1
    env.close()


@pytest.fixture
def above(tmp_path):
    """A classifier for ``reach`` that calls every frame a success, from the second on."""
    env = build.make_env("reach")
    key = "tcp_pose"
    size = env.observation_space[key].shape[0]
    env.close()
    classifiers.save(linear_classifier(key, [0.0] * size, 5.0, hold_steps=3), tmp_path / "always")
    return tmp_path / "always"


def test_an_environment_asks_it_instead_of_its_task(above):
    env = build.make_env("reach", settings=[f"reward.classifier={above}"])
    _, info = env.reset(seed=0)
    assert not info["success"] and not info["true_success"]
    still = np.zeros(env.action_space.shape)
    _, reward, terminated, truncated, info = env.step(still)
    assert (reward, terminated, truncated, info["success"]) == (0.0, False, False, False)
    _, reward, terminated, truncated, info = env.step(still)
    assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)
    assert info["reward_terms"] == {"success": 1.0} and info["true_success"] is False
    assert info["success_probability"] == pytest.approx(1 / (1 + np.exp(-5.0)), abs=1e-5)
    assert success_of(info) is True and truth_of(info) is False
    env.close()


def test_an_evaluation_counts_the_truth(above):
    chosen = run.choose(
        "reach", "panda", "sim", "sac", run.TrainConfig(), [f"reward.classifier={above}", "agent.hidden=8"]
    )
    env = run.make_env(chosen)
    encoder, agent = run.make_agent(chosen, env)
    result = evaluate(env, agent, encoder, 2, seed=0)
    assert result.success_rate == 0.0 and result.mean_return == 1.0 and result.mean_length == 2.0
    played = rollout(env, lambda obs: np.zeros(env.action_space.shape), 0)
    assert played is not None and played[1] is False and not played[0].success.any() and played[0].terminated[-1]
    env.close()


def test_a_run_says_what_judged_it_and_goes_on_with_it(above, tmp_path, monkeypatch):
    monkeypatch.chdir(above.parent)
    settings = ["reward.classifier=always", "agent.hidden=8", "agent.batch_size=8", "agent.start_steps=4"]
    config = run.TrainConfig(steps=6, eval_episodes=1, tracker="none")
    chosen = run.choose("reach", "panda", "sim", "sac", config, [*settings, "agent.learning_starts=4"])
    train(chosen, tmp_path / "run")
    about = json.loads((tmp_path / "run/run.json").read_text())["configs"]["reward"]
    assert about["classifier"] == str(above) and about["hold_steps"] is None
    monkeypatch.chdir("/")  # a run goes on wherever that is asked for
    summary = resume(tmp_path / "run", 8)
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").open()))
    assert [row["classifier_version"] for row in rows] == ["1"] * 4 and rows[-1]["env_steps"] == "8"
    assert {row["success"] for row in rows} == {"1"} and {row["true_success"] for row in rows} == {"0"}
    assert summary["success_rate"] == 0.0 and summary["mean_return"] == 1.0
    (above / "000001.ckpt").rename(above / "away")
    with pytest.raises(FileNotFoundError, match="holds no classifier"):
        resume(tmp_path / "run", 10)
