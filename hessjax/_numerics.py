"""Norms and static checks for trees of arrays: the bottom layer, tested hardest."""

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

PyTree = Any
Matvec = Callable[[PyTree], PyTree]
"""A matrix as the function ``v -> A v``."""
ScalarFunction = Callable[[PyTree], jax.Array]
"""Maps one example to one number: ``f(x)`` has shape ``()``."""

# By default accelerators multiply float32 with fewer digits, too few for orthogonalization.
matmul = partial(jnp.matmul, precision="highest")


def wide(dtype: DTypeLike) -> DTypeLike:
    """Return a floating-point dtype, or float32 if that is wider."""
    # Not `jnp.promote_types`, which raises under strict dtype promotion.
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def widen(array: jax.Array) -> jax.Array:
    """Cast to at least float32: sums of squares in bfloat16 keep only two digits."""
    return array.astype(wide(array.dtype))


def tree_vdot(a: PyTree, b: PyTree) -> jax.Array:
    """Return the inner product of two trees of the same structure, in at least float32."""
    products = jax.tree.map(lambda p, q: jnp.vdot(widen(p), widen(q)), a, b)
    return jnp.sum(jnp.stack(jax.tree.leaves(products)))


def safe_norm(tree: PyTree) -> jax.Array:
    """Return the Euclidean norm of all entries, ``sqrt(sum t_i**2)``, in at least float32.

    Entries are scaled by the largest, so that no square under- or overflows; there is no absolute
    epsilon. The gradient at zero is zero, whereas that of ``jnp.linalg.norm`` is NaN. A NaN entry
    makes the norm NaN.
    """
    leaves = [widen(leaf) for leaf in jax.tree.leaves(tree)]
    scale = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves]))
    # The norm does not depend on the scale, so neither does its derivative.
    scale = jax.lax.stop_gradient(scale)
    zero = scale == 0
    # XLA multiplies by the inverse instead of dividing; it must not be flushed to zero.
    scale = jnp.where(zero, 1, jnp.minimum(scale, jnp.finfo(scale.dtype).max / 16))
    square = sum(jnp.sum((leaf / scale) ** 2) for leaf in leaves)
    # The inner `where` keeps the infinite slope of sqrt at 0 out of the backward pass.
    return jnp.where(zero, 0, scale * jnp.sqrt(jnp.where(zero, 1, square)))


def normalize(tree: PyTree) -> tuple[PyTree, jax.Array]:
    """Return ``(tree / norm, norm)``; a zero tree stays zero."""
    norm = safe_norm(tree)
    # As above, the inverse of a norm at the end of the range would be flushed to zero.
    shrink = jnp.where(norm > jnp.finfo(norm.dtype).max / 16, 2.0**-32, 1).astype(norm.dtype)
    divisor = jnp.where(norm == 0, 1, shrink * norm)

    def divided(leaf: jax.Array) -> jax.Array:
        return (shrink * widen(leaf) / divisor).astype(leaf.dtype)

    return jax.tree.map(divided, tree), norm


DIRECTION = "direction"
"""The name by which policies of `jax.checkpoint` recognize what `hold` returned."""


def hold(tree: PyTree) -> PyTree:
    """Return a tree that derivatives treat as constant: a direction that a solver located."""
    return checkpoint_name(jax.lax.stop_gradient(tree), DIRECTION)


def as_point(x: PyTree, name: str = "x") -> PyTree:
    """Return ``x`` with array leaves, or raise if it is empty or a leaf is not floating point."""
    x = jax.tree.map(jnp.asarray, x)
    for leaf in jax.tree.leaves(x):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"{name} must hold floating-point numbers, got dtype {leaf.dtype}")
    if sum(leaf.size for leaf in jax.tree.leaves(x)) == 0:
        raise ValueError(f"{name} holds no numbers: there is nothing to differentiate")
    return x


def as_tangent(x: PyTree, v: PyTree, name: str = "v") -> PyTree:
    """Return ``v`` in the dtypes of ``x``, or raise if it is not a direction at ``x``."""
    if jax.tree.structure(v) != jax.tree.structure(x):
        raise ValueError(
            f"{name} must have the structure of x, {jax.tree.structure(x)}, "
            f"got {jax.tree.structure(v)}"
        )

    def match(leaf: jax.Array, tangent: jax.Array) -> jax.Array:
        if tangent.shape != leaf.shape:
            raise ValueError(f"{name} must have the shape of x, {leaf.shape}, got {tangent.shape}")
        return tangent.astype(leaf.dtype)

    return jax.tree.map(match, x, as_point(v, name))


def check_functions(**named: object) -> None:
    """Raise unless each of these can be called."""
    for name, value in named.items():
        if not callable(value):
            short = value is None or isinstance(value, str)
            kind = "array" if isinstance(value, jax.Array) else type(value).__name__
            got = repr(value) if short else f"an object of type {kind}"
            raise TypeError(f"{name} must be a function, got {got}")


def check_scalar(f: Callable[[PyTree], Any], x: PyTree) -> None:
    """Raise unless ``f(x)`` is one floating-point number."""
    check_functions(f=f)
    out = jax.eval_shape(f, x)
    if not isinstance(out, jax.ShapeDtypeStruct):
        raise TypeError(f"f must return one scalar, got {jax.tree.structure(out)}")
    if out.shape != ():
        raise ValueError(
            f"f must return a scalar for one example, got shape {out.shape}; "
            "batch with jax.vmap around the call"
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(f"f must return a floating-point number, got dtype {out.dtype}")


def check_count(name: str, value: int, *, at_most: int | None = None) -> int:
    """Return ``value`` as an int, or raise if it is not a whole number from 1 to ``at_most``."""
    try:
        count = operator.index(value)
    except TypeError:
        count = None
    if count is None or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")
    if at_most is not None and count > at_most:
        raise ValueError(f"{name} must be at most {at_most}, the size of the input, got {count}")
    return count


def as_number(value: object) -> float | None:
    """Return a real scalar as a Python float, or None if it is traced or anything else."""
    if isinstance(value, Tracer):
        return None
    # NumPy, because inside a traced function even a constant has no truth value in jax.numpy.
    entry = np.asarray(value)
    kinds = (jnp.integer, jnp.floating)
    if entry.shape or not any(jnp.issubdtype(entry.dtype, kind) for kind in kinds):
        return None
    return float(entry)


def check_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    """Return the bounds of a box as floats, or raise unless they are two increasing numbers."""
    ends = [as_number(end) for end in bounds] if isinstance(bounds, Sequence) else []
    match ends:
        case [float(low), float(high)] if low < high:
            return low, high
    raise ValueError(f"bounds must be a pair of numbers, the lower one first, got {bounds!r}")


def inside(x: ArrayLike, bounds: tuple[float, float]) -> np.ndarray:
    """Return which entries lie in a box, with both rounded as JAX rounds them.

    In bfloat16 that moves the bounds; without 64-bit types, entries that NumPy has in float64.
    """
    entries = np.asarray(x)
    floating = jnp.issubdtype(entries.dtype, jnp.floating)
    dtype = jnp.result_type(entries) if floating else np.dtype(np.float64)
    with np.errstate(over="ignore"):  # what overflows is outside
        low, high = np.asarray(bounds, dtype)
        entries = entries.astype(dtype)
    return (low <= entries) & (entries <= high)


def check_key(key: jax.Array) -> None:
    """Raise unless ``key`` is one key of `jax.random`, new-style or old-style."""
    dtype, shape = getattr(key, "dtype", np.dtype(object)), np.shape(key)
    old = dtype == np.uint32 and len(shape) == 1
    if not old and (shape or not jnp.issubdtype(dtype, jax.dtypes.prng_key)):
        raise TypeError(f"key must be one key, such as jax.random.key(0), got {key!r}")


def check_number(name: str, value: float | jax.Array, *, positive: bool) -> None:
    """Raise unless ``value`` is finite and positive, or nonnegative if that is enough.

    A traced value cannot be inspected and passes.
    """
    if isinstance(value, Tracer):
        return
    if (number := as_number(value)) is None:
        raise TypeError(f"{name} must be a number, got {value!r}")
    wanted = "positive" if positive else "nonnegative"
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        raise ValueError(f"{name} must be a finite {wanted} number, got {value}")
