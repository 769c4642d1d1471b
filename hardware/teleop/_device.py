"""What a teleop device gives, and what all of them have in common: axes, time-outs, take-over, the gripper's wish.

A person's axes, before ``Config.axes`` maps them to those of the twist (right-handed, REP 103, rotations by the right
hand)::

        3 up                           1 forward, away from the person, and 4 roll about it
        |   1 forward                  2 left, and 5 pitch about it: the top goes forward
        |  /                           3 up, and 6 yaw about it: counter-clockwise seen from above
        | /
        +-------  right = -2

In frame "base" they are those of an arm that the person stands behind; who faces it gives ``axes=-1,-2,3,-4,-5,6``. In
frame "tool", ``axes=1,-2,-3,4,-5,-6`` feels the same while the tool points down.

A reading never tells old motion: it has none where the device was silent, or was not read, for longer than
``timeout_s``, is unplugged, or has not been seen at rest since it was connected.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from robot_rl.config import check, choice, number
from robot_rl.find import nearest
from robot_rl.geometry import quat_normalize, quat_rotate

Array = NDArray[np.float64]
Clock = Callable[[], float]
"""Seconds, monotonic."""

EVENTS = ("success", "fail", "discard", "stop", "take_over", "hand_back")
GRIPPER = ("gripper", "close", "open")
"""What else a button is for: gripper toggles, and begins with close."""
RETRY_S = 1.0  # between two looks for a device that was unplugged


@dataclass(frozen=True, eq=False)
class Reading:
    twist: Array
    """(6,) in [-1, 1], share of the fastest speed, linear then angular, along the axes of ``frame``"""
    gripper: float = 0.0
    """-1: the person wants it open, +1: closed, 0: has no wish. A wish stays until ``active`` ends."""
    events: frozenset[str] = frozenset()
    """of EVENTS; each press is told once, also one that was made while nobody read"""
    active: bool = False
    """whether a person moves it or its gripper now, or did within ``release_s``: the movement that takes over"""
    age_s: float = math.inf
    """s since the device last told its motion; inf before it ever did"""
    frame: str = "base"
    fault: str = ""
    """why there is no device, and what to do; empty: there is one"""


@dataclass(frozen=True)
class DeviceConfig:
    frame: str = choice("base", ("base", "tool"), "frame along whose axes the twist is meant")
    axes: tuple[int, int, int, int, int, int] = number(
        (1, 2, 3, 4, 5, 6), -6, 6, "the person's axis behind each axis of the twist; minus turns it round, 0 locks it"
    )
    scale: tuple[float, float, float, float, float, float] = number(
        (1.0, 1.0, 1.0, 1.0, 1.0, 1.0), 0.0, 1.0, "share of the fastest speed at full deflection, linear then angular"
    )
    timeout_s: float = number(0.3, 0.02, 10.0, "s of silence, or without being read, after which there is no motion")
    release_s: float = number(0.5, 0.0, 60.0, "s after the last motion for which the person keeps control")

    def __post_init__(self) -> None:
        check(self)
        used = [abs(axis) for axis in self.axes if axis]
        if len(set(used)) < len(used):
            raise ValueError(f"axes = {self.axes}: give each of the person's axes once, or 0 to lock an axis")


@dataclass(frozen=True, eq=False)
class Sample:
    """What a device tells when it is polled."""

    motion: Array = field(default_factory=lambda: np.zeros(6))
    """(6,) in [-1, 1] along the person's axes, zero in the dead zone"""
    presses: tuple[str, ...] = ()
    """of EVENTS and GRIPPER, since the last poll, in order"""
    heard_s: float = -math.inf
    """when the motion was last told"""


class Device(abc.ABC):
    """``name`` is for a person to read; ``ignored`` counts what came and was no report, or meant nothing."""

    name: str

    def __init__(self, config: DeviceConfig, clock: Clock) -> None:
        self._shared, self._clock = config, clock
        self._closed = False
        self._fault = ""
        self._retry_s = 0.0  # when to look again
        self._connected_s = self._trusted_s = self._moved_s = -math.inf
        self._wish, self._target = 0.0, -1.0
        self.ignored = 0
        self._connect()
        self._read_s = self._connected_s

    @abc.abstractmethod
    def _open(self) -> None:
        """Find and open the device, known to be at rest; raises RuntimeError or OSError, which say what to do."""

    @abc.abstractmethod
    def _poll(self, now_s: float) -> Sample:
        """What has come, without waiting; raises OSError where the device is gone."""

    @abc.abstractmethod
    def _shut(self) -> None:
        """Let go of the device; also of one that is gone, and also twice."""

    def read(self) -> Reading:
        """What the person wants now. Never blocks. Read it at least every ``timeout_s``, and once, for nothing, when an
        episode begins: a press is told however old it is.

        Without a device (unplugged, terminal hung up) there is no motion, ``fault`` says why, and the first such
        reading has the event "stop"; it goes on by itself once the device is back and at rest. Raises RuntimeError
        after ``close``.
        """
        if self._closed:
            raise RuntimeError(f"{self.name} is closed: make it again to read it")
        now_s = self._clock()
        if now_s - self._read_s > self._shared.timeout_s:
            self._trusted_s = now_s  # what waited for so long is old
        self._read_s = now_s
        if self._fault and not self._reconnected(now_s):
            return self._tell(Sample(), now_s)
        try:
            sample = self._poll(now_s)
        except OSError as error:
            self._shut()
            self._fault = f"{self.name} is gone ({error}): plug it in again, or check its battery and its radio"
            self._retry_s = now_s + RETRY_S
            sample = Sample(presses=("stop",))
        return self._tell(sample, now_s)

    def close(self) -> None:
        """May be called twice."""
        if not self._closed:
            self._closed = True
            self._shut()

    def _connect(self) -> None:
        self._open()
        self._connected_s = self._trusted_s = self._clock()
        self._rested = False

    def _reconnected(self, now_s: float) -> bool:
        if now_s < self._retry_s:
            return False
        self._retry_s = now_s + RETRY_S
        try:
            self._connect()
        except (RuntimeError, OSError) as error:
            self._fault = str(error)
            return False
        self._fault = ""
        return True

    def _tell(self, sample: Sample, now_s: float) -> Reading:
        config = self._shared
        events = frozenset(sample.presses) & set(EVENTS)
        twist = self._map(self._trust(sample, now_s))
        if twist.any():
            self._moved_s = now_s
        if self._trusted_s < now_s:
            for press in sample.presses:
                if press in GRIPPER:
                    self._target = {"gripper": -self._target, "close": 1.0, "open": -1.0}[press]
                    self._wish, self._moved_s = self._target, now_s
        if "stop" in events or self._fault:
            twist, self._moved_s = np.zeros(6), -math.inf
        active = now_s - self._moved_s <= config.release_s
        if not active:
            self._wish = 0.0
        return Reading(twist, self._wish, events, active, now_s - sample.heard_s, config.frame, self._fault)

    def _trust(self, sample: Sample, now_s: float) -> Array:
        """The motion, or zero where it is old or began before the device was seen at rest."""
        timeout_s = self._shared.timeout_s
        if not sample.motion.any():
            silent_s = now_s - max(sample.heard_s, self._connected_s)
            self._rested |= sample.heard_s > self._connected_s or silent_s > timeout_s
        elif now_s - sample.heard_s > timeout_s:
            self._moved_s = -math.inf  # who holds it is not known any more
        elif self._rested and sample.heard_s > self._trusted_s and np.isfinite(sample.motion).all():
            return sample.motion
        return np.zeros(6)

    def _map(self, motion: Array) -> Array:
        out = np.zeros(6)
        for i, (axis, scale) in enumerate(zip(self._shared.axes, self._shared.scale, strict=True)):
            if axis:
                out[i] = math.copysign(1.0, axis) * scale * motion[abs(axis) - 1]
        return np.clip(out, -1.0, 1.0)


def radial(deflection: Array, dead_zone: float) -> Array:
    """(N,) of a stick or cap without its dead zone, a ball: direction kept, length from 0 at its border up to 1."""
    length = float(np.linalg.norm(deflection))
    if not length > dead_zone:
        return np.zeros_like(deflection)
    return deflection * ((min(length, 1.0) - dead_zone) / (1.0 - dead_zone) / length)


def in_base(reading: Reading, tcp_quat_xyzw: Array) -> Array:
    """The twist (6,) in [-1, 1] of a reading in the base frame, of a tool at ``tcp_quat_xyzw`` (4,).

    Where a turned twist would go beyond 1, its linear or angular half is shortened. Raises ValueError for a quaternion
    that is not finite, or is zero.
    """
    if reading.frame == "base":
        return reading.twist.copy()
    quat = np.asarray(tcp_quat_xyzw, float)
    if quat.shape != (4,) or not np.isfinite(quat).all() or not quat.any():
        raise ValueError(f"tcp_quat_xyzw = {quat}: give the tool's orientation, a unit quaternion (4,) xyzw")
    out = np.empty(6)
    for half in (slice(0, 3), slice(3, 6)):
        turned = quat_rotate(quat_normalize(quat), reading.twist[half])
        out[half] = turned / max(float(np.abs(turned).max()), 1.0)
    return out


def button_map(buttons: Iterable[str], valid: Iterable[str] | None = None) -> dict[str, str]:
    """``("0:gripper", "1:success") -> {"0": "gripper", "1": "success"}``; ``valid``: the buttons there are, none: any
    number. Raises ValueError that names the entry."""
    out: dict[str, str] = {}
    known = None if valid is None else tuple(valid)
    for entry in buttons:
        button, colon, what = entry.partition(":")
        if not colon:
            raise ValueError(f"buttons: '{entry}': write it as button:what, such as '0:gripper'")
        if known is None and not (button.isascii() and button.isdigit()):
            raise ValueError(f"buttons: '{entry}': give the number of the button, from 0")
        if known is not None and button not in known:
            raise ValueError(f"buttons: {nearest('button', button, known)}")
        if what not in EVENTS + GRIPPER:
            raise ValueError(f"buttons: {nearest('use of a button', what, EVENTS + GRIPPER)}")
        if button in out:
            raise ValueError(f"buttons: '{entry}': '{button}' is '{out[button]}' already")
        out[button] = what
    return out
