"""What a classifier has to show for itself: a reliability diagram, and sheets of the frames it is most wrong about."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from robot_rl.files import write_atomic
from robot_rl.plot import COLORS, STYLE
from robot_rl.reward import numbers

MOST = 24  # frames on a sheet
FEW = 5  # frames in a bin whose share says little


def draw_reliability(probability: np.ndarray, label: np.ndarray, threshold: float, out: Path) -> None:
    """How often frames of each probability really are a success, and how many there are: a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    mean, share, count = numbers.reliability(probability, label).T
    centre = (np.arange(len(count)) + 0.5) / len(count)
    filled = count > 0
    with pyplot.style.context(STYLE):
        figure, (above, below) = pyplot.subplots(
            2, 1, figsize=(5.4, 5.6), sharex=True, height_ratios=(3, 1), layout="constrained"
        )
        above.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=(0, (4, 3)), label="calibrated")
        above.plot(mean[filled], share[filled], color=COLORS[0], linewidth=1.0, alpha=0.5)
        for chosen, face, words in (
            (count >= FEW, COLORS[0], "classifier"),
            (filled & (count < FEW), "white", "few frames"),
        ):
            look = {"color": COLORS[0], "markerfacecolor": face, "markersize": 6, "linestyle": ""}
            above.plot(mean[chosen], share[chosen], "o", label=words, **look)
        error = numbers.calibration_error(probability, label)
        above.set_title("Reliability")
        above.set_title(f"calibration error {error:.3f}, {len(label)} frames", loc="right", fontsize=9, color="#888888",
                        fontweight="normal")  # fmt: skip
        above.set_ylabel("share that are a success")
        above.set_ylim(-0.03, 1.03)
        for axis in (above, below):
            axis.axvline(threshold, color=COLORS[1], linewidth=1.2, label="threshold" if axis is above else None)
        above.legend(loc="upper left")
        positive = (
            numbers.reliability(probability[label > 0], np.ones(int(np.sum(label > 0)))).T[2] if label.any() else 0
        )
        below.bar(centre, np.maximum(count - positive, 0), width=0.9 / len(count), color="#bbbbbb", label="none")
        below.bar(centre, positive, width=0.9 / len(count), bottom=count - positive, color=COLORS[2], label="success")
        below.set_yscale("symlog", linthresh=1)
        below.set_ylabel("frames")
        below.set_xlabel("probability of success")
        below.set_xlim(0, 1)
        below.legend(loc="upper center", ncols=2)
        png = io.BytesIO()
        figure.savefig(png, format="png")
        pyplot.close(figure)
    write_atomic(out, png.getvalue())


def draw_sheet(images: Mapping[str, np.ndarray], captions: Sequence[str], title: str, out: Path) -> None:
    """Up to ``MOST`` frames, all cameras of each side by side, with a caption each: a PNG. ``images``: (n, H, W, C)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = min(len(captions), MOST)
    wide = max(1, len(images))
    columns = min(max(2, 8 // wide), max(1, count))
    rows = -(-count // columns)
    with pyplot.style.context(STYLE):
        figure, axes = pyplot.subplots(
            max(1, rows), columns, figsize=(1.6 * wide * columns + 0.3, 1.95 * max(1, rows) + 0.6), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        for axis in axes.flat:
            axis.axis("off")
        for index, (axis, caption) in enumerate(zip(axes.flat, captions[:count], strict=False)):
            if images:
                axis.imshow(side_by_side([images[name][index] for name in sorted(images)]), interpolation="nearest")
            axis.set_title(caption, fontsize=8, fontweight="normal", loc="left")
        png = io.BytesIO()
        figure.savefig(png, format="png")
        pyplot.close(figure)
    write_atomic(out, png.getvalue())


def side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (H, W, C) of different sizes in one row, with a gap; grey becomes colour."""
    height = max(picture.shape[0] for picture in pictures)
    parts = []
    for picture in pictures:
        colour = np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else picture[..., :3]
        below = np.full((height - picture.shape[0], picture.shape[1], 3), 255, np.uint8)
        parts += [np.concatenate([colour, below]), np.full((height, 3, 3), 255, np.uint8)]
    return np.concatenate(parts[:-1], axis=1)
