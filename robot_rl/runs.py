"""Run folders as records: what each one is, how far it came, and which of them differ by more than the seed.

Everything is read from the files as text: nothing is imported that a run was made of, so folders of another version,
of an agent that is not installed here, or with keys that this version does not know are read all the same.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.evaluate import wilson
from robot_rl.files import is_locked, read_json
from robot_rl.log import read_columns
from robot_rl.run import FORMAT, OWN, WORLD, TrainConfig
from robot_rl.statistics import area, steps_to

# Of [train]: what neither changes what is learned nor how it is judged.
INCIDENTAL = {f"train.{name}" for name in ("seed", "tracker", "checkpoint_every", "log_every", "eval_every")}
INCIDENTAL |= {"train.eval_every_episodes", "train.eval_episodes"}
_TRAIN_DEFAULTS = {f"train.{item.name}": item.default for item in fields(TrainConfig)}
_REMEDY = "restore it from a copy, or delete the folder"


@dataclass(frozen=True)
class Record:
    """One run folder. Where it is damaged, ``problem`` says how, and the rest is what could be read."""

    folder: Path
    name: str
    task: str = ""
    arm: str = ""
    world: str = ""
    agent: str = ""
    seed: int | None = None
    demos: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # "agent.utd_ratio" and so on to its JSON value
    created: str = ""  # ISO 8601, UTC
    git_commit: str | None = None
    state: str = "damaged"  # finished, interrupted, running, damaged
    steps: int = 0  # environment steps, or updates of an agent that learns offline
    columns: Mapping[str, Sequence[float]] = field(default_factory=dict, repr=False)  # of metrics.csv
    success_rate: float | None = None  # rolling, of the last training episodes
    final_success: float | None = None
    final_interval: tuple[float, float] | None = None  # 95 % (Wilson)
    final_return: float | None = None
    eval_episodes: int | None = None
    minutes: float | None = None
    problem: str | None = None

    @property
    def offline(self) -> bool:
        """Whether the agent learned from demonstrations alone."""
        shown_alone = float(self.settings.get("agent.demo_share") or 0.0) >= 1.0
        return shown_alone and not self.settings.get("agent.online", False)

    @property
    def planned_steps(self) -> int | None:
        steps = self.settings.get("train.steps")
        return int(steps) if steps is not None else None

    @property
    def place(self) -> tuple[str, str, str]:
        return self.task, self.arm, self.world

    def curve(self, column: str) -> tuple[list[float], list[float]]:
        """Environment steps and values of a column (E,), where it has a value, in ascending order."""
        if self.offline or column not in self.columns or "env_steps" not in self.columns:
            return [], []
        rows = zip(self.columns["env_steps"], self.columns[column], strict=True)
        known = sorted((row for row in rows if all(map(math.isfinite, row))), key=lambda row: row[0])
        return [step for step, _ in known], [value for _, value in known]

    def steps_to(self, rate: float) -> float | None:
        """Environment steps to a rolling success rate; infinite for a finished run that never came to it, None where
        that is not known."""
        steps, success = self.curve("success")
        reached = steps_to(steps, success, rate, self.window) if steps else None
        never = math.inf if steps and self.state == "finished" else None
        return never if reached is None else reached

    def area(self, column: str, horizon: float) -> float | None:
        """The mean of the rolling ``column`` ("success" or "return") over the steps to ``horizon``; None where the run
        did not come so far."""
        from robot_rl.plot import rolling_mean

        steps, values = self.curve(column)
        return area(steps, rolling_mean(np.asarray(values), self.window).tolist(), horizon) if steps else None

    @property
    def window(self) -> int:
        return max(1, int(self.settings.get("train.window") or TrainConfig.window))


def find(paths: Iterable[Path]) -> list[Record]:
    """The runs in ``paths``, which are run folders or folders of them at any depth; each once, in natural order.

    Raises FileNotFoundError for a path that is not there, or where there is no run at all.
    """
    paths = list(paths)
    records: dict[Path, Record] = {}
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(
                f"{path} is not a folder: give a run folder that `robot-rl train --out` made, or a folder of them"
            )
        for folder in _folders(path):
            name = str(folder) if len(paths) > 1 or folder == path else str(folder.relative_to(path))
            records.setdefault(folder.resolve(), read(folder, name))
    if not records:
        where = ", ".join(map(str, paths))
        raise FileNotFoundError(
            f"no run below {where} (no folder with a run.json): robot-rl train --task reach --out runs/reach makes one"
        )
    return list(records.values())


def read(folder: Path, name: str | None = None) -> Record:
    """The record of one run folder; never raises for what is in it."""
    record = Record(folder, name or str(folder))
    try:
        record = _choices(record, read_json(folder / "run.json", _REMEDY))
        record = _progress(record)
        return replace(_outcome(record), state=_state(record))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, csv.Error) as error:
        told = str(error) if str(folder) in str(error) else f"{folder} is damaged ({error!r}): {_REMEDY}"
        return replace(record, state="damaged", problem=told)


def differing(records: Sequence[Record]) -> list[dict[str, Any]]:
    """For each record, the settings in which it differs from another that has them: "agent.utd_ratio" to its value.

    Settings of an agent are compared among runs of that agent, those of a task among runs of the task, and so on: that
    two agents have other defaults is said by their names. A setting that an older run does not have is taken to have
    been what the others have, where they agree.
    """
    found: list[dict[str, Any]] = [{} for _ in records]
    scopes: dict[tuple[Any, ...], list[int]] = {}
    for index, record in enumerate(records):
        for section in {name.partition(".")[0] for name in record.settings} | {"demos"}:
            scopes.setdefault((section, *_scope(record, section)), []).append(index)
    for (section, *_), members in scopes.items():
        if section not in (*OWN, *WORLD, "demos") and len(members) < len(records):
            for index in members:  # a section of another way to train: having it at all is the difference
                found[index][section] = True
        names = {name for index in members for name in _compared(records[index], section)}
        for name in sorted(names - INCIDENTAL):
            values = {index: value[name] for index in members if name in (value := _compared(records[index], section))}
            if any(value != next(iter(values.values())) for value in values.values()):
                for index in members:
                    found[index][name] = values.get(index)
    return found


def labels(records: Sequence[Record], pool: bool = False) -> list[str]:
    """For each record the name of its group: agent, what differs of task, arm and world, and the ``differing``
    settings. With ``pool``, runs of several tasks and arms are one group."""
    names = []
    for record, settings in zip(records, differing(records), strict=True):
        places = () if pool else ("task", "arm", "world")
        words = [getattr(record, part) for part in places if len({getattr(other, part) for other in records}) > 1]
        words += [record.agent]
        words += [f"with {name}" if value is True and "." not in name else f"{name}={text(value)}"
                  for name, value in settings.items()]  # fmt: skip
        names.append(" ".join(filter(None, words)))
    return names


def text(value: Any) -> str:
    """A setting as ``--set`` takes it."""
    if isinstance(value, list):
        return ",".join(map(text, value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _folders(path: Path) -> list[Path]:
    found = []
    for where, below, files in os.walk(path):
        if "run.json" in files:
            found.append(Path(where))
            below.clear()  # checkpoints, demonstrations: many files, and none of them a run
        below[:] = [name for name in below if not name.startswith(".") and not name.endswith(".zarr")]
    return sorted(found, key=_natural)


def _natural(folder: Path) -> list[tuple[bool, int, str]]:
    """A key that puts run-2 before run-10."""
    words = re.findall(r"\d+|\D+", str(folder))
    return [(word.isdigit(), int(word) if word.isdigit() else 0, word) for word in words]


def _choices(record: Record, values: Mapping[str, Any]) -> Record:
    path = record.folder / "run.json"
    if "format" not in values:
        raise ValueError(f"{path} is damaged (no format): {_REMEDY}")
    if values["format"] != FORMAT:
        raise ValueError(f"{path} has format {values['format']}, this version reads {FORMAT}: use the one it names")
    settings = {
        f"{section}.{name}": value
        for section, config in values["configs"].items()
        if isinstance(config, dict)
        for name, value in config.items()
    }
    chosen: dict[str, Any] = {name: str(values[name]) for name in ("task", "arm", "world", "agent")}
    chosen |= {"seed": int(values.get("seed", settings.get("train.seed", 0)))}
    chosen |= {"demos": values.get("demos"), "created": str(values.get("created") or "")}
    return replace(record, **chosen, git_commit=values.get("git_commit"), settings=_TRAIN_DEFAULTS | settings)


def _progress(record: Record) -> Record:
    path = record.folder / "metrics.csv"
    columns = read_columns(path) if path.is_file() else {}

    def last(name: str) -> float | None:
        return next((value for value in reversed(columns.get(name, ())) if math.isfinite(value)), None)

    steps, wall_s = last("updates" if record.offline else "env_steps"), last("wall_s")
    return replace(
        record,
        columns=columns,
        steps=int(steps or 0),
        success_rate=last("success_rate"),
        minutes=None if wall_s is None else wall_s / 60.0,
    )


def _outcome(record: Record) -> Record:
    """With what ``summary.json`` says, unless training has gone on since it was written."""
    path = record.folder / "summary.json"
    summary = read_json(path, _REMEDY) if path.is_file() and _state(record) == "finished" else {}
    if not summary:
        return record
    named = ("success_rate", "mean_return", "eval_episodes", "wall_s")
    rate, total, episodes, wall_s = (None if (value := summary.get(name)) is None else float(value) for name in named)
    interval = summary.get("success_interval")
    if interval is None and rate is not None and episodes:
        interval = wilson(round(rate * episodes), int(episodes))
    return replace(
        record,
        final_success=rate,
        final_interval=None if interval is None else (float(interval[0]), float(interval[1])),
        final_return=total,
        eval_episodes=None if episodes is None else int(episodes),
        minutes=record.minutes if wall_s is None else wall_s / 60.0,
    )


def _state(record: Record) -> str:
    if is_locked(record.folder):
        return "running"
    done = record.planned_steps is None or record.steps >= record.planned_steps
    return "finished" if done and (record.folder / "summary.json").is_file() else "interrupted"


def _scope(record: Record, section: str) -> tuple[str, ...]:
    """Which runs a section's settings are comparable with."""
    if section in ("agent", "demos"):
        return (record.agent,)
    if section == "task":
        return (record.task,)
    if section == "arm":
        return (record.arm, record.world)
    return record.place if section in WORLD else ()


def _compared(record: Record, section: str) -> dict[str, Any]:
    if section == "demos":
        # One file a seed is the same choice: the seed's number in its name does not count.
        path = re.sub(rf"(?<!\d){record.seed}(?!\d)", "*", record.demos) if record.demos else "own"
        return {"demos": path}
    return {name: value for name, value in record.settings.items() if name.startswith(f"{section}.")}
