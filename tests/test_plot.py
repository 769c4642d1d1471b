from __future__ import annotations

import dataclasses
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest

from robot_rl import cli, plot, run
from robot_rl.files import write_json
from robot_rl.log import MetricsLog
from robot_rl.run import TrainConfig, choose


def make_run(folder: Path, agent: str = "rlpd", seed: int = 0, episodes: int = 60, told: bool = True) -> Path:
    """A run folder with an invented curve: from failure to success."""
    made = choose("Pendulum-v1", "", "gym", agent, TrainConfig(seed=seed, window=10))
    run.create(folder, made)
    rng, steps = np.random.default_rng([seed, len(agent)]), 0
    with MetricsLog(folder, "updates" if made.offline else "env_steps") as log:
        for episode in range(episodes):
            if made.offline:
                log.row({"updates": 100 * episode, "actor_loss": 1.0 / (1 + episode)})
                continue
            steps += int(rng.integers(20, 60))
            success = int(rng.random() < 1 / (1 + np.exp((30 - episode) / 6))) if told else None
            log.row(
                {"env_steps": steps, "updates": 8 * steps, "return": float(rng.normal(episode, 5)), "success": success}
            )
    write_json(folder / "summary.json", {"success_rate": 0.9 if told else None})
    return folder


def test_rolling_mean_against_numbers() -> None:
    np.testing.assert_allclose(plot.rolling_mean(np.array([1.0, 0.0, 1.0, 1.0, 0.0]), 2), [1, 0.5, 0.5, 1, 0.5])
    assert np.isnan(plot.rolling_mean(np.full(3, np.nan), 2)).all()
    gap = plot.rolling_mean(np.array([np.nan, 1.0, np.nan, np.nan, 0.5]), 2)
    np.testing.assert_array_equal(gap, [np.nan, 1.0, 1.0, np.nan, 0.5])


def test_the_band_holds_the_mean_and_narrows_with_seeds() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for seeds in (4, 64):
        rows = rng.normal(size=(seeds, 50))
        low, high = plot.band(rows, rng)
        assert np.all((low <= rows.mean(axis=0)) & (rows.mean(axis=0) <= high))
        widths.append(np.mean(high - low))
    assert widths[1] == pytest.approx(2 * 1.96 / 8, rel=0.1)  # the normal interval of 64 draws
    assert widths[0] > 2 * widths[1]


def test_seeds_are_compared_at_steps_all_of_them_reached(tmp_path: Path) -> None:
    curves = [plot.read_curve(make_run(tmp_path / f"{seed}", seed=seed, episodes=30 + 10 * seed)) for seed in range(3)]
    grid, rows = plot.on_grid(curves, "success")
    assert rows.shape == (3, len(grid))
    assert grid[0] == max(curve.steps[0] for curve in curves) and grid[-1] == min(curve.steps[-1] for curve in curves)
    for curve, row in zip(curves, rows, strict=True):
        for step, value in zip(grid, row, strict=True):
            assert value == curve.success[curve.steps <= step][-1]  # what was known at that step, and no later


def test_seeds_without_a_step_in_common_are_not_counted_as_seeds(tmp_path: Path) -> None:
    short, long = (plot.read_curve(make_run(tmp_path / f"{seed}", seed=seed)) for seed in range(2))
    assert plot.label([short, long], plot.comparable([short, long])) == "Pendulum-v1 · rlpd (2 seeds, evaluated 90 %)"
    apart = dataclasses.replace(long, steps=long.steps + short.steps[-1], final_success=0.5)
    shown = plot.comparable([short, apart])
    assert list(shown) == [apart]
    assert plot.label([short, apart], shown) == "Pendulum-v1 · rlpd (seed 1, the longest of 2, evaluated 50 %)"


def test_runs_are_grouped_by_task_arm_and_agent(tmp_path: Path) -> None:
    curve = plot.read_curve(make_run(tmp_path / "a"))
    other = dataclasses.replace(curve, run=dataclasses.replace(curve.run, train=TrainConfig(seed=9)))
    assert curve.group == other.group == "Pendulum-v1 · rlpd"
    assert dataclasses.replace(curve, run=dataclasses.replace(curve.run, arm="ur5e")).group != curve.group


def drawn_colors(path: Path) -> set[str]:
    pixels = np.asarray(imageio.imread(path))[..., :3].reshape(-1, 3)
    found = {f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.unique(pixels, axis=0)}
    return found & set(plot.COLORS[:6])  # the seventh is black, like the text


def test_each_group_is_drawn_in_its_own_colour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [
        make_run(tmp_path / f"{agent}{seed}", agent, seed) for agent in ("rlpd", "sac", "bc") for seed in range(3)
    ]
    out = tmp_path / "curves.png"
    assert cli.main(["plot", *map(str, folders), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert drawn_colors(out) == set(plot.COLORS[:3])


def test_one_run_is_drawn_into_its_folder_and_again(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    for _ in range(2):
        assert cli.main(["plot", str(folder)]) == 0
    assert drawn_colors(folder / "curves.png") == {plot.COLORS[0]}


def test_returns_alone_where_success_is_not_told(tmp_path: Path) -> None:
    told, silent = make_run(tmp_path / "told"), make_run(tmp_path / "silent", told=False)
    for folder in (told, silent):
        plot.plot([folder], folder / "curves.png")
    widths = [imageio.imread(folder / "curves.png").shape[1] for folder in (told, silent)]
    assert widths[0] > 1.7 * widths[1]  # two panels, and one


def test_what_cannot_be_drawn_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    run.create(empty, choose("Pendulum-v1", "", "gym", "sac", TrainConfig()))
    for args, words in (
        ([str(empty)], "holds no training episode yet"),
        ([str(tmp_path)], "is not a run folder"),
        ([str(make_run(tmp_path / "a")), "--out", str(tmp_path / "x.pdf")], "ends in .png"),
        ([str(tmp_path / "a"), "--out", str(tmp_path / "a/run.json")], "ends in .png"),
        ([str(tmp_path / "a"), "--out", str(tmp_path / "none/x.png")], "make the folder"),
    ):
        assert cli.main(["plot", *args]) == 2
        assert words in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.png"))
