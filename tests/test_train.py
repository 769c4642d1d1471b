from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from robot_rl import checkpoint, gym_envs, run, train
from robot_rl.evaluate import evaluate, wilson
from robot_rl.interrupt import StopSignals
from robot_rl.log import WALL_CLOCK, MetricsLog, Progress, clock, read_columns, read_metrics
from robot_rl.replay import ReplayBuffer
from robot_rl.run import TrainConfig, choose
from robot_rl.store import EpisodeReader

TESTS = Path(__file__).parent
SMALL = ["hidden=16,16", "batch_size=16", "utd_ratio=2"]
SETTINGS = {
    "rlpd": [*SMALL, "critics=3", "learning_starts=20"],
    "sac": [*SMALL, "start_steps=40", "learning_starts=40"],
    "bc": SMALL,
    "hg_dagger": [*SMALL, "pretrain_updates=101"],
}
TRAIN = {"eval_episodes": 5, "checkpoint_every": 60, "demo_episodes": 4, "window": 5, "log_every": 50}


@pytest.fixture(autouse=True)
def _tiny_env_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TESTS))


def tiny(agent: str = "rlpd", env: str = "Tiny-v0", demos: str | None = None, **changes: Any) -> run.Run:
    config = TrainConfig(**{"steps": 150, "seed": 3} | TRAIN | changes)
    return choose(f"tiny_env:{env}", "", "gym", agent, config, [f"agent.{text}" for text in SETTINGS[agent]], demos)


def rows(folder: Path) -> list[dict[str, str]]:
    """The metrics without the columns that tell the time."""
    return [{k: v for k, v in row.items() if k not in WALL_CLOCK} for row in read_metrics(folder / "metrics.csv")]


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """Everything numeric in the newest checkpoint."""
    chosen = run.load(folder)
    env = run.make_env(chosen)
    _, agent = run.make_agent(chosen, env)
    agent = checkpoint.load(run.newest(folder) / "agent.ckpt", agent)
    leaves = {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in jax.tree.leaves_with_path(agent)}
    with np.load(run.newest(folder) / "replay.npz") as replay:
        return leaves | {f"replay {name}": replay[name] for name in replay.files}


def assert_same_training(a: Path, b: Path) -> None:
    assert rows(a) == rows(b)
    left, right = arrays(a), arrays(b)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
    metadata = [checkpoint.load_metadata(run.newest(folder) / "agent.ckpt") for folder in (a, b)]
    for values in metadata:
        values["counters"]["wall_s"] = values["counters"]["train_s"] = 0.0
    assert metadata[0] == metadata[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of rlpd, trained without a break."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TESTS))
        train.train(tiny(steps=200), folder)
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# What a run leaves


def test_a_run_tells_everything(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["env_steps"] >= 200 and summary["eval_episodes"] == 5 and summary["seed"] == 3
    assert 0.0 <= summary["success_rate"] <= 1.0 and summary["mean_return"] == summary["success_rate"]
    assert summary["wall_s"] > 0 and summary["env_steps_per_s"] > 0 and summary["updates_per_s"] > 0
    about = json.loads((finished / "run.json").read_text())
    assert about["seed"] == 3 and about["configs"]["agent"]["utd_ratio"] == 2 and about["versions"]["numpy"]
    columns = read_columns(finished / "metrics.csv")
    assert columns["episodes"] == list(range(1, len(columns["episodes"]) + 1))
    assert columns["env_steps"] == np.cumsum(columns["length"]).tolist()
    assert columns["success"] == columns["return"]  # this environment pays 1 for a success
    np.testing.assert_allclose(columns["success_rate"][-1], np.mean(columns["success"][-5:]))
    # Two updates a step once 20 steps are there: an update of a step is made from the transitions before it.
    assert columns["updates"][-1] == 2 * (columns["env_steps"][-1] - 20)
    assert [path.name for path in run.checkpoints(finished)] == sorted(path.name for path in run.checkpoints(finished))
    assert len(run.checkpoints(finished)) == 2
    assert list((finished / "tensorboard").glob("events.*"))


def test_only_successful_demonstrations_are_recorded(finished: Path) -> None:
    reader = EpisodeReader(finished / "demos.zarr")
    assert len(reader) == 4 and all(episode.succeeded for episode in reader)
    assert json.loads((finished / "summary.json").read_text())["demo_episodes"] == 4


def test_the_same_seed_gives_the_same_numbers_and_another_others(finished: Path, tmp_path: Path) -> None:
    train.train(tiny(steps=200), tmp_path / "same")
    assert_same_training(finished, tmp_path / "same")
    train.train(tiny(steps=60, seed=4), tmp_path / "other")
    assert rows(tmp_path / "other")[:3] != rows(finished)[:3]


@pytest.mark.parametrize("agent", ["sac", "bc"])
def test_resuming_gives_the_same_numbers(agent: str, tmp_path: Path) -> None:
    train.train(tiny(agent, steps=150, eval_every=50, eval_every_episodes=2), tmp_path / "whole")
    train.train(tiny(agent, steps=70, eval_every=50, eval_every_episodes=2), tmp_path / "parts")
    train.resume(tmp_path / "parts", steps=150)
    assert_same_training(tmp_path / "whole", tmp_path / "parts")
    assert run.load(tmp_path / "parts") == run.load(tmp_path / "whole")
    told = [row["eval_success_rate"] for row in rows(tmp_path / "whole") if row.get("eval_success_rate")]
    assert len(told) >= 2


def test_offline_learning_leaves_the_environment_alone(tmp_path: Path, finished: Path) -> None:
    summary = train.train(tiny("bc", steps=120, demos=str(finished / "demos.zarr")), tmp_path / "bc")
    assert summary["env_steps"] == 0 and summary["updates"] == 150 and summary["success_rate"] is not None
    assert not (tmp_path / "bc/demos.zarr").exists()
    assert [row["updates"] for row in rows(tmp_path / "bc")] == ["50", "100", "150"]


def test_an_environment_that_does_not_tell_success(tmp_path: Path) -> None:
    summary = train.train(tiny("sac", "TinySilent-v0", steps=60), tmp_path / "run")
    assert summary["success_rate"] is None and summary["success_interval"] is None
    assert summary["mean_return"] is not None
    assert {row["success"] for row in rows(tmp_path / "run")} == {""}


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong


def start(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "robot_rl.cli", "train", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def test_kill_9_and_ctrl_c_cost_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed, resumed, interrupted, resumed to the end: as if it had never been disturbed."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    whole = tiny(steps=1000, checkpoint_every=80, eval_episodes=0)
    train.train(whole, tmp_path / "whole")
    folder = tmp_path / "broken"
    run.create(folder, whole)

    process = start("--resume", str(folder))
    wait_for(lambda: run.checkpoints(folder), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    at_kill = int(run.newest(folder).name)
    assert at_kill < 1000

    process = start("--resume", str(folder))
    wait_for(lambda: int(run.newest(folder).name) > at_kill, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130 and "Stopping after this episode" in err
    assert f"robot-rl train --resume {folder}" in err and out == ""
    assert at_kill < int(run.newest(folder).name) < 1000
    assert not (folder / "summary.json").exists()

    train.resume(folder)
    assert_same_training(tmp_path / "whole", folder)
    assert not list(folder.rglob("*.tmp"))


def test_the_first_signal_is_noted_and_the_second_acts() -> None:
    said: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals(said.append) as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert said == []  # a handler that prints may interrupt a print
        assert stop() and stop() and stop.signum == signal.SIGTERM and len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_two_trainings_do_not_share_a_folder(finished: Path) -> None:
    from robot_rl.files import FolderLock

    lock = FolderLock(finished)
    with pytest.raises(BlockingIOError, match="is being written by another process"):
        train.resume(finished)
    lock.release()


def test_a_loss_that_is_no_number_stops_training(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"(loss|q).* became (nan|inf) before environment step \d+"):
        train.train(tiny("sac", "TinyHuge-v0", steps=500), tmp_path / "run")
    for path in run.checkpoints(tmp_path / "run"):
        env = run.make_env(run.load(tmp_path / "run"))
        agent = checkpoint.load(path / "agent.ckpt", run.make_agent(run.load(tmp_path / "run"), env)[1])
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(agent))


def test_an_action_that_is_no_number_stops_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train.train(tiny("sac", steps=70), tmp_path / "run")
    real = checkpoint.load
    monkeypatch.setattr(
        checkpoint,
        "load",
        lambda *args: jax.tree.map(lambda leaf: leaf * np.nan if leaf.dtype == np.float32 else leaf, real(*args)),
    )
    message = r"action became nan before environment step 7\d.*the last good checkpoint is .*checkpoints/0000000"
    with pytest.raises(FloatingPointError, match=message):
        train.resume(tmp_path / "run", steps=150)


@pytest.mark.parametrize("file", ["agent.ckpt", "replay.npz"])
def test_a_damaged_checkpoint_says_how_to_go_on(tmp_path: Path, file: str) -> None:
    folder = tmp_path / "run"
    train.train(tiny("sac", steps=130, eval_episodes=0), folder)
    earlier, newest = run.checkpoints(folder)
    (newest / file).write_bytes((newest / file).read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"{file}.* delete the folder {newest} and resume .* from {earlier}$"):
        train.resume(folder)
    run.remove_folder(newest)
    assert train.resume(folder)["env_steps"] >= 130


def test_demonstrations_of_the_task_set_up_otherwise_are_refused(tmp_path: Path) -> None:
    from robot_rl import cli

    demos = tmp_path / "demos.zarr"
    record = ["demo", "record", "--task", "reach", "--arm", "panda", "--episodes", "1", "--out", str(demos)]
    assert cli.main(record) == 0

    def chosen(arm: str, *settings: str) -> run.Run:
        config = TrainConfig(steps=2, log_every=2, eval_episodes=0)
        return choose("reach", arm, "sim", "bc", config, [*settings, "agent.hidden=8,8"], str(demos))

    with pytest.raises(ValueError, match=r"is not of this task \(task\.max_steps is \d+ there, 9 here\)"):
        train.train(chosen("panda", "task.max_steps=9"), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    assert train.train(chosen("ur5e"), tmp_path / "other_arm")["demo_episodes"] == 1


def test_environments_of_ours_go_by_their_gym_ids() -> None:
    env = gym_envs.make_gym("robot_rl/Reach-v0")
    env.reset(seed=0)
    assert env.step(np.zeros(env.action_space.shape, np.float32))[4]["fault"] == ""
    env.close()


def test_an_environment_without_a_limit_is_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym_envs, "MAX_EPISODE_STEPS", 4)  # Tiny-v0, which has no limit registered, runs 12 steps
    env = gym_envs.make_gym("tiny_env:Tiny-v0")
    ends = []
    for seed in range(10):
        env.reset(seed=seed)
        steps = [env.step(np.zeros(1, np.float32)) for _ in range(4)]
        ends += [] if steps[-1][2] else [[step[3] for step in steps]]
    assert ends and all(end == [False, False, False, True] for end in ends)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = ReplayBuffer.save, iter(range(100))

    def full(buffer: ReplayBuffer, path: Path) -> None:
        if next(calls) >= 1:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(buffer, path)

    monkeypatch.setattr(ReplayBuffer, "save", full)
    with pytest.raises(OSError, match=r"the disk is full while writing .*checkpoints") as raised:
        train.train(tiny(steps=200), tmp_path / "run")
    assert raised.value.errno == errno.ENOSPC
    assert len(run.checkpoints(tmp_path / "run")) == 1 and not list((tmp_path / "run").rglob("*.tmp"))
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(TESTS))
    train.resume(tmp_path / "run")  # with space again
    assert json.loads((tmp_path / "run/summary.json").read_text())["env_steps"] >= 200


def test_bad_choices_leave_no_folder_behind(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(ValueError, match="has no scripted demonstrator"):
        train.train(choose("Pendulum-v1", "", "gym", "rlpd", TrainConfig()), tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="no episodes at"):
        train.train(tiny(demos=str(tmp_path / "nothing.zarr")), tmp_path / "a")
    with pytest.raises(ValueError, match=r"is not of this task .*tiny_env:Tiny-v0"):
        train.train(tiny(env="TinySilent-v0", demos=str(finished / "demos.zarr")), tmp_path / "a")
    with pytest.raises(LookupError, match="Pendulum-v1"):
        train.train(choose("Pendulm-v1", "", "gym", "sac", TrainConfig()), tmp_path / "a")
    with pytest.raises(ValueError, match="actions Discrete"):
        train.train(choose("CartPole-v1", "", "gym", "sac", TrainConfig()), tmp_path / "a")
    assert not (tmp_path / "a").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation and the log


def test_evaluation_repeats_itself_and_counts(finished: Path) -> None:
    _, env, encoder, agent = run.load_agent(finished)
    first = evaluate(env, agent, encoder, 10, seed=0)
    assert first == evaluate(env, agent, encoder, 10, seed=0)
    assert first.successes is not None and first.success_rate == first.successes / 10
    assert evaluate(env, agent, encoder, 10, seed=1) != first


def test_wilson_interval_against_published_numbers() -> None:
    np.testing.assert_allclose(wilson(81, 263), (0.2553, 0.3662), atol=5e-5)  # Newcombe 1998, table I
    np.testing.assert_allclose(wilson(0, 20), (0.0, 0.1611), atol=5e-5)
    np.testing.assert_allclose(wilson(15, 148), (0.0624, 0.1605), atol=5e-5)
    assert wilson(100, 100)[1] == 1.0 and wilson(0, 0) == (0.0, 1.0)


def test_a_column_that_appears_later_leaves_one_header(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, "env_steps") as log:
        log.row({"env_steps": 5, "return": 0.1})
        log.row({"env_steps": 9, "return": 1 / 3, "loss": 2.0})
        log.row({"env_steps": 12, "return": None, "loss": 1e-9})
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            ["env_steps", "return", "loss"], ["5", "0.1", ""], ["9", repr(1 / 3), "2.0"], ["12", "", "1e-09"],
        ]  # fmt: skip
    with MetricsLog(tmp_path, "env_steps", keep_steps=9) as log:
        log.row({"env_steps": 11, "return": 7.0, "loss": 0.5})
    columns = read_columns(tmp_path / "metrics.csv")
    assert columns["env_steps"] == [5, 9, 11] and columns["return"] == [0.1, 1 / 3, 7.0]
    with pytest.raises(FileExistsError):
        MetricsLog(tmp_path, "env_steps")


def test_a_row_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("env_steps,return\n5,0.5\n9,0.25\n12")
    assert read_columns(tmp_path / "metrics.csv")["env_steps"] == [5, 9]
    (tmp_path / "metrics.csv").write_text("env_steps,return\n5,half\n")
    with pytest.raises(ValueError, match=r"metrics\.csv, line 2: return is 'half'"):
        read_columns(tmp_path / "metrics.csv")


def test_progress_off_a_terminal_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("job", 10, every_s=0.0) as progress:
        progress.update(10, {"success": "50 %"})
        progress.say("a line")
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[0].startswith("job 10/10 | success 50 %") and err.endswith("a line\n")
    assert err.isprintable() or set(err) - {"\n"} == {c for c in err if c.isprintable()}
    assert (clock(42), clock(725), clock(3723)) == ("0:42", "12:05", "1:02:03")
