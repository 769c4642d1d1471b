"""From what a camera and an arm measure to one logit: preprocessing, which training and use share, and the network.

B batch, N ensemble, H W C images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from robot_rl import encoders
from robot_rl.encoders import ImageEncoder
from robot_rl.find import nearest
from robot_rl.reward.labels import Fields
from robot_rl.spaces import STATE

Crop = tuple[int, int, int, int]
"""top, left, height, width; pixels."""
_CLIP = 5.0  # standard deviations: a vector that was never seen before must not rule


def is_image(shape: tuple[int, ...], dtype: str) -> bool:
    return dtype == "uint8" and len(shape) == 3


@dataclass(frozen=True)
class Image:
    """How the pictures of one camera are prepared."""

    name: str
    shape: tuple[int, int, int]  # H W C of the camera
    crop: Crop
    size: tuple[int, int]  # H W for the network


@dataclass(frozen=True)
class Vector:
    """How one vector is prepared: (x - mean) / scale, held within +-5."""

    name: str
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]


@dataclass(frozen=True)
class Preprocessing:
    """The one way from an observation to the network's inputs, in training as in use; saved with the classifier."""

    images: tuple[Image, ...]
    vectors: tuple[Vector, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return (*(image.name for image in self.images), *(vector.name for vector in self.vectors))

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """What an observation has to hold; vectors may be of any float."""
        images = {image.name: (tuple(image.shape), "uint8") for image in self.images}
        return images | {vector.name: (tuple(vector.shape), "float32") for vector in self.vectors}

    def select(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """What the network needs of an observation (or of many): uint8 images and float32 vectors, otherwise as they
        were. Raises ValueError on one that is missing or has another shape."""
        out = {}
        for name, (shape, dtype) in self.fields.items():
            if name not in observation:
                raise ValueError(f"observation '{name}' is missing: there is {', '.join(sorted(observation))}")
            value = np.asarray(observation[name])
            if value.shape[-len(shape) or len(value.shape) :] != shape or (dtype == "uint8") != (
                value.dtype == np.uint8
            ):
                raise ValueError(
                    f"observation '{name}' is {value.dtype}{value.shape}: the classifier reads {dtype}{shape}"
                )
            out[name] = value if dtype == "uint8" else value.astype(np.float32)
        return out

    def inputs(self, selected: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Images as uint8 (B, H W C), cropped and scaled; ``state`` (B, D). Pure, for use inside jit."""
        out = {image.name: _picture(selected[image.name], image) for image in self.images}
        if self.vectors:
            parts = []
            for vector in self.vectors:
                flat = selected[vector.name].reshape(len(selected[vector.name]), -1)
                parts.append((flat - jnp.asarray(vector.mean)) / jnp.asarray(vector.scale))
            out[STATE] = jnp.clip(jnp.concatenate(parts, axis=-1), -_CLIP, _CLIP)
        return out

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Preprocessing:
        """Raises KeyError or TypeError where ``value`` is none."""

        def fields(one: Mapping[str, Any]) -> dict[str, Any]:
            return {name: tuple(part) if isinstance(part, list) else part for name, part in one.items()}

        images = tuple(Image(**fields(one)) for one in value["images"])
        vectors = tuple(Vector(**fields(one)) for one in value["vectors"])
        return cls(images, vectors)


def prepare(
    fields: Fields, inputs: Sequence[str], crops: Sequence[str], size: int, rows: Mapping[str, np.ndarray]
) -> Preprocessing:
    """The preprocessing for ``inputs`` (none: all images there are), scaled by what is in ``rows`` (n, ...).

    ``crops`` are such as "camera/wrist:10x20x88x88", top, left, height, width in pixels; ``size`` is the height and
    width for the network. Raises ValueError, naming the input, where that cannot be.
    """
    names = tuple(inputs) or tuple(sorted(name for name, kind in fields.items() if is_image(*kind)))
    if not names:
        raise ValueError(f"no camera among {', '.join(sorted(fields))}: name the inputs to judge by, --set inputs=...")
    cropped = dict(_parse_crop(text, names) for text in crops)
    images, vectors = [], []
    for name in names:
        if name not in fields:
            raise ValueError(f"inputs: {nearest('observation', name, fields)}")
        shape, dtype = fields[name]
        if not is_image(shape, dtype):
            flat = rows[name].reshape(len(rows[name]), -1).astype(np.float64)
            spread = flat.std(axis=0)
            scale = np.where(spread > 1e-6, spread, 1.0)
            vectors.append(Vector(name, shape, tuple(flat.mean(axis=0).tolist()), tuple(scale.tolist())))
            continue
        height, width, channels = shape
        top, left, high, wide = crop = cropped.get(name, (0, 0, height, width))
        if not (0 <= top < top + high <= height and 0 <= left < left + wide <= width):
            raise ValueError(f"crop of '{name}' = {crop}: the picture has {height} x {width} pixels")
        images.append(Image(name, (height, width, channels), crop, (min(size, high), min(size, wide))))
    return Preprocessing(tuple(images), tuple(vectors))


def _parse_crop(text: str, names: Sequence[str]) -> tuple[str, Crop]:
    name, colon, numbers = text.rpartition(":")
    parts = numbers.split("x")
    if not colon or len(parts) != 4 or not all(part.isdigit() for part in parts):
        raise ValueError(f"crop '{text}': write it as name:TOPxLEFTxHEIGHTxWIDTH, in pixels")
    if name not in names:
        raise ValueError(f"crop '{text}': {nearest('input', name, names)}")
    top, left, height, width = map(int, parts)
    return name, (top, left, height, width)


def _picture(images: jax.Array, how: Image) -> jax.Array:
    """(B, H W C) uint8, cropped; each pixel of the result is the mean of those it stands for."""
    top, left, height, width = how.crop
    x = images[:, top : top + height, left : left + width]
    rows, columns = how.size
    if (rows, columns) == (height, width):
        return x
    x = x.astype(jnp.float32)
    if height % rows == 0 and width % columns == 0:
        x = x.reshape(len(x), rows, height // rows, columns, width // columns, -1).mean(axis=(2, 4))
    else:
        x = jax.image.resize(x, (len(x), rows, columns, x.shape[-1]), "linear", antialias=True)
    return as_uint8(x)


def as_uint8(x: jax.Array) -> jax.Array:
    """Rounded and clipped: trunks take pictures as cameras give them."""
    return jnp.clip(jnp.round(x), 0.0, 255.0).astype(jnp.uint8)


class Head(nn.Module):
    """Features (B, F) to a logit (B,)."""

    width: int = 128

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(self.width)(features))
        x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(1)(x)[..., 0]


@dataclass(frozen=True)
class Network:
    """A classifier as pure functions of its parameters {"images", "head"}.

    Features are those of the encoder of images, which policies use too (encoders.py), beside the state as it is.
    """

    encoder: ImageEncoder | None  # None: no images
    head: Head

    def init(self, preprocessing: Preprocessing, rng: np.random.Generator) -> dict[str, Any]:
        """Fresh parameters; the encoder's are its pretrained ones where it is to have them.

        Raises as ``ImageEncoder.init`` does.
        """

        def draw(path: Any, leaf: Any) -> jax.Array:
            return jnp.asarray(_draw(rng, str(path[-1].key), leaf.shape))

        params = jax.tree_util.tree_map_with_path(draw, self.shapes(preprocessing))
        if self.encoder is not None and (self.encoder.settings.pretrained or self.encoder.settings.frozen):
            images, frozen = self.encoder.init(jax.random.key(int(rng.integers(2**31))), _space(preprocessing))
            params["images"] = images if frozen is None else images | {"trunk": frozen.params}
        return params

    def shapes(self, preprocessing: Preprocessing) -> Any:
        """What the parameters look like."""
        size = sum(int(np.prod(vector.shape)) for vector in preprocessing.vectors)
        plain = None
        if self.encoder is not None:
            plain = replace(self.encoder, settings=replace(self.encoder.settings, pretrained="", frozen=False))
            size += plain.size

        def make(key: jax.Array) -> dict[str, Any]:
            images = {} if plain is None else plain.init(key, _space(preprocessing))[0]
            return {"images": images, "head": self.head.init(key, jnp.zeros((1, size)))["params"]}

        return jax.eval_shape(make, jax.random.key(0))

    def split(self, params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters to train, and those to leave alone."""
        if self.encoder is None or not self.encoder.settings.frozen:
            return params, {}
        images = {name: part for name, part in params["images"].items() if name != "trunk"}
        return params | {"images": images}, {"trunk": params["images"]["trunk"]}

    def join(self, trained: dict[str, Any], left_alone: dict[str, Any]) -> dict[str, Any]:
        """The inverse of ``split``."""
        return trained | {"images": trained["images"] | left_alone}

    def encode(self, params: Any, inputs: Mapping[str, jax.Array]) -> jax.Array:
        """Features (B, F)."""
        parts = [] if self.encoder is None else [self.encoder.apply(params["images"], None, inputs)]
        return jnp.concatenate([*parts, *([inputs[STATE]] if STATE in inputs else [])], axis=-1)

    def judge(self, params: Any, features: jax.Array) -> jax.Array:
        """A logit (B,) of features."""
        out: Any = self.head.apply({"params": params["head"]}, features)
        return out

    def logit(self, params: Any, inputs: Mapping[str, jax.Array]) -> jax.Array:
        """(B,)"""
        return self.judge(params, self.encode(params, inputs))

    def ensemble(self, params: Any, inputs: Mapping[str, jax.Array]) -> jax.Array:
        """The mean logit (B,) of members whose parameters are stacked (N, ...)."""
        return jnp.mean(jax.vmap(self.logit, in_axes=(0, None))(params, inputs), axis=0)


def make_network(preprocessing: Preprocessing, settings: encoders.Settings, width: int) -> Network:
    """The network for these inputs."""
    cameras = tuple(image.name for image in preprocessing.images)
    return Network(encoders.make(settings, cameras) if cameras else None, Head(width))


def _space(preprocessing: Preprocessing) -> spaces.Dict:
    """Of the pictures as the encoder gets them."""
    shapes = {image.name: (*image.size, image.shape[-1]) for image in preprocessing.images}
    return spaces.Dict({name: spaces.Box(0, 255, shape, np.uint8) for name, shape in shapes.items()})


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter at the start: uniform weights of He's variance, 2 / fan-in (arXiv 1502.01852), scales 1, all else 0.
    By numpy: compiling JAX's generators takes longer than many a training."""
    if name in ("kernel", "embeddings"):
        bound = math.sqrt(6.0 / math.prod(shape[:-1]))
        return rng.uniform(-bound, bound, shape).astype(np.float32)
    return np.full(shape, 1.0 if name == "scale" else 0.0, np.float32)
