"""Image encoders: shapes, one scaling, what learns and what is frozen, pretrained weights; and the random shift."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from robot_rl import augment, encoders, pretrained
from tests import torch_nets

CAMERAS = ("front", "wrist")
NETWORKS = {"resnet10": torch_nets.ResNet10, "resnet18": torch_nets.ResNet18}


def space_of(side=32, height=None):
    box = spaces.Box(0, 255, (height or side, side, 3), np.uint8)
    return spaces.Dict(dict.fromkeys(CAMERAS, box))


def images(shape=(2,), side=32, height=None, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 256, (*shape, height or side, side, 3), np.uint8) for name in CAMERAS}


def build(seed=0, side=32, height=None, **changes):
    encoder = encoders.make(encoders.Settings(latent=8, **changes), CAMERAS)
    return encoder, *encoder.init(jax.random.key(seed), space_of(side, height))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights for each residual encoder, and the torch network that they are of."""
    folder, made = tmp_path_factory.mktemp("weights"), {}
    for name, network in NETWORKS.items():
        network = torch_nets.random(network())
        suffix = "safetensors" if name == "resnet10" else "pth"
        made[name] = folder / f"{name}.{suffix}", network
    save_file(made["resnet10"][1].state_dict(), made["resnet10"][0])
    torch.save(made["resnet18"][1].state_dict(), made["resnet18"][0])
    return made


@pytest.mark.parametrize("encoder", encoders.TRUNKS)
def test_every_encoder_runs_on_any_leading_axes_and_learns_with_all_that_is_trained(encoder):
    """A peer's catalogue had two encoders that could not be called; another's classifier kept five of eleven tensors at
    random for ever, behind a stopped gradient."""
    made = encoders.make(encoders.Settings(latent=8, encoder=encoder, pool="spatial"), CAMERAS[:1])
    params, frozen = made.init(jax.random.key(0), space_of())
    assert frozen is None and made.size == 8

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def run(params, seen):
        features = made.apply(params, frozen, seen)
        return jnp.sum(features**3), features

    grads, features = run(params, images((3, 2)))
    assert features.shape == (3, 2, 8) and features.dtype == jnp.float32
    assert np.all(np.abs(features) <= 1.0) and np.std(features) > 0.01
    for place, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(grad).max() > 0, f"{jax.tree_util.keystr(place)} learns nothing"


@pytest.mark.parametrize("pool", encoders.POOLS)
def test_every_pool_reads_a_map(pool):
    readout, maps = encoders.Readout(pool, 8, 0.0), np.random.default_rng(0).normal(size=(3, 4, 5, 6))
    variables = readout.init(jax.random.key(0), maps, False)
    assert readout.apply(variables, maps, False).shape == (3, 8)
    pooled = {"flat": 120, "mean": 6, "spatial": 6 * 8}[pool]
    assert variables["params"]["Dense_0"]["kernel"].shape == (pooled, 8)


def test_spatial_embeddings_by_hand():
    """phi[b, c, f] = sum over h, w of map[b, h, w, c] kernel[h, w, c, f], before the Dense."""
    readout, maps = encoders.Readout("spatial", 4, 0.0), np.random.default_rng(0).normal(size=(2, 3, 3, 5))
    variables = readout.init(jax.random.key(0), maps, False)
    kernel, dense = variables["params"]["embeddings"], variables["params"]["Dense_0"]
    pooled = np.stack([[(maps[b, ..., None] * kernel)[:, :, c].sum((0, 1)) for c in range(5)] for b in range(2)])
    x = pooled.reshape(2, -1) @ dense["kernel"] + dense["bias"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(readout.apply(variables, maps, False), np.tanh(x), atol=1e-5)


def test_leading_axes_change_nothing():
    made, params, frozen = build()
    seen = images((3, 2))
    one = made.apply(params, frozen, {name: image[1, 0] for name, image in seen.items()})
    np.testing.assert_allclose(one, made.apply(params, frozen, seen)[1, 0], atol=1e-5)


def test_other_shapes_than_squares_of_sixteenths():
    made, params, frozen = build(side=50, height=41)
    assert made.apply(params, frozen, images((1,), side=50, height=41)).shape == (1, 16)


def test_images_are_scaled_once_and_nowhere_else():
    made, params, frozen = build()
    seen = images()
    for wrong in (jnp.float32, jnp.int32):
        with pytest.raises(TypeError, match=f"image 'front' is {wrong.__name__}: give uint8"):
            made.apply(params, frozen, {name: jnp.asarray(image, wrong) for name, image in seen.items()})
    resnet = encoders.TRUNKS["resnet10"]
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[..., :] = np.round(np.array(encoders.IMAGENET_MEAN) * 255)  # ImageNet's mean colour is a zero for it
    variables = jax.jit(resnet.init)(jax.random.key(0), image)
    _, kept = jax.jit(partial(resnet.apply, capture_intermediates=True))(variables, image)
    stem = kept["intermediates"]["stem"]["__call__"][0]
    assert np.abs(stem[0, 8, 8]).max() < 0.05, "the mean colour is no zero"


def test_each_camera_has_its_own_small_trunk_and_all_share_a_residual_one():
    _, own, _ = build()
    assert set(own["trunk"]) == set(CAMERAS)
    assert not np.array_equal(*(jax.tree.leaves(own["trunk"][name])[1] for name in CAMERAS))
    _, shared, _ = build(encoder="resnet10")
    assert "stem" in shared["trunk"] and set(shared["readout"]) == set(CAMERAS)


def test_a_camera_s_image_moves_its_own_features_only():
    made, params, frozen = build()
    seen = images()
    other = seen | {"wrist": 255 - seen["wrist"]}
    before, after = (np.asarray(made.apply(params, frozen, shown)) for shown in (seen, other))
    np.testing.assert_array_equal(before[:, :8], after[:, :8])
    assert np.abs(before[:, 8:] - after[:, 8:]).max() > 0.01


def test_frozen_is_out_of_reach_of_gradient_and_weight_decay(monkeypatch, tmp_path):
    monkeypatch.setitem(encoders.TRUNKS, "resnet10", encoders.ResNet((1,), grouped=True))  # one stage: compiles sooner
    state, file = torch_nets.random(torch_nets.ResNet10()).state_dict(), str(tmp_path / "small.safetensors")
    save_file({name: value for name, value in state.items() if "stages" not in name or "stages.0" in name}, file)
    made, params, frozen = build(encoder="resnet10", pretrained=file, frozen=True)
    assert set(params) == {"readout"} and frozen is not None
    seen = images()
    optimiser = optax.adamw(0.1, weight_decay=0.1)
    state, first = optimiser.init(params), params

    @jax.jit
    @partial(jax.grad, allow_int=True, argnums=(0, 1))
    def grads(params, frozen):
        return jnp.sum(made.apply(params, frozen, seen))

    for _ in range(2):
        own, through = grads(params, frozen)
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(through.params))
        updates, state = optimiser.update(own, state, params)
        params = optax.apply_updates(params, updates)
    assert all(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first, params)), strict=True))
    again = build(9, encoder="resnet10", pretrained=file, frozen=True)[2]
    assert again.checksum == frozen.checksum, "the same file, another seed: the same trunk"


def test_dropout_drops_while_training_and_never_else():
    made, params, frozen = build(dropout=0.5)
    seen = images()
    still = [np.asarray(made.apply(params, frozen, seen)) for _ in range(2)]
    np.testing.assert_array_equal(*still)
    dropped = [np.asarray(made.apply(params, frozen, seen, jax.random.key(seed))) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(*dropped[:2])
    assert not np.allclose(dropped[0], dropped[2]) and not np.allclose(dropped[0], still[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_pretrained_weights_give_the_features_they_gave_in_torch(name, weights):
    path, network = weights[name]
    _, params, _ = build(encoder=name, pretrained=str(path), side=64)
    image = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    scaled = (image / 255.0 - np.array(encoders.IMAGENET_MEAN)) / np.array(encoders.IMAGENET_STD)
    with torch.no_grad():
        theirs = network(torch.tensor(scaled.transpose(0, 3, 1, 2), dtype=torch.float32)).numpy().transpose(0, 2, 3, 1)
    ours = jax.jit(encoders.TRUNKS[name].apply)({"params": params["trunk"]}, image)
    assert ours.shape == theirs.shape == (2, 2, 2, 512) and np.abs(theirs).max() > 0.5
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_a_wrong_file_is_refused_by_the_name_of_the_tensor(weights, tmp_path):
    good = weights["resnet10"][1].state_dict()
    like = jax.jit(encoders.TRUNKS["resnet10"].init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3), jnp.uint8))["params"]

    def refused(state, message, error=ValueError):
        save_file({name: value.clone() for name, value in state.items()}, tmp_path / "x.safetensors")
        with pytest.raises(error, match=message):
            pretrained.load(tmp_path / "x.safetensors", like, grouped=True)

    name = "encoder.stages.2.conv1.weight"
    refused({key: value for key, value in good.items() if key != name}, f"tensor '{name}' is missing")
    refused(good | {name: good[name][:, :64]}, rf"tensor '{name}' gives \(3, 3, 64, 256\)")
    refused(good | {name: good[name] * float("nan")}, f"tensor '{name}' is not finite")
    refused(
        good | {"encoder.stages.4.conv1.weight": good[name]}, "'encoder.stages.4.conv1.weight' and 0 more have no place"
    )
    refused(weights["resnet18"][1].state_dict(), "no place in this encoder: it is a file for another network")
    with pytest.raises(FileNotFoundError, match="there is no such file; nothing is downloaded"):
        pretrained.load(tmp_path / "none.safetensors", like, grouped=True)
    (tmp_path / "y.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match="is no safetensors file"):
        pretrained.load(tmp_path / "y.safetensors", like, grouped=True)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return ran.touch, ()

    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="no checkpoint of tensors alone"):
        pretrained.read(tmp_path / "evil.pth")
    assert not ran.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frozen": True, "encoder": "resnet10"}, "frozen = true without pretrained"),
        ({"pretrained": "x.safetensors"}, "'conv' is trained from nothing"),
        ({"frozen": True}, "'conv' is trained from nothing"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def shifted_by_hand(image, down, right, most_px):
    padded = np.pad(image, ((most_px, most_px), (most_px, most_px), (0, 0)), mode="edge")
    return padded[most_px + down :, most_px + right :][: image.shape[0], : image.shape[1]]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), most_px=st.integers(1, 5))
def test_the_shift_is_a_crop_of_the_edge_padded_image(seed, most_px):
    seen = np.random.default_rng(seed).integers(0, 256, (2, 3, 12, 9, 3), np.uint8)
    moved = np.asarray(augment.random_shift(jax.random.key(seed), seen, most_px))
    offset = jax.random.randint(jax.random.key(seed), (6, 2), -most_px, most_px + 1)
    for before, after, (down, right) in zip(seen.reshape(6, 12, 9, 3), moved.reshape(6, 12, 9, 3), offset, strict=True):
        np.testing.assert_array_equal(after, shifted_by_hand(before, int(down), int(right), most_px))


def test_shifts_are_drawn_per_image_evenly_and_by_the_key():
    """A ramp tells how far it was moved; all offsets come, about equally often."""
    ramp = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None], (4000, 40, 8, 1))
    moved = np.asarray(augment.random_shift(jax.random.key(0), ramp, 4))[:, 20, 4, 0].astype(int) - 20
    counts = np.bincount(moved + 4, minlength=9)
    assert len(counts) == 9 and counts.min() > 0.8 * 4000 / 9
    again, other = (np.asarray(augment.random_shift(jax.random.key(seed), ramp, 4)) for seed in (0, 1))
    assert np.array_equal(again[:, 20, 4, 0] - 20, moved.astype(np.uint8)) and not np.array_equal(again, other)
    assert np.array_equal(augment.random_shift(jax.random.key(0), ramp, 0), ramp)


def test_cameras_are_shifted_apart():
    one = images((16,))["front"]
    moved = augment.shift_cameras(jax.random.key(0), {"a": one, "b": one}, 4)
    assert not np.array_equal(moved["a"], moved["b"])
