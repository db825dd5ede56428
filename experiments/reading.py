"""Read what a comparison left on disk: ``comparison.json``, checked."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import UnionType
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
_KINDS = {
    **dict.fromkeys(("command", "commit", "device"), str),
    **dict.fromkeys(("num_test", "apgd_examples"), int),
    **dict.fromkeys(("versions", "attack", "norms", "auto", "setup", "failed"), dict),
    "runs": list,
}
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
    with _remedy(path, "give the commands of the comparison again"):
        comparison = read_json(path)
        _check_kinds(comparison)
        _check(comparison, path)
    if (times := directory / STEP_TIMES).is_file():
        with _remedy(times, "measure the times again"):
            comparison["step_times"] = read_json(times)
            _take_times(comparison, times)
    return comparison


@contextmanager
def _remedy(path: Path, again: str) -> Iterator[None]:
    """Say of whatever is wrong with a file what can be done."""
    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:
        told = isinstance(error, ValueError) and str(path) in str(error)
        wrong = str(error) if told else f"{path} is damaged ({error})"
        raise ValueError(f"{wrong}: restore it, or move it away and {again}") from error


def _check_kinds(comparison: dict[str, Any]) -> None:
    for key, kind in _KINDS.items():
        _check_kind(key, comparison.get(key, kind()), kind)
    for key in ("versions", "failed"):
        for name, word in comparison.get(key, {}).items():
            _check_kind(f"{name} of {key}", word, str)
    for name, value in comparison.get("setup", {}).items():
        default = getattr(Setup, name, None)
        if isinstance(default, str):
            _check_kind(f"{name} of setup", value, str)
    auto = comparison.get("auto", {})
    _check_kind("norms of auto", auto.get("norms", {}), dict)
    _check_kind("num_examples of auto", auto.get("num_examples"), int | None)
    for where in (comparison.get("norms", {}), auto.get("norms", {})):
        for norm, radii in where.items():
            _check_kind(f"radii of {norm}", radii, list)
            if norm not in ORDERS or not radii:
                raise ValueError(
                    f"the radii of the norm {norm!r} are {radii}, expected some, of one of the "
                    f"norms {', '.join(ORDERS)}"
                )
            for radius in radii:
                _check_kind(f"a radius of {norm}", radius, float | int)


def _check_kind(what: str, value: object, kind: type | UnionType) -> None:
    if not isinstance(value, kind):
        name = kind.__name__ if isinstance(kind, type) else kind
        raise TypeError(f"{what} must be of type {name}, got {value!r}")


def _check(comparison: dict[str, Any], path: Path) -> None:
    """Check what was read, and turn radii and accuracies into numbers."""
    require(_COMPARISON_KEYS, comparison, str(path))
    for key in ("norms", "runs"):
        if not comparison[key]:
            raise ValueError(f"{path} holds no {key}")
    balls, strongest = radii_of(comparison), auto_radii_of(comparison)
    wanted = {"robust": ("attack", balls), "auto": ("AutoAttack", strongest)}
    if strongest:
        require(("num_examples",), comparison["auto"], f"AutoAttack's part of {path}")
    if comparison.get("apgd_examples"):
        wanted["apgd"] = ("APGD", balls)
    for i, run in enumerate(comparison["runs"]):
        where = f"run {i} of {path}"
        _check_run(run, where)
        for key, (attack, balls) in wanted.items():
            lacking = [ball for ball in balls if ball[1] not in run[key].get(ball[0], {})]
            for norm, radius in lacking:
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
    _check_kind("options", run.get("options", []), list)
    words = [run["method"], run["path"], run.get("network", ""), *run.get("options", [])]
    if not all(isinstance(word, str) for word in words):
        raise TypeError(f"{words!r} are not all words")
    _check_trajectory(run.get("trajectory", {}))
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


def _check_trajectory(found: object) -> None:
    columns = [c for c in found.values() if isinstance(c, list)] if isinstance(found, dict) else []
    alike = isinstance(found, dict) and len(columns) == len(found)
    numbers = all(isinstance(number, float | int) for column in columns for number in column)
    if not alike or not numbers or len({len(column) for column in columns}) > 1:
        raise TypeError(f"{found!r} is not a trajectory")


def _take_times(comparison: dict[str, Any], path: Path) -> None:
    """Give each run the seconds per step of its method, None for methods added later."""
    require(("seconds", "device", "commit"), comparison["step_times"], str(path))
    for name, kind in (("seconds", dict), ("device", str), ("commit", str)):
        _check_kind(name, comparison["step_times"][name], kind)
    # A setting that one of the two lacks was introduced later.
    setup = comparison.get("setup", {})
    timed = comparison["step_times"].get("setup", {})
    if any(setup.get(name, value) != value for name, value in timed.items()):
        del comparison["step_times"]  # of other trainings, which were here before
        return
    seconds = comparison["step_times"]["seconds"]
    for run in comparison["runs"]:
        timing = seconds.get(str(Path(run["path"]).parent), {"median": None})
        require(("median",), timing, f"a time of {path}")
        _check_kind("a median", timing["median"], float | int | None)
        run["seconds_per_step"] = timing["median"]


def _ball(found: dict[str, Any], where: str) -> dict[str, Any]:
    require(("robust", "verdict"), found, f"AutoAttack's part of {where}")
    if not isinstance(found["verdict"], str):
        raise TypeError(f"{found['verdict']!r} is not a verdict")
    return {"robust": _accuracy(found["robust"]), "verdict": found["verdict"]}


def _accuracy(value: object) -> float:
    if not isinstance(value, float | int) or not 0 <= value <= 1:
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
