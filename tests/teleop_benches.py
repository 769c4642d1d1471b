"""Each teleop device with a person's hand on it: the bytes and events of the real one, at its SDK's boundary."""

import fcntl
import os
import struct
import sys
import termios
import time
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from hardware.teleop import gamepad, keyboard, spacemouse
from hardware.teleop._device import EVENTS

RECEIVER = {
    "vendor_id": 0x256F, "product_id": 0xC62F, "path": b"/dev/hidraw3", "serial_number": "", "usage_page": 1,
    "usage": 8, "product_string": "",
}  # fmt: skip

FORWARD = np.array([1.0, 0, 0, 0, 0, 0])
ANY = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
FEW = settings(ANY, max_examples=60)


class Clock:
    def __init__(self) -> None:
        self.t_s = 100.0

    def __call__(self) -> float:
        return self.t_s

    def pass_s(self, dt_s: float) -> None:
        self.t_s += dt_s


class Bench:
    """``push`` is a moment of a full push forward: what repeats itself while held is pushed again and again."""

    plugin: Any
    uses: ClassVar[dict[str, str]]
    can_replug = True

    def __init__(self, monkeypatch) -> None:
        self.monkeypatch, self.clock = monkeypatch, Clock()

    def make(self, **changes):
        """At rest, and seen so."""
        device = self.open(**changes)
        self.rest(device)
        return device

    def open(self, **changes):
        return self.plugin.make(self.plugin.Config(**changes), self.clock)

    def rest(self, device) -> None:
        self.clock.pass_s(device.config.timeout_s + 0.01)
        device.read()
        self.clock.pass_s(0.01)

    def tick(self) -> None:
        self.clock.pass_s(0.01)

    def close(self) -> None:
        pass


class Hid:
    """hidapi's module; its reports wait in ``queue``."""

    def __init__(self, entries=(RECEIVER,)) -> None:
        self.entries, self.queue, self.opened, self.closed = list(entries), [], [], 0
        self.fails = False
        self.device = lambda: HidHandle(self)

    def enumerate(self, vendor, product):
        return self.entries


class HidHandle:
    def __init__(self, hid) -> None:
        self.hid, self.nonblocking = hid, False

    def open_path(self, path):
        if self.hid.fails:
            raise OSError("open failed")
        self.hid.opened.append(path)

    def set_nonblocking(self, on):
        self.nonblocking = bool(on)

    def read(self, longest):
        assert self.nonblocking, "a read that waits"
        if not self.hid.entries:
            raise OSError("read error")
        return list(self.hid.queue.pop(0))[:longest] if self.hid.queue else []

    def close(self):
        self.hid.closed += 1


class SplitMouse(Bench):
    """A SpaceNavigator: translation and rotation in a report each."""

    plugin = spacemouse
    uses: ClassVar = dict(spacemouse.button_map(spacemouse.Config().buttons))

    def __init__(self, monkeypatch) -> None:
        super().__init__(monkeypatch)
        self.hid = Hid()
        monkeypatch.setattr(spacemouse, "_import_hid", lambda: self.hid)

    def send(self, *counts) -> None:
        self.hid.queue += [b"\x01" + struct.pack("<3h", *counts[:3]), b"\x02" + struct.pack("<3h", *counts[3:])]

    def push(self) -> None:
        self.send(0, -350, 0, 0, 0, 0)

    def let_go(self) -> None:
        for _ in range(3):
            self.send(0, 0, 0, 0, 0, 0)

    def press(self, what) -> None:
        bit = next(int(button) for button, use in self.uses.items() if use == what)
        self.hid.queue += [b"\x03" + (1 << bit).to_bytes(4, "little"), b"\x03" + bytes(4)]

    def unplug(self) -> None:
        self.hid.entries, self.gone, self.hid.queue = [], self.hid.entries, []

    def replug(self) -> None:
        self.hid.entries = self.gone


class CombinedMouse(SplitMouse):
    """A wireless SpaceMouse: all six in one report."""

    def send(self, *counts) -> None:
        self.hid.queue.append(b"\x01" + struct.pack("<6h", *counts))


class Pad(Bench):
    """struct input_event through a pipe, read by evdev itself; what takes an ioctl is answered here."""

    plugin = gamepad
    uses: ClassVar = dict(gamepad.button_map(gamepad.Config().buttons, gamepad.BUTTONS))
    SPANS: ClassVar = dict.fromkeys(range(6), (0, 256)) | {0x10: (-1, 1)}

    def __init__(self, monkeypatch) -> None:
        self.evdev = pytest.importorskip("evdev")
        super().__init__(monkeypatch)
        self.kernel = dict.fromkeys(self.SPANS, 128) | {2: 0, 5: 0, 0x10: 0}
        self.keys: set[int] = set()
        self.there, self.write_fd = True, -1
        fake = SimpleNamespace(list_devices=lambda: ["/dev/input/event7"] * self.there, InputDevice=self.open_pad)
        monkeypatch.setattr(gamepad, "_import_evdev", lambda: fake)
        monkeypatch.setattr(gamepad.glob, "glob", lambda pattern: [])

    def open_pad(self, path):
        bench = self

        class PipePad(self.evdev.InputDevice):
            def __init__(self, path):
                self.close_writer()
                self.fd, bench.write_fd = os.pipe()
                os.set_blocking(self.fd, False)
                self.path, self.name = path, "Test Pad"

            @staticmethod
            def close_writer():
                if bench.write_fd >= 0:
                    os.close(bench.write_fd)
                    bench.write_fd = -1

            def capabilities(self, verbose=False, absinfo=True):
                axes = [(axis, SimpleNamespace(min=low, max=high)) for axis, (low, high) in bench.SPANS.items()]
                return {1: list(gamepad.BUTTONS.values()), 3: axes if absinfo else list(bench.SPANS)}

            def absinfo(self, axis):
                return SimpleNamespace(value=bench.kernel[axis])

            def active_keys(self, verbose=False):
                return sorted(bench.keys)

            def read(self):
                if not bench.there:
                    raise OSError(19, "No such device")
                return super().read()

        return PipePad(path)

    def send(self, kind, code, value) -> None:
        if kind == 3 and code in self.kernel:
            self.kernel[code] = value
        if kind == 1:
            (self.keys.add if value else self.keys.discard)(code)
        os.write(self.write_fd, struct.pack("llHHi", 0, 0, kind, code, value) + struct.pack("llHHi", 0, 0, 0, 0, 0))

    def make(self, **changes):
        device = super().make(**changes)
        self.send(1, gamepad.BUTTONS["tl"], 1)
        device.read()
        self.tick()
        return device

    def push(self) -> None:
        self.send(3, 1, 0)

    def let_go(self) -> None:
        self.send(3, 1, 128)

    def press(self, what) -> None:
        code = next(gamepad.BUTTONS[button] for button, use in self.uses.items() if use == what)
        self.send(1, code, 1)
        self.send(1, code, 0)

    def unplug(self) -> None:
        self.there = False

    def replug(self) -> None:
        self.there, self.kernel[1] = True, 128

    def close(self) -> None:
        if self.write_fd >= 0:
            os.close(self.write_fd)


class Keys(Bench):
    """A pseudo-terminal: the test types, the device reads the other end."""

    plugin = keyboard
    can_replug = False
    uses: ClassVar = keyboard.ACTIONS

    def __init__(self, monkeypatch) -> None:
        super().__init__(monkeypatch)
        self.master, self.slave = os.openpty()

    def open(self, **changes):
        return keyboard.make(keyboard.Config(**{"show_help": False} | changes), self.clock, self.slave)

    def type(self, keys: bytes) -> None:
        wanted = self.waiting() + len(keys)
        os.write(self.master, keys)
        give_up_s = time.monotonic() + 30.0
        while self.waiting() < wanted:
            assert time.monotonic() < give_up_s, "the terminal did not bring it"
            time.sleep(0.0005)

    def waiting(self) -> int:
        return int.from_bytes(fcntl.ioctl(self.slave, termios.FIONREAD, bytes(4)), sys.byteorder)

    def push(self) -> None:
        self.type(b"w")

    def let_go(self) -> None:
        self.clock.pass_s(keyboard.Config.hold_s)

    def press(self, what) -> None:
        self.type(next(key for key, use in self.uses.items() if use == what).encode())

    def unplug(self) -> None:
        os.close(self.master)
        self.master = -1

    def close(self) -> None:
        for fd in (self.master, self.slave):
            if fd >= 0:
                os.close(fd)


BENCHES = {"spacemouse": (SplitMouse, CombinedMouse), "gamepad": (Pad,), "keyboard": (Keys,)}


def opened(kind, monkeypatch):
    """For a fixture: a bench of this kind."""
    bench = kind(monkeypatch)
    yield bench
    bench.close()


def approx(values):
    return pytest.approx(np.asarray(values, float), abs=1e-9)


def is_still(reading) -> bool:
    return not reading.twist.any() and not reading.active and reading.gripper == 0.0


def is_sound(reading) -> bool:
    """What holds for any reading whatever."""
    return bool(
        reading.twist.shape == (6,)
        and reading.twist.dtype == np.float64
        and np.isfinite(reading.twist).all()
        and np.abs(reading.twist).max() <= 1.0
        and reading.gripper in (-1.0, 0.0, 1.0)
        and reading.events <= set(EVENTS)
        and (reading.active or (not reading.twist.any() and reading.gripper == 0.0))
        and reading.age_s >= 0.0
    )
