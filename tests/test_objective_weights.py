"""Weights of objectives: zero, constants and schedules."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hessjax
from hessjax import regularized, second_order
from tests import cases
from tests.objectives import APPLY, BATCH, KEY, LOSS, PARAMS, SHARED, X, Y, value_and_gradient

SLOPE = second_order(APPLY, LOSS, 0.7, 0)


def operations(objective: Any) -> float:
    step = jax.jit(jax.grad(objective, has_aux=True))
    compiled: Any = step.lower(PARAMS, BATCH, KEY).compile(cases.COUNTED)
    return compiled.cost_analysis()["flops"]


@cache
def flops(gradient_weight: float, hessian_weight: float) -> float:
    objective = second_order(APPLY, LOSS, gradient_weight, hessian_weight)
    return operations(objective)


@pytest.mark.parametrize("weight", [np.int8(100), jnp.int8(100)])
def test_a_weight_of_few_bits_does_not_wrap(weight: Any) -> None:
    def value(weight: Any) -> jax.Array:
        penalties = {"slope": (weight, hessjax.input_gradient_norm)}
        return regularized(APPLY, LOSS, penalties, every=3)(PARAMS, BATCH, KEY)[0]

    np.testing.assert_allclose(value(weight), value(100), rtol=1e-12)


def test_a_weight_of_zero_leaves_its_term_out() -> None:
    (value, metrics), gradient = value_and_gradient(SLOPE)
    alone = regularized(APPLY, LOSS, {"gradient_norm": (0.7, hessjax.input_gradient_norm)})
    (wanted, _), wanted_gradient = value_and_gradient(alone)
    np.testing.assert_allclose(value, wanted, rtol=1e-12)
    cases.assert_tree_close(gradient, wanted_gradient, rtol=1e-10, atol=1e-14)
    assert set(metrics) == {"loss", "gradient_norm"}

    (value, metrics), gradient = value_and_gradient(second_order(APPLY, LOSS, 0, 0.3))
    alone = regularized(APPLY, LOSS, {"hessian_norm": (0.3, hessjax.hessian_operator_norm)})
    (wanted, _), wanted_gradient = value_and_gradient(alone)
    np.testing.assert_allclose(value, wanted, rtol=1e-12)
    cases.assert_tree_close(gradient, wanted_gradient, rtol=1e-10, atol=1e-14)
    assert "hessian_norm" in metrics

    (value, metrics), _ = value_and_gradient(second_order(APPLY, LOSS, 0, 0))
    assert value == metrics["loss"]
    assert set(metrics) == {"loss"}
    # Not multiplied by zero but not computed.
    assert flops(0, 0) <= 1.05 * operations(regularized(APPLY, LOSS, {}))
    assert flops(0, 0) < 0.8 * flops(1, 0)
    assert flops(1, 0) < 0.8 * flops(1, 1)


SCHEDULE = optax.linear_schedule(0.0, 2.0, 10)
SCHEDULED = [
    (
        second_order(APPLY, LOSS, SCHEDULE, lambda s: 0.5 * SCHEDULE(s)),
        second_order(APPLY, LOSS, 1.0, 0.5),
    ),
    (
        regularized(APPLY, LOSS, {"slope": (SCHEDULE, hessjax.input_gradient_norm)}),
        regularized(APPLY, LOSS, {"slope": (1.0, hessjax.input_gradient_norm)}),
    ),
]


@pytest.mark.parametrize("step", [0, 5, 10, 1000])
def test_weights_follow_their_schedules(step: int) -> None:
    weight = min(step / 10, 1) * 2
    for scheduled, constant in SCHEDULED:
        (value, metrics), _ = value_and_gradient(scheduled, step=step)
        (whole, wanted), _ = value_and_gradient(constant)
        np.testing.assert_allclose(
            value, metrics["loss"] + weight * (whole - wanted["loss"]), rtol=1e-12
        )
        cases.assert_tree_close(metrics, wanted)


def test_constants_are_weights_inside_a_traced_function_too() -> None:
    @jax.jit
    def built_inside(params: Any) -> jax.Array:
        weights = jnp.asarray(0.7), jnp.asarray(0.3)
        return second_order(APPLY, LOSS, *weights)(params, BATCH, KEY)[0]

    (wanted, _), _ = value_and_gradient(SHARED)
    np.testing.assert_allclose(built_inside(PARAMS), wanted, rtol=1e-12)
    weight = jnp.asarray(0.7)
    evaluate = jax.jit(lambda p: second_order(APPLY, LOSS, weight, 0.3)(p, BATCH, KEY)[0])
    np.testing.assert_allclose(evaluate(PARAMS), wanted, rtol=1e-12)


def test_a_weight_of_more_digits_does_not_widen_the_value() -> None:
    case = cases.mlp("gelu", jnp.float32)
    objective = second_order(case.apply, case.loss, np.float64(0.7), SCHEDULE)
    value, _ = jax.eval_shape(objective, case.params, (X.astype(jnp.float32), Y), KEY)
    assert value.dtype == jnp.float32


def test_one_trace_over_many_steps_of_a_schedule() -> None:
    traces = 0

    def apply(params: Any, x: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return APPLY(params, x)

    objective = second_order(apply, LOSS, SCHEDULE, SCHEDULE)
    evaluate = jax.jit(jax.grad(objective, has_aux=True))
    evaluate(PARAMS, BATCH, KEY, jnp.asarray(0))
    first = traces
    for step in range(1, 20):
        evaluate(PARAMS, BATCH, jax.random.key(step), jnp.asarray(step))
    assert traces == first > 0
