"""Whole optimizer steps, by training method: what `penalty_cost` times."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import optax
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

import hessjax
from experiments.benchmarks import textbook
from experiments.benchmarks.estimates import DEFAULT, ESTIMATES
from experiments.benchmarks.harness import Program, compile_program
from experiments.methods import METHODS, Setting
from experiments.models import Params
from hessjax import Lazy, TrainState, regularized, second_order, train_step
from hessjax._numerics import ScalarFunction
from hessjax.lazy import Metrics, Objective
from hessjax.objective import Apply, Penalty
from hessjax.penalties import Key

_OPTIMIZER = optax.adam(1e-3)
# Radius of the ball and length of a finite step. They decide no time.
EPSILON, STEP = 1.0, 1.0
# What lazy and partial objectives save.
SAVED = 5

_PENALTIES: dict[str, Penalty] = {
    "input_gradient_norm": hessjax.input_gradient_norm,
    "hessian_operator_norm": hessjax.hessian_operator_norm,
    "finite_step_operator_norm": partial(hessjax.finite_step_operator_norm, step=STEP),
    "curvature_along_gradient": partial(hessjax.curvature_along_gradient, step=STEP),
    "gauss_newton_operator_norm": hessjax.gauss_newton_operator_norm,
    "jacobian_squared_frobenius_norm": hessjax.jacobian_squared_frobenius_norm,
    "jacobian_operator_norm": hessjax.jacobian_operator_norm,
    "hessian_squared_frobenius_norm": hessjax.hessian_squared_frobenius_norm,
}


def objectives(apply: Apply, batch_size: int) -> dict[str, Objective]:
    """Return the objectives by name.

    ``none``; ``gradient`` and ``hessian``, of the shared sweep, the latter also by each solver,
    start and number of products, lazy, partial and in chunks; each penalty beside the loss by its
    own name; training on attacked inputs; and textbook forms of the first two.
    """
    surrogate = partial(second_order, apply, cross_entropy, EPSILON, EPSILON**2 / 2)
    by_text = partial(textbook.objective, apply, cross_entropy, EPSILON, EPSILON**2 / 2)

    def beside(penalty: Penalty) -> Objective:
        return regularized(apply, cross_entropy, {"penalty": (EPSILON, penalty)})

    def double_backpropagation(f: ScalarFunction, x: jax.Array, key: Key = None) -> jax.Array:
        del key
        return textbook.gradient_norm(f, x)

    def attacked(method: str) -> Objective:
        setting = Setting(EPSILON, STEP, 2, optax.constant_schedule(1))
        return METHODS[method].build(apply, setting)

    return {
        "none": second_order(apply, cross_entropy, 0, 0),
        "gradient": second_order(apply, cross_entropy, EPSILON, 0),
        "gradient, double backpropagation": beside(double_backpropagation),
        "hessian": surrogate(),
        f"hessian, every={SAVED}": surrogate(every=SAVED),
        f"hessian, parts={SAVED}": surrogate(parts=SAVED),
        "hessian, in four chunks": surrogate(chunk_size=-(-batch_size // 4)),
        **{
            f"hessian: {name}": surrogate(**estimate.options)
            for name, estimate in ESTIMATES.items()
            if name != DEFAULT
        },
        "hessian, textbook, 10": by_text(num_iters=10),
        "hessian, textbook, 5": by_text(num_iters=5),
        **{name: beside(penalty) for name, penalty in _PENALTIES.items()},
        "adversarial": attacked("adversarial"),
        "fgsm": attacked("fgsm"),
    }


class Step(NamedTuple):
    """Compiled optimizer steps that go on from each other.

    Attributes:
        call: takes some steps and returns the last one's metrics.
        programs: one for each of these steps.
    """

    call: Callable[[], Metrics]
    programs: tuple[Program, ...]

    @property
    def facts(self) -> dict[str, float | None]:
        """What the compiler tells of one step: operations on average, memory at most."""
        count = len(self.programs)
        operations = [program.operations for program in self.programs]
        known = [n for n in operations if n is not None]
        return {
            "compile_seconds": sum(p.compile_seconds for p in set(self.programs)),
            "operations": sum(known) / count if len(known) == count else None,
            "temporary_bytes": _largest([p.temporary_bytes for p in self.programs]),
            "peak_bytes": _largest([p.peak_bytes for p in self.programs]),
        }


def _largest(sizes: list[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return max(known, default=None)


def compile_step(objective: Objective, params: Params, batch: tuple) -> Step:
    """Compile the step of an objective, or the whole cycle of a lazy one's steps."""
    state = TrainState.create(params, _OPTIMIZER, jax.random.key(0))

    def compiled(part: Objective) -> Program:
        return compile_program(train_step(part, _OPTIMIZER), state, batch, donate=(0,))

    if isinstance(objective, Lazy):
        skipped = compiled(objective.plain)
        programs = (compiled(objective.penalized), *[skipped] * (objective.every - 1))
    else:
        programs = (compiled(objective),)
    current = [state]

    def call() -> Metrics:
        metrics: Metrics = {}
        for program in programs:
            current[0], metrics = program.call(current[0], batch)
        return metrics

    return Step(call, programs)
