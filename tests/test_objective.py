"""Objectives: batching, weights, masks, metrics, and the shared sweep against separate terms."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hessjax
from hessjax import lanczos, power_iteration, regularized, second_order
from tests import cases

KEY = jax.random.key(40)
CASE = cases.mlp("gelu")
PARAMS = CASE.params
X, Y = cases.batch_of(CASE, 6)
BATCH = (X, Y)
APPLY, LOSS = CASE.apply, CASE.loss


@cache
def compiled(objective: Any) -> Any:
    return jax.jit(jax.value_and_grad(objective, has_aux=True))


def value_and_gradient(objective: Any, batch: Any = BATCH, step: Any = 0) -> Any:
    return compiled(objective)(PARAMS, batch, KEY, step)


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


def operations(objective: Any) -> float:
    step = jax.jit(jax.grad(objective, has_aux=True))
    compiled: Any = step.lower(PARAMS, BATCH, KEY).compile(cases.COUNTED)
    return compiled.cost_analysis()["flops"]


@cache
def flops(gradient_weight: float, hessian_weight: float) -> float:
    objective = second_order(APPLY, LOSS, gradient_weight, hessian_weight)
    return operations(objective)


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


def per_example(objective: Any, batch: Any, place: int) -> Any:
    """Return value and gradient of one example, by a mask of all others."""
    mask = jnp.arange(len(batch[0])) == place
    return value_and_gradient(objective, (*batch, mask))


SHARED = second_order(APPLY, LOSS, 0.7, 0.3)
SLOPE = second_order(APPLY, LOSS, 0.7, 0)
RANDOM = {
    "shared": second_order(APPLY, LOSS, 0.7, 0.3, start=hessjax.random_start),
    "separate": regularized(
        APPLY,
        LOSS,
        {
            "norm": (0.3, partial(hessjax.hessian_operator_norm, start=hessjax.random_start)),
            "frobenius": (0.1, hessjax.hessian_squared_frobenius_norm),
        },
    ),
}


@pytest.mark.parametrize("objective", RANDOM.values(), ids=RANDOM)
def test_values_of_an_example_do_not_depend_on_the_batch(objective: Any) -> None:
    small = (X[:3], Y[:3])
    for place in (0, 2):
        in_large, in_small = (per_example(objective, batch, place) for batch in (BATCH, small))
        cases.assert_tree_close(in_large, in_small, rtol=1e-9, atol=1e-13)
    # The whole is the mean of the parts: no 1/B in a penalty.
    singles = [per_example(objective, small, place) for place in range(3)]
    mean = jax.tree.map(lambda *parts: sum(parts) / 3, *singles)
    cases.assert_tree_close(value_and_gradient(objective, small), mean, rtol=1e-9, atol=1e-13)


def test_examples_draw_different_directions_and_the_key_decides_them() -> None:
    objective = RANDOM["shared"]
    twins = (jnp.stack([X[0], X[0]]), jnp.stack([Y[0], Y[0]]))
    one, other = (per_example(objective, twins, place)[0][0] for place in (0, 1))
    assert one != other
    evaluate = jax.jit(objective)
    assert evaluate(PARAMS, BATCH, KEY)[0] == evaluate(PARAMS, BATCH, KEY)[0]
    assert evaluate(PARAMS, BATCH, KEY)[0] != evaluate(PARAMS, BATCH, jax.random.key(41))[0]


def test_penalties_of_one_example_draw_independently() -> None:
    # One random product and one probe of the same key would be the same vector, rescaled.
    def first(f: Any, x: Any, key: Any) -> jax.Array:
        del f
        return jax.random.uniform(key, dtype=x.dtype)

    objective = regularized(APPLY, LOSS, {"a": (1.0, first), "b": (1.0, first)})
    metrics = objective(PARAMS, BATCH, KEY)[1]
    assert metrics["a"] != metrics["b"]
    # Leaving one out does not change what another draws.
    alone = regularized(APPLY, LOSS, {"a": (0.0, first), "b": (1.0, first)})
    assert alone(PARAMS, BATCH, KEY)[1]["b"] == metrics["b"]


@pytest.mark.parametrize(
    ("objective", "kind"),
    [(SHARED, "bool"), (SHARED, "float"), (SHARED, "int"), (RANDOM["separate"], "bool")],
)
def test_padded_examples_do_not_count(objective: Any, kind: str) -> None:
    nothing = jnp.full((2, *X.shape[1:]), jnp.nan)
    padded = (jnp.concatenate([X[:4], nothing]), jnp.concatenate([Y[:4], jnp.zeros(2, Y.dtype)]))
    mask = (jnp.arange(6) < 4).astype(kind)
    got = value_and_gradient(objective, (*padded, mask))
    assert cases.all_finite(got)
    cases.assert_tree_close(
        got, value_and_gradient(objective, (X[:4], Y[:4])), rtol=1e-10, atol=1e-14
    )


def test_arrays_of_numpy_may_have_a_mask() -> None:
    # NumPy's own dtypes are too wide here, of which JAX would warn.
    with jax.enable_x64(False):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS)
        batch = (np.asarray(X), np.asarray(Y, np.int64), np.arange(6) < 5)
        # Traced for speed: the batch stays NumPy's.
        value, _ = jax.jit(lambda params: SHARED(params, batch, KEY))(params)
    (wanted, _), _ = value_and_gradient(SHARED, (X[:5], Y[:5]))
    np.testing.assert_allclose(value, wanted, rtol=1e-5)


def test_nan_in_an_example_that_counts_is_not_hidden() -> None:
    broken = (X.at[2].set(jnp.nan), Y, jnp.ones(6, bool))
    assert jnp.isnan(value_and_gradient(SHARED, broken)[0][0])


@pytest.mark.parametrize("padding", [0.5, float("nan")])
def test_a_batch_of_padding_alone_is_zero(padding: float) -> None:
    nothing = (jnp.full(X.shape, padding), Y, jnp.zeros(6, bool))
    (value, metrics), gradient = value_and_gradient(SHARED, nothing)
    assert value == 0
    assert cases.all_finite((metrics, gradient))


def test_no_mask_is_one_of_all_examples() -> None:
    got = value_and_gradient(SHARED, (*BATCH, None))
    cases.assert_tree_close(got, value_and_gradient(SHARED))
    hessjax.check_batch((np.zeros((2, 3)), np.zeros(2, int), None), num_classes=1)


def test_means_of_half_precision_do_not_overflow() -> None:
    # Eight losses of 2e4: their sum is no float16.
    def apply(params: Any, x: jax.Array) -> jax.Array:
        return params * x

    objective = regularized(apply, LOSS, {})
    x = jnp.tile(jnp.asarray([1.0, -1.0], jnp.float16), (8, 1))
    for rest in ((), (jnp.ones(8, bool),)):
        value, _ = objective(jnp.float16(1e4), (x, jnp.ones(8, int), *rest), KEY)
        assert value == 2e4
        assert value.dtype == jnp.float32


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


# Bad input.


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_bad_weight(weight: float) -> None:
    for name, build in {
        "gradient_weight": lambda: second_order(APPLY, LOSS, weight, 0.5),
        "hessian_weight": lambda: second_order(APPLY, LOSS, 0.5, weight),
        "the weight of 'slope'": lambda: regularized(
            APPLY, LOSS, {"slope": (weight, hessjax.input_gradient_norm)}
        ),
    }.items():
        with pytest.raises(ValueError, match=f"^{name} must be .* nonnegative .*{weight}"):
            build()


@pytest.mark.parametrize("entry", [hessjax.input_gradient_norm, (1.0,), (1.0, 2.0)])
def test_a_penalty_without_a_weight(entry: Any) -> None:
    with pytest.raises(TypeError, match=r"penalties\['slope'\] must be \(weight, penalty\), got"):
        regularized(APPLY, LOSS, {"slope": entry})


@pytest.mark.parametrize("penalties", [None, [(1.0, hessjax.input_gradient_norm)]])
def test_penalties_without_names(penalties: Any) -> None:
    with pytest.raises(TypeError, match=r"^penalties must be \{name: \(weight, penalty\)\}, got"):
        regularized(APPLY, LOSS, penalties)


@pytest.mark.parametrize(("name", "what"), [("loss", "the metric"), ("objective", "the sum")])
def test_a_penalty_may_not_be_called_what_something_else_is(name: str, what: str) -> None:
    with pytest.raises(ValueError, match=f"^a penalty cannot be named '{name}': that is {what}"):
        regularized(APPLY, LOSS, {name: (1.0, hessjax.input_gradient_norm)})


@pytest.mark.parametrize("options", [{}, {"parts": 2}, {"chunk_size": 2}])
def test_a_penalty_that_is_no_number(options: Any) -> None:
    def squares(f: Any, x: Any, key: Any = None) -> Any:
        del key
        return jax.grad(f)(x) ** 2

    objective = regularized(APPLY, LOSS, {"squares": (1.0, squares)}, **options)
    message = r"^the penalty 'squares' must return one number for one example, got shape \(6,\)"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(objective, PARAMS, BATCH, KEY)


@pytest.mark.parametrize("mask", [(), (jnp.ones(6, bool),)])
@pytest.mark.parametrize(("kind", "name"), [(bool, "bool"), (jnp.int32, "int32")])
def test_a_penalty_of_whole_numbers(mask: Any, kind: Any, name: str) -> None:
    def rounded(f: Any, x: Any, key: Any = None) -> Any:
        del f, key
        return (x[0] > 0).astype(kind)

    objective = regularized(APPLY, LOSS, {"rounded": (1.0, rounded)})
    message = f"^the penalty 'rounded' must return a floating-point number, got dtype {name}"
    with pytest.raises(TypeError, match=message):
        jax.eval_shape(objective, PARAMS, (*BATCH, *mask), KEY)


@pytest.mark.parametrize("weights", [(0.7, 0), (0, 0.3), (0.7, 0.3)])
@pytest.mark.parametrize("options", [{}, {"solver": None}])
def test_inputs_of_whole_numbers(weights: Any, options: Any) -> None:
    objective = second_order(APPLY, LOSS, *weights, **options)
    message = "^x must hold floating-point numbers, got dtype uint8"
    with pytest.raises(TypeError, match=message):
        jax.eval_shape(objective, PARAMS, (X.astype(jnp.uint8), Y), KEY)


def test_keys_among_the_labels_stay_under_a_mask() -> None:
    """One of each example, of a noise that its loss draws by itself."""
    keys = jax.random.split(KEY, 6)

    def noisy(z: jax.Array, y_and_key: Any) -> jax.Array:
        y, key = y_and_key
        return LOSS(z + jax.random.normal(key, z.shape), y)

    objective = regularized(APPLY, noisy, {})
    kept = jnp.arange(6) < 4
    masked, _ = objective(PARAMS, (X.at[4:].set(jnp.nan), (Y, keys), kept), KEY)
    wanted, _ = objective(PARAMS, (X[:4], (Y[:4], keys[:4])), KEY)
    np.testing.assert_allclose(masked, wanted, rtol=1e-12)


OBJECTIVES = {
    "shared": SHARED,
    "parts": regularized(APPLY, LOSS, {"slope": (1.0, hessjax.input_gradient_norm)}),
    "plain": regularized(APPLY, LOSS, {}),
}
objectives = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


@objectives
def test_bad_batches(objective: Any) -> None:
    with pytest.raises(ValueError, match=r"^x, y and mask .* sizes 5, 6$"):
        objective(PARAMS, (X, Y[:5]), KEY)
    with pytest.raises(ValueError, match=r"^x, y and mask .* sizes 4, 6$"):
        objective(PARAMS, (X, Y, jnp.ones(4, bool)), KEY)
    with pytest.raises(ValueError, match=r"mask.*\(6, 1\)"):
        objective(PARAMS, (X, Y, jnp.ones((6, 1), bool)), KEY)
    with pytest.raises(ValueError, match=r"^mask must hold booleans, or 0 and 1, not weights, got"):
        objective(PARAMS, (X, Y, jnp.full(6, 1 / 6)), KEY)
    with pytest.raises(ValueError, match=r"^the batch is empty: it needs at least one example$"):
        objective(PARAMS, (X[:0], Y[:0]), KEY)
    with pytest.raises(ValueError, match=r"^x, y and mask .* one leading axis, .* sizes 6, none$"):
        objective(PARAMS, (X, 3), KEY)
    with pytest.raises(TypeError, match=r"^a batch is \(x, y\) or \(x, y, mask\), got a dict$"):
        objective(PARAMS, {"image": X, "label": Y}, KEY)
    with pytest.raises(ValueError, match="got 4 entries"):
        objective(PARAMS, (X, Y, jnp.ones(6, bool), X), KEY)
    if objective is not OBJECTIVES["plain"]:
        with pytest.raises(TypeError, match="uint8"):
            objective(PARAMS, (X.astype(jnp.uint8), Y), KEY)


@objectives
def test_a_traced_mask_of_weights_is_no_answer(objective: Any) -> None:
    gradient = jax.jit(jax.value_and_grad(lambda *args: objective(*args, KEY)[0]))
    (whole, _), (half, slopes) = (
        gradient(PARAMS, (X, Y, jnp.full(6, entry))) for entry in (1.0, 0.5)
    )
    np.testing.assert_allclose(whole, value_and_gradient(objective)[0][0], rtol=1e-12)
    assert np.isnan(half)
    assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize("shared", [True, False])
def test_apply_or_loss_of_a_wrong_shape(shared: bool) -> None:
    def make(apply: Any, loss: Any) -> Any:
        if shared:
            return second_order(apply, loss, 0.7, 0.3)
        return regularized(apply, loss, {"slope": (1.0, hessjax.input_gradient_norm)})

    def batched(params: Any, x: jax.Array) -> jax.Array:
        return APPLY(params, x)[None]

    with pytest.raises(ValueError, match=r"\(1, 5\)"):
        make(batched, LOSS)(PARAMS, BATCH, KEY)
    with pytest.raises(ValueError, match=r"scalar.*\(5,\)"):
        make(APPLY, lambda z, y: z * y)(PARAMS, BATCH, KEY)
