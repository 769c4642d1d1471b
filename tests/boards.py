"""Pictures of a calibration board as a camera with a real lens would take them, ray by ray."""

from functools import cache

import cv2
import numpy as np

from controllers.hand_eye import Lens
from hardware.cameras._board import Board

LENS = Lens(610.0, 604.0, 325.0, 236.0, np.array([-0.18, 0.06, 0.0009, -0.0006, -0.01]))
SIZE_PX = (640, 480)
_FINE = 2  # rays a pixel, per axis
_PX_PER_SQUARE = 160


@cache
def photographer(facts) -> "Photographer":
    """The one for a board; its rays take a second to bend."""
    return Photographer(Board(facts))


class Photographer:
    """Takes pictures of one board through one lens."""

    def __init__(self, board, lens: Lens = LENS, size_px: tuple[int, int] = SIZE_PX) -> None:
        pattern = np.pad(board.draw(_PX_PER_SQUARE), _PX_PER_SQUARE // 2, constant_values=255)
        self._pattern = cv2.GaussianBlur(pattern, (0, 0), 2.0)
        self._px_per_m = _PX_PER_SQUARE / board.facts.square_m
        width, height = size_px
        self._shape = height, width
        offsets = (np.arange(_FINE) + 0.5) / _FINE - 0.5
        u, v = ((np.arange(n)[:, None] + offsets).ravel() for n in (width, height))
        pixels = np.stack(np.meshgrid(u, v), -1).reshape(-1, 2)
        self._rays = np.column_stack(
            [(pixels - (lens.cx_px, lens.cy_px)) / (lens.fx_px, lens.fy_px), np.ones(len(pixels))]
        )
        for _ in range(8):  # a fixed point: rays that the lens bends to the pixels
            self._rays[:, :2] += (pixels - lens.project(self._rays)) / (lens.fx_px, lens.fy_px)

    def take(self, board_in_camera: np.ndarray, rng: np.random.Generator, noise: float = 2.0) -> np.ndarray:
        """uint8 (H, W, 3) RGB; ``noise``: standard deviation of a pixel, of 255."""
        turn, at = board_in_camera[:3, :3], board_in_camera[:3, 3]
        reach = (at @ turn[:, 2]) / (self._rays @ turn[:, 2])
        on_board = (self._rays * reach[:, None] - at) @ turn
        # The middle of the pattern's first pixel is half a pixel inside the board's first corner.
        where = on_board[:, :2] * self._px_per_m - 0.5 + _PX_PER_SQUARE // 2
        height, width = self._shape
        fine = where.reshape(height * _FINE, width * _FINE, 2).astype(np.float32)
        seen = cv2.remap(self._pattern, fine[..., 0], fine[..., 1], cv2.INTER_LINEAR, borderValue=120)
        seen = seen.reshape(height, _FINE, width, _FINE).astype(np.float64).mean(axis=(1, 3))
        seen[reach.reshape(seen.shape[0], _FINE, seen.shape[1], _FINE).min(axis=(1, 3)) <= 0.0] = 120.0
        seen = 0.8 * seen + 20.0 + rng.normal(0.0, noise, seen.shape)
        return np.repeat(np.clip(np.round(seen), 0, 255).astype(np.uint8)[..., None], 3, axis=2)
