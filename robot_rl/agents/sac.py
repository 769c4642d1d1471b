"""Soft actor-critic (arXiv 1812.05905) with a critic ensemble (REDQ, arXiv 2101.05982).

One update is ``utd_ratio`` critic updates, each followed by a Polyak step of the target, then one update of the actor
and one of the temperature, all in one compiled scan. Every network has its own optimiser, so that a network that is
not updated does not move at all (Adam on a zero gradient still moves). ``constraint`` bounds costs: _constraint.py.
``gripper`` = discrete makes the last component of the action a choice: _grasp.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from gymnasium import spaces

from robot_rl import losses, nets
from robot_rl.agents import _constraint, _grasp
from robot_rl.config import check, choice, number
from robot_rl.spaces import STATE, action_size, state_size
from robot_rl.types import POLICY, Transition


@dataclass(frozen=True)
class Config:
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

    gripper: str = choice("continuous", _grasp.GRIPPERS, "what the last component of the action is")
    grasp_penalty: float = number(0.02, 0.0, 100.0, "discrete: reward that a command to the gripper costs its critic")
    grasp_epsilon: float = number(0.05, 0.0, 1.0, "discrete: share of steps that explore with any choice")
    grasp_margin: float = number(0.05, 0.0, 100.0, "discrete: value by which a choice that was shown stays ahead")

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
        if self.gripper == "discrete" and self.constraint != "none":
            raise ValueError(
                f"constraint = '{self.constraint}' learns costs of continuous actions: give gripper = 'continuous'"
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SAC:
    actor: nets.Trained
    critic: nets.Trained  # stacked (N, ...)
    target: Any  # parameters like the critic's
    temperature: nets.Trained  # log alpha, scalar
    cost: _constraint.Cost | None  # None where nothing is constrained
    grasp: _grasp.Grasp | None  # None where the gripper is continuous
    key: jax.Array
    config: Config = field(metadata={"static": True})
    action_dim: int = field(metadata={"static": True})  # of the actor, without a discrete gripper

    def start(self) -> None:
        """A flat policy carries nothing."""

    def act(self, obs: dict, carry: Any, key: jax.Array, explore: bool) -> tuple[jax.Array, Any, dict]:
        """Action (..., A) in [-1, 1]: drawn when exploring, else tanh of the mean (``key`` is not read).

        With recovery it may be replaced; the third value then has what the policy had "proposed".
        """
        if self.config.constraint == "recovery":
            action, proposed = _act_safely(self.policy, obs[STATE], key, self.config, self.action_dim, explore)
            return action, carry, {"proposed": proposed}
        return _act(self.policy, obs[STATE], key, self.config, self.action_dim, explore), carry, {}

    def update(self, batch: Transition) -> tuple[SAC, dict[str, jax.Array]]:
        """``batch`` leaves are (U, B, ...): U critic updates, one of the actor, one of the temperature.

        ``batch.extra["source"]`` (U, B), where there is one, is other than POLICY for rows to clone. Raises ValueError
        where ``batch.extra`` lacks what is ``stored``.
        """
        source = (batch.extra or {}).get("source")
        batch = _constraint.take(batch, self.config, self.action_dim)
        return _update(self, batch, None if source is None else source != POLICY)

    @property
    def stored(self) -> dict[str, tuple[int, ...]]:
        """What a constraint learns from besides the usual, by shape."""
        return _constraint.stored(self.config, self.action_dim)

    @property
    def policy(self) -> Any:
        """Parameters of the actor; with recovery (actor, risk critic), with a discrete gripper (actor, its critic)."""
        if self.grasp is not None:
            return self.actor.params, self.grasp.critic.params
        if self.config.constraint == "recovery":
            assert self.cost is not None
            return self.actor.params, self.cost.critic.params
        return self.actor.params

    def with_policy(self, policy: Any) -> SAC:
        if self.grasp is not None:
            policy, choice = policy
            grasp = self.grasp._replace(critic=self.grasp.critic._replace(params=choice))
            return replace(self, actor=self.actor._replace(params=policy), grasp=grasp)
        if self.config.constraint == "recovery":
            assert self.cost is not None
            policy, risk = policy
            cost = self.cost._replace(critic=self.cost.critic._replace(params=risk))
            return replace(self, actor=self.actor._replace(params=policy), cost=cost)
        return replace(self, actor=self.actor._replace(params=policy))


def make(config: Config, observation_space: spaces.Space, action_space: spaces.Space, seed: int) -> SAC:
    """Raises ValueError for images (state-only for now) and for actions that are not a Box in [-1, 1]."""
    state_dim, action_dim = state_size(observation_space), action_size(action_space)
    if config.gripper == "discrete":
        action_dim -= 1
        if not action_dim:
            raise ValueError("gripper = 'discrete': the only component of the action would be a choice")
    key, actor_key, critic_key = jax.random.split(jax.random.key_data(jax.random.key(seed)), 3)
    actor = _actor(config, action_dim).init(actor_key, jnp.zeros((1, state_dim)))["params"]
    critic = nets.init_ensemble(_critic(config), critic_key, config.critics, state_dim, action_dim)
    temperature = jnp.log(jnp.float32(config.init_temperature))
    cost_key = jax.random.fold_in(critic_key, 1)  # of its own: the other networks begin as without a constraint
    return SAC(
        nets.trained(optax.adam(config.actor_learning_rate), actor),
        nets.trained(optax.adam(config.critic_learning_rate), critic),
        critic,
        nets.trained(optax.adam(config.temperature_learning_rate), temperature),
        _constraint.make(config, _critic(config), cost_key, state_dim, action_dim),
        _grasp.make(config, jax.random.fold_in(critic_key, 2), state_dim),
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
def _act(policy: Any, state: jax.Array, key: jax.Array, config: Config, action_dim: int, explore: bool) -> jax.Array:
    params, choice = policy if config.gripper == "discrete" else (policy, None)
    mean, log_std = nets.apply_gaussian(_actor(config, action_dim), params, state)
    action = nets.sample_squashed(key, mean, log_std)[0] if explore else jnp.tanh(mean)
    if choice is None:
        return action
    key = jax.random.fold_in(key, 1) if explore else key
    return jnp.concatenate([action, _grasp.act(choice, state, key, config, explore)], axis=-1)


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
    more: dict[str, jax.Array] = {}
    if agent.cost is not None:
        agent, more = _update_cost(agent, agent.cost, batch, next_key, actor_key)
        batch = batch._replace(action=batch.extra.get("proposed", batch.action), extra=None)
    if agent.grasp is not None:
        states = batch.obs[STATE], batch.next_obs[STATE]
        grasp, more = _grasp.update(agent.grasp, batch, *states, is_expert, agent.config)
        agent, batch = replace(agent, grasp=grasp), batch._replace(action=batch.action[..., :-1])
    agent, critic_metrics = _update_critics(agent, batch, next_key, subset_key)
    expert = None if is_expert is None else is_expert[-1]
    agent, actor_metrics = _update_actor(agent, batch.obs[STATE][-1], batch.action[-1], expert, actor_key)
    return replace(agent, key=key), critic_metrics | actor_metrics | more


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
) -> tuple[SAC, dict[str, jax.Array]]:
    """U critic updates on a batch (U, B, ...), each followed by a Polyak step of the target."""
    config, network = agent.config, _critic(agent.config)
    # The actor stands still meanwhile: all its next actions are drawn at once, outside the scan.
    next_action, log_prob = _draw(agent, agent.actor.params, batch.next_obs[STATE], next_key)  # (U, B, A), (U, B)
    bonus = -jnp.exp(agent.temperature.params) * log_prob * config.backup_entropy
    subset_keys = jax.random.split(subset_key, batch.reward.shape[0])
    members = jax.vmap(lambda key: losses.draw_subset(key, config.critics, config.target_critics))(subset_keys)

    def step(
        networks: tuple[nets.Trained, Any], inputs: tuple[Transition, jax.Array, jax.Array, jax.Array]
    ) -> tuple[tuple[nets.Trained, Any], tuple[jax.Array, jax.Array]]:
        critic, target = networks
        batch, next_action, bonus, members = inputs
        # Only the drawn members are evaluated at all.
        drawn = jax.tree.map(lambda leaf: leaf[members], target) if config.target_critics < config.critics else target
        next_q = nets.apply_ensemble(network, drawn, batch.next_obs[STATE], next_action)
        goal = losses.td_target(batch.reward, batch.discount, next_q, config.discount, bonus)

        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            q = nets.apply_ensemble(network, params, batch.obs[STATE], batch.action)
            return losses.critic_loss(q, goal), q

        (value, q), grads = jax.value_and_grad(loss, has_aux=True)(critic.params)
        critic = critic.step(optax.adam(config.critic_learning_rate), grads)
        return (critic, nets.polyak(target, critic.params, config.polyak)), (value, q)

    inputs = (batch, next_action, bonus, members)
    (critic, target), (value, q) = jax.lax.scan(step, (agent.critic, agent.target), inputs)  # q (U, N, B)
    metrics = {
        "critic_loss": jnp.mean(value) / config.critics,
        "q": jnp.mean(q),
        "q_std": jnp.mean(jnp.std(q, axis=1)),  # of the members: how far they disagree
    }
    return replace(agent, critic=critic, target=target), metrics


def _update_actor(
    agent: SAC, state: jax.Array, expert: jax.Array, is_expert: jax.Array | None, key: jax.Array
) -> tuple[SAC, dict[str, jax.Array]]:
    """One update of the actor, and one of the temperature, on states (B, D); ``expert`` (B, A) where ``is_expert``."""
    config, cost = agent.config, agent.cost
    multiplier = None if cost is None else cost.multiplier

    def value_of(action: jax.Array) -> jax.Array:
        q = nets.apply_ensemble(_critic(config), agent.critic.params, state, action)  # (N, B)
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
