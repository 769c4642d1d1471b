"""The connections of a Universal Robots controller through ur_rtde, and what the robot says is wrong, by name.

ur_rtde reconnects by itself where a socket breaks, and starts its program on the robot again. Whoever uses a Link
therefore stops sending for good once ``fault`` has said anything, and makes a new one on a person's word: a program
that is sent nothing holds the arm.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardware._ur_process import Control
from robot_rl.geometry import rotvec_to_quat

Array = NDArray[np.float64]

PERIOD_S = 0.002  # of e-Series and newer
TORQUE_POLYSCOPE = (5, 26)  # the oldest for which ur_rtde's program has direct_torque
LOST = "connection lost"
STOPPED = "program stopped"
_ANSWER_MS = 10_000  # longest time that the dashboard is given to connect
_LAST_WORDS: tuple[tuple[str, list[float]], ...] = (("servoStop", [2.0]), ("stopScript", []))
_SEND_S = 1.0  # longest that a command of the loop may take; a robot that has lost us is reconnected for longer
_CLOSE_S = 3.0  # longest time that a connection is given to end

# safety_status_bits of the RTDE guide, the gravest first
_SAFETY = (
    ((5, 6, 7), "emergency stop"), ((9,), "safety fault"), ((8,), "safety violation"), ((2,), "protective stop"),
    ((4,), "safeguard stop"), ((3,), "recovery mode"),
)  # fmt: skip
# robot_mode of the same; 7 is running
_MODES = {
    -1: "no controller", 0: "robot disconnected", 1: "safety to be confirmed", 2: "booting", 3: "powered off",
    4: "brakes not released", 5: "brakes not released", 6: "backdrive", 8: "updating firmware",
}  # fmt: skip
_RUNNING = 7
_PLAYING = 2  # runtime_state
_REMEDY = {
    "emergency stop": "release the emergency stop by hand, then power the arm on at the pendant",
    "safety fault": "restart the robot's safety at the pendant",
    "safety violation": "restart the robot's safety at the pendant",
    "protective stop": "look at its cause, then unlock it at the pendant",
    "safeguard stop": "clear the safeguard's cause and reset it",
    "powered off": "press ON and START on the pendant, or set arm.power_on=true",
    "brakes not released": "press START on the pendant, or set arm.power_on=true",
}


@dataclass(frozen=True)
class Setup:
    """What the robot is told when connecting; ``None``: what it has."""

    tcp_offset: tuple[float, ...] | None  # (6,) m, rad as a rotation vector, from the flange
    payload_kg: float | None
    payload_cog_m: tuple[float, ...]  # (3,) from the flange
    torque: bool  # whether direct_torque is needed


class Measured(NamedTuple):
    """One packet of the robot."""

    t_s: float
    q_rad: Array  # (6,)
    dq_radps: Array  # (6,)
    pos_m: Array  # (3,) of the tcp, base frame
    quat_xyzw: Array  # (4,)
    twist: Array  # (6,)
    wrench: Array  # (6,) what the surroundings exert on the arm, at the tcp


class Link:
    """Sockets to one robot: dashboard, RTDE out and in, script. Raises on construction what ``_open`` names."""

    def __init__(self, address: str, setup: Setup) -> None:
        self._sdk = import_sdk()
        self.address, self.version = address, ""
        self._dashboard: Any = None
        self._control: Control | None = None
        self._receive: Any = None
        self.sending = threading.Lock()  # the robot's registers take one command at a time
        try:
            self._open(setup)
        except BaseException:
            self.close()
            raise

    def _open(self, setup: Setup) -> None:
        """Raises ConnectionError where nobody answers, RuntimeError with what a person has to do first."""
        try:
            self._dashboard = self._sdk.dashboard(self.address)
            self._dashboard.connect(_ANSWER_MS)
            self.version = self._dashboard.polyscopeVersion()
        except Exception as error:
            raise ConnectionError(
                f"no Universal Robots controller behind {self.address} ({error}): check cable, address and that the "
                "pendant's Settings > System > Remote Control > Services allow dashboard, RTDE and script"
            ) from error
        if setup.torque and version_of(self.version) < TORQUE_POLYSCOPE:
            raise ValueError(
                f"mode = torque: PolyScope {self.version} has no direct_torque that ur_rtde can use, "
                f"{'.'.join(map(str, TORQUE_POLYSCOPE))} or newer has; set arm.mode=admittance"
            )
        self.require_ready()
        try:
            self._receive = self._sdk.receive(self.address)
            self._control = Control(self.address)
        except Exception as error:
            raise ConnectionError(f"the robot at {self.address} takes no program: {error}") from error
        self._set_up(setup)

    def _set_up(self, setup: Setup) -> None:
        if setup.payload_kg is not None:
            self.command("setPayload", setup.payload_kg, list(setup.payload_cog_m))
        if setup.tcp_offset is not None:
            self.command("setTcp", list(setup.tcp_offset))
            found = self.command("getTCPOffset")
            if not np.allclose(found, setup.tcp_offset, atol=1e-4):
                raise RuntimeError(
                    f"tcp_offset = {setup.tcp_offset}: the robot keeps {np.round(found, 4).tolist()}; set that on the "
                    "pendant (Installation > TCP), or leave arm.tcp_offset=none to take the robot's"
                )

    # ---------------------------------------------------------------------------------------------- what the robot says

    def require_ready(self) -> None:
        """Raise RuntimeError with what a person has to do before the arm can move. Asks the dashboard."""
        require_safe(self._ask("safetystatus"))
        mode = self._ask("robotmode").upper()
        if "RUNNING" not in mode:
            name = "powered off" if "POWER_OFF" in mode else "brakes not released" if "IDLE" in mode else mode.lower()
            raise RuntimeError(f"{name}: {_REMEDY.get(name, 'bring the robot to its running mode at the pendant')}")
        if not self.in_remote_control():
            raise RuntimeError("not in remote control: switch the pendant from Local to Remote")

    def in_remote_control(self) -> bool:
        """True where the robot is too old to know (before PolyScope 5.6)."""
        return version_of(self.version) < (5, 6) or bool(self._dashboard.isInRemoteControl())

    def _ask(self, question: str) -> str:
        try:
            return str(getattr(self._dashboard, question)())
        except RuntimeError as error:
            raise RuntimeError(f"{LOST}: the dashboard of {self.address} does not answer ({error})") from error

    def fault(self) -> str:
        """Why the arm does not follow, of the newest packet; empty where it does. Asks nobody."""
        try:
            if not (self._receive.isConnected() and self._control is not None and self._control.connected):
                return LOST
            bits, mode = self._receive.getSafetyStatusBits(), self._receive.getRobotMode()
            for places, name in _SAFETY:
                if any(bits >> place & 1 for place in places):
                    return name
            if mode != _RUNNING:
                return _MODES.get(mode, f"robot mode {mode}")
            return "" if self._receive.getRuntimeState() == _PLAYING else STOPPED
        except RuntimeError as error:
            return f"{LOST}: {error}"

    def t_s(self) -> float:
        """The robot's clock, in its newest packet."""
        return float(self._receive.getTimestamp())

    def measure(self) -> Measured:
        """All of one packet: it is read again where another came in between."""
        receive = self._receive
        for _ in range(5):
            t_s = receive.getTimestamp()
            rows = (
                receive.getActualQ(), receive.getActualQd(), receive.getActualTCPPose(), receive.getActualTCPSpeed(),
                receive.getActualTCPForce(),
            )  # fmt: skip
            if receive.getTimestamp() == t_s:
                break
        q, dq, pose, twist, wrench = (np.array(row, np.float64) for row in rows)
        return Measured(t_s, q, dq, pose[:3], rotvec_to_quat(pose[3:]), twist, wrench)

    def tool_output(self, output: int) -> bool:
        """Whether a digital output of the tool, 0 or 1, is high."""
        return bool(self._receive.getDigitalOutState(16 + output))

    def about(self) -> dict[str, str]:
        """What there is, for people."""
        receive = self._receive
        return {
            "polyscope": self.version,
            "serial number": self._ask("getSerialNumber"),
            "model": self._ask("getRobotModel"),
            "robot mode": self._ask("robotmode"),
            "safety": self._ask("safetystatus"),
            "remote control": "yes" if self.in_remote_control() else "no",
            "payload": f"{receive.getPayload():.3f} kg at {np.round(receive.getPayloadCog(), 4).tolist()} m",
            "tcp offset": f"{np.round(self.command('getTCPOffset'), 4).tolist()} m, rad",
            "speed slider": f"{100.0 * receive.getTargetSpeedFraction():.0f} %",
        }

    # -------------------------------------------------------------------------------------------------- what it is told

    def servo(self, pose: Sequence[float], lookahead_s: float, gain: float) -> bool:
        """Send the tcp to ``pose`` (6,) m, rotation vector in rad; whether the robot takes it. What is no number is not
        sent."""
        if not np.isfinite(pose).all():
            return False
        with self.sending:
            return self._send("servoL", [list(pose), 0.5, 0.5, PERIOD_S, lookahead_s, gain])

    def torque(self, tau_nm: Array) -> bool:
        """Joint torques (6,) Nm, without gravity, until the next; the same."""
        if not np.isfinite(tau_nm).all():
            return False
        with self.sending:
            return self._send("directTorque", [tau_nm.tolist()])

    def _send(self, function: str, args: list[Any]) -> bool:
        assert self._control is not None
        try:
            return bool(self._control.call(function, args, _SEND_S))
        except RuntimeError:  # fault() says why
            return False

    def command(self, name: str, *args: Any) -> Any:
        """Any other of the robot's functions; it answers within some periods."""
        with self.sending:
            assert self._control is not None
            return self._control.call(name, args)

    def watch(self, frequency_hz: float, pass_s: Callable[[float], None]) -> None:
        """From now on the robot stops its program where nothing is sent for a period of ``frequency_hz``. ur_rtde does
        not wait until its program has seen this command, and leaves it in the register: time has to pass twice."""
        self.command("setWatchdog", frequency_hz)
        pass_s(5 * PERIOD_S)
        self.command("kickWatchdog")
        pass_s(2 * PERIOD_S)

    def close(self) -> None:
        """End motion and program, and every connection; may be called twice. A socket whose other end is silent is
        given some seconds, then left to its thread."""
        ending = threading.Thread(target=self._end, name="ur close", daemon=True)
        ending.start()
        ending.join(_CLOSE_S)

    def _end(self) -> None:
        control, receive, dashboard = self._control, self._receive, self._dashboard
        self._control = self._receive = self._dashboard = None
        steps: list[Callable[[], Any]] = []
        if control is not None:
            if control.connected and receive is not None and receive.getRuntimeState() == _PLAYING:
                steps += [partial(control.call, name, args, _SEND_S) for name, args in _LAST_WORDS]
            steps.append(control.close)
        if receive is not None:
            steps.append(receive.disconnect)
        if dashboard is not None:
            steps.append(dashboard.disconnect)
        for step in steps:
            try:
                step()
            except RuntimeError:  # it is gone already
                continue


class Sdk(NamedTuple):
    receive: Any
    dashboard: Any
    io: Any


def import_sdk() -> Sdk:
    """Raises ImportError naming the extra."""
    try:
        import rtde_control  # noqa: F401 - for _ur_process.py
        from dashboard_client import DashboardClient
        from rtde_io import RTDEIOInterface
        from rtde_receive import RTDEReceiveInterface
    except ImportError as error:
        raise ImportError("ur_rtde is not installed: pip install 'robot-rl[ur]'") from error
    return Sdk(RTDEReceiveInterface, DashboardClient, RTDEIOInterface)


def version_of(text: str) -> tuple[int, int]:
    """``"URSoftware 5.26.0.123 (...)"`` -> (5, 26)."""
    for word in text.replace("(", " ").split():
        parts = word.split(".")
        if len(parts) >= 2 and parts[0].isdigit() and parts[1].isdigit():
            return int(parts[0]), int(parts[1])
    return (0, 0)


def require_safe(status: str, but: str = "") -> None:
    """Raise RuntimeError with the remedy where the dashboard's safety status is not normal, ``but`` for one."""
    for word, name in (
        ("EMERGENCY", "emergency stop"), ("FAULT", "safety fault"), ("VIOLATION", "safety violation"),
        ("SAFEGUARD", "safeguard stop"), ("PROTECTIVE", "protective stop"),
    ):  # fmt: skip
        if word in status.upper() and name != but:
            raise RuntimeError(f"{name}: {_REMEDY[name]}")


def make_ready(address: str, power_on: bool, pass_s: Callable[[float], None]) -> None:
    """A person's word: unlock a protective stop, which a robot allows 5 s after it, and power an arm on where
    ``power_on`` allows that. ``pass_s`` lets time pass. Raises RuntimeError where the robot does not follow."""
    dashboard = import_sdk().dashboard(address)
    try:
        dashboard.connect(_ANSWER_MS)
    except RuntimeError as error:
        raise RuntimeError(f"{LOST}: the dashboard of {address} does not answer ({error}): is the robot on?") from error
    try:
        require_safe(dashboard.safetystatus(), but="protective stop")
        if "PROTECTIVE" in dashboard.safetystatus().upper():
            _insist(dashboard.unlockProtectiveStop, "protective stop: it cannot be unlocked", pass_s)
            _until(lambda: "PROTECTIVE" not in dashboard.safetystatus().upper(), "unlock", pass_s)
        if power_on and "RUNNING" not in dashboard.robotmode().upper():
            dashboard.powerOn()
            _until(lambda: "IDLE" in dashboard.robotmode().upper(), "power on", pass_s)
            dashboard.brakeRelease()
            _until(lambda: "RUNNING" in dashboard.robotmode().upper(), "release its brakes", pass_s)
    finally:
        dashboard.disconnect()


def _insist(ask: Callable[[], Any], why: str, pass_s: Callable[[float], None]) -> None:
    for _ in range(14):
        try:
            ask()
        except RuntimeError as error:
            refused = str(error)
            pass_s(0.5)
        else:
            return
    raise RuntimeError(f"{why} ({refused}); look at the pendant")


def _until(true: Callable[[], bool], what: str, pass_s: Callable[[float], None]) -> None:
    for _ in range(300):
        if true():
            return
        pass_s(0.1)
    raise RuntimeError(f"the arm did not {what} within 30 s; look at the pendant")
