"""A 3Dconnexion SpaceMouse over HID: every model by cable, radio receiver or Bluetooth, with any number of buttons.

Reports begin with their number; counts are int16, little endian (as the HID descriptor of a SpaceNavigator declares,
and spacenavd and PySpaceMouse read them). 1 is translation x y z, on newer models with rotation about x y z after it; 2
is rotation on the others; 3 is one bit for each button. A cap that is held aside repeats its reports every 8 to 16 ms,
and falls silent after a few zeros. x is right, y towards the person, z down; full scale is 350.

``buttons`` are numbers of bits. Two-button models have 0 and 1; the Pro and Enterprise models 0 menu, 1 fit, 12 to 15
the keys 1 to 4, 22 Esc, 23 Alt, 24 Shift, 25 Ctrl, 26 lock.
"""

from __future__ import annotations

import importlib
import itertools
import os
import struct
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hardware.teleop._device import Array, Clock, Device, DeviceConfig, Sample, button_map, radial
from robot_rl.config import number

FULL_SCALE = 350.0
_PLAUSIBLE = 1000  # some caps go beyond full scale, none so far
_LOGITECH, _CONNEXION = 0x046D, 0x256F
PRODUCTS = {
    (_LOGITECH, 0xC625): "SpacePilot",
    (_LOGITECH, 0xC626): "SpaceNavigator",
    (_LOGITECH, 0xC627): "SpaceExplorer",
    (_LOGITECH, 0xC628): "SpaceNavigator for Notebooks",
    (_LOGITECH, 0xC629): "SpacePilot Pro",
    (_LOGITECH, 0xC62B): "SpaceMouse Pro",
    (_CONNEXION, 0xC62E): "SpaceMouse Wireless (cable)",
    (_CONNEXION, 0xC62F): "SpaceMouse Wireless (receiver)",
    (_CONNEXION, 0xC631): "SpaceMouse Pro Wireless (cable)",
    (_CONNEXION, 0xC632): "SpaceMouse Pro Wireless (receiver)",
    (_CONNEXION, 0xC633): "SpaceMouse Enterprise",
    (_CONNEXION, 0xC635): "SpaceMouse Compact",
    (_CONNEXION, 0xC636): "SpaceMouse Module",
    (_CONNEXION, 0xC638): "SpaceMouse Pro Wireless BT",
    (_CONNEXION, 0xC63A): "SpaceMouse Wireless BT",
    (_CONNEXION, 0xC652): "Universal Receiver",
    (_CONNEXION, 0xC65A): "Universal Receiver 2",
    (_CONNEXION, 0xC65C): "Universal Receiver 2",
}
_MULTI_AXIS = (0x01, 0x08)  # usage page and usage of HID's multi-axis controllers: what a mouse of the maker is not
_MOTION, _ROTATION, _BUTTONS, _BATTERY = 1, 2, 3, 0x17
_QUEUE = 64  # reports the kernel keeps; it drops the newest when it is full
_LONGEST = 64  # bytes of a report


@dataclass(frozen=True)
class Config(DeviceConfig):
    dead_zone: float = number(0.1, 0.0, 0.9, "share of full scale, of translation and of rotation, that is no motion")
    buttons: tuple[str, ...] = (
        "0:gripper", "1:success", "12:success", "13:fail", "14:discard", "22:stop", "24:take_over", "25:hand_back",
    )  # fmt: skip
    serial: str = ""
    """which one, where there are several; empty: the only one"""
    path: str = ""
    """likewise, such as /dev/hidraw3"""

    def __post_init__(self) -> None:
        super().__post_init__()
        button_map(self.buttons)


@dataclass(frozen=True)
class State:
    """What reports have told so far."""

    counts: tuple[int, ...] = (0,) * 6
    """x, y, z, then rotation about them, as the device counts"""
    linear: int = 0
    """reports that told translation; ``angular`` likewise"""
    angular: int = 0
    buttons: frozenset[int] = frozenset()
    """numbers of those held down"""
    ignored: int = 0
    """reports that were none"""


def parse(report: bytes, state: State) -> State:
    """The state after one report. What is no whole report of a known kind changes nothing, and is counted."""
    kind, data = report[:1], report[1:]
    if kind == bytes([_MOTION]) and len(data) in (6, 12):
        counts = struct.unpack(f"<{len(data) // 2}h", data)
        if _plausible(counts):
            both = len(counts) == 6
            counts = counts if both else counts + state.counts[3:]
            return replace(state, counts=counts, linear=state.linear + 1, angular=state.angular + both)
    elif kind == bytes([_ROTATION]) and len(data) == 6:
        counts = struct.unpack("<3h", data)
        if _plausible(counts):
            return replace(state, counts=state.counts[:3] + counts, angular=state.angular + 1)
    elif kind == bytes([_BUTTONS]) and data:
        mask = int.from_bytes(data, "little")
        return replace(state, buttons=frozenset(i for i in range(8 * len(data)) if mask >> i & 1))
    elif kind == bytes([_BATTERY]):
        return state
    return replace(state, ignored=state.ignored + 1)


def _plausible(counts: tuple[int, ...]) -> bool:
    return max(map(abs, counts)) <= _PLAUSIBLE


def to_person(state: State, dead_zone: float) -> Array:
    """(6,) in [-1, 1] along the person's axes of ``_device``."""
    x, y, z, rx, ry, rz = (count / FULL_SCALE for count in state.counts)
    return np.concatenate([radial(np.array([-y, -x, -z]), dead_zone), radial(np.array([-ry, -rx, -rz]), dead_zone)])


def make(config: Config, clock: Clock = time.monotonic) -> SpaceMouse:
    """Open the one that is plugged in. Raises ImportError without hidapi, RuntimeError where there is none, or more
    than one fits, and PermissionError with the udev rule to add."""
    return SpaceMouse(config, clock)


class SpaceMouse(Device):
    name = "SpaceMouse"

    def __init__(self, config: Config, clock: Clock) -> None:
        self.config = config
        self._uses = {int(button): what for button, what in button_map(config.buttons).items()}
        self._hid = _import_hid()
        self._handle: Any = None
        super().__init__(config, clock)

    def _open(self) -> None:
        found = _choose(_list(self._hid), self.config)
        self._handle = _open_path(self._hid, found)
        self.name = _title(found)
        self._state = State()
        self._linear_s = self._angular_s = -np.inf

    def _poll(self, now_s: float) -> Sample:
        waiting = iter(lambda: bytes(self._handle.read(_LONGEST)), b"")
        reports = list(itertools.islice(waiting, 8 * _QUEUE))  # one that floods us must not keep us here
        presses = [press for report in reports for press in self._take(report, now_s)]
        if len(reports) >= _QUEUE:  # some were lost: what was told last is not what is
            self._state = replace(self._state, counts=(0,) * 6)
            self._linear_s = self._angular_s = -np.inf
        motion = to_person(self._state, self.config.dead_zone)
        told = [s for s, half in ((self._linear_s, motion[:3]), (self._angular_s, motion[3:])) if half.any()]
        return Sample(motion, tuple(presses), min(told or (self._linear_s, self._angular_s)))

    def _take(self, report: bytes, now_s: float) -> list[str]:
        """Parse one report; what its newly pressed buttons are for."""
        before, self._state = self._state, parse(report, self._state)
        if self._state.linear > before.linear:
            self._linear_s = now_s
        if self._state.angular > before.angular:
            self._angular_s = now_s
        self.ignored += self._state.ignored - before.ignored
        return [self._uses[i] for i in sorted(self._state.buttons - before.buttons) if i in self._uses]

    def _shut(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None


def _import_hid() -> Any:
    """hidapi over hidraw; its other build, over libusb, is what Linux wheels call ``hid``, and it sees no Bluetooth."""
    for name in ("hidraw", "hid"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if hasattr(module, "device"):
            return module
    raise ImportError(
        "hidapi is not installed: pip install 'robot-rl[teleop]' (a package called 'hid' is another: uninstall that)"
    )


def _list(hid: Any) -> list[dict[str, Any]]:
    """One entry for each SpaceMouse or receiver."""
    found: dict[bytes, dict[str, Any]] = {}
    for entry in hid.enumerate(0, 0):
        ids = entry["vendor_id"], entry["product_id"]
        usage = entry.get("usage_page", 0), entry.get("usage", 0)
        known = ids in PRODUCTS and usage[0] == 0  # libusb does not tell usages
        if known or (ids[0] in (_LOGITECH, _CONNEXION) and usage == _MULTI_AXIS):
            found.setdefault(entry["path"], entry)
    return list(found.values())


def _title(entry: dict[str, Any]) -> str:
    ids = entry["vendor_id"], entry["product_id"]
    return PRODUCTS.get(ids) or entry.get("product_string") or f"3Dconnexion {ids[1]:04x}"


def _describe(entry: dict[str, Any]) -> str:
    return f"{_title(entry)} at {os.fsdecode(entry['path'])}, serial '{entry.get('serial_number') or ''}'"


def _choose(found: list[dict[str, Any]], config: Config) -> dict[str, Any]:
    fitting = [
        entry
        for entry in found
        if config.path in ("", os.fsdecode(entry["path"])) and config.serial in ("", entry.get("serial_number"))
    ]
    if len(fitting) == 1:
        return fitting[0]
    wanted = " ".join(f"{name}='{value}'" for name in ("serial", "path") if (value := getattr(config, name)))
    there = "; ".join(map(_describe, fitting or found)) or "none"
    if fitting:
        raise RuntimeError(f"{len(fitting)} SpaceMice fit: give the serial or the path of one (there is {there})")
    raise RuntimeError(
        f"no SpaceMouse {wanted or 'found'}: plug it in, or its receiver, and switch it on (there is {there})"
    )


def _open_path(hid: Any, entry: dict[str, Any]) -> Any:
    path, ids = entry["path"], (entry["vendor_id"], entry["product_id"])
    handle = hid.device()
    try:
        handle.open_path(path)
    except OSError as error:
        name = os.fsdecode(path)
        if os.path.exists(name) and not os.access(name, os.R_OK | os.W_OK):
            raise PermissionError(
                f"{_describe(entry)}: not yours to open. Put this line into /etc/udev/rules.d/70-spacemouse.rules, run "
                f"'sudo udevadm control --reload && sudo udevadm trigger', and plug it in again: {udev_rule(*ids)}"
            ) from error
        raise RuntimeError(f"{_describe(entry)} does not open ({error}): plug it in again") from error
    handle.set_nonblocking(1)
    return handle


def udev_rule(vendor: int, product: int | None = None) -> str:
    """The line that lets a person at the machine, and group plugdev over SSH, open a device by cable or Bluetooth."""
    which = f"*:{vendor:04X}:" + ("*" if product is None else f"{product:04X}.*")
    return f'KERNEL=="hidraw*", KERNELS=="{which}", GROUP="plugdev", MODE="0660", TAG+="uaccess"'
