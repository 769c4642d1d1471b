"""What an actor refuses before anything moves, what it never logs, and how a run's choices reach it."""

import json

import numpy as np
import pytest

from robot_rl import actor, cli, learner, run
from robot_rl.actor import Place, act
from robot_rl.interrupt import StopSignals
from robot_rl.lab import Config, wider
from robot_rl.link.client import LinkClient, described
from robot_rl.link.security import Endpoint
from robot_rl.link.server import LinkServer
from robot_rl.pace import Pace
from robot_rl.run import TrainConfig, choose
from robot_rl.step_log import STEP, Layout, StepLog
from tests import links
from tests.apart import SETTINGS
from tests.step_rows import LAYOUT

server = links.server  # fixture
NOWHERE = Endpoint("127.0.0.1", 1)


def test_settings_of_the_learner_are_refused(tmp_path):
    refused = "an actor sets arm, lab, intervention, teleop, reward only"
    with pytest.raises(ValueError, match=rf"'task\.max_steps=3': {refused}"):
        act(Place(NOWHERE, tmp_path, settings=("task.max_steps=3",)), print, StopSignals(print))
    assert not list(tmp_path.iterdir())


def test_a_learner_that_refuses_is_told_in_words(tmp_path, server, monkeypatch):
    client = LinkClient(server.address, None)
    assert described(client, pytest.fail, lambda seconds: False)
    newer, call = links.pb.DescribeRequest(schema=9), client._call
    monkeypatch.setattr(client, "_call", lambda name, request, timeout_s: call(name, newer, timeout_s))
    with pytest.raises(ConnectionError, match=r"refuses: .*install the same robot-rl on both"):
        described(client, pytest.fail, lambda seconds: False)
    client.close()


def test_a_folder_is_of_one_actor_of_one_run(tmp_path):
    place = Place(NOWHERE, tmp_path / "a", index=2)
    first, log = actor._open_folder(place, "run1")
    assert (first, actor._open_folder(place, "run1")) == (1, (2, log)) and log > 0
    with pytest.raises(ValueError, match=r"is of run 'run1', this is 'run2': give the actor another --out"):
        actor._open_folder(place, "run2")
    with pytest.raises(ValueError, match=r"is of actor 'actor2', this is 'actor0'"):
        actor._open_folder(Place(NOWHERE, tmp_path / "a"), "run1")
    assert json.loads((tmp_path / "a" / "actor.json").read_text())["incarnation"] == 2


def test_a_lab_is_only_ever_tightened():
    there = Config(speed_mps=0.1, box_lower_m=(0.2, -0.1, 0.0))
    assert wider(there, there) == "" and wider(Config(), there) == ""
    assert wider(there, Config(speed_mps=0.2, box_lower_m=there.box_lower_m)) == "speed_mps"
    assert wider(there, Config(speed_mps=0.1)) == "box_lower_m"
    assert wider(there, Config(speed_mps=0.05, box_lower_m=(0.2, -0.2, 0.0))) == "box_lower_m"


def test_a_runs_lab_survives_its_file(tmp_path):
    """JSON has no infinity, which is what a lab allows that says nothing."""
    chosen = choose("peg_insert", "panda", "sim", "rlpd", TrainConfig(), ("lab.speed_mps=0.1",))
    run.create(tmp_path / "run", chosen)
    again = run.load(tmp_path / "run")
    assert run.configs(again) == run.configs(chosen)
    assert run.configs(again)["lab"]["speed_mps"] == 0.1 and run.configs(again)["lab"]["force_n"] == "inf"


def test_a_plain_run_is_not_resumed_as_a_learner(tmp_path, capsys):
    run.create(tmp_path / "run", choose("reach", "panda", "sim", "rlpd", TrainConfig()))
    with pytest.raises(ValueError, match="was trained in one process, and goes on in one: robot-rl train --resume"):
        learner.resume(tmp_path / "run", learner.Serving(Endpoint("127.0.0.1", 0)))
    assert cli.main(["learner", "--resume", str(tmp_path / "run")]) == 2
    assert "give --listen HOST:PORT" in capsys.readouterr().err


def test_two_learners_of_one_run_are_refused(tmp_path):
    """The second waits for no lock and touches nothing."""
    from robot_rl.files import FolderLock

    run.create(tmp_path / "run", choose("reach", "panda", "sim", "rlpd", TrainConfig()), id="one")
    lock = FolderLock(tmp_path / "run")
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    with pytest.raises(BlockingIOError, match=r"is being written by another process \(pid \d+\)"):
        learner.resume(tmp_path / "run", learner.Serving(Endpoint("127.0.0.1", 0)))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before
    lock.release()


def test_two_learners_at_one_port_are_refused(tmp_path, server):
    with (
        StepLog(tmp_path / "other.zarr", LAYOUT) as store,
        pytest.raises(OSError, match="another learner running"),
    ):
        LinkServer(server.address, None, "run", {}, store, paced=False)


def test_an_open_port_is_refused_before_anything_is_made(tmp_path, capsys):
    words = ["learner", "--task", "reach", "--out", str(tmp_path / "run"), "--listen", "0.0.0.0:0"]
    assert cli.main(words) == 2 and "a plaintext bind beyond loopback is refused" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert cli.main(["learner", "--resume", str(tmp_path / "nowhere")]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_an_agent_that_learns_offline_has_no_use_for_actors(tmp_path, capsys):
    words = ["learner", "--task", "reach", "--agent", "bc", "--out", str(tmp_path / "run"), "--listen", "127.0.0.1:0"]
    assert cli.main(words) == 2 and "has no use for actors" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_no_learner_takes_is_not_logged(tmp_path):
    """An observation that is not finite ends the actor, and leaves a log that can be sent."""
    layout = Layout({"state": ((2,), "float64")}, 1)
    with StepLog(tmp_path / "steps.zarr", layout, {"log": 1}) as log:
        one = object.__new__(actor._Actor)
        one._log, one._sender, one._policy, one.episode = log, links.identity(1), None, 0
        one.courier = type("Courier", (), {"notify": lambda self, flush=False: None})()
        one._append(actor.FIRST, 0, {"state": np.zeros(2)})
        came = (1.0, (False, False), None, {})
        for bad in ({"state": np.array([0.0, np.nan])}, {"state": np.array([np.inf, 0.0])}):
            with pytest.raises(ValueError, match="obs/state is not finite: the environment must not give it"):
                one._append(STEP, 1, bad, np.zeros(1), {}, came)
        one._append(STEP, 1, {"state": np.ones(2)}, np.zeros(1), {}, came)
        assert len(log) == 2 and log.read(0, 2, verify=True)["obs/state"].tolist() == [[0, 0], [1, 1]]


def test_time_is_told_by_a_clock_that_does_not_jump():
    """Nothing on the way from an actor to a learner reads the time of day, which may jump."""
    import ast
    from pathlib import Path

    here = Path(actor.__file__).parent
    ours = (here / f"{name}.py" for name in ("actor", "learner", "intake", "step_log"))
    for path in (*(here / "link").glob("*.py"), *ours):
        if path.name == "keys.py":  # certificates are about the time of day
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"time_ns", "now", "utcnow", "today", "localtime"}, path
                assert not (node.attr == "time" and getattr(node.value, "id", "") == "time"), path


class Clock:
    """time, moved by hand."""

    def __init__(self):
        self.now_s = 100.0

    def monotonic(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds


def test_a_twin_in_real_time_keeps_its_pace_and_counts_what_is_late(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("robot_rl.pace.time", clock)
    pace = Pace(0.1, real_time=True)
    pace.restart()
    for work_s in (0.02, 0.02, 0.3, 0.02, 0.02):
        clock.now_s += work_s
        pace.step()
    assert (pace.steps, pace.late) == (5, 1)
    assert clock.now_s == pytest.approx(100.0 + 4 * 0.1 + 0.3), "what was late is not made up by rushing"
    assert pace.percentile(0.5) == pytest.approx(0.1) and pace.percentile(1.0) == pytest.approx(0.3)
    quick = Pace(None, real_time=False)
    quick.restart()
    clock.now_s += 5.0
    quick.step()
    assert (quick.steps, quick.late) == (1, 0)


def test_settings_of_the_drills_are_settings(tmp_path):
    assert choose("reach", "panda", "sim", "rlpd", TrainConfig(), SETTINGS)
