"""FAB, the fast adaptive boundary attack: the nearest misclassified point, for one example."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hessjax._numerics import check_count, safe_norm, widen
from hessjax.attacks.attack import Attack, Logits, Outcome, likely_class, search, with_options
from hessjax.attacks.balls import LpBall, check_center, distance, sphere_point
from hessjax.attacks.hyperplane import to_hyperplane
from hessjax.losses import misclassified

# From the source: the largest pull of the example, how far beyond the hyperplane to step, and the
# share of the way that remains once a misclassified point is found.
_MAX_PULL, _OVERSHOOT, _BACKWARD = 0.1, 1.05, 0.9


class FABState(NamedTuple):
    """One example under FAB, between two steps.

    Points are flat, because compiled loops over the short last axes of images are slow.

    Attributes:
        x: the iterate.
        best: the nearest misclassified point so far, or the example if there is none.
        distance: its distance from the example in the norm of the ball, a scalar; infinite if there
            is none.
        target: the class to reach; -1 for the nearest one.
    """

    x: jax.Array
    best: jax.Array
    distance: jax.Array
    target: jax.Array


def fab_init(
    logits_fn: Logits,
    x: ArrayLike,
    y: ArrayLike,
    ball: LpBall,
    key: jax.Array,
    *,
    run: ArrayLike = 0,
    num_targets: int = 9,
    num_restarts: int = 1,
) -> FABState:
    """Start a run at the example or, for a restart, at a random point at distance ε/2.

    Arguments are those of `fab`; ``run`` is the number of the run, which determines the target: the
    class of rank ``1 + run // num_restarts`` among the wrong ones at x.

    Returns:
        The state before the first step.

    Cost: one evaluation for a target.
    """
    del y
    x, run = check_center(ball, x), jnp.asarray(run)
    target = jnp.int32(-1)
    if num_targets:
        target = likely_class(logits_fn(x), 1 + run // num_restarts)
    x = x.ravel()
    start = x
    if num_restarts > 1:
        half = LpBall(ball.epsilon / 2, ball.order, ball.bounds)
        start = jnp.where(run % num_restarts == 0, x, sphere_point(half, x, key))
    return FABState(start, x, jnp.asarray(jnp.inf, x.dtype), target)


def fab_step(
    logits_fn: Logits,
    x: jax.Array,
    y: ArrayLike,
    ball: LpBall,
    state: FABState,
    *,
    num_targets: int = 9,
) -> FABState:
    """Linearize the boundary at the iterate and step to it, with a pull toward the example.

    Arguments are those of `fab`, and the state after the previous step.

    Cost: one gradient (C of them without a target) and one evaluation.
    """
    y, shape, x = jnp.asarray(y), x.shape, x.ravel()

    def flat(point: jax.Array) -> jax.Array:
        return logits_fn(point.reshape(shape))

    if num_targets:
        excess, slope = _to_target(flat, state.x, y, state.target)
    else:
        excess, slope = _to_nearest(flat, state.x, y, ball)
    # From the logits' precision to the inputs'; what follows is geometry among inputs.
    excess = excess.astype(x.dtype)
    # Moves from the iterate and the example to where the linearized excess vanishes.
    from_here = to_hyperplane(ball, state.x, slope, excess)
    from_start = to_hyperplane(ball, x, slope, excess + jnp.vdot(slope, x - state.x))
    # float16 would round the constant to zero.
    near, far = (jnp.maximum(widen(distance(ball, move)), 1e-8) for move in (from_here, from_start))
    pull = jnp.minimum(near / (near + far), _MAX_PULL).astype(x.dtype)
    here, start = (
        point + _OVERSHOOT * move for point, move in ((state.x, from_here), (x, from_start))
    )
    point = jnp.clip((1 - pull) * here + pull * start, *ball.bounds)

    wrong = misclassified(flat(point), y)
    length = distance(ball, point - x)
    nearer = wrong & (length < state.distance)
    return FABState(
        x=jnp.where(wrong, x + _BACKWARD * (point - x), point),
        best=jnp.where(nearer, point, state.best),
        distance=jnp.where(nearer, length, state.distance),
        target=state.target,
    )


def fab_outcome(x: jax.Array, state: FABState, ball: LpBall) -> Outcome:
    """Return the nearest misclassified point; it counts as found if it lies in the ball."""
    return Outcome(state.best.reshape(x.shape), -state.distance, state.distance <= ball.epsilon)


def fab_attack(*, num_targets: int = 9, num_steps: int = 100, num_restarts: int = 1) -> Attack:
    """Return FAB as an `Attack` for `auto_attack`; arguments as for `fab`."""
    num_steps = check_count("num_steps", num_steps)
    num_restarts = check_count("num_restarts", num_restarts)
    if num_targets != 0:
        num_targets = check_count("num_targets", num_targets)
    return Attack(
        "fab-t" if num_targets else "fab",
        with_options(fab_init, num_targets=num_targets, num_restarts=num_restarts),
        with_options(fab_step, num_targets=num_targets),
        fab_outcome,
        num_steps,
        num_restarts * max(num_targets, 1),
        num_targets,
    )


def fab(
    logits_fn: Logits,
    x: ArrayLike,
    y: ArrayLike,
    ball: LpBall,
    key: jax.Array,
    *,
    num_targets: int = 9,
    num_steps: int = 100,
    num_restarts: int = 1,
    unroll: int | bool = 1,
) -> jax.Array:
    r"""Search for the nearest misclassified point by projections onto the linearized boundary.

    .. math:: x_{i+1} = \mathrm{clip}\left((1 - \alpha)(x_i + 1.05\, d_1)
        + \alpha (x + 1.05\, d_2)\right), \qquad
        \alpha = \min\left(\frac{\|d_1\|_p}{\|d_1\|_p + \|d_2\|_p}, 0.1\right)

    where d₁ and d₂ are the shortest moves in the norm of the ball, inside the box, from the iterate
    and from the example to the hyperplane where the linearized difference of two logits vanishes.
    From a misclassified iterate the search continues 10 % closer to the example.

    The radius of the ball does not limit the search; it only scales random starts. FAB follows the
    reference implementation up to rounding, except for gradient entries below 1e-8, which the
    latter leaves out for p = 2.

    Args:
        logits_fn: maps one example to its logits of shape ``(C,)``.
        x: the example, any shape, in the box.
        y: its label, a whole number.
        ball: norm, box, and the scale of random starts.
        key: source of the random starts.
        num_targets: number of classes to aim at, one after the other, starting with the likeliest
            wrong one at x, each wrong class at most once; with 0, each step aims at the
            nearest class, using the gradients of all logits.
        num_steps: number of steps per run.
        num_restarts: number of runs per target; the first starts at the example, not at random.
        unroll: steps per iteration of the compiled loop; True unrolls all of them.

    Returns:
        The nearest misclassified point found, like ``x``; x itself if it is misclassified or
        none was found. The point may lie outside the ball: compare its distance with the radius,
        as `auto_attack` does.

    Raises:
        ValueError: if x is outside the box or a count is less than 1 (``num_targets``: 0).
        TypeError: if x is not floating point or a count is not a whole number.

    Cost: per run, ``num_steps`` gradients (without targets, C times that) and evaluations. Call
    it inside ``jax.jit``: outside, each call compiles its loop again. Source: Croce, Hein,
    Minimally distorted adversarial examples with a fast adaptive boundary attack, 2020.

    >>> logits_fn = lambda x: jnp.array([0.0, 1.0]) * (x[1] - x[0])
    >>> x, ball = jnp.array([0.25, 0.5]), LpBall(1.0, jnp.inf)
    >>> x_adv = fab(logits_fn, x, 1, ball, jax.random.key(0), num_targets=1)
    >>> print(f"{jnp.max(jnp.abs(x_adv - x)):.2f}")
    0.13
    """
    attack = fab_attack(num_targets=num_targets, num_steps=num_steps, num_restarts=num_restarts)
    return search(attack, logits_fn, x, y, ball=ball, key=key, unroll=unroll)


def _to_target(
    logits_fn: Logits, point: jax.Array, y: jax.Array, target: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return how much the target's logit exceeds the label's, and the gradient of that."""

    def excess(t: jax.Array) -> jax.Array:
        logits = logits_fn(t)
        return logits[target] - logits[y]

    return jax.value_and_grad(excess)(point)


def _to_nearest(
    logits_fn: Logits, point: jax.Array, y: jax.Array, ball: LpBall
) -> tuple[jax.Array, jax.Array]:
    """Return the same for the class whose linearized boundary is nearest."""
    logits, pullback = jax.vjp(logits_fn, point)
    units = jnp.eye(logits.size, dtype=logits.dtype)
    (slopes,) = jax.vmap(pullback)(units - units[y][None])
    # Not a product of the unit differences with the logits: a masked class has an infinite one.
    excess = widen(logits - logits[y])
    flat = widen(jnp.abs(slopes.reshape(logits.size, -1)))
    dual = jax.vmap(safe_norm)(flat) if ball.order == 2 else jnp.sum(flat, axis=1)
    others = jnp.arange(logits.size, dtype=jnp.int32) != y.astype(jnp.int32)
    reached = (dual > 0) & others
    nearest = jnp.argmin(jnp.where(reached, jnp.abs(excess) / jnp.where(reached, dual, 1), jnp.inf))
    return excess[nearest], slopes[nearest]
