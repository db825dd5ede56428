"""Measurements of trained networks, gathered in one JSON file, a cell for each."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import provenance, runs
from experiments.config import NORM_NAMES, ORDERS, Norm
from experiments.data import check_count
from experiments.files import read_json, shared, write_json
from experiments.loading import data_of
from experiments.twin import run_twin
from hessjax import LpBall

Cell = Mapping[str, Any]
Shown = Callable[[Sequence[Cell]], str]
# The columns that identify the network and the ball of a cell, at the left of a table.
COLUMNS = ("data", "model", "method", "ball")


def measure_each(
    paths: Sequence[Path],
    settings: Sequence[Cell],
    *,
    out: Path,
    data_dir: Path | None,
    by: Callable[..., Cell],
    shown: Shown,
    kept: Callable[..., bool] | None = None,
) -> list[runs.Run]:
    """Measure the runs that are not in a file yet, add each to it, and print its row.

    Whatever can be refused is refused before the first measurement. Meanwhile, other processes may
    add to the same file.

    Args:
        paths: folders that experiments.train wrote.
        settings: those of each measurement, as its cell records them, including ``num_examples``.
        out: the JSON file.
        data_dir: folder of prepared data sets.
        by: ``(run, dataset, **setting)`` to what is measured.
        shown: cells to a Markdown table.
        kept: ``(run, **setting)`` to whether what a measurement leaves outside the file is there;
            if not, it is made again, and its cell replaced. None if it leaves nothing else.

    Returns:
        The runs.

    Raises:
        ValueError: if no run is named, a folder holds none, or one without a twin in PyTorch; if
            there are too few examples; or if the file holds something else.
        OSError: if the file cannot be written.
    """
    if not paths:
        raise ValueError("no run is named, expected a folder that experiments.train wrote")
    _read(out, shown)
    measured = [runs.load(path) for path in paths]
    for run in measured:
        run_twin(run)  # what is measured here is compared with packages for PyTorch
    datasets = data_of([run.config for run in measured], data_dir)
    for dataset, setting in zip(datasets, settings, strict=True):
        check_count("num_examples", setting["num_examples"], dataset)
    with shared(out):
        pass  # nor can a measurement be kept where this is not possible
    for run, dataset, setting in zip(measured, datasets, settings, strict=True):
        cell = {
            "data": run.config.data,
            "model": run.config.model,
            "method": run.config.name,
            "seed": run.config.seed,
            # They distinguish networks that differ in settings not listed here.
            "weights": run.weights,
            **setting,
        }
        cells = _read(out, shown)
        if _place(cell, cells) < len(cells) and (kept is None or kept(run, **setting)):
            continue
        setup = {"setup": run.config.setup}
        whole = {**cell, **setup, **by(run, dataset, **setting), **provenance.collect()}
        with shared(out):
            cells = _read(out, shown)  # again: a measurement takes minutes, and others add theirs
            place = _place(cell, cells)
            write_json(out, {"cells": [*cells[:place], whole, *cells[place + 1 :]]})
        print(shown([whole]).splitlines()[-1])
    return measured


def balls(
    run: Sequence[Path], norm: Norm, epsilon: Sequence[float], num_examples: int
) -> list[dict[str, Any]]:
    """Return what each run is attacked with.

    Args:
        run: folders that experiments.train wrote.
        norm: of the balls.
        epsilon: radius of the balls: one for all runs, or one for each.
        num_examples: how many examples, the first of the test set.

    Raises:
        ValueError: if there is neither one radius for all nor one for each, or one is invalid.
    """
    if len(epsilon) not in {1, len(run)}:
        raise ValueError(
            f"epsilon must be one radius, or one for each of the {len(run)} runs, "
            f"got {len(epsilon)}"
        )
    for radius in epsilon:
        LpBall(radius, ORDERS[norm])
    radii = list(epsilon) * (len(run) if len(epsilon) == 1 else 1)
    return [{"norm": norm, "epsilon": radius, "num_examples": num_examples} for radius in radii]


def columns(cell: Cell) -> list[str]:
    """Return a row's entries for `COLUMNS`."""
    ball = f"{NORM_NAMES[cell['norm']]} {cell['epsilon']:g}"
    return [cell["data"], cell["model"], cell["method"], ball]


def _read(out: Path, shown: Shown) -> list[Cell]:
    """Return the cells of a file, none if it is not there.

    Raises:
        ValueError: if the table could not show them.
    """
    if out.is_dir():
        raise ValueError(f"out must be a JSON file, but {out} is a folder")
    if not out.is_file():
        return []
    content = read_json(out)
    try:
        shown(content["cells"])
        return list(content["cells"])
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{out} holds something other than this program's results: name another file"
        ) from error


def _place(cell: Cell, cells: Sequence[Cell]) -> int:
    """Return the index of a cell's measurement, or the number of cells if it is not there."""
    there = (place for place, done in enumerate(cells) if cell.items() <= done.items())
    return next(there, len(cells))
