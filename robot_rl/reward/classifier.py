"""A trained success classifier, and the folder of its versions.

DIR/000001.ckpt   weights; as metadata everything it takes to use them: inputs, preprocessing, temperature, threshold
DIR/000001.json   the same metadata to read, with the report of the training
DIR/000002.ckpt   a newer version; each is written whole or not at all, and the newest is the one in use
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robot_rl import checkpoint, encoders
from robot_rl.files import disk_errors, write_json
from robot_rl.reward.labels import Fields
from robot_rl.reward.network import Network, Preprocessing, make_network
from robot_rl.reward.numbers import sigmoid

FORMAT = 1
BATCH = 64  # rows at a time, so that there are two sizes to compile for: this and 1
_RESTORE = "restore it from a copy, or train it again, robot-rl reward train"


@dataclass(frozen=True)
class Classifier:
    """What says whether an observation is a success, and how sure it is."""

    preprocessing: Preprocessing
    network: Network
    params: Any  # stacked (N, ...)
    temperature: float  # logits are divided by it
    threshold: float  # on the probability
    hold_steps: int  # frames in a row that have to reach it
    version: int = 0
    path: Path = Path()
    about: Mapping[str, Any] = field(default_factory=dict)  # report and origin

    def logits(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Calibrated logits (n,) of observations (n, ...)."""
        rows = self.preprocessing.select(observation)
        count = len(next(iter(rows.values())))
        parts = []
        for start in range(0, count, BATCH):
            part = {name: values[start : start + BATCH] for name, values in rows.items()}
            size = len(next(iter(part.values())))
            if 1 < size < BATCH:
                part = {name: np.concatenate([v, np.repeat(v[-1:], BATCH - size, axis=0)]) for name, v in part.items()}
            parts.append(np.asarray(_logits(self.params, part, self.preprocessing, self.network))[:size])
        return np.concatenate(parts).astype(np.float64) / self.temperature if parts else np.zeros(0)

    def probabilities(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """(n,) of observations (n, ...)."""
        return sigmoid(self.logits(observation))

    def probability(self, observation: Mapping[str, np.ndarray]) -> float:
        """Of one observation."""
        rows = {name: np.asarray(observation[name])[None] for name in self.preprocessing.names if name in observation}
        return float(self.probabilities(rows)[0])

    def difference(self, fields: Fields) -> str:
        """The first of its inputs that ``fields`` has otherwise, in words; empty where all are there."""
        for name, (shape, dtype) in self.preprocessing.fields.items():
            there = fields.get(name)
            same_kind = there is not None and (there[1] == "uint8") == (dtype == "uint8")
            if there is None or tuple(there[0]) != shape or not same_kind:
                given = f"{there[1]}{list(there[0])}" if there is not None else "missing"
                return f"'{name}' is {dtype}{list(shape)} there and {given} here"
        return ""


@partial(jax.jit, static_argnames=("preprocessing", "network"))
def _logits(params: Any, rows: dict[str, jax.Array], preprocessing: Preprocessing, network: Network) -> jax.Array:
    return network.ensemble(params, preprocessing.inputs(rows))


def save(classifier: Classifier, folder: Path) -> Path:
    """Write ``classifier`` as the next version in ``folder``; returns its checkpoint, which is whole when this does."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    version = max((int(path.stem) for path in versions(folder)), default=0) + 1
    path = folder / f"{version:06d}.ckpt"
    network = classifier.network
    settings = network.encoder.settings if network.encoder is not None else encoders.Settings()
    metadata = {
        "format": FORMAT,
        "kind": "success classifier",
        "version": version,
        "preprocessing": classifier.preprocessing.as_json(),
        "network": {"head": network.head.width, "encoder": asdict(settings)},
        "members": int(jax.tree.leaves(classifier.params)[0].shape[0]),
        "temperature": classifier.temperature,
        "threshold": classifier.threshold,
        "hold_steps": classifier.hold_steps,
        **classifier.about,
    }
    write_json(path.with_suffix(".json"), metadata)
    checkpoint.save(path, classifier.params, metadata)
    return path


def versions(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, oldest first."""
    return sorted(path for path in folder.glob("*.ckpt") if path.stem.isdigit())


def newest(folder: Path) -> Path:
    """Raises FileNotFoundError where there is none."""
    if not (found := versions(folder)):
        what = "holds no classifier" if folder.exists() else "is not there"
        raise FileNotFoundError(f"{folder} {what}: train one, robot-rl reward train LABELS --out {folder}")
    return found[-1]


def load(path: Path) -> Classifier:
    """The classifier of a folder, its newest version, or of one checkpoint in it.

    Raises FileNotFoundError, or ValueError that names the file and the remedy.
    """
    path = Path(path)
    file = path if path.suffix == ".ckpt" else newest(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there: give the folder of a classifier, or one of its .ckpt files")
    about = checkpoint.load_metadata(file)
    if about.get("kind") != "success classifier" or about.get("format") != FORMAT:
        raise ValueError(f"{file} is not a success classifier of this version: {_RESTORE}")
    try:
        preprocessing = Preprocessing.from_json(about["preprocessing"])
        settings = encoders.Settings(**about["network"]["encoder"])
        network = make_network(preprocessing, settings, int(about["network"]["head"]))
        numbers = {name: float(about[name]) for name in ("temperature", "threshold")}
        hold_steps, version, members = int(about["hold_steps"]), int(about["version"]), int(about["members"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error!r}): {_RESTORE}") from error
    params = checkpoint.load(file, _template(preprocessing, network, members))
    kept: dict[str, Any] = {name: about[name] for name in ("report", "config", "trained_on", "origin") if name in about}
    return Classifier(
        preprocessing, network, params, **numbers, hold_steps=hold_steps, version=version, path=file, about=kept
    )


def _template(preprocessing: Preprocessing, network: Network, members: int) -> Any:
    """Parameters of the right shapes, all zero."""
    return jax.tree.map(lambda leaf: jnp.zeros((members, *leaf.shape), leaf.dtype), network.shapes(preprocessing))
