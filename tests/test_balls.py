"""Balls, projections, steepest directions and random starts against their definitions."""

import math
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessjax._numerics import safe_norm
from hessjax.attacks import LpBall, ascent_direction, pgd, project, random_point
from hessjax.attacks.balls import check_center

ORDERS = (2, math.inf)
NO_BOX = (-math.inf, math.inf)


def norm(difference, order):
    return np.linalg.norm(np.ravel(difference), order)


@pytest.mark.parametrize("order", ORDERS)
def test_projection_on_the_ball_is_the_nearest_point(order):
    """By the obtuse angle: ``(x - Px)·(z - Px) ≤ 0`` for every z of the ball."""
    ball, rng = LpBall(0.5, order, NO_BOX), np.random.default_rng(53)
    center = rng.normal(size=3)
    directions = rng.normal(size=(500, 3))
    members = center + 0.5 * directions / np.linalg.norm(directions, order, 1)[:, None]
    for scale in (0.7, 1.0, 3.0, 1e3):
        x = center + scale * rng.normal(size=3)
        nearest = np.asarray(project(ball, jnp.asarray(center), jnp.asarray(x)))
        assert norm(nearest - center, order) <= 0.5 * (1 + 1e-14)
        assert np.max((members - nearest) @ (x - nearest)) <= 1e-10 * scale


def test_projection_on_the_linf_ball_and_the_box_by_search():
    grid = np.linspace(-2, 3, 50001)
    center, x = np.array(
        [(0.1, -0.9), (0.1, 0.9), (0.9, 2.0), (0.5, 0.6), (0.0, -0.2), (1.0, 1.1)]
    ).T
    got = project(LpBall(0.3, math.inf), jnp.asarray(center), jnp.asarray(x))
    for c, start, end in zip(center, x, got, strict=True):
        members = grid[(np.abs(grid - c) <= 0.3 + 1e-9) & (grid >= 0) & (grid <= 1)]
        np.testing.assert_allclose(end, members[np.argmin(np.abs(members - start))], atol=1e-9)


def test_projection_on_the_l2_ball_then_the_box():
    """The reference's order of the two: other than first the box, then the ball."""
    center, x = np.array([0.1, 0.5]), np.array([-3.1, 2.9])
    shrunk = center + 0.5 * (x - center) / 4.0
    np.testing.assert_allclose(shrunk, [-0.3, 0.8])
    got = project(LpBall(0.5, 2), jnp.asarray(center), jnp.asarray(x))
    np.testing.assert_allclose(got, [0.0, 0.8], rtol=1e-14)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_projection_stays_in_ball_and_box_and_leaves_the_inside(order, dtype):
    ball, rng = LpBall(0.25, order), np.random.default_rng(54)
    centers = jnp.asarray(rng.uniform(size=(20, 3, 2)), dtype)
    points = jnp.asarray(rng.normal(size=(20, 3, 2)), dtype)
    batched = jax.vmap(partial(project, ball))
    got = batched(centers, points)
    assert got.dtype == dtype
    for center, point in zip(
        np.asarray(centers, np.float64), np.asarray(got, np.float64), strict=True
    ):
        # Two roundings of numbers up to 1, and the norm of six such errors.
        assert norm(point - center, order) <= 0.25 + 4 * float(jnp.finfo(dtype).eps)
    assert float(got.min()) == 0
    assert float(got.max()) == 1
    near = jnp.clip(centers + (points - centers) * 0.01, 0, 1)
    np.testing.assert_array_equal(batched(centers, near), near)
    np.testing.assert_array_equal(project(ball, centers[0], points[0]), got[0])


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30, 1e38])
def test_directions_are_steepest(scale):
    """The inner product of a unit direction with the gradient is the dual norm, the largest."""
    rng = np.random.default_rng(51)
    gradient = np.float32(scale) * rng.uniform(-1, 1, size=(2, 3)).astype(np.float32)
    for order, dual in ((2, 2), (math.inf, 1)):
        direction = np.asarray(ascent_direction(LpBall(1.0, order), jnp.asarray(gradient)))
        np.testing.assert_allclose(norm(direction.astype(float), order), 1, rtol=1e-6)
        slope = np.sum(direction.astype(float) * gradient)
        np.testing.assert_allclose(slope, norm(gradient.astype(float), dual), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_directions_are_finite_whatever_the_gradient(dtype):
    euclidean, cube = (partial(ascent_direction, LpBall(1.0, order)) for order in ORDERS)
    for gradient, unit, sign in (
        ([0, 0, 0], [0, 0, 0], [0, 0, 0]),
        ([math.nan, 2, 0], [0, 1, 0], [0, 1, 0]),
        ([math.inf, 2, 0], [1, 0, 0], [1, 1, 0]),
        ([math.inf, -math.inf, math.nan], [0.5**0.5, -(0.5**0.5), 0], [1, -1, 0]),
    ):
        g = jnp.asarray(gradient, dtype)
        assert euclidean(g).dtype == cube(g).dtype == dtype
        eps = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(np.asarray(euclidean(g), float), unit, rtol=eps, atol=1e-30)
        np.testing.assert_array_equal(np.asarray(cube(g), float), sign)


def test_the_norm_of_numbers_whose_inverse_is_flushed_to_zero():
    x = jnp.array([2e38, 1e38], jnp.float32)
    np.testing.assert_allclose(safe_norm(x), 5**0.5 * 1e38, rtol=1e-6)


def test_random_points_are_spread_as_documented():
    center = jnp.full((5,), 0.5)
    keys = jax.random.split(jax.random.key(50), 4000)
    for order in ORDERS:
        ball = LpBall(0.25, order, NO_BOX)
        offsets = np.asarray(jax.vmap(partial(random_point, ball, center))(keys)) - 0.5
        sizes = np.linalg.norm(offsets, order, axis=1) / 0.25
        assert sizes.max() <= 1 + 1e-12
        # Five standard errors: at most 0.25 / √3 / √4000 = 0.0023 each.
        np.testing.assert_allclose(offsets.mean(0), 0, atol=0.012)
        spread = sizes if order == 2 else np.abs(offsets) / 0.25
        # Four standard errors of a median: 0.5 / √4000 = 0.008 each.
        np.testing.assert_allclose(np.quantile(spread, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)
        boxed = LpBall(0.25, order)
        corner = jax.vmap(partial(random_point, boxed, jnp.zeros(5)))(keys[:50])
        assert float(corner.min()) == 0


def test_what_numpy_computed_in_float64_lies_in_the_box_that_jax_rounds():
    """As normalized images do; JAX would round both to float32."""
    ball = LpBall(0.1, 2, (-0.4242, 2.8215))
    x = np.array([-0.4242, 2.8215], np.float32).astype(np.float64)
    with jax.enable_x64(False):
        assert check_center(ball, x).dtype == jnp.float32
        for end, beyond in ((0, -1), (1, 1)):
            outside = x.copy()
            outside[end] = np.nextafter(np.float32(x[end]), np.float32(9 * beyond))
            with pytest.raises(ValueError, match="x must lie in the box"):
                check_center(ball, outside)
        with pytest.raises(ValueError, match=r"entries from -0\.4.* to 1e\+300"):
            check_center(ball, np.array([x[0], 1e300]))


def test_a_ball_must_make_sense():
    make: Any = LpBall
    for epsilon in (0, -0.1, math.inf, math.nan, np.float32(0)):
        with pytest.raises(ValueError, match="epsilon must be a finite positive number, got"):
            make(epsilon, 2)
    for order in (1, 0, "inf", math.nan, [2], None):
        told = f"order must be 2 or infinity, got {order!r}"
        with pytest.raises(ValueError, match=re.escape(told)):
            make(0.1, order)
    vectors = (np.zeros(3), np.ones(3))
    for bounds in (
        (1, 0), (0, 0), (0, math.nan), (0, 1, 2), 0.5, ("a", "b"), "01", (0, None), vectors,
    ):  # fmt: skip
        with pytest.raises(
            ValueError, match="bounds must be a pair of numbers, the lower one first"
        ):
            make(0.1, 2, bounds)


@pytest.mark.parametrize("kind", [np.float32, np.float64, jnp.float32, np.asarray])
def test_the_type_of_its_bounds_does_not_matter(kind):
    """Those of normalized images are NumPy scalars, which would refuse what they round to."""
    bounds = tuple(kind((end - 0.1307) / 0.3081) for end in (0.0, 1.0))
    x = jnp.asarray(bounds, jnp.float32)
    ball = LpBall(0.3, 2, bounds)
    x_adv = pgd(lambda x: jnp.stack([x[0], x[1]]), x, 1, ball, jax.random.key(0), num_steps=2)
    assert x_adv.dtype == jnp.float32
    assert ball == LpBall(0.3, 2, (float(bounds[0]), float(bounds[1])))
    assert len({ball}) == 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_what_is_clipped_to_the_box_lies_in_it(dtype):
    """Though the precision of the example rounds the bounds of the box outwards."""
    bounds = (-2.1179, 2.64)
    x = jnp.clip(jnp.array([-9, 0, 9], dtype), *bounds)
    assert check_center(LpBall(0.1, jnp.inf, bounds), x).dtype == dtype
    outside = jnp.nextafter(x, jnp.array([-9, 0, 9], dtype))
    with pytest.raises(ValueError, match="x must lie in the box"):
        check_center(LpBall(0.1, jnp.inf, bounds), outside)


def test_a_ball_is_a_value():
    box: Any = [0, 1]
    two: Any = jnp.asarray(2.0)
    assert LpBall(0.1, np.inf) == LpBall(0.1, jnp.inf, (0, 1)) == LpBall(0.1, math.inf, box)
    assert len({LpBall(0.1, 2), LpBall(0.1, 2, box), LpBall(0.1, two)}) == 1
    assert len({LpBall(0.1, 2), LpBall(0.1, 2), LpBall(0.2, 2)}) == 2
