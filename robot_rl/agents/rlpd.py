"""RLPD (arXiv 2302.02948): SAC with other numbers. Half of each batch is demonstrations, ten critics with LayerNorm,
the least of two drawn at random as the target, the mean of all for the actor, and a high replay ratio."""

from functools import partial

from robot_rl.agents import sac

Config = partial(
    sac.Config,
    critics=10,
    target_critics=2,
    actor_critics="mean",
    critic_layer_norm=True,
    backup_entropy=False,
    demo_share=0.5,
    utd_ratio=8,
    discount=0.98,
    start_steps=0,
    learning_starts=200,
)
make = sac.make
