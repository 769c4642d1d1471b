"""The commands of ``cli.py`` about runs that there are: listing, comparing and exporting them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg, subcommand

Dirs = arg(metavar="DIR ...", help_behavior_hint="(default: runs)")
NewFile = arg(metavar="FILE", help_behavior_hint="")


@dataclass(frozen=True)
class ListRuns:
    """List run folders: how far each came, and what came out."""

    dirs: Annotated[Positional[tuple[Path, ...]], Dirs] = (Path("runs"),)
    """run folders, or folders of them at any depth"""
    json: bool = False
    """print one JSON object per run"""

    def execute(self) -> int:
        from robot_rl.runs_commands import list_runs

        return list_runs(self)


@dataclass(frozen=True)
class CompareRuns:
    """Compare runs, grouped by what differs apart from the seed: interquartile mean with a bootstrap 95 % interval, and
    against the first group the paired difference over common seeds and the probability of improvement."""

    dirs: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR ...", help_behavior_hint="")]
    """run folders, or folders of them at any depth"""
    by: Literal["settings", "folder"] = "settings"
    """what makes a group: task, arm, agent and the settings that differ; or each DIR, whatever is in it"""
    pool: bool = False
    """take several tasks and arms together, resampled within each"""
    json: bool = False
    """print one JSON object"""
    csv: Annotated[Path | None, NewFile] = None
    """write the table to this file, too, not there yet"""

    def execute(self) -> int:
        from robot_rl.runs_commands import compare_runs

        return compare_runs(self)


@dataclass(frozen=True)
class ExportRuns:
    """Write a tidy CSV file: one row per run, with the settings in which the runs differ and the results."""

    out: Path
    """.csv file, not there yet"""
    dirs: Annotated[Positional[tuple[Path, ...]], Dirs] = (Path("runs"),)
    """run folders, or folders of them at any depth"""
    all: bool = False
    """all settings, not only those that differ"""
    curves: bool = False
    """instead, one row per row of each run's metrics.csv"""

    def execute(self) -> int:
        from robot_rl.runs_commands import export_runs

        return export_runs(self)


@dataclass(frozen=True)
class Runs:
    """The runs that there are: list, compare or export them."""

    command: (
        Annotated[ListRuns, subcommand("list")]
        | Annotated[CompareRuns, subcommand("compare")]
        | Annotated[ExportRuns, subcommand("export")]
    )

    def execute(self) -> int:
        return self.command.execute()
