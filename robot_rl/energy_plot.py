"""One episode in energy, tick by tick: ledger, spring potential, what is free, what the filter did, contact force."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_rl.episode import episode_seed, success_of
from robot_rl.files import write_atomic
from robot_rl.plot import COLORS, STYLE

if TYPE_CHECKING:
    import gymnasium as gym
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from robot_rl.run import Run

LEDGER, POTENTIAL, FREE, ALPHA, GAMMA, BETA, FORCE = range(7)  # columns of ArmEnv.arm.energy_trace
_BLUE, _RED, _GREEN, _PINK, _ORANGE, _SKY, _ = COLORS
_GREY = "#777777"
_GAP_TICKS = 5  # the filter's acts closer than this are one mark


@dataclass(frozen=True)
class EnergyRecord:
    """One played episode of T control ticks."""

    trace: np.ndarray  # (T, 7) one row per control tick
    period_s: float  # of a control tick
    budget_j: float
    reserve_j: float
    enforce: bool
    success: bool | None
    fault: str  # why the guard holds the arm at the end, or ""
    title: str = ""
    facts: str = ""  # small, beside the title

    @property
    def t_s(self) -> np.ndarray:
        """(T,) s, end of each tick."""
        return self.period_s * np.arange(1, len(self.trace) + 1)

    @property
    def acted(self) -> np.ndarray:
        """(T,) bool: ticks in which alpha, gamma or beta withheld something."""
        return np.any(self.trace[:, ALPHA : BETA + 1] < 1.0, axis=1)

    @property
    def fault_s(self) -> float | None:
        """When the ledger ran out; of any other fault the end of the step it came in."""
        if not self.fault:
            return None
        empty = np.flatnonzero(self.trace[:, LEDGER] < self.reserve_j) if self.enforce else np.array([], np.int64)
        return float(self.t_s[empty[0] if len(empty) else -1])


def record(env: gym.Env, act: Callable[[Any], np.ndarray], seed: int) -> tuple[np.ndarray, bool | None, str]:
    """Play one episode; returns its trace (T, 7), its success (None: not told) and the guard's fault, or ""."""
    arm: Any = env.unwrapped.arm  # type: ignore[attr-defined]  # an ArmEnv, the caller saw to that
    obs, _ = env.reset(seed=seed)
    rows: list[np.ndarray] = []
    info: Mapping[str, Any] = {}
    terminated = truncated = False
    while not (terminated or truncated):
        obs, _, terminated, truncated, info = env.step(act(obs))
        rows.append(arm.energy_trace)
    return np.concatenate(rows), success_of(info), str(info["fault"])


def plot(folder: Path, out: Path, seed: int | None = None) -> str:
    """Draw one evaluation episode of the newest policy of a run to a PNG; returns what happened, in a sentence.

    Raises ValueError for a run that was not made in simulation: others have no ledger, or move a real arm.
    """
    from robot_rl.evaluate import policy
    from robot_rl.run import configs, load, load_agent

    check_world(load(folder))
    run, env, encoder, agent = load_agent(folder)
    try:
        seed = run.seed if seed is None else seed
        trace, success, fault = record(env, policy(agent, encoder), episode_seed(seed, "eval", 0))
        values = configs(run)
        task: Any = env.unwrapped.task  # type: ignore[attr-defined]
    finally:
        env.close()
    config = values["energy"]
    budget_j = task.bounds.energy_j if config["budget_j"] is None else config["budget_j"]
    played = EnergyRecord(
        trace=trace,
        period_s=1.0 / values["guard"]["control_hz"],
        budget_j=budget_j,
        reserve_j=config["reserve_j"],
        enforce=config["enforce"],
        success=success,
        fault=fault,
        title=f"{run.task} · {run.arm} · {run.agent}",
        facts=f"evaluation episode of seed {seed}, filter {'on' if config['enforce'] else 'off, watching only'}",
    )
    draw(played, out)
    return describe(played)


def check_world(run: Run) -> None:
    """Raises ValueError where ``run`` has no energy ledger, or would move a real arm."""
    from robot_rl.run import GYM

    if run.world == GYM:
        raise ValueError(
            f"{run.task} is a Gymnasium environment, which has no arm and keeps no energy ledger: "
            "give a run of a task of ours (robot-rl tasks)"
        )
    if run.world != "sim":
        raise ValueError(
            f"the world of this run is '{run.world}', and drawing its energy would move the arm: give a run in sim"
        )


def describe(played: EnergyRecord) -> str:
    """What happened, in a sentence."""
    free_j, acted = played.trace[:, FREE], 100 * played.acted.mean()
    return (
        f"{_ending(played)} after {played.t_s[-1]:.1f} s; free energy at least {free_j.min():.3g} J, "
        f"the filter acted in {acted:.3g} % of control ticks"
    )


def _ending(played: EnergyRecord) -> str:
    if played.success:
        return "success"
    return played.fault or ("no success" if played.success is not None else "ended")


def spans(flags: np.ndarray, gap: int = _GAP_TICKS) -> list[tuple[int, int]]:
    """First and last index (exclusive) of each stretch of True in (T,) flags; gaps shorter than ``gap`` are bridged."""
    found: list[tuple[int, int]] = []
    for index in np.flatnonzero(flags):
        if found and index - found[-1][1] < gap:
            found[-1] = (found[-1][0], int(index) + 1)
        else:
            found.append((int(index), int(index) + 1))
    return found


def draw(played: EnergyRecord, out: Path) -> None:
    """Draw an episode to a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with pyplot.style.context(STYLE):
        figure, axes = pyplot.subplots(
            3, 1, sharex=True, figsize=(9.4, 7.2), height_ratios=(3.0, 1.3, 1.3),
            layout=ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.06),
        )  # fmt: skip
        _draw_energy(axes[0], played)
        _draw_scales(axes[1], played)
        _draw_force(axes[2], played)
        _mark(figure, axes, played)
        png = io.BytesIO()
        figure.savefig(png, format="png")
        pyplot.close(figure)
    write_atomic(out, png.getvalue())


def _draw_energy(axis: Axes, played: EnergyRecord) -> None:
    t_s, trace = played.t_s, played.trace
    free_j = trace[:, FREE]
    axis.fill_between(t_s, free_j, 0.0, where=free_j < 0.0, color=_RED, alpha=0.25, linewidth=0)
    axis.axhline(0.0, color="#444444", linewidth=1.0)
    axis.plot(t_s, trace[:, LEDGER], color=_BLUE, linewidth=1.8, label="ledger L: what is left of the budget")
    axis.plot(t_s, trace[:, POTENTIAL], color=_ORANGE, linewidth=1.4, label="spring potential V: promised already")
    axis.plot(t_s, free_j, color=_GREEN, linewidth=1.8, label="free energy E = L − V")
    for level_j, name in ((played.budget_j, "budget"), (played.reserve_j, "reserve")):
        axis.axhline(level_j, color=_GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1.5)
        axis.annotate(
            f"{name} {level_j:g} J", (1.0, level_j), xycoords=("axes fraction", "data"), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=8.5, color=_GREY, annotation_clip=False,
        )  # fmt: skip
    axis.set_ylabel("energy (J)")
    axis.margins(y=0.06)


def _draw_scales(axis: Axes, played: EnergyRecord) -> None:
    lines = (
        (BETA, _RED, 3.6, "β torque"),
        (GAMMA, _PINK, 2.4, "γ stiffening"),
        (ALPHA, _BLUE, 1.2, "α reference step"),
    )
    for column, color, width, name in lines:  # the widest lies below, so that lines on top of each other all show
        axis.plot(played.t_s, played.trace[:, column], color=color, linewidth=width, label=name)
    axis.set_ylim(-0.05, 1.08)
    axis.set_yticks((0.0, 0.5, 1.0))
    axis.set_ylabel("share let through")


def _draw_force(axis: Axes, played: EnergyRecord) -> None:
    force_n = played.trace[:, FORCE]
    axis.plot(played.t_s, force_n, color="#333333", linewidth=1.2)
    peak_n = float(np.nanmax(force_n, initial=0.0))
    if peak_n > 0.0:
        at_s = float(played.t_s[np.nanargmax(force_n)])
        axis.plot(at_s, peak_n, "o", color="#333333", markersize=4, clip_on=False)
        late = at_s > 0.9 * played.t_s[-1]
        axis.annotate(
            f"{peak_n:.1f} N", (at_s, peak_n), xytext=(-5 if late else 5, 3), textcoords="offset points",
            ha="right" if late else "left", fontsize=8.5, color="#333333",
        )  # fmt: skip
    else:
        axis.text(0.5, 0.5, "no contact", transform=axis.transAxes, ha="center", va="center", color=_GREY)
    axis.set_ylim(0.0, max(1.0, 1.2 * peak_n))
    axis.set_ylabel("contact force (N)")
    axis.set_xlabel("time (s)")
    axis.set_xlim(0.0, played.t_s[-1])


def _mark(figure: Figure, axes: np.ndarray, played: EnergyRecord) -> None:
    """Where the filter acted, how the episode ended, and whose it is."""
    from matplotlib.patches import Patch

    for first, last in spans(played.acted):
        for axis in axes:
            axis.axvspan(
                played.period_s * first, played.period_s * last, facecolor=_SKY, edgecolor=_SKY, linewidth=0.4,
                alpha=0.22, zorder=0.5,
            )  # fmt: skip
    color = _GREEN if played.success else _RED if played.fault else _GREY
    for axis in axes:
        axis.axvline(played.t_s[-1], color=color, linewidth=1.6, clip_on=False, zorder=4)
        if played.fault_s is not None:
            axis.axvline(played.fault_s, color=_RED, linewidth=1.2, linestyle=(0, (1, 1.5)), zorder=4)
    if played.fault_s is not None:
        left = played.fault_s > 0.5 * played.t_s[-1]
        axes[0].annotate(
            played.fault, (played.fault_s, 1.0), xycoords=("data", "axes fraction"), color=_RED, fontsize=8.5, va="top",
            xytext=(-5 if left else 5, -2), textcoords="offset points", ha="right" if left else "left",
        )  # fmt: skip
    axes[0].set_title(played.title)
    axes[0].set_title(f"{played.facts} — {_ending(played)}", loc="right", fontsize=9, fontweight="normal", color=color)
    handles = axes[0].get_legend_handles_labels()[0]
    if played.acted.any():
        handles.append(Patch(facecolor=_SKY, alpha=0.35, label="the filter acted"))
    if (played.trace[:, FREE] < 0.0).any():
        handles.append(Patch(facecolor=_RED, alpha=0.25, label="free energy below zero"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5, handlelength=1.2, reverse=True)
