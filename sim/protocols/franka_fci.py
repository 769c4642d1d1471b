"""A Franka Research 3 behind Franka's control interface (FCI), version 10: what libfranka 0.18 and later talk to.

TCP 1337 takes commands, UDP streams the robot's state at 1 kHz and takes motion and torque commands back; TCP 1338 is
the hand. Unmodified clients (franky, pylibfranka, libfranka's own programs) connect to it.

Time. In real time a state goes out every millisecond, and commands that come too late are lost, as on the robot. In
``lockstep`` a running motion waits for its client. Where somebody at the door holds time, ``advance`` lets states pass
one by one, each with the client's answer to it, and returns when the last has been answered. A motion's first states
are needed by the client to begin: while time is held they go out without physics, as they do while nothing moves, so
that message ids (the robot's time in ms) count on while the twin's time stands still.

What is not here: asynchronous motion generators (Move refuses them), guiding by hand, the accelerometers (zero), joint
elasticity (``theta`` is ``q``). Motor friction is not compensated: the model's viscous damping stays.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from robot_rl.config import check, number
from sim._twin import Twin
from sim.protocols import _fci_messages as fci
from sim.protocols import _server
from sim.protocols._fci_gripper import GripperPort, Hand
from sim.protocols._fci_link import Link, Port
from sim.protocols._fci_messages import Command, MoveStatus
from sim.protocols._fci_robot import Robot

GRIPPER_PERIOD_TICKS = 20  # of its state
STANDING_S = 0.01  # between two states while time is held and nothing moves
STARTING_S = 0.05  # ... and a motion waits for its first command: long enough for the client to read each
RESENT_S = 0.1  # ... and a motion waits for ticks: keeps libfranka's time-out of 1 s away


@dataclass(frozen=True)
class Config:
    version: int = number(fci.VERSION, 1, 1000, "of the interface that the twin says it has")

    def __post_init__(self) -> None:
        check(self)


def make(config: Config, twin: Twin, host: str, lockstep: bool) -> Server:
    """Raises ValueError for an arm that is no FR3, OSError where a port is taken."""
    if twin.name != "fr3":
        raise ValueError(f"arm = '{twin.name}': FCI {fci.VERSION} is the protocol of fr3")
    return Server(config, twin, host, lockstep)


class Server(_server.Server):
    """One client at a time, as the robot has it; a second is turned away."""

    idle_s = STANDING_S
    behind_s = 0.0  # a state that is late is no reason to send the next too early: its answer would be lost

    def __init__(self, config: Config, twin: Twin, host: str, lockstep: bool = False) -> None:
        super().__init__(twin, host, 1.0 / twin.control_hz, lockstep)
        self._version = config.version
        self._robot, self._link = Robot(twin), Link()
        self._urdf = self._robot.body.urdf().encode()
        self._udp: socket.socket | None = None
        self._move_id: int | None = None
        self._message_id = 0
        self._sent_s = self._gripper_sent_s = 0.0
        try:
            self._port = Port(self, fci.PORT, fci.HEADER, self._answer_request, self._lose_client)
            self._gripper = GripperPort(self, self._make_hand())
        except OSError:
            self.close()
            raise

    def _make_hand(self) -> Hand:
        limits, locked = self.twin.limits, not self._robot.body.fingers_move
        width_m = (1.0 - self._robot.state.gripper) * limits.gripper_width_m
        return Hand(limits.gripper_width_m, limits.gripper_force_n, width_m, locked)

    # ------------------------------------------------------------------------------------------------------------- time

    def tick(self) -> None:
        robot, hand = self._robot, self._gripper.hand
        command = self._link.take(self.ticks, self._message_id)
        robot.gripper = hand.gripper
        robot.step(command)
        hand.step((1.0 - robot.state.gripper) * hand.max_width_m)
        self._settle_accounts()
        self._send_state()
        if self.ticks % GRIPPER_PERIOD_TICKS == 0:
            self._gripper.stream(self._message_id)

    def answered(self) -> bool:
        """Whether the client has answered the last state; before its first command, only held time waits for it."""
        if not self._robot.moving:
            return True
        if self._link.answered_id == 0:
            return self._holder is None
        return self._link.answered_id >= self._message_id

    def idle(self) -> None:
        moving, begun, now_s = self._robot.moving, self._link.answered_id > 0, time.monotonic()
        pause_s = STANDING_S if not moving else RESENT_S if begun else STARTING_S
        if now_s < self._sent_s + pause_s:
            return
        if moving and begun:
            self._link.send(self._robot.out.tobytes())
            self._sent_s = now_s
        else:
            self._send_state()
        self._gripper.stream(self._message_id)

    def _send_state(self) -> None:
        self._message_id += 1
        self._robot.fill_modes()
        self._robot.out["message_id"][0] = self._message_id
        self._link.send(self._robot.out.tobytes())
        self._sent_s = time.monotonic()

    def _settle_accounts(self) -> None:
        """Say what commands have come to their end."""
        if self._robot.finished is not None:
            status, self._robot.finished = self._robot.finished, None
            if self._move_id is not None:
                self._port.send(Command.MOVE, self._move_id, fci.STATUS.pack(status))
            self._move_id = None
        self._gripper.report()

    def _place(self, tcp: list[float], gripper: float, props: Mapping[str, Any]) -> dict[str, Any]:
        if self._robot.moving:
            raise ValueError("a motion runs: the arm cannot be put elsewhere under its client's hands")
        placed = super()._place(tcp, gripper, props)
        self._robot.settle()
        self._gripper.hand = self._make_hand()
        return placed

    # --------------------------------------------------------------------------------------------------------- requests

    def _lose_client(self) -> None:
        """The TCP connection is gone: a motion that runs has lost its commands for good."""
        if self._udp is not None:
            self.drop(self._udp)
        self._link.close()
        self._udp = self._move_id = None
        if self._robot.moving:
            self._robot.fail("communication_constraints_violation")
            self._robot.finished = None

    def _answer_request(self, number: int, command_id: int, payload: bytes) -> None:
        """Raises ValueError for what is no request."""
        command = Command(number)
        layout = fci.REQUESTS[command]
        request = fci.decode(payload, layout)
        if command == Command.CONNECT:
            self._connect(command_id, int(request["version"]), int(request["udp_port"]))
            return
        answer = self._urdf if command == Command.GET_ROBOT_MODEL else b""
        status = 0 if command == Command.GET_ROBOT_MODEL else self._do(command, request, layout.names or ())
        self._port.send(command, command_id, fci.STATUS.pack(status) + answer)
        if command == Command.MOVE and status == MoveStatus.MOTION_STARTED:
            self._move_id = command_id
            self._link.clear(self._message_id)
        self._settle_accounts()

    def _do(self, command: Command, request: Any, names: tuple[str, ...]) -> int:
        if command == Command.MOVE:
            return self._robot.start_move(request)
        if command == Command.STOP_MOVE:
            return self._robot.stop_move()
        if command == Command.AUTOMATIC_ERROR_RECOVERY:
            return self._robot.recover()
        return self._robot.configure({name: request[name] for name in names})

    def _connect(self, command_id: int, version: int, udp_port: int) -> None:
        fits = version == self._version
        status = fci.ConnectStatus.SUCCESS if fits else fci.ConnectStatus.INCOMPATIBLE_LIBRARY_VERSION
        self._port.send(Command.CONNECT, command_id, fci.CONNECTED.pack(status, self._version))
        if fits and self._udp is None:
            self._udp = self.datagrams()
            self._link.open(self._udp, (self._port.peer, udp_port))
            self.watch(self._udp, self._take_command)
            self._send_state()  # the client waits for one before it asks for anything else

    def _take_command(self) -> None:
        command = self._link.receive(self.ticks)
        if command is not None and self._robot.ends(command):
            self._settle_accounts()

    # ----------------------------------------------------------------------------------------------------------- faults

    def faults(self) -> Mapping[str, Callable[..., None]]:
        """Of the network (``Link``), of the robot, and of both: see the methods that they call."""
        link, robot = self._link, self._robot
        actions: dict[str, Callable[..., None]] = {
            "drop": link.drop, "delay": link.delay, "reorder": link.reorder, "corrupt": link.corrupt,
            "mute": link.silence, "user_stop": robot.user_stop, "release_user_stop": robot.release_user_stop,
            "reflex": self._reflex, "wrong_version": self._set_version, "close": self._cut, "half_open": self._freeze,
        }  # fmt: skip
        return {name: partial(self._after, action) for name, action in actions.items()}

    def _after(self, action: Callable[..., None], **how: Any) -> None:
        """Do it, and say what it has brought about."""
        action(**how)
        self._settle_accounts()

    def _reflex(self, name: str = "cartesian_reflex") -> None:
        """An error by the vendor's name."""
        if name not in fci.ERRORS:
            raise ValueError(f"unknown error '{name}': the vendor's names are {', '.join(fci.ERRORS)}")
        self._robot.fail(name)

    def _set_version(self, version: int = fci.VERSION - 1) -> None:
        """Whoever connects from now on meets another version."""
        self._version = version

    def _cut(self) -> None:
        """Close every connection of the client."""
        self._port.close()
        self._gripper.port.close()

    def _freeze(self) -> None:
        """Connections stay open, and nothing comes through any more, neither TCP nor UDP; new ones are welcome."""
        self._port.freeze()
        self._gripper.port.freeze()
