"""Teleop devices: one contract for every device of the folder; frames, dead zone, settings."""

import dataclasses
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from hardware.teleop import gamepad, keyboard, spacemouse
from hardware.teleop._device import EVENTS, Reading, in_base, radial
from robot_rl.find import names
from tests.teleop_benches import ANY, BENCHES, FORWARD, Pad, approx, is_sound, is_still, opened


def test_every_device_of_the_folder_has_a_bench():
    assert sorted(BENCHES) == names("hardware.teleop")


@pytest.fixture(params=[bench for benches in BENCHES.values() for bench in benches], ids=lambda kind: kind.__name__)
def bench(request, monkeypatch):
    yield from opened(request.param, monkeypatch)


def test_at_rest_there_is_no_wish(bench):
    device = bench.make()
    reading = device.read()
    assert is_still(reading) and is_sound(reading) and reading.events == frozenset() and reading.fault == ""
    device.close()


def test_a_push_moves_and_takes_over_until_released(bench):
    device = bench.make(release_s=0.5)
    for _ in range(30):
        bench.push()
        reading = device.read()
        assert reading.twist == approx(FORWARD) and reading.active and reading.age_s == 0.0 and is_sound(reading)
        bench.tick()
    bench.let_go()
    reading = device.read()
    assert not reading.twist.any() and reading.active, "the person keeps control for release_s"
    for _ in range(60):
        bench.tick()
        reading = device.read()
    assert is_still(reading)
    device.close()


def test_silence_in_mid_push_is_no_motion(bench):
    device = bench.make()
    bench.push()
    assert device.read().twist.any()
    for _ in range(math.ceil(device.config.timeout_s / 0.01) + 1):
        bench.tick()
        reading = device.read()
    assert not reading.twist.any()
    assert is_still(reading) or bench.plugin is keyboard, "a hand may rest between two keys for release_s"
    bench.push()
    assert device.read().twist.any(), "it goes on once the device speaks again"
    device.close()


def test_a_push_that_nobody_read_is_old(bench):
    device = bench.make()
    bench.push()
    bench.clock.pass_s(device.config.timeout_s + 1.0)
    for _ in range(5):
        assert is_still(device.read())
        bench.tick()
    bench.push()
    if isinstance(bench, Pad):
        bench.send(3, 1, 1)  # the kernel tells changes only
    assert device.read().twist.any()
    device.close()


def test_pushed_while_connecting_moves_nothing_until_released(bench):
    device = bench.open()
    if isinstance(bench, Pad):
        bench.send(1, gamepad.BUTTONS["tl"], 1)
    for i in range(50):
        bench.tick()
        bench.push()
        if isinstance(bench, Pad):
            bench.send(3, 1, i % 2)
        assert is_still(device.read())
    bench.let_go()
    for _ in range(math.ceil(device.config.timeout_s / 0.01) + 1):
        bench.tick()
        device.read()
    bench.push()
    assert device.read().twist.any()
    device.close()


def test_unplugged_it_stops_says_so_and_comes_back(bench):
    device = bench.make()
    bench.push()
    assert device.read().active
    bench.unplug()
    bench.tick()
    first = device.read()
    assert is_still(first) and first.events == {"stop"} and device.name in first.fault
    for _ in range(250):
        bench.tick()
        reading = device.read()
        assert is_still(reading) and not reading.events and reading.fault
    if bench.can_replug:
        bench.replug()
        bench.clock.pass_s(1.1)
        device.read()
        bench.rest(device)
        if isinstance(bench, Pad):
            bench.send(1, gamepad.BUTTONS["tl"], 1)
        bench.push()
        reading = device.read()
        assert reading.twist == approx(FORWARD) and reading.fault == ""
    device.close()


def test_each_press_is_told_once_and_also_late(bench):
    device = bench.make()
    assert set(EVENTS) <= set(bench.uses.values())
    for event in EVENTS:
        bench.press(event)
        bench.clock.pass_s(5.0)
        assert device.read().events == {event}
        bench.tick()
        assert device.read().events == frozenset()
    device.close()


def test_the_gripper_toggles_and_its_wish_lapses(bench):
    device = bench.make(release_s=0.5)
    for wish in (1.0, -1.0, 1.0):
        bench.press("gripper")
        reading = device.read()
        assert reading.gripper == wish and reading.active and is_sound(reading)
        bench.tick()
        assert device.read().gripper == wish, "it stays while the person has control"
    for _ in range(60):
        bench.tick()
        reading = device.read()
    assert is_still(reading)
    bench.press("gripper")
    bench.clock.pass_s(device.config.timeout_s + 1.0)
    assert is_still(device.read()), "a press that nobody read is no wish any more"
    device.close()


def test_stop_is_still(bench):
    device = bench.make()
    bench.push()
    bench.press("stop")
    reading = device.read()
    assert reading.events == {"stop"} and is_still(reading)
    device.close()


def test_axes_scale_and_frame_are_the_configs(bench):
    device = bench.make(axes=(-2, -1, 3, 0, 5, 6), scale=(1.0, 0.25, 1.0, 1.0, 1.0, 1.0), frame="tool")
    bench.push()
    reading = device.read()
    assert reading.twist == approx([0, -0.25, 0, 0, 0, 0]) and reading.frame == "tool"
    device.close()


def test_a_locked_axis_takes_over_nothing(bench):
    device = bench.make(axes=(0, 2, 3, 4, 5, 6))
    bench.push()
    assert is_still(device.read())
    device.close()


def test_closing_twice_is_fine_and_reading_then_is_not(bench):
    device = bench.make()
    device.close()
    device.close()
    with pytest.raises(RuntimeError, match="closed"):
        device.read()


def test_configs_refuse_what_they_cannot_take(bench):
    for changes, named in (
        ({"frame": "world"}, "frame"),
        ({"axes": (1, -1, 3, 4, 5, 6)}, "axes"),
        ({"axes": (1, 2, 3, 4, 5, 7)}, "axes"),
        ({"scale": (1.0, 1.0, 1.0, 1.0, 1.0, math.nan)}, "scale"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"release_s": -1.0}, "release_s"),
    ):
        with pytest.raises(ValueError, match=named):
            bench.plugin.Config(**changes)


unit_quats = st.lists(st.floats(-1, 1), min_size=4, max_size=4).map(np.array).filter(lambda q: np.linalg.norm(q) > 0.1)
twists = st.lists(st.floats(-1, 1), min_size=6, max_size=6).map(np.array)


@ANY
@given(twists, unit_quats)
def test_a_tools_twist_is_turned_into_the_base(twist, quat):
    quat = quat / np.linalg.norm(quat)
    out = in_base(Reading(twist, frame="tool"), quat)
    assert np.abs(out).max() <= 1.0 + 1e-12
    for half in (slice(0, 3), slice(3, 6)):
        want = Rotation.from_quat(quat).apply(twist[half])
        assert out[half] == pytest.approx(want / max(np.abs(want).max(), 1.0), abs=1e-9)
    assert in_base(Reading(twist), quat) == approx(twist)


@pytest.mark.parametrize("quat", [[0, 0, 0, math.nan], [0, 0, 0, 0], [0, 0, 1]])
def test_no_frame_is_made_of_what_is_no_orientation(quat):
    with pytest.raises(ValueError, match="tcp_quat_xyzw"):
        in_base(Reading(FORWARD, frame="tool"), np.array(quat, float))


@ANY
@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3).map(np.array), st.floats(0, 0.9))
def test_the_dead_zone_is_a_ball_and_continuous(deflection, dead_zone):
    out, length = radial(deflection, dead_zone), np.linalg.norm(deflection)
    assert np.linalg.norm(out) <= 1.0 + 1e-9
    if length <= dead_zone:
        assert not out.any()
    else:
        assert np.linalg.norm(out) == pytest.approx((min(length, 1.0) - dead_zone) / (1.0 - dead_zone), abs=1e-9)
        assert np.linalg.norm(np.cross(out, deflection)) <= 1e-9 and out @ deflection >= 0.0


def test_configs_say_their_numbers():
    for plugin in (spacemouse, gamepad, keyboard):
        for field in dataclasses.fields(plugin.Config):
            assert field.type != "float" or "low" in field.metadata, field.name
        assert replace(plugin.Config(), release_s=1.0).release_s == 1.0
