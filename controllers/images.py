"""Pictures as messages: raw, compressed, and what the lens does. Pictures are uint8 (H, W, 3) RGB."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from controllers.messages import to_stamp

_FORWARD, _BACKWARD = slice(0, 3), slice(2, None, -1)
ENCODINGS = {
    "rgb8": (3, _FORWARD),
    "bgr8": (3, _BACKWARD),
    "mono8": (1, _FORWARD),
    "rgba8": (4, _FORWARD),
    "bgra8": (4, _BACKWARD),
}
"""Encoding -> number of channels, and where among them red, green and blue are. Alpha is left out."""
JPEG_QUALITY = 95


def require_opencv() -> Any:
    """The module cv2; raises ImportError that says how to get it."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError(f"OpenCV is not here ({error}): pip install 'robot-rl[vision]'") from error
    return cv2


def to_image(picture: np.ndarray, frame: str, stamp_ns: int) -> Image:
    """``picture``: uint8 (H, W, 3) RGB."""
    height, width, _ = picture.shape
    message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
    message.header.frame_id, message.header.stamp = frame, to_stamp(stamp_ns)
    message.data.frombytes(np.ascontiguousarray(picture).tobytes())
    return message


def from_image(message: Image) -> np.ndarray:
    """A picture of its own memory. Rows may be padded; bytes have no order, so ``is_bigendian`` says nothing here.

    Raises ValueError for an encoding that is not in ENCODINGS, or data that do not fit their size.
    """
    if message.encoding not in ENCODINGS:
        raise ValueError(f"the encoding is '{message.encoding}': {', '.join(ENCODINGS)} can be read")
    height, width, step = message.height, message.width, message.step
    channels, colours = ENCODINGS[message.encoding]
    row = width * channels
    if not (height and width and step >= row and len(message.data) == height * step):
        raise ValueError(
            f"{len(message.data)} bytes are no {width} x {height} px of {message.encoding} in rows of {step} bytes"
        )
    rows = np.frombuffer(message.data, np.uint8).reshape(height, step)[:, :row]
    picture = rows.reshape(height, width, channels)[:, :, colours]
    return np.repeat(picture, 3, axis=2) if channels == 1 else picture.copy()


def to_compressed(picture: np.ndarray, frame: str, stamp_ns: int, quality: int = JPEG_QUALITY) -> CompressedImage:
    """A JPEG, as image_transport would send it."""
    cv2 = require_opencv()
    message = CompressedImage(format="rgb8; jpeg compressed bgr8")
    message.header.frame_id, message.header.stamp = frame, to_stamp(stamp_ns)
    _, code = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    message.data.frombytes(code.tobytes())
    return message


def from_compressed(message: CompressedImage) -> np.ndarray:
    """A picture from JPEG, PNG or whatever else OpenCV reads. Raises ValueError where that is none."""
    cv2 = require_opencv()
    code = np.frombuffer(message.data, np.uint8)
    try:
        picture = cv2.imdecode(code, cv2.IMREAD_COLOR) if code.size else None
    except cv2.error as error:
        raise ValueError(f"OpenCV cannot read {code.size} bytes of format '{message.format}' ({error.err})") from error
    if picture is None:
        raise ValueError(f"{code.size} bytes of format '{message.format}' are no picture that OpenCV reads")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def to_camera_info(width: int, height: int, fovy_rad: float, frame: str, stamp_ns: int) -> CameraInfo:
    """A pinhole without distortion, of square pixels, whose vertical field of view is ``fovy_rad``.

    The middle of the first pixel is (0, 0), so that the optical axis is at half of width - 1 and height - 1.
    """
    focal_px = height / 2 / math.tan(fovy_rad / 2)
    x_px, y_px = (width - 1) / 2, (height - 1) / 2
    message = CameraInfo(width=width, height=height, distortion_model="plumb_bob", d=[0.0] * 5)
    message.header.frame_id, message.header.stamp = frame, to_stamp(stamp_ns)
    message.k = [focal_px, 0.0, x_px, 0.0, focal_px, y_px, 0.0, 0.0, 1.0]
    message.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    message.p = [focal_px, 0.0, x_px, 0.0, 0.0, focal_px, y_px, 0.0, 0.0, 0.0, 1.0, 0.0]
    return message
