"""A film as a camera: in real time, or, for tests, picture by picture.

``t_s`` is when a picture was shown, on the clock of time.monotonic; picture by picture, it is the film's own time.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hardware.cameras._newest import Camera
from hardware.cameras._picture import LensConfig, fit, fit_lens
from robot_rl.config import number

_NAP_S = 0.05
_SLIP_S = 0.25  # later than this, a film does not catch up


@dataclass(frozen=True)
class Config(LensConfig):
    file: str = ""  # .mp4, .gif, or whatever else ffmpeg reads
    stepwise: bool = False  # each reading gives the next picture, whatever the time
    loop: bool = True  # begin again at the end
    rate_hz: float | None = number(None, 1.0, 1000.0, "pictures a second; none: the file's")


def make(config: Config) -> Camera | Stepwise:
    """Raises OSError for a file that is not there, or is no film; ValueError for a crop that goes beyond it."""
    if not config.file:
        raise ValueError("file = '': give a film, such as file=demo.mp4")
    if not Path(config.file).is_file():
        raise FileNotFoundError(f"file = '{config.file}' is not there: give a film, such as file=demo.mp4")
    if config.stepwise:
        return Stepwise(config)
    return Camera(f"film {config.file}", config, lambda: _Source(config), "set loop=true to begin again at its end")


class Stepwise:
    """A Sensor in whose world time goes on with every reading."""

    age_s = 0.0

    def __init__(self, config: Config) -> None:
        self.config = config
        self._film = _Film(config)
        try:
            self.intrinsics = fit_lens(config.lens, self._film.size_px, config)
        except BaseException:
            self._film.close()
            raise

    def read(self) -> tuple[np.ndarray, float]:
        """The next picture, uint8 (H, W, 3) RGB, and when the film shows it, in s from its beginning. Raises
        TimeoutError at its end."""
        index = self._film.index
        try:
            picture = self._film.next()
        except EOFError as error:
            raise TimeoutError(f"film {self.config.file}: {error}; set loop=true to begin again at its end") from None
        return np.array(fit(picture, self.config)), index / self._film.rate_hz

    def close(self) -> None:
        """May be called twice."""
        self._film.close()


class _Film:
    """The pictures of a file, one after the other, from a process of ffmpeg."""

    def __init__(self, config: Config) -> None:
        import imageio.v2 as imageio

        repeat = ["-stream_loop", "-1"] if config.loop else []
        try:
            with warnings.catch_warnings():
                # JAX warns of any fork; the one that starts ffmpeg runs another program at once, and is safe.
                warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
                opened: Any = imageio.get_reader(config.file, "FFMPEG", input_params=repeat)
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise OSError(f"file = '{config.file}' is no film that ffmpeg reads ({line})") from error
        self._reader = opened
        about = opened.get_meta_data()
        self.size_px: tuple[int, int] = tuple(about["size"])
        self.rate_hz = config.rate_hz or float(about["fps"])
        self.index = 0

    def next(self) -> np.ndarray:
        """Raises EOFError at the end."""
        try:
            picture = np.asarray(self._reader.get_next_data())
        except (IndexError, StopIteration, RuntimeError):
            raise EOFError(f"it ended after {self.index} pictures") from None
        self.index += 1
        return picture

    def close(self) -> None:
        self._reader.close()


class _Source:
    """A film at its own pace; where the machine is too slow for it, or was suspended, it waits."""

    def __init__(self, config: Config) -> None:
        self._film = _Film(config)
        self.size_px, self.lens = self._film.size_px, config.lens
        self._begun_s = time.monotonic()

    def grab(self) -> tuple[np.ndarray, float] | None:
        due_s = self._begun_s + self._film.index / self._film.rate_hz
        left_s = due_s - time.monotonic()
        if left_s > 0.0:
            time.sleep(min(left_s, _NAP_S))
        if left_s > _NAP_S:
            return None
        if left_s < -_SLIP_S:
            self._begun_s, due_s = self._begun_s - left_s, due_s - left_s
        return self._film.next(), due_s

    def close(self) -> None:
        self._film.close()
