"""Augmentation of images: the random shift of DrQ (arXiv 2004.13649)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.jit, static_argnames="most_px")
def random_shift(key: jax.Array, images: jax.Array, most_px: int = 4) -> jax.Array:
    """Each image of (..., H, W, C) moved by a whole number of pixels in [-most_px, most_px] along both axes, drawn for
    itself; edge pixels are repeated into what opens. Same as padding by the edge and cropping at random.
    """
    if most_px == 0:
        return images
    flat = images.reshape(-1, *images.shape[-3:])
    offset = jax.random.randint(key, (len(flat), 2), -most_px, most_px + 1)
    return shifted(flat, offset).reshape(images.shape)


def shifted(images: jax.Array, offset: jax.Array) -> jax.Array:
    """Images (N, H, W, C), each moved by ``offset`` (N, 2) pixels, rows and columns; edge pixels are repeated."""
    _, height, width, _ = images.shape
    rows = jnp.clip(jnp.arange(height) + offset[:, :1], 0, height - 1)  # (N, H)
    columns = jnp.clip(jnp.arange(width) + offset[:, 1:], 0, width - 1)  # (N, W)
    return jax.vmap(lambda image, row, column: image[row[:, None], column])(images, rows, columns)


def shift_cameras(key: jax.Array, images: Mapping[str, jax.Array], most_px: int) -> dict[str, jax.Array]:
    """``random_shift`` of the images of several cameras, each with a key of its own."""
    return {
        name: random_shift(jax.random.fold_in(key, index), images[name], most_px)
        for index, name in enumerate(sorted(images))
    }
