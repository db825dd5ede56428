"""The report of a comparison, from files with numbers made by hand."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import report
from experiments.files import read_json, write_json
from experiments.reading import read
from experiments.table import table
from tests.stored import comparison, landscape, run, store, without

ROOT = Path(__file__).parents[1]
FIGURES = [
    *("accuracy.png", "cost.png", "norms.png", "planes.png", "boundaries.png", "attacks.png"),
]


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
        content["attack"] |= {"radii": "from the largest"}
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

    # What withstood a larger radius was not attacked again at the smaller ones.
    capsys.readouterr()
    report.main(headline, (part("g", "fgsm", [("l2", (0.5,))], [("l2", (1.0,))], 0.02),))
    assert capsys.readouterr().out.startswith("| method | strength | clean | AA ℓ₂ 1 |")

    # What AutoAttack did not attack has no place in the figure.
    report.main(headline, (part("e", "gradient", both, [], 0.03),), cost=tmp_path / "cost.png")
    assert [point.label for point in drawn["frontier"][0][0]] == ["none"]
    other = part("f", "jacobian", both, both, 0.05)
    content = read_json(other / "comparison.json") | {"setup": {"model": "mlp"}}
    write_json(other / "comparison.json", content)
    with pytest.raises(SystemExit, match="a step of one network cannot measure another's"):
        report.main(headline, (other,), cost=tmp_path / "cost.png")

    with pytest.raises(SystemExit, match="no step without a penalty was timed"):
        report.main(push, (part("c", "jacobian", both, both, 0.05),), cost=tmp_path / "cost.png")
    with pytest.raises(SystemExit, match="comparisons without a radius attacked alike"):
        report.main(push, (part("d", "jacobian", [("linf", (0.1,))], [], 0.05),))
    with pytest.raises(SystemExit, match="cost needs several comparisons: one has figures/cost"):
        report.main(push, cost=tmp_path / "cost.png")


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


def test_a_report_without_its_figures_is_not_written(directory):
    content = read(directory)
    assert not report.is_written(directory, content)
    report.main(directory)
    assert report.is_written(directory, content)
    (directory / "figures" / "accuracy.png").unlink()
    assert not report.is_written(directory, content)


def test_a_report_older_than_what_it_shows_is_not_written(directory):
    content = read(directory)
    report.main(directory)
    path = directory / "none-1" / "landscape.npz"
    os.utime(path, (time.time() + 9, time.time() + 9))
    assert not report.is_written(directory, content)


def test_figures_of_runs_that_are_gone_are_kept(directory, monkeypatch):
    report.main(directory)
    before = (directory / "report.md").read_text()
    for path in directory.glob("*/landscape.npz"):
        path.unlink()
    report.main(directory)
    after = (directory / "report.md").read_text()
    told = "Drawn earlier, from landscape.npz of the runs, which are gone: norms, planes, boundarie"
    assert told in after
    links = [[x for x in text.splitlines() if x.startswith("![")] for text in (before, after)]
    assert links[0] == links[1]
    assert len(links[0]) == len(FIGURES)
    assert report.is_written(directory, read(directory))
    (directory / "figures" / "planes.png").unlink()
    report.main(directory)
    assert "gone: norms, boundaries, attacks." in (directory / "report.md").read_text()
    monkeypatch.setattr(report, "MOST_METHODS", 1)
    report.main(directory)
    assert "No figures of each: 2 methods" in (directory / "report.md").read_text()


def test_without_any_landscape_there_is_what_the_comparison_tells(tmp_path):
    report.main(store(tmp_path, comparison(), {}))
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == ["accuracy.png", "cost.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a comparison: it has no comparison.json, which python -m experiments."),
        ("{", "holds no JSON dictionary"),
        ([1], "holds no JSON dictionary"),
        (without(comparison(), "num_test"), "comparison.json lacks num_test"),
        (comparison([]), "holds no runs"),
        (
            comparison() | {"versions": [1]},
            r"is damaged \(versions must be of type dict, got \[1\]\)",
        ),
        (
            comparison() | {"attack": "PGD"},
            r"is damaged \(attack must be of type dict, got 'PGD'\)",
        ),
        (comparison() | {"failed": [1]}, r"is damaged \(failed must be of type dict, got \[1\]\)"),
        (
            comparison() | {"num_test": "many"},
            r"is damaged \(num_test must be of type int, got 'many'\)",
        ),
        (
            comparison([run("none", 0) | {"seed": None}]),
            r"is damaged \(the seed None is not a whole number\)",
        ),
        (comparison() | {"runs": 3}, "comparison.json is damaged .*: restore it, or move it"),
        (comparison() | {"command": None}, r"command must be of type str, got None"),
        (comparison() | {"versions": {"jax": 1}}, r"jax of versions must be of type str, got 1"),
        (comparison() | {"failed": {"a": []}}, r"a of failed must be of type str, got \[\]"),
        (comparison() | {"setup": {"model": 1}}, r"model of setup must be of type str, got 1"),
        (comparison() | {"norms": {"l2": 1}}, r"radii of l2 must be of type list, got 1"),
        (comparison() | {"norms": {"l2": [{}]}}, r"a radius of l2 must be .* float \| int, got {}"),
        (comparison() | {"auto": {"norms": 1}}, r"norms of auto must be of type dict, got 1"),
        (comparison() | {"auto": {"norms": {"l2": [1]}}}, r"AutoAttack's part .* lacks num_ex"),
        # Found by tests/fuzz.py.
        (comparison([run("none", 0, gradient_norm_mean="x")]), r"the gradient_norm_mean 'x' is no"),
        (comparison([run([], 0)]), r"are not all words"),
        (comparison([run("none", 0, clean="x")]), r"comparison.json is damaged \('x' is not an"),
        (comparison() | {"norms": {}}, "holds no norms"),
        (
            comparison() | {"norms": {"l1": [1.0]}},
            r"radii of the norm 'l1' are \[1.0\], expected",
        ),
        (
            comparison() | {"norms": {"l2": []}},
            r"radii of the norm 'l2' are \[\], expected some",
        ),
        (
            comparison([run("none", 0, clean=1.5)]),
            r"comparison.json is damaged \(1.5 is not an",
        ),
        (
            comparison([run("none", 0, robust={"l2": {"x": 0.5}})]),
            r"comparison.json is damaged \(could not convert string to float: 'x'\): restore it",
        ),
        (comparison([run("none", 0, options="abc")]), r"options must be of type list, got 'abc'"),
        (comparison([run("none", 0, network=[])]), r"are not all words"),
        (
            comparison([run("none", 0, trajectory={"step": [1], "test_gradient_norm": []})]),
            r"\{'step': \[1\], 'test_gradient_norm': \[\]\} is not a trajectory",
        ),
        (comparison([run("none", 0, trajectory=3)]), r"3 is not a trajectory"),
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


def test_a_terminal_without_greek_letters_gets_the_rest(directory):
    told = subprocess.run(
        [sys.executable, "-m", "experiments.report", str(directory)],
        cwd=ROOT, capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    ).stdout.decode("ascii")  # fmt: skip
    assert r" \u2113\u2082 0.5 |" in told
    assert "| hessian | 1.5 " in told


def test_damaged_step_times_are_told(directory):
    for damage, told in (
        ({"seconds": {".": 1}}, "a time of .* lacks median"),
        ({"seconds": {".": {"median": "x"}}}, "a median must be of type .*, got 'x'"),
        ({"commit": 1}, "commit must be of type str, got 1"),
    ):
        content = {"seconds": {}, "device": "", "commit": "", **damage}
        (directory / "step_times.json").write_text(json.dumps(content))
        remedy = "restore it, or move it away and measure the times again"
        with pytest.raises(SystemExit, match=rf"{told}.*: {remedy}") as stopped:
            report.main(directory)
        assert str(directory / "step_times.json") in str(stopped.value)


def test_what_cannot_be_written_is_told(directory):
    (directory / "report.md").mkdir()
    with pytest.raises(SystemExit, match=r"error: .*report\.md"):
        report.main(directory)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "key", "images"])
def test_a_damaged_landscape_is_told_and_left_out(damage, directory, drawn, capsys):
    path = directory / "hessian-0" / "landscape.npz"
    whole = path.read_bytes()
    if damage == "images":
        np.savez(path, **landscape(shown=np.array([0, 4, 8])))
    elif damage == "key":
        np.savez(path, **without(landscape(), "curvature"))
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"no"}[damage])
    message = {
        "key": "lacks curvature, so it is not drawn",
        "images": "is not drawn: its test images are .*, those of most runs .*",
    }.get(damage, "landscape.npz is damaged .*, so it is not drawn")
    report.main(directory)
    found = capsys.readouterr()
    [told] = found.err.splitlines()
    assert re.search(f"{message}.*evaluate the run", told)
    assert str(path) in told
    assert "| hessian " in found.out
    (clouds,), _ = drawn["histograms"]
    assert [cloud.curvature.size for cloud in clouds] == [60, 20]


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
