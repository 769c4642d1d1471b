"""Agents that see: who trains the encoder, what lags, what is shifted, who is given what, and that runs repeat."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from robot_rl import augment, checkpoint, encoders
from robot_rl.agents import bc, drq, sac
from robot_rl.find import find
from robot_rl.types import Transition
from tests.test_agents import key, same

SIDE = 16
IMAGE = spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
SPACE = spaces.Dict(
    {
        "state": spaces.Box(-1.0, 1.0, (5,), np.float32),
        "privileged": spaces.Box(-1.0, 1.0, (2,), np.float32),
        "camera/wrist": IMAGE,
    }
)
ACTIONS = spaces.Box(-1.0, 1.0, (3,), np.float32)


def observation(rng, shape=()):
    vectors = {name: rng.uniform(-1, 1, (*shape, SPACE[name].shape[0])) for name in ("state", "privileged")}
    return {name: value.astype(np.float32) for name, value in vectors.items()} | {
        "camera/wrist": rng.integers(0, 256, (*shape, SIDE, SIDE, 3), np.uint8)
    }


def batch(seed=0, shape=(1, 8)):
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (*shape, 3)).astype(np.float32)
    reward, discount = rng.random(shape).astype(np.float32), np.ones(shape, np.float32)
    return Transition(observation(rng, shape), action, reward, discount, observation(rng, shape), {})


def build(module, seed=0, **settings):
    """With the same settings, the same compiled update: compiling is what these tests take."""
    if module is drq:
        settings = {"polyak": 0.25, "dropout": 0.1} | settings
    return module.make(module.Config(hidden=(8,), latent=4, **settings), SPACE, ACTIONS, seed)


@pytest.fixture(scope="module")
def learned():
    """An agent before and after one update, and the batch."""
    agent = build(drq)
    return agent, agent.update(batch())[0], batch()


@pytest.mark.parametrize("name", ["drq", "bc"])  # sac and rlpd are drq with other numbers
def test_every_agent_takes_images_and_repeats_itself_after_a_resume(name, tmp_path):
    """Two updates, save, resume, two more: bit for bit four in one go. And what acts is deterministic where asked."""
    module = find("robot_rl.agents", name)
    straight = half = build(module)
    for seed in range(4):
        straight, metrics = straight.update(batch(seed))
        half = straight if seed < 2 else half
    assert all(np.isfinite(value) for value in metrics.values())
    checkpoint.save(tmp_path / "agent", half)
    resumed = checkpoint.load(tmp_path / "agent", build(module, seed=9))
    for seed in (2, 3):
        resumed, _ = resumed.update(batch(seed))
    assert same(straight, resumed)
    seen = observation(np.random.default_rng(7))
    actions = [np.asarray(resumed.act(seen, None, key(seed), False)[0]) for seed in (0, 1)]
    np.testing.assert_array_equal(*actions)
    assert not np.array_equal(actions[0], resumed.act(seen, None, key(), True)[0])


@pytest.mark.parametrize("module", [drq, bc])
def test_an_actor_sees_its_images_and_nothing_privileged(module):
    agent = build(module)
    rng = np.random.default_rng(0)
    seen = observation(rng)
    action = np.asarray(agent.act(seen, None, key(), False)[0])
    for name in ("privileged", "state", "camera/wrist"):
        other = seen | {name: observation(rng)[name]}
        moved = not np.array_equal(action, agent.act(other, None, key(), False)[0])
        assert moved == (name != "privileged"), name
    without = {name: value for name, value in seen.items() if name != "privileged"}
    np.testing.assert_array_equal(action, agent.act(without, None, key(), False)[0])


def test_critics_see_what_is_privileged():
    agent, first = build(drq), batch()
    other = first._replace(obs=first.obs | {"privileged": -first.obs["privileged"]})
    results = [agent.update(shown)[0] for shown in (first, other)]
    assert not same(results[0].critic, results[1].critic)


def test_the_actor_s_loss_does_not_reach_the_encoder(learned):
    """With critics that do not learn, nothing moves the encoder, however fast the actor learns; and the other way."""
    still = build(drq, critic_learning_rate=0.0, actor_learning_rate=0.1)
    moved, _ = still.update(batch())
    assert same(moved.eyes.trained.params, still.eyes.trained.params)
    assert not same(moved.actor.params, still.actor.params)
    before, after, _ = learned
    for place, (old, new) in zip(
        jax.tree_util.tree_leaves_with_path(before.eyes.trained.params),
        zip(*map(jax.tree.leaves, (before.eyes.trained.params, after.eyes.trained.params)), strict=True),
        strict=True,
    ):
        assert not np.array_equal(old, new), f"{place[0]} does not learn"


def test_the_target_has_an_encoder_of_its_own_that_lags(learned):
    before, after, _ = learned
    old, new, lagging = before.eyes.trained.params, after.eyes.trained.params, after.eyes.target
    assert same(before.eyes.target, old) and not same(lagging, new)
    expected = jax.tree.map(lambda t, p: t + 0.25 * (p - t), old, new)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), lagging, expected)


def test_targets_are_made_with_the_lagging_encoder():
    """Ruining the target's encoder alone changes what the critics learn."""
    agent = build(drq)
    ruined = replace(agent, eyes=replace(agent.eyes, target=jax.tree.map(lambda leaf: leaf + 0.5, agent.eyes.target)))
    assert not same(agent.update(batch())[0].critic, ruined.update(batch())[0].critic)


def test_members_share_no_layer_behind_the_encoder():
    """A gradient of one member's values is zero in all parameters of the others."""
    agent, shown = build(drq), batch()
    features = agent.eyes.see(agent.eyes.trained.params, {n: v[0] for n, v in shown.obs.items()})
    judged = jnp.concatenate([shown.obs["state"][0], shown.obs["privileged"][0], features], axis=-1)
    network = sac._critic(agent.config)
    grads = jax.grad(lambda p: jnp.sum(sac.nets.apply_ensemble(network, p, judged, shown.action[0])[0]))(
        agent.critic.params
    )
    assert all(np.any(leaf[0]) and not np.any(leaf[1]) for leaf in jax.tree.leaves(grads))


def test_observation_and_next_observation_are_shifted_apart():
    agent, shown = build(drq), batch()
    twin = shown._replace(next_obs=shown.obs)
    moved = agent.eyes.shifted(twin, jax.random.key(0))
    name = "camera/wrist"
    assert not np.array_equal(moved.obs[name], moved.next_obs[name])
    assert not np.array_equal(moved.obs[name], shown.obs[name])
    for name in ("state", "privileged"):
        np.testing.assert_array_equal(moved.obs[name], shown.obs[name])
    keys = jax.random.split(jax.random.key(0))
    expected = augment.shift_cameras(keys[0], {"camera/wrist": shown.obs["camera/wrist"]}, 4)
    np.testing.assert_array_equal(moved.obs["camera/wrist"], expected["camera/wrist"])


def test_updates_are_made_of_shifted_images_and_actions_of_those_that_came():
    apart = [build(drq, **shift).update(batch())[0] for shift in ({"shift_px": 0}, {})]
    assert not same(apart[0].critic, apart[1].critic)


def test_a_policy_holds_what_acting_needs_and_travels(learned):
    before, after, _ = learned
    held = sum(np.size(leaf) for leaf in jax.tree.leaves(after.policy))
    assert held == sum(np.size(leaf) for leaf in jax.tree.leaves((after.actor.params, after.eyes.trained.params)))
    seen = observation(np.random.default_rng(3))
    moved = before.with_policy(after.policy)
    np.testing.assert_array_equal(moved.act(seen, None, key(), False)[0], after.act(seen, None, key(), False)[0])
    assert same(moved.critic, before.critic)


@pytest.fixture
def small_file(monkeypatch, tmp_path):
    """A file of weights for a residual trunk of one stage, which compiles sooner than a whole one."""
    from safetensors.torch import save_file

    from tests import torch_nets

    monkeypatch.setitem(encoders.TRUNKS, "resnet10", encoders.ResNet((1,), grouped=True))
    jax.clear_caches()

    def write(seed):
        state = torch_nets.random(torch_nets.ResNet10(), seed).state_dict()
        path = str(tmp_path / f"{seed}.safetensors")
        save_file({name: v for name, v in state.items() if "stages" not in name or "stages.0" in name}, path)
        return path

    return write


def test_a_frozen_trunk_is_not_sent_never_moves_and_has_to_be_the_same(small_file):
    settings = {"encoder": "resnet10", "frozen": True, "pool": "mean"}
    agent = build(drq, pretrained=small_file(0), **settings)
    updated, _ = agent.update(batch())
    assert same(updated.eyes.frozen, agent.eyes.frozen) and not same(updated.policy, agent.policy)
    sent = jax.tree.leaves(updated.policy)
    assert sum(leaf.nbytes for leaf in sent) < sum(leaf.nbytes for leaf in jax.tree.leaves(agent.eyes.frozen.params))
    moved = build(drq, seed=5, pretrained=small_file(0), **settings).with_policy(updated.policy)
    seen = observation(np.random.default_rng(3))
    np.testing.assert_array_equal(moved.act(seen, None, key(), False)[0], updated.act(seen, None, key(), False)[0])
    with pytest.raises(ValueError, match="another one than the learner's: give both sides the same file"):
        build(drq, pretrained=small_file(1), **settings).with_policy(updated.policy)


def test_images_alone_are_enough_and_constraints_are_refused():
    only = spaces.Dict({"camera/wrist": IMAGE})
    for module in (drq, bc):
        agent = module.make(module.Config(hidden=(8,), latent=4), only, ACTIONS, 0)
        seen = {"camera/wrist": observation(np.random.default_rng(0))["camera/wrist"]}
        assert agent.act(seen, None, key(), False)[0].shape == (3,)
    with pytest.raises(ValueError, match="constraint = 'recovery': costs are learned from the state alone"):
        build(sac, constraint="recovery")
