"""Episode folders to export, and small datasets as other programs write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robot_rl.episode import Episode
from robot_rl.store import EpisodeReader, EpisodeWriter, StoreInfo

STEP_FIELDS = ("action", "reward", "terminated", "truncated", "success", "cost")
VECTORS = {"goal": ((2,), "float32"), "pose/xy": ((2,), "float64"), "mode": ((), "int64")}
CAMERA = {"camera/front": ((32, 48, 3), "uint8")}


def info(cameras: bool = True, action_dim: int = 3, costs: bool = True, **configs: Any) -> StoreInfo:
    observation = VECTORS | (CAMERA if cameras else {})
    return StoreInfo(
        "peg_insert", "ur5e", "sim", observation, action_dim, {"task": {"control_hz": 10.0}} | configs, costs
    )


def picture(seed: int, step: int) -> np.ndarray:
    """A smooth one, as codecs are made for, of which no two are equal. (32, 48, 3) uint8."""
    y, x = np.mgrid[:32, :48]
    red, green = 4 * x + 5 * step % 60, 120 + 2 * y + 0 * x
    return np.stack([red, green, np.full_like(x, (37 * seed + 11 * step) % 256)], -1).clip(0, 255).astype(np.uint8)


def make_episode(seed: int, steps: int, about: StoreInfo, terminated: bool = True, truncated: bool = False) -> Episode:
    """Everything about it follows from its arguments."""
    rng = np.random.default_rng(seed)
    last = np.arange(steps) == steps - 1
    observation = {
        name: rng.normal(size=(steps + 1, *shape)).astype(dtype)
        if dtype != "uint8"
        else np.stack([picture(seed, step) for step in range(steps + 1)])
        for name, (shape, dtype) in about.observation.items()
    }
    if "mode" in observation:
        observation["mode"] = rng.integers(-(2**62), 2**62, steps + 1)
    return Episode(
        observation,
        rng.uniform(-1, 1, (steps, about.action_dim)).astype(np.float32),
        rng.normal(size=steps).astype(np.float32),
        last & terminated,
        last & truncated,
        last & terminated,
        seed,
        rng.random(steps).astype(np.float32) if about.costs else None,
    )


def record(path: Path, about: StoreInfo, lengths: Sequence[int]) -> Path:
    """A folder of episodes of these lengths."""
    with EpisodeWriter(path, about) as writer:
        for seed, steps in enumerate(lengths):
            writer.append(make_episode(seed, steps, about, terminated=seed % 2 == 0, truncated=seed % 3 == 1))
    return path


def assert_equal_folders(one: Path, other: Path, tolerance: float = 0.0) -> None:
    """Bit for bit, but for pictures: those differ by ``tolerance`` at most in the mean of each."""
    here, there = EpisodeReader(one), EpisodeReader(other)
    assert here.info == there.info and len(here) == len(there)
    for a, b in zip(here, there, strict=True):
        assert a.seed == b.seed and a.observation.keys() == b.observation.keys()
        pairs = [(name, a.observation[name], b.observation[name]) for name in a.observation]
        pairs += [(name, getattr(a, name), getattr(b, name)) for name in STEP_FIELDS if getattr(a, name) is not None]
        assert (a.cost is None) == (b.cost is None)
        for name, x, y in pairs:
            assert x.dtype == y.dtype and x.shape == y.shape, name
            if x.ndim == 4:
                assert np.abs(x.astype(float) - y).mean(axis=(1, 2, 3)).max() <= tolerance, name
            else:
                assert x.tobytes() == y.tobytes(), (name, x, y)


def foreign(root: Path, columns: Mapping[str, np.ndarray], lengths: Sequence[int], **info: Any) -> Path:
    """A dataset as others write it, all episodes in one row group: ``columns`` by feature, (frames,) or (frames, D)."""
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    frames = sum(lengths)
    counters = {
        "timestamp": np.concatenate([np.arange(n) / 10.0 for n in lengths]).astype(np.float32),
        "frame_index": np.concatenate([np.arange(n) for n in lengths]),
        "episode_index": np.repeat(np.arange(len(lengths)), lengths),
        "index": np.arange(frames),
        "task_index": np.zeros(frames, np.int64),
    }
    every = {**columns, **counters}
    features = {
        name: {"dtype": str(rows.dtype), "shape": list(rows.shape[1:]) or [1], "names": None}
        for name, rows in every.items()
    }
    table = {name: pa.array(rows.tolist()) for name, rows in every.items()}  # lists of no fixed length
    pq.write_table(pa.table(table), root / "data/chunk-000/file-000.parquet")
    rows = [{"episode_index": i, "length": n, "tasks": ["pick it up"]} for i, n in enumerate(lengths)]
    pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    about = {"codebase_version": "v3.0", "fps": 10, "total_episodes": len(lengths), "total_frames": frames}
    (root / "meta/info.json").write_text(json.dumps(about | {"features": features, "robot_type": "so100"} | info))
    return root
