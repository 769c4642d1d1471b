"""Losses and constraints of a learned reward, as pure functions of arrays.

B batch; an input is a pytree of float arrays (B, ...). Lipschitz off-policy GAIL (arXiv 2006.16785) has shown that a
learned reward has to be smooth for off-policy learning to work, whatever else it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def cross_entropy(logit: jax.Array, target: jax.Array) -> jax.Array:
    """-y log p - (1 - y) log(1 - p) of p = sigmoid(logit), (B,); targets may lie anywhere in [0, 1]."""
    return jax.nn.softplus(logit) - target * logit


def smooth(target: jax.Array, amount: float) -> jax.Array:
    """Targets pulled towards 1/2: y (1 - s) + s / 2 (Szegedy et al. 2016, arXiv 1512.00567, section 7)."""
    return target * (1.0 - amount) + 0.5 * amount


def interpolate(inputs: Any, other: Any, share: jax.Array) -> Any:
    """share x + (1 - share) x' of each row of two pytrees (B, ...); ``share`` (B,)."""

    def blend(x: jax.Array, y: jax.Array) -> jax.Array:
        weight = share.reshape(-1, *([1] * (x.ndim - 1)))
        return weight * x + (1.0 - weight) * y

    return jax.tree.map(blend, inputs, other)


def mixup(key: jax.Array, inputs: Any, target: jax.Array, alpha: float) -> tuple[Any, jax.Array]:
    """Rows blended with others of the batch, targets alike; share ~ Beta(alpha, alpha) (arXiv 1710.09412)."""
    order_key, share_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(target))
    share = jax.random.beta(share_key, alpha, alpha, (len(target),))
    return interpolate((inputs, target), jax.tree.map(lambda x: x[order], (inputs, target)), share)


def gradient_penalty(score: Callable[[Any], jax.Array], inputs: Any, key: jax.Array) -> jax.Array:
    """The mean of max(0, |d score / d x| - 1)^2 at points x between the rows of ``inputs`` and others of the batch.

    One-sided: a function may be flatter than 1-Lipschitz (Lipschitz GAIL, section 4.2, after WGAN-GP, arXiv 1704.00028,
    where it was two-sided). ``score`` gives (B,) of inputs (B, ...), row by row.
    """
    order_key, share_key = jax.random.split(key)
    count = len(jax.tree.leaves(inputs)[0])
    order = jax.random.permutation(order_key, count)
    share = jax.random.uniform(share_key, (count,))
    points = interpolate(inputs, jax.tree.map(lambda x: x[order], inputs), share)
    slope = jax.grad(lambda x: jnp.sum(score(x)))(points)
    square = sum(jnp.sum(jnp.square(part).reshape(count, -1), axis=-1) for part in jax.tree.leaves(slope))
    norm = jnp.sqrt(square + 1e-12)  # the root has no slope at 0
    return jnp.mean(jnp.square(jnp.maximum(norm - 1.0, 0.0)))


def largest_singular_value(kernel: jax.Array, rounds: int = 8) -> jax.Array:
    """Of a kernel (..., out) as a matrix, by power iteration from a fixed vector; from below, as that always is."""
    matrix = kernel.reshape(-1, kernel.shape[-1])
    vector = jnp.ones(matrix.shape[-1]) + 0.1 * jnp.cos(jnp.arange(matrix.shape[-1]))
    for _ in range(rounds):
        left = matrix @ vector
        vector = matrix.T @ (left / (jnp.linalg.norm(left) + 1e-12))
        vector = vector / (jnp.linalg.norm(vector) + 1e-12)
    vector = jax.lax.stop_gradient(vector)
    return jnp.linalg.norm(matrix @ vector)


def spectral_norm(params: Any) -> Any:
    """Every kernel divided by its largest singular value, so that no layer stretches: arXiv 1802.05957, equation 8.

    Biases and what else has no columns stay. Power iteration starts anew each time, with enough rounds, which needs no
    state between two updates.
    """

    def divide(path: Any, leaf: jax.Array) -> jax.Array:
        is_kernel = leaf.ndim >= 2 and "kernel" in jax.tree_util.keystr(path[-1:])
        return leaf / (largest_singular_value(leaf) + 1e-12) if is_kernel else leaf

    return jax.tree_util.tree_map_with_path(divide, params)
