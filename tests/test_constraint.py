"""Costs: what the constrained agents learn of them, what they do about it, and how a cost travels to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from robot_rl import checkpoint, cli, run, train
from robot_rl.agents import _constraint, rlpd, sac
from robot_rl.episode import cost_of
from robot_rl.evaluate import evaluate
from robot_rl.log import read_columns
from robot_rl.run import TrainConfig, choose
from robot_rl.store import EpisodeReader
from robot_rl.types import Transition
from tests.test_train import assert_same_training

TESTS = Path(__file__).parent
STATES = spaces.Dict(state=spaces.Box(-1.0, 1.0, (5,), np.float32))
ACTIONS = spaces.Box(-1.0, 1.0, (3,), np.float32)
CONSTRAINTS = ("lagrangian", "recovery")


def build(constraint: str, seed: int = 0, module: Any = sac, **settings: Any) -> sac.SAC:
    return module.make(module.Config(hidden=(16, 16), constraint=constraint, **settings), STATES, ACTIONS, seed)


def batch_of(seed: int = 0, shape: tuple[int, int] = (4, 16), cost: float | None = None) -> Transition:
    rng = np.random.default_rng(seed)

    def draw(*size: int) -> np.ndarray:
        return rng.uniform(-1, 1, (*shape, *size)).astype(np.float32)

    obs, action, reward, next_obs = {"state": draw(5)}, draw(3), draw(), {"state": draw(5)}
    costs = np.square(draw()) if cost is None else np.full(shape, cost, np.float32)
    return Transition(obs, action, reward, np.ones(shape, np.float32), next_obs, {"cost": costs, "proposed": action})


def same(a: Any, b: Any) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(np.array_equal(x, y) for x, y in leaves)


def parts(agent: sac.SAC) -> dict[str, Any]:
    return {name: getattr(agent, name) for name in ("actor", "critic", "target", "temperature", "key")}


# ---------------------------------------------------------------------------------------------------------------------
# The agent


def test_nothing_is_added_where_nothing_is_constrained() -> None:
    agent = build("none")
    assert agent.cost is None and agent.stored == {}
    assert not [path for path, _ in jax.tree.leaves_with_path(agent) if "cost" in jax.tree_util.keystr(path)]
    plain = agent.update(batch_of()._replace(extra=None))
    assert same(agent.update(batch_of()), plain)  # a cost in the batch is not looked at
    assert plain[1].keys() == {"actor_loss", "critic_loss", "entropy", "q", "q_std", "temperature"}


@pytest.mark.parametrize(
    "idle", [{"constraint": "lagrangian", "init_multiplier": 0.0, "cost_limit": 1e6}, {"constraint": "recovery"}]
)
def test_a_constraint_draws_no_number_of_the_others(idle: dict[str, Any]) -> None:
    """One that never takes effect leaves every other network as it is without: they begin and draw alike."""
    free, bound = build("none"), build(**idle)
    assert same(parts(free), parts(bound))
    for seed in range(2):
        free, bound = free.update(batch_of(seed))[0], bound.update(batch_of(seed))[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), parts(free), parts(bound))


@pytest.mark.parametrize(
    ("constraint", "truth"), [("lagrangian", 0.3 / (1 - 0.8)), ("recovery", 0.3 / (1 - 0.7 * 0.8))]
)
def test_critics_find_what_a_constant_cost_sums_up_to(constraint: str, truth: float) -> None:
    agent = build(constraint, cost_discount=0.8, polyak=0.1, critic_learning_rate=3e-3)
    ended = batch_of(cost=0.3)
    ended = ended._replace(discount=np.zeros_like(ended.discount))
    end = build(constraint, cost_discount=0.8, polyak=0.1, critic_learning_rate=3e-3)
    for seed in range(80):
        agent, metrics = agent.update(batch_of(seed, cost=0.3))
        end, end_metrics = end.update(ended)
    assert 0.9 * truth < float(metrics["cost_q"]) < 1.2 * truth  # the greater of two critics errs upwards
    assert float(end_metrics["cost_q"]) == pytest.approx(0.3, rel=0.05)  # after a true end nothing costs
    if constraint == "lagrangian":
        assert 0.9 * 0.3 < float(metrics["expected_cost"]) < 1.2 * 0.3  # per step again


def test_the_multiplier_rises_above_the_limit_and_falls_to_0_below() -> None:
    agent = build("lagrangian", cost_limit=0.02, init_multiplier=0.5, multiplier_learning_rate=1.0)
    multipliers = [float(agent.update(batch_of(cost=0.0))[1]["multiplier"])]
    for seed in range(60):
        agent, metrics = agent.update(batch_of(seed, cost=1.0))
        multipliers.append(float(metrics["multiplier"]))
    assert multipliers[0] < 0.5 < multipliers[-1] and float(metrics["expected_cost"]) > 0.02
    agent = build("lagrangian", cost_limit=0.02, init_multiplier=0.5, multiplier_learning_rate=1.0)
    for seed in range(60):
        agent, metrics = agent.update(batch_of(seed, cost=0.0))
    assert float(metrics["multiplier"]) == 0.0 and float(metrics["expected_cost"]) < 0.02


def test_a_large_multiplier_keeps_the_actor_off_what_costs() -> None:
    """Cost falls with the first action number and reward does not tell: the policy goes up in it."""
    agent = build("lagrangian", init_multiplier=100.0, actor_learning_rate=3e-3, critic_learning_rate=3e-3)
    for seed in range(60):
        batch = batch_of(seed)
        cost = (0.5 - 0.5 * batch.action[..., 0]).astype(np.float32)
        agent, _ = agent.update(batch._replace(reward=np.zeros_like(cost), extra={"cost": cost}))
    action, _, _ = agent.act({"state": batch_of().obs["state"][0]}, None, np.zeros(2, np.uint32), False)
    assert np.all(np.asarray(action)[:, 0] > 0.5)


def test_recovery_replaces_what_is_risky_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the first action number for a risk: what is under the threshold stays, the rest becomes the least."""
    monkeypatch.setattr(_constraint, "evaluate", lambda params, network, state, action: action[..., 0])
    proposed = jnp.array([[0.1, 0.9], [0.2, 0.3], [0.9, -0.4], [-1.0, 0.0], [jnp.nan, 0.0]])
    state, mean, log_std = jnp.zeros((5, 4)), jnp.full((5, 2), 0.5), jnp.full((5, 2), -3.0)
    key = np.array([0, 3], np.uint32)

    def recover(rows: Any) -> jax.Array:
        values = (state[rows], proposed[rows], mean[rows], log_std[rows])
        return _constraint.recover(None, sac.nets.Critic(), *values, key, 0.2, 64)

    action = recover(slice(None))
    np.testing.assert_array_equal(action[:2], proposed[:2])
    np.testing.assert_array_equal(action[3], proposed[3])
    assert -1.0 <= action[2, 0] < -0.8  # of 32 uniform ones; those of the policy are near 0.46
    assert jnp.isnan(action[4, 0])  # training is to stop at it, not to go on with something else
    np.testing.assert_array_equal(recover(2), action[2])  # alone as in a batch
    np.testing.assert_array_equal(recover(slice(None)), action)


def test_recovery_acts_on_what_its_critic_learned() -> None:
    """Upward in the first number costs: the policy's proposal is kept below, and replaced above, the threshold."""
    agent = build("recovery", cost_discount=0.0, critic_learning_rate=3e-3, actor_learning_rate=0.0)
    states = {"state": batch_of().obs["state"][0]}
    before, _, extra = agent.act(states, None, np.array([0, 1], np.uint32), True)
    np.testing.assert_array_equal(before, extra["proposed"])  # no cost is expected before one was seen
    for seed in range(80):
        batch = batch_of(seed, shape=(4, 64))
        agent, metrics = agent.update(
            batch._replace(extra={**batch.extra, "cost": (batch.action[..., 0] > 0).astype(np.float32)})
        )
    assert float(metrics["recovered"]) == 0.0  # of the batch, where all was done as proposed
    action, _, extra = agent.act(states, None, np.array([0, 1], np.uint32), True)
    action, proposed = np.asarray(action), np.asarray(extra["proposed"])
    np.testing.assert_array_equal(proposed, extra["proposed"])
    up, down = proposed[:, 0] > 0.3, proposed[:, 0] < -0.3
    assert up.any() and down.any()
    np.testing.assert_array_equal(action[down], proposed[down])
    assert np.all(action[up, 0] < 0.0) and np.all(np.abs(action) <= 1.0)


def test_a_deterministic_recovery_ignores_the_key_and_travels_whole() -> None:
    learner = build("recovery", risk_threshold=0.0)
    for seed in range(3):
        learner, _ = learner.update(batch_of(seed, cost=1.0))
    obs = {"state": np.ones(5, np.float32)}
    action, _, extra = learner.act(obs, None, np.array([0, 1], np.uint32), False)
    assert not np.array_equal(action, extra["proposed"])
    np.testing.assert_array_equal(action, learner.act(obs, None, np.array([5, 2], np.uint32), False)[0])
    moved = build("recovery", seed=7, risk_threshold=0.0).with_policy(learner.policy)
    np.testing.assert_array_equal(action, moved.act(obs, None, np.array([0, 1], np.uint32), False)[0])
    assert same(moved.policy, learner.policy)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_save_and_resume_equal_no_break(constraint: str, tmp_path: Path) -> None:
    straight = half = build(constraint, module=rlpd)
    for seed in range(4):
        straight, _ = straight.update(batch_of(seed))
    for seed in range(2):
        half, _ = half.update(batch_of(seed))
    checkpoint.save(tmp_path / "agent", half)
    resumed = checkpoint.load(tmp_path / "agent", build(constraint, seed=9, module=rlpd))
    for seed in (2, 3):
        resumed, _ = resumed.update(batch_of(seed))
    assert same(straight, resumed) and resumed.cost is not None
    with pytest.raises(ValueError, match=r"does not fit this agent: '\.cost"):
        checkpoint.load(tmp_path / "agent", build("none", module=rlpd))


@pytest.mark.parametrize(("constraint", "name"), [("lagrangian", "cost"), ("recovery", "proposed")])
def test_a_batch_without_is_refused(constraint: str, name: str) -> None:
    batch = batch_of()
    del batch.extra[name]
    with pytest.raises(ValueError, match=f"batch.extra lacks '{name}', which constraint = '{constraint}' learns from"):
        build(constraint).update(batch)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_a_cost_that_is_no_number_shows_in_the_metrics(constraint: str) -> None:
    _, metrics = build(constraint).update(batch_of(cost=np.nan))
    assert np.isnan(metrics["cost_critic_loss"])  # and training stops at a metric that is not finite


# ---------------------------------------------------------------------------------------------------------------------
# From the environment to the agent


@pytest.fixture(autouse=True)
def _tiny_env_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TESTS))


def fast(constraint: str, agent: str = "sac", env: str = "Fast-v0", demos: Path | None = None, **changes: Any) -> Any:
    config = TrainConfig(**{"steps": 500, "eval_episodes": 10, "demo_episodes": 4} | changes)
    settings = ["hidden=32,32", "batch_size=64", "utd_ratio=2", "discount=0.9", "polyak=0.02", "critics=2"]
    settings += [f"{name}_learning_rate=3e-3" for name in ("actor", "critic", "temperature")]
    settings += ["init_temperature=0.1", f"constraint={constraint}"]
    settings += ["init_multiplier=1.0", "multiplier_learning_rate=0.05"]  # it has 450 updates to find its place
    settings += ["start_steps=50", "learning_starts=50"] if agent == "sac" else []
    chosen = [f"agent.{text}" for text in settings]
    return choose(f"tiny_env:{env}", "", "gym", agent, config, chosen, str(demos) if demos else None)


def test_constrained_agents_learn_the_cheap_way(tmp_path: Path) -> None:
    """Full speed pays 1 a step and costs 1; half the speed pays half and costs nothing."""
    results = {name: train.train(fast(name), tmp_path / name) for name in ("none", *CONSTRAINTS)}
    assert results["none"]["mean_cost"] > 0.8 and results["none"]["mean_return"] > 7.0
    for name in CONSTRAINTS:
        assert results[name]["mean_cost"] <= 0.05, name
        assert results[name]["mean_return"] > 2.5, name  # and does not just stand still
    assert json.loads((tmp_path / "none/summary.json").read_text())["mean_cost"] == results["none"]["mean_cost"]
    columns = {name: read_columns(tmp_path / name / "metrics.csv") for name in results}
    assert all(0.0 <= cost <= 1.0 for cost in columns["none"]["cost"]) and max(columns["none"]["cost"]) > 0.8
    assert {"multiplier", "expected_cost"} <= columns["lagrangian"].keys()
    assert max(columns["recovery"]["recovered"][-10:]) > 0.0
    assert not {"multiplier", "recovered", "cost_q"} & columns["none"].keys()


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_demonstrations_of_a_costly_way_do_not_hold_the_agent_to_it(constraint: str, tmp_path: Path) -> None:
    summary = train.train(fast(constraint, "rlpd"), tmp_path / "run")
    shown = np.concatenate([episode.cost for episode in EpisodeReader(tmp_path / "run/demos.zarr")])
    assert shown.mean() > 0.2
    assert summary["mean_cost"] <= 0.05 and summary["mean_return"] > 2.5


@pytest.mark.parametrize(("agent", "constraint"), [("sac", "lagrangian"), ("rlpd", "recovery")])
def test_resuming_gives_the_same_numbers(agent: str, constraint: str, tmp_path: Path) -> None:
    changes = {"eval_every": 40, "eval_every_episodes": 2, "checkpoint_every": 60}
    train.train(fast(constraint, agent, steps=300, **changes), tmp_path / "whole")
    train.train(fast(constraint, agent, steps=240, **changes), tmp_path / "parts")
    train.resume(tmp_path / "parts", steps=300)
    assert_same_training(tmp_path / "whole", tmp_path / "parts")
    assert "eval_cost" in read_columns(tmp_path / "whole/metrics.csv")


def test_evaluation_tells_the_mean_cost_per_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.train(fast("none", steps=60), tmp_path / "told")
    _, env, encoder, agent = run.load_agent(tmp_path / "told")
    costs: list[float] = []
    real = env.step

    def step(action: Any) -> Any:
        result = real(action)
        costs.append(result[4]["cost"])
        return result

    env.step = step
    assert evaluate(env, agent, encoder, 3, seed=0).mean_cost == pytest.approx(np.mean(costs))
    assert evaluate(env, agent, encoder, 0, seed=0).mean_cost is None
    capsys.readouterr()
    assert cli.main(["eval", str(tmp_path / "told"), "--episodes", "2"]) == 0
    assert "mean cost" in capsys.readouterr().out


def test_an_environment_without_costs_is_refused_only_where_they_are_needed(tmp_path: Path) -> None:
    summary = train.train(fast("none", env="FastSilent-v0", steps=60), tmp_path / "free")
    assert summary["mean_cost"] is None and "cost" not in read_columns(tmp_path / "free/metrics.csv")
    with pytest.raises(ValueError, match=r"reports no info\['cost'\].* --set agent.constraint=none"):
        train.train(fast("lagrangian", env="FastSilent-v0", steps=60), tmp_path / "bound")


def test_demonstrations_bring_their_costs_and_must(tmp_path: Path) -> None:
    train.train(fast("none", "rlpd", steps=10), tmp_path / "first")
    demos = tmp_path / "first/demos.zarr"
    for episode in EpisodeReader(demos):
        np.testing.assert_array_equal(episode.cost, (episode.observation["speed"][1:, 0] > 0.5).astype(np.float32))
    about = json.loads((demos / "zarr.json").read_text())
    del about["attributes"]["costs"]  # as an earlier version wrote it
    (demos / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"kept no costs.* record it again"):
        train.train(fast("recovery", "rlpd", demos=demos), tmp_path / "bound")
    assert not (tmp_path / "bound").exists()
    assert train.train(fast("none", "rlpd", demos=demos, steps=10), tmp_path / "free")["demo_episodes"] == 4


@pytest.mark.parametrize("info", [{"cost": np.nan}, {"cost": np.inf}, {"cost": "much"}, {"cost": np.ones(2)}])
def test_a_cost_has_to_be_a_finite_number(info: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"info\['cost'\] is .* one finite number per step"):
        cost_of(info)
    assert cost_of({}) is None and cost_of({"cost": np.float32(0.5)}) == 0.5
