"""What ``robot-rl runs`` does. Results go to stdout, everything else to stderr; each returns an exit status."""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from robot_rl.comparison import Comparison, Line, by_folder, compare
from robot_rl.files import atomic_file
from robot_rl.runs import Record, differing, find, text
from robot_rl.statistics import Estimate

if TYPE_CHECKING:
    from rich.table import Table

    from robot_rl import cli_runs

_LISTED = ("name", "task", "arm", "agent", "seed", "steps", "state", "success", "final", "min", "when")
_WIDE = 100_000  # columns, off a terminal: a line of the table is a line of the file


def list_runs(command: cli_runs.ListRuns) -> int:
    """``robot-rl runs list``: a table, or JSON lines."""
    records = find(command.dirs)
    if command.json:
        for record in records:
            print(json.dumps(_finite(_about(record) | _results(record))))
        return 0
    table = _table(*_LISTED, gap=1)
    for record in records:
        table.add_row(*_cells(record))
    _print(table)
    for record in records:
        if record.problem:
            print(f"damaged: {record.name}: {record.problem}")
    return 0


def compare_runs(command: cli_runs.CompareRuns) -> int:
    """``robot-rl runs compare``: a table per measure, or one JSON object."""
    if not command.dirs:
        raise ValueError("give run folders, or folders of them, such as runs/rlpd runs/sac")
    if command.csv is not None:
        _require_new("--csv", command.csv)
    records = find(command.dirs)
    comparison = compare(records, command.pool, by_folder(command.dirs, records) if command.by == "folder" else None)
    rows = [line.row() for _, lines in comparison.measures() for line in lines]
    if command.csv is not None:
        _write_csv(command.csv, rows)
    if command.json:
        about = {"title": comparison.title, "rows": rows, "notes": comparison.notes}
        print(json.dumps(_finite(about)))
        return 0
    _show(comparison)
    return 0


def export_runs(command: cli_runs.ExportRuns) -> int:
    """``robot-rl runs export``: prints the file."""
    _require_new("--out", command.out)
    found = find(command.dirs)
    records = [record for record in found if record.state != "damaged"]
    for record in found:
        if record.problem:
            _say(f"left out, damaged: {record.name}: {record.problem}")
    if not records:
        raise ValueError(f"none of the {len(found)} runs is whole: nothing to export")
    chosen = [dict(record.settings) for record in records] if command.all else differing(records)
    settings: list[dict[str, Any]] = [{name: text(value) for name, value in values.items()} for values in chosen]
    rows = _curve_rows(records, settings) if command.curves else _run_rows(records, settings)
    count = _write_csv(command.out, rows)
    _say(f"{count} rows of {len(records)} runs")
    print(command.out)
    return 0


def _about(record: Record) -> dict[str, Any]:
    names = ("name", "task", "arm", "world", "agent", "seed")
    return {"path": str(record.folder)} | {name: getattr(record, name) for name in names}


def _results(record: Record) -> dict[str, Any]:
    low, high = record.final_interval or (None, None)
    names = ("state", "steps", "planned_steps", "success_rate", "final_success")
    final = {"final_success_low": low, "final_success_high": high, "eval_episodes": record.eval_episodes}
    out = {name: getattr(record, name) for name in names} | final | {"final_return": record.final_return}
    return out | {name: getattr(record, name) for name in ("minutes", "created", "git_commit", "problem")}


def _run_rows(records: Sequence[Record], settings: Sequence[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    for record, values in zip(records, settings, strict=True):
        results = {name: value for name, value in _results(record).items() if name != "problem"}
        curve = {f"steps_to_{percent}": record.steps_to(percent / 100) for percent in (80, 95)}
        horizon = float(record.planned_steps or 0)
        curve |= {f"{name}_area": record.area(name, horizon) if horizon else None for name in ("success", "return")}
        yield _about(record) | values | results | curve


def _curve_rows(records: Sequence[Record], settings: Sequence[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    for record, values in zip(records, settings, strict=True):
        about = _about(record) | values
        for row in zip(*record.columns.values(), strict=True):
            told = zip(record.columns, row, strict=True)
            yield about | {name: None if math.isnan(value) else value for name, value in told}


def _write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """One header of all columns, in order of their first appearance; returns the number of rows."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_file(path) as file:
        out = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer = csv.DictWriter(out, columns, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows)
        out.detach()  # atomic_file closes it
    return len(rows)


def _plain(value: Any) -> Any:
    """Whole numbers without ".0", so that steps read as what they are."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _require_new(option: str, path: Path) -> None:
    if path.suffix.lower() != ".csv":
        raise ValueError(f"{option} {path}: give a file that ends in .csv")
    if path.exists():
        raise FileExistsError(f"{option} {path} exists: give another file, or remove it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{option} {path}: make the folder {path.parent} first")


def _cells(record: Record) -> list[str]:
    if record.state == "damaged":
        return [record.name, record.task, record.arm, record.agent, _word(record.seed), "", "damaged", "", "", "", ""]
    steps = f"{record.steps:,}/{record.planned_steps:,}" if record.planned_steps is not None else f"{record.steps:,}"
    final = ""
    if record.final_success is not None:
        low, high = record.final_interval or (math.nan, math.nan)
        final = f"{100 * record.final_success:.0f} % ({100 * low:.0f}-{100 * high:.0f})"
    success = "" if record.success_rate is None else f"{100 * record.success_rate:.0f} %"
    minutes = "" if record.minutes is None else f"{record.minutes:.1f}"
    what = [record.name, record.task, record.arm, record.agent, _word(record.seed)]
    return [*what, steps, record.state, success, final, minutes, _when(record.created)]


def _when(created: str) -> str:
    """The minute in local time."""
    try:
        return datetime.datetime.fromisoformat(created).astimezone().strftime("%m-%d %H:%M")
    except ValueError:
        return created


def _show(comparison: Comparison) -> None:
    print(comparison.title)
    several = len({line.group for line in comparison.lines}) > 1
    for measure, lines in comparison.measures():
        better = "higher" if measure.higher_is_better else "lower"
        print(f"\n{measure.title} ({better} is better)")
        against = ["difference", "95 % interval", "pairs", "P(better)"] if several else []
        table = _table("group", "n", "mean", "IQM", "95 % interval", *against)
        for index, line in enumerate(lines):
            table.add_row(*_compared(line, index == 0)[: len(table.columns)])
        _print(table)
    if several:
        print("\ndifference: mean over common seeds, against the first group; P(better): that a run is better than one")
        print("of the first group")
    for index, note in enumerate(comparison.notes):
        print(("\n" if index == 0 else "") + f"note: {note}")


def _compared(line: Line, first: bool) -> list[str]:
    kind = line.measure.kind
    count = str(len(line.values)) + (f" ({line.never} never)" if line.never else "")
    cells = [line.group, count, _number(line.mean, kind), _number(line.iqm.value if line.iqm else None, kind)]
    cells.append(_interval(line.iqm, kind))
    if first:
        return [*cells, "", "", "", ""]
    difference = line.paired.difference if line.paired else None
    cells += [
        _number(difference.value if difference else None, kind, signed=True),
        _interval(difference, kind, signed=True),
    ]
    better = line.improvement
    told = "" if better is None else f"{better.value:.2f} {_interval(better, 'share')}"
    return [*cells, str(line.paired.pairs if line.paired else 0), told.strip()]


def _interval(estimate: Estimate | None, kind: str, signed: bool = False) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    low, high = (_number(value, kind, signed).removesuffix(" %") for value in (estimate.low, estimate.high))
    return f"[{low}, {high}]"


def _number(value: float | None, kind: str, signed: bool = False) -> str:
    if value is None:
        return ""
    if math.isinf(value):
        return "never"
    sign = "+" if signed else ""
    formats = {"percent": f"{100 * value:{sign}.1f} %", "steps": f"{value:{sign},.0f}", "share": f"{value:.2f}"}
    return formats.get(kind, f"{value:{sign}.4g}")


def _table(*columns: str, gap: int = 2) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for name in columns:
        if name in ("name", "task", "group"):  # what gives way on a narrow terminal
            table.add_column(name, overflow="fold", min_width=8 if name == "name" else None)
        else:
            left = name in ("arm", "agent", "state", "when")
            table.add_column(name, justify="left" if left else "right", no_wrap=True)
    return table


def _print(table: Table) -> None:
    """To stdout; plain and never wrapped where that is not a terminal."""
    from rich.console import Console

    stream: TextIO = sys.stdout
    if stream.isatty():
        Console(file=stream, highlight=False, markup=False).print(table)
        return
    text = io.StringIO()
    Console(file=text, width=_WIDE, highlight=False, markup=False, no_color=True).print(table)
    print("\n".join(line.rstrip() for line in text.getvalue().splitlines()), file=stream)


def _word(value: Any) -> str:
    return "" if value is None else str(value)


def _finite(value: Any) -> Any:
    """With null for what JSON cannot say: infinity, of a run that never came to it."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
