"""Soft actor-critic (arXiv 1812.05905) with a critic ensemble (REDQ, arXiv 2101.05982).

One update is ``utd_ratio`` critic updates, each followed by a Polyak step of the target, then one update of the actor
and one of the temperature, all in one compiled scan. Every network has its own optimiser, so that a network that is
not updated does not move at all (Adam on a zero gradient still moves). ``constraint`` bounds costs: _constraint.py.
Images are seen through an encoder that the critics train: _eyes.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from gymnasium import spaces

from robot_rl import encoders, losses, nets
from robot_rl.agents import _constraint, _eyes
from robot_rl.config import check, choice, number
from robot_rl.spaces import STATE, action_size
from robot_rl.types import POLICY, Transition


@dataclass(frozen=True)
class Config(encoders.Settings):
    hidden: tuple[int, ...] = number((256, 256), 1, 8192, "widths of the hidden layers, actor and critics")
    activation: str = choice("relu", nets.ACTIVATIONS)
    kernel_init: str = choice("orthogonal", nets.INITS)
    actor_layer_norm: bool = False
    critic_layer_norm: bool = False
    log_std_range: tuple[float, float] = number((-5.0, 2.0), -20.0, 5.0, "of the action before its tanh")

    critics: int = number(2, 1, 100, "members of the ensemble")
    target_critics: int = number(2, 1, 100, "members, drawn anew per update, whose least value is the target")
    actor_critics: str = choice("min", ("min", "mean"), "what of the ensemble the actor climbs")
    discount: float = number(0.99, 0.0, 1.0, "gamma, per policy step")
    polyak: float = number(0.005, 0.0, 1.0, "tau, share of the critic that enters its target per critic update")
    backup_entropy: bool = True
    cloning_weight: float = number(0.0, 0.0, 1000.0, "of demonstrations in the actor's loss where the critic agrees")

    init_temperature: float = number(0.1, 1e-6, 100.0, "alpha at the start, reward per nat")
    target_entropy: float | None = number(None, -1000.0, 1000.0, "nat; none: -(action dimension)")
    actor_learning_rate: float = number(3e-4, 0.0, 1.0)
    critic_learning_rate: float = number(3e-4, 0.0, 1.0)
    temperature_learning_rate: float = number(3e-4, 0.0, 1.0)

    constraint: str = choice("none", _constraint.CONSTRAINTS, "on the costs that the environment reports")
    cost_discount: float = number(0.9, 0.0, 0.9999, "of costs, per policy step: how far ahead they are seen")
    cost_limit: float = number(0.02, 0.0, 1e6, "lagrangian: mean cost per step that is allowed")
    init_multiplier: float = number(0.1, 0.0, 1e6, "lagrangian: lam at the start, reward per cost")
    multiplier_learning_rate: float = number(0.001, 0.0, 1e3, "lagrangian: of lam, per actor update")
    risk_threshold: float = number(0.2, 0.0, 1.0, "recovery: risk from which on an action is replaced")
    candidates: int = number(64, 2, 65536, "recovery: actions to find the least risky of, half of them the policy's")

    batch_size: int = number(256, 1, 65536, "transitions per critic update")
    utd_ratio: int = number(1, 1, 1000, "critic updates per environment step, and per actor update")
    pretrain_updates: int = number(0, 0, 10**9, "critic updates from demonstrations alone, before it acts")
    demo_share: float = number(0.0, 0.0, 1.0, "share of each batch that was shown: demonstrations and interventions")
    start_steps: int = number(1000, 0, 10**9, "uniformly random environment steps first, where there are no demos")
    learning_starts: int = number(1000, 0, 10**9, "environment steps before the first update")

    @property
    def online(self) -> bool:
        """Whether it acts; from demonstrations alone it learns without."""
        return self.demo_share < 1.0

    def __post_init__(self) -> None:
        check(self)
        if self.target_critics > self.critics:
            raise ValueError(f"target_critics = {self.target_critics}: give at most critics = {self.critics}")
        if not self.log_std_range[0] < self.log_std_range[1]:
            raise ValueError(f"log_std_range = {self.log_std_range}: give low, high")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SAC:
    actor: nets.Trained
    critic: nets.Trained  # stacked (N, ...)
    target: Any  # parameters like the critic's
    temperature: nets.Trained  # log alpha, scalar
    cost: _constraint.Cost | None  # None where nothing is constrained
    eyes: _eyes.Eyes | None  # None where there are no images
    key: jax.Array
    config: Config = field(metadata={"static": True})
    action_dim: int = field(metadata={"static": True})

    def start(self) -> None:
        """A flat policy carries nothing."""

    def act(self, obs: dict, carry: Any, key: jax.Array, explore: bool) -> tuple[jax.Array, Any, dict]:
        """Action (..., A) in [-1, 1]: drawn when exploring, else tanh of the mean (``key`` is not read).

        With recovery it may be replaced; the third value then has what the policy had "proposed".
        """
        if self.config.constraint == "recovery":
            action, proposed = _act_safely(self.policy, obs[STATE], key, self.config, self.action_dim, explore)
            return action, carry, {"proposed": proposed}
        if self.eyes is not None:
            seen = {name: obs[name] for name in (STATE, *self.eyes.encoder.cameras) if name in obs}
            return (
                _act_seeing(self.actor.params, self.eyes, seen, key, self.config, self.action_dim, explore),
                carry,
                {},
            )
        return _act(self.actor.params, obs[STATE], key, self.config, self.action_dim, explore), carry, {}

    def update(self, batch: Transition) -> tuple[SAC, dict[str, jax.Array]]:
        """``batch`` leaves are (U, B, ...): U critic updates, one of the actor, one of the temperature.

        ``batch.extra["source"]`` (U, B), where there is one, is other than POLICY for rows to clone. Raises ValueError
        where ``batch.extra`` lacks what is ``stored``.
        """
        source = (batch.extra or {}).get("source")
        batch = _constraint.take(batch, self.config, self.action_dim)
        return _update(self, batch, None if source is None else source[-1] != POLICY)

    @property
    def stored(self) -> dict[str, tuple[int, ...]]:
        """What a constraint learns from besides the usual, by shape."""
        return _constraint.stored(self.config, self.action_dim)

    @property
    def policy(self) -> Any:
        """Parameters of the actor; with recovery (actor, risk critic), with images (actor, encoder)."""
        if self.eyes is not None:
            return self.actor.params, self.eyes.policy
        if self.config.constraint == "recovery":
            assert self.cost is not None
            return self.actor.params, self.cost.critic.params
        return self.actor.params

    def with_policy(self, policy: Any) -> SAC:
        if self.eyes is not None:
            actor, seen = policy
            return replace(self, actor=self.actor._replace(params=actor), eyes=self.eyes.with_policy(seen))
        if self.config.constraint == "recovery":
            assert self.cost is not None
            policy, risk = policy
            cost = self.cost._replace(critic=self.cost.critic._replace(params=risk))
            return replace(self, actor=self.actor._replace(params=policy), cost=cost)
        return replace(self, actor=self.actor._replace(params=policy))


def make(config: Config, observation_space: spaces.Space, action_space: spaces.Space, seed: int) -> SAC:
    """Raises ValueError for a space that no Encoder made, for actions that are not a Box in [-1, 1], and for images
    under a constraint; and as ``encoders.ImageEncoder.init`` does."""
    action_dim = action_size(action_space)
    key, actor_key, critic_key = jax.random.split(jax.random.key_data(jax.random.key(seed)), 3)
    eyes_key = jax.random.fold_in(actor_key, 1)  # of its own, as that of costs: the other networks begin as without
    eyes = _eyes.make(config, observation_space, eyes_key, optax.adam(config.critic_learning_rate), with_target=True)
    state_dim, judged_dim = _eyes.sizes(observation_space, eyes)
    if config.constraint != "none" and (eyes is not None or judged_dim != state_dim):
        raise ValueError(
            f"constraint = '{config.constraint}': costs are learned from the state alone; leave the cameras out, or "
            "give constraint = 'none'"
        )
    actor = _actor(config, action_dim).init(actor_key, jnp.zeros((1, state_dim)))["params"]
    critic = nets.init_ensemble(_critic(config), critic_key, config.critics, judged_dim, action_dim)
    temperature = jnp.log(jnp.float32(config.init_temperature))
    cost_key = jax.random.fold_in(critic_key, 1)  # of its own: the other networks begin as without a constraint
    return SAC(
        nets.trained(optax.adam(config.actor_learning_rate), actor),
        nets.trained(optax.adam(config.critic_learning_rate), critic),
        critic,
        nets.trained(optax.adam(config.temperature_learning_rate), temperature),
        _constraint.make(config, _critic(config), cost_key, state_dim, action_dim),
        eyes,
        key,
        config,
        action_dim,
    )


def _actor(config: Config, action_dim: int) -> nets.Gaussian:
    shape = (config.hidden, config.actor_layer_norm, config.activation, config.kernel_init)
    return nets.Gaussian(action_dim, *shape, log_std_range=config.log_std_range)


def _critic(config: Config) -> nets.Critic:
    return nets.Critic(config.hidden, config.critic_layer_norm, config.activation, config.kernel_init)


@partial(jax.jit, static_argnames=("config", "action_dim", "explore"))
def _act(params: Any, state: jax.Array, key: jax.Array, config: Config, action_dim: int, explore: bool) -> jax.Array:
    mean, log_std = nets.apply_gaussian(_actor(config, action_dim), params, state)
    return nets.sample_squashed(key, mean, log_std)[0] if explore else jnp.tanh(mean)


@partial(jax.jit, static_argnames=("config", "action_dim", "explore"))
def _act_seeing(
    params: Any, eyes: _eyes.Eyes, obs: dict, key: jax.Array, config: Config, action_dim: int, explore: bool
) -> jax.Array:
    state = _eyes.for_actor(obs, eyes.see(eyes.trained.params, obs))
    return _act(params, state, key, config, action_dim, explore)


@partial(jax.jit, static_argnames=("config", "action_dim", "explore"))
def _act_safely(
    policy: tuple[Any, Any], state: jax.Array, key: jax.Array, config: Config, action_dim: int, explore: bool
) -> tuple[jax.Array, jax.Array]:
    """The action to execute and the one the policy proposed, (..., A) each."""
    actor_params, risk_params = policy
    mean, log_std = nets.apply_gaussian(_actor(config, action_dim), actor_params, state)
    if not explore:
        key = jnp.zeros(2, jnp.uint32)  # the same candidates each time: the same state gives the same action
    key, pool_key = jax.random.split(key)
    proposed = nets.sample_squashed(key, mean, log_std)[0] if explore else jnp.tanh(mean)
    limits = config.risk_threshold, config.candidates
    return _constraint.recover(
        risk_params, _critic(config), state, proposed, mean, log_std, pool_key, *limits
    ), proposed


def _draw(agent: SAC, actor_params: Any, state: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    mean, log_std = nets.apply_gaussian(_actor(agent.config, agent.action_dim), actor_params, state)
    return nets.sample_squashed(key, mean, log_std)


@jax.jit
def _update(agent: SAC, batch: Transition, is_expert: jax.Array | None) -> tuple[SAC, dict[str, jax.Array]]:
    key, next_key, subset_key, actor_key = jax.random.split(agent.key, 4)
    cost_metrics: dict[str, jax.Array] = {}
    if agent.cost is not None:
        agent, cost_metrics = _update_cost(agent, agent.cost, batch, next_key, actor_key)
        batch = batch._replace(action=batch.extra.get("proposed", batch.action), extra=None)
    if agent.eyes is not None:
        batch = agent.eyes.shifted(batch, jax.random.fold_in(next_key, 1))
    agent, features, critic_metrics = _update_critics(agent, batch, next_key, subset_key)
    last = {name: part[-1] for name, part in batch.obs.items()}
    state, judged = _eyes.for_actor(last, features), _eyes.for_critic(last, features)
    agent, actor_metrics = _update_actor(agent, state, judged, batch.action[-1], is_expert, actor_key)
    return replace(agent, key=key), critic_metrics | actor_metrics | cost_metrics


def _update_cost(
    agent: SAC, cost: _constraint.Cost, batch: Transition, next_key: jax.Array, actor_key: jax.Array
) -> tuple[SAC, dict[str, jax.Array]]:
    """What the constraint learns from a batch (U, B, ...), with the actions that the reward's part draws as well."""
    config, network, params = agent.config, _critic(agent.config), agent.actor.params
    action, _ = _draw(agent, params, batch.obs[STATE][-1], actor_key)
    next_action, _ = _draw(agent, params, batch.next_obs[STATE], next_key)
    if config.constraint == "recovery":
        next_state, pool_key = batch.next_obs[STATE], jax.random.fold_in(next_key, 1)
        mean, log_std = nets.apply_gaussian(_actor(config, agent.action_dim), params, next_state)
        limits = config.risk_threshold, min(config.candidates, _constraint.TARGET_CANDIDATES)
        next_action = _constraint.recover(
            cost.critic.params, network, next_state, next_action, mean, log_std, pool_key, *limits
        )
    cost, metrics = _constraint.update(cost, network, batch, next_action, action, config)
    return replace(agent, cost=cost), metrics


def _update_critics(
    agent: SAC, batch: Transition, next_key: jax.Array, subset_key: jax.Array
) -> tuple[SAC, jax.Array | None, dict[str, jax.Array]]:
    """U critic updates on a batch (U, B, ...), each followed by a Polyak step of the target.

    The second value are the features (B, F) of the last of the U batches, as its critics saw them; None without images.
    """
    config, network, eyes = agent.config, _critic(agent.config), agent.eyes
    optimiser = optax.adam(config.critic_learning_rate)
    # The actor stands still meanwhile: all its next actions are drawn at once, outside the scan.
    next_features = None if eyes is None else eyes.see(eyes.trained.params, batch.next_obs)  # (U, B, F)
    next_state = _eyes.for_actor(batch.next_obs, next_features)
    next_action, log_prob = _draw(agent, agent.actor.params, next_state, next_key)  # (U, B, A), (U, B)
    bonus = -jnp.exp(agent.temperature.params) * log_prob * config.backup_entropy
    subset_keys = jax.random.split(subset_key, batch.reward.shape[0])
    members = jax.vmap(lambda key: losses.draw_subset(key, config.critics, config.target_critics))(subset_keys)

    def step(carry: tuple, inputs: tuple) -> tuple[tuple, tuple]:
        (critic, target), (seeing, lagging) = carry
        batch, next_action, bonus, members, key = inputs
        # Only the drawn members are evaluated at all.
        drawn = jax.tree.map(lambda leaf: leaf[members], target) if config.target_critics < config.critics else target
        ahead = None if eyes is None else eyes.see(lagging, batch.next_obs)
        next_q = nets.apply_ensemble(network, drawn, _eyes.for_critic(batch.next_obs, ahead), next_action)
        goal = losses.td_target(batch.reward, batch.discount, next_q, config.discount, bonus)

        def loss(params: Any, sight: Any) -> tuple[jax.Array, tuple]:
            features = None if eyes is None else eyes.see(sight, batch.obs, key if config.dropout else None)
            q = nets.apply_ensemble(network, params, _eyes.for_critic(batch.obs, features), batch.action)
            return losses.critic_loss(q, goal), (q, features)

        learning = (critic.params, None if seeing is None else seeing.params)
        (value, (q, features)), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(*learning)
        critic = critic.step(optimiser, grads[0])
        target = nets.polyak(target, critic.params, config.polyak)
        if seeing is not None:
            seeing = seeing.step(optimiser, grads[1])
            lagging = nets.polyak(lagging, seeing.params, config.polyak)
        return ((critic, target), (seeing, lagging)), (value, q, features)

    inputs = (batch, next_action, bonus, members, subset_keys)
    sight = (None, None) if eyes is None else (eyes.trained, eyes.target)
    start = (agent.critic, agent.target), sight
    # In a loop XLA's CPU convolutions run on one thread, by another routine, and forty times as long: no loop then.
    unroll = eyes is not None
    carry, (value, q, features) = jax.lax.scan(step, start, inputs, unroll=unroll)  # q (U, N, B)
    (critic, target), (seeing, lagging) = carry
    if eyes is not None and seeing is not None:
        eyes, features = replace(eyes, trained=seeing, target=lagging), features[-1]
    metrics = {
        "critic_loss": jnp.mean(value) / config.critics,
        "q": jnp.mean(q),
        "q_std": jnp.mean(jnp.std(q, axis=1)),  # of the members: how far they disagree
    }
    return replace(agent, critic=critic, target=target, eyes=eyes), features, metrics


def _update_actor(
    agent: SAC,
    state: jax.Array,
    judged: jax.Array,
    expert: jax.Array,
    is_expert: jax.Array | None,
    key: jax.Array,
) -> tuple[SAC, dict[str, jax.Array]]:
    """One update of the actor, and one of the temperature, on states (B, D) as the actor is given them and ``judged``
    (B, E) as the critics are; ``expert`` (B, A) where ``is_expert``."""
    judged = jax.lax.stop_gradient(judged)
    config, cost = agent.config, agent.cost
    multiplier = None if cost is None else cost.multiplier

    def value_of(action: jax.Array) -> jax.Array:
        q = nets.apply_ensemble(_critic(config), agent.critic.params, judged, action)  # (N, B)
        q = jnp.min(q, axis=0) if config.actor_critics == "min" else jnp.mean(q, axis=0)
        if cost is None or multiplier is None:
            return q
        cost_q = _constraint.evaluate(cost.critic.params, _critic(config), state, action)
        return losses.penalised_value(q, cost_q, multiplier)

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        action, log_prob = _draw(agent, params, state, key)
        q = value_of(action)
        value = losses.actor_loss(log_prob, q, jnp.exp(agent.temperature.params))
        if config.cloning_weight > 0.0 and is_expert is not None:
            value += config.cloning_weight * losses.filtered_cloning_loss(
                action, expert, q, value_of(expert), is_expert
            )
        # The same minimum, but steps that do not grow with the multiplier, however far it has to go.
        return value if multiplier is None else value / (1.0 + multiplier), log_prob

    (value, log_prob), grads = jax.value_and_grad(loss, has_aux=True)(agent.actor.params)
    target_entropy = -float(agent.action_dim) if config.target_entropy is None else config.target_entropy
    temperature_grad = jax.grad(losses.temperature_loss)(agent.temperature.params, log_prob, target_entropy)
    metrics = {
        "actor_loss": value,
        "entropy": -jnp.mean(log_prob),
        "temperature": jnp.exp(agent.temperature.params),
    }
    actor = agent.actor.step(optax.adam(config.actor_learning_rate), grads)
    temperature = agent.temperature.step(optax.adam(config.temperature_learning_rate), temperature_grad)
    return replace(agent, actor=actor, temperature=temperature), metrics
