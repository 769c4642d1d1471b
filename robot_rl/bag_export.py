"""Episodes out of recordings of the ROS graph: what a policy saw and did, as if it had been played in one process.

The policy's own words (``episode_step``) say where an episode begins and what each step did; states and readings of the
same stamps say what was seen, and the task observes them as it did then. An episode of which anything is missing, by a
lost message or a crash, is left out: nothing is ever put together from two.
"""

from __future__ import annotations

import bisect
import importlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from robot_rl import build
from robot_rl.env import keep_finite, public
from robot_rl.episode import Episode, flatten
from robot_rl.find import find
from robot_rl.store import EpisodeWriter, StoreInfo
from robot_rl.types import ArmState, Task

STATE_AGE_STEPS = 0.5
"""How much older than the state a reading may be, in policy steps: in real time the slower topics are, in lock-step one
that is missing is a whole step old."""


@dataclass(frozen=True)
class Exported:
    """What came of an export."""

    added: int
    held: int  # episodes of these seeds that the store had already
    left_out: Mapping[str, int]  # why -> how many

    def __str__(self) -> str:
        words = [f"{self.added} episodes added"]
        words += [f"{self.held} are there already"] if self.held else []
        words += [f"{count} left out: {why}" for why, count in self.left_out.items()]
        return "; ".join(words)


@dataclass
class _Told:
    """An episode as the policy told it."""

    seed: int
    stamps: list[int]  # ns, of the states: one more than steps
    sequence: int  # of its newest message; 0 where the recording does not say
    rows: list[dict[str, float]] = field(default_factory=list)


class _Missing(Exception):
    """Why an episode cannot be had."""


def export(
    bag: Path,
    out: Path,
    namespace: str | None = None,
    arm: str = "panda",
    world: str = "ros",
    settings: Sequence[str] = (),
    successes_only: bool = False,
) -> Exported:
    """Append the whole episodes of the recording ``bag`` to the store ``out``, with the settings they were played with.

    Raises LookupError where the recording has no episodes, several policies' or a reading too few, ValueError for
    settings that cannot be taken, and what ``EpisodeWriter`` raises.
    """
    reader: Any = importlib.import_module("controllers.bag_reader")
    task_name, topic, stories = _read_stories(reader, bag, namespace)
    made = build.make_configs(task_name, arm, world, settings)
    task = cast(Task, find("tasks", task_name).make(made["task"]))
    told, left_out = _episodes(stories, task)
    seen = _Seen(reader, bag, topic.rsplit("/", 1)[0], task, [stamp for one in told for stamp in one.stamps])
    info = StoreInfo.of(
        cast(Any, SimpleNamespace(observation_space=task.observation_space, action_space=task.action_space)),
        task_name, arm, world, {section: asdict(config) for section, config in made.items()},
    )  # fmt: skip
    added = held = 0
    with EpisodeWriter(out, info) as writer:
        for one in told:
            if one.seed in writer.seeds:
                held += 1
                continue
            try:
                episode = _episode(one, seen, task)
            except _Missing as why:
                left_out[str(why)] += 1
                continue
            if successes_only and not episode.succeeded:
                left_out["no success"] += 1
                continue
            writer.append(episode)
            added += 1
    return Exported(added, held, dict(left_out))


def _read_stories(reader: Any, bag: Path, namespace: str | None) -> tuple[str, str, list[tuple[int, Any]]]:
    """The task, the topic of the story, and its messages with their sequence numbers."""
    types: Any = importlib.import_module("controllers.bag_types")
    word = "/episode_step" if namespace is None else f"/{namespace.strip('/')}/episode_step"
    found: dict[str, list[tuple[int, Any]]] = {}
    for message in reader.messages(bag, lambda name: name.endswith(word)):
        story = (message.sequence, types.decode(message.topic.type, message.data))
        found.setdefault(message.topic.name, []).append(story)
    if len(found) != 1:
        several = f"the episodes of {', '.join(found)}: choose one, --namespace" if found else "no episodes"
        raise LookupError(f"{bag} has {several}{'' if found else f' (nothing on *{word}); was a policy at work?'}")
    ((topic, stories),) = found.items()
    tasks = {message.header.frame_id for _, message in stories}
    if len(tasks) > 1:
        raise LookupError(f"{bag} has episodes of several tasks, {', '.join(sorted(tasks))}: record them one by one")
    return tasks.pop(), topic, stories


def _episodes(stories: Iterable[tuple[int, Any]], task: Task) -> tuple[list[_Told], Counter[str]]:
    """The episodes that were told from beginning to end, and why others were not."""
    whole: list[_Told] = []
    left_out: Counter[str] = Counter()
    now: _Told | None = None
    counted = False  # that the episode which is being told will not be whole
    for sequence, message in stories:
        row = dict(zip(message.name, message.position, strict=True))
        stamp_ns = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
        if "seed" in row:
            left_out["its end was not recorded"] += now is not None
            now, counted = _Told(int(row["seed"]), [stamp_ns], sequence), False
            continue
        if now is None:
            left_out["its beginning was not recorded"] += not counted
            counted = True
        elif _follows(now, sequence, stamp_ns, task):
            now.rows.append(row)
            now.stamps.append(stamp_ns)
            now.sequence = sequence
        else:
            left_out["a step was not recorded"] += 1
            now, counted = None, True
        if row["terminated"] or row["truncated"]:
            whole += [now] if now is not None else []
            now, counted = None, False
    left_out["its end was not recorded"] += now is not None
    return whole, +left_out


def _follows(now: _Told, sequence: int, stamp_ns: int, task: Task) -> bool:
    """Whether nothing lies between the newest step and this one: by the publisher's count, else by the clock."""
    if sequence and now.sequence:
        return sequence == now.sequence + 1 and stamp_ns > now.stamps[-1]
    return 0 < stamp_ns - now.stamps[-1] < 1.5e9 / task.control_hz


class _Seen:
    """States and readings by stamp, of those stamps only that episodes need."""

    def __init__(self, reader: Any, bag: Path, namespace: str, task: Task, stamps: Iterable[int]) -> None:
        self._m: Any = importlib.import_module("controllers.messages")
        self._types: Any = importlib.import_module("controllers.bag_types")
        m = self._m
        self._stamps = sorted(set(stamps))
        self._age_ns = STATE_AGE_STEPS * 1e9 / task.control_hz
        self._core = (m.CURRENT_POSE, m.CURRENT_TWIST, m.JOINT_STATES, m.WRENCH)
        self._raw: dict[int, dict[str, tuple[int, Any]]] = {stamp: {} for stamp in self._stamps}
        self._props = bool(task.scene.props)
        names = {f"{namespace}/{word}": word for word in (*self._core, m.ENERGY_STATE, m.PROPS)}
        for message in reader.messages(bag, names.__contains__):
            self._keep(names[message.topic.name], message)

    def _keep(self, word: str, message: Any) -> None:
        if word == self._m.ENERGY_STATE:
            found = self._m.from_columns(self._types.decode(message.topic.type, message.data), self._m.ENERGY)
            stamp_ns = self._m.columns_ns(found)
        else:
            found, stamp_ns = message, self._types.header_ns(message.data)
        index = bisect.bisect_left(self._stamps, stamp_ns)
        if index == len(self._stamps):
            return
        needed_ns = self._stamps[index]
        kept = self._raw[needed_ns]
        fits = stamp_ns == needed_ns if word in self._core else needed_ns - stamp_ns < self._age_ns
        if fits and stamp_ns >= kept.get(word, (0, None))[0]:
            kept[word] = (stamp_ns, found)

    def at(self, stamp_ns: int) -> tuple[ArmState, dict[str, np.ndarray]]:
        """What was seen at a stamp; raises _Missing."""
        m, kept = self._m, self._raw[stamp_ns]
        needed = (*self._core, m.ENERGY_STATE, *((m.PROPS,) if self._props else ()))
        if lacking := [word for word in needed if word not in kept]:
            raise _Missing(f"{' and '.join(lacking)} of one of its states was not recorded")
        four = m.StateMessages(*(self._decode(kept[word][1]) for word in self._core))
        joints = [name for name in four.joints.name if name != m.GRIPPER_JOINT]
        state = m.from_state(four, joints, m.GRIPPER_JOINT if len(joints) < len(four.joints.name) else None)
        row = kept[m.ENERGY_STATE][1]
        readings = {"energy": np.array([row["share"], row["alpha_min"]])}
        if self._props:
            poses = m.from_props(self._decode(kept[m.PROPS][1]))
            readings |= {f"prop/{name}": pose for name, pose in poses.items()}
        return state, readings

    def _decode(self, message: Any) -> Any:
        return self._types.decode(message.topic.type, message.data)


def _episode(told: _Told, seen: _Seen, task: Task) -> Episode:
    """Raises _Missing where something of it was not recorded, or its rewards are not those of these settings."""
    origin, readings = seen.at(told.stamps[0])
    obs = _observe(task, origin, readings, origin)
    observations = [flatten(public(obs, task.observation_space))]
    size = int(task.action_space.shape[0])
    actions = np.array([[row[f"action_{i}"] for i in range(size)] for row in told.rows])
    for row, action, stamp_ns in zip(told.rows, actions, told.stamps[1:], strict=True):
        state, readings = seen.at(stamp_ns)
        previous, obs = obs, keep_finite(_observe(task, state, readings, origin), obs)
        if abs(float(sum(task.reward(previous, action, obs).values())) - row["reward"]) > 1e-6:
            raise _Missing("its rewards are not those of this task: give the --set it was played with")
        observations.append(flatten(public(obs, task.observation_space)))

    def column(name: str, dtype: Any) -> np.ndarray:
        return np.asarray([row[name] for row in told.rows], dtype)

    return Episode(
        observation={name: np.stack([row[name] for row in observations]) for name in observations[0]},
        action=actions.astype(np.float32),
        reward=column("reward", np.float32),
        terminated=column("terminated", bool),
        truncated=column("truncated", bool),
        success=column("success", bool),
        seed=told.seed,
        cost=column("cost", np.float32) if all("cost" in row for row in told.rows) else None,
    )


def _observe(
    task: Task, state: ArmState, readings: Mapping[str, np.ndarray], origin: ArmState
) -> dict[str, np.ndarray]:
    try:
        return task.observe(state, readings, origin)
    except KeyError as error:
        raise LookupError(f"the task needs the reading {error}, which the recording does not have") from error
