"""Losses that attacks maximize besides cross-entropy, the margin, and misclassification.

Cross-entropy itself is ``optax.losses.softmax_cross_entropy_with_integer_labels``.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hessjax._numerics import widen


def margin(logits: ArrayLike, y: ArrayLike) -> jax.Array:
    r"""Return how much the logit of the label exceeds that of the best other class.

    .. math:: m(z, y) = z_y - \max_{j \ne y} z_j

    An attack that maximizes its loss needs the negative, ``lambda z, y: -margin(z, y)``.

    Args:
        logits: ``(C,)``, C at least 2.
        y: the label, a whole number from 0 to C - 1.

    Returns:
        The margin, a scalar in units of the logits: positive if y is predicted, negative if another
        class is, zero on the decision boundary, NaN for a label that is not a class.

    Raises:
        ValueError: if the logits are not a vector of two classes or more, or y is not one label.
        TypeError: if the label is not a whole number.

    >>> float(margin(jnp.array([1.0, 4.0, 2.0]), 1))
    2.0
    """
    logits, y = _check(logits, y, min_classes=2)
    others = jnp.where(jnp.arange(logits.size, dtype=y.dtype) == y, -jnp.inf, logits)
    return jnp.take(logits, y, mode="fill") - jnp.max(others)


def dlr_loss(logits: ArrayLike, y: ArrayLike) -> jax.Array:
    r"""Return the difference of logits ratio, a loss that rescaling the logits cannot fool.

    .. math:: -\frac{z_y - \max_{j \ne y} z_j}{z_{(1)} - z_{(3)} + 10^{-12}}

    where :math:`z_{(i)}` is the i-th largest logit; the -inf of a masked class is replaced by the
    least other logit. The loss does not change under ``z -> a z + b`` with a > 0, so its gradient,
    unlike that of cross-entropy, does not vanish when the logits are scaled up.

    Args:
        logits: ``(C,)``, C at least 3.
        y: the label, a whole number from 0 to C - 1.

    Returns:
        The loss, a dimensionless scalar: from -1 to 0 if y is predicted, positive if another class
        is.

    Raises:
        ValueError: if the logits are not a vector of three classes or more, or y is not one label.
        TypeError: if the label is not a whole number.

    Source: Croce, Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks, 2020.

    >>> print(f"{dlr_loss(jnp.array([0.0, 4.0, 2.0]), 2):.3f}")
    0.500
    """
    logits, y = _check(logits, y, min_classes=3)
    # float16 would round the constant to zero.
    wide = widen(logits)
    largest = _largest(wide, 3)
    return (-margin(wide, y) / (largest[0] - largest[2] + 1e-12)).astype(logits.dtype)


def targeted_dlr_loss(logits: ArrayLike, y: ArrayLike, target: ArrayLike) -> jax.Array:
    r"""Return the difference of logits ratio toward one wrong class.

    .. math:: -\frac{z_y - z_t}{z_{(1)} - (z_{(3)} + z_{(4)}) / 2 + 10^{-12}}

    where :math:`z_{(i)}` is the i-th largest logit, as in `dlr_loss`. Like that loss, this one
    does not change under ``z -> a z + b`` with a > 0.

    Args:
        logits: ``(C,)``, C at least 4.
        y: the label, a whole number from 0 to C - 1.
        target: the class to reach, a whole number from 0 to C - 1.

    Returns:
        The loss, a dimensionless scalar: positive if the logit of the target exceeds that of y, NaN
        if one of the two is not a class.

    Raises:
        ValueError: if the logits are not a vector of four classes or more, or y or the target is
            not one label.
        TypeError: if y or the target is not a whole number.

    Source: Croce, Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks, 2020.

    >>> print(f"{targeted_dlr_loss(jnp.array([0.0, 4.0, 2.0, 1.0]), 2, 1):.3f}")
    0.571
    """
    _, target = _check(logits, target, min_classes=4, name="the target")
    logits, y = _check(logits, y, min_classes=4)
    wide = widen(logits)
    largest = _largest(wide, 4)
    scale = largest[0] - (largest[2] + largest[3]) / 2 + 1e-12
    difference = jnp.take(wide, y, mode="fill") - jnp.take(wide, target, mode="fill")
    return (-difference / scale).astype(logits.dtype)


def _largest(logits: jax.Array, count: int) -> jax.Array:
    """Return the largest logits; -inf, which would make the ratio 0, becomes the least other."""
    largest = jax.lax.top_k(logits, count)[0]
    least = jnp.min(jnp.where(logits == -jnp.inf, jnp.inf, logits))
    return jnp.where(largest == -jnp.inf, least, largest)


def misclassified(logits: ArrayLike, y: ArrayLike) -> jax.Array:
    r"""Return whether the prediction differs from the label.

    .. math:: \arg\max_j z_j \ne y

    Args:
        logits: ``(C,)``, C at least 2.
        y: the label, a whole number from 0 to C - 1.

    Returns:
        A boolean scalar. Among equal largest logits the first is the prediction, as in
        ``jnp.argmax``, so that this agrees with accuracies computed that way. Logits with a NaN
        count as misclassified, so that robustness is never overstated.

    Raises:
        ValueError: if the logits are not a vector of two classes or more, or y is not one label.
        TypeError: if the label is not a whole number.

    >>> bool(misclassified(jnp.array([1.0, 4.0, 2.0]), 1))
    False
    """
    logits, y = _check(logits, y, min_classes=2)
    return (jnp.argmax(logits).astype(y.dtype) != y) | jnp.any(jnp.isnan(logits))


def _check(
    logits: ArrayLike, y: ArrayLike, *, min_classes: int, name: str = "y"
) -> tuple[jax.Array, jax.Array]:
    """Return both as arrays, or raise; the label's value may be traced and is not checked."""
    logits, y = jnp.asarray(logits), jnp.asarray(y)
    if logits.ndim != 1 or y.ndim != 0:
        raise ValueError(
            f"one example has logits of shape (C,) and one label, got shapes {logits.shape} and "
            f"{y.shape}; batch with jax.vmap around the call"
        )
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise TypeError(f"{name} must be a whole number, got dtype {y.dtype}")
    if logits.size < min_classes:
        raise ValueError(f"this needs at least {min_classes} classes, got {logits.size} logits")
    # The losses are fractions even if the logits are whole numbers.
    logits = logits.astype(jnp.result_type(float, logits))
    # The number of classes might not fit in eight bits.
    y = y if y.dtype.itemsize >= 4 else y.astype(jnp.int32)
    # A negative label would count from the end.
    return logits, jnp.where(y < 0, logits.size, y)
