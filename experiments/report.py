"""Write the table and the figures of a comparison from what it left on disk.

Reads ``comparison.json`` and each run's ``landscape.npz``; trains and evaluates nothing.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from experiments import figures
from experiments.canvas import Style, norm_name
from experiments.files import read_arrays, replacing
from experiments.table import Method, group, joined, read, require, table

_LANDSCAPE_KEYS = (
    *("curvature", "gradient_norm", "shown", "shown_label", "shown_clean", "clean_prediction"),
    *("attacked", "attacked_prediction", "attack_epsilon", "attack_order", "attack_steps"),
    *("surface_offsets", "surface_loss", "surface_cosine"),
)
# What one figure shows of several runs has to be the same in all of them.
_COMMON = {
    "shown": "test images",
    "attack_epsilon": "radii of the attack",
    "attack_order": "norms of the attack",
    "attack_steps": "steps of the attack",
    "surface_offsets": "planes",
}


class Landscapes(NamedTuple):
    """What the runs of one method left in ``landscape.npz``; ``arrays`` is by seed."""

    label: str
    style: Style
    seeds: Sequence[int]
    arrays: Sequence[dict[str, np.ndarray]]


def main(
    directory: tyro.conf.Positional[Path], others: tyro.conf.Positional[tuple[Path, ...]] = ()
) -> None:
    """Write the table and the figures of a comparison again, from its files alone.

    Reads comparison.json and the runs' landscape.npz as `python -m experiments.compare` left
    them. Writes report.md and figures/*.png beside them and prints the table. It trains nothing,
    takes seconds and can be repeated. Of several comparisons on the same data, attacked alike, it
    prints one table and writes nothing. For example:

        python -m experiments.report runs/demo
        python -m experiments.report runs/study/mnist/cnn runs/study/mnist/mlp

    Args:
        directory: the folder of the comparison.
        others: folders of more of them, for one table.
    """
    try:
        if others:
            print(table(joined([read(folder) for folder in (directory, *others)])))
            return
        comparison = read(directory)
        landscapes = read_landscapes(directory, comparison)
        written = write(directory, comparison, landscapes)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(table(comparison))
    print("\nWritten:", *written, sep="\n  ")


def write(
    directory: Path, comparison: dict[str, Any], landscapes: Sequence[Landscapes]
) -> list[Path]:
    """Write ``report.md`` and the figures into a comparison's folder.

    A method whose runs left no ``landscape.npz`` is missing in all figures but the first; the
    report says so.

    Args:
        directory: the folder of the comparison.
        comparison: what `experiments.table.read` returned.
        landscapes: what `read_landscapes` returned.

    Returns:
        The files, the report first.
    """
    methods = group(comparison)
    folder = directory / "figures"
    drawn = [_draw_accuracy(folder, comparison, methods)]
    if landscapes:
        data = comparison["data"]
        drawn += [draw(folder, data, landscapes) for draw in (_draw_norms, _draw_planes)]
        drawn += [_draw_attacks(folder, data, landscapes)]
    absent = [m.label for m in methods if m.label not in {found.label for found in landscapes}]
    report = directory / "report.md"
    with replacing(report) as partial:
        partial.write_text(_text(comparison, drawn, absent), encoding="utf-8")
    return [report, *drawn]


def read_landscapes(directory: Path, comparison: dict[str, Any]) -> list[Landscapes]:
    """Read what the runs of each method left; a method that left nothing is missing.

    Raises:
        ValueError: if a ``landscape.npz`` is broken, or not all show the same test images and were
            made with the same settings.
    """
    loaded = []
    for method in group(comparison):
        left = {
            run["seed"]: path
            for run in method.runs
            if (path := directory / run["path"] / "landscape.npz").is_file()
        }
        if left:
            arrays = [_load(path) for path in left.values()]
            loaded.append(Landscapes(method.label, method.style, list(left), arrays))
    for key, meaning in _COMMON.items():
        found = {tuple(a[key].ravel().tolist()) for method in loaded for a in method.arrays}
        if len(found) > 1:
            raise ValueError(
                f"the landscape.npz files in {directory} have different {meaning}: "
                f"{sorted(found)}; the command of the comparison, given again, makes them anew"
            )
    return loaded


def _load(path: Path) -> dict[str, np.ndarray]:
    arrays = read_arrays(path)
    require(_LANDSCAPE_KEYS, arrays, str(path))
    return arrays


def _draw_accuracy(folder: Path, comparison: dict[str, Any], methods: Sequence[Method]) -> Path:
    def curve(method: Method, norm: str, radii: list[float]) -> figures.Curve:
        accuracy = [
            [run["clean"], *(run["robust"][norm][radius] for radius in radii)]
            for run in method.runs
        ]
        return figures.Curve(
            method.label, method.style, np.array([0.0, *radii]), np.array(accuracy)
        )

    note = f"{_about(comparison)}. Attack: {_attack(comparison['attack'])}."
    if any(len(method.runs) > 1 for method in methods):
        note += " Lines: mean over seeds; bands: ± sample standard deviation; small dots: seeds."
    path = folder / "accuracy.png"
    figures.accuracy(
        path,
        {
            norm: [curve(method, norm, radii) for method in methods]
            for norm, radii in comparison["norms"].items()
        },
        title="Accuracy under attack",
        note=note,
    )
    return path


def _draw_norms(folder: Path, data: str, landscapes: Sequence[Landscapes]) -> Path:
    def cloud(found: Landscapes) -> figures.Cloud:
        curvature, gradient_norm = (
            np.concatenate([array[name] for array in found.arrays])
            for name in ("curvature", "gradient_norm")
        )
        return figures.Cloud(found.label, found.style, curvature, gradient_norm)

    count = len(landscapes[0].arrays[0]["curvature"])
    seeds = _seeds(seed for found in landscapes for seed in found.seeds)
    pooled = " pooled" if any(len(found.seeds) > 1 for found in landscapes) else ""
    path = folder / "norms.png"
    figures.histograms(
        path,
        [cloud(found) for found in landscapes],
        title="Gradient and curvature of the loss at the test images",
        note=f"{count:,} test images of {data}; {seeds}{pooled}. Derivatives of the cross-entropy "
        "(nats) in the input, pixels in [0, 1]; ‖H‖ is the largest |eigenvalue| of the Hessian, "
        f"estimated from below. Dashed: median; black outline: {landscapes[0].label}. The first "
        "bin holds all that is smaller, too.",
    )
    return path


def _draw_planes(folder: Path, data: str, landscapes: Sequence[Landscapes]) -> Path:
    first = landscapes[0].arrays[0]
    [i] = _clear_images(landscapes, 1)
    radius = float(first["attack_epsilon"]) if first["attack_order"] == 2 else None
    circle = "" if radius is None else f" Dashed: the $\\ell_2$ ball of radius ε = {radius:g}."
    path = folder / "planes.png"
    figures.planes(
        path,
        [
            figures.Plane(
                found.label,
                found.style,
                found.arrays[0]["surface_loss"][i],
                float(found.arrays[0]["surface_cosine"][i]),
            )
            for found in landscapes
        ],
        first["surface_offsets"],
        epsilon=radius,
        title="Loss over the plane of gradient and top eigenvector",
        note=f"Test image {first['shown'][i]} (label {first['shown_label'][i]}) of {data}, "
        f"{_seeds(found.seeds[0] for found in landscapes)}: the white dot. Dotted: the top "
        "eigenvector of the Hessian; cos is the cosine of its angle to the gradient."
        f"{circle} Orange: loss ln 2, below which the label surely wins. Points are not clipped "
        "to [0, 1].",
    )
    return path


def _draw_attacks(folder: Path, data: str, landscapes: Sequence[Landscapes]) -> Path:
    def attack(arrays: dict[str, np.ndarray], i: int) -> figures.Attack:
        return figures.Attack(
            arrays["shown_clean"][i],
            arrays["attacked"][i],
            int(arrays["shown_label"][i]),
            int(arrays["clean_prediction"][i]),
            int(arrays["attacked_prediction"][i]),
        )

    first = landscapes[0].arrays[0]
    chosen = _clear_images(landscapes, 2)
    order, radius = float(first["attack_order"]), float(first["attack_epsilon"])
    path = folder / "attacks.png"
    figures.attacks(
        path,
        [
            (found.label, found.style, [attack(found.arrays[0], i) for i in chosen])
            for found in landscapes
        ],
        order=order,
        title="Attacked test images",
        note=f"Test images {' and '.join(str(first['shown'][i]) for i in chosen)} of {data}, "
        f"{_seeds(found.seeds[0] for found in landscapes)}. PGD, {first['attack_steps']} steps, "
        f"{norm_name(order)} ball of radius ε = {radius:g}, pixels in [0, 1].",
    )
    return path


def _clear_images(landscapes: Sequence[Landscapes], count: int) -> list[int]:
    """Return places among the shown images, those first that most methods get right clean."""
    right = np.sum(
        [
            found.arrays[0]["clean_prediction"] == found.arrays[0]["shown_label"]
            for found in landscapes
        ],
        axis=0,
    )
    return np.argsort(-right, stable=True)[:count].tolist()


def _text(comparison: dict[str, Any], drawn: Sequence[Path], absent: Sequence[str]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in comparison["versions"].items())
    lines = [
        f"# Comparison on {comparison['data']}\n",
        f"- Command: `{comparison['command']}`",
        f"- Commit: {comparison['commit']}",
        f"- Versions: {versions}",
        f"- Device: {comparison['device']}",
        f"- Data: {_about(comparison)}",
        *attacked(comparison),
        *(f"- Failed: {path}: {why}" for path, why in comparison.get("failed", {}).items()),
        "",
        table(comparison),
        f"\n{explained(comparison)}\n",
    ]
    if absent:
        lines.append(f"Without landscape.npz, so in the first figure only: {', '.join(absent)}.\n")
    lines += [f"![{path.stem}]({path.parent.name}/{path.name})\n" for path in drawn]
    return "\n".join(lines)


def attacked(comparison: dict[str, Any]) -> list[str]:
    """Return what the networks were attacked with, an item of a list each."""
    strongest = _strongest(comparison)
    return [
        f"- Attack: {_attack(comparison['attack'])}",
        *([f"- AA: {strongest}"] if strongest else []),
    ]


def explained(comparison: dict[str, Any]) -> str:
    """Return what the columns of the table are."""
    several = any(len(method.runs) > 1 for method in group(comparison))
    spread = "; mean ± sample standard deviation over seeds" if several else ""
    return (
        "strength: a penalty's weight, or the ε of hessian, adversarial and trades. "
        "Accuracy in percent of the test images, clean and under attack in the ball of the norm "
        f"and radius at the head of the column (pixels in [0, 1]){spread}. ‖g‖₂: norm of the "
        "gradient of the loss in the input. ‖H‖: largest |eigenvalue| of its Hessian in the "
        "input, estimated from below. Both are means over test images and seeds. time/step: "
        "seconds per training step over those of `none`."
    )


def _about(comparison: dict[str, Any]) -> str:
    seeds = _seeds(run["seed"] for run in comparison["runs"])
    return f"{comparison['num_test']:,} test images of {comparison['data']}; {seeds}"


def _strongest(comparison: dict[str, Any]) -> str:
    """Return what AutoAttack attacked, and what the table tells of it; nothing if it didn't."""
    told = comparison.get("auto", {})
    if not told.get("norms"):
        return ""
    count = told["num_examples"]
    examples = "all test images" if count is None else f"the first {count:,} test images"
    return (
        f"AutoAttack, standard version, on {examples}; masking: at how many of its runs and balls "
        "a sign of masked gradients was seen"
    )


def _seeds(seeds: Iterable[int]) -> str:
    unique = sorted(set(seeds))
    return f"seed{'s' if len(unique) > 1 else ''} {', '.join(map(str, unique))}"


def _attack(settings: dict[str, Any]) -> str:
    """Return the attack's settings as words: {"num_steps": 40} is "40 steps"."""
    words = []
    for name, value in settings.items():
        told = " and ".join(map(str, value)) if isinstance(value, list) else str(value)
        noun = name.removeprefix("num_").replace("_", " ")
        if name == "name":
            words.append(told)
        elif noun != name.replace("_", " "):
            words.append(f"{told} {noun.removesuffix('s') if value == 1 else noun}")
        else:
            words.append(f"{noun} {told}")
    return ", ".join(words)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.report")
