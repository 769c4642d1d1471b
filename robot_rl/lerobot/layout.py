"""The layout of a LeRobot dataset v3.0, and where each of our numbers lies in it.

    DIR/
      meta/info.json             version, fps, totals, path templates, features
      meta/stats.json            of every feature: min, max, mean, std, count, q01, q10, q50, q90, q99
      meta/tasks.parquet         instruction -> task_index
      meta/episodes/chunk-000/file-000.parquet   a row an episode: where its frames and pictures lie, its statistics
      meta/robot_rl.json         what the episode folder said and LeRobot has no word for; other readers pass it by
      data/chunk-000/file-000.parquet            a row a frame
      videos/<camera>/chunk-000/file-000.mp4     many episodes a file

An episode of T steps has T frames there and T + 1 observations here. The last observation is kept where LeRobot does
not look: numbers in columns ``robot_rl/last/...`` of the episode's row, a picture in the video one frame behind the
episode's ``to_timestamp``, or as PNG in the row where pictures are no videos.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from robot_rl.store import StoreInfo

VERSION = "v3.0"
INFO, STATS, TASKS, OURS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet", "meta/robot_rl.json"
_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
EPISODES_PATH = f"meta/episodes/{_FILE}.parquet"
DATA_PATH = f"data/{_FILE}.parquet"
VIDEO_PATH = f"videos/{{video_key}}/{_FILE}.mp4"
OURS_FORMAT = 1  # of meta/robot_rl.json
STATE, ENVIRONMENT, IMAGES = "observation.state", "observation.environment_state", "observation.images."
ACTION, REWARD, DONE = "action", "next.reward", "next.done"
TERMINATED, TRUNCATED, SUCCESS = "next.terminated", "next.truncated", "next.success"
COST = "complementary_info.cost"
EXACT = "exact."  # LeRobot's policies and buffers take no feature of this name
SEED, LAST = "robot_rl/seed", "robot_rl/last/"  # columns of meta/episodes
COUNTERS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
PIXELS = "yuv420p"


def need(module: str) -> Any:
    """An optional module; raises ImportError that names the extra."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{module} is needed for LeRobot datasets and is not installed: pip install 'robot-rl[lerobot]'"
        ) from error


@dataclass(frozen=True)
class Place:
    """Where one of our observations lies."""

    name: str  # ours
    shape: tuple[int, ...]
    dtype: str  # ours
    feature: str  # theirs
    start: int = 0  # first of its numbers in the feature, which are float32
    exact: str | None = None  # feature that holds the same numbers in our dtype

    @property
    def is_image(self) -> bool:
        return is_image(self.shape, self.dtype)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def is_image(shape: Sequence[int], dtype: str) -> bool:
    """Whether agents take such an observation for a picture."""
    return len(shape) == 3 and dtype == "uint8"


def places(info: StoreInfo, environment: Collection[str] = (), leave_out: Collection[str] = ()) -> list[Place]:
    """A place for each observation of ``info`` but ``leave_out``; those of ``environment`` are not the robot's state.

    Raises LookupError for a name that is none, ValueError for a picture that is not RGB or two names that become one.
    """
    for flag, names in (("--environment-state", environment), ("--leave-out", leave_out)):
        for name in names:
            if name not in info.observation:
                raise LookupError(f"{flag} {name}: the observations are {', '.join(sorted(info.observation))}")
    found: list[Place] = []
    filled = {STATE: 0, ENVIRONMENT: 0}
    taken: dict[str, str] = {}
    for name, (shape, dtype) in sorted(info.observation.items()):
        dotted = name.replace("/", ".")  # a feature's name is also a folder's
        if name in leave_out:
            continue
        if is_image(shape, dtype):
            if shape[2] != 3:
                raise ValueError(
                    f"observation '{name}' is a picture of {shape[2]} channels, LeRobot's have 3: --leave-out {name}"
                )
            place = Place(name, shape, dtype, IMAGES + dotted)
        else:
            feature = ENVIRONMENT if name in environment else STATE
            place = Place(name, shape, dtype, feature, filled[feature])
            if dtype != "float32":
                place = replace(place, exact=EXACT + dotted)
            filled[feature] += place.size
        key = place.feature if place.is_image else place.exact
        if key is not None and key in taken:
            raise ValueError(
                f"observations '{taken[key]}' and '{name}' would both be '{key}' there: --leave-out one of them"
            )
        if key is not None:
            taken[key] = name
        found.append(place)
    return found


def features_of(
    places: Sequence[Place], action_dim: int, costs: bool, video: Mapping[str, Any] | None
) -> dict[str, Any]:
    """``features`` of meta/info.json; ``video`` is what all films have in common, None where pictures are PNG."""
    features: dict[str, Any] = {}
    for feature in (STATE, ENVIRONMENT):
        names = [name for place in places if place.feature == feature for name in numbered(place.name, place.size)]
        if names:
            features[feature] = _feature("float32", [len(names)], names)
    for place in places:
        if place.is_image:
            kind = _feature("image" if video is None else "video", place.shape, ["height", "width", "channels"])
            size = {"video.height": place.shape[0], "video.width": place.shape[1]}
            features[place.feature] = kind if video is None else kind | {"info": size | dict(video)}
    features[ACTION] = _feature("float32", [action_dim], numbered(ACTION, action_dim))
    features[REWARD] = _feature("float32", [1])
    features |= {name: _feature("bool", [1]) for name in (DONE, TERMINATED, TRUNCATED, SUCCESS)}
    if costs:
        features[COST] = _feature("float32", [1])
    for place in places:
        if place.exact is not None:
            features[place.exact] = _feature(place.dtype, [place.size], numbered(place.name, place.size))
    return features | {name: _feature(dtype, [1]) for name, dtype in COUNTERS.items()}


def _feature(dtype: str, shape: Sequence[int], names: list[str] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "names": names}


def numbered(name: str, size: int) -> list[str]:
    """A name for each of ``size`` numbers."""
    return [name] if size == 1 else [f"{name}.{index}" for index in range(size)]


def arrow_field(name: str, feature: Mapping[str, Any]) -> Any:
    """The column of a feature in data/: a number, a list of fixed length, or a PNG."""
    pa = need("pyarrow")
    if feature["dtype"] == "image":
        return pa.field(name, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    kind = pa.from_numpy_dtype(np.dtype(feature["dtype"]))
    size = math.prod(feature["shape"])
    return pa.field(name, kind if size == 1 else pa.list_(kind, size))


def arrow_column(rows: np.ndarray) -> Any:
    """(T,) or (T, D) as a column of data/."""
    pa = need("pyarrow")
    flat = pa.array(np.ascontiguousarray(rows).ravel())
    size = math.prod(rows.shape[1:])
    return flat if size == 1 else pa.FixedSizeListArray.from_arrays(flat, size)


def numpy_rows(column: Any) -> np.ndarray:
    """A column of numbers, or of lists of one length at any depth, as (T,) or (T, D); raises ValueError otherwise."""
    pa = need("pyarrow")
    rows = len(column)
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    nested = False
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        array, nested = array.flatten(), True
    if array.null_count or (nested and rows and len(array) % rows):
        raise ValueError("a row lacks numbers")
    values = np.asarray(array.to_numpy(zero_copy_only=False))
    return values.reshape(rows, -1) if nested else values


def ours(info: StoreInfo, places: Sequence[Place], images: str) -> dict[str, Any]:
    """meta/robot_rl.json: what an import needs to make the same episode folder again."""
    about = {"format": OURS_FORMAT, "task": info.task, "arm": info.arm, "world": info.world, "images": images}
    where = {
        place.name: {
            "shape": list(place.shape),
            "dtype": place.dtype,
            "feature": place.feature,
            "start": place.start,
            "exact": place.exact,
        }
        for place in places
    }
    return about | {
        "action_dim": info.action_dim, "costs": info.costs, "configs": dict(info.configs), "observation": where
    }  # fmt: skip
