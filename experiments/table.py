"""The table of a comparison, from the ``comparison.json`` in its folder."""

from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

from experiments.canvas import Style, radius_name, style
from experiments.config import NORM_NAMES
from experiments.markdown import NOTHING, markdown, number
from experiments.reading import auto_radii_of, radii_of


class Method(NamedTuple):
    """One row of the table: the runs that differ in nothing but the seed.

    Attributes:
        label: what figures call it.
        style: how it looks there.
        runs: its runs.
        network: which one it trained, "" where a table covers a single network.
    """

    label: str
    style: Style
    runs: Sequence[dict[str, Any]]
    network: str


def family(run: dict[str, Any]) -> tuple[str, ...]:
    """Return what is common to runs that differ only in strength, step or second weight."""
    options = [word for word in run.get("options", ()) if not word.startswith("weight=")]
    return run.get("network", ""), run["method"], *options


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
        _, _, *options = values
        alone = len(rivals) == 1 and not options
        label = name if alone else f"{name} ({_setting(*values)})"
        methods.append(Method(label, style(name, rivals.index(key)), runs, network))
    return methods


def table(comparison: dict[str, Any], *, brief: bool = False) -> str:
    """Return the table in Markdown, one row per method, with columns aligned for a terminal.

    Accuracies are means over seeds in percent, ± the sample standard deviation if there are
    several seeds; the norms are means over test images and seeds; time is relative to "none", and
    its column is missing where that was not timed. The settings of a method are grouped together,
    in order of increasing strength.

    Args:
        comparison: from `experiments.reading.read`, or several from `experiments.joining.joined`.
        brief: of the attacks, show AutoAttack only, and no norms.
    """
    methods = _in_rows(group(comparison))
    radii, strongest = [] if brief else radii_of(comparison), auto_radii_of(comparison)
    several = any(method.network for method in methods)
    times = [_relative_time(method, methods) for method in methods]
    timed = any(times)
    words = 3 if several else 2
    rows = [
        [
            *(["network"] if several else []),
            *("method", "strength", "clean"),
            *(f"{NORM_NAMES[norm]} {radius_name(radius)}" for norm, radius in radii),
            *(f"AA {NORM_NAMES[norm]} {radius_name(radius)}" for norm, radius in strongest),
            *(["masking"] if strongest else []),
            *(() if brief else ("mean ‖g‖₂", "mean ‖H‖")),
            *(["time/step"] if timed else []),
            "seeds",
        ]
    ]
    for method, time in zip(methods, times, strict=True):
        runs = method.runs
        gradient = _mean(run["gradient_norm_mean"] for run in runs)
        hessian = _mean(run["hessian_norm_mean"] for run in runs)
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
                *(_under_auto(runs, norm, radius) for norm, radius in strongest),
                *([_masking(runs, strongest)] if strongest else []),
                *(() if brief else (number(gradient, ".3g"), number(hessian, ".3g"))),
                *([time or NOTHING] if timed else []),
                str(len(runs)),
            ]
        )
    return markdown(rows, words)


def apgd_table(comparison: dict[str, Any]) -> str:
    """Return the table of accuracies under APGD, "" if there are none."""
    methods = [m for m in _in_rows(group(comparison)) if all(run["apgd"] for run in m.runs)]
    radii, several = radii_of(comparison), any(method.network for method in methods)
    head = [*(["network"] if several else []), "method", "strength"]
    rows = [[*head, *(f"{NORM_NAMES[norm]} {radius_name(radius)}" for norm, radius in radii)]]
    for method in methods:
        run = method.runs[0]
        words = [run["method"], _setting(run["strength"], run["step"], *run.get("options", ()))]
        accuracies = [
            _percent([run["apgd"][norm][radius] for run in method.runs]) for norm, radius in radii
        ]
        rows.append([*([method.network] if several else []), *words, *accuracies])
    return markdown(rows, len(head)) if methods else ""


def _in_rows(methods: Sequence[Method]) -> list[Method]:
    """Return methods with the settings of each next to each other, the least strength first."""
    families = [family(method.runs[0]) for method in methods]
    names = [name[:2] for name in families]

    def place(i: int) -> tuple[float, ...]:
        run = methods[i].runs[0]
        numbers = (run["strength"] or 0.0, run["step"] or 0.0)
        return names.index(names[i]), families.index(families[i]), *numbers

    return [methods[i] for i in sorted(range(len(methods)), key=place)]


def _relative_time(method: Method, methods: Sequence[Method]) -> str:
    """Return a method's seconds per step over those without a penalty; "" if one is missing."""
    same = [run for other in methods if other.network == method.network for run in other.runs]
    plain = _mean(run["seconds_per_step"] for run in same if run["method"] == "none")
    seconds = _mean(run["seconds_per_step"] for run in method.runs)
    return f"{seconds / plain:.2f}×" if plain and seconds is not None else ""


def _under_auto(runs: Sequence[dict[str, Any]], norm: str, radius: float) -> str:
    """Return the accuracy under AutoAttack, and over how many seeds, if not over all."""
    found = [run["auto"][norm] for run in runs if radius in run["auto"].get(norm, {})]
    part = f" ({len(found)} of {len(runs)})" if 0 < len(found) < len(runs) else ""
    return _percent([balls[radius]["robust"] for balls in found]) + part


def _masking(runs: Sequence[dict[str, Any]], balls: Sequence[tuple[str, float]]) -> str:
    """Return in how many cases (run and shown ball) a sign of masked gradients was seen."""
    verdicts = [
        run["auto"][norm][radius]["verdict"]
        for run in runs
        for norm, radius in balls
        if radius in run["auto"].get(norm, {})
    ]
    if not verdicts:
        return NOTHING
    seen = sum(verdict.startswith("masking") for verdict in verdicts)
    return f"{seen} of {len(verdicts)}" if seen else "none"


def _setting(strength: float | None, step: float | None, *options: str) -> str:
    parts = [f"{strength:g}"] if strength is not None else []
    parts += [f"step {step:g}"] if step is not None else []
    return ", ".join([*parts, *options]) or NOTHING


def _percent(accuracies: Sequence[float]) -> str:
    if not accuracies:
        return NOTHING
    spread = f" ± {100 * stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
    return f"{100 * mean(accuracies):.1f}{spread}"


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of what was measured, or None if nothing was."""
    known = [value for value in values if value is not None]
    return mean(known) if known else None
