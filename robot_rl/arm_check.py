"""``robot-rl arm check``: what an arm says about itself, how well it is heard, and whether it moves as it is told."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from robot_rl import rig as rigs
from robot_rl.arm_session import REST_RADPS, Pace, Session, confirm, connect, travel, why_not
from robot_rl.doctor import report
from robot_rl.finding import Finding
from robot_rl.interrupt import StopSignals
from robot_rl.types import ArmLimits, Pose

if TYPE_CHECKING:
    from robot_rl import cli_rig

Array = NDArray[np.float64]

UP_M = 0.01
PACE = Pace(speed_mps=0.02, speed_radps=0.1)
_CLOSE_M = 0.003  # of the goal, both up and back
_TRACKING_M = 0.008  # behind what was asked for, on the way
_FORCE_N = 10.0  # change of the contact force in free air
_BIAS_N, _NOISE_N = 5.0, 2.0  # above that bias no energy is granted (controllers/guarded_arm.py)
_FRESH_SHARE = 0.95  # of the waits that bring a new state
_LATE_SHARE = 0.01  # of the waits that take half a period more than they should
_MOVE = f"The arm will move {100 * UP_M:g} cm up and back at {100 * PACE.speed_mps:g} cm/s."


def arm_check(command: cli_rig.Arm) -> int:
    """Prints what it finds; 1 where something failed, 130 after Ctrl-C, which leaves the arm held where it is."""
    if not command.seconds > 0.0:
        raise ValueError(f"--seconds {command.seconds}: give a number above 0")
    rig = rigs.load(command.rig)
    interrupted: list[int] = []
    with connect(command.task, command.arm, command.world, rig, sum(command.set, ()), PACE) as session:
        status = report(examine(session, command, interrupted), command.json)
    return 128 + interrupted[0] if interrupted else status


def examine(session: Session, command: cli_rig.Arm, interrupted: list[int]) -> Iterator[Finding]:
    """The findings, each as soon as it is there. A signal that ended the movement is put into ``interrupted``."""
    limits = session.driver.limits
    yield Finding("arm", "ok", f"{session.name} in world {session.world}: {limits.dof} joints")
    for name, says in session.about.items():
        if name != "fault":  # which has a finding of its own
            yield Finding(name, "note", says)
    yield from describe(limits)
    yield fault(session)
    measured = measure(session, command.seconds)
    yield measured.heard()
    yield measured.waited(session)
    yield measured.rest()
    yield measured.wrench()
    if command.look_only:
        yield Finding("movement", "note", "left out, as --look-only says")
        return
    state = session.driver.read()
    up = Pose(state.tcp_pos_m + np.array([0.0, 0.0, UP_M]), state.tcp_quat_xyzw)
    back = Pose(state.tcp_pos_m, state.tcp_quat_xyzw)
    if why := why_not(session, (up,)):
        yield Finding("movement", "fail", f"not begun: {why}", _remedy(session))
        return
    try:
        agreed = confirm(_MOVE, command.yes)
    except RuntimeError as error:
        yield Finding("movement", "fail", f"not begun: {error}", "run it at a terminal, or add --yes or --look-only")
        return
    if not agreed:
        yield Finding("movement", "warn", "not begun: nobody said yes", "give the command again, and type yes")
        return
    yield from move(session, up, back, interrupted)


def describe(limits: ArmLimits) -> Iterator[Finding]:
    """What the arm's maker allows, and what it cannot do."""

    def several(values: Array, form: str) -> str:
        return " ".join(format(value, form) for value in values)

    yield Finding(
        "joint limits",
        "ok",
        f"from {several(limits.q_min_rad, '.2f')}\nto   {several(limits.q_max_rad, '.2f')} rad; at most "
        f"{several(limits.dq_max_radps, '.2f')} rad/s, {several(limits.tau_max_nm, '.0f')} Nm",
    )
    yield Finding(
        "tcp limits", "ok",
        f"{limits.speed_max_mps:g} m/s, {limits.speed_max_radps:.3g} rad/s; stiffness up to "
        f"{several(limits.stiffness_max, 'g')} N/m, Nm/rad; gripper {1000 * limits.gripper_width_m:g} mm, "
        f"{limits.gripper_force_n:g} N",
    )  # fmt: skip
    cannot = ", ".join(sorted(limits.cannot)) or "nothing that a command can ask for"
    yield Finding("cannot do", "note" if limits.cannot else "ok", cannot)


def fault(session: Session) -> Finding:
    if not session.fault:
        return Finding("fault", "ok", "none")
    return Finding("fault", "fail", session.fault, "mend its cause, clear it at the arm's own panel, and check again")


def _remedy(session: Session) -> str:
    if session.fault:
        return "mend its cause, and clear it at the arm's own panel"
    return "bring the arm to rest inside the box (by hand, or its own panel), or give the --task whose box this is"


@dataclass(frozen=True)
class Measured:
    """Some seconds of an arm that is given no command."""

    period_s: float  # asked for
    waits_s: Array  # (N,) on our clock
    stamps_s: Array  # (N,) the arm's clock
    speeds_radps: Array  # (N,) of the fastest joint
    wrenches: Array  # (N, 6)

    @property
    def pace(self) -> float:
        """Seconds of the arm's time in one of ours."""
        return float(self.stamps_s[-1] - self.stamps_s[0]) / max(float(self.waits_s[1:].sum()), 1e-9)

    def heard(self) -> Finding:
        fresh = float(np.mean(np.diff(self.stamps_s) > 0.0))
        span_s = float(self.stamps_s[-1] - self.stamps_s[0])
        rate_hz = float(np.sum(np.diff(self.stamps_s) > 0.0)) / span_s if span_s > 0.0 else 0.0
        says = (
            f"{rate_hz:.1f} new states/s, asked at {1.0 / self.period_s:g} Hz; {100 * fresh:.1f} % of waits bring one"
        )
        numbers = {"rate_hz": rate_hz, "fresh_share": fresh}
        if fresh >= _FRESH_SHARE:
            return Finding("state", "ok", says, measured=numbers)
        remedy = "is the network or this machine loaded, or the arm slower than guard.control_hz?"
        return Finding("state", "warn" if fresh > 0.0 else "fail", says, remedy, numbers)

    def waited(self, session: Session) -> Finding:
        """How even the steps of our loop are, by our clock."""
        waits_ms = 1000.0 * self.waits_s[1:]
        wanted_ms = 1000.0 * self.period_s
        late = float(np.mean(waits_ms > 1.5 * wanted_ms))
        numbers = {"mean_ms": float(waits_ms.mean()), "p99_ms": float(np.quantile(waits_ms, 0.99))}
        numbers |= {"max_ms": float(waits_ms.max()), "late_share": late, "pace": self.pace}
        if session.world == "sim" or abs(self.pace - 1.0) > 0.1:
            return Finding(
                "step", "note", f"the arm's time is its own, {self.pace:.2g} s of it in one of ours", measured=numbers
            )
        says = (
            f"{numbers['mean_ms']:.2f} ms each ({wanted_ms:g} wanted), 99 % within {numbers['p99_ms']:.2f} ms, the "
            f"longest {numbers['max_ms']:.2f} ms; {100 * late:.2f} % late"
        )
        if late <= _LATE_SHARE:
            return Finding("step", "ok", says, measured=numbers)
        return Finding(
            "step", "warn", says, "see what robot-rl doctor says of real time, and stop other programs", numbers
        )

    def rest(self) -> Finding:
        fastest = float(self.speeds_radps.max())
        says = f"the fastest joint moves at {fastest:.2g} rad/s"
        if fastest <= REST_RADPS:
            return Finding("at rest", "ok", says, measured={"speed_radps": fastest})
        return Finding(
            "at rest", "fail", says, "nothing may move the arm while it is checked", {"speed_radps": fastest}
        )

    def wrench(self) -> Finding:
        mean, noise = self.wrenches.mean(axis=0), self.wrenches.std(axis=0)
        bias_n, bias_nm = (float(np.linalg.norm(part)) for part in (mean[:3], mean[3:]))
        noise_n, noise_nm = float(noise[:3].max()), float(noise[3:].max())
        numbers = {"bias_n": bias_n, "bias_nm": bias_nm, "noise_n": noise_n, "noise_nm": noise_nm}
        says = (
            f"at rest {bias_n:.2f} N ({', '.join(f'{x:.2f}' for x in mean[:3])}) and {bias_nm:.2f} Nm; noise "
            f"{noise_n:.2f} N, {noise_nm:.3f} Nm rms"
        )
        if bias_n <= _BIAS_N and noise_n <= _NOISE_N:
            return Finding("force, torque", "ok", says, measured=numbers)
        remedy = "touch nothing; zero the sensor, tell the arm its payload, or robot-rl calibrate payload"
        return Finding("force, torque", "warn", says, remedy, numbers)


def measure(session: Session, seconds: float) -> Measured:
    """Listen for ``seconds`` of the arm's time; it is given no command."""
    driver, period_s = session.driver, 1.0 / session.control_hz
    rows, states = [], []
    before_s = time.perf_counter()
    for _ in range(max(3, round(seconds / period_s))):
        states.append(driver.wait(period_s))
        now_s = time.perf_counter()
        rows.append(now_s - before_s)
        before_s = now_s
    return Measured(
        period_s,
        np.array(rows),
        np.array([state.t_s for state in states]),
        np.array([np.abs(state.dq_radps).max() for state in states]),
        np.stack([state.tcp_wrench for state in states]),
    )


def move(session: Session, up: Pose, back: Pose, interrupted: list[int]) -> Iterator[Finding]:
    """Up and back, and what was found on the way."""
    session.begin()
    for name, goal in (("up", up), ("back", back)):
        with StopSignals(_say, "this control step, with the arm held") as stop:
            trip = travel(session, goal, PACE, _either(stop, interrupted))
        numbers = {
            "reached_m": trip.reached_m,
            "missed_m": trip.missed_m,
            "tracking_m": trip.tracking_m,
            "force_n": trip.force_n,
        }
        says = (
            f"{1000 * trip.reached_m:.2f} of {1000 * UP_M:g} mm, {1000 * trip.missed_m:.2f} mm from the goal; on the "
            f"way at most {1000 * trip.tracking_m:.2f} mm behind, force changed by at most {trip.force_n:.1f} N"
        )
        if trip.stopped:
            interrupted.append(stop.signum or 2)
            yield Finding(name, "fail", f"stopped by a person after {says}", "the arm is held where it is", numbers)
            return
        if trip.fault:
            remedy = "mend its cause, clear it at the arm's own panel, and check again"
            yield Finding(name, "fail", f"ended by a fault ({trip.fault}) after {says}", remedy, numbers)
            return
        if trip.missed_m > _CLOSE_M:
            remedy = "is something in its way, or its stiffness too low for its friction?"
            yield Finding(name, "fail", says, remedy, numbers)
        elif trip.tracking_m > _TRACKING_M or trip.force_n > _FORCE_N:
            remedy = "free air should cost less: look at payload, stiffness and the arm's own speed slider"
            yield Finding(name, "warn", says, remedy, numbers)
        else:
            yield Finding(name, "ok", says, measured=numbers)


def _either(stop: StopSignals, interrupted: list[int]) -> Callable[[], bool]:
    return lambda: stop() or bool(interrupted)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
