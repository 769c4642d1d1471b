"""The newest picture, with its age; and a thread that takes it from a device, and opens the device again when it is
lost. A reader never waits for a device, but for the very first picture."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from hardware.cameras._picture import Intrinsics, PictureConfig, fit, fit_lens

_OPEN_S = 5.0  # an opened device has this long for its first picture,
_SILENT_S = 2.0  # and this long for each further one
_BACKOFF_S = 0.1, 2.0  # between attempts to open it: at first, doubled up to
_CLOCK_S = 10.0  # a stamp further than this from when its picture came is of another clock
_WARN_S = 5.0
_TROUBLE = (OSError, RuntimeError, ValueError, LookupError)  # what a device may do while it runs

_log = logging.getLogger(__name__)


class Newest:
    """One thread puts pictures, any may read. ``where`` names their source, as in "on /front/image_raw"; ``why`` is
    asked for cause and remedy whenever a reading is refused."""

    def __init__(self, where: str, config: PictureConfig, why: Callable[[], str]) -> None:
        self._where, self._config, self._why = where, config, why
        self._news = threading.Condition()
        self._picture: tuple[np.ndarray, float, float] | None = None  # picture, t_s, monotonic s of its age

    def put(self, picture: np.ndarray, t_s: float, since_s: float) -> None:
        """``picture`` must not change any more; its age counts from ``since_s`` of time.monotonic."""
        with self._news:
            self._picture = picture, t_s, since_s
            self._news.notify_all()

    @property
    def age_s(self) -> float:
        """Age of the newest picture; inf before the first."""
        with self._news:
            return np.inf if self._picture is None else time.monotonic() - self._picture[2]

    def read(self) -> tuple[np.ndarray, float]:
        """A copy of the newest picture, uint8 (H, W, 3) RGB, and its ``t_s``. Waits, up to ``wait_s``, for the first
        one only. Raises TimeoutError where none comes, or the last one is older than ``stale_s``."""
        config = self._config
        with self._news:
            self._news.wait_for(lambda: self._picture is not None, config.wait_s)
            newest = self._picture
        if newest is None:
            raise TimeoutError(f"no picture {self._where} within {config.wait_s:g} s: {self._why()}")
        picture, t_s, since_s = newest
        age_s = time.monotonic() - since_s
        if age_s > config.stale_s:
            raise TimeoutError(
                f"the last picture {self._where} came {age_s:.2f} s ago, stale_s is {config.stale_s:g}: {self._why()}"
            )
        return picture.copy(), t_s


class Source(Protocol):
    """An open device. Opening, grabbing and closing happen in one thread at a time."""

    size_px: tuple[int, int]
    """width, height of what ``grab`` returns"""
    lens: Intrinsics | None

    def grab(self) -> tuple[np.ndarray, float | None] | None:
        """The next picture, (H, W, 3) RGB of its own memory, and its time of exposure on the clock of time.monotonic
        where the device knows it. None where there is no new one yet; takes a fraction of a second at most.

        Raises OSError or RuntimeError where the device is lost, EOFError where nothing more will ever come.
        """
        ...

    def close(self) -> None: ...


class Camera:
    """A Sensor around a device that is read in a thread of its own, and opened again, as often as it takes, when it is
    lost.

    ``t_s`` is the middle of the exposure, or what the device knows of it, on the clock of time.monotonic; where it
    knows nothing, the time of arrival. ``stamps`` says which. ``intrinsics`` are those of the pictures that are read,
    None where they are not known.
    """

    def __init__(
        self, name: str, config: PictureConfig, open_source: Callable[[], Source], remedy: str, warmup_frames: int = 0
    ) -> None:
        """Opens the device; raises what ``open_source`` raises, and ValueError where a crop goes beyond its picture."""
        self.config = config
        self.reconnects = 0
        self.stamps = "arrival"
        self._name, self._open, self._remedy, self._warmup = name, open_source, remedy, warmup_frames
        self._newest = Newest(f"of {name}", config, self._why)
        self._cause = ""  # why there is no device now
        self._warned = "", 0.0
        self._backoff_s = _BACKOFF_S[0]
        self._ended = threading.Event()
        source = open_source()
        try:
            self.intrinsics = fit_lens(source.lens, source.size_px, config)
        except BaseException:
            source.close()
            raise
        self._thread = threading.Thread(target=self._run, args=(source,), name=f"camera {name}", daemon=True)
        self._thread.start()

    def read(self) -> tuple[np.ndarray, float]:
        """The newest picture, uint8 (H, W, 3) RGB, the reader's own, and when it was taken. Waits, up to ``wait_s``,
        for the first one only.

        Raises TimeoutError, with cause and remedy, where none comes, or the last one is older than ``stale_s``. Once
        pictures come again, reading goes on.
        """
        return self._newest.read()

    @property
    def age_s(self) -> float:
        """Seconds since the newest picture was taken; inf before the first."""
        return self._newest.age_s

    def close(self) -> None:
        """Ends the thread, and with it the device; waits where a device hangs until its driver gives up (10 s with
        Video4Linux). May be called twice."""
        self._ended.set()
        self._thread.join()

    def _why(self) -> str:
        if self._ended.is_set():
            return "it was closed"
        return f"{self._cause or 'it is open and silent'}; {self._remedy}"

    # ------------------------------------------------------------------------------------------------------ the thread

    def _run(self, source: Source | None) -> None:
        while True:
            try:
                if source is None:
                    source = self._open()
                self._pump(source)
            except EOFError as error:
                self._cause = str(error)
                return
            except _TROUBLE as error:
                self._lose(error)
            finally:
                if source is not None:
                    source.close()
                    source = None
            if self._ended.wait(self._backoff_s):
                return
            self._backoff_s = min(2.0 * self._backoff_s, _BACKOFF_S[1])

    def _pump(self, source: Source) -> None:
        warmup, deadline_s = self._warmup, time.monotonic() + _OPEN_S
        while not self._ended.is_set():
            grabbed = source.grab()
            now_s = time.monotonic()
            if grabbed is None:
                if now_s > deadline_s:
                    raise TimeoutError("it is open, but sends no pictures")
                continue
            deadline_s = now_s + _SILENT_S
            if warmup > 0:
                warmup -= 1
                continue
            picture, t_s = grabbed
            if t_s is None or abs(now_s - t_s) > _CLOCK_S:
                self.stamps, t_s = "arrival", now_s
            else:
                self.stamps, t_s = "exposure", min(t_s, now_s)
            if self._cause:
                self._find_again()
            self._newest.put(fit(picture, self.config), t_s, t_s)

    def _lose(self, error: Exception) -> None:
        """Say it at once when the cause is news, else now and then."""
        self._cause, now_s = str(error) or type(error).__name__, time.monotonic()
        if self._cause != self._warned[0] or now_s > self._warned[1] + _WARN_S:
            self._warned = self._cause, now_s
            _log.warning("%s is lost: %s; it is opened again until it is there", self._name, self._cause)

    def _find_again(self) -> None:
        self._cause, self._warned, self._backoff_s = "", ("", 0.0), _BACKOFF_S[0]
        self.reconnects += 1
        _log.warning("%s is back, for the %d. time", self._name, self.reconnects)
