"""Penalties at extremes and under transformations: scales, zeros, saturation, keys, bad input."""

import re
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessjax
from hessjax import Composite, lanczos, norm_ascent
from tests import cases
from tests.penalties import CORE, FEW, KEY, NEEDS_KEY, OF_A_COMPOSITE, PENALTIES, unit

penalties = pytest.mark.parametrize("penalty", CORE)
OF_THE_HESSIAN = [
    *[name for name in PENALTIES if name.startswith(("hessian", "finite"))],
    "curvature",
    "gauss-newton",
]


@cache
def quadratic_norms() -> Any:
    """Return a compiled function of a quadratic: norms of its gradient and its Hessian."""

    @jax.jit
    def norms(params: Any, x: jax.Array) -> dict[str, jax.Array]:
        f = cases.Case(cases.quadratic_apply, params, x, 0, cases.output_itself).function()
        # The gradient of a quadratic is linear, so a step of any length sees the Hessian.
        finite = partial(hessjax.finite_step_operator_norm, f, x, step=2.0)
        return {
            "slope": hessjax.input_gradient_norm(f, x),
            "one product": hessjax.hessian_operator_norm(f, x),
            "exact": hessjax.hessian_operator_norm(f, x, solver=partial(lanczos, num_iters=6)),
            "finite step": finite(),
            "finite step twice": finite(num_iters=2),
            "sign": hessjax.curvature_along_gradient(f, x, step=2.0),
        }

    return norms


@pytest.mark.parametrize("name", cases.SPECTRA)
@pytest.mark.parametrize("scale", cases.SCALES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_quadratics_of_any_scale(name: str, scale: float, dtype: Any) -> None:
    case = cases.quadratic(name, scale, dtype)
    got = quadratic_norms()(case.params, case.x)
    matrix = cases.symmetric(cases.SPECTRA[name], scale)
    gradient = np.asarray(case.params["b"], np.float64) + matrix @ np.asarray(case.x, np.float64)
    along = unit(gradient)
    one_product = np.linalg.norm(matrix @ along)
    wanted = {
        "slope": np.linalg.norm(gradient),
        "one product": one_product,
        "exact": np.abs(np.linalg.eigvalsh(matrix)).max(),
        "finite step": one_product,
        "finite step twice": np.linalg.norm(matrix @ matrix @ along) / max(one_product, 1e-300),
        "sign": 2.0 * np.linalg.norm(matrix @ unit(np.sign(gradient))),
    }
    rtol = 1e-8 if dtype == jnp.float64 else 1e-4
    for norm, value in wanted.items():
        np.testing.assert_allclose(got[norm], value, rtol=rtol, err_msg=norm)


DEGREE = {"hessian frobenius": 2, "jacobian frobenius": 0, "jacobian operator": 0}


@cache
def scaled(dtype: Any) -> dict[str, Any]:
    """Return values and parameter gradients of losses times 1, 1e-18 and 1e12."""
    case = cases.mlp("gelu", dtype)

    def at(scale: jax.Array) -> dict[str, Any]:
        def loss(z: jax.Array, y: Any) -> jax.Array:
            return scale * cases.cross_entropy(z, y)

        # The step of the ascent is in units of one over the matrix.
        ascent = partial(norm_ascent, num_iters=2, step_size=1 / scale)
        own = {"hessian, ascent": partial(hessjax.hessian_operator_norm, solver=ascent)}

        def value(params: Any, name: str) -> jax.Array:
            f = case._replace(loss=loss).function(params)
            return own.get(name, PENALTIES[name])(f, case.x, KEY)

        # The square of 1e-18 is at the end of float32's range: there, degree one alone.
        degree = 2 if dtype == jnp.float64 else 1
        names = [name for name in CORE if DEGREE.get(name, 1) in {degree, 0}]
        return {name: jax.value_and_grad(value)(case.params, name) for name in names}

    return jax.jit(jax.vmap(at))(jnp.asarray([1.0, 1e-18, 1e12], dtype))


@penalties
def test_scale_of_the_loss_is_the_scale_of_the_penalty(penalty: str) -> None:
    degree = DEGREE.get(penalty, 1)
    dtype, tolerance = (jnp.float64, 1e-9) if degree == 2 else (jnp.float32, 1e-3)
    for leaf in jax.tree.leaves(scaled(dtype)[penalty]):
        rows = np.asarray(leaf, np.float64)
        for row, scale in zip(rows[1:], (1e-18, 1e12), strict=True):
            np.testing.assert_allclose(
                row / scale**degree, rows[0], rtol=tolerance, atol=tolerance * abs(rows[0]).max()
            )


@cache
def extreme(dtype: Any) -> dict[str, Any]:
    """Return values and parameter gradients at logits of ±1e4 and at ordinary ones."""
    case = cases.mlp("gelu", dtype)

    def at(scale: jax.Array, y: jax.Array) -> dict[str, Any]:
        params = case.params | {"W2": scale * case.params["W2"]}

        def value(params: Any, name: str) -> jax.Array:
            return PENALTIES[name](case._replace(y=y).function(params), case.x, KEY)

        return {name: jax.value_and_grad(value)(params, name) for name in CORE}

    scales, labels = jnp.meshgrid(jnp.asarray([1.0, 100.0, 1e4], dtype), jnp.arange(5))
    return jax.jit(jax.vmap(at))(scales.reshape(-1), labels.reshape(-1))


@penalties
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_everything_is_finite_at_saturated_logits(penalty: str, dtype: Any) -> None:
    value, gradient = extreme(dtype)[penalty]
    assert cases.all_finite((value, gradient))
    # Where the softmax is saturated a Hessian is the rounding error of JᵀJ, of either sign.
    of_hessian = penalty.startswith("hessian,") or penalty == "hessian"
    jacobian = np.asarray(extreme(dtype)["jacobian operator"][0], np.float64)
    noise = float(jnp.finfo(dtype).eps) * jacobian**2 if of_hessian else 0
    assert np.all(np.asarray(value, np.float64) >= -noise)
    assert value.dtype == dtype
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(gradient))


def linear(theta: jax.Array, x: jax.Array) -> jax.Array:
    return theta.reshape(2, 3) @ x


def constant(theta: jax.Array, x: jax.Array) -> jax.Array:
    return theta[:2] + 0 * jnp.sum(x)


def absent(theta: jax.Array, x: jax.Array) -> jax.Array:
    # A Hessian that is zero at these parameters and not at their neighbors.
    zero = theta[:2] - jax.lax.stop_gradient(theta[:2])
    return linear(theta, x) + zero * (x @ x)


@cache
def of_nothing(model: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Return values and parameter gradients where the Hessian is zero."""
    x = jnp.asarray([0.5, -1.0, 2.0])

    def value(theta: jax.Array, penalty: str) -> jax.Array:
        f = Composite(partial(model, theta), lambda z: z[0] - 2 * z[1])
        return PENALTIES[penalty](f, x, KEY)

    @jax.jit
    def evaluate(theta: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        return {name: jax.value_and_grad(value)(theta, name) for name in OF_THE_HESSIAN}

    return evaluate(jnp.arange(1.0, 7.0))


@pytest.mark.parametrize("penalty", OF_THE_HESSIAN)
@pytest.mark.parametrize("model", [linear, constant, absent])
def test_zero_where_the_hessian_is_zero(penalty: str, model: Any) -> None:
    got, gradient = of_nothing(model)[penalty]
    assert got == 0
    np.testing.assert_array_equal(gradient, np.zeros(6))


@pytest.mark.parametrize(
    "penalty", ["gradient", "gradient squared", "gradient, linf ball", "gradient, l1 ball"]
)
def test_zero_where_the_gradient_is_zero(penalty: str) -> None:
    def value(theta: jax.Array) -> jax.Array:
        return PENALTIES[penalty](lambda x: jnp.sum(constant(theta, x)), jnp.ones(3))

    got, gradient = jax.value_and_grad(value)(jnp.arange(6.0))
    assert got == 0
    np.testing.assert_array_equal(gradient, np.zeros(6))


# Transformations, keys, trees, dtypes.


def test_jit_and_vmap_change_nothing() -> None:
    case = cases.mlp("tanh")
    points, labels = cases.batch_of(case, 2)
    keys = jax.random.split(KEY, 2)

    def these(names: list[str], x: jax.Array, y: jax.Array, key: jax.Array) -> Any:
        f = case._replace(y=y).function()
        return {name: PENALTIES[name](f, x, key) for name in names}

    everything = jax.jit(partial(these, CORE))
    rows = [everything(*row) for row in zip(points, labels, keys, strict=True)]
    loop = jax.tree.map(lambda *values: jnp.stack(values), *rows)
    batched = jax.jit(jax.vmap(partial(these, CORE)))(points, labels, keys)
    cases.assert_tree_close(batched, loop, rtol=1e-9)

    # As it is, and as the compiler makes it by default.
    few = ["gradient", "hessian", "gauss-newton", "jacobian frobenius"]
    first, wanted = (points[0], labels[0], keys[0]), {name: rows[0][name] for name in few}
    cases.assert_tree_close(these(few, *first), wanted, rtol=1e-9)
    usual = jax.jit(partial(these, few), compiler_options=cases.USUAL)
    cases.assert_tree_close(usual(*first), wanted, rtol=1e-9)


def test_trees_of_inputs_give_the_same_values() -> None:
    case = cases.mlp("gelu")
    f = case.function()
    tree = Composite(lambda t: f.model(cases.from_tree_input(t)), f.loss)

    @jax.jit
    def everything(f: Composite, x: Any) -> dict[str, jax.Array]:
        return {name: PENALTIES[name](f, x, KEY) for name in FEW}

    got, wanted = everything(tree, cases.tree_input(case.x)), everything(f, case.x)
    cases.assert_tree_close(got, wanted, rtol=1e-9)


@cache
def by_key() -> Any:
    """Return a compiled function of a key, or of none: every penalty at a linear softmax."""
    case = cases.linear_softmax()

    @jax.jit
    def everything(key: jax.Array | None) -> dict[str, jax.Array]:
        names = [name for name in CORE if key is not None or name not in NEEDS_KEY]
        return {name: PENALTIES[name](case.function(), case.x, key) for name in names}

    return everything


@penalties
def test_same_key_same_value(penalty: str) -> None:
    once, again, other = (by_key()(key)[penalty] for key in (KEY, KEY, jax.random.key(99)))
    assert once == again
    # A key decides only where chance enters by design.
    assert (once == other) == (penalty not in NEEDS_KEY)
    if penalty in NEEDS_KEY:
        case = cases.linear_softmax()
        with pytest.raises(ValueError, match="key"):
            PENALTIES[penalty](case.function(), case.x)
    else:
        np.testing.assert_allclose(by_key()(None)[penalty], once, rtol=1e-12)


def test_random_starts_follow_the_key() -> None:
    case = cases.mlp("gelu")
    f = case.function()

    @jax.jit
    def compute(key: jax.Array) -> jax.Array:
        return hessjax.hessian_operator_norm(f, case.x, key, start=hessjax.random_start)

    assert compute(KEY) == compute(KEY)
    assert compute(KEY) != compute(jax.random.key(99))
    solver = partial(lanczos, num_iters=2)
    with pytest.raises(ValueError, match="key"):
        hessjax.hessian_operator_norm(f, case.x, start=hessjax.random_start)
    with pytest.raises(ValueError, match="key"):
        hessjax.jacobian_operator_norm(f, case.x, solver=solver, start=hessjax.random_start)


# Bad input.


@pytest.mark.parametrize("penalty", OF_A_COMPOSITE)
def test_a_plain_function_where_a_composite_is_needed(penalty: str) -> None:
    def plain(x: jax.Array) -> jax.Array:
        return jnp.sum(x)

    with pytest.raises(TypeError, match=r"Composite.*plain"):
        PENALTIES[penalty](plain, jnp.ones(6), KEY)


@penalties
def test_bad_point_or_function(penalty: str) -> None:
    compute, f = PENALTIES[penalty], cases.mlp("gelu").function()
    with pytest.raises(TypeError, match="int32"):
        compute(f, jnp.ones(6, jnp.int32), KEY)
    if penalty not in OF_A_COMPOSITE:
        with pytest.raises(ValueError, match=r"scalar.*\(6,\)"):
            compute(lambda x: x, jnp.ones(6), KEY)


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize(
    "penalty", [hessjax.finite_step_operator_norm, hessjax.curvature_along_gradient]
)
def test_bad_step(penalty: Any, step: float) -> None:
    with pytest.raises(ValueError, match=f"^step must .*{step}"):
        penalty(jnp.sum, jnp.ones(3), step=step)


@pytest.mark.parametrize(
    ("penalty", "argument"),
    [
        (partial(hessjax.finite_step_operator_norm, step=1.0), "num_iters"),
        (hessjax.hessian_squared_frobenius_norm, "num_samples"),
        (hessjax.jacobian_squared_frobenius_norm, "num_samples"),
    ],
)
def test_bad_count(penalty: Any, argument: str) -> None:
    f = cases.mlp("gelu").function()
    for count in (0, -2):
        with pytest.raises(ValueError, match=f"^{argument} must .*{count}"):
            penalty(f, jnp.ones(6), KEY, **{argument: count})
    with pytest.raises(TypeError, match=rf"^{argument} must .*1\.5"):
        penalty(f, jnp.ones(6), KEY, **{argument: 1.5})


@pytest.mark.parametrize("order", [0, 0.5, -1, float("nan"), 3])
def test_bad_order(order: float) -> None:
    with pytest.raises(ValueError, match=f"^order must .*{order}"):
        hessjax.input_gradient_norm(jnp.sum, jnp.ones(3), order=order)


@pytest.mark.parametrize("count", [0, 7])
def test_bad_solver_configuration_is_seen_through_the_penalty(count: int) -> None:
    solver = partial(lanczos, num_iters=count)
    with pytest.raises(ValueError, match=f"num_iters.*{count}"):
        hessjax.hessian_operator_norm(cases.mlp("gelu").function(), jnp.ones(6), solver=solver)


@pytest.mark.parametrize(
    "penalty",
    [
        hessjax.gauss_newton_operator_norm,
        hessjax.jacobian_squared_frobenius_norm,
        hessjax.jacobian_operator_norm,
    ],
)
@pytest.mark.parametrize("shape", ["(1, 5)", "((5,), (5,))"])
def test_outputs_that_are_no_vector(penalty: Any, shape: str) -> None:
    f = cases.mlp("gelu").function()
    models: Any = {
        "(1, 5)": lambda x: f.model(x)[None],
        "((5,), (5,))": lambda x: (f.model(x),) * 2,
    }
    model = models[shape]
    batched = Composite(model, lambda z: f.loss(z[0]))
    with pytest.raises(ValueError, match=r"outputs of shape \(C,\), got " + re.escape(shape)):
        penalty(batched, jnp.ones(6), KEY)


# Numbers of the configuration.


@pytest.mark.parametrize("step", [np.float64(0.5), jnp.float32(0.5), 0.5])
def test_a_step_of_any_kind_keeps_the_dtype(step: Any) -> None:
    f = cases.mlp("gelu", jnp.float32).function()

    @jax.jit
    def values(x: jax.Array) -> list[jax.Array]:
        return [
            hessjax.finite_step_operator_norm(f, x, step=step),
            hessjax.curvature_along_gradient(f, x, step=step),
            hessjax.hessian_operator_norm(
                f, x, solver=partial(norm_ascent, num_iters=1, step_size=step)
            ),
        ]

    assert [value.dtype for value in values(jnp.ones(6, jnp.float32))] == [jnp.float32] * 3


@pytest.mark.parametrize("gap", [8.0, 15.0, 20.0, 30.0])
def test_shifted_logits_keep_the_derivatives_of_confident_examples(gap: float) -> None:
    """As docs/theory.md says: the slope p - 1 of the label's logit would lose its digits."""
    weights = np.random.default_rng(0).normal(size=(3, 5))
    offset = np.array([gap, 0.0, -1.0])

    @partial(jax.jit, static_argnums=0)
    def norms(shifted: bool, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        def model(x: jax.Array) -> jax.Array:
            return jnp.asarray(weights, jnp.float32) @ x + jnp.asarray(offset, jnp.float32)

        def loss(z: jax.Array) -> jax.Array:
            return cases.cross_entropy(z - z[0] if shifted else z, 0)

        f = Composite(model, loss)
        exact = hessjax.hessian_operator_norm(f, x, solver=partial(lanczos, num_iters=3))
        return hessjax.input_gradient_norm(f, x), exact

    rest = np.exp(offset - gap)
    p = rest / rest.sum()
    slope = np.array([-p[1:].sum(), *p[1:]])
    curvature = np.diag(p)
    curvature[0, 0] = p[0] * p[1:].sum()
    curvature[0, 1:] = curvature[1:, 0] = -p[0] * p[1:]
    curvature[1:, 1:] -= np.outer(p[1:], p[1:])
    hessian = weights.T @ curvature @ weights
    wanted = np.linalg.norm(weights.T @ slope), np.abs(np.linalg.eigvalsh(hessian)).max()
    x = jnp.zeros(5, jnp.float32)
    np.testing.assert_allclose(norms(True, x), wanted, rtol=1e-5)
    if gap > 16:
        assert not np.allclose(norms(False, x), wanted, rtol=0.1, atol=0)
