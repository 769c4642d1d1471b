"""Ports 30001 to 30003: programs come in as text. ur_rtde's is run by ``_ur_program``; of any other the twin
understands single commands, one a line, and says on stderr which lines it does not.
"""

from __future__ import annotations

import ast
import re
import socket
import sys
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import numpy as np

from sim.protocols import _ur_kinematics as kin
from sim.protocols._server import Server
from sim.protocols._text_port import TextPort
from sim.protocols._ur_arm import PERIOD_S, Arm, Payload
from sim.protocols._ur_motion import Motion, MoveJ, MoveL, Stop

PORTS = (30001, 30002, 30003)
CALL = re.compile(r"(\w+)\((.*)\)$")


def split(received: bytearray) -> list[str]:
    """Remove every whole program from what was received: ``def`` to the ``end`` in the same column, or one line."""
    programs: list[str] = []
    while True:
        text = bytes(received)
        line, newline, _ = text.partition(b"\n")
        if not newline:
            return programs
        end = len(line) + 1
        if line.startswith((b"def ", b"sec ")):
            found = re.search(rb"\nend[ \t\r]*\n", text)
            if found is None:
                return programs
            end = found.end()
        program = text[:end].decode("utf-8", "replace")
        del received[:end]
        if program.strip():
            programs.append(program)


class ScriptPorts(TextPort):
    """Takes programs and hands each to ``run``; nothing is sent back."""

    max_bytes = 1 << 20

    def __init__(self, server: Server, run: Callable[[str], None]) -> None:
        self._run = run
        super().__init__(server, *PORTS)

    def hear(self, connection: socket.socket, received: bytearray) -> None:
        for program in split(received):
            if not self.silent:
                self._run(program)


class LineScript:
    """A program of single commands, run in their order. ``tick`` raises ValueError where one cannot be run, and returns
    whether the program goes on."""

    def __init__(self, text: str, arm: Arm, outputs: MutableMapping[str, Any], power_down: Callable[[], None]) -> None:
        self._arm, self._outputs, self._power_down = arm, outputs, power_down
        self.lasts_s = 0.0
        lines = [line.split("#")[0].strip() for line in text.splitlines()]
        self._steps = self._run([line for line in lines if line and line != "end" and line[:4] not in ("def ", "sec ")])

    def tick(self) -> bool:
        return next(self._steps, self) is not self

    def look(self) -> bool:
        """Nothing of it happens without time."""
        return True

    def interrupt(self) -> None:
        """A move that was stopped under it is over."""

    def _run(self, lines: list[str]) -> Iterator[None]:
        commands = self._table()
        for line in lines:
            found = CALL.match(line)
            if found is None or found[1] not in commands:
                print(f"script line not understood: {line}", file=sys.stderr, flush=True)
                continue
            try:
                call = ast.parse(f"f({_plain(found[2])})", mode="eval").body
                assert isinstance(call, ast.Call)
                values = [ast.literal_eval(value) for value in call.args]
                named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
                started = commands[found[1]](*values, **named)
            except (ValueError, TypeError, SyntaxError) as error:
                raise ValueError(f"script line '{line}': {error}") from error
            if isinstance(started, float):
                for _ in range(round(started / PERIOD_S)):
                    yield
            elif started is not None:
                self._arm.start(started)
                while self._arm.motion is started:
                    yield
        yield

    def _table(self) -> dict[str, Callable[..., Motion | float | None]]:
        """What returns a motion or a number of seconds is waited for."""
        arm = self._arm

        def movej(where: Any, a: float = 1.4, v: float = 1.05, t: float = 0, r: float = 0) -> Motion:
            q_rad = np.array(_numbers(where), np.float64)
            if isinstance(where, tuple):
                q_rad = kin.inverse(kin.to_matrix(q_rad), arm.tcp, arm.target.q_rad)
            return MoveJ(arm.target, q_rad, v, a)

        def movel(where: Any, a: float = 1.2, v: float = 0.25, t: float = 0, r: float = 0) -> Motion:
            numbers = np.array(_numbers(where), np.float64)
            pose = kin.to_matrix(numbers) if isinstance(where, tuple) else kin.forward(numbers, arm.tcp)
            return MoveL(arm.target, arm.tcp, pose, v, a)

        def set_payload(m: float, cog: Any = (0.0, 0.0, 0.0)) -> None:
            arm.payload = Payload(float(m), np.array(cog, np.float64))

        def set_tcp(pose: Any) -> None:
            arm.tcp = kin.to_matrix(np.array(_numbers(pose), np.float64))

        def write(kind: str) -> Callable[[int, float], None]:
            return lambda index, value: self._outputs.update({f"output_{kind}_register_{int(index)}": value})

        return {
            "movej": movej, "movel": movel, "set_payload": set_payload, "set_tcp": set_tcp,
            "stopj": lambda a=2.0: Stop(arm.target, a), "stopl": lambda a=1.2: Stop(arm.target, a, arm.tcp),
            "zero_ftsensor": arm.zero_sensor, "sleep": float, "sync": lambda: PERIOD_S, "powerdown": self._power_down,
            "textmsg": lambda *texts: print("textmsg:", *texts, file=sys.stderr, flush=True),
            "popup": lambda *texts, **_: print("popup:", *texts, file=sys.stderr, flush=True),
            "write_output_integer_register": write("int"), "write_output_float_register": write("double"),
        }  # fmt: skip


def _plain(arguments: str) -> str:
    """URScript's literals as Python's: a pose is a tuple, a list of numbers a list."""
    return re.sub(r"\bp\[([^]]*)\]", r"(\1,)", arguments)


def _numbers(where: Any) -> list[float]:
    if len(where) != 6 or not np.isfinite(where).all():
        raise ValueError(f"{list(where)}: give 6 finite numbers")
    return [float(number) for number in where]
