"""The set that an attack may search: an ℓp ball around the example, clipped to the input box."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from hessjax._numerics import (
    as_number,
    as_point,
    check_bounds,
    check_number,
    inside,
    normalize,
    safe_norm,
    widen,
)


@dataclass(frozen=True)
class LpBall:
    """The perturbations that a threat model allows: an ℓ2 or ℓ∞ ball, clipped to the input box.

    It is static, and hashable if epsilon is a plain number: close over it, or build it inside a
    traced function, where epsilon may be traced (one compilation for a whole range of radii).

    Attributes:
        epsilon: the radius, positive, in input units.
        order: 2 or infinity; stored as a Python float.
        bounds: the smallest and largest entry that an input may have, stored as Python floats;
            ``(-inf, inf)`` for no box.

    Raises:
        ValueError: if epsilon is not positive and finite, the order is neither 2 nor infinity, or
            the bounds are not increasing.

    >>> LpBall(0.3, jnp.inf)
    LpBall(epsilon=0.3, order=inf, bounds=(0.0, 1.0))
    """

    epsilon: float | jax.Array
    order: float
    bounds: tuple[float, float] = (0, 1)

    def __post_init__(self) -> None:
        """Check what is not traced."""
        check_number("epsilon", self.epsilon, positive=True)
        if (order := as_number(self.order)) not in {2, math.inf}:
            raise ValueError(f"order must be 2 or infinity, got {self.order!r}")
        # Arrays would impose their precision on the examples, and are not hashable.
        object.__setattr__(self, "order", order)
        object.__setattr__(self, "bounds", check_bounds(self.bounds))


def check_array(x: ArrayLike) -> None:
    """Raise unless the example is one array: penalties take pytrees, attacks do not."""
    if not isinstance(x, (jax.Array, np.ndarray)) and np.asarray(x).dtype == object:
        raise TypeError(f"x must be one array, got a {type(x).__name__}")


def check_center(ball: LpBall, center: ArrayLike) -> jax.Array:
    """Return the example as an array, or raise if it is not in the box.

    A traced example cannot be inspected and passes: check data before the loop.
    """
    if not isinstance(ball, LpBall):
        raise TypeError(f"the ball must be an LpBall, such as LpBall(0.3, 2), got {ball!r}")
    check_array(center)
    if not isinstance(center, Tracer):
        entries, (low, high) = np.asarray(center), ball.bounds
        if not np.all(inside(entries, ball.bounds)):
            raise ValueError(
                f"x must lie in the box [{low:g}, {high:g}], "
                f"got entries from {np.min(entries)} to {np.max(entries)}"
            )
    return as_point(jnp.asarray(center))


def project(ball: LpBall, center: jax.Array, x: jax.Array) -> jax.Array:
    r"""Project ``x`` onto the ball, then clip it to the box.

    .. math:: \mathrm{clip}_{box}\left(c + (x - c) \min(1, \epsilon / \|x - c\|_2)\right),
        \qquad \mathrm{clip}_{box}\left(\mathrm{clip}_{[c - \epsilon, c + \epsilon]}(x)\right)

    for p = 2 and p = ∞, as in the reference implementations of PGD and AutoAttack. The center lies
    in the box, so clipping can only shrink entries of ``x - c``, and the result stays in the ball.
    For p = ∞ it is the nearest point of ball ∩ box; for p = 2 the nearest point may be another one.

    Args:
        ball: the ball.
        center: the example, in the box.
        x: the point to project, of the shape of the center.

    Returns:
        A point in ball ∩ box (up to rounding), like ``center``; points inside are not moved.

    >>> center, x = jnp.array([0.5, 0.5]), jnp.array([0.5, 2.0])
    >>> project(LpBall(0.25, 2), center, x).tolist()
    [0.5, 0.75]
    """
    epsilon = jnp.asarray(ball.epsilon, center.dtype)
    if ball.order == 2:
        difference = x - center
        norm = safe_norm(difference).astype(center.dtype)
        outside = norm > epsilon
        shrink = jnp.where(outside, epsilon / jnp.where(outside, norm, 1), 1)
        x = jnp.where(outside, center + shrink * difference, x)
    else:
        x = jnp.clip(x, center - epsilon, center + epsilon)
    return jnp.clip(x, *ball.bounds)


def ascent_direction(ball: LpBall, gradient: jax.Array) -> jax.Array:
    r"""Return the unit step along which the linearized loss grows most.

    .. math:: \arg\max_{\|u\|_p \le 1} u^\top g =
        \mathrm{sign}(g) \text{ for } p = \infty, \quad g / \|g\|_2 \text{ for } p = 2

    Args:
        ball: the ball, which supplies the order.
        gradient: g, any shape and scale.

    Returns:
        The direction, like ``gradient``; zero for a zero gradient. NaN entries count as zero and
        infinite ones as the largest finite number, so that an attack never leaves finite inputs.

    >>> ascent_direction(LpBall(1.0, 2), jnp.array([0.0, 1e-30])).tolist()
    [0.0, 1.0]
    """
    gradient = jnp.nan_to_num(gradient)
    if ball.order != 2:
        return jnp.sign(gradient)
    wide = widen(gradient)
    # The norm of entries at the end of the range would overflow, and its inverse underflow.
    limit = 2.0**-32 * jnp.finfo(wide.dtype).max
    wide = jnp.where(jnp.max(jnp.abs(wide)) > limit, 2.0**-32 * wide, wide)
    return normalize(wide)[0].astype(gradient.dtype)


def random_point(ball: LpBall, center: jax.Array, key: jax.Array) -> jax.Array:
    """Draw a random start for an attack.

    For p = ∞ it is uniform in the ball. For p = 2 it is a uniform direction times a radius uniform
    in ``[0, ε]``, so that some starts are near the example: in high dimensions nearly all of a
    ball's volume is near its surface. It is then clipped to the box.

    Args:
        ball: the ball.
        center: the example, in the box.
        key: source of randomness.

    Returns:
        A point in ball ∩ box, like ``center``.
    """
    if ball.order == 2:
        for_direction, for_radius = jax.random.split(key)
        direction = normalize(jax.random.normal(for_direction, center.shape, center.dtype))[0]
        offset = direction * jax.random.uniform(for_radius, (), center.dtype)
    else:
        offset = jax.random.uniform(key, center.shape, center.dtype, -1, 1)
    return project(ball, center, center + jnp.asarray(ball.epsilon, center.dtype) * offset)


def sphere_point(ball: LpBall, center: jax.Array, key: jax.Array) -> jax.Array:
    """Draw a point on the surface of the ball, then clip it to the box.

    It is the center plus noise: for p = ∞ uniform noise scaled so that its largest entry is ε, for
    p = 2 Gaussian noise scaled to norm ε.
    """
    if ball.order == 2:
        noise = normalize(jax.random.normal(key, center.shape, center.dtype))[0]
    else:
        noise = jax.random.uniform(key, center.shape, center.dtype, -1, 1)
        largest = jnp.max(jnp.abs(noise))
        noise = noise / jnp.where(largest == 0, 1, largest)
    return project(ball, center, center + jnp.asarray(ball.epsilon, center.dtype) * noise)


def contains(ball: LpBall, center: jax.Array, x: jax.Array) -> jax.Array:
    r"""Return whether a point lies in ball ∩ box, up to the rounding of what attacks return.

    .. math:: \|x - c\|_p \le \epsilon + 2 n u\, (\epsilon + \|c\|_\infty)

    where u is the spacing of numbers at 1, and n is the square root of the number of entries for
    p = 2, and 1 for p = ∞. The box is checked without tolerance.

    Args:
        ball: the ball.
        center: the example.
        x: the point, of the shape and dtype of the center.

    Returns:
        A boolean scalar; False if an entry is NaN.
    """
    wide = widen(center)
    epsilon = widen(jnp.asarray(ball.epsilon, center.dtype))  # as the attacks round it
    rounding = float(jnp.finfo(center.dtype).eps) * (math.sqrt(x.size) if ball.order == 2 else 1)
    limit = epsilon + 2 * rounding * (epsilon + jnp.max(jnp.abs(wide)))
    low, high = ball.bounds
    return jnp.all((low <= x) & (x <= high)) & (distance(ball, widen(x) - wide) <= limit)


def distance(ball: LpBall, difference: jax.Array) -> jax.Array:
    """Return the norm of a difference of two inputs, with the order of the ball."""
    if ball.order == 2:
        return safe_norm(difference).astype(difference.dtype)
    return jnp.max(jnp.abs(difference))
