"""Episodes on disk: a zarr folder that one process appends to and any number read, at any time.

    demos.zarr/
      zarr.json            attributes: format, task, arm, world, observation fields, action size, configs
      data/observation/... (rows, ...)  one array per flat name (see ``episode.py``); T + 1 rows an episode
      data/action          (rows, A) float32; like the next five: row t is the step between observations t and t + 1,
      data/reward          (rows,) float32    and the last row of each episode is padding: zeros
      data/terminated      (rows,) bool
      data/truncated       (rows,) bool
      data/success         (rows,) bool
      data/cost            (rows,) float32    0 where the environment told none; folders of earlier versions lack it
      meta/episode_ends    (episodes,) int64  the row behind each episode's last
      meta/episode_seed    (episodes,) int64
      commit.json          how many episodes and rows are finished; written last, atomically

Whatever lies behind the commit is an episode that never finished: readers do not see it, the next writer cuts it.
A killed process therefore loses the episode it was writing and nothing else.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.errors import GroupNotFoundError

from robot_rl.episode import Episode, fields_of
from robot_rl.files import FolderLock, disk_errors, read_json, sync_file, sync_folder, sync_tree, write_json

if TYPE_CHECKING:
    import gymnasium as gym

    from robot_rl.replay import ReplayBuffer
    from robot_rl.run import Spaces
    from robot_rl.spaces import Encoder
from robot_rl.types import DEMONSTRATION

FORMAT = 1
CHUNK_ROWS = 64  # steps of images or vectors in one file
SEED_ROWS = 1024
STEP_FIELDS = {"reward": "float32", "terminated": "bool", "truncated": "bool", "success": "bool"}
_RESTORE = "restore it from a copy, or record into another folder"
_DAMAGE = (ValueError, RuntimeError, OSError, KeyError, TypeError, GroupNotFoundError)  # what zarr raises on bad bytes


@dataclass(frozen=True)
class StoreInfo:
    """What every episode of a store has in common."""

    task: str
    arm: str
    world: str
    observation: Mapping[str, tuple[tuple[int, ...], str]]  # flat name -> shape, dtype
    action_dim: int
    configs: Mapping[str, Any] = field(default_factory=dict)  # by section, as JSON values; "task" is compared
    costs: bool = True  # whether there is data/cost

    @classmethod
    def of(
        cls, env: gym.Env | Spaces, task: str, arm: str, world: str, configs: Mapping[str, Any] | None = None
    ) -> StoreInfo:
        """The description of the episodes of ``env``."""
        shape = env.action_space.shape or (1,)
        return cls(task, arm, world, fields_of(env.observation_space), int(shape[0]), configs or {})

    @property
    def step_fields(self) -> dict[str, str]:
        """Name and dtype of what there is one number of per step."""
        return STEP_FIELDS | ({"cost": "float32"} if self.costs else {})

    def difference(self, here: StoreInfo, same_robot: bool) -> str:
        """The first field in which this store differs from ``here``, in words; empty where it does not.

        The task, its config, observations and actions are compared; arm and world only where ``same_robot``.
        """
        names = ("task", *(("arm", "world") if same_robot else ()))
        pairs = [(name, getattr(self, name), getattr(here, name)) for name in names]
        mine, others = (json.loads(json.dumps(info.configs.get("task", {}))) for info in (self, here))
        pairs += [(f"task.{name}", mine.get(name), others.get(name)) for name in {**mine, **others}]
        pairs += [(name, getattr(self, name), getattr(here, name)) for name in ("observation", "action_dim")]
        return next((f"{name} is {there!r} there, {here!r} here" for name, there, here in pairs if there != here), "")


class EpisodeReader:
    """The finished episodes of a store at the moment it was opened. Needs no lock."""

    def __init__(self, path: Path | str) -> None:
        """Raises FileNotFoundError, or ValueError that names the damaged file and the remedy."""
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(
                f"no episodes at {self.path}: give the folder that `robot-rl demo record --out {self.path}` makes"
            )
        if not (self.path / "commit.json").is_file():
            raise ValueError(
                f"{self.path} is not an episode folder (it has no commit.json): "
                "give one that `robot-rl demo record` made"
            )
        commit = read_json(self.path / "commit.json", _RESTORE)  # read first: whatever it counts was there before
        attributes = read_json(self.path / "zarr.json", _RESTORE).get("attributes", {})
        if attributes.get("format") != FORMAT:
            raise ValueError(
                f"{self.path} has episode format {attributes.get('format')}, this version reads {FORMAT}: "
                "use the version of robot-rl that wrote it"
            )
        self.rows, self._count = _counter(commit, "rows", self.path), _counter(commit, "episodes", self.path)
        self.info = _info(attributes, self.path / "zarr.json")
        self._arrays = _open_arrays(self.path, self.info, "r")
        self._check_files()
        self.ends = self._read("meta/episode_ends", 0, self._count)
        self.seeds = self._read("meta/episode_seed", 0, self._count)
        if self._count and (self.ends[-1] != self.rows or np.any(np.diff(self.ends, prepend=0) < 2)):
            raise ValueError(f"{self.path / 'meta/episode_ends'} does not fit commit.json: {_RESTORE}")

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Episode:
        """Episode ``index``; raises IndexError, or ValueError that names the damaged array."""
        if not -self._count <= index < self._count:
            raise IndexError(f"episode {index}: {self.path} has {self._count}")
        index %= self._count
        end = int(self.ends[index])
        start = int(self.ends[index - 1]) if index else 0
        steps = {name: self._read(f"data/{name}", start, end - 1) for name in ("action", *self.info.step_fields)}
        observation = {name: self._read(f"data/observation/{name}", start, end) for name in self.info.observation}
        return Episode(observation=observation, seed=int(self.seeds[index]), **steps)

    def __iter__(self) -> Iterator[Episode]:
        return (self[index] for index in range(self._count))

    def _read(self, name: str, start: int, end: int) -> np.ndarray:
        try:
            rows = np.asarray(self._arrays[name][start:end])
        except _DAMAGE as error:
            raise ValueError(
                f"{self.path / name} is damaged between rows {start} and {end} ({error}): {_RESTORE}"
            ) from error
        if len(rows) != end - start:
            raise ValueError(f"{self.path / name} has fewer rows than commit.json counts ({end}): {_RESTORE}")
        return rows

    def _check_files(self) -> None:
        """A chunk that is not there would read as zeros, so look for every one."""
        for name, array in self._arrays.items():
            rows = self._count if name.startswith("meta/") else self.rows
            for path in _chunk_files(self.path / name, array, 0, rows):
                if not path.is_file():
                    raise ValueError(f"{path} is missing: {self.path} is damaged; {_RESTORE}")


class EpisodeWriter:
    """Appends whole episodes to a store, made where there is none. The only writer while it is open.

    with EpisodeWriter("demos.zarr", StoreInfo.of(env, "reach", "panda", "sim")) as writer:
        writer.append(episode)  # finished and safe when this returns
    """

    def __init__(self, path: Path | str, info: StoreInfo) -> None:
        """Raises BlockingIOError while another process writes, ValueError where the store holds other episodes."""
        self.path = Path(path)
        self._made = not self.path.exists()
        if self._made:
            _create(self.path, info)
        if different := EpisodeReader(self.path).info.difference(info, same_robot=True):
            raise ValueError(f"{self.path} holds other episodes ({different}): record into another folder (--out)")
        self._lock = FolderLock(self.path)
        try:
            reader = EpisodeReader(self.path)  # again: somebody may have appended before the lock was ours
            self.info, self.seeds = reader.info, [int(seed) for seed in reader.seeds]
            self._rows = reader.rows
            with disk_errors(self.path):
                self._arrays = _open_arrays(self.path, self.info, "r+")
                self._cut()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.seeds)

    def close(self) -> None:
        """Let others write; a store that was made here and got no episode is removed. May be called twice."""
        if self._made and not self.seeds:
            shutil.rmtree(self.path)
        self._made = False
        self._lock.release()

    def append(self, episode: Episode) -> None:
        """Write ``episode``; when this returns it survives a crash. Raises ValueError naming the field that does not
        fit, OSError where the disk is full (the episodes before stay whole)."""
        if not self.info.costs or episode.cost is None:
            unknown = np.zeros(len(episode), np.float32) if self.info.costs else None
            episode = replace(episode, cost=unknown)
        _check_episode(episode, self.info)
        start, end, count = self._rows, self._rows + len(episode) + 1, len(self.seeds)
        columns: dict[str, np.ndarray] = {
            f"data/observation/{name}": rows for name, rows in episode.observation.items()
        } | {
            f"data/{name}": np.concatenate([rows, np.zeros_like(rows[:1])])
            for name, rows in ((name, getattr(episode, name)) for name in ("action", *self.info.step_fields))
        }
        meta = {"meta/episode_ends": np.array([end]), "meta/episode_seed": np.array([episode.seed])}
        with disk_errors(self.path):
            for name, rows in columns.items():
                self._write(name, rows, start, end)
            for name, rows in meta.items():
                self._write(name, rows, count, count + 1)
        write_json(self.path / "commit.json", {"episodes": count + 1, "rows": end})
        self._rows = end
        self.seeds.append(episode.seed)

    def _write(self, name: str, rows: np.ndarray, start: int, end: int) -> None:
        array = self._arrays[name]
        array.resize((end, *array.shape[1:]))
        array[start:end] = rows
        files = _chunk_files(self.path / name, array, start, end)
        for path in (*files, *{path.parent for path in files}, self.path / name / "zarr.json"):
            sync_file(path)

    def _cut(self) -> None:
        """Remove what a killed writer left behind the commit."""
        for path in (*self.path.rglob("*.partial"), *self.path.rglob("*.tmp")):
            path.unlink()
        for name, array in self._arrays.items():
            rows = len(self.seeds) if name.startswith("meta/") else self._rows
            if array.shape[0] != rows:
                array.resize((rows, *array.shape[1:]))


def load_into(buffer: ReplayBuffer, reader: EpisodeReader, encoder: Encoder, episodes: int | None = None) -> int:
    """Add the first ``episodes`` (None: all) to ``buffer`` as demonstrations, encoded, each as a segment of its own.

    An agent's ``stored`` gets the episodes' costs, and as what a policy had "proposed" what was done. Raises ValueError
    where the store's observations are not those of ``encoder``. Returns the transitions added.
    """
    if (fields := fields_of(encoder.source)) != reader.info.observation:
        raise ValueError(
            f"{reader.path} holds observations {_shapes(reader.info.observation)}, "
            f"the environment gives {_shapes(fields)}: give demonstrations of this task"
        )
    count = len(reader) if episodes is None else min(episodes, len(reader))
    added = int(reader.ends[count - 1]) - count if count else 0
    buffer.reserve(added)
    for segment in range(count):
        episode = reader[segment]
        rows = [
            encoder.encode({name: values[t] for name, values in episode.observation.items()})
            for t in range(len(episode) + 1)
        ]
        for t in range(len(episode)):
            ends = bool(episode.terminated[t]), bool(episode.truncated[t])
            extra = {"proposed": episode.action[t]} | ({} if episode.cost is None else {"cost": episode.cost[t]})
            step = rows[t], episode.action[t], float(episode.reward[t]), *ends, rows[t + 1]
            buffer.add(*step, -1 - segment, extra, DEMONSTRATION)
    return added


def _create(path: Path, info: StoreInfo) -> None:
    """Make an empty store beside ``path`` and move it there whole."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        try:
            group = zarr.create_group(temporary, attributes={"format": FORMAT, **asdict(info)})
            for name, (rows, shape, dtype) in _layout(info).items():
                group.create_array(
                    name, shape=(0, *shape), chunks=(rows, *shape), dtype=dtype, compressors=_compressors(dtype),
                    config={"write_empty_chunks": True},
                )  # fmt: skip
            write_json(temporary / "commit.json", {"episodes": 0, "rows": 0})
            temporary.chmod(0o755)
            sync_tree(temporary)
            os.rename(temporary, path)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else somebody made it in the meantime: use theirs
                raise
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(path.parent)


def _layout(info: StoreInfo) -> dict[str, tuple[int, tuple[int, ...], str]]:
    """Rows of a chunk, shape of a row and dtype of every array."""
    layout = {f"data/observation/{key}": (CHUNK_ROWS, shape, dtype) for key, (shape, dtype) in info.observation.items()}
    layout["data/action"] = (CHUNK_ROWS, (info.action_dim,), "float32")
    layout |= {f"data/{name}": (CHUNK_ROWS, (), dtype) for name, dtype in info.step_fields.items()}
    return layout | dict.fromkeys(("meta/episode_ends", "meta/episode_seed"), (SEED_ROWS, (), "int64"))


def _compressors(dtype: str) -> tuple[BloscCodec, Crc32cCodec]:
    """Images compress better unshuffled; the checksum finds a flipped bit."""
    return BloscCodec(cname="zstd", clevel=3, shuffle="noshuffle" if dtype == "uint8" else "shuffle"), Crc32cCodec()


def _open_arrays(path: Path, info: StoreInfo, mode: Literal["r", "r+"]) -> dict[str, zarr.Array[Any]]:
    arrays: dict[str, zarr.Array[Any]] = {}
    for name, (_, shape, dtype) in _layout(info).items():
        try:
            array = zarr.open_array(path, path=name, mode=mode).with_config({"write_empty_chunks": True})
        except _DAMAGE as error:
            raise ValueError(f"{path / name / 'zarr.json'} is missing or damaged ({error}): {_RESTORE}") from error
        if array.shape[1:] != shape or array.dtype != dtype:
            raise ValueError(
                f"{path / name} holds {array.dtype}{array.shape[1:]}, not {dtype}{shape}: it is damaged; {_RESTORE}"
            )
        arrays[name] = array
    return arrays


def _chunk_files(folder: Path, array: zarr.Array[Any], start: int, end: int) -> list[Path]:
    """The files that hold rows ``start`` to ``end``."""
    rows, tail = array.chunks[0], "/0" * (array.ndim - 1)
    return [folder / f"c/{index}{tail}" for index in range(start // rows, -(-end // rows))] if end > start else []


def _counter(commit: dict[str, Any], name: str, path: Path) -> int:
    value = commit.get(name)
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{path / 'commit.json'} is damaged ({name} is {value!r}): {_RESTORE}")
    return value


def _info(attributes: Mapping[str, Any], path: Path) -> StoreInfo:
    try:
        observation = {name: (tuple(shape), dtype) for name, (shape, dtype) in attributes["observation"].items()}
        return StoreInfo(
            attributes["task"], attributes["arm"], attributes["world"], observation, attributes["action_dim"],
            attributes["configs"], attributes.get("costs", False),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): {_RESTORE}") from error


def _check_episode(episode: Episode, info: StoreInfo) -> None:
    steps = len(episode)
    if steps == 0:
        raise ValueError("an episode without a step: append it after its first step")
    expected: dict[str, tuple[tuple[int, ...], str]] = {
        f"observation '{name}'": ((steps + 1, *shape), dtype) for name, (shape, dtype) in info.observation.items()
    }
    expected |= {"action": ((steps, info.action_dim), "float32")}
    expected |= {name: ((steps,), dtype) for name, dtype in info.step_fields.items()}
    given = {f"observation '{name}'": rows for name, rows in episode.observation.items()}
    given |= {name: getattr(episode, name) for name in ("action", *info.step_fields)}
    for name in given.keys() | expected.keys():
        if name not in given or name not in expected:
            where = "the episode lacks" if name not in given else "the store does not have"
            raise ValueError(f"{where} {name}: record into another folder")
        rows, (shape, dtype) = given[name], expected[name]
        if rows.shape != shape or rows.dtype != dtype:
            raise ValueError(f"{name} is {rows.dtype}{rows.shape}, the store holds {dtype}{shape}")
        if rows.dtype.kind == "f" and not np.all(np.isfinite(rows)):
            raise ValueError(f"{name} holds NaN or infinity: an episode with it is not stored")
    if np.any(episode.terminated[:-1] | episode.truncated[:-1]):
        raise ValueError("terminated or truncated before the last step: append each episode on its own")


def _shapes(fields: Mapping[str, tuple[tuple[int, ...], str]]) -> str:
    return ", ".join(f"{name} {dtype}{list(shape)}" for name, (shape, dtype) in sorted(fields.items()))
