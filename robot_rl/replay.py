"""A ring of transitions in RAM, exact in what it holds and in what it gives back.

A segment is a run of transitions that follow one another: an episode, or what is left of one where an intervention
cuts it. Vectors are stored with both ends of each transition. An image is stored once: the next image of a transition
is the image of the transition that continues its segment. Only where there is no such transition (the end of a
segment, the newest of each actor, a gap) is it kept aside. So no sample ever joins two segments.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from robot_rl.files import atomic_file
from robot_rl.types import Transition

_ASIDE = -1  # no later slot holds the next image


class ReplayBuffer:
    """The last ``capacity`` transitions of an encoded observation space.

    ``extra`` names float32 arrays, by shape, that are stored with each transition (what an agent's ``act`` returned).
    Memory is taken as it is filled.
    """

    def __init__(
        self,
        capacity: int,
        observation_space: spaces.Dict,
        action_dim: int,
        extra: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity = {capacity}: give at least 1 transition")
        boxes = {name: box for name, box in observation_space.spaces.items() if isinstance(box, spaces.Box)}
        if unknown := sorted(set(observation_space.spaces) - set(boxes)):
            raise ValueError(f"observation '{unknown[0]}' is not a Box: encode observations first (Encoder)")
        self.capacity = capacity
        self.action_dim = action_dim
        self._images = sorted(name for name, box in boxes.items() if box.dtype == np.uint8 and len(box.shape) == 3)
        self._vectors = sorted(set(boxes) - set(self._images))
        self._arrays: dict[str, np.ndarray] = {}  # (capacity, ...); zeros cost no memory until they are written
        for name, box in boxes.items():
            dtype = np.uint8 if name in self._images else np.float32
            self._arrays[f"obs/{name}"] = np.zeros((capacity, *box.shape), dtype)
            if name in self._vectors:
                self._arrays[f"next_obs/{name}"] = np.zeros((capacity, *box.shape), dtype)
        self._extra = dict(extra or {})
        for name, shape in self._extra.items():
            self._arrays[f"extra/{name}"] = np.zeros((capacity, *shape), np.float32)
        self._arrays["action"] = np.zeros((capacity, action_dim), np.float32)
        self._arrays["reward"] = np.zeros(capacity, np.float32)
        self._arrays["terminated"] = np.zeros(capacity, np.bool_)
        self._arrays["truncated"] = np.zeros(capacity, np.bool_)
        self._arrays["segment"] = np.zeros(capacity, np.int64)
        self._arrays["next_slot"] = np.full(capacity if self._images else 0, _ASIDE, np.int64)
        self._aside: dict[int, dict[str, np.ndarray]] = {}  # next images that no later slot holds
        self._last: dict[int, int] = {}  # slot of the newest transition of each segment in the ring
        self._size = 0
        self._slot = 0  # the next to be written

    def __len__(self) -> int:
        return self._size

    @property
    def nbytes(self) -> int:
        """Bytes of memory when full, and of the images kept aside now."""
        aside = sum(image.nbytes for images in self._aside.values() for image in images.values())
        return aside + sum(array.nbytes for array in self._arrays.values())

    def add(
        self,
        obs: Mapping[str, np.ndarray],
        action: np.ndarray,
        reward: float,
        terminated: bool,
        truncated: bool,
        next_obs: Mapping[str, np.ndarray],
        segment: int,
        extra: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Store one transition in place of the oldest. Raises ValueError, and stores nothing, on a missing key, another
        shape, or a number that is not finite.

        ``segment``: equal for transitions that follow one another, new after a reset or an intervention's start or end.
        """
        row = self._check(obs, action, reward, next_obs, extra)
        slot = self._slot
        self._forget(slot)
        for name, value in row.items():
            self._arrays[name][slot] = value
        self._arrays["terminated"][slot] = terminated
        self._arrays["truncated"][slot] = truncated
        self._arrays["segment"][slot] = segment
        if self._images:
            self._link(slot, segment, {name: np.array(next_obs[name]) for name in self._images})
        self._slot = (slot + 1) % self.capacity
        self._size = min(self._size + 1, self.capacity)

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Transition:
        """Uniform with replacement; leaves are ``shape + ...``. Raises ValueError on an empty buffer."""
        if not self._size:
            raise ValueError("the replay buffer is empty: add transitions before sampling")
        return self.gather(rng.integers(self._size, size=shape))

    def gather(self, slots: np.ndarray) -> Transition:
        """The transitions of ``slots`` (integers below ``len``, any shape), as fresh arrays."""

        def take(name: str) -> np.ndarray:
            return self._arrays[name].take(slots, axis=0)

        obs = {name: take(f"obs/{name}") for name in (*self._vectors, *self._images)}
        next_obs = {name: take(f"next_obs/{name}") for name in self._vectors}
        if self._images:
            next_slots = take("next_slot")
            for name in self._images:
                images = self._arrays[f"obs/{name}"].take(next_slots, axis=0, mode="wrap")
                for index in np.argwhere(next_slots == _ASIDE):
                    images[tuple(index)] = self._aside[int(slots[tuple(index)])][name]
                next_obs[name] = images
        discount = np.subtract(1.0, take("terminated"), dtype=np.float32)
        extra = {name: take(f"extra/{name}") for name in self._extra}
        return Transition(obs, take("action"), take("reward"), discount, next_obs, extra)

    def save(self, path: str | Path) -> None:
        """Write everything held to an .npz file, at once or not at all."""
        aside = sorted(self._aside)
        arrays = {name: array[: self._size] for name, array in self._arrays.items()}
        arrays["aside_slot"] = np.array(aside, np.int64)
        for name in self._images:
            images = [self._aside[slot][name] for slot in aside]
            arrays[f"aside/{name}"] = np.stack(images) if images else np.zeros((0,), np.uint8)
        arrays["layout"] = np.array(json.dumps(self._layout()))
        arrays["slot"] = np.array(self._slot)
        with atomic_file(Path(path)) as file:  # not write_atomic: a second copy of the images is too much
            np.savez(file, allow_pickle=False, **arrays)

    def load(self, path: str | Path) -> None:
        """Take over what ``save`` wrote; afterwards this buffer goes on exactly as that one would have.

        Raises ValueError for a damaged file and for a buffer of another capacity, observation or action; this buffer
        is then as it was.
        """
        arrays = _read_npz(path)
        if missing := {"layout", "slot", "aside_slot"} - arrays.keys():
            raise ValueError(f"{path} is not a saved replay buffer ('{min(missing)}' is missing)")
        theirs, mine = json.loads(str(arrays["layout"])), self._layout()
        for name in sorted(theirs.keys() | mine.keys()):
            if theirs.get(name) != mine.get(name):
                raise ValueError(
                    f"{path} holds {name} {theirs.get(name)}, this buffer {mine.get(name)}: "
                    "load it into a buffer made for the same task, with the same capacity"
                )
        if missing := self._arrays.keys() - arrays.keys():
            raise ValueError(f"{path} is not a readable replay buffer ('{min(missing)}' is missing)")
        self._size, self._slot = len(arrays["reward"]), int(arrays["slot"])
        for name, array in self._arrays.items():
            array[: self._size] = arrays[name]
        self._aside = {
            int(slot): {name: arrays[f"aside/{name}"][i] for name in self._images}
            for i, slot in enumerate(arrays["aside_slot"])
        }
        # Oldest first, so that the newest slot of a segment is the one that stays.
        order = (np.arange(self._size) + (self._slot if self._size == self.capacity else 0)) % max(self._size, 1)
        self._last = {int(self._arrays["segment"][slot]): int(slot) for slot in order} if self._images else {}

    def _layout(self) -> dict[str, Any]:
        return {"capacity": self.capacity} | {
            name: [str(array.dtype), *array.shape[1:]] for name, array in sorted(self._arrays.items())
        }

    def _check(
        self, obs: Mapping, action: np.ndarray, reward: float, next_obs: Mapping, extra: Mapping | None
    ) -> dict[str, np.ndarray]:
        """The arrays of one row by name; raises ValueError before anything is written."""
        row = {"action": np.asarray(action, np.float32), "reward": np.asarray(reward, np.float32)}
        for prefix, values, names in (
            ("obs", obs, (*self._vectors, *self._images)),
            ("next_obs", next_obs, (*self._vectors, *self._images)),
            ("extra", extra or {}, tuple(self._extra)),
        ):
            for name in names:
                if name not in values:
                    raise ValueError(f"{prefix} lacks '{name}': there is {', '.join(sorted(values)) or 'none'}")
                row[f"{prefix}/{name}"] = np.asarray(values[name])
        for name, value in row.items():
            stored = self._arrays[name if name in self._arrays else name.removeprefix("next_")]
            if value.shape != stored.shape[1:]:
                raise ValueError(f"{name} has shape {value.shape}: this buffer stores {stored.shape[1:]}")
            if stored.dtype == np.uint8:
                if value.dtype != np.uint8:
                    raise ValueError(f"{name} is {value.dtype}: this buffer stores uint8 images")
            elif not np.isfinite(value).all():
                raise ValueError(f"{name} = {value} is not finite: the transition was not stored")
        return {name: value for name, value in row.items() if name in self._arrays}

    def _forget(self, slot: int) -> None:
        """Drop what points at or belongs to the transition about to be overwritten."""
        self._aside.pop(slot, None)
        if self._size == self.capacity and self._last.get(segment := int(self._arrays["segment"][slot])) == slot:
            del self._last[segment]

    def _link(self, slot: int, segment: int, next_images: dict[str, np.ndarray]) -> None:
        """Let the previous transition of the segment take its next images from ``slot``, if they are the same.

        A slot that is pointed at outlives the one that points: it was written later, so it is overwritten later.
        """
        previous = self._last.get(segment)
        if previous is not None and all(
            np.array_equal(self._aside[previous][name], self._arrays[f"obs/{name}"][slot]) for name in self._images
        ):
            self._arrays["next_slot"][previous] = slot
            del self._aside[previous]
        self._arrays["next_slot"][slot] = _ASIDE
        self._aside[slot] = next_images
        self._last[segment] = slot


def sample_mixture(
    rng: np.random.Generator, sources: Sequence[tuple[ReplayBuffer, float]], shape: tuple[int, ...]
) -> Transition:
    """Leaves ``shape + ...`` whose last axis of ``shape`` holds each buffer's share, rounded, of the batch.

    ``extra["source"]`` (shape) says which of ``sources`` a row is from. Buffers that are empty or have no share are
    left out, and the others share what is left in proportion. Raises ValueError where nothing is left, and on a
    negative share.
    """
    if bad := [share for _, share in sources if not share >= 0.0]:
        raise ValueError(f"share = {bad[0]}: give a number >= 0")
    filled = [(index, buffer, share) for index, (buffer, share) in enumerate(sources) if len(buffer) and share > 0.0]
    if not filled:
        raise ValueError("every replay buffer with a share is empty: add transitions before sampling")
    *lead, batch = shape
    shares = np.array([share for *_, share in filled])
    ends = np.rint(batch * np.cumsum(shares) / shares.sum()).astype(int)
    counts = np.diff(ends, prepend=0)
    parts = []
    for (index, buffer, _), count in zip(filled, counts, strict=True):
        part = buffer.sample(rng, (*lead, int(count)))
        parts.append(part._replace(extra=part.extra | {"source": np.full((*lead, int(count)), index, np.int32)}))
    return parts[0] if len(parts) == 1 else _concatenate(parts, axis=len(lead))


def _concatenate(parts: Sequence[Any], axis: int) -> Any:
    first = parts[0]
    if isinstance(first, Mapping):
        return {name: _concatenate([part[name] for part in parts], axis) for name in first}
    if isinstance(first, Transition):
        return Transition(*(_concatenate(leaves, axis) for leaves in zip(*parts, strict=True)))
    return np.concatenate(parts, axis=axis)


def _read_npz(path: str | Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, KeyError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is not a readable replay buffer ({error}): it is damaged or cut short") from error
