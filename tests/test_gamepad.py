"""Gamepad: events as the kernel writes them, any events, and which device is opened."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware.teleop import gamepad
from tests.teleop_benches import FEW, FORWARD, Pad, approx, is_sound, is_still, opened


@pytest.fixture
def pad(monkeypatch):
    yield from opened(Pad, monkeypatch)


@pytest.mark.parametrize(
    "axis, value, want",
    [
        (0, 256, (1, -1)), (1, 256, (0, -1)), (5, 256, (2, 1)), (2, 256, (2, -1)), (3, 256, (5, -1)), (4, 0, (4, 1)),
        (0x10, 1, (3, 1)),
    ],
    ids=["right", "back", "up", "down", "turn right", "pitch forward", "roll right"],
)  # fmt: skip
def test_sticks_and_triggers(pad, axis, value, want):
    device = pad.make()
    pad.send(3, axis, value)
    twist = np.zeros(6)
    twist[want[0]] = want[1]
    assert device.read().twist == approx(twist)
    device.close()


def test_nothing_moves_without_the_dead_mans_button(pad):
    device = pad.make()
    pad.send(1, gamepad.BUTTONS["tl"], 0)
    pad.push()
    pad.press("gripper")
    assert is_still(device.read())
    pad.press("success")
    assert device.read().events == {"success"}, "words are no motion"
    pad.send(1, gamepad.BUTTONS["tl"], 1)
    assert device.read().twist == approx(FORWARD)
    pad.send(1, gamepad.BUTTONS["tl"], 0)
    assert not device.read().twist.any()
    device.close()
    free = pad.open(deadman=False)
    pad.let_go()
    pad.rest(free)
    pad.push()
    assert free.read().twist == approx(FORWARD)
    free.close()


def test_lost_events_are_asked_for(pad):
    """SYN_DROPPED: the queue ran over, and the release of the dead-man's button was lost with it."""
    device = pad.make()
    pad.push()
    assert device.read().twist.any()
    pad.keys.clear()
    pad.send(0, 3, 0)
    assert not device.read().twist.any()
    device.close()


@FEW
@given(st.lists(st.tuples(
    st.sampled_from([0, 1, 3, 4]), st.integers(0, 0x2FF) | st.sampled_from([*gamepad.BUTTONS.values()]),
    st.integers(-(2**31), 2**31 - 1) | st.integers(0, 255),
), max_size=60))  # fmt: skip
def test_no_events_whatever_give_more_than_full_speed(pad, events):
    device = pad.make()
    for i, event in enumerate(events):
        pad.send(*event)
        if i % 3 == 0:
            pad.tick()
            assert is_sound(device.read())
    device.close()


def test_one_of_several_pads_is_chosen(pad):
    assert pad.open(device="test pad").name == "gamepad 'Test Pad'"
    with pytest.raises(RuntimeError, match=r"'other'.*'Test Pad' at /dev/input/event7"):
        pad.open(device="other")
    pad.there = 2
    with pytest.raises(RuntimeError, match="2 gamepads fit"):
        pad.open()
    pad.there = 0
    with pytest.raises(RuntimeError, match="no gamepad found"):
        pad.open()
    pad.monkeypatch.setattr(gamepad.glob, "glob", lambda pattern: ["/dev/input/event0"])
    with pytest.raises(PermissionError, match="usermod -aG input"):
        pad.open()


def test_a_touchpad_is_no_gamepad(pad):
    pad.SPANS = {0: (0, 255), 1: (0, 255)}
    with pytest.raises(RuntimeError, match="no gamepad found"):
        pad.open()


def test_buttons_of_a_gamepad_are_checked():
    with pytest.raises(ValueError, match="south"):
        gamepad.Config(buttons=("sout:gripper",))
    with pytest.raises(ValueError, match="dead-man"):
        gamepad.Config(buttons=("tl:stop",))
    gamepad.Config(buttons=("tl:stop",), deadman=False)


def test_without_evdev_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "evdev", None)
    with pytest.raises(ImportError, match=r"robot-rl\[teleop\]"):
        gamepad.make(gamepad.Config())


def test_codes_are_the_kernels():
    codes = pytest.importorskip("evdev").ecodes
    assert {f"BTN_{name.upper()}": code for name, code in gamepad.BUTTONS.items()} == {
        f"BTN_{name.upper()}": getattr(codes, f"BTN_{name.upper()}") for name in gamepad.BUTTONS
    }
    axes = ("X", "Y", "Z", "RX", "RY", "RZ", "HAT0X")
    assert [getattr(gamepad, f"_{axis}") for axis in axes] == [getattr(codes, f"ABS_{axis}") for axis in axes]
    assert (gamepad._SYN, gamepad._KEY, gamepad._ABS) == (codes.EV_SYN, codes.EV_KEY, codes.EV_ABS)
    assert gamepad._SYN_DROPPED == codes.SYN_DROPPED
