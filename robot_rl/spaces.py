"""From any Gymnasium observation space to what an agent sees: one float32 vector ``state`` and uint8 images; and a
second vector, ``privileged``, that only its critics see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

STATE = "state"
PRIVILEGED = "privileged"
PRIVILEGED_PREFIX = "critic/"  # of the names of what only critics may see
_HIDDEN = "sim/"  # what only reward and success may read
_NO_BOUND = 1e6  # spaces write "unbounded" as inf, or as the largest float: neither is a scale


@dataclass(frozen=True, eq=False)
class Encoder:
    """Observations of ``source`` to ``{"state": float32 (D,), <image name>: uint8 (H, W, C)}`` of ``space``, and
    ``privileged``: float32 (P,) where there are names that start with ``critic/``.

    Vectors are concatenated in the order of their sorted names; a component with two finite bounds is scaled to
    [-1, 1], any other is left alone. Nested Dict spaces are flattened with "/" in the name, so the GoalEnv convention
    needs nothing special. uint8 boxes of three dimensions are images and pass untouched. Names that start with
    ``sim/`` are dropped.
    """

    source: spaces.Space
    space: spaces.Dict
    vectors: Mapping[str, _Vector]  # "state", "privileged": which of them there are
    images: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def from_space(cls, space: spaces.Space) -> Encoder:
        """Raises ValueError, naming the key, for a space that is neither a Box nor a Dict of supported spaces."""
        boxes = dict(sorted(flat_boxes(space, hide=_HIDDEN)))
        images = {name: box for name, box in boxes.items() if _is_image(box)}
        vectors = {name: box for name, box in boxes.items() if name not in images}
        for name in {STATE, PRIVILEGED} & set(images):
            raise ValueError(f"observation '{name}' is an image: rename it, '{name}' is the name of the vector")
        if not boxes:
            raise ValueError("the observation space is empty: an agent needs at least one Box")
        hidden = {name: box for name, box in vectors.items() if name.startswith(PRIVILEGED_PREFIX)}
        seen = {name: box for name, box in vectors.items() if name not in hidden}
        made = {name: _Vector.of(boxes) for name, boxes in ((STATE, seen), (PRIVILEGED, hidden)) if boxes}
        encoded: dict[str, spaces.Space] = dict(images)
        encoded |= {name: vector.space for name, vector in made.items()}
        return cls(space, spaces.Dict(encoded), made, tuple((name, box.shape) for name, box in images.items()))

    def encode(self, obs: Any) -> dict[str, np.ndarray]:
        """One observation. Raises ValueError on a missing key, another shape, or a number that is not finite."""
        flat = dict(flat_values(obs))
        encoded = {name: _array(flat, name, shape) for name, shape in self.images}
        return encoded | {name: vector.encode(flat) for name, vector in self.vectors.items()}

    @property
    def names(self) -> frozenset[str]:
        """The flat names of what is encoded."""
        parts = {name for vector in self.vectors.values() for name, _ in vector.parts}
        return frozenset(parts | {name for name, _ in self.images})

    def decode(self, encoded: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Encoded observations (..., D) under their flat names again, vectors in their own units and float32."""
        out = {name: np.asarray(encoded[name]) for name, _ in self.images}
        for name, vector in self.vectors.items():
            out |= vector.decode(encoded[name])
        return out


@dataclass(frozen=True, eq=False)
class _Vector:
    """Several boxes in one vector."""

    parts: tuple[tuple[str, tuple[int, ...]], ...]  # name, shape
    centre: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)
    space: spaces.Box

    @classmethod
    def of(cls, boxes: Mapping[str, spaces.Box]) -> _Vector:
        low = np.concatenate([box.low.astype(np.float64).ravel() for box in boxes.values()])
        high = np.concatenate([box.high.astype(np.float64).ravel() for box in boxes.values()])
        bounded = (low > -_NO_BOUND) & (high < _NO_BOUND)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            centre = np.where(bounded, (low + high) / 2, 0.0)
            scale = np.where(bounded & (high > low), 2 / (high - low), 1.0)
        bound = np.where(bounded, 1.0, np.inf).astype(np.float32)
        space = spaces.Box(-bound, bound, dtype=np.float32)
        return cls(tuple((name, box.shape) for name, box in boxes.items()), centre, scale, space)

    def encode(self, flat: Mapping[str, Any]) -> np.ndarray:
        parts = [_array(flat, name, shape).ravel() for name, shape in self.parts]
        vector = ((np.concatenate(parts) - self.centre) * self.scale).astype(np.float32)
        if not np.isfinite(vector).all():
            bad = [name for (name, _), part in zip(self.parts, parts, strict=True) if not np.isfinite(part).all()]
            names = ", ".join(bad) or self.parts[0][0]
            raise ValueError(f"observation {names} is not finite: the environment must not send it")
        return vector

    def decode(self, encoded: Any) -> dict[str, np.ndarray]:
        whole = np.asarray(encoded, np.float64) / self.scale + self.centre
        ends = np.cumsum([int(np.prod(shape)) for _, shape in self.parts])
        pieces = np.split(whole, ends[:-1], axis=-1)
        return {
            name: piece.reshape(*whole.shape[:-1], *shape).astype(np.float32)
            for (name, shape), piece in zip(self.parts, pieces, strict=True)
        }


def image_names(space: spaces.Space) -> tuple[str, ...]:
    """The images of an encoded space, sorted."""
    assert isinstance(space, spaces.Dict)
    return tuple(sorted(name for name in space.spaces if name not in (STATE, PRIVILEGED)))


def vector_size(space: spaces.Space, *names: str) -> int:
    """How many numbers the vectors ``names`` of an encoded space hold together; one that is not there holds none.

    Raises ValueError for a space that no Encoder made.
    """
    if not isinstance(space, spaces.Dict) or not space.spaces:
        raise ValueError(f"observation space {space}: give the Dict space of an Encoder")
    return sum(int(np.prod(space[name].shape or ())) for name in names if name in space.spaces)


def action_size(space: spaces.Space) -> int:
    """A of a one-dimensional Box in [-1, 1]; raises ValueError otherwise."""
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(f"action space {space}: agents need a one-dimensional Box in [-1, 1]")
    if not (np.all(space.low == -1.0) and np.all(space.high == 1.0)):
        raise ValueError(f"action space {space}: rescale it to [-1, 1] (gymnasium.wrappers.RescaleAction)")
    return int(space.shape[0])


def flat_boxes(space: spaces.Space, name: str = "", hide: str | None = None) -> Iterator[tuple[str, spaces.Box]]:
    """Every Box of a space under its flat name: nested Dicts join their keys with "/", a lone Box is ``state`` or
    ``image``. Names that start with ``hide`` are left out. Raises ValueError, naming the key, for any other space."""
    if hide is not None and name.startswith(hide):
        return
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from flat_boxes(part, f"{name}/{key}" if name else str(key), hide)
    elif isinstance(space, spaces.Box):
        yield name or _nameless(space), space
    else:
        raise ValueError(
            f"observation '{name or space}' is a {type(space).__name__} space: only Box and Dict are supported; "
            "wrap the environment (gymnasium.wrappers.TransformObservation) to give a Box"
        )


def flat_values(obs: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every array of an observation under the name that ``flat_boxes`` gives its Box."""
    if isinstance(obs, Mapping):
        for key, part in obs.items():
            yield from flat_values(part, f"{name}/{key}" if name else str(key))
    else:
        yield name or _nameless(np.asarray(obs)), obs


def _is_image(box: spaces.Box | np.ndarray) -> bool:
    return box.dtype == np.uint8 and len(box.shape) == 3


def _nameless(box: spaces.Box | np.ndarray) -> str:
    return "image" if _is_image(box) else STATE


def _array(flat: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in flat:
        raise ValueError(f"observation '{name}' is missing: there is {', '.join(sorted(flat)) or 'none'}")
    array = np.asarray(flat[name])
    if array.shape != shape:
        raise ValueError(f"observation '{name}' has shape {array.shape}: its space says {shape}")
    return array
