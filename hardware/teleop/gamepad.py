"""A gamepad of Linux' layout (Xbox, PlayStation, Switch Pro and others) through evdev: no display is needed.

Left stick forward and left; triggers up (right) and down (left); right stick pitch and yaw; D-pad left and right roll.
Nothing moves, and no gripper, unless the dead-man's button is held (``deadman``).

Buttons have the kernel's names (Documentation/input/gamepad.rst): south is A or cross, east B or circle, tl and tr the
shoulders. evdev tells changes only, so a stick that is held perfectly still falls silent, and its motion ends after
``timeout_s`` until it is moved again: a pad out of reach of its radio looks just the same.
"""

from __future__ import annotations

import glob
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from hardware.teleop._device import Array, Clock, Device, DeviceConfig, Sample, button_map, radial
from robot_rl.config import choice, number

BUTTONS = {
    "south": 0x130, "east": 0x131, "north": 0x133, "west": 0x134, "tl": 0x136, "tr": 0x137, "tl2": 0x138, "tr2": 0x139,
    "select": 0x13A, "start": 0x13B, "mode": 0x13C, "thumbl": 0x13D, "thumbr": 0x13E,
}  # fmt: skip
"""Name -> code, of linux/input-event-codes.h; the axes likewise."""
_X, _Y, _Z, _RX, _RY, _RZ, _HAT0X = 0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x10
_STICKS, _TRIGGERS = (_X, _Y, _RX, _RY), (_Z, _RZ)
_SYN, _KEY, _ABS, _SYN_DROPPED = 0, 1, 3, 3


@dataclass(frozen=True)
class Config(DeviceConfig):
    timeout_s: float = number(1.0, 0.02, 10.0, "s of silence, or without being read, after which there is no motion")
    dead_zone: float = number(0.15, 0.0, 0.9, "share of a stick's or trigger's way that is no motion")
    deadman: bool = True
    deadman_button: str = choice("tl", BUTTONS, "to be held for anything to move")
    buttons: tuple[str, ...] = (
        "south:gripper", "east:stop", "start:success", "thumbl:fail", "select:discard", "tr:take_over",
        "thumbr:hand_back",
    )  # fmt: skip
    device: str = ""
    """which one, where there are several: part of its name, or its path; empty: the only one"""

    def __post_init__(self) -> None:
        super().__post_init__()
        uses = button_map(self.buttons, BUTTONS)
        if self.deadman and self.deadman_button in uses:
            raise ValueError(f"buttons: '{self.deadman_button}' is the dead-man's button: it cannot be for more")


def make(config: Config, clock: Clock = time.monotonic) -> Gamepad:
    """Open the one that is plugged in or paired. Raises ImportError without evdev (Linux only), RuntimeError where
    there is none, or more than one fits, and PermissionError where none may be read."""
    return Gamepad(config, clock)


class Gamepad(Device):
    name = "gamepad"

    def __init__(self, config: Config, clock: Clock) -> None:
        self.config = config
        self._uses = {BUTTONS[button]: what for button, what in button_map(config.buttons, BUTTONS).items()}
        self._evdev = _import_evdev()
        self._pad: Any = None
        super().__init__(config, clock)

    def _open(self) -> None:
        self._pad = _choose(self._evdev, self.config.device)
        self.name = f"gamepad '{self._pad.name}'"
        axes = dict(self._pad.capabilities(absinfo=True)[_ABS])
        self._span = {axis: (info.min, info.max) for axis, info in axes.items() if info.max > info.min}
        self._heard_s = -np.inf
        self._ask()

    def _ask(self) -> None:
        """Take the state from the kernel instead of from events."""
        self._values = {axis: self._pad.absinfo(axis).value for axis in self._span}
        self._held = set(self._pad.active_keys())

    def _poll(self, now_s: float) -> Sample:
        presses: list[str] = []
        lost = False
        for event in self._events():
            if event.type == _SYN:
                lost |= event.code == _SYN_DROPPED
                continue
            if event.type == _KEY and event.value == 1:
                if self._free(event.code):
                    presses.append(self._uses[event.code])
                self._held.add(event.code)
            elif event.type == _KEY and event.value == 0:
                self._held.discard(event.code)
            elif event.type == _ABS and event.code in self._span:
                self._values[event.code] = event.value
            else:
                self.ignored += 1
                continue
            self._heard_s = now_s
        if lost:
            self._ask()
        return Sample(self._motion(), tuple(presses), self._heard_s)

    def _events(self) -> list[Any]:
        """Those that wait, as many as the kernel keeps; the rest comes with the next poll."""
        out: list[Any] = []
        try:
            while len(out) < 1024:
                out += self._pad.read()
        except BlockingIOError:
            return out  # no more
        return out

    def _free(self, code: int) -> bool:
        """Whether the button is for something, and may be: the gripper moves with the dead-man's button only."""
        use = self._uses.get(code)
        return use is not None and (self._enabled() or use not in ("gripper", "close", "open"))

    def _enabled(self) -> bool:
        return not self.config.deadman or BUTTONS[self.config.deadman_button] in self._held

    def _motion(self) -> Array:
        if not self._enabled():
            return np.zeros(6)
        zone = self.config.dead_zone
        forward, left = radial(np.array([-self._centred(_Y), -self._centred(_X)]), zone)
        pitch, yaw = radial(np.array([-self._centred(_RY), -self._centred(_RX)]), zone)
        up = radial(np.array([self._pulled(_RZ, "tr2") - self._pulled(_Z, "tl2")]), zone)[0]
        roll = radial(np.array([self._centred(_HAT0X)]), zone)[0]
        return np.array([forward, left, up, roll, pitch, yaw])

    def _centred(self, axis: int) -> float:
        """In [-1, 1], 0 in the middle."""
        return 0.0 if axis not in self._span else 2.0 * self._share(axis) - 1.0

    def _pulled(self, axis: int, button: str) -> float:
        """In [0, 1]; a trigger without an axis is a button."""
        return self._share(axis) if axis in self._span else float(BUTTONS[button] in self._held)

    def _share(self, axis: int) -> float:
        low, high = self._span[axis]
        return min(max((self._values[axis] - low) / (high - low), 0.0), 1.0)

    def _shut(self) -> None:
        if self._pad is not None:
            self._pad.close()
            self._pad = None


def _import_evdev() -> Any:
    try:
        import evdev
    except ImportError as error:
        raise ImportError("evdev is not installed (Linux only): pip install 'robot-rl[teleop]'") from error
    return evdev


def _is_pad(device: Any) -> bool:
    """Of Linux' gamepad layout: two sticks and a south button. Touchpads and motion sensors of a pad are not."""
    has = device.capabilities(absinfo=False)
    return BUTTONS["south"] in has.get(_KEY, ()) and set(_STICKS) <= set(has.get(_ABS, ()))


def _choose(evdev: Any, wanted: str) -> Any:
    paths = evdev.list_devices()
    if not paths and glob.glob("/dev/input/event*"):
        raise PermissionError("no file of /dev/input may be read: sudo usermod -aG input $USER, then log in again")
    devices = [evdev.InputDevice(path) for path in paths]
    pads = [device for device in devices if _is_pad(device)]
    fitting = [pad for pad in pads if wanted == pad.path or wanted.lower() in pad.name.lower()]
    chosen = fitting[0] if len(fitting) == 1 else None
    for device in devices:
        if device is not chosen:
            device.close()
    if chosen is not None:
        return chosen
    there = ", ".join(f"'{pad.name}' at {pad.path}" for pad in fitting or pads) or "none"
    if fitting:
        raise RuntimeError(
            f"{len(fitting)} gamepads fit: give device, a part of one's name or its path (there is {there})"
        )
    raise RuntimeError(
        f"no gamepad {wanted and repr(wanted) + ' '}found: plug it in or pair it, and switch it to its Linux "
        f"or Xbox mode (there is {there})"
    )
