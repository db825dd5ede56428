"""Objectives where value and metrics can be worked out by hand."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessjax
from hessjax import power_iteration, regularized, second_order
from tests.cases import SADDLE_NORMS, output_itself, saddle, second_axis

KEY = jax.random.key(51)

# At the second point the gradient vanishes; random signs take its place.
X = jnp.array([[1.0, 1.0], [0.0, 0.0]])
BATCH = (X, jnp.zeros(2))
LOSS, SLOPE = (-2 + 0) / 2, (np.sqrt(40) + 0) / 2
# H (1, -3)/√10 = (2, 18)/√10 and H (±1, ±1)/√2 = (±2, ∓6)/√2, with vᵀHv = -5.2 and -2.
ONE, TWO = SADDLE_NORMS


def residual(norm: float, quotient: float) -> float:
    """Return ‖Hv - value v‖ from ‖Hv‖ and |vᵀHv|."""
    return np.sqrt(2 * norm * (norm - quotient))


SURROGATE = {
    "gradient_norm": SLOPE,
    "hessian_norm": (ONE + np.sqrt(20)) / 2,
    "residual": (residual(ONE, 5.2) + residual(np.sqrt(20), 2)) / 2,
}


CASES: dict[str, tuple[tuple[float, float], dict[str, Any], dict[str, float]]] = {
    "default": ((0.7, 0.3), {}, SURROGATE),
    "no slope": ((0, 0.3), {}, SURROGATE),
    "no curvature": ((0.7, 0), {}, {"gradient_norm": SLOPE}),
    "nothing": ((0, 0), {}, {}),
    "no product": (
        (0.7, 0.3),
        {"solver": None},
        {"gradient_norm": SLOPE, "hessian_norm": (5.2 + 2) / 2},
    ),
    # The direction is the start's, the slope along it no gradient norm.
    "own start": (
        (0.7, 0.3),
        {"start": second_axis},
        {"gradient_norm": SLOPE, "hessian_norm": 6, "residual": 0},
    ),
    "own start, no product": (
        (0.7, 0.3),
        {"start": second_axis, "solver": None},
        {"gradient_norm": SLOPE, "hessian_norm": 6},
    ),
    # The second product of the one point is the first of the other.
    "two products": (
        (0.7, 0.3),
        {"solver": partial(power_iteration, num_iters=2)},
        {
            "gradient_norm": SLOPE,
            "hessian_norm": (TWO + ONE) / 2,
            "residual": (residual(TWO, 484 / 82) + residual(ONE, 5.2)) / 2,
        },
    ),
}


def check(objective: Any, weights: tuple[float, float], wanted: dict[str, float]) -> None:
    """Compare value, derivative in a factor, by Euler's theorem, and metrics."""
    evaluate = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (value, metrics), derivative = evaluate(1.0, BATCH, KEY)
    terms = [wanted.get(name, 0.0) for name in ("gradient_norm", "hessian_norm")]
    np.testing.assert_allclose(value, LOSS + np.dot(weights, terms), rtol=1e-12)
    np.testing.assert_allclose(derivative, value, rtol=1e-12)
    assert set(metrics) == {"loss", *wanted}
    for name, number in {"loss": LOSS, **wanted}.items():
        np.testing.assert_allclose(metrics[name], number, rtol=1e-12, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("name", CASES)
def test_a_saddle(name: str) -> None:
    weights, options, wanted = CASES[name]
    check(second_order(saddle, output_itself, *weights, **options), weights, wanted)


def test_a_saddle_by_separate_penalties() -> None:
    penalties: Any = {
        "gradient_norm": (0.7, hessjax.input_gradient_norm),
        "left out": (0, hessjax.gauss_newton_operator_norm),
        "hessian_norm": (0.3, partial(hessjax.hessian_operator_norm, start=second_axis)),
    }
    wanted = {"gradient_norm": SLOPE, "hessian_norm": 6}
    check(regularized(saddle, output_itself, penalties), (0.7, 0.3), wanted)


@pytest.mark.parametrize(
    "options", [{"parts": 2}, {"chunk_size": 1}, {"parts": 2, "chunk_size": 1}]
)
def test_parts_and_chunks_of_a_saddle(options: dict[str, Any]) -> None:
    objective = second_order(saddle, output_itself, 0.7, 0.3, start=second_axis, **options)
    evaluate = jax.jit(objective)
    steps = [evaluate(1.0, BATCH, KEY, step) for step in (0, 1)]
    value, metrics = jax.tree.map(lambda *two: sum(two) / 2, *steps)
    np.testing.assert_allclose(value, LOSS + 0.7 * SLOPE + 0.3 * 6, rtol=1e-12)
    np.testing.assert_allclose(metrics["hessian_norm"], 6, rtol=1e-12)
    # A part is one of the two: the first's slope is twice the mean, the other's none.
    slopes = sorted(float(metrics["gradient_norm"]) for _, metrics in steps)
    wanted = [0, 2 * SLOPE] if "parts" in options else [SLOPE, SLOPE]
    np.testing.assert_allclose(slopes, wanted, rtol=1e-12, atol=1e-14)


SCHEDULED = partial(second_order, saddle, output_itself, lambda step: 0.1 * step, 0)


def test_a_mask_on_a_saddle() -> None:
    x = jnp.concatenate([jnp.full((1, 2), jnp.nan), X])
    evaluate = jax.jit(SCHEDULED())
    for mask, loss, slope in [
        (jnp.array([False, True, True]), LOSS, SLOPE),
        (jnp.array([False, True, False]), -2, np.sqrt(40)),
        (jnp.array([0.0, 1.0, 1.0]), LOSS, SLOPE),
    ]:
        value, metrics = evaluate(1.0, (x, jnp.zeros(3), mask), KEY, 5)
        np.testing.assert_allclose(metrics["gradient_norm"], slope, rtol=1e-12)
        np.testing.assert_allclose(value, loss + 0.5 * slope, rtol=1e-12)


def test_a_schedule_on_a_saddle() -> None:
    every = SCHEDULED(every=2)
    assert isinstance(every, hessjax.Lazy)
    value = jax.jit(every.at(4))(1.0, BATCH, KEY, 4)[0]
    np.testing.assert_allclose(value, LOSS + 2 * 0.4 * SLOPE, rtol=1e-12)
    assert every(1.0, BATCH, KEY, 5)[0] == LOSS


def test_the_step_is_0_if_none_is_said() -> None:
    assert jax.jit(SCHEDULED())(1.0, BATCH, KEY)[0] == LOSS


@pytest.mark.parametrize("options", [{}, {"parts": 2}, {"chunk_size": 1}, {"every": 2}])
def test_single_precision_stays(options: dict[str, Any]) -> None:
    weights = np.float64(0.7), lambda step: np.float64(0.3) * step
    objective = second_order(saddle, output_itself, *weights, **options)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (*BATCH, jnp.ones(2)))
    shapes = jax.eval_shape(objective, jnp.float32(1), single, KEY, 0)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(np.float32)}
