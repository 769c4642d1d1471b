"""Several twin actors for one learner, through Ray."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl import cli, cluster, fleet, ray_worker
from robot_rl.episode import episode_seed
from robot_rl.files import read_json
from robot_rl.fleet import Fleet
from robot_rl.interrupt import StopSignals
from robot_rl.learner import layout_of
from robot_rl.link import keys
from robot_rl.link.security import Endpoint
from robot_rl.link.server import LinkServer
from robot_rl.run import TrainConfig, choose, describe, make_agent, make_env
from robot_rl.session import make_session
from robot_rl.step_log import FIRST, STEP, StepLog
from tests.ray_processes import compile_once, descendants, listens_at, marked, until

if importlib.util.find_spec("ray") is None:  # not imported yet: it reads its settings as it is
    pytest.skip("Ray is not installed", allow_module_level=True)
TESTS = Path(__file__).parent
SMALL = (
    "agent.hidden=16,16", "agent.batch_size=16", "agent.utd_ratio=1", "agent.critics=2", "agent.learning_starts=20",
    "train.eval_episodes=2", "train.demo_episodes=2", "train.checkpoint_every=50",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _tiny_env_on_path(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TESTS))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
        compile_once(patch, tmp_path_factory)
        yield


@pytest.fixture(scope="module")
def ray(_tiny_env_on_path):
    """Ray on this machine, for the whole module."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_AUTH_MODE", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
            patch.setenv(name, os.environ.get(name, ""))  # put back at the end
            patch.delenv(name)
        with cluster.connected(None, 5, cluster.actors_environment()) as connected:
            yield connected


def tiny(*settings: str) -> Any:
    return choose("tiny_env:Tiny-v0", "", "gym", "rlpd", TrainConfig(seed=3), [*SMALL, *settings])


class Bench:
    """A learner without learning: the link's server and its store."""

    def __init__(self, folder: Path, run: Any) -> None:
        env = make_env(run)
        layout = layout_of(make_session(run, folder, env, *make_agent(run, env)))
        env.close()
        self.store = StepLog(folder / "steps.zarr", layout, {"run": "r"})
        self.server = LinkServer(Endpoint("127.0.0.1", 0), None, "r", describe(run), self.store, paced=True)

    @property
    def steps(self) -> int:
        return int(np.count_nonzero(self.store.read(0, self.server.rows)["kind"] == STEP))

    def allow(self, steps: int) -> None:
        self.server.allow(steps, self.server.rows)

    def close(self) -> None:
        self.server.close()
        self.store.close()


def logs(folder: Path) -> dict[int, np.ndarray]:
    """The rows of each actor's log, by its number."""
    found = {}
    for path in folder.glob("actors/*/steps.zarr"):
        with StepLog(path) as log:
            found[int(path.parent.name)] = log.read(0, len(log), verify=True)
    return found


def assert_whole(folder: Path) -> np.ndarray:
    """The store holds what the logs hold, each row once and as it was written, each log in its order; all its rows."""
    with StepLog(folder / "steps.zarr") as log:
        store = log.read(0, len(log), verify=True)
    written = logs(folder)
    for index, rows in written.items():
        assert (rows["sequence"] == np.arange(len(rows))).all(), f"actor{index}"
        kept = store[np.isin(store["log"], rows["log"][:1])]
        assert kept.tobytes() == rows.tobytes(), f"actor{index}"
    assert len(store) == sum(map(len, written.values()))
    return store


def holder(folder: Path) -> int:
    """The process that writes the log of an actor."""
    return int((folder / "steps.zarr" / ".lock").read_text())


def test_four_actors_one_of_them_killed(ray: cluster.Cluster, tmp_path: Path) -> None:
    run, said = tiny(), list[str]()
    bench = Bench(tmp_path, run)
    actors = partial(cluster.ray_actors, ray, tmp_path, Fleet(4), said.append)
    with actors(bench.server.address) as look_after:
        wait = partial(until, look_after=look_after)
        wait(lambda: len(bench.server.present) == 4)
        assert listens_at(descendants(os.getpid())) == {"127.0.0.1"}  # Ray and all that it started
        bench.allow(200)
        wait(lambda: bench.steps >= 200)

        victim = tmp_path / "actors" / "2"
        before = len(logs(tmp_path)[2])
        assert before > 1
        os.kill(holder(victim), signal.SIGKILL)
        wait(lambda: read_json(victim / "actor.json", "")["incarnation"] == 2)
        assert [text for text in said if text.startswith("actor2 ended (its process died) and is started again")]
        steps = bench.steps

        def two_goes_on() -> bool:
            bench.allow(bench.steps + 20)
            return len(logs(tmp_path)[2]) > before + 10

        wait(two_goes_on)
        assert bench.steps > steps
        bench.server.stop_actors()
        wait(lambda: not bench.server.following, look_after=lambda: None)
    bench.close()
    store = assert_whole(tmp_path)
    assert {int(host) for host in read_json(tmp_path / "fleet.json", "")["hosts"]} == {0, 1, 2, 3}

    names = {int(rows["log"][0]): index for index, rows in logs(tmp_path).items()}
    first = store[store["kind"] == FIRST]
    episodes = [(names[int(row["log"])], int(row["episode"])) for row in first]
    seeds = {episode_seed(run.seed, "train", episode, index) for index, episode in episodes}
    assert len(seeds) == len(set(episodes)) == len(episodes) and {index for index, _ in episodes} == {0, 1, 2, 3}
    # What a policy does in an episode is not what another actor's does: marks are drawn from the seeds.
    marks = first["obs/goal/mark"][:, 0]
    assert len(np.unique(marks)) == len(marks)


def test_an_actor_that_cannot_go_on_is_given_up_with_its_log(
    ray: cluster.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "RESTARTS", 1)
    place = tmp_path / "actors" / "0"
    place.mkdir(parents=True)
    (place / "actor.json").write_text(json.dumps({"run": "another", "actor": "actor0", "incarnation": 1, "log": 5}))
    bench, said = Bench(tmp_path, tiny()), list[str]()
    try:
        with (
            pytest.raises(RuntimeError, match=r"actor0 ended 2 times, .*is of run 'another'.*actors/0\.log\)"),
            cluster.ray_actors(ray, tmp_path, Fleet(1), said.append, bench.server.address) as look_after,
        ):
            until(lambda: False, look_after=look_after)
    finally:
        bench.close()
    assert len(said) == 1 and (tmp_path / "actors" / "0.log").read_text().count("is of run 'another'") == 2


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "robot_rl.cli", "train", *words]


def test_ctrl_c_leaves_nothing_behind_and_resume_has_as_many(ray: cluster.Cluster, tmp_path: Path) -> None:
    folder, mark = tmp_path / "run", f"MARK{os.urandom(8).hex()}"
    choice = ("--gym", "tiny_env:Tiny-v0", "--steps", "100000", "--out", str(folder), "--set", *SMALL)
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"TEST_MARK": mark}
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(
            command("--actors", "2", *choice), stdout=said, stderr=said, env=own, start_new_session=True
        )
    try:
        until(lambda: process.poll() is not None or (folder / "checkpoints").exists())
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all that are in the foreground
        assert process.wait(120) == 130, (tmp_path / "said").read_text()
    finally:
        process.kill()
    text = (tmp_path / "said").read_text()
    assert "Stopping after this update" in text and f"go on with: robot-rl train --resume {folder}" in text
    until(lambda: not marked(mark), 60.0)
    assert Fleet.load(folder).actors == 2
    assert max(int(path.name) for path in folder.glob("checkpoints/*")) >= 50

    # On another Ray, which is there already, and over TLS.
    keys.make(tmp_path / "keys", ["127.0.0.1"])
    address = ray.ray.get_runtime_context().gcs_address
    with StepLog(folder / "steps.zarr") as log:
        steps = int(np.count_nonzero(log.read(0, len(log))["kind"] == STEP)) + 60
    more = ("--cluster", address, "--listen", "127.0.0.1:0", "--keys", str(tmp_path / "keys"))
    resumed = subprocess.run(
        command("--resume", str(folder), "--steps", str(steps), *more), capture_output=True, text=True
    )
    assert resumed.returncode == 0, resumed.stderr
    summary = json.loads(resumed.stdout)
    # Who joins second takes its part of what the first was granted, who hears of it within a heartbeat.
    assert steps <= summary["env_steps"] <= steps + TrainConfig.lead_steps and summary["updates"] == steps - 20
    assert_whole(folder)
    assert sorted(logs(folder)) == [0, 1] and Fleet.load(folder).cluster == address
    about = [read_json(folder / "actors" / name / "actor.json", "") for name in ("0", "1")]
    assert [each["incarnation"] for each in about] == [2, 2]


# ---------------------------------------------------------------------------------------------------------------------
# What is refused, and what a lost host means: without Ray


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--task", "reach", "--world", "hardware", "--actors", "2"], "one robot-rl actor beside each arm"),
        (["--task", "reach", "--world", "ros", "--cluster", "auto"], "one robot-rl actor beside each arm"),
        (["--gym", "tiny_env:Tiny-v0", "--actors", "0"], "--actors 0: give at least 1"),
        (["--gym", "tiny_env:Tiny-v0", "--actors", "2", "--listen", "10.0.0.1:5580"], "robot-rl keys make"),
        (["--gym", "tiny_env:Tiny-v0", "--async", "--listen", "0.0.0.0:5580", "--keys", "k"], "actors dial it"),
        (["--gym", "tiny_env:Tiny-v0", "--cluster", "ray://head:10001"], "only HOST:PORT of a cluster"),
        (["--gym", "tiny_env:Tiny-v0", "--cluster", "127.0.0.1:1"], "nothing answers there"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    words: list[str], error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert cli.main(["train", *words, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("robot-rl: error: ") and error in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_ray_the_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["train", "--gym", "tiny_env:Tiny-v0", "--actors", "2", "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'robot-rl[cluster]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_of_one_process_stays_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from robot_rl.run import create

    create(tmp_path / "run", tiny())
    assert cli.main(["train", "--resume", str(tmp_path / "run"), "--actors", "2"]) == 2
    assert "was trained in one process" in capsys.readouterr().err


class Nodes(cluster.Cluster):
    """A cluster of hosts that a test lets come and go; nothing runs on them."""

    def __init__(self, *hosts: str) -> None:
        self.up, self.address, self.dead = list(hosts), "head:6379", set[int]()
        self.workers: list[Any] = []

    @property
    def hosts(self) -> dict[str, str]:
        return {host: f"id of {host}" for host in self.up}

    @property
    def slots(self) -> int:
        return 2 * len(self.up)

    def worker(self, host: str | None = None) -> Any:
        self.workers.append(FakeWorker(len(self.workers), host or self.up[0]))
        return self.workers[-1]

    def done(self, work: Any) -> bool:
        return work[0] == "where" or work[1] in self.dead

    def outcome(self, work: Any) -> Any:
        if work[1] in self.dead:
            raise ChildProcessError("the worker died")
        return work[2], 1, "0.1"

    def kill(self, worker: Any) -> None:
        self.dead.add(worker.number)


class FakeWorker:
    def __init__(self, number: int, host: str) -> None:
        self.number, self.host, self.acted = number, host, list[tuple]()
        for name in ("where", "act"):
            setattr(self, name, self)

    def remote(self, *words: Any) -> Any:
        self.acted += [words] if words else []
        return ("act", self.number) if words else ("where", self.number, self.host)


def test_the_actor_of_a_lost_host_gets_a_number_that_nobody_had(tmp_path: Path) -> None:
    here = socket.gethostname()
    nodes, said = Nodes(here, "b"), list[str]()
    before = Fleet(2, "head:6379", hosts={"0": "a", "1": "b"})  # as the run was left, with a in it
    actors = cluster._Actors(nodes, tmp_path, before, said.append, Endpoint("127.0.0.1", 5580))
    actors.begin()
    for actor in list(actors._actors):
        actor.look_after()
    assert Fleet.load(tmp_path).hosts == {"0": "a", "1": "b", "2": here}
    assert said == ["actor0 was on a, which is not there: a new one takes its place"]
    assert [worker.acted[0][2] for worker in nodes.workers] == [1, 2]

    nodes.dead.add(1)  # a process: it is started again where its log is
    for actor in list(actors._actors):
        actor.look_after()
    assert nodes.workers[2].host == here and "actor2 ended (its process died) and is started again" in said[-1]

    nodes.up.remove("b")  # a host, with the log of actor1
    nodes.dead.add(0)
    for _ in range(2):
        for actor in list(actors._actors):
            actor.look_after()
    assert "b:" in said[-2] and "b is gone" in said[-1] and "actor3 begins" in said[-1]
    assert Fleet.load(tmp_path).hosts == {"0": "a", "1": "b", "2": here, "3": here}
    assert nodes.workers[3].acted[0][1:3] == (str(tmp_path / "actors" / "3"), 3)


def test_a_cluster_has_to_reach_the_learner_and_have_room() -> None:
    here = socket.gethostname()
    with pytest.raises(ValueError, match=r"has 4 CPUs"):
        cluster.check(Nodes(here, "b"), Fleet(5, "head:6379", "10.0.0.1:5580"))
    for listen in (None, "127.0.0.1:5580"):
        with pytest.raises(ValueError, match=r"other machines \(b\).*--listen HOST:PORT.*--keys DIR"):
            cluster.check(Nodes(here, "b"), Fleet(2, "head:6379", listen))
    cluster.check(Nodes(here, "b"), Fleet(2, "head:6379", "10.0.0.1:5580"))
    cluster.check(Nodes(here), Fleet(2, "head:6379"))


def test_only_text_and_numbers_go_through_ray() -> None:
    """What a worker is given and gives back, by its signatures."""
    plain = {"str", "int", "bool", "None", "Sequence[str]", "tuple[str, int, str]"}
    methods = [value for name, value in vars(ray_worker.Worker).items() if not name.startswith("_")]
    assert len(methods) == 5
    for method in methods:
        assert set(method.__annotations__.values()) <= plain, method


def test_other_threads_are_told_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StopSignals, "_heard", None)
    with StopSignals(lambda text: None) as running:
        assert not running()
        StopSignals.stop_process(signal.SIGTERM)
        assert running() and running.signum == signal.SIGTERM
    with StopSignals(lambda text: None) as later:
        assert later()
