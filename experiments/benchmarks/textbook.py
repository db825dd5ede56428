"""The method as a textbook writes it: slow, obvious, sharing no line with hessjax."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def hessian_vector_product(f: Callable[[Any], jax.Array], x: jax.Array, v: jax.Array) -> jax.Array:
    """Multiply the input Hessian by ``v``, forward over reverse."""
    return jax.jvp(jax.grad(f), (x,), (v,))[1]


def gradient_norm(f: Callable[[Any], jax.Array], x: jax.Array) -> jax.Array:
    """Return ``‖∇f(x)‖``, to be differentiated by double backpropagation."""
    return jnp.sqrt(jnp.sum(jax.grad(f)(x) ** 2))


def hessian_norm(
    f: Callable[[Any], jax.Array], x: jax.Array, key: jax.Array, num_iters: int = 10
) -> jax.Array:
    """Return ``‖Hv‖`` after ``num_iters`` power steps from a random direction.

    The direction is held constant, the product is differentiated: reverse over jvp of grad.
    """
    v = jax.random.normal(key, x.shape, x.dtype)
    v = v / jnp.sqrt(jnp.sum(v**2))
    for _ in range(num_iters):
        v = hessian_vector_product(f, x, v)
        v = v / jnp.sqrt(jnp.sum(v**2))
    product = hessian_vector_product(f, x, jax.lax.stop_gradient(v))
    return jnp.sqrt(jnp.sum(product**2))


def objective(
    apply: Callable[[Any, jax.Array], jax.Array],
    loss: Callable[[jax.Array, Any], jax.Array],
    gradient_weight: float,
    hessian_weight: float,
    num_iters: int = 10,
) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """Return the regularized objective, with the same signature as those of hessjax."""

    def total(
        params: PyTree, batch: tuple, key: jax.Array, step: int | jax.Array = 0
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        del step

        def example(x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
            def f(x: jax.Array) -> jax.Array:
                return loss(apply(params, x), y)

            first, second = gradient_norm(f, x), hessian_norm(f, x, key, num_iters)
            return f(x) + gradient_weight * first + hessian_weight * second

        x, y = batch
        return jnp.mean(jax.vmap(example)(x, y, jax.random.split(key, len(x)))), {}

    return total
