"""What all figures share: a page with a title, a note and a legend, and the file they leave."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from experiments import canvas, methods, trends
from tests.drawings import (
    HESSIAN,
    METHODS,
    NONE,
    TEXT,
    draw_accuracy,
    draw_attacks,
    draw_boundaries,
    draw_calibration,
    draw_frontier,
    draw_histograms,
    draw_planes,
    draw_ranking,
    draw_tradeoff,
    draw_trajectories,
)

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


def test_legend_is_outside_of_the_axes(pages, tmp_path):
    draw_accuracy(tmp_path / "one.png")
    _, body, footer = pages[0].subfigs
    assert [text.get_text() for text in footer.legends[0].get_texts()] == ["none", "hessian"]
    legend = footer.legends[0].get_window_extent()
    for ax in body.axes:
        assert legend.y1 <= ax.get_tightbbox().y0


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


def test_a_note_of_wide_words_stays_on_a_narrow_page():
    note = "5,000 held-out images of mnist, 5000 training examples held out; seed 0. " * 3
    page, _ = canvas.canvas(6.0, 4.6, title="A title", note=note)
    title, told = page.subfigs[0].texts
    assert " ".join(told.get_text().split()) == note.strip()
    assert told.get_window_extent().x1 <= page.bbox.x1 - title.get_window_extent().x0
