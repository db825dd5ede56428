"""Whole optimizer steps, by training method: what `penalty_cost` times."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

import hessjax
from experiments.benchmarks import textbook
from experiments.benchmarks.estimates import DEFAULT, ESTIMATES
from experiments.benchmarks.harness import Program, compile_program, measure
from experiments.methods import METHODS, Setting
from experiments.models import Params
from hessjax import Lazy, TrainState, regularized, second_order, train_step
from hessjax._numerics import ScalarFunction
from hessjax.objective import Apply, Metrics, Objective, Penalty
from hessjax.penalties import Key

_OPTIMIZER = optax.adam(1e-3)
# Radius of the ball and length of a finite step. They do not affect any time.
EPSILON, STEP = 1.0, 1.0
CHUNKED = "hessian, in four chunks"
ACCUMULATED = "hessian, from four slices"

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

    They are ``none``; ``gradient`` and ``hessian`` of the shared sweep, the latter also with each
    solver, start and number of products, lazy, partial, in chunks, and inside the ball, after one
    or more steps; each penalty added to the loss, under its own name; training on attacked inputs;
    and textbook forms of ``gradient`` and ``hessian``.
    """
    surrogate = partial(second_order, apply, cross_entropy, EPSILON, EPSILON**2 / 2)
    by_text = partial(textbook.objective, apply, cross_entropy, EPSILON, EPSILON**2 / 2)

    def beside(penalty: Penalty) -> Objective:
        return regularized(apply, cross_entropy, {"penalty": (EPSILON, penalty)})

    def double_backpropagation(f: ScalarFunction, x: jax.Array, key: Key = None) -> jax.Array:
        del key
        return textbook.gradient_norm(f, x)

    def attacked(method: str, **options: int) -> Objective:
        setting = Setting(EPSILON, STEP, 2, optax.constant_schedule(1))._replace(**options)
        return METHODS[method].build(apply, setting)

    return {
        "none": second_order(apply, cross_entropy, 0, 0),
        "gradient": second_order(apply, cross_entropy, EPSILON, 0),
        "gradient, double backpropagation": beside(double_backpropagation),
        "hessian": surrogate(),
        "hessian, every=5": surrogate(every=5),
        "hessian, parts=4": surrogate(parts=4),
        "hessian, five Lanczos products, parts=4": surrogate(
            **ESTIMATES["Lanczos, gradient, 5"].options, parts=4
        ),
        CHUNKED: surrogate(chunk_size=-(-batch_size // 4)),
        **{
            f"hessian: {name}": surrogate(**estimate.options)
            for name, estimate in ESTIMATES.items()
            # Ascent costs as much as power iteration with the same number of products.
            if name != DEFAULT and not name.startswith("ascent")
        },
        "hessian, textbook, 10": by_text(num_iters=10),
        "hessian, textbook, 5": by_text(num_iters=5),
        **{name: beside(penalty) for name, penalty in _PENALTIES.items()},
        "hessian-inside": attacked("hessian-inside"),
        "hessian-inside, parts=4": attacked("hessian-inside", parts=4),
        "hessian-inside, num_steps=3, parts=2": attacked("hessian-inside", num_steps=3, parts=2),
        "hessian-inside, num_steps=4, parts=4": attacked("hessian-inside", num_steps=4, parts=4),
        "adversarial": attacked("adversarial"),
        "adversarial, num_steps=3": attacked("adversarial", num_steps=3),
        "fgsm": attacked("fgsm"),
    }


class Step(NamedTuple):
    """Compiled optimizer steps, each continuing from the last.

    Attributes:
        call: takes some steps and returns the last metrics.
        programs: what a call runs, one after the other.
        num_steps: how many steps a call takes.
    """

    call: Callable[[], Metrics]
    programs: tuple[Program, ...]
    num_steps: int

    @property
    def facts(self) -> dict[str, float | None]:
        """What the compiler says about a step: operations on average, memory at most."""
        operations = [program.operations for program in self.programs]
        known = [n for n in operations if n is not None]
        return {
            "compile_seconds": sum(p.compile_seconds for p in set(self.programs)),
            "operations": sum(known) / self.num_steps if len(known) == len(operations) else None,
            "temporary_bytes": _largest([p.temporary_bytes for p in self.programs]),
            "peak_bytes": _largest([p.peak_bytes for p in self.programs]),
        }


def _largest(sizes: list[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return max(known, default=None)


def compile_step(objective: Objective, params: Params, batch: tuple) -> Step:
    """Compile the step of an objective, or the whole cycle of a lazy one's steps."""
    parts = [objective.at(i) for i in range(objective.every)] if isinstance(objective, Lazy) else []
    parts = parts or [objective]
    return _compiled(parts, _OPTIMIZER, params, [batch] * len(parts), num_steps=len(parts))


def compile_accumulated(objective: Objective, params: Params, batch: tuple, count: int) -> Step:
    """Compile a step whose gradient is accumulated over ``count`` slices of the batch."""
    size = len(batch[0]) // count
    slices = [
        jax.tree.map(lambda a, i=i: a[i * size : (i + 1) * size], batch) for i in range(count)
    ]
    optimizer = optax.MultiSteps(_OPTIMIZER, count).gradient_transformation()
    return _compiled([objective] * count, optimizer, params, slices, num_steps=1)


def _compiled(
    objectives: Sequence[Objective],
    optimizer: optax.GradientTransformation,
    params: Params,
    batches: Sequence[tuple],
    *,
    num_steps: int,
) -> Step:
    state = TrainState.create(params, optimizer, jax.random.key(0))
    known = {
        objective: compile_program(train_step(objective, optimizer), state, batches[0], donate=(0,))
        for objective in dict.fromkeys(objectives)
    }
    programs = tuple(known[objective] for objective in objectives)
    current = [state]

    def call() -> Metrics:
        metrics: Metrics = {}
        for program, batch in zip(programs, batches, strict=True):
            current[0], metrics = program.call(current[0], batch)
        return metrics

    return Step(call, programs, num_steps)


def random_batch(
    input_shape: Sequence[int], num_classes: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw images and labels."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(batch_size, *input_shape)).astype(np.float32)
    return x, rng.integers(num_classes, size=batch_size)


def measure_steps(
    steps: Mapping[str, Step], others: Mapping[str, Callable[[], Any]], *, repeats: int
) -> list[dict[str, Any]]:
    """Time steps, one of which is ``none``, and other calls that take one step each, in turns.

    Returns:
        A row for each: ``step``, its name; ``seconds`` of one step; ``plain_steps``, the same in
        units of ``none``; and the `Step.facts`, where there are any.
    """
    calls = {name: step.call for name, step in steps.items()} | dict(others)
    timings = measure(calls, repeats=repeats)
    counts = {name: step.num_steps for name, step in steps.items()}
    seconds = {name: t.times(1 / counts.get(name, 1)) for name, t in timings.items()}
    return [
        {
            "step": name,
            "seconds": timing._asdict(),
            "plain_steps": timing.median / seconds["none"].median,
            **(steps[name].facts if name in steps else {}),
        }
        for name, timing in seconds.items()
    ]
