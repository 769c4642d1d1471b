"""``robot-rl runs``: what is read from run folders, how they are grouped, and what the tables say."""

from __future__ import annotations

import csv
import dataclasses
import fcntl
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from robot_rl import cli, comparison, files, runs
from robot_rl.files import FolderLock, is_locked, write_json
from robot_rl.log import MetricsLog

HEADER = ("name", "task", "arm", "agent", "seed", "steps", "state", "success", "final", "min", "when")
STEPS = 200  # of the invented runs; an episode is 10


def make_run(
    folder: Path,
    seed: int = 0,
    learned: int = 10,
    final: float | None = 0.9,
    agent: str = "rlpd",
    episodes: int = STEPS // 10,
    **settings: Any,
) -> Path:
    """A run folder as ``train`` leaves it, which succeeds from episode ``learned`` on; no summary without ``final``."""
    folder.mkdir(parents=True)
    values = {"agent.utd_ratio": 4, "agent.demo_share": 0.5, "train.steps": STEPS, "train.seed": seed}
    values |= {"train.window": 5, "task.max_steps": 10, "arm.speed": 1.0}
    values |= {name.replace("__", "."): value for name, value in settings.items() if "__" in name}
    configs: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        configs.setdefault(section, {})[key] = value
    about = {"format": 1, "task": "reach", "arm": "panda", "world": "sim", "agent": agent, "seed": seed, "demos": None}
    about |= {"settings": [], "created": f"2026-11-2{seed % 10}T10:00:00+00:00", "git_commit": "abc"}
    about |= {name: value for name, value in settings.items() if "__" not in name}
    write_json(folder / "run.json", about | {"configs": configs})
    with MetricsLog(folder, "env_steps", tracker="none") as log:
        for episode in range(episodes):
            success = int(episode >= learned)
            row = {"env_steps": 10 * (episode + 1), "updates": 40 * episode, "return": float(success)}
            log.row(row | {"success": success, "success_rate": float(success), "wall_s": 6.0 * (episode + 1)})
    if final is not None:
        outcome = {"success_rate": final, "success_interval": [final / 2, 1.0], "eval_episodes": 20}
        write_json(folder / "summary.json", outcome | {"mean_return": final, "env_steps": STEPS, "wall_s": 180.0})
    return folder


def robot_rl(capsys: pytest.CaptureFixture[str], *words: object, status: int = 0) -> tuple[str, str]:
    assert cli.main(["runs", *map(str, words)]) == status
    return capsys.readouterr()


# ---------------------------------------------------------------------------------------------------------------------
# List


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """Runs in every state, at two depths."""
    folder = tmp_path / "shelf"
    make_run(folder / "run-2", seed=2)
    make_run(folder / "run-10", seed=10, episodes=7, final=None)
    make_run(folder / "sweep/a", seed=1, episodes=20, final=None)
    extended = make_run(folder / "sweep/b", seed=3, train__steps=2 * STEPS)  # by --resume --steps, and broken off
    (extended / "checkpoints/000000200").mkdir(parents=True)
    (extended / "checkpoints/run.json").write_text("not looked at")
    for name, text in {"cut": '{"format": 1, "ta', "empty": "{}", "list": "[]"}.items():
        (folder / name).mkdir()
        (folder / name / "run.json").write_text(text)
    (make_run(folder / "metrics") / "metrics.csv").write_text("env_steps,return\n10,half\n")
    (make_run(folder / "summary") / "summary.json").write_bytes(b"\xff\x00")
    (make_run(folder / "words") / "summary.json").write_text('{"success_rate": "high"}')
    (make_run(folder / "binary") / "metrics.csv").write_bytes(b"env_steps\n\x00\n")
    return folder


def test_every_run_is_listed_in_its_state(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = FolderLock(shelf / "sweep/a")
    try:
        out, _ = robot_rl(capsys, "list", shelf, "--json")
    finally:
        lock.release()
    found = {(one := json.loads(line))["name"]: one for line in out.splitlines()}
    states = {name: one["state"] for name, one in found.items()}
    damaged = dict.fromkeys(("cut", "empty", "list", "metrics", "summary", "words", "binary"), "damaged")
    assert states == damaged | {
        "run-2": "finished", "run-10": "interrupted", "sweep/a": "running", "sweep/b": "interrupted",
    }  # fmt: skip
    assert [name for name in found if name.startswith("run")] == ["run-2", "run-10"]
    one = found["run-2"]
    assert (one["task"], one["arm"], one["agent"], one["seed"]) == ("reach", "panda", "rlpd", 2)
    assert (one["steps"], one["planned_steps"], one["success_rate"], one["minutes"]) == (200, 200, 1.0, 3.0)
    assert (one["final_success"], one["final_success_low"], one["final_success_high"]) == (0.9, 0.45, 1.0)
    assert found["run-10"]["steps"] == 70 and found["run-10"]["minutes"] == pytest.approx(0.7)
    assert found["sweep/b"]["final_success"] is None  # what is there is of an earlier end
    problems = {name: one["problem"] for name, one in found.items() if one["problem"]}
    for name, words in {
        "cut": "run.json is damaged", "empty": "damaged (no format)", "list": "not a JSON object",
        "metrics": "metrics.csv, line 2: return is 'half'", "summary": "summary.json is damaged",
        "words": "words is damaged (ValueError(", "binary": "binary",
    }.items():  # fmt: skip
        assert words in problems.pop(name)
    assert not problems


def test_the_table_is_plain_and_fits(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(shelf.rglob("*"))
    out, err = robot_rl(capsys, "list", shelf)
    assert set(shelf.rglob("*")) == before  # looking leaves nothing behind
    table, said = out.split("damaged: ", 1)
    lines = table.splitlines()
    assert lines[0].split() == list(HEADER)
    row = next(line for line in lines if line.startswith("run-2"))
    assert row.split()[:7] == ["run-2", "reach", "panda", "rlpd", "2", "200/200", "finished"]
    assert "90 % (45-100)" in row and "\x1b" not in out and err == ""
    assert max(map(len, lines)) <= 100 and said.count("damaged: ") == 6


def test_where_there_is_nothing_the_remedy_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = robot_rl(capsys, "list", tmp_path / "none", status=2)
    assert "none is not a folder" in err
    _, err = robot_rl(capsys, "list", tmp_path, status=2)
    assert "robot-rl train --task reach --out" in err
    _, err = robot_rl(capsys, "compare", status=2)
    assert "give run folders" in err


def test_a_run_listed_twice_is_one(shelf: Path) -> None:
    assert len(runs.find([shelf, shelf / "run-2", shelf / "sweep"])) == len(runs.find([shelf])) == 11


def test_keys_and_configs_of_other_versions_are_tolerated(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", agent="td9", actors=4, link__address="tcp://10.0.0.1", train__new_one=3)
    with MetricsLog(folder, "env_steps", STEPS, "none") as log:
        log.row({"env_steps": 210, "updates": 900, "success_rate": None, "policy_age_s": 0.5})  # no episode in it
    record = runs.read(folder)
    assert record.problem is None and record.state == "finished" and record.steps == 210
    assert record.success_rate == 1.0 and record.settings["train.tracker"] == "tensorboard"
    assert record.steps_to(0.95) == 150 and len(record.curve("success")[0]) == 20


def test_a_look_does_not_take_the_lock(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    lock = FolderLock(tmp_path)
    assert is_locked(tmp_path)
    code = "import pathlib, sys; from robot_rl import files; print(files.is_locked(pathlib.Path(sys.argv[1])))"
    other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert other.stdout.strip() == "True", other.stderr
    lock.release()
    assert not is_locked(tmp_path)
    FolderLock(tmp_path).release()


def test_a_look_does_not_keep_a_training_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looking = open(tmp_path / ".lock", "w")  # noqa: SIM115
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr(files.time, "sleep", lambda _: looking.close())  # the look ends while the lock is waited for
    FolderLock(tmp_path).release()
    assert looking.closed


# ---------------------------------------------------------------------------------------------------------------------
# Groups


def groups(*folders: Path, pool: bool = False) -> list[str]:
    return runs.labels(runs.find(folders), pool)


def test_runs_are_named_by_what_differs_apart_from_the_seed(tmp_path: Path) -> None:
    a = [make_run(tmp_path / f"a{seed}", seed) for seed in (0, 1)]
    assert groups(*a) == ["rlpd", "rlpd"]
    b = make_run(tmp_path / "b", agent__utd_ratio=8)
    assert groups(*a, b) == ["rlpd agent.utd_ratio=4"] * 2 + ["rlpd agent.utd_ratio=8"]
    sac = make_run(tmp_path / "sac", agent="sac", agent__utd_ratio=1, agent__own=3)
    assert groups(*a, sac) == ["rlpd", "rlpd", "sac"]  # that their defaults differ is in the name
    assert groups(a[0], sac, b)[1] == "sac"
    ur5e = make_run(tmp_path / "ur5e", arm="ur5e", arm__speed=2.0)
    assert groups(*a, ur5e) == ["panda rlpd", "panda rlpd", "ur5e rlpd"]
    assert groups(*a, ur5e, pool=True) == ["rlpd"] * 3
    longer = make_run(tmp_path / "long", agent="sac", train__steps=400)
    assert groups(a[0], longer) == ["rlpd train.steps=200", "sac train.steps=400"]


def test_what_is_no_difference_makes_no_group(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", 0, demos="/demos/seed0.zarr")
    b = make_run(tmp_path / "b", 1, demos="/demos/seed1.zarr", train__tracker="wandb", train__checkpoint_every=7)
    older = make_run(tmp_path / "c", 2, demos="/demos/seed2.zarr", agent__newer=1)  # the others do not know the setting
    assert groups(a, b, older) == ["rlpd"] * 3
    other = make_run(tmp_path / "d", 0, demos="/other/seed0.zarr")
    assert groups(a, other) == ["rlpd demos=/demos/seed*.zarr", "rlpd demos=/other/seed*.zarr"]
    linked = make_run(tmp_path / "e", 0, demos="/demos/seed0.zarr", link__actors=2)
    assert groups(a, linked) == ["rlpd", "rlpd with link"]


# ---------------------------------------------------------------------------------------------------------------------
# Compare


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Seeds 0, 1, 2 of one setting and 1, 2, 5 of another."""
    for seed, final in {0: 0.5, 1: 0.7, 2: 0.9}.items():
        make_run(tmp_path / f"two/a{seed}", seed, 10, final)
    for seed, final in {1: 0.8, 2: 1.0, 5: 0.9}.items():
        make_run(tmp_path / f"two/b{seed}", seed, 99 if seed == 5 else 6, final, agent__utd_ratio=8)
    return tmp_path / "two"


def rows_of(text: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["measure"], row["group"][-1]): row for row in json.loads(text)["rows"]}


def test_a_comparison_by_hand(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, _ = robot_rl(capsys, "compare", two, "--json")
    rows, notes = rows_of(text), json.loads(text)["notes"]
    a, b = rows["final_success", "4"], rows["final_success", "8"]
    assert (a["n"], a["mean"], a["iqm"], a["pairs"], a["difference"]) == (
        3,
        pytest.approx(0.7),
        pytest.approx(0.7),
        0,
        None,
    )
    assert 0.5 <= a["iqm_low"] < 0.7 < a["iqm_high"] <= 0.9
    assert b["pairs"] == 2 and b["difference"] == pytest.approx(0.1)
    assert (b["difference_low"], b["difference_high"]) == (pytest.approx(0.1), pytest.approx(0.1))
    assert b["p_improvement"] == pytest.approx((2 + 3 + 2.5) / 9)  # 0.8, 1.0, 0.9 against 0.5, 0.7, 0.9
    # 5 of 5 successes: episode 15 from 10 on, 11 from 6 on; 4 of 5: one earlier; seed 5 of b never learned.
    assert rows["steps_to_95", "4"]["mean"] == 150 and rows["steps_to_80", "4"]["mean"] == 140
    late = rows["steps_to_95", "8"]
    assert (late["n"], late["never"], late["mean"], late["iqm_high"]) == (3, 1, None, None)
    assert late["pairs"] == 2 and late["difference"] == -40 and late["p_improvement"] == pytest.approx(2 / 3)
    # Rolling over 5: 0.2, 0.4, 0.6, 0.8 and then 1; ten steps each, of 200.
    assert rows["success_area", "4"]["mean"] == pytest.approx((2 + 6) / 20)
    assert rows["success_area", "8"]["mean"] == pytest.approx(2 / 3 * (2 + 10) / 20)
    said = " ".join(notes)
    assert "no partner in 'rlpd agent.utd_ratio=8' for seed 0 of 'rlpd agent.utd_ratio=4'" in said
    assert "no partner in 'rlpd agent.utd_ratio=4' for seed 5" in said and "too narrow" in said
    assert robot_rl(capsys, "compare", two, "--json")[0] == text  # the same numbers each time


def test_the_tables_of_a_comparison(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = robot_rl(capsys, "compare", two)
    assert out.startswith("6 runs, task reach, arm panda, world sim\n") and err == ""
    block = out.partition("final success rate (higher is better)\n")[2].splitlines()
    assert block[1].split() == ["rlpd", "agent.utd_ratio=4", "3", "70.0", "%", "70.0", "%", *block[1].split()[-2:]]
    assert "+10.0 %" in block[2] and "[+10.0, +10.0]" in block[2] and " 0.83 [" in block[2]
    assert "3 (1 never)" in out and "-40" in out
    assert max(map(len, out.partition("\nnote")[0].splitlines())) <= 120


def test_one_seed_has_no_interval(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, _ = robot_rl(capsys, "compare", two / "a1", two / "b1", "--json")
    for row in json.loads(text)["rows"]:
        assert row["n"] == 1
        assert row["iqm_low"] is row["difference_low"] is row["p_improvement_low"] is None
    assert "has one run: no interval can be given" in text
    table, _ = robot_rl(capsys, "compare", two / "a1")
    assert "difference" not in table and "[" not in table and table.startswith("1 run, ")


def test_a_seed_twice_is_one_sample(two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "again/a0", 0, 10, None, episodes=5)
    text, _ = robot_rl(capsys, "compare", two, tmp_path / "again", "--json")
    assert rows_of(text)["final_success", "4"]["n"] == 3 and "seed 0 is twice in 'rlpd agent.utd_ratio=4'" in text
    folders, _ = robot_rl(capsys, "compare", two, tmp_path / "again", "--by", "folder", "--json")
    assert {row["group"] for row in json.loads(folders)["rows"]} == {str(two), str(tmp_path / "again")}
    assert "not finished, so without what comes at the end" in folders


def test_damaged_and_unfinished_runs_do_not_end_a_comparison(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, _ = robot_rl(capsys, "compare", shelf, "--json")
    assert text.count("left out, damaged") == 7
    _, err = robot_rl(capsys, "compare", shelf / "cut", status=2)
    assert "no run to compare" in err and "run.json is damaged" in err


def test_pooled_tasks_are_strata(tmp_path: Path) -> None:
    for task, base in {"reach": 0.2, "maze": 0.8}.items():
        for agent, gain in {"rlpd": 0.1, "sac": 0.0}.items():
            for seed in (0, 1):
                make_run(tmp_path / f"{task}/{agent}{seed}", seed, final=base + gain, agent=agent, task=task)
    records = runs.find([tmp_path / "reach", tmp_path / "maze"])
    apart = comparison.compare(records)
    assert {line.group for line in apart.lines} == {"reach rlpd", "reach sac", "maze rlpd", "maze sac"}
    pooled = {line.group: line.row() for line in comparison.compare(records, pool=True).lines[:2]}
    assert pooled["rlpd"]["n"] == 4 and pooled["rlpd"]["mean"] == pytest.approx(0.6)
    # Seeds agree within each task: resampled within tasks, nothing varies.
    assert pooled["rlpd"]["iqm_low"] == pytest.approx(0.6) == pooled["rlpd"]["iqm_high"]
    assert pooled["sac"]["difference"] == pytest.approx(-0.1) and pooled["sac"]["pairs"] == 4
    assert pooled["sac"]["p_improvement"] == 0.0
    lone = comparison.compare(records[:-2], pool=True)
    assert "'rlpd' and 'sac' are not of the same tasks and arms" in lone.notes


def test_runs_that_do_not_tell_success_are_compared_by_return(tmp_path: Path) -> None:
    record = runs.read(make_run(tmp_path / "a"))
    columns = {name: values for name, values in record.columns.items() if name not in ("success", "success_rate")}
    silent = dataclasses.replace(record, columns=columns, final_success=None, final_interval=None)
    told = [measure.name for measure, _ in comparison.compare([silent]).measures()]
    assert told == ["final_return", "return_area"]
    offline = dataclasses.replace(record, settings={**record.settings, "agent.demo_share": 1.0})
    assert [measure.name for measure, _ in comparison.compare([offline]).measures()] == [
        "final_success",
        "final_return",
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Export


def table_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_a_run(two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = robot_rl(capsys, "export", two, "--out", tmp_path / "runs.csv")
    assert out.strip() == str(tmp_path / "runs.csv") and err == "6 rows of 6 runs\n"
    rows = table_of(tmp_path / "runs.csv")
    assert [(row["name"], row["seed"], row["agent.utd_ratio"]) for row in rows[2:4]] == [
        ("a2", "2", "4"),
        ("b1", "1", "8"),
    ]
    assert rows[0]["final_success"] == "0.5" and rows[0]["steps_to_95"] == "150" and rows[0]["success_area"] == "0.4"
    assert rows[5]["steps_to_95"] == "inf" and "task.max_steps" not in rows[0]
    robot_rl(capsys, "export", two, "--out", tmp_path / "all.csv", "--all")
    assert table_of(tmp_path / "all.csv")[0]["task.max_steps"] == "10"


def test_one_row_a_row_of_metrics(shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = robot_rl(capsys, "export", shelf, "--curves", "--out", tmp_path / "curves.csv")
    assert err.count("left out, damaged") == 7 and err.endswith("67 rows of 4 runs\n")
    rows = [row for row in table_of(tmp_path / "curves.csv") if row["name"] == "run-10"]
    assert [row["env_steps"] for row in rows] == [str(10 * (index + 1)) for index in range(7)]
    assert {row["seed"] for row in rows} == {"10"} and rows[0]["success"] == "0"


def test_a_file_that_exists_is_left_alone(two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept.csv").write_text("mine")
    for words in (["export", two, "--out", tmp_path / "kept.csv"], ["compare", two, "--csv", tmp_path / "kept.csv"]):
        assert "exists: give another file" in robot_rl(capsys, *words, status=2)[1]
    assert (tmp_path / "kept.csv").read_text() == "mine"
    assert "ends in .csv" in robot_rl(capsys, "export", two, "--out", tmp_path / "x.xls", status=2)[1]
    assert "make the folder" in robot_rl(capsys, "export", two, "--out", tmp_path / "no/x.csv", status=2)[1]
    robot_rl(capsys, "compare", two, "--csv", tmp_path / "new.csv")
    rows = table_of(tmp_path / "new.csv")
    assert len(rows) == 10 and rows[0]["measure"] == "final_success" and rows[7]["mean"] == "inf"
