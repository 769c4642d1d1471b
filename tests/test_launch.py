"""The launch files: what they name, and, where ROS's ``launch`` is installed, what they do."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import tyro

from robot_rl import cli, ros_launch
from robot_rl.graph import GRAPHS, PROGRAM, find

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "launch").glob("*.launch.py"))
NEEDED = {"robot_ip": "192.0.2.1", "arm": "fr3", "controllers_file": "ur.yaml", "out": "demos.zarr"}
WAIT_S = 60.0

needs_launch = pytest.mark.skipif(
    not importlib.util.find_spec("launch") or not importlib.util.find_spec("launch_ros"),
    reason="ROS's launch is not here",
)


def test_every_graph_has_a_launch_file_and_every_launch_file_is_a_graphs(monkeypatch):
    assert [path.name for path in FILES] == sorted(f"{name}.launch.py" for name in GRAPHS)
    monkeypatch.setattr(ros_launch, "launch_description", lambda name: name)
    for path in FILES:
        module = runpy.run_path(str(path))
        assert f"{module['generate_launch_description']()}.launch.py" == path.name
        assert path.name in module["__doc__"]


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_our_processes_are_commands_that_there_are(name, tmp_path):
    """With everything switched on: the command line takes each of them."""
    (tmp_path / "run.json").write_text(json.dumps({"arm": "panda"}))
    more = {"policy": str(tmp_path), "record": "bag", "cameras": "true", "mode": "lockstep", "seed": "3"}
    more |= {"settings": "task.max_steps=5 arm.x=1 guard.y=2", **NEEDED}
    graph = find(name)
    values = {argument.name: more[argument.name] for argument in graph.arguments if argument.name in more}
    for process in graph.processes(values):
        if process.program == PROGRAM:
            tyro.cli(
                cli.Command,
                args=process.command,
                config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )


@needs_launch
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_launch_file_declares_the_arguments_of_its_graph(path):
    description = runpy.run_path(str(path))["generate_launch_description"]()
    declared = {argument.name: argument for argument in description.get_launch_arguments()}
    arguments = find(path.name.removesuffix(".launch.py")).arguments
    assert list(declared) == [argument.name for argument in arguments]
    for argument in arguments:
        there = declared[argument.name]
        default = None if there.default_value is None else "".join(part.text for part in there.default_value)
        assert default == argument.default and there.description.startswith(argument.description)
        assert tuple(there.choices or ()) == argument.choices


GRAPH = """
import sys
from pathlib import Path
from robot_rl import graph, ros_launch
from robot_rl.graph import Argument, Graph, Process

ros_launch.RESPAWN_DELAY_S = 0.01
HERE = Path(__file__).parent
SAY = f"import os, sys, time; say = lambda w: open({str(HERE / 'events')!r}, 'a').write(w + ' '); "
SERVE = "say('{0}+')\\ntry: print('it is ', end='', flush=True); time.sleep(.2); print('active'); time.sleep(600)\\n"
SERVE += "except KeyboardInterrupt: say('{0}-')"


def python(name, code, **fields):
    return Process(name, ("-u", "-c", SAY + code.format(name)), program=sys.executable, **fields)


def build(values):
    flag = str(HERE / "flag")
    return (
        python("arm", SERVE, ready="is active"),
        python("step", f"there = os.path.exists({flag!r}); open({flag!r}, 'w'); say('step'); sys.exit(not there)",
               kind="step", after=("arm",), respawn=True),
        python("job", values["job"], kind="job", after=("step",)),
    )


graph.GRAPHS["small"] = Graph("small", "", (Argument("job", "its code"),), build)


def generate_launch_description():
    return ros_launch.launch_description("small")
"""
LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import AnyLaunchDescriptionSource

file, *words = sys.argv[1:]
arguments = [tuple(word.split(":=", 1)) for word in words]
include = IncludeLaunchDescription(AnyLaunchDescriptionSource(file), launch_arguments=arguments)
service = LaunchService(argv=words)
service.include_launch_description(LaunchDescription([include]))
sys.exit(service.run())
"""
"""What `ros2 launch FILE name:=value ...` does."""


def launch(folder: Path, file: Path, words: Sequence[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "ROS_LOG_DIR": str(folder / "log")}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(file), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment | {"PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,
    )


@needs_launch
@pytest.mark.parametrize(("code", "status"), [("say('job')", 0), ("say('job'); sys.exit(4)", 1)])
def test_a_launched_graph_keeps_the_order_and_ends_with_its_job(tmp_path, code, status):
    file = tmp_path / "small.launch.py"
    file.write_text(GRAPH)
    process = launch(tmp_path, file, [f"job:={code}"])
    said, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == status, said
    assert (tmp_path / "events").read_text().split() == ["arm+", "step", "step", "job", "arm-"]
    assert ("job ended with status 4" in said) == (status == 1)


@needs_launch
def test_ctrl_c_ends_a_launched_graph(tmp_path):
    file = tmp_path / "small.launch.py"
    file.write_text(GRAPH)
    process = launch(
        tmp_path, file, ["job:=" + "say('{0}+')\ntry: time.sleep(600)\nexcept KeyboardInterrupt: say('{0}-')"]
    )
    events, deadline_s = tmp_path / "events", time.monotonic() + WAIT_S
    while not events.exists() or "job+" not in events.read_text():
        assert time.monotonic() < deadline_s and process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, on which launch relies
    process.communicate(timeout=WAIT_S)
    assert sorted(events.read_text().split()[-2:]) == ["arm-", "job-"]


@needs_launch
def test_what_a_graph_cannot_start_with_is_an_error(tmp_path):
    for file, words, message in (
        ("franka", [], "missing required argument 'robot_ip'"),
        ("twin", ["mode:=fast"], "Valid options are: ['realtime', 'lockstep']"),
        ("twin", ["policy:=nowhere"], "policy:=nowhere: give a run folder"),
    ):
        process = launch(tmp_path, ROOT / "launch" / f"{file}.launch.py", words)
        said, _ = process.communicate(timeout=WAIT_S)
        assert process.returncode == 1 and message in said
