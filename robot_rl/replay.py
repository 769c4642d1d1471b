"""All transitions that a learner learns from, in RAM: a ring of what it went through, and demonstrations, which stay.

Each has a source: who chose its action. What is drawn is a query over the one buffer: "experience" is all that the run
went through, policy and interventions; "shown" is what people or scripts showed, demonstrations and interventions.
Nothing is stored twice, and what is discarded is in no query.

A segment is a run of transitions that follow one another: an episode, or what is left of one where an intervention
cuts it. Vectors are stored with both ends of each transition. An image is stored once: the next image of a transition
is the image of the transition that continues its segment. Only where there is no such transition (the end of a
segment, the newest of each actor, a gap) is it kept aside. So no sample ever joins two segments.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from robot_rl.files import atomic_file
from robot_rl.types import DEMONSTRATION, POLICY, Transition

_ASIDE = -1  # no later slot holds the next image


class _Slots:
    """A set of slots to draw from: a list without gaps, and where in it each slot stands."""

    def __init__(self, slots: int) -> None:
        self._list = np.zeros(slots, np.int64)
        self._place = np.full(slots, -1, np.int64)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, slot: int, wanted: bool) -> None:
        """Let ``slot`` be in the set, or not."""
        place = int(self._place[slot])
        if wanted and place < 0:
            self._list[self._count], self._place[slot] = slot, self._count
            self._count += 1
        elif not wanted and place >= 0:
            self._count -= 1
            last = int(self._list[self._count])
            self._list[place], self._place[last] = last, place
            self._place[slot] = -1

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Slots ``shape``, uniform with replacement."""
        return self._list[rng.integers(self._count, size=shape)]

    @property
    def listed(self) -> np.ndarray:
        """All of them (k,), in the order that ``draw`` knows them by."""
        return self._list[: self._count]

    @listed.setter
    def listed(self, slots: np.ndarray) -> None:
        self._place[:] = -1
        self._count = len(slots)
        self._list[: self._count] = slots
        self._place[slots] = np.arange(self._count)


class ReplayBuffer:
    """The last ``capacity`` transitions of an encoded observation space, and the demonstrations there is room for.

    ``extra`` names float32 arrays, by shape, that are stored with each transition (what an agent's ``act`` returned).
    Memory is taken as it is filled. ``len`` is the transitions of the ring.
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
        self._rows: dict[str, tuple[tuple[int, ...], Any]] = {}  # shape and dtype of a row of each array
        for name, box in boxes.items():
            dtype = np.uint8 if name in self._images else np.float32
            self._rows[f"obs/{name}"] = box.shape, dtype
            if name in self._vectors:
                self._rows[f"next_obs/{name}"] = box.shape, dtype
        self._extra = dict(extra or {})
        self._rows |= {f"extra/{name}": (shape, np.float32) for name, shape in self._extra.items()}
        self._rows |= {"action": ((action_dim,), np.float32), "reward": ((), np.float32)}
        self._rows |= {"terminated": ((), np.bool_), "truncated": ((), np.bool_)}
        self._rows |= {"segment": ((), np.int64), "source": ((), np.uint8), "called": ((), np.bool_)}
        if self._images:
            self._rows["next_slot"] = (), np.int64
        self._arrays: dict[str, np.ndarray] = {}  # (slots, ...)
        self._allocate(capacity)
        self._aside: dict[int, dict[str, np.ndarray]] = {}  # next images that no later slot holds
        self._last: dict[int, int] = {}  # slot of the newest transition of each segment in the ring
        self._size = 0
        self._slot = 0  # the next to be written
        self._demonstrations = 0  # in the slots behind the ring's

    def __len__(self) -> int:
        return self._size

    @property
    def demonstrations(self) -> int:
        """How many transitions of demonstrations there are."""
        return self._demonstrations

    def reserve(self, demonstrations: int) -> None:
        """Make room for so many transitions of demonstrations, behind the ring. Raises ValueError where the buffer
        holds anything: all else would have to be copied."""
        if self._size or self._demonstrations:
            raise ValueError("the replay buffer is in use: reserve room for demonstrations before adding transitions")
        self._allocate(self.capacity + demonstrations)

    def _allocate(self, slots: int) -> None:
        """Zeros cost no memory until they are written."""
        self._arrays = {name: np.zeros((slots, *shape), dtype) for name, (shape, dtype) in self._rows.items()}
        self._experience, self._shown = _Slots(slots), _Slots(slots)

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
        source: int = POLICY,
        called: bool = False,
    ) -> None:
        """Store one transition in place of the oldest, or a demonstration in a place of its own. Raises ValueError, and
        stores nothing, on a missing key, another shape, a number that is not finite, or no room for a demonstration.

        ``segment``: equal for transitions that follow one another, new after a reset or an intervention's start or end;
        those of demonstrations and of the ring never meet. ``source``: who chose the action (robot_rl.types).
        ``called``: that it ended the episode, and how, is a person's word.
        """
        row = self._check(obs, action, reward, next_obs, extra)
        shown = source != POLICY
        if source == DEMONSTRATION:
            slot = self.capacity + self._demonstrations
            if slot == len(self._arrays["reward"]):
                raise ValueError(f"no room for more than {self._demonstrations} demonstrated steps: reserve() it first")
        else:
            slot = self._slot
            self._forget(slot)
        for name, value in row.items():
            self._arrays[name][slot] = value
        self._arrays["terminated"][slot] = terminated
        self._arrays["truncated"][slot] = truncated
        self._arrays["segment"][slot] = segment
        self._arrays["source"][slot] = source
        self._arrays["called"][slot] = called
        if self._images:
            self._link(slot, segment, {name: np.array(next_obs[name]) for name in self._images})
        self._experience.put(slot, source != DEMONSTRATION)
        self._shown.put(slot, shown)
        if source == DEMONSTRATION:
            self._demonstrations += 1
        else:
            self._slot = (slot + 1) % self.capacity
            self._size = min(self._size + 1, self.capacity)

    def discard(self, segments: Iterable[int]) -> None:
        """Never draw the ring's transitions of ``segments`` again; they go when their turn comes."""
        for slot in np.flatnonzero(np.isin(self._arrays["segment"][: self._size], list(segments))):
            self._experience.put(int(slot), False)
            self._shown.put(int(slot), False)

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...], shown_share: float = 0.0) -> Transition:
        """Uniform with replacement; leaves are ``shape + ...``. The last axis of ``shape`` holds experience and, behind
        it, ``shown_share`` of it, rounded, what was shown; where there is none of one, all is of the other.

        ``extra`` has "source" and "called" (shape), as ``add`` was given them. Raises ValueError where there is nothing
        to draw, and on a share outside [0, 1].
        """
        if not 0.0 <= shown_share <= 1.0:
            raise ValueError(f"shown_share = {shown_share}: give a number between 0 and 1")
        *lead, batch = shape
        experience = int(np.rint(batch * (1.0 - shown_share)))
        if not len(self._experience) and shown_share > 0.0:
            experience = 0
        elif not len(self._shown):
            experience = batch
        parts = []
        for query, count in ((self._experience, experience), (self._shown, batch - experience)):
            if count:
                if not len(query):
                    raise ValueError("the replay buffer is empty: add transitions before sampling")
                parts.append(query.draw(rng, (*lead, count)))
        return self.gather(np.concatenate(parts, axis=-1))

    def gather(self, slots: np.ndarray) -> Transition:
        """The transitions of ``slots`` (any shape), as fresh arrays; the ring's are those below ``len``."""

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
        extra = {name: take(f"extra/{name}") for name in self._extra} | {
            name: take(name) for name in ("source", "called")
        }
        return Transition(obs, take("action"), take("reward"), discount, next_obs, extra)

    def save(self, path: str | Path) -> None:
        """Write all but the demonstrations, which have their own store, to an .npz file, at once or not at all."""
        aside = sorted(slot for slot in self._aside if slot < self.capacity)
        arrays = {name: array[: self._size] for name, array in self._arrays.items()}
        arrays["aside_slot"] = np.array(aside, np.int64)
        for name in self._images:
            images = [self._aside[slot][name] for slot in aside]
            arrays[f"aside/{name}"] = np.stack(images) if images else np.zeros((0,), np.uint8)
        arrays["layout"] = np.array(json.dumps(self._layout()))
        arrays["slot"] = np.array(self._slot)
        arrays |= {"experience": self._experience.listed, "shown": self._shown.listed}
        with atomic_file(Path(path)) as file:  # not write_atomic: a second copy of the images is too much
            np.savez(file, allow_pickle=False, **arrays)

    def load(self, path: str | Path) -> None:
        """Take over what ``save`` wrote; afterwards this buffer goes on exactly as that one would have, if it has the
        same demonstrations.

        Raises ValueError for a damaged file and for a buffer of another capacity, observation, action or number of
        demonstrated steps; this buffer is then as it was.
        """
        arrays = _read_npz(path)
        if missing := {"layout", "slot", "aside_slot", "experience", "shown"} - arrays.keys():
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
        self._aside = {slot: images for slot, images in self._aside.items() if slot >= self.capacity}
        self._aside |= {
            int(slot): {name: arrays[f"aside/{name}"][i] for name in self._images}
            for i, slot in enumerate(arrays["aside_slot"])
        }
        self._experience.listed, self._shown.listed = arrays["experience"], arrays["shown"]
        # Oldest first, so that the newest slot of a segment is the one that stays.
        order = (np.arange(self._size) + (self._slot if self._size == self.capacity else 0)) % max(self._size, 1)
        self._last = {int(self._arrays["segment"][slot]): int(slot) for slot in order} if self._images else {}

    def _layout(self) -> dict[str, Any]:
        return {"capacity": self.capacity, "demonstrations": self._demonstrations} | {
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


def _read_npz(path: str | Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, KeyError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is not a readable replay buffer ({error}): it is damaged or cut short") from error
