"""Costs beside rewards: what SAC adds to itself where its ``constraint`` is not "none".

A step's cost is what the environment reports as ``info["cost"]``; ``batch.extra["cost"]`` has it. Two small critics
learn what it sums up to, and the greater of them counts.

lagrangian: at most ``cost_limit`` per step in the mean. The actor climbs Q - lam Q_c, and lam follows the excess:
reward constrained policy optimisation (arXiv 1805.11074), with SAC as in arXiv 2002.08550. Costs are bounded in the
mean, once it has learned.

recovery: Recovery RL (arXiv 2010.15920). The critic learns how likely a cost is soon, and an action above
``risk_threshold`` is replaced by the least risky of some candidates, where the paper has a second actor. As there, risk
is learned from the action that was executed and reward from the one that was proposed
(``batch.extra["proposed"]``): so the policy finds out that a risky proposal earns what its replacement earns. Unlike
there, the risk of what follows is that of the next action after replacement: else a policy that hurries makes every
state look lost, is overruled in all of them, and never hears what it should have done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robot_rl import losses, nets
from robot_rl.spaces import STATE
from robot_rl.types import Transition

if TYPE_CHECKING:
    from robot_rl.agents.sac import Config

CONSTRAINTS = ("none", "lagrangian", "recovery")
MEMBERS = 2
TARGET_CANDIDATES = 8  # fewer than when acting, for they are evaluated at every row of a batch


class Cost(NamedTuple):
    """What a constrained agent knows of costs."""

    critic: nets.Trained  # stacked (MEMBERS, ...)
    target: Any  # parameters like the critic's
    multiplier: jax.Array | None  # lam, scalar >= 0, reward per cost; None for recovery


def make(config: Config, network: nets.Critic, key: jax.Array, state_dim: int, action_dim: int) -> Cost | None:
    """None where nothing is constrained, so that such an agent is the same pytree as ever."""
    if config.constraint == "none":
        return None
    params = nets.init_ensemble(network, key, MEMBERS, state_dim, action_dim)
    # No cost is expected before one was seen: else recovery overrules every action from the first step on.
    params = params | {"Dense_0": jax.tree.map(jnp.zeros_like, params["Dense_0"])}  # the layer that gives the value
    multiplier = jnp.float32(config.init_multiplier) if config.constraint == "lagrangian" else None
    return Cost(nets.trained(optax.adam(config.critic_learning_rate), params), params, multiplier)


def stored(config: Config, action_dim: int) -> dict[str, tuple[int, ...]]:
    """What an update needs of each step besides the usual, by shape."""
    if config.constraint == "none":
        return {}
    return {"cost": ()} | ({"proposed": (action_dim,)} if config.constraint == "recovery" else {})


def take(batch: Transition, config: Config, action_dim: int) -> Transition:
    """``batch`` with nothing in ``extra`` but what is ``stored``; raises ValueError where some of it is missing."""
    names, extra = stored(config, action_dim), batch.extra or {}
    for name in names:
        if name not in extra:
            raise ValueError(
                f"batch.extra lacks '{name}', which constraint = '{config.constraint}' learns from: store it with "
                "each transition (ReplayBuffer(extra=agent.stored)), or set constraint = 'none'"
            )
    return batch._replace(extra={name: extra[name] for name in names} or None)


def evaluate(params: Any, network: nets.Critic, state: jax.Array, action: jax.Array) -> jax.Array:
    """The greater of the critics' values, (...), at states (..., D) and actions (..., A)."""
    return jnp.max(nets.apply_ensemble(network, params, state, action), axis=0)


def update(
    cost: Cost, network: nets.Critic, batch: Transition, next_action: jax.Array, action: jax.Array, config: Config
) -> tuple[Cost, dict[str, jax.Array]]:
    """U updates of the critics and, for a Lagrangian, one of the multiplier.

    Args:
        cost: to be updated.
        network: of one critic.
        batch: leaves (U, B, ...), ``extra`` as ``take`` leaves it.
        next_action: (U, B, A) what the policy would do in the next states, recovered where it recovers.
        action: (B, A) the policy's in the last B states.
        config: of the agent.
    """
    cost, metrics = _update_critics(cost, network, batch, next_action, config)
    if cost.multiplier is None:
        replaced = jnp.any(batch.extra["proposed"] != batch.action, axis=-1)
        return cost, metrics | {"recovered": jnp.mean(replaced.astype(jnp.float32))}  # share of the batch
    q = evaluate(cost.critic.params, network, batch.obs[STATE][-1], action)
    # Per step, from where there is no cost yet: where there is one already, no action may help any more.
    free = (batch.extra["cost"][-1] <= 0.0).astype(jnp.float32)
    mean = jnp.where(jnp.sum(free) > 0.0, jnp.sum(free * q) / jnp.maximum(jnp.sum(free), 1.0), jnp.mean(q))
    expected = (1.0 - config.cost_discount) * mean
    multiplier = losses.multiplier_step(cost.multiplier, expected, config.cost_limit, config.multiplier_learning_rate)
    metrics |= {"expected_cost": expected, "multiplier": multiplier}
    return cost._replace(multiplier=multiplier), metrics


def _update_critics(
    cost: Cost, network: nets.Critic, batch: Transition, next_action: jax.Array, config: Config
) -> tuple[Cost, dict[str, jax.Array]]:
    target_of = losses.risk_target if config.constraint == "recovery" else losses.cost_target

    def step(
        networks: tuple[nets.Trained, Any], inputs: tuple[Transition, jax.Array]
    ) -> tuple[tuple[nets.Trained, Any], tuple[jax.Array, jax.Array]]:
        critic, target = networks
        batch, next_action = inputs
        next_q = nets.apply_ensemble(network, target, batch.next_obs[STATE], next_action)
        goal = target_of(batch.extra["cost"], batch.discount, next_q, config.cost_discount)

        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            q = nets.apply_ensemble(network, params, batch.obs[STATE], batch.action)
            return losses.critic_loss(q, goal), q

        (value, q), grads = jax.value_and_grad(loss, has_aux=True)(critic.params)
        critic = critic.step(optax.adam(config.critic_learning_rate), grads)
        return (critic, nets.polyak(target, critic.params, config.polyak)), (value, q)

    (critic, target), (value, q) = jax.lax.scan(step, (cost.critic, cost.target), (batch, next_action))
    metrics = {"cost_critic_loss": jnp.mean(value) / MEMBERS, "cost_q": jnp.mean(q)}
    return cost._replace(critic=critic, target=target), metrics


def recover(
    params: Any, network: nets.Critic, state: jax.Array, proposed: jax.Array, mean: jax.Array, log_std: jax.Array,
    key: jax.Array, threshold: float, candidates: int,
) -> jax.Array:  # fmt: skip
    """``proposed`` (..., A) where its risk is at most ``threshold``, else the least risky of it and the candidates.

    Half of ``candidates`` are drawn from the policy, tanh N(mean, exp(log_std)^2), and half are uniform. All rows of a
    batch share the draws, so that a state gets the same action in a batch and alone.
    """
    from_policy = candidates // 2
    ones = (1,) * (proposed.ndim - 1)
    normal_key, uniform_key = jax.random.split(key)
    noise = jax.random.normal(normal_key, (from_policy, *ones, proposed.shape[-1]))
    shape = (candidates - from_policy, *ones, proposed.shape[-1])
    uniform = jax.random.uniform(uniform_key, shape, minval=-1.0, maxval=1.0)
    drawn = jnp.tanh(mean + jnp.exp(log_std) * noise)
    uniform = jnp.broadcast_to(uniform, (*shape[:1], *proposed.shape))
    pool = jnp.concatenate([proposed[None], drawn, uniform])  # (1 + candidates, ..., A)
    risk = evaluate(params, network, jnp.broadcast_to(state, (*pool.shape[:-1], state.shape[-1])), pool)
    best = jnp.take_along_axis(pool, jnp.argmin(risk, axis=0)[None, ..., None], axis=0)[0]
    return jnp.where((risk[0] <= threshold)[..., None], proposed, best)
