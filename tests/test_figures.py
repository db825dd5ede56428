"""What the figures draw, read back from the axes, and the files they leave."""

from math import log
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from experiments import canvas, figures, methods, surfaces, trends

TEXT: dict[str, Any] = {"title": "A title", "note": "400 test images; seeds 0, 1, 2. " * 6}
NONE, HESSIAN = canvas.style("none"), canvas.style("hessian")
METHODS = (
    *("none", "gradient", "hessian", "hessian-only", "finite-step", "curvature", "jacobian"),
    *("gauss-newton", "adversarial"),
)


@pytest.fixture
def pages(monkeypatch):
    """Keep every page that is saved, for a look at its axes."""
    kept = []

    def keep(page, path):
        kept.append(page)
        canvas.save(page, path)

    for module in (figures, surfaces, trends):
        monkeypatch.setattr(module, "save", keep)
    return kept


def curves():
    radii = np.array([0.0, 0.5, 2.0])
    three = np.array([[0.9, 0.5, 0.1], [0.8, 0.5, 0.2], [1.0, 0.5, 0.3]])
    return {
        norm: [
            figures.Curve("none", NONE, radii, three[:1]),
            figures.Curve("hessian", HESSIAN, radii, three),
        ]
        for norm in ("l2", "linf")
    }


def draw_accuracy(path):
    figures.accuracy(path, curves(), **TEXT)


def draw_ranking(path):
    figures.ranking(path, {norm: 7 * drawn for norm, drawn in curves().items()}, **TEXT)


def draw_histograms(path):
    values = np.geomspace(1e-3, 10, 40)
    clouds = [
        figures.Cloud("none", NONE, values, 2 * values),
        figures.Cloud("hessian", HESSIAN, values / 10, values / 5),
    ]
    figures.histograms(path, clouds, **TEXT)


def draw_planes(path, losses=None):
    offsets = np.linspace(-1, 1, 5)
    bowl = 2 * (offsets[:, None] ** 2 + offsets[None, :] ** 2)
    planes = [
        surfaces.Plane(name, canvas.style(name), loss, 0.6)
        for name, loss in (losses or {"none": bowl, "hessian": bowl / 8}).items()
    ]
    surfaces.planes(path, planes, offsets, epsilon=0.5, **TEXT)


def draw_attacks(path, channels=1, order=2.0):
    clean = np.full((4, 4, channels), 0.5)
    attacked = clean.copy()
    attacked[0, 0] += 0.3
    attacked[1, 1] -= 0.4
    rows = [
        ("none", NONE, [figures.Attack(clean, attacked, 7, 7, 2)]),
        ("hessian", HESSIAN, [figures.Attack(clean, attacked, 7, 7, 7)]),
    ]
    figures.attacks(path, rows, order=order, **TEXT)


def draw_boundaries(path):
    offsets = np.linspace(-1, 1, 5)
    # Of the label up to 0.5 along the attack, for the second method everywhere.
    margin = np.tile(0.5 - offsets, (5, 1))
    drawn = [
        surfaces.Boundary("none", NONE, margin, 0.75),
        surfaces.Boundary("hessian", HESSIAN, margin + 2, 0.5),
    ]
    surfaces.boundaries(path, drawn, offsets, epsilon=0.75, **TEXT)


def draw_frontier(path):
    points = [
        trends.Point("none", NONE, np.array([1.0]), np.array([0.2])),
        # Dearer and worse than the next.
        trends.Point("gradient", canvas.style("gradient"), np.array([6.0]), np.array([0.5])),
        trends.Point("hessian", HESSIAN, np.array([4.0, 6.0]), np.array([0.8, 0.9])),
    ]
    trends.frontier(path, points, norm="l2", radius=1.5, **TEXT)


def draw_tradeoff(path):
    methods = [
        trends.Settings("none", NONE, np.array([0.9]), {"l2": np.array([0.1])}),
        # The first has lost too much.
        trends.Settings(
            "hessian", HESSIAN, np.array([0.6, 0.8, 0.85]), {"l2": np.array([0.5, 0.7, 0.4])}
        ),
    ]
    trends.tradeoff(path, methods, radii={"l2": 1.5}, least=0.8, joined=True, **TEXT)


def draw_trajectories(path):
    steps, seeds = np.array([1, 20, 40]), np.array([[1.0, 0.5, 0.25], [1.2, 0.4, 0.35]])
    drawn = [
        trends.Trajectory(name, canvas.style(name), steps, values, 2 * values)
        for name, values in (("none", seeds[:1]), ("hessian", seeds))
    ]
    trends.trajectories(path, drawn, **TEXT)


def draw_calibration(path):
    found = np.array([0.1, 0.3, 0.2, 0.8, 0.4, 0.6])
    networks = [
        # Of the second panel, only four are finite; of the last network none of them is.
        trends.Distances(label, look, found, {"a": a * found, "b": np.array(b), "c": 1000 * found})
        for label, look, a, b in (
            ("none", NONE, 2, [1, 2, 3, 4, *INF]),
            ("hessian", HESSIAN, 1, 3 * INF),
        )
    ]
    trends.calibration(path, networks, groups=3, **TEXT)


INF = [np.inf, np.inf]
ALL = [
    *(draw_accuracy, draw_ranking, draw_histograms, draw_planes, draw_attacks),
    *(draw_boundaries, draw_frontier, draw_tradeoff, draw_trajectories, draw_calibration),
]


@pytest.mark.parametrize("draw", ALL)
def test_file_is_a_png_of_the_size_of_its_page(draw, pages, tmp_path):
    path = tmp_path / "figures" / "one.png"
    draw(path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    [page] = pages
    width, height = page.get_size_inches() * page.dpi
    pixels = imread(path)
    np.testing.assert_allclose(pixels.shape[:2], (height, width), atol=1)
    assert width >= 1000
    assert height >= 500
    # Something is drawn in every quarter.
    for half in np.array_split(pixels[..., :3], 2, axis=0):
        for quarter in np.array_split(half, 2, axis=1):
            assert quarter.std() > 0.01


@pytest.mark.parametrize("draw", ALL)
def test_title_and_whole_note_are_in_the_figure(draw, pages, tmp_path):
    draw(tmp_path / "one.png")
    header = pages[0].subfigs[0]
    title, note = (text.get_text() for text in header.texts)
    assert title == TEXT["title"]
    assert note.split() == TEXT["note"].split()
    inside = header.get_window_extent()
    for text in header.texts:
        extent = text.get_window_extent()
        assert inside.x0 <= extent.x0
        assert extent.x1 <= inside.x1
        assert inside.y0 <= extent.y0
        assert extent.y1 <= inside.y1


@pytest.mark.parametrize("draw", ALL)
def test_every_axis_is_told(draw, pages, tmp_path):
    draw(tmp_path / "one.png")
    body = pages[0].subfigs[1]
    across = {ax.get_xlabel() for ax in body.axes} | {body.get_supxlabel()}
    upward = {ax.get_ylabel() for ax in body.axes} | {body.get_supylabel()}
    expected = {
        draw_accuracy: ([r"$\ell_2$ norm", r"$\ell_\infty$ norm"], ["% of images"]),
        draw_ranking: (["accuracy, % of images"], []),
        draw_histograms: (["nats per input unit)", "nats per input unit²)"], ["% of images"]),
        draw_planes: ([r"input units, $\ell_2$"], [r"input units, $\ell_2$", "nats"]),
        draw_attacks: ([r"$\ell_2$ size", "predicts"], ["change of pixel value"]),
        draw_boundaries: ([r"input units, $\ell_2$"], [r"input units, $\ell_2$", "logits"]),
        draw_frontier: (["plain steps"], [r"$\ell_2$ radius ε = 1.5, %"]),
        draw_tradeoff: (["clean accuracy, % of images"], ["accuracy under attack, %"]),
        draw_trajectories: (["training step"], ["nats per input unit)", "nats per input unit²)"]),
        draw_calibration: (
            [r"estimated distance, $\ell_2$ (input units)"],
            [r"found distance, $\ell_2$ (input units)"],
        ),
    }[draw]
    for labels, parts in zip((across, upward), expected, strict=True):
        for part in parts:
            assert any(part in label for label in labels), (part, labels)


def test_an_interrupted_writing_leaves_the_old_file(tmp_path, monkeypatch):
    def interrupted(_, path, **settings):
        del settings
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    path = tmp_path / "one.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw_planes(path)
    assert path.read_bytes() == b"old"


def test_nothing_but_the_figure_is_left(tmp_path):
    draw_planes(tmp_path / "one.png")
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]


def test_methods_look_different_and_settings_of_one_share_its_color():
    looks = [canvas.style(method) for method in METHODS]
    assert len({look.color for look in looks}) == len(METHODS)
    assert len({look.marker for look in looks}) == len(METHODS)
    first, second = canvas.style("hessian", 0), canvas.style("hessian", 1)
    assert first.color == second.color
    assert first.line != second.line
    assert first.fill != second.fill
    assert canvas.style("something new").color not in {look.color for look in looks}
    every = {(look.color, look.marker) for look in map(canvas.style, methods.METHODS)}
    assert len(every) == len(methods.METHODS)
    settings = {canvas.style("hessian", variant) for variant in range(16)}
    assert len(settings) == 16


@pytest.mark.parametrize(("long", "columns"), [(0, 6), (40, 4), (105, 1)])
def test_one_long_label_does_not_make_a_column_of_all(pages, tmp_path, long, columns):
    labels = [*[f"method {i}" for i in range(11)], ("hessian-inside 0.5, step 1 " * 4)[:long]]
    seed = np.ones((1, 2))
    drawn = [trends.Trajectory(label, NONE, np.ones(2), seed, seed) for label in labels]
    trends.trajectories(tmp_path / "one.png", drawn, **TEXT)
    page = pages[0]
    [legend] = page.subfigs[2].legends
    assert legend._ncols >= columns
    assert (legend._ncols == 1) == (columns == 1)
    page.draw_without_rendering()
    edges = legend.get_window_extent()
    assert edges.x0 >= 0
    assert edges.x1 <= page.bbox.x1


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


def test_legend_is_outside_of_the_axes(pages, tmp_path):
    draw_accuracy(tmp_path / "one.png")
    _, body, footer = pages[0].subfigs
    assert [text.get_text() for text in footer.legends[0].get_texts()] == ["none", "hessian"]
    legend = footer.legends[0].get_window_extent()
    for ax in body.axes:
        assert legend.y1 <= ax.get_tightbbox().y0


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


def test_attacks_on_color_images_are_drawn(pages, tmp_path):
    draw_attacks(tmp_path / "one.png", channels=3)
    clean, _, difference = pages[0].subfigs[1].axes[:3]
    assert clean.images[0].get_array().shape == (4, 4, 3)
    assert difference.images[0].get_array().shape == (4, 4)
    np.testing.assert_allclose(difference.images[0].get_array()[0, 0], 0.3)


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


def test_a_legend_of_many_long_labels_stays_on_the_page(pages, tmp_path):
    labels = [f"hessian-inside (1.25, step {i})" for i in range(13)]
    steps = np.array([1, 20])
    drawn = [trends.Trajectory(label, HESSIAN, steps, steps[None], steps[None]) for label in labels]
    trends.trajectories(tmp_path / "one.png", drawn, **TEXT)
    [page] = pages
    [legend] = page.subfigs[2].legends
    told, footer = legend.get_window_extent(), page.subfigs[2].get_window_extent()
    assert [text.get_text() for text in legend.get_texts()] == labels
    assert footer.x0 <= told.x0 < told.x1 <= footer.x1
    assert footer.y0 <= told.y0 < told.y1 <= footer.y1


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


def test_a_note_of_wide_words_stays_on_a_narrow_page():
    note = "5,000 held-out images of mnist, 5000 training examples held out; seed 0. " * 3
    page, _ = canvas.canvas(6.0, 4.6, title="A title", note=note)
    title, told = page.subfigs[0].texts
    assert " ".join(told.get_text().split()) == note.strip()
    assert told.get_window_extent().x1 <= page.bbox.x1 - title.get_window_extent().x0
