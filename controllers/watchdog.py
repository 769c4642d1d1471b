"""How long a commander may be silent: the ladder hold, float, fault. Pure rules; the control loop keeps the time.

    silent                      hold      float     fault (latched)
    target                      0.2 s     1.0 s     -
    heartbeat, once heard       0.1 s     0.5 s     only with heartbeat_fault_s
    measured state of an arm    -         -         0.05 s
    control loop too late       -         -         20 ticks on end (5: a warning)

Hold freezes the reference. Float softens the springs to nothing within ``ramp_s`` and lets the arm be moved by hand. A
commander that leaves is no fault of the arm: the next one may go on. A fault waits for a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from robot_rl.config import check, number

HOLD, FOLLOW, FLOAT, FAULT = range(4)


@dataclass(frozen=True)
class Config:
    hold_s: float = number(0.2, 0.01, 5.0, "s without a target until the reference freezes; also a target's lease")
    float_s: float = number(1.0, 0.05, 60.0, "s without a target until the arm floats")
    heartbeat_hold_s: float = number(0.1, 0.01, 5.0, "s without a heartbeat, once there was one")
    heartbeat_float_s: float = number(0.5, 0.05, 60.0, "s without a heartbeat until the arm floats")
    heartbeat_fault_s: float = number(0.0, 0.0, 600.0, "s without a heartbeat until a fault; 0: never")
    ramp_s: float = number(0.5, 0.0, 5.0, "s in which the springs soften to nothing")
    state_s: float = number(0.05, 0.005, 1.0, "s without a new measurement of a real arm until a fault")
    late_ticks: int = number(20, 1, 10_000, "late ticks of a real arm's loop on end until a fault")
    jump_m: float = number(0.1, 0.001, 10.0, "m from the measured pose; a target farther off is refused")
    jump_rad: float = number(0.5, 0.01, 3.2, "rad from the measured pose; the same")

    def __post_init__(self) -> None:
        check(self)
        for first, second in (("hold_s", "float_s"), ("heartbeat_hold_s", "heartbeat_float_s")):
            if getattr(self, first) > getattr(self, second):
                raise ValueError(f"{first} = {getattr(self, first)}: give at most {second}, {getattr(self, second)}")


class Rung(NamedTuple):
    """Where on the ladder, and why, in words that do not change from tick to tick."""

    level: int
    cause: str


def rung(config: Config, target_age_s: float | None, beat_age_s: float | None) -> Rung:
    """``target_age_s``: since the last accepted target, None before the first. ``beat_age_s``: since the commander's
    last heartbeat, None where it never sent one."""
    beat_s = 0.0 if beat_age_s is None else beat_age_s
    if target_age_s is None:
        return Rung(HOLD, "no target yet")
    if config.heartbeat_fault_s and beat_s > config.heartbeat_fault_s:
        return Rung(FAULT, f"no heartbeat for {config.heartbeat_fault_s:g} s")
    if beat_s > config.heartbeat_float_s:
        return Rung(FLOAT, f"no heartbeat for {config.heartbeat_float_s:g} s")
    if target_age_s > config.float_s:
        return Rung(FLOAT, f"no target for {config.float_s:g} s")
    if beat_s > config.heartbeat_hold_s:
        return Rung(HOLD, f"no heartbeat for {config.heartbeat_hold_s:g} s")
    if target_age_s > config.hold_s:
        return Rung(HOLD, f"no target for {config.hold_s:g} s")
    return Rung(FOLLOW, "")
