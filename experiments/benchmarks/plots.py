"""Figures of the benchmarks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from experiments.benchmarks import labels
from experiments.benchmarks.estimates import PRODUCTS
from experiments.canvas import STYLE_SHEET, Style, canvas, save, style

# The name of a step in a legend, and the method whose look it gets.
_STEPS = {
    "gradient": ("gradient", "gradient"),
    "hessian": ("hessian", "hessian"),
    "hessian: Lanczos, gradient, 5": ("hessian, Lanczos 5", "hessian-only"),
    "hessian, textbook, 10": ("hessian, textbook", "finite-step"),
    "gauss_newton_operator_norm": ("Gauss-Newton", "gauss-newton"),
    "jacobian_squared_frobenius_norm": ("Jacobian, Frobenius", "jacobian"),
    "jacobian_operator_norm": ("Jacobian, operator", "curvature"),
    "adversarial": ("PGD-10 training", "adversarial"),
}
# How the solvers of an estimate are drawn: those of `experiments.benchmarks.estimates`.
_SOLVERS = {
    "none": "hessian",
    "power": "hessian",
    "ascent": "adversarial",
    "Lanczos": "finite-step",
}


def draw(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """Draw every figure for which there are results, and return the files."""
    drawn = []
    with mpl.rc_context(STYLE_SHEET):
        if "scaling" in results:
            drawn.append(scaling(folder / "scaling.png", results["scaling"]))
        rows = results.get("penalty_cost", {}).get("rows", [])
        if any(row["kind"] == "error" for row in rows):
            drawn.append(accuracy(folder / "estimates.png", rows))
    return drawn


def scaling(path: Path, content: Mapping[str, Any]) -> Path:
    """Draw time, in plain steps, against the size of the images and the number of classes."""
    rows = [row for row in content["rows"] if row["step"] != "none"]
    names = list(dict.fromkeys(row["step"] for row in rows))
    page, body = canvas(
        12,
        5.0,
        title="Cost of a step as images grow and classes become more",
        note=f"Time in plain steps of the same network (CNN, gelu, batch "
        f"{content['settings']['batch_size']}), whose operations stay: larger images are averaged "
        "to 28x28, and for more classes the hidden layer is narrower. "
        f"{content['device_name']}.",
        legend=[(label, style(method)) for label, method in (_STEPS[name] for name in names)],
    )
    left, right = body.subplots(1, 2, sharey=True)
    for axes, key, other, label in (
        (left, "size", "classes", "side of the image, pixels ({0} classes)"),
        (right, "classes", "size", "number of classes ({0}x{0} pixels)"),
    ):
        fixed = min(row[other] for row in rows)
        for name in names:
            points = sorted(
                (row[key], row["plain_steps"])
                for row in rows
                if row["step"] == name and row[other] == fixed
            )
            axes.plot(*zip(*points, strict=True), lw=2, ms=8, **style(_STEPS[name][1]).curve)
        axes.set(xscale="log", yscale="log", xlabel=label.format(fixed))
        axes.set_xticks(ticks := sorted({row[key] for row in rows}), map(str, ticks))
        axes.minorticks_off()
        axes.grid(visible=True)
    left.set_ylabel("time in plain steps")
    highest = max(row["plain_steps"] for row in rows)
    ticks = [n * 10**power for power in range(5) for n in (1, 2, 5) if n * 10**power <= highest]
    left.set_yticks(ticks, map(str, ticks))
    save(page, path)
    return path


def accuracy(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Draw the mean relative error of each estimate against its number of products."""
    errors = [row for row in rows if row["kind"] == "error"]
    named = labels.apart(errors, _network)
    networks = list(dict.fromkeys(named))
    series = list(dict.fromkeys(_series(row["estimate"]) for row in errors))
    series = [(solver, start) for solver, start in series if solver != "none"]
    columns = min(3, len(networks))
    height = -(-len(networks) // columns)
    page, body = canvas(
        4.5 * columns + 0.5,
        3.4 * height + 0.3,
        title="How far estimates of the Hessian's norm stay below it",
        note="Mean relative error against dense eigenvalues over test images, by the number of "
        "Hessian-vector products, from the gradient (solid) or a random direction (dashed). "
        "Dotted: 5 %. What is below 0.0001 is drawn there.",
        legend=[(f"{solver}, {start}", _look(solver, start)) for solver, start in series],
    )
    grid = body.subplots(height, columns, squeeze=False, sharex=True, sharey=True)
    for axes, network in zip(grid.flat, networks, strict=False):
        for solver, start in series:
            points = sorted(
                (int(row["estimate"].split(", ")[2]), max(row["error"]["mean"], 1e-4))
                for row, name in zip(errors, named, strict=True)
                if name == network and _series(row["estimate"]) == (solver, start)
            )
            axes.plot(*zip(*points, strict=True), lw=2, ms=7, **_look(solver, start).curve)
        axes.axhline(0.05, color="black", lw=1, ls=":")
        axes.set_title(network, fontsize=11)
        axes.set(yscale="log", ylim=(8e-5, 1.5), xticks=PRODUCTS)
        axes.grid(visible=True)
    for axes in list(grid.flat)[len(networks) :]:
        axes.set_visible(False)
    # The lowest panel of each column has the tick labels: some columns end early.
    for axes in list(grid.flat)[max(0, len(networks) - columns) : len(networks)]:
        axes.tick_params(labelbottom=True)
    body.supxlabel("Hessian-vector products", size=14)
    body.supylabel("mean relative error", size=14)
    save(page, path)
    return path


def _series(estimate: str) -> tuple[str, str]:
    solver, start, _ = estimate.split(", ")
    return solver, start


def _look(solver: str, start: str) -> Style:
    return style(_SOLVERS[solver], 0 if start == "gradient" else 1)


def _network(row: Mapping[str, Any]) -> str:
    data = row["data"].replace("_", "-")
    inside = "" if labels.precision(row) == labels.USUAL else f", {labels.precision(row)}"
    trained = f"{row['method']}, epochs: {row['epochs']}"
    return f"{data}, {row['model']} {row['activation']}{inside}\n{trained}"
