"""Compile what a loop in Python calls."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax

# At its highest level LLVM unrolls loops over few channels and then fails to vectorize them: gelu
# on 16 channels takes 7 times as long, a small convolutional network up to 1.6 times.
CPU_OPTIONS: dict[str, Any] = {"xla_backend_optimization_level": 2}


def compiler_options() -> dict[str, Any] | None:
    """Return what to tell the compiler for the default kind of device."""
    return CPU_OPTIONS if jax.default_backend() == "cpu" else None


@cache
def compiled(
    function: Callable[..., Any], static: int | None = None, donated: str | None = None
) -> Callable[..., Any]:
    """Compile a function; cached, because only now is it known for which kind of device."""
    return jax.jit(
        function,
        static_argnums=static,
        donate_argnames=donated,
        compiler_options=compiler_options(),
    )


def as_partial(function: Callable[[jax.Array], jax.Array]) -> jax.tree_util.Partial:
    """Return a function as a `jax.tree_util.Partial`, whose leaves are no constants of a program.

    A plain function becomes another one each time. Programs are found again by the function that
    they were made of, and the weights that it holds may be others by then.
    """
    if isinstance(function, jax.tree_util.Partial):
        return function

    def anew(x: jax.Array) -> jax.Array:
        return function(x)

    return jax.tree_util.Partial(anew)
