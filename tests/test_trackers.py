"""Where numbers go besides metrics.csv: TensorBoard's files as they lie on the disk, and the real wandb, offline."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from robot_rl import run, trackers, train
from robot_rl.log import MetricsLog, read_columns
from robot_rl.run import TrainConfig, choose

TESTS = Path(__file__).parent
ROOT = TESTS.parent
KEY = "0123456789abcdef0123456789abcdef01234567"  # the form of one


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tiny environment on the path, and no W&B account of whoever runs the tests."""
    monkeypatch.syspath_prepend(str(TESTS))
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(TESTS)]))


def tiny(**changes: Any) -> run.Run:
    config = TrainConfig(**{"steps": 20, "log_every": 20, "eval_episodes": 2, "demo_episodes": 3} | changes)
    return choose("tiny_env:Tiny-v0", "", "gym", "bc", config, ["agent.hidden=8,8", "agent.batch_size=8"])


def run_folder(path: Path) -> Path:
    path.mkdir()
    configs = {"agent": {"utd_ratio": 4}, "arm": {"address": "192.0.2.77"}, "train": {"tracker": "wandb"}}
    about = {
        "task": "reach",
        "arm": "ur5e",
        "agent": "rlpd",
        "seed": 3,
        "configs": configs,
        "command": "train --secret",
    }
    (path / "run.json").write_text(json.dumps({"format": 1, **about}))
    return path


# ---------------------------------------------------------------------------------------------------------------------
# TensorBoard, and nothing


def events(folder: Path) -> list[Any]:
    """The events of a folder's files, in order of writing."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("tensorboard/events.*"), key=lambda path: path.name):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event()
            event.ParseFromString(data[12 : 12 + length])
            found.append(event)
            data = data[16 + length :]
    return found


def test_tensorboard_drops_what_is_done_again(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, "env_steps") as log:
        for step in (10, 20, 30):
            log.row({"env_steps": step, "return": step / 10, "loss": None})
    with MetricsLog(tmp_path, "env_steps", keep_steps=20) as log:
        log.row({"env_steps": 31, "return": 7.0})
        log.result({"success_rate": 0.5, "mean_cost": None, "wall_s": 9.0, "task": "reach"})
    written = events(tmp_path)
    begins = [event.step for event in written if event.session_log.status == 1]  # START: purge from this step on
    assert begins == [21]
    scalars = [(event.step, value.tag, value.simple_value) for event in written for value in event.summary.value]
    assert scalars == [
        (10, "return", 1.0), (20, "return", 2.0), (30, "return", 3.0), (31, "return", 7.0),
        (31, "final/success_rate", 0.5),
    ]  # fmt: skip


def test_without_a_tracker_there_is_metrics_csv_alone(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, "env_steps", tracker="none") as log:
        log.row({"env_steps": 10, "return": 1.0})
        log.result({"success_rate": 0.5})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
    with pytest.raises(ValueError, match=r"tracker = 'tensorbord'.*tensorboard"):
        choose("reach", "panda", "sim", "rlpd", TrainConfig(), ["train.tracker=tensorbord"])
    with pytest.raises(ValueError, match="tracker = 'x': give one of tensorboard, wandb, none"):
        MetricsLog(tmp_path / "x", "env_steps", tracker="x")


def test_a_run_from_before_there_were_trackers_is_resumed(tmp_path: Path) -> None:
    train.train(tiny(), tmp_path / "old")
    path = tmp_path / "old/run.json"
    values = json.loads(path.read_text())
    assert values["configs"]["train"].pop("tracker") == "tensorboard"
    path.write_text(json.dumps(values))
    assert run.load(tmp_path / "old").train.tracker == "tensorboard"
    assert train.resume(tmp_path / "old", steps=40)["updates"] == 40
    assert read_columns(tmp_path / "old/metrics.csv")["updates"] == [20, 40]
    tags = [value.tag for event in events(tmp_path / "old") for value in event.summary.value]
    assert tags.count("final/success_rate") == 2 and tags.count("actor_loss") == 2


# ---------------------------------------------------------------------------------------------------------------------
# Weights & Biases, the package itself

needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
SESSION = """
import os, signal, sys
from pathlib import Path
from robot_rl.log import MetricsLog
keep = int(sys.argv[2]) if len(sys.argv) > 2 else None
with MetricsLog(Path(sys.argv[1]), "env_steps", keep, "wandb") as log:
    for step in range((keep or 0) + 10, (keep or 0) + 50, 10):
        log.row({"env_steps": step, "return": step / 10, "loss": None})
    log.result({"success_rate": 0.75, "wall_s": 3.0})
    if len(sys.argv) > 3:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def wandb_records(path: Path) -> list[Any]:
    """The records of a .wandb file, which has LevelDB's log format: blocks of 32 KiB, chunks of (crc, length, kind)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        part, at = data[at + 7 : at + 7 + length], at + 7 + length
        whole = part if kind in (1, 2) else whole + part
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(whole)
            found.append(record)
    return found


def history(path: Path) -> list[dict[str, float]]:
    rows = [record.history for record in wandb_records(path) if record.WhichOneof("record_type") == "history"]
    return [{".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item} for row in rows]


@needs_wandb
def test_a_resumed_run_is_one_wandb_run_with_each_step_once(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_API_KEY": KEY, "WANDB_PROJECT": "arms"}
    for words in ([], ["20"]):  # the second goes on from step 20: 30 and 40 are done again, 50 and 60 are new
        done = subprocess.run(
            [sys.executable, "-c", SESSION, str(folder), *words], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "" and KEY not in done.stderr and "of project arms" in done.stderr
        environment["WANDB_PROJECT"] = "elsewhere"  # the folder remembers
    identity = json.loads((folder / "wandb.json").read_text())
    files = sorted(folder.glob(f"wandb/offline-run-*/run-{identity['id']}.wandb"))
    assert identity["project"] == "arms" and len(files) == 2
    logged = [(row["_step"], row["return"]) for path in files for row in history(path)]
    assert logged == [(step, step / 10) for step in (10, 20, 30, 40, 50, 60)]
    assert read_columns(folder / "metrics.csv")["env_steps"] == [10, 20, 30, 40, 50, 60]
    records = wandb_records(files[0])
    begun = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert config["seed"] == 3 and config["configs"]["agent"] == {"utd_ratio": 4} and config["configs"]["arm"] == {}
    told = {item.key: item.value_json for record in records for item in record.summary.update if item.key}
    assert float(told["final/success_rate"]) == 0.75 and "final/wall_s" not in told
    written = b"".join(path.read_bytes() for path in folder.glob("wandb/**/*") if path.is_file())
    for secret in (KEY, "192.0.2.77", "--secret"):
        assert secret.encode() not in written, secret


@needs_wandb
def test_rows_that_a_killed_process_did_not_hand_over_follow(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    (folder / "metrics.csv").write_text("")
    for words in (["0", "killed"], ["40"]):
        subprocess.run(
            [sys.executable, "-c", SESSION, str(folder), *words], env=os.environ | {"WANDB_MODE": "offline"},
            capture_output=True, check=words == ["40"],
        )  # fmt: skip
    logged = [row["_step"] for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")) for row in history(path)]
    assert logged == [10, 20, 30, 40, 50, 60, 70, 80]


@needs_wandb
def test_without_a_key_nothing_waits_and_no_folder_is_left(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "robot_rl.cli", "train", "--gym", "tiny_env:Tiny-v0", "--agent", "bc",
         "--set", "train.tracker=wandb", "--out", str(tmp_path / "run")],
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 2 and "wandb login" in done.stderr and "WANDB_MODE=offline" in done.stderr
    assert not (tmp_path / "run").exists()


def test_without_the_package_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'robot-rl\[wandb\]'"):
        train.train(tiny(tracker="wandb"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Weights & Biases that fails


class FakeRun:
    """A W&B run whose ``log`` fails from a step on."""

    def __init__(self, fails_from: int = 10**9, resumed: bool = False, starting_step: int = 0) -> None:
        self.resumed, self.starting_step, self.url = resumed, starting_step, "https://example.org/run"
        self.steps: list[int] = []
        self.summary: dict[str, float] = {}
        self.exit_code: int | None = None
        self._fails_from = fails_from

    def log(self, numbers: dict[str, float], step: int) -> None:
        if step >= self._fails_from:
            raise ConnectionResetError(f"lost, key {KEY}")
        self.steps.append(step)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def fake(monkeypatch: pytest.MonkeyPatch, made: FakeRun | Exception) -> None:
    def init(**_: Any) -> FakeRun:
        if isinstance(made, Exception):
            raise made
        return made

    module = SimpleNamespace(init=init, Settings=lambda **values: values, login=lambda **_: True)
    monkeypatch.setattr(trackers, "_import_wandb", lambda: module)
    monkeypatch.setenv("WANDB_API_KEY", KEY)


def test_training_goes_on_where_wandb_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    folder, lost = run_folder(tmp_path / "run"), FakeRun(fails_from=20)
    fake(monkeypatch, lost)
    with MetricsLog(folder, "env_steps", tracker="wandb") as log:
        for step in (10, 20, 30, 40):
            log.row({"env_steps": step, "return": 1.0})
        log.result({"success_rate": 1.0})
    assert lost.steps == [10] and lost.summary == {} and lost.exit_code == 1
    assert read_columns(folder / "metrics.csv")["env_steps"] == [10, 20, 30, 40]
    err = capsys.readouterr().err
    assert err.count("W&B failed") == 1 and "lost, key ***" in err and KEY not in err and "wandb sync" in err


@pytest.mark.parametrize(
    ("held", "sent"),
    [
        (30, [40, 50]),  # 40 was logged here, and had not come to the server
        (10, [20, 30, 40, 50]),  # nor had 20, which is not done again: it comes from metrics.csv
        (None, [10, 20, 30, 40, 50]),  # a server that knows nothing of the run
    ],
)
def test_the_server_gets_each_step_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int | None, sent: list[int]
) -> None:
    folder = run_folder(tmp_path / "run")
    server = FakeRun() if held is None else FakeRun(resumed=True, starting_step=held + 1)
    (folder / "metrics.csv").write_text("env_steps,return,loss\n10,1.0,\n20,1.0,\n30,1.0,0.5\n40,1.0,0.5\n")
    fake(monkeypatch, server)
    with MetricsLog(folder, "env_steps", 20, "wandb") as log:
        for step in (30, 40, 50):
            log.row({"env_steps": step, "return": 1.0})
    assert server.steps == sent and server.exit_code == 0


def test_a_broken_off_training_is_told_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = FakeRun()
    fake(monkeypatch, made)
    with pytest.raises(KeyboardInterrupt), MetricsLog(run_folder(tmp_path / "run"), "env_steps", tracker="wandb"):
        raise KeyboardInterrupt
    assert made.exit_code == 1


def test_wandb_that_does_not_start_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_folder(tmp_path / "run")
    fake(monkeypatch, TimeoutError(f"no answer to {KEY}"))
    with pytest.raises(
        RuntimeError, match=r"no answer to \*\*\*.*WANDB_MODE=offline robot-rl train --resume"
    ) as raised:
        MetricsLog(folder, "env_steps", tracker="wandb")
    assert KEY not in str(raised.value) and not (folder / "metrics.csv").exists()


def test_another_run_in_the_same_place_is_another_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for created in ("2026-01-01", "2026-01-02"):
        folder = tmp_path / created / "run"
        folder.parent.mkdir()
        about = json.loads((run_folder(folder) / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(about | {"created": created}))
        fake(monkeypatch, FakeRun())
        for keep in (None, 0):
            with MetricsLog(folder, "env_steps", keep, "wandb") as log:
                log.row({"env_steps": 5, "return": 1.0})
            ids.append(json.loads((folder / "wandb.json").read_text())["id"])
    assert ids[0] == ids[1] != ids[2] == ids[3]
    (folder / "wandb.json").write_text('{"id": 3}')
    with pytest.raises(ValueError, match=r"wandb\.json is damaged .*: delete it"):
        MetricsLog(folder, "env_steps", 5, "wandb")
