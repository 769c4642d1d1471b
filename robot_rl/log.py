"""What a run tells: metrics.csv, a sink such as TensorBoard files (trackers.py), and a progress line."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from robot_rl.files import disk_errors, write_atomic
from robot_rl.trackers import FINAL, Place, open_sink

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

Row = Mapping[str, float | int | None]
WALL_CLOCK = ("wall_s", "env_steps_per_s", "updates_per_s")
"""Columns that differ between two runs of the same seed; all others are equal to the last digit."""


class MetricsLog:
    """Rows of numbers, to ``metrics.csv`` and to the sink that ``tracker`` names (trackers.py).

    The CSV has one header; a column that appears later (losses, once updates begin) is added to it, and the rows
    before are empty there.
    """

    def __init__(
        self, folder: Path, step_name: str, keep_steps: int | None = None, tracker: str = "tensorboard"
    ) -> None:
        """``step_name``: the column that counts. ``keep_steps``: on resume, the step to go on from; what was logged
        behind it is dropped, because it is about to be done again. Otherwise the file must not exist. Raises as the
        sink does, before metrics.csv is touched."""
        self._path, self._step_name, self._step = folder / "metrics.csv", step_name, keep_steps or 0
        self._columns: list[str] = []
        if keep_steps is None and self._path.exists():
            raise FileExistsError(f"{self._path} exists: resume the run, or train into another folder")
        kept = () if keep_steps is None else _kept(self._path, step_name, keep_steps)
        self._sink = open_sink(tracker, Place(folder, keep_steps, kept))
        if keep_steps is not None:
            self._columns = _truncate(self._path, step_name, keep_steps)
        with disk_errors(self._path):
            self._file = open(self._path, "a" if keep_steps is not None else "x", newline="")  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.suppress(OSError) if kind is not None else contextlib.nullcontext():  # a full disk was told of
            self._file.close()
        if self._sink:
            self._sink.close(failed=kind is not None)

    def row(self, row: Row) -> None:
        """Write one row; None is an empty field."""
        self._step = int(row[self._step_name] or 0)
        with disk_errors(self._path):
            if new := [name for name in row if name not in self._columns]:
                self._add_columns(new)
            self._file.write(_line([_text(row.get(name)) for name in self._columns]))
            self._file.flush()
            if self._sink:
                numbers = {name: value for name, value in row.items() if value is not None and name != self._step_name}
                self._sink.row(self._step, numbers)

    def result(self, summary: Mapping[str, Any]) -> None:
        """Tell the sink what came out: the numbers of ``summary.json`` that are not about the machine."""
        if self._sink:
            told = {name: float(summary[name]) for name in FINAL if summary.get(name) is not None}
            self._sink.result(self._step, told)

    def sync(self) -> None:
        """Force what was written to the disk."""
        with disk_errors(self._path):
            os.fsync(self._file.fileno())

    def _add_columns(self, new: list[str]) -> None:
        rows = read_metrics(self._path)
        self._columns += new
        self._file.close()
        text = _line(self._columns) + "".join(_line([row.get(name, "") for name in self._columns]) for row in rows)
        write_atomic(self._path, text.encode())
        self._file = open(self._path, "a", newline="")  # noqa: SIM115


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The whole rows of a metrics file as text, by column; a last row that was cut short is left out."""
    with open(path, newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        return [dict(zip(header, row, strict=True)) for row in reader if len(row) == len(header)]


def read_columns(path: Path) -> dict[str, list[float]]:
    """The metrics as numbers by column; NaN where a field is empty. Raises ValueError that names the file and row."""
    rows = read_metrics(path)
    columns: dict[str, list[float]] = {name: [] for name in (rows[0] if rows else {})}
    for number, row in enumerate(rows):
        for name, text in row.items():
            try:
                columns[name].append(float(text) if text else math.nan)
            except ValueError:
                raise ValueError(f"{path}, line {number + 2}: {name} is '{text}', not a number") from None
    return columns


def _kept(path: Path, step_name: str, keep_steps: int) -> list[tuple[int, dict[str, float]]]:
    """Step and numbers of each row up to ``keep_steps``."""
    rows = read_metrics(path) if path.exists() else []
    return [
        (int(row[step_name]), {name: float(text) for name, text in row.items() if text and name != step_name})
        for row in rows
        if int(row[step_name]) <= keep_steps
    ]


def _truncate(path: Path, step_name: str, keep_steps: int) -> list[str]:
    """Drop the rows behind ``keep_steps``; returns the columns."""
    if not path.exists():
        return []
    rows = read_metrics(path)
    kept = [row for row in rows if int(row[step_name]) <= keep_steps]
    with open(path, newline="") as file:
        columns = next(csv.reader(file), [])
    text = _line(columns) + "".join(_line(list(row.values())) for row in kept)
    write_atomic(path, text.encode() if columns else b"")
    return columns


def _line(fields: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue()


def _text(value: float | int | None) -> str:
    """Shortest digits that read back as the same number."""
    return "" if value is None else repr(value)


class Rate:
    """Counts per second over the last ``window_s``."""

    def __init__(self, start: float = 0.0, window_s: float = 30.0) -> None:
        self._window_s = window_s
        self._marks = deque([(time.monotonic(), start)])

    def add(self, count: float) -> float:
        """Tell the total ``count`` now; returns the rate."""
        now_s = time.monotonic()
        self._marks.append((now_s, count))
        while len(self._marks) > 2 and now_s - self._marks[0][0] > self._window_s:
            self._marks.popleft()
        first_s, first = self._marks[0]
        return (count - first) / (now_s - first_s) if now_s > first_s else 0.0


class Progress:
    """One line that says how far a job is: a live bar on a terminal, else a plain line every few seconds.

    Goes to stderr, so that stdout holds results only.
    """

    def __init__(self, title: str, total: int, start: int = 0, stream: TextIO | None = None, every_s: float = 5.0):
        self._title, self._total, self._start = title, max(total, 1), start
        self._stream = stream if stream is not None else sys.stderr
        self._every_s = every_s
        self._rate = Rate(start, 60.0)
        self._next_s = time.monotonic() + 1.0
        self._live: RichProgress | None = None
        self._job: TaskID | None = None

    def __enter__(self) -> Self:
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

            self._live = Progress(
                BarColumn(bar_width=16),  # with the text it fits into 80 columns
                TaskProgressColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(file=self._stream),
            )
            self._live.console.print(self._title, style="bold", highlight=False, markup=False)
            self._live.start()
            self._job = self._live.add_task(self._title, total=self._total, completed=self._start, text="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def update(self, count: int, facts: Mapping[str, str]) -> None:
        """``count`` of the total is finished; ``facts`` are shown as "name value"."""
        rate = self._rate.add(count)
        left = clock((self._total - count) / rate) if rate > 0 else "?"
        words = [f"{name} {value}" for name, value in facts.items()] + [f"{left} left"]
        if self._live and self._job is not None:
            self._live.update(self._job, completed=count, text=" · ".join(words))
            return
        now_s = time.monotonic()
        if now_s >= self._next_s or count >= self._total:
            self._next_s = now_s + self._every_s
            self.say(f"{self._title} {count}/{self._total} | {' | '.join(words)}")

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._live:
            self._live.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self._stream, flush=True)


def clock(seconds: float) -> str:
    """Seconds as 0:42, 12:05 or 1:02:03."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def percent(rate: float | None) -> str:
    """A success rate in words; "not reported" where the environment does not tell."""
    return "not reported" if rate is None else f"{100 * rate:.0f} %"


def as_row(values: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as floats, by sorted name."""
    return {name: float(values[name]) for name in sorted(values)}
