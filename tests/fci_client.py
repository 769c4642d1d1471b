"""A client of Franka's control interface by hand: as much as a test wants to say, right or wrong."""

import os
import socket
from typing import Any

from sim.protocols import _fci_messages as fci
from sim.protocols._fci_messages import Command

TIMEOUT_S = 30.0


class Client:
    """TCP and UDP, blocking. Raises OSError (TimeoutError) where the robot stays silent."""

    def __init__(self, host: str, version: int = fci.VERSION) -> None:
        self.tcp = socket.create_connection((host, fci.PORT), TIMEOUT_S)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("0.0.0.0", 0))
        self.udp.settimeout(TIMEOUT_S)
        self._received = bytearray()
        self._command_id = 0
        self._server: Any = None
        self.answers: list[tuple[int, int, bytes]] = []
        self.send(Command.CONNECT, version=version, udp_port=self.udp.getsockname()[1])
        self.connected = fci.CONNECTED.unpack(self.answer()[2])

    def send(self, command: Command, **fields: Any) -> int:
        """Returns the command's id."""
        self._command_id += 1
        payload = fci.encode(fci.REQUESTS[command], **fields)
        self.tcp.sendall(fci.message(fci.HEADER, command, self._command_id, payload))
        return self._command_id

    def answer(self) -> tuple[int, int, bytes]:
        """The next TCP message: command, id, payload."""
        while not self.answers:
            some = self.tcp.recv(65536)
            if not some:
                raise ConnectionError("the robot has closed the connection")
            self._received += some
            self.answers += fci.split(self._received, fci.HEADER)
        return self.answers.pop(0)

    def ask(self, command: Command, **fields: Any) -> int:
        """The status of a command."""
        command_id = self.send(command, **fields)
        answered, answered_id, payload = self.answer()
        assert (answered, answered_id) == (command, command_id)
        return payload[0]

    def state(self) -> Any:
        """The next state; commands go back to where it came from."""
        data, self._server = self.udp.recvfrom(65536)
        return fci.decode(data, fci.ROBOT_STATE)

    def command(self, state: Any, **fields: Any) -> None:
        data = fci.encode(fci.ROBOT_COMMAND, message_id=state["message_id"], **fields)
        self.udp.sendto(data, self._server)

    def close(self) -> None:
        self.tcp.close()
        self.udp.close()


def at_normal_priority() -> None:
    """libfranka gives the thread that connects the highest real-time priority, and every thread after it inherits it:
    on two cores they would starve the twin."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def cause(server, fault, **how):
    """Through the door, as anybody would."""
    from controllers.door import Door

    door = Door(server.host)
    try:
        door.cause(fault, **how)
    finally:
        door.close()
