"""What each eigen-solver does, product by product."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matfree import decomp

from hessjax import Eigenpair, lanczos, norm_ascent, power_iteration
from tests import cases
from tests.solvers import START, check_meaning, product


def test_sign_at_a_rayleigh_quotient_of_zero_is_plus() -> None:
    # vᵀAv = 0 although ‖Av‖ = 1.
    for solver in (
        partial(power_iteration, num_iters=1),
        partial(norm_ascent, num_iters=1, step_size=1.0),
    ):
        pair = solver(jnp.flip, jnp.asarray([1.0, 0.0]))
        np.testing.assert_allclose(pair.value, 1.0, rtol=1e-12)


@pytest.mark.parametrize("factor", [0.25, -0.25])
def test_sign_of_a_small_quotient(factor: float) -> None:
    pair = power_iteration(lambda v: factor * v, jnp.ones(4), num_iters=1)
    assert pair.value == factor
    assert pair.residual == 0


@pytest.mark.parametrize("solver", [power_iteration, partial(norm_ascent, step_size=1.0)])
def test_a_start_in_the_kernel_keeps_the_last_nonzero_vector(solver: Any) -> None:
    nilpotent_on_start = product(jnp.diag(jnp.asarray([0.0, 2.0])))
    pair = solver(nilpotent_on_start, jnp.asarray([3.0, 0.0]), num_iters=4)
    assert pair.value == 0
    np.testing.assert_allclose(pair.vector, [1.0, 0.0])


@pytest.mark.parametrize("num_iters", [1, 2, 3, 7])
def test_power_iteration_makes_that_many_products(num_iters: int) -> None:
    matrix = cases.symmetric(cases.SPECTRA["indefinite"])
    vector = np.linalg.matrix_power(matrix, num_iters - 1) @ np.asarray(START)
    vector /= np.linalg.norm(vector)
    image = matrix @ vector
    pair = power_iteration(product(matrix), START, num_iters=num_iters)
    np.testing.assert_allclose(pair.vector, vector, rtol=1e-10)
    np.testing.assert_allclose(pair.image, image, rtol=1e-10)
    wanted = np.copysign(np.linalg.norm(image), vector @ image)
    np.testing.assert_allclose(pair.value, wanted, rtol=1e-12)


def test_power_iteration_makes_ten_products_unless_told() -> None:
    matvec = product(cases.symmetric(cases.SPECTRA["indefinite"]))
    cases.assert_tree_close(
        power_iteration(matvec, START), power_iteration(matvec, START, num_iters=10)
    )


@pytest.mark.parametrize("num_iters", [1, 2, 5])
def test_norm_ascent_is_gradient_ascent_on_the_norm(num_iters: int) -> None:
    matrix = jnp.asarray(cases.symmetric(cases.SPECTRA["indefinite"]))
    vector = START / jnp.linalg.norm(START)
    for _ in range(num_iters):
        vector = vector + 0.3 * jax.grad(lambda v: jnp.linalg.norm(matrix @ v))(vector)
        vector = vector / jnp.linalg.norm(vector)
    pair = norm_ascent(product(matrix), START, num_iters=num_iters, step_size=0.3)
    np.testing.assert_allclose(pair.vector, vector, rtol=1e-10)
    np.testing.assert_allclose(abs(pair.value), jnp.linalg.norm(matrix @ vector), rtol=1e-12)


@pytest.mark.parametrize("step_size", [1e-38, 1e38])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_norm_ascent_survives_any_step(scale: float, step_size: float) -> None:
    diagonal = scale * jnp.array([10.0, 1.0], jnp.float32)
    start = jnp.ones(2, jnp.float32)
    pair = norm_ascent(lambda v: diagonal * v, start, num_iters=3, step_size=step_size)
    # A step of nothing stays where it began.
    wanted = 10.0 if step_size > 1 else np.sqrt(101 / 2)
    np.testing.assert_allclose(pair.value / scale, wanted, rtol=1e-4)


def test_norm_ascent_with_a_large_step_is_power_iteration_on_the_square() -> None:
    matvec = product(cases.symmetric(cases.SPECTRA["indefinite"]))
    ascent = norm_ascent(matvec, START, num_iters=3, step_size=1e12)
    power = power_iteration(matvec, START, num_iters=7)
    np.testing.assert_allclose(ascent.vector, power.vector, rtol=1e-8)


@cache
def lanczos_with(num_iters: int) -> Callable[..., tuple[Eigenpair, jax.Array]]:
    """Return compiled Lanczos of a dense matrix, and matfree's tridiagonal matrix."""

    @jax.jit
    def solve(matrix: jax.Array, v0: jax.Array) -> tuple[Eigenpair, jax.Array]:
        tridiagonalize: Any = decomp.tridiag_sym(num_iters, reortho="full", custom_vjp=False)
        pair = lanczos(product(matrix), v0, num_iters=num_iters)
        return pair, tridiagonalize(product(matrix), v0).J_small

    return solve


@pytest.mark.parametrize("num_iters", [1, 2, 4, 6])
@pytest.mark.parametrize("name", ["definite", "indefinite", "tie"])
def test_lanczos_has_the_ritz_values_of_matfree(name: str, num_iters: int) -> None:
    matrix = cases.symmetric(cases.SPECTRA[name])
    pair, tridiagonal = lanczos_with(num_iters)(matrix, START)
    ritz = np.linalg.eigvalsh(tridiagonal)
    np.testing.assert_allclose(abs(pair.value), max(abs(ritz)), rtol=1e-10)
    check_meaning(pair, matrix, atol=1e-12)
    # A Ritz value is the Rayleigh quotient of its Ritz vector.
    np.testing.assert_allclose(pair.vector @ matrix @ pair.vector, pair.value, rtol=1e-10)


@pytest.mark.parametrize("num_iters", [1, 2, 6])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_lanczos_survives_breakdown(num_iters: int, dtype: Any) -> None:
    # Two eigenvalues reached from the start: the Krylov space is complete after two products.
    matrix = jnp.asarray(np.diag([4.0, 4.0, 4.0, -1.0, -1.0, -1.0]), dtype)
    eps = float(jnp.finfo(dtype).eps)
    pair = lanczos_with(num_iters)(matrix, jnp.asarray(START, dtype))[0]
    assert cases.all_finite(pair)
    if num_iters > 1:
        np.testing.assert_allclose(pair.value, 4.0, rtol=20 * eps)
        assert pair.residual <= 100 * eps
    # An eigenvector as the start breaks down at once.
    pair = lanczos_with(num_iters)(matrix, jnp.eye(6, dtype=dtype)[3])[0]
    np.testing.assert_allclose(pair.value, -1.0, rtol=20 * eps)


def test_lanczos_keeps_its_basis_orthogonal_over_a_spread_spectrum() -> None:
    # Without reorthogonalization copies of converged Ritz values appear and the rest is lost.
    diagonal = jnp.concatenate([jnp.asarray([-1e6]), jnp.linspace(-1.0, 1.0, 19)])
    pair = jax.jit(partial(lanczos, lambda v: diagonal * v, num_iters=20))(jnp.ones(20))
    np.testing.assert_allclose(pair.value, -1e6, rtol=1e-12)
    np.testing.assert_allclose(jnp.linalg.norm(pair.vector), 1, rtol=1e-10)
    assert pair.residual <= 1e-8


def test_a_step_size_of_more_digits_does_not_widen_the_vector() -> None:
    pair = norm_ascent(jnp.negative, jnp.ones(3, jnp.float32), num_iters=1, step_size=np.float64(1))
    assert pair.vector.dtype == pair.value.dtype == jnp.float32
