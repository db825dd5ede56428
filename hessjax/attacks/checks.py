"""What AutoAttack refuses to work on, and what makes its result doubtful."""

from collections.abc import Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from hessjax.attacks.attack import Attack
from hessjax.attacks.balls import LpBall, check_array, check_center, contains, distance

# The thresholds of the reference implementation.
_PROBABILITY = 1e-5
_RANDOM = 1e-4
_SQUARE_SHARE = 0.002


def check_outside(*given: object) -> None:
    """Raise inside `jax.jit` or `jax.vmap`, where arrays are traced."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(given)):
        raise TypeError(
            "auto_attack loops in Python and reads results: call it outside of jax.jit and jax.vmap"
        )


def check_attacks(attacks: Iterable[Attack]) -> tuple[Attack, ...]:
    """Return the attacks, or raise if there are none, or one is not an `Attack`."""
    told = "attacks must be a tuple such as (square_attack(),)"
    # A single attack is a tuple, too, and a name is iterable.
    if isinstance(attacks, (Attack, str)) or not isinstance(attacks, Iterable):
        raise TypeError(f"{told}, got {attacks!r}")
    # A generator can be read only once.
    attacks = tuple(attacks)
    if not attacks:
        raise ValueError("attacks must hold at least one attack, got none")
    if not all(isinstance(attack, Attack) for attack in attacks):
        raise TypeError(f"{told}, got {attacks!r}")
    return attacks


def check_examples(x: ArrayLike, y: ArrayLike, ball: LpBall) -> tuple[jax.Array, jax.Array]:
    """Return inputs and labels as arrays, or raise unless they are examples in the box."""
    labels = jnp.asarray(y)
    check_array(x)
    shape = np.shape(x)
    if len(shape) < 2 or labels.shape != shape[:1]:
        raise ValueError(
            f"x and y must be a batch, of shapes (N, ...) and (N,), got {shape} and {labels.shape}"
        )
    if not shape[0]:
        raise ValueError("the batch is empty: it needs at least one example")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"y must hold whole numbers, the classes, got dtype {labels.dtype}")
    return check_center(ball, x), labels


def check_classes(logits: np.ndarray, y: np.ndarray) -> None:
    """Raise if a label is not a class of the logits, ``(N, C)``, or these are probabilities."""
    num_classes = logits.shape[1]
    if np.min(y) < 0 or np.max(y) >= num_classes:
        raise ValueError(
            f"y must hold classes from 0 to {num_classes - 1}, as there are {num_classes} logits, "
            f"got labels from {np.min(y)} to {np.max(y)}"
        )
    wide = logits.astype(np.float64)
    # In half precision, probabilities are rounded, and so was the sum that they were divided by.
    floats = jnp.issubdtype(logits.dtype, jnp.floating)
    near = max(_PROBABILITY, 4 * float(jnp.finfo(logits.dtype).eps)) if floats else _PROBABILITY
    one = np.abs(wide.sum(axis=1) - 1) < near
    if np.all(one & (wide > -near).all(axis=1)):
        raise ValueError(
            "logits_fn must return logits, got outputs that are nonnegative and sum to 1 for every "
            "example, so they are probabilities: leave out the softmax, which hides gradients "
            "from attacks"
        )


def class_warnings(attacks: Sequence[Attack], num_classes: int) -> list[str]:
    """Return warnings about attacks that do not fit the number of classes."""
    told = []
    for attack in attacks:
        if num_classes < attack.min_classes:
            told.append(
                f"{attack.name}: its loss needs {attack.min_classes} classes and there are "
                f"{num_classes}, so another loss takes its place"
            )
        if num_classes - 1 < attack.num_targets:
            told.append(
                f"{attack.name}: {attack.num_targets} targets are asked for but there are only "
                f"{num_classes - 1} wrong classes, each of which is a target once"
            )
    return told


def randomness_warnings(first: np.ndarray, second: np.ndarray) -> list[str]:
    """Return a warning if the model's outputs differ from call to call."""
    # Entries that are not finite have no direction; a masked class has minus infinity.
    finite = [np.where(np.isfinite(z), z, 0).astype(np.float64) for z in (first, second)]
    units = [z / (np.linalg.norm(z, axis=1, keepdims=True) + 1e-10) for z in finite]
    if np.max(np.linalg.norm(units[0] - units[1], axis=1), initial=0) > _RANDOM:
        return ["the logits differ from call to call: attacks on a randomized model mean little"]
    return []


def gradient_warnings(slopes: np.ndarray) -> list[str]:
    """Return a warning if gradients vanish."""
    if not (vanishing := int(np.sum(slopes == 0))):
        return []
    told = (
        f"the gradient of the DLR loss is zero at {vanishing} of {len(slopes)} correctly "
        "classified examples: gradient-based attacks are blind there"
    )
    return [told]


def nan_warnings(clean: np.ndarray, attacked: np.ndarray, broken_by: np.ndarray) -> list[str]:
    """Return warnings about NaN logits."""
    counts = {
        "": int(np.isnan(clean).any(axis=1).sum()),
        "under attack ": int(np.isnan(attacked[broken_by >= 0]).any(axis=1).sum()),
    }
    return [
        f"the logits of {count} of {len(clean)} examples are {when}NaN: these count as broken"
        for when, count in counts.items()
        if count
    ]


def check_points(points: jax.Array, x: jax.Array, ball: LpBall) -> None:
    """Raise unless all points of an earlier call lie in the ball around their example, and the box.

    Whether they are misclassified is not checked: what is marked as broken is not attacked.
    """
    outside = ~np.asarray(jax.vmap(partial(contains, ball))(x, points))
    if not np.any(outside):
        return
    first = int(np.argmax(outside))
    low, high = ball.bounds
    raise ValueError(
        "resume must be for the same examples, in the same ball and box or smaller ones, got a "
        f"point at distance {float(distance(ball, points[first] - x[first])):g} for a radius of "
        f"{float(ball.epsilon):g}, with entries from {float(jnp.min(points[first])):g} to "
        f"{float(jnp.max(points[first])):g} for the box [{low:g}, {high:g}]"
    )


def square_warnings(attacks: Sequence[Attack], broken_by: np.ndarray, count: int) -> list[str]:
    """Return a warning if an attack that needs no gradients broke what those before it missed.

    ``broken_by`` covers the examples that these attacks were run on, of ``count`` in all.
    """
    places = [place for place, attack in enumerate(attacks) if not attack.differentiates]
    if not places or not any(attack.differentiates for attack in attacks[: places[0]]):
        return []
    share = float(np.sum(broken_by == places[0])) / count
    if share <= _SQUARE_SHARE:
        return []
    name = attacks[places[0]].name
    told = (
        f"{name} broke {100 * share:.2f} % of the examples, after the gradient-based attacks "
        f"before it had failed; above {100 * _SQUARE_SHARE:g} % this is a sign of masked gradients"
    )
    return [told]
