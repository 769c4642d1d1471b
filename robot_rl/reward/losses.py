"""Losses and constraints of a learned reward, as pure functions of arrays.

B batch; an input is a pytree of float arrays (B, ...). Lipschitz off-policy GAIL (arXiv 2006.16785) has shown that a
learned reward has to be smooth for off-policy learning to work, whatever else it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def cross_entropy(logit: jax.Array, target: jax.Array) -> jax.Array:
    """-y log p - (1 - y) log(1 - p) of p = sigmoid(logit), (B,); targets may lie anywhere in [0, 1]."""
    return jax.nn.softplus(logit) - target * logit


def smooth(target: jax.Array, amount: float) -> jax.Array:
    """Targets pulled towards 1/2: y (1 - s) + s / 2 (Szegedy et al. 2016, arXiv 1512.00567, section 7)."""
    return target * (1.0 - amount) + 0.5 * amount


class Blend(NamedTuple):
    """Which other row of a batch each is blended with, and the share that is its own. Drawn by numpy: JAX's generator
    of a beta distribution takes longer to compile than many a training takes."""

    other: jax.Array  # (B,) int
    share: jax.Array  # (B,)


def draw_blend(rng: np.random.Generator, count: int, alpha: float = 1.0) -> Blend:
    """A permutation, and shares from Beta(alpha, alpha); 1 is uniform."""
    share = rng.beta(alpha, alpha, count).astype(np.float32)
    return Blend(rng.permutation(count).astype(np.int32), share)  # type: ignore[arg-type]


def blended(inputs: Any, blend: Blend) -> Any:
    """share x + (1 - share) x' of each row x of a pytree (B, ...) and its other x'."""

    def mix(x: jax.Array) -> jax.Array:
        share = blend.share.reshape(-1, *([1] * (x.ndim - 1)))
        return share * x + (1.0 - share) * x[blend.other]

    return jax.tree.map(mix, inputs)


def gradient_penalty(score: Callable[[Any], jax.Array], inputs: Any, blend: Blend) -> jax.Array:
    """The mean of max(0, |d score / d x| - 1)^2 at points x between the rows of ``inputs`` and others of the batch.

    One-sided: a function may be flatter than 1-Lipschitz (Lipschitz GAIL, section 4.2, after WGAN-GP, arXiv 1704.00028,
    where it was two-sided). ``score`` gives (B,) of inputs (B, ...), row by row.
    """
    points = blended(inputs, blend)
    slope = jax.grad(lambda x: jnp.sum(score(x)))(points)
    square = sum(jnp.sum(jnp.square(part).reshape(len(part), -1), axis=-1) for part in jax.tree.leaves(slope))
    norm = jnp.sqrt(square + 1e-12)  # the root has no slope at 0
    return jnp.mean(jnp.square(jnp.maximum(norm - 1.0, 0.0)))


def largest_singular_value(kernel: jax.Array, rounds: int = 30) -> jax.Array:
    """Of a kernel (..., out) as a matrix, by power iteration from a fixed vector; from below, as that always is.

    Its gradient is that of u^T W v at the vectors that were found, which is exact where they are.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    still = jax.lax.stop_gradient(matrix)

    def again(_: int, vector: jax.Array) -> jax.Array:
        vector = still.T @ (still @ vector)
        return vector / (jnp.linalg.norm(vector) + 1e-12)

    start = jnp.ones(matrix.shape[-1]) + 0.1 * jnp.cos(jnp.arange(matrix.shape[-1]))
    return jnp.linalg.norm(matrix @ jax.lax.fori_loop(0, rounds, again, start))


def spectral_norm(params: Any) -> Any:
    """Every kernel divided by its largest singular value, so that no layer stretches: arXiv 1802.05957, equation 8.

    Biases and what else has no columns stay. Power iteration starts anew each time, with enough rounds, which needs no
    state between two updates.
    """

    def divide(path: Any, leaf: jax.Array) -> jax.Array:
        is_kernel = leaf.ndim >= 2 and "kernel" in jax.tree_util.keystr(path[-1:])
        return leaf / (largest_singular_value(leaf) + 1e-12) if is_kernel else leaf

    return jax.tree_util.tree_map_with_path(divide, params)
