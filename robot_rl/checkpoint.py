"""Checkpoints: the arrays of an agent as msgpack, what it was trained for as JSON, in one file, without pickle."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import msgpack
import numpy as np
from flax import serialization

from robot_rl.files import write_atomic

A = TypeVar("A")
_MAGIC = b"robot-rl checkpoint 1\n"
_HEAD = struct.Struct("<QQI")  # bytes of metadata, bytes of arrays, crc32 of both


def save(path: str | Path, agent: Any, metadata: dict[str, Any] | None = None) -> None:
    """Write ``agent`` (a pytree) and ``metadata`` (JSON values) to ``path``, at once or not at all."""
    text = json.dumps(metadata or {}, allow_nan=False).encode()
    arrays = serialization.msgpack_serialize(flatten(agent))
    body = text + arrays
    write_atomic(Path(path), _MAGIC + _HEAD.pack(len(text), len(arrays), zlib.crc32(body)) + body)


def load(path: str | Path, agent: A) -> A:
    """``agent`` with the arrays of the file. Raises ValueError for a damaged file, and for one of another agent or
    task, naming the first array that differs; FileNotFoundError where there is none."""
    return fill(agent, _read(path)[1], str(path))


def fill(tree: A, arrays: Mapping[str, np.ndarray], source: str, medium: str = "file") -> A:
    """``tree`` with ``arrays`` as its leaves, by the names that ``flatten`` gives them. Raises ValueError, naming the
    first that differs in type or shape, and ``source``, a ``medium``, as where they are from."""
    mine = flatten(tree)
    if differing := [name for name in sorted(mine.keys() | arrays.keys()) if _kind(mine, name) != _kind(arrays, name)]:
        name = differing[0]
        raise ValueError(
            f"{source} does not fit this agent: '{name}' is {_kind(arrays, name)} in the {medium} and "
            f"{_kind(mine, name)} here ({len(differing)} of {len(mine)} arrays differ); use the task, "
            "agent and settings it was made with"
        )
    leaves, treedef = jax.tree.flatten_with_path(tree)
    return jax.tree.unflatten(treedef, [jax.numpy.asarray(arrays[jax.tree_util.keystr(key)]) for key, _ in leaves])


def load_metadata(path: str | Path) -> dict[str, Any]:
    """What ``save`` was given; raises as ``load`` does for a damaged file."""
    return _read(path)[0]


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of ``tree`` as arrays, by their paths."""
    return {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in jax.tree.leaves_with_path(tree)}


def _kind(arrays: Mapping[str, np.ndarray], name: str) -> str:
    return f"{arrays[name].dtype} {arrays[name].shape}" if name in arrays else "missing"


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    data = Path(path).read_bytes()
    if not data.startswith(_MAGIC):
        raise ValueError(f"{path} is not a checkpoint: it was written by something else, or is empty")
    start = len(_MAGIC) + _HEAD.size
    if len(data) < start:
        raise ValueError(f"{path} is cut short: take an earlier checkpoint")
    text_size, arrays_size, checksum = _HEAD.unpack(data[len(_MAGIC) : start])
    if len(data) != start + text_size + arrays_size:
        raise ValueError(f"{path} is cut short: it has {len(data)} of {start + text_size + arrays_size} bytes")
    if zlib.crc32(data[start:]) != checksum:
        raise ValueError(f"{path} is damaged (checksum): take an earlier checkpoint")
    try:
        metadata = json.loads(data[start : start + text_size])
        return metadata, serialization.msgpack_restore(data[start + text_size :])
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise ValueError(f"{path} is damaged ({error}): take an earlier checkpoint") from error
