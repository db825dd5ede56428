"""The table of a comparison, from the ``comparison.json`` in its folder."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from experiments.canvas import Style, radius_name, style
from experiments.files import read_json

_NORMS = {"l2": "ℓ₂", "linf": "ℓ∞"}
_COMPARISON_KEYS = (
    *("command", "commit", "versions", "device", "data", "num_test", "norms", "attack", "runs"),
)
_RUN_KEYS = (
    *("method", "seed", "strength", "step", "path", "clean", "robust"),
    *("seconds_per_step", "gradient_norm_mean", "hessian_norm_mean"),
)
# What is None where it was not measured, or does not exist.
_NUMBERS = ("strength", "step", "seconds_per_step", "gradient_norm_mean", "hessian_norm_mean")
_NOTHING = "-"
# What of a setup a joint table has a column for.
_NETWORK = ("model", "activation")


class Method(NamedTuple):
    """One row of the table: the runs that differ in nothing but the seed.

    Attributes:
        label: what a figure calls it.
        style: how it looks there.
        runs: its runs.
        network: which one it trained, "" where a table tells of one alone.
    """

    label: str
    style: Style
    runs: Sequence[dict[str, Any]]
    network: str


def read(directory: Path) -> dict[str, Any]:
    """Read and check the comparison in a folder.

    Returns:
        ``comparison.json``, with the radii that key each run's accuracies turned into numbers.

    Raises:
        ValueError: if the folder holds no comparison, or a broken or an empty one.
    """
    path = directory / "comparison.json"
    if not path.is_file():
        raise ValueError(
            f"{directory} is no comparison: it has no {path.name}, "
            "which python -m experiments.compare writes"
        )
    comparison = read_json(path)
    try:
        _check(comparison, path)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): run the comparison again") from error
    return comparison


def _check(comparison: dict[str, Any], path: Path) -> None:
    """Check what was read, and turn radii and accuracies into numbers."""
    require(_COMPARISON_KEYS, comparison, str(path))
    for key in ("norms", "runs"):
        if not comparison[key]:
            raise ValueError(f"{path} holds no {key}")
    for norm in comparison["norms"]:
        if norm not in _NORMS:
            raise ValueError(f"{path} has the norm {norm!r}, expected one of {', '.join(_NORMS)}")
    balls, strongest = _radii(comparison), _auto_radii(comparison)
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
            raise TypeError(f"the {key} {run[key]!r} is no number")
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


def _ball(found: dict[str, Any], where: str) -> dict[str, Any]:
    require(("robust", "verdict"), found, f"AutoAttack's part of {where}")
    if not isinstance(found["verdict"], str):
        raise TypeError(f"{found['verdict']!r} is no verdict")
    return {"robust": _accuracy(found["robust"]), "verdict": found["verdict"]}


def _accuracy(value: object) -> float:
    if not isinstance(value, float | int):
        raise TypeError(f"{value!r} is no accuracy")
    return value


def joined(comparisons: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return several comparisons as one, whose table has a column for the networks.

    AutoAttack's results may be there for some of the methods alone.

    Args:
        comparisons: from `read`; of the same data, attacked alike.

    Raises:
        ValueError: if they are not.
    """
    first, *others = comparisons
    for one in comparisons:
        require(("setup",), one, "a comparison for a joint table")
    for other in others:
        for key in ("data", "num_test", "norms", "attack"):
            if other[key] != first[key]:
                raise ValueError(
                    f"comparisons of different {key} make no table: {first[key]} and {other[key]}"
                )
        for key in (first["setup"].keys() | other["setup"].keys()) - set(_NETWORK):
            before, after = (one["setup"].get(key) for one in (first, other))
            if before != after:
                raise ValueError(f"comparisons of different {key} make no table: {before}, {after}")
    strongest = [told for one in comparisons if (told := one.get("auto", {})).get("norms")]
    if any(told != strongest[0] for told in strongest):
        raise ValueError(f"comparisons of different AutoAttack make no table: {strongest}")
    runs = [{**run, "network": _network(one)} for one in comparisons for run in one["runs"]]
    names = [f"{run['network']} {run['path']}" for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is in several of the comparisons: a seed counts once")
    examples = max(one.get("apgd_examples", 0) for one in comparisons)
    auto = next(iter(strongest), {})
    return {**first, "auto": auto, "apgd_examples": examples, "runs": runs}


def _network(comparison: dict[str, Any]) -> str:
    return " ".join(comparison["setup"][name] for name in _NETWORK)


def require(keys: Iterable[str], found: object, where: str) -> None:
    """Raise unless ``found`` is a dictionary with these keys."""
    missing = set(keys) - set(found if isinstance(found, dict) else ())
    if missing:
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}")


def group(comparison: dict[str, Any]) -> list[Method]:
    """Gather the seeds of each method and setting, in order of appearance."""
    gathered: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in comparison["runs"]:
        # Comparisons from before there were options have none.
        setting = (run["method"], run["strength"], run["step"], *run.get("options", ()))
        gathered.setdefault((run.get("network", ""), *setting), []).append(run)
    methods = []
    for key, runs in gathered.items():
        network, name, *values = key
        rivals = [other for other in gathered if other[:2] == (network, name)]
        label = name if len(rivals) == 1 else f"{name} ({_setting(*values)})"
        methods.append(Method(label, style(name, rivals.index(key)), runs, network))
    return methods


def table(comparison: dict[str, Any]) -> str:
    """Return the table in Markdown, one row a method, its columns aligned for a terminal too.

    Accuracies are means over seeds in percent, ± the sample standard deviation if there are
    several seeds; the norms are means over test images and seeds; time is relative to "none".
    """
    methods = group(comparison)
    radii, strongest = _radii(comparison), _auto_radii(comparison)
    several = any(method.network for method in methods)
    words = 3 if several else 2
    rows = [
        [
            *(["network"] if several else []),
            *("method", "strength", "clean"),
            *(f"{_NORMS[norm]} {radius_name(radius)}" for norm, radius in radii),
            *(f"AA {_NORMS[norm]} {radius_name(radius)}" for norm, radius in strongest),
            *(["masking"] if strongest else []),
            *("mean ‖g‖₂", "mean ‖H‖", "time/step", "seeds"),
        ]
    ]
    for method in methods:
        runs = method.runs
        gradient = _mean(run["gradient_norm_mean"] for run in runs)
        hessian = _mean(run["hessian_norm_mean"] for run in runs)
        seconds = _mean(run["seconds_per_step"] for run in runs)
        unit = _plain(methods, method.network)
        rows.append(
            [
                *([method.network] if several else []),
                runs[0]["method"],
                _setting(runs[0]["strength"], runs[0]["step"], *runs[0].get("options", ())),
                _percent([run["clean"] for run in runs]),
                *(
                    _percent([run["robust"][norm][radius] for run in runs])
                    for norm, radius in radii
                ),
                *(
                    _percent(
                        [
                            run["auto"][norm][radius]["robust"]
                            for run in runs
                            if radius in run["auto"].get(norm, {})
                        ]
                    )
                    for norm, radius in strongest
                ),
                *([_masking(runs)] if strongest else []),
                _NOTHING if gradient is None else f"{gradient:.3g}",
                _NOTHING if hessian is None else f"{hessian:.3g}",
                _NOTHING if not unit or seconds is None else f"{seconds / unit:.2f}×",
                str(len(runs)),
            ]
        )
    return _aligned(rows, words)


def apgd_table(comparison: dict[str, Any]) -> str:
    """Return the accuracies under APGD likewise, "" where there are none."""
    methods = [m for m in group(comparison) if all(run["apgd"] for run in m.runs)]
    radii, several = _radii(comparison), any(method.network for method in methods)
    head = [*(["network"] if several else []), "method", "strength"]
    rows = [[*head, *(f"{_NORMS[norm]} {radius_name(radius)}" for norm, radius in radii)]]
    for method in methods:
        run = method.runs[0]
        words = [run["method"], _setting(run["strength"], run["step"], *run.get("options", ()))]
        accuracies = [
            _percent([run["apgd"][norm][radius] for run in method.runs]) for norm, radius in radii
        ]
        rows.append([*([method.network] if several else []), *words, *accuracies])
    return _aligned(rows, len(head)) if methods else ""


def _aligned(rows: Sequence[Sequence[str]], words: int) -> str:
    """Return rows as Markdown, so many columns of words first."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # The columns of words stand left, the numbers right.
    aligned = [
        [
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    rule = [":" + "-" * (w - 1) if i < words else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [aligned[0], rule, *aligned[1:]])


def _plain(methods: Sequence[Method], network: str) -> float | None:
    """Return the seconds per step of a network's training without a penalty."""
    plain = [method.runs for method in methods if method.network == network]
    return _mean(
        run["seconds_per_step"] for runs in plain for run in runs if run["method"] == "none"
    )


def _radii(comparison: dict[str, Any]) -> list[tuple[str, float]]:
    return [(norm, radius) for norm, radii in comparison["norms"].items() for radius in radii]


def _auto_radii(comparison: dict[str, Any]) -> list[tuple[str, float]]:
    """Return the balls of AutoAttack; comparisons from before there was one have none."""
    norms = comparison.get("auto", {}).get("norms", {})
    return [(norm, radius) for norm, radii in norms.items() for radius in radii]


def _masking(runs: Sequence[dict[str, Any]]) -> str:
    """Return at how many of all runs and balls a sign of masked gradients was seen."""
    verdicts = [
        ball["verdict"] for run in runs for radii in run["auto"].values() for ball in radii.values()
    ]
    if not verdicts:
        return _NOTHING
    seen = sum(verdict.startswith("masking") for verdict in verdicts)
    return f"{seen} of {len(verdicts)}" if seen else "none"


def _setting(strength: float | None, step: float | None, *options: str) -> str:
    parts = [f"{strength:g}"] if strength is not None else []
    parts += [f"step {step:g}"] if step is not None else []
    return ", ".join([*parts, *options]) or _NOTHING


def _percent(accuracies: Sequence[float]) -> str:
    if not accuracies:
        return _NOTHING
    spread = f" ± {100 * stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
    return f"{100 * mean(accuracies):.1f}{spread}"


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of what was measured, or None if nothing was."""
    known = [value for value in values if value is not None]
    return mean(known) if known else None
