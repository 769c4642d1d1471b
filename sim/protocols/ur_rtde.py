"""A UR5e behind Universal Robots' own protocols: RTDE on port 30004, programs on 30001 to 30003, the dashboard on 29999
and a Robotiq gripper on 63352. Unmodified clients control it, ur_rtde above all.

Forces are those that the surroundings exert on the tool (pressed down onto a table, Fz > 0), as actual_TCP_force has
them. ``answered`` makes lock-step of it: a servo command lasts as long as it said, then time waits for the next.

Not emulated: safety planes and reduced mode, blends, the arm's thermal and electrical side (currents are torques over a
constant), URScript beyond what ``_ur_program`` and ``_ur_script`` say.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robot_rl.config import check, number
from sim._twin import Twin
from sim.protocols import _rtde_port, _ur_state
from sim.protocols._robotiq import Gripper
from sim.protocols._rtde_fields import INPUTS, OUTPUTS, zero
from sim.protocols._server import Server as BaseServer
from sim.protocols._ur_arm import PERIOD_S, Arm, Payload, Trips
from sim.protocols._ur_dashboard import Dashboard, Identity, Machine, Runtime
from sim.protocols._ur_program import ControlScript
from sim.protocols._ur_script import LineScript, ScriptPorts


@dataclass(frozen=True)
class Config:
    """The robot that is emulated, and how its sensor errs."""

    version: str = "5.26.0.1234567"  # of PolyScope; what ur_rtde offers depends on it
    serial: str = "20265500001"
    running: bool = True  # brakes released at the beginning; otherwise powered off
    remote: bool = True  # in remote control at the beginning
    boot_s: float = number(0.5, 0.0, 60.0, "s for each of power on and brake release; a real arm takes ten")
    unlock_after_s: float = number(5.0, 0.0, 60.0, "s after a protective stop before it can be unlocked")
    stop_force_n: float = number(150.0, 1.0, 1e4, "N of contact at the tool that trip a protective stop")
    stop_torque_nm: float = number(30.0, 0.1, 1e3, "Nm, the same")
    stop_path_rad: float = number(0.1, 1e-3, 1.0, "rad of a joint from its path, the same")
    contact_n: float = number(5.0, 0.1, 1e3, "N that tool_contact takes for a contact")
    tcp: tuple[float, ...] = number((0.0, 0.0, 0.1577, 0.0, 0.0, 0.0), -10.0, 10.0, "m, rad: of the model's own tcp")
    payload_kg: float = number(1.12, 0.0, 20.0, "kg that really hang on the flange")
    payload_cog_m: tuple[float, ...] = number((0.0, 0.0, 0.06), -1.0, 1.0, "m, its centre of mass")
    set_payload_kg: float = number(1.12, 0.0, 20.0, "kg that the controller is told at the beginning")
    set_payload_cog_m: tuple[float, ...] = number((0.0, 0.0, 0.06), -1.0, 1.0, "m, the same")
    ft_bias: tuple[float, ...] = number((0.0,) * 6, -100.0, 100.0, "N, Nm of the sensor, in the flange's frame")

    def __post_init__(self) -> None:
        check(self)
        for name, length in (("tcp", 6), ("payload_cog_m", 3), ("set_payload_cog_m", 3), ("ft_bias", 6)):
            if len(getattr(self, name)) != length:
                raise ValueError(f"{name} = {getattr(self, name)}: give {length} numbers")
        _version(self.version)
        if not self.serial.isdigit():
            raise ValueError(f"serial = {self.serial!r}: give digits")


def _version(text: str) -> tuple[int, int, int, int]:
    parts = text.split(".")
    if not (2 <= len(parts) <= 4 and all(part.isdigit() for part in parts)):
        raise ValueError(f"version = {text!r}: give major.minor.bugfix.build, such as 5.26.0.1234567")
    major, minor, bugfix, build = (*(int(part) for part in parts), 0, 0)[:4]
    return major, minor, bugfix, build


def make(config: Config, twin: Twin, host: str, lockstep: bool = False) -> Server:
    """A server that listens at ``host``. Raises OSError where a port is taken."""
    return Server(config, twin, host, lockstep)


class Server(BaseServer):
    """One controller."""

    def __init__(self, config: Config, twin: Twin, host: str, lockstep: bool = False) -> None:
        super().__init__(twin, host, PERIOD_S, lockstep)
        self.inputs: dict[str, Any] = {name: zero(kind) for name, kind in INPUTS.items()}
        self.outputs: dict[str, Any] = {name: zero(kind) for name, kind in OUTPUTS.items() if "_register" in name}
        self.machine = Machine(config.boot_s, config.unlock_after_s, config.running)
        self.machine.remote = config.remote
        trips = Trips(config.stop_force_n, config.stop_torque_nm, config.stop_path_rad)
        payload = Payload(config.payload_kg, np.array(config.payload_cog_m))
        self.arm = Arm(twin, np.array(config.tcp), payload, np.array(config.ft_bias), trips)
        self.arm.payload = Payload(config.set_payload_kg, np.array(config.set_payload_cog_m))
        self.program: ControlScript | LineScript | None = None
        self.contact_n = config.contact_n
        self._watchdogs: dict[str, float] = {}  # input -> longest time in s without it
        self._written_s: dict[str, float] = {}  # input -> when it came
        self._fresh = False  # inputs came since the last tick
        self._covered_s = 0.0  # until then the last servo command lasts
        self.speed_fraction = 1.0
        self.digital_outputs, self.analog_types = 0, 0  # bits
        self.analog_outputs = [0.004, 0.004]  # A, or V where the type's bit is set
        version = _version(config.version)
        self._state = _ur_state.State(self)
        try:
            self.rtde = _rtde_port.RtdePort(self, version, self._state.value, self._put)
            self.dashboard = Dashboard(
                self, self.machine, Identity(version, config.serial, "UR5"), self._play, self.stop_program, self._pause
            )
            self.scripts = ScriptPorts(self, self.run_script)
            self.gripper = Gripper(self, twin.limits.gripper_width_m, self.arm.state.gripper)
        except OSError:
            self.close()
            raise

    # ------------------------------------------------------------------------------------------------------------ time

    def tick(self) -> None:
        self.machine.tick(self.t_s)
        self._watch()
        if self.machine.runtime == Runtime.PLAYING and self.program is not None:
            self._step(self.program.tick)
            if self._fresh and self.program is not None:
                self._covered_s = self.t_s - self.period_s + max(self.program.lasts_s, self.period_s)
        self._fresh = False
        self.arm.scale = self.speed_fraction
        self.arm.gripper = self.gripper.tick(self.arm.state.gripper, self.period_s)
        try:
            self.arm.tick()
        except ValueError as error:
            self._die(str(error))
        if self.arm.trip and self.machine.ready:
            self.protective_stop(self.arm.trip)
        self._state.renew()
        self.rtde.send_due()

    def idle(self) -> None:
        self._state.renew()
        self.rtde.send_all()

    def answered(self) -> bool:
        """A servo, speed or torque command counts for its time; with the last one over, time waits for the next. Who
        holds the door grants time; without a client nobody is waited for."""
        streaming = self.arm.streaming and self.machine.runtime == Runtime.PLAYING
        covered = self._fresh or self.t_s < self._covered_s - 1e-9
        return not streaming or covered or self.held or not self.rtde.clients

    @property
    def held(self) -> bool:
        return self._holder is not None

    def _put(self, names: Sequence[str], values: Sequence[Any]) -> None:
        """Inputs from a client. While time is held, what needs no time happens at once."""
        self.inputs.update(zip(names, values, strict=True))
        self._written_s.update(dict.fromkeys(names, self.t_s))
        _ur_state.take_io(self, names)
        self._fresh = True
        if self.held:
            if self.machine.runtime == Runtime.PLAYING and self.program is not None:
                self._step(self.program.look)
            self.idle()

    def _watch(self) -> None:
        for name, longest_s in self._watchdogs.items():
            if self.t_s - self._written_s.get(name, 0.0) > longest_s + 1e-9 and self.program is not None:
                self._die(f"RTDE watchdog: {name} did not come for {longest_s:g} s")
                return

    def _set_watchdog(self, name: str, frequency_hz: float) -> None:
        self._written_s[name] = self.t_s
        self._watchdogs = {name: 1.0 / frequency_hz} if frequency_hz > 0.0 else {}

    # --------------------------------------------------------------------------------------------------------- program

    def run_script(self, text: str) -> None:
        """A program came in: it takes the place of the one that runs."""
        if text.strip() == "stop program":
            self.stop_program()
        elif not (self.machine.ready and self.machine.remote):
            state = f"{self.machine.mode.name}, {self.machine.safety.name}, remote control {self.machine.remote}"
            print(f"a program was refused: the robot is {state}", file=sys.stderr, flush=True)
        else:
            self.stop_program()
            if text.startswith("def rtde_control()"):
                self.program = ControlScript(
                    text, self.arm, self.inputs, self.outputs, self.contact_n, self._set_watchdog, self.protective_stop
                )
            else:
                self.program = LineScript(text, self.arm, self.outputs, self._power_down)
            self.machine.runtime = Runtime.PLAYING
        if self.held:
            self.idle()

    def _step(self, step: Callable[[], bool]) -> None:
        try:
            goes_on = step()
        except ValueError as error:
            self._die(str(error))
            return
        if not goes_on:
            self.stop_program()

    def stop_program(self) -> bool:
        """Whatever the program moves brakes; True as the dashboard's stop has it, running or not."""
        if self.program is not None:
            self.program = None
            self.arm.brake()
        self._watchdogs = {}
        self.machine.runtime = Runtime.STOPPED
        return True

    def _die(self, why: str) -> None:
        self.rtde.say(f"program stopped: {why}")
        self.stop_program()

    def _play(self) -> bool:
        if not self.machine.ready or self.program is None:
            return False
        self.machine.runtime = Runtime.PLAYING
        return True

    def _pause(self) -> bool:
        if self.machine.runtime != Runtime.PLAYING:
            return False
        self._interrupt()
        self.machine.runtime = Runtime.PAUSED
        self.arm.brake()
        return True

    def _interrupt(self) -> None:
        if self.program is not None:
            self.program.interrupt()

    def _power_down(self) -> None:
        self.stop_program()
        self.machine.power_off()

    def protective_stop(self, cause: str) -> None:
        """The arm rests where it really is, and the program is of no use any more."""
        self._interrupt()
        self.arm.give_way()
        self.machine.protective_stop(cause)
        self.rtde.say(f"protective stop: {cause}")

    def _place(self, tcp: list[float], gripper: float, props: Mapping[str, Any]) -> dict[str, Any]:
        """The whole world, with the drives at rest in it. Raises ValueError while a client controls the arm."""
        if self.rtde.clients:
            raise ValueError("a client is connected: it would see the arm jump")
        said = super()._place(tcp, gripper, props)
        self.arm.motion, self.arm.state = None, self.twin.read()
        self.arm.target.rest_at(self.arm.state.q_rad)
        return said

    # ---------------------------------------------------------------------------------------------------------- faults

    def faults(self) -> Mapping[str, Callable[..., object]]:
        return {
            "protective_stop": lambda code="C153": self.protective_stop(str(code)),
            "emergency_stop": self._emergency_stop,
            "release_emergency_stop": self.machine.release_emergency_stop,
            "safety_fault": self._safety_fault,
            "program_stop": self.stop_program,
            "remote_control": lambda on=False: setattr(self.machine, "remote", bool(on)),
            "delay": lambda seconds=0.1: setattr(self.rtde, "delay_ticks", round(float(seconds) / self.period_s)),
            "drop": self._drop,
            "half_open": self._silence,
            "wrong_version": self._wrong_version,
        }

    def _emergency_stop(self) -> None:
        self.stop_program()
        self.arm.give_way()
        self.machine.emergency_stop()

    def _safety_fault(self, code: str = "C4A") -> None:
        self.stop_program()
        self.arm.give_way()
        self.machine.fault(str(code))

    def _drop(self) -> None:
        """The cable is pulled: every client's connection closes; the program runs on, as on the robot."""
        self.rtde.drop_all()
        served: list[Any] = [self.dashboard, self.scripts, self.gripper]
        for port in served:
            connections: list[socket.socket] = list(port.connections)
            for connection in connections:
                port.drop(connection)

    def _silence(self, on: bool = True) -> None:
        self.rtde.silent = self.dashboard.silent = self.scripts.silent = self.gripper.silent = bool(on)

    def _wrong_version(self, version: str = "3.2.0.0", protocols: Sequence[int] = (1,)) -> None:
        """Another controller answers whoever connects next."""
        self.rtde.version, self.rtde.protocols = _version(version), [int(protocol) for protocol in protocols]
