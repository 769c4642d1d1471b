"""A Universal Robots UR5e through ur_rtde: compliant by an admittance around servoL, or by direct torques.

A thread of the driver keeps 500 Hz by absolute deadlines: measure, law, send. Where it dies or hangs, the robot's own
watchdog stops the program. Where the arm is a served twin in lock-step, the same period runs inside ``wait`` instead.
Anything that the robot says is wrong becomes ``fault``: nothing is sent from then on, and only ``recover`` ends it.

    mode = admittance   any e-Series: the virtual mass of controllers/admittance.py, fed by the wrist's force sensor
    mode = torque       PolyScope 5.26 or newer: the twins' impedance law (controllers/impedance.py), which feels
                        contact without a sensor
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controllers import admittance, impedance
from controllers.arms import LIMITS
from controllers.door import Door
from controllers.guard import make_memory, take_command
from controllers.payload import payload_of
from hardware._clock import TwinClock, WallClock
from hardware._robotiq import Digital, Gripper, Robotiq, Still
from hardware._ur_laws import Compliance, Servoing, Torquing
from hardware._ur_link import LOST, PERIOD_S, STOPPED, Link, Measured, Setup, import_sdk, make_ready
from robot_rl.config import choice, number
from robot_rl.find import nearest
from robot_rl.types import ArmCommand, ArmState, Bounds, Pose, Scene, Start

Array = NDArray[np.float64]

CONTROL_HZ = 100.0
"""Rate of guard and filter for this arm: that of its targets."""
_REST_RADPS = 0.02  # no joint faster while the force sensor is zeroed
_SILENT_S = 0.1  # without a packet in real time the connection is lost
_LOCKSTEP_S = 10.0  # the same in lock-step, by the wall clock: a busy machine is no fault


@dataclass(frozen=True)
class Config(admittance.Config):
    address: str = ""
    """of the controller, such as 192.168.1.10"""
    twin: str = choice("", ("", "realtime", "lockstep"), "the address is a served twin's")
    mode: str = choice("admittance", ("admittance", "torque"))
    lookahead_s: float = number(0.03, 0.03, 0.2, "s, smoothing of servoL")
    servo_gain: float = number(2000.0, 100.0, 2000.0, "of servoL")
    lead_s: float = number(0.03, 0.0, 0.3, "s by which servoL is sent ahead: the lag of its smoothing")
    tcp_offset: tuple[float, float, float, float, float, float] | None = None
    """m and rotation vector in rad from the flange; none: the robot's own"""
    payload_kg: float | None = number(None, 0.0, 5.0, "of gripper and tool; none: the robot's own")
    payload_cog_m: tuple[float, float, float] = number((0.0, 0.0, 0.05), -0.5, 0.5, "m from the flange")
    ft: tuple[float, ...] = number((), -1e4, 1e4, "what `calibrate payload` found: taken off the measured wrench")
    zero_ft: bool = True
    """zero the force sensor when connecting, at rest and free of contact"""
    gripper: str = choice("none", ("none", "robotiq", "digital"))
    gripper_force: float = number(0.3, 0.0, 1.0, "share of the Robotiq's force")
    gripper_speed: float = number(0.5, 0.0, 1.0, "share of its speed")
    gripper_output: int = number(0, 0, 1, "tool output that closes a digital gripper")
    stale_s: float = number(0.2, 0.02, 5.0, "s without a command after which the arm holds where it is")
    watchdog_hz: float = number(20.0, 2.0, 125.0, "Hz below which the robot stops its program by itself")
    power_on: bool = False
    """let recover() power the arm on and release its brakes"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.ft) not in (0, 10):
            raise ValueError(f"ft = {self.ft}: give mass, centre of mass, force bias and torque bias, 10 numbers")


def make(config: Config, arm: str, task: str, scene: Scene, bounds: Bounds) -> UrArm:
    """Connect. Raises LookupError for an arm whose limits are not known, ValueError for a setting that cannot be,
    ConnectionError where nobody answers, RuntimeError with what a person has to do at the robot first."""
    if arm not in LIMITS:
        raise LookupError(nearest("arm", arm, LIMITS))
    if not config.address:
        raise ValueError("address = '': give the controller's, as in --set arm.address=192.168.1.10")
    if scene.locked_gripper is None and config.gripper == "none":
        raise ValueError(f"gripper = none: {task} moves the gripper; set arm.gripper=robotiq or digital")
    return UrArm(config, arm, scene)


class _Asked(NamedTuple):
    target: Pose
    stiffness: Array
    until_s: float  # of the robot's clock


class UrArm:
    """Not guarded: a GuardedArm around it is."""

    def __init__(self, config: Config, arm: str, scene: Scene) -> None:
        self._config = config
        self.limits = LIMITS[arm]
        self.default_stiffness = np.asarray(config.stiffness, np.float64)
        self._law: Compliance
        if config.mode == "admittance":
            self._law = Servoing(config, self.limits, config.lookahead_s, config.servo_gain, config.lead_s)
        else:
            self._law = Torquing(config, self.limits)
        self._setup = Setup(config.tcp_offset, config.payload_kg, config.payload_cog_m, config.mode == "torque")
        import_sdk()
        self.late = 0  # periods in real time that began more than one after their time
        self._fault, self._closed = "", False
        self._link: Link | None = None
        self._loop: threading.Thread | None = None
        self._ending = threading.Event()  # of the loop's thread, each has its own
        self._scene = scene
        self._gripper: Gripper = Still(0.0)
        self._door = Door(config.address) if config.twin else None
        self._shown: dict[str, Array] = {}
        self._carried = payload_of(config.ft) if config.ft else None
        self._clock: WallClock | TwinClock = WallClock()
        try:
            self._link = Link(config.address, self._setup)
            self._gripper = self._make_gripper(self._link)
            if config.zero_ft:
                self._zero(self._link)
            if config.twin == "lockstep":
                assert self._door is not None
                self._clock = TwinClock(self._door, PERIOD_S)
            self._start()
        except BaseException:
            self.close()
            raise

    def _make_gripper(self, link: Link) -> Gripper:
        config = self._config
        if self._scene.locked_gripper is not None:
            return Still(self._scene.locked_gripper)
        if config.gripper == "digital":
            closed = link.tool_output(config.gripper_output)
            return Digital(config.address, config.gripper_output, import_sdk().io, closed)
        return Robotiq(config.address, config.gripper_force, config.gripper_speed)

    def _start(self) -> None:
        """Hold where the arm is, from now on."""
        assert self._link is not None
        self._link.watch(self._config.watchdog_hz, self._pass_s)
        if isinstance(self._clock, TwinClock):
            self._await(self._link, self._clock.t_s)
        self._measured = self._unload(self._link.measure())
        self._sent_s = self._measured.t_s
        self._law.begin(self._measured)
        self._state = self._make_state(self._measured)
        self._memory = make_memory(self._state, self.default_stiffness)  # checks commands as the guard does
        self._asked: _Asked | None = None
        self._resting: Pose | None = None
        self._fault = ""  # from here on faults are those of what begins now
        if not isinstance(self._clock, TwinClock):
            self._ending = threading.Event()
            self._loop = threading.Thread(target=self._run, args=(self._ending,), name="ur loop", daemon=True)
            self._loop.start()

    # -------------------------------------------------------------------------------------------------------- the loop

    def _run(self, ending: threading.Event) -> None:
        """The thread in real time: a period is late where it begins after the next one should have."""
        deadline_s = fresh_s = time.monotonic()
        seen_s = self._measured.t_s
        try:
            while not ending.is_set():
                deadline_s += PERIOD_S
                now_s = time.monotonic()
                if now_s > deadline_s + PERIOD_S:
                    self.late += 1
                    deadline_s = now_s
                time.sleep(max(deadline_s - now_s, 0.0))
                link = self._link
                assert link is not None
                if link.t_s() == seen_s:
                    if time.monotonic() - fresh_s > _SILENT_S:
                        self._latch(f"{LOST}: no packet for {_SILENT_S:g} s")
                    continue
                self._cycle(link, link.measure())
                seen_s, fresh_s = self._measured.t_s, time.monotonic()
        except Exception as error:  # noqa: BLE001 - whatever it was: the robot's watchdog stops the arm
            self._latch(f"control loop: {error}")

    def _cycle(self, link: Link, measured: Measured) -> None:
        """One period: state, faults, law, send."""
        self._measured = measured = self._unload(measured)
        if not self._fault and (said := link.fault() or self._gripper.fault):
            self._latch(said)
        if not self._fault and not all(np.isfinite(part).all() for part in measured):
            self._latch("not finite: the robot measures what is no number")  # a filter would never forget it
        if not self._fault:
            target, stiffness = self._target(measured)
            if self._law.send(link, measured, target, stiffness):
                self._sent_s = measured.t_s
            else:
                self._latch(link.fault() or f"{STOPPED}: it took no command")
        self._state = self._make_state(measured)

    def _unload(self, measured: Measured) -> Measured:
        """Without what the wrench holds of a load and a bias."""
        if self._carried is None:
            return measured
        return measured._replace(wrench=measured.wrench - self._carried.wrench(measured.quat_xyzw))

    def _target(self, measured: Measured) -> tuple[Pose, Array]:
        """What was asked for while that is fresh; else where the arm was when it no longer was."""
        asked = self._asked
        if asked is not None and measured.t_s < asked.until_s:
            self._resting = None
            return asked.target, asked.stiffness
        resting = self._resting
        if resting is None:
            resting = self._resting = self._law.rest(measured)
        return resting, self.default_stiffness

    def _latch(self, fault: str) -> None:
        """The first fault stands. A program that stopped after our own silence was stopped by the watchdog."""
        silent_s = self._measured.t_s - self._sent_s
        if fault == STOPPED and silent_s > 1.0 / self._config.watchdog_hz:
            fault = f"watchdog: no command reached the robot for {silent_s:.2g} s, its program stopped"
        if not self._fault:
            self._asked = self._resting = None
            self._fault = fault

    def _await(self, link: Link, t_s: float) -> None:
        """In lock-step: until the packet of ``t_s`` is here. Raises ConnectionError where it does not come."""
        end_s = time.monotonic() + _LOCKSTEP_S
        while link.t_s() < t_s - 0.5 * PERIOD_S:
            if time.monotonic() > end_s or link.fault().startswith(LOST):
                raise ConnectionError(f"no packet of {t_s:.3f} s")
            time.sleep(2e-5)

    def _step(self, clock: TwinClock) -> None:
        """One period in lock-step."""
        link = self._link
        if link is not None and not self._fault:
            self._cycle(link, link.measure())
        try:
            clock.wait(PERIOD_S)
        except ConnectionError:
            self._clock = WallClock()  # nobody is left to let the twin's time pass
            raise
        if link is not None and not self._fault:
            self._await(link, clock.t_s)

    def _make_state(self, measured: Measured) -> ArmState:
        return ArmState(
            t_s=measured.t_s,
            q_rad=measured.q_rad,
            dq_radps=measured.dq_radps,
            tau_nm=self._law.tau_nm.copy(),
            tcp_pos_m=measured.pos_m,
            tcp_quat_xyzw=measured.quat_xyzw,
            tcp_twist=measured.twist,
            tcp_wrench=measured.wrench,
            gripper=self._gripper.read(),
        )

    # --------------------------------------------------------------------------------------------------------- the arm

    @property
    def fault(self) -> str:
        """Why the arm does not follow, or an empty string."""
        return self._fault

    def read(self) -> ArmState:
        """The newest state; in a fault the last."""
        return self._state

    def readings(self) -> dict[str, Array]:
        """``prop/<name>`` (7,) m, xyzw of a served twin, the last ones where it is lost; nothing of a real arm."""
        if self._door is not None:
            try:
                self._shown = self._door.props()
            except ConnectionError as error:
                self._latch(f"{LOST}: {error}")
        return self._shown

    def command(self, command: ArmCommand) -> None:
        """A target for at most ``stale_s``; in a fault it changes nothing. Raises ValueError for what is not finite,
        misshapen or stiffer than the arm allows."""
        take_command(self._memory, command, self.default_stiffness)
        stiffness = self._memory.target_stiffness.copy()
        if np.any(stiffness > self.limits.stiffness_max):
            raise ValueError(
                f"ArmCommand.stiffness is {stiffness.tolist()}: this arm allows {self.limits.stiffness_max.tolist()}"
            )
        if self._fault:
            return
        target = Pose(self._memory.target_pos_m.copy(), self._memory.target_quat_xyzw.copy())
        lease_s = min(command.valid_s, self._config.stale_s)
        self._asked = _Asked(target, stiffness, self._measured.t_s + lease_s)
        self._gripper.move(float(self._memory.target_gripper[0]))

    def wait(self, dt_s: float) -> ArmState:
        """Let ``dt_s`` pass, a whole number of 2 ms periods in lock-step (else ValueError)."""
        if not isinstance(self._clock, TwinClock):
            self._clock.wait(dt_s)
            return self._state
        periods = round(dt_s / PERIOD_S)
        if periods < 1 or abs(periods * PERIOD_S - dt_s) > 1e-9:
            raise ValueError(f"{dt_s:g} s is no multiple of the arm's period, {PERIOD_S:g} s: change the rate")
        try:
            for _ in range(periods):
                self._step(self._clock)
            if self._link is not None and not self._fault:
                self._observe(self._link)
        except (ConnectionError, RuntimeError) as error:  # of the door, and of ur_rtde
            self._latch(f"{LOST}: {error}")
        return self._state

    def _observe(self, link: Link) -> None:
        """The state at the end of a wait; what is wrong is seen before anybody acts on it."""
        measured = link.measure()
        self._measured = self._unload(measured)
        self._state = self._make_state(self._measured)
        if said := link.fault():
            self._latch(said)

    def stop(self) -> None:
        """Hold where the arm is, compliantly; the next command moves it again."""
        self._asked = self._resting = None

    def damping_of(self, stiffness: Array) -> Array:
        """What either law damps with (6,) Ns/m, Nms/rad, base axes, at a stiffness (6,); in contact it is more."""
        return impedance.damping_of(self._config, stiffness)

    def prepare(self, start: Start) -> None:
        """An episode is about to begin: a served twin's objects are set aside, so that the arm need not drag its tool
        out of the last one's, and put where ``start`` wants them with the next ``readings``. A real arm: nothing."""
        if self._door is not None and start.props:
            try:
                self._door.set_aside(start.props)
            except ConnectionError as error:
                self._latch(f"{LOST}: {error}")

    # -------------------------------------------------------------------------------------------------- a person's acts

    def zero_ft(self) -> None:
        """Zero the force sensor. Raises ValueError while the arm moves: it would zero what moves it, too."""
        if self._link is None or self._fault:
            raise ValueError(f"zero_ft: the arm is in a fault ({self._fault}); recover it first")
        self._zero(self._link)

    def _zero(self, link: Link) -> None:
        fastest = float(np.abs(link.measure().dq_radps).max())
        if not fastest <= _REST_RADPS:
            raise ValueError(f"zero_ft: a joint moves at {fastest:.3g} rad/s; let the arm come to rest, untouched")
        link.command("zeroFtSensor")

    def recover(self) -> None:
        """A person's word that the cause is gone: unlock, connect and load the program again, hold where the arm is.
        Raises RuntimeError, staying in the fault, with what the person has to do first."""
        if not self._fault or self._closed:
            return
        self._end_loop()
        if self._loop is not None:
            raise RuntimeError("the control loop hangs in the robot's client: stop this program, and start it again")
        try:
            self._reopen_door()
            with self._free_time():
                self._drop_link()
            make_ready(self._config.address, self._config.power_on, self._pass_s)
            with self._free_time():
                self._link = Link(self._config.address, self._setup)
                self._gripper.close()
                self._gripper = self._make_gripper(self._link)
            self._start()
        except (OSError, ValueError) as error:
            raise RuntimeError(str(error)) from error

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _reopen_door(self) -> None:
        """A twin that was started anew has a new door."""
        if self._door is None:
            return
        try:
            self._door.truth()
        except ConnectionError:
            self._door.close()
            self._door = Door(self._config.address)
        if self._config.twin == "lockstep":
            self._clock = TwinClock(self._door, PERIOD_S)

    def _pass_s(self, dt_s: float) -> None:
        if isinstance(self._clock, TwinClock):
            self._clock.wait(dt_s)
        else:
            time.sleep(dt_s)

    @contextlib.contextmanager
    def _free_time(self) -> Iterator[None]:
        """A robot answers while its time passes only."""
        if not isinstance(self._clock, TwinClock):
            yield
            return
        assert self._door is not None
        self._door.free()
        try:
            yield
        finally:
            self._clock.t_s = self._door.hold()

    def about(self) -> dict[str, str]:
        """What there is, for people. Raises RuntimeError in a fault that has ended the connection."""
        if self._link is None:
            raise RuntimeError(f"the arm is in a fault ({self._fault}): recover it first")
        return self._link.about() | {
            "mode": self._config.mode,
            "rate": f"{1.0 / PERIOD_S:.0f} Hz, {self.late} periods late",
            "watchdog": f"{self._config.watchdog_hz:g} Hz",
            "gripper": type(self._gripper).__name__.lower(),
        }

    def _end_loop(self) -> None:
        self._ending.set()
        if self._loop is not None:
            self._loop.join(5.0)
            self._loop = self._loop if self._loop.is_alive() else None

    def close(self) -> None:
        """Stop the arm and its program, end threads and sockets; may be called twice."""
        if self._closed:
            return
        self._closed = True
        self._end_loop()
        if self._door is not None:
            with contextlib.suppress(ConnectionError):
                self._door.free()
        self._drop_link()
        self._gripper.close()
        if self._door is not None:
            self._door.close()
