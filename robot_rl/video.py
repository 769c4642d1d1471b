"""A film of a policy at work, drawn without a display."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_rl.episode import episode_seed, success_of
from robot_rl.files import disk_errors, sync_file, sync_folder

if TYPE_CHECKING:
    import gymnasium as gym

SUFFIXES = (".mp4", ".gif")
_HOLD_S = 0.7  # the last frame of an episode, in a frame of its outcome's colour
_GREEN, _RED = (46, 160, 67), (207, 34, 46)


def film(
    env: gym.Env, make_policy: Callable[[], Callable[[Any], np.ndarray]], episodes: int, seed: int, out: Path
) -> list[bool | None]:
    """Play ``episodes`` evaluation episodes of an ``env`` that renders, and write them to ``out`` in real time.

    A green frame is a success, a red one a failure. Returns the successes (None: the environment does not tell).
    Raises ValueError for a file that is neither .mp4 nor .gif, or an environment that does not draw.
    """
    import imageio.v2 as imageio

    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{out}: give a file that ends in {' or '.join(SUFFIXES)}")
    fps = float(env.metadata.get("render_fps") or 30.0)
    temporary = out.with_name(f".{out.stem}.tmp{out.suffix}")
    options: dict[str, Any] = {"fps": fps, "codec": "libx264", "macro_block_size": 2, "quality": 8}
    if out.suffix.lower() == ".gif":
        options = {"duration": 1000.0 / fps, "loop": 0}
    try:
        with disk_errors(out), warnings.catch_warnings():
            # JAX warns of any fork; the one that starts ffmpeg runs another program at once, and is safe.
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
            with imageio.get_writer(temporary, **options) as opened:
                writer: Any = opened
                outcomes = [
                    _film_episode(env, make_policy(), episode_seed(seed, "eval", index), fps, writer.append_data)
                    for index in range(episodes)
                ]
            sync_file(temporary)
            os.replace(temporary, out)
            sync_folder(out.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return outcomes


def _film_episode(
    env: gym.Env, act: Callable[[Any], np.ndarray], seed: int, fps: float, show: Callable[[np.ndarray], None]
) -> bool | None:
    obs, _ = env.reset(seed=seed)
    frame = _frame(env)
    show(frame)
    success: bool | None = None
    terminated = truncated = False
    while not (terminated or truncated):
        obs, _, terminated, truncated, info = env.step(act(obs))
        success = success_of(info)
        frame = _frame(env)
        show(frame)
    if success is not None:
        frame = border(frame, _GREEN if success else _RED)
    for _ in range(max(1, round(_HOLD_S * fps))):
        show(frame)
    return success


def border(frame: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """A copy of ``frame`` (H, W, 3) with a border of ``color``."""
    width = max(2, min(frame.shape[:2]) // 60)
    framed = frame.copy()
    for edge in (framed[:width], framed[-width:], framed[:, :width], framed[:, -width:]):
        edge[:] = color
    return framed


def _frame(env: gym.Env) -> np.ndarray:
    frame = env.render()
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3:
        raise ValueError(f"{env.unwrapped} draws no pictures (render_mode 'rgb_array'): no film can be made of it")
    return frame
