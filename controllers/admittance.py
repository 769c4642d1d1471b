"""Admittance control: the impedance law for an arm that takes positions and measures forces.

A virtual mass carries the reference of the arm's position loop. The springs are those of ``controllers/impedance.py``,
clips included; the force that the surroundings exert is measured instead of being felt:

    M v' = F_spring(x, x_d) - D v + F_ext,    x' = v,    the arm is sent to x + lead v

so at rest against anything the arm presses with ``stiffness * min(error, clip)``, as the in-process law does, and a
push moves it by ``F / stiffness``. M is the law's ``reference_inertia`` and D its ``2 ratio sqrt(K M)``.

A stiff environment k that is felt ``tau`` late turns the feedback into ``k exp(-s tau)``. To first order in ``s tau``
the characteristic polynomial is ``M s^2 + (D - k tau) s + K + k``: contact is stable for ``D > k tau`` only. (That a
sampled spring k needs a damper of ``k T / 2``: Colgate and Schenkel, "Passivity of a class of sampled-data systems",
J. Robotic Systems 14(1), 1997; the general demand on a manipulator that meets any passive surroundings: Hogan,
"Impedance control", J. Dyn. Sys. Meas. Control 107, 1985.) ``least_damping`` is the exact bound of this sampled loop.
As so much damping makes free motion slow, it is added at the first touch and taken away some time after the last: a
damper takes energy however it changes. A press more gentle than a touch may ripple by as much as one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controllers import impedance
from controllers.impedance import Law, spring_wrench
from robot_rl.config import check, number
from robot_rl.geometry import quat_multiply, quat_normalize, rotation_between, rotvec_to_quat
from robot_rl.types import ArmLimits, Pose

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Config(impedance.Config):
    """Gains of the springs and of the virtual mass, and what the loop is in between."""

    contact_damping: tuple[float, ...] = number((850.0, 850.0, 850.0, 12.0, 12.0, 12.0), 0.0, 1e5, "Ns/m, Nms/rad")
    environment: tuple[float, ...] = number((4e4, 4e4, 4e4, 4e2, 4e2, 4e2), 0.0, 1e7, "N/m, Nm/rad, the stiffest met")
    delay_s: float = number(0.016, 0.0, 0.5, "s from a force to the arm's answer to it, our filter not counted")
    margin: float = number(1.5, 1.0, 10.0, "times stiffer the environment may be before contact oscillates")
    cutoff_hz: float = number(60.0, 1.0, 1000.0, "Hz, low-pass of the measured wrench")
    deadband_n: float = number(0.5, 0.0, 50.0, "N that are taken off the measured force")
    deadband_nm: float = number(0.02, 0.0, 5.0, "Nm, the same of the moment")
    touch_n: float = number(1.5, 0.1, 100.0, "N that are a touch")
    touch_nm: float = number(0.5, 0.01, 10.0, "Nm that are one")
    touch_s: float = number(0.1, 0.0, 5.0, "s that a touch lasts after its force has gone")
    speed_mps: float = number(0.06, 0.01, 2.0, "m/s, of the virtual mass; what an impact weighs grows with it")
    speed_radps: float = number(1.5, 0.01, 5.0, "rad/s, the same")
    accel_mps2: float = number(15.0, 0.1, 100.0, "m/s^2, the same")
    accel_radps2: float = number(60.0, 0.1, 500.0, "rad/s^2, the same")
    leash_m: float = number(0.02, 0.001, 0.2, "m from the measured pose, at most")
    leash_rad: float = number(0.2, 0.01, 1.0, "rad, the same")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self)
        for name in ("contact_damping", "environment"):
            if len(getattr(self, name)) != 6:
                raise ValueError(f"{name} = {getattr(self, name)}: give 6 numbers")


def spectral_radius(
    inertia: float, damping: float, stiffness: float, environment: float, period_s: float, ticks: int, share: float
) -> float:
    """Of one axis of the sampled loop in contact: below 1 it settles.

    ``environment`` N/m is felt ``ticks`` periods late, through a low-pass that takes ``share`` of each new sample. The
    state is velocity, filtered force and the last positions; the equations are those of ``Admittance.step``.
    """
    size = 3 + ticks
    force, velocity = np.zeros(size), np.zeros(size)  # rows: what they become
    force[1], force[2 + ticks] = 1.0 - share, -share * environment
    velocity[0] = 1.0
    velocity[2] = -period_s / inertia * stiffness
    velocity = (velocity + period_s / inertia * force) / (1.0 + period_s * damping / inertia)
    step = np.zeros((size, size))
    step[0], step[1], step[2] = velocity, force, period_s * velocity
    step[2, 2] += 1.0
    for i in range(ticks):
        step[3 + i, 2 + i] = 1.0
    return float(np.abs(np.linalg.eigvals(step)).max())


def least_damping(
    inertia: float, stiffness_max: float, environment: float, period_s: float, delay_s: float, share: float
) -> float:
    """The smallest damping, Ns/m or Nms/rad, with which contact settles at every stiffness up to ``stiffness_max``."""
    ticks = math.ceil(delay_s / period_s - 1e-9)

    def settles(damping: float) -> bool:
        stiffnesses = (0.0, 0.5 * stiffness_max, stiffness_max)
        radii = [spectral_radius(inertia, damping, k, environment, period_s, ticks, share) for k in stiffnesses]
        return max(radii) <= 1.0 + 1e-9  # without springs and surroundings it stays anywhere: a radius of 1

    if settles(0.0):
        return 0.0
    low, high = 0.0, max(10.0 * environment * (delay_s + period_s), 1.0)  # five times what no inertia at all takes
    for _ in range(30):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if settles(middle) else (middle, high)
    return high


def filter_share(cutoff_hz: float, period_s: float) -> float:
    """Of a new sample in a first-order low-pass."""
    return 1.0 - math.exp(-2.0 * math.pi * cutoff_hz * period_s)


def require_stable(config: Config, limits: ArmLimits, period_s: float) -> None:
    """Raise ValueError, with the reason and the remedy, where contact with ``environment`` would oscillate."""
    share = filter_share(config.cutoff_hz, period_s)
    for i, unit in ((0, "N/m"), (1, "N/m"), (2, "N/m"), (3, "Nm/rad"), (4, "Nm/rad"), (5, "Nm/rad")):
        stiffest = config.margin * config.environment[i]
        least = least_damping(
            config.reference_inertia[i], float(limits.stiffness_max[i]), stiffest, period_s, config.delay_s, share
        )
        if config.contact_damping[i] < least:
            raise ValueError(
                f"contact_damping[{i}] = {config.contact_damping[i]:g}: against {config.environment[i]:g} {unit} "
                f"(margin {config.margin:g}), felt {config.delay_s * 1e3:g} ms late, contact oscillates below "
                f"{least:.4g}; raise it, or state a softer environment or less delay where that is true"
            )


class Sample(NamedTuple):
    """What the arm measures in a period, base frame."""

    pos_m: Array  # (3,) of the tcp
    quat_xyzw: Array  # (4,)
    wrench: Array  # (6,) N, Nm, what the surroundings exert on the arm at the tcp


class Admittance:
    """The virtual mass of one arm, stepped once a period."""

    def __init__(self, config: Config, limits: ArmLimits, period_s: float, lead_s: float = 0.0) -> None:
        """``lead_s``: the lag of the arm's position loop behind its reference, which is sent ahead by so much.

        Raises ValueError for gains that the arm does not allow or with which contact would oscillate.
        """
        require_stable(config, limits, period_s)
        self._config, self._period_s, self._lead_s = config, period_s, lead_s
        self.law: Law = impedance.make_law(config, limits, np.zeros(limits.dof))
        self._share = filter_share(config.cutoff_hz, period_s)
        self._contact = np.asarray(config.contact_damping, np.float64)
        self._touched_s = math.inf
        self.pos_m, self.quat_xyzw = np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0])
        self.twist, self._wrench = np.zeros(6), np.zeros(6)

    def begin(self, sample: Sample) -> None:
        """At rest where the arm is, feeling what it feels."""
        self.pos_m, self.quat_xyzw = sample.pos_m.copy(), sample.quat_xyzw.copy()
        self.twist, self._wrench = np.zeros(6), sample.wrench.copy()
        self._touched_s = math.inf

    @property
    def touching(self) -> bool:
        """Whether the damping is that of contact."""
        return self._touched_s <= self._config.touch_s

    def step(self, sample: Sample, target: Pose, stiffness: Array) -> Pose:
        """Let a period pass; the pose to send the arm to. ``stiffness`` (6,) N/m, Nm/rad per base axis."""
        law, period_s = self.law, self._period_s
        force = self._feel(sample.wrench)
        force += spring_wrench(self.pos_m, self.quat_xyzw, target.pos_m, target.quat_xyzw, stiffness, law)
        damping = impedance.damping_of(law, stiffness)
        if self.touching:
            damping = np.maximum(damping, self._contact)
        rate = period_s / law.reference_inertia
        wanted = (self.twist + rate * force) / (1.0 + rate * damping)  # implicit: a damper never turns the motion round
        self.twist = self._bounded(wanted)
        self.pos_m = self.pos_m + period_s * self.twist[:3]
        turn = rotvec_to_quat(period_s * self.twist[3:])
        self.quat_xyzw = quat_normalize(quat_multiply(turn, self.quat_xyzw))
        self._leash(sample)
        ahead = self._lead_s * self.twist
        return Pose(self.pos_m + ahead[:3], quat_multiply(rotvec_to_quat(ahead[3:]), self.quat_xyzw))

    def _feel(self, wrench: Array) -> Array:
        """The wrench (6,) that moves the mass: filtered, its deadband taken off; and whether that is a touch."""
        config = self._config
        self._wrench = self._wrench + self._share * (wrench - self._wrench)
        force_n, moment_nm = _norm(self._wrench[:3]), _norm(self._wrench[3:])
        touched = force_n >= config.touch_n or moment_nm >= config.touch_nm
        self._touched_s = 0.0 if touched else self._touched_s + self._period_s
        out = np.empty(6)
        out[:3] = self._wrench[:3] * _beyond(force_n, config.deadband_n)
        out[3:] = self._wrench[3:] * _beyond(moment_nm, config.deadband_nm)
        return out

    def _bounded(self, wanted: Array) -> Array:
        """The twist (6,) within the bounds of acceleration and speed."""
        config, out = self._config, np.empty(6)
        for part, accel, speed in (
            (slice(0, 3), config.accel_mps2, config.speed_mps),
            (slice(3, 6), config.accel_radps2, config.speed_radps),
        ):
            out[part] = self.twist[part] + _within(wanted[part] - self.twist[part], accel * self._period_s)
            out[part] = _within(out[part], speed)
        return out

    def _leash(self, sample: Sample) -> None:
        """Bring the mass back to the arm where it got too far ahead; it loses what speed it had."""
        config = self._config
        gap = self.pos_m - sample.pos_m
        if _norm(gap) > config.leash_m:
            self.pos_m = sample.pos_m + _within(gap, config.leash_m)
            self.twist[:3] = 0.0
        lead = rotation_between(self.quat_xyzw, sample.quat_xyzw)
        if _norm(lead) > config.leash_rad:
            lead = _within(lead, config.leash_rad)
            self.quat_xyzw = quat_multiply(rotvec_to_quat(lead), sample.quat_xyzw)
            self.twist[3:] = 0.0


def _norm(vector: Array) -> float:
    return math.sqrt(vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2])


def _within(vector: Array, longest: float) -> Array:
    norm = _norm(vector)
    return vector if norm <= longest else vector * (longest / norm)


def _beyond(size: float, deadband: float) -> float:
    """The share that is left of a vector of length ``size`` when ``deadband`` is taken off: no step anywhere."""
    return 1.0 - deadband / size if size > deadband else 0.0
