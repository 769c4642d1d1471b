"""Labelled frames on disk: a zarr group that only ever grows, in whole entries.

    labels.zarr/
      zarr.json     attributes: format, about (task, arm, world), observation (name -> shape, dtype)
      000000/       an entry: frames of one episode
        zarr.json   attributes: source, episode, seed, by
        frame/...   (k, ...)  one array per observation: images as uint8 (k, H, W, C), vectors as they were
        label       (k,) int8: 1 success, 0 none, -1 not known yet
        step        (k,) int64 of the episode
      000001/       a correction of an entry: attributes corrects, by; label (k,) as it is to be from now on

An entry is written beside the others and renamed into place: it is there whole or not at all, several processes may
add at once, and nothing that was there is ever changed. ``source``, ``episode`` and ``step`` say where a frame is from.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from robot_rl.files import disk_errors, read_json, sync_folder, sync_tree
from robot_rl.store import compressors

FORMAT = 1
POSITIVE, NEGATIVE, UNKNOWN = 1, 0, -1
_RESTORE = "restore it from a copy, or label into another folder"
Fields = Mapping[str, tuple[tuple[int, ...], str]]
"""Flat name of an observation -> shape, dtype."""


@dataclass(frozen=True)
class Origin:
    """Where the frames of an entry are from."""

    source: str  # path of a store or run, or "env:<task>"
    episode: int
    seed: int = -1
    by: str = "rule"  # what gave the labels

    @property
    def key(self) -> EpisodeKey:
        return self.source, self.episode, self.seed


EpisodeKey = tuple[str, int, int]
"""Source, episode, seed."""


@dataclass(frozen=True)
class Frames:
    """n labelled frames."""

    observation: dict[str, np.ndarray]  # name -> (n, ...)
    label: np.ndarray  # (n,) int8
    entry: np.ndarray  # (n,) int64, which entry of the label set
    step: np.ndarray  # (n,) int64
    episode: np.ndarray  # (n,) int64: which of ``episodes``
    episodes: tuple[EpisodeKey, ...]

    def __len__(self) -> int:
        return len(self.label)

    def take(self, index: np.ndarray) -> Frames:
        """The frames of ``index``, a mask or integers."""
        observation = {name: rows[index] for name, rows in self.observation.items()}
        return Frames(
            observation, self.label[index], self.entry[index], self.step[index], self.episode[index], self.episodes
        )

    @property
    def keys(self) -> list[EpisodeKey]:
        """The episodes that these frames are of."""
        return [self.episodes[index] for index in np.unique(self.episode)]


class LabelSet:
    """A label set that is there, or is made by the first ``append``."""

    def __init__(self, path: Path | str, observation: Fields | None = None, about: Mapping[str, str] | None = None):
        """With ``observation``: to add to, made where there is none. Raises FileNotFoundError, and ValueError for a
        damaged one or one of other observations."""
        self.path = Path(path)
        if not self.path.exists() and observation is not None:
            _create(self.path, observation, about or {})
        if not (self.path / "zarr.json").is_file():
            raise FileNotFoundError(f"no label set at {self.path}: make one, robot-rl reward label {self.path} ...")
        attributes = read_json(self.path / "zarr.json", _RESTORE).get("attributes", {})
        if attributes.get("format") != FORMAT or "observation" not in attributes:
            raise ValueError(f"{self.path} is not a label set of this version: give what `robot-rl reward label` made")
        self.observation: Fields = {
            name: (tuple(shape), dtype) for name, (shape, dtype) in attributes["observation"].items()
        }
        self.about: dict[str, str] = attributes.get("about", {})
        if observation is not None and (different := _difference(self.observation, observation)):
            raise ValueError(f"{self.path} holds frames of other observations ({different}): label into another folder")

    def __len__(self) -> int:
        """How many entries there are, corrections among them."""
        return len(self._entries())

    def append(self, observation: Mapping[str, np.ndarray], label: np.ndarray, step: np.ndarray, origin: Origin) -> int:
        """Add frames of one episode, (k, ...) each; returns the number of the entry. Safe when this returns.

        Raises ValueError where an observation is missing or has another shape, or a label is none.
        """
        label, step = np.asarray(label, np.int8), np.asarray(step, np.int64)
        if not len(label) or not np.isin(label, (POSITIVE, NEGATIVE, UNKNOWN)).all():
            raise ValueError(f"labels {np.unique(label).tolist()}: give at least one, of 1, 0 and -1 (not known)")
        arrays = {"label": label, "step": step}
        for name, (shape, dtype) in self.observation.items():
            if name not in observation:
                raise ValueError(f"observation '{name}' is missing: there is {', '.join(sorted(observation))}")
            rows = np.asarray(observation[name])
            if rows.shape != (len(label), *shape) or rows.dtype != dtype:
                raise ValueError(
                    f"observation '{name}' is {rows.dtype}{rows.shape}: the label set holds {dtype}{shape}"
                )
            arrays[f"frame/{name}"] = rows
        return self._add(arrays, {k: getattr(origin, k) for k in ("source", "episode", "seed", "by")})

    def correct(self, entry: int, label: np.ndarray, by: str = "person") -> None:
        """Give the frames of ``entry`` other labels (k,) from now on."""
        name = f"{entry:06d}"
        group = self._open(name)
        if "corrects" in group.attrs:
            raise ValueError(
                f"entry {entry} of {self.path} is a correction itself: correct entry {group.attrs['corrects']}"
            )
        label = np.asarray(label, np.int8)
        count = int(_array(group, "label").shape[0])
        if label.shape != (count,) or not np.isin(label, (POSITIVE, NEGATIVE, UNKNOWN)).all():
            raise ValueError(f"entry {entry} has {count} frames: give as many labels, of 1, 0 and -1")
        self._add({"label": label}, {"corrects": entry, "by": by})

    def origins(self) -> dict[int, Origin]:
        """Of every entry that is no correction."""
        out = {}
        for name in self._entries():
            attributes = dict(self._open(name).attrs)
            if "corrects" not in attributes:
                out[int(name)] = Origin(**{k: attributes[k] for k in ("source", "episode", "seed", "by")})  # type: ignore[arg-type]
        return out

    def labels(self) -> dict[int, np.ndarray]:
        """The labels (k,) of every entry as they are now."""
        out: dict[int, np.ndarray] = {}
        for name in self._entries():
            group = self._open(name)
            entry: Any = group.attrs.get("corrects", name)
            out[int(entry)] = _read(group, "label", self.path)
        return out

    def frames(self, names: Sequence[str] | None = None, known: bool = True) -> Frames:
        """All frames, with the observations of ``names`` (None: all); ``known``: only those with a label.

        Raises ValueError that names the damaged entry, and for an observation that is not there.
        """
        names = tuple(self.observation) if names is None else tuple(names)
        if missing := sorted(set(names) - set(self.observation)):
            raise ValueError(f"{self.path} has no '{missing[0]}': it has {', '.join(sorted(self.observation))}")
        labels, origins = self.labels(), self.origins()
        episodes: dict[EpisodeKey, int] = {}
        parts: list[list[np.ndarray]] = []
        seen: list[dict[str, np.ndarray]] = []
        for entry, origin in origins.items():
            label = labels[entry]
            keep = label != UNKNOWN if known else np.ones(len(label), bool)
            if not keep.any():
                continue
            group = self._open(f"{entry:06d}")
            seen.append({name: _read(group, f"frame/{name}", self.path)[keep] for name in names})
            number = np.full(int(keep.sum()), episodes.setdefault(origin.key, len(episodes)), np.int64)
            parts.append([label[keep], np.full_like(number, entry), _read(group, "step", self.path)[keep], number])
        if not parts:
            raise ValueError(f"{self.path} holds no labelled frame yet: robot-rl reward label {self.path} ...")
        label, number, step, episode = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        observation = {name: np.concatenate([rows[name] for rows in seen]) for name in names}
        return Frames(observation, label, number, step, episode, tuple(episodes))

    def steps(self, entry: int) -> np.ndarray:
        """(k,) of the frames of ``entry``."""
        return _read(self._open(f"{entry:06d}"), "step", self.path)

    def read(self, entry: int, name: str) -> np.ndarray:
        """(k, ...): one observation of the frames of ``entry``."""
        return _read(self._open(f"{entry:06d}"), f"frame/{name}", self.path)

    def counts(self) -> dict[str, int]:
        """Entries, episodes, and frames by label."""
        every = list(self.labels().values())
        label = np.concatenate(every) if every else np.zeros(0, np.int8)
        episodes = {one.key for one in self.origins().values()}
        named = {"positive": POSITIVE, "negative": NEGATIVE, "unknown": UNKNOWN}
        return {"entries": len(self), "episodes": len(episodes)} | {
            k: int(np.sum(label == v)) for k, v in named.items()
        }

    def _entries(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir() if path.name.isdigit())

    def _open(self, name: str) -> zarr.Group:
        try:
            return zarr.open_group(self.path, path=name, mode="r")
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{self.path / name} is missing or damaged ({error}): {_RESTORE}") from error

    def _add(self, arrays: Mapping[str, np.ndarray], attributes: dict[str, Any]) -> int:
        with disk_errors(self.path):
            temporary = Path(tempfile.mkdtemp(dir=self.path, prefix=".entry.", suffix=".tmp"))
            try:
                temporary.chmod(0o755)
                group = zarr.create_group(temporary, overwrite=True, attributes=attributes)
                for name, rows in arrays.items():
                    dtype = rows.dtype.name
                    group.create_array(name, data=rows, chunks=rows.shape, compressors=compressors(dtype))
                sync_tree(temporary)
                number = _move(temporary, self.path)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            sync_folder(self.path)
        return number


def _move(temporary: Path, folder: Path) -> int:
    """Rename ``temporary`` to the next free number in ``folder``; another process may take it first."""
    while True:
        taken = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
        number = max(taken, default=-1) + 1
        try:
            os.rename(temporary, folder / f"{number:06d}")
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return number


def _create(path: Path, observation: Fields, about: Mapping[str, str]) -> None:
    """Make an empty label set beside ``path`` and move it there whole."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        try:
            fields = {name: [list(shape), dtype] for name, (shape, dtype) in observation.items()}
            attributes = {"format": FORMAT, "about": dict(about), "observation": fields}
            zarr.create_group(temporary, overwrite=True, attributes=attributes)
            temporary.chmod(0o755)
            sync_tree(temporary)
            with contextlib.suppress(FileExistsError):  # somebody made it in the meantime: use theirs
                if path.exists():
                    raise FileExistsError
                os.rename(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_folder(path.parent)


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    found = group[name]
    assert isinstance(found, zarr.Array)
    return found


def _read(group: zarr.Group, name: str, path: Path) -> np.ndarray:
    try:
        return np.asarray(_array(group, name)[:])
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path}/{group.path}/{name} is missing or damaged ({error}): {_RESTORE}") from error


def _difference(there: Fields, here: Fields) -> str:
    """The first observation in which two differ, in words; empty where they do not."""
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            return f"'{name}' is {there.get(name, 'missing')} there, {here.get(name, 'missing')} here"
    return ""
