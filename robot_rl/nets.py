"""Networks, and the tanh-Gaussian that a policy draws its actions from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

ACTIVATIONS: dict[str, Callable] = {"relu": nn.relu, "tanh": nn.tanh, "gelu": nn.gelu, "silu": nn.silu}
INITS: dict[str, Callable] = {
    "xavier": lambda scale=1.0: nn.initializers.variance_scaling(scale**2, "fan_avg", "uniform"),
    "orthogonal": lambda scale=2.0**0.5: nn.initializers.orthogonal(scale),
}


class NormedDense(nn.Module):
    """LayerNorm(x W) + shift: (..., D) to (..., width).

    The mean over the outputs is taken off W, not off each output: the same numbers, one pass over a small matrix, and
    a variance that no rounding can make negative. W needs no bias, as LayerNorm has one, nor LayerNorm a scale, as the
    layer above has one.
    """

    width: int
    kernel_init: Callable

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.width))
        shift = self.param("shift", nn.initializers.zeros, (self.width,))
        x = x @ (kernel - jnp.mean(kernel, axis=-1, keepdims=True))
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6) + shift


class MLP(nn.Module):
    """(..., D) to (..., hidden[-1]): Dense, LayerNorm if asked, activation, for each of ``hidden``.

    With LayerNorm a constant 1 joins the input, for LayerNorm hides how large its input is.
    """

    hidden: tuple[int, ...] = (256, 256)
    layer_norm: bool = False
    activation: str = "relu"
    kernel_init: str = "orthogonal"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.layer_norm:
            x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
        for width in self.hidden:
            layer = NormedDense if self.layer_norm else nn.Dense
            x = ACTIVATIONS[self.activation](layer(width, kernel_init=INITS[self.kernel_init]())(x))
        return x


class Critic(nn.Module):
    """State (..., D) and action (..., A) to a value (...)."""

    hidden: tuple[int, ...] = (256, 256)
    layer_norm: bool = False
    activation: str = "relu"
    kernel_init: str = "orthogonal"

    @nn.compact
    def __call__(self, state: jax.Array, action: jax.Array) -> jax.Array:
        x = jnp.concatenate([state, action], axis=-1)
        x = MLP(self.hidden, self.layer_norm, self.activation, self.kernel_init)(x)
        return nn.Dense(1, kernel_init=INITS[self.kernel_init](1.0))(x)[..., 0]


class Gaussian(nn.Module):
    """State (..., D) to the mean and log standard deviation (..., A) of the action before its tanh."""

    action_dim: int
    hidden: tuple[int, ...] = (256, 256)
    layer_norm: bool = False
    activation: str = "relu"
    kernel_init: str = "orthogonal"
    log_std_range: tuple[float, float] = (-5.0, 2.0)

    @nn.compact
    def __call__(self, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = MLP(self.hidden, self.layer_norm, self.activation, self.kernel_init)(state)
        # Small heads: the first actions are near 0, with a standard deviation near 1.
        mean = nn.Dense(self.action_dim, kernel_init=INITS[self.kernel_init](0.01))(x)
        log_std = nn.Dense(self.action_dim, kernel_init=INITS[self.kernel_init](0.01))(x)
        return mean, jnp.clip(log_std, *self.log_std_range)


def init_ensemble(critic: Critic, key: jax.Array, num: int, state_dim: int, action_dim: int) -> Any:
    """Parameters of ``num`` critics, stacked (N, ...): each member has all its own layers, and its own init."""
    state, action = jnp.zeros((1, state_dim)), jnp.zeros((1, action_dim))
    return jax.vmap(lambda key: critic.init(key, state, action)["params"])(jax.random.split(key, num))


def apply_ensemble(critic: Critic, params: Any, state: jax.Array, action: jax.Array) -> jax.Array:
    """Values (N, B) of all members for states (B, D) and actions (B, A)."""
    num = jax.tree.leaves(params)[0].shape[0]
    # One copy of the input per member keeps the members' axis first: else XLA transposes the first layer's output.
    state, action = (jnp.broadcast_to(x, (num, *x.shape)) for x in (state, action))

    def apply(params: Any, state: jax.Array, action: jax.Array) -> Any:
        return critic.apply({"params": params}, state, action)

    return jax.vmap(apply)(params, state, action)


def normal_log_prob(x: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """log N(x; mean, exp(log_std)^2), summed over the last axis."""
    z = (x - mean) * jnp.exp(-log_std)
    return jnp.sum(-0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi), axis=-1)


def log_tanh_slope(x: jax.Array) -> jax.Array:
    """log(d tanh(x) / dx), summed over the last axis, exact for any x.

    SAC, arXiv 1812.05905, appendix C has log(1 - tanh(x)^2), which is -inf in float32 from |x| = 9.1 on; it equals
    2 (log 2 - x - softplus(-2x)).
    """
    return jnp.sum(2.0 * (math.log(2.0) - x - jax.nn.softplus(-2.0 * x)), axis=-1)


def sample_squashed(key: jax.Array, mean: jax.Array, log_std: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Action tanh(x) (..., A) with x ~ N(mean, exp(log_std)^2), and its log density (...)."""
    x = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype)
    return jnp.tanh(x), normal_log_prob(x, mean, log_std) - log_tanh_slope(x)


def squashed_log_prob(action: jax.Array, mean: jax.Array, log_std: jax.Array, margin: float = 1e-3) -> jax.Array:
    """Log density (...) of a given action (..., A), pulled ``margin`` inside [-1, 1]: at the edge it is infinite."""
    x = jnp.arctanh(jnp.clip(action, -1.0 + margin, 1.0 - margin))
    return normal_log_prob(x, mean, log_std) - log_tanh_slope(x)


def apply_gaussian(actor: Gaussian, params: Any, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and log standard deviation (..., A) at states (..., D)."""
    output: Any = actor.apply({"params": params}, state)
    return output


class Trained(NamedTuple):
    """Parameters and the state of the optimiser that is theirs alone."""

    params: Any
    opt_state: Any

    def step(self, optimiser: optax.GradientTransformation, grads: Any) -> Trained:
        updates, opt_state = optimiser.update(grads, self.opt_state, self.params)
        return Trained(optax.apply_updates(self.params, updates), opt_state)


def trained(optimiser: optax.GradientTransformation, params: Any) -> Trained:
    return Trained(params, optimiser.init(params))


def polyak(target: Any, params: Any, tau: float) -> Any:
    """(1 - tau) target + tau params."""
    return jax.tree.map(lambda t, p: t + tau * (p - t), target, params)
