"""Sweeps: every combination of values and seeds, trained through Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl import cli, cluster, sweep, train
from robot_rl.files import FolderLock, read_json
from robot_rl.interrupt import Interrupted
from robot_rl.log import read_metrics
from robot_rl.run import checkpoints, load
from robot_rl.sweep import Plan, Varied
from tests.ray_processes import compile_once
from tests.test_train import assert_same_training

if importlib.util.find_spec("ray") is None:  # not imported yet: it reads its settings as it is
    pytest.skip("Ray is not installed", allow_module_level=True)
TESTS = Path(__file__).parent
SMALL = (
    "agent.hidden=16,16", "agent.batch_size=16", "agent.utd_ratio=1", "agent.critics=2", "agent.learning_starts=20",
    "train.eval_episodes=2", "train.demo_episodes=2", "train.checkpoint_every=50", "train.window=5",
)  # fmt: skip
PLAN = Plan(
    gym="tiny_env:Tiny-v0", steps=120, seeds=(3, 4), vary=(Varied("agent.polyak", ("0.005", "0.02")),), settings=SMALL
)
NAMES = ["polyak=0.005-seed3", "polyak=0.02-seed3", "polyak=0.005-seed4", "polyak=0.02-seed4"]


@pytest.fixture(scope="module", autouse=True)
def ray(tmp_path_factory: pytest.TempPathFactory):
    """One Ray for all sweeps of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TESTS))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
        for name in ("RAY_AUTH_MODE", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
            patch.setenv(name, os.environ.get(name, ""))  # put back at the end
            patch.delenv(name)
        compile_once(patch, tmp_path_factory)
        with cluster.connected(None, 2, sweep.sweep_environment(2)) as connected:

            @contextlib.contextmanager
            def the_same(address: str | None, slots: int, added: Any):
                yield connected

            patch.setattr(cluster, "connected", the_same)
            yield connected


@pytest.fixture(scope="module")
def finished(ray: cluster.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that was broken off in its first trainings, and given again."""
    folder = tmp_path_factory.mktemp("sweeps") / "tiny"

    def break_off() -> None:
        files = [folder / name / "metrics.csv" for name in NAMES[:2]]
        while not all(file.is_file() and file.stat().st_size for file in files):  # an episode each, before any update
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=break_off, daemon=True).start()
    with pytest.raises(Interrupted, match="go on with: robot-rl sweep --gym") as stopped:
        sweep.sweep(PLAN, folder)
    assert stopped.value.code == 130
    assert f"--out {folder}" in str(stopped.value) and "--vary agent.polyak=0.005,0.02" in str(stopped.value)
    for name in NAMES[:2]:
        FolderLock(folder / name).release()  # nobody is left writing
        assert checkpoints(folder / name) and not (folder / name / "summary.json").exists()
    assert not any((folder / name).exists() for name in NAMES[2:]) and not (folder / "table.md").exists()

    outcome = sweep.sweep(PLAN, folder)
    assert outcome.failed == [] and outcome.table == (folder / "table.md").read_text()
    return folder


def test_every_training_is_the_one_that_train_alone_gives(finished: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in finished.iterdir() if (path / "run.json").is_file()) == sorted(NAMES)
    training = PLAN.trainings[1]
    assert training.name == NAMES[1] and load(finished / NAMES[1]).agent_config.polyak == 0.02
    train.train(PLAN.run_of(training), tmp_path / "alone")
    assert_same_training(tmp_path / "alone", finished / NAMES[1])  # which was broken off, too
    about = read_json(finished / NAMES[1] / "run.json", "")
    words = f"train --gym tiny_env:Tiny-v0 --agent rlpd --steps 120 --seed 3 --out {finished / NAMES[1]} --set"
    assert about["command"].startswith(f"robot-rl {words}") and about["command"].endswith("agent.polyak=0.02")
    for name in NAMES:
        assert "evaluation 2/2" in (finished / "logs" / f"{name}.log").read_text()


def test_the_table_is_of_the_summaries(finished: Path) -> None:
    lines = [line.strip("| ").split(" | ") for line in (finished / "table.md").read_text().splitlines() if "|" in line]
    assert lines[0][:3] == ["agent.polyak", "seeds", "success %"]
    for value, line in zip(("0.005", "0.02"), lines[2:], strict=True):
        summaries = [read_json(finished / f"polyak={value}-seed{seed}" / "summary.json", "") for seed in (3, 4)]
        assert line[:2] == [value, "2 of 2"]
        assert float(line[2]) == pytest.approx(100 * np.mean([each["success_rate"] for each in summaries]), abs=0.05)
        assert float(line[3]) == pytest.approx(np.mean([each["mean_return"] for each in summaries]), rel=1e-3)


def test_what_is_finished_is_not_done_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_train", lambda *given: pytest.fail("trained"))
    assert sweep.sweep(PLAN, finished).table == (finished / "table.md").read_text()


def test_seeds_may_be_added(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[str] = []
    monkeypatch.setattr(sweep, "_train", lambda work, trainings, at_once: left.extend(t.name for t in trainings) or [])
    table = sweep.sweep(dataclasses.replace(PLAN, seeds=(4, 9)), finished).table
    assert left == ["polyak=0.005-seed9", "polyak=0.02-seed9"] and "| 0.02 | 1 of 2 |" in table
    assert read_json(finished / "sweep.json", "")["plan"]["seeds"] == [4, 9]
    sweep.sweep(PLAN, finished)  # as the other tests want it


def test_what_does_not_fit_is_said_before_anything_starts(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_train", lambda *given: pytest.fail("trained"))
    with pytest.raises(ValueError, match="holds a sweep with steps 120, this one has 50"):
        sweep.sweep(dataclasses.replace(PLAN, steps=50), finished)
    with pytest.raises(ValueError, match=r"with vary agent\.polyak=0\.005,0\.02, this one has none: give the same"):
        sweep.sweep(dataclasses.replace(PLAN, vary=()), finished)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no sweep"):
        sweep.sweep(PLAN, tmp_path)


def test_a_failure_and_a_dead_process_do_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One value cannot be learned with, which only its training finds; another one's process is killed, and goes on."""
    out, begun = tmp_path / "out", list[str]()
    begin = sweep._Work.begin

    def begin_and_kill(work: sweep._Work, worker: Any, training: sweep.Training) -> Any:
        begun.append(training.name)
        if begun.count("constraint=none-seed5") == 1 and training.name == begun[-1]:
            os.kill(work.ray.outcome(worker.where.remote())[1], signal.SIGKILL)
        return begin(work, worker, training)

    monkeypatch.setattr(sweep._Work, "begin", begin_and_kill)
    words = ["--gym", "tiny_env:Tiny-v0", "--seeds", "5", "--steps", "15", "--jobs", "1", "--out", str(out)]
    words += ["--vary", "agent.constraint=none,lagrangian", "--set", *SMALL]
    assert cli.main(["sweep", *words]) == 2
    printed = capsys.readouterr()
    assert "| none | 1 of 1 |" in printed.out and "| lagrangian | 0 of 1 | – |" in printed.out
    assert f"robot-rl runs compare {out}" in printed.err
    last = printed.err.strip().splitlines()[-1]
    log = out / "logs" / "constraint=lagrangian-seed5.log"
    assert last.startswith("robot-rl: error: 1 of 2 failed, the others are safe: constraint=lagrangian-seed5: status 2")
    assert "reports no info['cost']" in last and last.endswith(f"({log})")
    assert begun == ["constraint=none-seed5"] * 2 + ["constraint=lagrangian-seed5"]
    assert len(read_metrics(out / "constraint=none-seed5" / "metrics.csv")) >= 2

    begun.clear()
    monkeypatch.setattr(sweep._Work, "begin", lambda work, worker, training: begun.append(training.name) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["sweep", *words])
    assert begun == ["constraint=lagrangian-seed5"]  # a cause that was mended, or another try


def test_names_are_of_what_is_varied() -> None:
    both = Plan("reach", seeds=(0,), vary=(Varied.parse("agent.utd_ratio=2,4"), Varied.parse("agent.hidden=8,8;16,16")))
    assert [each.name for each in both.trainings] == [
        "utd_ratio=2-hidden=8,8-seed0", "utd_ratio=2-hidden=16,16-seed0",
        "utd_ratio=4-hidden=8,8-seed0", "utd_ratio=4-hidden=16,16-seed0",
    ]  # fmt: skip
    assert both.trainings[1].settings == ("agent.utd_ratio=2", "agent.hidden=16,16")
    assert both.run_of(both.trainings[1]).agent_config.hidden == (16, 16)
    assert str(both.vary[1]) == "agent.hidden=8,8;16,16" and Varied.parse(str(both.vary[1])) == both.vary[1]
    alike = Plan("reach", seeds=(0,), vary=(Varied("agent.x", ("1",)), Varied("task.x", ("2",))))
    assert [each.name for each in alike.trainings] == ["agent.x=1-task.x=2-seed0"]
    assert [each.name for each in Plan("reach", seeds=(0, 7)).trainings] == ["seed0", "seed7"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--task", "rech"], "Did you mean 'reach'"),
        (["--task", "reach", "--gym", "Pendulum-v1"], "either --task"),
        (["--task", "reach", "--seeds", "1", "1"], "each once"),
        (["--task", "reach", "--jobs", "0"], "--jobs 0"),
        (["--task", "reach", "--vary", "agent.utd_ratio=2,two"], "two"),
        (["--task", "reach", "--vary", "agent.utd_ratio=2,,4"], "--vary agent.utd_ratio=2,,4"),
        (["--task", "reach", "--vary", "utd_ratio=2,4"], "section.name=value,value"),
        (["--task", "reach", "--vary", "agent.utd=2,4"], "utd_ratio"),
        (["--task", "reach", "--vary", "agent.utd_ratio=2", "agent.utd_ratio=4"], "given twice"),
        (["--task", "reach", "--vary", "agent.utd_ratio=2", "--set", "agent.utd_ratio=4"], "given twice"),
        (["--task", "reach", "--vary", "train.seed=1,2"], "train.seed is what --seeds says"),
        (["--task", "reach", "--set", "train.steps=10"], "train.steps is what --steps says"),
        (["--task", "reach", "--vary", "task.max_steps=10,0"], "max_steps = 0"),
        (["--gym", "tiny_env:Tny-v0"], "unknown Gymnasium environment"),
    ],
)
def test_a_wrong_choice_is_one_line_and_leaves_nothing(
    args: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sweep", "--out", str(tmp_path / "out"), *args]) == 2
    err = capsys.readouterr().err
    assert err.startswith("robot-rl: error: ") and words in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'robot-rl\[cluster\]'"):
        cluster._import_ray({})
