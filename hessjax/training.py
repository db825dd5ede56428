"""One optimizer step on any objective; the loop belongs to the caller."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.stages import Wrapped

PyTree = Any


class TrainState(NamedTuple):
    """All that a step needs and changes: a tree of arrays.

    Attributes:
        params: the model's parameters.
        opt_state: the optimizer's state.
        step: steps taken, int32 scalar.
        key: the run's key; each step folds its number into it.
    """

    params: PyTree
    opt_state: optax.OptState
    step: jax.Array
    key: jax.Array

    @classmethod
    def create(
        cls, params: PyTree, optimizer: optax.GradientTransformation, key: jax.Array
    ) -> "TrainState":
        """Return the state before the first step; it owns copies of ``params`` and ``key``."""
        params = _owned(params)
        return cls(params, _owned(optimizer.init(params)), jnp.zeros((), jnp.int32), _owned(key))


def _owned(tree: PyTree) -> PyTree:
    """Copy every leaf: the first step donates them, and one buffer can be given away but once.

    The explicit dtype makes Python numbers and what else is weakly typed into arrays like those
    that come out of a step, so that the second step is not traced again.
    """
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype=jnp.asarray(leaf).dtype), tree)


def train_step(objective: Callable[..., Any], optimizer: optax.GradientTransformation) -> Wrapped:
    """Build the jitted step ``(state, batch) -> (state, metrics)``.

    Args:
        objective: ``objective(params, batch, key, step) -> (value, metrics)``.
        optimizer: any optax transformation.

    Returns:
        The step. The state's buffers are donated: use the returned state, not the old one. The
        metrics are the objective's, before the update, and its ``objective`` value. Batches of one
        shape are traced once.

    Cost: one gradient of the objective in the parameters.
    """

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: tuple) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        gradient_of = jax.value_and_grad(objective, has_aux=True)
        (value, metrics), gradient = gradient_of(state.params, batch, key, state.step)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state, state.step + 1, state.key), {
            **metrics,
            "objective": value,
        }

    return step
