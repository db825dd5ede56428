"""How far the decision boundary is, from the gap, the gradient norm and the curvature.

Let f grow toward misclassification, and let ``gap`` be by how much it may grow: for the margin m of
an example, ``f = -m`` and the gap is m; for cross-entropy, `cross_entropy_gap`. docs/theory.md
proves what is said here.

A curvature measured at the example bounds nothing away from it, so what comes out is an estimate.
The second-order value is a certified lower bound of the distance only where the curvature bounds
the operator norm of the Hessian of f in the whole ball of that radius; for a margin, only where
gradient norm and curvature are the largest over the pairs of the label with every other class.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from hessjax._numerics import widen


def cross_entropy_gap(loss: ArrayLike) -> jax.Array:
    r"""Return by how much the cross-entropy may grow before the prediction can change.

    .. math:: c = \ln 2 - f

    Below ln 2 the label has more than half of the probability and is predicted. With more than two
    classes it may still be predicted above: the gap is conservative.

    Args:
        loss: cross-entropy in nats, any shape.

    Returns:
        The gap, of the same shape; negative where the loss is too large to tell.

    >>> print(f"{cross_entropy_gap(0.0):.3f}")
    0.693
    """
    return math.log(2) - jnp.asarray(loss)


def first_order_distance_estimate(gap: ArrayLike, gradient_norm: ArrayLike) -> jax.Array:
    r"""Estimate the distance to the decision boundary of a linearized model.

    .. math:: d_1 = c / \|g\|

    Exact for a linear f, never too small for a convex one, either for others. A box of inputs makes
    the distance larger, so that in one it may be too small for any f.

    Args:
        gap: c, by how much f may grow, any shape; what is negative counts as zero.
        gradient_norm: the norm dual to that of the distance (ℓ2 for ℓ2, ℓ1 for ℓ∞), nonnegative.

    Returns:
        The distance in input units, elementwise; 0 for no gap or an infinite norm, infinity for an
        infinite gap and where there is a gap and no gradient (with zero derivatives there).

    Raises:
        ValueError: if a gradient norm is negative. A traced one gives NaN, as NaN does.

    >>> first_order_distance_estimate(3.0, jnp.array([1.5, 0.0])).tolist()
    [2.0, inf]
    """
    dtype, (gap, gradient_norm) = _prepare(gap, gradient_norm=gradient_norm)
    flat = gradient_norm == 0
    endless = (flat & (gap > 0)) | jnp.isinf(gap)
    distance = jnp.where(endless, 1, gap) / jnp.where(endless | flat, 1, gradient_norm)
    return jnp.where(endless, jnp.inf, distance).astype(dtype)


def second_order_distance_estimate(
    gap: ArrayLike, gradient_norm: ArrayLike, curvature: ArrayLike
) -> jax.Array:
    r"""Estimate the ℓ2 distance to the decision boundary from gradient and curvature.

    .. math:: d_2 = \frac{2 c}{\|g\| + \sqrt{\|g\|^2 + 2 c K}}

    It solves :math:`\|g\| d + \frac12 K d^2 = c`. A **lower bound** of the distance if K bounds the
    operator norm of the Hessian of f in the whole ball of this radius. For a K measured at the
    example it is an estimate. Never larger than the first-order estimate, to which it is equal for
    K = 0; it decreases in K and in the gradient norm, so a smaller operator norm says "farther".

    Args:
        gap: c, by how much f may grow, any shape; what is negative counts as zero.
        gradient_norm: ℓ2 norm of the gradient, nonnegative.
        curvature: K, an operator norm, nonnegative.

    Returns:
        The distance in input units, elementwise; 0 for no gap or an infinite norm, infinity for an
        infinite gap and where there is a gap and neither gradient nor curvature (with zero
        derivatives there).

    Raises:
        ValueError: if a norm is negative. A traced one gives NaN, as NaN does.

    >>> print(second_order_distance_estimate(1.5, 1.0, jnp.array([0.0, 1.0])).round(2))
    [1.5 1. ]
    """
    norms = {"gradient_norm": gradient_norm, "curvature": curvature}
    dtype, (gap, gradient_norm, curvature) = _prepare(gap, **norms)
    # An infinite one decides: no scale would take it to a number.
    decided = jnp.isinf(gap) | jnp.isinf(gradient_norm) | jnp.isinf(curvature)
    limit = jnp.where(jnp.isinf(gap), jnp.inf, 0)
    gap, gradient_norm, curvature = (
        jnp.where(decided, 1, value) for value in (gap, gradient_norm, curvature)
    )
    # Neither g² nor cK need be a number that the format can hold; divided by the scale both are at
    # most 2. The distance does not depend on the scale, so neither do its derivatives.
    roots = jnp.sqrt(gap) * math.sqrt(2) * jnp.sqrt(curvature)
    scale = jax.lax.stop_gradient(jnp.maximum(gradient_norm, roots))
    flat = scale == 0
    scale = jnp.where(flat, 1, scale)
    slope, level, bend = gradient_norm / scale, gap / scale, curvature / scale
    # One of the two may overflow where the other vanishes, and ∞ × 0 is NaN.
    most = jnp.finfo(scale.dtype).max / 4
    near, bend = jnp.minimum(level, most), jnp.minimum(bend, most)
    # The inner `where` keeps the infinite slope of sqrt at 0 out of the backward pass.
    root = jnp.sqrt(jnp.where(flat, 1, slope**2 + 2 * near * bend))
    distance = near / (0.5 * (slope + root))
    # At the end of the range the level has to do, no more than the first-order estimate.
    distance = jnp.where(level > most, level, distance)
    distance = jnp.where(flat & (gap > 0), jnp.inf, distance)
    return jnp.where(decided, limit, distance).astype(dtype)


def _prepare(gap: ArrayLike, **norms: ArrayLike) -> tuple[np.dtype, list[jax.Array]]:
    """Return the dtype of the result, gap and norms, and refuse negative norms.

    In float32 at least: float16 ends at 65,504. The gap is at least 0, and where a number is NaN or
    a norm negative all are NaN, so that no infinity decides.
    """
    for name, value in norms.items():
        # By numpy: inside a traced function even a constant has no truth value in jax.numpy.
        if not isinstance(value, Tracer) and (least := np.min(np.asarray(value), initial=0)) < 0:
            raise ValueError(f"{name} is a norm and cannot be negative, got {least}")
    dtype = jnp.result_type(float, gap, *norms.values())
    gap, *rest = (widen(jnp.asarray(value, dtype)) for value in (gap, *norms.values()))
    unknown = jnp.isnan(gap)
    for norm in rest:
        unknown |= ~(norm >= 0)
    # Not `maximum`, whose derivative at 0 is one half.
    gap = jnp.where(gap < 0, 0, gap)
    return dtype, [jnp.where(unknown, jnp.nan, value) for value in (gap, *rest)]
