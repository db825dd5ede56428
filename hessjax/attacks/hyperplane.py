"""The shortest move to a hyperplane inside a box."""

import jax
import jax.numpy as jnp

from hessjax._numerics import widen
from hessjax.attacks.balls import LpBall


def to_hyperplane(
    ball: LpBall, point: jax.Array, normal: jax.Array, excess: jax.Array
) -> jax.Array:
    r"""Return the smallest move to a hyperplane that stays in the box.

    .. math:: \arg\min_\delta \|\delta\|_p \quad \text{subject to} \quad
        e + w^\top \delta = 0, \quad x + \delta \in \mathrm{box}

    Every entry moves against the sign of e wᵢ, by at most its room rᵢ within the box:

    .. math:: |\delta_i| = \min(s\, b_i, r_i), \qquad b_i = 1 \text{ for } p = \infty, \quad
        |w_i| \text{ for } p = 2,

    and the scale s solves φ(s) = Σᵢ |wᵢ| min(s bᵢ, rᵢ) = |e|. Because φ is increasing, concave
    and piecewise linear, Newton's method from 0 climbs to the solution without overshooting. It
    takes one iteration for each set of entries that use up their room; a handful in practice.

    Args:
        ball: supplies p and the box.
        point: x, in the box, any shape.
        normal: w, like x.
        excess: e = wᵀx − b for the hyperplane wᵀz = b, scalar.

    Returns:
        The move δ, like x. If the box does not reach the hyperplane, every entry uses up its room;
        where w is zero, so is δ. NaN entries of w count as zero.

    Cost: a few passes over x; no sorting.

    >>> box = LpBall(1.0, 2)
    >>> move = to_hyperplane(box, jnp.array([0.75, 0.5]), jnp.array([1.0, 1.0]), jnp.array(-0.625))
    >>> move.tolist()
    [0.25, 0.375]
    """
    low, high = ball.bounds
    dtype, point = point.dtype, widen(point)
    normal, excess = widen(jnp.nan_to_num(normal)), widen(jnp.nan_to_num(excess))
    # The move does not depend on the equation's scale, and w² need not be representable. Within
    # these limits the inverse, by which XLA multiplies, is not flushed to zero.
    limits = jnp.finfo(normal.dtype)
    unit = jnp.clip(jnp.max(jnp.abs(normal)), limits.tiny, limits.max / 16)
    normal, excess = normal / unit, excess / unit
    down = jnp.sign(normal) * jnp.where(excess < 0, -1, 1).astype(normal.dtype)
    room = jnp.where(down > 0, point - low, high - point)
    weight = jnp.abs(normal)
    speed = weight if ball.order == 2 else jnp.ones_like(weight)
    wanted = jnp.abs(excess)

    def newton(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        _, scale = carry
        used_up = scale * speed >= room
        reached = jnp.sum(jnp.where(used_up, weight * room, 0))
        slope = jnp.sum(jnp.where(used_up, 0, weight * speed))
        # Nothing left to move: the hyperplane is out of reach.
        new = jnp.where(slope > 0, (wanted - reached) / jnp.where(slope > 0, slope, 1), jnp.inf)
        return scale, jnp.maximum(scale, new)

    def climbing(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        before, scale = carry
        return scale > before

    nothing = jnp.zeros_like(wanted)
    _, scale = jax.lax.while_loop(climbing, newton, (nothing - 1, nothing))
    # An entry whose normal is zero would be 0 * inf; it does not move.
    length = jnp.where(weight > 0, jnp.minimum(scale * speed, room), 0)
    return (-down * length).astype(dtype)
