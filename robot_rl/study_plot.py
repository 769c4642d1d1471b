"""The pictures of the passivity study: what each cell came to in deployment, and the trainings."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_rl.files import write_atomic
from robot_rl.log import read_columns
from robot_rl.plot import COLORS, STYLE, band, rolling_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 200  # of a curve
_WINDOW = 20  # training episodes of a rolling mean
_WIDTH = 0.36  # of a bar; groups are 1.0 apart
_ORDER = (COLORS[1], COLORS[0], *COLORS[2:])  # the first variant is the warning colour
_FILTER = {"off": "without filter", "on": "with filter"}


@dataclass(frozen=True)
class Panel:
    """One number of every cell."""

    name: str  # in cells
    title: str
    unit: str
    factor: float = 1.0


DEPLOYMENT = (
    Panel("success_rate", "Success", "%", 100.0),
    Panel("negative_episodes", "Episodes with E < 0", "%", 100.0),
    Panel("negative_ticks", "Control ticks with E < 0", "%", 100.0),
)
ENERGY = (
    Panel("work_j", "Energy delivered per episode", "J"),
    Panel("free_min_mean_j", "Least free energy", "J"),
    Panel("force_peak_n", "Peak contact force", "N"),
)


def plot(result: Mapping[str, Any], folder: Path) -> None:
    """Draw deployment.png, energy.png and training.png of a study (study.json as ``result``) into its folder."""
    _save(
        folder / "deployment.png", len(DEPLOYMENT), lambda figure, axes: _draw_cells(figure, axes, result, DEPLOYMENT)
    )
    _save(folder / "energy.png", len(ENERGY), lambda figure, axes: _draw_cells(figure, axes, result, ENERGY))
    curves = read_curves(result, folder)
    panels = [panel for panel in CURVES if any(panel[0] in rows for group in curves for _, rows in group)]
    _save(
        folder / "training.png", len(panels), lambda figure, axes: _draw_trainings(figure, axes, result, curves, panels)
    )


def _save(out: Path, count: int, draw: Callable[[Figure, Sequence[Axes]], None]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with pyplot.style.context(STYLE):
        figure, axes = pyplot.subplots(
            1, count, figsize=(0.6 + 4.4 * count, 4.2), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1),
            squeeze=False,
        )  # fmt: skip
        draw(figure, axes[0])
        png = io.BytesIO()
        figure.savefig(png, format="png")
        pyplot.close(figure)
    write_atomic(out, png.getvalue())


# ---------------------------------------------------------------------------------------------------------------------
# Deployment: bars of means, dots of seeds


def _variants(result: Mapping[str, Any]) -> dict[str, str]:
    """Name of each variant and its colour."""
    names = [variant["name"] for variant in result["plan"]["variants"]]
    return {name: _ORDER[index % len(_ORDER)] for index, name in enumerate(names)}


def _draw_cells(figure: Figure, axes: Sequence[Axes], result: Mapping[str, Any], panels: Sequence[Panel]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    for axis, panel in zip(axes, panels, strict=True):
        _draw_panel(axis, result, panel)
    grey = "#777777"
    handles: list[Any] = [
        Patch(facecolor="white", edgecolor=grey, hatch="////", label="deployed without filter"),
        Patch(facecolor=grey, edgecolor=grey, label="deployed with filter"),
    ]
    if len(result["plan"]["seeds"]) > 1:
        handles.append(Line2D([], [], linestyle="", marker="o", markersize=4.5, color="#333333", label="one seed"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)


def _draw_panel(axis: Axes, result: Mapping[str, Any], panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    colors = _variants(result)
    groups = [(name, trained) for name in colors for trained in _FILTER]
    for cell in result["cells"]:
        position = groups.index((cell["policy"], cell["trained"]))
        x = position + (-0.5 if cell["deployed"] == "off" else 0.5) * (_WIDTH + 0.04)
        _draw_bar(axis, x, cell, panel, colors[cell["policy"]])
    axis.set_xticks(range(len(groups)), [f"trained\n{_FILTER[trained]}" for _, trained in groups], fontsize=8.5)
    axis.tick_params(axis="x", length=0)
    for index, (name, color) in enumerate(colors.items()):
        middle = len(_FILTER) * index + 0.5
        axis.annotate(
            name, (middle, 0.0), xycoords=("data", "axes fraction"), xytext=(0, -38), textcoords="offset points",
            ha="center", va="top", color=color, fontweight="bold",
        )  # fmt: skip
    axis.grid(axis="x", visible=False)
    axis.axhline(0.0, color="#666666", linewidth=0.8)
    axis.set_xlim(-0.6, len(groups) - 0.4)
    axis.set_title(panel.title)
    axis.set_ylabel(panel.unit)
    if panel.unit == "%":
        axis.set_ylim(0.0, 115.0 if panel.name == "success_rate" else max(1.0, 1.15 * axis.dataLim.y1))
        axis.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    else:
        low, high = min(axis.dataLim.y0, 0.0), max(axis.dataLim.y1, 0.0)
        room = 0.15 * (high - low or 1.0)
        axis.set_ylim(low - 0.5 * room * (low < 0.0), high + room)


def _draw_bar(axis: Axes, x: float, cell: Mapping[str, Any], panel: Panel, color: str) -> None:
    """One cell: a bar to the mean, a dot for each seed, and the mean in digits above; nothing where it is not told."""
    value = cell["mean"].get(panel.name)
    if value is None:
        axis.annotate("–", (x, 0.0), ha="center", va="bottom", color="#777777")
        return
    height = panel.factor * value
    hatched = cell["deployed"] == "off"
    axis.bar(
        x, height, _WIDTH, facecolor="white" if hatched else color, edgecolor=color, hatch="////" if hatched else None,
        linewidth=1.0,
    )  # fmt: skip
    seeds = [panel.factor * numbers[panel.name] for numbers in cell["seeds"].values()]
    if len(seeds) > 1:
        spread = np.linspace(-0.28, 0.28, len(seeds)) * _WIDTH
        axis.plot(
            x + spread, seeds, "o", color="#333333", markersize=4.5, markeredgecolor="white", markeredgewidth=0.7,
            zorder=3, clip_on=False,
        )  # fmt: skip
    axis.annotate(
        f"{height:.3g}", (x, 1.0), xycoords=("data", "axes fraction"), xytext=(0, -1), textcoords="offset points",
        fontsize=8, ha="center", va="top", color=color,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Training: curves over environment steps

CURVES = (
    ("success", "Success", "%"),
    ("negative", "Episodes with E < 0", "%"),
    ("cost", "Cost per step", ""),
)
"""Column, title and unit of each panel."""
Rows = tuple[np.ndarray, dict[str, np.ndarray]]
"""Environment steps (E,) of one training, and rolling means (E,) at them, by column."""


def read_curves(result: Mapping[str, Any], folder: Path) -> list[list[Rows]]:
    """For each of the study's ``trainings`` the curves of its seeds."""
    return [
        [
            _read_curve(folder / "runs" / f"{training['policy']}-filter_{training['trained']}-seed{seed}")
            for seed in training["seeds"]
        ]
        for training in result["trainings"]
    ]


def _read_curve(folder: Path) -> Rows:
    columns = {name: np.asarray(values) for name, values in read_columns(folder / "metrics.csv").items()}
    rows: dict[str, np.ndarray] = {name: columns[name] for name in ("success", "cost") if name in columns}
    if "energy_free_min_j" in columns:
        free_j = columns["energy_free_min_j"]
        rows["negative"] = np.where(np.isfinite(free_j), free_j < 0.0, np.nan)
    return columns["env_steps"], {name: rolling_mean(values, _WINDOW) for name, values in rows.items()}


def on_grid(group: Sequence[Rows], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (P,) that every seed of a training has come to, and each seed's last value there (S, P)."""
    first, last = max(steps[0] for steps, _ in group), min(steps[-1] for steps, _ in group)
    grid = np.linspace(first, max(first, last), _POINTS)
    return grid, np.stack([rows[name][np.searchsorted(steps, grid, side="right") - 1] for steps, rows in group])


def _draw_trainings(
    figure: Figure, axes: Sequence[Axes], result: Mapping[str, Any], curves: Sequence[Sequence[Rows]], panels: Sequence
) -> None:
    from matplotlib.ticker import FuncFormatter, PercentFormatter

    colors = _variants(result)
    for axis, (name, title, unit) in zip(axes, panels, strict=True):
        for training, group in zip(result["trainings"], curves, strict=True):
            if not all(name in rows for _, rows in group):
                continue
            color, alone = colors[training["policy"]], training["trained"] == "off"
            steps, values = on_grid(group, name)
            if len(group) > 1:
                low, high = band(values, np.random.default_rng(0))
                axis.fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)
            axis.plot(
                steps, values.mean(axis=0), color=color, linewidth=1.8, linestyle=(0, (4, 2)) if alone else "-",
                label=f"{training['policy']}, trained {_FILTER[training['trained']]}",
            )  # fmt: skip
        axis.set_title(title)
        axis.set_ylabel(unit)
        axis.set_xlabel("environment steps")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value else "0"))
        axis.set_xlim(left=0)
        if unit == "%":
            axis.set_ylim(-0.02, 1.03)  # so that a line at either end is seen whole
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
        else:
            axis.set_ylim(bottom=0.0)
    axes[-1].set_title(
        f"last {_WINDOW} training episodes", loc="right", fontsize=9, fontweight="normal", color="#888888"
    )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
