"""Checks that traced code cannot make: of how a model is called, and of data on the host."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hessjax._batching import Apply, unpack
from hessjax._numerics import PyTree, check_bounds, inside

# Number of examples that a model is tried on.
_TRIED = 3
# How far summation order may move logits, relative to the largest, even in TF32 and bfloat16.
_TOLERANCE = 3e-2


def check_apply(apply: Apply, params: PyTree, x: PyTree, *, batched: Apply | None = None) -> None:
    """Raise unless a model is a function of one example, and say what is wrong.

    The Hessian of one example is meaningless if other examples change its loss (batch normalization
    in training mode), and so are Hessian-vector products if each sees a different loss (dropout
    without a fixed key). Batch normalization of a single example is noticed if it leaves nothing of
    the input; if it is over the pixels of an image, only by comparison with ``batched``.

    Args:
        apply: ``apply(params, x) -> logits`` of one example, as `second_order` takes it.
        params: the model's parameters.
        x: at least two different examples, with a leading axis.
        batched: the model as it is called for a whole batch, ``(params, x) -> (B, C)``; if given,
            it is compared with ``apply``.

    Raises:
        TypeError: if ``apply`` does not return an array of floats.
        ValueError: if its logits are not a vector, are NaN, differ from call to call, do not depend
            on the input, or are not those of ``batched``. The last two are checked with slightly
            perturbed parameters.

    Cost: three compiled forward passes of at most three examples, and one of ``batched``.

    >>> check_apply(lambda params, x: params @ x, jnp.eye(2, 3), jnp.eye(3))
    """
    x = jax.tree.map(lambda leaf: jnp.asarray(leaf)[:_TRIED], x)
    size = min((len(leaf) for leaf in jax.tree.leaves(x)), default=0)
    if size < 2:
        raise ValueError(f"checking a model needs at least two examples, got {size}")
    _check_logits(jax.eval_shape(partial(apply, params), jax.tree.map(lambda a: a[0], x)))
    first, second = _logits(apply, params, x), _logits(apply, params, x)
    if np.any(np.isnan(first)):
        raise ValueError("the logits are NaN: are the parameters or inputs NaN?")
    if not np.array_equal(first, second):
        raise ValueError(
            "apply(params, x) returned two different results for one input, by up to "
            f"{np.max(np.abs(first - second)):.2g}: dropout without a fixed key?"
        )
    # A last layer initialized at or near zero hides everything before it.
    params = _shaken(params)
    shaken = _logits(apply, params, x)
    if np.all(shaken == shaken[0]):
        raise ValueError(
            "the logits are the same for different inputs: batch normalization in training mode, "
            "on a batch of one? Use evaluation mode"
        )
    if batched is not None:
        together = np.asarray(jax.jit(batched)(params, x), shaken.dtype)
        if together.shape != shaken.shape:
            raise ValueError(
                f"batched(params, x) must have shape {shaken.shape} for {size} examples, "
                f"got {together.shape}"
            )
        # A masked class has a logit of minus infinity.
        finite = np.isfinite(shaken)
        difference = np.max(np.abs(together[finite] - shaken[finite]), initial=0)
        if not difference <= _TOLERANCE * np.max(np.abs(shaken[finite]), initial=0):
            raise ValueError(
                f"the logits of an example change with its batch, by up to {difference:.2g}: batch "
                "normalization in training mode (use evaluation mode), or a layer that takes the "
                "first axis for the batch, such as group normalization: apply x[None], take [0]?"
            )


def _check_logits(outputs: PyTree) -> None:
    if not isinstance(outputs, jax.ShapeDtypeStruct):
        raise TypeError(
            f"apply(params, x) must return the logits alone, got a {type(outputs).__name__}: "
            "does the model return its state, too?"
        )
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise TypeError(f"apply(params, x) must return floats, got {outputs.dtype}")
    if len(outputs.shape) != 1:
        remedy = "index the batch axis away" if outputs.shape else "this check is for classifiers"
        raise ValueError(
            "apply(params, x) must return the logits of one example, of shape (classes,), got "
            f"{outputs.shape}: {remedy}"
        )


def _logits(apply: Apply, params: PyTree, x: PyTree) -> np.ndarray:
    """Trace, compile and evaluate anew: what is not pure differs from one time to the next."""
    return np.asarray(jax.jit(jax.vmap(partial(apply, params)))(x), float)


def _shaken(params: PyTree) -> PyTree:
    """Perturb the parameters slightly and independently."""
    leaves, structure = jax.tree.flatten(params)

    def shake(leaf: ArrayLike, key: jax.Array) -> ArrayLike:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            return leaf
        # A unit adds up many weights, which together are to move it only a little.
        shape = jnp.shape(leaf)
        size = 0.01 * min(1, 10 / max(shape)) if len(shape) > 1 and 0 not in shape else 0.01
        # Upward, because some may be variances.
        return leaf + size * jnp.abs(jax.random.normal(key, shape, dtype))

    keys = jax.random.split(jax.random.key(0), len(leaves))
    return jax.tree.unflatten(structure, map(shake, leaves, keys))


def check_batch(batch: tuple, *, num_classes: int, bounds: tuple[float, float] = (0, 1)) -> None:
    """Raise unless a batch on the host suits a classifier; traced code cannot check this.

    Args:
        batch: ``(x, y)`` or ``(x, y, mask)`` with a leading axis; examples that a mask leaves out
            may hold anything.
        num_classes: labels are whole numbers from 0 to this, exclusive.
        bounds: the smallest and largest value that a pixel may have.

    Raises:
        ValueError: if the batch is empty or ragged, labels are not a vector, a label is not a
            class, a pixel is NaN or out of bounds, or the bounds are not two numbers, the lower
            one first.
        TypeError: if labels are not whole numbers.

    >>> check_batch((np.zeros((2, 3)), np.array([0, 1])), num_classes=2)
    """
    x, y, mask, size = unpack(batch)
    counts = np.ones(size, bool) if mask is None else np.asarray(mask)
    labels = np.asarray(y)[counts]
    if labels.ndim != 1:
        raise ValueError(
            f"labels must have shape ({size},), one class each and not one-hot, got {np.shape(y)}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels must be whole numbers, got dtype {labels.dtype}")
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if wrong.size:
        raise ValueError(f"labels must be from 0 to {num_classes - 1}, got {wrong.flat[0]}")
    low, high = check_bounds(bounds)
    for leaf in jax.tree.leaves(x):
        pixels = np.asarray(leaf)[counts]
        wrong = pixels[~inside(pixels, (low, high))]
        if wrong.size:
            raise ValueError(f"inputs must be in [{low:g}, {high:g}], got {wrong.flat[0]}")
