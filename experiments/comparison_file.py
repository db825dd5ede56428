"""The file of a comparison, comparison.json, to which several commands may add."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import provenance
from experiments.files import number_key, read_json, write_json
from experiments.processes import led
from experiments.reading import read, setup_of

_NAME = "comparison.json"


@led
def earlier(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what earlier commands of the same settings left in a comparison's folder."""
    found = _found(out)
    same = all(found.get(key) == value for key, value in settings.items())
    return found if same else {"runs": []}


def _found(out: Path) -> dict[str, Any]:
    """Return what is there; settings introduced after it was written had their defaults."""
    path = out / _NAME
    found = read_json(path) if path.is_file() else {"runs": []}
    usual = {"auto": {"norms": {}, "num_examples": None}, "apgd_examples": 0}
    return {**usual, **found, "setup": setup_of(found)}


@led
def check(out: Path, settings: dict[str, Any], paths: set[str]) -> None:
    """Raise if there are results of other settings that this command would not produce anew.

    Raises:
        ValueError: also if the file is damaged.
    """
    path = out / _NAME
    if not path.is_file():
        return
    read(out)
    if earlier(out, settings)["runs"]:
        return
    there = _found(out)
    others = [run["path"] for run in there["runs"] if run["path"] not in paths]
    if others:
        changed = [key for key, value in settings.items() if there.get(key) != value]
        # Attacks can be repeated with other settings in the same folders, trainings cannot.
        trained = {"data", "num_test", "setup"}.isdisjoint(changed)
        remedy = "name their methods and seeds, too, or another folder"
        raise ValueError(
            f"{path} has runs of other settings ({', '.join(changed)}), and {', '.join(others)} "
            f"would be lost: {remedy if trained else 'name another folder'}"
        )
    if unnamed := _unnamed(there, settings):
        print(f"{path}: results under {', '.join(unnamed)} leave the table", file=sys.stderr)


def _unnamed(there: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Return the attacks of a comparison that these settings lack."""
    lost = []
    for name, before, now in (
        ("PGD", there.get("norms", {}), settings["norms"]),
        ("AutoAttack", there.get("auto", {}).get("norms", {}), settings["auto"]["norms"]),
    ):
        for norm, radii in before.items():
            missing = [number_key(r) for r in radii if r not in now.get(norm, ())]
            lost += [f"{name} at {norm} {', '.join(missing)}"] if missing else []
    if there.get("apgd_examples", 0) > settings["apgd_examples"]:
        lost.append(f"APGD of {there['apgd_examples']} examples")
    return lost


@led
def write(
    out: Path,
    settings: dict[str, Any],
    entries: Sequence[dict[str, Any]],
    failed: Mapping[str, str],
) -> None:
    """Write what there is so far, with the runs of earlier commands."""
    before = earlier(out, settings)
    # What an earlier command found for a run still stands, even if this one failed at it.
    there = {run["path"] for run in (*before["runs"], *entries)}
    reasons = {**before.get("failed", {}), **failed}
    reasons = {path: why for path, why in reasons.items() if path not in there}
    if not entries:
        if before["runs"]:
            write_json(out / _NAME, {**before, "failed": reasons})
        return
    # Where the networks were trained and attacked, which need not be where this runs.
    origin = provenance.combined(*entries)
    comparison = {
        **provenance.collect(),
        **origin,
        **settings,
        "runs": [
            {name: value for name, value in entry.items() if name not in origin}
            for entry in entries
        ],
        "failed": reasons,
    }
    write_json(out / _NAME, _joined(before, comparison))


def _joined(before: dict[str, Any], comparison: dict[str, Any]) -> dict[str, Any]:
    """Return a comparison, with those runs of an earlier one for which it has no newer results."""
    if not before["runs"]:
        return comparison
    known = {run["path"] for run in before["runs"]}
    new = {run["path"]: run for run in comparison["runs"]}
    return {
        **comparison,
        **provenance.merged(before, comparison),
        "runs": [
            *(new.get(run["path"], run) for run in before["runs"]),
            *(run for run in comparison["runs"] if run["path"] not in known),
        ],
    }
