"""Penalties that look inside the loss: they need ``f`` as a `Composite`, a model and a loss.

As in `hessjax.penalties`, each locates directions under ``stop_gradient``, then evaluates one
directional derivative in forward mode.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from hessjax._numerics import (
    Matvec,
    PyTree,
    as_point,
    check_functions,
    check_scalar,
    hold,
    matmul,
    normalize,
    safe_norm,
    tree_vdot,
    widen,
)
from hessjax.eigen import Solver, Start, gradient_start, power_iteration
from hessjax.operators import (
    Composite,
    check_composite,
    check_vector_outputs,
    second_directional_derivative,
)
from hessjax.penalties import Key, checked_gradient, rademacher_probes, squared_if

THREE_PRODUCTS: Solver = partial(power_iteration, num_iters=3)


def _jacobian_rows(f: Composite, x: PyTree) -> tuple[jax.Array, jax.Array, Callable]:
    """Return the outputs, the dense Jacobian ``(C, n)`` and a function that unflattens a row."""
    check_vector_outputs(f, x)
    flat, unravel = ravel_pytree(x)
    outputs, pull = jax.vjp(lambda t: f.model(unravel(t)), flat)
    (rows,) = jax.vmap(pull)(jnp.eye(outputs.size, dtype=outputs.dtype))
    return outputs, rows, unravel


def gauss_newton_operator_norm(
    f: Composite, x: PyTree, key: Key = None, *, squared: bool = False
) -> jax.Array:
    r"""Compute the exact operator norm of the Gauss-Newton matrix.

    .. math:: \lambda_{max}(J^\top L L^\top J) = \lambda_{max}(L^\top J J^\top L),
        \qquad L L^\top = \nabla^2 \ell(z)

    For a piecewise-linear model (ReLU, max-pool) this is the Hessian norm almost everywhere; for a
    smooth one it is not. Where the softmax is so confident that its float32 probabilities round to
    0 and 1, its curvature rounds to 0.

    Args:
        f: a `Composite` of a model with C outputs and a convex loss.
        x: the example; an array of any shape, or a pytree of arrays.
        key: unused.
        squared: whether to return the square instead.

    Returns:
        The exact norm, a scalar, in loss units per squared input unit.

    Raises:
        TypeError: if ``f`` is not a `Composite`.
        ValueError: if the loss is not scalar.

    Cost: C vector-Jacobian products and one C-by-C eigenproblem to locate the direction, one
    forward sweep to evaluate.
    """
    del key
    f = check_composite(f)
    x = as_point(x)
    check_scalar(f, x)
    outputs, rows, unravel = _jacobian_rows(f, x)
    rows = widen(rows)
    curvature, basis = jnp.linalg.eigh(widen(jax.hessian(f.loss)(outputs)))
    factor = basis * jnp.sqrt(jnp.maximum(curvature, 0))[None]
    reduced = matmul(factor.T, rows)
    # Scaled, because the product of tiny rows would underflow before it reaches eigh.
    reduced = reduced / jnp.maximum(jnp.max(jnp.abs(reduced)), jnp.finfo(reduced.dtype).tiny)
    top = jnp.linalg.eigh(matmul(reduced, reduced.T))[1][:, -1]
    v = unravel(normalize(matmul(top, reduced))[0].astype(ravel_pytree(x)[0].dtype))
    v = hold(v)
    z, push = jax.jvp(f.model, (x,), (v,))
    return squared_if(second_directional_derivative(f.loss, z, push, push)[3], squared)


def jacobian_squared_frobenius_norm(
    f: Composite, x: PyTree, key: Key = None, *, num_samples: int = 1
) -> jax.Array:
    r"""Compute an unbiased estimate of the squared Frobenius norm of the model's Jacobian.

    .. math:: \|J\|_F^2 = \mathbb{E}\, \|J^\top \xi\|_2^2, \qquad \xi_i = \pm 1

    Args:
        f: a `Composite`; its model is differentiated, its loss is ignored.
        x: the example; an array of any shape, or a pytree of arrays.
        key: random key for the probes; required.
        num_samples: the number of probes.

    Returns:
        The mean over the probes, a scalar; its parameter gradient is unbiased, too.

    Raises:
        TypeError: if ``f`` is not a `Composite`.
        ValueError: if ``key`` is None or ``num_samples`` < 1.

    Cost: one vector-Jacobian product and one forward tangent per probe. Source: Hoffman, Roberts,
    Yaida, "Robust learning with Jacobian regularization", 2019.
    """
    f = check_composite(f)
    x = as_point(x)
    check_vector_outputs(f, x)
    outputs, pull = jax.vjp(f.model, x)

    def sample(probe: jax.Array) -> jax.Array:
        u = hold(normalize(pull(probe)[0])[0])
        return tree_vdot(probe, jax.jvp(f.model, (x,), (u,))[1]) ** 2

    samples = jax.vmap(sample)(rademacher_probes(outputs, key, num_samples))
    return jnp.mean(samples).astype(outputs.dtype)


def jacobian_operator_norm(
    f: Composite,
    x: PyTree,
    key: Key = None,
    *,
    solver: Solver = THREE_PRODUCTS,
    start: Start = gradient_start,
    squared: bool = False,
) -> jax.Array:
    r"""Estimate the spectral norm of the model's Jacobian from below.

    .. math:: \|J v\|_2 \le \|J\|_{op}, \qquad v \approx \text{top eigenvector of } J^\top J

    Args:
        f: a `Composite`; ``start`` gets the gradient of its loss.
        x: the example; an array of any shape, or a pytree of arrays.
        key: random key for `random_start`; `gradient_start` needs none.
        solver: eigensolver that locates v, an eigenvector of ``JᵀJ``.
        start: ``(gradient, key) -> v0``, the solver's start.
        squared: whether to return the square instead.

    Returns:
        ``‖Jv‖``, a scalar, in output units per input unit. The solver multiplies by ``JᵀJ``, so in
        float32 a Jacobian below 1e-19 counts as zero and one above 1e19 overflows.

    Raises:
        TypeError: if ``f`` is not a `Composite`.
        ValueError: if a random start gets no key.

    Cost: a forward and a backward tangent per product, and one forward tangent to evaluate.
    """
    check_functions(solver=solver, start=start)
    f = check_composite(f)
    x = as_point(x)
    check_vector_outputs(f, x)
    gradient = checked_gradient(f, x)
    _, push = jax.linearize(f.model, x)
    pull = jax.linear_transpose(push, x)
    gram: Matvec = lambda v: pull(push(v))[0]  # noqa: E731 - a def would hide the one-line formula
    pair = solver(gram, start(gradient, key))
    # The image is one product closer to the eigenvector, at no extra cost.
    v = hold(normalize(pair.image)[0])
    outputs, image = jax.jvp(f.model, (x,), (v,))
    return squared_if(safe_norm(image).astype(outputs.dtype), squared)
