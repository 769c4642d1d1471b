from __future__ import annotations

import json
import math
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest

from robot_rl import build, cli, energy, energy_plot, run, train
from robot_rl.energy import EpisodeEnergy
from robot_rl.energy_plot import EnergyRecord
from robot_rl.files import read_json, write_json
from robot_rl.plot import COLORS
from robot_rl.run import TrainConfig, choose

BLUE, RED, GREEN, _, ORANGE, SKY, _ = COLORS


def info(free_min_j: float, work_j: float = 0.0, force_n: float = 0.0, alpha: float = 1.0, **more: object) -> dict:
    numbers = {
        "free_min_j": free_min_j, "ledger_min_j": free_min_j + 0.5, "work_j": work_j, "spill_j": 0.25 * work_j,
        "alpha": alpha, "intervened": 1.0 - alpha, "negative": float(free_min_j < 0.0), "force_max_n": force_n,
    }  # fmt: skip
    return {"energy": numbers, "fault": "", "energy_depleted": False} | more


def watched(*infos: dict) -> EpisodeEnergy:
    episode = EpisodeEnergy()
    for each in infos:
        episode.add(each)
    return episode


def test_a_summary_by_hand() -> None:
    calm = watched(info(1.0, 0.1, 3.0), info(0.8, 0.4, 5.0))
    wild = watched(
        info(0.2, 0.5, 20.0, alpha=0.5), info(-0.6, 1.0, 11.0, fault="energy depleted", energy_depleted=True)
    )
    assert energy.summarize([calm, wild]) == pytest.approx(
        {
            "negative_episodes": 0.5, "negative_ticks": 0.25, "overdrawn_episodes": 0.5, "depleted_episodes": 0.5,
            "fault_episodes": 0.5, "free_min_j": -0.6, "free_min_mean_j": 0.1, "ledger_min_j": -0.1, "work_j": 0.7,
            "spill_j": 0.175, "intervened_ticks": 0.125, "withheld": 0.125, "force_peak_n": 12.5, "force_max_n": 20.0,
        }
    )  # fmt: skip
    assert wild.row() == pytest.approx(dict(zip(energy.COLUMNS, (-0.6, 1.0, 0.25, 20.0), strict=True)))
    text = energy.describe(energy.summarize([calm, wild]) or {})
    assert "0.7 J delivered" in text and "-0.6 J" in text and "50 % of episodes ran out" in text


def test_what_tells_no_energy_is_left_out() -> None:
    silent = watched({"success": True}, {})
    assert energy.summarize([silent]) is None and energy.summarize([]) is None and silent.row() == {}
    known = energy.summarize([silent, watched(info(1.0))])
    assert known is not None and known["negative_episodes"] == 0.0


def test_a_force_that_could_not_be_measured_is_none_and_never_nan() -> None:
    blind = watched(info(1.0, force_n=math.nan))
    assert blind.row()["force_max_n"] is None
    summary = energy.summarize([blind])
    assert summary is not None and summary["force_peak_n"] is None
    json.dumps(summary, allow_nan=False)
    assert "force unknown" in energy.describe(summary)
    known = energy.summarize([watched(info(1.0, force_n=math.nan), info(1.0, force_n=2.0))])
    assert known is not None and known["force_peak_n"] == 2.0


def test_spans_bridge_short_gaps() -> None:
    flags = np.zeros(40, bool)
    flags[[3, 4, 7, 20, 39]] = True
    assert energy_plot.spans(flags, gap=5) == [(3, 8), (20, 21), (39, 40)]
    assert energy_plot.spans(np.zeros(5, bool)) == [] and energy_plot.spans(np.ones(5, bool)) == [(0, 5)]


def played(**changes: object) -> EnergyRecord:
    """200 ticks: the ledger falls evenly from 1 J to 0.2 J, nothing is withheld, nothing is touched."""
    trace = np.ones((200, 7))
    trace[:, energy_plot.LEDGER] = trace[:, energy_plot.FREE] = np.linspace(1.0, 0.2, 200)
    trace[:, energy_plot.POTENTIAL] = trace[:, energy_plot.FORCE] = 0.0
    values = {"trace": trace, "period_s": 0.001, "budget_j": 1.0, "reserve_j": 0.05, "enforce": True}
    return EnergyRecord(**(values | {"success": None, "fault": ""} | changes))  # type: ignore[arg-type]


def test_the_fault_is_marked_where_the_ledger_ran_out() -> None:
    calm = played()
    empty = played(fault="energy depleted", reserve_j=0.6)
    first = int(np.argmax(calm.trace[:, energy_plot.LEDGER] < 0.6))
    assert empty.fault_s == pytest.approx(0.001 * (first + 1)) and calm.fault_s is None
    assert played(fault="contact force").fault_s == pytest.approx(0.2)
    assert "energy depleted after 0.2 s" in energy_plot.describe(empty)


def colors_of(path: Path) -> set[str]:
    pixels = np.asarray(imageio.imread(path))[..., :3].reshape(-1, 3)
    return {f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.unique(pixels, axis=0)}


def test_a_picture_shows_what_happened_and_nothing_else(tmp_path: Path) -> None:
    """Vermilion is drawn for the torque scale only, until there is a fault; success is green at the end."""
    trace = played().trace.copy()
    trace[50:90, energy_plot.ALPHA] = 0.4
    shares = {}
    for name, record in {
        "calm": played(),
        "acted": played(trace=trace),
        "fault": played(fault="contact force"),
    }.items():
        energy_plot.draw(record, tmp_path / f"{name}.png")
        pixels = np.asarray(imageio.imread(tmp_path / f"{name}.png"))[..., :3].astype(int)
        reds = (abs(pixels - np.array([0xD5, 0x5E, 0x00])) < 8).all(axis=-1)
        blues = (pixels[..., 2] > pixels[..., 0] + 15) & (pixels.min(axis=-1) > 200)  # the pale mark of the filter
        shares[name] = reds.mean(), blues.mean()
        assert {BLUE, GREEN, ORANGE} <= colors_of(tmp_path / f"{name}.png")
    assert shares["acted"][1] > shares["calm"][1] + 0.05
    assert shares["fault"][0] > 1.3 * shares["calm"][0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of behaviour cloning on a task of ours, with a budget that has to be watched."""
    folder = tmp_path_factory.mktemp("runs") / "reach"
    config = TrainConfig(steps=20, log_every=20, eval_episodes=1, demo_episodes=1)
    settings = ["agent.hidden=8,8", "task.max_steps=30", "energy.budget_j=0.3"]
    train.train(choose("reach", "panda", "sim", "bc", config, settings), folder)
    return folder


def test_a_run_is_drawn_into_its_folder_and_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert cli.main(["plot", "--energy", str(finished), "--seed", "3"]) == 0
        out, err = capsys.readouterr()
        assert out.strip() == str(finished / "energy.png") and "free energy at least" in err
    assert {BLUE, GREEN, ORANGE} <= colors_of(finished / "energy.png")


def test_the_record_is_the_ledger_of_the_arm_tick_by_tick() -> None:
    env = build.make_env("reach", settings=["energy.budget_j=0.3", "task.max_steps=6"])
    rng, arm = np.random.default_rng(0), env.unwrapped.arm  # type: ignore[attr-defined]
    trace, success, fault = energy_plot.record(env, lambda obs: rng.uniform(-1, 1, env.action_space.shape), 0)
    assert trace.shape == (600, 7) and success is False and fault == ""
    np.testing.assert_array_equal(trace[-100:], arm.energy_trace)
    free_j = trace[:, energy_plot.LEDGER] - trace[:, energy_plot.POTENTIAL]
    np.testing.assert_allclose(trace[:, energy_plot.FREE], free_j)
    assert (trace[:, energy_plot.ALPHA] < 1.0).any() and trace[0, energy_plot.LEDGER] <= 0.3


def test_evaluation_tells_energy_and_takes_other_settings(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for settings in ([], ["--set", "energy.enforce=false", "energy.budget_j=0.002", "energy.reserve_j=0.001"]):
        assert cli.main(["eval", str(finished), "--episodes", "2", "--json", *settings]) == 0
        told.append(json.loads(capsys.readouterr().out)["energy"])
    assert told[0]["negative_episodes"] == 0.0 < told[1]["negative_episodes"]
    assert told[1]["free_min_j"] < 0.0 < told[0]["free_min_j"]
    assert read_json(finished / "summary.json", "")["energy"].keys() == told[0].keys()
    assert cli.main(["eval", str(finished), "--episodes", "1"]) == 0
    assert "J delivered" in capsys.readouterr().out
    assert cli.main(["eval", str(finished), "--set", "agent.hidden=9"]) == 2
    assert "section of settings" in capsys.readouterr().err


def test_what_cannot_be_drawn_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.create(tmp_path / "gym", choose("Pendulum-v1", "", "gym", "sac", TrainConfig()))
    run.create(tmp_path / "real", choose("reach", "panda", "sim", "bc", TrainConfig()))
    values = read_json(tmp_path / "real/run.json", "")
    write_json(tmp_path / "real/run.json", values | {"world": "fci"})
    gym, real = str(tmp_path / "gym"), str(tmp_path / "real")
    for args, words in (
        (["--energy", gym], "Pendulum-v1 is a Gymnasium environment"),
        (["--energy", real], "would move the arm"),
        (["--energy", gym, real], "--energy draws one run, not 2"),
        ([gym, "--seed", "3"], "--seed 3 is of the episode that --energy draws"),
        (["--energy"], "give a run folder"),
        ([], "give a run folder"),
        (["--energy", str(tmp_path)], "is not a run folder"),
    ):
        assert cli.main(["plot", *args]) == 2
        assert words in capsys.readouterr().err
    assert cli.main(["eval", gym, "--set", "energy.enforce=false"]) == 2
    assert "takes no settings" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.png"))
