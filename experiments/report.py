"""Write the table and figures of a comparison from what it left on disk.

Reads ``comparison.json`` and each run's ``landscape.npz``; trains and evaluates nothing.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from experiments.files import write_text
from experiments.interruption import ending
from experiments.joining import joined
from experiments.landscape_pictures import FIGURES, Landscapes, read_landscapes
from experiments.pictures import MOST_METHODS, draw, draw_cost
from experiments.reading import read
from experiments.table import group, table
from experiments.words import about, results

_REPORT = "report.md"


@ending()
def main(
    directory: tyro.conf.Positional[Path],
    others: tyro.conf.Positional[tuple[Path, ...]] = (),
    *,
    brief: bool = False,
    cost: Path | None = None,
) -> None:
    """Write the table and the figures of a comparison again, from its files alone.

    Reads comparison.json and the runs' landscape.npz as `python -m experiments.compare` left them,
    writes report.md and figures/*.png beside them, and prints the table. It trains nothing, takes
    seconds and can be repeated. Given several comparisons on the same data, attacked alike, it only
    prints one joint table, and draws the figure of costs if --cost asks for it. For example:

        python -m experiments.report runs/demo
        python -m experiments.report runs/study/mnist/headline runs/study/mnist/mlp

    Args:
        directory: the folder of the comparison.
        others: folders of further comparisons, for a joint table.
        brief: among the attacks show only AutoAttack, and no norms.
        cost: for several comparisons: PNG file for a figure of the robust accuracy of all methods
            against the cost of a training step.
    """
    if others:
        whole = joined([read(folder) for folder in (directory, *others)])
        if cost is not None:
            draw_cost(cost, whole)
        print(table(whole, brief=brief))
        return
    if cost is not None:
        raise ValueError("cost needs several comparisons: one has figures/cost.png")
    comparison = read(directory)
    landscapes = read_landscapes(directory, comparison)
    written = write(directory, comparison, landscapes)
    print(table(comparison, brief=brief))
    print("\nWritten:", *written, sep="\n  ")


def is_written(directory: Path, comparison: dict[str, Any]) -> bool:
    """Return whether a comparison's folder has a report of all its results, with the figures."""
    path = directory / _REPORT
    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8")
    figures = re.findall(r"^!\[\w+\]\((.+)\)$", text, re.MULTILINE)
    left = [directory / run["path"] / "landscape.npz" for run in comparison["runs"]]
    newer = any(p.is_file() and p.stat().st_mtime > path.stat().st_mtime for p in left)
    whole = all((directory / figure).is_file() for figure in figures)
    return text.startswith(_facts(comparison)) and whole and not newer


def write(
    directory: Path, comparison: dict[str, Any], landscapes: Sequence[Landscapes]
) -> list[Path]:
    """Write ``report.md`` and the figures into a comparison's folder.

    A method whose runs left no ``landscape.npz`` is missing from the figures that need it, and the
    report says so. If no run left one, figures drawn from earlier ones are kept. Very many methods
    get no figures of each.

    Args:
        directory: the folder of the comparison.
        comparison: what `experiments.reading.read` returned.
        landscapes: what `read_landscapes` returned.

    Returns:
        The files, the report first.
    """
    labels = [method.label for method in group(comparison)]
    there = {found.label for found in landscapes}
    drawn, notes = draw(directory / "figures", comparison, landscapes), []
    before = [directory / "figures" / f"{name}.png" for name in FIGURES]
    if len(labels) > MOST_METHODS:
        notes = [f"No figures of each: {len(labels)} methods could not be told apart.\n"]
    elif not landscapes and (left := [path for path in before if path.is_file()]):
        drawn += left
        named = ", ".join(path.stem for path in left)
        notes = [f"Drawn earlier, from landscape.npz of the runs, which are gone: {named}.\n"]
    elif absent := [label for label in labels if label not in there]:
        named = ", ".join(absent)
        notes = [f"Without landscape.npz, so in none of the figures made of it: {named}.\n"]
    report = directory / _REPORT
    write_text(report, _text(comparison, drawn, notes))
    return [report, *drawn]


def _text(comparison: dict[str, Any], drawn: Sequence[Path], notes: Sequence[str]) -> str:
    lines = [_facts(comparison), *notes]
    lines += [f"![{path.stem}]({path.parent.name}/{path.name})\n" for path in drawn]
    return "\n".join(lines)


def _facts(comparison: dict[str, Any]) -> str:
    """Return the part of a report before its figures, in Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in comparison["versions"].items())
    lines = [
        f"# Comparison on {comparison['data']}\n",
        f"- Command: `{comparison['command']}`",
        f"- Commit: {comparison['commit']}",
        f"- Versions: {versions}",
        f"- Device: {comparison['device']}",
        f"- Data: {about(comparison)}",
        *results(comparison, comparison.get("failed", {})),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.report")
