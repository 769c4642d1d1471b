"""What every agent promises, whatever its file; and what SAC promises about its networks."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gymnasium import spaces

from robot_rl import checkpoint, losses, nets
from robot_rl.agents import sac
from robot_rl.find import find, names
from robot_rl.types import DEMONSTRATION, POLICY, Agent, Transition

OBSERVATIONS = spaces.Dict(state=spaces.Box(-1.0, 1.0, (5,), np.float32))
ACTIONS = spaces.Box(-1.0, 1.0, (3,), np.float32)
AGENTS = names("robot_rl.agents")


def random_batch(seed=0, shape=(4, 16)):
    rng = np.random.default_rng(seed)

    def draw(*size):
        return rng.uniform(-1, 1, (*shape, *size)).astype(np.float32)

    discount = (rng.random(shape) > 0.1).astype(np.float32)
    return Transition({"state": draw(5)}, draw(3), draw(), discount, {"state": draw(5)}, {})


def build(name, seed=0, **settings):
    module = find("robot_rl.agents", name)
    return module.make(module.Config(hidden=(16, 16), **settings), OBSERVATIONS, ACTIONS, seed)


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(np.array_equal(x, y) for x, y in leaves)


@pytest.fixture(params=AGENTS)
def name(request):
    return request.param


def key(seed=0):
    return np.array([0, seed], np.uint32)


def test_follows_the_protocol(name):
    agent = build(name)
    assert isinstance(agent, Agent)
    for field in ("batch_size", "utd_ratio", "start_steps", "learning_starts"):
        assert isinstance(getattr(agent.config, field), int)
    assert 0.0 <= agent.config.demo_share <= 1.0
    assert find("robot_rl.agents", name).Config() == find("robot_rl.agents", name).Config()


@pytest.mark.parametrize("explore", [False, True])
def test_acts_within_bounds_jitted_and_not(name, explore):
    agent = build(name)
    for scale in (1.0, 1e6):
        obs = {"state": np.full(5, scale, np.float32)}
        action, carry, extra = agent.act(obs, agent.start(), key(), explore)
        assert action.shape == (3,) and action.dtype == jnp.float32
        assert np.all(np.abs(action) <= 1.0)
        assert extra == {}
        jitted = jax.jit(lambda a, o, c, k: a.act(o, c, k, explore))(agent, obs, carry, key())[0]
        np.testing.assert_allclose(jitted, action, rtol=1e-5, atol=1e-6)
    batch = agent.act({"state": np.zeros((7, 5), np.float32)}, agent.start(), key(), explore)[0]
    assert batch.shape == (7, 3)


def test_explores_with_the_key_and_evaluates_without(name):
    agent = build(name)
    obs = {"state": np.linspace(-1, 1, 5, dtype=np.float32)}

    def act(seed, explore):
        return np.asarray(agent.act(obs, agent.start(), key(seed), explore)[0])

    np.testing.assert_array_equal(act(1, False), act(2, False))
    np.testing.assert_array_equal(act(1, True), act(1, True))
    assert not np.array_equal(act(1, True), act(2, True))


def test_update_leaves_the_old_agent_alone(name):
    agent = build(name)
    before = jax.tree.map(np.array, agent)
    updated, metrics = agent.update(random_batch())
    assert same(agent, before)
    assert not same(agent.policy, updated.policy)
    assert metrics and all(np.shape(value) == () and np.isfinite(value) for value in metrics.values())


def test_a_seed_gives_the_same_numbers_and_another_others(name):
    first, again, other = (build(name, seed).update(random_batch())[0] for seed in (3, 3, 4))
    assert same(first, again)
    assert not same(first.policy, other.policy)


def test_two_steps_save_resume_equal_four_steps(name, tmp_path):
    batches = [random_batch(i) for i in range(4)]
    straight = build(name)
    for batch in batches:
        straight, _ = straight.update(batch)
    half = build(name)
    for batch in batches[:2]:
        half, _ = half.update(batch)
    checkpoint.save(tmp_path / "agent", half)
    resumed = checkpoint.load(tmp_path / "agent", build(name, seed=99))
    obs = {"state": np.ones(5, np.float32)}
    for explore in (False, True):
        np.testing.assert_array_equal(
            half.act(obs, half.start(), key(), explore)[0], resumed.act(obs, resumed.start(), key(), explore)[0]
        )
    for batch in batches[2:]:
        resumed, _ = resumed.update(batch)
    assert same(straight, resumed)


def test_policy_travels(name):
    learner, actor = build(name, 0).update(random_batch())[0], build(name, 1)
    moved = actor.with_policy(learner.policy)
    assert same(moved.policy, learner.policy)
    obs = {"state": np.ones(5, np.float32)}
    np.testing.assert_array_equal(
        moved.act(obs, moved.start(), key(), False)[0], learner.act(obs, learner.start(), key(), False)[0]
    )
    assert same(replace(moved, actor=actor.actor), actor)  # nothing else moved


def test_images_and_other_actions_are_refused(name):
    module = find("robot_rl.agents", name)
    image = spaces.Dict(OBSERVATIONS.spaces | {"wrist": spaces.Box(0, 255, (4, 4, 3), np.uint8)})
    with pytest.raises(ValueError, match="'wrist' is an image, and this agent is state-only for now"):
        module.make(module.Config(), image, ACTIONS, 0)
    with pytest.raises(ValueError, match="action space"):
        module.make(module.Config(), OBSERVATIONS, spaces.Discrete(3), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"critics": 2, "target_critics": 3}, "target_critics = 3: give at most critics = 2"),
        ({"discount": 1.5}, r"discount = 1.5: give a number in \[0, 1\]"),
        ({"discount": float("nan")}, "discount = nan"),
        ({"activation": "rleu"}, "Did you mean 'relu'"),
        ({"log_std_range": (2.0, -5.0)}, r"log_std_range = \(2.0, -5.0\): give low, high"),
    ],
)
def test_bad_configs_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        sac.Config(**settings)


@pytest.mark.parametrize(
    ("rate", "still"),
    [
        ("actor_learning_rate", "actor"),
        ("critic_learning_rate", "critic"),
        ("temperature_learning_rate", "temperature"),
    ],
)
def test_a_network_at_rest_does_not_move_a_bit_and_moves_no_other(rate, still):
    """Its own optimiser: a network whose rate is 0 stays bit for bit while the two others learn."""
    agent = build("sac", **{rate: 0.0})
    updated, _ = agent.update(random_batch())
    updated, _ = updated.update(random_batch(1))
    for part in ("actor", "critic", "temperature"):
        assert same(getattr(agent, part).params, getattr(updated, part).params) == (part == still)


def test_demonstrations_are_cloned_where_the_batch_marks_them():
    """With a weight that drowns everything else, the policy moves towards marked actions and ignores unmarked ones."""
    batch = random_batch()
    batch = batch._replace(action=np.full_like(batch.action, 0.9))  # far from the first policy, so never preferred
    distance = {}
    for source in (POLICY, DEMONSTRATION):
        marked = batch._replace(extra={"source": np.full(batch.reward.shape, source)})
        agent = build("rlpd", cloning_weight=100.0, actor_learning_rate=1e-2, discount=0.0)
        marked = marked._replace(reward=np.ones_like(batch.reward))  # so the critics learn to like what is shown
        for _ in range(20):
            agent, _ = agent.update(marked)
        action, _, _ = agent.act({"state": batch.obs["state"][0]}, None, key(), False)
        distance[source] = np.abs(np.asarray(action) - 0.9).mean()
    assert distance[DEMONSTRATION] < 0.5 * distance[POLICY], distance


def test_critic_updates_leave_actor_and_temperature_untouched():
    """Momentum included: Adam on a zero gradient would still move a network that had learnt before."""
    agent = build("rlpd").update(random_batch())[0]
    keys = jax.random.split(jax.random.key(0))
    updated, _ = sac._update_critics(agent, random_batch(1), *keys)
    assert same(updated.actor, agent.actor) and same(updated.temperature, agent.temperature)
    assert not same(updated.critic, agent.critic)
    after, _ = sac._update_actor(agent, random_batch(1).obs["state"][-1], random_batch(1).action[-1], None, keys[0])
    assert same(after.critic, agent.critic) and same(after.target, agent.target)
    assert not same(after.actor.params, agent.actor.params)


def test_counts_its_updates():
    """U critic updates, one of the actor, one of the temperature."""
    agent, _ = build("rlpd").update(random_batch(shape=(5, 8)))
    counts = {part: int(getattr(agent, part).opt_state[0].count) for part in ("actor", "critic", "temperature")}
    assert counts == {"actor": 1, "critic": 5, "temperature": 1}


def test_one_critic_update_by_hand():
    """The scan against the formulas, written out once more and without the ensemble's axis."""
    config = sac.Config(hidden=(8,), critics=2, target_critics=2, discount=0.9, polyak=0.1, critic_learning_rate=1e-2)
    agent = sac.make(config, OBSERVATIONS, ACTIONS, 0)
    batch = random_batch(shape=(1, 16))
    keys = jax.random.split(jax.random.key(1))
    updated, metrics = sac._update_critics(agent, batch, *keys)
    obs, next_obs = batch.obs["state"][0], batch.next_obs["state"][0]
    critic, actor = nets.Critic((8,)), nets.Gaussian(3, (8,))
    mean, log_std = actor.apply({"params": agent.actor.params}, next_obs)
    noise = jax.random.normal(keys[0], (1, 16, 3))[0]
    x = mean + jnp.exp(log_std) * noise
    density = jnp.exp(-0.5 * noise**2 - log_std) / np.sqrt(2 * np.pi) / (1 - jnp.tanh(x) ** 2)
    log_prob = jnp.log(density).sum(-1)
    q = [
        critic.apply({"params": jax.tree.map(lambda p, i=i: p[i], agent.target)}, next_obs, jnp.tanh(x)) for i in (0, 1)
    ]
    target = batch.reward[0] + 0.9 * batch.discount[0] * (jnp.minimum(*q) - 0.1 * log_prob)
    total = 0.0
    for i in range(2):
        params = jax.tree.map(lambda p, i=i: p[i], agent.critic.params)

        def loss(params):
            return 0.5 * jnp.mean((critic.apply({"params": params}, obs, batch.action[0]) - target) ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        total += value
        optimiser = optax.adam(1e-2)
        expected = optax.apply_updates(params, optimiser.update(grads, optimiser.init(params))[0])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=2e-5), updated.critic.params, expected)
        jax.tree.map(
            lambda a, new, old, i=i: np.testing.assert_allclose(a[i], 0.9 * old + 0.1 * new, atol=1e-5),
            updated.target,
            expected,
            params,
        )
    np.testing.assert_allclose(metrics["critic_loss"], total / 2, rtol=1e-4)


def test_only_the_drawn_members_make_the_target(monkeypatch):
    """Ruining the members that are not drawn changes nothing; ruining a drawn one does."""
    monkeypatch.setattr(losses, "draw_subset", lambda key, num, subset: jnp.array([1, 3]))
    agent = sac.make(sac.Config(hidden=(8,), critics=5, target_critics=2), OBSERVATIONS, ACTIONS, 0)

    def updated(spoilt):
        target = jax.tree.map(lambda leaf: leaf.at[jnp.array(spoilt)].add(50.0), agent.target)
        batch = random_batch(shape=(1, 16))
        return sac._update_critics(replace(agent, target=target), batch, *jax.random.split(jax.random.key(0)))[0]

    assert same(updated([0, 2, 4]).critic, updated([0]).critic)
    assert not same(updated([3]).critic, updated([0]).critic)
