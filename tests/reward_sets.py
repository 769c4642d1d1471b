"""Small label sets and classifiers whose numbers are known, for the tests of learned rewards."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from robot_rl import encoders
from robot_rl.reward.classifier import Classifier
from robot_rl.reward.labels import LabelSet, Origin
from robot_rl.reward.network import Preprocessing, Vector, make_network

CAMERA = "camera/wrist"
SIDE = 16
FIELDS = {CAMERA: ((SIDE, SIDE, 3), "uint8"), "height": ((1,), "float32")}


def picture(rng: np.random.Generator, success: bool) -> np.ndarray:
    """Noise; a success has a bright red square somewhere near the middle."""
    image = rng.integers(0, 70, (SIDE, SIDE, 3)).astype(np.uint8)
    if success:
        top, left = rng.integers(4, 8, 2)
        image[top : top + 5, left : left + 5, 0] = 230
    return image


def episode(rng: np.random.Generator, steps: int, success: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Observations (steps, ...) and labels (steps,); the last third of a success shows one."""
    label = (np.arange(steps) >= steps - steps // 3) if success else np.zeros(steps, bool)
    pictures = np.stack([picture(rng, bool(one)) for one in label])
    height = rng.normal(0.0, 1.0, (steps, 1)).astype(np.float32)
    return {CAMERA: pictures, "height": height}, label.astype(np.int8)


def label_set(path: Path, episodes: int = 16, steps: int = 9, seed: int = 0) -> LabelSet:
    """Every second episode succeeds."""
    labels = LabelSet(path, FIELDS, {"task": "toy", "arm": "none", "world": "sim"})
    rng = np.random.default_rng(seed)
    for index in range(episodes):
        observation, label = episode(rng, steps, index % 2 == 0)
        labels.append(observation, label, np.arange(steps), Origin("toy", index, index))
    return labels


def linear_classifier(
    name: str, weights: list[float], bias: float, threshold: float = 0.5, hold_steps: int = 1, version: int = 1
) -> Classifier:
    """Its logit is ``weights @ x + bias`` of the vector ``name``: relu(z) - relu(-z) is z."""
    size = len(weights)
    vector = Vector(name, (size,), (0.0,) * size, (1.0,) * size)
    preprocessing = Preprocessing((), (vector,))
    network = make_network(preprocessing, encoders.Settings(), 2)
    both = np.array([[1.0, -1.0]], np.float32)
    head = {
        "Dense_0": {"kernel": jnp.asarray(np.asarray(weights, np.float32)[:, None] * both), "bias": jnp.zeros(2)},
        "Dense_1": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)},
        "Dense_2": {"kernel": jnp.asarray(both.T), "bias": jnp.full(1, bias)},
    }
    params = {"images": {}, "head": {k: {n: leaf[None] for n, leaf in part.items()} for k, part in head.items()}}
    return Classifier(preprocessing, network, params, 1.0, threshold, hold_steps, version)
