"""The graphs: what their arguments make of them, and in which order processes are due."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from robot_rl.graph import GRAPHS, Process, find, parse
from robot_rl.order import RESPAWN_LIMIT, Order

NEEDED = {
    "robot_ip": "192.0.2.1",
    "arm": "fr3",
    "controllers_file": "ur.yaml",
    "out": "demos.zarr",
    "policy": "",
}


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A folder that is a run's as far as a graph looks."""
    (tmp_path / "run.json").write_text(json.dumps({"arm": "ur5e"}))
    return str(tmp_path)


def given(name: str, run: str, **more: str) -> dict[str, str]:
    """Just what graph ``name`` cannot do without, and ``more``."""
    needed = {argument.name: NEEDED[argument.name] for argument in find(name).arguments if argument.default is None}
    return {value: text or run for value, text in needed.items()} | more


def commands(name: str, values: dict[str, str]) -> dict[str, str]:
    return {process.name: shlex.join(process.command) for process in find(name).processes(values)}


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_a_graph_can_run_and_nothing_that_commands_an_arm_starts_again(name, run):
    graph = find(name)
    everything = {"record": "bag", "cameras": "true", "policy": run}
    values = given(name, run) | {
        argument.name: everything[argument.name] for argument in graph.arguments if argument.name in everything
    }
    processes = graph.processes(values)
    order = Order(processes)
    started = []
    while due := order.due():
        for process in due:
            started.append(process.name)
            order.started(process.name)
            if process.kind == "step":
                order.ended(process.name, 0)
            order.heard(process.name, process.ready)
    assert sorted(started) == sorted(process.name for process in processes)
    assert started[0] == "recorder"  # it sees everything
    for process in processes:
        if process.respawn:
            assert process.name in {"recorder", "camera"} or process.kind == "step"
        assert not (process.kind == "job" and process.respawn)
    assert graph.description and all(argument.description for argument in graph.arguments)
    said = graph.describe()
    assert all(f"\n  {argument.name}:=  {argument.description}" in said for argument in graph.arguments)
    assert said.count("(needed)") == len(given(name, run))


def test_arguments_are_written_as_for_ros2_launch():
    assert parse(["arm:=ur5e", "settings:=a=1 b=:=2", "policy:=", "arm:=fr3"]) == {
        "arm": "fr3", "settings": "a=1 b=:=2", "policy": "",
    }  # fmt: skip
    for wrong in ("arm=panda", ":=panda", "panda", "--arm"):
        with pytest.raises(ValueError, match="write it as name:=value"):
            parse([wrong])


def test_what_cannot_be_is_an_error_that_says_what_can():
    with pytest.raises(LookupError, match=r"unknown graph 'twim': there is actor, .* Did you mean 'twin'\?"):
        find("twim")
    with pytest.raises(LookupError, match=r"unknown argument of twin 'tsk': .* Did you mean 'task'\?"):
        find("twin").processes({"tsk": "reach"})
    with pytest.raises(ValueError, match=r"mode:=lockstp: .* Did you mean 'lockstep'\?"):
        find("twin").processes({"mode": "lockstp"})
    for name in ("franka", "ur"):
        with pytest.raises(ValueError, match=rf"{name} needs robot_ip:=\.\.\. \(address of the robot\)"):
            find(name).processes({})
        with pytest.raises(ValueError, match="needs robot_ip"):
            find(name).processes({"robot_ip": ""})
    with pytest.raises(ValueError, match="settings:=a='b: No closing quotation"):
        find("twin").processes({"settings": "a='b"})
    with pytest.raises(FileNotFoundError, match="policy:=nowhere: give a run folder"):
        find("twin").processes({"policy": "nowhere"})


def test_the_twin_is_the_arms_node_and_what_is_asked_for(run):
    assert commands("twin", {}) == {"arm": "node arm --world sim --arm panda --task peg_insert --namespace panda"}
    settings = "energy.budget_j=1 task.clearance_m=0.001 arm.wrench_noise=0"
    values = {"arm": "ur5e", "namespace": "/left/", "mode": "lockstep", "rate_hz": "200", "settings": settings}
    table = commands("twin", values | {"policy": run, "record": "bag", "cameras": "true", "episodes": "3", "seed": "7"})
    assert table == {
        "recorder": "record-bag --out 'bag/{time}'",
        "arm": "node arm --world sim --arm ur5e --task peg_insert --namespace left --rate 200 --lockstep"
        f" --set {settings}",
        "camera": "node camera --arm ur5e --task peg_insert --namespace left"
        " --set task.clearance_m=0.001 arm.wrench_noise=0",
        # The task is the policy's too; guard and energy are not its business.
        "policy": f"eval {run} --world ros --episodes 3 --seed 7 --set arm.namespace=/left task.clearance_m=0.001",
    }
    process = {process.name: process for process in find("twin").processes(values | {"policy": run, "record": "bag"})}
    assert process["policy"].after == ("recorder", "arm") and process["policy"].kind == "job"
    assert process["arm"].argv()[1:4] == ("-m", "robot_rl.cli", "node")


def test_a_vendors_arm_has_its_driver_then_crisp_then_our_node(run):
    franka = find("franka").processes({"robot_ip": "192.0.2.1", "crisp_namespace": "/right"})
    assert [process.name for process in franka] == ["driver", "controllers", "arm"]
    assert [process.after for process in franka] == [(), ("driver",), ("controllers",)]
    assert franka[0].argv()[:3] == ("ros2", "launch", "crisp_controllers_robot_demos")
    assert {"robot_ip:=192.0.2.1", "arm_id:=fr3"} <= set(franka[0].argv())
    assert franka[1].kind == "step"
    assert "--world crisp --arm fr3" in shlex.join(franka[2].command)
    assert franka[2].command[-2:] == ("--set", "arm.namespace=/right")
    ur = find("ur").processes({"robot_ip": "192.0.2.1", "controllers_file": "my file.yaml"})
    assert "controllers_file:=my file.yaml" in ur[0].argv() and "ur_type:=ur5e" in ur[0].argv()
    # A driver that runs already is not started; a driver of one's own is.
    empty = {"robot_ip": "192.0.2.1", "driver_command": "", "controller_command": ""}
    assert commands("franka", empty) == commands("crisp", {})
    own = commands("franka", {"robot_ip": "192.0.2.1", "driver_command": "my_driver 'a b' {robot_ip} {other}"})
    assert own["driver"] == "'a b' 192.0.2.1 '{other}'"


def test_each_recording_has_a_folder_of_its_own():
    """Also one that had to start again."""
    recorder = find("twin").processes({"record": "bags"})[0]
    assert re.fullmatch(r"bags/\d{8}-\d{6}", recorder.argv()[-1])


def test_an_actor_finds_the_arm_its_policy_was_trained_with(run):
    assert commands("actor", {"policy": run})["policy"].endswith("--set arm.namespace=/ur5e")
    assert commands("actor", {"policy": run, "namespace": "left"})["policy"].endswith("--set arm.namespace=/left")
    with pytest.raises(ValueError, match=r"actor needs policy:=\.\.\."):
        commands("actor", {})


def test_teleop_has_a_twin_unless_the_arms_node_runs_already():
    values = {"out": "demos.zarr", "task": "reach", "settings": "task.max_steps=5 guard.lookahead_s=1"}
    table = commands("teleop", values)
    assert list(table) == ["arm", "demonstrator"]
    assert table["demonstrator"].startswith("demo record --world ros --arm panda --task reach --out demos.zarr")
    assert table["demonstrator"].endswith("--set arm.namespace=/panda task.max_steps=5")
    assert list(commands("teleop", values | {"world": "none"})) == ["demonstrator"]


# ---------------------------------------------------------------------------------------------------------------------
# Order


def names(processes: list[Process]) -> list[str]:
    return [process.name for process in processes]


def test_a_process_is_due_once_all_before_it_are_ready():
    order = Order(
        [
            Process("a", (), ready="is active"),
            Process("b", ()),
            Process("c", (), after=("a", "b")),
            Process("d", (), after=("c",)),
        ]
    )
    assert names(order.due()) == ["a", "b"] and order.due() == []
    order.started("a")
    order.started("b")
    assert order.due() == [] and names(order.awaited()) == ["a"]
    order.heard("a", "it is\x1b[1m act")  # in pieces, and in colour
    order.heard("a", "ive\x1b[0m\n")
    assert names(order.due()) == ["c"]
    order.started("c")
    assert names(order.due()) == ["d"] and order.awaited() == []


def test_what_an_end_means():
    order = Order(
        [
            Process("server", ()),
            Process("step", (), kind="step", respawn=True, ready="not looked at"),
            Process("job", (), kind="job", after=("step",)),
            Process("recorder", (), respawn=True),
            Process("needed", (), respawn=True, ready="ready"),
        ]
    )
    order.started("step")
    order.heard("step", "not looked at")
    assert "job" not in names(order.due())
    assert order.ended("step", 1) == "start again"
    assert order.ended("step", 0) == "go on"
    assert names(order.due()) == ["job"]
    assert order.ended("job", 0) == "stop" and order.ended("server", 0) == "stop" and order.ended("server", 1) == "stop"
    order.started("recorder")
    for _ in range(RESPAWN_LIMIT):
        assert order.ended("recorder", -9) == order.ended("needed", 1) == "start again"
    assert order.ended("recorder", -9) == "go on"  # nobody waits for it
    assert order.ended("needed", 1) == "stop"  # it never was ready


def test_an_order_that_can_never_be_met_is_an_error():
    with pytest.raises(ValueError, match=re.escape("process 'b': its name is taken, or ['c'] does not come before it")):
        Order([Process("b", (), after=("c",)), Process("c", ())])
    with pytest.raises(ValueError, match="process 'b': its name is taken"):
        Order([Process("b", ()), Process("b", ())])
