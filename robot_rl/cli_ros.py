"""The commands of ``cli.py`` that live in a ROS 2 graph: its processes, a person's calls, recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg, subcommand

ROS_ARGS: list[str] = []
"""What the command line gave behind ``--ros-args``; `ros2 launch` adds it to every node."""
Settings = UseAppendAction[tuple[tuple[str, ...], ...]]


def split_ros_args(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """``words`` without the parts from ``--ros-args`` to ``--`` or the end, as ROS defines them; and those parts."""
    ours: list[str] = []
    theirs: list[str] = []
    into = ours
    for word in words:
        if word == "--ros-args":
            into = theirs
        elif word == "--" and into is theirs:
            into = ours
        else:
            into.append(word)
    return ours, theirs


@dataclass(frozen=True)
class NodeArm:
    """Put an arm behind ROS 2: guard, energy filter and watchdog, in real time or in lock-step. Until Ctrl-C."""

    task: str
    """whose scene and bounds it has"""
    arm: str = "panda"
    world: str = "sim"
    namespace: Annotated[str, arg(metavar="NAME", help_behavior_hint="(default: the arm's name)")] = ""
    lockstep: bool = False
    """time passes only when a client asks for it; twins only"""
    rate: Annotated[float | None, arg(metavar="HZ", help_behavior_hint="(default: 500)")] = None
    """of the control loop"""
    rig: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """facts of the lab, such as rig.toml: the arm's address, the lab's bounds"""
    set: Settings = ()
    """settings of task, arm, guard, energy, lab, node and watchdog, such as watchdog.float_s=2.0"""

    def execute(self) -> int:
        from robot_rl.ros_commands import node_arm

        return node_arm(self)


@dataclass(frozen=True)
class NodeCamera:
    """Show a twin: images of its camera, and RViz markers of the scene. Follows the arm's node. Until Ctrl-C."""

    task: str
    """whose scene it shows"""
    arm: str = "panda"
    namespace: Annotated[str, arg(metavar="NAME", help_behavior_hint="(default: the arm's name)")] = ""
    """of the arm's node"""
    name: str = "front"
    """of the camera, and of its topics"""
    rate: float = 10.0
    """Hz"""
    width: int = 128
    """pixels"""
    height: int = 128
    """pixels"""
    set: Settings = ()
    """settings of task and arm, the same as the arm's node has"""

    def execute(self) -> int:
        from robot_rl.ros_commands import node_camera

        return node_camera(self)


@dataclass(frozen=True)
class Node:
    """One process of a ROS 2 graph; what follows --ros-args goes to ROS."""

    command: Annotated[NodeArm, subcommand("arm")] | Annotated[NodeCamera, subcommand("camera")]

    def execute(self) -> int:
        return self.command.execute()


@dataclass(frozen=True)
class Call:
    """Call a service of an arm's node, as a person does: clear a fault, press or release the emergency stop."""

    service: Positional[Literal["clear_fault", "home", "zero_ft", "reset_energy", "estop", "release_estop"]]
    namespace: Annotated[str, arg(metavar="NAME")] = "panda"
    """of the arm's node"""
    wait: float = 5.0
    """s to wait for the node"""

    def execute(self) -> int:
        from robot_rl.ros_commands import call

        return call(self)


@dataclass(frozen=True)
class RecordBag:
    """Record the topics of a ROS 2 graph to MCAP files that a crash cannot take with it, until Ctrl-C."""

    out: Path
    """new folder; `ros2 bag` and Foxglove read it"""
    topics: Annotated[tuple[str, ...], arg(help_behavior_hint="(default: all)")] = ()
    """names or patterns, such as '/tf*'"""
    namespace: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: all)")] = None
    """everything below it, and what --topics names besides"""
    split_mb: float = 256.0
    """MB after which the next file begins"""
    split_s: float = 600.0
    """s after which the next file begins"""
    max_mb: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: no limit)")] = None
    """MB of all files together: the oldest go"""
    queue_mb: float = 64.0
    """MB that may wait for the disk; what does not fit is dropped and counted"""

    def execute(self) -> int:
        from robot_rl.bag_commands import record_bag

        return record_bag(self, ROS_ARGS)


@dataclass(frozen=True)
class ReplayBag:
    """Play the states of a recording into the graph again, never its commands; or export its episodes, or mend it."""

    dir: Positional[Path]
    """folder of `robot-rl record-bag` or `ros2 bag record -s mcap`, or one .mcap file"""
    rate: float = 1.0
    """times the recorded pace"""
    topics: Annotated[tuple[str, ...], arg(help_behavior_hint="(default: all but commands)")] = ()
    """names or patterns, such as '/panda/current*'"""
    loop: bool = False
    """again and again, until Ctrl-C"""
    namespace_prefix: Annotated[str, arg(metavar="NAME", help_behavior_hint="")] = ""
    """put all topics below it, such as /replay"""
    export: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """instead of playing: add the whole episodes to this episode folder, such as demos.zarr"""
    namespace: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: the only one)")] = None
    """of the arm whose episodes to export"""
    arm: str = "panda"
    """whose episodes they are"""
    world: str = "ros"
    """that the episodes are filed under; `train --demos` takes them in any"""
    successes_only: bool = False
    """export no failures"""
    set: Settings = ()
    """settings of task, arm, guard and energy that the episodes were played with"""
    recover: bool = False
    """instead of playing: give files that a crash cut short their end, so that other tools read them"""

    def execute(self) -> int:
        from robot_rl.bag_commands import replay_bag

        return replay_bag(self, ROS_ARGS)


@dataclass(frozen=True)
class Up:
    """Start a graph of processes, and stop all of them when it ends or with Ctrl-C. `ros2 launch robot_rl
    GRAPH.launch.py name:=value ...` starts the same ones."""

    graph: Positional[str]
    """twin, hardware, franka, ur, crisp, actor or teleop"""
    arguments: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME:=VALUE", help_behavior_hint="")] = ()
    """of the graph, such as arm:=panda task:=peg_insert"""
    show_args: bool = False
    """say which arguments the graph takes, and start nothing"""
    print: bool = False
    """print its processes as JSON, and start nothing"""
    log_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: a new one in runs/up)")] = None
    """folder for a log file of each process"""

    def execute(self) -> int:
        from robot_rl import graph, up

        if self.show_args:
            print(graph.find(self.graph).describe())
        elif self.print:
            print(up.table(self.graph, self.arguments))
        else:
            return up.up(self.graph, self.arguments, self.log_dir)
        return 0


@dataclass(frozen=True)
class Doctor:
    """Check this machine, ROS 2 and an arm's node, and say what to do about each finding. Status 1 if one failed."""

    namespace: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """also ask the arm's node in this namespace"""
    quick: bool = False
    """leave out what draws or measures: pictures, loop jitter, round trip"""
    json: bool = False
    """print one JSON object"""

    def execute(self) -> int:
        from robot_rl.doctor import doctor

        return doctor(self.namespace, self.json, self.quick)
