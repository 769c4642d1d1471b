"""The composition root: the one module that reaches tasks, arms and worlds, by name and at run time."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium

from robot_rl import gl, vision
from robot_rl.config import override
from robot_rl.find import find, nearest
from robot_rl.lab import tighten
from robot_rl.types import ArmState, Bounds, Start, Task

WORLDS = {"sim": "sim", "ros": "hardware.ros", "crisp": "hardware.crisp", "hardware": "hardware"}
"""World name -> folder of its arms, or the one module through which that world has any arm."""
DRIVERS = {"panda": "hardware.franka", "fr3": "hardware.franka", "ur5e": "hardware.ur"}
"""Arm name -> driver, in the world ``hardware``: a maker's arms share one."""
REMOTE = frozenset({"ros"})
"""Worlds whose arms are guarded where they are: guard and energy are settings of the node there."""
MOVE_S = 30.0  # longest way of a real arm to an episode's start
SAFETY = {"guard": "controllers.guard", "energy": "controllers.filters.ledger", "lab": "robot_rl.lab"}
"""Section of settings -> module of its Config."""
ALWAYS = {"vision": "robot_rl.vision", "reward": "robot_rl.reward.judge"}
"""Sections that every world has."""


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


def find_arm(world: str, arm: str) -> Any:
    """The module that makes ``arm`` in ``world``; raises LookupError for an unknown name."""
    if world not in WORLDS:
        raise LookupError(nearest("world", world, WORLDS))
    if world == "hardware":
        if arm not in DRIVERS:
            raise LookupError(nearest("arm with a driver", arm, DRIVERS))
        return importlib.import_module(DRIVERS[arm])
    module = importlib.import_module(WORLDS[world])
    return find(WORLDS[world], arm) if hasattr(module, "__path__") else module


def make_configs(
    task: str,
    arm: str = "panda",
    world: str = "sim",
    settings: Sequence[str] = (),
    more: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The configs of task, arm, guard and energy with settings such as ``task.max_steps=50`` applied; of task and arm
    only where the arm is guarded elsewhere. ``more`` names further sections and the modules of their Config.

    Raises LookupError for an unknown name and ValueError for a setting that cannot be taken.
    """
    plugins = {"task": find("tasks", task), "arm": find_arm(world, arm)}
    sections = ALWAYS | ({} if world in REMOTE else SAFETY) | dict(more or {})
    plugins |= {section: importlib.import_module(module) for section, module in sections.items()}
    own_hz = getattr(plugins["arm"], "CONTROL_HZ", None)  # an arm that is slower than the default
    if own_hz is not None and "guard" in plugins:
        settings = (f"guard.control_hz={own_hz}", *settings)
    changes = split_settings(settings, list(plugins))
    configs = {}
    for section, module in plugins.items():
        try:
            configs[section] = override(module.Config(), changes[section])
        except ValueError as error:
            raise ValueError(f"{section}: {error}") from None
    for section in ("lab", "vision"):  # one that says nothing is nobody's choice, and need not be written down
        if not changes.get(section):
            configs.pop(section, None)
    if not (configs["reward"].classifier or configs["reward"].vice):
        configs.pop("reward")
    elif getattr(configs["task"], "reward_kind", "sparse") != "sparse":
        raise ValueError(
            f"task.reward_kind = '{configs['task'].reward_kind}': the reward is learned; "
            "leave out one of task.reward_kind and reward.classifier"
        )
    return configs


def bounds_of(built: Task, configs: Mapping[str, Any]) -> Bounds:
    """What guards the arm: the task's bounds, tightened to the lab's. Raises ValueError where they do not meet."""
    return tighten(built.bounds, configs["lab"]) if "lab" in configs else built.bounds


def make_spaces(task: str, arm: str, world: str, settings: Sequence[str] = ()) -> tuple[Any, Any]:
    """Spaces of observations and actions, for what has no arm."""
    configs = make_configs(task, arm, world, settings)
    built = find("tasks", task).make(configs["task"])
    seen = configs.get("vision", vision.Config())
    return vision.observation_space(built, seen), built.action_space


def make_env(
    task: str,
    arm: str = "panda",
    world: str = "sim",
    settings: Sequence[str] = (),
    render_mode: str | None = None,
    goal: bool = False,
    beside: gymnasium.Env[Any, Any] | None = None,
) -> gymnasium.Env[Any, Any]:
    """An ArmEnv: the task on a guarded arm. ``goal=True`` gives its GoalEnv view. ``beside``: another ArmEnv whose arm
    and world this one shares, so that the two take turns; raises ValueError where their tasks want other worlds."""
    from robot_rl.env import ArmEnv, GoalView

    configs = make_configs(task, arm, world, settings)
    seen = configs.get("vision", vision.Config())
    if seen.cameras:
        _check_cameras(world, seen)
    guarded_arm = importlib.import_module("controllers.guarded_arm")
    built = find("tasks", task).make(configs["task"])
    if beside is not None:
        require_same_world(beside.unwrapped.task, built)  # type: ignore[attr-defined]
    judge = make_judge(configs, built, {"task": task, "arm": arm, "world": world}, lambda: made)  # nothing started yet
    shared = None if beside is None or world in REMOTE else beside.unwrapped.arm  # type: ignore[attr-defined]
    made = make_arm(task, arm, world, configs, built) if shared is None else shared.unguarded
    env: gymnasium.Env[Any, Any]
    if world in REMOTE:
        env = ArmEnv(built, made, made.readings, made.reset, None, render_mode, made.narrate, judge, knows_truth=False)
        return GoalView(env) if goal else env
    guarded = shared or guarded_arm.GuardedArm(made, bounds_of(built, configs), configs["guard"], configs["energy"])

    def readings() -> dict[str, Any]:
        return made.readings() | guarded.readings()

    if world == "sim":
        made.ticks(1.0 / built.control_hz)  # a rate the twin cannot keep is refused before anything is written

        def look() -> dict[str, Any]:
            return {name: made.render(seen.size_px, seen.size_px, name, plain=True) for name in seen.cameras}

        env = ArmEnv(
            built, guarded, readings, guarded.place, made.render, render_mode, judge=judge, seen=seen, look=look,
            go_home=partial(_go_home, guarded),
        )  # fmt: skip
    else:
        env = _real_env(built, guarded, readings, render_mode, bool(getattr(configs["arm"], "twin", "")), judge)
    return GoalView(env) if goal else env


def _check_cameras(world: str, seen: vision.Config) -> None:
    """Raises ValueError in a world without them, LookupError for an unknown one, OSError where nothing can draw."""
    if world != "sim":
        raise ValueError(
            f"vision.cameras = {','.join(seen.cameras)}: only a twin's cameras reach a policy; leave it empty in "
            f"world '{world}'"
        )
    known = importlib.import_module("sim._picture").CAMERAS
    for name in seen.cameras:
        if name not in known:
            raise LookupError(nearest("camera", name, known))
    gl.backend()


def _real_env(
    built: Task,
    guarded: Any,
    readings: Callable[[], dict[str, Any]],
    render_mode: str | None,
    twin: bool,
    judge: Any,
) -> gymnasium.Env[Any, Any]:
    """An ArmEnv around an arm that moves to each start by itself. A fault waits there for a person, but for that of a
    served ``twin``, whose new episode is a new world."""
    from robot_rl.env import ArmEnv

    moving = importlib.import_module("controllers.moving")
    begun: list[Start] = []

    def reset(start: Start) -> ArmState:
        begun[:] = [start]
        if guarded.fault and twin:
            guarded.clear_fault()
        elif guarded.fault:
            await_person(guarded)
        if hasattr(guarded.unguarded, "prepare"):
            guarded.unguarded.prepare(start)
        state = moving.move_to(guarded, start, MOVE_S, guarded.grant_energy)
        guarded.grant_energy()
        return state

    def home(start: Start) -> ArmState:
        begun[:] = begun or [start]  # what nobody measures stays where it was
        if guarded.fault:
            await_person(guarded)
        return _go_home(guarded, start)

    def seen() -> dict[str, Any]:
        found = readings()
        return found | moving.prop_readings(built.scene, prop_poses(found), begun[-1], guarded.read())

    return ArmEnv(built, guarded, seen, reset, None, render_mode, judge=judge, knows_truth=False, go_home=home)


def make_judge(configs: Mapping[str, Any], built: Task, about: Mapping[str, str], arm: Callable[[], Any]) -> Any:
    """What says success instead of the task; None where the settings name no classifier. ``arm()``: the twin, once
    there is one, at whose cameras the judge may look besides the policy's. Raises as ``Judge`` does."""
    if "reward" not in configs:
        return None
    from robot_rl.episode import fields_of
    from robot_rl.reward.judge import Judge, Nobody

    if configs["reward"].vice:
        return Nobody()
    fields = fields_of(vision.observation_space(built, configs.get("vision", vision.Config())))
    if about["world"] != "sim":
        return Judge(configs["reward"], fields, about)
    cameras = {vision.PREFIX + name for name in importlib.import_module("sim._picture").CAMERAS}

    def look(name: str, height: int, width: int) -> Any:
        return arm().render(width, height, name.removeprefix(vision.PREFIX), plain=True)

    return Judge(configs["reward"], fields, about, cameras, look)


def _go_home(guarded: Any, start: Start) -> ArmState:
    """Let go of what is held, and move to ``start.tcp`` through the guard, with energy for an episode; props stay.

    Raises TimeoutError where the arm does not arrive.
    """
    moving = importlib.import_module("controllers.moving")
    moving.let_go(guarded, start.gripper)
    state: ArmState = moving.move_to(guarded, start, MOVE_S, guarded.grant_energy)
    guarded.grant_energy()
    return state


def require_same_world(first: Task, second: Task) -> None:
    """Raises ValueError where two tasks cannot share an arm and what is around it."""
    for name in ("scene", "bounds", "control_hz"):
        if getattr(first, name) != getattr(second, name):
            raise ValueError(
                f"{type(first).__module__} and {type(second).__module__} cannot take turns on one arm: they differ in "
                f"{name}; give tasks that share it, such as object_relocation and object_relocation_back"
            )


def await_person(guarded: Any) -> None:
    """Ask at the terminal until a person has cleared the arm's fault; raises RuntimeError where there is none."""
    while fault := guarded.fault:
        if not sys.stdin.isatty():
            raise RuntimeError(
                f"the arm is in a fault ({fault}) and needs a person: mend its cause, and start again at a terminal, "
                "where the fault can be cleared"
            )
        print(f"The arm is in a fault ({fault}). Mend its cause, then press Enter to clear it.", file=sys.stderr)
        if not sys.stdin.readline():  # the end of the terminal is nobody's word
            raise RuntimeError(f"the arm is in a fault ({fault}), and the terminal is gone with the person at it")
        try:
            guarded.clear_fault()
        except ValueError as error:
            print(f"Not cleared: {error}", file=sys.stderr)


def prop_poses(readings: Mapping[str, Any]) -> dict[str, Any]:
    """The poses (7,) m, xyzw among ``readings``, by the name of the prop."""
    return {name.removeprefix("prop/"): pose for name, pose in readings.items() if name.startswith("prop/")}


def make_arm(task: str, arm: str, world: str, configs: Mapping[str, Any], built: Task) -> Any:
    """The arm itself, not guarded yet; drivers connect here."""
    module = find_arm(world, arm)
    if world == "sim":
        return module.make(configs["arm"], built.scene)
    return module.make(configs["arm"], arm, task, built.scene, built.bounds)
