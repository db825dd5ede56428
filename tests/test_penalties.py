"""Penalties and their parameter gradients against dense derivatives at frozen directions."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hessjax
from hessjax import Composite, power_iteration
from tests import cases
from tests.penalties import (
    DIFFERENTIATED,
    KEY,
    PENALTIES,
    STEP,
    converged_lanczos,
    differentiated,
    oracle,
    values,
)

NETWORKS = ["linear softmax", *cases.NETWORKS]


@pytest.mark.parametrize(
    ("name", "penalty"), [(name, row) for name, rows in DIFFERENTIATED.items() for row in rows]
)
def test_value(name: str, penalty: str) -> None:
    value = values(name)[penalty]
    assert value.shape == ()
    np.testing.assert_allclose(value, oracle(name)[1][penalty].value, rtol=1e-8)


@pytest.mark.parametrize(
    ("name", "penalty"), [(name, row) for name, rows in DIFFERENTIATED.items() for row in rows]
)
def test_parameter_gradient(name: str, penalty: str) -> None:
    directions, oracles = oracle(name)
    got = directions @ np.asarray(differentiated(name)[penalty][1])
    wanted = oracles[penalty].differences
    assert np.linalg.norm(wanted) > 1e-3, "there must be a gradient to compare with"
    assert np.linalg.norm(got - wanted) <= 1e-6 * np.linalg.norm(wanted)


def test_converged_power_iteration_has_the_total_derivative() -> None:
    case = cases.mlp("gelu")
    directions, oracles = oracle("mlp gelu")
    # The next eigenvalue is 0.56 of the largest: thirty products leave 3e-8 of its vector.
    compute = partial(hessjax.hessian_operator_norm, solver=partial(power_iteration, num_iters=30))
    value, gradient = jax.jit(
        jax.value_and_grad(lambda params: compute(case.function(params), case.x))
    )(case.params)
    wanted = oracles["hessian, converged"]
    np.testing.assert_allclose(value, wanted.value, rtol=1e-8)
    got = directions @ np.asarray(ravel_pytree(gradient)[0])
    assert np.linalg.norm(got - wanted.differences) <= 1e-6 * np.linalg.norm(wanted.differences)


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_norms_are_those_of_dense_matrices(name: str) -> None:
    got, dense = values(name), cases.dense(name)
    truths = {
        "gradient": jnp.linalg.norm(dense.gradient),
        "hessian, converged": cases.operator_norm(dense.hessian),
        "gauss-newton": jnp.max(jnp.linalg.eigvalsh(dense.gauss_newton)),
        "jacobian operator": jnp.linalg.norm(dense.jacobian, 2),
    }
    for penalty, truth in truths.items():
        rtol = 1e-10 if penalty in ("gradient", "gauss-newton") else 1e-8
        np.testing.assert_allclose(got[penalty], truth, rtol=rtol, err_msg=penalty)


def test_squared_penalties_are_squares() -> None:
    results = differentiated("mlp gelu")
    for penalty in ("gradient", "hessian", "finite step"):
        value, gradient = results[penalty]
        squared, its_gradient = results[f"{penalty} squared"]
        np.testing.assert_allclose(squared, value**2, rtol=1e-12)
        # Twice the norm: a frozen direction that is not normalized gives half of this.
        np.testing.assert_allclose(its_gradient, 2 * value * gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", cases.PIECEWISE_LINEAR)
def test_gauss_newton_is_the_hessian_norm_of_piecewise_linear_nets(name: str) -> None:
    truth = cases.operator_norm(cases.dense(name).hessian)
    np.testing.assert_allclose(values(name)["gauss-newton"], truth, rtol=1e-10)


@pytest.mark.parametrize("name", cases.SMOOTH)
def test_gauss_newton_is_not_the_hessian_norm_of_smooth_nets(name: str) -> None:
    truth = cases.operator_norm(cases.dense(name).hessian)
    assert abs(values(name)["gauss-newton"] - truth) > 1e-3 * truth


def test_gauss_newton_of_linear_softmax_has_its_closed_form() -> None:
    closed_form = cases.linear_softmax_hessian(cases.linear_softmax())
    truth = np.linalg.eigvalsh(closed_form).max()
    np.testing.assert_allclose(values("linear softmax")["gauss-newton"], truth, rtol=1e-10)


LOSSES: dict[str, Callable[[jax.Array, Any], jax.Array]] = {
    "squared error": lambda z, y: 0.5 * jnp.sum((z - jax.nn.one_hot(y, 5)) ** 2),
    "logistic": lambda z, y: jnp.sum(jax.nn.softplus(z) - z * jax.nn.one_hot(y, 5)),
    "poisson": lambda z, y: jnp.sum(jnp.exp(z)) - z[y],
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gauss_newton_of_any_convex_loss(loss: Any) -> None:
    case = cases.mlp("tanh")._replace(loss=loss)

    def value(params: Any) -> jax.Array:
        return hessjax.gauss_newton_operator_norm(case.function(params), case.x)

    def oracle(params: Any) -> jax.Array:
        f = case.function(params)
        return jnp.max(jnp.linalg.eigvalsh(cases.dense_gauss_newton(f, case.x)))

    np.testing.assert_allclose(value(case.params), oracle(case.params), rtol=1e-10)
    cases.assert_gradient(value, oracle, case.params)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_hessian_norm_is_above_the_truth(name: str) -> None:
    truth = cases.operator_norm(cases.dense(name).hessian)
    for penalty, value in values(name).items():
        if penalty == "hessian" or penalty.startswith("hessian,"):
            # 1e-12: rounding of a converged estimate.
            assert value <= truth * (1 + 1e-12)


def test_without_a_gradient_the_hessian_is_searched_from_a_random_direction() -> None:
    matrix = cases.symmetric(cases.SPECTRA["indefinite"])

    def f(x: jax.Array) -> jax.Array:
        return 0.5 * x @ matrix @ x

    x = jnp.zeros(6)
    values = [hessjax.hessian_operator_norm(f, x, key) for key in jax.random.split(KEY, 3)]
    assert all(0 < value <= 4 for value in values)
    assert len(set(map(float, values))) == 3
    without = hessjax.hessian_operator_norm(f, x)
    assert 0 < without <= 4
    assert without == hessjax.hessian_operator_norm(f, x)
    exact = hessjax.hessian_operator_norm(f, x, solver=converged_lanczos)
    np.testing.assert_allclose(exact, 4.0, rtol=1e-8)
    assert 0 < hessjax.finite_step_operator_norm(f, x, step=STEP) <= 4
    # CURE steps along the sign of the gradient: there is none, and no fallback was published.
    assert hessjax.curvature_along_gradient(f, x, step=STEP) == 0


def test_finite_step_tends_to_the_hessian() -> None:
    case = cases.mlp("gelu")
    f = case.function()
    limit = values("mlp gelu")["hessian"]

    @jax.jit
    def finite(step: jax.Array) -> jax.Array:
        return hessjax.finite_step_operator_norm(f, case.x, step=step)

    near, far = finite(jnp.asarray(1e-5)), finite(jnp.asarray(1.0))
    np.testing.assert_allclose(near, limit, rtol=1e-4)
    assert abs(far - limit) > 1e-2 * limit


def test_curvature_is_neither_divided_by_the_step_nor_squared() -> None:
    f = cases.quadratic("definite").function()
    x = cases.quadratic("definite").x
    half, one = (hessjax.curvature_along_gradient(f, x, step=step) for step in (0.5, 1.0))
    np.testing.assert_allclose(one, 2 * half, rtol=1e-12)


def test_jacobian_norms_do_not_depend_on_the_loss() -> None:
    case = cases.mlp("gelu")
    one = case.function()
    other = Composite(one.model, lambda z: jnp.sum(jnp.sin(z)))
    for penalty in ("jacobian operator", "jacobian frobenius"):
        compute = PENALTIES[penalty]
        got, wanted = (jax.jit(partial(compute, f))(case.x, KEY) for f in (one, other))
        np.testing.assert_allclose(got, wanted, rtol=1e-8)


# Unbiased estimates, within five standard errors.


def check_unbiased(estimate: Callable[..., jax.Array], truth: float) -> None:
    count = 20_000
    deviations = {}
    for num_samples in (1, 4):
        keys = jax.random.split(jax.random.key(31), count)
        values = np.asarray(jax.jit(jax.vmap(partial(estimate, num_samples=num_samples)))(keys))
        deviations[num_samples] = values.std()
        error = deviations[num_samples] / np.sqrt(count)
        assert 0 < error < 0.02 * truth, "the average must say something"
        assert abs(values.mean() - truth) <= 5 * error
    # Independent samples: four of them halve the deviation.
    np.testing.assert_allclose(deviations[1] / deviations[4], 2.0, rtol=0.05)


def test_hessian_frobenius_norm_is_unbiased() -> None:
    case = cases.mlp("tanh")

    def estimate(key: jax.Array, num_samples: int) -> jax.Array:
        f = case.function()
        return hessjax.hessian_squared_frobenius_norm(f, case.x, key, num_samples=num_samples)

    check_unbiased(estimate, float(np.sum(cases.dense("mlp tanh").hessian ** 2)))


def test_jacobian_frobenius_norm_is_unbiased() -> None:
    case = cases.mlp("tanh")

    def estimate(key: jax.Array, num_samples: int) -> jax.Array:
        f = case.function()
        return hessjax.jacobian_squared_frobenius_norm(f, case.x, key, num_samples=num_samples)

    check_unbiased(estimate, float(np.sum(cases.dense("mlp tanh").jacobian ** 2)))


def test_probes_of_the_leaves_of_a_tree_are_independent() -> None:
    # H has four blocks that are all the identity: equal probes would estimate twice the norm.
    def f(tree: dict[str, jax.Array]) -> jax.Array:
        return 0.5 * jnp.sum((tree["a"] + tree["b"]) ** 2)

    x = {"a": jnp.ones(3), "b": jnp.ones(3)}

    def estimate(key: jax.Array, num_samples: int) -> jax.Array:
        return hessjax.hessian_squared_frobenius_norm(f, x, key, num_samples=num_samples)

    check_unbiased(estimate, 12.0)
