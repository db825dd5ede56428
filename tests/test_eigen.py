"""Eigen-solvers on matrices with prescribed spectra and on Hessians of networks."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse.linalg import lobpcg_standard

import hessjax
from hessjax import Eigenpair, lanczos, norm_ascent, power_iteration
from tests import cases
from tests.solvers import CONVERGED, START, check_meaning, product, solve_with, solvers, spectra

networks = pytest.mark.parametrize("name", cases.NETWORKS)


@spectra
@pytest.mark.parametrize("scale", cases.SCALES)
@solvers
def test_converged_value(solver: str, name: str, scale: float) -> None:
    matrix = cases.symmetric(cases.SPECTRA[name], scale)
    pair = solve_with(solver)(matrix, START, scale)
    truth = max(map(abs, cases.SPECTRA[name])) * scale
    np.testing.assert_allclose(abs(float(pair.value)), truth, rtol=1e-8)
    check_meaning(pair, matrix, atol=1e-12 * truth)


@pytest.mark.parametrize("name", ["definite", "indefinite", "rank one"])
@solvers
def test_sign_of_a_simple_top_eigenvalue(solver: str, name: str) -> None:
    matrix = cases.symmetric(cases.SPECTRA[name])
    values, vectors = np.linalg.eigh(matrix)
    top = np.argmax(abs(values))
    pair = solve_with(solver)(matrix, START)
    np.testing.assert_allclose(pair.value, values[top], rtol=1e-8)
    assert pair.residual <= 1e-6 * abs(values[top])
    np.testing.assert_allclose(abs(pair.vector @ vectors[:, top]), 1, rtol=1e-10)


def test_tie_leaves_a_residual_for_power_iteration_but_none_for_lanczos() -> None:
    matrix = cases.symmetric(cases.SPECTRA["tie"])
    power = solve_with("power")(matrix, START)
    np.testing.assert_allclose(abs(power.value), 3, rtol=1e-8)
    assert power.residual > 0.1
    assert solve_with("lanczos")(matrix, START).residual < 1e-8


@solvers
def test_zero_matrix_keeps_the_start(solver: str) -> None:
    pair = solve_with(solver)(jnp.zeros((6, 6)), START)
    assert pair.value == 0
    assert pair.residual == 0
    np.testing.assert_allclose(pair.vector, START / jnp.linalg.norm(START), rtol=1e-14)


@cache
def converged(num_iters: int) -> Callable[..., dict[str, Eigenpair]]:
    """Return both solvers with enough iterations for the networks, compiled once per size."""

    @jax.jit
    def solve(matrix: jax.Array, v0: jax.Array) -> dict[str, Eigenpair]:
        return {
            "lanczos": lanczos(product(matrix), v0, num_iters=num_iters),
            "power": power_iteration(product(matrix), v0, num_iters=2000),
        }

    return solve


@networks
def test_converged_on_networks(name: str) -> None:
    hessian = np.asarray(cases.dense(name).hessian)
    truth = np.abs(np.linalg.eigvalsh(hessian)).max()
    size = len(hessian)
    for pair in converged(min(size, 14))(hessian, cases.vector(size, seed=21)).values():
        np.testing.assert_allclose(abs(pair.value), truth, rtol=1e-8)
        check_meaning(pair, hessian, atol=1e-12 * truth)


def test_converged_on_the_operator_of_a_network() -> None:
    case, hessian = cases.cnn("gelu"), np.asarray(cases.dense("cnn gelu").hessian)

    @jax.jit
    def solve(v0: jax.Array) -> Eigenpair:
        matvec = hessjax.hessian_operator(case.function(), case.x)
        return lanczos(matvec, v0, num_iters=14)

    pair = solve(jnp.asarray(cases.vector(36, seed=21)).reshape(case.x.shape))
    assert pair.vector.shape == pair.image.shape == case.x.shape
    truth = np.abs(np.linalg.eigvalsh(hessian)).max()
    np.testing.assert_allclose(abs(pair.value), truth, rtol=1e-8)
    check_meaning(pair, hessian, atol=1e-12 * truth)


@cache
def estimates() -> Callable[..., dict[str, jax.Array]]:
    """Return a compiled function of a matrix and starts: estimates by solver and iterations."""

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    def estimate(matrix: jax.Array, v0: jax.Array) -> dict[str, jax.Array]:
        counts = (1, 2, 3, 5)
        matvec, ascent = product(matrix), partial(norm_ascent, step_size=0.2)
        runs = {"power": power_iteration, "lanczos": lanczos, "ascent": ascent}
        return {
            name: jnp.abs(jnp.stack([run(matvec, v0, num_iters=k).value for k in counts]))
            for name, run in runs.items()
        }

    return estimate


@networks
def test_no_estimate_is_above_the_truth(name: str) -> None:
    hessian = cases.dense(name).hessian
    starts = jnp.asarray(np.random.default_rng(23).normal(size=(20, len(hessian))))
    values = estimates()(hessian, starts)
    # 1e-12: rounding of a converged estimate.
    truth = cases.operator_norm(hessian) * (1 + 1e-12)
    assert all(bool(jnp.all(value <= truth)) for value in values.values())


@spectra
def test_norm_of_the_product_is_monotone_in_iterations(name: str) -> None:
    starts = np.random.default_rng(24).normal(size=(20, 6))
    values = estimates()(cases.symmetric(cases.SPECTRA[name]), starts)
    for value in values.values():
        # 1e-12: rounding once converged.
        assert np.all(value[:, 1:] >= value[:, :-1] * (1 - 1e-12))
        if name not in ("zero", "rank one"):
            grown = value[:, -1] > value[:, 0] * 1.01
            assert np.mean(grown) > 0.5, "an estimate that stands still is monotone too"


def test_against_lobpcg_on_both_ends() -> None:
    # LOBPCG wants five times as many rows as columns.
    hessian = cases.dense("mlp gelu").hessian
    block = jnp.asarray(cases.vector(6, seed=22)).reshape(6, 1)
    ends = [lobpcg_standard(sign * hessian, block, m=200, tol=1e-14)[0][0] for sign in (1, -1)]
    pair = solve_with("lanczos")(hessian, START)
    np.testing.assert_allclose(abs(pair.value), max(ends), rtol=1e-8)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1.0, 1e12, 1e30, 2e37])
@pytest.mark.parametrize("name", ["definite", "indefinite", "tie", "rank one"])
@solvers
def test_scales_in_float32(solver: str, name: str, scale: float) -> None:
    matrix = jnp.asarray(cases.symmetric(cases.SPECTRA[name], scale), jnp.float32)
    pair = solve_with(solver)(matrix, START.astype(jnp.float32), jnp.float32(scale))
    truth = max(map(abs, cases.SPECTRA[name])) * scale
    np.testing.assert_allclose(abs(pair.value), truth, rtol=1e-5)


@solvers
def test_scale_of_the_start_does_not_matter(solver: str) -> None:
    matrix = cases.symmetric(cases.SPECTRA["indefinite"]).astype(np.float32)
    start = START.astype(jnp.float32)
    wanted = solve_with(solver)(matrix, start).value
    for scale in (1e-30, 1e30):
        np.testing.assert_allclose(solve_with(solver)(matrix, scale * start).value, wanted, 1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@solvers
def test_dtypes(solver: str, dtype: Any) -> None:
    matrix = jnp.asarray(cases.symmetric(cases.SPECTRA["indefinite"]), dtype)
    pair = solve_with(solver)(matrix, START.astype(dtype))
    assert pair.vector.dtype == pair.image.dtype == dtype
    # Arithmetic in the solver is float32 at least, and so are the numbers it returns.
    wanted = jnp.promote_types(dtype, jnp.float32)
    assert pair.value.dtype == pair.residual.dtype == wanted
    # Eight entries of rounding error of the matrix.
    np.testing.assert_allclose(pair.value, -4.0, rtol=8 * float(jnp.finfo(dtype).eps))


@solvers
def test_trees(solver: str) -> None:
    matrix = jnp.asarray(cases.symmetric(cases.SPECTRA["indefinite"]))
    options = {"num_iters": 5} | ({"step_size": 10.0} if solver == "ascent" else {})
    solve = partial(CONVERGED[solver], **options)

    def tree_product(v: Any) -> Any:
        return cases.tree_input(matrix @ cases.from_tree_input(v))

    flat = jax.jit(partial(solve, product(matrix)))(START)
    tree = jax.jit(partial(solve, tree_product))(cases.tree_input(START))
    np.testing.assert_allclose(tree.value, flat.value, rtol=1e-12)
    np.testing.assert_allclose(tree.residual, flat.residual, atol=1e-10)
    cases.assert_tree_close(tree.vector, cases.tree_input(flat.vector), rtol=1e-10, atol=1e-12)
    cases.assert_tree_close(tree.image, cases.tree_input(flat.image), rtol=1e-10, atol=1e-12)


@solvers
def test_jit_and_vmap_change_nothing(solver: str) -> None:
    # Three iterations leave nothing converged: every digit depends on every product.
    options = {"num_iters": 3} | ({"step_size": 10.0} if solver == "ascent" else {})
    matrices = jnp.stack([cases.symmetric(cases.SPECTRA[n]) for n in ("indefinite", "zero")])

    def solve(matrix: jax.Array) -> Eigenpair:
        return CONVERGED[solver](product(matrix), START, **options)

    loop = jax.tree.map(lambda *rows: jnp.stack(rows), *[solve(matrix) for matrix in matrices])
    for compiled in (None, cases.USUAL):
        batched = jax.jit(jax.vmap(solve), compiler_options=compiled)
        cases.assert_tree_close(batched(matrices), loop, rtol=1e-9, atol=1e-12)
