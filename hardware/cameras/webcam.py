"""A camera that OpenCV opens: a webcam by index or path, or a stream by its address.

``t_s`` is the driver's stamp of the picture (Video4Linux: the beginning of its transfer, on the clock of
time.monotonic); of a stream, the time of arrival (``camera.stamps``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hardware.cameras._newest import Camera
from hardware.cameras._picture import LensConfig, require_opencv
from robot_rl.config import number

_MANUAL = 1  # V4L2_EXPOSURE_MANUAL of videodev2.h
_EXPOSURE_UNIT_US = 100.0  # V4L2_CID_EXPOSURE_ABSOLUTE
_OPEN_MS, _READ_MS = 5000, 2000  # after which a stream that hangs is lost
_REMEDY = "check its cable or address, and that no other program has it"


@dataclass(frozen=True)
class Config(LensConfig):
    device: int | str = 0  # number of /dev/video*, a path (/dev/v4l/by-id/... stays the same), or an address
    capture_px: tuple[int, int] | None = number((640, 480), 1, 8192, "width, height asked for; none: as it comes")
    rate_hz: float | None = number(None, 1.0, 1000.0, "pictures a second; none: as it comes")
    pixel_format: str = ""  # four letters, such as MJPG, which a USB 2 camera needs for large pictures
    exposure_us: int | None = number(None, 100, 10_000_000, "fixed exposure; none: as the camera has it")
    gain: float | None = number(None, 0.0, 1e6, "in the camera's own unit; none: as it is")
    warmup_frames: int = number(5, 0, 1000, "pictures left out after opening, until exposure has settled")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.device == "" or (isinstance(self.device, int) and self.device < 0):
            raise ValueError(f"device = {self.device!r}: give a number from 0, a path or an address")
        if len(self.pixel_format) not in (0, 4):
            raise ValueError(f"pixel_format = '{self.pixel_format}': give four letters, such as MJPG or YUYV")


def make(config: Config) -> Camera:
    """Raises ImportError without OpenCV, OSError that lists the devices where this one cannot be opened, ValueError for
    what it does not take."""
    cv2 = require_opencv()
    return Camera(_name(config), config, lambda: _Source(cv2, config), _REMEDY, config.warmup_frames)


def _name(config: Config) -> str:
    path = f"/dev/video{config.device}" if isinstance(config.device, int) else config.device
    return f"webcam {path}"


class _Source:
    """One VideoCapture."""

    def __init__(self, cv2: Any, config: Config, devices: Path = Path("/dev")) -> None:
        self._cv2, device = cv2, config.device
        local = isinstance(device, int) or device.startswith("/dev/")
        if local:
            self._capture = cv2.VideoCapture(device, cv2.CAP_V4L2)
        else:
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_MS]
            self._capture = cv2.VideoCapture(device, cv2.CAP_FFMPEG, limits)
        try:
            if not self._capture.isOpened():
                found = ", ".join(map(str, sorted(devices.glob("video*")))) or "no /dev/video*"
                raise OSError(f"{_name(config)} cannot be opened: there are {found}; {_REMEDY}")
            self._set(config)
        except BaseException:
            self._capture.release()
            raise
        self._stamped = self._capture.getBackendName() == "V4L2"
        self.lens = config.lens

    def _set(self, config: Config) -> None:
        """Ask for what the config wants, in the order in which drivers want it; raises ValueError where the device has
        something else then."""
        cv2, get, ask = self._cv2, self._capture.get, self._capture.set
        ask(cv2.CAP_PROP_BUFFERSIZE, 1)  # a stream has no such thing, and needs none
        if config.pixel_format:
            code = cv2.VideoWriter.fourcc(*config.pixel_format)
            self._require(cv2.CAP_PROP_FOURCC, code, f"pixel_format = '{config.pixel_format}'", 0.0)
        if config.capture_px is not None:
            ask(cv2.CAP_PROP_FRAME_WIDTH, config.capture_px[0])
            ask(cv2.CAP_PROP_FRAME_HEIGHT, config.capture_px[1])
        self.size_px = int(get(cv2.CAP_PROP_FRAME_WIDTH)), int(get(cv2.CAP_PROP_FRAME_HEIGHT))
        if config.capture_px not in (None, self.size_px):
            width, height = self.size_px
            raise ValueError(
                f"capture_px = {config.capture_px}: {_name(config)} gives {width} x {height} px; give that, or none"
            )
        if config.rate_hz is not None:
            self._require(cv2.CAP_PROP_FPS, config.rate_hz, f"rate_hz = {config.rate_hz}", 0.5)
        if config.exposure_us is not None:
            text = f"exposure_us = {config.exposure_us}"
            self._require(cv2.CAP_PROP_AUTO_EXPOSURE, _MANUAL, text, 0.0)
            self._require(cv2.CAP_PROP_EXPOSURE, config.exposure_us / _EXPOSURE_UNIT_US, text, 1.0)
        if config.gain is not None:
            self._require(cv2.CAP_PROP_GAIN, config.gain, f"gain = {config.gain}", 0.5)

    def _require(self, prop: int, value: float, text: str, within: float) -> None:
        accepted = self._capture.set(prop, value)
        has = self._capture.get(prop)
        if not accepted or abs(has - value) > within:
            raise ValueError(f"{text}: the device does not take it (asked for {value:g}, it has {has:g}); leave it out")

    def grab(self) -> tuple[np.ndarray, float | None]:
        cv2 = self._cv2
        try:
            there, picture = self._capture.read()
        except cv2.error as error:
            raise OSError(f"OpenCV cannot read it ({error.err})") from error
        if not there:
            raise OSError("it sends no more pictures")
        stamp_s = 1e-3 * self._capture.get(cv2.CAP_PROP_POS_MSEC) if self._stamped else 0.0
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), stamp_s or None

    def close(self) -> None:
        self._capture.release()
