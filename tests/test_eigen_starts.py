"""The vectors that eigen-solvers start from."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessjax
from tests import cases


@pytest.mark.parametrize("start", [hessjax.gradient_start, hessjax.random_start])
def test_starts_are_unit_and_like_the_gradient(start: Any) -> None:
    for gradient in (
        jnp.asarray(cases.vector(6)),
        jnp.zeros((2, 3)),
        {"a": jnp.ones((2, 2), jnp.float32), "b": jnp.zeros(3, jnp.float32)},
        {"a": jnp.zeros(3), "b": jnp.zeros(3)},
        jnp.full(4, 1e-30, jnp.float32),
    ):
        v0 = jax.jit(start)(gradient, jax.random.key(2))
        assert jax.tree.structure(v0) == jax.tree.structure(gradient)
        for leaf, like in zip(jax.tree.leaves(v0), jax.tree.leaves(gradient), strict=True):
            assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)
        np.testing.assert_allclose(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(v0)), 1, 1e-5)


def test_gradient_start_is_the_gradient_without_a_key_too() -> None:
    gradient = jnp.asarray([3.0, 0.0, -4.0])
    np.testing.assert_allclose(hessjax.gradient_start(gradient, None), [0.6, 0.0, -0.8])
    np.testing.assert_allclose(
        hessjax.gradient_start(1e-300 * gradient, jax.random.key(0)), [0.6, 0.0, -0.8]
    )


def test_gradient_start_falls_back_to_the_key_or_a_fixed_one() -> None:
    zero = jnp.zeros(5)
    first, second = (hessjax.gradient_start(zero, jax.random.key(seed)) for seed in (1, 2))
    assert not np.allclose(first, second)
    without = hessjax.gradient_start(zero, None)
    np.testing.assert_array_equal(without, hessjax.gradient_start(zero, None))
    assert jnp.linalg.norm(without) > 0.99


def test_every_entry_of_the_fallback_has_a_sign_of_its_own() -> None:
    # One entry more than two random words have bits. Within five standard errors.
    keys = jax.random.split(jax.random.key(5), 400)
    starts = jax.vmap(hessjax.gradient_start, (None, 0))(jnp.zeros(65), keys) * np.sqrt(65)
    np.testing.assert_allclose(np.abs(starts), 1, rtol=1e-12)
    np.testing.assert_allclose(np.mean(starts, 0), 0, atol=5 / np.sqrt(400))
    np.testing.assert_allclose(starts.T @ starts / 400, np.eye(65), atol=5 / np.sqrt(400))


def test_random_start_follows_its_key_alone() -> None:
    key = jax.random.key(3)
    one, other = hessjax.random_start(jnp.ones(5), key), hessjax.random_start(jnp.arange(5.0), key)
    np.testing.assert_array_equal(one, other)
    assert not np.allclose(one, hessjax.random_start(jnp.ones(5), jax.random.key(4)))
    leaves = hessjax.random_start({"a": jnp.ones(5), "b": jnp.ones(5)}, key)
    assert not np.allclose(leaves["a"], leaves["b"])
    # Uniform on the sphere: mean zero, covariance the identity over n, within five standard errors.
    many = jax.jit(jax.vmap(hessjax.random_start, (None, 0)))(
        jnp.ones(3), jax.random.split(key, 20_000)
    )
    np.testing.assert_allclose(jnp.mean(many, 0), 0, atol=5 / np.sqrt(3 * 20_000))
    np.testing.assert_allclose(many.T @ many / 20_000, np.eye(3) / 3, atol=5 / np.sqrt(5 * 20_000))


def test_random_start_needs_a_key() -> None:
    with pytest.raises(ValueError, match=r"^a random start needs key=.*, got None$"):
        hessjax.random_start(jnp.ones(3), None)
