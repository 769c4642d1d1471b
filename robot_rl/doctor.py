"""``robot-rl doctor``: what works here, what does not, and what to do about it.

A check is a function that returns a Finding. One that fails itself is a finding, too, and the others go on.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from robot_rl.finding import Finding, Status
from robot_rl.machine_checks import machine_checks
from robot_rl.ros_checks import ros_checks

_COLOURS: dict[Status, str] = {"ok": "green", "note": "cyan", "warn": "yellow", "fail": "bold red"}
_NAME_WIDTH = 16
_PLAIN_WIDTH = 160  # where the output is no terminal


def doctor(namespace: str | None = None, as_json: bool = False, quick: bool = False) -> int:
    """Check everything and print it; returns 1 where something failed, else 0.

    ``namespace``: also ask the arm node there. ``quick``: leave out what draws or measures.
    """
    return report(examine(namespace, quick), as_json)


def report(findings: Iterable[Finding], as_json: bool) -> int:
    """Print findings, each as soon as it is there, or one JSON object at the end; 1 where something failed, else 0."""
    found = []
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    for finding in findings:
        found.append(finding)
        if not as_json:
            console.print(_row(finding))
    counts = Counter[Status](finding.status for finding in found)
    failed = counts["fail"] > 0
    if as_json:
        about = {"failed": failed, "findings": [dataclasses.asdict(finding) for finding in found]}
        print(json.dumps(about))
    else:
        console.print(f"\n{', '.join(f'{counts[status]} {status}' for status in _COLOURS)}")
    return 1 if failed else 0


def examine(namespace: str | None = None, quick: bool = False) -> Iterator[Finding]:
    """The findings, each as soon as it is there."""
    for name, check in (machine_checks(quick) | ros_checks(namespace, quick)).items():
        yield attempt(name, check)


def attempt(name: str, check: Callable[[], Finding]) -> Finding:
    """What ``check`` finds, or that it could not find anything."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - the cause is told, and the other checks are still wanted
        says = f"could not be checked: {type(error).__name__}: {error}"
        return Finding(name, "warn", says, "this is a fault of robot-rl doctor: please report it")


def _row(finding: Finding) -> Table:
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_column(width=4)
    row.add_column(width=_NAME_WIDTH)
    row.add_column(overflow="fold")
    text = Text(finding.says)
    if finding.remedy:
        text.append(f"\n-> {finding.remedy}", style="" if finding.status in ("warn", "fail") else "dim")
    row.add_row(Text(finding.status, style=_COLOURS[finding.status]), finding.name, text)
    return row
