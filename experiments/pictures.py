"""The figures of a comparison, from ``comparison.json`` and what its runs left on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import figures, trends
from experiments.canvas import norm_name, style
from experiments.landscape_pictures import Landscapes, draw_landscapes
from experiments.table import Method, family, group
from experiments.words import about, attack_of, auto_of, images_of, seeds_of

# With more methods, curves hide each other.
_MOST_CURVES = 12
# With even more, as in the study, no figure would be readable.
MOST_METHODS = 24


def draw(folder: Path, comparison: dict[str, Any], landscapes: Sequence[Landscapes]) -> list[Path]:
    """Draw every figure for which there are data, and return the files."""
    methods = group(comparison)
    if len(methods) > MOST_METHODS:
        return _draw_tradeoff(folder, comparison, methods)
    drawn = [_draw_accuracy(folder, comparison, methods)]
    if any(method.runs[0]["method"] == "none" for method in _timed(methods)):
        drawn += [draw_cost(folder / "cost.png", comparison)]
    watched = [method for method in methods if any("trajectory" in run for run in method.runs)]
    if 0 < len(watched) <= _MOST_CURVES:
        drawn += [_draw_training(folder, comparison, watched)]
    drawn += _draw_tradeoff(folder, comparison, methods)
    return drawn + draw_landscapes(folder, images_of(comparison), landscapes)


def _seconds(runs: Sequence[dict[str, Any]]) -> list[float]:
    """Return the seconds per step of the runs, nothing if one of them was not timed."""
    seconds = [run["seconds_per_step"] for run in runs]
    return [] if None in seconds else seconds


def _timed(methods: Sequence[Method]) -> list[Method]:
    return [method for method in methods if _seconds(method.runs)]


def _draw_accuracy(folder: Path, comparison: dict[str, Any], methods: Sequence[Method]) -> Path:
    def curve(method: Method, norm: str, radii: list[float]) -> figures.Curve:
        accuracy = [
            [run["clean"], *(run["robust"][norm][radius] for radius in radii)]
            for run in method.runs
        ]
        return figures.Curve(
            method.label, method.style, np.array([0.0, *radii]), np.array(accuracy)
        )

    norms = comparison["norms"]
    curves = {norm: [curve(one, norm, radii) for one in methods] for norm, radii in norms.items()}
    note = f"{about(comparison)}. Attack: {attack_of(comparison['attack'])}."
    several = any(len(method.runs) > 1 for method in methods)
    if many := len(methods) > _MOST_CURVES:
        note += f" Rows: by the mean accuracy over the {norm_name(next(iter(norms)))} radii."
        note += " Markers: mean over seeds; small dots: seeds." if several else ""
    elif several:
        note += " Lines: mean over seeds; bands: ± sample standard deviation; small dots: seeds."
    path = folder / "accuracy.png"
    (figures.ranking if many else figures.accuracy)(
        path, curves, title="Accuracy under attack", note=note
    )
    return path


def draw_cost(path: Path, comparison: dict[str, Any]) -> Path:
    """Draw accuracy in AutoAttack's ball, or in PGD's middle one, against the time of a step.

    Methods that were not timed, or not attacked in this ball, are left out.

    Raises:
        ValueError: if no training without a penalty was timed, or there are several networks.
    """
    strongest = comparison.get("auto", {}).get("norms")
    norm, radii = next(iter((strongest or comparison["norms"]).items()))
    radius = radii[len(radii) // 2]
    methods = [
        method
        for method in _timed(group(comparison))
        if not strongest or all(radius in run["auto"].get(norm, {}) for run in method.runs)
    ]
    if len({method.network for method in methods}) > 1:
        raise ValueError("a step of one network cannot measure another's: draw the costs of one")
    plain = [method for method in methods if method.runs[0]["method"] == "none"]
    if not plain:
        raise ValueError("no step without a penalty was timed, and costs are relative to it")
    unit = np.mean([seconds for method in plain for seconds in _seconds(method.runs)])

    def accuracy(run: dict[str, Any]) -> float:
        return run["auto"][norm][radius]["robust"] if strongest else run["robust"][norm][radius]

    points = [
        trends.Point(
            method.label,
            method.style,
            np.array(_seconds(method.runs)) / unit,
            np.array([accuracy(run) for run in method.runs]),
        )
        for method in methods
    ]
    by = auto_of(comparison) if strongest else attack_of(comparison["attack"])
    # The words for AutoAttack say how many images it attacked.
    of = f"{images_of(comparison)}; {_seeds_of_each(methods)}" if strongest else about(comparison)
    trends.frontier(
        path,
        points,
        norm=norm,
        radius=radius,
        title="Robust accuracy against the cost of a training step",
        note=f"{of[0].upper()}{of[1:]}. Attack: {by}. Cost: seconds of a step over those of "
        "training without a penalty, on the same machine. Markers: mean over seeds, small dots: "
        "seeds. Gray: the highest accuracy in at most that time.",
    )
    return path


def _seeds_of_each(methods: Sequence[Method]) -> str:
    """Return which seeds were trained or, if methods differ, how many for each."""
    seeds = [sorted(run["seed"] for run in method.runs) for method in methods]
    if all(one == seeds[0] for one in seeds):
        return seeds_of(seeds[0])
    return f"{' or '.join(map(str, sorted({len(one) for one in seeds})))} seeds per method"


def _draw_tradeoff(
    folder: Path, comparison: dict[str, Any], methods: Sequence[Method]
) -> list[Path]:
    """Draw robust against clean accuracy, if there are methods with several strengths."""
    families: dict[tuple[str, ...], list[Method]] = {}
    for method in methods:
        families.setdefault(family(method.runs[0]), []).append(method)
    if not len(families) < len(methods) or len(families) > MOST_METHODS:
        return []
    radii = {norm: values[len(values) // 2] for norm, values in comparison["norms"].items()}

    def settings(key: tuple[str, ...], alike: Sequence[Method]) -> trends.Settings:
        _, name, *options = key
        clean = np.array([np.mean([run["clean"] for run in one.runs]) for one in alike])
        robust = {
            norm: np.array([
                np.mean([run["robust"][norm][radius] for run in one.runs]) for one in alike
            ])
            for norm, radius in radii.items()
        }  # fmt: skip
        order = np.argsort(clean, kind="stable")
        relatives = [other for other in families if other[1] == name]
        return trends.Settings(
            f"{name} ({', '.join(options)})" if options else name,
            style(name, relatives.index(key)),
            clean[order],
            {norm: values[order] for norm, values in robust.items()},
        )

    drawn = [settings(key, alike) for key, alike in families.items()]
    joined = len(drawn) <= _MOST_CURVES
    least = trends.least_clean(drawn, joined=joined)
    lost = sum(int(np.sum(one.clean < least)) for one in drawn)
    left_out = f" Not shown: {lost} below {100 * least:.1f} % clean." if lost else ""
    read_so = (
        "A line joins the strengths of a method."
        if joined
        else "Gray: candidates that another one beats in both accuracies."
    )
    path = folder / "tradeoff.png"
    trends.tradeoff(
        path,
        drawn,
        radii=radii,
        least=least,
        joined=joined,
        title="Robust against clean accuracy",
        note=f"{about(comparison)}. Attack: {attack_of(comparison['attack'])}. {read_so}{left_out}",
    )
    return [path]


def _draw_training(folder: Path, comparison: dict[str, Any], methods: Sequence[Method]) -> Path:
    runs = [(method.label, run) for method in methods for run in method.runs]
    absent = [f"{label} of seed {run['seed']}" for label, run in runs if "trajectory" not in run]
    unwatched = f" Not watched: {', '.join(absent)}." if absent else ""
    seeds = {run["seed"] for _, run in runs if "trajectory" in run}
    several = " Lines: mean over seeds; bands: all seeds." if len(seeds) > 1 else ""
    path = folder / "training.png"
    trends.trajectories(
        path,
        [_trajectory(method) for method in methods],
        title="Gradient and curvature of the loss through training",
        note=f"Means over the first {images_of(comparison)}; {seeds_of(seeds)}.{unwatched}{several}"
        " Derivatives of the cross-entropy (nats) in the input, pixels in [0, 1]; ‖H‖ is the "
        "largest |eigenvalue| of the Hessian, estimated from below.",
    )
    return path


def _trajectory(method: Method) -> trends.Trajectory:
    watched = [run["trajectory"] for run in method.runs if "trajectory" in run]
    # Values that are not finite were left out, perhaps for one seed alone.
    steps = sorted(set.intersection(*(set(seed["step"]) for seed in watched)))
    gradient_norm, curvature = (
        np.array([np.array(seed[name])[np.isin(seed["step"], steps)] for seed in watched])
        for name in ("test_gradient_norm", "test_hessian_norm")
    )
    return trends.Trajectory(method.label, method.style, np.array(steps), gradient_norm, curvature)
