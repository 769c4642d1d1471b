"""What each camera alone can do, and how it refuses: RealSense, webcams and streams, films. What all have in common is
in test_cameras.py."""

import sys
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pyrealsense2 as rs
import pytest

from hardware.cameras import _newest, realsense, video, webcam
from tests.camera_rigs import HEIGHT_PX, WIDTH_PX, Rig, SoftCamera, Webcam, draw, make_film, number_of, read_fresh
from tests.ros_children import until

SIZE = WIDTH_PX, HEIGHT_PX
option = rs.option


@pytest.fixture
def opened():
    """Cameras that are closed at the end."""
    cameras = []
    yield lambda camera: cameras.append(camera) or camera
    for camera in cameras:
        camera.close()


# ---------------------------------------------------------------------------------------------------------- RealSense


@pytest.fixture
def open_soft(opened):
    def make(*softs, **settings):
        config = realsense.Config(**{"capture_px": SIZE, "warmup_frames": 0, "wait_s": 60.0} | settings)
        return opened(realsense.make(config, lambda: [soft.device for soft in softs]))

    return make


def test_the_serial_number_chooses(open_soft):
    one, two = SoftCamera("111"), SoftCamera("222")
    camera = open_soft(one, two, serial="222")
    two.send(draw(7), 1)
    assert number_of(camera.read()[0]) == 7


def test_the_only_one_needs_no_serial(open_soft):
    one = SoftCamera("111")
    camera = open_soft(one)
    one.send(draw(7), 1)
    assert number_of(camera.read()[0]) == 7


@pytest.mark.parametrize(
    "serials,serial,kind,words",
    [
        ((), "", OSError, "^RealSense is not connected, nor is any other: check its cable"),
        ((), "333", OSError, "^RealSense 333 is not connected"),
        (("222", "111"), "333", LookupError, r"'333' is not connected: there are 111 \(Soft D435\), 222 \(Soft D435\)"),
        (("111", "222"), "", ValueError, "serial = '': more than one RealSense is connected, give one of 111"),
    ],
)
def test_a_camera_that_is_not_there(open_soft, serials, serial, kind, words):
    with pytest.raises(kind, match=words):
        open_soft(*map(SoftCamera, serials), serial=serial)


def test_librealsense_itself_is_asked_where_no_devices_are_given():
    with pytest.raises(OSError, match=r"^RealSense 0 "):
        realsense.make(realsense.Config("0"))


def test_a_mode_that_the_camera_lacks(open_soft):
    words = r"capture_px = \(64, 48\), rate_hz = 90: this RealSense has 64 x 48 at 15, 64 x 48 at 30 \(px, Hz"
    with pytest.raises(ValueError, match=words):
        open_soft(SoftCamera("111", rates=(30, 15)), rate_hz=90)


def test_a_camera_that_is_in_use(open_soft):
    soft = SoftCamera("111")
    open_soft(soft)
    with pytest.raises(OSError, match=r"RealSense 111 cannot be opened \(librealsense: .+\): check its cable"):
        open_soft(soft, serial="111")


EXPOSURE = (
    (option.enable_auto_exposure, 0, 1, 1),
    (option.exposure, 1, 10_000, 166),
    (option.gain, 0, 128, 64),
    (option.enable_auto_white_balance, 0, 1, 1),
    (option.white_balance, 2800, 6500, 4600),
)


@pytest.mark.parametrize("depth,units", [(False, 52.0), (True, 5210.0)], ids=["of its own", "D405"])
def test_exposure_is_fixed_in_the_unit_of_the_sensor(open_soft, depth, units):
    soft = SoftCamera("111", options=EXPOSURE, depth=depth)
    open_soft(soft, exposure_us=5210, gain=20.0, white_balance_k=4000)
    assert [soft.sensor.get_option(name) for name, *_ in EXPOSURE] == [0.0, units, 20.0, 0.0, 4000.0]


def test_without_a_fixed_exposure_the_camera_chooses(open_soft):
    soft = SoftCamera("111", options=EXPOSURE)
    soft.sensor.set_option(option.enable_auto_exposure, 0.0)  # as another program left it
    open_soft(soft)
    assert soft.sensor.get_option(option.enable_auto_exposure) == 1.0
    assert soft.sensor.get_option(option.exposure) == 166.0


@pytest.mark.parametrize(
    "options,settings,words",
    [
        (EXPOSURE, {"exposure_us": 2_000_000}, "exposure_us = 2000000: this RealSense takes 100 to 1e\\+06"),
        (EXPOSURE, {"gain": 200.0, "exposure_us": 5000}, "gain = 200.0: this RealSense takes 0 to 128"),
        ((), {"exposure_us": 5000}, "exposure_us = 5000: this RealSense has no such control"),
    ],
)
def test_a_control_that_the_sensor_does_not_take(open_soft, options, settings, words):
    soft = SoftCamera("111", options=options)
    with pytest.raises(ValueError, match=words):
        open_soft(soft, **settings)
    open_soft(soft)  # and it was left closed


def test_a_gain_needs_an_exposure():
    with pytest.raises(ValueError, match=r"gain = 20\.0: give exposure_us as well"):
        realsense.Config(gain=20.0)


@pytest.fixture
def clocks(monkeypatch):
    """The driver's two clocks, stopped: now on the monotonic one; the wall clock says 5000 s."""
    now_s = time.monotonic()
    monkeypatch.setattr(realsense, "time", SimpleNamespace(time=lambda: 5000.0, monotonic=lambda: now_s))
    monkeypatch.setattr(_newest, "_CLOCK_S", 3600.0)  # however slow this machine is
    return now_s


def test_global_time_becomes_monotonic(open_soft, clocks):
    soft = SoftCamera("111", options=((option.global_time_enabled, 0, 1, 0),))
    camera = open_soft(soft, stale_s=3600.0)
    assert soft.sensor.get_option(option.global_time_enabled) == 1.0
    soft.send(draw(1), 1, stamp_s=4998.0)
    _, t_s = camera.read()
    assert t_s == pytest.approx(clocks - 2.0, abs=1e-6)
    assert camera.stamps == "exposure" and camera.age_s >= 2.0


def test_the_middle_of_the_exposure_is_taken_where_metadata_tell(open_soft, clocks):
    soft = SoftCamera("111")
    camera = open_soft(soft, stale_s=3600.0)
    soft.sensor.set_metadata(rs.frame_metadata_value.frame_timestamp, 5_030_000)
    soft.sensor.set_metadata(rs.frame_metadata_value.sensor_timestamp, 5_000_000)
    soft.send(draw(2), 2, stamp_s=4999.0)
    assert camera.read()[1] == pytest.approx(clocks - 1.03, abs=1e-6)


@pytest.mark.parametrize("domain", [rs.timestamp_domain.hardware_clock, rs.timestamp_domain.system_time])
def test_another_clock_is_not_taken(open_soft, domain):
    soft = SoftCamera("111")
    camera = open_soft(soft)
    began_s = time.monotonic()
    soft.send(draw(1), 1, stamp_s=12.0, domain=domain)
    assert camera.read()[1] >= began_s and camera.stamps == "arrival"


@pytest.mark.parametrize("model", ["none", "brown_conrady", "inverse_brown_conrady", "modified_brown_conrady"])
@pytest.mark.parametrize("coefficients", [(0.0,) * 5, (-0.056, 0.066, 0.0004, 0.0008, -0.021)])
def test_intrinsics_agree_with_librealsense(open_soft, model, coefficients):
    """Every ray of the SDK comes back to its pixel, to a twentieth of one; the second lens is like a D455's."""
    coefficients = (0.0,) * 5 if model == "none" else coefficients
    soft = SoftCamera("111", lens=getattr(rs.distortion, model), coefficients=coefficients)
    lens = open_soft(soft).intrinsics
    assert (lens.fx_px, lens.fy_px, lens.cx_px, lens.cy_px) == (60.0, 61.0, 31.0, 24.5)
    assert bool(lens.distortion) == any(coefficients)
    theirs = soft.profiles[0].as_video_stream_profile().get_intrinsics()
    pixels = np.array([(x, y) for x in range(0, WIDTH_PX, 3) for y in range(0, HEIGHT_PX, 3)], float)
    points = np.array([rs.rs2_deproject_pixel_to_point(theirs, list(pixel), 2.0) for pixel in pixels])
    np.testing.assert_allclose(lens.project(points), pixels, atol=0.05)


def test_without_its_sdk(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyrealsense2", None)
    with pytest.raises(ImportError, match=r"pip install 'robot-rl\[cameras\]', and apt-get install libusb-1.0-0"):
        realsense.make(realsense.Config())


# ------------------------------------------------------------------------------------------------------------- webcams


@pytest.fixture
def film(tmp_path):
    return str(make_film(tmp_path / "film.mp4", 25))


def test_no_such_webcam(tmp_path):
    with pytest.raises(OSError, match=r"webcam /dev/video97 cannot be opened: there are .*/dev"):
        webcam.make(webcam.Config(97))
    for name in ("video2", "video0", "audio"):
        (tmp_path / name).touch()
    with pytest.raises(OSError, match=f"there are {tmp_path}/video0, {tmp_path}/video2; check its cable"):
        webcam._Source(cv2, webcam.Config("/dev/v4l/by-id/usb-None"), tmp_path)


def test_a_stream_that_dies_is_opened_again(opened, film):
    """A file is a stream that dies after its 25th picture, again and again."""
    camera = opened(webcam.make(webcam.Config(film, SIZE, warmup_frames=0, wait_s=60.0, stale_s=3600.0)))
    until(lambda: camera.reconnects >= 2)
    picture, _ = camera.read()
    np.testing.assert_allclose(picture[:, 4:24].mean((0, 1))[[0, 2]], (220, 20), atol=16)
    assert camera.stamps == "arrival"


def test_a_stream_that_hangs_is_lost(opened):
    """Its connection stays open, and nothing comes."""
    rig = Webcam()
    try:
        rig.plug()
        camera = rig.open(stale_s=0.3, wait_s=60.0)
        read_fresh(camera)
        Rig.unplug(rig)
        until(lambda: camera._cause)
        with pytest.raises(TimeoutError, match=r"stale_s is 0\.3: .+; check its cable"):
            camera.read()
        rig.unplug()
        rig.plug()
        read_fresh(camera)
        assert camera.reconnects >= 1
    finally:
        rig.close()


@pytest.mark.parametrize(
    "settings,words",
    [
        ({"capture_px": (640, 480)}, r"capture_px = \(640, 480\): webcam .*film.mp4 gives 64 x 48 px"),
        ({"exposure_us": 5000}, "exposure_us = 5000: the device does not take it"),
        ({"gain": 3.0}, "gain = 3.0: the device does not take it"),
        ({"rate_hz": 60.0}, r"rate_hz = 60.0: the device does not take it \(asked for 60, it has 25\)"),
        ({"pixel_format": "MJPG"}, "pixel_format = 'MJPG': the device does not take"),
        ({"crop_px": (0, 0, 65, 1)}, "goes beyond a picture of 64 x 48 px"),
    ],
)
def test_what_a_stream_does_not_take(film, settings, words):
    with pytest.raises(ValueError, match=words):
        webcam.make(webcam.Config(**{"device": film, "capture_px": SIZE} | settings))


class Driver:
    """OpenCV's VideoCapture around a Video4Linux device, as far as the camera uses it; there is none to test with."""

    def __init__(self, device, backend):
        assert (device, backend) == ("/dev/v4l/by-id/usb-Cam", cv2.CAP_V4L2)
        self.asked = []
        self.has = {cv2.CAP_PROP_FRAME_WIDTH: 640.0, cv2.CAP_PROP_FRAME_HEIGHT: 480.0, cv2.CAP_PROP_EXPOSURE: 157.0}
        Driver.last = self

    def isOpened(self):
        return True

    def getBackendName(self):
        return "V4L2"

    def set(self, prop, value):
        self.asked.append((prop, value))
        self.has[prop] = float(min(value, 5000.0)) if prop == cv2.CAP_PROP_EXPOSURE else float(value)
        return True

    def get(self, prop):
        return self.has.get(prop, 0.0)

    def read(self):
        time.sleep(0.005)
        self.has[cv2.CAP_PROP_POS_MSEC] = 1e3 * time.monotonic() - 20.0
        return True, np.ascontiguousarray(draw(3)[:, :, ::-1])

    def release(self):
        self.asked.append("released")


def test_a_webcams_settings_and_stamps(opened, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Driver)
    config = webcam.Config(
        "/dev/v4l/by-id/usb-Cam", SIZE, 60.0, "MJPG", exposure_us=5000, gain=3.0, warmup_frames=0, wait_s=60.0
    )
    camera = opened(webcam.make(config))
    began_s = time.monotonic()
    picture, t_s = camera.read()
    np.testing.assert_array_equal(picture, draw(3))
    assert camera.stamps == "exposure" and t_s <= time.monotonic() - 0.02 and t_s > began_s - 60.0
    camera.close()
    assert Driver.last.asked == [
        (cv2.CAP_PROP_BUFFERSIZE, 1),
        (cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG")),  # first: sizes and rates depend on it
        (cv2.CAP_PROP_FRAME_WIDTH, WIDTH_PX),
        (cv2.CAP_PROP_FRAME_HEIGHT, HEIGHT_PX),
        (cv2.CAP_PROP_FPS, 60.0),
        (cv2.CAP_PROP_AUTO_EXPOSURE, 1),
        (cv2.CAP_PROP_EXPOSURE, 50.0),
        (cv2.CAP_PROP_GAIN, 3.0),
        "released",
    ]


def test_an_exposure_that_the_driver_clips_is_refused(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Driver)
    with pytest.raises(ValueError, match=r"exposure_us = 800000: .*\(asked for 8000, it has 5000\)"):
        webcam.make(webcam.Config("/dev/v4l/by-id/usb-Cam", None, exposure_us=800_000))
    assert Driver.last.asked[-1] == "released"


@pytest.mark.parametrize(
    "settings,words",
    [({"device": ""}, "device = ''"), ({"device": -1}, "device = -1"), ({"pixel_format": "MJPEG"}, "four letters")],
)
def test_a_webcam_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        webcam.Config(**settings)


def test_intrinsics_are_those_of_the_config(opened, film):
    lens = {"lens_px": (60.0, 61.0, 31.0, 24.0), "distortion": (0.1, 0.0, 0.0, 0.0), "crop_px": (4, 8, 32, 16)}
    cameras = [webcam.make(webcam.Config(film, SIZE, **lens)), video.make(video.Config(film, **lens))]
    for camera in map(opened, cameras):
        has = camera.intrinsics
        assert (has.fx_px, has.fy_px, has.cx_px, has.cy_px, has.distortion[0]) == (60.0, 61.0, 27.0, 16.0, 0.1)
    assert opened(video.make(video.Config(film, stepwise=True, **lens))).intrinsics == has
    assert opened(video.make(video.Config(film))).intrinsics is None


# --------------------------------------------------------------------------------------------------------------- films


@pytest.mark.parametrize("fps,rate_hz", [(25, None), (10, None), (25, 50.0)])
def test_picture_by_picture(opened, tmp_path, fps, rate_hz):
    film = make_film(tmp_path / "film.mp4", 12, fps)
    camera = opened(video.make(video.Config(str(film), stepwise=True, loop=False, rate_hz=rate_hz)))
    read = [camera.read() for _ in range(12)]
    assert [number_of(picture) for picture, _ in read] == list(range(12))
    np.testing.assert_allclose([t_s for _, t_s in read], np.arange(12) / (rate_hz or fps))
    with pytest.raises(TimeoutError, match=r"film.mp4: it ended after 12 pictures; set loop=true"):
        camera.read()


def test_a_loop_begins_again(opened, tmp_path):
    film = make_film(tmp_path / "film.mp4", 12)
    camera = opened(video.make(video.Config(str(film), stepwise=True, crop_px=(0, 0, 8, 8))))
    pictures = [camera.read()[0] for _ in range(30)]
    assert [number_of(picture) for picture in pictures] == [*range(12), *range(12), *range(6)]
    assert pictures[0].shape == (8, 8, 3)


def test_in_real_time_each_picture_has_its_time(film):
    source = video._Source(video.Config(film, rate_hz=50.0))
    try:
        shown = [got for got in (source.grab() for _ in range(30)) if got is not None]
        steps = np.diff([t_s for _, t_s in shown])
        np.testing.assert_allclose(steps[steps < 0.25], 0.02, atol=1e-9)
        assert [number_of(picture) for picture, _ in shown] == [index % 25 % 20 for index in range(len(shown))]
    finally:
        source.close()


def test_a_film_waits_for_a_machine_that_was_suspended(film):
    source = video._Source(video.Config(film))
    try:
        first, _ = source.grab()
        source._begun_s -= 100.0
        second, t_s = source.grab()
        assert [number_of(first), number_of(second)] == [0, 1]
        assert abs(time.monotonic() - t_s) < 60.0
    finally:
        source.close()


@pytest.mark.parametrize("stepwise", [False, True])
def test_a_file_that_is_no_film(tmp_path, stepwise):
    (tmp_path / "notes.mp4").write_text("no film")
    for name, words in {"": "file = ''", "gone.mp4": "gone.mp4' is not there", "notes.mp4": "is no film that"}.items():
        with pytest.raises((OSError, ValueError), match=words):
            video.make(video.Config(str(tmp_path / name) if name else "", stepwise))


def test_a_crop_beyond_the_film(film):
    for stepwise in (False, True):
        with pytest.raises(ValueError, match="goes beyond a picture of 64 x 48 px"):
            video.make(video.Config(film, stepwise, crop_px=(0, 0, 65, 48)))
