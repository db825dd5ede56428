"""One optimizer step on any objective; the loop belongs to the caller."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.extend.core import get_opaque_trace_state

from hessjax._compilation import compiler_options
from hessjax._numerics import PyTree
from hessjax._placement import following, mesh_of
from hessjax.lazy import Lazy, Objective

# Outside of every transformation.
_EAGER = get_opaque_trace_state()


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
    """Copy every leaf: the first step donates them, and a buffer can be donated only once.

    The explicit dtype makes Python numbers and what else is weakly typed into arrays like those
    that come out of a step, so that the second step is not traced again.
    """
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype=jnp.asarray(leaf).dtype), tree)


Step = Callable[[TrainState, tuple], tuple[TrainState, dict[str, jax.Array]]]


def train_step(objective: Objective, optimizer: optax.GradientTransformation) -> Step:
    """Build the jitted step ``(state, batch) -> (state, metrics)``.

    Args:
        objective: ``objective(params, batch, key, step) -> (value, metrics)``.
        optimizer: an optax transformation. One with extra arguments is passed the ``value``, the
            ``grad`` and the ``value_fn`` of the objective, as line searches need; further ones,
            such as those of `optax.contrib.sam`, are not passed.

    Returns:
        The step. The state's buffers are donated: use the returned state, not the old one. The
        metrics are the objective's, before the update, and its ``objective`` value. Batches of one
        shape are traced once; for a `Lazy` objective two steps are compiled, of which each call
        takes the one that the state's step wants, and reports no metrics that this one lacks.

    Cost: one gradient of the objective in the parameters.
    """

    def advance(
        objective: Objective, state: TrainState, batch: tuple
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        gradient_of = jax.value_and_grad(objective, has_aux=True)
        (value, metrics), gradient = gradient_of(state.params, batch, key, state.step)
        updates, opt_state = optax.with_extra_args_support(optimizer).update(
            gradient,
            state.opt_state,
            state.params,
            value=value,
            grad=gradient,
            value_fn=lambda params: objective(params, batch, key, state.step)[0],
        )
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state, state.step + 1, state.key), {
            **metrics,
            "objective": value,
        }

    def jitted(objective: Objective) -> Step:
        options = compiler_options()
        return jax.jit(partial(advance, objective), donate_argnums=0, compiler_options=options)

    steps = _Alternating(objective, jitted) if isinstance(objective, Lazy) else jitted(objective)

    def step(state: TrainState, batch: tuple) -> tuple[TrainState, dict[str, jax.Array]]:
        # Inside a larger traced program, even where all arguments are constants, its caller chooses
        # the options of the compiler.
        traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((state, batch)))
        if traced or get_opaque_trace_state() != _EAGER:
            return advance(objective, state, batch)
        with following(mesh_of(batch)):
            return steps(state, batch)

    return step


class _Alternating:
    """The two steps of a lazy objective; which one is due, it knows without asking the device."""

    def __init__(self, objective: Lazy, jitted: Callable[[Objective], Step]) -> None:
        self._every = objective.every
        self._penalized, self._plain = jitted(objective.penalized), jitted(objective.plain)
        # The last state's step, there and here. Only its identity counts: it may be donated.
        self._last: tuple[jax.Array | None, int] = (None, 0)

    def __call__(self, state: TrainState, batch: tuple) -> tuple[TrainState, dict[str, jax.Array]]:
        device, number = self._last
        if device is not state.step:
            number = int(state.step)
        step = self._plain if number % self._every else self._penalized
        state, metrics = step(state, batch)
        self._last = (state.step, number + 1)
        return state, metrics
