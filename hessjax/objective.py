"""Regularized losses of a batch, built from penalties on single examples."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from hessjax._batching import Apply, Loss, Weight, batched, check_weight, is_zero
from hessjax._numerics import PyTree, as_point, check_functions, hold, normalize
from hessjax.eigen import ONE_PRODUCT, Solver, Start, gradient_start, power_iteration
from hessjax.lazy import Metrics, Objective
from hessjax.operators import (
    Composite,
    directional_derivative,
    gradient_and_hessian_operator,
    second_directional_derivative,
)

Penalty = Callable[..., jax.Array]


def regularized(
    apply: Apply,
    loss: Loss,
    penalties: Mapping[str, tuple[Weight, Penalty]],
    *,
    every: int = 1,
    parts: int = 1,
    chunk_size: int | None = None,
) -> Objective:
    r"""Build the mean loss plus weighted penalties, each evaluated independently.

    .. math:: \frac1B \sum_i \Big[ f_i(x_i) + \sum_k \lambda_k\, \text{penalty}_k(f_i, x_i) \Big]

    Args:
        apply: ``apply(params, x) -> logits`` for one example, in evaluation mode and without a
            batch axis. `check_apply` checks both.
        loss: ``loss(logits, y) -> scalar`` for one example.
        penalties: ``{name: (weight, penalty)}``. A weight is a nonnegative number or an optax
            schedule of the step; 0 leaves the penalty out. Bind a penalty's configuration with
            `functools.partial`.
        every: a number n; the penalties are evaluated on every n-th step, with n times the weight,
            and the loss alone on the others. The objective is then a `Lazy`, unless all weights are
            0; `train_step` compiles both parts.
        parts: a number k; the penalties are evaluated, with k times the weight, on one of k random
            parts of the batch, which on average over keys gives the same value. A part takes one of
            every k consecutive examples, which need not leave their device. With a fixed key, k
            consecutive steps with penalties go through all parts; `train_step` uses a new key for
            each step. The metrics of the penalties are estimates from the part. With a k beyond the
            batch size most steps have no penalty, and these metrics are zero.
        chunk_size: evaluate this many examples at a time, and again in the backward pass, so that
            memory is needed for one chunk only. The loop is slow for convolutions on a CPU.

    Returns:
        ``objective(params, batch, key, step=0) -> (value, metrics)``: the batch is ``(x, y)`` or
        ``(x, y, mask)`` with a leading axis; the value is a mean over all examples, or over
        those whose mask is true; the metrics are the unweighted means of ``loss`` and, under its
        name, of each penalty. Each example's key has the example's index in the batch folded in.

    Raises:
        ValueError: if a weight is negative, a penalty is named ``loss`` or ``objective`` or
            returns more than one number, a batch is empty or ragged, or a mask holds weights (if
            the mask is traced, the value is NaN instead).
        TypeError: if an entry is not a pair of a weight and a penalty, a penalty does not return a
            floating-point number, a batch is not a sequence, or the network or the loss is no
            function.

    Cost: the sum of its penalties' costs; `second_order` shares work that this does not.
    """
    if not isinstance(penalties, Mapping):
        raise TypeError(f"penalties must be {{name: (weight, penalty)}}, got {penalties!r}")
    taken = {
        "loss": "the metric of the loss itself",
        "objective": "the sum of all terms",
    }
    for name in taken.keys() & penalties.keys():
        raise ValueError(f"a penalty cannot be named {name!r}: that is {taken[name]}")
    for name, entry in penalties.items():
        if not isinstance(entry, Sequence) or len(entry) != 2 or not callable(entry[1]):
            raise TypeError(f"penalties[{name!r}] must be (weight, penalty), got {entry!r}")
        check_weight(f"the weight of {name!r}", entry[0])
    places = {name: i for i, name in enumerate(penalties)}
    active = {name: entry for name, entry in penalties.items() if not is_zero(entry[0])}

    def terms(f: Composite, x: PyTree, key: jax.Array) -> Metrics:
        values = {"loss": f(x)}
        for name, (_, penalty) in active.items():
            values[name] = penalty(f, x, jax.random.fold_in(key, places[name]))
        return values

    weights = {name: weight for name, (weight, _) in active.items()}
    options = {"every": every, "parts": parts, "chunk_size": chunk_size}
    return batched(apply, loss, terms, weights, **options)


def _multiplies_start(solver: Solver | None) -> bool:
    """Return whether the direction that a solver returns is its start."""
    return solver is None or (
        isinstance(solver, partial)
        and solver.func is power_iteration
        and solver.keywords == {"num_iters": 1}
    )


def second_order(
    apply: Apply,
    loss: Loss,
    gradient_weight: Weight,
    hessian_weight: Weight,
    *,
    solver: Solver | None = ONE_PRODUCT,
    start: Start = gradient_start,
    every: int = 1,
    parts: int = 1,
    chunk_size: int | None = None,
) -> Objective:
    r"""Build the second-order surrogate of the worst loss in a ball, in one sweep.

    .. math:: \frac1B \sum_i \Big[ f_i(x_i) + \lambda_g \|\nabla f_i(x_i)\|_2
        + \lambda_h \|\nabla^2 f_i(x_i)\|_{op} \Big]

    For an ℓ₂ ball of radius ε, in input units, the weights are ``ε`` and ``ε**2 / 2``. It is a
    surrogate, not a bound: curvature is estimated from below, and only at the example.

    Args:
        apply: ``apply(params, x) -> logits`` for one example, in evaluation mode and without a
            batch axis.
        loss: ``loss(logits, y) -> scalar`` for one example.
        gradient_weight: λ_g, a nonnegative number or an optax schedule of the step; 0 leaves the
            term out.
        hessian_weight: λ_h, given like ``gradient_weight``.
        solver: as in `hessian_operator_norm`. The default takes one product with the gradient;
            `gradient_start` says how close that comes to the norm. None takes no product: it is a
            sixth cheaper, and farther off by up to eleven percent of the norm. `lanczos` with five
            products takes twice the time, because any solver but these two needs a third direction
            for ‖g‖; it is nearly exact on networks trained without a penalty, and within seven
            percent on average on those trained with one.
        start: as in `hessian_operator_norm`.
        every: as in `regularized`.
        parts: as in `regularized`.
        chunk_size: as in `regularized`.

    Returns:
        ``objective(params, batch, key, step=0) -> (value, metrics)`` as in `regularized`; the
        metrics are the unweighted means of ``loss``, ``gradient_norm``, ``hessian_norm`` and
        ``residual`` (of the eigenpair). A term that is left out has none, except that a Hessian
        term alone also gives ``gradient_norm``.

    Raises:
        ValueError: if a weight is negative, or a batch is empty or ragged.
        TypeError: if x is not floating point, or what should be a function is none.

    Cost: counted in operations, a whole optimizer step costs 3.7 (ReLU) to 4.9 (gelu) plain steps;
    with a Hessian weight of 0, 2.3 to 2.4.

    >>> import optax
    >>> apply = lambda params, x: params @ x
    >>> cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
    >>> objective = second_order(apply, cross_entropy, 0.5, 0.125)
    >>> batch = (jnp.ones((4, 3)), jnp.zeros(4, int))
    >>> value, metrics = objective(jnp.eye(2, 3), batch, jax.random.key(0))
    >>> sorted(metrics)
    ['gradient_norm', 'hessian_norm', 'loss', 'residual']
    """
    check_functions(start=start, solver=ONE_PRODUCT if solver is None else solver)
    check_weight("gradient_weight", gradient_weight)
    check_weight("hessian_weight", hessian_weight)
    weights: dict[str, Weight] = {"gradient_norm": gradient_weight, "hessian_norm": hessian_weight}
    weights = {name: weight for name, weight in weights.items() if not is_zero(weight)}

    def gradient_terms(f: Composite, x: PyTree) -> Metrics:
        u = hold(normalize(jax.grad(f)(x))[0])
        value, slope = directional_derivative(f, x, u)
        return {"loss": value, "gradient_norm": slope}

    def terms(f: Composite, x: PyTree, key: jax.Array) -> Metrics:
        x = as_point(x)
        if "hessian_norm" not in weights:
            return gradient_terms(f, x)
        if solver is None:
            gradient, residual = jax.grad(f)(x), {}
            u = v = normalize(start(gradient, key))[0]
        else:
            gradient, matvec = gradient_and_hessian_operator(f, x)
            pair = solver(matvec, start(gradient, key))
            u, v, residual = normalize(pair.image)[0], pair.vector, {"residual": pair.residual}
        u, v, residual, unit, norm = hold((u, v, residual, *normalize(gradient)))
        # Taking the start as the inner direction saves a little memory and time.
        value, _, along_v, curvature = second_directional_derivative(f, x, u, v)
        if "gradient_norm" not in weights:
            slope = norm
        elif start is gradient_start and _multiplies_start(solver):
            # Where the gradient vanishes, v is random, and its slope is not the gradient norm.
            slope = jnp.where(norm == 0, 0, along_v)
        else:
            slope = directional_derivative(f, x, unit)[1]
        # With a product the curvature is its length, negative only by rounding.
        curvature = jnp.abs(curvature) if solver is None else curvature
        return {"loss": value, "gradient_norm": slope, "hessian_norm": curvature, **residual}

    return batched(apply, loss, terms, weights, every=every, parts=parts, chunk_size=chunk_size)
