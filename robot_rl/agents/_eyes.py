"""How an agent sees: an image encoder with its optimiser, its lagging copy, and what critics and actor are given.

As in DrQ (arXiv 2004.13649) and SERL (arXiv 2401.16013) images are shifted at random before they are learned from, the
observation and the next one each by a draw of its own; only the critics' loss trains the encoder; the actor is given
its features as numbers. Targets are made of the features of a copy of the encoder that lags like the target critics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from gymnasium import spaces

from robot_rl import augment, encoders, nets
from robot_rl.spaces import PRIVILEGED, STATE, image_names, vector_size
from robot_rl.types import Transition


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Eyes:
    trained: nets.Trained
    target: Any  # parameters like those trained; None where there are no targets
    frozen: encoders.Frozen | None
    encoder: encoders.ImageEncoder = field(metadata={"static": True})

    @property
    def policy(self) -> Any:
        """What acting needs: the frozen part is known on both sides, and only its checksum travels."""
        return self.trained.params, None if self.frozen is None else self.frozen.checksum

    def with_policy(self, policy: Any) -> Eyes:
        """Raises ValueError where the other side has other frozen weights."""
        params, checksum = policy
        if self.frozen is not None and int(checksum) != int(self.frozen.checksum):
            raise ValueError(
                f"the frozen encoder of {self.encoder.settings.pretrained} is another one than the learner's: give "
                "both sides the same file"
            )
        return replace(self, trained=self.trained._replace(params=params))

    def see(self, params: Any, obs: Mapping[str, jax.Array], dropout_key: jax.Array | None = None) -> jax.Array:
        """Features (..., F) of the images in ``obs``."""
        return self.encoder.apply(params, self.frozen, obs, dropout_key)

    def shifted(self, batch: Transition, key: jax.Array) -> Transition:
        """``batch`` with its images shifted, the next ones otherwise than the first."""
        most_px, names = self.encoder.settings.shift_px, self.encoder.cameras
        obs, next_obs = (
            {**seen, **augment.shift_cameras(own, {name: seen[name] for name in names}, most_px)}
            for seen, own in zip((batch.obs, batch.next_obs), jax.random.split(key), strict=True)
        )
        return batch._replace(obs=obs, next_obs=next_obs)


def make(
    config: encoders.Settings,
    space: spaces.Space,
    key: jax.Array,
    optimiser: optax.GradientTransformation,
    with_target: bool,
) -> Eyes | None:
    """Eyes for the images of an encoded ``space``; None where there are none. Raises as ``ImageEncoder.init`` does."""
    if not (cameras := image_names(space)):
        return None
    encoder = encoders.make(config, cameras)
    assert isinstance(space, spaces.Dict)
    params, frozen = encoder.init(key, space)
    return Eyes(nets.trained(optimiser, params), params if with_target else None, frozen, encoder)


def sizes(space: spaces.Space, eyes: Eyes | None) -> tuple[int, int]:
    """How many numbers an actor is given, and a critic; raises ValueError for a space that no Encoder made."""
    features = 0 if eyes is None else eyes.encoder.size
    return vector_size(space, STATE) + features, vector_size(space, STATE, PRIVILEGED) + features


def for_actor(obs: Mapping[str, jax.Array], features: jax.Array | None) -> jax.Array:
    """What an actor is given: the state and the features, no gradient, nothing privileged."""
    seen = None if features is None else jax.lax.stop_gradient(features)
    return _join(obs.get(STATE), seen)


def for_critic(obs: Mapping[str, jax.Array], features: jax.Array | None) -> jax.Array:
    """What a critic is given: the state, what is privileged, and the features."""
    return _join(obs.get(STATE), obs.get(PRIVILEGED), features)


def _join(*parts: jax.Array | None) -> jax.Array:
    there = [part for part in parts if part is not None]
    return there[0] if len(there) == 1 else jnp.concatenate(there, axis=-1)
