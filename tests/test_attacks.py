"""FGSM and PGD against closed forms on linear classifiers and a plain loop in NumPy."""

import functools
import math
from collections import Counter
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hessjax.attacks import (
    LpBall,
    apgd,
    fab,
    fgsm,
    pgd,
    pgd_init,
    pgd_result,
    pgd_step,
    random_point,
    square,
)
from hessjax.losses import dlr_loss, margin, misclassified
from tests import cases

cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
ORDERS = (2, math.inf)
NO_BOX = (-math.inf, math.inf)
KEY = jax.random.key(50)
WEIGHTS = np.random.default_rng(51).normal(size=(4, 7))
EXAMPLE = np.random.default_rng(55).uniform(size=7)
LABEL = int(np.argmax(WEIGHTS @ EXAMPLE))


def linear(x):
    return jnp.asarray(WEIGHTS, x.dtype) @ x


def negative_margin(logits, y):
    return -margin(logits, y)


CASE = cases.mlp("tanh")


def network(x):
    """Return the logits of a small perceptron, five classes, at inputs in [0, 1]."""
    return CASE.apply(CASE.params, 4 * (x - 0.5))


NETWORK_X = jnp.asarray(np.random.default_rng(52).uniform(size=(8, 6)))
NETWORK_Y = jnp.argmax(jax.vmap(network)(NETWORK_X), axis=1)
NUM_STEPS = 7
TRACES = Counter()


@functools.cache
def compiled(order, loss, num_restarts):
    """Return batched PGD on the network: ``(epsilon, step_size, x, y, key) -> x_adv``.

    Radius and step are traced, so that one compilation serves many tests; `TRACES` counts it.
    """

    def run(epsilon, step_size, x, y, key):
        TRACES[order, loss, num_restarts] += 1
        attack = partial(
            pgd, network, ball=LpBall(epsilon, order), key=key, loss=loss, num_steps=NUM_STEPS
        )
        attack = partial(attack, step_size=step_size, num_restarts=num_restarts)
        return jax.vmap(attack)(x, y)

    return jax.jit(run)


# Linear classifiers, where the best attack is known.


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("loss", [cross_entropy, dlr_loss])
def test_fgsm_is_its_formula(order, loss):
    gradient = np.asarray(jax.grad(lambda x: loss(linear(x), LABEL))(jnp.asarray(EXAMPLE)))
    direction = np.sign(gradient) if order == math.inf else gradient / np.linalg.norm(gradient)
    wanted = np.clip(EXAMPLE + 1.5 * direction, 0, 1)
    assert np.any((wanted == 0) | (wanted == 1)), "the box must matter"
    got = fgsm(linear, EXAMPLE, LABEL, LpBall(1.5, order), loss=loss)
    np.testing.assert_allclose(got, wanted, rtol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_the_distance_of_a_linear_classifier(order):
    """Misclassified just beyond the distance, never before.

    All pairs of classes are equally far apart, so that the second class is the nearest one, and
    the logits are large, so that cross-entropy looks at no other.
    """
    scale, x, y = 30.0, np.array([0.3, 0.9, 0.1, 0.7]), 1
    distance = 0.2 / {2: math.sqrt(2), math.inf: 2}[order]

    @jax.jit
    def attacks(epsilon):
        ball = LpBall(epsilon, order, NO_BOX)
        return [fgsm(lambda t: scale * t, x, y, ball, loss=negative_margin)] + [
            pgd(lambda t: scale * t, x, y, ball, KEY, loss=loss, num_steps=100)
            for loss in (cross_entropy, dlr_loss, negative_margin)
        ]

    for factor, wrong in ((0.999, False), (1.01, True)):
        for x_adv in attacks(factor * distance):
            assert np.linalg.norm(x_adv - x, order) <= factor * distance * (1 + 1e-12)
            assert bool(misclassified(x_adv, y)) == wrong


# Iterates and what is kept of them.


@functools.cache
def gradient(loss):
    return jax.jit(jax.grad(lambda x, y: loss(network(x), y)))


def kept_by_hand(x, y, ball, loss, *, step_size, num_restarts):
    """Run PGD as a Python loop in NumPy and return the iterate it must keep."""
    visited = []
    for restart in range(num_restarts):
        point = np.asarray(random_point(ball, x, jax.random.fold_in(KEY, restart)))
        visited.append(point)
        for _ in range(NUM_STEPS):
            g = np.asarray(gradient(loss)(point, y))
            if ball.order == 2:
                moved = point + step_size * g / np.linalg.norm(g) - x
                moved *= min(1, ball.epsilon / np.linalg.norm(moved))
            else:
                moved = np.clip(point + step_size * np.sign(g) - x, -ball.epsilon, ball.epsilon)
            point = np.clip(x + moved, *ball.bounds)
            visited.append(point)
    logits = jax.vmap(network)(jnp.asarray(np.array(visited)))
    losses = jax.vmap(lambda z: loss(z, y))(logits)
    wrong = np.argmax(logits, 1) != y
    return visited[int(np.argmax(wrong if wrong.any() else losses))], wrong


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("loss", [cross_entropy, dlr_loss])
def test_pgd_is_the_plain_loop(order, loss):
    ball = LpBall((0.3, 0.15)[order == math.inf], order)
    got = compiled(order, loss, 3)(ball.epsilon, 0.1, NETWORK_X, NETWORK_Y, KEY)
    found, first = [], []
    for x, y, x_adv in zip(NETWORK_X, NETWORK_Y, got, strict=True):
        wanted, wrong = kept_by_hand(np.asarray(x), y, ball, loss, step_size=0.1, num_restarts=3)
        found.append(wrong.any())
        first.append(int(np.argmax(wrong)))
        np.testing.assert_allclose(x_adv, wanted, atol=1e-12)
        assert np.linalg.norm(x_adv - x, order) <= ball.epsilon * (1 + 1e-12)
    assert 0 < sum(found) < len(found), "both ways to be kept must occur"
    assert max(first) > 0, "some example must fall after the start"
    assert float(got.min()) == 0 or float(got.max()) == 1, "the box must matter"


def test_restarts_never_hurt():
    outcomes = []
    for restarts in (1, 3):
        # Steps too short to reach from any start what can be reached from the best one.
        x_adv = compiled(math.inf, cross_entropy, restarts)(0.12, 0.01, NETWORK_X, NETWORK_Y, KEY)
        logits = jax.vmap(network)(x_adv)
        wrong = np.asarray(jax.vmap(misclassified)(logits, NETWORK_Y))
        outcomes.append((np.asarray(cross_entropy(logits, NETWORK_Y)), wrong))
    (fewer_loss, fewer_wrong), (loss, wrong) = outcomes
    assert np.all(wrong >= fewer_wrong)
    assert np.all(loss[~wrong] >= fewer_loss[~wrong])
    assert np.any(loss[~wrong] > fewer_loss[~wrong]), "some restart must have found more"


def test_jit_vmap_and_keys():
    run, settings = compiled(2, cross_entropy, 3), (0.3, 0.1)
    batch = run(*settings, NETWORK_X, NETWORK_Y, KEY)
    np.testing.assert_array_equal(batch, run(*settings, NETWORK_X, NETWORK_Y, KEY))
    assert np.any(batch != run(*settings, NETWORK_X, NETWORK_Y, jax.random.key(1)))
    # Neither jit nor vmap; the step is given by its default.
    epsilon = 0.1 * NUM_STEPS / 2.5
    batch = run(epsilon, 0.1, NETWORK_X, NETWORK_Y, KEY)
    for index in (0, 3):
        x, y = NETWORK_X[index], NETWORK_Y[index]
        single = pgd(network, x, y, LpBall(epsilon, 2), KEY, num_steps=NUM_STEPS, num_restarts=3)
        np.testing.assert_allclose(single, batch[index], atol=1e-12)


def test_the_first_misclassified_iterate_is_kept():
    """Against an iterate of larger loss that is not misclassified before, and one that is after."""
    state = pgd_init(linear, EXAMPLE, LABEL, LpBall(0.1, 2), KEY)
    first, second = (jnp.asarray(-factor * EXAMPLE) for factor in (1.0, 2.0))
    state = pgd_result(linear, LABEL, state._replace(x=first, loss=jnp.asarray(1e3)))
    assert bool(state.found)
    np.testing.assert_array_equal(state.best, first)
    np.testing.assert_allclose(state.loss, cross_entropy(linear(first), LABEL), rtol=1e-12)
    later = pgd_result(linear, LABEL, state._replace(x=second))
    assert cross_entropy(linear(second), LABEL) > state.loss
    np.testing.assert_array_equal(later.best, first)


def test_a_driver_of_single_steps_does_what_pgd_does():
    ball, x, y = LpBall(0.3, 2), NETWORK_X[0], NETWORK_Y[0]
    state = pgd_init(network, x, y, ball, jax.random.fold_in(KEY, 0))
    step = jax.jit(partial(pgd_step, network, x, y, ball, step_size=0.1))
    for restart in range(3):
        if restart:
            key = jax.random.fold_in(KEY, restart)
            state = state._replace(x=random_point(ball, x, key))
        for _ in range(NUM_STEPS):
            state = step(state)
        state = pgd_result(network, y, state)
    wanted = compiled(2, cross_entropy, 3)(0.3, 0.1, NETWORK_X, NETWORK_Y, KEY)[0]
    np.testing.assert_allclose(state.best, wanted, atol=1e-12)
    np.testing.assert_allclose(state.loss, cross_entropy(network(wanted), y), rtol=1e-11)
    assert bool(state.found) == bool(misclassified(network(wanted), y))


def test_an_unrolled_loop_does_the_same():
    attack = partial(
        pgd, linear, EXAMPLE, LABEL, LpBall(0.1, math.inf), KEY, num_steps=2, num_restarts=2
    )
    np.testing.assert_allclose(attack(unroll=True), attack(), atol=1e-13)


def test_one_compilation_serves_all_radii_and_steps():
    run = compiled(2, cross_entropy, 3)
    for epsilon, step_size in ((0.05, 0.1), (0.4, 0.1), (0.4, 0.02)):
        run(epsilon, step_size, NETWORK_X, NETWORK_Y, KEY)
    assert TRACES[2, cross_entropy, 3] == 1


def test_a_misclassified_example_is_its_own_attack():
    labels = (NETWORK_Y + 1) % 5
    attacked = compiled(2, cross_entropy, 3)(0.3, 0.1, NETWORK_X, labels, KEY)
    np.testing.assert_array_equal(attacked, NETWORK_X)


@pytest.mark.parametrize(("order", "dtype"), [(2, jnp.bfloat16), (math.inf, jnp.float32)])
def test_shape_and_dtype_are_kept(order, dtype):
    x = jnp.full((3, 2, 1), 0.5, dtype)

    def logits(x):
        return jnp.stack([x.sum(), 2 * x[0, 0, 0], 3 * x[1, 0, 0]])

    ball = LpBall(0.125, order)
    attacks = jax.jit(
        lambda x: (fgsm(logits, x, 0, ball), pgd(logits, x, 0, ball, KEY, num_steps=3))
    )
    for x_adv in attacks(x):
        assert x_adv.shape == x.shape
        assert x_adv.dtype == dtype
        size = np.linalg.norm(np.asarray(x_adv, np.float64).ravel() - 0.5, order)
        # As in the test of the projection: two roundings of numbers up to 1.
        assert 0.05 < size <= 0.125 + 4 * float(jnp.finfo(dtype).eps)


# Degenerate models.


@pytest.mark.parametrize("order", ORDERS)
def test_tiny_gradients_attack_like_any_other(order):
    x, ball = EXAMPLE.astype(np.float32), LpBall(0.1, order, NO_BOX)
    tiny = fgsm(lambda t: 1e-30 * linear(t), x, LABEL, ball, loss=negative_margin)
    wanted = fgsm(linear, x, LABEL, ball, loss=negative_margin)
    np.testing.assert_allclose(tiny, wanted, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(tiny - x, order), 0.1, rtol=1e-5)


def test_a_constant_model():
    flat = lambda x: jnp.array([0.0, 1.0]) + 0 * x.sum()  # noqa: E731
    for order in ORDERS:
        np.testing.assert_array_equal(fgsm(flat, EXAMPLE, 1, LpBall(0.1, order)), EXAMPLE)
    x_adv = pgd(flat, EXAMPLE, 1, LpBall(0.1, 2), KEY, num_steps=3)
    assert np.linalg.norm(x_adv - EXAMPLE, 2) <= 0.1 * (1 + 1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_where_the_model_is_nan_the_attack_stays_finite_and_counts_it(order):
    """The logarithm of a negative number is NaN: the descending first entry gets there."""

    def logits(x):
        return jnp.stack([1 + jnp.log(x[0] - 0.4), -x[1]])

    x, ball = jnp.array([0.5, 0.9]), LpBall(0.3, order)
    search = partial(pgd, logits, y=0, ball=ball, key=KEY, loss=negative_margin, num_steps=10)
    attack = jax.jit(lambda x: search(x=x))(x)
    assert np.all(np.isfinite(attack))
    assert misclassified(logits(attack), 0)

    everywhere = lambda x: x[:2] * jnp.nan  # noqa: E731
    both = jax.jit(jax.vmap(lambda y: pgd(everywhere, x, y, ball, KEY, num_steps=2)))
    np.testing.assert_array_equal(both(jnp.arange(2)), [x, x])
    for y in (0, 1):
        np.testing.assert_array_equal(fgsm(everywhere, x, y, ball), x)


# Bad input.


def test_bad_input_is_refused():
    ball = LpBall(0.1, 2)
    attack: Any = partial(pgd, linear, EXAMPLE, LABEL, ball, KEY)
    for name in ("num_steps", "num_restarts"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            attack(**{name: 0})
        with pytest.raises(TypeError, match=f"{name} must be a whole number, got 2.0"):
            attack(**{name: 2.0})
    for step_size in (0, -0.1, math.nan):
        with pytest.raises(ValueError, match="step_size must be a finite positive number, got"):
            attack(step_size=step_size)
    outside = r"x must lie in the box \[0, 1\], got entries from"
    for function in (partial(fgsm, ball=ball), partial(pgd, ball=ball, key=KEY)):
        with pytest.raises(ValueError, match=f"{outside} -1"):
            function(linear, x=EXAMPLE - 2, y=LABEL)
        with pytest.raises(ValueError, match=f"{outside} .* to 1\\."):
            function(linear, x=EXAMPLE + 0.5, y=LABEL)
        with pytest.raises(ValueError, match=f"{outside} nan"):
            function(linear, x=EXAMPLE * np.nan, y=LABEL)
        with pytest.raises(TypeError, match="x must hold floating-point numbers, got dtype int"):
            function(linear, x=np.zeros(7, int), y=LABEL)
    one: Any = partial(fgsm, loss=lambda z, y: jnp.stack([cross_entropy(z, y)] * 2))
    with pytest.raises(ValueError, match=r"a scalar for one example, got shape \(2,\); batch with"):
        one(linear, EXAMPLE, LABEL, ball)
    wrong: Any = 0.1
    for attack in (partial(fgsm, ball=wrong), partial(pgd, ball=wrong, key=KEY)):
        with pytest.raises(TypeError, match=r"the ball must be an LpBall, such as .*, got 0\.1"):
            attack(linear, EXAMPLE, LABEL)
    with pytest.raises(ValueError, match="at least 3 classes, got 2 logits"):
        pgd(lambda x: linear(x)[:2], EXAMPLE, 0, ball, KEY, loss=dlr_loss)


@pytest.mark.parametrize(
    "attack",
    [
        fgsm,
        partial(pgd, key=KEY),
        partial(apgd, key=KEY),
        partial(fab, key=KEY, num_targets=0),
        partial(square, key=KEY),
    ],
)
def test_outputs_that_are_no_logits_are_told(attack):
    ball = LpBall(0.1, 2)
    with pytest.raises(TypeError, match="must return the logits alone, got a tuple: does the"):
        attack(lambda x: (linear(x), {}), EXAMPLE, LABEL, ball)
    for outputs, shape in ((lambda x: linear(x)[None], "1, 4"), (lambda x: linear(x)[:1], "1,")):
        told = rf"to logits of shape \(C,\), C at least 2, got shape \({shape}\)"
        with pytest.raises(ValueError, match=told):
            attack(outputs, EXAMPLE, LABEL, ball)


def test_a_constant_example_is_checked_under_jit_too():
    outside = jnp.asarray(EXAMPLE) + 1
    with pytest.raises(ValueError, match="x must lie in the box"):
        jax.jit(lambda key: pgd(linear, outside, LABEL, LpBall(0.1, 2), key))(KEY)


def test_losses_of_a_short_example_are_compared_in_single_precision():
    """A step changes the loss by less than a digit of bfloat16."""
    x, ball = jnp.full(20, 0.5, jnp.bfloat16), LpBall(1 / 64, math.inf)

    def slow(x: jax.Array) -> jax.Array:
        return jnp.stack([3 - 0.02 * jnp.sum(x.astype(jnp.float32)), 0.0, 0.0])

    def loss(x: jax.Array) -> float:
        return float(optax.losses.softmax_cross_entropy_with_integer_labels(slow(x), 0))

    # The steepest step to the corner of the ball, where the loss of a linear model is largest.
    assert loss(pgd(slow, x, 0, ball, KEY, num_steps=5)) == loss(fgsm(slow, x, 0, ball)) > loss(x)


ATTACKS = {
    "fgsm": lambda *given: fgsm(*given[:-1]),
    "pgd": partial(pgd, num_steps=2),
    "apgd": partial(apgd, num_steps=2),
    "apgd, targets": partial(apgd, num_steps=2, num_targets=3),
    "fab": partial(fab, num_steps=2, num_targets=3),
    "fab, nearest": partial(fab, num_steps=2, num_targets=0),
    "square": partial(square, num_steps=3),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_promotes_numbers_or_ranks(name, dtype, order):
    """Under settings of JAX that refuse it."""
    x, weights = jnp.full((4, 4, 2), 0.5, dtype), jnp.ones((4, 32), dtype)
    attack = partial(ATTACKS[name], lambda x: weights @ x.ravel())
    ball = LpBall(0.25, order)
    with (
        jax.enable_x64(False),
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ):
        given = x, jnp.asarray(1), jax.random.key(0)
        found = jax.eval_shape(lambda x, y, key: attack(x, y, ball, key), *given)
    assert (found.shape, found.dtype) == (x.shape, x.dtype)
