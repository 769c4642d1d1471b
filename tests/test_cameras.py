"""What every camera of the folder has to do, and what they do it with: the newest picture, and the geometry of crop and
resize."""

import dataclasses
import re
import threading
import time

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware.cameras import _newest
from hardware.cameras._newest import Camera
from hardware.cameras._picture import Intrinsics, LensConfig, PictureConfig, fit, fit_lens
from robot_rl.config import override
from robot_rl.find import find, names
from tests.camera_rigs import HEIGHT_PX, RIGS, WIDTH_PX, draw, number_of, read_fresh
from tests.ros_children import child_processes, until

# ----------------------------------------------------------------------------------------------------- of every camera


@pytest.fixture(params=names("hardware.cameras"))
def rig(request, tmp_path):
    before, processes = set(threading.enumerate()), child_processes()
    if request.param == "ros_image":
        request.getfixturevalue("ros_domain")
    made = RIGS[request.param](tmp_path) if request.param == "video" else RIGS[request.param]()
    try:
        made.plug()
        yield made
    finally:
        made.close()
    until(lambda: set(threading.enumerate()) <= before and child_processes() <= processes)


def refusal(camera):
    """What a reading is refused with, once it is."""

    def refused():
        try:
            camera.read()
        except TimeoutError as error:
            return str(error)
        return ""

    return until(refused)


@pytest.mark.parametrize("name", names("hardware.cameras"))
def test_a_config_is_frozen_and_needs_no_arguments(name):
    config = find("hardware.cameras", name).Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.stale_s = 1.0
    changed = override(config, ["crop_px=1,2,30,40", "width_px=32", "height_px=24", "stale_s=2"])
    assert changed.crop_px == (1, 2, 30, 40) and changed.stale_s == 2.0
    with pytest.raises(ValueError, match="width_px = 32, height_px = None: give both"):
        override(config, ["width_px=32"])
    with pytest.raises(ValueError, match=r"stale_s = 0\.0: give a number in"):
        override(config, ["stale_s=0"])


def test_pictures_are_rgb_and_go_on(rig):
    camera = rig.open(stale_s=60.0, wait_s=60.0)
    began_s = time.monotonic()
    picture, t_s = camera.read()
    assert picture.dtype == np.uint8 and picture.shape == (HEIGHT_PX, WIDTH_PX, 3)
    np.testing.assert_allclose(picture[:, 4:24].mean((0, 1))[[0, 2]], (220, 20), atol=16)
    np.testing.assert_allclose(picture[:, 40:60].mean((0, 1))[[0, 2]], (20, 220), atol=16)
    seen = set()
    until(lambda: seen.add(number_of(camera.read()[0])) or len(seen) > 5)
    later_s = camera.read()[1]
    assert later_s > t_s
    if rig.monotonic:
        assert began_s - 60.0 < t_s < later_s <= time.monotonic()
        assert camera.age_s <= time.monotonic() - later_s


def test_a_picture_is_the_readers_own(rig):
    camera = rig.open(stale_s=60.0, wait_s=60.0)
    picture, t_s = camera.read()
    copy = picture.copy()
    until(lambda: camera.read()[1] > t_s + 0.2)
    np.testing.assert_array_equal(picture, copy)
    picture[:] = 0
    assert camera.read()[0].any()


def test_the_newest_wins_and_nobody_waits_for_a_next_one(rig):
    camera = rig.open(mortal=True, stale_s=3600.0, wait_s=60.0)
    camera.read()
    if rig.returns:
        target = rig.sent + 20
        until(lambda: rig.sent > target)
    rig.unplug()
    until(lambda: number_of(camera.read()[0]) == rig.last_number())
    _, t_s = camera.read()
    for _ in range(100):  # nothing comes any more, and reading does not care
        assert camera.read()[1] == t_s


def test_what_is_lost_is_refused_and_what_returns_is_read(rig):
    camera = rig.open(mortal=True, stale_s=0.3, wait_s=60.0)
    read_fresh(camera)
    rig.unplug()
    said = rf"the last picture o[fn] .*{rig.name} came [0-9.]+ s ago, stale_s is 0.3: .*({rig.remedy})"
    until(lambda: re.match(said, refusal(camera)))
    if rig.returns:
        rig.plug()
        assert read_fresh(camera)[0].shape == (HEIGHT_PX, WIDTH_PX, 3)
        if hasattr(camera, "reconnects"):
            assert camera.reconnects >= 1


def test_crop_and_size(rig):
    camera = rig.open(stale_s=60.0, wait_s=60.0, crop_px=(16, 8, 32, 16), width_px=8, height_px=4)
    picture, _ = camera.read()
    assert picture.shape == (4, 8, 3) and picture.flags.c_contiguous
    assert (picture[:, :3, 0] > 180).all() and (picture[:, 5:, 2] > 180).all()


def test_closing_ends_a_camera_that_was_never_read(rig):
    camera = rig.open()
    camera.close()
    camera.close()


# ------------------------------------------------------------------------------------------- the thread and its device


class Toy:
    """A device that does what it is told: each of ``script`` is a picture's number, "silent", or an error."""

    size_px = WIDTH_PX, HEIGHT_PX
    lens = Intrinsics(60.0, 61.0, 31.0, 24.5)

    def __init__(self, *script, stamp=lambda: None):
        self.script, self.stamp, self.closed, self.grabbed = list(script), stamp, 0, 0

    def grab(self):
        self.grabbed += 1
        act = self.script.pop(0) if self.script else "silent"
        if act == "silent":
            time.sleep(0.001)
            return None
        if isinstance(act, Exception):
            raise act
        return draw(act), self.stamp()

    def close(self):
        self.closed += 1


@pytest.fixture
def start(monkeypatch):
    """Cameras around toys, opened one after the other; an exception among them cannot be opened."""
    monkeypatch.setattr(_newest, "_BACKOFF_S", (0.001, 0.004))
    cameras = []

    def make(*toys, warmup_frames=0, **settings):
        left = list(toys)

        def open_source():
            toy = left.pop(0) if left else OSError("there is no more")
            if isinstance(toy, Exception):
                raise toy
            return toy

        config = PictureConfig(**{"stale_s": 3600.0, "wait_s": 60.0} | settings)
        cameras.append(Camera("toy 7", config, open_source, "wind it up", warmup_frames))
        return cameras[-1]

    yield make
    for camera in cameras:
        camera.close()
        assert not camera._thread.is_alive()


def test_a_lost_device_is_opened_again_and_again(start, caplog):
    second = Toy(5)
    toys = [Toy(3, OSError("cable")), OSError("gone"), RuntimeError("gone"), LookupError("another"), second]
    camera = start(*toys)
    until(lambda: number_of(camera.read()[0]) == 5)
    assert camera.reconnects == 1 and [toy.closed for toy in (toys[0], second)] == [1, 0]
    camera.close()
    assert second.closed == 1
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("toy 7 is lost: cable") and said[1].startswith("toy 7 is lost: gone")
    assert len(said) == 4 and said[-1] == "toy 7 is back, for the 1. time"  # one cause is said once


def test_a_reader_may_write_into_what_it_read(start):
    camera = start(Toy(3))
    camera.read()[0][:] = 0
    np.testing.assert_array_equal(camera.read()[0], draw(3))


def test_attempts_get_rarer_up_to_a_bound(start, monkeypatch):
    waits = []
    real = threading.Event.wait

    def wait(event, timeout=None):
        waits.append(timeout)
        return real(event, timeout)

    monkeypatch.setattr(threading.Event, "wait", wait)
    camera = start(Toy(OSError("cable")))
    until(lambda: waits.count(0.004) > 3)
    camera.close()
    pauses = [pause for pause in waits if pause is not None and pause < 0.01]
    assert pauses[:3] == [0.001, 0.002, 0.004] and max(pauses) == 0.004


def test_a_device_that_falls_silent_is_opened_again(start, monkeypatch):
    monkeypatch.setattr(_newest, "_SILENT_S", 0.05)
    monkeypatch.setattr(_newest, "_OPEN_S", 0.05)
    camera = start(Toy(1), Toy(), Toy(2))
    until(lambda: number_of(camera.read()[0]) == 2)
    assert camera.reconnects == 1


def test_a_refusal_says_what_is_the_matter(start):
    camera = start(Toy(), wait_s=0.0, stale_s=0.01)
    assert refusal(camera) == "no picture of toy 7 within 0 s: it is open and silent; wind it up"
    camera.close()
    assert refusal(camera).endswith("it was closed")
    camera = start(Toy(1, OSError("cable")), stale_s=0.01)
    until(lambda: camera.age_s > 0.01 and camera._cause == "there is no more")
    assert refusal(camera).endswith("stale_s is 0.01: there is no more; wind it up")


def test_a_device_that_ends_is_not_opened_again(start):
    camera = start(Toy(1, EOFError("the end")), Toy(2), stale_s=0.01)
    camera._thread.join()
    until(lambda: camera.age_s > 0.01)
    assert camera.reconnects == 0 and "the end; wind it up" in refusal(camera)


def test_warm_up_pictures_are_left_out_after_every_opening(start):
    camera = start(Toy(1, 2, 3), Toy(4, 5, 6, 7), warmup_frames=2)
    assert number_of(camera.read()[0]) == 3
    camera = start(Toy(1, 2, 3, OSError("cable")), Toy(4, 5, 6), warmup_frames=2)
    until(lambda: number_of(camera.read()[0]) == 6)


@pytest.mark.parametrize("early_s,kind", [(0.03, "exposure"), (-0.5, "exposure"), (1e5, "arrival"), (None, "arrival")])
def test_stamps(start, early_s, kind):
    """A stamp is taken where it can be one; one ahead of time is now; one of another clock is none."""
    stamped = []

    def stamp():
        stamped.append(time.monotonic())
        return None if early_s is None else stamped[-1] - early_s

    camera = start(Toy(1, stamp=stamp))
    _, t_s = camera.read()
    assert camera.stamps == kind and t_s <= time.monotonic()
    if early_s == 0.03:
        assert t_s == stamped[0] - 0.03
    else:
        assert stamped[0] <= t_s


def test_a_crop_that_goes_beyond_is_refused_at_once(start):
    toy = Toy(1)
    with pytest.raises(ValueError, match=r"crop_px = \(60, 0, 8, 8\) goes beyond a picture of 64 x 48 px"):
        start(toy, crop_px=(60, 0, 8, 8))
    assert toy.closed == 1


def test_intrinsics_follow_crop_and_size(start):
    camera = start(Toy(1), crop_px=(16, 8, 32, 16), width_px=8, height_px=4)
    assert camera.intrinsics == Intrinsics(15.0, 15.25, (31.0 - 16 + 0.5) / 4 - 0.5, (24.5 - 8 + 0.5) / 4 - 0.5)


# ------------------------------------------------------------------------------------------------------------ geometry

size = st.integers(8, 300)
lens = st.builds(
    Intrinsics,
    *[st.floats(50.0, 900.0)] * 2,
    *[st.floats(-50.0, 900.0)] * 2,
    st.tuples(*[st.floats(-0.2, 0.2)] * 5),
)
points = st.lists(st.tuples(*[st.floats(-0.4, 0.4)] * 2, st.floats(0.5, 3.0)), min_size=1, max_size=9).map(np.array)


@given(lens, points)
def test_projection_is_opencvs(of, points_m):
    expected, _ = cv2.projectPoints(points_m, np.zeros(3), np.zeros(3), of.matrix, np.array(of.distortion))
    np.testing.assert_allclose(of.project(points_m), expected[:, 0], atol=1e-6)


@given(lens, points, st.data())
def test_a_point_is_seen_where_crop_and_resize_took_it(of, points_m, data):
    """The pixel that shows a point before is, cropped and resized, the one that shows it after."""
    width, height, to_width, to_height = (data.draw(size) for _ in range(4))
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    crop = left, top, data.draw(st.integers(1, width - left)), data.draw(st.integers(1, height - top))
    config = PictureConfig(crop_px=crop, width_px=to_width, height_px=to_height)
    before, after = of.project(points_m), fit_lens(of, (width, height), config).project(points_m)
    scale = np.array([to_width / crop[2], to_height / crop[3]])
    np.testing.assert_allclose(after + 0.5, (before + 0.5 - (left, top)) * scale, atol=1e-6)


@pytest.mark.parametrize("to_px", [(16, 12), (32, 24), (128, 96), (160, 48)])
def test_a_spot_of_a_picture_is_where_its_intrinsics_say(to_px):
    """Through the very pixels: the centre of a bright spot, before and after."""
    y, x = np.mgrid[:HEIGHT_PX, :WIDTH_PX]
    u, v = 37.3, 21.8
    picture = np.repeat(255 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / 50.0)[:, :, None], 3, 2).astype(np.uint8)
    config = PictureConfig(crop_px=(8, 4, 52, 40), width_px=to_px[0], height_px=to_px[1])
    small = fit(picture, config)[:, :, 0].astype(float)
    y, x = np.mgrid[: to_px[1], : to_px[0]]
    seen = np.array([(x * small).sum(), (y * small).sum()]) / small.sum()
    point = np.array([[0.1, -0.05, 1.0]])
    before = Intrinsics(100.0, 100.0, u - 10.0, v + 5.0)  # sees the point at u, v
    np.testing.assert_allclose(fit_lens(before, (WIDTH_PX, HEIGHT_PX), config).project(point)[0], seen, atol=0.1)


@pytest.mark.parametrize(
    "settings,words",
    [
        ({"lens_px": (0.0, 1.0, 2.0, 3.0)}, "lens_px = .*give fx, fy > 0"),
        ({"lens_px": (1.0, 1.0, 2.0, float("inf"))}, "lens_px"),
        ({"distortion": (0.1, 0.2)}, "distortion = .*give k1, k2, p1, p2"),
        ({"distortion": (0.1, 0.2, 0.0, 0.0)}, "says nothing without lens_px"),
        ({"crop_px": (-1, 0, 4, 4)}, "crop_px"),
    ],
)
def test_a_lens_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        LensConfig(**settings)
