"""From camera images to one feature vector: a trunk of convolutions, a learned readout, a narrow tanh layer.

    {camera: uint8 (..., H, W, 3)} --trunk--> maps (..., h, w, C) --readout--> (..., latent) per camera, side by side

The readout is that of SERL (arXiv 2401.16013): learned spatial embeddings (or all of the map, or its mean), dropout,
Dense, LayerNorm, tanh. A ``conv`` trunk is small and each camera's own; a residual trunk (arXiv 1512.03385) is one for
all cameras, may begin with ``pretrained`` weights, and may be ``frozen``: then it is no parameter of the learner's at
all, so that neither gradient nor weight decay can move it.

Images are uint8 from the camera to the trunk, which scales them itself: nothing else may, and no other type is taken.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from robot_rl.config import choice, number

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_GRID = 16  # patches along the shorter side of an image
_EPSILON = 1e-5  # of normalisations, as in the published residual networks


class ConvNet(nn.Module):
    """uint8 (B, H, W, 3) to (B, 4, 4, widths[-1]) or so: patches of a sixteenth of the side, then 3x3 at stride 2.

    The first layer is a matrix product over patches, which do not overlap: as a strided convolution it takes twice the
    time on a CPU (benchmarks/vision.py).
    """

    widths: tuple[int, ...] = (32, 64, 64)

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        side = max(1, min(images.shape[1:3]) // _GRID)
        x = _patches(images, side).astype(jnp.float32) / 127.5 - 1.0
        x = nn.relu(nn.Dense(self.widths[0], kernel_init=nn.initializers.he_normal())(x))
        for width in self.widths[1:]:
            x = nn.relu(nn.Conv(width, (3, 3), (2, 2), kernel_init=nn.initializers.he_normal())(x))
        return x


def _patches(images: jax.Array, side: int) -> jax.Array:
    """(B, H, W, C) to (B, H / side, W / side, side * side * C), the last rows and columns repeated where it needs."""
    below, right = -images.shape[1] % side, -images.shape[2] % side
    if below or right:
        images = jnp.pad(images, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge")
    batch, height, width, channels = images.shape
    x = images.reshape(batch, height // side, side, width // side, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // side, width // side, side * side * channels)


class _Affine(nn.Module):
    """scale x + bias per channel: what is left of a batch normalisation once it has been trained."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return x * scale + self.param("bias", nn.initializers.zeros, (x.shape[-1],))


class _Block(nn.Module):
    """The basic residual block of arXiv 1512.03385, (B, h, w, C) to (B, h / stride, w / stride, width)."""

    width: int
    stride: int
    grouped: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kept = x
        for index, stride in ((1, self.stride), (2, 1)):
            x = _norm(self.grouped, f"norm{index}")(_conv(self.width, 3, stride, f"conv{index}")(x))
            x = nn.relu(x) if index == 1 else x
        if kept.shape[-1] != self.width or self.stride != 1:
            kept = _conv(self.width, 1, self.stride, "shortcut")(kept)
            kept = _norm(self.grouped, "shortcut_norm")(kept)
        return nn.relu(x + kept)


class ResNet(nn.Module):
    """uint8 (B, H, W, 3) to (B, H / 32, W / 32, 512), ImageNet's mean and deviation taken off first.

    ``grouped``: GroupNorm of four groups, as SERL's ResNet-10 and its published conversions; otherwise the fixed
    scale and shift of a batch normalisation in use, as torchvision's networks have it.
    """

    blocks: tuple[int, ...]
    grouped: bool

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = (images.astype(jnp.float32) / 255.0 - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)
        x = nn.relu(_norm(self.grouped, "stem_norm")(_conv(64, 7, 2, "stem")(x)))
        pad = "SAME" if self.grouped else ((1, 1), (1, 1))
        x = nn.max_pool(x, (3, 3), (2, 2), pad)
        for stage, count in enumerate(self.blocks):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                x = _Block(64 * 2**stage, stride, self.grouped, name=f"stage{stage}_block{index}")(x)
        return x


def _conv(width: int, size: int, stride: int, name: str) -> nn.Module:
    pad = ((size // 2, size // 2),) * 2
    init = nn.initializers.he_normal()
    return nn.Conv(width, (size, size), (stride, stride), pad, use_bias=False, kernel_init=init, name=name)


def _norm(grouped: bool, name: str) -> nn.Module:
    # The two-pass variance: the quick one loses digits where a map's mean is far from zero.
    return nn.GroupNorm(4, epsilon=_EPSILON, use_fast_variance=False, name=name) if grouped else _Affine(name=name)


TRUNKS: dict[str, nn.Module] = {
    "conv": ConvNet(),
    "resnet10": ResNet((1, 1, 1, 1), grouped=True),
    "resnet18": ResNet((2, 2, 2, 2), grouped=False),
}
POOLS = ("flat", "spatial", "mean")
_EMBEDDINGS = 8  # per channel


class Readout(nn.Module):
    """Maps (B, h, w, C) to (B, latent) in (-1, 1)."""

    pool: str
    latent: int
    dropout: float

    @nn.compact
    def __call__(self, maps: jax.Array, drop: bool) -> jax.Array:
        if self.pool == "spatial":
            kernel = self.param("embeddings", nn.initializers.lecun_normal(), (*maps.shape[1:], _EMBEDDINGS))
            maps = jnp.einsum("bhwc,hwcf->bcf", maps, kernel)
        elif self.pool == "mean":
            maps = jnp.mean(maps, axis=(1, 2))
        x = maps.reshape(len(maps), -1)
        x = nn.Dropout(self.dropout)(x, deterministic=not drop)
        return jnp.tanh(nn.LayerNorm()(nn.Dense(self.latent)(x)))


@dataclass(frozen=True)
class Settings:
    """What a config says about its images; where there are none, nothing of it is read."""

    encoder: str = choice("conv", TRUNKS, "of images: small and each camera's own, or residual and one for all")
    pretrained: str = ""  # file with weights for a residual encoder: .safetensors, or .pth with the torch extra
    frozen: bool = False  # the pretrained weights stay as they are
    pool: str = choice("flat", POOLS, "of the encoder's map: all of it, SERL's learned spatial embeddings, its mean")
    latent: int = number(64, 1, 4096, "features per camera")
    dropout: float = number(0.0, 0.0, 0.9, "share of pooled features left out while training")
    shift_px: int = number(4, 0, 64, "px that training images are shifted by at most, each way, at random")


class Frozen(NamedTuple):
    """Parameters that nobody trains, and a checksum by which two processes know that theirs are the same."""

    params: Any
    checksum: jax.Array  # () uint32


@dataclass(frozen=True)
class ImageEncoder:
    """The images of ``cameras`` to one vector (..., size). Holds no parameters: it may be static in a jitted function.

    ``init`` gives those to train and those that are frozen; ``apply`` takes both.
    """

    cameras: tuple[str, ...]  # sorted
    settings: Settings

    @property
    def size(self) -> int:
        return len(self.cameras) * self.settings.latent

    def init(self, key: jax.Array, space: spaces.Dict) -> tuple[dict[str, Any], Frozen | None]:
        """Parameters for images of these shapes: to train, by ``trunk`` and ``readout``; and frozen, if asked.

        Raises ValueError where settings do not fit together, and as ``pretrained.load`` does.
        """
        settings, trunk = self.settings, TRUNKS[self.settings.encoder]
        _check(settings)
        keys = jax.random.split(key, len(self.cameras) + 1)
        start, begin = jax.jit(trunk.init), jax.jit(partial(self._readout.init, drop=False))
        images = {name: jnp.zeros((1, *(space[name].shape or ())), jnp.uint8) for name in self.cameras}
        shared = start(keys[-1], images[self.cameras[0]])["params"] if self._is_shared else None
        if settings.pretrained:
            from robot_rl import pretrained

            assert isinstance(trunk, ResNet) and shared is not None
            shared = pretrained.load(settings.pretrained, shared, trunk.grouped)
        trunks, readouts = {}, {}
        for name, own in zip(self.cameras, keys[:-1], strict=True):
            trunk_key, readout_key = jax.random.split(own)
            if not self._is_shared:
                trunks[name] = start(trunk_key, images[name])["params"]
            used = {"params": shared if self._is_shared else trunks[name]}
            maps: Any = jax.eval_shape(trunk.apply, used, images[name])
            readouts[name] = begin(readout_key, jnp.zeros(maps.shape))["params"]
        if settings.frozen:
            return {"readout": readouts}, Frozen(shared, _checksum(shared))
        return {"trunk": shared if self._is_shared else trunks, "readout": readouts}, None

    def apply(
        self,
        params: Mapping[str, Any],
        frozen: Frozen | None,
        images: Mapping[str, jax.Array],
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Features (..., size) of uint8 images (..., H, W, 3); with a ``dropout_key`` as in training.

        Raises TypeError for images that are not uint8: they would be scaled twice.
        """
        trunk = TRUNKS[self.settings.encoder]
        features = []
        for index, name in enumerate(self.cameras):
            image = jnp.asarray(images[name])
            if image.dtype != jnp.uint8:
                raise TypeError(f"image '{name}' is {image.dtype}: give uint8 as it comes from the camera")
            flat = image.reshape(-1, *image.shape[-3:])
            shared = params["trunk"] if frozen is None else jax.lax.stop_gradient(frozen.params)
            maps = trunk.apply({"params": shared if self._is_shared else shared[name]}, flat)
            rngs = None if dropout_key is None else {"dropout": jax.random.fold_in(dropout_key, index)}
            seen: Any = self._readout.apply({"params": params["readout"][name]}, maps, rngs is not None, rngs=rngs)
            features.append(seen.reshape(*image.shape[:-3], self.settings.latent))
        return jnp.concatenate(features, axis=-1)

    @property
    def _is_shared(self) -> bool:
        return self.settings.encoder != "conv"

    @property
    def _readout(self) -> Readout:
        return Readout(self.settings.pool, self.settings.latent, self.settings.dropout)


def make(config: Settings, cameras: tuple[str, ...]) -> ImageEncoder:
    """The encoder that ``config``, which may say more than this, describes."""
    own = Settings(**{name: getattr(config, name) for name in Settings.__dataclass_fields__})
    return ImageEncoder(tuple(sorted(cameras)), own)


def _check(settings: Settings) -> None:
    if settings.encoder == "conv" and (settings.pretrained or settings.frozen):
        raise ValueError(
            "encoder = 'conv' is trained from nothing: pretrained and frozen are for resnet10 and resnet18"
        )
    if settings.frozen and not settings.pretrained:
        raise ValueError("frozen = true without pretrained: random features stay random; give a file of weights")


def _checksum(params: Any) -> jax.Array:
    """crc32 over all leaves, () uint32."""
    value = 0
    for leaf in jax.tree.leaves(params):
        value = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), value)
    return jnp.uint32(value)
