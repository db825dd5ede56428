"""Eigen-solvers that converge, compiled once, and what is said of all that they return."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
