"""What planes and boundaries draw, read back from the axes."""

from math import log

import numpy as np
import pytest
from matplotlib.colors import to_hex

from experiments import surfaces
from tests.drawings import HESSIAN, METHODS, TEXT, draw_boundaries, draw_planes


def test_planes_share_levels_that_reach_the_largest_loss_and_hold_ln_2(pages, tmp_path):
    draw_planes(tmp_path / "one.png")
    *axes, bar = pages[0].subfigs[1].axes
    levels = [ax.collections[0].levels for ax in axes]
    np.testing.assert_array_equal(levels[0], levels[1])
    assert levels[0][0] == 0
    assert levels[0][-1] >= 4.0 > levels[0][-2]
    assert np.isclose(levels[0], log(2)).any()
    np.testing.assert_allclose(levels[0][2:] / levels[0][1:-1], 2)
    np.testing.assert_array_equal(bar.get_yticks(), levels[0])


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_every_number_of_methods_has_its_panels(count, pages, tmp_path):
    losses = {name: np.eye(5) for name in METHODS[:count]}
    draw_planes(tmp_path / "one.png", losses)
    *axes, _ = pages[0].subfigs[1].axes
    assert [ax.get_title() for ax in axes] == [f"{name}\ncos = 0.600" for name in losses]
    assert all(ax.get_xticklabels()[0].get_visible() for ax in axes)


def test_plane_rows_go_upward(pages, tmp_path):
    """A loss that grows with the row only has horizontal contours."""
    rising = np.repeat(np.linspace(0, 1, 5)[:, None], 5, axis=1)
    draw_planes(tmp_path / "one.png", {"none": rising})
    ax = pages[0].subfigs[1].axes[0]
    line = ax.collections[-1].get_paths()[0].vertices
    assert np.ptp(line[:, 1]) < 1e-9 < np.ptp(line[:, 0])
    top_band = ax.collections[0].get_paths()[-1].get_extents()
    assert top_band.width == 2
    assert top_band.ymin > 0


def test_plane_marks_the_eigenvector_and_the_ball(pages, tmp_path):
    draw_planes(tmp_path / "one.png")
    direction, example, ball = pages[0].subfigs[1].axes[0].lines
    # At a cosine of 0.6 the sine is 0.8.
    np.testing.assert_allclose(np.transpose(direction.get_data()), [[0, 0], [0.6, 0.8]])
    np.testing.assert_array_equal(np.ravel(example.get_data()), [0, 0])
    np.testing.assert_allclose(np.hypot(*ball.get_data()), 0.5)


@pytest.mark.parametrize("value", [0.0, 1e-9, 3.0, 500.0])
def test_flat_planes_are_drawn_without_contours(value, pages, tmp_path):
    """Asked for a level that is not there, older versions of matplotlib warn."""
    draw_planes(tmp_path / "one.png", {"none": np.full((5, 5), value)})
    assert (tmp_path / "one.png").stat().st_size > 1000
    [_] = pages[0].subfigs[1].axes[0].collections


def test_the_boundary_is_drawn_where_the_margin_is_zero(pages, tmp_path):
    draw_boundaries(tmp_path / "one.png")
    first, second = pages[0].subfigs[1].axes[:2]
    # Filled contours have no edges; the second method has no boundary here.
    black = [
        [path for path in drawn.get_paths() if len(path.vertices)]
        for ax in (first, second)
        for drawn in ax.collections
        if len(drawn.get_edgecolor()) and to_hex(drawn.get_edgecolor()[0]) == "#000000"
    ]
    [[line]] = black
    np.testing.assert_allclose(line.vertices[:, 0], 0.5)
    # The margins go to 3.5, and every other level is half: the flat ones of a network show, too.
    levels = first.collections[0].levels
    np.testing.assert_allclose(levels[:16:2], -3.5 * 0.5 ** np.arange(8))
    assert levels[16] == 0
    assert np.all(np.diff(levels) > 0)
    np.testing.assert_allclose(levels, -levels[::-1])
    for ax, length in ((first, 0.75), (second, 0.5)):
        cross = next(line for line in ax.lines if line.get_marker() == "X")
        np.testing.assert_array_equal(cross.get_xydata(), [[length, 0]])


def test_titles_of_many_settings_stay_apart(pages, tmp_path):
    label = "hessian-inside (0.5, step 1.5, parts=2, num_steps=3)"
    offsets = np.linspace(-2, 2, 5)
    margin = offsets[:, None] + offsets
    drawn = [surfaces.Boundary(label, HESSIAN, margin, 1.0) for _ in range(4)]
    surfaces.boundaries(tmp_path / "one.png", drawn, offsets, **TEXT)
    flat = [surfaces.Plane(label, HESSIAN, margin**2, 0.5) for _ in range(4)]
    surfaces.planes(tmp_path / "two.png", flat, offsets, **TEXT)
    for page in pages:
        left, right, *_ = [ax.title.get_window_extent() for ax in page.subfigs[1].axes]
        assert page.bbox.x0 <= left.x0 < left.x1 < right.x0 < right.x1 <= page.bbox.x1
