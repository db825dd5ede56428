"""Penalties where their values can be worked out by hand."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessjax
from hessjax import Composite, power_iteration
from hessjax.eigen import ONE_PRODUCT
from tests.cases import SADDLE_NORMS, saddle, second_axis

ONES = jnp.ones(2)
KEY = jax.random.key(50)

NORM, FINITE = hessjax.hessian_operator_norm, hessjax.finite_step_operator_norm
SLOPE, BEND = hessjax.input_gradient_norm, hessjax.curvature_along_gradient
JACOBIAN = hessjax.jacobian_operator_norm
TWO_PRODUCTS = partial(power_iteration, num_iters=2)

# At (1, 1), where the gradient is (2, -6).
ONE, TWO = SADDLE_NORMS
OF_THE_SADDLE: dict[str, tuple[Callable[..., jax.Array], float]] = {
    "gradient": (SLOPE, np.sqrt(40)),
    "gradient, linf ball": (partial(SLOPE, order=np.inf), 8),
    "gradient, l1 ball": (partial(SLOPE, order=1), 6),
    "gradient squared": (partial(SLOPE, squared=True), 40),
    "hessian": (NORM, ONE),
    "hessian squared": (partial(NORM, squared=True), ONE**2),
    "hessian, two products": (partial(NORM, solver=TWO_PRODUCTS), TWO),
    "hessian, own start": (partial(NORM, start=second_axis), 6),
    # |ĝᵀHĝ| = |2 - 54|/10.
    "no product": (partial(NORM, solver=None), 5.2),
    "no product, squared": (partial(NORM, solver=None, squared=True), 5.2**2),
    "no product, own start": (partial(NORM, solver=None, start=second_axis), 6),
    "finite step": (partial(FINITE, step=0.5), ONE),
    "finite step squared": (partial(FINITE, step=0.5, squared=True), ONE**2),
    "finite step, twice": (partial(FINITE, step=0.5, num_iters=2), TWO),
    # Along (1, -1)/√2; not divided by the step.
    "curvature": (partial(BEND, step=0.5), 0.5 * np.sqrt(20)),
    # The same for each probe, for the matrix is diagonal.
    "frobenius": (hessjax.hessian_squared_frobenius_norm, 40),
    "frobenius, three": (partial(hessjax.hessian_squared_frobenius_norm, num_samples=3), 40),
}


def check(value_of: Callable[[Any], jax.Array], wanted: float, degree: int) -> None:
    """Compare the value, and the derivative in a factor by Euler's theorem."""
    value, derivative = jax.jit(jax.value_and_grad(value_of))(1.0)
    np.testing.assert_allclose(value, wanted, rtol=1e-12)
    np.testing.assert_allclose(derivative, degree * wanted, rtol=1e-12)


@pytest.mark.parametrize("name", OF_THE_SADDLE)
def test_a_saddle(name: str) -> None:
    penalty, wanted = OF_THE_SADDLE[name]
    degree = 2 if name.endswith("squared") or name.startswith("frobenius") else 1
    check(lambda t: penalty(partial(saddle, t), ONES, KEY), wanted, degree)


@pytest.mark.parametrize("name", ["finite step", "finite step, twice", "curvature"])
def test_a_step_of_more_digits_does_not_widen_the_value(name: str) -> None:
    penalty, wanted = OF_THE_SADDLE[name]
    penalty = partial(penalty, step=np.float64(0.5))
    f = partial(saddle, 1.0)
    value = jax.jit(lambda x: penalty(f, x, KEY))(ONES.astype(jnp.float32))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, wanted, rtol=1e-5)


def stretch(t: Any) -> Composite:
    """The Jacobian is diag(3, -4, 1) times t, the loss's own Hessian diag(4, 1, 2)."""
    return Composite(
        lambda x: jnp.asarray(t * jnp.array([3.0, -4.0, 1.0]), x.dtype) * x,
        lambda z: (4 * z[0] ** 2 + z[1] ** 2 + 2 * z[2] ** 2) / 2,
    )


def first_axis(gradient: Any, key: Any) -> jax.Array:
    """Return (1, 0, 0); it takes a key."""
    return jnp.zeros_like(gradient).at[0].set(1) + 0 * jax.random.normal(key, dtype=gradient.dtype)


# Three products with diag(9, 16, 1) of the gradient (36, 16, 2), all of them used.
V = np.array([9.0**3 * 36, 16.0**3 * 16, 2])
STRETCHED = float(np.linalg.norm([3, -4, 1] * V) / np.linalg.norm(V))
OF_THE_STRETCH: dict[str, tuple[Callable[..., jax.Array], float, int]] = {
    "gauss-newton": (hessjax.gauss_newton_operator_norm, 36, 2),
    "gauss-newton squared": (partial(hessjax.gauss_newton_operator_norm, squared=True), 36**2, 4),
    "frobenius": (hessjax.jacobian_squared_frobenius_norm, 26, 2),
    "frobenius, three": (partial(hessjax.jacobian_squared_frobenius_norm, num_samples=3), 26, 2),
    "operator": (JACOBIAN, STRETCHED, 1),
    "operator squared": (partial(JACOBIAN, squared=True), STRETCHED**2, 2),
    "operator, own start": (partial(JACOBIAN, start=first_axis), 3, 1),
}


@pytest.mark.parametrize("name", OF_THE_STRETCH)
def test_a_stretch(name: str) -> None:
    penalty, wanted, degree = OF_THE_STRETCH[name]
    check(lambda t: penalty(stretch(t), jnp.ones(3), KEY), wanted, degree)


@pytest.mark.parametrize("name", ["gauss-newton", "frobenius", "operator"])
def test_a_stretch_in_single_precision(name: str) -> None:
    penalty, wanted, _ = OF_THE_STRETCH[name]
    value = jax.jit(partial(penalty, stretch(1.0)))(jnp.ones(3, jnp.float32), KEY)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("penalty", "wanted"),
    [
        (SLOPE, 3.0),
        (NORM, 6.0),
        # (3 (1 + h)² - 3)/h with h = 1/2.
        (partial(FINITE, step=0.5), 7.5),
        (partial(BEND, step=0.5), 3.75),
        (hessjax.hessian_squared_frobenius_norm, 36.0),
    ],
)
def test_a_cubic(penalty: Callable[..., jax.Array], wanted: float) -> None:
    value = jax.jit(lambda x: penalty(lambda t: t**3, x, KEY))(1.0)
    np.testing.assert_allclose(value, wanted, rtol=1e-12)


def test_chance_comes_from_the_key() -> None:
    def f(x: jax.Array) -> jax.Array:
        return x[0] * x[1] + x[0] ** 2

    keys = jax.random.split(KEY, 6)

    def draws(penalty: Callable[..., jax.Array], x: jax.Array = ONES) -> np.ndarray:
        values = jax.jit(jax.vmap(lambda key: penalty(f, x, key)))(keys)
        return np.unique(np.round(values, 9))

    # ‖H(1, 1)‖² = 10 and ‖H(1, -1)‖² = 2.
    np.testing.assert_array_equal(draws(hessjax.hessian_squared_frobenius_norm), [2, 10])
    # ‖Jᵀ(1, 1)‖² = 5 and ‖Jᵀ(1, -1)‖² = 1; one probe, unless told.
    pair = Composite(lambda x: jnp.array([x[0] + x[1], x[0]]), lambda z: z @ z)
    jacobian = hessjax.jacobian_squared_frobenius_norm
    np.testing.assert_array_equal(draws(lambda _, x, key: jacobian(pair, x, key)), [1, 5])
    # Where the gradient vanishes the direction is (±1, ±1)/√2.
    for penalty in (NORM, partial(FINITE, step=0.5)):
        np.testing.assert_allclose(draws(penalty, 0 * ONES), [1, np.sqrt(5)], rtol=1e-8)
    for solver in (ONE_PRODUCT, None):
        assert len(draws(partial(NORM, start=hessjax.random_start, solver=solver))) == 6
    with pytest.raises(
        ValueError, match=r"^random probes need key=jax.random.key\(...\), got None$"
    ):
        hessjax.hessian_squared_frobenius_norm(f, ONES)
