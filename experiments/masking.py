"""Signs that a robust accuracy is due to masked gradients, and the verdict."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

from experiments.batchwise import of_each
from hessjax import LpBall, dlr_loss, fgsm, hessian_operator_norm, margin
from hessjax.attacks import Attack, AttackResult, apgd_attack, auto_attack, batches
from hessjax.attacks.attack import Logits
from hessjax.attacks.autoattack import MISCLASSIFIED
from hessjax.eigen import lanczos
from hessjax.losses import misclassified

_ONE = (apgd_attack(name="apgd-ce"),)
_BOTH = (apgd_attack(name="apgd-ce"), apgd_attack(name="apgd-dlr", loss=dlr_loss))
_MORE = (
    apgd_attack(name="apgd-ce", num_steps=300, num_restarts=2),
    apgd_attack(name="apgd-dlr", loss=dlr_loss, num_steps=300, num_restarts=2),
)
# A mean margin at which the softmax is far from saturation in float32.
_MARGIN = 10.0
# Percent of the examples: if AutoAttack breaks fewer, the share FGSM misses is not conclusive.
_BROKEN = 10
_BATCH = 250
_CURVATURE = partial(hessian_operator_norm, solver=partial(lanczos, num_iters=5))


class Sign(NamedTuple):
    """One sign of masking.

    Attributes:
        figure: the name of its number in the result of `examine`.
        limit: in percent; above it, the sign counts as seen.
        says: the sentence, with a placeholder for the number.
    """

    figure: str
    limit: float
    says: str


SIGNS = (
    Sign("square_gain", 0.2, "Square breaks {:.1f} % more than the attacks by gradients"),
    Sign("more_steps_gain", 0.2, "more steps and restarts break {:.1f} % more"),
    Sign("unbounded", 1, "{:.1f} % are right in a ball as large as the box"),
    Sign("zero_gradients", 1, "the gradient of cross-entropy is zero at {:.1f} %"),
    Sign("rescaling_gain", 2, "cross-entropy of rescaled logits breaks {:.1f} % more"),
    Sign("missed_by_fgsm", 95, "FGSM misses {:.1f} % of what AutoAttack breaks"),
)
"""What is looked for. A single example is not a sign, whatever its share."""


def verdict(figures: Mapping[str, Any]) -> str:
    """Return one line: trustworthy, or which signs of masking were seen, with the limits."""
    least = 100 / figures["num_examples"]
    seen = [
        f"{sign.says.format(figures[sign.figure])} (limit {sign.limit:g} %)"
        for sign in SIGNS
        if figures[sign.figure] > max(sign.limit, least * (1 + 1e-9))
    ]
    return f"masking: {'; '.join(seen)}" if seen else "trustworthy: no sign of masking seen"


def examine(
    logits_fn: Logits,
    x: jax.Array,
    y: jax.Array,
    ball: LpBall,
    key: jax.Array,
    *,
    result: AttackResult,
    names: Sequence[str],
    met: ArrayLike | None = None,
) -> dict[str, Any]:
    """Look for signs of gradient masking behind a result of AutoAttack.

    Args:
        logits_fn: one example to its logits, as for `auto_attack`.
        x: the examples.
        y: their labels.
        ball: that of the result.
        key: source of randomness.
        result: of AutoAttack on these examples.
        names: of the attacks that it ran.
        met: which examples these attacks were run on, ``(N,)`` boolean, if others had been broken
            in a smaller ball before; all if None.

    Returns:
        The figures that `SIGNS` names, in percent of all examples, except ``missed_by_fgsm``, which
        is of those that AutoAttack broke (0 if these are few); ``fgsm``, the accuracy under it;
        ``by_epsilon``, accuracies in growing balls; means over the correctly classified examples:
        ``margin``, of the logits, ``gradient_norm`` and ``hessian_norm`` of cross-entropy (from
        below, by five Lanczos products); ``num_examples``.

    Cost: about a quarter of AutoAttack.
    """
    broken_by = np.asarray(result.broken_by)
    met = np.ones(len(x), bool) if met is None else np.asarray(met)
    right = broken_by != MISCLASSIFIED
    given = batches.problem(logits_fn, ball, x.dtype)
    looks = of_each(_look, None, given, (x, y), _BATCH)
    spared = of_each(_fgsm, None, given, (x, y), _BATCH)["right"]

    def robust(attacks: tuple[Attack, ...], function: Logits = logits_fn) -> np.ndarray:
        return np.asarray(auto_attack(function, x, y, ball, key, attacks=attacks).robust)

    means = {
        name: float(np.mean(looks[name][right])) if right.any() else 0.0
        for name in ("margin", "gradient_norm", "hessian_norm")
    }
    # Only downwards: saturated logits hide something, flat ones do not.
    scale = min(1, _MARGIN / max(means["margin"], 1e-30))
    rescaled = jax.tree_util.Partial(_scaled, given.logits_fn, jnp.asarray(scale, x.dtype))
    more = auto_attack(
        logits_fn, x, y, ball, jax.random.fold_in(key, 1), attacks=_MORE, resume=result
    )
    by_epsilon = _growing(logits_fn, x, y, ball, key, result=result)
    broken = broken_by >= 0
    # And of more than one: a single example is not a sign.
    enough = _percent(broken) >= _BROKEN and np.sum(broken) > 1
    square = names.index("square") if "square" in names else None
    return {
        "num_examples": len(x),
        "square_gain": 0.0 if square is None else _percent(met & (broken_by == square)),
        "more_steps_gain": _percent(result.robust) - _percent(more.robust),
        "unbounded": list(by_epsilon.values())[-1],
        "zero_gradients": _percent(right & looks["zero_gradient"]),
        "rescaling_gain": _percent(robust(_ONE)) - _percent(robust(_ONE, rescaled)),
        "missed_by_fgsm": _percent(spared[broken]) if enough else 0.0,
        "fgsm": _percent(spared),
        "by_epsilon": by_epsilon,
        **means,
    }


def _percent(found: ArrayLike) -> float:
    # By NumPy, in double precision: in float32, one of 500 would be more than 0.2 %.
    return 100 * float(np.mean(np.asarray(found)))


def _growing(
    logits_fn: Logits,
    x: jax.Array,
    y: jax.Array,
    ball: LpBall,
    key: jax.Array,
    *,
    result: AttackResult,
) -> dict[str, float]:
    """Return the accuracy in balls of 2, 4, 8 … times the radius, up to one that holds the box."""
    low, high = ball.bounds
    largest = (high - low) * (math.sqrt(x[0].size) if ball.order == 2 else 1)
    accuracies, radius = {f"{ball.epsilon:g}": _percent(result.robust)}, ball.epsilon
    while radius < largest and np.any(result.robust):
        radius = min(2 * radius, largest)
        result = auto_attack(
            logits_fn, x, y, LpBall(radius, ball.order, ball.bounds), key,
            attacks=_BOTH, resume=result,
        )  # fmt: skip
        accuracies[f"{radius:g}"] = _percent(result.robust)
    return accuracies


def _scaled(logits_fn: Logits, scale: jax.Array, x: jax.Array) -> jax.Array:
    return scale * logits_fn(x)


def _look(_: None, given: batches.Problem, x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    """Return margin, gradient norm and curvature of one example."""

    def f(point: jax.Array) -> jax.Array:
        return cross_entropy(given.logits_fn(point), y)

    gradient = jax.grad(f)(x)
    return {
        "margin": margin(given.logits_fn(x), y),
        "zero_gradient": ~jnp.any(gradient),
        "gradient_norm": jnp.linalg.norm(gradient.ravel()),
        "hessian_norm": _CURVATURE(f, x),
    }


def _fgsm(_: None, given: batches.Problem, x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    """Return whether the prediction is still right after a step of FGSM."""
    return {"right": ~misclassified(given.logits_fn(fgsm(given.logits_fn, x, y, given.ball)), y)}
