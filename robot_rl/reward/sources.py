"""Where frames to label come from: episodes of stores and of logs of steps, and the rules that label them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robot_rl.reward.labels import NEGATIVE, POSITIVE, UNKNOWN, Fields
from robot_rl.step_log import FIRST, StepLog
from robot_rl.store import EpisodeReader


@dataclass(frozen=True)
class Trajectory:
    """What was seen in one episode of T steps."""

    source: str
    episode: int
    observation: dict[str, np.ndarray]  # name -> (T + 1, ...)
    told: np.ndarray  # (T + 1,) int8: what was said of each frame; UNKNOWN where nothing was
    finished: bool = True  # whether its end is there
    seed: int = -1

    @property
    def succeeded(self) -> bool:
        return bool(self.told[-1] == POSITIVE)


@dataclass(frozen=True)
class Source:
    """Episodes at ``path``: a store, a log of steps, or a run folder that has either."""

    path: Path
    observation: Fields
    about: dict[str, str]

    def __iter__(self) -> Iterator[Trajectory]:
        if (self.path / "commit.json").is_file():
            return self._store()
        return self._log()

    def _store(self) -> Iterator[Trajectory]:
        reader = EpisodeReader(self.path)
        for index, episode in enumerate(reader):
            told = np.concatenate([[UNKNOWN], episode.success.astype(np.int8)])
            yield Trajectory(str(self.path), index, episode.observation, told, True, episode.seed)

    def _log(self) -> Iterator[Trajectory]:
        streams: dict[int, list[np.ndarray]] = {}  # rows of the episode that each actor is in: theirs are interleaved
        with StepLog(self.path) as log:
            for block in log.blocks(0, len(log), verify=True):
                for row in block:
                    rows = streams.setdefault(int(row["log"]), [])
                    if row["kind"] == FIRST and rows:
                        yield self._from_rows(np.stack(rows))
                        rows.clear()
                    rows.append(row)
        for rows in streams.values():
            yield self._from_rows(np.stack(rows))

    def _from_rows(self, rows: np.ndarray) -> Trajectory:
        observation = {name: np.ascontiguousarray(rows[f"obs/{name}"]) for name in self.observation}
        told = rows["success"].astype(np.int8)
        told[0] = UNKNOWN
        finished = bool(rows["terminated"][-1] or rows["truncated"][-1])
        # Several actors may have rows in one log: their own log is part of which episode it is.
        episode = int(rows["episode"][0]) + (int(rows["log"][0]) % (1 << 20) << 32)
        return Trajectory(str(self.path), episode, observation, told, finished)


def open_source(path: Path) -> Source:
    """Raises FileNotFoundError, or ValueError that says what may be given."""
    path = Path(path).resolve()
    for inner in (path, path / "steps.zarr", path / "demos.zarr"):
        if (inner / "commit.json").is_file():
            info = EpisodeReader(inner).info
            return Source(inner, info.observation, {"task": info.task, "arm": info.arm, "world": info.world})
        if inner.suffix == ".zarr" and (inner / "zarr.json").is_file():
            with StepLog(inner) as log:
                return Source(inner, log.layout.observation, {})
    if not path.exists():
        raise FileNotFoundError(f"no episodes at {path}: give an episode folder, a log of steps, or a run folder")
    raise ValueError(f"{path} holds no episodes: give an episode folder, a log of steps (steps.zarr), or a run folder")


def label_by_end(episode: Trajectory, last: int, margin: int) -> np.ndarray:
    """(T + 1,) labels by how the episode ended.

    The ``last`` frames of a success are positive, the ``margin`` before them are left out, since nobody knows when it
    became one, and all before those are negative. All frames of a failure are negative. One that was cut off by a crash
    has no end, and gets no label.
    """
    count = len(episode.told)
    label = np.full(count, NEGATIVE, np.int8)
    if not episode.finished or episode.told[-1] == UNKNOWN:
        return np.full(count, UNKNOWN, np.int8)
    if episode.succeeded:
        label[max(0, count - last - margin) :] = UNKNOWN
        label[max(0, count - last) :] = POSITIVE
    return label


def label_as_told(episode: Trajectory, margin: int) -> np.ndarray:
    """(T + 1,) labels as each step's own success says; ``margin`` frames before each change to success are left out."""
    label = episode.told.copy()
    for first in np.flatnonzero((label[1:] == POSITIVE) & (label[:-1] != POSITIVE)) + 1:
        before = label[max(0, first - margin) : first]
        before[before == NEGATIVE] = UNKNOWN
    return label


def thin(label: np.ndarray, positives: int, negatives: int, rng: np.random.Generator) -> np.ndarray:
    """``label`` (n,) with at most that many of each kept, the others UNKNOWN.

    Half of the negatives kept are those nearest to a positive frame or to the end, which are the hard ones; the rest
    are drawn.
    """
    out = np.full_like(label, UNKNOWN)
    of = np.flatnonzero(label == POSITIVE)
    out[rng.permutation(of)[:positives]] = POSITIVE
    others = np.flatnonzero(label == NEGATIVE)
    near = of if len(of) else np.array([len(label)])
    distance = np.abs(others[:, None] - near[None, :]).min(axis=1)
    hard = others[np.argsort(distance, kind="stable")][: (negatives + 1) // 2]
    rest = rng.permutation(np.setdiff1d(others, hard))[: negatives // 2]
    out[hard], out[rest] = NEGATIVE, NEGATIVE
    return out
