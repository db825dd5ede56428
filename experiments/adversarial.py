"""Training on attacked inputs: any objective at them, by PGD or one step; the TRADES penalty."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from optax.losses import kl_divergence_with_log_targets
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

from experiments.models import Params
from hessjax import Lazy
from hessjax._placement import each
from hessjax.attacks import LpBall, PGDState, pgd_init, pgd_step
from hessjax.attacks.attack import Logits
from hessjax.attacks.gradient import Loss
from hessjax.objective import Apply, Metrics, Objective
from hessjax.operators import Composite

STEPS = 10
Attack = Callable[[Logits, jax.Array, jax.Array, LpBall, jax.Array], jax.Array]


def attacked(
    objective: Objective,
    apply: Apply,
    attack: Attack,
    radius: Callable[[Any], Any],
    *,
    order: float,
) -> Objective:
    """Evaluate an objective at attacked inputs instead of the given ones.

    Args:
        objective: what is evaluated there; with cross-entropy alone this is adversarial training.
        apply: ``(params, x) -> logits`` of one example.
        attack: ``(logits_fn, x, y, ball, key) -> x_adv`` of one example.
        radius: schedule of the ball's ε, in input units.
        order: p of the ball.
    """
    if isinstance(objective, Lazy):
        return objective.map(lambda part: attacked(part, apply, attack, radius, order=order))

    def there(
        params: Params, batch: tuple, key: jax.Array, step: int | jax.Array = 0
    ) -> tuple[jax.Array, Metrics]:
        x, y, *mask = batch
        epsilon = jnp.maximum(radius(step), 1e-6)

        def one(shared: tuple, x: jax.Array, y: jax.Array, place: jax.Array) -> jax.Array:
            params, epsilon, key = shared
            ball = LpBall(epsilon, order)
            return attack(partial(apply, params), x, y, ball, jax.random.fold_in(key, place))

        shared = jax.lax.stop_gradient(params), epsilon, key
        hard = each(one, shared, jnp.asarray(x), jnp.asarray(y), jnp.arange(len(x)))
        return objective(params, (hard, y, *mask), key, step)

    return there


def by_pgd(
    logits_fn: Logits,
    x: jax.Array,
    y: jax.Array,
    ball: LpBall,
    key: jax.Array,
    *,
    num_steps: int = STEPS,
    loss: Loss = cross_entropy,
) -> jax.Array:
    """Attack by PGD from a random start, with steps of 2.5 ε / num_steps, or ε if that is less.

    Returns the last iterate, not the first misclassified one, which would be easier to train on.
    """
    state = pgd_init(logits_fn, x, y, ball, key)
    return _ascended(logits_fn, x, y, ball, state, num_steps=num_steps, loss=loss)


def by_ascent(
    logits_fn: Logits,
    x: jax.Array,
    y: jax.Array,
    ball: LpBall,
    key: jax.Array,
    *,
    num_steps: int = 1,
) -> jax.Array:
    """Attack as `by_pgd` does, but starting from x itself: a single step is FGSM."""
    state = pgd_init(logits_fn, x, y, ball, key)._replace(x=x)
    return _ascended(logits_fn, x, y, ball, state, num_steps=num_steps, loss=cross_entropy)


def _ascended(
    logits_fn: Logits,
    x: jax.Array,
    y: jax.Array,
    ball: LpBall,
    state: PGDState,
    *,
    num_steps: int,
    loss: Loss,
) -> jax.Array:
    length = min(2.5 / num_steps, 1) * ball.epsilon
    # Written out: a loop over convolutions is slow on the CPU.
    for _ in range(num_steps):
        state = pgd_step(logits_fn, x, y, ball, state, step_size=length, loss=loss)
    return state.x


def divergence(
    f: Composite, x: jax.Array, key: jax.Array, *, ball: LpBall, num_steps: int = STEPS
) -> jax.Array:
    r"""Evaluate the penalty of TRADES: how far an attack moves the prediction.

    .. math:: \max_{\|\delta\|_p \le \epsilon} KL(p(x) \,\|\, p(x + \delta))

    PGD searches for the maximum from a random point of the ball, whereas the published code starts
    right beside x: at x itself the slope is zero.

    Args:
        f: `Composite`; its loss is not used.
        x: the example.
        key: for the random start.
        ball: where to search.
        num_steps: number of PGD steps.

    Source: Zhang et al., "Theoretically principled trade-off between robustness and accuracy",
    2019.
    """
    clean = f.model(x)
    fixed = jax.lax.stop_gradient(clean)

    def away(logits: jax.Array, y: jax.Array) -> jax.Array:
        del y
        return _kl(fixed, logits)

    label = jnp.argmax(fixed)
    start = jax.lax.stop_gradient(x)
    hard = by_pgd(f.model, start, label, ball, key, num_steps=num_steps, loss=away)
    return _kl(clean, f.model(jax.lax.stop_gradient(hard)))


def _kl(logits: jax.Array, others: jax.Array) -> jax.Array:
    """Return KL(p ‖ q) of the softmax p of the first logits and q of the second, in nats."""
    return kl_divergence_with_log_targets(jax.nn.log_softmax(others), jax.nn.log_softmax(logits))
