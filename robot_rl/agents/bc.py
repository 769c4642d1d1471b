"""Behaviour cloning: a tanh-Gaussian fitted to demonstrations, by log-likelihood or by squared error.

``online`` it acts as well and learns from corrections, too: agents/hg_dagger.py is this with other numbers. Images are
seen through an encoder that the same loss trains: there is no critic to do it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from gymnasium import spaces

from robot_rl import augment, encoders, losses, nets
from robot_rl.agents import _eyes
from robot_rl.config import check, choice, number
from robot_rl.spaces import STATE, action_size
from robot_rl.types import Transition


@dataclass(frozen=True)
class Config(encoders.Settings):
    hidden: tuple[int, ...] = number((256, 256), 1, 8192, "widths of the hidden layers")
    activation: str = choice("relu", nets.ACTIVATIONS)
    kernel_init: str = choice("orthogonal", nets.INITS)
    layer_norm: bool = True
    log_std_range: tuple[float, float] = number((-5.0, 2.0), -20.0, 5.0, "of the action before its tanh")
    loss: str = choice("log_likelihood", ("log_likelihood", "squared_error"))
    learning_rate: float = number(3e-4, 0.0, 1.0)
    weight_decay: float = number(1e-4, 0.0, 1.0, "AdamW's, per update and learning rate")

    batch_size: int = number(256, 1, 65536, "transitions per update")
    utd_ratio: int = number(1, 1, 1000, "updates per step")
    online: bool = False  # act, and learn from corrections as well; else the environment is only used to evaluate
    pretrain_updates: int = number(0, 0, 10**9, "online: updates from demonstrations alone, before it acts")
    demo_share: float = number(1.0, 1.0, 1.0, "what was shown is all there is")
    start_steps: int = number(0, 0, 0, "it never acts at random")
    learning_starts: int = number(0, 0, 10**9, "online: environment steps before the updates of each step begin")

    def __post_init__(self) -> None:
        check(self)
        if not self.log_std_range[0] < self.log_std_range[1]:
            raise ValueError(f"log_std_range = {self.log_std_range}: give low, high")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BC:
    actor: nets.Trained
    eyes: _eyes.Eyes | None  # None where there are no images
    key: jax.Array | None  # of random shifts and dropout; None where there are no images
    config: Config = field(metadata={"static": True})
    action_dim: int = field(metadata={"static": True})

    def start(self) -> None:
        """A flat policy carries nothing."""

    def act(self, obs: dict, carry: Any, key: jax.Array, explore: bool) -> tuple[jax.Array, Any, dict]:
        """Action (..., A) in [-1, 1]: drawn when exploring, else tanh of the mean (``key`` is not read)."""
        seen = {name: obs[name] for name in _names(self.eyes) if name in obs}
        return _act(self.actor.params, self.eyes, seen, key, self.config, self.action_dim, explore), carry, {}

    def update(self, batch: Transition) -> tuple[BC, dict[str, jax.Array]]:
        """One update for each of the U batches in leaves (U, B, ...); only ``obs`` and ``action`` are read."""
        seen = {name: batch.obs[name] for name in _names(self.eyes) if name in batch.obs}
        return _update(self, seen, batch.action)

    @property
    def stored(self) -> dict[str, tuple[int, ...]]:
        """Nothing besides the usual."""
        return {}

    @property
    def policy(self) -> Any:
        """Parameters of the actor; with images (actor, encoder)."""
        return self.actor.params if self.eyes is None else (self.actor.params, self.eyes.policy)

    def with_policy(self, policy: Any) -> BC:
        if self.eyes is not None:
            actor, seen = policy
            return replace(self, actor=self.actor._replace(params=actor), eyes=self.eyes.with_policy(seen))
        return replace(self, actor=self.actor._replace(params=policy))


def make(config: Config, observation_space: spaces.Space, action_space: spaces.Space, seed: int) -> BC:
    """Raises ValueError for a space that no Encoder made and for actions that are not a Box in [-1, 1]; and as
    ``encoders.ImageEncoder.init`` does."""
    action_dim, key = action_size(action_space), jax.random.key_data(jax.random.key(seed))
    eyes = _eyes.make(config, observation_space, jax.random.fold_in(key, 1), _optimiser(config), with_target=False)
    state_dim, _ = _eyes.sizes(observation_space, eyes)
    params = _actor(config, action_dim).init(key, jnp.zeros((1, state_dim)))["params"]
    own_key = None if eyes is None else jax.random.fold_in(key, 2)
    return BC(nets.trained(_optimiser(config), params), eyes, own_key, config, action_dim)


def _names(eyes: _eyes.Eyes | None) -> tuple[str, ...]:
    """What of an observation is read: nothing privileged."""
    return (STATE,) if eyes is None else (STATE, *eyes.encoder.cameras)


def _actor(config: Config, action_dim: int) -> nets.Gaussian:
    shape = (config.hidden, config.layer_norm, config.activation, config.kernel_init)
    return nets.Gaussian(action_dim, *shape, log_std_range=config.log_std_range)


def _optimiser(config: Config) -> optax.GradientTransformation:
    return optax.adamw(config.learning_rate, weight_decay=config.weight_decay)


@partial(jax.jit, static_argnames=("config", "action_dim", "explore"))
def _act(
    params: Any, eyes: _eyes.Eyes | None, obs: dict, key: jax.Array, config: Config, action_dim: int, explore: bool
) -> jax.Array:
    state = _eyes.for_actor(obs, None if eyes is None else eyes.see(eyes.trained.params, obs))
    mean, log_std = nets.apply_gaussian(_actor(config, action_dim), params, state)
    return nets.sample_squashed(key, mean, log_std)[0] if explore else jnp.tanh(mean)


@jax.jit
def _update(agent: BC, obs: dict[str, jax.Array], actions: jax.Array) -> tuple[BC, dict[str, jax.Array]]:
    config, eyes = agent.config, agent.eyes
    network = _actor(config, agent.action_dim)
    key, dropout_keys = None, None
    if eyes is not None and agent.key is not None:
        key, shift_key, dropout_key = jax.random.split(agent.key, 3)
        dropout_keys = jax.random.split(dropout_key, len(actions))
        images = {name: obs[name] for name in eyes.encoder.cameras}
        obs = {**obs, **augment.shift_cameras(shift_key, images, config.shift_px)}

    def loss(learning: tuple, obs: dict, expert: jax.Array, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        params, sight = learning
        features = [] if eyes is None else [eyes.see(sight, obs, key if config.dropout else None)]
        state = jnp.concatenate([*([obs[STATE]] if STATE in obs else []), *features], axis=-1)
        mean, log_std = nets.apply_gaussian(network, params, state)
        squared_error = losses.squared_error_loss(jnp.tanh(mean), expert)
        if config.loss == "squared_error":
            return squared_error, squared_error
        return losses.likelihood_loss(nets.squashed_log_prob(expert, mean, log_std)), squared_error

    def step(networks: tuple, inputs: tuple) -> tuple[tuple, dict[str, jax.Array]]:
        actor, seeing = networks
        learning = (actor.params, None if seeing is None else seeing.params)
        (value, squared_error), grads = jax.value_and_grad(loss, has_aux=True)(learning, *inputs)
        actor = actor.step(_optimiser(config), grads[0])
        seeing = None if seeing is None else seeing.step(_optimiser(config), grads[1])
        return (actor, seeing), {"actor_loss": value, "squared_error": squared_error}

    start = agent.actor, None if eyes is None else eyes.trained
    inputs = obs, actions, dropout_keys
    (actor, seeing), metrics = jax.lax.scan(step, start, inputs, unroll=eyes is not None)  # as in sac.py
    if eyes is not None and seeing is not None:
        eyes = replace(eyes, trained=seeing)
    return replace(agent, actor=actor, eyes=eyes, key=key), jax.tree.map(jnp.mean, metrics)
