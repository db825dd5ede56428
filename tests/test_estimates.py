"""What estimates of the norm are compared with, and how their errors are told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

from experiments.benchmarks import estimates
from tests import cases
from tests.narrow import APPLY, PARAMS, X, Y


def test_errors_are_against_dense_eigenvalues():
    chosen = {
        name: estimates.ESTIMATES[name]
        for name in (
            "none, gradient, 0",
            estimates.DEFAULT,
            "power, random, 1",
            "Lanczos, gradient, 9",
        )
    }
    norms, errors = estimates.relative_errors(APPLY, PARAMS, X, Y, chosen)

    def norm(x, y):
        hessian = cases.dense_hessian(lambda t: cross_entropy(APPLY(PARAMS, t), y), x)
        return cases.operator_norm(hessian.reshape(16, 16))

    np.testing.assert_allclose(norms, jax.jit(jax.vmap(norm))(X, Y), rtol=1e-4)
    # More products, less error; and no estimate is above the norm.
    means = [float(error.mean()) for error in errors.values()]
    assert means[3] < 1e-4 < means[1] < means[0] < means[2] < 1
    assert all(np.all(error > -1e-4) for error in errors.values())


def test_the_norm_of_a_dense_hessian_may_be_a_negative_eigenvalue():
    assert estimates.largest_eigenvalue(jnp.diag(jnp.array([-3.0, 2.0]))) == 3


def test_an_estimate_is_what_the_objective_of_its_name_takes():
    assert all(
        int(name.split(", ")[2]) == _products(e.solver) for name, e in estimates.ESTIMATES.items()
    )
    assert len({str(estimate) for estimate in estimates.ESTIMATES.values()}) == len(
        estimates.ESTIMATES
    )


def _products(solver) -> int:
    """Count the products that a solver asks for."""
    counted = []

    def matvec(v):
        counted.append(None)
        return 2.0 * v

    if solver is not None:
        with jax.disable_jit():
            solver(matvec, jnp.eye(16)[0] + 0.1 * jnp.arange(16))
    return len(counted)


def test_the_exact_cross_entropy_is_the_usual_one_with_more_digits():
    for logits in ([1.0, -2.0, 0.5], [12.0, 0.0, -3.0]):
        for y in range(3):
            got = estimates.exact_cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(y))
            wanted = cross_entropy(jnp.asarray(logits, jnp.float64), y)
            np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_what_is_0_has_no_relative_error():
    steep = jax.tree.map(lambda leaf: 1e4 * leaf, PARAMS)
    sure = np.argmax(jax.vmap(APPLY, (None, 0))(steep, X), axis=1)
    with pytest.raises(ValueError, match="the Hessian's norm is 0 at 6 of 6 images, where the"):
        estimates.relative_errors(APPLY, steep, X, sure, {})


def test_the_summary_of_errors():
    summary = estimates.summary(np.array([1.0, 3.0]), np.array([0.2, -0.4]))
    assert summary["mean"] == pytest.approx(0.3)
    assert summary["median"] == pytest.approx(0.3)
    assert summary["percentile_95"] == pytest.approx(0.39)
    assert summary["of_mean_norm"] == pytest.approx((0.2 - 1.2) / 4)
