"""From any Gymnasium observation space to what an agent sees: one float32 vector ``state`` and uint8 images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

STATE = "state"
_HIDDEN = "sim/"  # what only reward and success may read
_NO_BOUND = 1e6  # spaces write "unbounded" as inf, or as the largest float: neither is a scale


@dataclass(frozen=True, eq=False)
class Encoder:
    """Observations of ``source`` to ``{"state": float32 (D,), <image name>: uint8 (H, W, C)}`` of ``space``.

    Vectors are concatenated in the order of their sorted names; a component with two finite bounds is scaled to
    [-1, 1], any other is left alone. Nested Dict spaces are flattened with "/" in the name, so the GoalEnv convention
    needs nothing special. uint8 boxes of three dimensions are images and pass untouched. Names that start with
    ``sim/`` are dropped.
    """

    source: spaces.Space
    space: spaces.Dict
    vectors: tuple[tuple[str, tuple[int, ...]], ...]  # name, shape
    images: tuple[tuple[str, tuple[int, ...]], ...]
    centre: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)

    @classmethod
    def from_space(cls, space: spaces.Space) -> Encoder:
        """Raises ValueError, naming the key, for a space that is neither a Box nor a Dict of supported spaces."""
        boxes = dict(sorted(flat_boxes(space, hide=_HIDDEN)))
        images = {name: box for name, box in boxes.items() if _is_image(box)}
        vectors = {name: box for name, box in boxes.items() if name not in images}
        if STATE in images:
            raise ValueError(f"observation '{STATE}' is an image: rename it, '{STATE}' is the name of the vector")
        if not boxes:
            raise ValueError("the observation space is empty: an agent needs at least one Box")
        low = np.concatenate([np.zeros(0), *(box.low.astype(np.float64).ravel() for box in vectors.values())])
        high = np.concatenate([np.zeros(0), *(box.high.astype(np.float64).ravel() for box in vectors.values())])
        bounded = (low > -_NO_BOUND) & (high < _NO_BOUND)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            centre = np.where(bounded, (low + high) / 2, 0.0)
            scale = np.where(bounded & (high > low), 2 / (high - low), 1.0)
        encoded: dict[str, spaces.Space] = dict(images)
        if vectors:
            bound = np.where(bounded, 1.0, np.inf).astype(np.float32)
            encoded[STATE] = spaces.Box(-bound, bound, dtype=np.float32)
        return cls(
            space,
            spaces.Dict(encoded),
            tuple((name, box.shape) for name, box in vectors.items()),
            tuple((name, box.shape) for name, box in images.items()),
            centre,
            scale,
        )

    def encode(self, obs: Any) -> dict[str, np.ndarray]:
        """One observation. Raises ValueError on a missing key, another shape, or a number that is not finite."""
        flat = dict(flat_values(obs))
        encoded = {name: _array(flat, name, shape) for name, shape in self.images}
        if self.vectors:
            parts = [_array(flat, name, shape).ravel() for name, shape in self.vectors]
            state = ((np.concatenate(parts) - self.centre) * self.scale).astype(np.float32)
            if not np.isfinite(state).all():
                bad = [name for (name, _), part in zip(self.vectors, parts, strict=True) if not np.isfinite(part).all()]
                raise ValueError(
                    f"observation {', '.join(bad) or STATE} is not finite: the environment must not send it"
                )
            encoded[STATE] = state
        return encoded


def state_size(space: spaces.Space) -> int:
    """D of an encoded space for an agent that reads only ``state``; raises ValueError naming what it cannot read."""
    if not isinstance(space, spaces.Dict) or (STATE not in space.spaces and not space.spaces):
        raise ValueError(f"observation space {space}: give the Dict space of an Encoder")
    if images := sorted(name for name in space.spaces if name != STATE):
        raise ValueError(
            f"observation '{images[0]}' is an image, and this agent is state-only for now: "
            "leave the images out of the observation space"
        )
    return int(np.prod(space[STATE].shape or ()))


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
