"""The loop around a guarded arm: a thread with absolute deadlines, or steps on demand; no ROS in it.

In real time a thread of its own runs ``arm.wait(period)`` tick after tick. A twin is held to the wall clock by absolute
deadlines; a driver keeps time itself. Other threads hand in commands and requests, which are served between two ticks.
In lock-step there is no thread: ``step`` runs in the caller's, and time is what has been stepped.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from controllers import watchdog
from controllers.guard import CLOCK_BACKWARDS, EMERGENCY_STOP, FAULTS, HEARTBEAT_LOST, LOOP_LATE, STATE_TOO_OLD
from controllers.guarded_arm import GuardedArm, LockstepArm
from robot_rl.geometry import rotation_between
from robot_rl.types import ArmCommand, ArmState, Pose, Start

Array = NDArray[np.float64]
T = TypeVar("T")

NOBODY = "no target yet"
HOME_M, HOME_RAD = 0.002, 0.02  # so near the arm is at home
HOME_S = 60.0  # longest that homing may take
ANSWER_S = 10.0  # longest that a tick may take before its loop is given up
WINDOW = 2000  # ticks over which lateness is told
LATE_WARN = 5  # late ticks on end that are worth a warning


class Tick(NamedTuple):
    """What one tick left behind."""

    stamp_ns: int  # of the state
    applied_ns: int  # when the reference was given to the arm
    world: int  # how often a twin was put into a state
    state: ArmState
    mode: str  # one of messages.MODES
    cause: str  # why it does not follow, in words that do not change from tick to tick
    fault: str
    clips: dict[str, int]
    energy: dict[str, float]  # ledger.summarize of this tick
    energy_state: str
    shown: Array  # (2,) readings["energy"]
    reference: Pose


@dataclass
class Timing:
    """How well the loop keeps time."""

    ticks: int = 0
    late: int = 0  # ticks that ended after the next one's deadline
    late_on_end: int = 0
    worst_s: float = 0.0  # latest wake-up so far

    def __post_init__(self) -> None:
        self.lateness_s: deque[float] = deque(maxlen=WINDOW)

    def note(self, lateness_s: float, late: bool) -> None:
        self.ticks += 1
        self.late += late
        self.late_on_end = self.late_on_end + 1 if late else 0
        self.worst_s = max(self.worst_s, lateness_s)
        self.lateness_s.append(lateness_s)


class ControlLoop:
    """Runs ``arm`` at ``1 / period_s`` and tells ``publish`` of every tick, in the loop's thread."""

    def __init__(
        self,
        arm: GuardedArm,
        config: watchdog.Config,
        period_s: float,
        publish: Callable[[Tick], None],
        lockstep: bool,
        twin: bool,
    ) -> None:
        self.arm, self.config = arm, config
        self.period_s, self.lockstep, self.twin = period_s, lockstep, twin
        self.timing = Timing()
        self.error = ""  # what ended the loop, besides stop()
        self.home: ArmCommand | None = None
        arm.ticks(period_s)  # a rate that the guard cannot keep is refused
        self.widest = arm.bounds  # the task's; parameters may tighten them
        self._publish = publish
        self.poll: Callable[[], None] = lambda: None  # in real time called before each tick: hands in what has come
        self._world = 0
        self._idle = NOBODY
        self._stepped_ns = 1_000_000_000  # lock-step time; 0 would be "no stamp"
        self._applied_ns = 0
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._commands: deque[ArmCommand] = deque(maxlen=1)
        self._requests: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._targeted_s: float | None = None
        self._beat_s: float | None = None
        self._floating_s: float | None = None
        self._homing_until_s: float | None = None
        self._moved_s, self._seen_s = self.now_s(), arm.read().t_s
        self._running = threading.Event()
        self._started = False
        self._thread: threading.Thread | None = None
        self.last = self._tick(arm.read(), "holding", NOBODY)

    # ------------------------------------------------------------------------------------------------- any thread

    def now_s(self) -> float:
        return self._stepped_ns * 1e-9 if self.lockstep else time.monotonic()

    def now_ns(self) -> int:
        """The stamp of this instant: the clock of the machine when the loop was made, and steady since."""
        return self._stepped_ns if self.lockstep else self._offset_ns + time.monotonic_ns()

    def command(self, command: ArmCommand, age_s: float = 0.0) -> None:
        """Take a target that was found good, ``age_s`` after it was sent; the newest wins."""
        self._targeted_s, self._idle = self.now_s() - age_s, NOBODY
        self._commands.append(command)

    def beat(self, heard: bool = True) -> None:
        """The commander's heartbeat; ``heard=False``: there is a new commander, which never sent one."""
        self._beat_s = self.now_s() if heard else None

    @property
    def target_age_s(self) -> float | None:
        return None if self._targeted_s is None else self.now_s() - self._targeted_s

    def ask(self, function: Callable[[], T], within_s: float = 2.0, silent: str = "its arm's driver hangs") -> T:
        """Run ``function`` between two ticks and return, or raise, what it does. Raises RuntimeError where the loop
        does not run, or does not answer, with what its silence means; then the function is run once it goes on."""
        if self.lockstep or self._thread is None or self._thread is threading.current_thread():
            return function()
        future: Future[T] = Future()
        self._requests.put((function, future))
        end_s = time.monotonic() + within_s
        while not wait_for([future], timeout=0.1).done:
            if not self._running.is_set() or self.error:
                raise RuntimeError(f"the control loop does not run: {self.error or 'it was stopped'}")
            if time.monotonic() > end_s:
                raise RuntimeError(f"the control loop does not answer within {within_s:g} s: {silent}")
        return future.result()

    def estop(self) -> None:
        """Trip. Where the loop hangs or has ended, the arm itself is told to stop, from this thread."""
        try:
            self.ask(lambda: self.arm.trip(EMERGENCY_STOP), within_s=0.1)
        except RuntimeError:
            self.arm.unguarded.stop()
            raise

    def go_home(self) -> None:
        """Begin to move to ``home``; raises ValueError where that cannot be."""
        if self.home is None:
            raise ValueError("there is no home pose")
        if self.arm.fault:
            raise ValueError(f"the arm is in a fault ({self.arm.fault}): clear it first")
        lower, upper = self.arm.bounds.box_lower_m, self.arm.bounds.box_upper_m
        if np.any(self.home.tcp_pos_m < lower) or np.any(self.home.tcp_pos_m > upper):
            raise ValueError(f"home, {np.round(self.home.tcp_pos_m, 3).tolist()} m, is outside of the workspace box")
        if not self.lockstep and (age_s := self.target_age_s) is not None and age_s <= self.config.hold_s:
            raise ValueError("somebody commands the arm: stop that first")
        self._homing_until_s = self.now_s() + HOME_S

    @property
    def homing(self) -> bool:
        return self._homing_until_s is not None

    # ------------------------------------------------------------------------------------------------- lock-step

    def step(self, dt_s: float) -> Tick:
        """Lock-step: let ``dt_s`` pass with the newest command."""
        if self._commands:
            self.arm.command(self._commands.pop())
        self._applied_ns = self._stepped_ns
        state = self.arm.wait(dt_s)
        self._stepped_ns += round(dt_s * 1e9)
        expired = not self.arm.following
        return self._end(state, "holding" if expired else "following", "the lease is over" if expired else "")

    def complete(self, gripper: float, valid_s: float, stiffness: Array | None) -> None:
        """Lock-step: the rest of the newest command, which a pose has no room for."""
        if self._commands:
            command = self._commands.pop()
            self._commands.append(replace(command, gripper=gripper, valid_s=valid_s, stiffness=stiffness))

    def refresh(self) -> None:
        """Lock-step: tell anew how things stand, no time having passed."""
        self._end(self.last.state, "holding", NOBODY)

    def step_home(self) -> Tick:
        """Lock-step: step until the arm is at home, or a fault or ``HOME_S`` ends it."""
        while self.homing:
            mode, cause = self._approach()
            state = self.arm.wait(self.period_s)
            self._stepped_ns += round(self.period_s * 1e9)
            self._end(state, mode, cause)
        return self.last

    def place(self, start: Start) -> Tick:
        """Twins only: put the world into ``start``; in real time through ``ask``."""
        state = self.arm.place(start)
        self._commands.clear()
        self._targeted_s = self._floating_s = self._homing_until_s = None
        self._seen_s = state.t_s
        self._world += 1
        self._stepped_ns += 1_000_000  # a later instant than all before
        return self._end(state, "holding", NOBODY)

    # ------------------------------------------------------------------------------------------------- real time

    def start(self) -> None:
        """Hold where the arm is; what was commanded or asked before is forgotten."""
        self._commands.clear()
        self._requests = queue.SimpleQueue()
        self._targeted_s = self._beat_s = self._floating_s = self._homing_until_s = None
        self.arm.settle()
        self._moved_s, self._seen_s = self.now_s(), self.arm.read().t_s
        self._started = True
        self._running.set()
        if not self.lockstep:
            self._thread = threading.Thread(target=self._run, name="control", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the loop: an arm in real time is let go within ``ramp_s``; then it holds where it is."""
        self._running.clear()
        if self._thread is not None:
            self._thread.join(ANSWER_S + self.config.ramp_s)
            if self._thread.is_alive():
                self.error = "the arm's driver hangs"
            self._thread = None
        if self._started and not self.error:
            self.arm.stop()
        self._started = False

    def _run(self) -> None:
        try:
            deadline_s = time.monotonic()
            while self._running.is_set():
                deadline_s = self._pace(deadline_s)
                self._serve()
            self._ramp_down()
        except Exception as error:  # noqa: BLE001 - whatever a driver raises: the node stays to tell
            self.error = f"{type(error).__name__}: {error}"
            with contextlib.suppress(Exception):  # where it was not the driver that failed
                self.arm.stop()
            self.last = self.last._replace(mode="fault", cause=self.error, fault="arm", stamp_ns=self.now_ns())
            self._publish(self.last)

    def _pace(self, deadline_s: float) -> float:
        """Sleep until the deadline, note how late it got, and return the next one."""
        if not self.twin:
            return deadline_s
        now_s = time.monotonic()
        late = now_s > deadline_s + self.period_s
        if now_s < deadline_s:
            time.sleep(deadline_s - now_s)
        self.timing.note(max(time.monotonic() - deadline_s, 0.0), late)
        if late:  # what is lost is lost: a burst of ticks would be worse
            deadline_s = time.monotonic()
        return deadline_s + self.period_s

    def _serve(self) -> None:
        """One tick."""
        self.poll()
        self._answer()
        mode, cause = self._decide()
        begun_s, self._applied_ns = time.monotonic(), self.now_ns()
        state = self.arm.wait(self.period_s)
        if not self.twin:
            self._watch(state, time.monotonic() - begun_s)
        self._end(state, mode, cause)

    def _answer(self) -> None:
        while not self._requests.empty():
            function, future = self._requests.get()
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001 - it belongs to who asked
                future.set_exception(error)

    def _decide(self) -> tuple[str, str]:
        """What this tick is to be, and why."""
        if self.homing:
            self._commands.clear()
            return self._approach()
        now_s = self.now_s()
        beat_s = None if self._beat_s is None else now_s - self._beat_s
        level, cause = watchdog.rung(self.config, self.target_age_s, beat_s)
        cause = self._idle if self._targeted_s is None else cause
        if self.arm.fault:
            self._commands.clear()
        elif self._commands:
            try:
                self.arm.command(self._commands.pop())
            except ValueError as error:  # what passed the gate and is refused here, as on the edge of a tolerance
                self.arm.hold()
                return "holding", str(error)
        if level != watchdog.FLOAT:
            self._floating_s = None
        if level == watchdog.FAULT:
            self.arm.trip(HEARTBEAT_LOST)
        elif level == watchdog.FLOAT:
            self._floating_s = self._floating_s or now_s
            self._relax(now_s - self._floating_s)
            return "floating", cause
        elif level == watchdog.HOLD:
            self.arm.hold()
            return "holding", cause
        return "following", ""

    def _relax(self, floating_s: float) -> None:
        left_s = self.config.ramp_s - floating_s
        self.arm.relax(max(left_s / self.config.ramp_s, 0.0) if left_s > 0.0 else 0.0)

    def _approach(self) -> tuple[str, str]:
        """One tick on the way home; the guard keeps it to the speed limit."""
        home, state = self.home, self.arm.read()
        assert home is not None and self._homing_until_s is not None
        gap_m = float(np.linalg.norm(home.tcp_pos_m - state.tcp_pos_m))
        gap_rad = float(np.linalg.norm(rotation_between(home.tcp_quat_xyzw, state.tcp_quat_xyzw)))
        if (gap_m < HOME_M and gap_rad < HOME_RAD) or self.arm.fault or self.now_s() > self._homing_until_s:
            self._homing_until_s = None
            self._targeted_s = None
            self._idle = NOBODY if gap_m < HOME_M else f"stopped {gap_m:.3f} m from home"
            return "holding", self._idle
        self.arm.command(home)
        return "homing", ""

    def _watch(self, state: ArmState, took_s: float) -> None:
        """Faults of a real arm that only the loop can see."""
        now_s = time.monotonic()
        late = took_s > 2.0 * self.period_s
        self.timing.note(max(took_s - self.period_s, 0.0), late)
        if self.timing.late_on_end > self.config.late_ticks:
            self.arm.trip(LOOP_LATE)
        if state.t_s < self._seen_s:
            self.arm.trip(CLOCK_BACKWARDS)
        if state.t_s > self._seen_s:
            self._moved_s = now_s
        elif now_s - self._moved_s > self.config.state_s:
            self.arm.trip(STATE_TOO_OLD)
        if math.isfinite(state.t_s):
            self._seen_s = state.t_s

    def _ramp_down(self) -> None:
        begun_s = deadline_s = time.monotonic()
        while (passed_s := time.monotonic() - begun_s) < self.config.ramp_s and not self.arm.fault:
            deadline_s = self._pace(deadline_s)
            self._answer()
            self._relax(passed_s)
            self._end(self.arm.wait(self.period_s), "floating", "deactivated")

    def _end(self, state: ArmState, mode: str, cause: str) -> Tick:
        fault = self.arm.fault
        if fault == FAULTS[EMERGENCY_STOP]:
            mode, cause = fault, "release it, then clear_fault"
        elif fault:
            mode, cause = "fault", fault
        self.last = self._tick(state, mode, cause)
        self._publish(self.last)
        return self.last

    def _tick(self, state: ArmState, mode: str, cause: str) -> Tick:
        arm = self.arm
        return Tick(
            stamp_ns=self.now_ns(),
            applied_ns=self._applied_ns,
            world=self._world,
            state=state,
            mode=mode,
            cause=cause,
            fault=arm.fault,
            clips=arm.clips,
            energy=arm.energy,
            energy_state=arm.energy_state,
            shown=arm.readings()["energy"],
            reference=arm.reference,
        )


def is_twin(arm: object) -> bool:
    """Whether the arm's clock is physics, so that somebody else has to keep it to the wall clock."""
    return isinstance(arm, LockstepArm)
