"""Auto-PGD, projected gradient ascent that chooses its own step lengths."""

from collections.abc import Callable
from functools import partial
from inspect import Parameter, signature
from typing import Any

import jax
from jax.typing import ArrayLike
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

from hessjax._numerics import check_count, check_functions
from hessjax.attacks.apgd_steps import Loss, apgd_init, apgd_outcome, apgd_step
from hessjax.attacks.attack import Attack, Logits, search, with_options
from hessjax.attacks.balls import LpBall
from hessjax.losses import dlr_loss, targeted_dlr_loss


def apgd_attack(
    *,
    loss: Loss | None = None,
    num_targets: int = 0,
    num_steps: int = 100,
    num_restarts: int = 1,
    name: str | None = None,
) -> Attack:
    """Return Auto-PGD as an `Attack` for `auto_attack`; arguments as for `apgd`."""
    options = {"num_targets": num_targets, "num_steps": num_steps, "num_restarts": num_restarts}
    return _attack(with_options, loss, name=name, **options)


def _attack(
    bind: Callable[..., Callable[..., Any]],
    loss: Loss | None,
    *,
    num_targets: int,
    num_steps: int,
    num_restarts: int,
    name: str | None = None,
) -> Attack:
    """Return the attack, its options bound by `with_options`, which keeps them, or `partial`."""
    num_steps = check_count("num_steps", num_steps)
    num_restarts = check_count("num_restarts", num_restarts)
    if num_targets != 0:
        num_targets = check_count("num_targets", num_targets)
    if loss is None:
        loss = targeted_dlr_loss if num_targets else cross_entropy
    _check_loss(loss, num_targets)
    if name is None:
        name = "apgd-t" if num_targets else "apgd"
    init = bind(apgd_init, loss=loss, num_targets=num_targets, num_restarts=num_restarts)
    step = bind(apgd_step, loss=loss, num_targets=num_targets, num_steps=num_steps)
    runs = num_restarts * max(num_targets, 1)
    attack = Attack(name, init, step, apgd_outcome, num_steps, runs, num_targets)
    # With too few classes these ratios are not defined.
    options = {"num_targets": num_targets, "num_steps": num_steps, "num_restarts": num_restarts}
    if loss is targeted_dlr_loss:
        otherwise = _attack(bind, _logit_difference, name=name, **options)
        return attack._replace(min_classes=4, otherwise=otherwise)
    if loss is dlr_loss:
        otherwise = _attack(bind, None, name=name, **options)
        return attack._replace(min_classes=3, otherwise=otherwise)
    return attack


def apgd(
    logits_fn: Logits,
    x: ArrayLike,
    y: ArrayLike,
    ball: LpBall,
    key: jax.Array,
    *,
    loss: Loss | None = None,
    num_targets: int = 0,
    num_steps: int = 100,
    num_restarts: int = 1,
    start: ArrayLike | None = None,
    unroll: int | bool = 1,
) -> jax.Array:
    r"""Search the ball with Auto-PGD: momentum, and step lengths halved when progress stops.

    .. math:: z_{i+1} = P(x_i + \eta_i\, \arg\max_{\|u\|_p \le 1} u^\top \nabla f(x_i)), \qquad
        x_{i+1} = P(x_i + \alpha (z_{i+1} - x_i) + (1 - \alpha)(x_i - x_{i-1}))

    where P projects onto the ball, then onto the box, α is 1 for the first step, 0.75 afterwards,
    and η is 2ε at first. At each checkpoint, η is halved and the search continues from
    the best iterate if the loss rose in at most 75 % of the steps since the previous checkpoint, or
    if η was not halved there and the best loss has not improved since.

    It follows the reference implementation up to rounding, even in comparing the loss after the
    first step with 0, so that for cross-entropy this step always counts as a rise. It departs in
    what it returns: the first misclassified iterate, not the last.

    Args:
        logits_fn: maps one example to its logits of shape ``(C,)``.
        x: the example, any shape, in the box.
        y: its label, a whole number.
        ball: where to search.
        key: source of the random starts, which lie on the surface of the ball.
        loss: the loss to maximize, ``(logits, y) -> scalar``, or ``(logits, y, target) -> scalar``
            if there are targets; by default cross-entropy, or `targeted_dlr_loss`. With fewer than
            four classes, the difference of two logits stands in for `targeted_dlr_loss`; with two,
            cross-entropy stands in for `dlr_loss`.
        num_targets: number of classes to aim at, one after the other, starting with the likeliest
            wrong one at x, each wrong class at most once; 0 for an untargeted loss.
        num_steps: number of steps per run.
        num_restarts: number of runs per target.
        start: where the runs start, like x, instead of at a random point; entries that are not
            finite are replaced by those of x.
        unroll: steps per iteration of the compiled loop; True unrolls all of them.

    Returns:
        The attacked example, in ball ∩ box (up to rounding), like ``x``: x itself if it is
        misclassified, else the first misclassified iterate, else the iterate of largest loss.
        It is finite even if the logits are not; NaN logits count as misclassified.

    Raises:
        ValueError: if x is outside the box, a count is less than 1 or the start has another shape.
        TypeError: if x is not floating point, a count is not a whole number, or the loss takes a
            target and there are none, or the reverse.

    Cost: per run, ``num_steps + 1`` gradients. Call it inside ``jax.jit``: outside, each call
    compiles its loop again. Source: Croce, Hein, Reliable evaluation of adversarial robustness with
    an ensemble of diverse parameter-free attacks, 2020.

    >>> jnp = jax.numpy
    >>> logits_fn = lambda x: jnp.array([0.0, 1.0]) * (x[1] - x[0])
    >>> x, ball = jnp.array([0.25, 0.5]), LpBall(0.25, jnp.inf)
    >>> x_adv = apgd(logits_fn, x, 1, ball, jax.random.key(0), num_steps=10)
    >>> bool(x_adv[0] > x_adv[1])
    True
    """
    attack = _attack(
        partial,
        loss,
        num_targets=num_targets,
        num_steps=num_steps,
        num_restarts=num_restarts,
    )
    if start is not None:
        attack = _started(attack, start)
    return search(attack, logits_fn, x, y, ball=ball, key=key, unroll=unroll)


def _started(attack: Attack, start: ArrayLike) -> Attack:
    """Return the attack, and its stand-in if it has one, with a given start."""
    if attack.otherwise is not None:
        attack = attack._replace(otherwise=_started(attack.otherwise, start))
    return attack._replace(init=partial(attack.init, start=start))


def _logit_difference(logits: jax.Array, y: jax.Array, target: jax.Array) -> jax.Array:
    return logits[target] - logits[y]


def _check_loss(loss: Callable[..., jax.Array], num_targets: int) -> None:
    """Raise unless the loss takes a target exactly if there are targets."""
    check_functions(loss=loss)
    try:
        parameters = signature(loss).parameters.values()
    except (TypeError, ValueError):  # not every callable has a signature
        return
    if any(parameter.kind is Parameter.VAR_POSITIONAL for parameter in parameters):
        return
    # Options of a loss have defaults.
    taken = [parameter.name for parameter in parameters if parameter.default is Parameter.empty]
    if len(taken) != (3 if num_targets else 2):
        expected = "(logits, y, target)" if num_targets else "(logits, y)"
        raise TypeError(
            f"with num_targets={num_targets} the loss must take {expected}, got one that takes "
            f"({', '.join(taken)})"
        )
