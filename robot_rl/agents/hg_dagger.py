"""HG-DAgger (arXiv 1810.02890): behaviour cloning that acts. Whoever looks after the policy takes over when they think
that they have to; what they do then is learned from together with the demonstrations, what the policy did is not.

Somebody has to: ``--set intervention.by=scripted``, or a teleoperation device. The paper trains anew after every epoch
of roll-outs, and has an ensemble whose disagreement tells when to be careful; here each step is followed by updates."""

from functools import partial

from robot_rl.agents import bc

Config = partial(bc.Config, online=True, pretrain_updates=5_000, utd_ratio=4)
make = bc.make
