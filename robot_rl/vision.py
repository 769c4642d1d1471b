"""Whether a policy sees: which cameras, how large, and what then becomes of the readings that only a twin has.

A task says which of its observations come from the poses of its props (``object_keys``). With cameras these are
``hidden``, or given to the critic alone (``critic``: under names that begin with ``critic/``, which no actor reads), or
``seen`` by both. What the arm feels of itself stays. Images are ``camera/<name>``, uint8 (size_px, size_px, 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from robot_rl.config import check, choice, number
from robot_rl.spaces import PRIVILEGED_PREFIX
from robot_rl.types import Obs, Task

PREFIX = "camera/"


@dataclass(frozen=True)
class Config:
    cameras: tuple[str, ...] = ()  # none: the policy is given the objects' poses, and no GL library is needed
    size_px: int = number(64, 16, 512, "px, width and height of an image")
    objects: str = choice(
        "hidden", ("hidden", "critic", "seen"), "what a twin knows of the task's objects, with cameras"
    )

    def __post_init__(self) -> None:
        check(self)
        if len(set(self.cameras)) < len(self.cameras):
            raise ValueError(f"cameras = {','.join(self.cameras)}: name each once")


def observation_space(task: Task, config: Config) -> spaces.Dict:
    """The task's space as ``config`` shows it."""
    boxes: Mapping[str, spaces.Space] = task.observation_space.spaces
    if not config.cameras:
        return task.observation_space
    names = {name: shown for name in boxes if (shown := _shown(task, config, name))}
    image = spaces.Box(0, 255, (config.size_px, config.size_px, 3), np.uint8)
    return spaces.Dict(
        {shown: boxes[name] for name, shown in names.items()} | {PREFIX + name: image for name in config.cameras}
    )


def observe(task: Task, config: Config, obs: Obs, images: Mapping[str, Any]) -> Obs:
    """What of a task's observation is shown, under the names of ``observation_space``; and the images, by camera."""
    shown = {name: _shown(task, config, name) for name in task.observation_space.spaces}
    return {to: obs[name] for name, to in shown.items() if to} | {
        PREFIX + name: images[name] for name in config.cameras
    }


def _shown(task: Task, config: Config, name: str) -> str:
    """Under which name an observation is shown; "" where it is not."""
    if not config.cameras or config.objects == "seen" or name not in getattr(task, "object_keys", ()):
        return name
    return PRIVILEGED_PREFIX + name if config.objects == "critic" else ""
