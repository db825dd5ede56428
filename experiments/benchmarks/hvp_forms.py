"""The forms in which a Hessian-vector product in the input can be computed, for one example."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

import hessjax

Function = Callable[[jax.Array], jax.Array]
Derivative = Callable[[Function, jax.Array, jax.Array, jax.Array], jax.Array]

UNIT = "input gradient"
STEP = "0.3 * eps**(1/3) * (1 + |x|_2), to both sides, |v|_2 = 1"


class Form(NamedTuple):
    """A way to compute a derivative of one example's loss in the input.

    Attributes:
        apply: ``(f, x, v, u)`` to the result, with two directions like ``x``.
        exact: gives, in double precision, the result that `apply` should give.
        num_products: Hessian-vector products in the result.
    """

    apply: Derivative
    exact: Derivative
    num_products: int = 1


def gradient(f: Function, x: jax.Array, _v: jax.Array, _u: jax.Array) -> jax.Array:
    """Return the gradient, the unit of cost."""
    return jax.grad(f)(x)


def forward_over_reverse(f: Function, x: jax.Array, v: jax.Array, _u: jax.Array) -> jax.Array:
    """Differentiate the gradient along v."""
    return hessjax.hvp(f, x, v)


def reverse_over_forward(f: Function, x: jax.Array, v: jax.Array, _u: jax.Array) -> jax.Array:
    """Return the gradient of the derivative along v."""
    return jax.grad(lambda t: hessjax.directional_derivative(f, t, v)[1])(x)


def reverse_over_reverse(f: Function, x: jax.Array, v: jax.Array, _u: jax.Array) -> jax.Array:
    """Return the gradient of the gradient's inner product with v."""
    return jax.grad(lambda t: jnp.vdot(jax.grad(f)(t), v))(x)


def linearized(
    f: Function, x: jax.Array, v: jax.Array, _u: jax.Array, *, num_products: int
) -> jax.Array:
    """Linearize the gradient once, then multiply repeatedly, as a solver does."""
    product = hessjax.hessian_operator(f, x)
    image = product(v)
    for _ in range(num_products - 1):
        image = product(image / jnp.linalg.norm(image))
    return image


def finite_difference(f: Function, x: jax.Array, v: jax.Array, _u: jax.Array) -> jax.Array:
    """Return the central difference of the gradient at the step of `difference_step`."""
    step = difference_step(x)
    slope = jax.grad(f)
    return (slope(x + step * v) - slope(x - step * v)) / (2 * step)


def difference_step(x: jax.Array) -> jax.Array:
    r"""Return :math:`h = 0.3\,\sqrt[3]{\varepsilon}\,(1 + \|x\|_2)` for a direction of length 1.

    Rounding causes an error of order ε / h, the third derivative one of order h²: at the cube root
    of the precision ε they balance. Of the factors 0.03, 0.1, 0.3, 1 and 3, 0.3 was the best in
    single precision on the multilayer, the convolutional and the residual network.
    """
    return 0.3 * jnp.finfo(x.dtype).eps ** (1 / 3) * (1 + jnp.linalg.norm(x))


def mixed_derivative(f: Function, x: jax.Array, v: jax.Array, u: jax.Array) -> jax.Array:
    """Return the number uᵀHv, computed in forward mode alone."""
    return hessjax.second_directional_derivative(f, x, u, v)[3]


def forms(products: Iterable[int]) -> dict[str, Form]:
    """Return all forms by name, the linearized one for each number of products."""
    chains = {k: partial(linearized, num_products=k) for k in products}
    return {
        UNIT: Form(gradient, gradient, 0),
        "forward over reverse": Form(forward_over_reverse, forward_over_reverse),
        "reverse over forward": Form(reverse_over_forward, forward_over_reverse),
        "reverse over reverse": Form(reverse_over_reverse, forward_over_reverse),
        **{f"linearized, {k} applied": Form(chain, chain, k) for k, chain in chains.items()},
        "finite difference": Form(finite_difference, forward_over_reverse),
        "mixed derivative": Form(mixed_derivative, mixed_derivative),
    }
