"""The table and the report of a comparison, from synthetic files with numbers made by hand."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import figures, report, surfaces, trends
from experiments.files import read_json, write_json
from experiments.reading import joined, read
from experiments.table import apgd_table, group, table
from experiments.words import explained

ROOT = Path(__file__).parents[1]
FIGURES = [
    *("accuracy.png", "cost.png", "norms.png", "planes.png", "boundaries.png", "attacks.png"),
]


def run(method, seed, **changed):
    """Return one run; accuracies in steps of a point per seed."""
    clean = 0.9 + 0.01 * seed
    return {
        "method": method,
        "seed": seed,
        "strength": None,
        "step": None,
        "path": f"{method}-{seed}",
        "clean": clean,
        "robust": {"l2": {"0.5": clean - 0.1, "1.0": clean - 0.3}, "linf": {"0.1": clean - 0.5}},
        "train_seconds": 10.0,
        "seconds_per_step": 0.01,
        "gradient_norm_mean": 0.25,
        "hessian_norm_mean": 12.0,
    } | changed


def comparison(runs=None):
    plain = [run("none", seed) for seed in range(3)]
    hessian = [
        run(
            "hessian",
            seed,
            strength=1.5,
            seconds_per_step=0.04 + 0.01 * seed,
            gradient_norm_mean=0.1 + 0.1 * seed,
            hessian_norm_mean=1.0,
        )
        for seed in range(2)
    ]
    return {
        "command": "python -m experiments.compare --data digits",
        "commit": "0123abc",
        "versions": {"jax": "0.10.2", "flax": "0.12.8"},
        "device": "one processor",
        "data": "digits",
        "num_test": 1234,
        "norms": {"l2": [0.5, 1.0], "linf": [0.1]},
        "attack": {"name": "PGD", "num_steps": 40, "losses": ["cross-entropy", "dlr"]},
        "runs": plain + hessian if runs is None else runs,
    }


def landscape(seed=0, **changed):
    random = np.random.default_rng(seed)
    clean = random.uniform(size=(3, 4, 4, 1))
    return {
        "curvature": random.uniform(0.1, 10, size=20),
        "gradient_norm": random.uniform(0.1, 1, size=20),
        "shown": np.array([0, 4, 9]),
        "shown_label": np.array([7, 3, 1]),
        "shown_clean": clean,
        "clean_prediction": np.array([7, 3, 1]),
        "attacked": np.clip(clean + 0.1, 0, 1),
        "attacked_prediction": np.array([7, 8, 1]),
        "attack_epsilon": np.array(1.5),
        "attack_order": np.array(2.0),
        "attack_steps": np.array(40),
        "surface_offsets": np.linspace(-1, 1, 5),
        "surface_loss": random.uniform(0, 3, size=(3, 5, 5)),
        "surface_cosine": np.array([0.5, 0.6, 0.7]),
        "boundary_margin": random.uniform(-1, 1, size=(3, 5, 5)),
    } | changed


def store(directory, content, landscapes):
    (directory / "comparison.json").write_text(json.dumps(content))
    for path, arrays in landscapes.items():
        (directory / path).mkdir()
        np.savez(directory / path / "landscape.npz", **arrays)
    return directory


@pytest.fixture
def directory(tmp_path):
    content = comparison()
    landscapes = {one["path"]: landscape(i) for i, one in enumerate(content["runs"])}
    return store(tmp_path, content, landscapes)


def cells(directory):
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table(read(directory)).splitlines()
    ]


def test_table_holds_hand_computed_means_and_sample_deviations(directory):
    head, rule, *rows = cells(directory)
    assert head == [
        *("method", "strength", "clean", "ℓ₂ 0.5", "ℓ₂ 1", "ℓ∞ 0.1"),
        *("mean ‖g‖₂", "mean ‖H‖", "time/step", "seeds"),
    ]
    assert len(rule) == len(head)
    # Seeds at 90, 91, 92: mean 91, deviation 1. Two seeds at 90, 91: 90.5 and 1/√2 = 0.7.
    assert rows[0] == [
        *("none", "-", "91.0 ± 1.0", "81.0 ± 1.0", "61.0 ± 1.0", "41.0 ± 1.0"),
        *("0.25", "12", "1.00×", "3"),
    ]
    assert rows[1] == [
        *("hessian", "1.5", "90.5 ± 0.7", "80.5 ± 0.7", "60.5 ± 0.7", "40.5 ± 0.7"),
        *("0.15", "1", "4.50×", "2"),
    ]


def test_table_tells_autoattack_and_how_often_masking_was_seen(directory):
    def found(robust, verdict):
        return {"linf": {"0.1": {"robust": robust, "verdict": verdict}}}

    runs = [
        run("none", 0, auto=found(0.25, "masking: the gradient is zero")),
        run("none", 1, auto=found(0.35, "trustworthy: no sign of masking seen")),
        run("gradient", 0, auto=found(0.5, "trustworthy: no sign of masking seen")),
    ]
    content = comparison(runs) | {"auto": {"norms": {"linf": [0.1]}, "num_examples": 500}}
    file = directory / "comparison.json"
    file.write_text(json.dumps(content))
    head, _, *rows = cells(directory)
    place = head.index("AA ℓ∞ 0.1")
    assert head[place + 1] == "masking"
    assert [row[place : place + 2] for row in rows] == [["30.0 ± 7.1", "1 of 2"], ["50.0", "none"]]
    head, _, first, _ = table(read(directory), brief=True).splitlines()
    names = ["method", "strength", "clean", "AA ℓ∞ 0.1", "masking", "time/step", "seeds"]
    assert [cell.strip() for cell in head.strip("|").split("|")] == names
    values = [cell.strip() for cell in first.strip("|").split("|")]
    assert values == ["none", "-", "90.5 ± 0.7", "30.0 ± 7.1", "1 of 2", "1.00×", "2"]
    del runs[1]["auto"]["linf"]["0.1"]["verdict"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"AutoAttack's part of run 1 .* lacks verdict"):
        read(directory)
    runs[1]["auto"]["linf"]["0.1"]["verdict"] = "trustworthy"
    del runs[2]["auto"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"run 2 .* no accuracy under AutoAttack at linf"):
        read(directory)


@pytest.mark.usefixtures("drawn")
def test_apgd_has_a_table_of_its_own(directory):
    def found(accuracy):
        return {"l2": {"0.5": accuracy, "1.0": 0.5}, "linf": {"0.1": 0.25}}

    runs = [run("none", 0, apgd=found(0.7)), run("none", 1, apgd=found(0.8))]
    content = comparison(runs) | {"apgd_examples": 1000}
    file = directory / "comparison.json"
    file.write_text(json.dumps(content))
    report.main(directory)
    text = (directory / "report.md").read_text()
    assert "Under APGD with cross-entropy, then at nine targets, the first 1,000 images" in text
    *_, row = [line for line in text.splitlines() if line.startswith("|")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["none", "-", "75.0 ± 7.1", "50.0 ± 0.0", "25.0 ± 0.0"]
    del runs[1]["apgd"]["linf"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"run 1 .* no accuracy under APGD at linf radius 0\.1"):
        read(directory)


def test_comparisons_attacked_alike_make_one_table(directory, tmp_path, capsys):
    setup = {"model": "cnn", "activation": "gelu"}
    runs = [run("none", 0, seconds_per_step=0.02), run("hessian", 0, seconds_per_step=0.1)]
    strongest = {"linf": {"0.1": {"robust": 0.5, "verdict": "trustworthy"}}}
    auto = {"auto": {"norms": {"linf": [0.1]}, "num_examples": 500}}
    small = {"setup": setup | {"model": "mlp"}, **auto}
    other = comparison([one | {"auto": strongest} for one in runs]) | small
    there = directory / "comparison.json"
    there.write_text(json.dumps(comparison() | {"setup": setup}))
    (tmp_path / "other").mkdir()
    store(tmp_path / "other", other, {})
    before = sorted(directory.rglob("*"))
    report.main(directory, (tmp_path / "other",))
    assert sorted(directory.rglob("*")) == before
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
    ]
    assert [row[:2] for row in rows] == [
        *(["cnn gelu", "none"], ["cnn gelu", "hessian"]),
        *(["mlp gelu", "none"], ["mlp gelu", "hessian"]),
    ]
    # Each network's time is relative to its own.
    assert [row[head.index("time/step")] for row in rows] == ["1.00×", "4.50×", "1.00×", "5.00×"]
    by_auto = [row[head.index("AA ℓ∞ 0.1") :][:2] for row in rows]
    assert by_auto == [["-", "-"], ["-", "-"], ["50.0", "none"], ["50.0", "none"]]

    # A setting that came later had its default, one that is gone says nothing.
    for more in ({"precision": "float32"}, {"seed": 3}):
        store(tmp_path / "other", other | {"setup": small["setup"] | more}, {})
        report.main(directory, (tmp_path / "other",))
    store(tmp_path / "other", other | {"setup": small["setup"] | {"precision": "bfloat16"}}, {})
    with pytest.raises(SystemExit, match="different precision make no table: float32, bfloat16"):
        report.main(directory, (tmp_path / "other",))
    store(tmp_path / "other", other | {"setup": small["setup"] | {"warmup_epochs": 4}}, {})
    with pytest.raises(SystemExit, match="different warmup_epochs make no table: None, 4"):
        report.main(directory, (tmp_path / "other",))
    with pytest.raises(SystemExit, match="cnn gelu none-0 is in several of the comparisons"):
        report.main(directory, (directory,))
    store(tmp_path / "other", other | {"num_test": 99}, {})
    with pytest.raises(SystemExit, match="comparisons of different num_test make no table: 1234"):
        report.main(directory, (tmp_path / "other",))
    there.write_text(json.dumps(comparison()))
    with pytest.raises(SystemExit, match="a comparison for a joint table lacks setup"):
        report.main(directory, (directory,))
    there.write_text(json.dumps(other | {"auto": {"norms": {"linf": [0.1]}, "num_examples": 9}}))
    store(tmp_path / "other", other, {})
    with pytest.raises(SystemExit, match="comparisons of different AutoAttack make no table"):
        report.main(directory, (tmp_path / "other",))


def test_comparisons_of_one_network_join_at_the_radii_that_all_have(tmp_path, drawn, capsys):
    def part(name, method, norms, auto, seconds):
        balls = {"l2": {"0.5": 0.8, "1.0": 0.6}, "linf": {"0.1": 0.4}}
        robust = {norm: {f"{r:g}": balls[norm][str(r)] for r in radii} for norm, radii in norms}
        found = {
            norm: {str(r): {"robust": 0.5, "verdict": "trustworthy"} for r in radii}
            for norm, radii in auto
        }
        runs = [run(method, 0, robust=robust, auto=found, seconds_per_step=seconds)]
        told = {"norms": {norm: list(radii) for norm, radii in auto}, "num_examples": 500}
        content = comparison(runs) | {
            "norms": {norm: list(radii) for norm, radii in norms},
            "auto": told,
            "setup": {"model": "cnn"},
        }
        (tmp_path / name).mkdir()
        return store(tmp_path / name, content, {})

    both = [("l2", (1.0,)), ("linf", (0.1,))]
    headline = part("a", "none", [("l2", (0.5, 1.0)), ("linf", (0.1,))], both, 0.01)
    push = part("b", "hessian", [("l2", (1.0,))], [("l2", (1.0,))], 0.05)
    report.main(headline, (push,), cost=tmp_path / "cost.png")
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
    ]
    assert head[:6] == ["method", "strength", "clean", "ℓ₂ 1", "AA ℓ₂ 1", "masking"]
    assert [row[3] for row in rows] == ["60.0", "60.0"]
    (points,), told = drawn["frontier"]
    assert [point.label for point in points] == ["none", "hessian"]
    assert [float(point.cost[0]) for point in points] == [1, 5]
    assert (told["norm"], told["radius"]) == ("l2", 1.0)
    assert told["note"].startswith("Test images of digits; seed 0. Attack: AutoAttack")

    # What AutoAttack did not attack has no place in the figure.
    report.main(headline, (part("e", "gradient", both, [], 0.03),), cost=tmp_path / "cost.png")
    assert [point.label for point in drawn["frontier"][0][0]] == ["none"]
    other = part("f", "jacobian", both, both, 0.05)
    content = read_json(other / "comparison.json") | {"setup": {"model": "mlp"}}
    write_json(other / "comparison.json", content)
    with pytest.raises(SystemExit, match="a step of one network is no measure for another's"):
        report.main(headline, (other,), cost=tmp_path / "cost.png")

    with pytest.raises(SystemExit, match="no time of a step without a penalty"):
        report.main(push, (part("c", "jacobian", both, both, 0.05),), cost=tmp_path / "cost.png")
    with pytest.raises(SystemExit, match="comparisons without a radius in common"):
        report.main(push, (part("d", "jacobian", [("linf", (0.1,))], [], 0.05),))
    with pytest.raises(SystemExit, match="cost is of several comparisons: one has figures/cost"):
        report.main(push, cost=tmp_path / "cost.png")


def test_table_lines_are_markdown_of_one_width(directory):
    lines = table(read(directory)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert all(set(cell) <= set(":-") for cell in cells(directory)[1])


def test_one_seed_has_no_spread(tmp_path):
    store(tmp_path, comparison([run("none", 0)]), {})
    assert cells(tmp_path)[2][2:6] == ["90.0", "80.0", "60.0", "40.0"]
    report.main(tmp_path)
    assert "deviation" not in (tmp_path / "report.md").read_text()


def test_what_was_not_measured_is_a_dash(tmp_path):
    content = comparison([run("hessian", 0, gradient_norm_mean=None, hessian_norm_mean=None)])
    store(tmp_path, content, {})
    assert cells(tmp_path)[2][6:] == ["-", "-", "1"]
    untimed = [run("none", 0, seconds_per_step=None), run("hessian", 0)]
    assert "time" not in table(comparison(numbered_runs(untimed)))
    assert "time" not in explained(comparison(numbered_runs(untimed)))
    some = comparison(numbered_runs([run("none", 0), run("hessian", 0, seconds_per_step=None)]))
    assert [line.split("|")[-3].strip() for line in table(some).splitlines()[2:]] == ["1.00×", "-"]
    assert "time/step: seconds per training step over those of `none`." in explained(some)


def test_radii_match_as_numbers(tmp_path):
    """A radius of 1 is "1" for one writer and "1.0" for another."""
    robust = {"l2": {"0.50": 0.7, "1": 0.6}, "linf": {"1e-1": 0.5}}
    store(tmp_path, comparison([run("none", 0, robust=robust)]), {})
    assert cells(tmp_path)[2][3:6] == ["70.0", "60.0", "50.0"]


def test_settings_of_one_method_are_rows_of_their_own():
    runs = [
        run("finite-step", 0, strength=1.0, step=1.5),
        run("none", 0),
        run("finite-step", 0, strength=1.0, step=0.5),
        run("finite-step", 1, strength=1.0, step=1.5),
    ]
    methods = group(comparison(runs))
    assert [(method.label, len(method.runs)) for method in methods] == [
        ("finite-step (1, step 1.5)", 2),
        ("none", 1),
        ("finite-step (1, step 0.5)", 1),
    ]
    assert methods[0].style.color == methods[2].style.color
    assert methods[0].style.line != methods[2].style.line
    # In the table they stand together, the least first; figures keep their order.
    apgd = {"l2": {0.5: 0.5, 1.0: 0.5}, "linf": {0.1: 0.5}}
    content = comparison([one | {"apgd": apgd} for one in numbered_runs(runs)])
    for rows in (table(content).splitlines()[2:], apgd_table(content).splitlines()[2:]):
        assert [row.split("|")[2].strip() for row in rows] == ["1, step 0.5", "1, step 1.5", "-"]


def test_rows_of_one_method_go_by_options_then_strength():
    runs = [
        run("trades", 0, strength=1.0, options=["weight=3"]),
        run("fgsm", 0, strength=10.0),
        run("trades", 0, strength=0.2, options=["weight=3", "norm=linf"]),
        run("fgsm", 0, strength=2.0),
        run("trades", 0, strength=0.5, options=["weight=6"]),
    ]
    rows = table(comparison(numbered_runs(runs))).splitlines()[2:]
    assert [row.split("|")[2].strip() for row in rows] == [
        *("0.5, weight=6", "1, weight=3", "0.2, weight=3, norm=linf", "2", "10")
    ]


def test_a_figure_tells_what_is_not_usual_of_a_method():
    runs = [run("adversarial", 0, strength=1.5, options=["num_steps=3"]), run("trades", 0)]
    labels = [method.label for method in group(comparison(runs))]
    assert labels == ["adversarial (1.5, num_steps=3)", "trades"]


def numbered_runs(runs):
    """Return runs with accuracies keyed by numbers, as `read` leaves them."""
    return [
        one
        | {
            "robust": {
                norm: {float(radius): accuracy for radius, accuracy in known.items()}
                for norm, known in one["robust"].items()
            }
        }
        for one in runs
    ]


@pytest.fixture
def drawn(monkeypatch):
    """Catch what the figures are given."""
    calls = {}
    drawings = {
        figures: ("accuracy", "ranking", "histograms", "attacks"),
        surfaces: ("planes", "boundaries"),
        trends: ("frontier", "tradeoff", "trajectories"),
    }
    for module, names in drawings.items():
        for name in names:

            def catch(_, *data, name=name, **told):
                calls[name] = (data, told)

            monkeypatch.setattr(module, name, catch)
    return calls


@pytest.mark.usefixtures("drawn")
def test_report_tells_where_its_numbers_come_from(directory):
    report.main(directory)
    text = (directory / "report.md").read_text()
    for part in (
        "python -m experiments.compare --data digits",
        "0123abc",
        "jax 0.10.2, flax 0.12.8",
        "one processor",
        "1,234 test images of digits",
        "seeds 0, 1, 2",
        "PGD, 40 steps, losses cross-entropy and dlr",
        "sample standard deviation",
        "estimated from below",
        table(read(directory)),
    ):
        assert part in text
    for name in FIGURES:
        assert f"](figures/{name})" in text


def test_report_writes_all_figures_and_prints_the_table_and_can_be_repeated(directory, capsys):
    report.main(directory)
    first = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert {path.name for path in (directory / "figures").iterdir()} == set(FIGURES)
    for name in FIGURES:
        assert (directory / "figures" / name).read_bytes().startswith(b"\x89PNG")
    assert not list(directory.rglob("*.part"))
    assert capsys.readouterr().out.startswith(table(read(directory)))
    report.main(directory)
    assert first == {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


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
    shown = "Numbers 0 and 4 of the test images of digits, seed 0. Attacked: the first wrong point"
    assert f"{shown} of PGD, or that of the largest loss, of 40 steps in" in told["note"]


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
    assert "AutoAttack, standard version, on the first 500 images" in told["note"]
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


def test_without_any_landscape_there_is_what_the_comparison_tells(tmp_path):
    report.main(store(tmp_path, comparison(), {}))
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == ["accuracy.png", "cost.png"]


def without(content, key):
    return {name: value for name, value in content.items() if name != key}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no comparison: it has no comparison.json, which python -m experiments.compare"),
        ("{", "holds no JSON dictionary"),
        ([1], "holds no JSON dictionary"),
        (without(comparison(), "num_test"), "comparison.json lacks num_test"),
        (comparison([]), "holds no runs"),
        (comparison() | {"runs": 3}, "comparison.json is damaged .*: run the comparison again"),
        # Found by tests/fuzz.py.
        (comparison([run("none", 0, gradient_norm_mean="x")]), r"the gradient_norm_mean 'x' is no"),
        (comparison([run([], 0)]), r"are not all words"),
        (comparison([run("none", 0, clean="x")]), r"comparison.json is damaged \('x' is no acc"),
        (comparison() | {"norms": {}}, "holds no norms"),
        (comparison() | {"norms": {"l1": [1.0]}}, "the norm 'l1', expected one of l2, linf"),
        (comparison() | {"norms": {"l2": [3.0]}}, "has no accuracy under attack at l2 radius 3"),
        (comparison([run("none", 0), without(run("none", 1), "clean")]), "run 1 of .* lacks clean"),
    ],
)
def test_a_folder_that_is_no_comparison_is_told(content, message, tmp_path):
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(SystemExit, match=message) as error:
        report.main(tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report.md").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("attack_epsilon", 1.0, r"different radii of the attack: \[\(1.0,\), \(1.5,\)\]; the comm"),
        ("attack_order", np.inf, "different norms of the attack"),
        ("attack_steps", 5, "different steps of the attack"),
        ("surface_offsets", np.linspace(-2, 2, 5), "different planes"),
    ],
)
def test_a_figure_does_not_mix_settings(key, value, message, directory):
    other = landscape(1, **{key: np.array(value)})
    np.savez(directory / "none-1" / "landscape.npz", **other)
    with pytest.raises(SystemExit, match=message):
        report.main(directory)


def test_what_cannot_be_written_is_told(directory):
    (directory / "report.md").mkdir()
    with pytest.raises(SystemExit, match=r"error: .*report\.md"):
        report.main(directory)


def test_small_radii_are_written_in_255ths(tmp_path):
    radius = 2 / 255
    content = comparison([run("none", 0, robust={"linf": {repr(radius): 0.5}})])
    store(tmp_path, content | {"norms": {"linf": [radius]}}, {})
    assert cells(tmp_path)[0][3] == "ℓ∞ 2/255"


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "key", "images"])
def test_a_damaged_landscape_is_told(damage, directory):
    path = directory / "hessian-0" / "landscape.npz"
    whole = path.read_bytes()
    if damage == "images":
        np.savez(path, **landscape(shown=np.array([0, 4, 8])))
    elif damage == "key":
        np.savez(path, **without(landscape(), "curvature"))
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"no"}[damage])
    message = {
        "key": "lacks curvature",
        "images": "have different test images",
    }.get(damage, "landscape.npz is damaged")
    with pytest.raises(SystemExit, match=message):
        report.main(directory)


def test_command_line_teaches_and_refuses(tmp_path):
    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "experiments.report", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    helped = call("--help")
    assert helped.returncode == 0
    assert "python -m experiments.report runs/demo" in helped.stdout
    refused = call(str(tmp_path))
    assert refused.returncode == 1
    assert refused.stderr.strip().startswith("error: ")
    assert len(refused.stderr.strip().splitlines()) == 1


def test_a_joint_table_has_one_clock(tmp_path):
    """A plain step measured in turns is no measure for a training's own time per step."""

    def part(name, seconds, device="", commit="a", told=None):
        """Return what is read of a folder, with times measured in turns on a device."""
        runs = [run(name, 0, seconds_per_step=seconds, path=f"{name}/seed-0")]
        folder = tmp_path / f"{name} {device} {commit} {told}"
        setup = {"setup": {"model": "cnn", "activation": "gelu"}}
        write_json(folder / "comparison.json", comparison(runs) | setup)
        if device:
            told = (told or {}) | {
                "device": device,
                "commit": commit,
                "seconds": {name: {"median": seconds}},
            }
            write_json(folder / "step_times.json", told)
        return read(folder)

    def cells(*parts):
        head, _, *rows = [line.split("|") for line in table(joined(parts)).splitlines()]
        return [row[-3].strip() for row in rows] if head[-3].strip() == "time/step" else []

    plain, other = ("none", 0.01), ("jacobian", 0.06)
    assert cells(part(*plain), part(*other)) == ["1.00×", "6.00×"]
    assert cells(part(*plain, "one"), part(*other)) == ["1.00×", "-"]
    assert cells(part(*plain), part(*other, "one")) == []
    assert cells(part(*plain, "one"), part(*other, "two")) == ["1.00×", "-"]
    # One processor may have as many cores as another.
    for name, value in (("device_name", "another"), ("environment", {"OMP_NUM_THREADS": "1"})):
        there = part(*other, "one", told={name: value})
        assert cells(part(*plain, "one"), there) == ["1.00×", "-"]
    both = part(*plain, "one", "b"), part(*other, "one")
    assert cells(*both) == ["1.00×", "6.00×"]
    assert "measured in turns on one, commit a, b" in explained(joined(both))


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
    assert told["note"].endswith(" Not shown: 1 of less than 85.0 % clean.")
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
    assert ("Gray: strengths of methods that are behind" in told["note"]) == (count == 13)


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
