"""What a step costs with larger images or more classes, while the network's work stays fixed."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from experiments.benchmarks import harness, records
from experiments.benchmarks.steps import compile_step, measure_steps, objectives, random_batch
from experiments.interruption import ending
from experiments.models import Params, create, functional
from hessjax.objective import Apply

NAME = "scaling"
_SIDE = 28
# Multiplications in the dense layers of the CNN with 10 classes; the hidden width keeps them fixed.
_FEATURES, _DENSE = 7 * 7 * 32, (7 * 7 * 32 + 10) * 100
# Sizes, numbers of classes and examples per step, if none are given.
_USUAL = (28, 56, 112, 224), (10, 30, 100, 300, 1000), 16
_QUICK = (28, 112), (10, 100), 8
STEPS = (
    "none",
    "gradient",
    "hessian",
    "hessian: Lanczos, gradient, 5",
    "hessian, textbook, 10",
    "gauss_newton_operator_norm",
    "jacobian_squared_frobenius_norm",
    "jacobian_operator_norm",
    "adversarial",
)


@ending("what is done is kept")
def main(
    *,
    quick: bool = False,
    sizes: tuple[int, ...] | None = None,
    classes: tuple[int, ...] | None = None,
    batch_size: int | None = None,
    repeats: int = 10,
    out: Path | None = None,
) -> None:
    """Time steps for larger images and for more classes, at a fixed number of operations.

    The network is the CNN with gelu. Larger images are first averaged down to 28x28; for more
    classes the hidden layer becomes narrower. So plain steps cost the same, except for the work on
    the pixels and the logits themselves. For example:

        python -m experiments.benchmarks.scaling --quick
        python -m experiments.benchmarks.scaling --sizes 28 224 --classes 10

    Args:
        quick: only two sizes and two numbers of classes, if these are not given; in under two
            minutes, written to runs/benchmarks.
        sizes: sides of the images, multiples of 28, with 10 classes; 28, 56, 112 and 224 if not
            given.
        classes: numbers of classes, with images of 28x28; 10, 30, 100, 300 and 1000 if not given.
        batch_size: examples per step; 16 if not given, 8 if quick.
        repeats: measurements of each step, at least 10.
        out: the JSON file; if not given, this device's in experiments/benchmarks/results.
    """
    usual = _QUICK if quick else _USUAL
    path = run(
        # An empty tuple is a choice, unlike None.
        usual[0] if sizes is None else sizes,
        usual[1] if classes is None else classes,
        usual[2] if batch_size is None else batch_size,
        repeats=repeats,
        path=records.place(NAME, out, quick=quick),
    )
    print(f"written: {path}")


def run(
    sizes: Sequence[int], classes: Sequence[int], batch_size: int, *, repeats: int, path: Path
) -> Path:
    """Measure what is not in the file yet, and add it to it.

    Raises:
        ValueError: if a number is out of range.
        ArithmeticError: if a result is not finite.
    """
    harness.check_repeats(repeats)
    for size in sizes:
        if size < 1 or size % _SIDE:
            raise ValueError(f"sizes must be multiples of {_SIDE}, got {size}")
    if min(classes, default=2) < 2 or batch_size < 1:
        raise ValueError(
            f"expected at least 2 classes and 1 example, got {min(classes)} and {batch_size}"
        )
    if not (sizes or classes):
        raise ValueError("there is nothing to measure: give sizes or classes")
    settings = {"batch_size": batch_size, "repeats": repeats, "activation": "gelu"}
    # The first ones of both lists are usually the same network.
    networks = [(size, 10) for size in sizes] + [(_SIDE, number) for number in classes]
    cells = [
        ({"size": size, "classes": number}, partial(_measure, size, number, batch_size, repeats))
        for size, number in dict.fromkeys(networks)
    ]
    return records.collect(NAME, settings, cells, path)


def _measure(size: int, num_classes: int, batch_size: int, repeats: int) -> list[dict[str, Any]]:
    apply, params = network(size, num_classes)
    x, y = random_batch((size, size, 1), num_classes, batch_size)
    batch = jnp.asarray(x), jnp.asarray(y)
    known = objectives(apply, batch_size)
    steps = {name: compile_step(known[name], params, batch) for name in STEPS}
    return measure_steps(steps, {}, repeats=repeats)


def network(size: int, num_classes: int) -> tuple[Apply, Params]:
    """Return the CNN, applied to averages over squares of pixels, and random weights."""
    width = round(_DENSE / (_FEATURES + num_classes))
    inner, params = functional(
        create(
            "cnn",
            "gelu",
            input_shape=(_SIDE, _SIDE, 1),
            num_classes=num_classes,
            widths=(width,),
            seed=0,
        )
    )
    return partial(_averaged, inner, size // _SIDE), params


def _averaged(inner: Apply, factor: int, params: Params, x: jax.Array) -> jax.Array:
    blocks = x.reshape(_SIDE, factor, _SIDE, factor)
    return inner(params, jnp.mean(blocks, axis=(1, 3))[..., None])


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.scaling")
