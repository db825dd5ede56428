"""What the figures share: the look of each method, the page around a drawing, the file."""

import textwrap
from collections.abc import Sequence
from math import ceil, inf
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from experiments.files import replacing

# Okabe and Ito's palette and one gray: distinguishable with any color vision.
_LOOKS = {
    "none": ("#000000", "o"),
    "gradient": ("#E69F00", "s"),
    "hessian": ("#0072B2", "D"),
    "hessian-only": ("#56B4E9", "d"),
    "finite-step": ("#009E73", "^"),
    "curvature": ("#CC79A7", "v"),
    "jacobian": ("#F0E442", "P"),
    "gauss-newton": ("#8C8C8C", "X"),
    "adversarial": ("#D55E00", "*"),
}
# Relatives of these share their color and differ in the marker.
_RELATIVES = {
    "hessian-cheap": ("hessian", "<"),
    "hessian-lanczos": ("hessian", ">"),
    "hessian-inside": ("hessian-only", "X"),
    "gradient-hessian": ("gradient", "p"),
    "hessian-only-lanczos": ("hessian-only", ">"),
    "hessian-only-power": ("hessian-only", "<"),
    "hessian-only-ascent": ("hessian-only", "p"),
    "hessian-frobenius": ("hessian-only", "8"),
    "jacobian-operator": ("jacobian", "H"),
    "trades": ("adversarial", "X"),
    "fgsm": ("adversarial", "<"),
    "hot": ("none", "h"),
}
_OTHER = ("#6A3D9A", "h")
# The line, and which part of the marker is colored: the first four differ in both.
_LINES, _FILLS = ("-", "--", ":", "-."), ("full", "left", "top", "right")
_VARIANTS = tuple(
    (line, _FILLS[(place + turn) % 4]) for turn in range(4) for place, line in enumerate(_LINES)
)
_DPI = 120
STYLE_SHEET: dict[Any, Any] = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.labelsize": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "lines.markeredgecolor": "black",
    "lines.markeredgewidth": 0.6,
}


class Style(NamedTuple):
    """How a method looks in every figure."""

    color: str
    marker: str
    line: str
    fill: str

    @property
    def points(self) -> dict[str, Any]:
        """Keyword arguments of `matplotlib.axes.Axes.plot` for points without a line."""
        marks = {"marker": self.marker, "fillstyle": self.fill, "markerfacecoloralt": "white"}
        return {"color": self.color, "ls": "", **marks}

    @property
    def curve(self) -> dict[str, Any]:
        """Keyword arguments for points joined by a line."""
        return {**self.points, "ls": self.line}


def style(method: str, variant: int = 0) -> Style:
    """Return the look of a method; its settings, ``variant`` 0, 1, ..., differ in line and fill."""
    relative, marker = _RELATIVES.get(method, (method, None))
    color, its_marker = _LOOKS.get(relative, _OTHER)
    return Style(color, marker or its_marker, *_VARIANTS[variant % len(_VARIANTS)])


def norm_name(norm: str | float) -> str:
    r"""Return how a figure writes a norm: "l2" or 2, "linf" or infinity.

    >>> norm_name("l2"), norm_name(float("inf"))
    ('$\\ell_2$', '$\\ell_\\infty$')
    """
    return r"$\ell_\infty$" if norm in {"linf", inf} else r"$\ell_2$"


def radius_name(radius: float) -> str:
    """Return how a table or figure writes a radius: 0.5, or 2/255 where that is shorter.

    >>> radius_name(0.5), radius_name(0.5001), radius_name(2 / 255)
    ('0.5', '0.5001', '2/255')
    """
    steps = round(255 * radius)
    of_bytes = abs(255 * radius - steps) < 1e-9 and float(f"{radius:.3g}") != radius
    # With more digits than anyone needs, so that near radii keep apart.
    return f"{steps}/255" if of_bytes else f"{radius:.6g}"


def canvas(
    width: float,
    height: float,
    *,
    title: str,
    note: str,
    legend: Sequence[tuple[str, Style]] = (),
) -> tuple[Figure, SubFigure]:
    """Return a page and its empty body; title, note and legend have bands of their own.

    Args:
        width: of the page, inches.
        height: of the body, inches.
        title: one line.
        note: any length; it is wrapped.
        legend: the methods' labels and looks.
    """
    # This many characters fit in an inch, even digits and capitals.
    lines = textwrap.wrap(note, int(10.7 * width))
    columns = _columns([len(label) for label, _ in legend], width)
    # Not a whole number of pixels below: at half a pixel the last digits of a layout would matter.
    bands = (0.6 + 0.23 * len(lines), height, 0.32 * ceil(len(legend) / columns) + 0.102)
    page = Figure(figsize=(width, sum(bands)), dpi=_DPI, layout="constrained")
    grid = page.add_gridspec(3, 1, height_ratios=bands, hspace=0)
    header, body, footer = (page.add_subfigure(grid[i]) for i in range(3))
    left, top = 0.15 / width, bands[0]
    header.text(left, 1 - 0.12 / top, title, size=16, weight="bold", va="top")
    header.text(left, 1 - 0.47 / top, "\n".join(lines), size=12, va="top", linespacing=1.3)
    handles = [Line2D([], [], label=label, lw=2, ms=8, **look.curve) for label, look in legend]
    if handles:
        footer.legend(handles=handles, loc="center", ncols=columns, frameon=False)
    return page, body


def _columns(lengths: Sequence[int], width: float) -> int:
    """Return how many legend columns fit on the page, for labels of these lengths."""
    for count in range(len(lengths), 1, -1):
        # As matplotlib distributes them.
        columns = np.array_split(lengths, count)
        if sum(0.9 + 0.095 * column.max() for column in columns) <= width:
            return count
    return 1


def frame(ax: Axes, color: str) -> None:
    """Frame a picture in the color of its method."""
    for spine in ax.spines.values():
        spine.set(visible=True, color=color, linewidth=3)


def save(page: Figure, path: Path) -> None:
    """Write the PNG in one move: a reader never sees half a file.

    The same page gives the same file, although the layout's last digits vary from run to run.
    """
    if engine := page.get_layout_engine():
        engine.execute(page)
    page.set_layout_engine("none")
    for ax in (ax for part in page.subfigs for ax in part.axes):
        bounds = ax.get_position(original=True).bounds
        ax.set_position(Bbox.from_bounds(*(round(float(value), 9) for value in bounds)))
    with replacing(path) as partial:
        page.savefig(partial, format="png")
