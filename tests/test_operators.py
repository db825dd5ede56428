"""Products with Hessians against dense matrices."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hessjax
from tests import cases

functions = pytest.mark.parametrize("name", cases.ALL)


def direction(x: Any, seed: int) -> Any:
    flat, unravel = ravel_pytree(x)
    return unravel(jnp.asarray(cases.vector(flat.size, seed), flat.dtype))


class Evaluated(NamedTuple):
    """Everything in the module at one point, from one compilation."""

    hvp: Any
    operator: Any
    gauss_newton: Any
    first: Any
    second: Any
    matrix: Any


def evaluate(f: hessjax.Composite, x: Any, u: Any, v: Any) -> Evaluated:
    return Evaluated(
        hvp=hessjax.hvp(f, x, v),
        operator=hessjax.hessian_operator(f, x)(v),
        gauss_newton=hessjax.gauss_newton_operator(f, x)(v),
        first=hessjax.directional_derivative(f, x, u),
        second=hessjax.second_directional_derivative(f, x, u, v),
        matrix=hessjax.hessian_matrix(f, x),
    )


@cache
def evaluated(name: str) -> tuple[Evaluated, np.ndarray, np.ndarray]:
    """Return the module's results for a case, and the raveled directions."""
    case = cases.ALL[name]()
    u, v = direction(case.x, seed=13), direction(case.x, seed=14)
    results = jax.jit(partial(evaluate, case.function()))(case.x, u, v)
    for product in (results.hvp, results.operator, results.gauss_newton):
        assert product.shape == case.x.shape
    return results, np.ravel(u), np.ravel(v)


def relative_error(got: Any, wanted: Any) -> float:
    difference = np.linalg.norm(np.ravel(got) - np.ravel(wanted))
    return float(difference and difference / np.linalg.norm(wanted))


@functions
def test_products_with_the_hessian(name: str) -> None:
    results, _, v = evaluated(name)
    wanted = cases.dense(name).hessian @ v
    assert relative_error(results.hvp, wanted) <= 1e-12
    assert relative_error(results.operator, wanted) <= 1e-12


@functions
def test_products_with_gauss_newton(name: str) -> None:
    results, _, v = evaluated(name)
    assert relative_error(results.gauss_newton, cases.dense(name).gauss_newton @ v) <= 1e-12


@functions
def test_hessian_matrix(name: str) -> None:
    assert relative_error(evaluated(name)[0].matrix, cases.dense(name).hessian) <= 1e-12


@pytest.mark.parametrize("name", ["linear softmax", "mlp gelu"])
def test_gauss_newton_matrix(name: str) -> None:
    case = cases.ALL[name]()
    got = jax.jit(partial(hessjax.gauss_newton_matrix, case.function()))(case.x)
    assert relative_error(got, cases.dense(name).gauss_newton) <= 1e-12


def test_gauss_newton_matrix_of_a_tree_and_of_what_has_none() -> None:
    def model(tree: dict[str, Any]) -> jax.Array:
        return jnp.stack([2 * tree["a"][0], 3 * tree["b"], tree["a"][1]])

    matrix = hessjax.gauss_newton_matrix
    f = hessjax.Composite(model, lambda z: z @ z / 2)
    tree = {"a": jnp.ones(2), "b": jnp.ones(())}
    np.testing.assert_array_equal(matrix(f, tree), np.diag([4.0, 1.0, 9.0]))
    with pytest.raises(TypeError, match=r"Composite.*got model$"):
        matrix(model, tree)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^x .*int32"):
        matrix(f, {"a": jnp.ones(2), "b": jnp.int32(1)})
    with pytest.raises(ValueError, match=r"scalar.*\(3,\)"):
        matrix(hessjax.Composite(model, jnp.sin), tree)
    with pytest.raises(ValueError, match=r"outputs of shape \(C,\), got \(1, 3\)"):
        matrix(hessjax.Composite(lambda t: model(t)[None], jnp.sum), tree)


@functions
def test_directional_derivatives(name: str) -> None:
    results, u, v = evaluated(name)
    case, dense = cases.ALL[name](), cases.dense(name)
    value = case.function()(case.x)
    along_u, along_v = dense.gradient @ u, dense.gradient @ v
    close: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-13}
    np.testing.assert_allclose(results.first, (value, along_u), **close)
    # In this order: with unequal directions a swap of the two slopes cannot pass.
    wanted = (value, along_u, along_v, u @ dense.hessian @ v)
    np.testing.assert_allclose(results.second, wanted, **close)


@pytest.mark.parametrize("name", cases.PIECEWISE_LINEAR)
def test_gauss_newton_is_the_hessian_of_piecewise_linear_nets(name: str) -> None:
    results = evaluated(name)[0]
    assert relative_error(results.gauss_newton, results.hvp) <= 1e-10


@pytest.mark.parametrize("name", cases.SMOOTH)
def test_gauss_newton_is_not_the_hessian_of_smooth_nets(name: str) -> None:
    results = evaluated(name)[0]
    assert relative_error(results.gauss_newton, results.hvp) > 0.01


@pytest.mark.parametrize("name", cases.SPECTRA)
@pytest.mark.parametrize("scale", cases.SCALES)
def test_hvp_of_tiny_and_huge_hessians(name: str, scale: float) -> None:
    case = cases.quadratic(name, scale)
    v = direction(case.x, seed=10)
    wanted = cases.symmetric(cases.SPECTRA[name], scale) @ np.asarray(v)
    assert relative_error(hessjax.hvp(case.function(), case.x, v), wanted) <= 1e-12


def test_linear_softmax_has_its_closed_form() -> None:
    wanted = cases.linear_softmax_hessian(cases.linear_softmax())
    results, _, v = evaluated("linear softmax")
    assert relative_error(results.matrix, wanted) <= 1e-12
    assert relative_error(results.gauss_newton, wanted @ v) <= 1e-12


def test_an_operator_is_linear_and_serves_many_products() -> None:
    case = cases.mlp("gelu")
    matvec = hessjax.hessian_operator(case.function(), case.x)
    hessian = cases.dense("mlp gelu").hessian
    np.testing.assert_allclose(jax.vmap(matvec)(jnp.eye(6)), hessian, rtol=1e-11, atol=1e-14)
    v = direction(case.x, seed=13)
    np.testing.assert_allclose(matvec(-3 * v), -3 * matvec(v), rtol=1e-12)


def test_directional_derivative_against_finite_differences() -> None:
    case = cases.mlp("gelu")
    f, u = case.function(), direction(case.x, seed=13)
    wanted = (f(case.x + 1e-5 * u) - f(case.x - 1e-5 * u)) / 2e-5
    np.testing.assert_allclose(hessjax.directional_derivative(f, case.x, u)[1], wanted, rtol=1e-8)


def test_trees_of_inputs() -> None:
    case = cases.mlp("gelu")
    f = case.function()
    tree = cases.tree_input(case.x)

    tree_f = hessjax.Composite(lambda t: f.model(cases.from_tree_input(t)), f.loss)
    results, u, v = evaluated("mlp gelu")
    split = cases.tree_input
    got = jax.jit(partial(evaluate, tree_f))(tree, split(jnp.asarray(u)), split(jnp.asarray(v)))
    cases.assert_tree_close(got.hvp, split(results.hvp))
    cases.assert_tree_close(got.operator, split(results.operator))
    cases.assert_tree_close(got.gauss_newton, split(results.gauss_newton))
    # The leaves of the tree lie in the order of the vector, so the matrices agree.
    numbers = (results.first, results.second, results.matrix)
    cases.assert_tree_close((got.first, got.second, got.matrix), numbers)


def test_jit_and_vmap_change_nothing() -> None:
    case = cases.mlp("tanh")
    points = cases.batch_of(case, 3)[0]
    u, v = direction(case.x, seed=13), direction(case.x, seed=14)

    def at(x: jax.Array) -> Evaluated:
        return evaluate(case.function(), x, u, v)

    loop = jax.tree.map(lambda *rows: jnp.stack(rows), *[at(x) for x in points])
    batched = jax.jit(jax.vmap(at), compiler_options=cases.USUAL)
    cases.assert_tree_close(batched(points), loop, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtype_of_the_input_is_kept(dtype: Any) -> None:
    case = cases.mlp("gelu", dtype)
    f, x = case.function(), case.x
    # A direction of more digits than the input is a direction all the same.
    v = jnp.ones(6, jnp.float64)

    @jax.jit
    def everything(x: jax.Array) -> Any:
        return (
            hessjax.hvp(f, x, v),
            hessjax.hessian_operator(f, x)(v),
            hessjax.gauss_newton_operator(f, x)(v),
            *hessjax.second_directional_derivative(f, x, v, v),
            *hessjax.directional_derivative(f, x, v),
        )

    for product in everything(x):
        assert product.dtype == dtype
        assert cases.all_finite(product)


def test_gradient_in_the_parameters_passes_through() -> None:
    case = cases.mlp("tanh")
    v = direction(case.x, seed=13)

    def squared_length(params: Any) -> jax.Array:
        return jnp.sum(hessjax.hvp(case.function(params), case.x, v) ** 2)

    def oracle(params: Any) -> jax.Array:
        return jnp.sum((cases.dense_hessian(case.function(params), case.x) @ v) ** 2)

    cases.assert_gradient(squared_length, oracle, case.params)


def test_composite_is_the_function_it_composes() -> None:
    case = cases.linear_softmax()
    f = hessjax.Composite(lambda x: case.apply(case.params, x), lambda z: case.loss(z, case.y))
    assert f(case.x) == case.loss(case.apply(case.params, case.x), case.y)
    with pytest.raises(AttributeError):
        f.model = f.loss  # type: ignore[misc]


CALLS: dict[str, Callable[..., Any]] = {
    "hvp": hessjax.hvp,
    "hessian_operator": lambda f, x, v: hessjax.hessian_operator(f, x)(v),
    "gauss_newton_operator": lambda f, x, v: hessjax.gauss_newton_operator(f, x)(v),
    "directional_derivative": hessjax.directional_derivative,
    "u of second": lambda f, x, v: hessjax.second_directional_derivative(f, x, v, x),
    "v of second": lambda f, x, v: hessjax.second_directional_derivative(f, x, x, v),
}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_bad_direction(name: str) -> None:
    call, case = CALLS[name], cases.mlp("gelu")
    f, x = case.function(), case.x
    bad = "u" if name in {"directional_derivative", "u of second"} else "v"
    with pytest.raises(ValueError, match=rf"^{bad} .* \(6,\), got \(5,\)"):
        call(f, x, jnp.ones(5))
    with pytest.raises(ValueError, match=f"^{bad} .*structure"):
        call(f, x, {"a": x})
    with pytest.raises(TypeError, match=f"^{bad} .*int"):
        call(f, x, jnp.ones(6, jnp.int32))
    with pytest.raises(TypeError, match=f"^{bad} .*complex"):
        call(f, x, jnp.ones(6, jnp.complex128))


@calls
def test_bad_point_or_function(call: Callable[..., Any]) -> None:
    f = cases.mlp("gelu").function()
    with pytest.raises(TypeError, match=r"^x .*int"):
        call(f, jnp.ones(6, jnp.int32), jnp.ones(6))
    vector_valued = hessjax.Composite(f.model, lambda z: z)
    with pytest.raises(ValueError, match=r"scalar.*\(5,\)"):
        call(vector_valued, jnp.ones(6), jnp.ones(6))
    two_outputs = hessjax.Composite(f.model, lambda z: (z[0], z[1]))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="scalar"):
        call(two_outputs, jnp.ones(6), jnp.ones(6))
    with pytest.raises(TypeError, match="int"):
        call(hessjax.Composite(f.model, jnp.argmax), jnp.ones(6), jnp.ones(6))


@pytest.mark.parametrize("x", [jnp.ones(6, jnp.int32), jnp.ones(0)])
def test_hessian_matrix_refuses_what_has_no_derivative(x: jax.Array) -> None:
    with pytest.raises((TypeError, ValueError), match=r"int32|no numbers"):
        hessjax.hessian_matrix(jnp.sum, x)


def test_gauss_newton_needs_a_composite() -> None:
    def tanh_sum(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(x))

    with pytest.raises(TypeError, match=r"Composite.*tanh_sum"):
        hessjax.gauss_newton_operator(tanh_sum, jnp.ones(3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Composite.*got partial$"):
        hessjax.gauss_newton_operator(partial(jnp.sum), jnp.ones(3))  # type: ignore[arg-type]
