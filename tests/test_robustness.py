"""The attack on a test set, against a linear model whose distances are known."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import devices
from experiments.robustness import LOSSES, withstood

RADII = (0.02, 0.05, 0.1)
# The example's distance to the boundary, as a dual norm of the weights divides the margin.
DUAL = {2: 2, np.inf: 1}


def linear(params, x):
    """Two classes along one direction, and a third that is never near."""
    score = jnp.vdot(params["w"], x) - params["b"]
    return jnp.stack([score, -score, -100 - 0 * score])


@pytest.fixture(scope="module")
def example():
    """Well inside the box, so that the balls are not cut."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, 3))
    images = rng.uniform(0.35, 0.65, size=(23, 3, 3))
    params = {"w": jnp.asarray(w), "b": jnp.asarray(w.sum() / 2)}
    scores = np.tensordot(images, w, axes=2) - w.sum() / 2
    labels = (scores < 0).astype(np.int32)
    labels[:2] = 1 - labels[:2]  # misclassified from the start
    return params, images, labels, np.abs(scores)


def attack(example, order, **options):
    params, images, labels, _ = example
    options = {"radii": RADII, "key": jax.random.key(0), "num_steps": 10, **options}
    return list(withstood(linear, params, images, labels, order=order, **options))


@pytest.mark.parametrize("order", DUAL)
@pytest.mark.parametrize("loss", LOSSES)
def test_robust_examples_are_those_farther_than_the_radius(example, order, loss):
    params, *_, scores = example
    distance = scores / np.linalg.norm(np.asarray(params["w"]).ravel(), DUAL[order])
    results = attack(example, order, losses=[LOSSES[loss]])
    assert [radius for radius, _ in results] == [0, *RADII[::-1]]
    shares = []
    for radius, right in results:
        expected = distance > radius
        expected[:2] = False
        np.testing.assert_array_equal(right, expected)
        shares.append(right.mean())
    assert 1 > shares[0] > shares[-1] > shares[1], "the radii are to matter"


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_batch_size_changes_nothing(example, batch_size):
    weak = {"num_steps": 2, "losses": [LOSSES["DLR"]]}
    whole = attack(example, 2, batch_size=23, **weak)
    for (_, right), (_, expected) in zip(
        attack(example, 2, batch_size=batch_size, **weak), whole, strict=True
    ):
        np.testing.assert_array_equal(right, expected)


@pytest.mark.parametrize("count", [2, 8])
def test_devices_change_nothing(example, count):
    """On two, three batches of ten; on eight, one of all, filled up."""
    weak = {"num_steps": 2, "losses": [LOSSES["DLR"]], "num_restarts": 2}
    one = attack(example, 2, **weak)
    got = attack(example, 2, batch_size=5, mesh=devices.mesh(count), **weak)
    for (_, right), (_, expected) in zip(got, one, strict=True):
        np.testing.assert_array_equal(right, expected)
    # The attack is so weak that its starts decide.
    other = attack(example, 2, key=jax.random.key(1), **weak)
    assert any(np.any(got != wanted) for (_, got), (_, wanted) in zip(other, one, strict=True))


def test_radii_in_any_order_come_from_the_largest(example):
    results = attack(example, np.inf, radii=RADII, num_steps=3)
    assert [radius for radius, _ in results] == [0, *RADII[::-1]]
    (_, clean), *attacked = results
    for (_, before), (_, after) in itertools.pairwise([*attacked, (0, clean)]):
        assert not np.any(before & ~after)


def test_what_withstands_the_largest_radius_is_attacked_once(example):
    params, images, labels, _ = example
    calls = []

    def counting(params, x):
        jax.debug.callback(lambda: calls.append(1))
        return linear(params, x)

    def number(*radii):
        run = partial(withstood, counting, params, images, labels, order=2, radii=radii)
        robust = [right for _, right in run(key=jax.random.key(0), num_steps=5)][1:]
        jax.effects_barrier()
        told = len(calls), robust
        calls.clear()
        return told

    # Radii that nothing is broken at, and one that breaks everything.
    once, (all_of_them,) = number(1e-3)
    thrice, robust = number(1e-3, 1e-4, 1e-5)
    assert thrice == once
    for right in robust:
        np.testing.assert_array_equal(right, all_of_them)
    after_breaking, (nothing, anew) = number(9.0, 1e-3)
    assert not nothing.any()
    np.testing.assert_array_equal(anew, all_of_them)
    assert after_breaking > once


def test_restarts_and_losses_only_lower_the_accuracy():
    """A loss with many maxima: one short attack misses what several find."""

    def bumpy(params, x):
        score = jnp.sum(jnp.sin(params["frequency"] * x)) + 0.5
        return jnp.stack([score, -score, -100 - 0 * score])

    rng = np.random.default_rng(1)
    images = rng.uniform(0.2, 0.8, size=(60, 2)).astype(np.float32)
    run = partial(
        withstood, bumpy, {"frequency": 40.0}, images, np.zeros(60, np.int32),
        order=2, radii=[0.05], key=jax.random.key(0), num_steps=3,
    )  # fmt: skip
    one = dict(run(losses=[LOSSES["cross-entropy"]]))[0.05]
    restarts = dict(run(losses=[LOSSES["cross-entropy"]], num_restarts=8))[0.05]
    both = dict(run())[0.05]
    for more in (restarts, both):
        assert not np.any(more & ~one)
    assert restarts.sum() < one.sum()


def test_a_model_of_nan_withstands_nothing():
    def broken(params, x):
        return params["scale"] * jnp.full(3, jnp.nan) + 0 * jnp.sum(x)

    images, labels = np.full((4, 2), 0.5, np.float32), np.zeros(4, np.int32)
    results = withstood(
        broken,
        {"scale": 1.0},
        images,
        labels,
        order=2,
        radii=[0.1],
        key=jax.random.key(0),
        num_steps=1,
    )
    assert [right.any() for _, right in results] == [False, False]
