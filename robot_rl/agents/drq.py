"""RLPD from pixels, DrQ's way (arXiv 2004.13649): images are shifted at random, and the critics train a small encoder.
RLPD's numbers but for what an image costs: two critics, batches of 128, a replay ratio of two.

It takes states as well, or both. ``--set vision.cameras=wrist,side`` gives it something to see (docs/vision.md)."""

from functools import partial

from robot_rl.agents import rlpd

Config = partial(
    rlpd.Config,
    critics=2,
    target_critics=2,
    init_temperature=0.01,
    batch_size=128,
    utd_ratio=2,
)
make = rlpd.make
