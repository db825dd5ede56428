"""The Square attack by itself."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessjax.attacks import LpBall
from hessjax.attacks.attack import Outcome
from hessjax.attacks.square import (
    SquareState,
    draw,
    image_shape,
    square,
    square_attack,
    square_init,
    square_outcome,
    square_step,
)
from hessjax.losses import margin
from tests.squares import HARDEST, KEY, NORMS, NUM_STEPS, X, Y, network, trajectory


def test_draws_are_uniform_and_of_the_example_alone():
    shape, sides, count = (9, 7, 3), (4,) * 10, 3000
    two_steps = jax.vmap(partial(draw, shape, sides), (None, 0))
    draws = jax.jit(jax.vmap(lambda key: two_steps(key, jnp.arange(2))))
    _, window, source, signs, turned = map(np.asarray, draws(jax.random.split(KEY, count)))
    # The last place, where the square ends with the image, is left out as in the reference.
    kinds = [5, 3, 5, 3, 2, 2, 2, 2]
    choices = np.concatenate([window, source, turned[..., None], signs > 0], axis=2)
    for choice, kind in zip(np.moveaxis(choices, 2, 0), kinds, strict=True):
        assert choice.max() == kind - 1
        # Six standard deviations of a count.
        expected = choice.size / kind
        assert np.all(np.abs(np.bincount(choice.ravel()) - expected) < 6 * math.sqrt(expected))
    # Choices are independent of each other, also those of one step and the next.
    correlation = np.corrcoef(choices.reshape(count, -1).T) - np.eye(2 * len(kinds))
    assert np.abs(correlation).max() < 6 / math.sqrt(count)


def test_a_square_as_large_as_the_image_begins_at_its_corner():
    drawn = jax.jit(partial(draw, (4, 6, 1), (4,) * 10, KEY))(0)
    assert (int(drawn.window[0]), int(drawn.source[0])) == (0, 0)


@pytest.mark.parametrize("order", NORMS)
def test_starts_have_balanced_signs(order):
    ball = LpBall(0.1, order, (-1, 2))
    init = jax.jit(jax.vmap(lambda key: square_init(network, X[0], Y[0], ball, key).x))
    change = np.asarray(init(jax.random.split(KEY, 400))) - X[0]
    size = np.linalg.norm(change.reshape(400, -1), order, axis=1)
    np.testing.assert_allclose(size, 0.1, rtol=1e-12)
    # The share of positive changes in a pixel and channel: half, with six standard deviations.
    inside = change if order != 2 else change[:, :10, :10]
    np.testing.assert_allclose((inside > 0).mean(axis=0), 0.5, atol=0.15)
    assert order != 2 or not change[:, 10:].any()


def wavy(x):
    """Return logits that the attack never changes in favor of another class, but likes to try."""
    return jnp.stack([2 + jnp.sin(x.sum() * 40).astype(x.dtype), jnp.zeros((), x.dtype)])


@pytest.mark.parametrize(
    ("order", "shape", "bounds", "dtype"),
    [
        (2, (5, 8, 3), (-2.5, -1.5), jnp.float32),
        (math.inf, (5, 8, 3), (-2.5, -1.5), jnp.float64),
        (2, (7,), (-math.inf, math.inf), jnp.float32),
        (2, (2, 3, 2, 2), (0, 1), jnp.bfloat16),
        (math.inf, (), (0, 1), jnp.bfloat16),
        (2, (), (-math.inf, math.inf), jnp.float32),
    ],
)
def test_the_result_is_in_ball_and_box(order, shape, bounds, dtype):
    low, high = np.clip(bounds, -3, 3)
    x = jnp.asarray(np.random.default_rng(62).uniform(low, high, shape), dtype)
    run = jax.jit(
        lambda x, y, epsilon: square(wavy, x, y, LpBall(epsilon, order, bounds), KEY, num_steps=70)
    )
    x_adv = run(x, 0, 0.3)
    assert (x_adv.shape, x_adv.dtype) == (x.shape, x.dtype)
    change = np.asarray(x_adv, np.float64) - np.asarray(x, np.float64)
    tolerance = 4 * float(jnp.finfo(dtype).eps) * max(1, abs(low), abs(high))
    assert 0.05 < np.linalg.norm(change.ravel(), order) <= 0.3 + tolerance * math.sqrt(x.size)
    assert low <= float(x_adv.min())
    assert float(x_adv.max()) <= high or math.isinf(bounds[1])
    # A wrong label: the example is its own attack.
    np.testing.assert_array_equal(run(x, 1, 0.3), x)


def test_scales_do_not_matter():
    """In an ℓ2 ball of any size, where squares of float32 numbers under- or overflow."""

    @jax.jit
    def run(x, scale):
        def logits(x):
            return jnp.stack([99 + network(jnp.stack(3 * [x / scale], axis=-1))[0], 0 * x[0, 0]])

        ball = LpBall(0.5 * scale, 2, (-math.inf, math.inf))
        return square(logits, scale * x, 0, ball, KEY, num_steps=30) / scale

    x = jnp.asarray(X[0, :, :, 0], jnp.float32)
    wanted = run(x, np.float32(1))
    # The start, a grid of tiles, leaves the last row.
    assert np.any(wanted[-1] != x[-1]), "some proposal must have been taken"
    for scale in (1e-25, 1e25):
        np.testing.assert_allclose(run(x, np.float32(scale)), wanted, atol=1e-5)


def test_images_and_their_views():
    assert image_shape((5, 4, 3)) == (5, 4, 3)
    assert image_shape((5, 4)) == (5, 4, 1)
    assert image_shape((784,)) == image_shape((4, 7, 7, 4)) == (28, 28, 1)
    assert image_shape((7,)) == (1, 7, 1)
    assert image_shape(()) == (1, 1, 1)


def test_the_point_of_least_margin_of_all_restarts_is_returned():
    epsilon, x, y = 0.02, jnp.asarray(X[HARDEST[0]]), Y[HARDEST[0]]
    key = jax.random.key(63)
    ball, ends = LpBall(epsilon, math.inf), []
    for restart in range(3):
        states = trajectory(math.inf)(x, y, epsilon, jax.random.fold_in(key, restart))[0]
        assert np.all(np.diff(states.margin) <= 0)
        ends.append(jax.tree.map(lambda leaf: leaf[-1], states))
        np.testing.assert_allclose(ends[-1].margin, margin(network(ends[-1].x), y), rtol=1e-12)
        assert float(square_outcome(x, ends[-1], ball).score) == -float(ends[-1].margin)
    best = min(ends, key=lambda state: float(state.margin))
    assert best is not ends[0]
    run = jax.jit(partial(square, network, ball=ball, key=key, num_steps=NUM_STEPS, num_restarts=3))
    np.testing.assert_allclose(run(x, y), best.x, atol=1e-12)


def test_what_is_found_is_never_replaced():
    state = SquareState(jnp.ones(3), jnp.asarray(-0.5), jnp.asarray(True), KEY, jnp.int32(4))
    outcome = square_outcome(jnp.zeros(3), state, LpBall(1.0, 2))
    assert isinstance(outcome, Outcome)
    assert float(outcome.score) == math.inf
    assert bool(outcome.found)


def constant(x, logits):
    return jnp.asarray(logits) + 0 * x.sum()


def test_ties_count_as_in_accuracies():
    """The first of two largest logits is the prediction."""
    x, ball = jnp.full((4, 4), 0.5), LpBall(0.1, math.inf)
    tie = partial(constant, logits=[1.0, 1.0])
    run = jax.jit(lambda y: square_init(tie, x, y, ball, KEY).found)
    assert (bool(run(0)), bool(run(1))) == (False, True)


@pytest.mark.parametrize("order", NORMS)
def test_logits_that_are_no_numbers_count_as_misclassified(order):
    x, ball = jnp.full((4, 4), 0.5), LpBall(0.3, order)

    def logits(nowhere, x):
        # Where defined at all, NaN where the first entry falls by more than a little.
        return jnp.stack([jnp.sqrt(x[0, 0] - 0.45) + 5, x[1, 1]]) / nowhere

    @jax.jit
    def run(nowhere):
        return square(partial(logits, nowhere), x, 0, ball, KEY, num_steps=100)

    x_adv = run(1.0)
    assert np.all(np.isfinite(x_adv))
    assert np.isnan(logits(1.0, x_adv)[0])
    np.testing.assert_array_equal(run(math.nan), x)


@pytest.mark.parametrize("order", NORMS)
def test_in_a_ball_of_traced_radius_0_there_is_the_example_alone(order):
    @jax.jit
    def at(epsilon):
        return square(network, X[0], Y[0], LpBall(epsilon, order), KEY, num_steps=2)

    np.testing.assert_array_equal(at(0.0), X[0])


def test_infinite_logits_are_left():
    """No margin at the start must not make all later ones look worse."""
    x, ball = jnp.full((4, 4), 0.5), LpBall(0.3, math.inf)
    infinite, finite = (partial(constant, logits=2 * [logit]) for logit in (math.inf, 1.0))
    state = jax.jit(lambda x: square_init(infinite, x, 0, ball, KEY))(x)
    assert not bool(state.found)
    state = jax.jit(lambda x: square_step(finite, x, 0, ball, state))(x)
    assert float(state.margin) == 0


def test_the_attack_in_parts():
    attack = square_attack(num_steps=7, num_restarts=3)
    assert (attack.name, attack.num_steps, attack.num_runs) == ("square", 7, 3)
    # The share of the first proposal: all of the image, or a part.
    x, ball = jnp.full((4, 4), 0.5), LpBall(0.3, math.inf)

    def logits(x):
        return jnp.stack([jnp.abs(x - x[0, 0]).sum() + 1, jnp.zeros(())])

    def margins(y):
        state = attack.init(logits, x, y, ball, KEY, run=0)
        steps = [square_attack(initial_share=share).step for share in (1.0, 0.3)]
        return [step(logits, x, y, ball, state).margin for step in steps]

    whole, part = jax.jit(margins)(0)
    assert float(whole) == 1 < float(part)


def test_bad_input_is_refused():
    ball, x = LpBall(0.1, 2), X[0]
    attack: Any = partial(square, network, y=0, ball=ball, key=KEY)
    for name in ("num_steps", "num_restarts"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            attack(x, **{name: 0})
        with pytest.raises(TypeError, match=f"{name} must be a whole number, got 2.0"):
            attack(x, **{name: 2.0})
    with pytest.raises(ValueError, match="initial_share must be a finite positive number, got 0"):
        attack(x, initial_share=0)
    with pytest.raises(ValueError, match="x must lie in the box"):
        attack(x + 1)
    with pytest.raises(TypeError, match="x must hold floating-point numbers"):
        attack(np.zeros((3, 3), int))
    with pytest.raises(ValueError, match="one example, without a batch axis, to logits"):
        square(lambda x: network(x)[None], x, 0, ball, KEY)
