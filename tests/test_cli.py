from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest

from robot_rl import catalogue, checkpoint, cli, run, train, video
from robot_rl.find import names
from robot_rl.run import TrainConfig, choose
from robot_rl.store import EpisodeReader

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def _tiny_env_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TESTS))
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of behaviour cloning on the tiny environment."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    config = TrainConfig(steps=20, log_every=20, eval_episodes=2, demo_episodes=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TESTS))
        train.train(choose("tiny_env:Tiny-v0", "", "gym", "bc", config, ["agent.hidden=8,8"]), folder)
    return folder


def shell(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "robot_rl.cli", *args], capture_output=True, text=True)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['robot-rl', '--help']\n"
        "from robot_rl.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'jax', 'mujoco', 'matplotlib', 'zarr', 'gymnasium', 'imageio', 'numba'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("tasks", "demo", "train", "eval", "runs", "plot", "video", "study", "bench"):
        assert command in done.stdout


def test_tasks_lists_every_plugin_with_what_it_says_of_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tasks"]) == 0
    out = capsys.readouterr().out
    for folder in ("tasks", "sim", "robot_rl.agents"):
        for name in names(folder):
            sentence = catalogue.first_sentence(f"{folder}.{name}")
            assert sentence and any(line.split() == [name, *sentence.split()] for line in out.splitlines())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--task", "peg_insrt"], ["peg_insert", "reach", "Did you mean 'peg_insert'"]),
        (["--task", "reach", "--agent", "rldp"], ["bc, drq, rlpd, sac", "Did you mean 'rlpd'"]),
        (["--task", "reach", "--arm", "pandda"], ["ur5e", "Did you mean 'panda'"]),
        (["--task", "reach", "--world", "smi"], ["Did you mean 'sim'"]),
        (["--task", "reach", "--set", "agent.utd=3"], ["batch_size", "Did you mean 'utd_ratio'"]),
        (["--task", "reach", "--set", "agent.utd_ratio=0"], ["utd_ratio = 0", "[1, 1000]"]),
        (["--task", "reach", "--set", "task.max_steps=soon"], ["max_steps = 'soon'", "an integer"]),
        (["--task", "reach", "--steps", "0"], ["steps = 0"]),
        (["--gym", "Pendulm-v1", "--agent", "sac"], ["Pendulum-v1"]),
        (["--gym", "foo bar", "--agent", "sac"], ["'foo bar'", "Malformed environment ID"]),
        (["--gym", "a:b:c", "--agent", "sac"], ["'a:b:c'", "package:Name-v0"]),
        (["--gym", "robot_rl/Peg-v0", "--agent", "sac"], ["robot_rl/PegInsert-v0"]),
        (["--gym", "not_there:Tiny-v0", "--agent", "sac"], ["not_there", "not installed"]),
        (["--task", "reach", "--gym", "Pendulum-v1"], ["give either --task"]),
        ([], ["give either --task"]),
        (["--resume", "nothing"], ["nothing is not a run folder"]),
        (["--resume", "nothing", "--seed", "2"], ["--seed cannot be changed by --resume"]),
    ],
)
def test_a_wrong_choice_is_one_line(
    args: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *args]) == 2
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]  # above it, packages that register environments may say what they like
    assert out == "" and last.startswith("robot-rl: error: ") and err.count("robot-rl: ") == 1
    assert "Traceback" not in err and all(word in last for word in words), err
    assert not list(tmp_path.iterdir())


def test_a_wrong_flag_names_the_nearest() -> None:
    done = shell("train", "--taks", "reach")
    assert done.returncode == 2 and "--task" in done.stderr and "Traceback" not in done.stderr


def test_our_own_faults_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    for fault in (lambda: {}["key"], lambda: np.zeros(2) + np.zeros(3), lambda: int("x"), lambda: 1 // 0):
        monkeypatch.setattr(catalogue, "describe", fault)
        with pytest.raises((LookupError, ValueError, ArithmeticError)):
            cli.main(["tasks"])


def test_an_existing_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert cli.main(["train", "--task", "reach", "--agent", "sac", "--out", str(tmp_path)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_settings_may_be_repeated_or_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    many = ["--set", "agent.hidden=8,8", "train.eval_episodes=0", "--set", "train.log_every=5", "train.demo_episodes=2"]
    assert (
        cli.main(["train", "--gym", "tiny_env:Tiny-v0", "--agent", "bc", "--steps", "5", "--out", str(folder), *many])
        == 0
    )
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads((folder / "summary.json").read_text())
    loaded = run.load(folder)
    assert (loaded.agent_config.hidden, loaded.train.log_every, loaded.train.steps) == ((8, 8), 5, 5)
    assert cli.main(["train", "--resume", str(folder), "--steps", "10"]) == 0
    assert json.loads(capsys.readouterr().out)["updates"] == 10


def test_eval_prints_one_object_and_repeats_itself(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for seed in ("0", "0", "5"):
        assert cli.main(["eval", str(finished), "--episodes", "6", "--seed", seed, "--json"]) == 0
        out, _ = capsys.readouterr()
        assert out.count("\n") == 1
        told.append(json.loads(out))
    assert told[0] == told[1] != told[2]
    low, high = told[0]["success_interval"]
    assert told[0]["episodes"] == 6 and low <= told[0]["success_rate"] <= high
    assert cli.main(["eval", str(finished), "--episodes", "2"]) == 0
    assert "of 2 episodes" in capsys.readouterr().out


def test_a_checkpoint_of_another_run_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, _, agent = run.load_agent(finished)
    for name, metadata in (
        ("agent", {"task": "tiny_env:Tiny-v0", "agent": "sac"}),
        ("task", {"task": "reach", "agent": "bc"}),
    ):
        other = tmp_path / name
        other.mkdir()
        checkpoint.save(other / "agent.ckpt", agent, metadata)
        assert cli.main(["eval", str(finished), "--checkpoint", str(other)]) == 2
        assert f"is a checkpoint of {name} '{metadata[name]}', this run's {name} is" in capsys.readouterr().err
    wider = tmp_path / "wider"
    config = TrainConfig(steps=10, log_every=10, eval_episodes=0, demo_episodes=1)
    train.train(choose("tiny_env:Tiny-v0", "", "gym", "bc", config, ["agent.hidden=9,9"]), wider)
    assert cli.main(["eval", str(finished), "--checkpoint", str(run.newest(wider))]) == 2
    assert "does not fit this agent" in capsys.readouterr().err
    assert cli.main(["eval", str(finished), "--checkpoint", str(tmp_path)]) == 2
    assert "is not a checkpoint" in capsys.readouterr().err


def test_demonstrations_of_a_task_are_recorded_and_added_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "demos.zarr"
    record = ["demo", "record", "--task", "reach", "--out", str(path), "--seed", "3"]
    assert cli.main([*record, "--episodes", "2"]) == 0
    assert cli.main([*record, "--episodes", "1"]) == 0  # goes on behind those that are there
    reader = EpisodeReader(path)
    assert len(reader) == 3 and len(set(reader.seeds)) == 3 and all(episode.succeeded for episode in reader)
    assert cli.main([*record[:-2], "--seed", "3", "--episodes", "3", "--out", str(tmp_path / "once.zarr")]) == 0
    for a, b in zip(reader, EpisodeReader(tmp_path / "once.zarr"), strict=True):
        np.testing.assert_array_equal(a.action, b.action)
    capsys.readouterr()
    assert cli.main(["demo", "info", str(path)]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["task"], about["episodes"], about["successes"]) == ("reach", 3, 3)
    assert cli.main(["demo", "record", "--task", "pick_place", "--out", str(path), "--episodes", "1"]) == 2
    assert "holds other episodes (task is 'reach' there, 'pick_place' here" in capsys.readouterr().err
    assert cli.main([*record, "--episodes", "1", "--set", "task.max_steps=9"]) == 2
    assert "task.max_steps is" in capsys.readouterr().err
    assert len(EpisodeReader(path)) == 3


def test_ctrl_c_keeps_the_demonstrations_that_are_finished(tmp_path: Path) -> None:
    path = tmp_path / "demos.zarr"
    args = ["demo", "record", "--task", "reach", "--out", str(path), "--episodes", "100000"]
    process = subprocess.Popen([sys.executable, "-m", "robot_rl.cli", *args], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("demonstrations ")  # the first line tells of finished ones
    process.send_signal(signal.SIGINT)
    err = process.communicate()[1]
    assert process.returncode == 130 and "Traceback" not in err
    held = len(EpisodeReader(path))
    assert held >= 1 and f"it holds {held}" in err


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # of the ffmpeg that reads the film here
@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_film_shows_every_step_in_real_time(
    finished: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"film{suffix}"
    assert cli.main(["video", str(finished), "--episodes", "2", "--out", str(out)]) == 0
    printed, err = capsys.readouterr()
    assert printed.strip() == str(out) and err.startswith("2 episodes: ")
    frames = imageio.mimread(out)
    assert frames[0].shape[:2] == (32, 64)
    meta = imageio.get_reader(out).get_meta_data()
    if suffix == ".gif":  # which joins frames that are equal
        assert meta["duration"] % 100 == 0
    else:
        assert meta["fps"] == 10
        _, env, encoder, agent = run.load_agent(finished)
        from robot_rl.evaluate import evaluate

        length = evaluate(env, agent, encoder, 2, seed=0).mean_length
        assert length is not None and len(frames) == 2 * (length + 1 + 7)
        edge = frames[-1][:2].reshape(-1, frames[-1].shape[-1])[:, :3].mean(axis=0)
        assert edge.argmax() == (1 if "success" in err.split(", ")[-1] else 0)  # a green frame, or a red one
    assert cli.main(["video", str(finished), "--out", str(out)]) == 2
    assert "exists: give another file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_film_that_fails_leaves_no_file(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(env: object) -> np.ndarray:
        raise ValueError("draws no pictures")

    monkeypatch.setattr(video, "_frame", broken)
    with pytest.raises(ValueError, match="draws no pictures"):
        cli.main(["video", str(finished), "--out", str(tmp_path / "film.mp4")])
    assert not list(tmp_path.iterdir())


def test_an_unknown_benchmark_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "learnr"]) == 2
    assert "Did you mean 'learner'" in capsys.readouterr().err


def test_only_the_quick_benchmarks_run_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def note(command: list[str]) -> subprocess.CompletedProcess[str]:
        ran.append(Path(command[-1]).stem)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", note)
    assert cli.main(["bench"]) == 0 and ran == ["tick", "env", "learner"]
