"""ArmEnv: where task, arm and world meet. The only environment class there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import gymnasium
import numpy as np

from robot_rl.types import Arm, ArmState, Demonstrator, Pose, Start, Task


class GuardedArmLike(Arm, Protocol):
    """What ArmEnv needs of ``controllers.guarded_arm.GuardedArm``."""

    @property
    def fault(self) -> str: ...
    @property
    def clips(self) -> dict[str, int]: ...
    @property
    def energy(self) -> dict[str, float]: ...
    @property
    def energy_state(self) -> str: ...


class ArmEnv(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """A Gymnasium environment over a guarded arm, in whichever world it lives.

    ``info`` holds ``success`` (bool), ``reward_terms`` (dict), ``fault`` (why the guard tripped, or ""), ``clips``
    (control ticks of the episode in which each clip of the guard acted), ``energy`` (dict: the ledger over this step),
    ``cost`` (in [0, 1]: how short of free energy the step ran) and ``energy_depleted`` (bool). An episode terminates on
    success and on nothing else; running out of steps and a guard fault, an empty ledger among them, truncate.
    """

    def __init__(
        self,
        task: Task,
        arm: GuardedArmLike,
        readings: Callable[[], Mapping[str, np.ndarray]],
        reset_world: Callable[[Start], ArmState],
        render_frame: Callable[[], np.ndarray] | None = None,
        render_mode: str | None = None,
        narrate: Callable[[Mapping[str, float]], None] | None = None,
        go_home: Callable[[Start], ArmState] | None = None,
    ) -> None:
        """``go_home`` leaves the props where they are and brings the arm to a start by itself, where the world can.
        ``narrate`` is told of every reset (its seed) and step (action, reward and how it ended), for recorders."""
        self.metadata = {"render_modes": ["rgb_array"] if render_frame else [], "render_fps": round(task.control_hz)}
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode = '{render_mode}': there is {self.metadata['render_modes']}")
        self.render_mode = render_mode
        self.task, self.arm = task, arm
        self.observation_space = task.observation_space
        self.action_space = task.action_space
        self._readings, self._reset_world, self._render_frame = readings, reset_world, render_frame
        self._narrate, self._go_home = narrate, go_home
        self._origin: ArmState | None = None
        self._state: ArmState | None = None
        self._obs: dict[str, np.ndarray] = {}
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """``options``: ``{"start": Start}`` begins there instead of where the task draws; ``{"go_home": True}`` leaves
        the world as it is, and the arm goes to where the task draws its start.

        Raises ValueError where this world cannot do that.
        """
        super().reset(seed=seed)
        options = options or {}
        drawn = self.task.reset(self.np_random)
        begin = self._go_home if options.get("go_home") else self._reset_world
        if begin is None:
            raise ValueError("this world's arm does not go home by itself: use the world sim or hardware")
        self._origin = self._state = begin(options.get("start", drawn))
        self._steps = 0
        self._obs = self.task.observe(self._state, self._readings(), self._origin)
        if self._narrate is not None:
            self._narrate({"seed": -1 if seed is None else seed})
        return public(self._obs, self.observation_space), {"success": self.task.success(self._obs)}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        if self._origin is None or self._state is None:
            raise RuntimeError("step() before reset(): call reset() first")
        action = self._checked(action)
        self.arm.command(self.task.command(action, self._state))
        self._state = self.arm.wait(1.0 / self.task.control_hz)
        self._steps += 1
        fault = self.arm.fault
        previous, seen = self._obs, self.task.observe(self._state, self._readings(), self._origin)
        self._obs = keep_finite(seen, previous)
        terms = self.task.reward(previous, action, self._obs)
        success = self.task.success(self._obs)
        truncated = not success and (self._steps >= self.task.max_steps or fault != "")
        energy = self.arm.energy
        info = {"success": success, "reward_terms": terms, "fault": fault, "clips": self.arm.clips}
        info |= {"energy": energy, "cost": energy["cost"], "energy_depleted": self.arm.energy_state == "float"}
        reward = float(sum(terms.values()))
        if self._narrate is not None:
            told = {"reward": reward, "terminated": float(success), "truncated": float(truncated)}
            told |= {"success": float(success), "cost": energy["cost"]}
            told |= {f"action_{i}": value for i, value in enumerate(action.tolist())}
            self._narrate(told)
        return public(self._obs, self.observation_space), reward, success, truncated, info

    def render(self) -> Any:
        if self._render_frame is None or self.render_mode is None:
            return None
        return self._render_frame()

    def close(self) -> None:
        self.arm.close()

    def demonstrator(self, rng: np.random.Generator) -> Demonstrator:
        """A fresh scripted expert for one episode; it sees what a policy sees and acts through ``step``."""
        return self.task.demonstrator(rng)

    def start_here(self) -> Start:
        """The state that is now, as a start; at rest, and of a cable no more than how it is held."""
        state, readings = self.arm.read(), self._readings()
        poses = {prop.name: readings[f"prop/{prop.name}"] for prop in self.task.scene.props if prop.kind != "tool"}
        props = {name: Pose(pose[:3].copy(), pose[3:].copy()) for name, pose in poses.items()}
        return Start(Pose(state.tcp_pos_m, state.tcp_quat_xyzw), state.gripper, props)

    @property
    def state(self) -> ArmState:
        """What the arm measured last. Raises RuntimeError before the first ``reset``."""
        if self._state is None:
            raise RuntimeError("state before reset(): call reset() first")
        return self._state

    @property
    def private_obs(self) -> dict[str, np.ndarray]:
        """The newest observation with its ``sim/`` keys, which no agent is given."""
        return self._obs

    def _checked(self, action: np.ndarray) -> np.ndarray:
        """The action as float64 in [-1, 1]; raises ValueError, before anything moves, where it cannot be one."""
        action = np.asarray(action, np.float64)
        if action.shape != self.action_space.shape:
            raise ValueError(f"action has shape {action.shape}: this task takes {self.action_space.shape}")
        if not np.isfinite(action).all():
            raise ValueError(f"action is {action.tolist()} at step {self._steps}: every number has to be finite")
        return np.clip(action, -1.0, 1.0)


def keep_finite(seen: dict[str, np.ndarray], previous: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``seen``, unless a number in it is not finite: that measurement has tripped the guard and ends the episode; what
    was seen before it stands."""
    numbers = np.concatenate([value for value in seen.values() if value.dtype != np.uint8])
    return seen if np.isfinite(numbers).all() else previous


def public(obs: Mapping[str, np.ndarray], space: Any) -> dict[str, np.ndarray]:
    """What an agent may see of ``obs``, inside the bounds of the observation space."""
    return {
        key: obs[key]
        if box.dtype == np.uint8
        else np.minimum(np.maximum(obs[key].astype(np.float32), box.low), box.high)
        for key, box in space.spaces.items()
    }


class GoalView(gymnasium.Wrapper[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray], np.ndarray]):
    """The GoalEnv convention of gymnasium-robotics over an ArmEnv whose task has a goal.

    Observations are ``observation`` (the task's keys, sorted, in one vector, without those that show the goal: a
    relabelled transition must not show the old one), ``achieved_goal`` and ``desired_goal``. ``compute_reward`` is the
    sparse reward of the task and takes batches, as hindsight relabelling wants it.
    """

    def __init__(self, env: gymnasium.Env[dict[str, np.ndarray], np.ndarray]) -> None:
        super().__init__(env)
        self._arm_env = cast(Any, env.unwrapped)
        task = self._arm_env.task
        if not hasattr(task, "goal"):
            raise ValueError(f"{type(task).__module__} has no goal: give a task with goal() and reached()")
        spaces = task.observation_space.spaces
        self._keys = sorted(set(spaces) - set(task.goal_keys))
        goal = gymnasium.spaces.Box(-np.inf, np.inf, (task.goal_size,), np.float64)
        self.observation_space = gymnasium.spaces.Dict(  # type: ignore[assignment]
            {
                "observation": gymnasium.spaces.Box(
                    np.concatenate([spaces[key].low for key in self._keys]),
                    np.concatenate([spaces[key].high for key in self._keys]),
                    dtype=np.float32,
                ),
                "achieved_goal": goal,
                "desired_goal": goal,
            }
        )

    def reset(self, **kwargs: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        return self._view(obs), info

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        obs, _, terminated, truncated, info = self.env.step(action)
        view = self._view(obs)
        reward = float(self.compute_reward(view["achieved_goal"], view["desired_goal"], info))
        return view, reward, terminated, truncated, info

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> Any:
        """1.0 where the goal is reached, else 0.0; goals (..., G) give rewards (...)."""
        return np.asarray(self._arm_env.task.reached(achieved_goal, desired_goal), np.float64)

    def compute_terminated(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> Any:
        return np.asarray(self._arm_env.task.reached(achieved_goal, desired_goal))

    def compute_truncated(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> Any:
        return np.zeros(np.shape(achieved_goal)[:-1], bool)

    def _view(self, obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        achieved, desired = self._arm_env.task.goal(self._arm_env.private_obs)
        flat = np.concatenate([obs[key] for key in self._keys])
        return {"observation": flat, "achieved_goal": achieved, "desired_goal": desired}
