"""Losses as pure functions of arrays: no networks, no state, no keys but the ones handed in.

Shapes: N critics, B batch, A action. ``discount`` is a transition's own, 0 only on a true end: a time-out bootstraps.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def draw_subset(key: jax.Array, num: int, subset: int) -> jax.Array:
    """``subset`` of ``num`` members, WITHOUT replacement (drawing one twice would lessen the pessimism), (subset,)."""
    return jax.random.choice(key, num, (subset,), replace=False)


def td_target(
    reward: jax.Array, discount: jax.Array, next_q: jax.Array, gamma: float, entropy_bonus: jax.Array | float = 0.0
) -> jax.Array:
    """y = r + gamma d (min_i Q_i(s', a') - alpha log pi(a'|s')), (...).

    SAC, arXiv 1812.05905, equations 3 and 5 with the least of the critics; REDQ, arXiv 2101.05982, algorithm 1, where
    ``next_q`` holds the drawn members only; RLPD, arXiv 2302.02948, algorithm 1, with or without the entropy term.

    Args:
        reward: (...).
        discount: (...) 0 on a true end, else 1. Masks the entropy as well: nothing is earned after the end.
        next_q: (M, ...) target values of the members to take the least of.
        gamma: discount per step.
        entropy_bonus: (...) -alpha log pi(a'|s'), or 0.0 to leave the entropy out of the backup.
    """
    return reward + gamma * discount * (jnp.min(next_q, axis=0) + entropy_bonus)


def double_q_target(
    reward: jax.Array, discount: jax.Array, next_q: jax.Array, next_target_q: jax.Array, gamma: float
) -> jax.Array:
    """y = r + gamma d Q'(s', argmax_a Q(s', a)), (...), for choices: one network picks, its target values the pick.

    Double DQN, arXiv 1509.06461, section "Double DQN"; ``next_q`` and ``next_target_q`` (..., choices).
    """
    best = jnp.argmax(next_q, axis=-1)[..., None]
    return reward + gamma * discount * jnp.take_along_axis(next_target_q, best, axis=-1)[..., 0]


def large_margin_loss(q: jax.Array, choice: jax.Array, is_expert: jax.Array, margin: float) -> jax.Array:
    """mean_B 1[expert] (max_a (Q(s, a) + l(a, a_expert)) - Q(s, a_expert)), scalar; l is ``margin``, and 0 at a_expert.

    DQfD, arXiv 1704.03732, equation 2; ``q`` (B, choices), ``choice`` (B,) made by the expert where ``is_expert`` (B,).
    """
    taken = jnp.take_along_axis(q, choice[:, None], axis=-1)[:, 0]
    raised = q + margin * (jnp.arange(q.shape[-1]) != choice[:, None])
    return jnp.mean(is_expert * (jnp.max(raised, axis=-1) - taken))


def critic_loss(q: jax.Array, target: jax.Array) -> jax.Array:
    """sum_i mean_B (Q_i - y)^2 / 2 for ``q`` (N, ...) and ``target`` (...): each member learns as if it were alone.

    SAC, arXiv 1812.05905, equation 5.
    """
    return 0.5 * jnp.sum(jnp.mean(jnp.square(q - target), axis=tuple(range(1, q.ndim))))


def actor_loss(log_prob: jax.Array, q: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """mean (alpha log pi(a|s) - Q(s, a)), scalar; ``log_prob`` and ``q`` (...). SAC, arXiv 1812.05905, equation 7."""
    return jnp.mean(temperature * log_prob - q)


def penalised_value(q: jax.Array, cost_q: jax.Array, multiplier: jax.Array | float) -> jax.Array:
    """Q(s, a) - lam Q_c(s, a), (...): what the actor of a Lagrangian climbs. Its gradient reaches both."""
    return q - multiplier * cost_q


def temperature_loss(log_temperature: jax.Array, log_prob: jax.Array, target_entropy: float) -> jax.Array:
    """mean -alpha (log pi(a|s) + H), scalar; only alpha gets a gradient. SAC, arXiv 1812.05905, equation 18."""
    return -jnp.exp(log_temperature) * jnp.mean(jax.lax.stop_gradient(log_prob) + target_entropy)


def cost_target(cost: jax.Array, discount: jax.Array, next_q: jax.Array, gamma: float) -> jax.Array:
    """y = c + gamma d max_i Q_i(s', a'), (...), for costs and discounts (...) and target values ``next_q`` (N, ...).

    The greatest of the critics where rewards have the least: an error then makes the policy careful, not careless.
    SAC with a cost critic, arXiv 2002.08550.
    """
    return cost + gamma * discount * jnp.max(next_q, axis=0)


def risk_target(cost: jax.Array, discount: jax.Array, next_q: jax.Array, gamma: float) -> jax.Array:
    """y = c + (1 - c) gamma d max_i Q_i(s', a'), (...) in [0, 1]: how likely a cost is, the sooner the more.

    Recovery RL, arXiv 2010.15920, where c is 0 or 1; here it may lie between, and is clipped into [0, 1], as is the
    next risk, which a network does not keep there of itself.

    Args:
        cost: (...).
        discount: (...) 0 on a true end, else 1.
        next_q: (N, ...) target values of all members.
        gamma: discount per step.
    """
    cost = jnp.clip(cost, 0.0, 1.0)
    return cost + (1.0 - cost) * gamma * discount * jnp.clip(jnp.max(next_q, axis=0), 0.0, 1.0)


def multiplier_step(multiplier: jax.Array, expected_cost: jax.Array, limit: float, rate: float) -> jax.Array:
    """[lam + eta (J_c - d)]_+, scalar: projected, so that it is exactly 0 once the constraint has slack for long.

    Reward constrained policy optimisation, arXiv 1805.11074.
    """
    return jnp.maximum(multiplier + rate * (expected_cost - limit), 0.0)


def likelihood_loss(log_prob: jax.Array) -> jax.Array:
    """mean -log pi(a|s), scalar: behaviour cloning by maximum likelihood."""
    return -jnp.mean(log_prob)


def filtered_cloning_loss(
    action: jax.Array, expert: jax.Array, q: jax.Array, expert_q: jax.Array, is_expert: jax.Array
) -> jax.Array:
    """mean_B 1[expert] 1[Q(s, a_expert) > Q(s, a)] mean_A (a - a_expert)^2, scalar.

    Nair et al., arXiv 1709.10089, equation 3: demonstrations are copied only where the critic still prefers them to
    the policy's own action, so a policy may become better than its teacher.

    Args:
        action: (B, A) the policy's.
        expert: (B, A) of the batch.
        q: (B,) value of ``action``.
        expert_q: (B,) value of ``expert``.
        is_expert: (B,) 1 where ``expert`` is a demonstration, else 0.
    """
    wanted = is_expert * (jax.lax.stop_gradient(expert_q) > jax.lax.stop_gradient(q))
    return jnp.mean(wanted * jnp.mean(jnp.square(action - expert), axis=-1))


def squared_error_loss(action: jax.Array, expert: jax.Array) -> jax.Array:
    """mean_B sum_A (a - a_expert)^2, scalar, for actions (..., A)."""
    return jnp.mean(jnp.sum(jnp.square(action - expert), axis=-1))
