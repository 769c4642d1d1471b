"""Frames to label from episodes that are played for it: by a twin, which knows the truth, or before a person's eyes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from robot_rl.episode import episode_seed, flatten, truth_of
from robot_rl.reward.labels import NEGATIVE, POSITIVE, UNKNOWN, LabelSet, Origin
from robot_rl.reward.sources import Trajectory, thin

if TYPE_CHECKING:
    import gymnasium as gym

Act = Callable[[Any], np.ndarray]
"""One episode's driver: observation in, action in [-1, 1] out."""
LINGER = 12  # steps played on after a success: what it looks like from all sides, and just lost again
KINDS = ("demonstration", "near miss", "demonstration", "near miss", "wandering")
"""What episodes a twin plays, in turn."""


class Device(Protocol):
    """What is needed of a device in hardware/teleop."""

    def read(self) -> Any: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Plan:
    """How much of each episode is kept."""

    positives: int = 5  # frames of an episode, at most
    negatives: int = 15
    margin: int = 3  # frames before a person's word that get no label: nobody is quicker


def drive(kind: str, expert: Act | None, size: int, rng: np.random.Generator, horizon: int) -> Act:
    """The driver of one episode of a ``kind``, around ``expert`` (None: none, which leaves wandering).

    A near miss is an expert that is pushed aside for a while: a constant push, in places a gripper that lets go. After
    it the expert mends what it can. ``size``: of an action; ``horizon``: steps.
    """
    if expert is None or kind == "wandering":
        return _Wandering(rng, size)
    if kind == "near miss":
        return _Pushed(expert, rng, size, horizon)
    return expert


class _Wandering:
    """Goes straight for some steps, then another way."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self._rng, self._size, self._left = rng, size, 0

    def __call__(self, obs: Any) -> np.ndarray:
        if not self._left:
            self._left = int(self._rng.integers(2, 10))
            self._action = self._rng.uniform(-1.0, 1.0, self._size)
        self._left -= 1
        return self._action


class _Pushed:
    """An expert whose actions are off from one step to another, once or twice an episode."""

    def __init__(self, expert: Act, rng: np.random.Generator, size: int, horizon: int) -> None:
        self._expert, self._step = expert, 0
        self._pushes = []
        for _ in range(int(rng.integers(1, 3))):
            first = int(rng.integers(0, max(1, horizon // 2)))
            push = rng.normal(size=size) * rng.uniform(0.2, 0.8)
            self._pushes.append((first, first + int(rng.integers(5, 25)), push))

    def __call__(self, obs: Any) -> np.ndarray:
        action = np.asarray(self._expert(obs), np.float64)
        for first, last, push in self._pushes:
            if first <= self._step < last:
                action = action + push
        self._step += 1
        return np.clip(action, -1.0, 1.0)


def play(
    env: gym.Env, act: Act, after: Act, seed: int, source: str, index: int, stop: Callable[[], bool] = lambda: False
) -> Trajectory | None:
    """One episode and ``LINGER`` steps beyond a success, by ``after``; every frame has its truth. None where stopped.

    Raises ValueError where the environment does not tell success.
    """
    obs, info = env.reset(seed=seed)
    rows, told = [flatten(obs)], [truth_of(info)]
    left = LINGER
    truncated = False
    while left and not truncated:
        if stop():
            return None
        lingering = left < LINGER
        obs, _, _, truncated, info = env.step(np.asarray((after if lingering else act)(obs), np.float32))
        rows.append(flatten(obs))
        told.append(truth_of(info))
        left -= lingering or bool(told[-1])
    if told[-1] is None:
        raise ValueError(f"{env.unwrapped} does not tell success: label by keys, --keys keyboard")
    label = np.array([UNKNOWN if one is None else int(one) for one in told], np.int8)
    return Trajectory(source, index, _columns(rows), label, True, seed)


def collect(
    env: gym.Env,
    labels: LabelSet,
    episodes: int,
    seed: int,
    policy: Callable[[int], Act] | None = None,
    plan: Plan = Plan(),
    positives: int | None = None,
    on_episode: Callable[[int, Mapping[str, int]], None] = lambda count, counts: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, int]:
    """Play episodes in a world that knows the truth and add their frames; returns how many of each label were added.

    Without a ``policy`` (seed -> driver) the scripted expert plays, in every second episode pushed aside, and some only
    wander. ``positives``: how many positive frames there may be in all; beyond it negatives alone are added.
    """
    added = {"positive": 0, "negative": 0}
    size = int((env.action_space.shape or (1,))[0])
    task = getattr(env.unwrapped, "task", None)
    horizon = int(getattr(task, "max_steps", 100))
    first = 1 + max((one.episode for one in labels.origins().values() if one.source == _source(labels)), default=-1)
    for index in range(first, first + episodes):
        drawn = episode_seed(seed, "demo", index)
        rng = np.random.default_rng([drawn, 23])
        expert = _expert(env, drawn)
        act = policy(drawn) if policy is not None else drive(KINDS[index % len(KINDS)], expert, size, rng, horizon)
        if index % 2 or expert is None:
            after: Act = _Wandering(rng, size)
        else:
            after = _Shaky(expert, rng, size)
        episode = play(env, act, after, drawn, _source(labels), index, stop)
        if episode is None:
            break
        room = plan.positives if positives is None else min(plan.positives, positives - added["positive"])
        label = thin(episode.told, room, plan.negatives, rng)
        for name, count in append_known(labels, episode, label, "truth").items():
            added[name] += count
        on_episode(index - first + 1, added)
    return added


class _Shaky:
    """Stays about where it is, as a hand would: an expert's action with a tremor."""

    def __init__(self, expert: Act, rng: np.random.Generator, size: int) -> None:
        self._expert, self._rng, self._size = expert, rng, size

    def __call__(self, obs: Any) -> np.ndarray:
        action = np.asarray(self._expert(obs), np.float64)
        return np.clip(action + self._rng.normal(0.0, 0.3, self._size), -1.0, 1.0)


def watch(
    env: gym.Env, labels: LabelSet, device: Device, act: Callable[[int], Callable[[Any, Any], np.ndarray]],
    episodes: int, seed: int, plan: Plan, on_episode: Callable[[int, Mapping[str, int]], None],
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, int]:  # fmt: skip
    """Play episodes whose frames a person labels by ``device``'s keys; returns how many of each label were added.

    "success" says that from now on it is one, "fail" that it is none again; the ``plan.margin`` frames before either
    get no label. "discard" forgets the episode, "stop" ends. ``act(seed)`` gives ``(obs, reading) -> action``: whoever
    drives, the person may.
    """
    added = {"positive": 0, "negative": 0}
    first = 1 + max((one.episode for one in labels.origins().values() if one.source == _source(labels)), default=-1)
    for index in range(first, first + episodes):
        drawn = episode_seed(seed, "demo", index)
        driver = act(drawn)
        obs, _ = env.reset(seed=drawn)
        device.read()  # presses from before are of no episode
        rows = [flatten(obs)]
        presses: list[frozenset[str]] = [frozenset()]
        truncated, quit_now = False, False
        while not truncated and not quit_now:
            reading = device.read()
            obs, _, _, truncated, _ = env.step(np.asarray(driver(obs, reading), np.float32))
            rows.append(flatten(obs))
            presses.append(reading.events)
            quit_now = stop() or bool({"stop", "discard"} & reading.events)
        if "discard" not in presses[-1]:
            label = label_by_presses(presses, plan.margin)
            episode = Trajectory(_source(labels), index, _columns(rows), label, True, drawn)
            kept = thin(label, plan.positives, plan.negatives, np.random.default_rng([drawn, 23]))
            for name, count in append_known(labels, episode, kept, "keys").items():
                added[name] += count
        on_episode(index - first + 1, added)
        if stop() or "stop" in presses[-1]:
            break
    return added


def label_by_presses(presses: list[frozenset[str]], margin: int) -> np.ndarray:
    """(T + 1,) labels of frames at which these keys were pressed."""
    label = np.zeros(len(presses), np.int8)
    now = NEGATIVE
    for index, events in enumerate(presses):
        wanted = POSITIVE if "success" in events else NEGATIVE if "fail" in events else now
        if wanted != now:
            label[max(0, index - margin) : index] = UNKNOWN
        now = wanted
        label[index] = now
    return label


def append_known(labels: LabelSet, episode: Trajectory, label: np.ndarray, by: str) -> dict[str, int]:
    """Add the frames of ``episode`` that have a label; returns how many of each."""
    at = np.flatnonzero(label != UNKNOWN)
    if len(at):
        rows = {name: episode.observation[name][at] for name in labels.observation}
        labels.append(rows, label[at], at, Origin(episode.source, episode.episode, episode.seed, by))
    return {"positive": int(np.sum(label == POSITIVE)), "negative": int(np.sum(label == NEGATIVE))}


def _source(labels: LabelSet) -> str:
    return f"env:{labels.about.get('task', '')}"


def _expert(env: gym.Env, seed: int) -> Act | None:
    make = getattr(env.unwrapped, "demonstrator", None)
    return None if make is None else make(np.random.default_rng([seed, 1]))


def _columns(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
