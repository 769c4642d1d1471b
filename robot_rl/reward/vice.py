"""VICE: a reward learned while it is used, from examples of success alone (Fu et al. 2018, arXiv 1805.11686).

A classifier tells goal frames from whatever the policy visits; the policy is paid how much its frames look like goals.
It is trained on every few batches: positives are the label set's, negatives what was drawn from the replay. Blending
rows, smoothing labels and a gradient penalty keep it from being sure too early, as in SERL (arXiv 2401.16013) and
VICE-RAQ (Singh et al. 2019, arXiv 1904.07854). Nobody says success meanwhile: episodes run to their limit.
U updates, B batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from robot_rl import checkpoint
from robot_rl.reward.labels import POSITIVE, Fields, LabelSet
from robot_rl.reward.network import Network, Preprocessing, make_network, prepare
from robot_rl.reward.training import TrainConfig, draw, init_optimiser, spectral, update
from robot_rl.types import DEMONSTRATION, Transition

if TYPE_CHECKING:
    from robot_rl.reward.judge import Config
    from robot_rl.spaces import Encoder

FILE = "vice.ckpt"


@dataclass
class Vice:
    """The classifier as it is now, and what it learns from."""

    encoder: Encoder
    preprocessing: Preprocessing
    network: Network
    config: TrainConfig
    goals: dict[str, np.ndarray]  # (n, ...) frames of success
    rng: np.random.Generator
    params: Any
    opt_state: Any
    every: int = 1  # batches to one update
    binary: bool = False  # reward 1 where success is likelier than not, instead of its probability
    batches: int = 0
    _noted: tuple[float, float] = (0.0, 0.0)

    def __call__(self, batch: Transition) -> Transition:
        """``batch`` (U, B, ...) with rewards (U, B) by the frames that its steps led to; learns from it first."""
        seen = self.encoder.decode(batch.next_obs)
        if self.batches % self.every == 0:
            self._learn(seen, (batch.extra or {}).get("source"))
        self.batches += 1
        shape = np.shape(batch.reward)
        rows = {name: values.reshape(-1, *values.shape[len(shape) :]) for name, values in seen.items()}
        reward = self.probabilities(rows).reshape(shape)
        self._noted = (self._noted[0], float(reward.mean()))
        return batch._replace(reward=(reward >= 0.5).astype(np.float32) if self.binary else reward)

    def probabilities(self, rows: dict[str, np.ndarray]) -> np.ndarray:
        """(n,) of observations (n, ...) under their own names."""
        selected = self.preprocessing.select(rows)
        return np.asarray(_probabilities(self.params, selected, self.preprocessing, self.network, self.config))

    def row(self) -> dict[str, float]:
        """For metrics.csv: the classifier's last loss and the mean reward of the last batch."""
        return {"vice_loss": self._noted[0], "vice_reward": self._noted[1]}

    def save(self, folder: Path) -> None:
        """Write what has been learned beside an agent's checkpoint."""
        about = {"rng": self.rng.bit_generator.state, "batches": self.batches}
        checkpoint.save(folder / FILE, {"params": self.params, "opt_state": self.opt_state}, about)

    def load(self, folder: Path) -> None:
        """Go on from what ``save`` wrote. Raises FileNotFoundError, and ValueError for another network's."""
        tree = checkpoint.load(folder / FILE, {"params": self.params, "opt_state": self.opt_state})
        about = checkpoint.load_metadata(folder / FILE)
        self.params, self.opt_state = tree["params"], tree["opt_state"]
        self.rng.bit_generator.state, self.batches = about["rng"], about["batches"]

    def _learn(self, seen: dict[str, np.ndarray], source: np.ndarray | None) -> None:
        """One update: half goals, half frames of experience, which demonstrations are not."""
        fresh = np.ones(next(iter(seen.values())).shape[:2], bool)
        if source is not None:
            fresh = np.asarray(source) != DEMONSTRATION
        if not fresh.any():
            return  # updates from demonstrations alone, which are no example of what is not a success
        half = self.config.batch_size // 2
        negatives = self.rng.choice(np.argwhere(fresh), self.config.batch_size - half)
        positives = self.rng.integers(len(next(iter(self.goals.values()))), size=half)
        own = self.preprocessing.select({name: seen[name] for name in self.preprocessing.names})
        batch = {
            name: np.concatenate([self.goals[name][positives], rows[negatives[:, 0], negatives[:, 1]]])
            for name, rows in own.items()
        }
        target = np.concatenate([np.ones(half, np.float32), np.zeros(self.config.batch_size - half, np.float32)])
        chance = draw(self.rng, self.preprocessing, self.config)
        self.params, self.opt_state, loss = update(
            self.params, self.opt_state, batch, chance, target, self.preprocessing, self.network, self.config
        )
        self._noted = (float(loss), self._noted[1])


def make(config: Config, encoder: Encoder, batch_size: int, seed: int) -> Vice:
    """From the goal frames of the label set ``config.vice``. Raises FileNotFoundError, and ValueError where there is
    no positive frame, or one of other observations than the agent sees."""
    labels = LabelSet(Path(config.vice))
    frames = labels.frames()
    goals = frames.take(frames.label == POSITIVE).observation
    inputs = config.vice_inputs
    if missing := sorted(set(inputs or ()) - encoder.names):
        raise ValueError(f"reward.vice_inputs: '{missing[0]}' is not among {', '.join(sorted(encoder.names))}")
    shared = {name: kind for name, kind in labels.observation.items() if name in encoder.names}
    training = TrainConfig(
        label_smoothing=0.2, mixup=1.0, gradient_penalty=10.0, batch_size=min(batch_size, 256), inputs=inputs
    )
    return from_goals(training, goals, shared, encoder, seed, config.vice_every, config.vice_reward == "binary")


def from_goals(
    config: TrainConfig, goals: dict[str, np.ndarray], fields: Fields, encoder: Encoder, seed: int, every: int = 1,
    binary: bool = False,
) -> Vice:  # fmt: skip
    """A Vice that has learned nothing yet, from goal frames (n, ...) of ``fields``."""
    if not len(next(iter(goals.values()))):
        raise ValueError("no frame of success to learn from: label some, robot-rl reward label")
    rng = np.random.default_rng([seed, 29])
    given = {name: goals[name] for name in goals if name in fields}
    preprocessing = prepare(fields, config.inputs, config.crop, config.size, _scales(encoder))
    network = make_network(preprocessing, config, config.hidden)
    params = network.init(preprocessing, rng)
    selected = preprocessing.select(given)
    opt_state = init_optimiser(network, params, config)
    return Vice(encoder, preprocessing, network, config, selected, rng, params, opt_state, every, binary)


def _scales(encoder: Encoder) -> dict[str, np.ndarray]:
    """Rows (2, ...) of each vector whose mean and deviation make +-5 of its bounds: goals alone hardly vary, and the
    penalty lets the logit rise by 1 a unit."""
    ends = {name: np.full((2, *vector.space.shape), 0.2) for name, vector in encoder.vectors.items()}
    for rows in ends.values():
        rows[0] *= -1.0
    blank = {name: np.zeros((2, *shape), np.uint8) for name, shape in encoder.images}
    return encoder.decode(blank | ends)


@partial(jax.jit, static_argnames=("preprocessing", "network", "config"))
def _probabilities(
    params: Any, rows: dict[str, jax.Array], preprocessing: Preprocessing, network: Network, config: TrainConfig
) -> jax.Array:
    return jax.nn.sigmoid(network.logit(spectral(params, config), preprocessing.inputs(rows))).astype(jnp.float32)
