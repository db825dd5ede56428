"""The figures made from the runs' ``landscape.npz``: norms, planes, boundaries, attacks."""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mode
from typing import Any, NamedTuple

import numpy as np

from experiments import figures, surfaces
from experiments.canvas import Style, norm_name
from experiments.files import read_arrays
from experiments.reading import require
from experiments.table import group
from experiments.words import seeds_of

_LANDSCAPE_KEYS = (
    *("curvature", "gradient_norm", "shown", "shown_label", "shown_clean", "clean_prediction"),
    *("attacked", "attacked_prediction", "attack_epsilon", "attack_order", "attack_steps"),
    *("surface_offsets", "surface_loss", "surface_cosine"),
)
# Where one figure shows several runs, these have to be the same in all of them.
_COMMON = {
    "shown": "test images",
    "attack_epsilon": "radii of the attack",
    "attack_order": "norms of the attack",
    "attack_steps": "steps of the attack",
    "surface_offsets": "planes",
}
# As `hessjax.pgd` returns it.
_FOUND = "the first misclassified point, or else the one of largest loss, that PGD finds in"


class Landscapes(NamedTuple):
    """What the runs of one method left in ``landscape.npz``; ``arrays`` is by seed."""

    label: str
    style: Style
    seeds: Sequence[int]
    arrays: Sequence[dict[str, np.ndarray]]


def read_landscapes(directory: Path, comparison: dict[str, Any]) -> list[Landscapes]:
    """Read what the runs of each method left; a method that left nothing is missing.

    Damaged files, and those that show other test images or settings than most, are left out with a
    message: they are no reason to lose the table, nor the figures of the other runs.
    """
    paths = [directory / run["path"] / "landscape.npz" for run in comparison["runs"]]
    whole = {path: arrays for path in paths if path.is_file() and (arrays := _load(path))}
    if not whole:
        return []
    settings = {path: _settings(arrays) for path, arrays in whole.items()}
    usual = mode(settings.values())
    for path, own in settings.items():
        pairs = zip(_COMMON.values(), own, usual, strict=True)
        if differences := [(meaning, mine, most) for meaning, mine, most in pairs if mine != most]:
            meaning, mine, most = differences[0]
            print(
                f"{path} is not drawn: its {meaning} are {mine}, those of most runs {most}; "
                "evaluate the run like them",
                file=sys.stderr,
            )
            del whole[path]
    loaded = []
    for method in group(comparison):
        left = {
            run["seed"]: whole[path]
            for run in method.runs
            if (path := directory / run["path"] / "landscape.npz") in whole
        }
        if left:
            found = Landscapes(method.label, method.style, list(left), list(left.values()))
            loaded.append(found)
    return loaded


def _settings(arrays: dict[str, np.ndarray]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(arrays[key].ravel().tolist()) for key in _COMMON)


def _load(path: Path) -> dict[str, np.ndarray]:
    """Return what a file holds; nothing, with a message, if it is damaged."""
    try:
        arrays = read_arrays(path)
        require(_LANDSCAPE_KEYS, arrays, str(path))
    except ValueError as error:
        print(f"{error}, so it is not drawn: delete it, and evaluate the run", file=sys.stderr)
        return {}
    return arrays


FIGURES = ("norms", "planes", "boundaries", "attacks")


def draw_landscapes(folder: Path, images: str, landscapes: Sequence[Landscapes]) -> list[Path]:
    """Draw what the runs left and return the files, none if they left nothing.

    Args:
        folder: gets the files.
        images: what they show, in words.
        landscapes: what `read_landscapes` returned.
    """
    if not landscapes:
        return []
    # Older files lack it.
    bounded = [found for found in landscapes if "boundary_margin" in found.arrays[0]]
    return [
        _draw_norms(folder, images, landscapes),
        _draw_planes(folder, images, landscapes),
        *([_draw_boundaries(folder, images, bounded)] if bounded else []),
        _draw_attacks(folder, images, landscapes),
    ]


def _draw_norms(folder: Path, images: str, landscapes: Sequence[Landscapes]) -> Path:
    def cloud(found: Landscapes) -> figures.Cloud:
        curvature, gradient_norm = (
            np.concatenate([array[name] for array in found.arrays])
            for name in ("curvature", "gradient_norm")
        )
        return figures.Cloud(found.label, found.style, curvature, gradient_norm)

    count = len(landscapes[0].arrays[0]["curvature"])
    named = seeds_of(seed for found in landscapes for seed in found.seeds)
    pooled = " pooled" if any(len(found.seeds) > 1 for found in landscapes) else ""
    path = folder / "norms.png"
    figures.histograms(
        path,
        [cloud(found) for found in landscapes],
        title="Gradient and curvature of the loss at the images",
        note=f"{count:,} {images}; {named}{pooled}. Derivatives of the cross-entropy "
        "(nats) in the input, pixels in [0, 1]; ‖H‖ is the largest |eigenvalue| of the Hessian, "
        f"estimated from below. Dashed: median; the black line repeats the first row, "
        f"{landscapes[0].label}. The first bin includes all smaller values.",
    )
    return path


def _draw_planes(folder: Path, images: str, landscapes: Sequence[Landscapes]) -> Path:
    first = landscapes[0].arrays[0]
    [i] = _clear_images(landscapes, 1)
    radius = float(first["attack_epsilon"]) if first["attack_order"] == 2 else None
    circle = "" if radius is None else f" Dashed: the $\\ell_2$ ball of radius ε = {radius:g}."
    path = folder / "planes.png"
    surfaces.planes(
        path,
        [
            surfaces.Plane(
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
        note=f"Number {first['shown'][i]} (label {first['shown_label'][i]}) of the {images}, "
        f"{seeds_of(found.seeds[0] for found in landscapes)}: the white dot. Dotted: the top "
        "eigenvector of the Hessian; upwards: its part orthogonal to the gradient; cos: the cosine "
        "of its angle to the gradient."
        f"{circle} Orange: loss ln 2, below which the label surely wins. Points are not clipped "
        "to [0, 1].",
    )
    return path


def _draw_boundaries(folder: Path, images: str, landscapes: Sequence[Landscapes]) -> Path:
    first = landscapes[0].arrays[0]
    [i] = _clear_images(landscapes, 1)
    order, radius = float(first["attack_order"]), float(first["attack_epsilon"])
    path = folder / "boundaries.png"
    surfaces.boundaries(
        path,
        [
            surfaces.Boundary(
                found.label,
                found.style,
                found.arrays[0]["boundary_margin"][i],
                float(np.linalg.norm(found.arrays[0]["attacked"][i] - first["shown_clean"][i])),
            )
            for found in landscapes
        ],
        first["surface_offsets"],
        epsilon=radius if order == 2 else None,
        title="Decision boundary along the attack",
        note=f"Number {first['shown'][i]} (label {first['shown_label'][i]}) of the {images}, "
        f"{seeds_of(found.seeds[0] for found in landscapes)}: the white dot. The cross: {_FOUND} "
        f"{first['attack_steps']} steps in the {norm_name(order)} ball of radius ε = {radius:g}"
        f"{' (dashed)' if order == 2 else ''}. Colors: logit of the label minus the largest other "
        "one; black: the boundary. Points are not clipped to [0, 1].",
    )
    return path


def _draw_attacks(folder: Path, images: str, landscapes: Sequence[Landscapes]) -> Path:
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
        title="Attacked images",
        note=f"Numbers {' and '.join(str(first['shown'][i]) for i in chosen)} of the {images}, "
        f"{seeds_of(found.seeds[0] for found in landscapes)}. Attacked: {_FOUND} "
        f"{first['attack_steps']} steps in the {norm_name(order)} ball of radius ε = {radius:g}; "
        "pixels in [0, 1].",
    )
    return path


def _clear_images(landscapes: Sequence[Landscapes], count: int) -> list[int]:
    """Return indices of shown images: first those that most methods classify correctly clean."""
    right = np.sum(
        [
            found.arrays[0]["clean_prediction"] == found.arrays[0]["shown_label"]
            for found in landscapes
        ],
        axis=0,
    )
    return np.argsort(-right, stable=True)[:count].tolist()
