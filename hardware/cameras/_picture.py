"""What happens to a picture after it was taken: crop, then resize; and to the camera's intrinsics with it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.config import check, number

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """What every camera lets choose."""

    crop_px: tuple[int, int, int, int] | None = None  # left, top, width, height of what is kept; none: all
    width_px: int | None = number(None, 1, 8192, "px to resize to; none: as it comes")
    height_px: int | None = number(None, 1, 8192, "px to resize to; none: as it comes")
    stale_s: float = number(0.5, 0.01, 3600.0, "s without a picture, after which reading is refused")
    wait_s: float = number(5.0, 0.0, 3600.0, "s that the first reading waits for a picture")

    def __post_init__(self) -> None:
        check(self)
        if (self.width_px is None) != (self.height_px is None):
            raise ValueError(
                f"width_px = {self.width_px}, height_px = {self.height_px}: give both, or neither to leave the size"
            )
        if self.crop_px is not None and (min(self.crop_px[:2]) < 0 or min(self.crop_px[2:]) < 1):
            raise ValueError(f"crop_px = {self.crop_px}: give left, top >= 0 and width, height >= 1")


@dataclass(frozen=True, kw_only=True)
class LensConfig(PictureConfig):
    """Of a camera that does not know its own lens: as calibrated, for the whole picture before crop and resize."""

    lens_px: tuple[float, float, float, float] | None = None  # fx, fy, cx, cy; none: not known
    distortion: tuple[float, ...] = ()  # OpenCV's k1, k2, p1, p2 and k3; none: a straight lens

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lens_px is not None and not (all(map(math.isfinite, self.lens_px)) and min(self.lens_px[:2]) > 0.0):
            raise ValueError(f"lens_px = {self.lens_px}: give fx, fy > 0 and cx, cy in px")
        if len(self.distortion) not in (0, 4, 5) or not all(map(math.isfinite, self.distortion)):
            raise ValueError(f"distortion = {self.distortion}: give k1, k2, p1, p2 or k1, k2, p1, p2, k3")
        if self.distortion and self.lens_px is None:
            raise ValueError(f"distortion = {self.distortion} says nothing without lens_px: give fx, fy, cx, cy there")

    @property
    def lens(self) -> Intrinsics | None:
        return None if self.lens_px is None else Intrinsics(*self.lens_px, self.distortion)


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole with Brown's distortion, as OpenCV has it. The middle of the first pixel is (0, 0)."""

    fx_px: float
    fy_px: float
    cx_px: float
    cy_px: float
    distortion: tuple[float, ...] = ()  # k1, k2, p1, p2, k3; what is left out is 0

    @property
    def matrix(self) -> Array:
        """(3, 3), OpenCV's camera matrix."""
        return np.array([[self.fx_px, 0.0, self.cx_px], [0.0, self.fy_px, self.cy_px], [0.0, 0.0, 1.0]])

    def cropped(self, crop_px: tuple[int, int, int, int]) -> Intrinsics:
        """Of what ``crop_px`` (left, top, width, height) keeps."""
        return replace(self, cx_px=self.cx_px - crop_px[0], cy_px=self.cy_px - crop_px[1])

    def resized(self, from_px: tuple[int, int], to_px: tuple[int, int]) -> Intrinsics:
        """Of a picture of ``from_px`` (width, height) resized to ``to_px``. Edges fall on edges, half a pixel before
        the middle of the first pixel, as in cv2.resize."""
        x, y = to_px[0] / from_px[0], to_px[1] / from_px[1]
        cx_px, cy_px = (self.cx_px + 0.5) * x - 0.5, (self.cy_px + 0.5) * y - 0.5
        return replace(self, fx_px=self.fx_px * x, fy_px=self.fy_px * y, cx_px=cx_px, cy_px=cy_px)

    def project(self, points_m: Array) -> Array:
        """Where points (N, 3) in front of the camera are seen: (N, 2) px, x then y. Points in the camera's optical
        frame: x right, y down, z forward. The formula is that of cv2.projectPoints."""
        rays = points_m[:, :2] / points_m[:, 2:]
        distortion = np.zeros(5)
        distortion[: len(self.distortion)] = self.distortion
        bent = rays + np.tensordot(distortion_terms(rays), distortion, axes=(0, 0))
        return bent * (self.fx_px, self.fy_px) + (self.cx_px, self.cy_px)


def distortion_terms(rays: Array) -> Array:
    """(5, N, 2): by how much one of each of k1, k2, p1, p2, k3 moves the straight ``rays`` (N, 2)."""
    x, y = rays.T
    r2 = x * x + y * y
    p1 = np.stack([2 * x * y, r2 + 2 * y * y], -1)
    p2 = np.stack([r2 + 2 * x * x, 2 * x * y], -1)
    return np.stack([rays * r2[:, None], rays * (r2**2)[:, None], p1, p2, rays * (r2**3)[:, None]])


def require_opencv() -> Any:
    """The module cv2; raises ImportError that says how to get it."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError(f"OpenCV is not here ({error}): pip install 'robot-rl[vision]'") from error
    return cv2


def fit(picture: np.ndarray, config: PictureConfig) -> np.ndarray:
    """``picture`` (H, W, 3) cropped and resized; perhaps a view. Raises ValueError where the crop goes beyond it."""
    if config.crop_px is not None:
        require_inside(config.crop_px, picture.shape[1], picture.shape[0])
        left, top, width, height = config.crop_px
        picture = picture[top : top + height, left : left + width]
    if config.width_px is not None and picture.shape[:2] != (config.height_px, config.width_px):
        cv2 = require_opencv()
        picture = cv2.resize(picture, (config.width_px, config.height_px), interpolation=cv2.INTER_AREA)
    return picture


def fit_lens(lens: Intrinsics | None, size_px: tuple[int, int], config: PictureConfig) -> Intrinsics | None:
    """The intrinsics of what ``fit`` makes of a picture of ``size_px`` (width, height). Raises ValueError as it does,
    and ImportError where resizing needs OpenCV and there is none."""
    if config.crop_px is not None:
        require_inside(config.crop_px, *size_px)
        size_px, lens = config.crop_px[2:], lens and lens.cropped(config.crop_px)
    if config.width_px is not None and config.height_px is not None:
        require_opencv()
        lens = lens and lens.resized(size_px, (config.width_px, config.height_px))
    return lens


def require_inside(crop_px: tuple[int, int, int, int], width_px: int, height_px: int) -> None:
    left, top, width, height = crop_px
    if left + width > width_px or top + height > height_px:
        raise ValueError(f"crop_px = {crop_px} goes beyond a picture of {width_px} x {height_px} px")
