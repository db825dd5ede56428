"""The parts of Auto-PGD: how a run starts, one step, and what it found."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

from hessjax._numerics import as_point
from hessjax.attacks.attack import Logits, Outcome, likely_class
from hessjax.attacks.balls import (
    LpBall,
    ascent_direction,
    check_center,
    project,
    sphere_point,
)
from hessjax.losses import misclassified

Loss = Callable[..., jax.Array]

# From the source: the share of steps that must raise the loss for the step length to stay.
_RHO = 0.75


class APGDState(NamedTuple):
    """One example under Auto-PGD, between two steps.

    Points and gradients are flat, because compiled loops over the last axes of images are slow.

    Attributes:
        x: the iterate.
        previous: the iterate before it, for the momentum.
        gradient: the gradient of the loss at the iterate.
        best: the iterate of largest loss.
        best_gradient: the gradient of the loss at ``best``.
        best_loss: the loss at ``best``, a scalar.
        adversarial: the first misclassified iterate, or the start if there is none.
        found: whether there is one, a boolean scalar.
        step_size: the step length in the norm of the ball, a scalar.
        loss: the loss at the last iterate that was evaluated, a scalar.
        rises: how often the loss has risen since the last check, a whole number.
        checked_loss: the best loss at the last check.
        halved: whether the step size was halved at the last check.
        target: the class to reach, for a targeted loss.
        step: the number of steps taken.
    """

    x: jax.Array
    previous: jax.Array
    gradient: jax.Array
    best: jax.Array
    best_gradient: jax.Array
    best_loss: jax.Array
    adversarial: jax.Array
    found: jax.Array
    step_size: jax.Array
    loss: jax.Array
    rises: jax.Array
    checked_loss: jax.Array
    halved: jax.Array
    target: jax.Array
    step: jax.Array


def checkpoints(num_steps: int) -> tuple[int, ...]:
    """Return the numbers of steps after which the step length is checked.

    The windows between them take 22 % of all steps at first, then 3 % less each time, down to 6 %.

    >>> checkpoints(100)
    (22, 41, 57, 70, 80, 87, 93, 99)
    """
    # Floating-point products, rounded down, as in the source.
    window, least, shorter = (max(int(share * num_steps), 1) for share in (0.22, 0.06, 0.03))
    found, after = [], window
    while after <= num_steps:
        found.append(after)
        window = max(window - shorter, least)
        after += window
    return tuple(found)


def apgd_init(
    logits_fn: Logits,
    x: ArrayLike,
    y: ArrayLike,
    ball: LpBall,
    key: jax.Array,
    *,
    run: ArrayLike = 0,
    loss: Loss = cross_entropy,
    num_targets: int = 0,
    num_restarts: int = 1,
    start: ArrayLike | None = None,
) -> APGDState:
    """Start a run at a random point on the surface of the ball, or near a given one.

    Arguments are those of `apgd`; ``run`` is the number of the run, which determines the target:
    the class of rank ``1 + run // num_restarts`` among the wrong ones at x.

    Returns:
        The state before the first step; the start counts as an iterate.

    Cost: one gradient, and one evaluation for a target.
    """
    x, y = check_center(ball, x), jnp.asarray(y)
    center = x.ravel()
    if start is None:
        point = sphere_point(ball, center, key)
    else:
        given = as_point(jnp.asarray(start, x.dtype), "start")
        if given.shape != x.shape:
            raise ValueError(f"start must have the shape of x, {x.shape}, got {given.shape}")
        point = project(ball, center, jnp.where(jnp.isfinite(given), given, x).ravel())
    target = jnp.int32(0)
    if num_targets:
        target = likely_class(logits_fn(x), 1 + jnp.asarray(run) // num_restarts)
    loss = loss if num_targets else _untargeted(loss)
    value, wrong, gradient = _evaluation(_flat(logits_fn, x), y, target, loss)(point)
    return APGDState(
        x=point,
        previous=point,
        gradient=gradient,
        best=point,
        best_gradient=gradient,
        best_loss=value,
        adversarial=point,
        found=wrong,
        step_size=2 * jnp.asarray(ball.epsilon, x.dtype),
        # The first step is compared with 0, not with the start: see `apgd`.
        loss=jnp.zeros_like(value),
        rises=jnp.int32(0),
        checked_loss=value,
        halved=jnp.ones_like(wrong),
        target=target,
        step=jnp.int32(0),
    )


def apgd_step(
    logits_fn: Logits,
    x: jax.Array,
    y: ArrayLike,
    ball: LpBall,
    state: APGDState,
    *,
    loss: Loss = cross_entropy,
    num_targets: int = 0,
    num_steps: int = 100,
) -> APGDState:
    """Take one step with momentum, evaluate the new iterate, and check the step size when due.

    Arguments are those of `apgd`, and the state after the previous step.

    Cost: one gradient.
    """
    share = jnp.where(state.step == 0, 1, 0.75).astype(x.dtype)
    center, logits_fn = x.ravel(), _flat(logits_fn, x)
    ahead = state.x + state.step_size * ascent_direction(ball, state.gradient)
    ahead = project(ball, center, ahead)
    moved = share * (ahead - state.x) + (1 - share) * (state.x - state.previous)
    point = project(ball, center, state.x + moved)
    loss = loss if num_targets else _untargeted(loss)
    value, wrong, gradient = _evaluation(logits_fn, jnp.asarray(y), state.target, loss)(point)

    better = value > state.best_loss
    best, best_gradient, best_loss = (
        jnp.where(better, new, old)
        for new, old in (
            (point, state.best), (gradient, state.best_gradient), (value, state.best_loss)
        )
    )  # fmt: skip
    rises = state.rises + (value > state.loss).astype(state.rises.dtype)

    # The steps since the last check if there is one now, else 0.
    window = jnp.asarray(_windows(num_steps))[state.step]
    check = window > 0
    few = rises.astype(jnp.float32) <= _RHO * window.astype(jnp.float32)
    stuck = few | (~state.halved & (best_loss <= state.checked_loss))
    halve = check & stuck
    return APGDState(
        x=jnp.where(halve, best, point),
        previous=state.x,
        gradient=jnp.where(halve, best_gradient, gradient),
        best=best,
        best_gradient=best_gradient,
        best_loss=best_loss,
        adversarial=jnp.where(wrong & ~state.found, point, state.adversarial),
        found=state.found | wrong,
        step_size=jnp.where(halve, state.step_size / 2, state.step_size),
        loss=value,
        rises=jnp.where(check, 0, rises),
        checked_loss=jnp.where(check, best_loss, state.checked_loss),
        halved=jnp.where(check, halve, state.halved),
        target=state.target,
        step=state.step + 1,
    )


def apgd_outcome(x: jax.Array, state: APGDState, ball: LpBall) -> Outcome:
    """Return the first misclassified iterate or, if there is none, the one of largest loss."""
    del ball
    return Outcome(
        jnp.where(state.found, state.adversarial, state.best).reshape(x.shape),
        jnp.where(state.found, jnp.inf, state.best_loss),
        state.found,
    )


def _windows(num_steps: int) -> np.ndarray:
    """Return, for each step, the steps since the previous checkpoint if it ends at one, else 0."""
    windows = np.zeros(num_steps, np.int32)
    last = 0
    for after in checkpoints(num_steps):
        windows[after - 1], last = after - last, after
    return windows


def _flat(logits_fn: Logits, x: jax.Array) -> Logits:
    return lambda point: logits_fn(point.reshape(x.shape))


def _untargeted(loss: Loss) -> Loss:
    return lambda logits, y, _: loss(logits, y)


def _evaluation(
    logits_fn: Logits, y: jax.Array, target: jax.Array, loss: Loss
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    """Return a function from a point to its loss, whether it is misclassified, and the gradient."""

    def value(point: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = logits_fn(point)
        return loss(logits, y, target), misclassified(logits, y)

    def evaluate(point: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        (found, wrong), gradient = jax.value_and_grad(value, has_aux=True)(point)
        return found, wrong, gradient

    return evaluate
