"""Eigen-solvers on matrices with prescribed spectra and on Hessians of networks."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse.linalg import lobpcg_standard
from matfree import decomp

import hessjax
from hessjax import Eigenpair, lanczos, norm_ascent, power_iteration
from tests import cases

START = jnp.asarray(cases.vector(6, seed=20))
# 3/5 is the smallest gap among the spectra: 0.6**(2 * 30) is far below 1e-8.
CONVERGED: dict[str, Callable[..., Eigenpair]] = {
    "power": partial(power_iteration, num_iters=30),
    "ascent": partial(norm_ascent, num_iters=20),
    "lanczos": partial(lanczos, num_iters=6),
}


@cache
def solve_with(name: str) -> Callable[..., Eigenpair]:
    """Return a converged solver of a dense matrix, compiled once per shape and dtype."""
    solver = CONVERGED[name]

    @jax.jit
    def solve(matrix: jax.Array, v0: jax.Array, scale: jax.Array | float = 1.0) -> Eigenpair:
        # Ten over the matrix: nearly power iteration.
        step = {"step_size": 10 / scale} if name == "ascent" else {}
        return solver(lambda v: matrix @ v, v0, **step)

    return solve


solvers = pytest.mark.parametrize("solver", CONVERGED)
spectra = pytest.mark.parametrize("name", cases.SPECTRA)
networks = pytest.mark.parametrize("name", cases.NETWORKS)


def product(matrix: Any) -> Callable[[jax.Array], jax.Array]:
    return lambda v: jnp.asarray(matrix) @ v


def check_meaning(pair: Eigenpair, matrix: np.ndarray, atol: float) -> None:
    """Check that image and residual are what they are said to be."""
    vector = np.asarray(pair.vector).reshape(-1)
    image = np.asarray(pair.image).reshape(-1)
    np.testing.assert_allclose(np.linalg.norm(vector), 1, rtol=1e-12)
    np.testing.assert_allclose(image, matrix @ vector, atol=atol)
    residual = np.linalg.norm(matrix @ vector - float(pair.value) * vector)
    np.testing.assert_allclose(pair.residual, residual, rtol=1e-9, atol=atol)


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


@solvers
def test_zero_matrix_keeps_the_start(solver: str) -> None:
    pair = solve_with(solver)(jnp.zeros((6, 6)), START)
    assert pair.value == 0
    assert pair.residual == 0
    np.testing.assert_allclose(pair.vector, START / jnp.linalg.norm(START), rtol=1e-14)


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


@pytest.mark.parametrize("start", [hessjax.gradient_start, hessjax.random_start])
def test_starts_are_unit_and_like_the_gradient(start: Any) -> None:
    for gradient in (
        jnp.asarray(cases.vector(6)),
        jnp.zeros((2, 3)),
        {"a": jnp.ones((2, 2), jnp.float32), "b": jnp.zeros(3, jnp.float32)},
        {"a": jnp.zeros(3), "b": jnp.zeros(3)},
        jnp.full(4, 1e-30, jnp.float32),
    ):
        v0 = jax.jit(start)(gradient, jax.random.key(2))
        assert jax.tree.structure(v0) == jax.tree.structure(gradient)
        for leaf, like in zip(jax.tree.leaves(v0), jax.tree.leaves(gradient), strict=True):
            assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)
        np.testing.assert_allclose(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(v0)), 1, 1e-5)


def test_gradient_start_is_the_gradient_without_a_key_too() -> None:
    gradient = jnp.asarray([3.0, 0.0, -4.0])
    np.testing.assert_allclose(hessjax.gradient_start(gradient, None), [0.6, 0.0, -0.8])
    np.testing.assert_allclose(
        hessjax.gradient_start(1e-300 * gradient, jax.random.key(0)), [0.6, 0.0, -0.8]
    )


def test_gradient_start_falls_back_to_the_key_or_a_fixed_one() -> None:
    zero = jnp.zeros(5)
    first, second = (hessjax.gradient_start(zero, jax.random.key(seed)) for seed in (1, 2))
    assert not np.allclose(first, second)
    without = hessjax.gradient_start(zero, None)
    np.testing.assert_array_equal(without, hessjax.gradient_start(zero, None))
    assert jnp.linalg.norm(without) > 0.99


def test_every_entry_of_the_fallback_has_a_sign_of_its_own() -> None:
    # One entry more than two random words have bits. Within five standard errors.
    keys = jax.random.split(jax.random.key(5), 400)
    starts = jax.vmap(hessjax.gradient_start, (None, 0))(jnp.zeros(65), keys) * np.sqrt(65)
    np.testing.assert_allclose(np.abs(starts), 1, rtol=1e-12)
    np.testing.assert_allclose(np.mean(starts, 0), 0, atol=5 / np.sqrt(400))
    np.testing.assert_allclose(starts.T @ starts / 400, np.eye(65), atol=5 / np.sqrt(400))


def test_random_start_follows_its_key_alone() -> None:
    key = jax.random.key(3)
    one, other = hessjax.random_start(jnp.ones(5), key), hessjax.random_start(jnp.arange(5.0), key)
    np.testing.assert_array_equal(one, other)
    assert not np.allclose(one, hessjax.random_start(jnp.ones(5), jax.random.key(4)))
    leaves = hessjax.random_start({"a": jnp.ones(5), "b": jnp.ones(5)}, key)
    assert not np.allclose(leaves["a"], leaves["b"])
    # Uniform on the sphere: mean zero, covariance the identity over n, within five standard errors.
    many = jax.jit(jax.vmap(hessjax.random_start, (None, 0)))(
        jnp.ones(3), jax.random.split(key, 20_000)
    )
    np.testing.assert_allclose(jnp.mean(many, 0), 0, atol=5 / np.sqrt(3 * 20_000))
    np.testing.assert_allclose(many.T @ many / 20_000, np.eye(3) / 3, atol=5 / np.sqrt(5 * 20_000))


def test_random_start_needs_a_key() -> None:
    with pytest.raises(ValueError, match=r"^a random start needs key=.*, got None$"):
        hessjax.random_start(jnp.ones(3), None)


SOLVERS: dict[str, Any] = {
    "power": power_iteration,
    "ascent": partial(norm_ascent, step_size=1.0),
    "lanczos": lanczos,
}


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_bad_number_of_iterations(solver: Any) -> None:
    for count in (0, -3):
        with pytest.raises(ValueError, match=f"^num_iters must .*{count}"):
            solver(jnp.negative, START, num_iters=count)
    with pytest.raises(TypeError, match=r"^num_iters must .*2\.5"):
        solver(jnp.negative, START, num_iters=2.5)


def test_lanczos_has_no_more_products_than_dimensions() -> None:
    with pytest.raises(ValueError, match=r"num_iters.*6.*7"):
        lanczos(jnp.negative, START, num_iters=7)
    assert solve_with("lanczos")(-jnp.eye(6), START).value == pytest.approx(-1)


@pytest.mark.parametrize("step_size", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_step_size(step_size: float) -> None:
    with pytest.raises(ValueError, match=f"^step_size must .*{step_size}"):
        norm_ascent(jnp.negative, START, num_iters=1, step_size=step_size)


def test_a_step_size_of_more_digits_does_not_widen_the_vector() -> None:
    pair = norm_ascent(jnp.negative, jnp.ones(3, jnp.float32), num_iters=1, step_size=np.float64(1))
    assert pair.vector.dtype == pair.value.dtype == jnp.float32


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_integer_start(solver: Any) -> None:
    with pytest.raises(TypeError, match=r"^v0 must .*int32"):
        solver(jnp.negative, jnp.ones(3, jnp.int32), num_iters=1)
