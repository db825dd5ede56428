"""What a training puts around its objective, whatever the method."""

from functools import partial

import jax
import jax.numpy as jnp

from experiments.models import Params
from hessjax import Lazy
from hessjax._placement import each
from hessjax.objective import Apply, Metrics, Objective


def with_accuracy(apply: Apply, objective: Objective) -> Objective:
    """Add the metric ``accuracy``, on the clean batch.

    The compiler shares the forward pass with an objective that has one there, too.
    """
    if isinstance(objective, Lazy):
        return objective.map(partial(with_accuracy, apply))

    def measured(
        params: Params, batch: tuple, key: jax.Array, step: int | jax.Array = 0
    ) -> tuple[jax.Array, Metrics]:
        x, y, mask = (*batch, None)[:3]
        value, metrics = objective(params, batch, key, step)
        predicted = jnp.argmax(each(apply, params, x), axis=-1)
        accuracy = jnp.mean(predicted == y, where=None if mask is None else jnp.asarray(mask, bool))
        return value, {**metrics, "accuracy": accuracy}

    return measured


def refusing(objective: Objective) -> Objective:
    """Make the gradient NaN where the value is not finite, so that the optimizer skips the step.

    `optax.apply_if_finite` checks the gradients only, and an infinite loss may have finite ones.
    """
    if isinstance(objective, Lazy):
        return objective.map(refusing)

    def refused(
        params: Params, batch: tuple, key: jax.Array, step: int | jax.Array = 0
    ) -> tuple[jax.Array, Metrics]:
        value, metrics = objective(params, batch, key, step)
        factor = jnp.where(jnp.isfinite(value), jnp.ones((), value.dtype), jnp.nan)
        return value * factor, metrics

    return refused
