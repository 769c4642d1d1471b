"""The robot's modes, and the dashboard server on port 29999 that reads and changes them.

Texts: Universal Robots' "Dashboard Server e-Series, port 29999". Codes: robot and safety modes, runtime state and
status bits of the RTDE guide.
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Callable
from dataclasses import dataclass

from sim.protocols._server import Server
from sim.protocols._text_port import TextPort

PORT = 29999
GREETING = "Connected: Universal Robots Dashboard Server"
TOO_SOON = (
    "Cannot unlock protective stop until 5s after occurrence. Always inspect cause of protective stop before unlocking"
)


class RobotMode(enum.IntEnum):
    """Output robot_mode."""

    BOOTING = 2
    POWER_OFF = 3
    POWER_ON = 4
    IDLE = 5
    RUNNING = 7


class Safety(enum.IntEnum):
    """Output safety_mode; its values up to the emergency stop are those of safety_status as well."""

    NORMAL = 1
    PROTECTIVE_STOP = 3
    ROBOT_EMERGENCY_STOP = 7
    FAULT = 9


class Runtime(enum.IntEnum):
    """Output runtime_state."""

    STOPPED = 1
    PLAYING = 2
    PAUSED = 4


SAFETY_BITS = {  # output safety_status_bits; bit 10: stopped due to safety
    Safety.NORMAL: 1 << 0,
    Safety.PROTECTIVE_STOP: 1 << 2 | 1 << 10,
    Safety.ROBOT_EMERGENCY_STOP: 1 << 6 | 1 << 7 | 1 << 10,
    Safety.FAULT: 1 << 9 | 1 << 10,
}


@dataclass
class Identity:
    """Who the controller says it is."""

    version: tuple[int, int, int, int]
    serial: str
    model: str


class Machine:
    """Modes and what leads from one to another. Nothing here clears a stop by itself: unlocking, releasing and
    powering on are a person's acts, or a client's that claims to be one."""

    def __init__(self, boot_s: float, unlock_after_s: float, running: bool) -> None:
        self._boot_s, self._unlock_after_s = boot_s, unlock_after_s
        self.mode = RobotMode.RUNNING if running else RobotMode.POWER_OFF
        self.safety, self.runtime = Safety.NORMAL, Runtime.STOPPED
        self.remote = True
        self.cause = ""  # of the last stop
        self._t_s = 0.0
        self._stopped_s = -1e9
        self._next: list[tuple[float, RobotMode]] = []  # (when, mode) on the way up

    def tick(self, t_s: float) -> None:
        self._t_s = t_s
        while self._next and self._next[0][0] <= t_s:
            self.mode = self._next.pop(0)[1]

    @property
    def powered(self) -> bool:
        return self.mode in (RobotMode.POWER_ON, RobotMode.IDLE, RobotMode.RUNNING)

    @property
    def ready(self) -> bool:
        """Whether a program may move the arm."""
        return self.mode == RobotMode.RUNNING and self.safety == Safety.NORMAL

    @property
    def status_bits(self) -> int:
        """Output robot_status_bits: power on, program running."""
        return int(self.powered) | int(self.runtime == Runtime.PLAYING) << 1

    @property
    def safety_bits(self) -> int:
        return SAFETY_BITS[self.safety]

    def power_on(self) -> bool:
        if self.safety != Safety.NORMAL:
            return False
        if self.mode == RobotMode.POWER_OFF:
            self._climb(RobotMode.BOOTING, RobotMode.IDLE)
        return True

    def release_brakes(self) -> bool:
        """Powers on before where that is due."""
        if self.safety != Safety.NORMAL:
            return False
        if self.mode == RobotMode.POWER_OFF:
            self._climb(RobotMode.BOOTING, RobotMode.IDLE, RobotMode.RUNNING)
        elif self.mode == RobotMode.IDLE:
            self._climb(RobotMode.IDLE, RobotMode.RUNNING)
        elif self._next and self._next[-1][1] != RobotMode.RUNNING:
            self._next.append((self._next[-1][0] + self._boot_s, RobotMode.RUNNING))
        return True

    def _climb(self, first: RobotMode, *later: RobotMode) -> None:
        self.mode = first
        self._next = [(self._t_s + (index + 1) * self._boot_s, mode) for index, mode in enumerate(later)]

    def power_off(self) -> None:
        self.mode, self.runtime, self._next = RobotMode.POWER_OFF, Runtime.STOPPED, []

    def protective_stop(self, cause: str) -> None:
        """The program pauses; the drives hold the arm. An emergency stop stands above it."""
        if self.safety in (Safety.NORMAL, Safety.PROTECTIVE_STOP):
            self.safety, self.cause, self._stopped_s = Safety.PROTECTIVE_STOP, cause, self._t_s
            if self.runtime == Runtime.PLAYING:
                self.runtime = Runtime.PAUSED

    def unlock(self) -> str:
        """The dashboard's answer."""
        if self.safety == Safety.PROTECTIVE_STOP:
            if self._t_s < self._stopped_s + self._unlock_after_s - 1e-9:
                return TOO_SOON
            self.safety = Safety.NORMAL
        return "Protective stop releasing"

    def emergency_stop(self) -> None:
        """The button is pressed: no power, no program."""
        self.power_off()
        self.safety, self.cause = Safety.ROBOT_EMERGENCY_STOP, "emergency stop button"

    def release_emergency_stop(self) -> None:
        """The button is turned out; the arm stays without power."""
        if self.safety == Safety.ROBOT_EMERGENCY_STOP:
            self.safety = Safety.NORMAL

    def fault(self, cause: str) -> None:
        """A safety fault: only ``restart`` leads out of it."""
        self.power_off()
        self.safety, self.cause = Safety.FAULT, cause

    def restart(self) -> None:
        """restart safety: a fault is gone, and the arm without power."""
        if self.safety == Safety.FAULT:
            self.safety = Safety.NORMAL
        self.power_off()


class Dashboard(TextPort):
    """One line in, one line out. What a program does is the controller's: ``play``, ``stop`` and ``pause`` return
    whether they could."""

    def __init__(
        self,
        server: Server,
        machine: Machine,
        identity: Identity,
        play: Callable[[], bool],
        stop: Callable[[], bool],
        pause: Callable[[], bool],
    ) -> None:
        self._machine, self._identity = machine, identity
        self._play, self._stop, self._pause = play, stop, pause
        super().__init__(server, PORT)

    def greet(self, connection: socket.socket) -> None:
        self.say(connection, GREETING + "\n")

    def hear(self, connection: socket.socket, received: bytearray) -> None:
        for line in self.lines(received):
            if connection not in self.connections:
                return
            self.say(connection, self.answer(line.strip()) + "\n")
            if line.strip().lower() == "quit":
                self.drop(connection)

    def answer(self, line: str) -> str:
        """The reply to a command; upper and lower case are the same."""
        command = " ".join(line.split())
        told = self._tell(command.lower())
        if told:
            return told
        if command.lower().partition(" ")[0] in ("popup", "addtolog", "load", "setuserrole"):
            return self._with_text(command)
        acts = self._acts()
        if command.lower() not in acts:
            return f"could not understand: '{command}'"
        if not self._machine.remote and command.lower() not in ("close popup", "close safety popup", "shutdown"):
            return f"Failed to execute: {command}"
        return acts[command.lower()]()

    def _tell(self, command: str) -> str:
        """What changes nothing."""
        machine, identity = self._machine, self._identity
        running = machine.runtime == Runtime.PLAYING
        state = "PLAYING" if running else machine.runtime.name
        version = ".".join(str(part) for part in identity.version)
        return {
            "robotmode": f"Robotmode: {machine.mode.name}",
            "safetymode": f"Safetymode: {machine.safety.name}",
            "safetystatus": f"Safetystatus: {machine.safety.name}",
            "running": f"Program running: {str(running).lower()}",
            "programstate": f"{state} <unnamed>",
            "isprogramsaved": "false <unnamed>",
            "get loaded program": "No program loaded",
            "polyscopeversion": f"URSoftware {version} (twin)",
            "version": version,
            "get serial number": identity.serial,
            "get robot model": identity.model,
            "is in remote control": str(machine.remote).lower(),
            "get operational mode": "NONE",
            "quit": "Disconnected",
        }.get(command, "")

    def _with_text(self, command: str) -> str:
        word, _, rest = command.partition(" ")
        return {
            "popup": "showing popup",
            "addtolog": "Added log message",
            "load": f"File not found: {rest}",  # the twin keeps no programs
            "setuserrole": f"Setting user role: {rest}",
        }[word.lower()]

    def _acts(self) -> dict[str, Callable[[], str]]:
        machine = self._machine

        def could(could: bool, answer: str, command: str) -> str:
            return answer if could else f"Failed to execute: {command}"

        def power_off() -> str:
            self._stop()
            machine.power_off()
            return "Powering off"

        def restart() -> str:
            self._stop()
            machine.restart()
            return "Restarting safety"

        return {
            "power on": lambda: could(machine.power_on(), "Powering on", "power on"),
            "power off": power_off,
            "brake release": lambda: could(machine.release_brakes(), "Brake releasing", "brake release"),
            "unlock protective stop": machine.unlock,
            "play": lambda: could(self._play(), "Starting program", "play"),
            "stop": lambda: could(self._stop(), "Stopped", "stop"),
            "pause": lambda: could(self._pause(), "Pausing program", "pause"),
            "restart safety": restart,
            "close popup": lambda: "closing popup",
            "close safety popup": lambda: "closing safety popup",
            "clear operational mode": lambda: "operational mode is no longer controlled by Dashboard Server",
            "set operational mode manual": lambda: "Setting operational mode: manual",
            "set operational mode automatic": lambda: "Setting operational mode: automatic",
            "shutdown": lambda: "Shutting down",
        }
