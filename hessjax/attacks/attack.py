"""The interface between attacks and the loops that run them: functions of one example."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hessjax._numerics import check_functions, check_key, wide
from hessjax.attacks.balls import LpBall, check_center
from hessjax.losses import misclassified

Logits = Callable[[jax.Array], jax.Array]
State = Any


class Outcome(NamedTuple):
    """What one run of an attack has found so far.

    Attributes:
        x: the best point, of the shape of the example.
        score: how good it is, a scalar; larger is better, whatever the attack measures.
        found: whether ``x`` is misclassified and in the ball, a boolean scalar.
    """

    x: jax.Array
    score: jax.Array
    found: jax.Array


class Attack(NamedTuple):
    """The parts of an attack, each a function of one example; a driver batches and loops.

    Attributes:
        name: the attack's name in results.
        init: ``(logits_fn, x, y, ball, key, *, run) -> state``, the start of a run. A run is a
            restart or a target; its number, a traced whole number, counts from 0.
        step: ``(logits_fn, x, y, ball, state) -> state``.
        outcome: ``(x, state, ball) -> Outcome``.
        num_steps: the number of steps of a run.
        num_runs: the number of runs, each on the examples that withstood those before.
        num_targets: the number of different targets among the runs, 0 for an untargeted attack;
            never more than there are wrong classes.
        min_classes: with fewer classes, ``otherwise`` stands in.
        otherwise: an attack that two classes suffice for; if None, fewer classes are refused.
        differentiates: whether it needs gradients of the model.
    """

    name: str
    init: Callable[..., State]
    step: Callable[[Logits, jax.Array, jax.Array, LpBall, State], State]
    outcome: Callable[[jax.Array, State, LpBall], Outcome]
    num_steps: int
    num_runs: int = 1
    num_targets: int = 0
    min_classes: int = 2
    otherwise: Any = None
    differentiates: bool = True


_same = lru_cache(maxsize=None, typed=True)(partial)


def with_options(function: Callable[..., Any], **options: object) -> Callable[..., Any]:
    """Return a `functools.partial`, the same object for the same options.

    JAX caches compiled programs by function. Without this, attacks that are built where they are
    used would be compiled at each call.
    """
    try:
        return _same(function, **options)
    except TypeError:  # an option is not hashable
        return partial(function, **options)


def check_logits(outputs: object) -> int:
    """Return the number of classes, or raise unless the outputs are the logits of one example."""
    shape = getattr(outputs, "shape", None)
    if shape is None:
        raise TypeError(
            f"logits_fn must return the logits alone, got a {type(outputs).__name__}: does the "
            "model return its state, too?"
        )
    if len(shape) != 1 or shape[0] < 2:
        raise ValueError(
            "logits_fn must map one example, without a batch axis, to logits of shape (C,), C at "
            f"least 2, got shape {shape}"
        )
    return shape[0]


def likely_class(logits: jax.Array, rank: jax.Array) -> jax.Array:
    """Return the class of a given rank, 0 for the likeliest; a rank past the end gives the last."""
    ranked = jnp.argsort(-logits, stable=True).astype(jnp.int32)
    return ranked[jnp.minimum(rank, logits.size - 1)]


def fitting(attack: Attack, num_classes: int) -> Attack:
    """Fit an attack to the number of classes: use its stand-in if too few, drop extra targets.

    Raises:
        ValueError: if there are too few, and it has no stand-in.
    """
    if num_classes < attack.min_classes:
        if attack.otherwise is None:
            raise ValueError(
                f"{attack.name} needs at least {attack.min_classes} classes, got {num_classes}"
            )
        attack = attack.otherwise
    wrong = num_classes - 1
    if attack.num_targets <= wrong:
        return attack
    num_runs = attack.num_runs // attack.num_targets * wrong
    return attack._replace(num_runs=num_runs, num_targets=wrong)


def search(
    attack: Attack,
    logits_fn: Logits,
    x: ArrayLike,
    y: ArrayLike,
    *,
    ball: LpBall,
    key: jax.Array,
    unroll: int | bool = 1,
) -> jax.Array:
    """Run an attack on one example, inside one compiled loop, and return the best point.

    An example that is misclassified already is returned as it is.
    """
    check_functions(logits_fn=logits_fn)
    check_key(key)
    x, y = check_center(ball, x), jnp.asarray(y)
    logits = logits_fn(x)
    attack = fitting(attack, check_logits(logits))
    precision = wide(x.dtype)

    def step(_: jax.Array, state: State) -> State:
        return attack.step(logits_fn, x, y, ball, state)

    def run(number: jax.Array, best: Outcome) -> Outcome:
        state = attack.init(logits_fn, x, y, ball, jax.random.fold_in(key, number), run=number)
        state = jax.lax.fori_loop(0, attack.num_steps, step, state, unroll=unroll)
        new = attack.outcome(x, state, ball)
        new = new._replace(score=new.score.astype(precision))
        better = new.score > best.score
        return jax.tree.map(lambda a, b: jnp.where(better, a, b), new, best)

    wrong = misclassified(logits, y)
    nothing = Outcome(x, jnp.where(wrong, jnp.inf, -jnp.inf).astype(precision), wrong)
    return jax.lax.fori_loop(0, attack.num_runs, run, nothing).x
