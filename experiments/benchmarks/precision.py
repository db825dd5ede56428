"""What computing the network in bfloat16 costs and changes, with the same weights."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import models, pgd, runs
from experiments.batchwise import of_each
from experiments.benchmarks import harness, records
from experiments.benchmarks.estimates import check_positive, exact_cross_entropy
from experiments.benchmarks.steps import compile_step, measure_steps, objectives, random_batch
from experiments.config import ORDERS
from experiments.data import Dataset, check_count
from experiments.files import read_json
from experiments.interruption import ending
from experiments.loading import data_of
from experiments.markdown import markdown
from experiments.robustness import losses_for, withstood
from hessjax import (
    finite_step_operator_norm,
    hessian_operator_norm,
    input_gradient_norm,
    lanczos,
)
from hessjax.objective import Apply, Objective, Penalty

NAME = "precision"
PRECISIONS = ("float32", "bfloat16")
_STEPS = ("none", "hessian")
# Images on the device at a time.
_BATCH = 250

QUANTITIES: dict[str, Penalty] = {
    "‖∇f‖": input_gradient_norm,
    "‖Hĝ‖, one product": hessian_operator_norm,
    "‖H‖, ten Lanczos products": partial(
        hessian_operator_norm, solver=partial(lanczos, num_iters=10)
    ),
    **{
        f"finite step {step:g}": partial(finite_step_operator_norm, step=step)
        for step in (1.0, 0.1, 0.01)
    },
}


class Settings(NamedTuple):
    """As in `main`."""

    epsilon: float
    num_steps: int
    num_images: int
    batch_size: int
    repeats: int


@ending("what is done is kept")
def main(
    run: tyro.conf.Positional[tuple[Path, ...]],
    *,
    epsilon: float = 1.5,
    num_steps: int = 40,
    num_images: int = 1000,
    batch_size: int = 256,
    repeats: int = 10,
    out: Path | None = None,
    data_dir: Path | None = None,
) -> None:
    """Evaluate trained networks in float32 and in bfloat16, whichever they were trained in.

    For each run: clean accuracy and accuracy under PGD in both, and by how much the norms in
    bfloat16 differ from those in float32, image by image. For each architecture: the time and
    memory of the plain step and the surrogate's in both. After an interruption, the same command
    continues. For example:

        python -m experiments.benchmarks.precision runs/mnist/none/seed-0

    Args:
        run: folders that experiments.train wrote.
        epsilon: radius of the ℓ₂ ball, pixels in [0, 1].
        num_steps: steps of each PGD attack.
        num_images: how many images, the first of the test set, for attacks and norms.
        batch_size: examples per timed step.
        repeats: measurements of each step, at least 10.
        out: the JSON file; if not given, this device's in experiments/benchmarks/results.
        data_dir: folder of prepared data sets; $HESSJAX_DATA or ~/.cache/hessjax if not given.
    """
    if not run:
        raise ValueError("no run is named, expected a folder that experiments.train wrote")
    settings = Settings(epsilon, num_steps, num_images, batch_size, repeats)
    _check(settings)
    path = records.place(NAME, out)
    records.check(NAME, settings._asdict(), path)
    records.collect(NAME, settings._asdict(), _cells(run, settings, data_dir), path)
    print(table(read_json(path)["rows"]))
    print(f"written: {path}")


def _check(settings: Settings) -> None:
    """Raise before any work if a number is out of range."""
    harness.check_repeats(settings.repeats)
    pgd.settings(num_steps=settings.num_steps)
    for name in ("epsilon", "num_images", "batch_size"):
        if not 0 < (value := getattr(settings, name)) < math.inf:
            raise ValueError(f"{name} must be a finite positive number, got {value}")


def _cells(
    folders: Sequence[Path], settings: Settings, data_dir: Path | None
) -> list[records.Cell]:
    cells: list[records.Cell] = []
    loaded = [runs.load(folder) for folder in folders]
    for run, dataset in zip(loaded, data_of([run.config for run in loaded], data_dir), strict=True):
        check_count("num_images", settings.num_images, dataset)
        config, network = run.config, run.architecture
        shape = {"model": config.model, "activation": config.activation}
        applies = {name: _apply(network, name) for name in PRECISIONS}
        sizes = {key: network[key] for key in ("input_shape", "num_classes")}
        cell = {"kind": "step", **shape, **sizes}
        cells.append((cell, partial(_step_rows, applies, run, settings)))
        trained = {"data": config.data, "method": config.name, "epochs": config.epochs}
        trained |= {"seed": config.seed, "trained": config.precision, "weights": run.weights}
        cell = {"kind": "run", **trained, **shape}
        cells.append((cell, partial(_run_rows, applies, run, settings, dataset)))
    return cells


def _apply(network: Mapping[str, Any], precision: str) -> Apply:
    return models.functional(models.create(**{**network, "precision": precision}, seed=0))[0]


def _step_rows(
    applies: Mapping[str, Apply], run: runs.Run, settings: Settings
) -> list[dict[str, Any]]:
    """Time the steps in both precisions, in turns."""
    shape, num_classes = (run.architecture[key] for key in ("input_shape", "num_classes"))
    drawn = random_batch(shape, num_classes, settings.batch_size)
    batch = jax.tree.map(jnp.asarray, drawn)
    chosen = {
        name if precision == "float32" else f"{name}, {precision}": objective
        for precision, apply in applies.items()
        for name, objective in objectives(apply, settings.batch_size).items()
        if name in _STEPS
    }
    steps = {name: compile_step(each, run.params, batch) for name, each in chosen.items()}
    rows = measure_steps(steps, {}, repeats=settings.repeats)
    return [
        row | {"kept_bytes": kept_bytes(chosen[row["step"]], run.params, batch)} for row in rows
    ]


def kept_bytes(objective: Objective, params: models.Params, batch: tuple) -> int:
    """Return the bytes that a step keeps for its backward pass, on any device.

    As traced, before a compiler may choose to recompute some; excludes parameters and batch.
    """

    def pull(params: models.Params) -> Any:  # noqa: ANN401 - a tree of arrays
        return jax.vjp(lambda p: objective(p, batch, jax.random.key(0))[0], params)[1]

    jaxpr = jax.make_jaxpr(pull)(params).jaxpr
    # By identity: an array kept twice takes its bytes once, and a literal number takes none.
    made = {id(variable): variable.aval for equation in jaxpr.eqns for variable in equation.outvars}
    kept: dict[int, Any] = {id(out): made[id(out)] for out in jaxpr.outvars if id(out) in made}
    return sum(aval.size * aval.dtype.itemsize for aval in kept.values())


def _run_rows(
    applies: Mapping[str, Apply], run: runs.Run, settings: Settings, dataset: Dataset
) -> list[dict[str, Any]]:
    few = dataset._replace(
        test_images=dataset.test_images[: settings.num_images],
        test_labels=dataset.test_labels[: settings.num_images],
    )
    predictions = {name: _predictions(apply, run, dataset) for name, apply in applies.items()}
    rows = [
        {
            "evaluated": name,
            "clean": float(np.mean(predictions[name] == dataset.test_labels)),
            "changed": int(np.sum(predictions[name] != predictions["float32"])),
            "robust": _robust(apply, run, few, settings),
        }
        for name, apply in applies.items()
    ]
    for quantity, penalty in QUANTITIES.items():
        exact, rounded = (_values(apply, run, few, penalty) for apply in applies.values())
        check_positive(quantity, exact)
        error = np.abs(rounded - exact) / exact
        rows.append({
            "quantity": quantity,
            "mean": {"float32": float(exact.mean()), "bfloat16": float(rounded.mean())},
            "median": float(np.median(error)),
            "percentile_95": float(np.quantile(error, 0.95)),
        })  # fmt: skip
    return rows


def _predictions(apply: Apply, run: runs.Run, dataset: Dataset) -> np.ndarray:
    return of_each(_predicted, apply, run.params, (dataset.test_images,), _BATCH)["class"]


def _predicted(apply: Apply, params: models.Params, x: jax.Array) -> dict[str, jax.Array]:
    return {"class": jnp.argmax(apply(params, x))}


def _robust(apply: Apply, run: runs.Run, dataset: Dataset, settings: Settings) -> float:
    *_, (_, right) = withstood(
        apply, run.params, dataset.test_images, dataset.test_labels, order=ORDERS["l2"],
        radii=[settings.epsilon], key=jax.random.key(run.config.seed), num_steps=settings.num_steps,
        losses=list(losses_for(dataset.num_classes).values()),
    )  # fmt: skip
    return float(right.mean())


def _values(apply: Apply, run: runs.Run, dataset: Dataset, penalty: Penalty) -> np.ndarray:
    """Return a penalty at each image, of the cross-entropy in a form without cancellation."""
    examples = dataset.test_images, dataset.test_labels
    found = of_each(_value, (apply, penalty), run.params, examples, _BATCH)
    return found["value"].astype(np.float64)


def _value(
    setting: tuple[Apply, Penalty], params: models.Params, x: jax.Array, y: jax.Array
) -> dict[str, jax.Array]:
    apply, penalty = setting
    return {"value": penalty(lambda t: exact_cross_entropy(apply(params, t), y), x)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as three Markdown tables: steps, accuracies and errors of the norms."""
    steps = [["network", "step", "time", "temporary MB", "kept MB"]]
    for row in (row for row in rows if row["kind"] == "step"):
        shape = "×".join(map(str, row["input_shape"]))
        steps.append([
            f"{row['model']}, {row['activation']}, {shape}", row["step"],
            f"{row['plain_steps']:.2f}×",
            *(f"{row[key] / 1e6:.1f}" for key in ("temporary_bytes", "kept_bytes")),
        ])  # fmt: skip
    named = ["data", "method", "seed", "trained in"]
    accuracies = [[*named, "evaluated in", "clean", "changed", "PGD"]]
    accuracies += [
        [*(str(row[key]) for key in ("data", "method", "seed", "trained", "evaluated")),
         f"{100 * row['clean']:.2f}", str(row["changed"]), f"{100 * row['robust']:.1f}"]
        for row in rows if "evaluated" in row
    ]  # fmt: skip
    # Also by the weights, which older rows lack: several networks may share the other columns.
    errors: dict[tuple[str, ...], dict[str, str]] = {}
    for row in (row for row in rows if "quantity" in row):
        error = f"{100 * row['median']:.2g} / {100 * row['percentile_95']:.2g}"
        shown = (row["data"], row["method"], str(row["seed"]), row["trained"])
        key = (*shown, row.get("weights", ""))
        errors.setdefault(key, {})[row["quantity"]] = error
    off = [[*named, *QUANTITIES]]
    off += [
        [*shown, *(found[name] for name in QUANTITIES)] for (*shown, _), found in errors.items()
    ]
    return "\n\n".join([markdown(steps, 2), markdown(accuracies, 5), markdown(off, 4)])


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.precision")
