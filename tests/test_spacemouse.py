"""SpaceMouse: recorded reports, any bytes, and which device is opened."""

import os
import struct
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware.teleop import spacemouse
from tests.teleop_benches import (
    ANY,
    FEW,
    FORWARD,
    RECEIVER,
    CombinedMouse,
    Hid,
    SplitMouse,
    approx,
    is_sound,
    is_still,
    opened,
)


@pytest.fixture
def mouse(monkeypatch):
    yield from opened(CombinedMouse, monkeypatch)


def test_reports_of_both_layouts_replayed():
    """Bytes as recorded from a SpaceNavigator and a SpaceMouse Compact, and the same twist of a wireless one."""
    state = spacemouse.parse(bytes.fromhex("010000000000 00".replace(" ", "")), spacemouse.State())
    state = spacemouse.parse(bytes.fromhex("020000e2ff0000"), state)
    assert state.counts == (0, 0, 0, 0, -30, 0)
    state = spacemouse.parse(bytes.fromhex("01120000001201"), state)
    assert state.counts == (18, 0, 274, 0, -30, 0) and (state.linear, state.angular, state.ignored) == (2, 1, 0)
    whole = spacemouse.parse(bytes.fromhex("0112000000120100 00e2ff0000".replace(" ", "")), spacemouse.State())
    assert whole.counts == state.counts and (whole.linear, whole.angular) == (1, 1)
    assert spacemouse.parse(bytes.fromhex("1764"), whole) is whole, "the battery is no motion, and no garbage"


@pytest.mark.parametrize("report, held", [("030100", {0}), ("030300", {0, 1}), ("030000", set()), ("0302", {1})])
def test_two_buttons(report, held):
    assert spacemouse.parse(bytes.fromhex(report), spacemouse.State()).buttons == held


@ANY
@given(st.sets(st.integers(0, 8 * 32 - 1)), st.integers(0, 31))
def test_any_number_of_buttons(held, more):
    mask = sum(1 << i for i in held)
    length = max(1, (mask.bit_length() + 7) // 8) + more
    report = b"\x03" + mask.to_bytes(length, "little")
    assert spacemouse.parse(report, spacemouse.State()).buttons == held


kinds = st.sampled_from([1, 1, 1, 2, 2, 3, 0x17]) | st.integers(0, 255)
lengths = st.sampled_from([6, 12]) | st.integers(0, 20)
any_report = st.tuples(kinds, lengths.flatmap(lambda n: st.binary(min_size=n, max_size=n))).map(
    lambda report: bytes([report[0]]) + report[1]
)
small = st.lists(st.integers(-500, 500), min_size=6, max_size=6).map(
    lambda counts: b"\x01" + struct.pack("<6h", *counts)
)
reports = st.binary(max_size=70) | any_report | small


def is_whole(report: bytes) -> bool:
    return (report[:1] == b"\x01" and len(report) in (7, 13)) or (report[:1] == b"\x02" and len(report) == 7)


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("length", range(20))
def test_cut_or_lengthened_reports_are_none(kind, length):
    report = bytes([kind]) + bytes(length)
    after = spacemouse.parse(report, spacemouse.State(counts=(1, -2, 3, -4, 5, -6)))
    assert after.ignored == (not is_whole(report))
    assert (after.counts == (1, -2, 3, -4, 5, -6)) == (not is_whole(report))


@ANY
@given(reports)
def test_garbage_is_counted_and_moves_nothing(report):
    before = spacemouse.State(counts=(1, -2, 3, -4, 5, -6))
    after = spacemouse.parse(report, before)
    if not is_whole(report):
        assert after.counts == before.counts
        assert after.ignored == (report[:1] != b"\x17" and (report[:1] != b"\x03" or len(report) == 1))
    assert (after.linear, after.angular) != (0, 0) or after.counts == before.counts


@FEW
@given(reports=st.lists(reports, max_size=100))
def test_no_bytes_whatever_give_more_than_full_speed(mouse, reports):
    device = mouse.make()
    for i, report in enumerate(reports):
        mouse.hid.queue.append(report)
        if i % 3 == 0:
            mouse.tick()
            assert is_sound(device.read())
    assert is_sound(device.read())
    device.close()


@pytest.mark.parametrize(
    "counts, axis, sign",
    [((350, 0, 0), 1, -1), ((0, 350, 0), 0, -1), ((0, 0, 350), 2, -1)],
    ids=["right", "towards the person", "down"],
)
def test_the_caps_axes_are_the_persons(mouse, counts, axis, sign):
    """The frame turns as a whole: rotations map like translations."""
    device = mouse.make()
    for shift in (0, 3):
        sent = np.zeros(6, int)
        sent[shift : shift + 3] = counts
        mouse.send(*sent)
        want = np.zeros(6)
        want[axis + shift] = sign
        assert device.read().twist == approx(want)
        mouse.tick()
    device.close()


def test_half_a_push_is_scaled_behind_the_dead_zone(mouse):
    device = mouse.make(dead_zone=0.2)
    mouse.send(0, -70, 0, 0, 0, 0)
    assert is_still(device.read())
    mouse.send(0, -210, 0, 0, 0, 0)
    assert device.read().twist == approx(0.5 * FORWARD)
    device.close()


def test_a_stuck_half_stops_the_whole(monkeypatch):
    """Translation falls silent while rotation goes on: a cap that is held tells both."""
    mouse = SplitMouse(monkeypatch)
    device = mouse.make()
    mouse.push()
    assert device.read().twist.any()
    for _ in range(40):
        mouse.hid.queue.append(b"\x02" + struct.pack("<3h", 350, 0, 0))
        mouse.hid.queue.append(b"\x17\x64")
        mouse.tick()
        reading = device.read()
    assert is_still(reading)
    device.close()


def test_lost_reports_move_nothing(mouse):
    """The kernel keeps the oldest 64 and drops the rest, the release among them."""
    device = mouse.make(timeout_s=5.0)
    for _ in range(64):
        mouse.push()
    mouse.clock.pass_s(2.0)
    assert is_still(device.read())
    mouse.tick()
    mouse.push()
    assert device.read().twist.any()
    device.close()


def test_it_is_looked_for_now_and_then(mouse):
    device = mouse.make()
    mouse.unplug()
    looks = []
    mouse.monkeypatch.setattr(mouse.hid, "enumerate", lambda *_: looks.append(mouse.clock()) or [])
    for _ in range(500):
        mouse.tick()
        assert is_still(device.read())
    assert len(looks) == 4 and min(np.diff(looks)) >= 1.0 - 1e-9
    device.close()


def test_garbage_is_counted_on_the_device(mouse):
    device = mouse.make()
    mouse.hid.queue += [b"\x01\x00", b"\xff" * 7, b"\x01" + struct.pack("<6h", 0, -32768, 0, 0, 0, 0), b"\x03"]
    assert is_still(device.read()) and device.ignored == 4
    device.close()


def entry(**changes):
    return RECEIVER | changes


def fails(monkeypatch, hid, **changes):
    monkeypatch.setattr(spacemouse, "_import_hid", lambda: hid)
    with pytest.raises((RuntimeError, OSError)) as caught:
        spacemouse.make(spacemouse.Config(**changes))
    return caught


def test_what_is_no_spacemouse_is_not_opened(monkeypatch):
    others = [
        entry(product_id=0xC650, usage=2, path=b"/dev/hidraw0"),  # a CadMouse
        entry(vendor_id=0x046D, product_id=0xC077, usage=2, path=b"/dev/hidraw1"),  # somebody's mouse
        entry(usage_page=0xFF00, usage=1, path=b"/dev/hidraw3"),  # the receiver's other collection
    ]
    assert "no SpaceMouse found: plug it in" in str(fails(monkeypatch, Hid(others)).value)
    both = Hid([*others, entry(), entry(), entry(usage_page=0, usage=0)])
    monkeypatch.setattr(spacemouse, "_import_hid", lambda: both)
    spacemouse.make(spacemouse.Config()).close()
    assert both.opened == [b"/dev/hidraw3"] and both.closed == 1


def test_unknown_models_of_the_maker_are_taken_by_their_usage(monkeypatch):
    monkeypatch.setattr(spacemouse, "_import_hid", lambda: Hid([entry(product_id=0xC6FF, product_string="New One")]))
    device = spacemouse.make(spacemouse.Config())
    assert device.name == "New One"
    device.close()


def test_one_of_several_is_chosen_by_serial_or_path(monkeypatch):
    hid = Hid([entry(), entry(path=b"/dev/hidraw9", serial_number="B7")])
    said = str(fails(monkeypatch, hid).value)
    assert "2 SpaceMice" in said and "/dev/hidraw3" in said and "B7" in said
    assert "serial='none'" in str(fails(monkeypatch, hid, serial="none").value)
    for changes in ({"serial": "B7"}, {"path": "/dev/hidraw9"}):
        spacemouse.make(spacemouse.Config(**changes)).close()
    assert hid.opened == [b"/dev/hidraw9"] * 2


def test_a_device_of_root_gives_the_udev_rule(monkeypatch, tmp_path):
    path = tmp_path / "hidraw3"
    path.write_bytes(b"")
    hid = Hid([entry(path=os.fsencode(path))])
    hid.fails = True
    caught = fails(monkeypatch, hid)
    assert caught.type is RuntimeError and "plug it in again" in str(caught.value)
    monkeypatch.setattr(spacemouse.os, "access", lambda *_: False)
    caught = fails(monkeypatch, hid)
    assert caught.type is PermissionError
    rule = 'KERNEL=="hidraw*", KERNELS=="*:256F:C62F.*", GROUP="plugdev", MODE="0660", TAG+="uaccess"'
    assert rule in str(caught.value) and rule == spacemouse.udev_rule(0x256F, 0xC62F)


@pytest.mark.parametrize("entry", ["gripper", "one:gripper", "0:jump", "-1:success"])
def test_buttons_of_a_spacemouse_are_checked(entry):
    with pytest.raises(ValueError, match="buttons"):
        spacemouse.Config(buttons=(entry,))
    with pytest.raises(ValueError, match="already"):
        spacemouse.Config(buttons=("0:gripper", "0:success"))


def test_without_hidapi_the_extra_is_named(monkeypatch):
    for name in ("hid", "hidraw"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"robot-rl\[teleop\]"):
        spacemouse.make(spacemouse.Config())
    monkeypatch.setitem(sys.modules, "hid", sys)  # the other package of that name
    with pytest.raises(ImportError, match="uninstall"):
        spacemouse.make(spacemouse.Config())


def test_the_real_hidapi_is_what_the_driver_calls():
    pytest.importorskip("hid")
    hid = spacemouse._import_hid()
    assert isinstance(hid.enumerate(0, 0), list)
    handle = hid.device()
    with pytest.raises(OSError):
        handle.open_path(b"/dev/there-is-no-such-device")
    assert callable(handle.read) and callable(handle.set_nonblocking)
    handle.close()
