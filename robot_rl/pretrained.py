"""Weights of a residual encoder from a local file: nothing is downloaded, and nothing in a file is executed.

    .safetensors     SERL's ResNet-10 as it is published for torch (``embedder.0.weight`` ...), or torchvision's names
    .pth, .pt        a state dict in torchvision's names (``layer1.0.conv1.weight`` ...); needs the ``torch`` extra

Convolutions come as (out, in, h, w) and become (h, w, in, out). A batch normalisation in use is a scale and a shift per
channel, so it is folded into those: s = weight / sqrt(var + eps), t = bias - mean s. GroupNorm's are taken as they are.
The last, classifying layer is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

_BATCH_EPSILON = 1e-5
_IGNORED = ("fc.", "classifier.", "pooler.")  # what comes after the maps


def load(path: str | Path, like: Mapping[str, Any], grouped: bool) -> dict[str, Any]:
    """Parameters as ``like``, a ResNet's, with the numbers of the file ``path``; ``grouped`` as in the ResNet.

    Raises FileNotFoundError, and ValueError which names the tensor that is missing, has another shape, is not finite,
    or has no place in this network.
    """
    tensors = {
        name: value
        for name, value in read(path).items()
        if not name.startswith(_IGNORED) and not name.endswith("num_batches_tracked")
    }
    torchvision = "conv1.weight" in tensors
    flat: dict[tuple[str, ...], jax.Array] = {}
    for place, leaves in _layers(like).items():
        name = _name(place, torchvision)
        found = _layer(tensors, name, "kernel" in leaves, grouped, path)
        for leaf, value in found.items():
            if value.shape != leaves[leaf].shape:
                raise ValueError(
                    f"{path}: tensor '{name}.weight' gives {value.shape}, and this encoder has {leaves[leaf].shape} "
                    f"at {'/'.join(place)}: it is a file for another network"
                )
            flat[(*place, leaf)] = jnp.asarray(value, jnp.float32)
    if tensors:
        raise ValueError(
            f"{path}: tensor '{min(tensors)}' and {len(tensors) - 1} more have no place in this encoder: it is a file "
            "for another network (resnet10 has GroupNorm and one block a stage, resnet18 BatchNorm and two)"
        )
    return unflatten_dict(flat)


def _layers(params: Mapping[str, Any]) -> dict[tuple[str, ...], dict[str, Any]]:
    """Place of each layer -> its own parameters."""
    layers: dict[tuple[str, ...], dict[str, Any]] = {}
    for place, leaf in flatten_dict(dict(params)).items():
        layers.setdefault(place[:-1], {})[place[-1]] = leaf
    return layers


def _layer(
    tensors: dict[str, np.ndarray], name: str, convolution: bool, grouped: bool, path: str | Path
) -> dict[str, np.ndarray]:
    """The parameters of one layer, taken out of ``tensors``."""
    weight = _take(tensors, f"{name}.weight", path)
    if convolution:
        if weight.ndim != 4:
            raise ValueError(f"{path}: tensor '{name}.weight' is {weight.shape}: a convolution has four axes")
        return {"kernel": weight.transpose(2, 3, 1, 0)}
    bias = _take(tensors, f"{name}.bias", path)
    if grouped:
        return {"scale": weight, "bias": bias}
    mean, variance = (_take(tensors, f"{name}.running_{of}", path) for of in ("mean", "var"))
    scale = weight / np.sqrt(variance.astype(np.float64) + _BATCH_EPSILON)
    return {"scale": scale, "bias": bias - mean * scale}


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Every tensor of a file by its name, float32. Raises FileNotFoundError, and ValueError for what it cannot read."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"pretrained = '{path}': there is no such file; nothing is downloaded")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return {name: np.asarray(value, np.float32) for name, value in load_file(path).items()}
        except (SafetensorError, TypeError, ValueError) as error:  # TypeError: a dtype that numpy does not have
            raise ValueError(f"{path} is no safetensors file that can be read: {error}") from None
    if path.suffix in (".pth", ".pt"):
        return _read_torch(path)
    raise ValueError(f"pretrained = '{path}': give a file that ends in .safetensors, .pth or .pt")


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{path} needs PyTorch to be read: pip install 'robot-rl[torch]', or save it as .safetensors"
        ) from None
    import pickle

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)  # tensors only: no code of the file runs
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is no checkpoint of tensors alone: {reason}") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} is no state dict: save model.state_dict()")
    return {str(name).removeprefix("module."): value.float().numpy() for name, value in state.items()}


def _name(place: tuple[str, ...], torchvision: bool) -> str:
    """What torch calls the layer at ``place`` of our tree."""
    if len(place) == 1:  # stem, stem_norm
        if torchvision:
            return "conv1" if place[0] == "stem" else "bn1"
        return "embedder.0" if place[0] == "stem" else "embedder.1"
    stage, block = (int(part[5:]) for part in place[0].split("_"))
    layer = place[1]
    if torchvision:
        within = {"shortcut": "downsample.0", "shortcut_norm": "downsample.1"}.get(layer, layer.replace("norm", "bn"))
        return f"layer{stage + 1}.{block}.{within}"
    within = {"shortcut": "shortcut.0", "shortcut_norm": "shortcut.1"}.get(layer, layer)
    return f"encoder.stages.{stage}.{within}"


def _take(left: dict[str, np.ndarray], name: str, path: str | Path) -> np.ndarray:
    if name not in left:
        known = ", ".join(sorted(left)[:3])
        raise ValueError(f"{path}: tensor '{name}' is missing (there is {known or 'nothing else'} ...)")
    value = left.pop(name)
    if not np.isfinite(value).all():
        raise ValueError(f"{path}: tensor '{name}' is not finite")
    return value
