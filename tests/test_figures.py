"""What accuracies, rankings, histograms and attacks draw, read back from the axes."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from experiments import figures
from tests.drawings import HESSIAN, NONE, TEXT, draw_accuracy, draw_attacks, draw_histograms


def test_accuracy_line_is_the_mean_and_band_the_sample_deviation(pages, tmp_path):
    draw_accuracy(tmp_path / "one.png")
    for ax in pages[0].subfigs[1].axes:
        single, line, *dots = ax.lines
        np.testing.assert_allclose(single.get_ydata(), [90, 50, 10])
        np.testing.assert_allclose(line.get_ydata(), [90, 50, 20])
        assert line.get_color() == HESSIAN.color
        # Three seeds at 80, 90, 100: the sample deviation is 10, that of the population 8.2.
        [band] = ax.collections
        corners = band.get_paths()[0].vertices
        at_zero = corners[corners[:, 0] == 0.0, 1]
        np.testing.assert_allclose([at_zero.min(), at_zero.max()], [80, 100])
        np.testing.assert_allclose([dot.get_ydata()[0] for dot in dots], [90, 80, 100])
        assert ax.get_xticklabels()[0].get_text() == "clean"
        assert ax.get_xticks().tolist() == [0, 0.5, 2]


def test_a_ranking_has_a_row_for_each_method_and_a_marker_for_each_radius(pages, tmp_path):
    radii = np.array([0.0, 0.5, 2.0])
    found = {
        # One seed is far off: by its median, or with the clean accuracy, it would be the first.
        "middle": np.array([[0.9, 0.9, 0.6], [0.9, 0.9, 0.6], [0.9, 0.0, 0.0]]),
        "best": np.array([[0.7, 0.7, 0.45]]),
        "worst": np.array([[1.0, 0.4, 0.1]]),
    }
    # The second norm has no say.
    other = {"worst": 0.9, "middle": 0.1, "best": 0.1}
    drawn = {
        "l2": [figures.Curve(name, NONE, radii, rows) for name, rows in found.items()],
        "linf": [
            figures.Curve(name, NONE, radii[:2], np.full((1, 2), other[name])) for name in found
        ],
    }
    figures.ranking(tmp_path / "one.png", drawn, **TEXT)
    first, second = pages[0].subfigs[1].axes
    first.figure.canvas.draw()
    named = [label.get_text() for label in first.get_yticklabels()]
    assert named == ["worst", "middle", "best"]
    heights = dict(zip(named, first.get_yticks(), strict=True))
    assert heights["worst"] < heights["middle"] < heights["best"]
    for ax, names in ((first, ["clean", "0.5", "2"]), (second, ["clean", "0.5"])):
        assert [text.get_text() for text in ax.get_legend().get_texts()] == names
    # Means from the clean one to the largest radius, then the seeds of whom there are several.
    means = [line for line in first.lines if line.get_markersize() > 5]
    for line, accuracies in zip(means, ([70, 90, 100], [70, 60, 40], [45, 40, 10]), strict=True):
        at = dict(zip(line.get_ydata(), line.get_xdata(), strict=True))
        expected = dict(zip(("best", "middle", "worst"), accuracies, strict=True))
        for name, accuracy in expected.items():
            assert at[heights[name]] == pytest.approx(accuracy)
    seeds = [line for line in first.lines if line.get_markersize() < 5]
    assert {y for line in seeds for y in line.get_ydata()} == {heights["middle"]}
    assert sorted(x for line in seeds for x in line.get_xdata()) == pytest.approx(
        [0, 0, 60, 60, 90, 90, 90, 90, 90]
    )
    assert len({line.get_color() for line in means}) == 3
    assert [line.get_color() for line in second.lines if line.get_markersize() > 5] == [
        means[0].get_color(),
        means[-1].get_color(),
    ]


def test_histograms_count_every_example(pages, tmp_path):
    """One above all, one in the middle, zeros and the far too small in the first bin."""
    values = np.array([0.0, 0.0, 1e-20, 1.0, 100.0])
    clouds = [figures.Cloud("none", NONE, values, values)]
    figures.histograms(tmp_path / "one.png", clouds, **TEXT)
    for ax in pages[0].subfigs[1].axes:
        share = ax.patches[0].get_data().values
        edges = ax.patches[0].get_data().edges
        np.testing.assert_allclose(share.sum(), 100)
        assert edges[0] > 1e-7
        assert share[0] == 60
        assert share[-1] == 20
        assert share[(edges[:-1] <= 1.0) & (edges[1:] > 1.0)] == 20
        assert ax.get_title(loc="right") == "median 1e-20"


def test_histogram_colors_and_medians_are_those_of_the_methods(pages, tmp_path):
    draw_histograms(tmp_path / "one.png")
    axes = pages[0].subfigs[1].axes
    colors = [to_hex(ax.patches[0].get_facecolor()).upper() for ax in axes]
    assert colors == [NONE.color, NONE.color, HESSIAN.color, HESSIAN.color]
    # The middle of a geometric sequence from 1e-3 to 10 is 0.1; gradient norms twice that.
    assert [ax.get_title(loc="right") for ax in axes] == [
        *("median 0.2", "median 0.1", "median 0.02", "median 0.01"),
    ]


def test_histograms_of_zeros_alone_are_drawn(tmp_path):
    clouds = [figures.Cloud("none", NONE, np.zeros(3), np.zeros(3))]
    figures.histograms(tmp_path / "one.png", clouds, **TEXT)
    assert (tmp_path / "one.png").stat().st_size > 1000


@pytest.mark.parametrize(("order", "size"), [(2.0, "0.50"), (np.inf, "0.40")])
def test_attacks_tell_predictions_errors_and_size(order, size, pages, tmp_path):
    draw_attacks(tmp_path / "one.png", order=order)
    first, second = np.reshape(pages[0].subfigs[1].axes[:6], (2, 3))
    labels = [ax.get_xlabel() for ax in first]
    assert labels[:2] == ["predicts 7", "predicts 2 (wrong)"]
    assert labels[2].endswith(f"size {size}")
    assert [ax.get_xlabel() for ax in second[:2]] == ["predicts 7", "predicts 7"]
    assert [ax.get_title() for ax in first] == ["clean, label 7", "attacked", "difference"]
    assert [line[0].get_ylabel() for line in (first, second)] == ["none", "hessian"]


def test_attacks_show_the_images_and_a_difference_on_one_scale(pages, tmp_path):
    draw_attacks(tmp_path / "one.png")
    clean, attacked, difference = (ax.images[0].get_array() for ax in pages[0].subfigs[1].axes[:3])
    np.testing.assert_allclose(clean, np.full((4, 4), 0.5))
    np.testing.assert_allclose([attacked[0, 0], attacked[1, 1]], [0.8, 0.1])
    np.testing.assert_allclose([difference[0, 0], difference[1, 1]], [0.3, -0.4])
    for ax in (pages[0].subfigs[1].axes[i] for i in (2, 5)):
        np.testing.assert_allclose(ax.images[0].get_clim(), (-0.4, 0.4))


def test_attacks_on_images_one_pixel_high_are_drawn(pages, tmp_path):
    draw_attacks(tmp_path / "one.png", height=1)
    for ax in pages[0].subfigs[1].axes[:3]:
        assert ax.images[0].get_array().shape == (1, 4)


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_of_channels_that_are_no_colors_attacks_show_the_mean(channels, pages, tmp_path):
    draw_attacks(tmp_path / "one.png", channels=channels)
    for ax, first in zip(pages[0].subfigs[1].axes[:3], (0.5, 0.8, 0.3), strict=True):
        shown = ax.images[0].get_array()
        assert shown.shape == (4, 4)
        np.testing.assert_allclose(shown[0, 0], first)


def test_attacks_on_color_images_are_drawn(pages, tmp_path):
    draw_attacks(tmp_path / "one.png", channels=3)
    clean, _, difference = pages[0].subfigs[1].axes[:3]
    assert clean.images[0].get_array().shape == (4, 4, 3)
    assert difference.images[0].get_array().shape == (4, 4)
    np.testing.assert_allclose(difference.images[0].get_array()[0, 0], 0.3)
