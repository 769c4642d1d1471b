"""An episode folder as a LeRobot dataset v3.0. See ``layout.py`` for what lies where.

Everything is written into a hidden folder beside the output and moved there at the end, so that a killed export leaves
nothing that looks finished. Memory holds one episode.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from robot_rl.episode import Episode
from robot_rl.files import disk_errors, sync_folder, sync_tree, write_json
from robot_rl.lerobot import layout, stats
from robot_rl.lerobot.layout import Place, need
from robot_rl.lerobot.pictures import Film, to_png, video_info
from robot_rl.store import EpisodeReader, StoreInfo

ROWS_KEPT = 32  # rows of meta/episodes that are written together
MB = 1024 * 1024


@dataclass(frozen=True)
class Options:
    """How to write a dataset; LeRobot's own defaults."""

    instruction: str = ""  # the task in words; empty: its name
    images: Literal["video", "png"] = "video"
    codec: Literal["av1", "h264"] = "av1"
    fps: float | None = None  # None: the task's control_hz
    environment: tuple[str, ...] = ()  # observations of the surroundings, not of the robot
    leave_out: tuple[str, ...] = ()  # observations
    data_file_mb: float = 100
    video_file_mb: float = 200
    chunk_files: int = 1000  # files of a folder


@dataclass(frozen=True)
class Exported:
    """What was written."""

    episodes: int
    frames: int


def export(
    source: Path, out: Path, options: Options | None = None, on_episode: Callable[[int, int], None] = lambda i, n: None
) -> Exported:
    """Write the episodes of the folder ``source`` to ``out``, which must not exist. ``on_episode``: done, of how many.

    Raises FileExistsError, ValueError for a folder without episodes or rate, LookupError for a name that is none of its
    observations, ImportError without the extra, and what ``EpisodeReader`` raises; nothing is left behind then.
    """
    options = options or Options()
    need("pyarrow.parquet"), need("av")
    reader = EpisodeReader(source)
    if out.exists():
        raise FileExistsError(f"--out {out} exists: give another folder, or remove it")
    if not len(reader):
        raise ValueError(f"{source} holds no episode: record some first, robot-rl demo record --out {source}")
    for name, limit_mb in (("--data-file-mb", options.data_file_mb), ("--video-file-mb", options.video_file_mb)):
        if not limit_mb > 0.0:
            raise ValueError(f"{name} {limit_mb}: give megabytes, more than 0")
    options = replace(options, fps=_fps(reader.info, options.fps))
    with _folder(out) as folder:
        writer = _Writer(folder, reader.info, options)
        try:
            for index, episode in enumerate(reader):
                writer.append(episode)
                on_episode(index + 1, len(reader))
            writer.finish()
        finally:
            writer.close()
        return Exported(len(reader), writer.frames)


def _fps(info: StoreInfo, given: float | None) -> float:
    fps = given if given is not None else info.configs.get("task", {}).get("control_hz")
    if fps is None:
        raise ValueError(f"the episodes of {info.task} do not say how many steps a second has: give --fps")
    if not 0.0 < fps < float("inf"):
        raise ValueError(f"--fps {fps}: give steps per second, more than 0")
    return int(fps) if float(fps).is_integer() else float(fps)


@contextlib.contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """A folder that becomes ``out`` at the end, or goes."""
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp"))
        try:
            yield temporary
            temporary.chmod(0o755)
            sync_tree(temporary)
            os.rename(temporary, out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(out.parent)


class _Numbers:
    """Which file of which folder is being filled."""

    def __init__(self, limit_mb: float, chunk_files: int) -> None:
        self.chunk = self.file = 0
        self.limit, self._files = limit_mb * MB, chunk_files

    def advance(self) -> None:
        self.file += 1
        if self.file == self._files:
            self.chunk, self.file = self.chunk + 1, 0

    def path(self, folder: Path, template: str, **names: str) -> Path:
        path = folder / template.format(chunk_index=self.chunk, file_index=self.file, **names)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class _Tables:
    """Parquet files of one schema that follow each other."""

    def __init__(self, folder: Path, template: str, limit_mb: float, chunk_files: int) -> None:
        self.numbers = _Numbers(limit_mb, chunk_files)
        self._folder, self._template = folder, template
        self._writer: Any = None
        self._path = folder
        self._held = 0

    def place(self, rows: int) -> tuple[int, int]:
        """Folder and file of the next ``rows`` rows."""
        if self._writer is not None:
            size = self._path.stat().st_size
            if size + size / self._held * rows >= self.numbers.limit:
                self.close()
                self.numbers.advance()
        return self.numbers.chunk, self.numbers.file

    def write(self, table: Any) -> None:
        """Where ``place`` said."""
        if self._writer is None:
            self._path, self._held = self.numbers.path(self._folder, self._template), 0
            self._writer = need("pyarrow.parquet").ParquetWriter(str(self._path), table.schema, compression="snappy")
        self._writer.write_table(table)
        self._held += len(table)

    def close(self) -> None:
        """Finish the file. May be called twice."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class _Films:
    """The films of one camera."""

    def __init__(self, folder: Path, place: Place, options: Options) -> None:
        self.numbers = _Numbers(options.video_file_mb, options.chunk_files)
        self._folder, self._place, self._options = folder, place, options
        self._film: Film | None = None

    def append(self, images: np.ndarray) -> dict[str, Any]:
        """Add an episode, (T + 1, H, W, 3); returns the columns that say where its first T pictures are."""
        if self._film is not None and self._film.expected_bytes(len(images)) >= self.numbers.limit:
            self._film.close()
            self._film = None
            self.numbers.advance()
        fps = self._options.fps or 0.0
        if self._film is None:
            path = self.numbers.path(self._folder, layout.VIDEO_PATH, video_key=self._place.feature)
            self._film = Film(path, images.shape[1], images.shape[2], fps, self._options.codec)
        first = self._film.frames
        self._film.append(images)
        told: dict[str, Any] = {"chunk_index": self.numbers.chunk, "file_index": self.numbers.file}
        told |= {"from_timestamp": first / fps, "to_timestamp": (first + len(images) - 1) / fps}
        return {f"videos/{self._place.feature}/{name}": value for name, value in told.items()}

    def close(self, whole: bool) -> None:
        if self._film is not None:
            self._film.close() if whole else self._film.abort()
            self._film = None


class _Writer:
    """A dataset that is being written."""

    def __init__(self, folder: Path, info: StoreInfo, options: Options) -> None:
        self.frames = self._episodes = 0
        self._folder, self._info, self._options = folder, info, options
        self._places = layout.places(info, options.environment, options.leave_out)
        film = video_info(options.codec, options.fps or 0.0) if options.images == "video" else None
        self._features = layout.features_of(self._places, info.action_dim, info.costs, film)
        sizes = (options.data_file_mb, options.chunk_files)
        self._data = _Tables(folder, layout.DATA_PATH, *sizes)
        self._rows_file = _Tables(folder, layout.EPISODES_PATH, *sizes)
        self._rows: list[dict[str, Any]] = []
        filmed = [place for place in self._places if place.is_image and film is not None]
        self._films = {place.feature: _Films(folder, place, options) for place in filmed}
        self._running: dict[str, stats.Running] = {}
        self._counts: dict[str, np.ndarray] = {}  # of pixels

    def append(self, episode: Episode) -> None:
        pa = need("pyarrow")
        columns = self._columns(episode)
        chunk, file = self._data.place(len(episode))
        row: dict[str, Any] = {
            "episode_index": self._episodes,
            "tasks": [_instruction(self._info, self._options)],
            "length": len(episode),
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": self.frames,
            "dataset_to_index": self.frames + len(episode),
            layout.SEED: episode.seed,
        }
        told = {name: stats.of_rows(rows) for name, rows in columns.items()}
        for name, rows in columns.items():
            self._running.setdefault(name, stats.Running()).add(rows, told[name])
        arrays = {name: layout.arrow_column(rows) for name, rows in columns.items()}
        for place in self._places:
            images = episode.observation[place.name]
            if not place.is_image:
                row[layout.LAST + place.name] = images[-1].ravel().tolist()
                continue
            counts = stats.histogram(images[:-1])
            told[place.feature] = stats.of_histogram(counts, len(episode))
            self._counts[place.feature] = self._counts.get(place.feature, np.zeros_like(counts)) + counts
            if place.feature in self._films:
                row |= self._films[place.feature].append(images)
            else:
                *pngs, row[layout.LAST + place.name] = [to_png(image) for image in images]
                arrays[place.feature] = pa.array([{"bytes": png, "path": None} for png in pngs])
        fields = [layout.arrow_field(name, self._features[name]) for name in self._features if name in arrays]
        self._data.write(pa.table([arrays[field.name].cast(field.type) for field in fields], schema=pa.schema(fields)))
        row |= {f"stats/{key}/{name}": value.tolist() for key, one in told.items() for name, value in one.items()}
        self._add_row(row)
        self.frames += len(episode)
        self._episodes += 1

    def _columns(self, episode: Episode) -> dict[str, np.ndarray]:
        """The numbers of each frame, (T,) or (T, D)."""
        steps = len(episode)
        columns: dict[str, np.ndarray] = {}
        for feature in (layout.STATE, layout.ENVIRONMENT):
            parts = [
                _float32(episode.observation[place.name][:-1].reshape(steps, place.size))
                for place in self._places
                if place.feature == feature
            ]
            if feature in self._features:
                columns[feature] = np.concatenate(parts, axis=1)
        for place in self._places:
            if place.exact is not None:
                columns[place.exact] = episode.observation[place.name][:-1].reshape(steps, place.size)
        columns |= {layout.ACTION: episode.action, layout.REWARD: episode.reward}
        columns |= {layout.DONE: episode.terminated | episode.truncated, layout.TERMINATED: episode.terminated}
        columns |= {layout.TRUNCATED: episode.truncated, layout.SUCCESS: episode.success}
        if episode.cost is not None:
            columns[layout.COST] = episode.cost
        count = np.arange(steps)
        columns["timestamp"] = (count / (self._options.fps or 1.0)).astype(np.float32)
        columns |= {"frame_index": count, "episode_index": np.full(steps, self._episodes)}
        return columns | {"index": count + self.frames, "task_index": np.zeros(steps, np.int64)}

    def _add_row(self, row: dict[str, Any]) -> None:
        if len(self._rows) == ROWS_KEPT:
            self._write_rows()
        if not self._rows:
            self._rows_file.place(ROWS_KEPT)
        chunk, file = self._rows_file.numbers.chunk, self._rows_file.numbers.file
        self._rows.append(row | {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file})

    def _write_rows(self) -> None:
        pa = need("pyarrow")
        kinds = {"tasks": pa.list_(pa.string())}
        for place in self._places:
            kind = pa.binary() if place.is_image else pa.list_(pa.from_numpy_dtype(np.dtype(place.dtype)))
            kinds[layout.LAST + place.name] = kind
        fields = [pa.field(name, kinds.get(name) or _kind(pa, value)) for name, value in self._rows[0].items()]
        self._rows_file.write(pa.Table.from_pylist(self._rows, pa.schema(fields)))
        self._rows.clear()

    def finish(self) -> None:
        """Write what is known at the end; without meta/info.json it is no dataset, so that comes last."""
        self._write_rows()
        self.close(whole=True)
        totals = {key: one.statistics() for key, one in self._running.items()}
        totals |= {key: stats.of_histogram(counts, self.frames) for key, counts in self._counts.items()}
        write_json(self._folder / layout.STATS, {key: stats.as_json(one) for key, one in totals.items()})
        _write_tasks(self._folder / layout.TASKS, _instruction(self._info, self._options))
        write_json(self._folder / layout.OURS, layout.ours(self._info, self._places, self._options.images))
        write_json(
            self._folder / layout.INFO,
            {
                "codebase_version": layout.VERSION,
                "robot_type": self._info.arm,
                "total_episodes": self._episodes,
                "total_frames": self.frames,
                "total_tasks": 1,
                "chunks_size": self._options.chunk_files,
                "data_files_size_in_mb": self._options.data_file_mb,
                "video_files_size_in_mb": self._options.video_file_mb,
                "fps": self._options.fps,
                "splits": {"train": f"0:{self._episodes}"},
                "data_path": layout.DATA_PATH,
                "video_path": layout.VIDEO_PATH if self._films else None,
                "features": self._features,
            },
        )

    def close(self, whole: bool = False) -> None:
        """May be called twice."""
        self._data.close()
        self._rows_file.close()
        for films in self._films.values():
            films.close(whole)


def _kind(pa: Any, value: Any) -> Any:
    """The type of a column of meta/episodes: numbers, or lists of them as deep as the value."""
    depth, inner = 0, value
    while isinstance(inner, list):
        depth, inner = depth + 1, inner[0]
    kind = pa.float64() if isinstance(inner, float) else pa.int64()
    for _ in range(depth):
        kind = pa.list_(kind)
    return kind


def _float32(rows: np.ndarray) -> np.ndarray:
    """As float32; what is beyond it becomes its largest number, the exact one lies elsewhere."""
    if rows.dtype == np.float32:
        return rows
    most = np.finfo(np.float32).max
    return np.clip(rows.astype(np.float64), -most, most).astype(np.float32)


def _instruction(info: StoreInfo, options: Options) -> str:
    return options.instruction or info.task.replace("_", " ")


def _write_tasks(path: Path, instruction: str) -> None:
    """As pandas writes a frame whose index is ``task``: that is how LeRobot reads it."""
    pa = need("pyarrow")
    kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
    columns = [
        {"name": name, "field_name": name, "pandas_type": pandas_type, "numpy_type": numpy_type, "metadata": None}
        for name, (pandas_type, numpy_type) in kinds.items()
    ]
    about = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.2.0"}
    table = pa.table({"task_index": pa.array([0], pa.int64()), "task": pa.array([instruction])})
    need("pyarrow.parquet").write_table(table.replace_schema_metadata({"pandas": json.dumps(about)}), str(path))
