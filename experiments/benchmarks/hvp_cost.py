"""What a Hessian-vector product in the input costs, depending on the form it is computed in."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

from experiments.benchmarks import harness, records
from experiments.benchmarks.hvp_forms import (
    STEP,
    UNIT,
    Derivative,
    Form,
    forms,
    forward_over_reverse,
)
from experiments.benchmarks.resnet import ResNet
from experiments.interruption import ending
from experiments.models import Params, create, functional
from hessjax.objective import Apply

Model = Literal["mlp", "cnn", "resnet"]
DType = Literal["float32", "bfloat16"]

NAME = "hvp_cost"
# This many examples, the first of each batch, are compared with double precision.
_NUM_COMPARED = 16
IMAGES: dict[str, tuple[int, int, int]] = {
    "mlp": (28, 28, 1), "cnn": (28, 28, 1), "resnet": (32, 32, 3)
}  # fmt: skip
_PARAMETERS = "parameter gradient"


class Case(NamedTuple):
    """A network and a batch; `v` and `u` are unit directions like `x`, one for each example."""

    params: Params
    x: jax.Array
    y: jax.Array
    v: jax.Array
    u: jax.Array


@ending("the cells so far are kept")
def main(
    *,
    quick: bool = False,
    models: tuple[Model, ...] | None = None,
    batch_sizes: tuple[int, ...] | None = None,
    dtypes: tuple[DType, ...] | None = None,
    products: tuple[int, ...] | None = None,
    repeats: int = 10,
    out: Path | None = None,
) -> None:
    """Time the ways to multiply the input Hessian by a vector, for batches.

    Weights and images are random; activations are gelu. Each cell of model, precision and batch
    size is written when it is done. After an interruption, the same command continues, if the code
    is that of the same commit without changes. Give XLA one thread, or the whole machine:

        python -m experiments.benchmarks.hvp_cost --quick
        python -m experiments.benchmarks.hvp_cost --models cnn --batch-sizes 128

    Args:
        quick: a few cells in under two minutes, written to runs/benchmarks.
        models: mlp and cnn on 28x28x1, resnet on 32x32x3; all if not given.
        batch_sizes: 1, 8, 64 and 512 if not given; on an accelerator also 2048 and 8192.
        dtypes: types of weights and inputs; float32 and bfloat16 if not given.
        products: how many times a linearization is applied; 1, 4 and 16 if not given.
        repeats: measurements of each form, at least 10.
        out: the JSON file; if not given, this device's in experiments/benchmarks/results.
    """
    path = run(
        models or (("mlp", "cnn") if quick else ("mlp", "cnn", "resnet")),
        dtypes or (("float32",) if quick else ("float32", "bfloat16")),
        batch_sizes or _batch_sizes(quick=quick),
        products=products or ((1, 4) if quick else (1, 4, 16)),
        repeats=repeats,
        path=records.place(NAME, out, quick=quick),
    )
    print(f"written: {path}")


def _batch_sizes(*, quick: bool) -> tuple[int, ...]:
    if quick:
        return (8,)
    return (1, 8, 64, 512, *(() if jax.default_backend() == "cpu" else (2048, 8192)))


def run(
    names: Sequence[Model],
    dtypes: Sequence[DType],
    batch_sizes: Sequence[int],
    *,
    products: Sequence[int],
    repeats: int,
    path: Path,
) -> Path:
    """Measure the cells that are not in the file yet, and add them to it.

    Raises:
        ValueError: if a number is out of range.
        ArithmeticError: if a result is not finite.
    """
    harness.check_repeats(repeats)
    for name, values in (("batch_sizes", batch_sizes), ("products", products)):
        if min(values) < 1:
            raise ValueError(f"{name} must be at least 1, got {min(values)}")
    settings = {
        "repeats": repeats,
        "products": sorted(set(products)),
        "activation": "gelu",
        "num_compared": _NUM_COMPARED,
        "finite_difference_step": STEP,
    }
    chosen = forms(settings["products"])
    cells = [
        (
            {"model": name, "dtype": dtype, "batch_size": batch_size},
            partial(measure_cell, name, dtype, batch_size, chosen, repeats=repeats),
        )
        for name, dtype, batch_size in itertools.product(names, dtypes, batch_sizes)
    ]
    return records.collect(NAME, settings, cells, path, shown=_summary)


def measure_cell(
    name: Model, dtype: DType, batch_size: int, chosen: Mapping[str, Form], *, repeats: int
) -> list[dict[str, Any]]:
    """Measure all forms on one network in one precision, batch by batch.

    Returns:
        A row for each form, and one for the gradient in the parameters: ``form``; ``num_products``
        in a result; ``timing``, of the batch; ``ratio``, of the time of a product (of a gradient,
        if there is no product) to that of the gradient in the input; ``relative_error``, the
        difference from double precision at the same, rounded weights and inputs, median over the
        first examples; and what the compiler says, see `experiments.benchmarks.harness.Program`.
    """
    apply, case = network(name)[0], make_case(name, dtype, batch_size)
    calls, programs = {}, {}
    for form, (derivative, *_) in chosen.items():
        programs[form] = harness.compile_program(batched(apply, derivative), *case)
        calls[form] = partial(programs[form].call, *case)
    plain = case.params, case.x, case.y
    programs[_PARAMETERS] = harness.compile_program(_parameter_gradient(apply), *plain)
    calls[_PARAMETERS] = partial(programs[_PARAMETERS].call, *plain)
    timings = harness.measure(calls, repeats=repeats)
    errors = {
        form: _error(calls[form](), exact_results(name, dtype, chosen[form].exact))
        for form in chosen
    }
    rows = []
    for form, (_, *facts) in programs.items():
        num_products = chosen[form].num_products if form in chosen else 0
        row = {
            "form": form,
            "num_products": num_products,
            "timing": timings[form]._asdict(),
            "ratio": timings[form].median / max(num_products, 1) / timings[UNIT].median,
            "relative_error": errors.get(form),
        }
        rows.append(row | dict(zip(harness.Program._fields[1:], facts, strict=True)))
    return rows


def batched(apply: Apply, derivative: Derivative) -> Callable[..., jax.Array]:
    """Return ``(params, x, y, v, u)`` to the derivatives of the losses of a batch."""

    def one(params: Params, x: jax.Array, y: jax.Array, v: jax.Array, u: jax.Array) -> jax.Array:
        return derivative(lambda t: cross_entropy(apply(params, t), y), x, v, u)

    return jax.vmap(one, in_axes=(None, 0, 0, 0, 0))


def _parameter_gradient(apply: Apply) -> Callable[[Params, jax.Array, jax.Array], Params]:
    def mean_loss(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(cross_entropy(jax.vmap(partial(apply, params))(x), y))

    return jax.grad(mean_loss)


@cache
def network(name: Model) -> tuple[Apply, Params]:
    """Return a network with random weights, normalized for uniformly random pixels."""
    if name == "resnet":
        return functional(ResNet(rngs=nnx.Rngs(0)))
    return functional(
        create(
            name, "gelu", input_shape=IMAGES[name], num_classes=10, seed=0, mean=[0.5], std=[0.29]
        )
    )


def make_case(name: Model, dtype: str, batch_size: int) -> Case:
    """Draw a batch; u is Hv / ‖Hv‖, where uᵀHv is the norm of the product.

    The first examples are the same in batches of every size. After `_NUM_COMPARED` examples the u
    repeat: results there are not compared.
    """
    case = _drawn(name, dtype, batch_size)
    u = _unit(exact_results(name, dtype, forward_over_reverse))
    return case._replace(u=jnp.asarray(np.resize(u, case.v.shape), dtype))


def _drawn(name: Model, dtype: str, batch_size: int) -> Case:
    """Draw a batch whose u is v."""
    x = np.random.default_rng(0).random((batch_size, *IMAGES[name]))
    v = _unit(np.random.default_rng(1).standard_normal(x.shape))
    y = jnp.asarray(np.random.default_rng(2).integers(0, 10, batch_size, np.int32))
    narrow = partial(jnp.asarray, dtype=dtype)
    return Case(jax.tree.map(narrow, network(name)[1]), narrow(x), y, narrow(v), narrow(v))


@cache
def exact_results(name: Model, dtype: str, derivative: Derivative) -> np.ndarray:
    """Evaluate a derivative of the first examples in double precision, for batches of any size."""
    first = _drawn if derivative is forward_over_reverse else make_case
    case = first(name, dtype, _NUM_COMPARED)
    # It runs once: most of the time would be spent on optimizing it.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    with jax.enable_x64(new_val=True):
        function = jax.jit(batched(network(name)[0], derivative), compiler_options=options)
        return np.asarray(function(*jax.tree.map(_widened, case)))


def _widened(leaf: jax.Array) -> np.ndarray:
    return np.asarray(leaf, np.float64 if jnp.issubdtype(leaf.dtype, jnp.inexact) else None)


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors.reshape(len(vectors), -1), axis=1)
    return vectors / lengths.reshape(-1, *[1] * (vectors.ndim - 1))


def _error(result: jax.Array, expected: np.ndarray) -> float:
    """Return the median over the first examples of ‖result − expected‖ / ‖expected‖."""
    got = _widened(result[:_NUM_COMPARED])
    expected = expected[: len(got)]
    norms = [np.linalg.norm(a.reshape(len(got), -1), axis=1) for a in (got - expected, expected)]
    return float(np.median(norms[0] / norms[1]))


def _summary(cell: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what a user may want to see while the next cell is measured."""
    head = "{model}, {dtype}, batch {batch_size}".format_map(cell)
    lines = [f"{head}: time in input gradients, relative error"]
    for row in rows:
        error = "" if row["relative_error"] is None else f"{row['relative_error']:10.1e}"
        lines.append(f"  {row['form']:<22}{row['ratio']:7.2f}{error}")
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.hvp_cost")
