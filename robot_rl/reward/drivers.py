"""Who drives while a person labels by keys: the person, a policy or the task's scripted expert."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_rl.find import find
from robot_rl.reward.collect import Act, Device

if TYPE_CHECKING:
    import gymnasium as gym


@contextmanager
def open_device(name: str) -> Iterator[Device]:
    """A device of hardware/teleop, closed at the end. Raises LookupError for an unknown one, RuntimeError where it
    cannot be had."""
    module = find("hardware.teleop", name)
    device: Device = module.make(module.Config())
    try:
        yield device
    finally:
        device.close()


def driver(
    env: gym.Env, policy: Callable[[int], Act] | None, person: bool
) -> Callable[[int], Callable[[Any, Any], np.ndarray]]:
    """``seed -> (obs, reading) -> action`` for ``collect.watch``. Raises ValueError where nobody could drive."""
    if person:
        return lambda seed: lambda obs, reading: by_hand(env, reading)
    if policy is not None:
        play = policy
    elif (make := getattr(env.unwrapped, "demonstrator", None)) is not None:

        def play(seed: int) -> Act:
            return make(np.random.default_rng([seed, 1]))
    else:
        raise ValueError(f"{env.unwrapped} has no scripted expert: give --policy DIR, or drive it yourself, --person")

    def drive(seed: int) -> Callable[[Any, Any], np.ndarray]:
        act = play(seed)
        return lambda obs, reading: act(obs)

    return drive


def by_hand(env: gym.Env, reading: Any) -> np.ndarray:
    """A person's twist as an action of the task."""
    arm_env: Any = env.unwrapped
    in_base = importlib.import_module("hardware.teleop._device").in_base
    twist = in_base(reading, arm_env.state.tcp_quat_xyzw)
    return np.asarray(arm_env.task.steer(twist, reading.gripper, arm_env.state), np.float32)
