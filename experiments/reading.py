"""Read what a comparison left on disk: ``comparison.json``, checked."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.config import ORDERS, Setup
from experiments.files import read_json

_COMPARISON_KEYS = (
    *("command", "commit", "versions", "device", "data", "num_test", "norms", "attack", "runs"),
)
_RUN_KEYS = (
    *("method", "seed", "strength", "step", "path", "clean", "robust"),
    *("seconds_per_step", "gradient_norm_mean", "hessian_norm_mean"),
)
# These are None where they were not measured, or do not exist.
_NUMBERS = ("strength", "step", "seconds_per_step", "gradient_norm_mean", "hessian_norm_mean")
_KINDS = {"num_test": int, "versions": dict, "attack": dict, "setup": dict, "failed": dict}
# Stands beside comparison.json if experiments.benchmarks.step_times was run.
STEP_TIMES = "step_times.json"


def read(directory: Path) -> dict[str, Any]:
    """Read and check the comparison in a folder.

    Returns:
        ``comparison.json``, with the radii that key each run's accuracies turned into numbers.
        If there is a ``step_times.json`` of the same setup beside it, its content is under
        ``step_times``, and each run's ``seconds_per_step`` is from there.

    Raises:
        ValueError: if the folder holds no comparison, or a damaged or empty one.
    """
    path = directory / "comparison.json"
    if not path.is_file():
        raise ValueError(
            f"{directory} is not a comparison: it has no {path.name}, "
            "which python -m experiments.compare writes"
        )
    comparison = read_json(path)
    try:
        _check_kinds(comparison)
        _check(comparison, path)
        if (times := directory / STEP_TIMES).is_file():
            comparison["step_times"] = read_json(times)
            _take_times(comparison, times)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): run the comparison again") from error
    return comparison


def _check_kinds(comparison: dict[str, Any]) -> None:
    for key, kind in _KINDS.items():
        if not isinstance(comparison.get(key, kind()), kind):
            raise TypeError(f"{key} must be of type {kind.__name__}, got {comparison[key]!r}")


def _check(comparison: dict[str, Any], path: Path) -> None:
    """Check what was read, and turn radii and accuracies into numbers."""
    require(_COMPARISON_KEYS, comparison, str(path))
    for key in ("norms", "runs"):
        if not comparison[key]:
            raise ValueError(f"{path} holds no {key}")
    for norm in comparison["norms"]:
        if norm not in ORDERS:
            raise ValueError(f"{path} has the norm {norm!r}, expected one of {', '.join(ORDERS)}")
    balls, strongest = radii_of(comparison), auto_radii_of(comparison)
    wanted = {"robust": ("attack", balls), "auto": ("AutoAttack", strongest)}
    if comparison.get("apgd_examples"):
        wanted["apgd"] = ("APGD", balls)
    for i, run in enumerate(comparison["runs"]):
        where = f"run {i} of {path}"
        _check_run(run, where)
        for key, (attack, balls) in wanted.items():
            for norm, radius in balls:
                if radius not in run[key].get(norm, {}):
                    raise ValueError(
                        f"{where} has no accuracy under {attack} at {norm} radius {radius}"
                    )


def _check_run(run: dict[str, Any], where: str) -> None:
    require(_RUN_KEYS, run, where)
    for key in _NUMBERS:
        if not isinstance(run[key], float | int | None):
            raise TypeError(f"the {key} {run[key]!r} is not a number")
    if not isinstance(run["seed"], int):
        raise TypeError(f"the seed {run['seed']!r} is not a whole number")
    words = [run["method"], run["path"], *run.get("options", ())]
    if not all(isinstance(word, str) for word in words):
        raise TypeError(f"{words!r} are not all words")
    run["clean"] = _accuracy(run["clean"])
    run["robust"] = {
        norm: {float(radius): _accuracy(value) for radius, value in accuracies.items()}
        for norm, accuracies in run["robust"].items()
    }
    run["apgd"] = {
        norm: {float(radius): _accuracy(value) for radius, value in accuracies.items()}
        for norm, accuracies in run.get("apgd", {}).items()
    }
    run["auto"] = {
        norm: {float(radius): _ball(found, where) for radius, found in balls.items()}
        for norm, balls in run.get("auto", {}).items()
    }


def _take_times(comparison: dict[str, Any], path: Path) -> None:
    """Give each run the seconds per step of its method, None for methods added later."""
    require(("seconds", "device", "commit"), comparison["step_times"], str(path))
    # A setting that one of the two lacks was introduced later.
    setup = comparison.get("setup", {})
    timed = comparison["step_times"].get("setup", {})
    if any(setup.get(name, value) != value for name, value in timed.items()):
        del comparison["step_times"]  # of other trainings, which were here before
        return
    seconds = comparison["step_times"]["seconds"]
    for run in comparison["runs"]:
        timing = seconds.get(str(Path(run["path"]).parent), {"median": None})
        run["seconds_per_step"] = timing["median"]


def _ball(found: dict[str, Any], where: str) -> dict[str, Any]:
    require(("robust", "verdict"), found, f"AutoAttack's part of {where}")
    if not isinstance(found["verdict"], str):
        raise TypeError(f"{found['verdict']!r} is not a verdict")
    return {"robust": _accuracy(found["robust"]), "verdict": found["verdict"]}


def _accuracy(value: object) -> float:
    if not isinstance(value, float | int):
        raise TypeError(f"{value!r} is not an accuracy")
    return value


def setup_of(comparison: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that the trainings of a comparison share.

    Settings introduced after the file was written had their defaults; removed ones are ignored.
    """
    setup = comparison.get("setup", {})
    return {name: setup.get(name, default) for name, default in asdict(Setup()).items()}


def require(keys: Iterable[str], found: object, where: str) -> None:
    """Raise unless ``found`` is a dictionary with these keys."""
    missing = set(keys) - set(found if isinstance(found, dict) else ())
    if missing:
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}")


def radii_of(comparison: dict[str, Any]) -> list[tuple[str, float]]:
    """Return the balls of PGD and APGD as pairs of norm and radius."""
    return [(norm, radius) for norm, radii in comparison["norms"].items() for radius in radii]


def auto_radii_of(comparison: dict[str, Any]) -> list[tuple[str, float]]:
    """Return the balls of AutoAttack; comparisons from before there was one have none."""
    norms = comparison.get("auto", {}).get("norms", {})
    return [(norm, radius) for norm, radii in norms.items() for radius in radii]
