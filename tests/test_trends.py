"""What frontiers, tradeoffs, trajectories and calibrations draw, read back from the axes."""

import numpy as np
import pytest

from experiments import canvas, trends
from tests.drawings import (
    HESSIAN,
    NONE,
    TEXT,
    draw_calibration,
    draw_frontier,
    draw_tradeoff,
    draw_trajectories,
)


def test_settings_of_one_method_are_told_apart_without_lines(pages, tmp_path):
    points = [
        trends.Point("hessian", canvas.style("hessian", i), np.array([cost]), np.array([0.5]))
        for i, cost in enumerate((3.0, 4.0))
    ]
    trends.frontier(tmp_path / "one.png", points, norm="l2", radius=1.5, **TEXT)
    page = pages[0]
    drawn = [line for line in page.subfigs[1].axes[0].lines if line.get_markersize() > 10]
    named = page.subfigs[2].legends[0].legend_handles
    for lines in (drawn, named):
        assert [line.get_fillstyle() for line in lines] == ["full", "left"]
    assert {line.get_linestyle() for line in drawn} == {"None"}
    assert [line.get_linestyle() for line in named] == ["-", "--"]


def test_the_frontier_joins_what_nothing_cheaper_beats(pages, tmp_path):
    draw_frontier(tmp_path / "one.png")
    [ax] = pages[0].subfigs[1].axes
    joined, *others = ax.lines
    np.testing.assert_allclose(joined.get_xydata(), [[5, 85]])
    markers = [line for line in others if line.get_markersize() > 10]
    found = [line.get_xydata()[0] for line in markers]
    # What withstands less than half as much as the best stands at the edge, with its number.
    np.testing.assert_allclose(found, [[1, 0.04], [6, 50], [5, 85]])
    assert [text.get_text() for text in ax.texts] == ["↓ 20.0 %"]
    assert ax.get_ylim()[0] > 40
    seeds = next(line for line in others if len(line.get_xdata()) == 2)
    np.testing.assert_allclose(seeds.get_xydata(), [[4, 80], [6, 90]])


def test_a_line_joins_the_strengths_that_keep_enough_clean_accuracy(pages, tmp_path):
    draw_tradeoff(tmp_path / "one.png")
    [ax] = pages[0].subfigs[1].axes
    assert ax.get_title() == r"$\ell_2$ attack, radius ε = 1.5"
    none, hessian = ax.lines
    np.testing.assert_allclose(none.get_xydata(), [[90, 10]])
    np.testing.assert_allclose(hessian.get_xydata(), [[80, 70], [85, 40]])


def test_of_many_settings_those_ahead_of_all_others_stand_out(pages, tmp_path):
    def settings(label, look, clean, robust):
        return trends.Settings(label, look, np.array(clean), {"l2": np.array(robust)})

    methods = [
        settings("none", NONE, [0.7, 0.8, 0.9], [0.9, 0.3, 0.1]),
        settings("hessian", HESSIAN, [0.85, 0.88], [0.6, 0.6]),
        # What is not behind another has lost too much, so it has no place in the legend.
        settings("gradient", canvas.style("gradient"), [0.84, 0.87, 0.6], [0.5, 0.5, 0.95]),
    ]
    trends.tradeoff(
        tmp_path / "one.png", methods, radii={"l2": 1.5}, least=0.75, joined=False, **TEXT
    )
    [ax] = pages[0].subfigs[1].axes
    gray = [line for line in ax.lines if line.get_color() == "#BBBBBB"]
    every = [[80, 30], [90, 10], [85, 60], [88, 60], [84, 50], [87, 50]]
    np.testing.assert_allclose(np.concatenate([line.get_xydata() for line in gray]), every)
    none, hessian, gradient = (line for line in ax.lines if line not in gray)
    np.testing.assert_allclose(none.get_xydata(), [[90, 10]])
    # Above one another in one accuracy alone, both stand out.
    np.testing.assert_allclose(hessian.get_xydata(), [[85, 60], [88, 60]])
    assert not len(gradient.get_xydata())
    assert {line.get_linestyle() for line in ax.lines} == {"None"}
    [legend] = pages[0].subfigs[2].legends
    assert [text.get_text() for text in legend.get_texts()] == ["none", "hessian"]


def test_settings_far_below_the_best_ones_would_crowd_them():
    def settings(clean, l2, linf):
        robust = {"l2": np.array(l2), "linf": np.array(linf)}
        return trends.Settings("hessian", HESSIAN, np.array(clean), robust)

    # In the l2 ball the first three are ahead, in the linf ball the fourth, too; the last has the
    # most robust accuracy of all, but ten points less clean accuracy than the first.
    some = [
        settings([0.9, 0.88], [0.1, 0.5], [0.1, 0.5]),
        settings([0.86, 0.85, 0.83], [0.6, 0.5, 0.5], [0.6, 0.7, 0.6]),
        settings([0.79], [0.9], [0.9]),
    ]
    assert trends.least_clean(some, joined=True) == pytest.approx(0.8)
    assert trends.least_clean(some, joined=False) == pytest.approx(0.84)
    # Settings at the far end of what is of use at all have no margin.
    some.append(settings([0.805], [0.7], [0.8]))
    assert trends.least_clean(some, joined=False) == pytest.approx(0.8)


def test_a_trajectory_is_a_mean_over_seeds_in_a_band_of_all(pages, tmp_path):
    draw_trajectories(tmp_path / "one.png")
    gradient, curvature = pages[0].subfigs[1].axes
    for ax, scale in ((gradient, 1), (curvature, 2)):
        assert len(ax.lines) == 2
        np.testing.assert_allclose(ax.lines[0].get_ydata(), scale * np.array([1, 0.5, 0.25]))
        np.testing.assert_allclose(ax.lines[1].get_ydata(), scale * np.array([1.1, 0.45, 0.3]))
        np.testing.assert_array_equal(ax.lines[1].get_xdata(), [1, 20, 40])
        corners = {tuple(corner) for corner in ax.collections[1].get_paths()[0].vertices}
        assert corners >= {(1, scale * 1.2), (1, scale), (20, scale * 0.4), (20, scale * 0.5)}
    [legend] = pages[0].subfigs[2].legends
    assert [text.get_text() for text in legend.get_texts()] == ["none", "hessian"]


@pytest.mark.parametrize("lowest", [1e-1, 1e-3, 1e-9])
def test_a_trajectory_that_falls_far_keeps_its_numbers(pages, tmp_path, lowest):
    steps, values = np.array([1, 20, 40]), np.geomspace(1, lowest, 3)[None]
    drawn = [trends.Trajectory("none", canvas.style("none"), steps, values, values)]
    trends.trajectories(tmp_path / "one.png", drawn, **TEXT)
    for ax in pages[0].subfigs[1].axes:
        low, high = ax.get_ylim()
        ax.figure.canvas.draw()
        labels = [text for text in ax.get_yticklabels() if low < text.get_position()[1] < high]
        told = [float(text.get_text().replace("−", "-")) for text in labels]
        assert 3 <= len(told) <= 12
        assert told == pytest.approx([t for t in ax.get_yticks() if low < t < high])


def test_calibration_shows_medians_of_groups_of_like_estimates(pages, tmp_path):
    draw_calibration(tmp_path / "one.png")
    panels = pages[0].subfigs[1].axes[:3]
    assert [ax.get_title() for ax in panels] == ["a", "b", "c"]
    first, second, third = panels
    none, hessian, diagonal = first.lines
    np.testing.assert_allclose(none.get_xydata(), [(0.3, 0.15), (0.7, 0.35), (1.4, 0.7)])
    np.testing.assert_allclose(*np.transpose(hessian.get_xydata()))
    assert (diagonal.get_xy1(), diagonal.get_xy2()) == ((1, 1), (2, 2))
    none, _ = second.lines
    np.testing.assert_allclose(none.get_xydata(), [(1.5, 0.2), (3, 0.2), (4, 0.8)])
    # The diagonal goes from corner to corner, but where estimates are far off.
    same = (0.15, 1.4), (0.2, 4)
    limits = [(ends, ends) for ends in same] + [((150, 700), (0.15, 0.7))]
    for ax, ends in zip((first, second, third), limits, strict=True):
        for (low, high), found in zip(ends, (ax.get_xlim(), ax.get_ylim()), strict=True):
            np.testing.assert_allclose(found, (0.8 * low, 1.25 * high))
