"""Somebody beside the policy while it trains: a person at a device, or a script in their place.

They take over, act, and give back; they may call an episode a success or a failure, discard it, or stop everything.
What was executed is stored as the action, in the policy's own coordinates, with its source; every change of who acts
begins a new segment, so that nothing ever joins what did not follow.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from robot_rl.config import check, number
from robot_rl.episode import success_of
from robot_rl.find import find, names, nearest
from robot_rl.live_view import LiveView
from robot_rl.terminal import say as to_terminal
from robot_rl.types import INTERVENTION, POLICY

NOBODY, SCRIPTED = "nobody", "scripted"
DEVICES = "hardware.teleop"
_STREAM = 2  # of an episode's seed: the script's random numbers


@dataclass(frozen=True)
class Config:
    by: str = NOBODY  # or scripted, or a device: spacemouse, gamepad, keyboard
    patience_steps: int = number(40, 0, 10**6, "scripted: policy steps that the policy is left alone, and again")
    hold_steps: int = number(20, 1, 10**6, "scripted: policy steps for which it keeps control")
    share: float = number(1.0, 0.0, 1.0, "scripted: share of the episodes that it looks after")
    view_port: int = number(0, 0, 65535, "of a page on loopback that shows a person the twin; 0: none")

    def __post_init__(self) -> None:
        check(self)


def device_config(by: str) -> Any:
    """The default Config of the device ``by``; None where it is no device. Raises LookupError for an unknown name."""
    if by in (NOBODY, SCRIPTED):
        return None
    try:
        return find(DEVICES, by).Config()
    except LookupError:
        raise LookupError(nearest("intervention.by", by, (NOBODY, SCRIPTED, *names(DEVICES)))) from None


@dataclass(frozen=True)
class Wish:
    """What somebody beside the policy wants in one step."""

    action: np.ndarray | None = None  # (A,) in [-1, 1], instead of the policy's; None: the policy goes on
    event: str = ""  # success, fail, discard or stop: how the episode ends with this step


class Overseer(Protocol):
    """Who looks after the policy."""

    paced: bool  # whether steps have to last as long as an arm's, for a person to follow

    def begin(self, seed: int) -> None:
        """An episode begins."""

    def __call__(self, obs: Any) -> Wish: ...
    def close(self) -> None: ...


class Nobody:
    """The policy is on its own."""

    paced = False

    def begin(self, seed: int) -> None:
        """Nothing to do."""

    def __call__(self, obs: Any) -> Wish:
        return Wish()

    def close(self) -> None:
        """Nothing to do."""


class Scripted:
    """A task's scripted expert, in place of a person: it takes over from a policy that had ``patience_steps`` without
    a success, for ``hold_steps``, and so on. The same seed gives the same corrections."""

    paced = False

    def __init__(self, config: Config, demonstrator: Callable[[np.random.Generator], Callable[[Any], np.ndarray]]):
        self._config, self._make = config, demonstrator

    def begin(self, seed: int) -> None:
        rng = np.random.default_rng([seed, _STREAM])
        self._looks = rng.random() < self._config.share
        self._expert = self._make(rng)
        self._step = -1

    def __call__(self, obs: Any) -> Wish:
        self._step += 1
        round_steps = self._config.patience_steps + self._config.hold_steps
        if not self._looks or self._step % round_steps < self._config.patience_steps:
            return Wish()
        return Wish(np.asarray(self._expert(obs), np.float32))

    def close(self) -> None:
        """Nothing to do."""


class Person:
    """A person at a teleoperation device: moving it takes over, and so does its take-over button, until given back."""

    paced = True

    def __init__(self, device: Any, arm_env: Any, say: Callable[[str], None], view: LiveView | None = None) -> None:
        """``arm_env``: the ArmEnv whose task turns a twist into an action. ``say`` is told where the device is gone."""
        self._device, self._env, self._say, self._view = device, arm_env, say, view
        self._in_base = importlib.import_module(f"{DEVICES}._device").in_base
        self._held, self._fault = False, ""

    def beside(self, arm_env: Any) -> Person:
        """The same person, at the same device, with another task of the arm."""
        return Person(self._device, arm_env, self._say, self._view)

    def begin(self, seed: int) -> None:
        self._device.read()  # what was pressed before the episode is not about it
        self._held = False

    def __call__(self, obs: Any) -> Wish:
        if self._view is not None and self._view.watched:
            self._view.show(self._env.render())
        reading, state = self._device.read(), self._env.state
        if reading.fault and reading.fault != self._fault:
            self._say(reading.fault)
        self._fault = reading.fault
        self._held = (self._held or "take_over" in reading.events) and "hand_back" not in reading.events
        event = next((name for name in ("stop", "discard", "fail", "success") if name in reading.events), "")
        if not (reading.active or self._held):
            return Wish(None, event)
        twist = self._in_base(reading, state.tcp_quat_xyzw)
        return Wish(np.asarray(self._env.task.steer(twist, reading.gripper, state), np.float32), event)

    def close(self) -> None:
        self._device.close()
        if self._view is not None:
            self._view.close()


def make_overseer(
    config: Config, device: Any, env: Any, say: Callable[[str], None] = to_terminal, same: Overseer | None = None
) -> Overseer:
    """Who ``config`` names; ``device`` is the Config of a device. ``same``: a person who looks after another task of
    the arm, with the same device. Raises ValueError where the environment has no use for them, RuntimeError or OSError
    where the device is not there."""
    if config.by == NOBODY:
        return Nobody()
    if config.by == SCRIPTED:
        from robot_rl.demo import demonstrator_of

        return Scripted(config, demonstrator_of(env))
    arm_env = env.unwrapped
    if not hasattr(getattr(arm_env, "task", None), "steer"):
        raise ValueError(
            f"intervention.by = '{config.by}': {arm_env} is no arm that a person could steer; give scripted or nobody"
        )
    if isinstance(same, Person):
        return same.beside(arm_env)
    view = None
    if config.view_port:
        if arm_env.render_mode is None:
            raise ValueError(f"intervention.view_port = {config.view_port}: only a twin can be shown; give 0")
        view = LiveView(config.view_port)
        say(f"the twin is shown at {view.address}")
    try:
        return Person(find(DEVICES, config.by).make(device), arm_env, say, view)
    except BaseException:
        if view is not None:
            view.close()
        raise


class Oversight:
    """Whose turn it is, step by step, in one episode."""

    def __init__(self, overseer: Overseer, seed: int) -> None:
        overseer.begin(seed)
        self._overseer, self._wish = overseer, Wish()
        self.source, self.segment = POLICY, 0
        self._steps = 0

    @property
    def event(self) -> str:
        """How somebody ended the episode with the last step: success, fail, discard, stop; else empty."""
        return self._wish.event

    def choose(self, obs: Any, action: np.ndarray, extra: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """The action to execute where the policy would do ``action``, and what is stored besides: an intervention
        counts as what was proposed."""
        self._wish = self._overseer(obs)
        source = POLICY if self._wish.action is None else INTERVENTION
        self.segment += source != self.source and self._steps > 0
        self.source, self._steps = source, self._steps + 1
        if self._wish.action is None:
            return action, dict(extra)
        return self._wish.action, {**extra, "proposed": self._wish.action}

    def settle(
        self, reward: float, terminated: bool, truncated: bool, info: Mapping[str, Any]
    ) -> tuple[float, bool, bool, dict[str, Any]]:
        """What the step came to, in the person's judgement where they gave one. Success and failure are true ends,
        worth 1 and 0 as a task's own success is; after "discard" and "stop" something would have followed."""
        event, told = self._wish.event, {**info, "source": self.source, "segment": self.segment}
        if event in ("success", "fail"):
            succeeded = event == "success"
            reward += float(succeeded) - float(bool(success_of(info)))
            return reward, True, False, told | {"success": succeeded, "called": True}
        if event:
            told["discarded"] = event == "discard"
            return reward, terminated, not terminated, told
        return reward, terminated, truncated, told
