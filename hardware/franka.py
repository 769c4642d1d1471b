"""A Franka Research 3, or a Panda, through its control interface (FCI) and franky, as a plain Arm to be guarded.

The torque loop runs at 1 kHz in franky's C++ thread: a Cartesian impedance around the target, with the springs, clips
and damping of ``controllers/impedance.py``. Python only moves the target. Whatever becomes of this process, the arm is
held by something: a target that nobody renews for ``stale_s`` becomes the pose where the arm is (a thread of its own
sees to it; one that hangs leaves the last target, which the springs follow with ``stiffness * clip`` at most), and when
the process dies the arm misses its packets and stops by itself after 20 ms.

A Panda (FER) speaks another version of FCI than an FR3: its franky comes from franky's own package index
(``_franka.INDEX``), with everything else as here. There is no twin that speaks that version, so this is not tested.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from controllers import impedance
from controllers.arms import LIMITS
from controllers.door import Door
from controllers.payload import payload_of
from hardware._clock import TwinClock, WallClock
from hardware._franka import Session
from hardware._franka_hand import Hand
from robot_rl.config import check, choice, number
from robot_rl.find import nearest
from robot_rl.geometry import quat_normalize
from robot_rl.types import ArmCommand, ArmState, Bounds, Scene, Start

Array = NDArray[np.float64]
T = TypeVar("T")

CONTROL_HZ = 100.0
"""Rate of guard and filter for this arm: that of its targets."""
PERIOD_S = 0.001  # of FCI
ARMS = ("fr3", "panda")


@dataclass(frozen=True)
class Config:
    address: str = "172.16.0.2"
    twin: str = choice("", ("", "realtime", "lockstep"), "a served twin is at the address; lockstep: it waits for us")
    realtime: bool = False
    """refuse a kernel without PREEMPT_RT"""
    stiffness: tuple[float, ...] = number((2000.0, 2000.0, 2000.0, 80.0, 80.0, 80.0), 0.0, 3000.0, "N/m, Nm/rad")
    damping_ratio: float = number(1.0, 0.1, 3.0, "1 is critical for the reference inertia")
    reference_inertia: tuple[float, ...] = number((3.0, 3.0, 3.0, 0.2, 0.2, 0.2), 1e-6, 100.0, "kg, kg m^2")
    clip_m: tuple[float, ...] = number((0.015, 0.015, 0.015), 0.001, 0.1, "m per axis")
    clip_rad: float = number(0.15, 0.01, 1.0, "rad")
    posture_rad: tuple[float, ...] = number((0.0, -0.7854, 0.0, -2.3562, 0.0, 1.5708, 0.7854), -3.1, 4.6, "rad")
    posture_stiffness: float = number(5.0, 0.0, 100.0, "Nm/rad, null space")
    posture_damping: float = number(2.0, 0.0, 100.0, "Nms/rad, null space")
    posture_max_nm: float = number(10.0, 0.0, 50.0, "Nm per joint")
    max_delta_tau_nm: float = number(1.0, 0.01, 1.0, "Nm per ms; the arm's own limit is 1")
    gains_time_s: float = number(0.01, 0.001, 2.0, "s, time constant towards a new stiffness")
    cutoff_hz: float = number(100.0, 10.0, 1000.0, "Hz, libfranka's low-pass of the torques; 1000: none")
    ee_pos_m: tuple[float, ...] = number((0.0, 0.0, 0.1034), -1.0, 1.0, "m, the tcp from the flange")
    ee_quat_xyzw: tuple[float, ...] = number((0.0, 0.0, -0.3826834323650898, 0.9238795325112867), -1.0, 1.0)
    load_kg: float = number(0.0, 0.0, 5.0, "kg besides the hand, which Desk knows")
    load_com_m: tuple[float, ...] = number((0.0, 0.0, 0.0), -0.5, 0.5, "m, its centre of mass from the flange")
    ft: tuple[float, ...] = number((), -1e4, 1e4, "what `calibrate payload` found: taken off the measured wrench")
    load_inertia_kgm2: tuple[float, ...] = number((0.0, 0.0, 0.0), 0.0, 1.0, "kg m^2 about it, diagonal")
    collision_torque_nm: tuple[float, ...] = number((60.0, 60.0, 60.0, 60.0, 30.0, 30.0, 30.0), 1.0, 100.0, "Nm")
    collision_force_n: float = number(120.0, 5.0, 200.0, "N per axis above which the arm stops by reflex")
    collision_moment_nm: float = number(30.0, 1.0, 50.0, "Nm per axis, the same")
    gripper_speed_mps: float = number(0.1, 0.005, 0.2, "m/s between the fingers")
    gripper_force_n: float = number(40.0, 1.0, 70.0, "N to grasp with")
    gripper_home: bool = False
    """let the hand find its width when connecting; it opens and closes"""
    stale_s: float = number(0.2, 0.02, 5.0, "s without a command until the target is where the arm is")
    silent_s: float = number(0.1, 0.01, 5.0, "s without a new state until the connection counts as lost")

    def __post_init__(self) -> None:
        check(self)
        lengths = {
            "stiffness": 6, "reference_inertia": 6, "clip_m": 3, "posture_rad": 7, "ee_pos_m": 3, "ee_quat_xyzw": 4,
            "load_com_m": 3, "load_inertia_kgm2": 3, "collision_torque_nm": 7,
        }  # fmt: skip
        for name, length in lengths.items():
            if len(getattr(self, name)) != length:
                raise ValueError(f"{name} = {getattr(self, name)}: give {length} numbers")
        if len(self.ft) not in (0, 10):
            raise ValueError(f"ft = {self.ft}: give mass, centre of mass, force bias and torque bias, 10 numbers")
        if abs(np.linalg.norm(self.ee_quat_xyzw) - 1.0) > 1e-3:
            raise ValueError(f"ee_quat_xyzw = {self.ee_quat_xyzw}: give a unit quaternion")


def make(config: Config, arm: str, task: str, scene: Scene, bounds: Bounds) -> FrankaArm:
    """Connect, set up, and hold the arm where it is.

    Raises LookupError for another arm, ImportError without franky, ConnectionError where nobody answers, RuntimeError
    for another version of FCI and for an arm that refuses its set-up, ValueError for springs that are too stiff.
    """
    if arm not in ARMS:
        raise LookupError(nearest("Franka arm", arm, ARMS))
    limits = LIMITS[arm]
    if np.any(np.asarray(config.stiffness) > limits.stiffness_max):
        raise ValueError(f"stiffness = {config.stiffness}: at most {limits.stiffness_max.tolist()}")
    return FrankaArm(config, arm, scene)


class FrankaArm:
    """Not guarded: a GuardedArm around it is. Each axis has a stiffness of its own, and the damping that suits it."""

    def __init__(self, config: Config, arm: str, scene: Scene) -> None:
        self._config, self.limits = config, LIMITS[arm]
        self.default_stiffness = np.asarray(config.stiffness, np.float64)
        self._lock = threading.RLock()  # of everything below
        self._fault, self._closed, self._held = "", False, True
        self._stiffness = self.default_stiffness.copy()
        self._carried = payload_of(config.ft) if config.ft else None
        self._still = 0.0 if scene.locked_gripper is None else scene.locked_gripper
        self._moves_gripper = scene.locked_gripper is None
        self._props = bool(scene.props)
        self._waited_s = 0.0
        self._door: Door | None = None
        self._shown: dict[str, Array] = {}
        self._hand: Hand | None = None
        self._session: Session | None = None
        self._clock: WallClock | TwinClock = WallClock()
        self._ended = threading.Event()
        self._watchdog = threading.Thread(target=self._watch, name="franka-watchdog", daemon=True)
        try:
            self._connect()
        except BaseException:
            self.close()
            raise
        if config.twin != "lockstep":
            self._watchdog.start()

    def _connect(self, recovering: bool = False) -> None:
        """All connections, and the torque loop where the arm is able to begin; a twin's time is held from now on. What
        begins needs states of the arm, but none of its time."""
        config = self._config
        self._door = Door(config.address) if config.twin else None
        if self._door is not None and config.twin == "lockstep":
            self._clock = TwinClock(self._door, PERIOD_S)
        self._session = session = Session(config, self.limits, self.damping_of)
        if self._moves_gripper:
            self._hand = self._while_time_passes(lambda: Hand(config, self.limits))
        if recovering:
            session.recover()
        self._state = self._make_state(session.was)
        stopped = session.stopped_by(session.was)
        if not stopped:
            self._start()
        self._fault = stopped
        self._commanded_s = self._fresh_s = self._now_s()

    def _start(self) -> None:
        assert self._session is not None
        self._session.start(self._state.tcp_pos_m, self._state.tcp_quat_xyzw, self.default_stiffness)
        self._stiffness, self._held = self.default_stiffness.copy(), True
        self._fresh_s = self._now_s()

    def _while_time_passes(self, work: Callable[[], T]) -> T:
        """``work()``, which waits for the arm. Held time passes meanwhile, and loses no packet."""
        if not isinstance(self._clock, TwinClock) or self._door is None:
            return work()
        with ThreadPoolExecutor(1, "franka-work") as pool:
            future = pool.submit(work)
            try:
                while not future.done():
                    self._door.advance(1)
            except ConnectionError:  # the twin is gone; the work finds that out by itself
                self._clock = WallClock()
            return future.result()

    def _now_s(self) -> float:
        return self._waited_s if isinstance(self._clock, TwinClock) else time.monotonic()

    # ------------------------------------------------------------------------------------------------------- the state

    def _make_state(self, seen: Any) -> ArmState:
        pose, dq = seen.O_T_EE, seen.dq
        estimate = seen.O_dP_EE_est  # J dq of that tick, by the arm's own model; there is none without a motion
        twist = np.zeros(6) if estimate is None else np.concatenate([estimate.linear, estimate.angular])
        quat_xyzw = quat_normalize(pose.quaternion)
        # libfranka counts what the arm exerts on its surroundings as positive (robot_state.h, O_F_ext_hat_K).
        wrench = -seen.O_F_ext_hat_K - (0.0 if self._carried is None else self._carried.wrench(quat_xyzw))
        return ArmState(
            t_s=seen.time.to_sec(), q_rad=seen.q, dq_radps=dq, tau_nm=seen.tau_J_d,
            tcp_pos_m=pose.translation, tcp_quat_xyzw=quat_xyzw, tcp_twist=twist, tcp_wrench=wrench,
            gripper=self._still if self._hand is None else self._hand.reading,
        )  # fmt: skip

    def _look(self) -> None:
        """Take the newest state, or latch why there is none."""
        with self._lock:
            if self._fault or self._closed:
                return
            assert self._session is not None
            seen = self._session.look() if self._session.running else None
            if seen is None:
                self._fault = self._session.failure()
                return
            if self._hand is not None and self._hand.lost:
                self._hold()
                self._fault = "connection lost"
                return
            if seen.time.to_sec() != self._state.t_s:
                self._state, self._fresh_s = self._make_state(seen), self._now_s()
            elif self._now_s() - self._fresh_s > self._config.silent_s:
                self._hold()
                self._fault = "connection lost"

    def read(self) -> ArmState:
        self._look()
        return self._state

    @property
    def fault(self) -> str:
        """Why the arm does not follow, by name, or an empty string."""
        return self._fault

    def readings(self) -> dict[str, Array]:
        """``prop/<name>`` (7,) m, xyzw of a twin, the last ones where it is lost; a real arm sees none."""
        if self._door is not None and self._props:
            try:
                self._shown = self._door.props()
            except ConnectionError:
                self._lose()
        return self._shown

    def prepare(self, start: Start) -> None:
        """An episode is about to begin. A twin's props are set aside, so that the arm does not have to drag its tool
        out of the last one's, and put where ``start`` wants them once the arm is there (``readings``)."""
        if self._door is None or not self._props:
            return
        try:
            self._door.set_aside(start.props)
        except ConnectionError:
            self._lose()

    # ----------------------------------------------------------------------------------------------------- the commands

    def command(self, command: ArmCommand) -> None:
        """A new target, gripper and stiffness, from the next tick on. Raises ValueError for what is not finite, for no
        unit quaternion, and for a stiffness beyond this arm. In a fault nothing changes."""
        stiffness = self.default_stiffness if command.stiffness is None else np.asarray(command.stiffness, np.float64)
        numbers = np.concatenate([command.tcp_pos_m, command.tcp_quat_xyzw, stiffness, [command.gripper]])
        if numbers.shape != (14,) or not np.isfinite(numbers).all():
            raise ValueError(f"{command}: give three numbers, a quaternion and six stiffnesses, all of them finite")
        if np.any(stiffness < 0.0) or np.any(stiffness > self.limits.stiffness_max):
            raise ValueError(
                f"ArmCommand.stiffness = {stiffness.tolist()}: give 0 to {self.limits.stiffness_max.tolist()}"
            )
        quat_xyzw = np.asarray(command.tcp_quat_xyzw, np.float64)
        if abs(np.linalg.norm(quat_xyzw) - 1.0) > 1e-3:
            raise ValueError(f"ArmCommand.tcp_quat_xyzw = {quat_xyzw.tolist()}: give a unit quaternion")
        with self._lock:
            if self._fault or self._closed:
                return
            assert self._session is not None
            self._session.target(np.asarray(command.tcp_pos_m, np.float64), quat_normalize(quat_xyzw))
            if np.any(stiffness != self._stiffness):
                self._session.stiffen(stiffness)
                self._stiffness = stiffness.copy()
            self._held, self._commanded_s = False, self._now_s()
        if self._hand is not None and self._hand.go(command.gripper) and isinstance(self._clock, TwinClock):
            self._hand.await_sent()  # a twin's time waits for it

    def _hold(self) -> None:
        """The target is where the arm is."""
        assert self._session is not None
        self._session.target(self._state.tcp_pos_m, self._state.tcp_quat_xyzw)
        self._held = True

    def damping_of(self, stiffness: Array) -> Array:
        """What the torque loop damps with (6,) Ns/m, Nms/rad, base axes, at a stiffness (6,)."""
        return impedance.damping_of(self._config, stiffness)

    def wait(self, dt_s: float) -> ArmState:
        """Let ``dt_s`` pass. Raises ValueError where a twin in lock-step cannot take such a step, else nothing."""
        left_s = self._commanded_s + self._config.stale_s - self._now_s()
        if isinstance(self._clock, TwinClock) and not self._held and not self._fault and left_s < dt_s:
            before_s = max(round(left_s / PERIOD_S), 0) * PERIOD_S
            if before_s > 0.0:
                self._pass(before_s)
            self.stop()
            dt_s -= before_s
        if dt_s > 0.5 * PERIOD_S:
            self._pass(dt_s)
        return self._state

    def _pass(self, dt_s: float) -> None:
        try:
            self._clock.wait(dt_s)
            self._waited_s += dt_s
        except ConnectionError:
            self._lose()
        self._look()

    def _lose(self) -> None:
        """The twin's door is gone, and with it the twin: time goes by the wall clock from now on."""
        with self._lock:
            self._clock, self._fault = WallClock(), self._fault or "connection lost"

    def _watch(self) -> None:
        """The watchdog's thread: stale targets and faults are seen whatever the main thread does."""
        while not self._ended.wait(self._config.stale_s / 4.0):
            self._look()
            with self._lock:
                stale = self._now_s() - self._commanded_s > self._config.stale_s
                if stale and not (self._held or self._fault or self._closed):
                    self._hold()

    def stop(self) -> None:
        """Hold where the arm is, compliantly. May be called twice, and from any thread."""
        self._look()
        with self._lock:
            if not (self._fault or self._closed):
                self._hold()

    # ---------------------------------------------------------------------------------------------- a person's business

    def recover(self) -> None:
        """A person's word that the cause of the fault is gone: errors are cleared at the arm, lost connections made
        anew, and the arm is held where it is. Raises RuntimeError saying what has to be done first, and stays in the
        fault."""
        with self._lock:
            if not self._fault:
                return
            try:
                if self._fault == "connection lost":
                    self._disconnect()
                    self._connect(recovering=True)
                else:
                    self._restart()
            except OSError as error:  # the next word connects anew
                self._fault = "connection lost"
                raise RuntimeError(f"the arm is still away: {error}") from error

    def _restart(self) -> None:
        assert self._session is not None
        self._while_time_passes(self._session.finish)
        self._session.recover()
        self._state = self._make_state(self._session.was)
        self._start()
        self._commanded_s, self._fault = self._now_s(), ""

    def about(self) -> dict[str, str]:
        """What is connected and how it is set up, in words, by name."""
        config = self._config
        kernel = "PREEMPT_RT" if is_realtime() else f"{platform.release()}, not PREEMPT_RT: expect lost packets"
        with self._lock:
            there = {} if self._session is None else self._session.about()
        return there | {
            "address": config.address, "fault": self._fault or "none", "kernel": kernel,
            "control rate": f"{1.0 / PERIOD_S:g} Hz in C++, targets at {CONTROL_HZ:g} Hz",
            "stiffness": f"{list(config.stiffness)} N/m, Nm/rad; at most {config.clip_m} m, {config.clip_rad:g} rad",
            "tcp": f"{list(config.ee_pos_m)} m from the flange; load {config.load_kg:g} kg besides the hand",
            "collision torques": f"{list(config.collision_torque_nm)} Nm",
            "collision force": f"{config.collision_force_n:g} N, {config.collision_moment_nm:g} Nm",
            "hand": "the fingers stay" if self._hand is None else self._hand.about(),
        }  # fmt: skip

    def close(self) -> None:
        """Bring the arm to rest and leave it to its own controller. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._ended.set()
        if self._watchdog.is_alive():
            self._watchdog.join()
        self._disconnect()

    def _disconnect(self) -> None:
        """Every connection is let go; the arm comes to rest first where it still listens."""
        if self._session is not None:
            self._while_time_passes(self._session.finish)
        if self._hand is not None:
            self._hand.close()
        if self._session is not None:
            self._session.drop()
        if self._door is not None:
            self._door.close()  # lets time go
        self._clock = WallClock()
        self._hand = self._session = self._door = None


def is_realtime() -> bool:
    """Whether the kernel is a PREEMPT_RT one."""
    flag = Path("/sys/kernel/realtime")
    return flag.exists() and flag.read_text().strip() == "1"
