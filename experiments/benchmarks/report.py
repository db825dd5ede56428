"""Tables and figures of the benchmarks, made from the JSON files of a device alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from experiments.benchmarks import labels, plots, records, targets
from experiments.benchmarks.estimates import DEFAULT
from experiments.files import read_json, write_text
from experiments.interruption import ending
from experiments.markdown import NOTHING, markdown, number
from experiments.reading import require

Row = Mapping[str, Any]
# What a report needs from every file.
_TOLD = ("settings", "rows", "command", "commit", "versions", "device", "device_name")


@ending()
def main(folder: tyro.conf.Positional[Path | None] = None) -> None:
    """Write report.md and the figures beside the results of a device.

    Args:
        folder: where the JSON files are; if not given, this device's folder in
            experiments/benchmarks/results.
    """
    written = write(folder or records.RESULTS / records.device_name())
    print("Written:", *written, sep="\n  ")


def write(folder: Path) -> list[Path]:
    """Write the report and its figures and return their paths.

    Raises:
        ValueError: if the folder holds no results, or damaged ones.
    """
    results = read(folder)
    try:
        content = text(results)
        figures = plots.draw(folder, results)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder} holds damaged results ({error!r}): measure anew") from error
    report = folder / "report.md"
    write_text(report, content)
    return [report, *figures]


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the benchmarks in a folder that have a section, by name.

    Raises:
        ValueError: if there are none.
    """
    paths = {name: folder / f"{name}.json" for name in sorted(_SECTIONS)}
    results = {name: read_json(path) for name, path in paths.items() if path.is_file()}
    if not results:
        *others, last = paths
        raise ValueError(
            f"{folder} holds no results of {', '.join(others)} or {last}, "
            "which the modules of experiments.benchmarks write"
        )
    for name, content in results.items():
        require(_TOLD, content, str(paths[name]))
    return results


def text(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the report of these results."""
    devices = dict.fromkeys(content["device_name"] for content in results.values())
    parts = [f"# What it costs on {' and '.join(devices)}\n"]
    for name, section in _SECTIONS.items():
        if name in results:
            parts += [*section(results[name]), _origin(results[name])]
    return "\n".join(parts)


def _origin(content: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    environment = " ".join(f"{k}={v}" for k, v in content["environment"].items())
    return (
        f"`{f'{environment} '.lstrip()}{content['command']}`, commit {content['commit']}, "
        f"{versions}, {content['device']}.\n"
    )


def _penalty_section(content: Mapping[str, Any]) -> list[str]:
    rows = content["rows"]
    steps = [row for row in rows if row["kind"] == "step"]
    batch_size = content["settings"]["batch_size"]
    precisions = " and ".join(dict.fromkeys(map(labels.precision, steps))) or labels.USUAL
    parts = [
        "## Optimizer steps\n",
        (
            f"Batch {batch_size}, {precisions}. Time, operations and temporary memory are those "
            "of the plain step (`none`) times so much; in parentheses the quartiles of the time. "
            "Operations are XLA's count, which knows no loops and no eigendecompositions. Lazy and "
            "partial steps are means over a cycle. PyTorch's are those of "
            "`experiments/benchmarks/reference.py`.\n"
        ),
    ]
    if ratios := targets.measured(rows):
        heads = ["ratio, of time where nothing else is said", "network", "wanted", "measured"]
        parts += [markdown([heads, *ratios], words=3), ""]
    for name in dict.fromkeys(map(labels.architecture, steps)):
        own = [row for row in steps if labels.architecture(row) == name]
        parts += [f"### {name}\n", step_table(own), ""]
    errors = [row for row in rows if row["kind"] == "error"]
    if errors:
        # Before this was recorded, they were of the test set.
        kinds = dict.fromkeys(row.get("images", "test") for row in errors)
        parts += [
            "## Estimates of the Hessian's norm\n",
            (
                "Relative error against the largest eigenvalue of dense Hessians, in percent: mean "
                "/ 95th percentile over the first "
                f"{content['settings']['num_images']} {' or '.join(kinds)} images; and the step's "
                "time in plain steps. An estimate is named by solver, start and number of "
                "products.\n"
            ),
            estimate_table(steps, errors),
            "\n![estimates](estimates.png)\n",
        ]
    return parts


def step_table(rows: Iterable[Row]) -> str:
    """Return the steps of one architecture as a table."""
    rows = list(rows)
    [plain] = [row for row in rows if row["step"] == "none"]
    unit = plain["seconds"]["median"]

    def ratio(row: Row, key: str) -> str:
        value = row.get(key)
        return number(None if value is None else value / plain[key])

    lines = [
        [
            row["step"],
            f"{1e3 * row['seconds']['median']:.1f}",
            f"{row['plain_steps']:.2f} ({_quartiles(row, unit)})",
            ratio(row, "operations"),
            ratio(row, "temporary_bytes"),
            number(row.get("compile_seconds"), ".1f"),
        ]
        for row in rows
    ]
    heads = ["step", "ms", "time", "operations", "memory", "compile, s"]
    return markdown([heads, *lines])


def _quartiles(row: Row, unit: float) -> str:
    seconds = row["seconds"]
    return f"{seconds['lower'] / unit:.2f} to {seconds['upper'] / unit:.2f}"


def estimate_table(steps: Sequence[Row], errors: Sequence[Row]) -> str:
    """Return a table of the errors of each estimate on each network, with the cost of its step."""
    named = labels.apart(errors, labels.network)
    networks = list(dict.fromkeys(named))
    architectures = list(dict.fromkeys(map(labels.architecture, steps)))
    found = {(row["estimate"], name): row["error"] for row, name in zip(errors, named, strict=True)}
    cost = {(row["step"], labels.architecture(row)): row["plain_steps"] for row in steps}
    lines = []
    for estimate in dict.fromkeys(row["estimate"] for row in errors):
        cells = [estimate]
        for name in architectures:
            # The default estimate's step goes by the name of the method.
            step = "hessian" if estimate == DEFAULT else f"hessian: {estimate}"
            cells.append(number(cost.get((step, name))))
        for network in networks:
            error = found.get((estimate, network))
            cells.append(
                NOTHING
                if error is None
                else f"{100 * error['mean']:.1f} / {100 * error['percentile_95']:.1f}"
            )
        lines.append(cells)
    heads = ["estimate", *(f"time, {name}" for name in architectures), *networks]
    return markdown([heads, *lines])


def _scaling_section(content: Mapping[str, Any]) -> list[str]:
    rows = content["rows"]
    steps = list(dict.fromkeys(row["step"] for row in rows))
    places = list(dict.fromkeys((row["size"], row["classes"]) for row in rows))
    at = {(row["step"], row["size"], row["classes"]): row["plain_steps"] for row in rows}
    lines = [[step, *(number(at.get((step, *place))) for place in places)] for step in steps]
    heads = ["step", *(f"{size}², {classes}" for size, classes in places)]
    return [
        "## Larger images, more classes\n",
        (
            "Time in plain steps of the same network, CNN, gelu, batch "
            f"{content['settings']['batch_size']}; side of the images and number of classes at the "
            "head. Larger images are averaged to 28×28 first, and for more classes the hidden "
            "layer is narrower, so that the network's operations stay.\n"
        ),
        markdown([heads, *lines]),
        "\n![scaling](scaling.png)\n",
    ]


def _hvp_section(content: Mapping[str, Any]) -> list[str]:
    rows = content["rows"]
    parts = [
        "## Hessian-vector products\n",
        (
            "Time of a product in gradients in the input of the same batch; in parentheses its "
            "relative error, median over examples, against double precision.\n"
        ),
    ]
    cells = dict.fromkeys((row["model"], row["dtype"]) for row in rows)
    for model, dtype in cells:
        own = [row for row in rows if (row["model"], row["dtype"]) == (model, dtype)]
        sizes = sorted({row["batch_size"] for row in own})
        at = {(row["form"], row["batch_size"]): row for row in own}
        lines = [
            [form, *(_product_cell(at.get((form, size))) for size in sizes)]
            for form in dict.fromkeys(row["form"] for row in own)
        ]
        heads = ["form", *(f"batch {size}" for size in sizes)]
        parts += [f"### {model.upper()}, {dtype}\n", markdown([heads, *lines]), ""]
    return parts


def _product_cell(row: Row | None) -> str:
    if row is None:
        return NOTHING
    error = "" if row["relative_error"] is None else f" ({row['relative_error']:.0e})"
    return f"{row['ratio']:.2f}{error}"


def _attack_section(content: Mapping[str, Any]) -> list[str]:
    rows = content["rows"]
    networks = labels.apart(rows, lambda row: f"{row['data']} {row['model']}, {row['method']}")
    lines = [
        [
            network,
            f"{row['norm']} {row['epsilon']:g}",
            row["attack"],
            f"{row['seconds_per_1000']['median']:.1f}",
            f"{100 * row['robust']:.1f}",
            f"{row['compile_seconds']:.1f}",
        ]
        for row, network in zip(rows, networks, strict=True)
    ]
    heads = ["network", "ball", "attack", "s for 1,000 images", "accuracy, %", "compile, s"]
    return [
        "## Attacks\n",
        (
            f"On the first {content['settings']['num_examples']} test images, scaled to 1,000; "
            f"median of {content['settings']['repeats']}.\n"
        ),
        markdown([heads, *lines]),
        "",
    ]


# In the order of the report.
_SECTIONS: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "penalty_cost": _penalty_section,
    "scaling": _scaling_section,
    "hvp_cost": _hvp_section,
    "attack_cost": _attack_section,
}


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.report")
