"""The hand of an FCI twin: what the gripper's commands do with the twin's fingers, and the port that takes them."""

from __future__ import annotations

import math
import socket
from typing import Any

from sim.protocols import _fci_messages as fci
from sim.protocols._fci_link import Port
from sim.protocols._fci_messages import GripperCommand, GripperStatus
from sim.protocols._fci_motion import DT_S
from sim.protocols._server import Server

SPEED_MAX_MPS = 0.1  # of both fingers together
FINGER_STIFFNESS_NPM = 40000.0  # of the fingers' position servo in the models: force per way it is asked beyond
ARRIVED_M = 1e-3
STALLED_TICKS = 100
STALLED_MPS = 1e-3
TEMPERATURE_C = 30
PATIENCE_TICKS = 5000  # a command that has come to no end by then has failed


class Hand:
    """``start`` a command, ``step`` every millisecond; ``finished`` says how it went."""

    def __init__(self, max_width_m: float, force_max_n: float, width_m: float, locked: bool) -> None:
        self.max_width_m, self._force_max_n, self.locked = max_width_m, force_max_n, locked
        self.width_m = self._asked_m = width_m
        self.grasped = False
        self.finished: GripperStatus | None = None
        self._command: GripperCommand | None = None
        self._goal_m, self._speed_mps, self._force_n = width_m, SPEED_MAX_MPS, force_max_n
        self._range_m = (0.0, 0.0)
        self._ticks = self._stalled = 0

    @property
    def running(self) -> bool:
        return self._command is not None

    @property
    def gripper(self) -> float:
        """What the twin's fingers are asked for, 0 open .. 1 closed."""
        return min(max(1.0 - self._asked_m / self.max_width_m, 0.0), 1.0)

    def start(self, command: GripperCommand, request: Any) -> GripperStatus | None:
        """Begin; an answer that there is at once, or None. Whoever was waiting has been told before."""
        if command == GripperCommand.STOP:
            if self._command is not None:
                self._command, self._asked_m = None, self.width_m
            return GripperStatus.SUCCESS
        goal_m, speed_mps, force_n = self.max_width_m, 0.5 * SPEED_MAX_MPS, self._force_max_n
        if command != GripperCommand.HOMING:
            goal_m, speed_mps = float(request["width"]), float(request["speed"])
        if command == GripperCommand.GRASP:
            force_n = float(request["force"])
            self._range_m = (goal_m - float(request["epsilon_inner"]), goal_m + float(request["epsilon_outer"]))
            goal_m = self.max_width_m if self.width_m < self._range_m[0] else 0.0
        numbers = (goal_m, speed_mps, force_n, *self._range_m)
        if (
            not all(map(math.isfinite, numbers))
            or not 0.0 <= goal_m <= self.max_width_m
            or min(speed_mps, force_n) <= 0
        ):
            return GripperStatus.FAIL
        if self.locked:  # the scene has welded the fingers
            at_goal = command == GripperCommand.MOVE and abs(goal_m - self.width_m) < ARRIVED_M
            return GripperStatus.SUCCESS if at_goal else GripperStatus.FAIL
        self._goal_m, self._speed_mps = goal_m, min(speed_mps, SPEED_MAX_MPS)
        self._force_n = min(force_n, self._force_max_n)
        self._command, self._ticks, self._stalled, self.grasped, self.finished = command, 0, 0, False, None
        self._asked_m = self.width_m
        return None

    def step(self, width_m: float) -> None:
        """One millisecond; the fingers are ``width_m`` apart."""
        speed_mps, self.width_m = (width_m - self.width_m) / DT_S, width_m
        if self.grasped:
            self._press()
            self.grasped = self._range_m[0] < width_m < self._range_m[1]
        if self._command is None:
            return
        self._ticks += 1
        step_m = self._speed_mps * DT_S
        self._asked_m += min(max(self._goal_m - self._asked_m, -step_m), step_m)
        if self._command == GripperCommand.GRASP:
            self._press()
        self._stalled = self._stalled + 1 if abs(speed_mps) < STALLED_MPS and self._ticks > STALLED_TICKS else 0
        arrived = abs(width_m - self._goal_m) < ARRIVED_M and self._asked_m == self._goal_m
        if arrived or self._stalled > STALLED_TICKS or self._ticks > PATIENCE_TICKS:
            self._finish(arrived)

    def _press(self) -> None:
        """Ask for no more beyond the object than what the force is."""
        way_m = 2.0 * self._force_n / FINGER_STIFFNESS_NPM
        self._asked_m = min(max(self._asked_m, self.width_m - way_m), self.width_m + way_m)

    def _finish(self, arrived: bool) -> None:
        if self._command == GripperCommand.GRASP:
            arrived = not arrived and self._range_m[0] < self.width_m < self._range_m[1]
            self.grasped = arrived
        self.finished = GripperStatus.SUCCESS if arrived else GripperStatus.UNSUCCESSFUL
        self._command = None


class GripperPort:
    """TCP 1338 and its state stream; libfranka's own time-outs apply to both."""

    def __init__(self, server: Server, hand: Hand) -> None:
        self.hand = hand
        self._server = server
        self._running = (GripperCommand.CONNECT, 0)  # who is answered next
        self._udp: socket.socket | None = None
        self._peer = ("", 0)
        self.port = Port(server, fci.GRIPPER_PORT, fci.GRIPPER_HEADER, self._answer, self._lose)

    def _lose(self) -> None:
        """The fingers go on with what they do; nobody is told."""
        self._running = (GripperCommand.CONNECT, 0)
        if self._udp is not None:
            self._server.drop(self._udp)
        self._udp = None

    def _answer(self, number: int, command_id: int, payload: bytes) -> None:
        command = GripperCommand(number)
        request = fci.decode(payload, fci.GRIPPER_REQUESTS[command])
        if command == GripperCommand.CONNECT:
            self._connect(command_id, int(request["version"]), int(request["udp_port"]))
            return
        if self.hand.running:  # the newer command is the one that counts
            self._say(GripperStatus.ABORTED)
        status = self.hand.start(command, request)
        self._running = (command, command_id)
        if status is not None:
            self._say(status)

    def _connect(self, command_id: int, version: int, udp_port: int) -> None:
        fits = version == fci.GRIPPER_VERSION
        status = fci.ConnectStatus.SUCCESS if fits else fci.ConnectStatus.INCOMPATIBLE_LIBRARY_VERSION
        if fits and self._udp is None:
            self._peer = (self.port.peer, udp_port)
            self._udp = self._server.datagrams()
        self.port.send(GripperCommand.CONNECT, command_id, fci.GRIPPER_CONNECTED.pack(status, fci.GRIPPER_VERSION))

    def _say(self, status: GripperStatus) -> None:
        command, command_id = self._running
        if command != GripperCommand.CONNECT:
            self.port.send(command, command_id, fci.GRIPPER_STATUS.pack(status))

    def report(self) -> None:
        """Answer the command that has come to its end."""
        if self.hand.finished is not None:
            self._say(self.hand.finished)
            self.hand.finished = None

    def stream(self, message_id: int) -> None:
        """One state goes out."""
        if self._udp is None:
            return
        hand = self.hand
        state = fci.encode(
            fci.GRIPPER_STATE, message_id=message_id, width=hand.width_m, max_width=hand.max_width_m,
            is_grasped=hand.grasped, temperature=TEMPERATURE_C,
        )  # fmt: skip
        try:
            self._udp.sendto(state, self._peer)
        except OSError:  # nobody listens
            return
