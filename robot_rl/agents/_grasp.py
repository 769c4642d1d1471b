"""A gripper as a choice beside a continuous actor: open, stay or close, by a small critic of its own.

Double Q-learning (arXiv 1509.06461), as HIL-SERL has it for its grippers (arXiv 2410.21845). Each command to the
gripper costs this critic ``grasp_penalty``, which ends the chatter of fingers; the task's reward, and all other
critics, never hear of it. What was shown keeps a margin above what was not (DQfD, arXiv 1704.03732): else a choice that
nobody ever made may look as good as the expert's.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from robot_rl import losses, nets
from robot_rl.types import Transition

if TYPE_CHECKING:
    from robot_rl.agents.sac import Config

GRIPPERS = ("continuous", "discrete")
CHOICES = (-1.0, 0.0, 1.0)  # open, stay, close: what the last component of an action then is
STAY = 1
_THRESHOLD = 0.5  # of a continuous action, SERL's: beyond it, it opens or closes


class Grasp(NamedTuple):
    critic: nets.Trained
    target: Any  # parameters like the critic's


class _Critic(nn.Module):
    """States (..., D) to the value of each choice (..., 3)."""

    hidden: tuple[int, ...]
    layer_norm: bool
    activation: str
    kernel_init: str

    @nn.compact
    def __call__(self, state: jax.Array) -> jax.Array:
        x = nets.MLP(self.hidden, self.layer_norm, self.activation, self.kernel_init)(state)
        return nn.Dense(len(CHOICES), kernel_init=nets.INITS[self.kernel_init](0.01))(x)


def make(config: Config, key: jax.Array, state_dim: int) -> Grasp | None:
    """None where the gripper is continuous, so that such an agent is the same pytree as ever."""
    if config.gripper == "continuous":
        return None
    params = _network(config).init(key, jnp.zeros((1, state_dim)))["params"]
    return Grasp(nets.trained(optax.adam(config.critic_learning_rate), params), params)


def act(params: Any, state: jax.Array, key: jax.Array, config: Config, explore: bool) -> jax.Array:
    """The last component (..., 1) of an action at states (..., D): the best choice, and when exploring any with
    probability ``grasp_epsilon``."""
    best = jnp.argmax(_values(config, params, state), axis=-1)
    if explore:
        where, which = jax.random.split(key)
        random = jax.random.randint(which, best.shape, 0, len(CHOICES))
        best = jnp.where(jax.random.uniform(where, best.shape) < config.grasp_epsilon, random, best)
    return jnp.asarray(CHOICES)[best][..., None]


def choice_of(action: jax.Array) -> jax.Array:
    """Which of CHOICES the last component of actions (..., A) is, (...): a person's or a script's may lie between."""
    last = action[..., -1]
    return STAY + (last > _THRESHOLD).astype(jnp.int32) - (last < -_THRESHOLD).astype(jnp.int32)


def update(
    grasp: Grasp, batch: Transition, state: jax.Array, next_state: jax.Array, is_shown: jax.Array | None, config: Config
) -> tuple[Grasp, dict[str, jax.Array]]:
    """U updates on a batch (U, B, ...), each followed by a Polyak step of the target.

    ``state`` and ``next_state`` (U, B, D) are what the critic sees; no gradient reaches what they come from.
    ``is_shown`` (U, B): which rows keep the margin.
    """
    shown = jnp.zeros(batch.reward.shape, bool) if is_shown is None else is_shown
    values = partial(_values, config)

    def step(grasp: Grasp, inputs: tuple[jax.Array, ...]) -> tuple[Grasp, tuple[jax.Array, ...]]:
        state, next_state, choice, reward, discount, shown = inputs
        paid = reward - config.grasp_penalty * (choice != STAY)
        goal = losses.double_q_target(
            paid, discount, values(grasp.critic.params, next_state), values(grasp.target, next_state), config.discount
        )

        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            q = values(params, state)  # (B, 3)
            taken = jnp.take_along_axis(q, choice[:, None], axis=-1)[:, 0]
            value = losses.critic_loss(taken[None], goal)
            return value + losses.large_margin_loss(q, choice, shown, config.grasp_margin), taken

        (value, taken), grads = jax.value_and_grad(loss, has_aux=True)(grasp.critic.params)
        critic = grasp.critic.step(optax.adam(config.critic_learning_rate), grads)
        moved = Grasp(critic, nets.polyak(grasp.target, critic.params, config.polyak))
        return moved, (value, taken, jnp.mean((choice != STAY).astype(jnp.float32)))

    states = jax.lax.stop_gradient((state, next_state))
    inputs = (*states, choice_of(batch.action), batch.reward, batch.discount, shown)
    grasp, (value, taken, moved) = jax.lax.scan(step, grasp, inputs)
    metrics = {"grasp_loss": jnp.mean(value), "grasp_q": jnp.mean(taken), "grasp_commands": jnp.mean(moved)}
    return grasp, metrics


def _network(config: Config) -> _Critic:
    return _Critic(config.hidden, config.critic_layer_norm, config.activation, config.kernel_init)


def _values(config: Config, params: Any, state: jax.Array) -> jax.Array:
    output: Any = _network(config).apply({"params": params}, state)
    return output
