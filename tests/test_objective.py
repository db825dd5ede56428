"""Objectives against dense derivatives, and the shared sweep against separate terms."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessjax
from hessjax import lanczos, power_iteration, regularized, second_order
from tests import cases
from tests.objectives import APPLY, BATCH, CASE, KEY, LOSS, PARAMS, SHARED, X, Y, value_and_gradient


@cache
def dense_derivatives() -> tuple[jax.Array, jax.Array]:
    """Return the gradients and Hessians of the batch."""

    def example(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        f = CASE._replace(y=y).function()
        return cases.dense_gradient(f, x), cases.dense_hessian(f, x)

    return jax.jit(jax.vmap(example))(X, Y)


def mean_of(penalty: Callable[..., jax.Array]) -> float:
    one = jax.jit(lambda x, y: penalty(CASE._replace(y=y).function(), x))
    return float(np.mean([one(x, y) for x, y in zip(*BATCH, strict=True)]))


def test_regularized_is_the_mean_loss_plus_weighted_mean_penalties() -> None:
    penalties = {
        "slope": (0.7, hessjax.input_gradient_norm),
        "curvature": (0.3, hessjax.hessian_operator_norm),
    }
    (value, metrics), _ = value_and_gradient(regularized(APPLY, LOSS, penalties))
    loss = mean_of(lambda f, x: f(x))
    slope = float(np.mean(np.linalg.norm(dense_derivatives()[0], axis=1)))
    curvature = mean_of(hessjax.hessian_operator_norm)
    np.testing.assert_allclose(value, loss + 0.7 * slope + 0.3 * curvature, rtol=1e-12)
    # Metrics are not weighted.
    wanted = {"loss": loss, "slope": slope, "curvature": curvature}
    cases.assert_tree_close({k: metrics[k] for k in wanted}, wanted, rtol=1e-12)
    assert set(metrics) == set(wanted)


def test_no_penalties_leave_the_loss() -> None:
    (value, metrics), gradient = value_and_gradient(regularized(APPLY, LOSS, {}))

    def plain(params: Any) -> jax.Array:
        logits = jax.vmap(partial(APPLY, params))(X)
        return jnp.mean(cases.cross_entropy(logits, Y))

    wanted, its_gradient = jax.jit(jax.value_and_grad(plain))(PARAMS)
    np.testing.assert_allclose(value, wanted, rtol=1e-14)
    assert set(metrics) == {"loss"}
    cases.assert_tree_close(gradient, its_gradient, rtol=1e-11, atol=1e-15)


# Named solvers and starts that need no key, so that both objectives find the same directions.
SOLVERS: dict[str, dict[str, Any]] = {
    "default": {},
    "three products": {"solver": partial(power_iteration, num_iters=3)},
    "lanczos": {"solver": partial(lanczos, num_iters=3)},
    "other start": {"start": lambda g, _: jnp.cos(jnp.arange(g.size)).astype(g.dtype)},
}


@pytest.mark.parametrize("options", SOLVERS.values(), ids=SOLVERS)
def test_shared_sweep_is_the_separate_penalties(options: dict[str, Any]) -> None:
    separate = regularized(
        APPLY,
        LOSS,
        {
            "gradient_norm": (0.7, hessjax.input_gradient_norm),
            "hessian_norm": (0.3, partial(hessjax.hessian_operator_norm, **options)),
        },
    )
    (value, metrics), gradient = value_and_gradient(separate)
    (shared, shared_metrics), shared_gradient = value_and_gradient(
        second_order(APPLY, LOSS, 0.7, 0.3, **options)
    )
    np.testing.assert_allclose(shared, value, rtol=1e-12)
    cases.assert_tree_close(shared_gradient, gradient, rtol=1e-9, atol=1e-13)
    assert set(shared_metrics) == {*metrics, "residual"}
    cases.assert_tree_close({k: shared_metrics[k] for k in metrics}, metrics, rtol=1e-11)


def test_value_gradient_and_residual_against_dense_derivatives() -> None:
    (value, metrics), gradient = value_and_gradient(SHARED)

    slopes, hessians = dense_derivatives()
    directions = slopes / jnp.linalg.norm(slopes, axis=1, keepdims=True)

    def oracle(params: Any) -> jax.Array:
        def example(x: jax.Array, y: jax.Array, v: jax.Array) -> jax.Array:
            f = CASE._replace(y=y).function(params)
            slope, hessian = cases.dense_gradient(f, x), cases.dense_hessian(f, x)
            return f(x) + 0.7 * jnp.linalg.norm(slope) + 0.3 * jnp.linalg.norm(hessian @ v)

        return jnp.mean(jax.vmap(example)(X, Y, directions))

    np.testing.assert_allclose(value, oracle(PARAMS), rtol=1e-11)
    differences = cases.finite_difference_gradient(oracle, PARAMS)
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])
    assert np.linalg.norm(flat - differences) <= 1e-6 * np.linalg.norm(differences)

    residuals = []
    for hessian, v in zip(np.asarray(hessians), np.asarray(directions), strict=True):
        image = hessian @ v
        signed = np.copysign(np.linalg.norm(image), v @ image)
        residuals.append(np.linalg.norm(image - signed * v))
    np.testing.assert_allclose(metrics["residual"], np.mean(residuals), rtol=1e-9)


def test_converged_hessian_norm_is_the_dense_one() -> None:
    objective = second_order(APPLY, LOSS, 0.0, 1.0, solver=partial(lanczos, num_iters=6))
    (value, metrics), _ = value_and_gradient(objective)
    truth = np.mean(np.abs(np.linalg.eigvalsh(dense_derivatives()[1])).max(1))
    np.testing.assert_allclose(metrics["hessian_norm"], truth, rtol=1e-8)
    np.testing.assert_allclose(value, metrics["loss"] + truth, rtol=1e-8)
    assert metrics["residual"] < 1e-8


def test_without_a_product_the_norm_is_the_curvature_along_the_gradient() -> None:
    gradients, hessians = dense_derivatives()
    units = gradients / jnp.linalg.norm(gradients, axis=1, keepdims=True)
    along = jnp.einsum("bi,bij,bj->b", units, hessians, units)
    shared = second_order(APPLY, LOSS, 0.7, 0.3, solver=None)
    (_, metrics), gradient = value_and_gradient(shared)
    np.testing.assert_allclose(metrics["hessian_norm"], jnp.mean(jnp.abs(along)), rtol=1e-9)
    assert set(metrics) == {"loss", "gradient_norm", "hessian_norm"}
    penalties = {
        "slope": (0.7, hessjax.input_gradient_norm),
        "curvature": (0.3, partial(hessjax.hessian_operator_norm, solver=None)),
    }
    _, separate = value_and_gradient(regularized(APPLY, LOSS, penalties))
    cases.assert_tree_close(gradient, separate, rtol=1e-9, atol=1e-13)


def test_without_a_product_negative_curvature_counts_as_much() -> None:
    def penalty(scale: jax.Array) -> jax.Array:
        x = jnp.array([1.0, 2.0])
        return hessjax.hessian_operator_norm(lambda t: scale * t @ t, x, solver=None)

    objective = second_order(lambda scale, x: scale * x @ x, lambda z, _: z, 0, 1, solver=None)
    batch = jnp.array([[1.0, 2.0]]), jnp.zeros(1)
    for scale in (3.0, -3.0):
        value, slope = jax.jit(jax.value_and_grad(penalty))(scale)
        np.testing.assert_allclose([value, slope], [6.0, np.sign(scale) * 2.0], rtol=1e-12)
        metrics = jax.jit(objective)(scale, batch, jax.random.key(0))[1]
        np.testing.assert_allclose(metrics["hessian_norm"], 6.0, rtol=1e-12)


def test_where_the_gradient_vanishes_the_gradient_norm_is_no_slope_along_a_random_direction() -> (
    None
):
    # f = θ₀ + ½ xᵀ diag(θ) x at x = 0: the gradient is zero for every θ, the Hessian is not.
    def apply(theta: jax.Array, x: jax.Array) -> jax.Array:
        return theta[0] + 0.5 * jnp.sum(theta * x**2) + jnp.sum(jnp.sin(theta) * x * mask)

    theta = jnp.asarray([0.0, 0.0, 0.0])
    # sin(0) = 0: the gradient vanishes here, its derivative in θ does not.
    mask = jnp.ones(3)
    batch = (jnp.zeros((1, 3)), jnp.zeros(1, int))
    loss = cases.output_itself

    def evaluate(weight: float) -> Any:
        objective = second_order(apply, loss, weight, 0.5)
        return jax.jit(jax.value_and_grad(objective, has_aux=True))(theta, batch, KEY)

    results = [evaluate(weight) for weight in (0.0, 5.0)]
    for (value, metrics), gradient in results:
        assert value == 0
        assert metrics.get("gradient_norm", 0) == 0
        assert cases.all_finite(gradient)
    cases.assert_tree_close(results[1][1], results[0][1])

    theta = jnp.asarray([1.0, -2.0, 3.0])
    mask = jnp.zeros(3)
    (value, metrics), gradient = evaluate(5.0)
    assert metrics["gradient_norm"] == 0
    assert 0 < metrics["hessian_norm"] <= 3
    np.testing.assert_allclose(value, 1 + 0.5 * metrics["hessian_norm"], rtol=1e-12)
    # Euler: the norm is homogeneous in θ, so ⟨θ, ∂‖Hv‖/∂θ⟩ = ‖Hv‖.
    penalty_gradient = gradient - jnp.asarray([1.0, 0.0, 0.0])
    np.testing.assert_allclose(theta @ penalty_gradient, value - 1, rtol=1e-12)


def test_jit_changes_nothing() -> None:
    evaluate = jax.value_and_grad(SHARED, has_aux=True)
    eager = evaluate(PARAMS, BATCH, KEY)
    usual = jax.jit(evaluate, compiler_options=cases.USUAL)(PARAMS, BATCH, KEY)
    for got in (usual, value_and_gradient(SHARED)):
        cases.assert_tree_close(got, eager, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtypes(dtype: Any) -> None:
    case = cases.mlp("gelu", dtype)
    objective = second_order(case.apply, case.loss, 0.7, 0.3)
    evaluate = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (value, metrics), gradient = evaluate(case.params, (X.astype(dtype), Y), KEY)
    assert cases.all_finite((value, metrics, gradient))
    assert jax.tree.map(lambda leaf: leaf.dtype, gradient) == jax.tree.map(
        lambda leaf: leaf.dtype, case.params
    )
    (wanted, _), _ = value_and_gradient(SHARED)
    np.testing.assert_allclose(value, wanted, rtol=10 * float(jnp.finfo(dtype).eps))


def test_a_network_that_computes_in_bfloat16_inside() -> None:
    """As the README does it: numbers that come out are float32 and near those without rounding."""
    case = cases.mlp("gelu", jnp.float32)
    # More examples than a sum in bfloat16 would count: it stops at 256.
    batch = cases.batch_of(case, 512)

    def half(array: jax.Array) -> jax.Array:
        return array.astype(jnp.bfloat16)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        hidden = jax.nn.gelu(half(half(x) @ half(params["W1"]) + params["b1"]))
        return hidden @ params["W2"] + params["b2"]

    def evaluate(apply: Any) -> Any:
        objective = second_order(apply, LOSS, 0.7, 0.3)
        return jax.jit(jax.value_and_grad(objective, has_aux=True))(case.params, batch, KEY)

    got, wanted = evaluate(apply), evaluate(case.apply)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(got)} == {"float32"}
    # Each number is rounded by 2^-8 at most, a few times from input to loss; a mean over 512
    # examples comes closer than one of them.
    cases.assert_tree_close(got[0], wanted[0], rtol=2**-8)
    for leaf, exact in zip(*map(jax.tree.leaves, (got[1], wanted[1])), strict=True):
        assert np.linalg.norm(leaf - exact) < 2**-7 * np.linalg.norm(exact)


def test_trees_of_inputs_and_labels() -> None:
    def apply(params: Any, tree: Any) -> jax.Array:
        return APPLY(params, cases.from_tree_input(tree))

    def loss(logits: jax.Array, y: Any) -> jax.Array:
        return LOSS(logits, y["label"])

    batch = (jax.vmap(cases.tree_input)(X), {"label": Y})
    got = value_and_gradient(second_order(apply, loss, 0.7, 0.3), batch)
    wanted = value_and_gradient(SHARED)
    cases.assert_tree_close(got, wanted, rtol=1e-9, atol=1e-13)
