"""The supervisor behind ``robot-rl up``, with small processes of every character."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from robot_rl import order, up, warden
from robot_rl.graph import Process
from robot_rl.store import EpisodeReader
from tests.ros_children import TIED

SERVE = "import time; print('is active', flush=True); time.sleep(600)"
STUBBORN = "import signal; [signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM)]; " + SERVE
QUICK: warden.Ladder = ((signal.SIGINT, 0.5), (signal.SIGTERM, 0.5), (signal.SIGKILL, 30.0))
PATIENT: warden.Ladder = tuple((signum, 30.0) for signum, _ in QUICK)  # for what ends by itself, on a busy machine too
WAIT_S = 60.0


def python(name: str, code: str, **fields) -> Process:
    return Process(name, ("-c", code), program=sys.executable, **fields)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"waited in vain for {what}"
        time.sleep(0.02)


def note(path: Path, rest: str = "") -> str:
    """Code that writes its process id down, whole."""
    new = f"{path}.new"
    return f"import os; open({new!r}, 'w').write(str(os.getpid())); os.rename({new!r}, {str(path)!r}); {rest}"


def lives(pid: int) -> bool:
    """Whether it runs; one that nobody waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_processes_start_in_order_and_stop_in_reverse(tmp_path, capfd):
    """Each sees that what it waits for runs, and that it ends before that does."""
    log = tmp_path / "events"
    log.touch()

    def server(name: str) -> str:
        return (
            f"import time; say = lambda w: open({str(log)!r}, 'a').write(w + '\\n'); say('+{name}')\n"
            "try:\n  time.sleep(0.2); print('\\x1b[1mis\\x1b[0m active'); time.sleep(600)\n"
            f"except KeyboardInterrupt: time.sleep(0.2); say('-{name}')"
        )

    job = f"print(open({str(log)!r}).read().split())"
    processes = [
        python("recorder", server("recorder"), ready="is active", respawn=True),
        python("arm", server("arm"), ready="is active", after=("recorder",)),
        python("policy", job, kind="job", after=("recorder", "arm")),
    ]
    assert up.Supervisor(processes, tmp_path / "logs").run() == 0
    assert log.read_text().split() == ["+recorder", "+arm", "-arm", "-recorder"]
    assert (tmp_path / "logs/policy.log").read_text() == "['+recorder', '+arm']\n"
    assert "[policy] ['+recorder', '+arm']" in capfd.readouterr().err


def test_a_job_that_fails_gives_its_status_and_its_last_words(tmp_path, capfd):
    processes = [
        python("arm", SERVE, ready="is active"),
        python("policy", "import sys; print('no such checkpoint', end=''); sys.exit(7)", kind="job", after=("arm",)),
    ]
    assert up.Supervisor(processes, tmp_path).run() == 7
    said = capfd.readouterr().err
    assert f"policy ended with status 7; the last lines of {tmp_path / 'policy.log'}:\n    no such checkpoint" in said
    assert "does not end" not in said


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("import sys; print('singular'); sys.exit(3)", 3, "arm ended with status 3"),
        ("print('singular')", 1, "arm ended with status 0"),
        ("import os; print('singular', flush=True); os.kill(os.getpid(), 9)", 137, "arm was killed by SIGKILL"),
    ],
)
def test_a_server_that_ends_ends_the_graph(tmp_path, capfd, code, status, words):
    """And with it a job that would have gone on, and what it has started itself."""
    child = tmp_path / "child"
    job = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {note(child, SERVE)!r}]); "
        "time.sleep(600)"
    )
    arm = (
        f"import os, time\nprint('is active', flush=True)\nwhile not os.path.exists({str(child)!r}): time.sleep(0.02)\n"
    )
    processes = [
        python("arm", arm + code, ready="is active"),
        python("policy", job, kind="job", after=("arm",)),
    ]
    assert up.Supervisor(processes, tmp_path, QUICK).run() == status
    said = capfd.readouterr().err
    assert words in said and "    singular" in said
    wait_for(lambda: not lives(int(child.read_text())), "the end of a grandchild")


def test_a_recorder_starts_again_and_is_done_without_at_last(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(up, "RESPAWN_DELAY_S", 0.01)
    starts = tmp_path / "starts"
    wait = f"import time, os\nwhile len(open({str(starts)!r}).read()) <= {order.RESPAWN_LIMIT}: time.sleep(0.02)\n"
    starts.touch()
    processes = [
        python("recorder", f"open({str(starts)!r}, 'a').write('x'); raise SystemExit(2)", respawn=True),
        python("policy", wait + "time.sleep(1)", kind="job"),
    ]
    assert up.Supervisor(processes, tmp_path, QUICK).run() == 0
    assert starts.read_text() == "x" * (1 + order.RESPAWN_LIMIT)
    said = capfd.readouterr().err
    assert said.count("starts recorder again in") == order.RESPAWN_LIMIT
    assert "goes on without recorder" in said


def test_a_step_is_tried_again_and_then_lets_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setattr(up, "RESPAWN_DELAY_S", 0.01)
    flag = tmp_path / "flag"
    step = f"import os, sys; there = os.path.exists({str(flag)!r}); open({str(flag)!r}, 'w'); sys.exit(not there)"
    processes = [
        python("controllers", step, kind="step", respawn=True),
        python("arm", SERVE, ready="is active", after=("controllers",)),
        python("policy", "", kind="job", after=("arm",)),
    ]
    assert up.Supervisor(processes, tmp_path, QUICK).run() == 0
    assert flag.exists()


def test_a_step_that_fails_for_good_ends_the_graph(tmp_path):
    processes = [
        python("controllers", "raise SystemExit(5)", kind="step"),
        python("arm", SERVE, after=("controllers",)),
    ]
    assert up.Supervisor(processes, tmp_path, QUICK).run() == 5
    assert not (tmp_path / "arm.log").exists()


def test_a_stubborn_process_is_killed_in_the_end(tmp_path, capfd):
    pid = tmp_path / "pid"
    processes = [
        python("arm", note(pid, STUBBORN), ready="is active"),
        python("policy", "", kind="job", after=("arm",)),
    ]
    assert up.Supervisor(processes, tmp_path, QUICK).run() == 0
    said = capfd.readouterr().err
    assert "arm does not end: SIGTERM" in said and "arm does not end: SIGKILL" in said
    assert not lives(int(pid.read_text()))


def test_a_program_that_is_not_there_is_named_before_anything_starts(tmp_path):
    processes = [python("arm", SERVE), Process("driver", ("launch",), program="ros2-that-is-not-there")]
    with pytest.raises(FileNotFoundError, match=r"driver: there is no program 'ros2-that-is-not-there' on the PATH"):
        up.Supervisor(processes, tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


def test_the_table_is_json_and_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = json.loads(up.table("twin", ["arm:=ur5e"]))
    assert table[0]["name"] == "arm" and table[0]["argv"] == [
        sys.executable,
        "-m",
        "robot_rl.cli",
        *table[0]["command"],
    ]
    assert table[0]["ready"] == "is active" and table[0]["respawn"] is False
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LookupError, match="unknown argument of twin"):
        up.up("twin", ["x:=1"])
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# A supervisor in a process of its own


class Graph:
    """A supervisor with an arm, its driver's grandchild, and a policy that waits for ever."""

    def __init__(self, folder: Path, arm: str = SERVE) -> None:
        self.pids = {name: folder / name for name in ("arm", "policy", "grandchild")}
        grandchild = (
            f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {note(self.pids['grandchild'], arm)!r}])"
        )
        processes = [
            python("arm", note(self.pids["arm"], arm), ready="is active"),
            python("policy", f"{grandchild}; {note(self.pids['policy'], SERVE)}", kind="job", after=("arm",)),
        ]
        ladder = [(int(signum), grace_s) for signum, grace_s in (QUICK if arm == STUBBORN else PATIENT)]
        code = (
            "import sys; from pathlib import Path; from signal import Signals; from robot_rl.graph import Process; "
            f"from robot_rl.up import Supervisor; ladder = [(Signals(signum), s) for signum, s in {ladder}]; "
            f"sys.exit(Supervisor({processes!r}, Path({str(folder / 'logs')!r}), ladder).run())"
        )
        self.said = folder / "said"
        with open(self.said, "w") as said:
            words = [*TIED, sys.executable, "-c", code]
            self.popen = subprocess.Popen(words, stderr=said, start_new_session=True)
        wait_for(lambda: all(path.exists() for path in self.pids.values()), "all processes")
        self.numbers = {name: int(path.read_text()) for name, path in self.pids.items()}

    def living(self) -> list[str]:
        return [name for name, pid in self.numbers.items() if lives(pid)]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Graph]]:
    graphs: list[Graph] = []

    def make(arm: str = SERVE) -> Graph:
        graphs.append(Graph(tmp_path, arm))
        return graphs[-1]

    yield make
    for graph in graphs:
        graph.popen.kill()
        graph.popen.wait()
        for pid in graph.numbers.values():
            if lives(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_stops_everything_in_order(start, signum, status):
    graph = start()
    assert graph.living() == ["arm", "policy", "grandchild"]
    graph.popen.send_signal(signum)
    assert graph.popen.wait(WAIT_S) == status
    assert set(graph.living()) <= {"grandchild"}  # which got the signal too, and for which nobody can wait
    wait_for(lambda: graph.living() == [], "the end of a grandchild")
    said = graph.said.read_text()
    assert "Stopping after every process has ended" in said and "does not end" not in said


def test_a_second_ctrl_c_does_not_wait(start):
    graph = start(STUBBORN)
    graph.popen.send_signal(signal.SIGINT)
    wait_for(lambda: "Stopping" in graph.said.read_text(), "the first to be heard")
    graph.popen.send_signal(signal.SIGINT)
    assert graph.popen.wait(WAIT_S) != 0
    wait_for(lambda: graph.living() == [], "the end of all")


@pytest.mark.parametrize("arm", [SERVE, STUBBORN], ids=["polite", "stubborn"])
def test_a_killed_supervisor_leaves_nothing_behind(start, arm):
    graph = start(arm)
    children = Path(f"/proc/{graph.popen.pid}/task/{graph.popen.pid}/children").read_text().split()
    graph.numbers["warden"] = int(children[0])
    assert graph.living() == ["arm", "policy", "grandchild", "warden"]
    graph.popen.kill()
    graph.popen.wait()
    wait_for(lambda: graph.living() == [], "the end of all")


# ---------------------------------------------------------------------------------------------------------------------
# Real graphs, over DDS

needs_ros = pytest.mark.skipif(importlib.util.find_spec("rclpy") is None, reason="ROS 2 is not here")


def real(folder: Path, *words: str) -> subprocess.Popen[str]:
    """``robot-rl up`` in the ROS domain of this test."""
    return subprocess.Popen(
        [*TIED, sys.executable, "-m", "robot_rl.cli", "up", *words, "--log-dir", str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def arm_of(folder: Path) -> int:
    """The process id of the arm's node of the graph that logs into ``folder`` and has its name, once it is active."""
    log = folder / "arm.log"
    wait_for(lambda: log.exists() and "is active" in log.read_text(), "the arm's node")
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"--namespace\0{folder.name}\0".encode() in path.read_bytes():
                return int(path.parent.name)
    raise AssertionError("an arm's node that is no process")


@needs_ros
def test_demonstrations_are_recorded_through_a_real_graph(tmp_path, ros_domain):
    out, words = tmp_path / "demos.zarr", ("task:=reach", "mode:=lockstep", "episodes:=2")
    graph = real(tmp_path / "logs", "teleop", *words, f"out:={out}")
    _, said = graph.communicate(timeout=WAIT_S)
    assert graph.returncode == 0, said
    assert "it holds 2" in (tmp_path / "logs/demonstrator.log").read_text()
    assert len(EpisodeReader(out)) == 2


@needs_ros
def test_two_graphs_side_by_side_leave_nothing_behind(tmp_path, ros_domain):
    """One ends by Ctrl-C, the other loses its supervisor."""
    folders = [tmp_path / f"left{os.getpid()}", tmp_path / f"right{os.getpid()}"]
    graphs = [real(folder, "twin", "task:=reach", f"namespace:={folder.name}") for folder in folders]
    try:
        arms = [arm_of(folder) for folder in folders]
        graphs[0].send_signal(signal.SIGINT)
        graphs[1].kill()
        assert [graph.wait(WAIT_S) for graph in graphs] == [130, -signal.SIGKILL]
        wait_for(lambda: not any(map(lives, arms)), "the end of the arms")
    finally:
        for graph in graphs:
            graph.kill()
            graph.communicate()


def test_the_warden_tells_the_living_from_the_ended():
    sleeper = subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, process_group=0)
    assert sleeper.stdout is not None
    sleeper.stdout.readline()
    assert warden.alive([sleeper.pid, 2**22 + 1]) == {sleeper.pid}
    sleeper.kill()
    wait_for(lambda: warden.alive([sleeper.pid]) == set(), "its end")  # although nobody has waited for it
    sleeper.stdout.close()
    sleeper.wait()
