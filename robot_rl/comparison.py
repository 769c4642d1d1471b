"""Groups of runs against each other: interquartile means, paired differences over seeds, probability of improvement."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robot_rl.runs import Record, labels
from robot_rl.statistics import Estimate, Paired, estimate, paired_difference, probability_of_improvement

FEW = 5  # seeds, below which an interval is said to be rough
Key = tuple[tuple[str, str, str], int]  # stratum (task, arm, world) and seed: what pairs runs of two groups


@dataclass(frozen=True)
class Measure:
    """One number of a run; None where the run does not tell it."""

    name: str
    title: str
    kind: str  # how it is printed: "percent", "steps" or "number"
    of: Callable[[Record], float | None]
    higher_is_better: bool = True


@dataclass(frozen=True)
class Group:
    """Runs that differ by nothing but the seed; with pooled tasks, by task and arm besides."""

    name: str
    runs: dict[Key, Record]


@dataclass(frozen=True)
class Line:
    """What one group has in one measure, and how it differs from the first group."""

    measure: Measure
    group: str
    values: dict[Key, float]
    mean: float | None = None
    iqm: Estimate | None = None
    paired: Paired | None = None
    improvement: Estimate | None = None  # probability of

    @property
    def never(self) -> int:
        """Runs that never came to it."""
        return sum(map(math.isinf, self.values.values()))

    def row(self) -> dict[str, Any]:
        """Flat, for a CSV file or JSON; infinite where a run never came to it."""
        out: dict[str, Any] = {"measure": self.measure.name, "group": self.group, "n": len(self.values)}
        out |= {"never": self.never, "mean": self.mean} | _flat("iqm", self.iqm)
        out |= _flat("difference", self.paired.difference if self.paired else None)
        return out | {"pairs": self.paired.pairs if self.paired else 0} | _flat("p_improvement", self.improvement)


@dataclass(frozen=True)
class Comparison:
    title: str
    lines: list[Line]
    notes: list[str]

    def measures(self) -> Iterator[tuple[Measure, list[Line]]]:
        """The measures that any group tells, and the lines of each."""
        for measure in dict.fromkeys(line.measure for line in self.lines):
            lines = [line for line in self.lines if line.measure == measure]
            if any(line.values for line in lines):
                yield measure, lines


def compare(records: Sequence[Record], pool: bool = False, names: Sequence[str] | None = None) -> Comparison:
    """Compare ``records`` in groups, the first one's against each of the others.

    ``pool``: runs of several tasks and arms are one group, resampled within each of them. ``names``: the group of each
    record, instead of the settings in which they differ. Raises ValueError where no run is whole.
    """
    whole = [record for record in records if record.state != "damaged"]
    notes = [f"left out, damaged: {record.problem}" for record in records if record.state == "damaged"]
    if not whole:
        raise ValueError(f"no run to compare; {'; '.join(notes)}")
    if names is None:
        names = labels(whole, pool)
    else:
        names = [name for name, record in zip(names, records, strict=True) if record.state != "damaged"]
    groups, doubled = _grouped(whole, names)
    strata = sorted({run.place for run in whole}) if pool else []
    lines = [line for measure in _measures(whole) for line in _lines(measure, groups, strata)]
    return Comparison(_title(whole), lines, notes + doubled + _notes(groups, lines, pool))


def _grouped(records: Sequence[Record], names: Sequence[str]) -> tuple[list[Group], list[str]]:
    groups: dict[str, Group] = {}
    notes = []
    for record, name in zip(records, names, strict=True):
        runs = groups.setdefault(name, Group(name, {})).runs
        key = (record.place, record.seed or 0)
        if (other := runs.get(key)) is not None:
            dropped, kept = sorted((record, other), key=lambda run: (run.state == "finished", run.steps, run.created))
            notes.append(
                f"seed {record.seed} is twice in '{name}': {kept.name} is taken, {dropped.name} left out; two of the "
                "same seed are no two samples (--by folder tells folders apart)"
            )
            record = kept
        runs[key] = record
    return list(groups.values()), notes


def _measures(records: Sequence[Record]) -> list[Measure]:
    planned = [record.planned_steps for record in records if record.planned_steps is not None and not record.offline]
    horizon = min(planned, default=0)
    told = any(record.curve("success")[0] for record in records)
    column, kind = ("success", "percent") if told else ("return", "number")
    measures = [
        Measure("final_success", "final success rate", "percent", lambda run: run.final_success),
        Measure("final_return", "final return", "number", lambda run: run.final_return),
        Measure("steps_to_80", "steps to 80 % rolling success", "steps", lambda run: run.steps_to(0.80), False),
        Measure("steps_to_95", "steps to 95 % rolling success", "steps", lambda run: run.steps_to(0.95), False),
    ]
    if horizon:
        title = f"area under the curve: mean {column} in training up to step {horizon:,}"
        measures.append(Measure(f"{column}_area", title, kind, lambda run: run.area(column, horizon)))
    return measures


def _lines(measure: Measure, groups: Sequence[Group], strata: Sequence[tuple[str, str, str]]) -> list[Line]:
    """One line a group. ``strata``: those to resample within; empty where all runs of a group are one."""
    lines: list[Line] = []
    for group in groups:
        told = {key: measure.of(run) for key, run in group.runs.items()}
        values = {key: float(value) for key, value in told.items() if value is not None}
        line = Line(measure, group.name, values)
        if values:
            split = _split(values, list(values), strata)
            every = [value for part in split for value in part]
            line = replace(line, mean=sum(every) / len(every), iqm=estimate(split))
        if lines and values and lines[0].values:
            line = _against(lines[0], line, strata)
        lines.append(line)
    return lines


def _against(first: Line, line: Line, strata: Sequence[tuple[str, str, str]]) -> Line:
    places = [{place for place, _ in side.values} for side in (first, line)]
    if strata or places[0] & places[1]:
        common = [key for key in first.values if key in line.values]
        pairs = [_split(side.values, common, strata) for side in (first, line)]
    elif len(places[0]) == len(places[1]) == 1:  # two tasks or arms: the seed alone makes the pair
        by_seed = [{seed: value for (_, seed), value in side.values.items()} for side in (first, line)]
        seeds = [seed for seed in by_seed[0] if seed in by_seed[1]]
        pairs = [[[side[seed] for seed in seeds]] for side in by_seed]
    else:
        pairs = [[], []]  # nothing says what belongs together
    everything = [_split(side.values, list(side.values), strata) for side in (first, line)]
    return replace(
        line,
        paired=paired_difference(pairs[0], pairs[1]),
        improvement=probability_of_improvement(everything[0], everything[1], line.measure.higher_is_better),
    )


def _split(values: dict[Key, float], keys: Sequence[Key], strata: Sequence[tuple[str, str, str]]) -> list[list[float]]:
    if not strata:
        return [[values[key] for key in keys]]
    return [[values[key] for key in keys if key[0] == stratum] for stratum in strata]


def _title(records: Sequence[Record]) -> str:
    """What all runs have in common."""
    words = []
    for part in ("task", "arm", "world"):
        values = sorted({getattr(record, part) for record in records} - {""})
        words += [f"{part} {values[0]}"] if len(values) == 1 else []
    return ", ".join([f"{len(records)} run{'s' if len(records) > 1 else ''}", *words])


def _notes(groups: Sequence[Group], lines: Sequence[Line], pool: bool) -> list[str]:
    notes = []
    for group in groups[1:]:
        notes += _partners(groups[0], group)
        if pool and {place for place, _ in group.runs} != {place for place, _ in groups[0].runs}:
            notes.append(f"'{groups[0].name}' and '{group.name}' are not of the same tasks and arms")
    for group in groups:
        unfinished = [run.name for run in group.runs.values() if run.state != "finished"]
        if unfinished:
            notes.append(f"not finished, so without what comes at the end: {', '.join(unfinished)}")
        count = len(group.runs)
        if count == 1:
            notes.append(f"'{group.name}' has one run: no interval can be given; train other seeds")
        elif count < FEW:
            notes.append(f"'{group.name}' has {count} runs: an interval of so few is rough, and too narrow as a rule")
        if len(commits := {run.git_commit for run in group.runs.values()}) > 1:
            notes.append(f"'{group.name}' mixes {len(commits)} versions of the code (git_commit in run.json)")
    if any(line.iqm and line.iqm.low is not None and line.iqm.low == line.iqm.high for line in lines):
        notes.append("an interval without width: all its runs gave the same, which does not mean that others would")
    return notes


def _partners(first: Group, group: Group) -> list[str]:
    """Which seeds only one of the two has."""
    notes = []
    for one, other in ((first, group), (group, first)):
        alone = {seed for _, seed in one.runs} - {seed for _, seed in other.runs}
        if alone:
            notes.append(f"no partner in '{other.name}' for {_seeds(alone)} of '{one.name}'")
    return notes


def _seeds(seeds: set[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, sorted(seeds)))}"


def _flat(name: str, value: Estimate | None) -> dict[str, float | None]:
    if value is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}


def by_folder(paths: Sequence[Path], records: Sequence[Record]) -> list[str]:
    """For each record the path of ``paths`` that it was found in."""
    roots = [(path, path.resolve()) for path in paths]
    return [
        next(str(path) for path, root in roots if root == where or root in where.parents)
        for where in (record.folder.resolve() for record in records)
    ]
