"""Estimate the distance to the decision boundary from gap, gradient norm and curvature.

Let f grow toward misclassification, and let ``gap`` be how much it may grow: for the margin m of an
example, ``f = -m`` and the gap is m; for cross-entropy, `cross_entropy_gap`. The proofs are in
docs/theory.md.

A curvature measured at the example bounds nothing away from it, so the result is an estimate. The
second-order value is a certified lower bound on the distance only if the curvature bounds the
operator norm of the Hessian of f in the whole ball of that radius. For a margin, gradient norm and
curvature must also be the largest over all pairs of the label and another class.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from hessjax._numerics import widen


def cross_entropy_gap(loss: ArrayLike) -> jax.Array:
    r"""Return how much the cross-entropy may grow before the prediction can change.

    .. math:: c = \ln 2 - f

    Below ln 2 the label has more than half of the probability, so it is predicted. With more than
    two classes it may still be predicted above ln 2: the gap is conservative.

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

    It is exact for a linear f, never too small for a convex one, and may err either way for
    others. A box of inputs makes the true distance larger, so in one the estimate may be too small
    for any f.

    Args:
        gap: c, how much f may grow, any shape; negative values count as zero.
        gradient_norm: the norm dual to that of the distance (ℓ2 for ℓ2, ℓ1 for ℓ∞), nonnegative.

    Returns:
        The distance in input units, elementwise; 0 for no gap or an infinite norm, infinity for an
        infinite gap and where there is a gap but no gradient (with zero derivatives there).

    Raises:
        ValueError: if a gradient norm is negative. If it is traced, the result is NaN instead, as
            for a norm that is NaN.

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

    It solves :math:`\|g\| d + \frac12 K d^2 = c`. It is a **lower bound** on the distance
    if K bounds the operator norm of the Hessian of f in the whole ball of this radius; for a K
    measured at the example it is an estimate. It never exceeds the first-order estimate, which it
    equals for K = 0. It decreases in K and in the gradient norm, so a smaller operator norm gives a
    larger distance.

    Args:
        gap: c, how much f may grow, any shape; negative values count as zero.
        gradient_norm: ℓ2 norm of the gradient, nonnegative.
        curvature: K, an operator norm, nonnegative.

    Returns:
        The distance in input units, elementwise; 0 for no gap or an infinite norm, infinity for an
        infinite gap and where there is a gap but neither gradient nor curvature (with zero
        derivatives there).

    Raises:
        ValueError: if a norm is negative. If it is traced, the result is NaN instead, as for a norm
            that is NaN.

    >>> print(second_order_distance_estimate(1.5, 1.0, jnp.array([0.0, 1.0])).round(2))
    [1.5 1. ]
    """
    norms = {"gradient_norm": gradient_norm, "curvature": curvature}
    dtype, (gap, gradient_norm, curvature) = _prepare(gap, **norms)
    # An infinite input decides the result: no scaling would make it finite.
    decided = jnp.isinf(gap) | jnp.isinf(gradient_norm) | jnp.isinf(curvature)
    limit = jnp.where(jnp.isinf(gap), jnp.inf, 0)
    gap, gradient_norm, curvature = (
        jnp.where(decided, 1, value) for value in (gap, gradient_norm, curvature)
    )
    # Neither g² nor cK need be representable; divided by the scale, both are at most 2. The
    # distance does not depend on the scale, so neither do its derivatives.
    roots = jnp.sqrt(gap) * math.sqrt(2) * jnp.sqrt(curvature)
    scale = jax.lax.stop_gradient(jnp.maximum(gradient_norm, roots))
    flat = scale == 0
    scale = jnp.where(flat, 1, scale)
    slope, level, bend = gradient_norm / scale, gap / scale, curvature / scale
    # One of the two may overflow where the other is zero, and ∞ × 0 is NaN.
    most = jnp.finfo(scale.dtype).max / 4
    near, bend = jnp.minimum(level, most), jnp.minimum(bend, most)
    # The inner `where` keeps the infinite slope of sqrt at 0 out of the backward pass.
    root = jnp.sqrt(jnp.where(flat, 1, slope**2 + 2 * near * bend))
    distance = near / (0.5 * (slope + root))
    # At the end of the range, settle for the level, which is at most the first-order estimate.
    distance = jnp.where(level > most, level, distance)
    distance = jnp.where(flat & (gap > 0), jnp.inf, distance)
    return jnp.where(decided, limit, distance).astype(dtype)


def _prepare(gap: ArrayLike, **norms: ArrayLike) -> tuple[np.dtype, list[jax.Array]]:
    """Return the dtype of the result, the gap and the norms, and refuse negative norms.

    Gap and norms are at least float32, as float16 ends at 65,504. A negative gap becomes 0. Where
    any is NaN or a norm is negative, all become NaN, so that no infinity decides the result.
    """
    for name, value in norms.items():
        # NumPy, because inside a traced function even a constant has no truth value in jax.numpy.
        if not isinstance(value, Tracer) and (least := np.nanmin(np.asarray(value), initial=0)) < 0:
            raise ValueError(f"{name} is a norm and cannot be negative, got {least}")
    dtype = jnp.result_type(float, gap, *norms.values())
    gap, *rest = (widen(jnp.asarray(value, dtype)) for value in (gap, *norms.values()))
    unknown = jnp.isnan(gap)
    for norm in rest:
        unknown |= ~(norm >= 0)
    # Not `maximum`, whose derivative at 0 is one half.
    gap = jnp.where(gap < 0, 0, gap)
    return dtype, [jnp.where(unknown, jnp.nan, value) for value in (gap, *rest)]
