"""Regularized losses of a batch: the only place that batches, masks and sums."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from hessjax._numerics import PyTree, check_number, check_scalar, normalize, widen
from hessjax.eigen import ONE_PRODUCT, Solver, Start, gradient_start, power_iteration
from hessjax.operators import (
    Composite,
    directional_derivative,
    gradient_and_hessian_operator,
    second_directional_derivative,
)

Apply = Callable[[PyTree, PyTree], jax.Array]
Loss = Callable[[jax.Array, Any], jax.Array]
Weight = float | jax.Array | Callable[[Any], Any]
Penalty = Callable[..., jax.Array]
Metrics = dict[str, jax.Array]
Objective = Callable[..., tuple[jax.Array, Metrics]]
Terms = Callable[[Composite, PyTree, jax.Array], Metrics]


def _check_weight(name: str, weight: Weight) -> None:
    if not callable(weight):
        check_number(name, weight, positive=False)


def _is_zero(weight: Weight) -> bool:
    """Tell whether a term can be left out of the program; a schedule or a traced number can't."""
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


def _unpack(batch: tuple) -> tuple[PyTree, PyTree, jax.Array | None, int]:
    """Return inputs, labels, mask (None if there is none) and the number of examples."""
    if len(batch) not in {2, 3}:
        raise ValueError(f"a batch is (x, y) or (x, y, mask), got {len(batch)} entries")
    x, y, mask = (*batch, None)[:3]
    size = _check_batch_shapes(x, y, mask)
    return x, y, None if mask is None else _as_mask(mask, size), size


def _as_mask(mask: jax.Array, size: int) -> jax.Array:
    mask = jnp.asarray(mask, bool)
    if mask.shape != (size,):
        raise ValueError(f"mask must have shape ({size},), one entry each, got {mask.shape}")
    return mask


def _without_padding(batch: PyTree, mask: jax.Array) -> PyTree:
    """Put an example that counts in the place of each that does not, or zeros if none counts.

    Padding may be NaN. A loss of it that is selected away still has a NaN derivative.
    """
    stand_in, any_counts = jnp.argmax(mask), jnp.any(mask)

    def replace(leaf: jax.Array) -> jax.Array:
        counts = mask.reshape(mask.shape + (1,) * (jnp.ndim(leaf) - 1))
        row = jax.lax.dynamic_index_in_dim(leaf, stand_in)
        return jnp.where(counts, leaf, jnp.where(any_counts, row, 0))

    return jax.tree.map(replace, batch)


def _check_outputs(f: Composite, x: PyTree) -> None:
    """Raise unless the loss takes the model's outputs to a scalar; say what the outputs are."""
    outputs = jax.eval_shape(f.model, x)
    try:
        check_scalar(f.loss, outputs)
    except (TypeError, ValueError) as error:
        shapes = jax.tree.map(lambda leaf: leaf.shape, outputs)
        error.add_note(f"apply(params, x) returned outputs of shape {shapes} for one example")
        raise


def _batched(apply: Apply, loss: Loss, terms: Terms, weights: Mapping[str, Weight]) -> Objective:
    """Average ``terms`` of single examples over a batch and add them up with their weights."""

    def objective(
        params: PyTree, batch: tuple, key: jax.Array, step: int | jax.Array = 0
    ) -> tuple[jax.Array, Metrics]:
        x, y, mask, size = _unpack(batch)
        if mask is not None:
            x, y = _without_padding((x, y), mask)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(size))

        def example(x: PyTree, y: PyTree, key: jax.Array) -> Metrics:
            f = Composite(partial(apply, params), lambda logits: loss(logits, y))
            _check_outputs(f, x)
            return terms(f, x, key)

        values = jax.vmap(example)(x, y, keys)
        if mask is None:
            means = {name: jnp.mean(value) for name, value in values.items()}
        else:
            count = jnp.maximum(jnp.sum(mask), 1)
            # Summed in float32 at least, as `jnp.mean` does.
            sums = {name: jnp.sum(jnp.where(mask, widen(v), 0)) for name, v in values.items()}
            means = {name: (sums[name] / count).astype(v.dtype) for name, v in values.items()}
        total = means["loss"]
        for name, weight in weights.items():
            number = weight(step) if callable(weight) else weight
            total = total + jnp.asarray(number, total.dtype) * means[name]
        return total, means

    return objective


def regularized(
    apply: Apply, loss: Loss, penalties: Mapping[str, tuple[Weight, Penalty]]
) -> Objective:
    r"""Build the mean loss plus weighted penalties, each evaluated by itself.

    .. math:: \frac1B \sum_i \Big[ f_i(x_i) + \sum_k \lambda_k\, \text{penalty}_k(f_i, x_i) \Big]

    Args:
        apply: ``apply(params, x) -> logits`` for one example; evaluation mode, no batch axis.
        loss: ``loss(logits, y) -> scalar`` for one example.
        penalties: ``{name: (weight, penalty)}``. A weight is a nonnegative number or an optax
            schedule of the step; 0 leaves the penalty out. Bind a penalty's configuration with
            `functools.partial`.

    Returns:
        ``objective(params, batch, key, step=0) -> (value, metrics)``: the batch is ``(x, y)`` or
        ``(x, y, mask)`` with a leading axis; the value is a mean over (unmasked) examples; the
        metrics are the unweighted means of ``loss`` and of each penalty by its name. Each example's
        key is folded from its place in the batch.

    Raises:
        ValueError: if a weight is negative, a penalty is called ``loss``, or a batch is empty or
            ragged.
        TypeError: if an entry is no pair of a weight and a penalty.

    Cost: the sum of its penalties; `second_order` shares work where this does not.
    """
    if "loss" in penalties:
        raise ValueError("a penalty cannot be named 'loss': that is the metric of the loss itself")
    for name, entry in penalties.items():
        if not isinstance(entry, Sequence) or len(entry) != 2 or not callable(entry[1]):
            raise TypeError(f"penalties[{name!r}] must be (weight, penalty), got {entry!r}")
        _check_weight(f"the weight of {name!r}", entry[0])
    places = {name: i for i, name in enumerate(penalties)}
    active = {name: entry for name, entry in penalties.items() if not _is_zero(entry[0])}

    def terms(f: Composite, x: PyTree, key: jax.Array) -> Metrics:
        values = {"loss": f(x)}
        for name, (_, penalty) in active.items():
            values[name] = penalty(f, x, jax.random.fold_in(key, places[name]))
        return values

    return _batched(apply, loss, terms, {name: weight for name, (weight, _) in active.items()})


def _multiplies_start(solver: Solver, start: Start) -> bool:
    """Tell whether the direction found is the gradient's, so that its derivative is ``‖g‖``."""
    return (
        start is gradient_start
        and isinstance(solver, partial)
        and solver.func is power_iteration
        and solver.keywords == {"num_iters": 1}
    )


def second_order(
    apply: Apply,
    loss: Loss,
    gradient_weight: Weight,
    hessian_weight: Weight,
    *,
    solver: Solver = ONE_PRODUCT,
    start: Start = gradient_start,
) -> Objective:
    r"""Build the second-order surrogate of the worst loss in a ball, from one sweep.

    .. math:: \frac1B \sum_i \Big[ f_i(x_i) + \lambda_g \|\nabla f_i(x_i)\|_2
        + \lambda_h \|\nabla^2 f_i(x_i)\|_{op} \Big]

    For an ℓ₂ ball of radius ε, in input units, the weights are ``ε`` and ``ε**2 / 2``. It is a
    surrogate, not a bound: curvature is estimated from below and at the example only.

    Args:
        apply: ``apply(params, x) -> logits`` for one example; evaluation mode, no batch axis.
        loss: ``loss(logits, y) -> scalar`` for one example.
        gradient_weight: λ_g, a nonnegative number or an optax schedule of the step; 0 leaves the
            term out.
        hessian_weight: λ_h, likewise.
        solver: as in `hessian_operator_norm`. The default, one product from the gradient, is the
            cheapest; any other needs a third direction for ‖g‖.
        start: likewise.

    Returns:
        ``objective(params, batch, key, step=0) -> (value, metrics)`` as from `regularized`; the
        metrics are the unweighted means ``loss``, ``gradient_norm``, ``hessian_norm`` and
        ``residual`` (of the eigenpair), as far as their terms are in.

    Raises:
        ValueError: if a weight is negative, or a batch is empty or ragged.

    Cost: a whole optimizer step takes 3.7 (ReLU) to 4.9 (gelu) plain steps in operations; with a
    Hessian weight of 0, 2.3 to 2.4.

    >>> import optax
    >>> apply = lambda params, x: params @ x
    >>> cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
    >>> objective = second_order(apply, cross_entropy, 0.5, 0.125)
    >>> batch = (jnp.ones((4, 3)), jnp.zeros(4, int))
    >>> value, metrics = objective(jnp.eye(2, 3), batch, jax.random.key(0))
    >>> sorted(metrics)
    ['gradient_norm', 'hessian_norm', 'loss', 'residual']
    """
    _check_weight("gradient_weight", gradient_weight)
    _check_weight("hessian_weight", hessian_weight)
    weights: dict[str, Weight] = {"gradient_norm": gradient_weight, "hessian_norm": hessian_weight}
    weights = {name: weight for name, weight in weights.items() if not _is_zero(weight)}

    def gradient_terms(f: Composite, x: PyTree) -> Metrics:
        u = jax.lax.stop_gradient(normalize(jax.grad(f)(x))[0])
        value, slope = directional_derivative(f, x, u)
        return {"loss": value, "gradient_norm": slope}

    def terms(f: Composite, x: PyTree, key: jax.Array) -> Metrics:
        if not weights:
            return {"loss": f(x)}
        if "hessian_norm" not in weights:
            return gradient_terms(f, x)
        gradient, matvec = gradient_and_hessian_operator(f, x)
        pair = solver(matvec, start(gradient, key))
        unit, norm = normalize(gradient)
        located = (normalize(pair.image)[0], pair.vector, pair.residual, unit, norm)
        u, v, residual, unit, norm = jax.lax.stop_gradient(located)
        # The start's direction as the outer one: a trifle cheaper.
        value, along_v, _, curvature = second_directional_derivative(f, x, v, u)
        if "gradient_norm" not in weights:
            slope = norm
        elif _multiplies_start(solver, start):
            # Where the gradient vanishes v is random, and its slope no gradient norm.
            slope = jnp.where(norm == 0, 0, along_v)
        else:
            slope = directional_derivative(f, x, unit)[1]
        return {
            "loss": value, "gradient_norm": slope, "hessian_norm": curvature, "residual": residual
        }  # fmt: skip

    return _batched(apply, loss, terms, weights)


def check_batch(batch: tuple, *, num_classes: int, bounds: tuple[float, float] = (0, 1)) -> None:
    """Raise unless a batch on the host is what a classifier expects; traced code cannot.

    Args:
        batch: ``(x, y)`` or ``(x, y, mask)`` with a leading axis; what a mask leaves out may be
            anything.
        num_classes: labels are whole numbers from 0 to this, exclusive.
        bounds: the least and greatest pixel.

    Raises:
        ValueError: if the batch is empty or ragged, a label is no class, or a pixel is NaN or out
            of bounds.
        TypeError: if labels are not whole numbers.

    >>> check_batch((np.zeros((2, 3)), np.array([0, 1])), num_classes=2)
    """
    x, y, mask, size = _unpack(batch)
    counts = np.ones(size, bool) if mask is None else np.asarray(mask)
    labels = np.asarray(y)[counts]
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels must be whole numbers, got dtype {labels.dtype}")
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if wrong.size:
        raise ValueError(f"labels must be from 0 to {num_classes - 1}, got {wrong.flat[0]}")
    low, high = bounds
    for leaf in jax.tree.leaves(x):
        pixels = np.asarray(leaf)[counts]
        wrong = pixels[~((pixels >= low) & (pixels <= high))]
        if wrong.size:
            raise ValueError(f"inputs must be in [{low}, {high}], got {wrong.flat[0]}")
