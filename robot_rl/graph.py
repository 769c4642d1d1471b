"""The graphs of processes there are: ``robot-rl up`` and ``ros2 launch`` start the very same ones.

    for process in find("twin").processes(parse(["arm:=ur5e", "mode:=lockstep"])):
        print(process.name, process.argv())

Only the standard library is needed.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from robot_rl.find import nearest

PROGRAM = "robot-rl"
Values = Mapping[str, str]
"""Arguments by name, all of them there and checked."""
Kind = Literal["server", "step", "job"]
"""A server runs until it is stopped: that it ends is a failure. A step has to end well before what comes after it may
start. A job is what the graph is there for: it ends, and the graph with it."""


@dataclass(frozen=True)
class Argument:
    """``name:=value`` of a graph."""

    name: str
    description: str
    default: str | None = None  # None: it has to be given
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Process:
    """One process of a graph. Nothing that commands an arm starts by itself again."""

    name: str
    command: tuple[str, ...]  # what follows the program; "{time}" in it is when the process starts
    program: str = PROGRAM
    kind: Kind = "server"
    ready: str = ""  # its output says so once it serves; empty: it does from its start
    after: tuple[str, ...] = ()  # names of processes that have to be ready first
    respawn: bool = False  # a server: starts again, however it ended; a step: is tried again

    def argv(self) -> tuple[str, ...]:
        """The whole command, to start now; ours runs with this Python, wherever its script is."""
        first = (sys.executable, "-m", "robot_rl.cli") if self.program == PROGRAM else (self.program,)
        now = time.strftime("%Y%m%d-%H%M%S")
        return (*first, *(word.replace("{time}", now) for word in self.command))


@dataclass(frozen=True)
class Graph:
    """What a graph is called with, and the processes it consists of then."""

    name: str
    description: str
    arguments: tuple[Argument, ...]
    build: Callable[[Values], tuple[Process, ...]]

    def processes(self, given: Values) -> tuple[Process, ...]:
        """In the order in which they start. Raises LookupError for an argument that there is not, ValueError for one
        that is missing or cannot be, FileNotFoundError for a run folder that is not there."""
        return self.build(self.resolve(given))

    def describe(self) -> str:
        """For a person: what it is, and a line for each argument."""
        lines = [f"{self.name}: {self.description}"]
        for argument in self.arguments:
            choices = f" ({' or '.join(argument.choices)})" if argument.choices else ""
            default = " (needed)" if argument.default is None else f" (default: '{argument.default}')"
            lines.append(f"  {argument.name}:=  {argument.description}{choices}{default}")
        return "\n".join(lines)

    def resolve(self, given: Values) -> dict[str, str]:
        """``given`` with all defaults; raises as ``processes`` does."""
        valid = {argument.name for argument in self.arguments}
        for name in given:
            if name not in valid:
                raise LookupError(nearest(f"argument of {self.name}", name, valid))
        values = {}
        for argument in self.arguments:
            value = given.get(argument.name, argument.default)
            if value is None or (argument.default is None and not value):
                raise ValueError(f"{self.name} needs {argument.name}:=... ({argument.description})")
            if argument.choices and value not in argument.choices:
                raise ValueError(f"{argument.name}:={value}: {nearest('value', value, argument.choices)}")
            values[argument.name] = value
        return values


def parse(words: Iterable[str]) -> dict[str, str]:
    """``["arm:=panda"] -> {"arm": "panda"}``, the last of each name; raises ValueError for another form."""
    given = {}
    for word in words:
        name, sign, value = word.partition(":=")
        if not name or not sign:
            raise ValueError(f"'{word}': write it as name:=value, such as arm:=panda")
        given[name] = value
    return given


def find(name: str) -> Graph:
    """Raises LookupError that lists the graphs and the nearest."""
    if name not in GRAPHS:
        raise LookupError(nearest("graph", name, GRAPHS))
    return GRAPHS[name]


# ---------------------------------------------------------------------------------------------------------------------
# Arguments that several graphs have

_ARM = Argument("arm", "which arm, see `robot-rl tasks`", "panda")
_TASK = Argument("task", "which task, see `robot-rl tasks`; its bounds are the guard's", "peg_insert")
_NAMESPACE = Argument("namespace", "namespace of the arm's topics (empty: the arm's name)", "")
_RATE = Argument("rate_hz", "rate of the arm's control loop; empty: 500, or what the arm takes", "")
_SETTINGS = Argument(
    "settings", "settings of task, arm, guard and energy, such as 'energy.budget_j=1 task.clearance_m=0.001'", ""
)
_MODE = Argument(
    "mode", "realtime, or lockstep: time passes only when the policy steps, and always in the same way", "realtime",
    ("realtime", "lockstep"),
)  # fmt: skip
_CAMERAS = Argument("cameras", "publish camera images and RViz markers of the scene", "false", ("true", "false"))
_RECORD = Argument("record", "folder for recordings of all topics, each named after its time (empty: none)", "")
_POLICY = Argument("policy", "run folder whose policy is evaluated (empty: none)", "")
_EPISODES = Argument("episodes", "how many", "100")
_SEED = Argument("seed", "of the episodes (empty: the run's)", "")
_ROBOT_IP = Argument("robot_ip", "address of the robot")
_CRISP = (
    Argument("crisp_namespace", "namespace of CRISP's own topics (empty: none)", ""),
    _TASK, _NAMESPACE, _RATE, _SETTINGS, _POLICY, _EPISODES, _SEED, _RECORD,
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Processes that several graphs have


def _words(values: Values, name: str) -> list[str]:
    """The words of an argument, as a shell would read them."""
    try:
        return shlex.split(values[name])
    except ValueError as error:
        raise ValueError(f"{name}:={values[name]}: {error}") from None


def _namespace(values: Values) -> str:
    """Without its slash; the arm's name where none is given, and the arm a policy was trained with where that is all
    there is."""
    return values["namespace"].strip("/") or values.get("arm") or str(_run(values["policy"])["arm"])


def _run(folder: str) -> dict[str, Any]:
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"policy:={folder}: give a run folder, such as runs/reach-rlpd-0")
    run: dict[str, Any] = json.loads(path.read_text())
    return run


def _only(settings: Iterable[str], *sections: str) -> list[str]:
    """The settings that another process has to share with the arm's node; the others are the node's only."""
    return [setting for setting in settings if setting.partition(".")[0] in sections]


def _arm(values: Values, world: str, settings: Iterable[str] = (), after: tuple[str, ...] = ()) -> Process:
    command = ["node", "arm", "--world", world, "--arm", values["arm"], "--task", values["task"]]
    command += ["--namespace", _namespace(values)]
    command += ["--rate", values["rate_hz"]] if values["rate_hz"] else []
    if values.get("mode") == "lockstep":
        command.append("--lockstep")
    settings = [*settings, *_words(values, "settings")]
    return Process("arm", (*command, *(["--set", *settings] if settings else [])), ready="is active", after=after)


def _recorder(values: Values) -> tuple[Process, ...]:
    """First, so that it sees everything, and stops last. A new folder each time: a recording never goes on in one."""
    if not values["record"]:
        return ()
    command = ("record-bag", "--out", f"{values['record']}/{{time}}")
    return (Process("recorder", command, ready="recording into", respawn=True),)


def _camera(values: Values) -> tuple[Process, ...]:
    if values["cameras"] == "false":
        return ()
    command = ["node", "camera", "--arm", values["arm"], "--task", values["task"], "--namespace", _namespace(values)]
    settings = _only(_words(values, "settings"), "task", "arm")
    return (Process("camera", (*command, *(["--set", *settings] if settings else [])), after=("arm",), respawn=True),)


def _policy(values: Values, settings: Iterable[str], after: Iterable[Process]) -> tuple[Process, ...]:
    """Evaluates a run over ROS; ends the graph."""
    if not values["policy"]:
        return ()
    _run(values["policy"])
    command = ["eval", values["policy"], "--world", "ros", "--episodes", values["episodes"]]
    command += ["--seed", values["seed"]] if values["seed"] else []
    command += ["--set", f"arm.namespace=/{_namespace(values)}", *_only(settings, "task")]
    return (Process("policy", tuple(command), kind="job", after=tuple(process.name for process in after)),)


# ---------------------------------------------------------------------------------------------------------------------
# Graphs


def _twin(values: Values) -> tuple[Process, ...]:
    served = (*_recorder(values), _arm(values, "sim"))
    return (*served, *_camera(values), *_policy(values, _words(values, "settings"), served))


def _crisp(values: Values, before: tuple[Process, ...] = ()) -> tuple[Process, ...]:
    settings = [f"arm.namespace=/{values['crisp_namespace'].strip('/')}"]
    arm = _arm(values, "crisp", settings, after=tuple(process.name for process in before[-1:]))
    served = (*_recorder(values), *before, arm)
    return (*served, *_policy(values, _words(values, "settings"), served))


def _hardware(values: Values) -> tuple[Process, ...]:
    served = (*_recorder(values), _arm(values, "hardware", [f"arm.address={values['robot_ip']}"]))
    return (*served, *_policy(values, _words(values, "settings"), served))


def _vendor(values: Values) -> tuple[Process, ...]:
    """The maker's driver, then CRISP's controllers in it, then what ``crisp`` starts."""
    driver, controllers = _filled(values, "driver_command"), _filled(values, "controller_command")
    before: list[Process] = []
    if driver:
        before.append(Process("driver", tuple(driver[1:]), driver[0], ready=values["driver_ready"]))
    if controllers:  # tried again: the driver may still be loading them
        after = tuple(process.name for process in before)
        before.append(
            Process("controllers", tuple(controllers[1:]), controllers[0], kind="step", after=after, respawn=True)
        )
    return _crisp(values, tuple(before))


def _filled(values: Values, name: str) -> list[str]:
    """The words of an argument, with other arguments in place of their names in braces."""
    words = _words(values, name)
    for other in ("robot_ip", "arm", "controllers_file"):
        words = [word.replace(f"{{{other}}}", values.get(other, "")) for word in words]
    return words


def _actor(values: Values) -> tuple[Process, ...]:
    served = _recorder(values)
    return (*served, *_policy(values, _words(values, "settings"), served))


def _teleop(values: Values) -> tuple[Process, ...]:
    served = (*_recorder(values), *([_arm(values, "sim")] if values["world"] == "sim" else []))
    command = ["demo", "record", "--world", "ros", "--arm", values["arm"], "--task", values["task"]]
    command += ["--out", values["out"], "--episodes", values["episodes"], "--seed", values["seed"]]
    command += ["--set", f"arm.namespace=/{_namespace(values)}", *_only(_words(values, "settings"), "task")]
    after = tuple(process.name for process in served)
    return (*served, Process("demonstrator", tuple(command), kind="job", after=after))


def _driver(command: str, ready: str, controllers: str) -> tuple[Argument, ...]:
    return (
        Argument(
            "driver_command",
            "starts the robot's driver; {robot_ip} and {arm} are filled in (empty: it runs already)",
            command,
        ),
        Argument("driver_ready", "the driver's output says so once it serves (empty: do not wait for it)", ready),
        Argument("controller_command", "activates CRISP's controller, and ends (empty: it is active)", controllers),
    )


_FRANKA = _driver(
    "ros2 launch crisp_controllers_robot_demos franka.launch.py robot_ip:={robot_ip} arm_id:={arm}",
    "activated joint_trajectory_controller",
    "ros2 control switch_controllers --strict --deactivate joint_trajectory_controller"
    " --activate cartesian_impedance_controller",
)
_UR = _driver(
    "ros2 launch ur_robot_driver ur_control.launch.py ur_type:={arm} robot_ip:={robot_ip}"
    " controllers_file:={controllers_file} activate_joint_controller:=false headless_mode:=true launch_rviz:=false",
    "",
    "ros2 run controller_manager spawner pose_broadcaster cartesian_impedance_controller"
    " --controller-manager-timeout 60",
)
_CONTROLLERS_FILE = Argument(
    "controllers_file", "the driver's ur_controllers.yaml with CRISP's pose_broadcaster and"
    " cartesian_impedance_controller added",
)  # fmt: skip

_ALL = (
    Graph(
        "twin", "The arm's node around a twin, with cameras, a policy and a recording where wanted.",
        (_ARM, _TASK, _NAMESPACE, _MODE, _RATE, _SETTINGS, _CAMERAS, _POLICY, _EPISODES, _SEED, _RECORD), _twin,
    ),
    Graph(
        "hardware", "The arm's node around our own driver of a real arm: no other driver is needed.",
        (
            _ROBOT_IP, Argument("arm", "which arm, see `robot-rl tasks`"),
            _TASK, _NAMESPACE, _RATE, _SETTINGS, _POLICY, _EPISODES, _SEED, _RECORD,
        ), _hardware,
    ),
    Graph(
        "crisp", "The arm's node (guard, energy filter, watchdog) in front of an arm that runs CRISP's controllers.",
        (Argument("arm", "which arm", "fr3"), *_CRISP), _crisp,
    ),
    Graph(
        "franka", "A Franka arm: its driver with CRISP's controllers, and what `crisp` starts.",
        (_ROBOT_IP, Argument("arm", "which arm", "fr3", ("fr3",)), *_FRANKA, *_CRISP), _vendor,
    ),
    Graph(
        "ur", "A Universal Robots arm: its driver with CRISP's controllers, and what `crisp` starts.",
        (_ROBOT_IP, _CONTROLLERS_FILE, Argument("arm", "which arm", "ur5e"), *_UR, *_CRISP), _vendor,
    ),
    Graph(
        "actor", "A policy for an arm whose node runs already; it is never started again by itself.",
        (
            Argument("policy", "run folder whose policy is evaluated"),
            Argument("namespace", "namespace of the arm's topics (empty: the run's arm)", ""),
            _SETTINGS, _EPISODES, _SEED, _RECORD,
        ), _actor,
    ),
    Graph(
        "teleop", "Demonstrations over ROS, by the task's scripted expert.",
        (
            Argument("out", "episode folder, such as demos.zarr; what it holds stays"),
            Argument("world", "sim starts a twin; none: the arm's node runs already", "sim", ("sim", "none")),
            _ARM, _TASK, _NAMESPACE, _MODE, _RATE, _SETTINGS, Argument("episodes", "successful ones to add", "20"),
            Argument("seed", "of the episodes", "0"), _RECORD,
        ), _teleop,
    ),
)  # fmt: skip
GRAPHS = {graph.name: graph for graph in _ALL}
