"""Behaviour cloning: a tanh-Gaussian fitted to demonstrations, by log-likelihood or by squared error.

``online`` it acts as well and learns from corrections, too: agents/hg_dagger.py is this with other numbers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from gymnasium import spaces

from robot_rl import losses, nets
from robot_rl.config import check, choice, number
from robot_rl.spaces import STATE, action_size, state_size
from robot_rl.types import Transition


@dataclass(frozen=True)
class Config:
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
    config: Config = field(metadata={"static": True})
    action_dim: int = field(metadata={"static": True})

    def start(self) -> None:
        """A flat policy carries nothing."""

    def act(self, obs: dict, carry: Any, key: jax.Array, explore: bool) -> tuple[jax.Array, Any, dict]:
        """Action (..., A) in [-1, 1]: drawn when exploring, else tanh of the mean (``key`` is not read)."""
        return _act(self.actor.params, obs[STATE], key, self.config, self.action_dim, explore), carry, {}

    def update(self, batch: Transition) -> tuple[BC, dict[str, jax.Array]]:
        """One update for each of the U batches in leaves (U, B, ...); only ``obs`` and ``action`` are read."""
        return _update(self, batch.obs[STATE], batch.action)

    @property
    def stored(self) -> dict[str, tuple[int, ...]]:
        """Nothing besides the usual."""
        return {}

    @property
    def policy(self) -> Any:
        """Parameters of the actor."""
        return self.actor.params

    def with_policy(self, policy: Any) -> BC:
        return replace(self, actor=self.actor._replace(params=policy))


def make(config: Config, observation_space: spaces.Space, action_space: spaces.Space, seed: int) -> BC:
    """Raises ValueError for images (state-only for now) and for actions that are not a Box in [-1, 1]."""
    state_dim, action_dim = state_size(observation_space), action_size(action_space)
    key = jax.random.key_data(jax.random.key(seed))
    params = _actor(config, action_dim).init(key, jnp.zeros((1, state_dim)))["params"]
    return BC(nets.trained(_optimiser(config), params), config, action_dim)


def _actor(config: Config, action_dim: int) -> nets.Gaussian:
    shape = (config.hidden, config.layer_norm, config.activation, config.kernel_init)
    return nets.Gaussian(action_dim, *shape, log_std_range=config.log_std_range)


def _optimiser(config: Config) -> optax.GradientTransformation:
    return optax.adamw(config.learning_rate, weight_decay=config.weight_decay)


@partial(jax.jit, static_argnames=("config", "action_dim", "explore"))
def _act(params: Any, state: jax.Array, key: jax.Array, config: Config, action_dim: int, explore: bool) -> jax.Array:
    mean, log_std = nets.apply_gaussian(_actor(config, action_dim), params, state)
    return nets.sample_squashed(key, mean, log_std)[0] if explore else jnp.tanh(mean)


@jax.jit
def _update(agent: BC, states: jax.Array, actions: jax.Array) -> tuple[BC, dict[str, jax.Array]]:
    config = agent.config
    network = _actor(config, agent.action_dim)

    def loss(params: Any, state: jax.Array, expert: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean, log_std = nets.apply_gaussian(network, params, state)
        squared_error = losses.squared_error_loss(jnp.tanh(mean), expert)
        if config.loss == "squared_error":
            return squared_error, squared_error
        return losses.likelihood_loss(nets.squashed_log_prob(expert, mean, log_std)), squared_error

    def step(actor: nets.Trained, batch: tuple[jax.Array, jax.Array]) -> tuple[nets.Trained, dict[str, jax.Array]]:
        (value, squared_error), grads = jax.value_and_grad(loss, has_aux=True)(actor.params, *batch)
        return actor.step(_optimiser(config), grads), {"actor_loss": value, "squared_error": squared_error}

    actor, metrics = jax.lax.scan(step, agent.actor, (states, actions))
    return replace(agent, actor=actor), jax.tree.map(jnp.mean, metrics)
