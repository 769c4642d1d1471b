"""The composition root: the one module that reaches tasks, arms and worlds, by name and at run time."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import gymnasium

from robot_rl.config import override
from robot_rl.find import find, nearest

WORLDS = {"sim": "sim"}
"""World name -> folder of its arms."""
SAFETY = {"guard": "controllers.guard", "energy": "controllers.filters.ledger"}
"""Section of settings -> module of its Config."""


def split_settings(settings: Sequence[str], sections: Sequence[str]) -> dict[str, list[str]]:
    """``["task.max_steps=5"] -> {"task": ["max_steps=5"]}``; raises ValueError on an unknown section."""
    out: dict[str, list[str]] = {section: [] for section in sections}
    for setting in settings:
        section, dot, rest = setting.partition(".")
        if not dot:
            raise ValueError(
                f"setting '{setting}': write it as section.name=value, section one of {', '.join(sections)}"
            )
        if section not in out:
            raise ValueError(nearest("section of settings", section, sections))
        out[section].append(rest)
    return out


def make_configs(task: str, arm: str = "panda", world: str = "sim", settings: Sequence[str] = ()) -> dict[str, Any]:
    """The configs of task, arm, guard and energy with settings such as ``task.max_steps=50`` applied.

    Raises LookupError for an unknown name and ValueError for a setting that cannot be taken.
    """
    if world not in WORLDS:
        raise LookupError(nearest("world", world, WORLDS))
    plugins = {"task": find("tasks", task), "arm": find(WORLDS[world], arm)}
    plugins |= {section: importlib.import_module(module) for section, module in SAFETY.items()}
    changes = split_settings(settings, list(plugins))
    configs = {}
    for section, module in plugins.items():
        try:
            configs[section] = override(module.Config(), changes[section])
        except ValueError as error:
            raise ValueError(f"{section}: {error}") from None
    return configs


def make_env(
    task: str,
    arm: str = "panda",
    world: str = "sim",
    settings: Sequence[str] = (),
    render_mode: str | None = None,
    goal: bool = False,
) -> gymnasium.Env[Any, Any]:
    """An ArmEnv: the task on a guarded arm. ``goal=True`` gives its GoalEnv view."""
    from robot_rl.env import ArmEnv, GoalView

    configs = make_configs(task, arm, world, settings)
    guarded_arm = importlib.import_module("controllers.guarded_arm")
    built = find("tasks", task).make(configs["task"])
    twin = find(WORLDS[world], arm).make(configs["arm"], built.scene)
    twin.ticks(1.0 / built.control_hz)  # a rate the twin cannot keep is refused before anything is written
    guarded = guarded_arm.GuardedArm(twin, built.bounds, configs["guard"], configs["energy"])

    def readings() -> dict[str, Any]:
        return twin.readings() | guarded.readings()

    env: gymnasium.Env[Any, Any] = ArmEnv(built, guarded, readings, guarded.place, twin.render, render_mode)
    return GoalView(env) if goal else env
