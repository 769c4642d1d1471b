"""A point on a line that must come to rest on a mark: small enough to train, save and film within a test.

Importing it registers ``Tiny-v0`` (``robot-rl train --gym tiny_env:Tiny-v0`` with this folder on the path),
``TinySilent-v0``, which reports no success, and ``TinyHuge-v0``, whose reward soon overflows float32 losses; also
``Fast-v0``, where the best paid way has a cost, and ``FastSilent-v0``, which does not report it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Tiny(gym.Env[dict[str, np.ndarray], np.ndarray]):
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode: str | None = None, reports: bool = True, reward: float = 1.0) -> None:
        self.render_mode, self._reports, self._reward = render_mode, reports, reward
        self.observation_space = spaces.Dict(
            {
                "point": spaces.Box(-2.0, 2.0, (1,), np.float64),
                "goal": spaces.Dict({"mark": spaces.Box(-1.0, 1.0, (1,), np.float32)}),
            }
        )
        self.action_space = spaces.Box(-0.5, 0.5, (1,), np.float32)
        self._point = self._mark = 0.0
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self._point, self._mark = self.np_random.uniform(-1.0, 1.0, 2)
        self._steps = 0
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self._point = float(np.clip(self._point + action[0], -2.0, 2.0))
        self._steps += 1
        success = abs(self._point - self._mark) < 0.2
        info = {"success": success} if self._reports else {}
        return self._obs(), self._reward * success, success, not success and self._steps >= 12, info

    def render(self) -> np.ndarray:
        frame = np.full((32, 64, 3), 255, np.uint8)
        for value, color in ((self._mark, (0, 0, 255)), (self._point, (0, 0, 0))):
            column = int(np.clip((value + 2.0) * 16.0, 2, 61))
            frame[8:24, column - 2 : column + 2] = color
        return frame

    def demonstrator(self, rng: np.random.Generator) -> Callable[[dict], np.ndarray]:
        """Steps towards the mark; one episode in four it is lazy, and fails."""
        gain = 0.0 if rng.random() < 0.25 else 1.0

        def act(obs: dict) -> np.ndarray:
            return np.clip(2.0 * gain * (obs["goal"]["mark"] - obs["point"]) + rng.normal(0.0, 0.1), -1.0, 1.0)

        return act

    def _obs(self) -> dict[str, Any]:
        return {"point": np.array([self._point]), "goal": {"mark": np.array([self._mark], np.float32)}}


class Fast(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """A runner who is paid for speed, and whom a speed above half costs 1 a step. Speed follows the action with a lag,
    so the cost of an action comes later."""

    def __init__(self, render_mode: str | None = None, reports: bool = True) -> None:
        self.render_mode, self._reports = render_mode, reports
        self.observation_space = spaces.Dict({"speed": spaces.Box(-1.0, 1.0, (1,), np.float32)})
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._speed, self._steps = 0.0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self._speed, self._steps = float(self.np_random.uniform(-0.3, 0.3)), 0
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self._speed += 0.5 * (float(action[0]) - self._speed)
        self._steps += 1
        info = {"cost": float(self._speed > 0.5)} if self._reports else {}
        return self._obs(), self._speed, False, self._steps >= 10, info

    def demonstrator(self, rng: np.random.Generator) -> Callable[[dict], np.ndarray]:
        """Keeps to a pace of its own, which may be a costly one."""
        pace = rng.uniform(0.2, 1.0)
        return lambda obs: np.clip(rng.normal(pace, 0.1, 1), -1.0, 1.0)

    def _obs(self) -> dict[str, np.ndarray]:
        return {"speed": np.array([self._speed], np.float32)}


for name, kwargs in {"Tiny-v0": {}, "TinySilent-v0": {"reports": False}, "TinyHuge-v0": {"reward": 3e38}}.items():
    if name not in gym.registry:
        gym.register(name, entry_point=Tiny, kwargs=kwargs)
for name, kwargs in {"Fast-v0": {}, "FastSilent-v0": {"reports": False}}.items():
    if name not in gym.registry:
        gym.register(name, entry_point=Fast, kwargs=kwargs)
