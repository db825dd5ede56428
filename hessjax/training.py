"""One optimizer step on any objective; the loop belongs to the caller."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from inspect import Parameter, signature
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.extend.core import get_opaque_trace_state

from hessjax._compilation import compiler_options
from hessjax._numerics import PyTree, check_functions, check_key
from hessjax._placement import following, mesh_of
from hessjax.lazy import Lazy, Objective

# The trace state outside of every transformation. A new thread is outside, even if the thread that
# imports this is not.
with ThreadPoolExecutor(1) as _thread:
    _EAGER = _thread.submit(get_opaque_trace_state).result()

_ARRAYS = (jax.Array, np.ndarray, np.generic, int, float, complex)


class TrainState(NamedTuple):
    """Everything that a step reads and updates: a pytree of arrays.

    To save it where random keys are not known, as with `numpy.savez`, save
    ``state._replace(key=jax.random.key_data(state.key))`` and undo that by
    `jax.random.wrap_key_data`, which needs ``impl=str(jax.random.key_impl(key))`` of keys that are
    not of the default kind.

    Attributes:
        params: the model's parameters.
        opt_state: the optimizer's state.
        step: the number of steps taken, an int32 scalar.
        key: the run's random key; each step folds its own number into it.
    """

    params: PyTree
    opt_state: optax.OptState
    step: jax.Array
    key: jax.Array

    @classmethod
    def create(
        cls, params: PyTree, optimizer: optax.GradientTransformation, key: jax.Array
    ) -> "TrainState":
        """Return the state before the first step; it owns copies of ``params`` and ``key``.

        Raises:
            TypeError: if params hold anything but arrays and numbers, the key is none, or the
                optimizer no optax transformation.
        """
        _check_optimizer(optimizer)
        for path, leaf in jax.tree.leaves_with_path(params):
            if not isinstance(leaf, _ARRAYS):
                raise TypeError(
                    f"params must hold arrays alone, got a {type(leaf).__name__} at "
                    f"{jax.tree_util.keystr(path)}: split off what is not trained"
                )
        check_key(key)
        params = _owned(params)
        return cls(params, _owned(optimizer.init(params)), jnp.zeros((), jnp.int32), _owned(key))


def _check_optimizer(optimizer: object) -> None:
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            "optimizer must be an optax transformation, such as optax.adam(1e-3), "
            f"got a {type(optimizer).__name__}"
        )


def _owned(tree: PyTree) -> PyTree:
    """Copy every leaf: the first step donates them, and a buffer can be donated only once.

    The explicit dtype turns Python numbers and other weakly typed leaves into arrays like those
    that a step returns, so that the second step is not traced again.
    """
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype=jnp.asarray(leaf).dtype), tree)


Step = Callable[[TrainState, tuple], tuple[TrainState, dict[str, jax.Array]]]


def train_step(objective: Objective, optimizer: optax.GradientTransformation) -> Step:
    """Build the jitted step ``(state, batch) -> (state, metrics)``.

    Args:
        objective: ``objective(params, batch, key, step) -> (value, metrics)``.
        optimizer: an optax transformation. One that takes extra arguments is passed the
            objective's ``value``, ``grad`` and ``value_fn``, as line searches need; others, such
            as those of `optax.contrib.sam`, are not passed.

    Returns:
        The step. It donates the state's buffers: use the returned state, not the old one. The
        metrics are those of the objective before the update, plus its value as ``objective``. The
        step is traced once per batch shape. For a `Lazy` objective two steps are compiled; each
        call runs the one that ``state.step`` selects, and reports only the metrics of that one.

    Raises:
        TypeError: if the objective is no function, the optimizer no optax transformation, or the
            step gets something else than a state.

    Cost: one gradient of the objective with respect to the parameters.
    """
    check_functions(objective=objective)
    _check_optimizer(optimizer)
    update: Callable[..., tuple[PyTree, optax.OptState]] = optimizer.update
    # By its signature: `optax.MultiSteps` takes them without being of the type that says so.
    if not any(p.kind is Parameter.VAR_KEYWORD for p in signature(update).parameters.values()):
        update = optax.with_extra_args_support(optimizer).update

    def advance(
        objective: Objective, state: TrainState, batch: tuple
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        gradient_of = jax.value_and_grad(objective, has_aux=True)
        (value, metrics), gradient = gradient_of(state.params, batch, key, state.step)
        updates, opt_state = update(
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
        if not isinstance(state, TrainState):
            raise TypeError(
                "state must be a TrainState, as TrainState.create or the last step returned it, "
                f"got a {type(state).__name__}"
            )
        # Inside a larger traced program, even if all arguments are constants, the compiler
        # options are up to whoever compiles that program.
        traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((state, batch)))
        if traced or get_opaque_trace_state() != _EAGER:
            return advance(objective, state, batch)
        with following(mesh_of(batch)):
            return steps(state, batch)

    return step


class _Alternating:
    """The two steps of a `Lazy` objective; it picks the one due without waiting for the device."""

    def __init__(self, objective: Lazy, jitted: Callable[[Objective], Step]) -> None:
        self._every = objective.every
        self._penalized, self._plain = jitted(objective.penalized), jitted(objective.plain)
        # The last step number, on device and host. The array may be donated: only compare its id.
        self._last: tuple[jax.Array | None, int] = (None, 0)

    def __call__(self, state: TrainState, batch: tuple) -> tuple[TrainState, dict[str, jax.Array]]:
        device, number = self._last
        if device is not state.step:
            number = int(state.step)
        step = self._plain if number % self._every else self._penalized
        state, metrics = step(state, batch)
        self._last = (state.step, number + 1)
        return state, metrics
