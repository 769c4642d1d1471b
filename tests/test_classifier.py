"""A success classifier: split, preprocessing, training, its report, its versions on disk."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl import encoders, pretrained
from robot_rl.reward import classifier as classifiers
from robot_rl.reward import numbers
from robot_rl.reward.labels import Frames
from robot_rl.reward.network import prepare
from robot_rl.reward.training import TrainConfig, augment, draw_changes, fit, split
from tests.reward_sets import CAMERA, FIELDS, SIDE, label_set, linear_classifier

QUICK = TrainConfig(size=SIDE, steps=60, check_every=20, batch_size=16, hidden=16, latent=8, shift_px=1)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return label_set(tmp_path_factory.mktemp("labels") / "labels.zarr").frames()


@pytest.fixture(scope="module")
def fitted(frames):
    return fit(frames, FIELDS, QUICK)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.floats(0.1, 0.6), st.integers(0, 99))
def test_held_out_are_whole_episodes_of_both_kinds(good, bad, share, seed):
    count = good + bad
    number = np.repeat(np.arange(count), 4)
    label = ((np.arange(4 * count) % 4 > 1) & (number < good)).astype(np.int8)
    frames = Frames({}, label, number, number, number, tuple(("s", index, 0) for index in range(count)))
    held = split(frames, share, seed)
    assert set(number[held]).isdisjoint(number[~held])
    for kind, total in ((number < good, good), (number >= good, bad)):
        here = len(set(number[held & kind]))
        assert here == min(max(1, round(share * total)), total - 1)
    assert np.array_equal(held, split(frames, share, seed))


def test_what_was_trained_on_before_is_never_held_out():
    number = np.repeat(np.arange(12), 2)
    label = ((np.arange(24) % 2 == 1) & (number < 6)).astype(np.int8)
    keys = tuple(("s", index, 0) for index in range(12))
    frames = Frames({}, label, number, number, number, keys)
    for seed in range(20):
        held = set(number[split(frames, 0.5, seed, known=[keys[i] for i in (0, 1, 2, 7, 8)])].tolist())
        assert held and held <= {3, 4, 5, 6, 9, 10, 11}
    with pytest.raises(ValueError, match="no held-out episode has a positive frame"):
        split(frames, 0.5, 0, known=keys[:6])


def test_too_few_episodes_are_refused():
    frames = Frames({}, np.array([1, 0, 0]), np.zeros(3), np.zeros(3), np.array([0, 0, 1]), (("s", 0, 0), ("s", 1, 0)))
    with pytest.raises(ValueError, match="frames of success come from 1 episode"):
        split(frames, 0.25, 0)


def test_pictures_are_cropped_and_averaged():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, SIDE, SIDE, 3)).astype(np.uint8)
    how = prepare(FIELDS, (CAMERA,), (f"{CAMERA}:2x4x8x12",), 4, {})
    assert how.images[0].size == (4, 4) and how.names == (CAMERA,)
    seen = np.asarray(how.inputs(how.select({CAMERA: pictures}))[CAMERA])
    cut = pictures[:, 2:10, 4:16].astype(float)
    assert seen.dtype == np.uint8
    assert np.abs(seen - cut.reshape(2, 4, 2, 4, 3, 3).mean(axis=(2, 4))).max() <= 0.51


def test_vectors_are_scaled_and_held():
    rows = {"height": np.array([[1.0], [3.0]], np.float32)}
    how = prepare(FIELDS, ("height",), (), 64, rows)
    seen = how.inputs(how.select({"height": np.array([[2.0], [4.0], [1e9]], np.float32)}))["state"]
    assert np.asarray(seen)[:, 0].tolist() == [0.0, 2.0, 5.0]
    assert type(how).from_json(how.as_json()) == how


@pytest.mark.parametrize(
    "inputs, crops, says",
    [
        (("camera/wirst",), (), "Did you mean 'camera/wrist'"),
        ((CAMERA,), (f"{CAMERA}:0x0x99x4",), "the picture has 16 x 16 pixels"),
        ((CAMERA,), ("middle",), "write it as name:TOPxLEFTxHEIGHTxWIDTH"),
    ],
)
def test_inputs_that_cannot_be_are_refused(inputs, crops, says):
    with pytest.raises(ValueError, match=says):
        prepare(FIELDS, inputs, crops, 64, {})


def test_augmentation_moves_and_tints_within_its_bounds(frames):
    how = prepare(FIELDS, (CAMERA, "height"), (), SIDE, frames.observation)
    config = replace(QUICK, shift_px=2, jitter=0.1, batch_size=16)
    rows = {name: values[:16] for name, values in how.select(frames.observation).items()}
    clean = how.inputs(rows)
    changes = draw_changes(np.random.default_rng(0), how, config)
    out = augment(clean, changes)
    assert np.array_equal(out["state"], clean["state"]) and out[CAMERA].dtype == np.uint8
    before, after = (np.asarray(x[CAMERA], float) for x in (clean, out))
    for index in range(16):
        tint, (down, right) = changes[CAMERA], changes[CAMERA][0][index]
        rows_at, columns_at = (np.clip(np.arange(SIDE) + move, 0, SIDE - 1) for move in (down, right))
        moved = before[index][rows_at][:, columns_at]
        expected = np.clip((moved - 127.5) * tint[2][index] + 127.5 + tint[1][index], 0, 255)
        assert np.abs(after[index] - expected).max() <= 0.51


def test_it_tells_success_and_says_how_well(fitted):
    report = fitted.about["report"]
    assert report["held_out"]["episodes"] == 4 and report["train"]["episodes"] == 12
    assert report["held_out"]["accuracy"] == 1.0 and report["held_out"]["false_positive"] == 0
    assert report["held_out"]["accuracy_interval"][0] > 0.85
    assert report["threshold"]["recall"] == 1.0 and 0.0 < fitted.threshold < 1.0
    assert report["threshold"]["episode_rate_bound"] > 0.01  # so few frames cannot show more, and it does not say so
    losses = [loss for _, loss in report["loss"][0]]
    assert losses[-1] < losses[0]


def test_it_tells_episodes_it_has_never_seen(fitted, tmp_path):
    fresh = label_set(tmp_path / "fresh.zarr", seed=5).frames()
    probability = fitted.probabilities(fresh.observation)
    assert np.mean((probability >= fitted.threshold) == (fresh.label > 0)) > 0.95
    one = {name: values[-1] for name, values in fresh.observation.items()}
    assert fitted.probability(one) == pytest.approx(probability[-1], abs=1e-5)


def test_the_same_seed_gives_the_same_numbers(fitted, frames):
    again = fit(frames, FIELDS, QUICK)
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, fitted.params))
    assert again.threshold == fitted.threshold and again.temperature == fitted.temperature


def test_every_option_of_training_learns_it(frames):
    config = replace(QUICK, gradient_penalty=1.0, spectral_norm=True, mixup=0.5, members=2, inputs=(CAMERA, "height"))
    found = fit(frames, FIELDS, config)
    assert found.about["report"]["held_out"]["balanced_accuracy"] > 0.9
    assert jax.tree.leaves(found.params)[0].shape[0] == 2
    kernels = found.params["head"]["Dense_0"]["kernel"]
    assert np.linalg.svd(np.asarray(kernels[0]), compute_uv=False)[0] == pytest.approx(1.0, rel=0.05)


def test_a_frozen_trunk_stays_and_is_saved_with_the_rest(frames, tmp_path, monkeypatch):
    monkeypatch.setitem(encoders.TRUNKS, "resnet10", encoders.ResNet((1,), grouped=True))  # one stage: compiles sooner
    monkeypatch.setattr(pretrained, "load", lambda path, like, grouped: like)
    frozen = {"encoder": "resnet10", "pretrained": "weights", "frozen": True, "pool": "spatial"}
    config = replace(QUICK, steps=2, check_every=1, batch_size=4, weight_decay=1.0, **frozen)
    found = fit(frames, FIELDS, config)
    first = found.network.init(found.preprocessing, np.random.default_rng([config.seed, 17, 0]))
    now = jax.tree.map(lambda leaf: leaf[0], found.params)
    assert jax.tree.all(jax.tree.map(np.array_equal, now["images"]["trunk"], first["images"]["trunk"]))
    assert not any(jax.tree.leaves(jax.tree.map(np.array_equal, now["images"]["readout"], first["images"]["readout"])))
    classifiers.save(found, tmp_path / "c")
    again = classifiers.load(tmp_path / "c")  # needs no file of weights any more
    assert np.array_equal(again.logits(frames.observation), found.logits(frames.observation))


def test_a_newer_version_goes_on_from_the_last(fitted, frames, tmp_path):
    first = classifiers.save(fitted, tmp_path / "c")
    before = first.read_bytes()
    later = fit(frames, FIELDS, replace(QUICK, steps=20, seed=3), start=classifiers.load(tmp_path / "c"))
    assert {*map(tuple, later.about["trained_on"])} >= {*map(tuple, fitted.about["trained_on"])}  # none is held out now
    second = classifiers.save(later, tmp_path / "c")
    assert later.about["report"]["loss"][0][0][1] < fitted.about["report"]["loss"][0][0][1]
    assert [path.name for path in classifiers.versions(tmp_path / "c")] == ["000001.ckpt", "000002.ckpt"]
    assert classifiers.load(tmp_path / "c").version == 2 and classifiers.load(first).version == 1
    assert first.read_bytes() == before and second.with_suffix(".json").is_file()


def test_it_is_the_same_after_it_was_saved(fitted, frames, tmp_path):
    classifiers.save(fitted, tmp_path / "c")
    again = classifiers.load(tmp_path / "c")
    assert np.array_equal(again.logits(frames.observation), fitted.logits(frames.observation))
    assert (again.threshold, again.hold_steps, again.preprocessing) == (
        fitted.threshold, fitted.hold_steps, fitted.preprocessing,
    )  # fmt: skip
    assert len(again.about["trained_on"]) == 12


def test_what_is_no_classifier_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not there: train one, robot-rl reward train"):
        classifiers.load(tmp_path / "none")
    path = classifiers.save(linear_classifier("height", [2.0], 1.0), tmp_path / "c")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged"):
        classifiers.load(tmp_path / "c")


def test_a_classifier_says_which_observation_it_misses():
    found = linear_classifier("height", [2.0], 1.0)
    assert found.difference(FIELDS) == ""
    assert "'height' is float32[1] there and float32[2] here" in found.difference({"height": ((2,), "float32")})
    assert "missing here" in found.difference({})
    with pytest.raises(ValueError, match="observation 'height' is missing"):
        found.probability({"width": np.zeros(1, np.float32)})
    assert found.probability({"height": np.array([0.25])}) == pytest.approx(numbers.sigmoid(np.array(1.5)), abs=1e-6)
