"""A LeRobot dataset v3.0 on disk, read forwards, one episode in memory at a time."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.files import read_json
from robot_rl.lerobot import layout
from robot_rl.lerobot.layout import need
from robot_rl.lerobot.pictures import FilmReader, from_png, resized

BATCH_ROWS = 128
_AGAIN = "fetch or export it again"
_VISUAL = ("video", "image")


@dataclass(frozen=True)
class Raw:
    """One episode as it lies there."""

    index: int
    row: Mapping[str, Any]  # of meta/episodes
    columns: Mapping[str, Any]  # of data/, Arrow

    def __len__(self) -> int:
        return int(self.row["length"])

    @property
    def is_ours(self) -> bool:
        """Whether our export wrote it; LeRobot may have recorded further ones into the same dataset."""
        return self.row.get(layout.SEED) is not None


class Dataset:
    """What a dataset says about itself, and its episodes."""

    def __init__(self, root: Path) -> None:
        """Raises FileNotFoundError, ValueError for another version or a damaged file, ImportError without the extra."""
        need("pyarrow.parquet"), need("av")
        self.root = root
        if not root.exists():
            raise FileNotFoundError(f"no dataset at {root}: give a folder that has {layout.INFO}")
        if not (root / layout.INFO).is_file():
            raise ValueError(f"{root} is no LeRobot dataset (it has no {layout.INFO}): give one of version v3.0")
        self.info = read_json(root / layout.INFO, _AGAIN)
        version = self.info.get("codebase_version")
        if not str(version).startswith("v3."):
            raise ValueError(
                f"{root} has codebase_version {version!r}, v3.0 is read: convert it with lerobot's own "
                "`python -m lerobot.datasets.v30.convert_dataset_v21_to_v30`"
            )
        for name in ("fps", "features", "total_episodes"):
            if not self.info.get(name):
                raise ValueError(f"{root / layout.INFO}: {name} is {self.info.get(name)!r}: {_AGAIN}")
        for name, feature in self.info["features"].items():
            if not isinstance(feature, dict) or not {"dtype", "shape"} <= feature.keys():
                raise ValueError(f"{root / layout.INFO}: feature {name} has no dtype or no shape: {_AGAIN}")
        self.fps = float(self.info["fps"])
        self.features: dict[str, Any] = self.info["features"]
        self.ours: Mapping[str, Any] | None = self._ours()
        self._films = {name: FilmReader() for name in self.features if self.dtype(name) == "video"}

    def dtype(self, feature: str) -> str:
        return str(self.features[feature]["dtype"])

    def shape(self, feature: str) -> tuple[int, ...]:
        return tuple(self.features[feature]["shape"])

    def is_image(self, feature: str) -> bool:
        return self.dtype(feature) in _VISUAL

    def __len__(self) -> int:
        return int(self.info["total_episodes"])

    def close(self) -> None:
        for film in self._films.values():
            film.close()

    def episodes(self, features: Sequence[str]) -> Iterator[Raw]:
        """Every episode, with the columns of ``features``. Raises ValueError that names what is damaged."""
        stored = [name for name in dict.fromkeys(features) if self.dtype(name) != "video"]
        tables = self._tables(["episode_index", "frame_index", *stored])
        count = 0
        for row in self._rows():
            index = row["episode_index"]
            found, table = next(tables, (None, None))
            if table is None or found != index or len(table) != row["length"]:
                held = "none" if table is None else f"{len(table)} of episode {found}"
                raise ValueError(
                    f"{self.root / 'data'} does not fit meta/episodes: {row['length']} frames of episode {index} are "
                    f"expected, there are {held}; {_AGAIN}"
                )
            if not np.array_equal(layout.numpy_rows(table.column("frame_index")).ravel(), np.arange(len(table))):
                wanted = f"0 to {len(table) - 1} in order"
                raise ValueError(f"{self.root / 'data'}: frame_index of episode {index} is not {wanted}; {_AGAIN}")
            count += 1
            yield Raw(index, row, {name: table.column(name) for name in stored})
        if count != len(self):
            raise ValueError(f"{self.root} has {count} episodes, {layout.INFO} says {len(self)}: {_AGAIN}")

    def numbers(self, raw: Raw, feature: str) -> np.ndarray:
        """(T, D) of an episode; raises ValueError that names the feature where a frame lacks some."""
        try:
            rows = layout.numpy_rows(raw.columns[feature])
        except ValueError as error:
            raise ValueError(f"{self.root}: episode {raw.index}, {feature}: {error}; {_AGAIN}") from error
        return rows.reshape(len(raw), -1)

    def images(self, raw: Raw, feature: str, height: int, width: int, one_more: bool) -> np.ndarray:
        """Pictures (T, H, W, 3) of an episode; ``one_more``: and the one behind its last."""
        count = len(raw) + one_more
        if self.dtype(feature) == "video":
            where = {name: raw.row[f"videos/{feature}/{name}"] for name in ("chunk_index", "file_index")}
            path = self.root / str(self.info["video_path"]).format(video_key=feature, **where)
            times_s = raw.row[f"videos/{feature}/from_timestamp"] + np.arange(count) / self.fps
            return self._films[feature].read(path, times_s, height, width, 0.4 / self.fps)
        images = np.empty((len(raw), height, width, 3), np.uint8)
        for index, cell in enumerate(raw.columns[feature]):
            content = cell.as_py()["bytes"]
            if content is None:
                raise ValueError(
                    f"{self.root}: episode {raw.index}, {feature}: frame {index} is not in the file, only its path; "
                    "fetch a dataset with embedded pictures"
                )
            images[index] = resized(from_png(content), height, width)
        return images

    def _ours(self) -> Mapping[str, Any] | None:
        """What our own export wrote, as long as no other tool has changed the dataset since."""
        if not (self.root / layout.OURS).is_file():
            return None
        about = read_json(self.root / layout.OURS, _AGAIN)
        if about.get("format") != layout.OURS_FORMAT:
            raise ValueError(
                f"{self.root / layout.OURS} has format {about.get('format')!r}, this version reads "
                f"{layout.OURS_FORMAT}: use the version of robot-rl that wrote it"
            )
        pq = need("pyarrow.parquet")
        names = set(pq.read_schema(self._files("meta/episodes")[0]).names)
        needed = {one[name] for one in about["observation"].values() for name in ("feature", "exact") if one[name]}
        return about if layout.SEED in names and needed <= self.features.keys() else None

    def _files(self, folder: str) -> list[Path]:
        """Parquet files in the order of their numbers."""
        found = sorted(
            (self.root / folder).glob("*/*.parquet"), key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)]
        )
        found.sort(key=lambda path: [int(n) for n in re.findall(r"\d+", path.parent.name)])
        if not found:
            raise ValueError(f"{self.root / folder} has no parquet file: {_AGAIN}")
        return found

    def _batches(self, folder: str, columns: Sequence[str] | None, rows: int) -> Iterator[Any]:
        pa, pq = need("pyarrow"), need("pyarrow.parquet")
        for path in self._files(folder):
            try:
                with pq.ParquetFile(path) as file:
                    chosen = columns or [name for name in file.schema_arrow.names if not name.startswith("stats/")]
                    if lacking := [name for name in chosen if name not in file.schema_arrow.names]:
                        raise ValueError(f"it lacks {', '.join(lacking)}")
                    for batch in file.iter_batches(batch_size=rows, columns=chosen):
                        yield pa.Table.from_batches([batch]).select(chosen)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise ValueError(f"{path} is damaged ({error}): {_AGAIN}") from error

    def _rows(self) -> Iterator[dict[str, Any]]:
        for table in self._batches("meta/episodes", None, 16):
            yield from table.to_pylist()

    def _tables(self, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """The frames of each episode, and its index."""
        pa = need("pyarrow")
        held: list[Any] = []
        now: int | None = None
        for table in self._batches("data", columns, BATCH_ROWS):
            indices = layout.numpy_rows(table.column("episode_index")).ravel()
            cuts = [0, *(np.flatnonzero(np.diff(indices)) + 1), len(indices)]
            for start, end in itertools.pairwise(cuts):
                if held and now != indices[start]:
                    yield int(now or 0), pa.concat_tables(held)
                    held = []
                now = int(indices[start])
                held.append(table.slice(start, end - start))
        if held:
            yield int(now or 0), pa.concat_tables(held)
