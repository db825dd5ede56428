"""Test the theory on trained networks: distances, and the reliability of the norm's estimate."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from scipy.stats import spearmanr

from experiments import runs
from experiments.canvas import style
from experiments.cells import measure_each
from experiments.config import Config, kind_of_images
from experiments.data import Dataset
from experiments.distances import ESTIMATES, measure
from experiments.files import read_arrays, read_json, write_arrays
from experiments.interruption import ending
from experiments.markdown import NOTHING, markdown, number
from experiments.trends import Distances, calibration

_ARRAYS = "distances.npz"
# Number of groups of examples, by their estimate, in the figure.
_GROUPS = 10
_TITLES = {
    "loss_first": "loss, first order",
    "loss_second": "loss, second order",
    "margin_first": "margins, first order",
    "margin_second": "margins, second order",
}
# From this share of the norm on, an estimate of it is off, and a residual warns of that.
_OFF = 0.1


@ending()
def main(
    run: tyro.conf.Positional[tuple[Path, ...]],
    *,
    num_examples: int = 500,
    out: Path = Path("runs/theory.json"),
    data_dir: Path | None = None,
) -> None:
    """Compare estimates of the distance to the decision boundary with what attacks find.

    The ℓ₂ distance is estimated to first order, from gap and gradient, and to second order, with
    curvature, of the loss and of all margins. It is compared with the nearest of the points that
    FAB, DDN (foolbox) and APGD in shrinking balls find. Needs the extra hessjax[reference]. A run
    that is in the file already is not measured again, unless its folder lacks the arrays.

    Args:
        run: folders that experiments.train wrote.
        num_examples: how many examples of the test set, or of the held-out examples, the first ones
            that are correctly classified.
        out: the JSON file that a summary of each run is added to. Arrays go into RUN/distances.npz,
            and a calibration plot of the runs goes beside the JSON file, with the ending .png.
        data_dir: folder of prepared data sets; $HESSJAX_DATA or ~/.cache/hessjax if not given.
    """
    if out.suffix == ".png":
        raise ValueError(f"out must not end with .png, because the plot does, got {out}")
    if len({runs.read_config(path).validation for path in run}) > 1:
        raise ValueError(
            "the runs held out different numbers of examples, so they have no images in common"
        )
    settings = [{"num_examples": num_examples}] * len(run)
    measured = measure_each(
        run, settings, out=out, data_dir=data_dir, by=held, shown=table, kept=_kept
    )
    draw(out.with_suffix(".png"), measured, num_examples)
    networks = {run.weights for run in measured}
    there = [
        cell
        for cell in read_json(out)["cells"]
        if cell.get("num_examples") == num_examples and cell.get("weights") in networks
    ]
    for data in dict.fromkeys(run.config.data for run in measured):
        cells = [cell for cell in there if cell["data"] == data]
        if (found := across(cells)) is not None:
            print(
                "rank correlation of mean norm and mean distance, "
                f"{len(cells)} networks on {data}: {found:+.2f}"
            )


def held(run: runs.Run, dataset: Dataset, num_examples: int) -> dict[str, Any]:
    """Measure a run, keep the arrays in its folder, and return the `summary`."""
    with runs.locked(run.path):
        arrays = measure(run, dataset, num_examples)
        write_arrays(run.path / _ARRAYS, {**arrays, **_origin(run, num_examples)})
    return summary(arrays)


def _origin(run: runs.Run, num_examples: int) -> dict[str, Any]:
    """Return what distinguishes the arrays of one measurement from those of another."""
    return {"num_examples": num_examples, "weights": run.weights}


def _arrays(run: runs.Run, num_examples: int) -> dict[str, np.ndarray] | None:
    """Return the arrays in a run's folder, None if missing, damaged or of another measurement."""
    try:
        arrays = read_arrays(run.path / _ARRAYS)
    except (FileNotFoundError, ValueError):
        return None
    origin = _origin(run, num_examples)
    same = all(np.array_equal(arrays.get(name, ()), value) for name, value in origin.items())
    return {name: value for name, value in arrays.items() if name not in origin} if same else None


def _kept(run: runs.Run, num_examples: int) -> bool:
    return _arrays(run, num_examples) is not None


def draw(path: Path, measured: Sequence[runs.Run], num_examples: int) -> None:
    """Draw estimated against found distances of networks whose arrays are in their folders.

    Raises:
        ValueError: if a folder lacks the arrays of this many examples for its weights.
    """
    alike: dict[Config, list[dict[str, np.ndarray]]] = {}
    for run in measured:
        arrays = _arrays(run, num_examples)
        if arrays is None:  # another process replaced them
            raise ValueError(
                f"{run.path / _ARRAYS} holds no distances of {num_examples} examples of this "
                "network: the same command measures them again"
            )
        alike.setdefault(replace(run.config, seed=0), []).append(arrays)
    networks, names = [], []
    cells = [{"method": config.name, "setup": config.setup} for config in alike]
    data = list(dict.fromkeys(config.data for config in alike))
    labels = [
        f"{config.data} {label}" if len(data) > 1 else label
        for label, config in zip(_labels(cells), alike, strict=True)
    ]
    for label, (config, seeds) in zip(labels, alike.items(), strict=True):
        names.append(config.method)
        look = style(config.method, names.count(config.method) - 1)
        whole = {name: np.concatenate([arrays[name] for arrays in seeds]) for name in seeds[0]}
        estimates = {_TITLES[name]: whole[name] for name in ESTIMATES}
        networks.append(Distances(label, look, whole["found"], estimates))
    if networks:
        kind = kind_of_images(measured[0].config.validation)
        note = (
            f"Distance to the decision boundary of the first rightly classified {kind} images: "
            "estimated from gap, gradient and (second order) Hessian of the loss or of the margins "
            "at the image, against the nearest wrongly classified point that FAB, DDN and APGD "
            f"find. Medians of {_GROUPS} groups of like estimates, all seeds of a method together; "
            "infinite ones are left out, those of 0 are beyond the left border. "
            "The estimate is right on the diagonal."
        )
        title = f"Distances on {', '.join(data)}"
        calibration(path, networks, groups=_GROUPS, title=title, note=note)


def summary(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return what a table shows of `measure`: numbers over the examples.

    Returns:
        ``num_right``, the number of examples; means ``found``, ``gradient_norm``, ``hessian_norm``;
        for each of `ESTIMATES` its ``rank_correlation`` (Spearman) with the found distance, None if
        either is constant, the median ``ratio`` to it, None if infinite, and the share
        ``too_large`` of examples where it exceeds it and so is not a certificate;
        ``curvature_correlation``, of the Hessian's norm with the found distance; for the norm's
        default estimate, the share that is ``off`` by more than a tenth, the share of these that
        the residual ``warned`` of, and the share of all warnings that were ``false_alarms``, the
        last two None where there are none.
    """
    found, norm = arrays["found"], arrays["hessian_norm"]
    off = arrays["one_product"] < (1 - _OFF) * norm
    warned = arrays["residual"] > _OFF * arrays["one_product"]
    estimates = {
        name: {
            "rank_correlation": _rank_correlation(arrays[name], found),
            "ratio": _finite(np.median(arrays[name] / found)),
            "too_large": float(np.mean(arrays[name] > found)),
        }
        for name in ESTIMATES
    }
    return {
        "num_right": len(found),
        "found": float(found.mean()),
        "gradient_norm": float(arrays["gradient_norm"].mean()),
        "hessian_norm": float(norm.mean()),
        "estimates": estimates,
        "curvature_correlation": _rank_correlation(norm, found),
        "off": float(off.mean()),
        "warned": float(warned[off].mean()) if off.any() else None,
        "false_alarms": float(np.mean(~off[warned])) if warned.any() else None,
    }


def table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the summaries as a Markdown table: means over the networks of a method."""
    heads = ["data", "method", "found", "‖H‖"]
    heads += [f"{name.replace('_', ' ')}: ρ, ratio, too large" for name in ESTIMATES]
    rows = [[*heads, "ρ of ‖H‖", "off", "warned", "false alarms", "seeds"]]
    alike: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for cell, label in zip(cells, _labels(cells), strict=True):
        key = (cell["data"], label, cell.get("model"), cell.get("num_examples"))
        alike.setdefault(key, []).append(cell)
    for (data, method, _, _), networks in alike.items():
        mean = partial(_mean, networks)
        row = [data, method, f"{mean('found'):.2f}", f"{mean('hessian_norm'):.3g}"]
        row += [
            f"{number(mean('estimates', name, 'rank_correlation'))}, "
            f"{number(mean('estimates', name, 'ratio'))}, "
            f"{_share(mean('estimates', name, 'too_large'))}"
            for name in ESTIMATES
        ]
        row += [number(mean("curvature_correlation"))]
        row += [_share(mean(name)) for name in ("off", "warned", "false_alarms")]
        rows.append([*row, f"{len(networks)}"])
    return markdown(rows, words=2)


def _labels(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the method of each, and how its training differs from others on the same data.

    Cells from before the setup was recorded get the method alone.
    """
    setups = [cell.get("setup", {}) for cell in cells]
    labels = []
    for cell, setup in zip(cells, setups, strict=True):
        others = [other for other in setups if other.get("data") == setup.get("data")]
        apart = [name for name in setup if any(other[name] != setup[name] for other in others)]
        labels.append(", ".join([cell["method"], *(f"{name} {setup[name]}" for name in apart)]))
    return labels


def _mean(cells: Sequence[Any], *path: str) -> float | None:
    """Return the mean of a number over the cells that have it, None if none has."""
    values = [reduce(getitem, path, cell) for cell in cells]
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def across(cells: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the rank correlation, over the networks, of mean norm and mean found distance."""
    norms, distances = np.array([(cell["hessian_norm"], cell["found"]) for cell in cells]).T
    return _rank_correlation(norms, distances)


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.0f} %"


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    if min(len(np.unique(a)), len(np.unique(b))) < 2:
        return None
    return float(np.asarray(spearmanr(a, b))[0])


def _finite(value: np.floating) -> float | None:
    return float(value) if np.isfinite(value) else None


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.theory")
