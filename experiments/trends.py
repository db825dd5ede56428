"""Figures of what a method costs and gains, how a training goes, how accurate estimates are."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from experiments.canvas import STYLE_SHEET, Style, canvas, norm_name, radius_name, save

# Values that differ by this factor get ticks at powers of ten only, and an axis of their own.
_FAR = 200
# Settings that lose more of the clean accuracy are of no use, and would crowd the others.
_MOST_LOST = 0.1


class Point(NamedTuple):
    """Cost and robust accuracy of one method.

    Attributes:
        label: the method's name in the legend.
        style: see `experiments.canvas.style`.
        cost: ``(S,)``, that of a step in units of plain steps, one per seed.
        accuracy: ``(S,)`` fractions.
    """

    label: str
    style: Style
    cost: np.ndarray
    accuracy: np.ndarray


class Settings(NamedTuple):
    """Accuracies of one method with several strengths, ``(M,)`` fractions each.

    Attributes:
        label: the method's name in the legend.
        style: see `experiments.canvas.style`.
        clean: means over the seeds, in increasing order.
        robust: means over the seeds under attack, by norm, in the same order.
    """

    label: str
    style: Style
    clean: np.ndarray
    robust: Mapping[str, np.ndarray]


class Trajectory(NamedTuple):
    """Gradient and curvature in the course of the trainings by one method.

    Attributes:
        label: the method's name in the legend.
        style: see `experiments.canvas.style`.
        steps: ``(T,)``, of the training.
        gradient_norm: ``(S, T)``, means over images, one row per seed.
        curvature: ``(S, T)``, likewise.
    """

    label: str
    style: Style
    steps: np.ndarray
    gradient_norm: np.ndarray
    curvature: np.ndarray


class Distances(NamedTuple):
    """Distances of examples to the decision boundary of one network.

    Attributes:
        label: the method's name in the legend.
        style: see `experiments.canvas.style`.
        found: ``(N,)``, found by attacks.
        estimates: ``(N,)`` each, by the panel's title.
    """

    label: str
    style: Style
    found: np.ndarray
    estimates: Mapping[str, np.ndarray]


@mpl.rc_context(STYLE_SHEET)
def frontier(
    path: Path, points: Sequence[Point], *, norm: str, radius: float, title: str, note: str
) -> None:
    """Draw robust accuracy against cost; a line joins the methods that beat all cheaper ones.

    Methods with less than half of the highest accuracy are at the lower edge, with their accuracy.
    """
    legend = [(point.label, point.style) for point in points]
    page, body = canvas(10.0, 5.2, title=title, note=note, legend=legend)
    ax = body.subplots()
    means = [(point.cost.mean(), 100 * point.accuracy.mean()) for point in points]
    least = max(accuracy for _, accuracy in means) / 2
    shown = [mean for mean in means if mean[1] >= least]
    best = [
        (cost, accuracy)
        for cost, accuracy in sorted(shown)
        if all(accuracy > other for there, other in shown if there < cost)
    ]
    ax.step(*zip(*best, strict=True), where="post", color="#BBBBBB", lw=2, zorder=1)
    for point, mean in zip(points, means, strict=True):
        if mean[1] < least:
            edge = ax.get_xaxis_transform()
            ax.plot(mean[0], 0.04, ms=11, transform=edge, **point.style.points)
            ax.text(1.07 * mean[0], 0.04, f"↓ {mean[1]:.1f} %", va="center", transform=edge)
            continue
        small = {**point.style.points, "marker": "o", "fillstyle": "full"}
        ax.plot(point.cost, 100 * point.accuracy, ms=3.5, mew=0, **small)
        ax.plot(*mean, ms=11, **point.style.points)
    ax.set(
        xscale="log",
        xlabel="time of a training step, in plain steps",
        ylabel=f"accuracy at {norm_name(norm)} radius ε = {radius_name(radius)}, %",
    )
    ticks = [1, 2, 3, 5, 10, 20, 50]
    ax.set_xticks(ticks, [f"{tick}" for tick in ticks])
    ax.minorticks_off()
    costs = np.concatenate([point.cost for point in points])
    ax.set_xlim(0.8 * costs.min(), 1.3 * costs.max())
    ax.grid(visible=True)
    save(page, path)


@mpl.rc_context(STYLE_SHEET)
def tradeoff(
    path: Path,
    methods: Sequence[Settings],
    *,
    radii: Mapping[str, float],
    least: float,
    joined: bool,
    title: str,
    note: str,
) -> None:
    """Draw robust against clean accuracy, one panel per norm.

    Settings whose clean accuracy is below ``least`` are left out. A line joins those of a method.
    If not ``joined``, because lines would hide each other, all settings are gray except those that
    no other exceeds in both accuracies.
    """
    shown = [one.clean >= least for one in methods]
    named = [
        {norm: kept & (joined | _ahead(one, methods, norm)) for norm in radii}
        for one, kept in zip(methods, shown, strict=True)
    ]
    looks = [one.style if joined else one.style._replace(line="") for one in methods]
    legend = [
        (one.label, look)
        for one, look, masks in zip(methods, looks, named, strict=True)
        if any(mask.any() for mask in masks.values())
    ]
    page, body = canvas(13.0, 5.6, title=title, note=note, legend=legend)
    for ax, (norm, radius) in zip(
        body.subplots(1, len(radii), squeeze=False)[0], radii.items(), strict=True
    ):
        for one, kept, masks, look in zip(methods, shown, named, looks, strict=True):
            percent = 100 * np.array([one.clean, one.robust[norm]])
            if not joined:
                ax.plot(*percent[:, kept], "o", color="#BBBBBB", ms=5, mew=0, zorder=1)
            ax.plot(*percent[:, masks[norm]], lw=1, ms=8, **look.curve)
        ax.set(
            title=f"{norm_name(norm)} attack, radius ε = {radius_name(radius)}",
            xlabel="clean accuracy, % of images",
            ylabel="accuracy under attack, %",
        )
        ax.grid(visible=True)
    save(page, path)


def least_clean(methods: Sequence[Settings], *, joined: bool) -> float:
    """Return the clean accuracy below which `tradeoff` should leave settings out.

    If not ``joined``, that is a fifth of their width below those that no other exceeds in both
    accuracies, so that these fill the panels.
    """
    most = max(one.clean.max() for one in methods)
    least = most - _MOST_LOST
    if joined:
        return least
    masks = [(one, _ahead(one, methods, norm)) for one in methods for norm in one.robust]
    lowest = min(clean for one, ahead in masks for clean in one.clean[ahead & (one.clean >= least)])
    return max(least, lowest - (most - lowest) / 5)


def _ahead(one: Settings, methods: Sequence[Settings], norm: str) -> np.ndarray:
    """Return which settings of a method no other exceeds in both accuracies, a boolean each."""
    clean = np.concatenate([method.clean for method in methods])
    robust = np.concatenate([method.robust[norm] for method in methods])
    above = (clean > one.clean[:, None]) & (robust > one.robust[norm][:, None])
    return np.logical_not(above.any(1))


@mpl.rc_context(STYLE_SHEET)
def trajectories(path: Path, drawn: Sequence[Trajectory], *, title: str, note: str) -> None:
    """Draw gradient norm and curvature against the step of the training.

    A line is the mean over the seeds of a method; its band goes from the lowest to the highest.
    """
    legend = [(one.label, one.style) for one in drawn]
    page, body = canvas(12.0, 4.6, title=title, note=note, legend=legend)
    panels = (
        ("gradient_norm", r"mean $\|g\|_2$ (nats per input unit)"),
        ("curvature", r"mean $\|H\|$ (nats per input unit²)"),
    )
    for ax, (name, label) in zip(body.subplots(1, 2), panels, strict=True):
        for one in drawn:
            some = max(1, len(one.steps) // 6)
            seeds = getattr(one, name)
            ax.plot(one.steps, seeds.mean(0), lw=1.5, ms=6, markevery=some, **one.style.curve)
            band = {"color": one.style.color, "alpha": 0.2, "lw": 0}
            ax.fill_between(one.steps, seeds.min(0), seeds.max(0), **band)
        ax.set(yscale="log", xlabel="training step", ylabel=label)
        _label(ax.yaxis)
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.grid(visible=True)
    save(page, path)


def _label(axis: Axis) -> None:
    """Label a logarithmic axis by plain numbers, a few powers of ten if it goes far."""
    low, high = axis.get_view_interval()
    wide = high > _FAR * low
    axis.set_major_locator(
        LogLocator(subs=(1,), numticks=6) if wide else LogLocator(subs=(1, 2, 5))
    )
    axis.set_major_formatter("{x:g}")


@mpl.rc_context(STYLE_SHEET)
def calibration(
    path: Path, networks: Sequence[Distances], *, groups: int, title: str, note: str
) -> None:
    """Draw medians of found against estimated distances, over groups of similar estimates.

    Each kind of estimate has a panel.
    """
    legend = [(network.label, network.style) for network in networks]
    page, body = canvas(12.0, 9.0, title=title, note=note, legend=legend)
    panels = networks[0].estimates
    axes = body.subplots(2, ceil(len(panels) / 2), squeeze=False).ravel()
    for ax, name in zip(axes, panels, strict=False):
        drawn = []
        for network in networks:
            estimate = network.estimates[name]
            finite = np.flatnonzero(np.isfinite(estimate))
            order = finite[np.argsort(estimate[finite], kind="stable")]
            medians = [
                (np.median(estimate[group]), np.median(network.found[group]))
                for group in np.array_split(order, groups)
                if len(group)
            ]
            if medians:
                ax.plot(*zip(*medians, strict=True), ms=7, **network.style.curve)
            drawn.extend(medians)
        estimates, found = np.array(drawn or [(1.0, 1.0)]).T
        for limits, values in zip(
            (ax.set_xlim, ax.set_ylim), _limits(estimates, found), strict=True
        ):
            limits(values)
        ax.axline((1, 1), (2, 2), color="black", lw=1)
        ax.set(xscale="log", yscale="log", title=name)
        unit = f"{norm_name(2)} (input units)"
        ax.set(xlabel=f"estimated distance, {unit}", ylabel=f"found distance, {unit}")
        look = {"transform": ax.transAxes, "size": 12, "color": "#444444"}
        ax.text(0.03, 0.97, "estimate too small", va="top", **look)
        ax.text(0.97, 0.03, "estimate too large", ha="right", **look)
        for axis in (ax.xaxis, ax.yaxis):
            _label(axis)
            axis.set_minor_locator(NullLocator())
        ax.grid(visible=True)
    save(page, path)


def _limits(estimates: np.ndarray, found: np.ndarray) -> list[tuple[float, float]]:
    """Return the limits of the axes: the same for both, unless estimates are far off.

    The curves then show more than with a diagonal at 45 degrees, where they would look flat.
    """
    of_both = [
        (0.8 * values[values > 0].min(initial=1e9), 1.25 * values.max(initial=1e-9))
        for values in (estimates, found)
    ]
    lowest, highest = min(low for low, _ in of_both), max(high for _, high in of_both)
    return of_both if highest > _FAR * lowest else [(lowest, highest)] * 2
