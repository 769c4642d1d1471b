"""Pictures in and out of films and PNGs: RGB, uint8 (H, W, 3)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np

from robot_rl.lerobot.layout import PIXELS, need

ENCODERS = {"av1": ("libsvtav1", {"g": "2", "crf": "30", "preset": "12"}), "h264": ("libx264", {"g": "2", "crf": "30"})}
"""Codec -> encoder and options, LeRobot's: every second picture can be decoded by itself."""


def rate_of(fps: float) -> Fraction:
    """Pictures per second as a fraction that films can hold."""
    return Fraction(fps).limit_denominator(10_000)


def video_info(codec: str, fps: float) -> dict[str, Any]:
    """What meta/info.json says of each film of ours."""
    about = {"codec": codec, "pix_fmt": PIXELS, "is_depth_map": False, "fps": fps, "channels": 3}
    return {f"video.{name}": value for name, value in about.items()} | {"has_audio": False}


class Film:
    """An mp4 that is being written. ``frames`` counts what was put in, some of which may still be encoding."""

    def __init__(self, path: Path, height: int, width: int, fps: float, codec: str) -> None:
        """Raises ValueError where the codec cannot have pictures of this size."""
        if codec == "h264" and (height % 2 or width % 2):
            raise ValueError(f"h264 has no pictures of {height} x {width}, an odd size: --codec av1, or --images png")
        av = need("av")
        os.environ.setdefault("SVT_LOG", "1")  # errors only: the encoder writes to stderr by itself
        encoder, options = ENCODERS[codec]
        if encoder not in av.codecs_available:
            raise LookupError(f"this PyAV has no {encoder}, which writes {codec}: give --codec h264, or --images png")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.frames = self._packets = self._bytes = 0
        self._av, self._rate = av, rate_of(fps)
        self._file = av.open(str(path), "w", options={"movflags": "faststart"})
        self._stream = self._file.add_stream(encoder, rate=self._rate, options=options)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, PIXELS

    def append(self, images: np.ndarray) -> None:
        """Add pictures (T, H, W, 3)."""
        for image in images:
            frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = self.frames, 1 / self._rate
            self.frames += 1
            self._mux(self._stream.encode(frame))

    def expected_bytes(self, coming: int) -> float:
        """The size with ``coming`` pictures more, as far as pictures so far tell."""
        return self._bytes / max(self._packets, 1) * (self.frames + coming)

    def close(self) -> None:
        """Encode the rest and finish the file. May be called twice."""
        if self._file is not None:
            self._mux(self._stream.encode())
            self.abort()

    def abort(self) -> None:
        """Leave the file as it is."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            self._packets, self._bytes = self._packets + 1, self._bytes + packet.size
            self._file.mux(packet)


class FilmReader:
    """Pictures of films, forwards: what lies close behind what was read last costs no search."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: Any = None
        self._frames: Iterator[Any] = iter(())
        self._ahead: Any = None

    def read(self, path: Path, times_s: np.ndarray, height: int, width: int, tolerance_s: float) -> np.ndarray:
        """The pictures (T, H, W, 3) of a film at ascending ``times_s`` (T,), resized where they are of another size.

        Raises ValueError that names the film and the time where there is none within ``tolerance_s``.
        """
        if not path.is_file():
            raise ValueError(f"{path} is missing: fetch the dataset with its films")
        if path != self._path or self._ahead is None or self._time_s(self._ahead) > times_s[0] + tolerance_s:
            self._open(path, float(times_s[0]))
        images = np.empty((len(times_s), height, width, 3), np.uint8)
        for index, time_s in enumerate(times_s):
            while self._ahead is not None and self._time_s(self._ahead) < time_s - tolerance_s:
                self._advance()
            if self._ahead is None or self._time_s(self._ahead) > time_s + tolerance_s:
                raise ValueError(f"{path} has no picture at {time_s:.3f} s: it is damaged; fetch it anew")
            images[index] = self._ahead.reformat(width=width, height=height, format="rgb24").to_ndarray()
        return images

    def close(self) -> None:
        """May be called twice."""
        if self._file is not None:
            self._file.close()
        self._path = self._file = self._ahead = None

    def _open(self, path: Path, time_s: float) -> None:
        self.close()
        av = need("av")
        try:
            self._file = av.open(str(path))
            stream = self._file.streams.video[0]
            if time_s > 0.0:
                self._file.seek(int(time_s / stream.time_base), stream=stream)  # to a key picture at or before it
            self._frames = self._file.decode(stream)
        except (av.error.FFmpegError, IndexError) as error:
            raise ValueError(f"{path} is damaged ({error}): fetch it anew") from error
        self._path = path
        self._advance()

    def _advance(self) -> None:
        try:
            self._ahead = next(self._frames, None)
        except need("av").error.FFmpegError as error:
            raise ValueError(f"{self._path} is damaged ({error}): fetch it anew") from error

    @staticmethod
    def _time_s(frame: Any) -> float:
        return float(frame.pts * frame.time_base)


def to_png(image: np.ndarray) -> bytes:
    """Lossless."""
    return bytes(iio.imwrite("<bytes>", image, extension=".png", compress_level=3))


def from_png(content: bytes) -> np.ndarray:
    """A picture in any common format as uint8 (H, W, 3)."""
    return np.asarray(iio.imread(content, mode="RGB"))


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """``image`` in another size."""
    if image.shape[:2] == (height, width):
        return image
    frame = need("av").VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
