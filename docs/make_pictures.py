"""Draw the README's picture: every task, half-way through a demonstration, the arms in turn.

python docs/make_pictures.py docs/tasks.png
"""

import os
import sys

os.environ.setdefault("MUJOCO_GL", "egl")

import imageio.v3 as imageio
import numpy as np

from robot_rl.build import make_env

SCENES = (
    (("reach", "ur5e", 4), ("peg_insert", "panda", 12), ("pick_place", "fr3", 27), ("object_relocation", "ur5e", 20)),
    (("maze", "panda", 25), ("wall_push", "fr3", 12), ("surface_wipe", "ur5e", 30), ("cable_route", "panda", 15)),
)


def picture(task: str, arm: str, steps: int) -> np.ndarray:
    """The scene (480, 480, 3) after some steps of the scripted demonstrator."""
    env = make_env(task, arm, render_mode="rgb_array")
    obs, _ = env.reset(seed=3)
    expert = env.unwrapped.demonstrator(np.random.default_rng(3))
    for _ in range(steps):
        obs, *_ = env.step(expert(obs))
    frame = env.render()
    env.close()
    return frame[:, 80:560]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    imageio.imwrite(sys.argv[1], np.vstack([np.hstack([picture(*scene) for scene in row]) for row in SCENES]))
