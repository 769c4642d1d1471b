"""Losses and constraints of a learned reward, against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robot_rl.reward import losses


def test_cross_entropy_is_its_formula_and_has_no_overflow():
    logit, target = jnp.array([-2.0, 0.5, 3.0]), jnp.array([0.0, 0.3, 1.0])
    p = 1 / (1 + np.exp(-np.asarray(logit, np.float64)))
    expected = -np.asarray(target) * np.log(p) - (1 - np.asarray(target)) * np.log(1 - p)
    assert np.asarray(losses.cross_entropy(logit, target)) == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(losses.cross_entropy(jnp.array([-300.0, 300.0]), jnp.array([1.0, 0.0]))).all()


def test_smoothing_pulls_to_the_middle():
    assert np.asarray(losses.smooth(jnp.array([0.0, 1.0]), 0.2)) == pytest.approx([0.1, 0.9])


def test_mixup_blends_rows_and_targets_by_the_same_share():
    inputs = {"x": jnp.arange(6.0).reshape(6, 1), "y": 2.0 * jnp.arange(6.0).reshape(6, 1, 1)}
    mixed, target = losses.blended((inputs, jnp.arange(6.0)), losses.draw_blend(np.random.default_rng(0), 6, 0.5))
    assert np.asarray(mixed["x"][:, 0]) == pytest.approx(np.asarray(target), rel=1e-5)
    assert np.asarray(mixed["y"][:, 0, 0]) == pytest.approx(2 * np.asarray(target), rel=1e-5)
    assert not np.allclose(target, np.arange(6.0)) and target.min() >= 0.0 and target.max() <= 5.0


@pytest.mark.parametrize("slope, expected", [(3.0, 4.0), (1.0, 0.0), (0.2, 0.0)])
def test_the_gradient_penalty_is_one_sided(slope, expected):
    rows = {"a": jnp.ones((4, 2)), "b": jnp.zeros((4, 3, 1))}  # of the slope in all of them together
    size = 2 + 3

    def score(x):
        return slope / np.sqrt(size) * (x["a"].sum(axis=1) + x["b"].sum(axis=(1, 2)))

    assert float(losses.gradient_penalty(score, rows, losses.draw_blend(np.random.default_rng(0), 4))) == pytest.approx(
        expected, abs=1e-5
    )


def test_the_gradient_penalty_s_own_gradient_agrees_with_finite_differences():
    rng = np.random.default_rng(0)
    x, blend = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32), losses.draw_blend(rng, 5)

    def penalty(weight):
        return losses.gradient_penalty(lambda row: jnp.sum(jnp.tanh(row * weight) * 3.0, axis=1), x, blend)

    weight = jnp.array([0.9, -1.3, 2.0])
    slope = jax.grad(penalty)(weight)
    for index in range(3):
        step = jnp.zeros(3).at[index].set(1e-2)
        assert float(slope[index]) == pytest.approx(
            float(penalty(weight + step) - penalty(weight - step)) / 2e-2, rel=0.02
        )


def test_spectral_norm_agrees_with_the_singular_values():
    rng = np.random.default_rng(0)
    params = {
        "conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 4, 8)), jnp.float32), "bias": jnp.ones(8)},
        "dense": {"kernel": jnp.asarray(5.0 * rng.normal(size=(6, 2)), jnp.float32)},
    }
    assert float(losses.largest_singular_value(params["dense"]["kernel"])) == pytest.approx(
        np.linalg.svd(np.asarray(params["dense"]["kernel"]))[1][0], rel=1e-3
    )
    normed = losses.spectral_norm(params)
    for kernel in (normed["conv"]["kernel"].reshape(-1, 8), normed["dense"]["kernel"]):
        assert np.linalg.svd(np.asarray(kernel), compute_uv=False)[0] == pytest.approx(1.0, rel=0.05)
    assert np.array_equal(normed["conv"]["bias"], np.ones(8))
