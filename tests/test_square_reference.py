"""The Square attack against the reference implementation, fed the same choices."""

import math
from collections import deque
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from pyautoattack.square import SquareAttack

from hessjax.attacks import LpBall
from hessjax.attacks.square import draw, side_lengths, square_init, square_step, tile
from tests.squares import (
    HARDEST,
    INNER,
    KEY,
    NORMS,
    NUM_STEPS,
    OUTER,
    SHAPE,
    X,
    Y,
    network,
    trajectory,
)

pytestmark = pytest.mark.usefixtures("torch_float64")


def channels_first(x):
    return np.moveaxis(np.asarray(x), -1, -3)


def reference(order, epsilon):
    """Return the reference attack on the network, and a list of what it evaluates."""
    inner, outer, seen = torch.from_numpy(INNER), torch.from_numpy(OUTER), []

    def model(images):
        x = images.movedim(1, -1)
        seen.append(x.numpy().copy())
        return torch.tanh((x.reshape(len(x), -1) - 0.5) @ inner) @ outer

    options: dict[str, Any] = {"eps": epsilon, "n_queries": NUM_STEPS, "resc_schedule": False}
    return SquareAttack(model, norm=NORMS[order], device="cpu", **options), seen


def fed_reference(patch, order, epsilon, index, draws):
    """Run the reference on one example, with these random choices in place of its own.

    Returns the best point and a list of what it evaluates.
    """

    def drawn(kind, shape):
        drawn_kind, value = draws.popleft()
        assert drawn_kind == kind
        return torch.as_tensor(np.array(value)).reshape(shape)

    attack, seen = reference(order, epsilon)
    patch.setattr(attack, "random_choice", partial(drawn, "signs"))
    patch.setattr(attack, "random_int", lambda low, high: drawn("place", [1]) + 0 * (low + high))
    # Where tiles are transposed.
    patch.setattr(torch, "rand", lambda shape: drawn("turned", shape).double())
    image = torch.from_numpy(channels_first(X[index : index + 1]).copy())
    attack.init_hyperparam(image)
    return attack.attack_single_run(image, torch.tensor([Y[index]]))[1], seen


def start_draws(order, key):
    """Return the choices of a start in the order in which the reference makes them."""
    height, width, channels = SHAPE
    for_signs, for_turns = jax.random.split(jax.random.split(key)[0])
    if order != 2:
        signs = jax.random.rademacher(for_signs, (1, width, channels), float)
        return [("signs", channels_first(signs))]
    count = height // (height // 5)
    signs = jax.random.rademacher(for_signs, (count, count, 1, 1, channels), float)
    turned = jax.random.bernoulli(for_turns, shape=(count, count, 1, 1))
    pairs = zip(turned.reshape(-1), signs.reshape(-1, channels), strict=True)
    return [item for turn, sign in pairs for item in (("turned", turn), ("signs", sign))]


def step_draws(order, drawn):
    """Return the choices of the proposals likewise."""
    items = []
    for window, source, signs, turned in zip(*map(np.asarray, drawn[1:]), strict=True):
        items += [("place", place) for place in window]
        if order == 2:
            items += [("place", place) for place in source] + [("turned", turned)]
        items.append(("signs", signs.astype(float)))
    return items


@pytest.mark.parametrize(("order", "epsilon"), [(2, 0.35), (2, 1.0), (math.inf, 0.02)])
def test_proposals_are_those_of_the_reference(order, epsilon, monkeypatch):
    """For one example that withstands the attack, and in all but the source of chance."""
    index = HARDEST[0]
    states, drawn, proposals = trajectory(order)(X[index], Y[index], epsilon, KEY)
    draws = deque(start_draws(order, KEY) + step_draws(order, drawn))
    best, seen = fed_reference(monkeypatch, order, epsilon, index, draws)
    assert not draws, "the reference must have used all draws"
    assert not bool(states.found[-1])
    np.testing.assert_allclose(seen[0][0], states.x[0], atol=1e-10)
    np.testing.assert_allclose(np.concatenate(seen[1:]), proposals, atol=1e-10)
    np.testing.assert_allclose(best[0], channels_first(states.x[-1]), atol=1e-10)
    moved = np.any(np.diff(np.asarray(states.x), axis=0), axis=(1, 2, 3))
    assert 10 < moved.sum() < NUM_STEPS - 10, "both acceptance and refusal must occur"
    assert np.any((proposals == 0) | (proposals == 1)), "the box must matter"


@pytest.mark.parametrize(("order", "epsilon"), [(2, 2.0), (math.inf, 0.15)])
def test_the_point_that_breaks_is_that_of_the_reference(order, epsilon, monkeypatch):
    index = HARDEST[2]
    states, drawn, _ = trajectory(order)(X[index], Y[index], epsilon, KEY)
    first = int(np.argmax(states.found))
    assert first > 5, "the start must not suffice"
    draws = deque(start_draws(order, KEY) + step_draws(order, drawn))
    best, seen = fed_reference(monkeypatch, order, epsilon, index, draws)
    assert len(seen) == 1 + first
    np.testing.assert_allclose(best[0], channels_first(states.x[first]), atol=1e-10)
    # Nothing but the count of steps changes from then on.
    for leaf in (states.x, states.margin, states.found, jax.random.key_data(states.key)):
        np.testing.assert_array_equal(
            leaf[first:], jnp.broadcast_to(leaf[first], leaf[first:].shape)
        )
    np.testing.assert_array_equal(states.step, np.arange(NUM_STEPS + 1))


@pytest.mark.parametrize("order", NORMS)
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (3, 9, 2)])
def test_sides_follow_the_schedule_of_the_reference(order, shape):
    height, width, channels = shape
    attack, _ = reference(order, 1.0)
    wanted = []
    for number in range(8500):
        side = round(math.sqrt(attack.p_selection(number) * math.prod(shape) / channels))
        if order == 2:
            side = max(side, 3)
            side += side % 2 == 0
        wanted.append(min(max(side, 1), height, width))
    sides = side_lengths(LpBall(1.0, order), shape, 0.8)
    stages = jax.jit(jax.vmap(lambda step: draw(shape, sides, KEY, step).stage))
    np.testing.assert_array_equal(np.array(sides)[stages(jnp.arange(8500))], wanted)


@pytest.mark.parametrize("turned", [False, True])
def test_tiles_are_those_of_the_reference(turned, monkeypatch):
    attack, _ = reference(2, 1.0)
    monkeypatch.setattr(torch, "rand", lambda _: torch.tensor([float(turned)]))
    for side in range(1, 30):
        pattern = tile(side).T if turned else tile(side)
        np.testing.assert_allclose(pattern, attack.eta(side), atol=1e-15)


RADII = {2: 0.55, math.inf: 0.025}
KEYS = jax.random.split(KEY, len(X))


@cache
def after_all_steps(order):
    """Return the states of all examples after all steps."""
    ball = LpBall(RADII[order], order)
    init = jax.vmap(lambda x, y, key: square_init(network, x, y, ball, key))
    step = jax.jit(jax.vmap(lambda x, y, state: square_step(network, x, y, ball, state)))
    state = jax.jit(init)(X, Y, KEYS)
    for _ in range(NUM_STEPS):
        state = step(X, Y, state)
    return state


@pytest.mark.parametrize("order", NORMS)
def test_as_many_break_as_by_the_reference(order):
    """Of the examples that only one of both breaks, about half are broken by either."""
    found = np.asarray(after_all_steps(order).found)
    images = torch.from_numpy(channels_first(X).copy())
    broken = reference(order, RADII[order])[0].perturb(images, torch.from_numpy(Y))
    broken = np.asarray(broken != images).any(axis=(1, 2, 3))
    assert 0.2 < broken.mean() < 0.8
    ours, theirs = (found & ~broken).sum(), (broken & ~found).sum()
    assert abs(ours - theirs) <= 3 * math.sqrt(ours + theirs)


@pytest.mark.parametrize("order", NORMS)
def test_a_batch_does_what_each_does_alone_and_the_key_decides(order):
    batch = after_all_steps(order)
    for index in (HARDEST[0], HARDEST[-1]):
        x, y, radius = X[index], Y[index], RADII[order]
        states, *_ = trajectory(order)(x, y, radius, KEYS[index])
        np.testing.assert_allclose(states.x[-1], batch.x[index], atol=1e-12)
        np.testing.assert_allclose(states.margin[-1], batch.margin[index], atol=1e-12)
        again, *_ = trajectory(order)(x, y, radius, KEYS[index])
        np.testing.assert_array_equal(again.x, states.x)
        other, *_ = trajectory(order)(x, y, radius, KEY)
        assert np.all(np.any(other.x != states.x, axis=(1, 2, 3)))
