"""Any Gymnasium environment with a Box action, as one with actions in [-1, 1]."""

from __future__ import annotations

import difflib
import importlib
import importlib.util

import gymnasium as gym
import numpy as np
from gymnasium import spaces

_PACKAGES = ("gymnasium_robotics",)  # those whose ids have no namespace; imported only where an id is unknown
_NAMESPACES = {"robot_rl": "robot_rl.envs"}  # what registers a namespace, where it is not the package of that name
MAX_EPISODE_STEPS = 10_000  # of an environment that was registered without a limit; it may never end by itself


def make_gym(env_id: str, render_mode: str | None = None) -> gym.Env:
    """The environment ``env_id``, its actions rescaled to [-1, 1].

    ``package/Name-v0`` and ``package:Name-v0`` import the package first, and so do the Fetch tasks. An environment
    that was registered without ``max_episode_steps`` is truncated after ``MAX_EPISODE_STEPS``.
    Raises LookupError with the nearest id for an unknown one, ImportError for an environment whose packages are not
    installed, and ValueError for a malformed id and for actions that are not a bounded one-dimensional Box.
    """
    _register(env_id)
    try:
        env = gym.make(env_id, render_mode=render_mode)
    except (gym.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        raise ImportError(f"environment '{env_id}' needs a package that is not installed: {error}") from error
    except (gym.error.UnregisteredEnv, gym.error.DeprecatedEnv) as error:
        raise LookupError(_unknown(env_id, error)) from error
    except gym.error.Error as error:
        raise ValueError(f"environment '{env_id}' cannot be made: {error}") from error
    action_space = env.action_space
    if not isinstance(action_space, spaces.Box) or len(action_space.shape) != 1:
        env.close()
        raise ValueError(f"'{env_id}' has actions {action_space}: only a one-dimensional Box can be learned here")
    if not np.all(np.isfinite(action_space.low) & np.isfinite(action_space.high)):
        env.close()
        raise ValueError(
            f"'{env_id}' has unbounded actions {action_space}: wrap it so that its action space has limits"
        )
    if env.spec is None or env.spec.max_episode_steps is None:
        env = gym.wrappers.TimeLimit(env, MAX_EPISODE_STEPS)
    if np.all(action_space.low == -1.0) and np.all(action_space.high == 1.0):
        return env
    return gym.wrappers.RescaleAction(env, np.float32(-1.0), np.float32(1.0))


def _register(env_id: str) -> None:
    """Import what may register ``env_id``, if it is there: the package its namespace is named after, or a known one."""
    module, colon, _ = env_id.rpartition(":")
    if colon and not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"environment '{env_id}': write it as Name-v0, package/Name-v0 or package:Name-v0")
    if env_id in gym.registry or colon:
        return
    namespace, slash, _ = env_id.partition("/")
    if slash and not namespace.isidentifier():
        return
    for package in (_NAMESPACES.get(namespace, namespace),) if slash else _PACKAGES:
        if importlib.util.find_spec(package):
            gym.register_envs(importlib.import_module(package))


def _unknown(env_id: str, error: Exception) -> str:
    close = difflib.get_close_matches(env_id, list(gym.registry), n=3, cutoff=0.3)
    nearest = f"the nearest of {len(gym.registry)}: {', '.join(close)}" if close else "nothing is near it"
    return f"unknown Gymnasium environment '{env_id}' ({error}); {nearest}. Is its package installed?"
