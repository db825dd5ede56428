"""Measurements of trained networks that gather in one JSON file, a cell for each."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import runs
from experiments.files import read_json, write_json
from experiments.train import load_for

Cell = Mapping[str, Any]


def measure_each(
    paths: Sequence[Path],
    settings: Sequence[Cell],
    *,
    out: Path,
    data_dir: Path | None,
    by: Callable[..., Cell],
    shown: Callable[[Sequence[Cell]], str],
) -> None:
    """Measure the runs that are not in a file yet, add each to it, and print its row.

    Args:
        paths: folders that experiments.train wrote.
        settings: of each measurement, as they stand in its cell; ``num_examples`` among them.
        out: the JSON file.
        data_dir: folder of prepared data sets.
        by: ``(run, dataset, **setting)`` to what is measured.
        shown: cells to a Markdown table.

    Raises:
        ValueError: if there are no examples, or a folder holds no run.
    """
    for setting in settings:
        if setting["num_examples"] < 1:
            raise ValueError(f"num_examples must be at least 1, got {setting['num_examples']}")
    for path, setting in zip(paths, settings, strict=True):
        run = runs.load(path)
        cells = read_json(out)["cells"] if out.is_file() else []
        cell: dict[str, Any] = {
            "data": run.config.data,
            "model": run.config.model,
            "method": run.config.name,
            "seed": run.config.seed,
            # The rest of the configuration is not told here, but tells networks apart.
            "weights": run.weights,
            **setting,
        }
        if not any(cell.items() <= done.items() for done in cells):
            measured = by(run, load_for(run.config, data_dir), **setting)
            cell = {**cell, **measured, **runs.provenance()}
            write_json(out, {"cells": [*cells, cell]})
            print(shown([cell]).splitlines()[-1])
