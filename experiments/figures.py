"""The figures of a comparison: data in, one PNG file out.

Each figure can be read on its own: the header says what was measured, and on which images; the axes
carry norm and unit. A method has the same color, marker and line in all of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex

from experiments.canvas import STYLE_SHEET, Style, canvas, frame, norm_name, radius_name, save

_WRONG = "#B34700"  # dark enough for text


class Curve(NamedTuple):
    """Accuracy of one method under one attack norm.

    Attributes:
        label: the method's name in the legend.
        style: see `style`.
        epsilons: ``(E,)`` radii, 0 for clean.
        accuracy: ``(S, E)`` fractions, one row per seed.
    """

    label: str
    style: Style
    epsilons: np.ndarray
    accuracy: np.ndarray


class Cloud(NamedTuple):
    """Values of the test examples of one method, ``(N,)`` each, seeds pooled."""

    label: str
    style: Style
    curvature: np.ndarray
    gradient_norm: np.ndarray


class Attack(NamedTuple):
    """One example and what an attack on one method did to it; images ``(H, W, C)`` in [0, 1]."""

    clean: np.ndarray
    attacked: np.ndarray
    label: int
    clean_prediction: int
    attacked_prediction: int


@mpl.rc_context(STYLE_SHEET)
def accuracy(path: Path, curves: Mapping[str, Sequence[Curve]], *, title: str, note: str) -> None:
    """Draw accuracy against the radius of the attack, one panel per norm ("l2", "linf")."""
    legend = [(curve.label, curve.style) for curve in next(iter(curves.values()))]
    page, body = canvas(6.0 * len(curves), 4.6, title=title, note=note, legend=legend)
    axes = body.subplots(1, len(curves), squeeze=False)[0]
    for ax, (norm, drawn) in zip(axes, curves.items(), strict=True):
        for curve in drawn:
            percent = 100 * curve.accuracy
            mean = percent.mean(axis=0)
            color = curve.style.color
            ax.plot(curve.epsilons, mean, lw=2, ms=7, **curve.style.curve)
            if len(percent) > 1:
                spread = percent.std(axis=0, ddof=1)
                ax.fill_between(
                    curve.epsilons, mean - spread, mean + spread, color=color, alpha=0.2, lw=0
                )
                for seed in percent:
                    # Below the mean's marker: they show where the seeds disagree.
                    ax.plot(
                        curve.epsilons,
                        seed,
                        ls="",
                        marker="o",
                        ms=3.5,
                        mew=0,
                        color=color,
                        zorder=1.5,
                    )
        ax.set(
            ylim=(-2, 102),
            title=f"{norm_name(norm)} attack",
            xlabel=f"radius ε, {norm_name(norm)} norm (pixels in [0, 1])",
            ylabel="accuracy, % of images",
        )
        ax.grid(visible=True)
        ticks = np.unique(np.concatenate([curve.epsilons for curve in drawn]))
        ax.set_xticks(ticks, ["clean" if tick == 0 else radius_name(tick) for tick in ticks])
    save(page, path)


@mpl.rc_context(STYLE_SHEET)
def ranking(path: Path, curves: Mapping[str, Sequence[Curve]], *, title: str, note: str) -> None:
    """Draw what `accuracy` draws, for many methods: one row per method, one marker per radius.

    Rows are ranked by the mean accuracy over the radii of the first norm, the best on top.
    """
    first = next(iter(curves.values()))
    rank = np.argsort([curve.accuracy[:, 1:].mean() for curve in first], kind="stable")
    height = 0.3 * len(first) + 1.3
    page, body = canvas(6.5 * len(curves), height, title=title, note=note)
    axes = body.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    rows = np.arange(len(first))
    for ax, (norm, drawn) in zip(axes, curves.items(), strict=True):
        radii = drawn[0].epsilons
        ranked = [100 * drawn[i].accuracy for i in rank]
        # From light to dark, as the accuracy falls.
        shades = mpl.colormaps["cividis_r"](np.linspace(0, 1, len(radii)))
        for i, radius in enumerate(radii):
            look = {"marker": "o", "ls": "", "color": to_hex(shades[i])}
            mean = [percent[:, i].mean() for percent in ranked]
            label = "clean" if radius == 0 else radius_name(radius)
            ax.plot(mean, rows, ms=9, label=label, **look)
            for row, percent in zip(rows, ranked, strict=True):
                if len(percent) > 1:
                    # Below the means: they show where the seeds disagree.
                    ax.plot(percent[:, i], len(percent) * [row], ms=3.5, mew=0, zorder=1.5, **look)
        ax.set(xlim=(-2, 102), xlabel="accuracy, % of images")
        ax.set_title(f"{norm_name(norm)} attack, radius ε (pixels in [0, 1])", pad=32)
        ax.legend(
            loc="lower center",
            bbox_to_anchor=(0.5, 1),
            ncols=len(radii),
            frameon=False,
            handletextpad=0,
            columnspacing=1,
        )
        ax.grid(visible=True)
    axes[0].set_yticks(rows, [first[i].label for i in rank])
    save(page, path)


@mpl.rc_context(STYLE_SHEET)
def histograms(path: Path, clouds: Sequence[Cloud], *, title: str, note: str) -> None:
    """Draw how gradient norm and curvature are distributed over the test examples, by method.

    Each method has a row; the first one's outline is repeated in every row for comparison.
    """
    page, body = canvas(13.0, 1.15 * len(clouds) + 1.3, title=title, note=note)
    axes = body.subplots(len(clouds), 2, sharex="col", sharey="col", squeeze=False)
    panels = (
        ("gradient_norm", r"gradient norm $\|g\|_2$ (nats per input unit)"),
        ("curvature", r"curvature $\|H\|$ (nats per input unit²)"),
    )
    for column, (name, axis_label) in zip(axes.T, panels, strict=True):
        values = [np.asarray(getattr(cloud, name), float) for cloud in clouds]
        edges = _log_edges(np.concatenate(values))
        shares = [
            100 * np.histogram(np.clip(value, edges[0], edges[-1]), edges)[0] / len(value)
            for value in values
        ]
        for ax, cloud, value, share in zip(column, clouds, values, shares, strict=True):
            ax.stairs(share, edges, color=cloud.style.color, fill=True, alpha=0.6)
            ax.stairs(shares[0], edges, color="black", lw=1)
            median = np.median(value)
            ax.axvline(np.clip(median, edges[0], edges[-1]), color="black", lw=2, ls="--")
            ax.set_title(f"median {median:.2g}", loc="right", fontsize=12, pad=-12)
            ax.grid(visible=True)
        column[-1].set(xscale="log", xlim=edges[[0, -1]], xlabel=axis_label, ylim=(0, None))
    for ax, cloud in zip(axes[:, 0], clouds, strict=True):
        _name_row(ax, cloud.label)
    body.supylabel("% of images", fontsize=14)
    save(page, path)


@mpl.rc_context(STYLE_SHEET)
def attacks(
    path: Path,
    rows: Sequence[tuple[str, Style, Sequence[Attack]]],
    *,
    order: float,
    title: str,
    note: str,
) -> None:
    """Draw clean image, attacked image and their difference; one row per method.

    ``order`` is that of the norm in which the size of the difference is given.
    """
    count = len(rows[0][2])
    width = 2.0 * 3 * count + 2.6
    page, body = canvas(width, 2.15 * len(rows) + 0.5, title=title, note=note)
    axes = body.subplots(len(rows), 3 * count, squeeze=False)
    largest = max(
        float(np.max(np.abs(attack.attacked - attack.clean)))
        for _, _, row in rows
        for attack in row
    )
    shades = ScalarMappable(Normalize(-largest, largest), "PuOr")
    for line, (label, look, attacks) in zip(axes, rows, strict=True):
        _name_row(line[0], label)
        for i, attack in enumerate(attacks):
            clean, attacked, change = line[3 * i : 3 * i + 3]
            _image(clean, attack.clean, attack.clean_prediction, attack.label)
            _image(attacked, attack.attacked, attack.attacked_prediction, attack.label)
            delta = attack.attacked - attack.clean
            # Color images cannot have a signed color map: their channels' mean change is shown.
            change.imshow(delta.mean(axis=-1), cmap=shades.cmap, norm=shades.norm)
            change.set_xlabel(
                f"{norm_name(order)} size {np.linalg.norm(delta.ravel(), order):.2f}", fontsize=12
            )
        for ax in line:
            frame(ax, look.color)
            ax.set(xticks=[], yticks=[])
    for i, attack in enumerate(rows[0][2]):
        titles = (f"clean, label {attack.label}", "attacked", "difference")
        for ax, name in zip(axes[0, 3 * i : 3 * i + 3], titles, strict=True):
            ax.set_title(name)
    body.colorbar(shades, ax=axes, shrink=min(1, 3 / len(rows)), label="change of pixel value")
    save(page, path)


def _name_row(ax: Axes, label: str) -> None:
    # A method's setting goes below its name: on one line it would take space from the panels.
    label = label.replace(" (", "\n(")
    ax.set_ylabel(label, rotation=0, ha="right", va="center", labelpad=14)


def _image(ax: Axes, image: np.ndarray, prediction: int, label: int) -> None:
    # Of other numbers of channels than three, for color, the mean is shown.
    shown = image if image.shape[-1] == 3 else image.mean(axis=-1)
    ax.imshow(shown, cmap="gray", vmin=0, vmax=1)
    wrong = prediction != label
    ax.set_xlabel(
        f"predicts {prediction}" + (" (wrong)" if wrong else ""),
        color=_WRONG if wrong else "black",
        weight="bold" if wrong else "normal",
        fontsize=12,
    )


def _log_edges(values: np.ndarray, count: int = 33) -> np.ndarray:
    """Return bin edges over all positive values, at most eight decades below the largest."""
    positive = values[values > 0]
    if positive.size == 0:
        return np.geomspace(1e-1, 1e1, count)
    high = positive.max() * 1.01
    return np.geomspace(max(positive.min() * 0.99, high * 1e-8), high, count)
