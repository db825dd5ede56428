"""The gradient attacks FGSM and PGD on one example; use ``jax.vmap`` for a batch."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

from hessjax._numerics import (
    check_count,
    check_functions,
    check_key,
    check_number,
    check_scalar,
    wide,
)
from hessjax.attacks.attack import Logits, check_logits
from hessjax.attacks.balls import LpBall, ascent_direction, check_center, project, random_point
from hessjax.losses import misclassified

Loss = Callable[[jax.Array, jax.Array], jax.Array]


class PGDState(NamedTuple):
    """One example under attack, between two steps.

    Attributes:
        x: the iterate, of the shape of the example.
        best: the first misclassified iterate or, as long as there is none, that of largest loss.
        loss: the loss at ``best``, a scalar.
        found: whether ``best`` is misclassified, a boolean scalar.
    """

    x: jax.Array
    best: jax.Array
    loss: jax.Array
    found: jax.Array


def fgsm(
    logits_fn: Logits,
    x: ArrayLike,
    y: ArrayLike,
    ball: LpBall,
    *,
    loss: Loss = cross_entropy,
) -> jax.Array:
    r"""Take one step of steepest ascent to the surface of the ball, then clip to the box.

    .. math:: \mathrm{clip}\left(x + \epsilon\, \arg\max_{\|u\|_p \le 1} u^\top \nabla_x f(x)\right)

    Args:
        logits_fn: maps one example to its logits of shape ``(C,)``.
        x: the example, any shape, in the box.
        y: its label, a whole number.
        ball: where to search; its order selects the sign (ℓ∞) or the normalized gradient (ℓ2).
        loss: the loss to maximize, ``(logits, y) -> scalar``.

    Returns:
        The attacked example, in ball ∩ box, like ``x``. It need not be misclassified or have a
        larger loss. Where the gradient is zero it is ``x``.

    Raises:
        ValueError: if x is outside the box or is a batch.
        TypeError: if x is not floating point.

    Cost: one gradient. Source: Goodfellow, Shlens, Szegedy, Explaining and harnessing adversarial
    examples, 2015.

    >>> logits_fn = lambda x: jnp.array([0.0, 1.0]) * (x[1] - x[0])
    >>> fgsm(logits_fn, jnp.array([0.25, 0.5]), 1, LpBall(0.125, jnp.inf)).tolist()
    [0.375, 0.375]
    """
    check_functions(logits_fn=logits_fn, loss=loss)
    x, y = check_center(ball, x), jnp.asarray(y)

    def value(point: jax.Array) -> jax.Array:
        logits = logits_fn(point)
        check_logits(logits)
        return loss(logits, y)

    check_scalar(value, x)
    gradient = jax.grad(value)(x)
    epsilon = jnp.asarray(ball.epsilon, x.dtype)
    return project(ball, x, x + epsilon * ascent_direction(ball, gradient))


def pgd_init(
    logits_fn: Logits, x: ArrayLike, y: ArrayLike, ball: LpBall, key: jax.Array
) -> PGDState:
    """Start at a random point of the ball; the example itself is the best so far.

    A restart is a new random ``x`` in an old state: ``state._replace(x=random_point(...))``.

    Args:
        logits_fn: maps one example to its logits of shape ``(C,)``.
        x: the example, any shape, in the box.
        y: its label, a whole number.
        ball: where to search.
        key: source of the random start.

    Returns:
        The state before the first step. Its loss is -inf, so that any iterate is better.

    Cost: one evaluation, which the compiler drops if only the iterate is used.
    """
    check_functions(logits_fn=logits_fn)
    x, y = check_center(ball, x), jnp.asarray(y)
    logits = logits_fn(x)
    check_logits(logits)
    found = misclassified(logits, y)
    # At least float32: rounded to the precision of a narrow x, losses would tie.
    least = jnp.asarray(-jnp.inf, wide(x.dtype))
    return PGDState(random_point(ball, x, key), x, least, found)


def pgd_step(
    logits_fn: Logits,
    x: jax.Array,
    y: ArrayLike,
    ball: LpBall,
    state: PGDState,
    *,
    step_size: float | jax.Array,
    loss: Loss = cross_entropy,
) -> PGDState:
    r"""Record the iterate, then take one projected step of steepest ascent from it.

    .. math:: x_{i+1} = P\left(x_i + \alpha\, \arg\max_{\|u\|_p \le 1} u^\top \nabla f(x_i)\right)

    where P projects onto the ball, then onto the box. Call it from the loop of your choice: a
    vmapped and jitted chunk of a few steps runs well everywhere (inside a traced loop,
    convolutions are slow on the CPU).

    Args:
        logits_fn: maps one example to its logits of shape ``(C,)``.
        x: the example, the center of the ball.
        y: its label.
        ball: where to search.
        state: from `pgd_init` or the previous step.
        step_size: α, the length of a step in the norm of the ball, in input units.
        loss: the loss to maximize, ``(logits, y) -> scalar``.

    Returns:
        The next state; its iterate is recorded by the next step, or by `pgd_result`.

    Cost: one gradient.
    """
    check_functions(logits_fn=logits_fn, loss=loss)
    check_number("step_size", step_size, positive=True)
    y = jnp.asarray(y)

    def evaluate(point: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = logits_fn(point)
        return loss(logits, y), logits

    (value, logits), gradient = jax.value_and_grad(evaluate, has_aux=True)(state.x)
    step = jnp.asarray(step_size, x.dtype) * ascent_direction(ball, gradient)
    state = _record(state, value, misclassified(logits, y))
    return state._replace(x=project(ball, x, state.x + step))


def pgd_result(
    logits_fn: Logits, y: ArrayLike, state: PGDState, *, loss: Loss = cross_entropy
) -> PGDState:
    """Record the last iterate; ``best`` of the returned state is then what the attack found.

    Args:
        logits_fn: maps one example to its logits of shape ``(C,)``.
        y: its label.
        state: after the last step of a start.
        loss: the loss to maximize, ``(logits, y) -> scalar``.

    Returns:
        The state with the same iterate. To restart, continue from it.

    Cost: one evaluation.
    """
    y = jnp.asarray(y)
    logits = logits_fn(state.x)
    return _record(state, loss(logits, y), misclassified(logits, y))


def pgd(
    logits_fn: Logits,
    x: ArrayLike,
    y: ArrayLike,
    ball: LpBall,
    key: jax.Array,
    *,
    loss: Loss = cross_entropy,
    num_steps: int = 40,
    step_size: float | jax.Array | None = None,
    num_restarts: int = 1,
    unroll: int | bool = 1,
) -> jax.Array:
    r"""Search the ball by projected gradient ascent from random starts.

    .. math:: x_{i+1} = P\left(x_i + \alpha\, \arg\max_{\|u\|_p \le 1} u^\top \nabla f(x_i)\right)

    Every start is random, including the first (see `random_point`): at the example itself the
    gradient may vanish.

    Args:
        logits_fn: maps one example to its logits of shape ``(C,)``.
        x: the example, any shape, in the box.
        y: its label, a whole number.
        ball: where to search.
        key: source of the random starts. Restart number r folds r into it, so that a larger
            number of restarts repeats the smaller one and never does worse.
        loss: the loss to maximize, ``(logits, y) -> scalar``.
        num_steps: number of steps per start.
        step_size: α, the length of a step in the norm of the ball, in input units;
            ``2.5 ε / num_steps`` if not given.
        num_restarts: number of starts, one after the other.
        unroll: steps, and restarts, per iteration of their compiled loops; True unrolls all of them
            (faster for convolutions on the CPU, slower to compile).

    Returns:
        The attacked example, in ball ∩ box (up to rounding), like ``x``: x itself if it is
        misclassified, else the first misclassified iterate, else the iterate of largest loss.
        It is finite even if the logits are not; NaN logits count as misclassified.

    Raises:
        ValueError: if x is outside the box, a count is less than 1 or the step size not positive.
        TypeError: if x is not floating point or a count is not a whole number.

    Cost: ``num_restarts × num_steps`` gradients. Call it inside ``jax.jit``: outside, each call
    compiles its loop again. Source: Madry et al., Towards deep learning models resistant to
    adversarial attacks, 2018.

    >>> logits_fn = lambda x: jnp.array([0.0, 1.0]) * (x[1] - x[0])
    >>> x, ball = jnp.array([0.25, 0.5]), LpBall(0.25, jnp.inf)
    >>> x_adv = pgd(logits_fn, x, 1, ball, jax.random.key(0), num_steps=10)
    >>> bool(x_adv[0] > x_adv[1])
    True
    """
    check_functions(logits_fn=logits_fn, loss=loss)
    num_steps = check_count("num_steps", num_steps)
    num_restarts = check_count("num_restarts", num_restarts)
    check_key(key)
    center = check_center(ball, x)
    length = 2.5 * ball.epsilon / num_steps if step_size is None else step_size

    def step(_: ArrayLike, state: PGDState) -> PGDState:
        return pgd_step(logits_fn, center, y, ball, state, step_size=length, loss=loss)

    def start(restart: ArrayLike, state: PGDState) -> PGDState:
        point = random_point(ball, center, jax.random.fold_in(key, restart))
        state = state._replace(x=point)
        state = jax.lax.fori_loop(0, num_steps, step, state, unroll=unroll)
        return pgd_result(logits_fn, y, state, loss=loss)

    state = pgd_init(logits_fn, center, y, ball, key)
    return jax.lax.fori_loop(0, num_restarts, start, state, unroll=unroll).best


def _record(state: PGDState, value: jax.Array, wrong: jax.Array) -> PGDState:
    """Keep the iterate if it is the first misclassified one or, before any, has a larger loss."""
    value = value.astype(state.loss.dtype)
    better = ~state.found & (wrong | (value > state.loss))
    return state._replace(
        best=jnp.where(better, state.x, state.best),
        loss=jnp.where(better, value, state.loss),
        found=state.found | wrong,
    )
