"""Learning curves of runs: success rate and return over environment steps."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_rl.files import read_json, write_atomic
from robot_rl.log import read_columns
from robot_rl.run import Run, load

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": "#333333",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "legend.frameon": False,
    "figure.dpi": 150,
}
_POINTS = 200  # of a curve


@dataclass(frozen=True)
class Curve:
    """One run: a rolling mean at each of its training episodes."""

    run: Run
    steps: np.ndarray  # (E,) environment steps
    success: np.ndarray  # (E,) NaN where the environment does not tell
    total_reward: np.ndarray  # (E,)
    final_success: float | None  # of the evaluation at the end, if it came to it

    @property
    def group(self) -> str:
        """What runs of several seeds have in common."""
        place = f" · {self.run.arm}" if self.run.arm else ""
        return f"{self.run.task}{place} · {self.run.agent}"


def read_curve(folder: Path) -> Curve:
    """The curve of a run folder. Raises FileNotFoundError or ValueError that names the file and the remedy."""
    run = load(folder)
    path = folder / "metrics.csv"
    columns = read_columns(path) if path.is_file() else {}
    if not columns:
        raise ValueError(f"{path} holds no training episode yet: train longer before plotting")
    episodes = len(columns["updates"])
    summary = folder / "summary.json"
    final = read_json(summary, "train again into another folder").get("success_rate") if summary.is_file() else None
    nothing = [np.nan] * episodes
    return Curve(
        run,
        np.asarray(columns.get("env_steps", columns["updates"])),
        rolling_mean(np.asarray(columns.get("success", nothing)), run.train.window),
        rolling_mean(np.asarray(columns.get("return", nothing)), run.train.window),
        final,
    )


def rolling_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last ``window`` values at each of them (fewer at the beginning), leaving out NaN; NaN of nothing."""
    known = np.isfinite(values)
    total, count = (np.cumsum(np.concatenate([[0.0], part])) for part in (np.where(known, values, 0.0), known))
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - window, 0)
    counted = count[last] - count[first]
    return np.where(counted > 0, total[last] - total[first], np.nan) / np.maximum(counted, 1)


def band(rows: np.ndarray, rng: np.random.Generator, draws: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % confidence band (low, high) of the mean of ``rows`` (S, P) over S seeds, by bootstrap."""
    picks = rng.integers(len(rows), size=(draws, len(rows)))
    low, high = np.percentile(rows[picks].mean(axis=1), (2.5, 97.5), axis=0)
    return low, high


def comparable(curves: Sequence[Curve]) -> Sequence[Curve]:
    """All curves where they have steps in common, else the longest alone."""
    first, last = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
    return curves if first < last else [max(curves, key=lambda curve: curve.steps[-1])]


def on_grid(curves: Sequence[Curve], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (P,) that every one of the ``comparable`` curves has come to, and each one's last value there (S, P)."""
    if len(curves) == 1:
        return curves[0].steps, getattr(curves[0], name)[None]
    grid = np.linspace(max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves), _POINTS)
    rows = [getattr(curve, name)[np.searchsorted(curve.steps, grid, side="right") - 1] for curve in curves]
    return grid, np.stack(rows)


def plot(folders: Iterable[Path], out: Path) -> None:
    """Draw the runs in ``folders`` to a PNG: mean over the seeds of each task and agent, 95 % confidence bands."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D

    groups: dict[str, list[Curve]] = {}
    for folder in folders:
        curve = read_curve(folder)
        groups.setdefault(curve.group, []).append(curve)
    curves = [curve for group in groups.values() for curve in group]
    told = any(np.isfinite(curve.success).any() or curve.final_success is not None for curve in curves)
    rewarded = any(np.isfinite(curve.total_reward).any() for curve in curves)
    panels = ["success"] * told + ["total_reward"] * (rewarded or not told)
    with pyplot.style.context(STYLE):
        figure, axes = pyplot.subplots(
            1,
            len(panels),
            figsize=(0.6 + 5.2 * len(panels), 4.0),
            layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1),
            squeeze=False,
        )
        for axis, name in zip(axes[0], panels, strict=True):
            for color, group in zip(_cycle(len(groups)), groups.values(), strict=True):
                _draw(axis, group, name, color)
            _dress(axis, name, curves)
        handles, labels = axes[0][0].get_legend_handles_labels()
        if any(curve.final_success is not None and not curve.run.offline for curve in curves):
            handles.append(Line2D([], [], linestyle="", marker="o", color="#888888", markersize=6))
            labels.append("evaluated at the end, deterministic actions")
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 2))
        png = io.BytesIO()
        figure.savefig(png, format="png")
        pyplot.close(figure)
    write_atomic(out, png.getvalue())


def _cycle(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def label(group: Sequence[Curve], shown: Sequence[Curve]) -> str:
    """What the legend says of a group of which ``shown`` are drawn."""
    seeds = f"{len(shown)} seeds" if len(shown) > 1 else f"seed {shown[0].run.seed}"
    if len(shown) < len(group):
        seeds += f", the longest of {len(group)}"
    finals = [curve.final_success for curve in shown if curve.final_success is not None]
    final = f", evaluated {100 * np.mean(finals):.0f} %" if finals else ""
    return f"{group[0].group} ({seeds}{final})"


def _draw(axis: Axes, group: Sequence[Curve], name: str, color: str) -> None:
    """The mean of a group and its band; an agent that learned offline has its evaluated success, a dashed line."""
    if group[0].run.offline:
        evaluated = [curve.final_success for curve in group if curve.final_success is not None]
        if name == "success" and evaluated:
            axis.axhline(
                float(np.mean(evaluated)), color=color, linestyle=(0, (5, 3)), linewidth=1.6, label=label(group, group)
            )
        return
    shown = comparable(group)
    steps, rows = on_grid(shown, name)
    if len(rows) > 1:
        low, high = band(rows, np.random.default_rng(0))
        axis.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
    axis.plot(steps, rows.mean(axis=0), color=color, linewidth=1.8, label=label(group, shown))
    finals = [
        (float(curve.steps[-1]), float(curve.final_success)) for curve in shown if curve.final_success is not None
    ]
    if name == "success" and finals:
        x, y = np.mean(np.asarray(finals), axis=0)
        axis.plot(x, y, "o", color=color, markersize=6, markeredgecolor="white", clip_on=False, zorder=5)


def _dress(axis: Axes, name: str, curves: Sequence[Curve]) -> None:
    from matplotlib.ticker import FuncFormatter, PercentFormatter

    def steps(value: float, _: Any) -> str:
        return f"{value / 1000:g}k" if value else "0"

    axis.set_xlabel("environment steps")
    window = {curve.run.train.window for curve in curves}
    episodes = f"last {window.pop()} training episodes" if len(window) == 1 else "rolling over training episodes"
    axis.set_title("Success rate" if name == "success" else "Return")
    axis.set_title(episodes, loc="right", fontsize=9, fontweight="normal", color="#888888")
    axis.xaxis.set_major_formatter(FuncFormatter(steps))
    axis.set_xlim(left=0)
    if name == "success":
        axis.set_ylim(-0.02, 1.03)  # so that a line at either end is seen whole
        axis.set_yticks(np.linspace(0, 1, 6))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
