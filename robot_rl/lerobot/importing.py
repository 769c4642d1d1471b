"""A LeRobot dataset v3.0 as an episode folder: our own exports as they were, others by a map of names.

The folder is written beside the output and moved there at the end: an import that fails leaves nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from robot_rl.episode import Episode
from robot_rl.files import disk_errors, sync_folder
from robot_rl.lerobot import layout
from robot_rl.lerobot.mapping import STEPS, Origin, origins, parse
from robot_rl.lerobot.pictures import from_png
from robot_rl.lerobot.source import Dataset, Raw
from robot_rl.store import EpisodeWriter, StoreInfo


@dataclass(frozen=True)
class Options:
    """How to read what a dataset leaves open."""

    rename: Sequence[str] = ()  # "observation.state[0:3]=tcp_pos": theirs to ours
    action_scale: Sequence[float] = ()  # their number that is our 1, one for all or one a component; empty: 1
    clip_actions: bool = False  # to [-1, 1], instead of refusing what is beyond
    success_reward: float = 1.0  # a step of at least this reward is a success, where there is no next.success
    assume: Literal["success", "failure"] | None = None  # of every episode, where there is no reward either
    terminal: Literal["success", "done"] = "success"  # what ends for good, where there is no next.truncated
    cut_at_done: bool = False  # drop frames behind the first that is done


@dataclass(frozen=True)
class Imported:
    """What was read."""

    episodes: int
    steps: int
    successes: int
    unused: tuple[str, ...]  # features that nothing here has a place for


def info_of(dataset: Dataset) -> StoreInfo:
    """What our own export noted about its episodes; raises ValueError where the dataset has another origin."""
    about = dataset.ours
    if about is None:
        raise ValueError(
            f"{dataset.root} was not written by robot-rl, or changed since: say whose episodes they are, "
            "--task NAME --arm NAME"
        )
    observation = {name: (tuple(one["shape"]), one["dtype"]) for name, one in about["observation"].items()}
    return StoreInfo(
        about["task"], about["arm"], about["world"], observation, about["action_dim"], about["configs"], about["costs"]
    )


def import_dataset(
    dataset: Dataset,
    out: Path,
    info: StoreInfo,
    options: Options | None = None,
    on_episode: Callable[[int, int], None] = lambda i, n: None,
) -> Imported:
    """Write the episodes of ``dataset`` to ``out``, which must not exist, as those that ``info`` describes.

    Raises FileExistsError, LookupError and ValueError that name the feature, the value and the flag that helps.
    """
    options = options or Options()
    if out.exists():
        raise FileExistsError(f"--out {out} exists: give another folder, or remove it")
    found = origins(dataset, info, parse(options.rename))
    if layout.SUCCESS not in found and layout.REWARD not in found and options.assume is None:
        raise ValueError(
            f"{dataset.root} has neither next.reward nor next.success: --rename THEIRS=next.reward, or "
            "--assume success where each episode ends in one, as demonstrations do"
        )
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp"))
        try:
            reader = _Reader(dataset, info, found, options)
            steps = successes = 0
            with EpisodeWriter(temporary / "episodes", info) as writer:
                for raw in dataset.episodes([origin.feature for origin in found.values()]):
                    episode = reader.episode(raw)
                    try:
                        writer.append(episode)
                    except ValueError as error:
                        raise ValueError(f"{dataset.root}: episode {raw.index}: {error}") from error
                    steps, successes = steps + len(episode), successes + episode.succeeded
                    on_episode(len(writer), len(dataset))
            os.rename(temporary / "episodes", out)
            sync_folder(out.parent)
        finally:
            dataset.close()
            shutil.rmtree(temporary, ignore_errors=True)
    used = {origin.feature for origin in found.values()} | layout.COUNTERS.keys()
    if dataset.ours is not None:
        used |= {one["feature"] for one in dataset.ours["observation"].values()}
    return Imported(len(dataset), steps, successes, tuple(name for name in dataset.features if name not in used))


class _Reader:
    """Episodes of a dataset as ours."""

    def __init__(self, dataset: Dataset, info: StoreInfo, found: Mapping[str, Origin], options: Options) -> None:
        self._dataset, self._info, self._found, self._options = dataset, info, found, options
        self._scale = np.asarray(options.action_scale or (1.0,), np.float64)
        if len(self._scale) not in (1, info.action_dim) or not np.all(self._scale > 0.0):
            raise ValueError(
                f"--action-scale {' '.join(map(str, options.action_scale))}: give one number > 0, or one for each of "
                f"the {info.action_dim} components of the action"
            )
        self._as_they_are = dataset.ours is not None and not options.action_scale and not options.clip_actions

    def episode(self, raw: Raw) -> Episode:
        """Raises ValueError that names the episode, the feature, the value and the remedy."""
        steps = {name: self._part(raw, self._found[name]) for name in STEPS if name in self._found}
        columns = {name: rows[:, 0] for name, rows in steps.items() if name != layout.ACTION}
        success, reward = self._outcome(columns, len(raw))
        terminated, truncated = self._ends(columns, success)
        count = self._count(raw, terminated | truncated | (columns.get(layout.DONE, terminated) != 0))
        if count < len(raw):
            terminated, truncated = terminated[:count], truncated[:count]
            truncated[-1] |= not terminated[-1]
        observation = {name: self._seen(raw, name)[: count + 1] for name in self._info.observation}
        cost = columns[layout.COST][:count].astype(np.float32) if layout.COST in columns else None
        return Episode(
            observation=observation,
            action=self._actions(raw, steps[layout.ACTION][:count]),
            reward=reward[:count],
            terminated=terminated,
            truncated=truncated,
            success=success[:count],
            seed=int(raw.row[layout.SEED]) if raw.is_ours else -1 - raw.index,
            cost=cost,
        )

    def _part(self, raw: Raw, origin: Origin) -> np.ndarray:
        return self._dataset.numbers(raw, origin.feature)[:, origin.start : origin.end]

    def _seen(self, raw: Raw, name: str) -> np.ndarray:
        """(T + 1, ...) of an observation; what follows the last frame is a repetition of it where nobody kept it."""
        (shape, dtype), origin = self._info.observation[name], self._found[name]
        if layout.is_image(shape, dtype):
            one_more = origin.one_more and raw.is_ours
            rows = self._dataset.images(raw, origin.feature, shape[0], shape[1], one_more)
            if one_more:
                return rows
            last = from_png(raw.row[origin.last]) if origin.last and raw.is_ours else rows[-1]
            return np.concatenate([rows, last[None]])
        rows = _as(self._part(raw, origin), dtype, origin.feature)
        last = np.asarray(raw.row[origin.last], dtype) if origin.last and raw.is_ours else rows[-1]
        return np.concatenate([rows, last.reshape(1, -1)]).reshape(len(raw) + 1, *shape)

    def _actions(self, raw: Raw, actions: np.ndarray) -> np.ndarray:
        if self._as_they_are and raw.is_ours:
            return np.ascontiguousarray(actions, np.float32)
        scaled = actions / self._scale
        if self._options.clip_actions:
            scaled = np.clip(scaled, -1.0, 1.0)
        beyond = np.argwhere(~(np.abs(scaled) <= 1.0))
        if len(beyond):
            frame, component = (int(number) for number in beyond[0])
            raise ValueError(
                f"{self._dataset.root}: episode {raw.index}, frame {frame}: component {component} of "
                f"{self._found[layout.ACTION].feature} is {scaled[frame, component]:.6g}, actions here are in [-1, 1]: "
                "give --action-scale, what 1 means there, or --clip-actions"
            )
        return scaled.astype(np.float32)

    def _outcome(self, columns: Mapping[str, np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Success and reward of each step, where one is missing by the other."""
        reward: Any = columns.get(layout.REWARD)
        if layout.SUCCESS in columns:
            success = columns[layout.SUCCESS] != 0
        elif self._options.assume is not None:
            success = (np.arange(length) == length - 1) & (self._options.assume == "success")
        else:
            success = reward >= self._options.success_reward
        return success, (success if reward is None else reward).astype(np.float32)

    def _ends(self, columns: Mapping[str, np.ndarray], success: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether each step ends for good, and whether it is cut off. An episode that does not say ends at its last."""
        last = np.arange(len(success)) == len(success) - 1
        done = columns[layout.DONE] != 0 if layout.DONE in columns else last
        told = {name: columns[name] != 0 for name in (layout.TERMINATED, layout.TRUNCATED) if name in columns}
        if len(told) == 2:
            return told[layout.TERMINATED], told[layout.TRUNCATED]
        if layout.TERMINATED in told:
            return told[layout.TERMINATED], last & ~told[layout.TERMINATED]
        if layout.TRUNCATED in told:
            truncated = told[layout.TRUNCATED]
            terminated = done & ~truncated
            return terminated, truncated | (last & ~terminated)
        terminated = done if self._options.terminal == "done" else done & success
        return terminated, last & ~terminated

    def _count(self, raw: Raw, ended: np.ndarray) -> int:
        """Steps up to the first end."""
        first = int(np.argmax(ended)) if ended.any() else len(ended) - 1
        if first < len(ended) - 1 and not self._options.cut_at_done:
            raise ValueError(
                f"{self._dataset.root}: episode {raw.index} is done at frame {first} and goes on to {len(ended) - 1}: "
                "--cut-at-done drops what follows"
            )
        return first + 1


def _as(rows: np.ndarray, dtype: str, feature: str) -> np.ndarray:
    """``rows`` in our dtype; raises ValueError where whole numbers are wanted and others given."""
    out = rows.astype(dtype)
    if np.dtype(dtype).kind in "iub" and not np.array_equal(out, rows):
        raise ValueError(f"{feature} is not of {dtype}, as this observation is: --rename another feature")
    return out
