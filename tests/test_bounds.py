"""Distances against polynomials whose exact distance is known, and the theorem behind them."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hessjax.bounds import (
    cross_entropy_gap,
    first_order_distance_estimate,
    second_order_distance_estimate,
)
from tests import cases

first_order, second_order = first_order_distance_estimate, second_order_distance_estimate
GAPS, NORMS = (0.01, 0.7, 5.0), (0.0, 0.2, 3.0)
GRID = [np.array(column) for column in zip(*itertools.product(GAPS, NORMS, NORMS), strict=True)]


def exact_in_one_dimension(gap, slope, curvature):
    """Return the least t > 0 with ``½ K t² + g t = c``, by NumPy's polynomial roots."""
    roots = np.roots([0.5 * curvature, slope, -gap])
    positive = roots.real[(np.abs(roots.imag) < 1e-12) & (roots.real > 0)]
    return positive.min() if positive.size else np.inf


def test_quadratics_in_one_dimension():
    wanted = [exact_in_one_dimension(*case) for case in zip(*GRID, strict=True)]
    assert np.isinf(wanted).sum() == len(GAPS)
    np.testing.assert_allclose(second_order(*GRID), wanted, rtol=1e-12)


def test_linear_functions():
    gap, norm, _ = GRID
    wanted = [exact_in_one_dimension(c, g, 0.0) for c, g in zip(gap, norm, strict=True)]
    np.testing.assert_allclose(first_order(gap, norm), wanted, rtol=1e-12)
    np.testing.assert_allclose(second_order(gap, norm, 0.0), wanted, rtol=1e-12)


@pytest.mark.parametrize("name", [name for name in cases.SPECTRA if name != "zero"])
def test_no_nearer_boundary_in_a_dense_search_of_quadratics(name):
    """No sampled perturbation below the distance closes the gap; along the worst, it is sharp."""
    matrix, gap, rng = cases.symmetric(cases.SPECTRA[name]), 1.5, np.random.default_rng(41)
    values, vectors = np.linalg.eigh(matrix)
    norm = np.abs(values).max()
    convex = np.isclose(values.max(), norm)
    top = vectors[:, np.argmax(values if convex else -values)]
    directions = np.concatenate([rng.normal(size=(5000, 6)), [top, -top]])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for gradient in (rng.normal(size=6), 2 * top):
        distance = float(second_order(gap, np.linalg.norm(gradient), norm))
        slopes = directions @ gradient
        curvatures = np.einsum("ni,ij,nj->n", directions, matrix, directions)
        radii = np.linspace(0, distance, 200)[:, None]
        rise = radii * slopes + 0.5 * radii**2 * curvatures
        assert rise.max() <= gap * (1 + 1e-12)
    # The last gradient is along the top eigenvector: where that eigenvalue is positive, the step
    # of this length along it closes the gap exactly.
    if convex:
        np.testing.assert_allclose(rise.max(), gap, rtol=1e-12)


def test_theorem_on_a_function_with_a_known_global_curvature():
    """``Σ a_i sin(w_i·x + b_i)`` has a Hessian of norm at most ``Σ |a_i| ‖w_i‖²`` everywhere."""
    rng = np.random.default_rng(42)
    weights, shifts, amplitudes = rng.normal(size=(4, 3)), rng.normal(size=4), rng.normal(size=4)
    curvature = np.sum(np.abs(amplitudes) * np.sum(weights**2, axis=1))

    def f(x):
        return jnp.sin(x @ weights.T + shifts) @ amplitudes

    directions = rng.normal(size=(2000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for x in rng.normal(size=(5, 3)):
        value, gradient = jax.value_and_grad(f)(jnp.asarray(x))
        norm = np.linalg.norm(gradient)
        for radius in (0.01, 0.3, 2.0):
            worst = np.max(f(x + radius * directions))
            bound = float(value) + radius * norm + 0.5 * curvature * radius**2
            assert worst <= bound
            # The least radius at which the worst value can be reached is no larger than this one.
            assert float(second_order(max(worst - float(value), 0), norm, curvature)) <= radius


def test_a_curvature_of_the_point_alone_is_no_bound():
    """Why the names say estimate: ``t⁴`` at 0 is flat to second order, and still rises."""
    quartic = lambda t: t**4  # noqa: E731
    slope, bend = jax.grad(quartic)(0.0), jax.grad(jax.grad(quartic))(0.0)
    assert float(second_order(1.0, slope, bend)) == np.inf
    assert quartic(1.0) == 1.0


def test_every_wrong_class_counts():
    """The example of docs/theory.md: the second class at the point is not the nearest one."""
    gaps, norms = np.array([1.0, 2.0]), np.array([0.1, 4.0])
    np.testing.assert_allclose(first_order(gaps, norms), [10.0, 0.5])


def test_lower_curvature_and_lower_gradient_give_larger_distance():
    ladder = jnp.array([0.0, 1e-3, 0.1, 1.0, 30.0, 1e4])
    for gap, other in itertools.product(GAPS, (0.3, 2.0)):
        assert np.all(np.diff(second_order(gap, other, ladder)) < 0)
        assert np.all(np.diff(second_order(gap, ladder, other)) < 0)
        assert np.all(np.diff(second_order(ladder, other, other)) > 0)


def test_never_larger_than_the_first_order():
    gap, norm, curvature = GRID
    assert np.all(second_order(gap, norm, curvature) <= first_order(gap, norm))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_never_larger_than_the_first_order_at_either_end_of_the_range(dtype):
    ends = np.array([1e-3, 1, 20, 2e4, 6e4], dtype)
    if dtype == np.float32:
        ends = np.array([1e-37, 1e-3, 1, 20, 8e37, 2e38], dtype)
    gap, norm, curvature = np.array(list(itertools.product(ends, ends, [0, *ends[:2]])), dtype).T
    got, most = second_order(gap, norm, curvature), first_order(gap, norm)
    assert got.dtype == most.dtype == dtype
    assert np.all(got <= most)
    np.testing.assert_array_equal(got[curvature == 0], most[curvature == 0])


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_derivatives_by_finite_differences(argument):
    for point in itertools.product(GAPS, (0.2, 3.0), (0.2, 3.0)):
        step = 1e-6 * np.eye(3)[argument]
        rise = second_order(*(point + step)) - second_order(*(point - step))
        got = jax.grad(second_order, argument)(*point)
        np.testing.assert_allclose(got, rise / 2e-6, rtol=1e-6)


def test_derivatives_where_they_are_one_sided():
    """At no gap the derivative in it is 1/g; at no curvature that in it is -d²/2g."""
    np.testing.assert_allclose(jax.grad(first_order)(0.0, 4.0), 0.25)
    np.testing.assert_allclose(jax.grad(second_order)(0.0, 4.0, 1.0), 0.25)
    np.testing.assert_allclose(jax.grad(second_order, 2)(3.0, 2.0, 0.0), -(1.5**2) / 4)


def test_limits():
    assert first_order(0.0, 0.0) == 0
    assert first_order(1.0, 0.0) == np.inf
    assert second_order(0.0, 0.0, 0.0) == 0
    assert second_order(0.0, 0.0, 2.0) == 0
    assert second_order(1.0, 0.0, 0.0) == np.inf
    for point in itertools.product((0.0, 1.0), (0.0, 1.0), (0.0, 1.0)):
        for argument in range(3):
            assert not np.isnan(jax.grad(second_order, argument)(*point)), (argument, point)
    for argument, point in itertools.product(range(2), itertools.product((0.0, 1.0), (0.0, 1.0))):
        assert not np.isnan(jax.grad(first_order, argument)(*point))


def test_infinities():
    for gap, norm, curvature in itertools.product((1.0, 1e-30), (1.0, np.inf), (0.0, 1.0, np.inf)):
        steep = np.isinf(norm) or np.isinf(curvature)
        wanted = 0 if steep else second_order(gap, norm, curvature)
        np.testing.assert_allclose(second_order(gap, norm, curvature), wanted, atol=1e-37)
        # No way along a loss however steep closes an infinite gap.
        assert second_order(np.inf, norm, curvature) == first_order(np.inf, norm) == np.inf
        for argument in range(2):
            assert jax.grad(first_order, argument)(np.inf, norm) == 0
        assert first_order(gap, np.inf) == 0


def test_nan_is_hidden_by_no_infinity():
    entries = (1.0, 0.0, np.inf, np.nan)
    for point in itertools.product(entries, repeat=3):
        assert np.isnan(second_order(*point)) == np.isnan(point).any(), point
    for point in itertools.product(entries, repeat=2):
        assert np.isnan(first_order(*point)) == np.isnan(point).any(), point


def test_no_gap_left_is_no_distance():
    np.testing.assert_array_equal(first_order(np.array([-1.0, 0.0]), 2.0), 0)
    np.testing.assert_array_equal(second_order(np.array([-1.0, 0.0]), 2.0, 3.0), 0)
    assert second_order(-1.0, 0.0, 0.0) == 0


def test_extreme_scales_in_single_precision():
    scales = np.array([0, 1e-30, 1e-15, 1, 1e15, 1e30], np.float32)
    gap, norm, curvature = np.array(list(itertools.product(scales, repeat=3))).T
    got = np.asarray(second_order(gap, norm, curvature))
    assert got.dtype == np.float32
    # Every intermediate value of the textbook formula fits in the range of double precision.
    c, g, K = (values.astype(np.float64) for values in (gap, norm, curvature))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        wanted = np.where(c == 0, 0, 2 * c / (g + np.sqrt(g**2 + 2 * c * K))).astype(np.float32)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-37)
    for argument in range(3):
        derivative = jax.vmap(jax.grad(second_order, argument))(gap, norm, curvature)
        assert not np.any(np.isnan(derivative))


def test_shapes_broadcast_under_jit_and_vmap():
    gap, norm, curvature = jnp.ones((4, 1)), jnp.arange(3.0), jnp.arange(4.0)[:, None]
    got = jax.jit(second_order)(gap, norm, curvature)
    assert got.shape == (4, 3)
    by_row = jax.vmap(second_order, in_axes=(0, None, 0))(gap, norm, curvature)
    np.testing.assert_allclose(got, by_row, rtol=1e-15)


def test_the_widest_number_decides_the_precision_and_no_integer():
    single, double = np.full(2, 0.7, np.float32), np.full(2, 0.3)
    assert second_order(np.ones(2, np.int32), single, single).dtype == np.float32
    for mixed in ((double, single, single), (single, single, double)):
        wanted = second_order(*(numbers.astype(np.float64) for numbers in mixed))
        np.testing.assert_array_equal(second_order(*mixed), wanted, strict=True)
    # As strong a type as that of other arrays.
    assert not first_order(3, 2).weak_type


def test_none_of_nothing():
    nothing = np.zeros(0)
    assert first_order(nothing, nothing).shape == (0,)


def test_a_negative_norm_is_refused():
    with pytest.raises(ValueError, match="gradient_norm is a norm and cannot be negative, got -1"):
        first_order(1.0, np.array([2.0, -1.0]))
    with pytest.raises(ValueError, match="gradient_norm is a norm and cannot be negative, got -1"):
        first_order(1.0, np.array([np.nan, -1.0]))
    with pytest.raises(ValueError, match=r"curvature is a norm and cannot be negative, got -0\.5"):
        # A constant, also where the call is traced.
        jax.jit(partial(second_order, curvature=jnp.array(-0.5)))(1.0, 1.0)
    for gap in (1.0, np.inf):
        assert np.isnan(jax.jit(second_order)(gap, 1.0, -0.01))
        assert np.isnan(jax.jit(second_order)(gap, -1.0, np.inf))
        assert np.isnan(jax.jit(first_order)(gap, -1.0))


def test_the_gap_of_cross_entropy_is_sufficient_and_exact_for_two_classes():
    logits = jnp.asarray(np.random.default_rng(43).normal(size=(400, 3)))
    for classes in (2, 3):
        z = logits[:, :classes]
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(z, jnp.zeros(400, int))
        predicted, closed = np.argmax(z, 1) == 0, np.asarray(cross_entropy_gap(losses)) > 0
        assert np.all(predicted[closed])
        assert np.array_equal(predicted, closed) == (classes == 2)
