"""Penalties on the loss of one example: ``penalty(f, x, key=None) -> scalar``.

Each one locates its directions under ``stop_gradient`` and then evaluates one directional
derivative in forward mode, which is all that a gradient with respect to the parameters sees.
"""

import math

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from hessjax._numerics import (
    PyTree,
    ScalarFunction,
    as_point,
    check_count,
    check_functions,
    check_number,
    check_scalar,
    hold,
    normalize,
)
from hessjax.eigen import ONE_PRODUCT, Solver, Start, gradient_start, power_iteration
from hessjax.operators import (
    directional_derivative,
    gradient_and_hessian_operator,
    hessian_operator,
    second_directional_derivative,
)

Key = jax.Array | None


def squared_if(value: jax.Array, squared: bool) -> jax.Array:
    """Return the value or its square."""
    return value**2 if squared else value


def _moved(x: PyTree, v: PyTree, step: float | jax.Array) -> PyTree:
    return jax.tree.map(lambda a, b: a + jnp.asarray(step * b, a.dtype), x, v)


def checked_gradient(f: ScalarFunction, x: PyTree) -> PyTree:
    """Return the gradient at ``x``, or raise if ``f`` is not scalar."""
    check_scalar(f, x)
    return jax.grad(f)(x)


def rademacher_probes(tree: PyTree, key: Key, num_samples: int) -> PyTree:
    """Draw Rademacher probes, entries ±1, with a leading axis of ``num_samples``."""
    num_samples = check_count("num_samples", num_samples)
    if key is None:
        raise ValueError("random probes need key=jax.random.key(...), got None")
    flat, unravel = ravel_pytree(tree)
    signs = jax.random.rademacher(key, (num_samples, flat.size), flat.dtype)
    return jax.vmap(unravel)(signs)


def input_gradient_norm(
    f: ScalarFunction, x: PyTree, key: Key = None, *, order: float = 2, squared: bool = False
) -> jax.Array:
    r"""Compute the norm of the input gradient that is dual to the norm of the attack's ball.

    .. math:: \max_{\|\delta\|_p \le 1} \delta^\top \nabla f(x) = \|\nabla f(x)\|_q,
        \qquad 1/p + 1/q = 1

    Args:
        f: maps one example to its loss.
        x: the example; an array of any shape, or a pytree of arrays.
        key: unused.
        order: p of the attack's ball: 1, 2 or infinity. The norm is the dual one, q = inf, 2 or 1.
        squared: whether to return the square instead (classical double backpropagation).

    Returns:
        The exact norm, a scalar, in loss units per input unit.

    Raises:
        ValueError: if ``order`` is not 1, 2 or infinity, or ``f`` is not scalar.

    Cost: a whole optimizer step costs about 2.7 plain steps; one of `second_order` with a Hessian
    weight of 0, which shares the loss's backward pass, costs 2.4. Source: Drucker, LeCun, 1992;
    Ross, Doshi-Velez, 2018.

    >>> float(input_gradient_norm(lambda x: x @ x, jnp.array([0.0, 3.0])))
    6.0
    """
    del key
    x = as_point(x)
    flat, unravel = ravel_pytree(checked_gradient(f, x))
    if order == 2:
        direction = normalize(flat)[0]
    elif order == math.inf:
        direction = jnp.sign(flat)
    elif order == 1:
        top = jnp.argmax(jnp.abs(flat))
        direction = jnp.zeros_like(flat).at[top].set(jnp.sign(flat[top]))
    else:
        raise ValueError(f"order must be 1, 2 or infinity, the p of the attack's ball, got {order}")
    u = hold(unravel(direction))
    return squared_if(directional_derivative(f, x, u)[1], squared)


def hessian_operator_norm(
    f: ScalarFunction,
    x: PyTree,
    key: Key = None,
    *,
    solver: Solver | None = ONE_PRODUCT,
    start: Start = gradient_start,
    squared: bool = False,
) -> jax.Array:
    r"""Estimate the operator norm of the input Hessian from below.

    .. math:: u^\top H v = \|H v\|_2 \le \|H\|_{op}, \qquad u = H v / \|H v\|

    Args:
        f: maps one example to its loss.
        x: the example; an array of any shape, or a pytree of arrays.
        key: random key for `random_start`; `gradient_start` needs none.
        solver: eigensolver that locates v, with its configuration bound. None takes no product: v
            is the start, and the result is ``|vᵀHv|``.
        start: ``(gradient, key) -> v0``, `gradient_start` or `random_start`.
        squared: whether to return the square instead.

    Returns:
        ``‖Hv‖``, a scalar, in loss units per squared input unit. Once v has converged to a simple
        top eigenvector, its parameter gradient is that of the norm itself; before, it is that of a
        lower bound along frozen directions. If H maps the start to zero, the result is 0,
        whatever ‖H‖ is.

    Raises:
        ValueError: if ``f`` is not scalar, or a random start gets no key.

    Cost: with the defaults a whole optimizer step costs 4.3 (ReLU) to 5.3 (gelu) plain steps, and
    each further product about one; `second_order` shares more work and costs less. Source: Mustafa,
    Vandermeulen, Kloft, 2020 (arXiv 2009.06571).

    >>> float(hessian_operator_norm(lambda x: -2 * x @ x, jnp.array([0.0, 3.0])))
    4.0
    """
    x = as_point(x)
    check_functions(start=start, solver=ONE_PRODUCT if solver is None else solver)
    if solver is None:
        v, _ = normalize(hold(start(checked_gradient(f, x), key)))
        return squared_if(jnp.abs(second_directional_derivative(f, x, v, v)[3]), squared)
    gradient, matvec = gradient_and_hessian_operator(f, x)
    pair = solver(matvec, start(gradient, key))
    u, v = hold((normalize(pair.image)[0], pair.vector))
    return squared_if(second_directional_derivative(f, x, u, v)[3], squared)


def finite_step_operator_norm(
    f: ScalarFunction,
    x: PyTree,
    key: Key = None,
    *,
    step: float | jax.Array,
    num_iters: int = 1,
    squared: bool = False,
) -> jax.Array:
    r"""Compute how fast the gradient changes over a step of finite length.

    .. math:: \|\nabla f(x + h v) - \nabla f(x)\|_2 / h

    With h about as large as the attack's ε, it sees the curvature over the ball rather than at its
    center. It tends to ``‖Hv‖`` as h goes to 0. Where f is twice differentiable, it never exceeds
    the largest ``‖H‖`` between x and x + hv, but may exceed ``‖H‖`` at x; a kink in between adds
    the jump of the gradient there, divided by h. It is not linear in v. Two gradients are
    subtracted and their rounding divided by h: with a bfloat16 ``apply``, h must not be small.

    Args:
        f: maps one example to its loss.
        x: the example; an array of any shape, or a pytree of arrays.
        key: random key for the direction where the gradient vanishes.
        step: h, positive, in input units.
        num_iters: number of evaluations of the difference. With one, v is along the gradient;
            further ones replace it by the difference, as in power iteration.
        squared: whether to return the square instead.

    Returns:
        The quotient, a scalar, in loss units per squared input unit.

    Raises:
        ValueError: if ``step`` is not positive, ``num_iters`` < 1, or ``f`` is not scalar.

    Cost: a whole optimizer step costs about 5.4 plain steps, each further iteration about one.
    """
    check_number("step", step, positive=True)
    x = as_point(x)
    gradient = checked_gradient(f, x)

    def difference(v: PyTree) -> PyTree:
        moved = jax.grad(f)(_moved(x, v, step))
        return jax.tree.map(lambda a, b: (a - b) / jnp.asarray(step, a.dtype), moved, gradient)

    pair = power_iteration(difference, gradient_start(gradient, key), num_iters=num_iters)
    u, v = hold((normalize(pair.image)[0], pair.vector))
    change = _slope_change(f, x, u, v, step)
    return squared_if(change / jnp.asarray(step, change.dtype), squared)


def _slope_change(
    f: ScalarFunction, x: PyTree, u: PyTree, v: PyTree, step: float | jax.Array
) -> jax.Array:
    moved = directional_derivative(f, _moved(x, v, step), u)[1]
    return moved - directional_derivative(f, x, u)[1]


def curvature_along_gradient(
    f: ScalarFunction, x: PyTree, key: Key = None, *, step: float | jax.Array
) -> jax.Array:
    r"""Compute CURE's curvature along the sign of the gradient, as in its published code.

    .. math:: \|\nabla f(x + h z) - \nabla f(x)\|_2, \qquad
        z = \text{sign}(\nabla f(x)) / \|\text{sign}(\nabla f(x))\|_2

    As in that code, it is neither divided by h nor squared (the paper squares it).

    Args:
        f: maps one example to its loss.
        x: the example; an array of any shape, or a pytree of arrays.
        key: unused.
        step: h, positive, in input units.

    Returns:
        The norm of the change, a scalar, in loss units per input unit.

    Raises:
        ValueError: if ``step`` is not positive, or ``f`` is not scalar.

    Cost: a whole optimizer step costs about 5.4 plain steps. Source: Moosavi-Dezfooli et al.,
    "Robustness via curvature regularization, and vice versa", 2019.
    """
    del key
    check_number("step", step, positive=True)
    x = as_point(x)
    gradient = checked_gradient(f, x)
    z, _ = normalize(jax.tree.map(jnp.sign, gradient))
    change = jax.tree.map(jnp.subtract, jax.grad(f)(_moved(x, z, step)), gradient)
    u, z = hold((normalize(change)[0], z))
    return _slope_change(f, x, u, z, step)


def hessian_squared_frobenius_norm(
    f: ScalarFunction, x: PyTree, key: Key = None, *, num_samples: int = 1
) -> jax.Array:
    r"""Compute an unbiased (Hutchinson) estimate of the input Hessian's squared Frobenius norm.

    .. math:: \|H\|_F^2 = \mathbb{E}\, \|H \xi\|_2^2, \qquad \xi_i = \pm 1

    Args:
        f: maps one example to its loss.
        x: the example; an array of any shape, or a pytree of arrays.
        key: random key for the probes; required.
        num_samples: the number of probes.

    Returns:
        The mean over the probes, a scalar; its parameter gradient is unbiased, too.

    Raises:
        ValueError: if ``key`` is None, ``num_samples`` < 1, or ``f`` is not scalar.

    Cost: per probe, that of `hessian_operator_norm` with one product.
    """
    x = as_point(x)
    matvec = hessian_operator(f, x)

    def sample(probe: PyTree) -> jax.Array:
        u = hold(normalize(matvec(probe))[0])
        return second_directional_derivative(f, x, u, probe)[3] ** 2

    return jnp.mean(jax.vmap(sample)(rademacher_probes(x, key, num_samples)))
