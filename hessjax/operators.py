"""Derivatives of one example's loss with respect to its input, as functions of a direction.

Everything here takes ``f: x -> scalar`` for one example; ``x`` is an array of any shape or a tree
of arrays. For a batch, put ``jax.vmap`` around the call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
from jax.flatten_util import ravel_pytree

from hessjax._numerics import (
    Matvec,
    PyTree,
    ScalarFunction,
    as_point,
    as_tangent,
    check_functions,
    check_scalar,
    matmul,
)


@partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=("model", "loss"))
@dataclass(frozen=True)
class Composite:
    """The function ``x -> loss(model(x))`` that remembers its two parts.

    What looks inside the loss (Gauss-Newton and Jacobian penalties) requires one; everything else
    accepts it as the plain function that it also is. Both parts are static; they may close over
    arrays. As an argument of a jitted function, it keeps the arrays that its parts held at the
    first call with them: if weights change in place, as in an NNX module, build it anew inside the
    function.

    Attributes:
        model: ``x -> z``, which maps one example to its outputs (logits) of shape ``(C,)``.
        loss: ``z -> scalar``.
    """

    model: Callable[[PyTree], jax.Array]
    loss: Callable[[jax.Array], jax.Array]

    def __post_init__(self) -> None:
        """Refuse what is no function."""
        check_functions(model=self.model, loss=self.loss)

    def __call__(self, x: PyTree) -> jax.Array:
        """Return ``loss(model(x))``."""
        return self.loss(self.model(x))


def check_composite(f: object) -> Composite:
    """Return ``f``, or raise if it is not a `Composite`."""
    if not isinstance(f, Composite):
        name = getattr(f, "__name__", type(f).__name__)
        raise TypeError(
            f"f must be a Composite(model, loss), because this looks inside the loss, got {name}"
        )
    return f


def check_vector_outputs(f: Composite, x: PyTree) -> None:
    """Raise unless the model maps one example to a vector of outputs."""
    outputs = jax.eval_shape(f.model, x)
    if not isinstance(outputs, jax.ShapeDtypeStruct) or outputs.ndim != 1:
        shapes = jax.tree.map(lambda leaf: leaf.shape, outputs)
        raise ValueError(f"the model must return outputs of shape (C,), got {shapes}")


def hvp(f: ScalarFunction, x: PyTree, v: PyTree) -> PyTree:
    r"""Multiply the input Hessian by a direction, forward over reverse.

    .. math:: \nabla^2 f(x)\, v

    Args:
        f: maps one example to a scalar.
        x: the point; a floating-point array of any shape, or a pytree of such arrays.
        v: the direction, like ``x``.

    Returns:
        The product, like ``x``.

    Raises:
        ValueError: if ``f`` is not scalar, or ``v`` differs in structure or shape from ``x``.
        TypeError: if ``x`` or ``v`` does not hold floating-point numbers.

    Cost: about two gradients.
    Source: Pearlmutter, "Fast exact multiplication by the Hessian", 1994.

    >>> import jax.numpy as jnp
    >>> hvp(lambda x: jnp.sum(x**3), jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0])).tolist()
    [6.0, 0.0]
    """
    x = as_point(x)
    check_scalar(f, x)
    return jax.jvp(jax.grad(f), (x,), (as_tangent(x, v),))[1]


def gradient_and_hessian_operator(f: ScalarFunction, x: PyTree) -> tuple[PyTree, Matvec]:
    """Return the gradient at ``x`` and the `hessian_operator`, from one linearization."""
    x = as_point(x)
    check_scalar(f, x)
    gradient, product = jax.linearize(jax.grad(f), x)
    return gradient, lambda v: product(as_tangent(x, v))


def hessian_operator(f: ScalarFunction, x: PyTree) -> Matvec:
    r"""Return ``v -> H v`` with :math:`H = \nabla^2 f(x)`, linearized once for many products.

    Args:
        f: maps one example to a scalar.
        x: the point; a floating-point array of any shape, or a pytree of such arrays.

    Returns:
        The symmetric linear map; direction and product are like ``x``.

    Raises:
        ValueError, TypeError: as `hvp`; those about ``v`` only when the map is called.

    Cost: one gradient to build, about one more per product; the linearization is kept in memory.

    >>> import jax.numpy as jnp
    >>> matvec = hessian_operator(lambda x: x[0] * x[1], jnp.array([1.0, 2.0]))
    >>> matvec(jnp.array([1.0, 0.0])).tolist()
    [0.0, 1.0]
    """
    return gradient_and_hessian_operator(f, x)[1]


def gauss_newton_operator(f: Composite, x: PyTree) -> Matvec:
    r"""Return ``v -> G v`` with the Gauss-Newton matrix of the loss with respect to the input.

    .. math:: G = J^\top \nabla^2\ell(z)\, J, \qquad z = \text{model}(x)

    G is the part of the Hessian that comes from the curvature of the loss, not of the model. It is
    positive semidefinite for a convex loss, equals the Hessian almost everywhere for a
    piecewise-linear model (ReLU, max-pool), and is **not** the Hessian for a smooth one.

    Args:
        f: a `Composite`; its model maps ``x`` to ``z`` of shape ``(C,)``.
        x: the point; a floating-point array of any shape, or a pytree of such arrays.

    Returns:
        The symmetric linear map; direction and product are like ``x``.

    Raises:
        TypeError: if ``f`` is not a `Composite`.
        ValueError, TypeError: as `hvp`.

    Cost: one forward pass to build; a forward and a backward tangent per product.
    Source: Schraudolph, "Fast curvature matrix-vector products", 2002, here for the input.
    """
    f = check_composite(f)
    x = as_point(x)
    check_scalar(f, x)
    outputs, push = jax.linearize(f.model, x)
    pull = jax.linear_transpose(push, x)
    curve = hessian_operator(f.loss, outputs)
    return lambda v: pull(curve(push(as_tangent(x, v))))[0]


def directional_derivative(f: ScalarFunction, x: PyTree, u: PyTree) -> tuple[jax.Array, jax.Array]:
    r"""Return :math:`(f(x),\ \partial_u f(x))` in forward mode.

    Args:
        f: maps one example to a scalar.
        x: the point; a floating-point array of any shape, or a pytree of such arrays.
        u: the direction, like ``x``; its length scales the derivative.

    Returns:
        The value and the derivative :math:`u^\top \nabla f(x)`, both of shape ``()``.

    Raises:
        ValueError, TypeError: as `hvp`.

    Cost: about two evaluations of ``f``, and no backward pass.

    >>> import jax.numpy as jnp
    >>> value, slope = directional_derivative(
    ...     jnp.prod, jnp.array([2.0, 3.0]), jnp.array([1.0, 0.0])
    ... )
    >>> float(value), float(slope)
    (6.0, 3.0)
    """
    x = as_point(x)
    check_scalar(f, x)
    return jax.jvp(f, (x,), (as_tangent(x, u, "u"),))


def second_directional_derivative(
    f: ScalarFunction, x: PyTree, u: PyTree, v: PyTree
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    r"""Return :math:`(f,\ \partial_u f,\ \partial_v f,\ u^\top H v)` at ``x`` in one forward sweep.

    It has no inner reverse pass: a parameter gradient of all four is ONE reverse pass over it.

    Args:
        f: maps one example to a scalar.
        x: the point; a floating-point array of any shape, or a pytree of such arrays.
        u: a direction, like ``x``.
        v: another direction, like ``x``.

    Returns:
        Four scalars: value, both first derivatives and the mixed second one.

    Raises:
        ValueError, TypeError: as `hvp`.

    Cost: about four evaluations of ``f``.

    >>> import jax.numpy as jnp
    >>> u, v = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    >>> [float(d) for d in second_directional_derivative(jnp.prod, jnp.array([2.0, 3.0]), u, v)]
    [6.0, 3.0, 2.0, 1.0]
    """
    x = as_point(x)
    check_scalar(f, x)
    u, v = as_tangent(x, u, "u"), as_tangent(x, v)
    (value, along_v), (along_u, mixed) = jax.jvp(lambda t: jax.jvp(f, (t,), (v,)), (x,), (u,))
    return value, along_u, along_v, mixed


def hessian_matrix(f: ScalarFunction, x: PyTree) -> jax.Array:
    """Return the dense Hessian for the raveled input, ``(n, n)``, as an oracle for small ``n``.

    Raises:
        ValueError, TypeError: as `hvp`.

    Cost: ``n`` Hessian-vector products and memory for ``n**2`` numbers.

    >>> import jax.numpy as jnp
    >>> hessian_matrix(lambda x: x["a"] * x["b"] ** 2, {"a": 1.0, "b": 3.0}).tolist()
    [[0.0, 6.0], [6.0, 2.0]]
    """
    x = as_point(x)
    check_scalar(f, x)
    flat, unravel = ravel_pytree(x)
    return jax.hessian(lambda t: f(unravel(t)))(flat)


def gauss_newton_matrix(f: Composite, x: PyTree) -> jax.Array:
    """Return the dense `gauss_newton_operator`, shape ``(n, n)``, as an oracle for small ``n``.

    Args:
        f: a `Composite`; its model maps ``x`` to ``z`` of shape ``(C,)``.
        x: the point; a floating-point array of any shape, or a pytree of such arrays.

    Raises:
        ValueError, TypeError: as `gauss_newton_operator`.

    Cost: ``n`` forward tangents and memory for ``n**2`` numbers.
    """
    f = check_composite(f)
    x = as_point(x)
    check_scalar(f, x)
    check_vector_outputs(f, x)
    flat, unravel = ravel_pytree(x)
    jacobian = jax.jacfwd(lambda t: f.model(unravel(t)))(flat)
    return matmul(matmul(jacobian.T, jax.hessian(f.loss)(f.model(x))), jacobian)
