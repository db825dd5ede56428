"""Largest-magnitude eigenpairs of a symmetric matrix given as ``v -> A v``.

A solver is ``(matvec, v0) -> Eigenpair``; bind its configuration with `functools.partial`. It
does not know that the matrix is a Hessian. A start is ``(gradient, key) -> v0``.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from hessjax._numerics import (
    Matvec,
    PyTree,
    as_point,
    check_count,
    check_functions,
    check_number,
    matmul,
    normalize,
    safe_norm,
    wide,
    widen,
)

Start = Callable[[PyTree, jax.Array | None], PyTree]

# Up to this many iterations are unrolled: inside a loop XLA's CPU convolutions are several times
# slower. Beyond, a loop bounds the size of the program.
_MAX_UNROLLED = 32


class Eigenpair(NamedTuple):
    """An estimate of the eigenvalue of largest magnitude.

    Attributes:
        value: scalar. ``±‖A vector‖`` with the sign of ``vectorᵀ A vector`` (power iteration, norm
            ascent), or the Ritz value (Lanczos). Its magnitude never exceeds the operator norm.
        vector: the unit vector that was multiplied last (Lanczos: the Ritz vector), like ``v0``.
        image: ``A vector``, like ``v0``.
        residual: ``‖A vector - value vector‖``, scalar. There is an eigenvalue within this distance
            of ``value``. At a tie ``±λ`` it may be large although the norm is correct.
    """

    value: jax.Array
    vector: PyTree
    image: PyTree
    residual: jax.Array


Solver = Callable[[Matvec, PyTree], Eigenpair]


def random_start(gradient: PyTree, key: jax.Array | None) -> PyTree:
    """Draw a direction uniformly from the unit sphere, like ``gradient``.

    Raises:
        ValueError: if ``key`` is None.
    """
    if key is None:
        raise ValueError("a random start needs key=jax.random.key(...), got None")
    flat, unravel = ravel_pytree(gradient)
    noise = jax.random.normal(key, flat.shape, wide(flat.dtype))
    return unravel(normalize(noise)[0].astype(flat.dtype))


def gradient_start(gradient: PyTree, key: jax.Array | None = None) -> PyTree:
    """Return the normalized gradient or, where it vanishes, a random direction.

    With two classes and a piecewise-linear model the gradient is the top eigenvector. For networks
    trained without a penalty it nearly is: on average one product comes within 2 % of the norm, as
    close as three to five from a random start. For networks trained with a curvature penalty it is
    not: one product is too low by 5 to 60 % on average, and often no better than three from a
    random start. In that case look at the residual, or use `lanczos` (``experiments/benchmarks``
    has the figures).

    Args:
        gradient: the gradient at the point.
        key: random key for the random direction; None stands for a fixed one.
    """
    unit, norm = normalize(gradient)
    fallback = _random_signs(gradient, jax.random.key(0) if key is None else key)
    return jax.tree.map(lambda u, r: jnp.where(norm == 0, r, u), unit, fallback)


def _random_signs(tree: PyTree, key: jax.Array) -> PyTree:
    """Return a unit direction of random signs, which takes only one random bit per entry."""
    flat, unravel = ravel_pytree(tree)
    words = jax.random.bits(key, (-(-flat.size // 32),), jnp.uint32)
    bits = (words[:, None] >> jnp.arange(32, dtype=jnp.uint32)[None]) & 1
    signs = 1 - 2 * bits.ravel()[: flat.size].astype(flat.dtype)
    return unravel(signs / jnp.sqrt(flat.size).astype(flat.dtype))


def _flatten(matvec: Matvec, v0: PyTree) -> tuple[Matvec, jax.Array, Callable[..., Eigenpair]]:
    """Return matvec and unit start on flat vectors, at least float32, and what builds the pair."""
    check_functions(matvec=matvec)
    start, unravel = ravel_pytree(as_point(v0, "v0"))
    narrow = start.dtype
    start = normalize(widen(start))[0]

    def flat_matvec(v: jax.Array) -> jax.Array:
        return ravel_pytree(matvec(unravel(v.astype(narrow))))[0].astype(start.dtype)

    def as_pair(value: jax.Array, vector: jax.Array, image: jax.Array) -> Eigenpair:
        residual = safe_norm(image - value * vector)
        return Eigenpair(
            value, unravel(vector.astype(narrow)), unravel(image.astype(narrow)), residual
        )

    return flat_matvec, start, as_pair


def _iterate(step: Callable[[jax.Array], jax.Array], v: jax.Array, count: int) -> jax.Array:
    return jax.lax.fori_loop(0, count, lambda _, v: step(v), v, unroll=min(count, _MAX_UNROLLED))


def _direction(candidate: jax.Array, previous: jax.Array) -> jax.Array:
    """Normalize the candidate; where it is zero, keep the previous vector."""
    unit, norm = normalize(candidate)
    return jnp.where(norm == 0, previous, unit)


def _image_norm_pair(matvec: Matvec, v: jax.Array, as_pair: Callable[..., Eigenpair]) -> Eigenpair:
    image = matvec(v)
    magnitude = safe_norm(image)
    return as_pair(jnp.where(jnp.vdot(v, image) < 0, -magnitude, magnitude), v, image)


def power_iteration(matvec: Matvec, v0: PyTree, *, num_iters: int = 10) -> Eigenpair:
    r"""Estimate the eigenvalue of largest magnitude by power iteration.

    .. math:: v \leftarrow A v / \|A v\|, \qquad \text{value} = \pm\|A v\|

    ``‖Av‖`` is a lower bound on the operator norm, grows monotonically with ``num_iters``, and is
    correct at an exact tie ``±λ``, where the Rayleigh quotient can be anything.

    Args:
        matvec: the symmetric matrix, ``v -> A v``.
        v0: the start, which must be nonzero but need not be normalized.
        num_iters: the number of products, at least 1; with 1, only ``v0`` is multiplied.

    Returns:
        `Eigenpair`. A zero matrix gives value 0 and keeps the last nonzero vector.

    Raises:
        ValueError, TypeError: if ``num_iters`` is not a whole number of at least 1.

    Cost: ``num_iters`` products, in one compiled loop. The error shrinks by ``|λ₂/λ₁|**2`` per
    product. Call it inside ``jax.jit``: outside, each call compiles its loop anew.

    >>> import jax.numpy as jnp
    >>> diagonal = jnp.array([1.0, -3.0])
    >>> pair = power_iteration(lambda v: diagonal * v, jnp.ones(2), num_iters=20)
    >>> round(float(pair.value), 4)
    -3.0
    """
    num_iters = check_count("num_iters", num_iters)
    matvec, start, as_pair = _flatten(matvec, v0)
    v = _iterate(lambda v: _direction(matvec(v), v), start, num_iters - 1)
    return _image_norm_pair(matvec, v, as_pair)


ONE_PRODUCT: Solver = partial(power_iteration, num_iters=1)
"""One product with the start; `gradient_start` says how close it comes."""


def norm_ascent(
    matvec: Matvec, v0: PyTree, *, num_iters: int, step_size: float | jax.Array
) -> Eigenpair:
    r"""Estimate the eigenvalue of largest magnitude by gradient ascent on ``v -> ‖A v‖``.

    .. math:: v \leftarrow v + \alpha\, \nabla_v \|A v\|, \qquad v \leftarrow v / \|v\|, \qquad
        \nabla_v \|A v\| = A^2 v / \|A v\|

    This is the iteration published with the method. With a large step it is power iteration on
    ``A²``; with a step much smaller than ``1/‖A‖`` it hardly moves.

    Args:
        matvec: the symmetric matrix, ``v -> A v``.
        v0: the start, which must be nonzero but need not be normalized.
        num_iters: the number of ascent steps, at least 1.
        step_size: α, positive, in inverse units of the matrix.

    Returns:
        `Eigenpair`, as from `power_iteration`.

    Raises:
        ValueError, TypeError: if ``num_iters`` is not a whole number of at least 1, or
            ``step_size`` is not positive.

    Cost: ``2 * num_iters + 1`` products; call it inside ``jax.jit``, like `power_iteration`.
    Source: Mustafa, Vandermeulen, Kloft, "Input Hessian Regularization of Neural Networks", 2020
    (arXiv 2009.06571), as described by Cui et al., 2022.
    """
    num_iters = check_count("num_iters", num_iters)
    check_number("step_size", step_size, positive=True)
    matvec, start, as_pair = _flatten(matvec, v0)
    step_size = jnp.asarray(step_size, start.dtype)
    # One of the two is 1, because a long step times a large image would overflow.
    kept, moved = jnp.minimum(1, 1 / step_size), jnp.minimum(1, step_size)

    def step(v: jax.Array) -> jax.Array:
        ascent = matvec(normalize(matvec(v))[0])
        return _direction(kept * v + moved * ascent, v)

    return _image_norm_pair(matvec, _iterate(step, start, num_iters), as_pair)


def lanczos(matvec: Matvec, v0: PyTree, *, num_iters: int) -> Eigenpair:
    r"""Estimate the eigenvalue of largest magnitude by Lanczos with full reorthogonalization.

    It is the best estimate from a Krylov space: the Ritz value of largest magnitude of
    :math:`\text{span}\{v_0, A v_0, \dots, A^{k-1} v_0\}`. It never exceeds the operator norm, and
    converges much faster than power iteration where the spectrum is crowded at the top. At a
    breakdown (an invariant space has been found) it stops early and is exact on that space.

    Args:
        matvec: the symmetric matrix, ``v -> A v``.
        v0: the start, which must be nonzero but need not be normalized.
        num_iters: the number k of products, from 1 to the size of ``v0``.

    Returns:
        `Eigenpair` with the Ritz value and vector; the image comes from the stored products.
        A zero matrix gives value 0 and keeps ``v0``.

    Raises:
        ValueError, TypeError: if ``num_iters`` is not a whole number from 1 to the size of ``v0``.

    Cost: ``num_iters`` products and memory for ``2 k n`` numbers; call it inside ``jax.jit``, like
    `power_iteration`. It is not meant to be differentiated: penalties locate their directions
    under ``stop_gradient``. Source: Golub, Van Loan, *Matrix Computations*, chapter 10.

    >>> import jax.numpy as jnp
    >>> diagonal = jnp.array([1.0, -3.0, 2.0])
    >>> round(float(lanczos(lambda v: diagonal * v, jnp.ones(3), num_iters=3).value), 4)
    -3.0
    """
    matvec, start, as_pair = _flatten(matvec, v0)
    num_iters = check_count("num_iters", num_iters, at_most=start.size)

    def step(
        i: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        basis, images, v = state
        image = matvec(v)
        basis, images = basis.at[i].set(v), images.at[i].set(image)
        unit, scale = normalize(image)
        # Twice is enough: one pass leaves rounding errors along the basis that a second removes.
        for _ in range(2):
            unit = unit - matmul(basis.T, matmul(basis, unit))
        following, remainder = normalize(unit)
        # What rounding leaves of an image inside the space is not a new direction.
        rounding = 10 * jnp.sqrt(start.size) * jnp.finfo(unit.dtype).eps
        broken = (scale == 0) | (remainder <= rounding)
        return basis, images, jnp.where(broken, 0, following)

    empty = jnp.zeros((num_iters, start.size), start.dtype)
    basis, images, _ = jax.lax.fori_loop(
        0, num_iters, step, (empty, empty, start), unroll=min(num_iters, _MAX_UNROLLED)
    )
    # After a breakdown the basis ends in zero rows; they add Ritz values of 0, which never win.
    projected = matmul(basis, images.T)
    scale = jnp.max(jnp.abs(projected))
    # Bounded as in `safe_norm`: the sum of two of the largest numbers would overflow.
    scale = jnp.where(scale == 0, 1, jnp.minimum(scale, jnp.finfo(scale.dtype).max / 16))
    projected = projected / scale
    values, vectors = jnp.linalg.eigh((projected + projected.T) / 2)
    top = jnp.argmax(jnp.abs(values))
    value = values[top] * scale
    coefficients = jnp.where(value == 0, jnp.eye(num_iters, dtype=start.dtype)[0], vectors[:, top])
    return as_pair(value, matmul(coefficients, basis), matmul(coefficients, images))
