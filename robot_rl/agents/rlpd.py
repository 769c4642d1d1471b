"""RLPD (arXiv 2302.02948): SAC with other numbers. Half of each batch is demonstrations, critics with LayerNorm, the
least of two drawn at random as the target, the mean of all for the actor, and a replay ratio above one. The actor also
copies demonstrations where the critic agrees (arXiv 1709.10089), which halves the steps a sparse insertion takes.

The paper has ten critics and a replay ratio of 20; the defaults here are for two cores without a GPU."""

from functools import partial

from robot_rl.agents import sac

Config = partial(
    sac.Config,
    critics=4,
    target_critics=2,
    actor_critics="mean",
    critic_layer_norm=True,
    backup_entropy=False,
    init_temperature=0.005,
    cloning_weight=5.0,
    demo_share=0.5,
    utd_ratio=4,
    discount=0.98,
    start_steps=0,
    learning_starts=200,
)
make = sac.make
