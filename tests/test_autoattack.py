"""AutoAttack against the reference implementation, and the promises of its driver."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pyautoattack import AutoAttack

from hessjax import LpBall
from hessjax.attacks import (
    STANDARD,
    Attack,
    Outcome,
    apgd_attack,
    auto_attack,
    fab_attack,
    square_attack,
)
from hessjax.attacks.attack import with_options
from hessjax.attacks.batches import put
from hessjax.losses import targeted_dlr_loss
from tests import originals
from tests.short import KEY, LOGITS, PARAMS, RADII, SHORT, attacked, same

CORNER = np.sign(np.random.default_rng(5).normal(size=originals.SHAPE))


@pytest.mark.usefixtures("torch_float64")
@pytest.mark.parametrize("order", RADII)
def test_verdicts_are_those_of_the_reference(order):
    """Few queries of Square, the only attack that need not find the same: it finds nothing here."""
    x, y = originals.examples(PARAMS, 60, seed=3)
    model, _ = originals.network(PARAMS)
    reference = AutoAttack(model, norm=originals.NORMS[order], eps=RADII[order], seed=0)
    reference.square.n_queries = 100
    images, labels = originals.batch(x, y)
    x_adv, _ = reference.run_standard_evaluation(images, labels)
    expected = np.asarray(model(x_adv).argmax(dim=1) == labels)

    attacks = (*STANDARD[:3], square_attack(num_steps=100))
    result = auto_attack(LOGITS, x, y, LpBall(RADII[order], order), KEY, attacks=attacks)
    assert 0.1 < np.mean(expected) < 0.9, "the radius is to matter"
    np.testing.assert_array_equal(result.robust, expected)
    assert not result.warnings


@pytest.mark.parametrize("order", RADII)
def test_the_fields_fit_each_other(examples, order):
    x, y = examples
    ball = LpBall(RADII[order], order)
    result = attacked(LOGITS, x, y, ball)
    broken_by = np.asarray(result.broken_by)
    assert set(broken_by) >= {-2, -1, 0}
    assert list(broken_by[:2]) == [-2, -2]
    np.testing.assert_array_equal(result.robust, broken_by == -1)
    right = np.asarray(jax.vmap(LOGITS)(result.x)).argmax(axis=1) == y
    np.testing.assert_array_equal(right, broken_by == -1)
    np.testing.assert_array_equal(np.asarray(result.x)[broken_by < 0], x[broken_by < 0])
    assert np.all((np.asarray(result.x) >= 0) & (np.asarray(result.x) <= 1))
    lengths = np.linalg.norm((result.x - x).reshape(len(x), -1), ord=order, axis=1)
    np.testing.assert_allclose(result.distance, lengths, atol=1e-15)
    assert np.all(lengths <= ball.epsilon * (1 + 1e-12))


@pytest.mark.parametrize("order", RADII)
@pytest.mark.parametrize("epsilon", [1 / 255, 8 / 255])
def test_a_point_on_the_surface_counts_in_float32(order, epsilon):
    """What is found lies outside by the rounding of its entries, which are far larger than ε."""
    rng = np.random.default_rng(0)
    w, base = rng.normal(size=(20, 20)), rng.uniform(0.6, 0.9, size=(20, 20))
    reach = epsilon * (np.abs(w).sum() if order == np.inf else np.linalg.norm(w))
    scores = np.linspace(0.1, 0.99, 40) * reach
    x = (base + scores[:, None, None] * w / np.sum(w**2)).astype(np.float32)
    offset = jnp.float32(np.sum(w * base))

    def logits_fn(x):
        score = jnp.sum(jnp.asarray(w, jnp.float32) * x) - offset
        return jnp.stack([score, -score])

    result = attacked(logits_fn, x, np.zeros(40, int), LpBall(epsilon, order), attacks=SHORT[:1])
    assert not jnp.any(result.robust)
    assert jnp.all(result.distance <= epsilon * (1 + 1e-4))


def test_attacks_come_one_after_the_other_on_what_is_left(examples):
    x, y = examples
    ball = LpBall(RADII[2], 2)
    whole = attacked(LOGITS, x, y, ball)
    first = attacked(LOGITS, x, y, ball, attacks=SHORT[:1])
    broken = np.asarray(first.broken_by) == 0
    np.testing.assert_array_equal(np.asarray(whole.broken_by) == 0, broken)
    np.testing.assert_array_equal(np.asarray(whole.x)[broken], np.asarray(first.x)[broken])


@pytest.mark.parametrize("batch_size", [3, 100])
def test_the_batch_size_changes_nothing(examples, batch_size):
    x, y = examples
    ball = LpBall(RADII[2], 2)
    same(attacked(LOGITS, x, y, ball, batch_size=batch_size), attacked(LOGITS, x, y, ball))


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_nor_does_it_with_keys_whose_numbers_depend_on_the_batch(examples, impl):
    x, y = examples
    ball, key = LpBall(RADII[2], 2), jax.random.key(0, impl=impl)
    results = [
        attacked(LOGITS, x, y, ball, key=key, batch_size=size, attacks=SHORT[2:])
        for size in (8, 64)
    ]
    same(*results)


@pytest.mark.parametrize(
    "make",
    [
        partial(apgd_attack, num_steps=3),
        partial(apgd_attack, num_steps=3, num_targets=2, loss=targeted_dlr_loss),
        partial(fab_attack, num_targets=0),
        partial(square_attack, initial_share=0.5),
    ],
    ids=["apgd", "apgd-t", "fab", "square"],
)
def test_what_is_compiled_of_an_attack_is_found_again_when_it_is_made_anew(make):
    """Programs are found by the functions that they were made of, which partials hide."""
    assert make() == make()
    assert make() != make(num_steps=4)


def test_the_options_of_an_attack_may_be_unhashable():
    def step(*, options: object) -> object:
        return options

    options = {"share": 0.5}
    assert with_options(step, options=options)() is options


def test_what_fills_a_batch_is_not_kept():
    """A randomized model may break the copy of an example that it leaves."""
    points = jnp.arange(4.0)[:, None]
    kept = put(jnp.full((3, 1), 9.0), np.array([0, 2, 2, 2]), points, 2)
    np.testing.assert_array_equal(kept, [[0], [9], [1]])


def test_keys_are_those_of_places(examples):
    """The first examples alone are attacked as they are among others."""
    x, y = examples
    ball = LpBall(RADII[2], 2)
    whole, part = attacked(LOGITS, x, y, ball), attacked(LOGITS, x[:9], y[:9], ball)
    np.testing.assert_array_equal(part.broken_by, whole.broken_by[:9])
    np.testing.assert_allclose(part.x, whole.x[:9], atol=1e-9)


def test_chance_is_that_of_the_key_and_the_place(examples):
    """One example at two places is broken at two points, and by another key at others."""
    x, y = np.repeat(examples[0][5:6], 2, axis=0), np.repeat(examples[1][5:6], 2)
    points = [
        attacked(LOGITS, x, y, LpBall(1.0, 2), key=jax.random.key(seed), attacks=SHORT[:1]).x
        for seed in (0, 1)
    ]
    assert len(np.unique(np.concatenate(points)[:, 0, 0, 0])) == 4


def test_nothing_is_compiled_anew(examples):
    """Not as batches shrink, nor for another radius, nor for other weights."""
    traced = []

    def apply(params, x):
        traced.append(x.shape)
        return originals.logits_fn(params, x)

    x, y = examples
    run = partial(attacked, x=x, y=y, attacks=SHORT[:2])
    run(jax.tree_util.Partial(apply, PARAMS), ball=LpBall(0.02, 2))
    before = len(traced)
    other = jax.tree_util.Partial(apply, originals.weights(seed=0))
    for epsilon in (0.1, 0.3, 1.0):
        run(other, ball=LpBall(epsilon, 2))
    assert len(traced) == before


@pytest.mark.parametrize("wrapped", [lambda f: f, jax.tree_util.Partial])
def test_a_function_without_leaves_is_asked_for_the_weights_that_it_has_now(wrapped):
    model = {"w": np.array([[1.0, -1.0], [-1.0, 1.0]])}

    def logits_fn(x):
        return jnp.asarray(model["w"]) @ x

    x, y = jnp.array([[0.9, 0.2], [0.6, 0.5]]), np.array([0, 0])
    run = partial(attacked, x=x, y=y, ball=LpBall(0.1, 2), attacks=SHORT[:1])
    assert run(wrapped(logits_fn)).broken_by.tolist() == [-1, 0]
    model["w"] = -model["w"]
    assert run(wrapped(logits_fn)).broken_by.tolist() == [-2, -2]


def test_attacks_may_come_one_by_one(examples):
    x, y = examples
    run = partial(attacked, LOGITS, x, y, LpBall(RADII[2], 2))
    same(run(attacks=(attack for attack in SHORT[:1])), run(attacks=SHORT[:1]))


@pytest.mark.parametrize("bounds", [(0, 1), (0.05, 0.95)])
def test_an_attack_of_ones_own(examples, bounds):
    """Anything of an init, a step and an outcome takes part; outside the box nothing counts."""
    x, y = examples

    def init(*given, run):
        return given[1] + 0.0 * run  # the example

    def step(*given):
        return given[1] + given[3].epsilon * CORNER

    def outcome(*given):
        return Outcome(given[1], jnp.zeros(()), jnp.bool(1))

    lame = Attack("lame", init, step, outcome, num_steps=1)
    ball = LpBall(0.03, np.inf, bounds)
    result = attacked(LOGITS, x, y, ball, attacks=(lame,))
    points = x + 0.03 * CORNER
    moved = np.asarray(jax.vmap(LOGITS)(points)).argmax(axis=1) != y
    moved &= np.asarray(result.broken_by) != -2
    assert moved.any()
    inside = np.all((bounds[0] <= points) & (points <= bounds[1]), axis=(1, 2, 3))
    assert np.all(inside) == (bounds == (0, 1))
    np.testing.assert_array_equal(np.asarray(result.broken_by) == 0, moved & inside)
