"""Losses against numbers computed by hand, and gradients against finite differences; jitted and not."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robot_rl import losses, nets


@pytest.fixture(params=[False, True], ids=["eager", "jitted"])
def jitted(request):
    return jax.jit if request.param else lambda f, **_: f


def test_td_target_by_hand(jitted):
    next_q = jnp.array([[1.0, 5.0, 3.0], [2.0, 4.0, 9.0]])
    target = jitted(losses.td_target)(
        jnp.array([0.5, 0.0, 1.0]), jnp.array([1.0, 1.0, 0.0]), next_q, 0.9, jnp.array([0.1, -0.2, 7.0])
    )
    # 0.5 + 0.9 (1 + 0.1); 0.9 (4 - 0.2); a true end: the reward alone, without the entropy
    np.testing.assert_allclose(target, [1.49, 3.42, 1.0], rtol=1e-6)


def test_td_target_without_entropy_and_unbatched(jitted):
    np.testing.assert_allclose(jitted(losses.td_target)(1.0, 1.0, jnp.array([2.0, -3.0]), 0.5), -0.5)


def test_critic_loss_by_hand(jitted):
    q = jnp.array([[1.0, 2.0], [3.0, 0.0]])
    # 0.5 (mean(0, 4) + mean(4, 0))
    np.testing.assert_allclose(jitted(losses.critic_loss)(q, jnp.array([1.0, 0.0])), 0.5 * (2.0 + 2.0))


def test_each_critic_learns_as_if_alone(jitted):
    q, target = jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.array([1.0, 0.0])
    together = jitted(jax.grad(losses.critic_loss))(q, target)
    alone = jax.grad(losses.critic_loss)(q[1:], target)
    np.testing.assert_array_equal(together[1:], alone)


def test_actor_loss_by_hand(jitted):
    loss = jitted(losses.actor_loss)(jnp.array([-1.0, 2.0]), jnp.array([3.0, 1.0]), 0.5)
    np.testing.assert_allclose(loss, (-0.5 - 3.0 + 1.0 - 1.0) / 2)


def test_temperature_loss_by_hand_and_its_sign(jitted):
    log_temperature, log_prob = jnp.log(0.2), jnp.array([1.0, 2.0])
    np.testing.assert_allclose(jitted(losses.temperature_loss)(log_temperature, log_prob, -3.0), 0.3, rtol=1e-6)
    gradient = jax.grad(losses.temperature_loss)
    assert gradient(log_temperature, jnp.array([4.0]), -3.0) < 0  # entropy -4 is below -3: alpha has to rise
    assert gradient(log_temperature, jnp.array([2.0]), -3.0) > 0
    assert jax.grad(losses.temperature_loss, argnums=1)(log_temperature, log_prob, -3.0).tolist() == [0.0, 0.0]


def test_filtered_cloning_copies_only_what_the_critic_prefers(jitted):
    action = jnp.array([[0.0, 1.0], [0.0, 0.0], [0.5, 0.5], [1.0, 1.0]])
    expert = jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    q, expert_q = jnp.array([0.2, 0.9, 0.1, 0.0]), jnp.array([0.5, 0.4, 0.7, 1.0])
    is_expert = jnp.array([True, True, True, False])
    # row 0: (1 + 1) / 2; row 1: the policy's own is better; row 2: (0.25 + 0.25) / 2; row 3: no demonstration
    np.testing.assert_allclose(
        jitted(losses.filtered_cloning_loss)(action, expert, q, expert_q, is_expert), (1.0 + 0.25) / 4
    )
    slope = jax.grad(losses.filtered_cloning_loss, argnums=(0, 2, 3))(action, expert, q, expert_q, is_expert)
    np.testing.assert_allclose(slope[0], [[-0.25, 0.25], [0, 0], [0.125, 0.125], [0, 0]])
    assert not slope[1].any() and not slope[2].any()  # the filter is no way to raise a value


def test_cost_target_takes_the_greatest(jitted):
    next_q = jnp.array([[1.0, 5.0, 3.0], [2.0, 4.0, 9.0]])
    target = jitted(losses.cost_target)(jnp.array([0.5, 0.0, 1.0]), jnp.array([1.0, 1.0, 0.0]), next_q, 0.9)
    # 0.5 + 0.9 2; 0.9 5; a true end: nothing costs any more
    np.testing.assert_allclose(target, [2.3, 4.5, 1.0], rtol=1e-6)


def test_risk_target_by_hand_and_within_0_and_1(jitted):
    cost = jnp.array([0.0, 1.0, 0.25, 0.5, 3.0, 0.0])
    next_q = jnp.array([[0.5, 0.5, 0.2, 0.9, 0.0, -0.4], [0.1, 0.9, 0.4, 0.9, 0.0, -0.2]])
    target = jitted(losses.risk_target)(cost, jnp.array([1.0, 1.0, 1.0, 0.0, 1.0, 1.0]), next_q, 0.8)
    # 0.8 0.5; a cost now is all there is; 0.25 + 0.75 0.8 0.4; a true end; clipped above; clipped below
    np.testing.assert_allclose(target, [0.4, 1.0, 0.49, 0.5, 1.0, 0.0], rtol=1e-6)


def test_the_multiplier_follows_the_excess_and_stops_at_0(jitted):
    step = jitted(losses.multiplier_step, static_argnums=(2, 3))
    np.testing.assert_allclose(step(jnp.float32(1.0), jnp.float32(0.5), 0.1, 0.5), 1.2, rtol=1e-6)
    np.testing.assert_allclose(step(jnp.float32(1.0), jnp.float32(0.1), 0.5, 0.5), 0.8, rtol=1e-6)
    assert step(jnp.float32(0.1), jnp.float32(0.0), 0.5, 0.5) == 0.0
    assert math.isnan(step(jnp.float32(0.1), jnp.float32(math.nan), 0.5, 0.5))  # no loss hides behind the projection


def test_penalised_value_by_hand(jitted):
    q, cost_q = jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0])
    np.testing.assert_allclose(jitted(losses.penalised_value)(q, cost_q, 3.0), [-0.5, 5.0])
    np.testing.assert_array_equal(losses.penalised_value(q, cost_q, 0.0), q)


def test_cloning_losses_by_hand(jitted):
    np.testing.assert_allclose(jitted(losses.likelihood_loss)(jnp.array([1.0, 3.0])), -2.0)
    expert = jnp.array([[0.0, 1.0], [0.5, 0.5]])
    action = jnp.array([[1.0, 1.0], [0.5, 0.0]])
    np.testing.assert_allclose(jitted(losses.squared_error_loss)(action, expert), (1.0 + 0.25) / 2)


def test_losses_batch_by_vmap():
    q, target = jnp.arange(12.0).reshape(3, 2, 2), jnp.ones((3, 2))
    each = [losses.critic_loss(q[i], target[i]) for i in range(3)]
    np.testing.assert_allclose(jax.vmap(losses.critic_loss)(q, target), each)


def test_subset_is_without_replacement_and_uniform():
    draws = jax.vmap(lambda key: losses.draw_subset(key, 10, 2))(jax.random.split(jax.random.key(0), 5000))
    assert (draws[:, 0] != draws[:, 1]).all()
    counts = np.bincount(np.asarray(draws).ravel(), minlength=10)
    assert np.abs(counts - 1000).max() < 150  # 5 standard deviations


@pytest.mark.parametrize(
    "function",
    [
        lambda x: losses.critic_loss(x, jnp.array([0.3, -0.2, 1.0])),
        lambda x: losses.actor_loss(x[0], x[1] ** 2, 0.3),
        lambda x: losses.temperature_loss(x[0, 0], jnp.array([1.0, 2.0]), -3.0),
        lambda x: losses.squared_error_loss(x, jnp.ones((2, 3))),
        lambda x: losses.likelihood_loss(nets.squashed_log_prob(jnp.array([0.3, -0.9, 0.99]), x[0], x[1])),
        lambda x: nets.sample_squashed(jax.random.key(1), x[0], x[1])[1],
        lambda x: nets.sample_squashed(jax.random.key(1), x[0], x[1])[0].sum(),
    ],
)
def test_gradients_are_finite_differences(function, jitted):
    with jax.enable_x64(True):
        x = jnp.array([[0.4, -1.2, 2.0], [0.1, -0.7, 0.3]], jnp.float64)
        gradient = jitted(jax.grad(function))(x)
        for index in np.ndindex(x.shape):
            step = jnp.zeros_like(x).at[index].set(1e-5)
            difference = (function(x + step) - function(x - step)) / 2e-5
            np.testing.assert_allclose(gradient[index], difference, rtol=1e-6, atol=1e-8)


def test_squashed_density_integrates_to_one():
    action = jnp.linspace(-1, 1, 200_001)[1:-1, None]
    density = jnp.exp(nets.squashed_log_prob(action, jnp.array([0.3]), jnp.array([-0.5]), margin=1e-7))
    np.testing.assert_allclose(density.sum() * 1e-5, 1.0, rtol=2e-3)


@pytest.mark.parametrize("x", [0.0, 0.5, -3.0, 9.5, -20.0, 80.0])
def test_tanh_slope_is_exact_where_the_plain_form_is_infinite(x):
    exact = -2.0 * (abs(x) + math.log1p(math.exp(-2.0 * abs(x))) - math.log(2.0))
    np.testing.assert_allclose(nets.log_tanh_slope(jnp.array([x])), exact, rtol=1e-6, atol=1e-6)


def test_sample_and_density_agree():
    mean, log_std = jnp.array([[0.2, -0.5]]), jnp.array([[-1.0, 0.1]])
    action, log_prob = nets.sample_squashed(jax.random.key(3), mean, log_std)
    np.testing.assert_allclose(nets.squashed_log_prob(action, mean, log_std), log_prob, rtol=1e-4)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_ensemble_members_share_nothing(layer_norm):
    critic = nets.Critic((8, 8), layer_norm)
    params = nets.init_ensemble(critic, jax.random.key(0), 3, 4, 2)
    state, action = jax.random.normal(jax.random.key(1), (5, 4)), jnp.ones((5, 2))
    q = nets.apply_ensemble(critic, params, state, action)
    assert q.shape == (3, 5)
    for i in range(3):
        member = jax.tree.map(lambda leaf, i=i: leaf[i], params)
        np.testing.assert_allclose(q[i], critic.apply({"params": member}, state, action), rtol=1e-4, atol=1e-6)
    # A gradient of member 0 reaches all its layers, and none of the others'.
    for path, leaf in jax.tree.leaves_with_path(
        jax.grad(lambda p: nets.apply_ensemble(critic, p, state, action)[0].sum())(params)
    ):
        assert jnp.any(leaf[0] != 0), path
        assert not jnp.any(leaf[1:] != 0), path
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 3]
    assert len(kernels) == 3
    assert all(jnp.any(kernel[0] != kernel[1]) for kernel in kernels)


def test_normed_dense_is_dense_and_layer_norm():
    x = jax.random.normal(jax.random.key(0), (6, 5)) + 3.0
    layer = nets.NormedDense(16, nn.initializers.lecun_normal())
    params = layer.init(jax.random.key(1), x)["params"] | {"shift": jnp.arange(16.0)}
    expected = nn.LayerNorm(use_scale=False).apply({"params": {"bias": params["shift"]}}, x @ params["kernel"])
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_network_sees_how_large_its_input_is(layer_norm):
    """LayerNorm alone would give the same output for x and 3 x."""
    network = nets.MLP((16, 16), layer_norm)
    x = jnp.array([[0.1, -0.2]])
    params = network.init(jax.random.key(0), x)
    assert jnp.abs(network.apply(params, x) - network.apply(params, 3.0 * x)).max() > 0.01
