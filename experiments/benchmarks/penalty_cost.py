"""What a regularized optimizer step costs, and how accurate its estimate of the norm is."""

import importlib.util
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import tyro

from experiments import runs
from experiments.benchmarks import harness, labels, records
from experiments.benchmarks.estimates import DEFAULT, ESTIMATES, relative_errors, summary
from experiments.benchmarks.steps import (
    ACCUMULATED,
    EPSILON,
    STEP,
    compile_accumulated,
    compile_step,
    measure_steps,
    objectives,
    random_batch,
)
from experiments.config import Config, kind_of_images
from experiments.data import Dataset, check_count
from experiments.interruption import ending
from experiments.loading import data_of, load_for
from experiments.train import train

NAME = "penalty_cost"
# What the names of PyTorch's steps begin with.
_REFERENCE = "PyTorch: "
_COMPILED = f"{_REFERENCE}hessian, compiled"
# Into which a batch is divided to accumulate its gradient.
_SLICES = 4
# With --quick, only these.
_QUICK_STEPS = (
    *("none", "gradient", "hessian", "hessian, parts=4", "hessian: Lanczos, gradient, 3"),
    *("gauss_newton_operator_norm", "adversarial", "PyTorch: none", "PyTorch: hessian"),
)
_QUICK_ESTIMATES = (DEFAULT, "Lanczos, gradient, 3", "power, random, 3")
_QUICK_EPOCHS = 10


@ending("what is done is kept")
def main(
    run: tyro.conf.Positional[tuple[Path, ...]] = (),
    *,
    quick: bool = False,
    steps: tuple[str, ...] = (),
    batch_size: int = 128,
    num_images: int | None = None,
    repeats: int = 10,
    reference: bool = True,
    out: Path | None = None,
    data_dir: Path | None = None,
) -> None:
    """Time whole optimizer steps by training method, and measure the accuracy of each estimate.

    For each architecture among the runs, it times the steps of all penalties and training methods,
    and of their PyTorch and textbook forms, in turns. For each run, it measures the relative error
    of every estimate of the Hessian's norm against dense eigenvalues, on the first test images.
    Results are written as they come, and after an interruption the same command continues. For
    example:

        python -m experiments.benchmarks.penalty_cost --quick
        python -m experiments.benchmarks.penalty_cost runs/mnist/none/seed-0
        python -m experiments.benchmarks.penalty_cost --steps hessian adversarial --out cost.json

    Args:
        run: folders of trained networks; if none is given, some are trained on the digits, and kept
            in runs/benchmarks.
        quick: fewer forms and images, in under two minutes, written to runs/benchmarks.
        steps: time only these, by their names in the report, and compare no estimates; also
            written to runs/benchmarks.
        batch_size: examples per step.
        num_images: test images that the estimates are compared on; 96 if not given, 16 if quick.
        repeats: measurements of each step, at least 10.
        reference: also time PyTorch's forms; needs the extra hessjax[reference].
        out: the JSON file; if not given, this device's in experiments/benchmarks/results.
        data_dir: folder of prepared data sets; $HESSJAX_DATA or ~/.cache/hessjax if not given.
    """
    small = quick or bool(steps)
    path = records.place(NAME, out, quick=small)
    images = (16 if quick else 96) if num_images is None else num_images
    settings = Settings(batch_size, images, repeats, quick, reference, steps)
    settings.check()
    records.check(NAME, settings._asdict(), path)
    measure(run or _digits(settings, quick=small), settings, path, data_dir)
    print(f"written: {path}")


class Settings(NamedTuple):
    """As in `main`."""

    batch_size: int
    num_images: int
    repeats: int
    quick: bool
    reference: bool
    steps: tuple[str, ...] = ()

    @property
    def wanted(self) -> tuple[str, ...] | None:
        """Names of the steps to time; None for all."""
        return ("none", *self.steps) if self.steps else _QUICK_STEPS if self.quick else None

    def wants(self, name: str) -> bool:
        """Whether a step is one of the wanted ones."""
        return self.wanted is None or name in self.wanted

    @property
    def needs_reference(self) -> bool:
        """Whether any of the wanted steps is PyTorch's."""
        wanted = self.wanted
        named = wanted is None or any(name.startswith(_REFERENCE) for name in wanted)
        return self.reference and named

    def check(self) -> None:
        """Raise unless the numbers are in range and the named steps exist."""
        harness.check_repeats(self.repeats)
        for name in ("batch_size", "num_images"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.wants(ACCUMULATED) and self.batch_size % _SLICES:
            raise ValueError(
                f"batch_size must be a multiple of {_SLICES}, into as many slices of which a step "
                f"accumulates its gradient, got {self.batch_size}"
            )
        if self.needs_reference and importlib.util.find_spec("torch") is None:
            raise ValueError(
                "PyTorch's forms need the extra: pip install '.[reference]', or give --no-reference"
            )
        there = self.known
        if unknown := [name for name in self.steps if name not in there]:
            # Many have commas and spaces in them: quoted, as a shell takes them.
            raise ValueError(
                f"unknown steps {shlex.join(unknown)}: expected some of {shlex.join(there)}"
            )

    @property
    def known(self) -> tuple[str, ...]:
        """Names of all steps that exist."""
        own = (*objectives(lambda _, x: x, self.batch_size), ACCUMULATED)
        return (*own, *_reference_names()) if self.needs_reference else own

    def check_images(self, dataset: Dataset) -> None:
        """Raise unless there are enough images to compare estimates on."""
        if not self.steps:
            check_count("num_images", self.num_images, dataset)


def _digits(settings: Settings, *, quick: bool) -> tuple[Path, ...]:
    """Train networks on the digits, unless they exist already, and return their folders."""
    folder = records.SCRATCH / ("digits-quick" if quick else "digits")
    activations = ("gelu",) if quick else ("gelu", "relu", "softplus")
    configs = {
        f"{method}-{activation}": Config(
            method=method, activation=activation, epochs=_QUICK_EPOCHS if quick else None
        ).resolved()
        for activation in activations
        for method in ("none", "hessian")
    }
    dataset = load_for(Config().resolved())
    settings.check_images(dataset)
    for name, config in configs.items():
        if not runs.is_trained(folder / name, config):
            train(config, dataset, folder / name)
    return tuple(folder / name for name in configs)


def measure(folders: Sequence[Path], settings: Settings, path: Path, data_dir: Path | None) -> None:
    """Measure what is not in the file yet, and add it.

    Raises:
        ValueError: if a folder holds no run, or there are too few images.
        ArithmeticError: if a result is not finite.
    """
    loaded = [runs.load(folder) for folder in folders]
    # If estimates are not compared, no data are needed.
    compared = () if settings.steps else loaded
    datasets = data_of([run.config for run in compared], data_dir)
    for dataset in datasets:
        settings.check_images(dataset)
    cells: list[records.Cell] = []
    for run in loaded:
        config = run.config
        network = {"model": config.model, "activation": config.activation}
        sizes = {key: run.architecture[key] for key in ("input_shape", "num_classes")}
        cell = {"kind": "step", **network, "precision": config.precision, **sizes}
        cells.append((cell, partial(_step_rows, run, settings)))
    for run, dataset in zip(compared, datasets, strict=True):
        config = run.config
        described = {"data": config.data, "method": config.name, "epochs": config.epochs}
        network = {"model": config.model, "activation": config.activation}
        network |= {"precision": config.precision, "weights": run.weights}
        cell = {"kind": "error", **described, **network, "seed": config.seed}
        cells.append((cell, partial(_error_rows, run, settings, dataset)))
    records.collect(NAME, settings._asdict(), cells, path)


def _step_rows(run: runs.Run, settings: Settings) -> list[dict[str, Any]]:
    shape, num_classes = (run.architecture[key] for key in ("input_shape", "num_classes"))
    x, y = random_batch(shape, num_classes, settings.batch_size)
    batch = jnp.asarray(x), jnp.asarray(y)
    known = objectives(run.apply, settings.batch_size)
    makers = {name: partial(compile_step, objective) for name, objective in known.items()}
    makers[ACCUMULATED] = partial(compile_accumulated, known["hessian"], count=_SLICES)
    steps = {n: make(run.params, batch) for n, make in makers.items() if settings.wants(n)}
    others = {}
    if settings.needs_reference and run.config.precision == labels.USUAL:
        others = _reference_calls(run, settings, x, y)
    elif settings.needs_reference:
        # In float32 they would be steps of another network.
        print(f"without PyTorch's forms, which have no {run.config.precision}", file=sys.stderr)
    return measure_steps(steps, others, repeats=settings.repeats)


def _reference_names() -> tuple[str, ...]:
    # Not at the top: whoever does without these does not need PyTorch.
    from experiments.benchmarks.reference import STEPS  # noqa: PLC0415

    return (*(f"{_REFERENCE}{name}" for name in STEPS), _COMPILED)


def _reference_calls(
    run: runs.Run, settings: Settings, x: np.ndarray, y: np.ndarray
) -> dict[str, Callable[[], Any]]:
    """Return PyTorch's steps by name, without the compiled one if this PyTorch has none."""
    from experiments.benchmarks import reference  # noqa: PLC0415 - as above

    weights = {"epsilon": EPSILON, "weight": EPSILON, "step": STEP}
    make = partial(reference.steps, run.architecture, run.params, x, y, **weights)
    calls: dict[str, Callable[[], Any]] = {
        f"{_REFERENCE}{name}": call for name, call in make().items()
    }
    if settings.wants(_COMPILED):
        try:
            calls[_COMPILED] = make()["hessian"].compile()
        except RuntimeError as error:
            print(f"without PyTorch's compiled form: {error}", file=sys.stderr)
    return {name: call for name, call in calls.items() if settings.wants(name)}


def _error_rows(run: runs.Run, settings: Settings, dataset: Dataset) -> list[dict[str, Any]]:
    x = dataset.test_images[: settings.num_images]
    y = dataset.test_labels[: settings.num_images]
    chosen = _QUICK_ESTIMATES if settings.quick else ESTIMATES
    estimates = {name: ESTIMATES[name] for name in chosen}
    norms, errors = relative_errors(run.apply, run.params, x, y, estimates)
    shared = {"images": kind_of_images(run.config.validation), "mean_norm": float(norms.mean())}
    return [
        {"estimate": name, **shared, "error": summary(norms, error)}
        for name, error in errors.items()
    ]


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.penalty_cost")
