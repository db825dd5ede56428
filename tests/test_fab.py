"""FAB against the reference implementation, step by step, and by itself."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from pyautoattack.fab_pt import FABAttack_PT

from hessjax import LpBall
from hessjax.attacks.balls import sphere_point
from hessjax.attacks.fab import fab, fab_attack
from tests import originals

pytestmark = pytest.mark.usefixtures("torch_float64")

RADII = {2: 0.6, np.inf: 0.12}


@pytest.mark.parametrize("order", RADII)
@pytest.mark.parametrize("rank", [None, 2, 6])
def test_iterates_are_those_of_the_reference(order, rank):
    params = originals.weights()
    x, y = originals.examples(params, 4)
    ball = LpBall(RADII[order], order)

    model, seen = originals.network(params)
    images, labels = originals.batch(x, y)
    attack = FABAttack_PT(model, norm=originals.NORMS[order], n_iter=100, eps=RADII[order])
    attack.device = "cpu"
    attack.target_class = rank
    with torch.no_grad():
        found = attack.attack_single_run(images, labels, is_targeted=rank is not None)
    # It evaluates the inputs first, and once more for the ranks.
    expected = np.stack(seen[1 if rank is None else 2 :])

    ours = fab_attack(num_targets=0 if rank is None else 9)
    runs = np.full(len(x), 0 if rank is None else rank - 2)
    states = originals.iterates(ours, params, x, y, ball, run=runs)
    # At every iterate the reference evaluates the gradient, then the point it steps to.
    np.testing.assert_allclose(
        np.stack([state.x for state in states[:-1]]),
        expected[::2].reshape(100, len(x), -1),
        atol=1e-9,
    )
    assert np.all(np.isfinite(states[-1].distance))
    np.testing.assert_allclose(states[-1].best, found.numpy().reshape(len(x), -1), atol=1e-9)


@pytest.mark.parametrize("order", RADII)
def test_a_restart_is_half_the_radius_away_or_at_the_box(order):
    """As the reference clips it: not where half the way to the box would be."""
    x = jnp.array([0.5, 0.95, 0.02, 0.9])
    start = fab_attack(num_targets=0, num_restarts=2).init
    moved = set()
    for key in jax.random.split(jax.random.key(0), 20):
        free = sphere_point(LpBall(0.3, order, (-np.inf, np.inf)), x, key)
        expected = jnp.clip(x + (free - x) / 2, 0, 1)
        ball = LpBall(0.3, order)
        got = start(lambda x: x, x, 0, ball, key, run=1).x
        np.testing.assert_allclose(got, expected, rtol=1e-12)
        moved |= {float(entry) for entry in got if entry in (0, 1)}
        np.testing.assert_array_equal(start(lambda x: x, x, 0, ball, key, run=0).x, x)
    assert moved == {0, 1}


@pytest.mark.parametrize("num_targets", [0, 2])
@pytest.mark.parametrize("dtypes", [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.bfloat16)])
def test_logits_may_have_other_digits_than_inputs(dtypes, num_targets):
    """The distance of a linear classifier is its margin over the norm of the slope."""
    of_x, of_logits = dtypes
    weights = np.array([[4.0, 0, 0, 0], [0, 1, 2, 0], [0, 0, 0, 3]])
    x = jnp.array([0.75, 0.25, 0.5, 0.5], of_x)

    def logits_fn(x):
        return jnp.asarray(weights, of_logits) @ x.astype(of_logits)

    @jax.jit
    def attacked(x):
        return fab(
            logits_fn, x, 0, LpBall(1.0, 2), jax.random.key(0),
            num_targets=num_targets, num_steps=10,
        )  # fmt: skip

    found = attacked(x)
    margins = (weights[0] - weights[1:]) @ np.asarray(x, float)
    nearest = np.min(margins / np.linalg.norm(weights[0] - weights[1:], axis=1))
    assert found.dtype == of_x
    # The last of its steps overshoots by 5 %; three digits make as much again.
    distance = np.linalg.norm(np.asarray(found - x, float))
    assert 0.95 * nearest < distance < 1.1 * nearest


def affine(x: jax.Array) -> jax.Array:
    weights = jnp.asarray(np.random.default_rng(3).normal(size=(4, 6)), x.dtype)
    return weights @ (x - 0.5) + jnp.array([0.3, 0, 0, 0], x.dtype)


@pytest.mark.parametrize("num_targets", [0, 3])
@pytest.mark.parametrize("scale", [1e-22, 1e20])
def test_the_scale_of_the_logits_changes_nothing(num_targets, scale):
    x, options = jnp.full(6, 0.5, jnp.float32), {"num_targets": num_targets, "num_steps": 10}

    def found(factor: float) -> np.ndarray:
        search = partial(fab, lambda x: factor * affine(x), ball=LpBall(1.0, 2), **options)
        return np.asarray(jax.jit(search)(x, 0, key=jax.random.key(0)))

    assert np.any(found(1.0) != x)
    np.testing.assert_allclose(found(scale), found(1.0), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
@pytest.mark.parametrize("num_targets", [0, 2])
def test_where_no_boundary_is_nearer_it_stays(dtype, num_targets):
    """A flat model leads nowhere, neither from the iterate nor from the example."""
    attack, x = fab_attack(num_targets=num_targets), jnp.full(4, 0.5, dtype)
    given = (lambda x: 0 * x[:3], x, jnp.asarray(0), LpBall(0.5, 2))
    state = attack.step(*given, attack.init(*given, jax.random.key(0)))
    np.testing.assert_array_equal(state.x, x)


def test_a_masked_class_hides_no_other():
    """Its logit is minus infinity, and its distance none."""
    x = jnp.full(6, 0.5)

    def masked(x: jax.Array) -> jax.Array:
        return affine(x).at[3].set(-jnp.inf)

    @jax.jit
    def attacked(x: jax.Array) -> jax.Array:
        return fab(masked, x, 0, LpBall(1.0, 2), jax.random.key(0), num_targets=0, num_steps=10)

    assert int(jnp.argmax(masked(attacked(x)))) in {1, 2}


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
def test_labels_may_be_of_fewer_bits_than_classes(dtype):
    """Class 261 is class 5 in eight bits."""

    def logits_fn(x: jax.Array) -> jax.Array:
        return jnp.full(300, -9.0).at[5].set(0.0).at[261].set(x[0] + x[1] - 1.2)

    search = partial(fab, logits_fn, ball=LpBall(0.2, 2), num_targets=0, num_steps=10)
    attacked = jax.jit(search)(jnp.full(2, 0.5), dtype(5), key=jax.random.key(0))
    assert int(jnp.argmax(logits_fn(attacked))) == 261


def test_each_wrong_class_is_a_target_once():
    """Three classes have two wrong ones, and the tenth run of nine targets no other."""
    calls = []

    def counted(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: calls.append(1))
        return affine(x)[:3]

    def number(num_targets: int) -> int:
        calls.clear()
        attack = partial(fab, counted, ball=LpBall(1.0, 2), num_targets=num_targets, num_steps=2)
        jax.block_until_ready(jax.jit(attack)(jnp.full(6, 0.5), 0, key=jax.random.key(0)))
        jax.effects_barrier()
        return len(calls)

    assert number(9) == number(2) > number(1)
