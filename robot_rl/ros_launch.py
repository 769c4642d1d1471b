"""The graphs for ``ros2 launch``: what the files of launch/ consist of. Needs ROS's ``launch`` and ``launch_ros``.

The processes, what waits for what, and what starts again are those of ``robot-rl up``. Two things are ROS's: on a
shutdown all processes get their SIGINT at once, not in reverse order, and its status is 1 whatever a process's was.
"""

from __future__ import annotations

import importlib
from typing import Any

from robot_rl.graph import PROGRAM, Process, find
from robot_rl.order import RESPAWN_DELAY_S, Order
from robot_rl.warden import LADDER


def launch_description(name: str) -> Any:
    """The ``launch.LaunchDescription`` of the graph ``name``, with its arguments declared."""
    launch = importlib.import_module("launch")
    actions = importlib.import_module("launch.actions")
    graph = find(name)
    declared = [
        actions.DeclareLaunchArgument(
            argument.name,
            default_value=argument.default,
            description=argument.description,
            choices=list(argument.choices) or None,
        )
        for argument in graph.arguments
    ]

    def start(context: Any) -> list[Any]:
        values = {argument.name: context.launch_configurations[argument.name] for argument in graph.arguments}
        return _Launcher(graph.processes(values)).due()

    return launch.LaunchDescription([*declared, actions.OpaqueFunction(function=start)])


class _Launcher:
    """Answers events of processes with actions."""

    def __init__(self, processes: tuple[Process, ...]) -> None:
        self._actions = importlib.import_module("launch.actions")
        self._handlers = importlib.import_module("launch.event_handlers")
        self._nodes = importlib.import_module("launch_ros.actions")
        self._order = Order(processes)

    def due(self) -> list[Any]:
        return [action for process in self._order.due() for action in self._start(process)]

    def _start(self, process: Process) -> list[Any]:
        action = self._action(process)

        def on_start(event: Any, context: Any) -> list[Any]:
            self._order.started(process.name)
            return self.due()

        def on_output(event: Any) -> list[Any]:
            self._order.heard(process.name, event.text.decode(errors="replace"))
            return self.due()

        def on_exit(event: Any, context: Any) -> list[Any]:
            return [] if context.is_shutdown else self._end(process, event.returncode)

        handlers = (
            self._handlers.OnProcessStart(target_action=action, on_start=on_start),
            self._handlers.OnProcessIO(target_action=action, on_stdout=on_output, on_stderr=on_output),
            self._handlers.OnProcessExit(target_action=action, on_exit=on_exit),
        )
        return [*(self._actions.RegisterEventHandler(handler) for handler in handlers), action]

    def _action(self, process: Process) -> Any:
        """Nodes of ours as ROS nodes, which take remappings and parameters; what else there is as plain processes."""
        (_, sigint_s), (_, sigterm_s), _ = LADDER
        common = {
            "output": "screen",
            "additional_env": {"PYTHONUNBUFFERED": "1"},
            "sigterm_timeout": str(sigint_s),
            "sigkill_timeout": str(sigterm_s),
        }
        if process.program == PROGRAM and process.command[0] == "node":
            # By this Python, as `up` does: our script is on no PATH that both pip and colcon know.
            program, *arguments = process.argv()
            return self._nodes.Node(executable=program, arguments=arguments, exec_name=process.name, **common)
        return self._actions.ExecuteProcess(cmd=list(process.argv()), name=process.name, **common)

    def _end(self, process: Process, status: int) -> list[Any]:
        """What follows from the end of a process; raises RuntimeError, which ends `ros2 launch` with status 1, where
        it should not have ended."""
        verdict = self._order.ended(process.name, status)
        if verdict == "start again":
            return [self._actions.TimerAction(period=RESPAWN_DELAY_S, actions=self._start(process))]
        if verdict == "stop" and process.kind == "job" and status == 0:
            return [self._actions.Shutdown(reason=f"{process.name} has ended well")]
        if verdict == "stop":
            raise RuntimeError(f"{process.name} ended with status {status}")
        return self.due()
