"""Which test examples withstand attacks at several radii."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

from experiments.batchwise import keyed
from experiments.models import Params
from hessjax import LpBall, dlr_loss
from hessjax._compilation import compiled
from hessjax._placement import each, following, gathered, mesh_of, replicated
from hessjax.attacks import PGDState, pgd_step, random_point
from hessjax.attacks.batches import Examples
from hessjax.attacks.gradient import Loss
from hessjax.losses import misclassified
from hessjax.objective import Apply

LOSSES: Mapping[str, Loss] = {"cross-entropy": cross_entropy, "DLR": dlr_loss}


def losses_for(num_classes: int) -> dict[str, Loss]:
    """Return what PGD maximizes, by name: the DLR loss needs three classes."""
    return {n: loss for n, loss in LOSSES.items() if num_classes > 2 or loss is not dlr_loss}


class _Kind(NamedTuple):
    """What an attack is compiled for; `chunk` is the number of steps per call."""

    apply: Apply
    order: float
    loss: Loss
    chunk: int


class _State(NamedTuple):
    """The attack on a whole test set: the iterates, and which examples have been broken."""

    point: jax.Array
    broken: jax.Array


def withstood(
    apply: Apply,
    params: Params,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    order: float,
    radii: Sequence[float],
    key: jax.Array,
    num_steps: int = 40,
    num_restarts: int = 1,
    losses: Sequence[Loss] = tuple(LOSSES.values()),
    batch_size: int = 250,
    mesh: Mesh | None = None,
) -> Iterator[tuple[float, np.ndarray]]:
    """Attack a test set by PGD with one loss after the other, at one radius after the other.

    The largest radius comes first. What withstands its attacks counts as withstanding those of the
    smaller ones, because their balls lie in its ball; the others are attacked anew. An example that
    breaks is cheap, because it soon leaves the batch; one that withstands takes every step, a cost
    that is paid once, not once for each radius.

    Args:
        apply: ``(params, x) -> logits`` of one example.
        params: the parameters.
        images: ``(N, ...)`` in [0, 1].
        labels: ``(N,)``, whole numbers.
        order: p of the balls, 2 or infinity.
        radii: ε of the balls, in input units.
        key: source of random starts. Each example's key is folded from its index, so that nothing
            depends on the batch size or the devices.
        num_steps: of each attack, each step of length 2.5 ε / num_steps.
        num_restarts: random starts of each attack.
        losses: ``(logits, label) -> scalar``, maximized by one attack after the other.
        batch_size: examples per call on each device; the last batch is padded.
        mesh: devices that share each batch, the default one if not given.

    Yields:
        ``(radius, (N,) boolean)``, True where the prediction is right in spite of every attack:
        first for radius 0, without an attack, then for each radius from the largest to the
        smallest.

    Cost: at most ``num_steps × num_restarts × len(losses) × len(radii)`` gradients per example;
    usually hardly more than ``num_steps × num_restarts × len(losses)``.
    """
    count = len(labels)
    params, examples = replicated(mesh, (params, keyed(images, labels, key)))
    size = min(batch_size * (1 if mesh is None else mesh.size), count)
    # Steps per call: unrolled, because convolutions in a traced loop are slow on the CPU; but only
    # a few, because all of them would take long to compile.
    chunk = max(divisor for divisor in range(1, 6) if num_steps % divisor == 0)

    def over_survivors(change: Callable[..., _State], state: _State) -> _State:
        alive = np.flatnonzero(~np.asarray(state.broken))
        for first in range(0, len(alive), size):
            places = np.minimum(np.arange(first, first + size), len(alive) - 1)
            with following(mesh_of(examples)):
                state = change(params, examples, state, alive[places])
        return state

    check = partial(compiled(_check, 0, "state"), apply)
    state = _State(jnp.copy(examples.x), jnp.zeros_like(examples.y, bool))
    state = over_survivors(check, state)
    right = ~np.asarray(state.broken)
    yield 0.0, right
    robust = np.zeros_like(right)
    for epsilon in sorted(radii, reverse=True):
        state = state._replace(broken=replicated(mesh, jnp.asarray(robust | ~right)))
        for i, loss in enumerate(losses):
            kind = _Kind(apply, order, loss, chunk)
            length = 2.5 * epsilon / num_steps
            advance = partial(
                compiled(_advance, 0, "state"), kind, epsilon=epsilon, step_size=length
            )
            for restart in range(num_restarts):
                number = i * num_restarts + restart
                start = partial(compiled(_start, 0, "state"), order, epsilon=epsilon, number=number)
                state = over_survivors(start, state)
                for _ in range(0, num_steps, chunk):
                    state = over_survivors(advance, state)
                state = over_survivors(check, state)
        robust = robust | ~np.asarray(state.broken) & right
        yield epsilon, robust


# Each function is compiled, takes the whole state and changes the rows of one batch in place:
# shapes are fixed, and nothing leaves the device between steps. With several devices, each holds
# the whole state and works on its share of the batch; they exchange only the new rows.


def _start(
    order: float, params: Params, examples: Examples, state: _State, index: jax.Array,
    *, epsilon: jax.Array, number: jax.Array,
) -> _State:  # fmt: skip
    del params

    def one(shared: tuple, i: jax.Array) -> jax.Array:
        examples, epsilon, number = shared
        key = jax.random.fold_in(examples.key[i], number)
        return random_point(LpBall(epsilon, order), examples.x[i], key)

    points = gathered(each(one, (examples, epsilon, number), index))
    return state._replace(point=state.point.at[index].set(points))


def _advance(
    kind: _Kind, params: Params, examples: Examples, state: _State, index: jax.Array,
    *, epsilon: jax.Array, step_size: jax.Array,
) -> _State:  # fmt: skip
    def one(shared: tuple, i: jax.Array) -> _State:
        params, examples, state, epsilon, step_size = shared
        x, y, _ = (leaf[i] for leaf in examples)
        point, broken = (leaf[i] for leaf in state)
        ball, logits_fn = LpBall(epsilon, kind.order), partial(kind.apply, params)
        attack = PGDState(point, point, jnp.asarray(-jnp.inf, point.dtype), broken)
        for _ in range(kind.chunk):
            attack = pgd_step(logits_fn, x, y, ball, attack, step_size=step_size, loss=kind.loss)
        return _State(attack.x, attack.found)

    part = gathered(each(one, (params, examples, state, epsilon, step_size), index))
    return jax.tree.map(lambda whole, rows: whole.at[index].set(rows), state, part)


def _check(
    apply: Apply, params: Params, examples: Examples, state: _State, index: jax.Array
) -> _State:
    def one(shared: tuple, i: jax.Array) -> jax.Array:
        params, examples, state = shared
        return misclassified(apply(params, state.point[i]), examples.y[i])

    wrong = gathered(each(one, (params, examples, state), index))
    return state._replace(broken=state.broken.at[index].max(wrong))
