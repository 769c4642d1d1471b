from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest

from robot_rl import children, cli, evaluate, run, study
from robot_rl.children import Job, run_jobs
from robot_rl.files import FolderLock, read_json, write_json
from robot_rl.interrupt import Interrupted, StopSignals
from robot_rl.store import EpisodeReader

# One way to train, so that it takes seconds; how many there are is data.
PLAN = study.Plan(
    task="reach",
    steps=40,
    budget_j=0.2,
    seeds=(0,),
    episodes=2,
    settings=(
        "agent.hidden=8,8", "agent.utd_ratio=1", "agent.learning_starts=25", "train.demo_episodes=2",
        "task.max_steps=20",
    ),
    variants=(study.Variant("plain", ("agent.polyak=0.01",)),),
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was broken off in its first trainings, and given again."""
    folder = tmp_path_factory.mktemp("studies") / "tiny"

    def break_off() -> None:
        while not list(folder.glob("runs/*/run.json")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=break_off, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:  # children of the same shapes need not compile each for itself
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder.parent / "compiled"))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        with pytest.raises(Interrupted, match="go on with: robot-rl study passivity --out") as stopped:
            study.study(PLAN, folder)
        assert stopped.value.code == 130
        words = str(stopped.value).partition("robot-rl study passivity ")[2]
        assert f"--out {folder} --task reach" in words and "--seeds 0" in words and "task.max_steps=20" in words
        assert not list(folder.glob("cells/*")) and not (folder / "table.md").exists()
        for path in folder.glob("runs/*"):
            FolderLock(path).release()  # nobody is left writing
        study.study(PLAN, folder)
    return folder


def test_every_cell_is_there_and_is_what_the_policy_does(finished: Path) -> None:
    """Cells hold what evaluating the run in this process gives, with the filter switched as they say."""
    result = read_json(finished / "study.json", "")
    assert [(cell["trained"], cell["deployed"]) for cell in result["cells"]] == [
        ("off", "off"), ("off", "on"), ("on", "off"), ("on", "on"),
    ]  # fmt: skip
    trained = finished / "runs/plain-filter_on-seed0"
    for cell in result["cells"][2:]:
        setting = study.FILTER[cell["deployed"]]
        _, env, encoder, agent = run.load_agent(trained, settings=[setting])
        here = evaluate.evaluate(env, agent, encoder, 2, study.EVAL_SEED, sample=True)
        env.close()
        assert here.energy is not None
        numbers = cell["seeds"]["0"]
        assert numbers["mean_length"] == here.mean_length
        for name in ("free_min_j", "work_j", "intervened_ticks", "negative_ticks"):
            assert numbers[name] == pytest.approx(here.energy[name], rel=1e-3, abs=1e-4)
    by_deployment = {cell["deployed"]: cell["mean"] for cell in result["cells"][2:]}
    assert by_deployment["on"]["negative_episodes"] == 0.0 and by_deployment["off"]["intervened_ticks"] == 0.0


def test_trainings_differ_in_the_filter_and_share_their_demonstrations(finished: Path) -> None:
    runs = [run.load(path) for path in sorted((finished / "runs").iterdir())]
    assert len(runs) == 2 and {each.demos for each in runs} == {str((finished / "demos/seed0.zarr").resolve())}
    assert len(EpisodeReader(finished / "demos/seed0.zarr")) == 2
    assert ["energy.enforce=False" in each.settings for each in runs] == [True, False]
    assert all(each.agent_config.polyak == 0.01 and each.train.steps == 40 for each in runs)
    result = read_json(finished / "study.json", "")
    for training in result["trainings"]:
        rows = study.read_metrics(finished / "runs" / f"plain-filter_{training['trained']}-seed0" / "metrics.csv")
        free_j = np.array([float(row["energy_free_min_j"]) for row in rows])
        numbers = training["seeds"]["0"]
        assert numbers["episodes"] == len(rows) and numbers["free_min_j"] == free_j.min()
        assert numbers["negative_episodes"] == np.mean(free_j < 0.0)
    assert result["trainings"][1]["mean"]["negative_episodes"] == 0.0  # the filter was on


def test_the_table_is_recomputed_from_the_cells(finished: Path) -> None:
    rows = [line.strip("| \n").split(" | ") for line in (finished / "table.md").read_text().splitlines() if "|" in line]
    titles, body = rows[0], rows[2:6]
    for row in body:
        told = dict(zip(titles, row, strict=True))
        name = f"plain-filter_{told['filter in training']}-seed0-deployed_{told['filter in deployment']}"
        cell = json.loads((finished / "cells" / f"{name}.json").read_text())
        assert float(told["success %"]) == pytest.approx(100 * cell["success_rate"], abs=0.05)
        assert float(told["steps"]) == pytest.approx(cell["mean_length"], abs=0.05)
        assert float(told["episodes E<0 %"]) == pytest.approx(100 * cell["energy"]["negative_episodes"], abs=0.05)
        assert float(told["least E, J"]) == pytest.approx(cell["energy"]["free_min_mean_j"], abs=5e-4)
        assert float(told["delivered, J"]) == pytest.approx(cell["energy"]["work_j"], abs=5e-4)
    for name in ("deployment", "energy", "training"):
        assert imageio.imread(finished / f"{name}.png").std() > 5


def test_means_are_over_seeds_and_unknown_where_one_is() -> None:
    assert study.mean([{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": None}]) == {"a": 2.0, "b": None}


def test_what_is_finished_is_not_done_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(children, "start", lambda job, added: started.append(job.name))
    before = (finished / "table.md").read_text()
    assert study.study(PLAN, finished) == before and started == []


def test_what_does_not_fit_is_said_before_anything_starts(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "start", lambda job, added: pytest.fail("started"))
    other = dataclasses.replace(PLAN, steps=50)
    with pytest.raises(ValueError, match="holds a study with steps 40, this one has 50"):
        study.study(other, finished)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no study"):
        study.study(PLAN, tmp_path)

    cell = finished / "cells/plain-filter_off-seed0-deployed_on.json"
    whole = cell.read_bytes()
    cell.write_bytes(whole[:40])
    with pytest.raises(ValueError, match=r"deployed_on\.json is damaged .* delete it"):
        study.study(PLAN, finished)
    cell.write_bytes(whole)

    about = finished / "runs/plain-filter_on-seed0/run.json"
    values = read_json(about, "")
    write_json(about, values | {"configs": values["configs"] | {"energy": {}}})
    with pytest.raises(ValueError, match=r"plain-filter_on-seed0 was trained otherwise \(its energy differs\)"):
        study.study(PLAN, finished)
    about.unlink()
    with pytest.raises(ValueError, match="is a broken run"):
        study.study(PLAN, finished)
    write_json(about, values)
    assert study.study(PLAN, finished)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "rech"}, "Did you mean 'reach'"),
        ({"agent": "rldp"}, "Did you mean 'rlpd'"),
        ({"steps": 0}, "steps = 0"),
        ({"settings": ("energy.budget=1",)}, "Did you mean 'budget_j'"),
        ({"variants": (study.Variant("odd", ("agent.polyak=2",)),)}, "polyak = 2"),
    ],
)
def test_a_wrong_name_or_setting_leaves_nothing(changes: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, LookupError), match=words):
        study.study(dataclasses.replace(PLAN, **changes), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--seeds", "1", "1"], "each once"),
        (["--episodes", "0"], "--episodes 0"),
        (["--jobs", "0"], "--jobs 0"),
        (["--set", "energy.enforce=true"], "the study sets this itself"),
        (["--set", "agent.constraint=none"], "the study sets this itself"),
    ],
)
def test_a_wrong_choice_is_one_line(
    args: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["study", "passivity", "--out", str(tmp_path / "out"), "--task", "reach", *args]) == 2
    err = capsys.readouterr().err
    assert err.startswith("robot-rl: error: ") and words in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_one_failure_does_not_stop_the_others(tmp_path: Path) -> None:
    bad = Job("bad", ("train", "--task", "rech"), tmp_path / "bad.log")
    good = Job("good", ("tasks",), tmp_path / "good.log")
    told: list[int] = []
    with (
        StopSignals(lambda text: None) as stop,
        pytest.raises(RuntimeError, match=r"1 of 2 failed.*bad: .*'reach'.*bad\.log"),
    ):
        run_jobs([bad, good], 1, {}, stop, lambda finished, running: told.append(finished))
    assert "reach" in good.log.read_text() and told[-1] == 1


def test_side_by_side_each_gets_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    assert children.environment(1) == {}
    added = children.environment(2)
    assert added["OPENBLAS_NUM_THREADS"] == "1" and added["XLA_FLAGS"].split()[0] == "--xla_dump_to=x"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_a_killed_study_leaves_no_process_behind(tmp_path: Path) -> None:
    out = tmp_path / "demos.zarr"
    args = ("demo", "record", "--task", "reach", "--out", str(out), "--episodes", "100000")
    log = tmp_path / "log"
    code = (
        "from pathlib import Path; from robot_rl.children import *\n"
        f"with StopSignals(print) as stop: run_jobs([Job('a', {args!r}, Path({str(log)!r}))], 1, {{}}, stop)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    while not (log.exists() and "demonstrations" in log.read_text()):  # its first line tells of finished ones
        assert parent.poll() is None
        time.sleep(0.01)
    with pytest.raises(BlockingIOError):
        FolderLock(out)
    parent.kill()
    parent.wait()
    for _ in range(3000):
        try:
            FolderLock(out).release()
            return
        except BlockingIOError:
            time.sleep(0.01)
    pytest.fail("the child goes on without its parent")
