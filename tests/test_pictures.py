"""What the figures of a comparison are given, from files with numbers made by hand."""

import numpy as np
import pytest

from experiments import report
from experiments.files import read_json, write_json
from experiments.table import group
from tests.stored import comparison, landscape, run, store, without


def test_a_figure_tells_what_is_not_usual_of_a_method():
    runs = [run("adversarial", 0, strength=1.5, options=["num_steps=3"]), run("trades", 0)]
    labels = [method.label for method in group(comparison(runs))]
    assert labels == ["adversarial (1.5, num_steps=3)", "trades"]


def test_figures_get_the_numbers_of_the_files(directory, drawn):
    report.main(directory)
    (curves,), told = drawn["accuracy"]
    assert list(curves) == ["l2", "linf"]
    none, hessian = curves["l2"]
    np.testing.assert_array_equal(none.epsilons, [0, 0.5, 1])
    np.testing.assert_allclose(
        none.accuracy, [[0.9, 0.8, 0.6], [0.91, 0.81, 0.61], [0.92, 0.82, 0.62]]
    )
    np.testing.assert_allclose(hessian.accuracy, [[0.9, 0.8, 0.6], [0.91, 0.81, 0.61]])
    np.testing.assert_allclose(curves["linf"][1].accuracy, [[0.9, 0.4], [0.91, 0.41]])
    assert "1,234 test images" in told["note"]
    assert "PGD, 40 steps" in told["note"]

    (clouds,), told = drawn["histograms"]
    pooled = np.concatenate([landscape(seed)["curvature"] for seed in (3, 4)])
    np.testing.assert_array_equal(clouds[1].curvature, pooled)
    pooled = np.concatenate([landscape(seed)["gradient_norm"] for seed in (0, 1, 2)])
    np.testing.assert_array_equal(clouds[0].gradient_norm, pooled)
    assert "20 test images of digits; seeds 0, 1, 2 pooled" in told["note"]

    (planes, offsets), told = drawn["planes"]
    np.testing.assert_array_equal(planes[1].loss, landscape(3)["surface_loss"][0])
    np.testing.assert_array_equal(offsets, landscape()["surface_offsets"])
    assert planes[0].cosine == 0.5
    assert told["epsilon"] == 1.5
    assert "Number 0 (label 7) of the test images of digits, seed 0" in told["note"]

    (boundaries, offsets), told = drawn["boundaries"]
    np.testing.assert_array_equal(boundaries[1].margin, landscape(3)["boundary_margin"][0])
    np.testing.assert_array_equal(offsets, landscape()["surface_offsets"])
    shown = landscape(3)
    length = np.sqrt(np.sum((shown["attacked"][0] - landscape()["shown_clean"][0]) ** 2))
    assert boundaries[1].attack == pytest.approx(length)
    assert told["epsilon"] == 1.5
    assert "Number 0 (label 7) of the test images of digits, seed 0" in told["note"]

    (points,), told = drawn["frontier"]
    np.testing.assert_allclose(points[1].cost, [4, 5])
    # In the middle one of the first norm's balls.
    np.testing.assert_allclose(points[1].accuracy, [0.6, 0.61])
    assert (told["norm"], told["radius"]) == ("l2", 1.0)
    assert "trajectories" not in drawn

    (rows,), told = drawn["attacks"]
    label, look, attacks = rows[1]
    assert (label, look.color) == ("hessian", clouds[1].style.color)
    np.testing.assert_array_equal(attacks[1].attacked, landscape(3)["attacked"][1])
    assert [one.attacked_prediction for one in attacks] == [7, 8]
    assert told["order"] == 2
    shown = "Numbers 0 and 4 of the test images of digits, seed 0. Attacked: the first"
    found = "misclassified point, or else the one of largest loss, that PGD finds in 40 steps in"
    assert f"{shown} {found}" in told["note"]


def test_cost_is_against_autoattack_and_trajectories_are_drawn_where_there_are(tmp_path, drawn):
    auto = {"linf": {"0.1": {"robust": 0.25, "verdict": "trustworthy"}}}
    watched = {"step": [1, 9], "test_gradient_norm": [2.0, 1.0], "test_hessian_norm": [4.0, 3.0]}
    # Its first line was not finite, so is missing.
    short = {"step": [9], "test_gradient_norm": [1.5], "test_hessian_norm": [5.0]}
    runs = [
        run("none", 0, auto=auto, trajectory=watched),
        run("none", 2, auto=auto, trajectory=watched),
        run("hessian", 2, auto=auto, trajectory=watched),
        run("hessian", 4, auto=auto, trajectory=short),
        run("none", 1, auto=auto),
        run("hessian", 3, auto=auto),
        run("gradient", 0, auto=auto, seconds_per_step=None),
    ]
    content = comparison(runs) | {"auto": {"norms": {"linf": [0.1]}, "num_examples": 500}}
    report.main(store(tmp_path, content, {}))
    (points,), told = drawn["frontier"]
    assert [point.label for point in points] == ["none", "hessian"]
    np.testing.assert_array_equal(points[0].accuracy, [0.25, 0.25, 0.25])
    assert (told["norm"], told["radius"]) == ("linf", 0.1)
    # Neither method has the seeds of both.
    by = "Attack: AutoAttack, standard version, on the first 500 images"
    assert told["note"].startswith(f"Test images of digits; 3 seeds per method. {by}")
    (lines,), told = drawn["trajectories"]
    assert [line.label for line in lines] == ["none", "hessian"]
    for line, steps, gradient_norm, curvature in (
        (lines[0], [1, 9], [[2, 1], [2, 1]], [[4, 3], [4, 3]]),
        (lines[1], [9], [[1], [1.5]], [[3], [5]]),
    ):
        np.testing.assert_array_equal(line.steps, steps)
        np.testing.assert_array_equal(line.gradient_norm, gradient_norm)
        np.testing.assert_array_equal(line.curvature, curvature)
    absent = "Not watched: none of seed 1, hessian of seed 3."
    assert (
        f"seeds 0, 2, 4. {absent} Lines: mean over seeds; bands: all seeds. Deriv" in told["note"]
    )


def test_images_that_were_held_out_are_not_called_test_images(directory, drawn):
    content = read_json(directory / "comparison.json") | {"setup": {"validation": 50}}
    write_json(directory / "comparison.json", content)
    report.main(directory)
    assert "- Data: 1,234 held-out images of digits; " in (directory / "report.md").read_text()
    notes = [told["note"] for _, told in drawn.values()]
    assert notes
    assert all("held-out images of digits" in note for note in notes)
    texts = [*notes, *(told["title"] for _, told in drawn.values())]
    assert not any("test image" in text.lower() for text in texts)


def test_images_that_most_get_right_are_shown_first(tmp_path, drawn):
    wrong = {"clean_prediction": np.array([0, 3, 1])}
    runs = [run("none", 0), run("hessian", 0)]
    landscapes = {"none-0": landscape(0), "hessian-0": landscape(1, **wrong)}
    report.main(store(tmp_path, comparison(runs), landscapes))
    assert "Number 4 (label 3)" in drawn["planes"][1]["note"]
    assert "Numbers 4 and 9" in drawn["attacks"][1]["note"]


def test_no_circle_for_a_ball_that_is_none(tmp_path, drawn):
    landscapes = {"none-0": landscape(attack_order=np.array(np.inf))}
    report.main(store(tmp_path, comparison([run("none", 0)]), landscapes))
    assert drawn["planes"][1]["epsilon"] is None
    assert "ball" not in drawn["planes"][1]["note"]
    assert r"$\ell_\infty$ ball of radius ε = 1.5" in drawn["attacks"][1]["note"]


def test_methods_without_landscape_are_named(tmp_path, drawn):
    landscapes = {"hessian-1": landscape()}
    report.main(store(tmp_path, comparison(), landscapes))
    text = (tmp_path / "report.md").read_text()
    assert "Without landscape.npz, so in none of the figures made of it: none." in text
    assert [cloud.label for cloud in drawn["histograms"][0][0]] == ["hessian"]
    assert "seed 1. Derivatives" in drawn["histograms"][1]["note"]
    assert "seed 1" in drawn["planes"][1]["note"]


def test_a_landscape_from_before_the_boundary_was_drawn(tmp_path, drawn):
    landscapes = {"none-0": without(landscape(), "boundary_margin"), "hessian-0": landscape(1)}
    report.main(store(tmp_path, comparison(), landscapes))
    (boundaries, _), _ = drawn["boundaries"]
    assert [one.label for one in boundaries] == ["hessian"]
    (planes, _), _ = drawn["planes"]
    assert [one.label for one in planes] == ["none", "hessian"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"attack_epsilon": 1.0}, "its radii of the attack are (1.0,), those of most runs (1.5,);"),
        ({"attack_order": np.inf}, "its norms of the attack are (inf,)"),
        ({"attack_steps": 5}, "its steps of the attack are (5,)"),
        ({"surface_offsets": np.linspace(-2, 2, 5)}, "its planes are (-2.0, "),
    ],
)
def test_a_figure_does_not_mix_settings(changed, message, directory, drawn, capsys):
    other = {key: np.array(value) for key, value in changed.items()}
    # The first one, so that most are not like the first.
    np.savez(directory / "none-0" / "landscape.npz", **landscape(1, **other))
    report.main(directory)
    assert message in capsys.readouterr().err
    (clouds,), _ = drawn["histograms"]
    sizes = {cloud.label: cloud.curvature.size for cloud in clouds}
    assert sizes == {"none": 40, "hessian": 40}


@pytest.mark.parametrize("count", [24, 25])
def test_so_many_methods_that_no_figure_tells_them_apart(tmp_path, drawn, count):
    runs = [run("gradient", 0, strength=float(i), path=f"gradient-{i}") for i in range(count)]
    report.main(store(tmp_path, comparison(runs), {}))
    text = (tmp_path / "report.md").read_text()
    assert ("No figures of each: 25 methods could not be told apart." in text) == (count == 25)
    assert ("(figures/accuracy.png)" in text) == ("ranking" in drawn) == (count == 24)
    # Strengths of one method are on one line.
    assert "(figures/tradeoff.png)" in text
    assert len(drawn["tradeoff"][0][0]) == 1


def test_so_many_methods_that_not_even_lines_tell_them_apart(tmp_path, drawn):
    runs = [
        run("hessian", 0, options=[f"parts={i}"], strength=strength, path=f"{i}-{strength}")
        for i in range(25)
        for strength in (1.0, 2.0)
    ]
    report.main(store(tmp_path, comparison(runs), {}))
    assert not drawn


def test_strengths_of_a_method_are_told_by_clean_and_robust_accuracy(tmp_path, drawn):
    def entry(name, clean, robust, seed=0, **given):
        accuracies = {"l2": {"0.5": 0.5, "1": robust}, "linf": {"0.1": robust / 2}}
        known = {"clean": clean, "robust": accuracies, "path": f"{len(runs)}", **given}
        runs.append(run(name, seed, **known))

    runs = []
    entry("none", 0.95, 0.1)
    entry("trades", 0.93, 0.6, strength=1.0, options=["weight=1"])
    entry("trades", 0.9, 0.7, strength=1.0, options=["weight=3"])
    entry("trades", 0.88, 0.75, seed=1, strength=1.0, options=["weight=3"])
    entry("trades", 0.8, 0.65, strength=0.2, options=["norm=linf"])
    report.main(store(tmp_path, comparison(runs), {}))
    (lines,), told = drawn["tradeoff"]
    assert [line.label for line in lines] == ["none", "trades", "trades (norm=linf)"]
    np.testing.assert_allclose(lines[1].clean, [0.89, 0.93])
    np.testing.assert_allclose(lines[1].robust["l2"], [0.725, 0.6])
    np.testing.assert_allclose(lines[1].robust["linf"], [0.3625, 0.3])
    none, plain, other = (line.style for line in lines)
    assert none.marker != plain.marker == other.marker
    assert plain.line != other.line
    assert told["radii"] == {"l2": 1.0, "linf": 0.1}
    assert told["least"] == pytest.approx(0.85)
    assert told["note"].endswith(" Not shown: 1 below 85.0 % clean.")
    # A method of which there is one strength alone has nothing to be chosen among.
    drawn.clear()
    content = comparison([one for one in runs if one.get("options") != ["weight=1"]])
    report.main(store(tmp_path, content, {}))
    assert "tradeoff" not in drawn


@pytest.mark.parametrize("count", [12, 13])
def test_strengths_of_many_methods_are_not_joined(tmp_path, drawn, count):
    runs = [
        run("hessian", 0, options=[f"parts={i}"], strength=strength, path=f"{i}-{strength}")
        for i in range(count)
        for strength in (1.0, 2.0)
    ]
    report.main(store(tmp_path, comparison(runs), {}))
    _, told = drawn["tradeoff"]
    assert told["joined"] == (count == 12) == ("A line joins the strengths" in told["note"])
    assert ("Gray: candidates that another one beats" in told["note"]) == (count == 13)


@pytest.mark.parametrize("count", [12, 13])
def test_many_methods_are_ranked_where_lines_would_hide_each_other(tmp_path, drawn, count):
    watched = {"step": [1], "test_gradient_norm": [2.0], "test_hessian_norm": [4.0]}
    runs = [
        run("gradient", 0, strength=float(i), path=f"gradient-{i}", trajectory=watched)
        for i in range(count)
    ]
    report.main(store(tmp_path, comparison(runs), {}))
    name = "ranking" if count == 13 else "accuracy"
    assert set(drawn) == {name, "tradeoff", *(["trajectories"] if count == 12 else [])}
    curves, text = drawn[name]
    assert len(curves[0]["l2"]) == count
    assert ("Rows: by the mean accuracy" in text["note"]) == (count == 13)
