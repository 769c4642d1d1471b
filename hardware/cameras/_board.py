"""A calibration board in pictures: found, drawn, and what a camera's lens does, by OpenCV.

The board's frame is OpenCV's: origin at its first corner, x along the columns, y along the rows, z into the board. A
board is described by any object with the fields ``kind, squares, square_m, marker_m, dictionary, legacy``
(``[board]`` of a rig).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controllers.hand_eye import Lens, View, to_matrix
from hardware.cameras._picture import require_opencv
from robot_rl.find import nearest
from robot_rl.geometry import rotvec_to_quat
from robot_rl.types import Pose

Array = NDArray[np.float64]

LEAST_CORNERS = 8
LEAST_VIEWS_LENS = 6  # for a lens with distortion
_WORST_PX = 3.0  # rms of one picture's corners about the pose that fits them best


@dataclass(frozen=True)
class Corners:
    """What of a board was found in one picture."""

    corners_m: Array  # (P, 3) in the board's frame
    pixels: Array  # (P, 2)


class Board:
    """Finds one board. Raises LookupError for an unknown dictionary, ImportError without OpenCV."""

    def __init__(self, facts: Any) -> None:
        self._cv2, self.facts = require_opencv(), facts
        self._charuco: Any = None
        if facts.kind == "charuco":
            aruco = self._cv2.aruco
            known = {
                name.removeprefix("DICT_"): getattr(aruco, name) for name in dir(aruco) if name.startswith("DICT_")
            }
            if facts.dictionary not in known:
                raise LookupError(nearest("dictionary", facts.dictionary, known))
            words = aruco.getPredefinedDictionary(known[facts.dictionary])
            self._charuco = aruco.CharucoBoard(facts.squares, facts.square_m, facts.marker_m, words)
            self._charuco.setLegacyPattern(facts.legacy)
            self._detector = aruco.CharucoDetector(self._charuco)

    def find(self, picture: np.ndarray) -> Corners:
        """The corners in ``picture``, uint8 (H, W, 3) RGB; raises ValueError, saying why, where there are too few."""
        gray = self._cv2.cvtColor(np.ascontiguousarray(picture), self._cv2.COLOR_RGB2GRAY)
        found = self._find_chessboard(gray) if self._charuco is None else self._find_charuco(gray)
        if np.linalg.svd(found.pixels - found.pixels.mean(axis=0), compute_uv=False)[1] < 10.0:
            raise ValueError("the corners that were found are almost on one line")
        return found

    def _find_charuco(self, gray: np.ndarray) -> Corners:
        pixels, numbers, _, markers = self._detector.detectBoard(gray)
        count = 0 if numbers is None else len(numbers)
        if count < LEAST_CORNERS:
            seen = 0 if markers is None else len(markers)
            raise ValueError(f"{count} of its corners found ({seen} markers), {LEAST_CORNERS} are needed")
        all_m = np.asarray(self._charuco.getChessboardCorners(), np.float64)
        return Corners(all_m[np.ravel(numbers)], np.asarray(pixels, np.float64).reshape(-1, 2))

    def _find_chessboard(self, gray: np.ndarray) -> Corners:
        columns, rows = (count - 1 for count in self.facts.squares)
        found, pixels = self._cv2.findChessboardCornersSB(gray, (columns, rows))
        if not found:
            raise ValueError(f"no chessboard of {columns} x {rows} inner corners found; all of it has to be seen")
        grid = np.asarray(pixels, np.float64).reshape(rows, columns, 2)
        if not self._first_is_dark(gray, grid):
            grid = grid[::-1, ::-1]
        at = np.stack(np.meshgrid(np.arange(1, columns + 1), np.arange(1, rows + 1)), -1).reshape(-1, 2)
        return Corners(np.column_stack([at * self.facts.square_m, np.zeros(len(at))]), grid.reshape(-1, 2).copy())

    @staticmethod
    def _first_is_dark(gray: np.ndarray, grid: Array) -> bool:
        """Whether the square between the first four inner corners is darker than the one beside it: its diagonal begins
        at the board's first square, which is black, so a board that was found upside down is told by it."""
        inner = grid[:2, :2].mean(axis=(0, 1))
        beside = grid[:2, 1:3].mean(axis=(0, 1))

        def light(at: Array) -> float:
            x, y = np.round(at).astype(int)
            return float(gray[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].mean())

        return light(inner) < light(beside)

    def draw(self, px_per_square: int) -> np.ndarray:
        """The board itself, uint8 (rows, columns) x ``px_per_square``: to print, or to look at in a simulation."""
        columns, rows = self.facts.squares
        if self._charuco is not None:
            return np.asarray(
                self._charuco.generateImage((columns * px_per_square, rows * px_per_square), marginSize=0)
            )
        light = np.indices((rows, columns)).sum(axis=0) % 2
        return np.kron(light, np.ones((px_per_square, px_per_square))).astype(np.uint8) * 255

    def view(self, found: Corners, tcp: Pose, lens: Lens) -> View:
        """The board's pose from one picture; raises ValueError where none fits its corners."""
        matrix, distortion = _opencv_lens(lens)
        ok, turn, shift = self._cv2.solvePnP(found.corners_m, found.pixels, matrix, distortion)
        pose = to_matrix(Pose(np.ravel(shift), rotvec_to_quat(np.ravel(turn).astype(np.float64))))
        view = View(to_matrix(tcp), pose, found.corners_m, found.pixels)
        there = found.corners_m @ pose[:3, :3].T + pose[:3, 3]
        off_px = float(np.sqrt(np.mean((lens.project(there) - found.pixels) ** 2))) if ok else np.inf
        if not off_px < _WORST_PX or pose[2, 3] <= 0.0:
            raise ValueError(
                f"no pose of the board fits its corners (rms {off_px:.1f} px): is it flat, and the right one?"
            )
        return view

    def find_lens(self, found: list[Corners], size_px: tuple[int, int]) -> tuple[Lens, float]:
        """The lens of pictures of ``size_px`` (width, height), and the rms of their corners, px. Raises ValueError for
        too few pictures."""
        if len(found) < LEAST_VIEWS_LENS:
            raise ValueError(f"{len(found)} pictures with the board: {LEAST_VIEWS_LENS} are needed to find the lens")
        corners = [one.corners_m.astype(np.float32) for one in found]
        pixels = [one.pixels.astype(np.float32) for one in found]
        flags = self._cv2.CALIB_FIX_K3  # a board that does not fill the corners of the pictures says nothing about it
        error_px, matrix, distortion, _, _ = self._cv2.calibrateCamera(
            corners, pixels, size_px, None, None, flags=flags
        )
        five = np.zeros(5)
        five[: min(5, np.size(distortion))] = np.ravel(distortion)[:5]
        lens = Lens(matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2], five)
        return lens, float(error_px) / np.sqrt(2.0)  # OpenCV counts a corner once, we each of its two numbers


def _opencv_lens(lens: Lens) -> tuple[Array, Array]:
    matrix = np.array([[lens.fx_px, 0.0, lens.cx_px], [0.0, lens.fy_px, lens.cy_px], [0.0, 0.0, 1.0]])
    return matrix, lens.distortion


def read_picture(path: Path) -> np.ndarray:
    """uint8 (H, W, 3) RGB; raises ValueError for what is no picture."""
    cv2 = require_opencv()
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(f"{path}: no picture that OpenCV can read")
    return np.ascontiguousarray(picture[..., ::-1])


def write_picture(path: Path, picture: np.ndarray) -> None:
    """``picture``: uint8 (H, W, 3) RGB or (H, W). Raises OSError where it cannot be written."""
    cv2 = require_opencv()
    if not cv2.imwrite(str(path), picture[..., ::-1] if picture.ndim == 3 else picture):
        raise OSError(f"{path} cannot be written: is its folder there, and may it be written to?")
