"""The program that ur_rtde uploads, by what it does: commands come in through input registers, answers go out through
output registers (``scripts/rtde_control.script`` of ur_rtde 1.6; command numbers: ``rtde.h``).

input_int_register_0 is the command, input_double_register_0 and on its arguments; output_int_register_0 is 1 when the
program is ready for a command, 2 when it is through with one; output_int_register_2 tells of asynchronous moves. All of
them are 24 higher where the client says so in the program. URScript itself is not interpreted: the program's text is
read only where versions of it differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.protocols import _ur_kinematics as kin
from sim.protocols._ur_arm import Arm
from sim.protocols._ur_motion import Motion, MoveJ, MoveL, ServoJ, SpeedJ, SpeedL, Stop
from sim.protocols._ur_queries import Queries, Registers

Array = NDArray[np.float64]

READY, THROUGH = 1, 2
INTERNAL_CONTACT, STOP_SCRIPT = 254, 255
STREAMED = frozenset({6, 9, 10, 11, 24, 25, 26, 27, 38, 58, 66, 67, 68, 69, 70, 71})  # leave the register at READY
RUNNING_BIT = 1 << 15  # of the register of asynchronous moves
WAYPOINT = re.compile(r"(movej|movel)\((p?)\[([^]]*)\],a=([^,]*),v=([^,]*),r=([^)]*)\)")

Steps = Iterator[None]  # of a command that takes time: one for each period


class ControlScript:
    """``look`` reads the registers and starts what they say, ``tick`` goes on with it. Both raise ValueError where the
    program dies, as URScript does, and return whether the program goes on."""

    def __init__(
        self,
        text: str,
        arm: Arm,
        inputs: MutableMapping[str, Any],
        outputs: MutableMapping[str, Any],
        contact_n: float,
        set_watchdog: Callable[[str, float], None],
        protective_stop: Callable[[str], None],
    ) -> None:
        self._arm, self._contact_n = arm, contact_n
        self._set_watchdog, self._protective_stop = set_watchdog, protective_stop
        self._registers = Registers(inputs, outputs, _offset(text))
        self._queries = Queries(arm, self._registers, contact_n, dynamics="get_mass_matrix()" in text)
        self._path = [_waypoint(found) for found in WAYPOINT.finditer(_injected(text))]
        self._knows_torque = "direct_torque(torque" in text
        # ur_rtde 1.6 reads the friction scales into variables that it then does not use.
        self._scales_friction = "viscous_scale=viscous_scaling" not in text
        self._executing = False  # a command that stays in its register runs once
        self._command: Steps | None = None  # runs, and keeps the program from looking
        self._owner = ""  # which of the program's threads moves the arm
        self._async: Steps | None = None
        self._contact: Steps | None = None
        self._internal = 0
        self._contact_steps = 0
        self._changes = self._operation = 0
        self.lasts_s = 0.0  # the last streamed command
        self._commands = self._table()
        arm.gain, arm.damping = 0.5, 0.025
        self._progress(-1)
        self._registers.put(0, READY)

    # ------------------------------------------------------------------------------------------------------- main loop

    def tick(self) -> bool:
        """One period before the arm's own."""
        for thread in ("_async", "_contact"):
            steps = getattr(self, thread)
            if steps is not None and next(steps, self) is self:
                setattr(self, thread, None)
        if self._command is not None:
            self._go_on(self._command)
            return True
        return self.look()

    def look(self) -> bool:
        """What the command register says now; takes no time."""
        if self._command is not None:
            return True
        number = self._registers.integer(0)
        if number == 0:
            number, self._internal = self._internal, 0
        if number in STREAMED:
            self._start(number)
            self._registers.put(0, READY)
        elif number == 0:
            self._executing = False
            self._arm.torque_nm = None
            self._registers.put(0, READY)
        elif not self._executing:
            self._executing = True
            self._arm.torque_nm = None
            if number == STOP_SCRIPT:
                return False
            steps = self._start(number)
            if steps is None:
                self._registers.put(0, THROUGH)
            else:
                self._go_on(steps)
        return True

    def interrupt(self) -> None:
        """The arm was stopped under it. What it was doing is over; resumed, it waits for the next command."""
        self._end_async()
        self._owner, self._contact = "", None
        if self._command is not None:
            self._command = None
            self._registers.put(0, THROUGH)

    def _start(self, number: int) -> Steps | None:
        command = self._commands.get(number)
        return None if command is None else command()

    def _go_on(self, steps: Steps) -> None:
        self._command = steps
        if next(steps, self) is self:
            self._command = None
            self._registers.put(0, THROUGH)

    # --------------------------------------------------------------------------------------------------------- motions

    def _progress(self, value: int) -> None:
        """0 begins an asynchronous operation, a negative number ends it."""
        self._changes = (self._changes + 1) % 128
        self._operation = (self._operation + (value == 0)) % 128
        register = self._changes << 16 | self._operation << 24
        register |= RUNNING_BIT | min(value, RUNNING_BIT - 1) if value >= 0 else 0
        self._registers.put(2, register)

    def _claim(self, owner: str) -> bool:
        """Make a thread the one that moves the arm; whether it was not. Raises ValueError as URScript's runtime does
        where there is another."""
        if self._owner not in ("", owner):
            raise ValueError(f"another thread is already controlling the robot: {self._owner}, not {owner}")
        fresh, self._owner = self._owner != owner, owner
        return fresh

    def _run(self, motion: Motion, owner: str = "move") -> Steps:
        """Until it is at its end."""
        self._claim(owner)
        self._arm.start(motion)
        while self._arm.motion is motion:
            yield
        self._owner = ""

    def _moving(self, motion: Callable[[], Motion]) -> Callable[[], Steps | None]:
        """A move, in the program's own thread or in one besides."""

        def begin() -> Steps | None:
            self._end_async()
            if self._registers.integer(1) != 1:
                return self._run(motion())
            self._begin_async(self._run(motion()))
            return None

        return begin

    def _begin_async(self, steps: Steps) -> None:
        def thread() -> Steps:
            self._progress(0)
            yield from steps
            self._progress(-1)

        self._async = thread()
        next(self._async, None)

    def _end_async(self) -> None:
        """Kill the thread of an asynchronous move; what the arm still moves, the next motion brakes."""
        if self._async is not None:
            self._async, self._owner = None, ""
            self._progress(-1)

    def _follow_path(self) -> Steps:
        for index, waypoint in enumerate(self._path):
            self._progress(index)
            yield from self._run(waypoint(self._arm))

    def _begin_path(self) -> Steps | None:
        self._end_async()
        if self._registers.integer(1) != 1:
            return self._follow_path()
        self._begin_async(self._follow_path())
        return None

    def _stopping(self, tcp: bool) -> Callable[[], Steps | None]:
        def begin() -> Steps | None:
            self._end_async()
            self._owner = ""
            stop = Stop(self._arm.target, self._registers.double(0), self._arm.tcp if tcp else None)
            if self._registers.integer(1) != 1:
                return self._run(stop, "stop")
            self._begin_async(self._run(stop, "stop"))
            return None

        return begin

    def _servo(self, q_rad: Array) -> None:
        if self._claim("servo"):
            self._arm.start(ServoJ())
        assert isinstance(self._arm.motion, ServoJ)
        self._arm.motion.aim(q_rad, self._registers.double(9), self._registers.double(10))
        self.lasts_s = self._registers.double(8)

    def _servo_l(self) -> None:
        near = self._arm.target.q_rad if self._arm.motion is not None else self._arm.state.q_rad
        self._servo(kin.inverse(self._registers.frame(0), self._arm.tcp, near))

    def _servo_c(self) -> None:
        """servoc as a servo to the pose: its circular blend is not emulated."""
        if self._claim("servo"):
            self._arm.start(ServoJ())
        assert isinstance(self._arm.motion, ServoJ)
        self._arm.motion.aim(kin.inverse(self._registers.frame(0), self._arm.tcp, self._arm.target.q_rad), 0.1, 300.0)

    def _speed_j(self) -> None:
        if self._claim("speedj"):
            self._arm.start(SpeedJ())
        assert isinstance(self._arm.motion, SpeedJ)
        self._arm.motion.aim(self._registers.vector(0), self._registers.double(6))
        self.lasts_s = self._registers.double(7)

    def _speed_l(self, twist: Array, a_mps2: float, owner: str = "speedl") -> None:
        if self._claim(owner):
            self._arm.start(SpeedL(self._arm.target, self._arm.tcp))
        assert isinstance(self._arm.motion, SpeedL)
        self._arm.motion.aim(twist, a_mps2)
        self.lasts_s = self._registers.double(7) if owner == "speedl" else 0.0

    def _end_stream(self, *owners: str) -> Callable[[], Steps]:
        """servo_stop, speed_stop and stop_jog: kill their threads, then stop."""

        def begin() -> Steps:
            deceleration = 1.2 if "jog" in owners else self._registers.double(0)
            tcp = None if self._owner == "speedj" else self._arm.tcp
            if self._owner in owners:
                self._owner = ""
            return self._run(Stop(self._arm.target, deceleration, tcp), "stop")

        return begin

    def _jog(self) -> None:
        feature, twist = round(self._registers.double(6)), self._registers.vector(0)
        frame = {0: np.eye(4), 1: self._arm.tcp_frame()}.get(feature, self._registers.frame(8))
        turned = np.concatenate([frame[:3, :3] @ twist[:3], frame[:3, :3] @ twist[3:]])
        self._speed_l(turned, self._registers.double(7), "jog")

    def _force(self) -> None:
        if self._registers.integer(1) != 2:
            raise ValueError(
                f"force_mode type {self._registers.integer(1)}: the twin knows type 2, a task frame that stays"
            )
        compliant = np.array([self._registers.integer(2 + axis) != 0 for axis in range(6)])
        doubles = np.array([self._registers.double(index) for index in range(18)])
        self._arm.press(self._registers.frame(0)[:3, :3], compliant, doubles[6:12], doubles[12:18])

    def _end_force(self) -> Steps:
        self._arm.end_force()
        self._owner = ""
        return self._run(Stop(self._arm.target, 10.0, self._arm.tcp), "stop")

    def _direct_torque(self) -> None:
        if self._knows_torque:
            self._claim("")
            scale = self._registers.vector(6) if self._scales_friction else np.zeros(6)
            self.lasts_s = 0.0
            self._arm.motion = None
            self._arm.torque_nm = self._registers.vector(0) + self._arm.friction(scale)

    def _free(self, free: bool) -> None:
        self._claim("")
        if free:
            self._arm.motion = None
        self._arm.free = free

    def _freedrive(self) -> None:
        axes = np.array([self._registers.integer(1 + axis) != 0 for axis in range(6)])
        if axes.all():
            self._free(True)
        else:  # a force mode without force
            self._arm.press(self._registers.frame(0)[:3, :3], axes, np.zeros(6), np.full(6, 10.0))

    def _end_freedrive(self) -> None:
        self._arm.free = False
        self._arm.end_force()

    # --------------------------------------------------------------------------------------------------------- contact

    def _until_contact(self) -> Steps:
        while not (steps := self._arm.contact_steps(self._registers.vector(6, 3), self._contact_n)):
            self._speed_l(self._registers.vector(0), self._registers.double(12))
            yield
        self._owner = ""
        yield from self._back_to_contact(steps)

    def _back_to_contact(self, steps: int) -> Steps:
        where = self._arm.q_history[-min(steps, len(self._arm.q_history))]
        self._end_async()
        self._owner = ""
        yield from self._run(Stop(self._arm.target, 3.0, self._arm.tcp), "stop")
        yield from self._run(MoveL(self._arm.target, self._arm.tcp, kin.forward(where, self._arm.tcp), 0.25, 1.2))

    def _start_contact(self) -> None:
        direction, self._contact_steps = self._registers.vector(0), 0

        def steps_now() -> int:
            moving = kin.jacobian(kin.links(self._arm.target.q_rad), self._arm.tcp)[0] @ self._arm.target.dq_radps
            way = moving[:3] if direction.sum() < 1e-10 else direction[:3]  # the sum, as the script has it
            return self._arm.contact_steps(way, self._contact_n)

        def thread() -> Steps:
            while steps_now() > 0:  # first there is none
                yield
            while not (steps := steps_now()):
                yield
            self._contact_steps, self._internal = steps, INTERNAL_CONTACT

        self._contact = thread()

    def _stop_contact(self) -> None:
        self._contact = None
        self._registers.put(1, self._contact_steps)

    def _table(self) -> dict[int, Callable[[], Steps | None]]:
        arm, registers, solve = self._arm, self._registers, self._queries.solve

        def speeds() -> tuple[float, float]:
            return registers.double(6), registers.double(7)

        def move_l(frame: Array) -> Motion:
            return MoveL(arm.target, arm.tcp, frame, *speeds())

        motions: dict[int, Callable[[], Steps | None]] = {
            1: self._moving(lambda: MoveJ(arm.target, registers.vector(0), *speeds())),
            2: self._moving(lambda: MoveJ(arm.target, solve(False), *speeds())),
            3: self._moving(lambda: move_l(registers.frame(0))),
            4: self._moving(lambda: move_l(kin.forward(registers.vector(0), arm.tcp))),
            6: self._force, 7: self._end_force,
            9: self._speed_j, 10: lambda: self._speed_l(registers.vector(0), registers.double(6)),
            11: lambda: self._servo(registers.vector(0)), 12: self._servo_c,
            15: self._end_stream("speedj", "speedl"), 16: self._end_stream("servo"),
            18: lambda: self._free(True), 19: lambda: self._free(False), 24: self._servo_l,
            31: lambda: self._protective_stop("protective_stop() of the program"),
            33: self._stopping(tcp=True), 34: self._stopping(tcp=False),
            35: lambda: self._set_watchdog(f"input_int_register_{registers.offset}", registers.double(0)),
            41: self._jog, 42: self._end_stream("jog"), 45: self._begin_path, 51: self._until_contact,
            52: self._freedrive, 53: self._end_freedrive,
            62: self._start_contact, 63: self._stop_contact, 64: lambda: registers.put(1, self._contact_steps),
            66: self._direct_torque, INTERNAL_CONTACT: lambda: self._back_to_contact(self._contact_steps),
        }  # fmt: skip
        return motions | self._queries.table()


def _offset(text: str) -> int:
    """Of the registers: the client writes it below the comment."""
    found = re.search(r"# int register offset\n\s*(\d+)", text)
    return int(found[1]) if found else 0


def _injected(text: str) -> str:
    """The waypoints that ur_rtde wrote into its program."""
    return text.partition("# inject move path\n")[2].partition("\n    end")[0]


def _waypoint(found: re.Match[str]) -> Callable[[Arm], Motion]:
    """A move of a path; blends are not emulated, the arm rests at every waypoint."""
    command, pose, numbers, a, v, _ = found.groups()
    where = np.array([float(number) for number in numbers.split(",")])

    def move(arm: Arm) -> Motion:
        if command == "movej":
            q_rad = kin.inverse(kin.to_matrix(where), arm.tcp, arm.target.q_rad) if pose else where
            return MoveJ(arm.target, q_rad, float(v), float(a))
        frame = kin.to_matrix(where) if pose else kin.forward(where, arm.tcp)
        return MoveL(arm.target, arm.tcp, frame, float(v), float(a))

    return move
