"""An arm for commands that move it a little with a person beside it: connecting, asking, and moving slowly."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl import build
from robot_rl.find import find
from robot_rl.geometry import quat_multiply, quat_normalize, rotation_between, rotvec_to_quat
from robot_rl.lab import tighten
from robot_rl.rig import Rig, settings
from robot_rl.types import ArmCommand, ArmState, Bounds, Pose

Array = NDArray[np.float64]

COMMAND_HZ = 50.0  # about: a whole number of the guard's ticks
SETTLE_S = 0.5
REST_RADPS = 0.05  # no joint faster: at rest
ABOVE_REST_N = 30.0  # contact force, beyond what is measured at rest, that trips a slow arm


@dataclass(frozen=True)
class Pace:
    speed_mps: float
    speed_radps: float
    force_n: float = 20.0  # the springs pull no harder


@dataclass(frozen=True)
class Trip:
    """How a movement went."""

    state: ArmState  # at its end
    reached_m: float  # between beginning and end, along the way
    missed_m: float  # between end and goal
    missed_rad: float
    tracking_m: float  # largest distance between what was asked for and where the arm was
    force_n: float  # largest change of the contact force
    fault: str  # why it ended early, or ""
    stopped: bool = False  # it was asked to stop


@dataclass(frozen=True)
class Session:
    """A connected arm. ``arm`` takes commands: a GuardedArm, or an arm that is guarded where it is; ``driver`` is what
    is below."""

    name: str
    world: str
    arm: Any
    driver: Any
    bounds: Bounds
    step_s: float  # between two commands
    control_hz: float

    @property
    def fault(self) -> str:
        """Why the arm would not follow, in the words of the guard or the arm, or ""."""
        return str(self.arm.fault)

    def begin(self) -> None:
        """Before the first movement: whatever moved the arm since it was connected, it begins where it is now."""
        if self.world not in build.REMOTE:
            self.arm.settle()

    def renew(self) -> None:
        """Fill the energy ledger, where the arm is at rest and free of contact; else what is left has to do."""
        with suppress(ValueError):
            if self.world in build.REMOTE:
                self.arm.call("reset_energy")
            else:
                self.arm.grant_energy()

    @property
    def about(self) -> dict[str, str]:
        return dict(self.driver.about()) if hasattr(self.driver, "about") else {}


@contextmanager
def connect(task: str, arm: str, world: str, rig: Rig, more: Sequence[str], pace: Pace) -> Iterator[Session]:
    """An arm held to the bounds of the task, the rig and the pace, whichever is tightest; closed at the end, and held
    where it is if anything goes wrong. Nothing is commanded yet.

    ``arm`` and ``world`` may be empty: then the rig says them. Raises LookupError and ValueError for names and settings
    that there are not, and what the driver raises where it finds no arm.
    """
    arm = arm or (rig.arm.name if rig.arm else "panda")
    world = world or (rig.arm.world if rig.arm else "sim")
    configs = build.make_configs(task, arm, world, (*settings(rig, arm, world), *more))
    built = find("tasks", task).make(configs["task"])
    driver = build.make_arm(task, arm, world, configs, built)
    try:
        if world == "sim":  # a twin can be put where an episode would begin; any other arm is where it is
            driver.place(built.reset(np.random.default_rng(0)))
        bounds = slow_bounds(tighten(build.bounds_of(built, configs), rig.bounds), pace, driver.read())
        if world in build.REMOTE:
            control_hz, guarded = COMMAND_HZ, driver
        else:
            guarding = importlib.import_module("controllers.guarded_arm")
            control_hz = configs["guard"].control_hz
            guarded = guarding.GuardedArm(driver, bounds, configs["guard"], configs["energy"])
        ticks = max(1, round(control_hz / COMMAND_HZ))
        yield Session(arm, world, guarded, driver, bounds, ticks / control_hz, control_hz)
    except BaseException:
        driver.stop()
        raise
    finally:
        driver.close()


def slow_bounds(bounds: Bounds, pace: Pace, state: ArmState) -> Bounds:
    """``bounds`` no faster and no stronger than ``pace``; they trip a little above the force that is measured now."""
    trip_n = float(np.linalg.norm(state.tcp_wrench[:3])) + ABOVE_REST_N
    return dataclasses.replace(
        bounds,
        speed_mps=min(bounds.speed_mps, 1.5 * pace.speed_mps),  # the way is led at the pace; this is the fence
        speed_radps=min(bounds.speed_radps, 1.5 * pace.speed_radps),
        force_n=min(bounds.force_n, pace.force_n),
        trip_force_n=min(bounds.trip_force_n, trip_n) if np.isfinite(trip_n) else bounds.trip_force_n,
    )


def why_not(session: Session, goals: Sequence[Pose]) -> str:
    """Why the arm must not move through ``goals`` now, or ""."""
    state = session.arm.read()
    if session.fault:
        return f"the arm is in a fault: {session.fault}"
    fastest_radps = float(np.abs(state.dq_radps).max())
    if not fastest_radps <= REST_RADPS:
        return f"the arm is not at rest: a joint moves at {fastest_radps:.3g} rad/s"
    for pose in (Pose(state.tcp_pos_m, state.tcp_quat_xyzw), *goals):
        if why := outside(session.bounds, pose):
            return why
    return ""


def outside(bounds: Bounds, pose: Pose) -> str:
    """How ``pose`` leaves the box of ``bounds``, or ""."""
    for i, axis in enumerate("xyz"):
        low, high, at = bounds.box_lower_m[i], bounds.box_upper_m[i], float(pose.pos_m[i])
        if not low <= at <= high:
            return f"{axis} = {at:.3f} m is outside the box of the bounds, {low:.3f} to {high:.3f} m"
    away = rotation_between(pose.quat_xyzw, np.asarray(bounds.box_quat_xyzw))
    for i, axis in enumerate("xyz"):
        if not abs(away[i]) <= bounds.box_rot_rad[i]:
            return (
                f"turned by {away[i]:.3f} rad about {axis} it is outside the rotation box of the bounds, "
                f"+-{bounds.box_rot_rad[i]:.3f} rad"
            )
    return ""


def confirm(what: str, yes: bool) -> bool:
    """A person's word at the terminal; ``yes`` gives it beforehand. Raises RuntimeError without either."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise RuntimeError(f"{what} It needs a person at a terminal, or --yes from one who watches the arm")
    print(f"{what} Keep a hand on the emergency stop. Type yes to go on: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() == "yes"


def travel(session: Session, goal: Pose, pace: Pace, stop: Callable[[], bool] = lambda: False) -> Trip:
    """Lead the arm in a straight line to ``goal`` and let it settle; the gripper stays as it is. A fault, or ``stop``,
    ends the way, and the arm holds."""
    arm, begun = session.arm, session.arm.read()
    gap, turn = goal.pos_m - begun.tcp_pos_m, rotation_between(goal.quat_xyzw, begun.tcp_quat_xyzw)
    way_m, way_rad = float(np.linalg.norm(gap)), float(np.linalg.norm(turn))
    steps = max(1, int(np.ceil(max(way_m / pace.speed_mps, way_rad / pace.speed_radps) / session.step_s)))
    tracking_m = force_n = 0.0
    state, stopped = begun, False
    for step in range(1, steps + round(SETTLE_S / session.step_s) + 1):
        share = min(1.0, step / steps)
        there = begun.tcp_pos_m + share * gap
        quat = quat_normalize(quat_multiply(rotvec_to_quat(share * turn), begun.tcp_quat_xyzw))
        arm.command(ArmCommand(there, quat, begun.gripper))
        state = arm.wait(session.step_s)
        tracking_m = max(tracking_m, float(np.linalg.norm(there - state.tcp_pos_m)))
        force_n = max(force_n, float(np.linalg.norm(state.tcp_wrench[:3] - begun.tcp_wrench[:3])))
        stopped = stop()
        if stopped or session.fault:
            arm.stop()
            break
    missed_rad = float(np.linalg.norm(rotation_between(goal.quat_xyzw, state.tcp_quat_xyzw)))
    missed_m = float(np.linalg.norm(goal.pos_m - state.tcp_pos_m))
    reached_m = float((state.tcp_pos_m - begun.tcp_pos_m) @ gap) / way_m if way_m > 0.0 else 0.0
    return Trip(state, reached_m, missed_m, missed_rad, tracking_m, force_n, session.fault, stopped)
