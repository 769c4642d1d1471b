"""Training a success classifier: held out by episode, balanced, augmented, stopped early, calibrated, with a threshold.

B batch, N ensemble, H W C images.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from robot_rl import encoders
from robot_rl.augment import shifted
from robot_rl.config import check, number
from robot_rl.evaluate import wilson
from robot_rl.reward import losses, numbers
from robot_rl.reward.classifier import Classifier
from robot_rl.reward.labels import POSITIVE, EpisodeKey, Fields, Frames
from robot_rl.reward.network import Network, Preprocessing, as_uint8, make_network, prepare

Changes = dict[str, Any]
"""Of each camera: where to move it (B, 2), light (B, 1, 1, 1) and contrast (B, 1, 1, C)."""


class Chance(NamedTuple):
    """What an update leaves to chance; drawn by numpy, since compiling JAX's generators takes seconds."""

    changes: Changes
    mixup: losses.Blend
    penalty: losses.Blend


@dataclass(frozen=True)
class TrainConfig(encoders.Settings):
    """``robot-rl reward train --set name=value``."""

    inputs: tuple[str, ...] = ()  # observations to judge by, such as camera/wrist,gripper; none: every camera
    crop: tuple[str, ...] = ()  # such as camera/wrist:10x20x88x88, TOPxLEFTxHEIGHTxWIDTH in pixels
    size: int = number(64, 8, 512, "pixels, height and width of what the network sees of a picture")
    hidden: int = number(128, 4, 4096, "width of the layer before the logit")
    members: int = number(1, 1, 16, "of an ensemble, of different seeds, whose logits are averaged")

    steps: int = number(1_000, 1, 10**6, "gradient updates at most")
    batch_size: int = number(64, 2, 65_536, "frames, half of them positive")
    learning_rate: float = number(5e-4, 0.0, 1.0)
    weight_decay: float = number(1e-3, 0.0, 10.0, "AdamW's")
    held_out: float = number(0.25, 0.05, 0.8, "share of the episodes, of those with a success as of those without")
    check_every: int = number(50, 1, 10**6, "updates between two looks at the held-out loss")
    patience: int = number(6, 1, 10**6, "looks without a better held-out loss before it stops")

    jitter: float = number(0.1, 0.0, 1.0, "+- share of brightness and of the contrast of each colour")
    label_smoothing: float = number(0.05, 0.0, 0.9)
    mixup: float = number(0.0, 0.0, 10.0, "alpha, of features; 0: rows are not blended")
    gradient_penalty: float = number(0.0, 0.0, 1e4, "weight, on the slope of the logit in the features; 0: none")
    spectral_norm: bool = False

    false_positives: float = number(0.01, 1e-6, 0.5, "budget: share of episodes that may have one")
    episode_steps: int = number(100, 1, 10**6, "of the episodes that the budget is for")
    recall: float = number(0.9, 0.1, 1.0, "share of positive frames that the threshold should not fall short of")
    hold_steps: int = number(2, 1, 100, "frames in a row that make a success")
    seed: int = number(0, 0, 2**63 - 1)

    def __post_init__(self) -> None:
        check(self)


def split(frames: Frames, share: float, seed: int, known: Collection[EpisodeKey] = ()) -> np.ndarray:
    """Which frames (n,) are held out: whole episodes, the same share of those with a positive frame and of the others.

    Frames of one episode are alike: held out one by one they would be known by heart. So would episodes that were
    trained on before, the ``known`` ones: none of them is held out. Raises ValueError where fewer than two episodes
    have a positive frame, or a negative one, or where none of either is left to hold out.
    """
    rng = np.random.default_rng([seed, 3])
    has_positive = np.unique(frames.episode[frames.label == POSITIVE])
    has_negative = np.unique(frames.episode[frames.label != POSITIVE])
    for kind, found in (("success", has_positive), ("anything else", has_negative)):
        if len(found) < 2:
            raise ValueError(
                f"frames of {kind} come from {len(found)} episode(s): label at least 2, one to learn from and one to "
                "judge by; 10 and more tell something"
            )
    held: list[int] = []
    for group in (has_positive, np.setdiff1d(has_negative, has_positive)):
        count = min(max(1, round(share * len(group))), len(group) - 1) if len(group) > 1 else 0
        fresh = [index for index in group if frames.episodes[index] not in known]
        held += rng.permutation(np.array(fresh, np.int64))[:count].tolist()
    out = np.isin(frames.episode, held)
    for kind, of in (("positive", frames.label == POSITIVE), ("negative", frames.label != POSITIVE)):
        if not (out & of).any():
            raise ValueError(
                f"no held-out episode has a {kind} frame: label more episodes, or begin anew (--fresh) where the "
                "version to go on from was trained on all of them"
            )
    return out


def fit(
    frames: Frames,
    fields: Fields,
    config: TrainConfig,
    on_check: Callable[[int, dict[str, float]], None] = lambda step, facts: None,
    stop: Callable[[], bool] = lambda: False,
    start: Classifier | None = None,
) -> Classifier:
    """Train on ``frames``, all of them labelled; the classifier's ``about["report"]`` says how good it is.

    ``start``: go on from an earlier version where it has the same inputs and layers. The same frames and seed give the
    same numbers. Raises ValueError where there is too little to learn from.
    """
    known = {tuple(key) for key in start.about.get("trained_on", ())} if start is not None else set()
    held = split(frames, config.held_out, config.seed, known)
    train, test = frames.take(~held), frames.take(held)
    preprocessing = prepare(fields, config.inputs, config.crop, config.size, train.observation)
    network = make_network(preprocessing, config, config.hidden)
    first: list[Any] = [None] * config.members
    if start is not None and start.network == network and _same_inputs(start.preprocessing, preprocessing):
        preprocessing = start.preprocessing  # its weights expect its scales
        members = jax.tree.leaves(start.params)[0].shape[0]
        first = [jax.tree.map(lambda leaf, i=i: leaf[i % members], start.params) for i in range(config.members)]
    fitted, history = [], []
    for member in range(config.members):
        params, losses_seen = _fit_member(
            train, test, preprocessing, network, config, member, first[member], on_check, stop
        )
        fitted.append(params)
        history.append(losses_seen)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *fitted)
    raw = Classifier(preprocessing, network, stacked, 1.0, 0.5, config.hold_steps)
    return calibrated(raw, train, test, config, history)


def calibrated(
    raw: Classifier, train: Frames, test: Frames, config: TrainConfig, history: list[list[tuple[int, float]]]
) -> Classifier:
    """``raw`` with a temperature and a threshold chosen on the held-out frames ``test``, and its report."""
    logit = raw.logits(test.observation)
    heat = numbers.temperature(logit, test.label)
    logit = logit / heat
    order = np.lexsort((test.step, test.episode))
    negative = order[test.label[order] != POSITIVE]
    scores = numbers.hold_scores(logit[negative], test.episode[negative], test.step[negative], config.hold_steps)
    chosen = numbers.choose_threshold(
        logit[test.label == POSITIVE], scores, config.false_positives, config.episode_steps, config.recall
    )
    known = replace(raw, temperature=heat, threshold=chosen.probability)
    report = {
        "train": _counts(train),
        "held_out": _counts(test) | figures(numbers.sigmoid(logit), test.label, chosen.probability),
        "threshold": asdict(chosen) | {"probability": chosen.probability},
        "uncalibrated_error": numbers.calibration_error(numbers.sigmoid(logit * heat), test.label),
        "loss": [[[step, loss] for step, loss in member] for member in history],
    }
    return replace(known, about={"report": report, "config": asdict(config), "trained_on": [*map(list, train.keys)]})


def figures(probability: np.ndarray, label: np.ndarray, threshold: float) -> dict[str, Any]:
    """How good probabilities (n,) are: confusion and accuracy at ``threshold``, with its 95 % interval, and
    calibration."""
    positive, judged = label == POSITIVE, probability >= threshold
    right = int(np.sum(positive == judged))
    confusion = {
        "true_positive": int(np.sum(positive & judged)),
        "false_positive": int(np.sum(~positive & judged)),
        "true_negative": int(np.sum(~positive & ~judged)),
        "false_negative": int(np.sum(positive & ~judged)),
    }
    return confusion | {
        "accuracy": right / len(label),
        "accuracy_interval": list(wilson(right, len(label))),
        "balanced_accuracy": float(np.sum(numbers.balanced(label) * (positive == judged))),
        "brier": numbers.brier(probability, positive),
        "calibration_error": numbers.calibration_error(probability, positive),
    }


def _counts(frames: Frames) -> dict[str, int]:
    positive = int(np.sum(frames.label == POSITIVE))
    return {"episodes": len(np.unique(frames.episode)), "positive": positive, "negative": len(frames) - positive}


def _same_inputs(there: Preprocessing, here: Preprocessing) -> bool:
    return there.images == here.images and [v.name for v in there.vectors] == [v.name for v in here.vectors]


def _fit_member(
    train: Frames, test: Frames, preprocessing: Preprocessing, network: Network, config: TrainConfig, member: int,
    start: Any, on_check: Callable[[int, dict[str, float]], None], stop: Callable[[], bool],
) -> tuple[Any, list[tuple[int, float]]]:  # fmt: skip
    """The parameters with the least held-out loss, and (step, held-out loss) of each look."""
    rng = np.random.default_rng([config.seed, 17, member])
    params = start if start is not None else network.init(preprocessing, rng)
    opt_state = init_optimiser(network, params, config)
    rows = preprocessing.select(train.observation)
    positive, negative = np.flatnonzero(train.label == POSITIVE), np.flatnonzero(train.label != POSITIVE)
    half = config.batch_size // 2
    target = np.concatenate([np.ones(half, np.float32), np.zeros(config.batch_size - half, np.float32)])
    best, best_loss, history, since = params, np.inf, [], 0
    for step in range(1, config.steps + 1):
        index = np.concatenate([rng.choice(positive, half), rng.choice(negative, config.batch_size - half)])
        batch = {name: values[index] for name, values in rows.items()}
        chance = draw(rng, preprocessing, config)
        params, opt_state, loss = update(params, opt_state, batch, chance, target, preprocessing, network, config)
        if step % config.check_every and step != config.steps:
            continue
        seen = Classifier(preprocessing, network, _alone(spectral(params, config)), 1.0, 0.5, 1)
        held_loss = numbers.log_loss(seen.logits(test.observation), test.label)
        history.append((step, held_loss))
        on_check(member * config.steps + step, {"loss": float(loss), "held_out": held_loss})
        since = since + 1 if held_loss >= best_loss else 0
        if held_loss < best_loss:
            best, best_loss = params, held_loss
        if since >= config.patience or stop():
            break
    return spectral(best, config), history


def _alone(params: Any) -> Any:
    """Parameters of an ensemble of one."""
    return jax.tree.map(lambda leaf: leaf[None], params)


def spectral(params: Any, config: TrainConfig) -> Any:
    """The parameters as they act."""
    return losses.spectral_norm(params) if config.spectral_norm else params


def init_optimiser(network: Network, params: Any, config: TrainConfig) -> Any:
    """The optimiser's state at the start."""
    return _optimiser(config).init(network.split(params)[0])


def _optimiser(config: TrainConfig) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(config.learning_rate, weight_decay=config.weight_decay)
    )


@partial(jax.jit, static_argnames=("preprocessing", "network", "config"))
def update(
    params: Any, opt_state: Any, batch: dict[str, jax.Array], chance: Chance, target: jax.Array,
    preprocessing: Preprocessing, network: Network, config: TrainConfig,
) -> tuple[Any, Any, jax.Array]:  # fmt: skip
    """One update on ``batch`` (B, ...) with ``target`` (B,)."""
    inputs = augment(preprocessing.inputs(batch), chance.changes)
    trained, left_alone = network.split(params)

    def loss_of(trained: Any) -> jax.Array:
        return objective(network.join(trained, left_alone), inputs, target, chance, network, config)

    loss, grads = jax.value_and_grad(loss_of)(trained)
    updates, opt_state = _optimiser(config).update(grads, opt_state, trained)
    return network.join(optax.apply_updates(trained, updates), left_alone), opt_state, loss


def objective(
    params: Any, inputs: Any, target: jax.Array, chance: Chance, network: Network, config: TrainConfig
) -> jax.Array:
    """What is minimised, of augmented inputs (B, ...): cross entropy with smoothing and mixup, and the penalty."""
    params = spectral(params, config)
    features = network.encode(params, inputs)
    penalty = jnp.zeros(())
    if config.gradient_penalty > 0.0:
        penalty = losses.gradient_penalty(lambda x: network.judge(params, x), features, chance.penalty)
    if config.mixup > 0.0:
        features, target = losses.blended((features, target), chance.mixup)
    logit = network.judge(params, features)
    loss = jnp.mean(losses.cross_entropy(logit, losses.smooth(target, config.label_smoothing)))
    return loss + config.gradient_penalty * penalty


def draw(rng: np.random.Generator, preprocessing: Preprocessing, config: TrainConfig) -> Chance:
    """What one update leaves to chance."""
    mixup = losses.draw_blend(rng, config.batch_size, config.mixup or 1.0)
    return Chance(draw_changes(rng, preprocessing, config), mixup, losses.draw_blend(rng, config.batch_size))


def draw_changes(rng: np.random.Generator, preprocessing: Preprocessing, config: TrainConfig) -> Changes:
    """What ``augment`` does to each row and camera."""
    count, jitter, most = config.batch_size, config.jitter, config.shift_px
    return {
        image.name: (
            rng.integers(-most, most + 1, (count, 2)).astype(np.int32),
            255.0 * rng.uniform(-jitter, jitter, (count, 1, 1, 1)).astype(np.float32),
            rng.uniform(1.0 - jitter, 1.0 + jitter, (count, 1, 1, image.shape[-1])).astype(np.float32),
        )
        for image in preprocessing.images
    }


def augment(inputs: dict[str, jax.Array], changes: Changes) -> dict[str, jax.Array]:
    """Pictures (B, H W C) moved by whole pixels, borders repeated (DrQ, arXiv 2004.13649), times a contrast, plus a
    light. ``state`` stays."""
    out = dict(inputs)
    for name, (offset, light, contrast) in changes.items():
        moved = shifted(inputs[name], offset)
        out[name] = as_uint8((moved - 127.5) * contrast + 127.5 + light)
    return out
