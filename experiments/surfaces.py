"""Figures of planes through one example: the loss over them, and the decision boundary."""

import textwrap
from collections.abc import Sequence
from math import ceil, log
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.patheffects import withStroke

from experiments.canvas import STYLE_SHEET, Style, canvas, frame, save

_HIGHLIGHT = "#D55E00"
_OUTLINED: dict[str, Any] = {"markeredgecolor": "black", "markerfacecolor": "white"}
# White alone is lost where the loss is large.
_LINE: dict[str, Any] = {
    "color": "white",
    "path_effects": [withStroke(linewidth=3.2, foreground="black")],
}


class Plane(NamedTuple):
    """The loss over the plane through one example.

    Attributes:
        label: the method's name.
        style: see `style`.
        loss: ``(K, K)``; rows along the eigenvector's part, columns along the gradient.
        cosine: of the angle between gradient and top eigenvector.
    """

    label: str
    style: Style
    loss: np.ndarray
    cosine: float


class Boundary(NamedTuple):
    """The margin over the plane of an attack and a random direction.

    Attributes:
        label: the method's name.
        style: see `style`.
        margin: ``(K, K)``, logit of the label less the largest other; columns along the attack.
        attack: ℓ2 length of the attack, input units.
    """

    label: str
    style: Style
    margin: np.ndarray
    attack: float


@mpl.rc_context(STYLE_SHEET)
def planes(
    path: Path,
    drawn: Sequence[Plane],
    offsets: np.ndarray,
    *,
    title: str,
    note: str,
    epsilon: float | None = None,
) -> None:
    """Draw the loss over the plane of gradient and top eigenvector, one panel per method.

    ``epsilon`` adds the circle of that ℓ2 radius around the example.
    """
    levels = _loss_levels(max(float(np.max(plane.loss)) for plane in drawn))
    colors = mpl.colormaps["viridis"]
    norm = BoundaryNorm(levels, colors.N)
    page, body, axes = _panels(len(drawn), title=title, note=note)
    for ax, plane in zip(axes, drawn, strict=True):
        ax.contourf(offsets, offsets, plane.loss, levels, cmap=colors, norm=norm)
        low, high = np.min(plane.loss), np.max(plane.loss)
        for level in levels[(low < levels) & (levels < high)]:
            sure = np.isclose(level, log(2))
            look = {"colors": _HIGHLIGHT if sure else "white", "linewidths": 2.5 if sure else 0.5}
            ax.contour(offsets, offsets, plane.loss, [level], **look)
        sine = np.sqrt(max(0.0, 1 - plane.cosine**2))
        ends = offsets[-1] * np.array([[0, plane.cosine], [0, sine]])
        ax.plot(*ends, lw=1.8, ls=":", **_LINE)
        _mark(ax, offsets[-1], epsilon)
        ax.set(title=f"{_in_lines(plane.label)}\ncos = {plane.cosine:.3f}", aspect="equal")
        frame(ax, plane.style.color)
        ax.tick_params(labelbottom=True)
    body.supxlabel(r"along the gradient (input units, $\ell_2$)", fontsize=14)
    body.supylabel("orthogonal to it, in the plane\n(input units, $\\ell_2$)", fontsize=14)
    bar = body.colorbar(
        ScalarMappable(norm, colors), ax=axes, ticks=levels, spacing="uniform", shrink=0.95
    )
    bar.ax.set_yticklabels([f"{level:.2g}" for level in levels])
    bar.set_label("cross-entropy loss (nats), doubling")
    save(page, path)


@mpl.rc_context(STYLE_SHEET)
def boundaries(
    path: Path,
    drawn: Sequence[Boundary],
    offsets: np.ndarray,
    *,
    title: str,
    note: str,
    epsilon: float | None = None,
) -> None:
    """Draw the margin over the plane of the attack, one panel per method.

    ``epsilon`` adds the circle of that ℓ2 radius around the example.
    """
    largest = max(float(np.max(np.abs(one.margin))) for one in drawn)
    # Halved every second time, because the margins of one network may be a tenth of another's.
    falling = max(largest, 1e-12) * 0.5 ** (np.arange(16) / 2)
    levels = np.concatenate([-falling, [0], falling[::-1]])
    colors = mpl.colormaps["PuOr"]
    norm = BoundaryNorm(levels, colors.N)
    page, body, axes = _panels(len(drawn), title=title, note=note)
    for ax, one in zip(axes, drawn, strict=True):
        ax.contourf(offsets, offsets, one.margin, levels, cmap=colors, norm=norm)
        if np.min(one.margin) < 0 < np.max(one.margin):
            ax.contour(offsets, offsets, one.margin, [0], colors="black", linewidths=2.5)
        _mark(ax, offsets[-1], epsilon)
        ax.plot(one.attack, 0, marker="X", ms=9, **_OUTLINED)
        ax.set(title=_in_lines(one.label), aspect="equal")
        frame(ax, one.style.color)
        ax.tick_params(labelbottom=True)
    body.supxlabel(r"along the attack (input units, $\ell_2$)", fontsize=14)
    body.supylabel("along a random direction\n(input units, $\\ell_2$)", fontsize=14)
    bar = body.colorbar(
        ScalarMappable(norm, colors), ax=axes, ticks=levels[::4], spacing="uniform", shrink=0.95
    )
    bar.ax.set_yticklabels([f"{level:.2g}".replace("-", "−") for level in levels[::4]])
    bar.set_label("margin of the label (logits), doubling from 0")
    save(page, path)


def _in_lines(label: str) -> str:
    """Break a label that is wider than a panel."""
    return textwrap.fill(label, 32)


def _mark(ax: Axes, radius: float, epsilon: float | None) -> None:
    """Mark the example and the ball in a square whose half-width is ``radius``."""
    ax.plot(0, 0, marker="o", ms=7, **_OUTLINED)
    if epsilon is not None:
        angle = np.linspace(0, 2 * np.pi, 200)
        ax.plot(epsilon * np.cos(angle), epsilon * np.sin(angle), lw=1.8, ls="--", **_LINE)
    ax.set(xlim=(-radius, radius), ylim=(-radius, radius))
    # Labels at the corners would run into those of the next panel.
    ax.locator_params(nbins=5, prune="both")


def _panels(count: int, *, title: str, note: str) -> tuple[Figure, SubFigure, np.ndarray]:
    """Return a page, its body and a square panel for each method."""
    columns = count if count <= 3 else ceil(count**0.5)
    rows = ceil(count / columns)
    width = max(9.0, 3.9 * columns + 2.0)
    page, body = canvas(width, 3.6 * rows + 0.75, title=title, note=note)
    axes = body.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.remove()
    return page, body, axes[:count]


def _loss_levels(largest: float, count: int = 11) -> np.ndarray:
    """Return 0 and doubling losses up to the largest; ln 2 is among them if they reach it."""
    top = max(ceil(np.log2(max(largest, 1e-12) / log(2))), 0)
    return np.concatenate([[0], log(2) * 2.0 ** np.arange(top - count + 1, top + 1)])
