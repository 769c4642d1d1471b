"""Where URScript's motion commands want the joints to be: a small model for each, stepped with the controller's period.

Their meanings are those of Universal Robots' script manual. Of servoj it says that the gain pulls towards the target
and that the lookahead time projects the position forward with the velocity; as a law that is

    ddq = gain (q_target - q - lookahead dq)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sim.protocols import _ur_kinematics as kin

Array = NDArray[np.float64]

SERVO_RADPS2 = 40.0  # largest acceleration a servoed joint is asked for
BLEND_RADPS2 = 15.0  # with which a move brakes the motion it takes over


@dataclass
class Target:
    """What the drives are to follow."""

    q_rad: Array
    dq_radps: Array = field(default_factory=lambda: np.zeros(6))
    ddq_radps2: Array = field(default_factory=lambda: np.zeros(6))

    def rest_at(self, q_rad: Array) -> None:
        self.q_rad, self.dq_radps, self.ddq_radps2 = q_rad.copy(), np.zeros(6), np.zeros(6)

    def move(self, q_rad: Array, dq_radps: Array, dt_s: float) -> None:
        """On to the next period's position and velocity."""
        self.ddq_radps2 = (dq_radps - self.dq_radps) / dt_s
        self.q_rad, self.dq_radps = q_rad, dq_radps

    def accelerate(self, dq_radps: Array, dt_s: float) -> None:
        """A velocity for the end of the period, reached steadily."""
        self.move(self.q_rad + 0.5 * dt_s * (self.dq_radps + dq_radps), dq_radps, dt_s)


class Motion(Protocol):
    """``step`` moves the target on by one period, ``scale`` of the programmed speed; it says whether it is at its end.
    Raises ValueError where the arm cannot go."""

    def step(self, target: Target, dt_s: float, scale: float) -> bool: ...


class Trapezoid:
    """Distance 1 from rest to rest, with the speed and acceleration (1/s, 1/s^2) of that distance."""

    def __init__(self, speed: float, acceleration: float) -> None:
        self.acceleration = acceleration
        self.ramp_s = min(speed / acceleration, math.sqrt(1.0 / acceleration))
        self.speed = self.ramp_s * acceleration
        self.duration_s = self.ramp_s + 1.0 / self.speed

    def at(self, t_s: float) -> tuple[float, float]:
        """Distance and speed."""
        t_s = min(max(t_s, 0.0), self.duration_s)
        left_s = self.duration_s - t_s
        if left_s < self.ramp_s:
            return 1.0 - 0.5 * self.acceleration * left_s**2, self.acceleration * left_s
        if t_s < self.ramp_s:
            return 0.5 * self.acceleration * t_s**2, self.acceleration * t_s
        return self.speed * (t_s - 0.5 * self.ramp_s), self.speed


class _Braking:
    """The motion that a move takes over, brought to rest beside it."""

    def __init__(self, target: Target) -> None:
        self._dq_radps = target.dq_radps.copy()
        self._duration_s = float(np.abs(self._dq_radps).max()) / BLEND_RADPS2
        self.start_rad = target.q_rad + 0.5 * self._duration_s * self._dq_radps

    def at(self, t_s: float) -> tuple[Array, Array]:
        """Offset from where it will rest, and its velocity."""
        if t_s >= self._duration_s:
            return np.zeros(6), np.zeros(6)
        left_s = self._duration_s - t_s
        share = left_s / self._duration_s
        return -0.5 * left_s * share * self._dq_radps, share * self._dq_radps


def _limits(v: float, a: float, distance: float) -> Trapezoid | None:
    if not (v > 0.0 and a > 0.0):
        raise ValueError(f"a move with speed {v:g} and acceleration {a:g}: both have to be > 0")
    return Trapezoid(v / distance, a / distance) if distance > 1e-9 else None


class MoveJ:
    """movej: straight in joint space, the leading axis with the speed and acceleration asked for."""

    def __init__(self, target: Target, q_rad: Array, v_radps: float, a_radps2: float) -> None:
        self._braking = _Braking(target)
        self._start, self._way = self._braking.start_rad, q_rad - self._braking.start_rad
        self._profile = _limits(v_radps, a_radps2, float(np.abs(self._way).max()))
        self._t_s = self._real_s = 0.0

    def step(self, target: Target, dt_s: float, scale: float) -> bool:
        self._t_s, self._real_s = self._t_s + dt_s * scale, self._real_s + dt_s
        share, speed = (1.0, 0.0) if self._profile is None else self._profile.at(self._t_s)
        offset, rest = self._braking.at(self._real_s)
        target.move(self._start + share * self._way + offset, speed * scale * self._way + rest, dt_s)
        return share >= 1.0 and not rest.any()


class MoveL:
    """movel: the tcp straight in space, its speed in m/s; a pure turn goes with as many rad/s."""

    def __init__(self, target: Target, tcp: Array, pose: Array, v_mps: float, a_mps2: float) -> None:
        """Raises ValueError for a pose (4, 4) out of reach."""
        self._braking, self._tcp = _Braking(target), tcp
        self._near = self._braking.start_rad
        self._start = kin.forward(self._near, tcp)
        self._way = kin.gap(pose, self._start)
        turn_rad, way_m = float(np.linalg.norm(self._way[3:])), float(np.linalg.norm(self._way[:3]))
        self._profile = _limits(v_mps, a_mps2, max(way_m, turn_rad))
        kin.inverse(pose, tcp, self._near)
        self._t_s = self._real_s = 0.0

    def step(self, target: Target, dt_s: float, scale: float) -> bool:
        self._t_s, self._real_s = self._t_s + dt_s * scale, self._real_s + dt_s
        share, speed = (1.0, 0.0) if self._profile is None else self._profile.at(self._t_s)
        here = kin.to_matrix(np.concatenate([np.zeros(3), share * self._way[3:]])) @ self._start
        here[:3, 3] = self._start[:3, 3] + share * self._way[:3]
        self._near = kin.inverse(here, self._tcp, self._near)
        jac, _ = kin.jacobian(kin.links(self._near), self._tcp)
        offset, rest = self._braking.at(self._real_s)
        velocity = np.linalg.solve(jac, self._way * speed * scale) if speed else np.zeros(6)
        target.move(self._near + offset, velocity + rest, dt_s)
        return share >= 1.0 and not rest.any()


class ServoJ:
    """servoj, and ur_rtde's servoL; it lasts until it is ended."""

    def __init__(self) -> None:
        self._q_rad = np.zeros(6)
        self._lookahead_s, self._gain = 0.1, 300.0

    def aim(self, q_rad: Array, lookahead_s: float, gain: float) -> None:
        self._q_rad, self._lookahead_s, self._gain = q_rad, lookahead_s, gain

    def step(self, target: Target, dt_s: float, scale: float) -> bool:
        wanted = self._gain * (self._q_rad - target.q_rad - self._lookahead_s * target.dq_radps)
        target.accelerate(target.dq_radps + dt_s * np.clip(wanted, -SERVO_RADPS2, SERVO_RADPS2), dt_s)
        return False


class SpeedJ:
    """speedj: the leading axis with the acceleration asked for."""

    def __init__(self) -> None:
        self._dq_radps, self._a_radps2 = np.zeros(6), 1.0

    def aim(self, dq_radps: Array, a_radps2: float) -> None:
        self._dq_radps, self._a_radps2 = dq_radps, a_radps2

    def step(self, target: Target, dt_s: float, scale: float) -> bool:
        target.accelerate(_towards(target.dq_radps, self._dq_radps * scale, self._a_radps2 * dt_s), dt_s)
        return False


class SpeedL:
    """speedl: the tcp with a twist (6,) in the base frame."""

    def __init__(self, target: Target, tcp: Array) -> None:
        self._tcp = tcp
        jac, _ = kin.jacobian(kin.links(target.q_rad), tcp)
        self._now = jac @ target.dq_radps
        self._twist, self._a = np.zeros(6), 1.2

    def aim(self, twist: Array, a_mps2: float) -> None:
        self._twist, self._a = twist, a_mps2

    def step(self, target: Target, dt_s: float, scale: float) -> bool:
        wanted, limit = self._twist * scale, self._a * dt_s
        self._now = np.concatenate(
            [_towards_vector(self._now[:3], wanted[:3], limit), _towards_vector(self._now[3:], wanted[3:], limit)]
        )
        jac, _ = kin.jacobian(kin.links(target.q_rad), self._tcp)
        damped = jac @ jac.T + 1e-8 * np.eye(6)  # a singularity is for the speed limits to see, not for a division
        target.accelerate(jac.T @ np.linalg.solve(damped, self._now), dt_s)
        return False


class Stop:
    """stopj and stopl: every joint to rest in the time that the leading one, or the tcp, needs."""

    def __init__(self, target: Target, deceleration: float, tcp: Array | None = None) -> None:
        if not deceleration > 0.0:
            raise ValueError(f"a stop with deceleration {deceleration:g}: give one > 0")
        self._dq_radps = target.dq_radps.copy()
        speed = float(np.abs(self._dq_radps).max())
        if tcp is not None:
            jac, _ = kin.jacobian(kin.links(target.q_rad), tcp)
            twist = jac @ self._dq_radps
            speed = float(max(np.linalg.norm(twist[:3]), np.linalg.norm(twist[3:])))
        self._duration_s = speed / deceleration
        self._left_s = self._duration_s

    def step(self, target: Target, dt_s: float, scale: float) -> bool:
        self._left_s -= dt_s
        share = self._left_s / self._duration_s if self._left_s > 0.0 else 0.0
        target.accelerate(share * self._dq_radps, dt_s)
        if share == 0.0:
            target.dq_radps, target.ddq_radps2 = np.zeros(6), np.zeros(6)
        return share == 0.0


def _towards(now: Array, wanted: Array, step: float) -> Array:
    """By at most ``step`` in the component that has farthest to go, straight."""
    change = wanted - now
    return now + change * min(1.0, step / max(float(np.abs(change).max()), 1e-12))


def _towards_vector(now: Array, wanted: Array, step: float) -> Array:
    """By at most ``step`` in length, straight."""
    change = wanted - now
    return now + change * min(1.0, step / max(float(np.linalg.norm(change)), 1e-12))
