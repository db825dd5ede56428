"""How single examples become a batch: the only module that batches, masks, splits and sums."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from hessjax._numerics import (
    DIRECTION,
    PyTree,
    as_number,
    check_count,
    check_functions,
    check_key,
    check_number,
    check_scalar,
    widen,
)
from hessjax._placement import filled, spread
from hessjax.lazy import Lazy, Metrics, Objective
from hessjax.operators import Composite

Apply = Callable[[PyTree, PyTree], jax.Array]
Loss = Callable[[jax.Array, Any], jax.Array]
Weight = float | jax.Array | Callable[[Any], Any]
_Mask = jax.Array | None
Terms = Callable[[Composite, PyTree, jax.Array], Metrics]
# Maps ``(params, (x, y, keys), mask, key, step)`` to the means over a batch.
_Means = Callable[..., Metrics]

# Directions are saved, not recomputed, in a chunk's backward pass: locating them costs most.
_keep_directions = jax.checkpoint_policies.save_only_these_names(DIRECTION)

# Folded into the key that draws the parts: no example has this index, and so none has this key.
_NO_PLACE = np.uint32(2**32 - 1)


def check_weight(name: str, weight: Weight) -> None:
    """Raise unless a weight is a schedule or a nonnegative number."""
    if not callable(weight):
        check_number(name, weight, positive=False)


def is_zero(weight: Weight) -> bool:
    """Return whether a term can be left out; one with a scheduled or traced weight cannot."""
    return not callable(weight) and not isinstance(weight, Tracer) and float(weight) == 0


def _check_batch_shapes(x: PyTree, *others: PyTree) -> int:
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves((x, others))}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            "x, y and mask of a batch must share one leading axis, "
            f"got leading sizes {', '.join(sorted(str(*size) or 'none' for size in sizes))}"
        )
    ((size,),) = sizes
    if size == 0:
        raise ValueError("the batch is empty: it needs at least one example")
    return size


def unpack(batch: tuple) -> tuple[PyTree, PyTree, _Mask, int]:
    """Return the inputs, the labels, the mask or None, and the number of examples."""
    if not isinstance(batch, Sequence):
        raise TypeError(f"a batch is (x, y) or (x, y, mask), got a {type(batch).__name__}")
    if len(batch) not in {2, 3}:
        raise ValueError(f"a batch is (x, y) or (x, y, mask), got {len(batch)} entries")
    x, y, mask = (*batch, None)[:3]
    size = _check_batch_shapes(x, y, mask)
    return x, y, None if mask is None else _as_mask(mask, size), size


def _as_mask(mask: jax.Array, size: int) -> jax.Array:
    # NumPy, as in `as_number`; a traced mask cannot be inspected and passes.
    if not isinstance(mask, Tracer) and not np.all(np.isin(entries := np.asarray(mask), (0, 1))):
        raise ValueError(f"mask must hold booleans, or 0 and 1, not weights, got {entries}")
    mask = jnp.asarray(mask, bool)
    if mask.shape != (size,):
        raise ValueError(f"mask must have shape ({size},), one entry per example, got {mask.shape}")
    return mask


def _nan_of_weights(total: jax.Array, mask: ArrayLike | None = None) -> jax.Array:
    """Return the total, or NaN (derivatives too) if a traced mask holds weights, not 0 and 1."""
    if not isinstance(mask, Tracer) or mask.dtype == bool:
        return total
    return total * jnp.where(jnp.all((mask == 0) | (mask == 1)), 1, jnp.nan).astype(total.dtype)


def _without_padding(batch: PyTree, mask: jax.Array) -> PyTree:
    """Replace each masked-out example by the first that counts, or by zeros if none counts.

    Padding may be NaN, and a NaN loss has a NaN derivative even where ``where`` discards the loss.
    If no example counts, this still happens to a model that is NaN at zeros.
    """
    places = jnp.arange(len(mask))
    # Sums, to which each device adds its part: indexing would gather the batch on all of them.
    first = places == jnp.min(jnp.where(mask, places, len(mask)))

    def replace(leaf: ArrayLike) -> jax.Array:
        leaf = jnp.asarray(leaf)
        # Random keys that belong to an example cannot be summed, and are never NaN.
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf

        def rows(chosen: jax.Array) -> jax.Array:
            return chosen.reshape(chosen.shape + (1,) * (jnp.ndim(leaf) - 1))

        stand_in = jnp.sum(jnp.where(rows(first), leaf, 0), axis=0, dtype=leaf.dtype)
        return jnp.where(rows(mask), leaf, stand_in)

    return jax.tree.map(replace, batch)


def _check_outputs(f: Composite, x: PyTree) -> None:
    """Raise unless the loss maps the model's outputs to a scalar; name the shape of the outputs."""
    outputs = jax.eval_shape(f.model, x)
    try:
        check_scalar(f.loss, outputs)
    except (TypeError, ValueError) as error:
        shapes = jax.tree.map(lambda leaf: leaf.shape, outputs)
        error.add_note(f"apply(params, x) returned outputs of shape {shapes} for one example")
        raise


def batched(
    apply: Apply,
    loss: Loss,
    terms: Terms,
    weights: Mapping[str, Weight],
    *,
    every: int,
    parts: int,
    chunk_size: int | None,
) -> Objective:
    """Average per-example terms over a batch and sum them with their weights.

    Args:
        apply: ``apply(params, x) -> logits`` for one example.
        loss: ``loss(logits, y) -> scalar`` for one example.
        terms: ``(f, x, key) -> {"loss": ..., name: ...}``, unweighted, for one example.
        weights: the weight of each term other than the loss.
        every: evaluate the loss alone on steps that are not a multiple of this.
        parts: evaluate the other terms on one of this many random parts, scaled by this number.
        chunk_size: number of examples evaluated at a time; None for all at once.
    """
    check_functions(apply=apply, loss=loss)
    every, parts = check_count("every", every), check_count("parts", parts)
    if chunk_size is not None:
        chunk_size = check_count("chunk_size", chunk_size)
    evaluate = partial(_evaluate, apply, loss, chunk_size)
    plain = _mean_objective(_means(evaluate, _loss_alone), {})
    if not weights:
        return plain
    whole = parts == 1
    means = _means(evaluate, terms) if whole else _means_by_parts(evaluate, terms, parts, every)
    heavier = {name: _multiplied(weight, every) for name, weight in weights.items()}
    penalized = _mean_objective(means, heavier)
    return penalized if every == 1 else Lazy(penalized, plain, every)


def _multiplied(weight: Weight, factor: int) -> Weight:
    if callable(weight):
        return weight if factor == 1 else lambda step: factor * weight(step)
    # A small integer would wrap around.
    return factor * (weight if (number := as_number(weight)) is None else number)


def _loss_alone(f: Composite, x: PyTree, key: jax.Array) -> Metrics:
    del key
    return {"loss": f(x)}


def _evaluate(
    apply: Apply,
    loss: Loss,
    chunk_size: int | None,
    terms: Terms,
    params: PyTree,
    *examples: PyTree,
) -> Metrics:
    """Return the terms of each example, given its x, y and key."""

    def example(params: PyTree, xyk: tuple[PyTree, PyTree, jax.Array]) -> Metrics:
        x, y, key = xyk
        f = Composite(partial(apply, params), lambda logits: loss(logits, y))
        _check_outputs(f, x)
        values = terms(f, x, key)
        for name, value in values.items():
            if jnp.shape(value) != ():
                raise ValueError(
                    f"the penalty {name!r} must return one number for one example, "
                    f"got shape {jnp.shape(value)}"
                )
            if not jnp.issubdtype(dtype := jnp.result_type(value), jnp.floating):
                raise TypeError(
                    f"the penalty {name!r} must return a floating-point number, got dtype {dtype}"
                )
        return values

    if chunk_size is None:
        return jax.vmap(example, (None, 0))(params, examples)
    # Inside the map's loop XLA cannot merge the recomputation with the first evaluation.
    one = jax.checkpoint(partial(example, params), policy=_keep_directions, prevent_cse=False)
    return jax.lax.map(one, examples, batch_size=min(chunk_size, len(examples[2])))


def _mean_objective(means: _Means, weights: Mapping[str, Weight]) -> Objective:
    def objective(
        params: PyTree, batch: tuple, key: jax.Array, step: int | jax.Array = 0
    ) -> tuple[jax.Array, Metrics]:
        check_key(key)
        x, y, mask, size = unpack(batch)
        if mask is not None:
            x, y = _without_padding((x, y), mask)
        keys = spread(jax.vmap(jax.random.fold_in, (None, 0)), key, jnp.arange(size))
        metrics = means(params, (x, y, keys), mask, key, step)
        total = metrics["loss"]
        for name, weight in weights.items():
            number = weight(step) if callable(weight) else weight
            check_number(f"the weight of {name!r} at this step", number, positive=False)
            total = total + jnp.asarray(number, total.dtype) * metrics[name]
        return _nan_of_weights(total, *batch[2:]), metrics

    return objective


def _means(evaluate: Callable[..., Metrics], terms: Terms) -> _Means:
    def means(params: PyTree, examples: tuple, mask: _Mask, *_: jax.Array | int) -> Metrics:
        values = spread(partial(evaluate, terms), params, *examples)
        return {name: _mean(value, mask) for name, value in values.items()}

    return means


def _means_by_parts(
    evaluate: Callable[..., Metrics], terms: Terms, parts: int, every: int
) -> _Means:
    """Average the loss over all examples, the other terms over one of every ``parts`` in a row.

    The draw depends on the key and the block's index, not on devices, padding or the batch size.
    """

    def turned(key: jax.Array, turn: jax.Array, number: jax.Array, block: PyTree) -> PyTree:
        """Rotate a block so that the example whose turn it is comes first; who begins is random.

        With the same key, turns 0 to ``parts - 1`` put each example first exactly once.
        """
        first = jax.random.randint(jax.random.fold_in(key, number), (), 0, parts) + turn
        order = (first + jnp.arange(parts)) % parts
        return jax.tree.map(lambda leaf: leaf[order], block)

    def of_blocks(
        shared: tuple[PyTree, jax.Array, jax.Array], numbers: jax.Array, blocks: tuple
    ) -> tuple[Metrics, _Mask]:
        params, key, turn = shared
        *examples, mask = jax.vmap(turned, (None, None, 0, 0))(key, turn, numbers, blocks)
        values = evaluate(terms, params, *jax.tree.map(lambda leaf: leaf[:, 0], examples))
        count = len(numbers) * (parts - 1)  # not -1, which leaves without entries do not determine
        others = jax.tree.map(lambda leaf: leaf[:, 1:].reshape(count, *leaf.shape[2:]), examples)
        rest = evaluate(_loss_alone, params, *others)["loss"].reshape(-1, parts - 1)
        losses = jnp.concatenate([values.pop("loss")[:, None], rest], axis=1)
        # Examples that are left out contribute zero to the mean over all.
        left_out = ((0, 0), (0, parts - 1))
        heavier = {name: jnp.pad(parts * v[:, None], left_out) for name, v in values.items()}
        return {"loss": losses, **heavier}, mask

    def means(
        params: PyTree, examples: tuple, mask: _Mask, key: jax.Array, step: int | jax.Array
    ) -> Metrics:
        size = len(examples[2])
        if missing := -size % parts:
            # The copies that fill up the last block do not count.
            mask = jnp.ones(size, bool) if mask is None else mask
            mask = jnp.append(mask, jnp.zeros(missing, bool))
        numbers = jnp.arange((size + missing) // parts)
        blocks = jax.tree.map(
            lambda leaf: jnp.reshape(leaf, (len(numbers), parts, *leaf.shape[1:])),
            (*filled(examples, parts), mask),
        )
        # Only steps with penalties advance the turn.
        shared = params, jax.random.fold_in(key, _NO_PLACE), jnp.asarray(step // every)
        values, mask = spread(of_blocks, shared, numbers, blocks)
        return {name: _mean(value, mask) for name, value in values.items()}

    return means


def _mean(value: jax.Array, mask: _Mask) -> jax.Array:
    value = widen(value)
    if mask is None:
        return jnp.mean(value)
    total = jnp.sum(jnp.where(mask, value, 0))
    return total / jnp.maximum(jnp.sum(mask), 1).astype(total.dtype)
