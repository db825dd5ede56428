"""Join comparisons for one table."""

from collections.abc import Callable, Sequence
from operator import ge, le
from typing import Any

from experiments.reading import auto_radii_of, require, setup_of

# The settings of a setup that a joint table has a column for.
_NETWORK = ("model", "activation")


def joined(comparisons: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return several comparisons as one, at the radii at which all were attacked alike.

    PGD and APGD attack from the largest radius down and do not attack again what withstood, so an
    accuracy also depends on the larger radii.

    If their networks differ, the table has a column for them. Only some of the methods may have
    results of AutoAttack, or times of steps that were measured in turns; in the latter case, the
    trainings' own times are dropped, as are times from another device than the first.

    Args:
        comparisons: from `experiments.reading.read`; of the same data, attacked alike at one radius
            at least.

    Raises:
        ValueError: if they are not.
    """
    _check_alike(comparisons)
    auto = _auto(comparisons)
    norms = _common([one["norms"] for one in comparisons], _tried(comparisons[0]["attack"]))
    if not norms and not (auto and all(auto_radii_of(one) for one in comparisons)):
        raise ValueError("comparisons without a radius attacked alike cannot share a table")
    timed = [one["step_times"] for one in comparisons if "step_times" in one]
    clocks = [_clock(one.get("step_times", {}) if timed else one) for one in comparisons]
    clock = _clock((timed or comparisons)[0])
    hidden = [{} if one == clock else {"seconds_per_step": None} for one in clocks]
    runs = [
        {**run, **hide, "network": _network(one)}
        for one, hide in zip(comparisons, hidden, strict=True)
        for run in one["runs"]
    ]
    names = [f"{run['network']} {run['path']}" for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is in several of the comparisons: a seed counts once")
    if len({run["network"] for run in runs}) == 1:
        runs = [{**run, "network": ""} for run in runs]
    examples = max(one.get("apgd_examples", 0) for one in comparisons)
    attacks = {"norms": norms, "auto": auto, "apgd_examples": examples}
    whole = {**comparisons[0], **attacks, "runs": runs}
    if timed:
        same = [times for times in timed if _clock(times) == clock]
        commits = sorted({times["commit"] for times in same})
        whole["step_times"] = {**timed[0], "commit": ", ".join(commits)}
    return whole


def _check_alike(comparisons: Sequence[dict[str, Any]]) -> None:
    first, *others = comparisons
    for one in comparisons:
        require(("setup",), one, "a comparison for a joint table")
    for other in others:
        for key in ("data", "num_test", "attack"):
            if other[key] != first[key]:
                raise ValueError(
                    f"comparisons of different {key} cannot share a table: "
                    f"{first[key]} and {other[key]}"
                )
        for key, before in setup_of(first).items():
            after = setup_of(other)[key]
            if before != after and key not in _NETWORK:
                raise ValueError(
                    f"comparisons of different {key} cannot share a table: {before}, {after}"
                )


def _auto(comparisons: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return AutoAttack's settings, with the radii common to all comparisons where it was used."""
    found = [auto for one in comparisons if (auto := one.get("auto", {})).get("norms")]
    if not found:
        return {}
    # What was broken at one radius counts as broken at the larger ones.
    norms = _common([auto["norms"] for auto in found], le)
    if not norms or any({**auto, "norms": norms} != {**found[0], "norms": norms} for auto in found):
        raise ValueError(f"comparisons of different AutoAttack cannot share a table: {found}")
    return {**found[0], "norms": norms}


def _tried(attack: dict[str, Any]) -> Callable[[float, float], bool]:
    """Return whether an attack comes to a radius before, or at, another one."""
    return ge if attack.get("radii") == "from the largest" else le


def _common(
    balls: Sequence[dict[str, list[float]]], before: Callable[[float, float], bool]
) -> dict[str, list[float]]:
    """Return, by norm, the radii that all have, after the same ones before them."""
    first, *others = balls

    def until(radii: Sequence[float], radius: float) -> set[float]:
        return {one for one in radii if before(one, radius)}

    common = {
        norm: [
            radius
            for radius in radii
            if all(until(one.get(norm, ()), radius) == until(radii, radius) for one in others)
        ]
        for norm, radii in first.items()
    }
    return {norm: radii for norm, radii in common.items() if radii}


def _clock(times: dict[str, Any]) -> list[Any]:
    """Return what has to be equal for times to be comparable: device, its name, environment."""
    return [times.get(name) for name in ("device", "device_name", "environment")]


def _network(comparison: dict[str, Any]) -> str:
    return " ".join(setup_of(comparison)[name] for name in _NETWORK)
