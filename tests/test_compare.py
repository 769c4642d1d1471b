"""Ways to learn against each other, on the same demonstrations, budget and starts."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from robot_rl import cli, compare, run
from robot_rl.compare import Plan, Training
from robot_rl.log import read_metrics

SMALL = ("rlpd:agent.critics=2", "agent.hidden=16,16", "agent.batch_size=16", "task.max_steps=15")
PLAN = Plan("reach", agents=("rlpd", "bc"), steps=30, seeds=(1,), demos=2, episodes=3, settings=SMALL)


def test_budgets_are_the_same(tmp_path):
    """Environment steps of those that act; of one that does not, the updates that they make in them."""
    plan = dataclasses.replace(PLAN, agents=("bc", "rlpd", "hg_dagger"), settings=("rlpd:agent.utd_ratio=8",))
    bc, rlpd, dagger = (plan.run_of(training, tmp_path) for training in plan.trainings)
    assert (rlpd.train.steps, dagger.train.steps, bc.train.steps) == (30, 30, 240)
    assert rlpd.agent_config.utd_ratio == 8 and dagger.agent_config.utd_ratio == 4 and bc.agent_config.utd_ratio == 1
    assert {each.demos for each in (bc, rlpd, dagger)} == {str((tmp_path / "demos/seed1.zarr").resolve())}
    assert [each.intervention.by for each in (bc, rlpd, dagger)] == ["nobody", "scripted", "scripted"]
    assert {each.train.eval_episodes for each in (bc, rlpd, dagger)} == {3}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"agents": ("bc", "bc")}, "--agents bc bc: give at least one, and each once"),
        ({"steps": 0}, "--steps 0"),
        ({"by": "spacemouse"}, "a person would not do the same twice"),
        ({"settings": ("sac:agent.utd_ratio=2",)}, "'sac' is none of the agents rlpd, bc"),
        ({"settings": ("bc:train.seed=3",)}, "sets this itself"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        dataclasses.replace(PLAN, **change)


def written(folder: Path) -> dict[Path, int]:
    """When each file was."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("table.md", ".lock"))
    return {path: path.stat().st_mtime_ns for path in files}


def test_a_comparison_from_the_command_line(tmp_path, capsys):
    """Everything that it promises, and what is finished is found again."""
    out = tmp_path / "compared"
    words = ["compare", "--task", "reach", "--out", str(out), "--agents", *PLAN.agents, "--steps", "30", "--seeds", "1"]
    words += ["--demos", "2", "--episodes", "3", "--set", *SMALL]
    assert cli.main(words) == 0
    table = capsys.readouterr().out
    assert table == (out / "table.md").read_text()
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in table.splitlines() if line.count("|") == 9}
    assert list(rows)[2:] == ["demonstrator", "rlpd", "bc"]
    for name in ("rlpd", "bc"):
        folder = out / "runs" / Training(name, 1).name
        chosen, summary = run.load(folder), json.loads((folder / "summary.json").read_text())
        assert run.configs(chosen) == run.configs(PLAN.run_of(Training(name, 1), out))
        assert summary["demo_episodes"] == 2 and summary["eval_episodes"] == 3
        assert rows[name][0].strip() == f"{round(3 * summary['success_rate'])}/3"
        assert rows[name][5].strip() == str(summary["updates"])
    assert int(read_metrics(out / "runs/rlpd-seed1/metrics.csv")[-1]["env_steps"]) >= 30  # to the end of the episode
    expert = json.loads((out / "demonstrator/seed1.json").read_text())
    assert rows["demonstrator"][0].strip() == f"{expert['successes']}/3"
    before = written(out)
    assert cli.main(words) == 0 and capsys.readouterr().out == table
    assert written(out) == before
    with pytest.raises(ValueError, match=r"holds a comparison with steps 30, this one has 40"):
        compare.compare(dataclasses.replace(PLAN, steps=40), out)
    assert Path(out / "logs/rlpd-seed1.log").is_file()
