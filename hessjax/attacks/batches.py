"""Run an attack on a batch of examples: compiled once per shape, looped over in Python."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hessjax._compilation import as_partial, compiled
from hessjax._numerics import check_functions, safe_norm
from hessjax._placement import each, following, gathered, mesh_of
from hessjax.attacks.attack import Attack, Logits, Outcome, State, check_logits
from hessjax.attacks.balls import LpBall, contains
from hessjax.losses import dlr_loss, margin, misclassified

# After this many steps what was found is kept, and a batch in which everything is broken ends. With
# gradients each call is one step: those of convolutions are slow in a compiled loop on the CPU.
_STEPS_BETWEEN_LOOKS, _STEPS_WITHOUT_GRADIENTS = 10, 50


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["logits_fn", "epsilon"],
    meta_fields=["order", "bounds"],
)
@dataclass(frozen=True)
class Problem:
    """What all examples share.

    Attributes:
        logits_fn: a pytree whose leaves are weights that are not compiled in.
        epsilon: the radius of the ball; traced, so that radii share compiled code.
        order: the order of the ball.
        bounds: the bounds of the box.
    """

    logits_fn: Logits
    epsilon: jax.Array
    order: float
    bounds: tuple[float, float]

    @property
    def ball(self) -> LpBall:
        """The ball around each example."""
        return LpBall(self.epsilon, self.order, self.bounds)


class Examples(NamedTuple):
    """Inputs ``(N, ...)``, labels ``(N,)`` and keys ``(N,)``, on the device."""

    x: jax.Array
    y: jax.Array
    key: jax.Array


class Kept(NamedTuple):
    """For each example the point that breaks it, or the example itself, and whether it is broken.

    The point is the first one seen, so what is kept for an example does not depend on how long the
    rest of its batch takes.
    """

    x: jax.Array
    broken: jax.Array


def problem(logits_fn: Logits, ball: LpBall, dtype: jnp.dtype) -> Problem:
    """Return the problem, with the weights as data if the function is a `jax.tree_util.Partial`."""
    check_functions(logits_fn=logits_fn)
    logits_fn = as_partial(logits_fn)
    return Problem(logits_fn, jnp.asarray(ball.epsilon, dtype), ball.order, ball.bounds)


def split(left: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Cut indices of examples into batches of two lengths, ``size`` and a quarter of it.

    There are only two, because each is compiled; short batches take what would fill at most three
    quarters of a long one.

    Yields:
        The indices, padded with the last one, and how many of them are not padding.
    """
    first = 0
    while first < len(left):
        quarter = max(size // 4, 1)
        length = size if len(left) - first > size - quarter else quarter
        part = left[first : first + length]
        yield np.pad(part, (0, length - len(part)), "edge"), len(part)
        first += length


def logits(given: Problem, x: jax.Array, index: np.ndarray) -> jax.Array:
    """Return the logits of the examples that ``index`` selects."""
    with following(mesh_of(x)):
        return compiled(_logits)(given, x, index)


def slopes(given: Problem, examples: Examples, index: np.ndarray) -> jax.Array:
    """Return the ℓ2 norms of the DLR loss's gradients at the examples that ``index`` selects."""
    with following(mesh_of(examples)):
        return compiled(_slopes)(given, examples, index)


@jax.jit
def put(x: jax.Array, index: np.ndarray, points: jax.Array, used: int) -> jax.Array:
    """Replace the examples that ``index`` selects; its first ``used`` entries are not padding.

    Padding repeats the last of these, but a randomized model may have treated it differently.
    """
    return x.at[index].set(points[jnp.minimum(jnp.arange(len(index)), used - 1)])


def run_batch(
    attack: Attack, given: Problem, examples: Examples, index: np.ndarray, *, place: int, run: int
) -> Kept:
    """Do one run of an attack on the examples that ``index`` selects.

    A point counts only if it lies in ball and box and is misclassified when evaluated again. The
    attack's ``place`` among the attacks and ``run`` are folded into the keys of the examples.
    """
    numbers = np.int32(place), np.int32(run)
    with following(mesh_of(examples)):
        batch, state, kept = compiled(_start, 0)(attack.init, given, examples, index, numbers)
        stretch = _STEPS_BETWEEN_LOOKS if attack.differentiates else _STEPS_WITHOUT_GRADIENTS
        for done in range(0, attack.num_steps, stretch):
            count = min(stretch, attack.num_steps - done)
            if attack.differentiates:
                for _ in range(count):
                    state = compiled(_step, 0, "state")(attack.step, given, batch, state=state)
            else:
                state = compiled(_steps, 0, "state")(
                    attack.step, given, batch, np.int32(count), state=state
                )
            kept, all_broken = compiled(_look, 0, "kept")(
                attack.outcome, given, batch, state, kept=kept
            )
            if all_broken:
                break
        return compiled(_verified)(given, batch, kept)


def _logits(given: Problem, x: jax.Array, index: jax.Array) -> jax.Array:
    def one(shared: tuple[Problem, jax.Array], i: jax.Array) -> jax.Array:
        given, x = shared
        outputs = given.logits_fn(x[i])
        check_logits(outputs)
        return outputs

    return gathered(each(one, (given, x), index))


def _slopes(given: Problem, examples: Examples, index: jax.Array) -> jax.Array:
    def loss(logits: jax.Array, y: jax.Array) -> jax.Array:
        return dlr_loss(logits, y) if logits.size > 2 else -margin(logits, y)

    def one(shared: tuple[Problem, Examples], i: jax.Array) -> jax.Array:
        given, (x, y, _) = shared
        return safe_norm(jax.grad(lambda t: loss(given.logits_fn(t), y[i]))(x[i]))

    return gathered(each(one, (given, examples), index))


# Each takes only the part of an attack that it needs, so a new number of steps compiles nothing.


def _start(
    init: Callable[..., State],
    given: Problem,
    examples: Examples,
    index: jax.Array,
    numbers: tuple[jax.Array, jax.Array],
) -> tuple[Examples, State, Kept]:
    def one(shared: tuple, i: jax.Array) -> tuple[Examples, State, Kept]:
        given, examples, (place, run) = shared
        x, y, key = example = Examples(*(leaf[i] for leaf in examples))
        key = jax.random.fold_in(jax.random.fold_in(key, place), run)
        state = init(given.logits_fn, x, y, given.ball, key, run=run)
        return example, state, Kept(x, jnp.zeros((), bool))

    return each(one, (given, examples, numbers), index)


def _step(step: Callable[..., State], given: Problem, batch: Examples, *, state: State) -> State:
    def one(given: Problem, x: jax.Array, y: jax.Array, state: State) -> State:
        return step(given.logits_fn, x, y, given.ball, state)

    return each(one, given, batch.x, batch.y, state)


def _steps(
    step: Callable[..., State], given: Problem, batch: Examples, count: jax.Array, *, state: State
) -> State:
    return jax.lax.fori_loop(
        0, count, lambda _, state: _step(step, given, batch, state=state), state
    )


def _look(
    outcome: Callable[..., Outcome], given: Problem, batch: Examples, state: State, *, kept: Kept
) -> tuple[Kept, jax.Array]:
    def one(given: Problem, x: jax.Array, state: State, kept: Kept) -> Kept:
        seen = outcome(x, state, given.ball)
        broken = seen.found & contains(given.ball, x, seen.x)
        point = jnp.where(broken & ~kept.broken, seen.x, kept.x)
        return Kept(point, kept.broken | broken)

    kept = each(one, given, batch.x, state, kept)
    return kept, gathered(jnp.all(kept.broken))


def _verified(given: Problem, batch: Examples, kept: Kept) -> Kept:
    def one(given: Problem, x: jax.Array, y: jax.Array, kept: Kept) -> Kept:
        broken = kept.broken & misclassified(given.logits_fn(kept.x), y)
        return Kept(jnp.where(broken, kept.x, x), broken)

    return gathered(each(one, given, batch.x, batch.y, kept))
