"""A RealSense camera's colour stream, by serial number, through librealsense.

``t_s`` is the middle of the exposure: librealsense puts the start of readout on the host's wall clock (its global time
domain), the camera's own metadata say how much earlier the exposure was, and the difference of the two host clocks
takes it to time.monotonic. Where firmware or kernel give no global time, it is the time of arrival
(``camera.stamps``).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hardware.cameras._newest import Camera
from hardware.cameras._picture import Intrinsics, PictureConfig, distortion_terms
from robot_rl.config import number

_POLL_MS = 100
_FIT_POINTS = 15  # along each axis, where a distortion is sampled
_REMEDY = "check its cable (USB 3) and power, and that no other program has it (robot-rl doctor)"


@dataclass(frozen=True)
class Config(PictureConfig):
    serial: str = ""  # empty: the only one that is connected
    capture_px: tuple[int, int] = number((640, 480), 1, 8192, "width, height taken by the sensor")
    rate_hz: int = number(30, 1, 300, "pictures a second")
    exposure_us: int | None = number(None, 1, 10_000_000, "fixed exposure; none: the camera chooses, and changes it")
    gain: float | None = number(None, 0.0, 1e6, "in the sensor's own unit; none: as it is")
    white_balance_k: int | None = number(None, 1000, 20_000, "fixed white balance; none: the camera chooses")
    warmup_frames: int = number(15, 0, 1000, "pictures left out after opening, until exposure has settled")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gain is not None and self.exposure_us is None:
            raise ValueError(f"gain = {self.gain}: give exposure_us as well, an automatic exposure sets its own gain")


def make(config: Config, devices: Callable[[], Iterable[Any]] | None = None) -> Camera:
    """``devices``: what is connected, as pyrealsense2 devices; none: what librealsense finds on USB.

    Raises ImportError without pyrealsense2, OSError where no camera is connected, LookupError for a serial that is
    not, ValueError for what the sensor cannot do.
    """
    rs = _require()
    found = devices or rs.context().query_devices
    name = f"RealSense {config.serial}".strip()

    def open_source() -> _Source:
        try:
            return _Source(rs, config, found())
        except RuntimeError as error:
            raise OSError(f"{name} cannot be opened (librealsense: {error}): {_REMEDY}") from error

    return Camera(name, config, open_source, _REMEDY, config.warmup_frames)


def _require() -> Any:
    try:
        import pyrealsense2
    except ImportError as error:
        remedy = "pip install 'robot-rl[cameras]', and apt-get install libusb-1.0-0"
        raise ImportError(f"pyrealsense2 is not here ({error}): {remedy}") from error
    return pyrealsense2


class _Source:
    """The colour sensor of one device, streaming."""

    def __init__(self, rs: Any, config: Config, devices: Iterable[Any]) -> None:
        self._rs = rs
        self._device = _choose_device(rs, list(devices), config.serial)
        self._sensor, profile = _choose_stream(rs, self._device, config)
        _set_options(rs, self._sensor, config)
        self.size_px = config.capture_px
        self.lens: Intrinsics | None = _lens(rs, profile.get_intrinsics())
        self._queue = rs.frame_queue(1)  # a full queue drops its oldest
        self._sensor.open(profile)
        try:
            self._sensor.start(self._queue)
        except BaseException:
            self._sensor.close()
            raise

    def grab(self) -> tuple[np.ndarray, float | None] | None:
        came, frame = self._queue.try_wait_for_frame(_POLL_MS)
        if came:
            return np.array(frame.as_video_frame().get_data()), self._exposed_s(frame)
        if not self._device.is_connected():
            raise OSError("it is no longer connected")
        return None

    def _exposed_s(self, frame: Any) -> float | None:
        """On the clock of time.monotonic; the stamp itself is the start of readout (librealsense, rs_frame.hpp)."""
        if frame.get_frame_timestamp_domain() != self._rs.timestamp_domain.global_time:
            return None
        readout_s = 1e-3 * frame.get_timestamp() - time.time() + time.monotonic()
        of = self._rs.frame_metadata_value
        if all(map(frame.supports_frame_metadata, (of.frame_timestamp, of.sensor_timestamp))):
            late_us = frame.get_frame_metadata(of.frame_timestamp) - frame.get_frame_metadata(of.sensor_timestamp)
            readout_s -= 1e-6 * max(late_us, 0)
        return readout_s

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):  # what is unplugged cannot be stopped
            self._sensor.stop()
        with contextlib.suppress(RuntimeError):
            self._sensor.close()


def _choose_device(rs: Any, devices: list[Any], serial: str) -> Any:
    number_of = rs.camera_info.serial_number
    named = {device.get_info(number_of): device for device in devices if device.supports(number_of)}
    there = ", ".join(f"{key} ({device.get_info(rs.camera_info.name)})" for key, device in sorted(named.items()))
    if serial in named:
        return named[serial]
    if not named:
        wanted = f" {serial}" if serial else ""
        raise OSError(f"RealSense{wanted} is not connected, nor is any other: {_REMEDY}")
    if serial:
        raise LookupError(f"serial = '{serial}' is not connected: there are {there}")
    if len(named) > 1:
        raise ValueError(f"serial = '': more than one RealSense is connected, give one of {there}")
    return next(iter(named.values()))


def _choose_stream(rs: Any, device: Any, config: Config) -> tuple[Any, Any]:
    """The sensor that gives RGB, and its profile: a sensor of its own, or (D405) the one that measures depth, too."""
    offered = set()
    for sensor in device.query_sensors():
        for profile in sensor.get_stream_profiles():
            if profile.stream_type() != rs.stream.color or profile.format() != rs.format.rgb8:
                continue
            video = profile.as_video_stream_profile()
            size_px = video.width(), video.height()
            if size_px == config.capture_px and video.fps() == config.rate_hz:
                return sensor, video
            offered.add((*size_px, video.fps()))
    modes = ", ".join(f"{width} x {height} at {rate}" for width, height, rate in sorted(offered)) or "no colour"
    raise ValueError(
        f"capture_px = {config.capture_px}, rate_hz = {config.rate_hz}: this RealSense has {modes} "
        "(px, Hz; fewer on a USB 2 cable)"
    )


def _set_options(rs: Any, sensor: Any, config: Config) -> None:
    """Raises ValueError, with the range, for what the sensor does not take."""
    option = rs.option
    if sensor.supports(option.global_time_enabled):
        sensor.set_option(option.global_time_enabled, 1.0)
    # An exposure is a number of us where the sensor measures depth as well, of 100 us in a colour sensor of its own.
    unit_us = 1.0 if sensor.is_depth_sensor() else 100.0
    automatic = {"exposure_us": option.enable_auto_exposure, "white_balance_k": option.enable_auto_white_balance}
    for name, target, unit in (
        ("exposure_us", option.exposure, unit_us),
        ("gain", option.gain, 1.0),
        ("white_balance_k", option.white_balance, 1.0),
    ):
        value, choose = getattr(config, name), automatic.get(name)
        if choose is not None and sensor.supports(choose):
            sensor.set_option(choose, float(value is None))
        if value is None:
            continue
        if not sensor.supports(target):
            raise ValueError(f"{name} = {value}: this RealSense has no such control; leave it at none")
        span = sensor.get_option_range(target)
        step = span.step or 1.0
        setting = span.min + step * round((value / unit - span.min) / step)
        if not span.min <= setting <= span.max:
            low, high = span.min * unit, span.max * unit
            raise ValueError(f"{name} = {value}: this RealSense takes {low:g} to {high:g}")
        sensor.set_option(target, setting)


def _lens(rs: Any, of: Any) -> Intrinsics:
    """librealsense has several models of distortion, and the meaning of some has changed between its versions. OpenCV's
    five coefficients, in which its pixels are linear, are fitted to librealsense's own rays over the whole picture."""
    if of.model == rs.distortion.none or not any(of.coeffs):
        return Intrinsics(of.fx, of.fy, of.ppx, of.ppy)
    axes = np.linspace(0.0, of.width - 1, _FIT_POINTS), np.linspace(0.0, of.height - 1, _FIT_POINTS)
    pixels = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
    rays = np.array([rs.rs2_deproject_pixel_to_point(of, [float(x), float(y)], 1.0)[:2] for x, y in pixels])
    bent = (pixels - (of.ppx, of.ppy)) / (of.fx, of.fy)
    terms = distortion_terms(rays).reshape(5, -1).T
    fitted = np.linalg.lstsq(terms, (bent - rays).ravel(), rcond=None)[0]
    return Intrinsics(of.fx, of.fy, of.ppx, of.ppy, tuple(map(float, fitted)))
