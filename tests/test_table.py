"""The tables of a comparison, from files with numbers made by hand."""

import json

import pytest

from experiments import report
from experiments.files import write_json
from experiments.joining import joined
from experiments.reading import read
from experiments.table import apgd_table, group, table
from experiments.words import explained
from tests.stored import cells, columns, comparison, numbered_runs, run, store


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
    head, _, first, _ = columns(table(read(directory), brief=True))
    assert head == ["method", "strength", "clean", "AA ℓ∞ 0.1", "masking", "time/step", "seeds"]
    assert first == ["none", "-", "90.5 ± 0.7", "30.0 ± 7.1", "1 of 2", "1.00×", "2"]
    del runs[1]["auto"]["linf"]["0.1"]["verdict"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"AutoAttack's part of run 1 .* lacks verdict"):
        read(directory)
    runs[1]["auto"]["linf"]["0.1"]["verdict"] = "trustworthy"
    del runs[2]["auto"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"run 2 .* no accuracy under AutoAttack at linf"):
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

    # Of AutoAttack on some of the seeds alone, it is told.
    seeds = [one | {"seed": 1, "path": f"{one['method']}-1"} for one in runs]
    (tmp_path / "third").mkdir()
    store(tmp_path / "third", comparison(seeds) | {"setup": small["setup"]}, {})
    report.main(directory, (tmp_path / "other", tmp_path / "third"))
    head, _, *rows = columns(capsys.readouterr().out)
    by_auto = [row[head.index("AA ℓ∞ 0.1")] for row in rows]
    assert by_auto == ["-", "-", "50.0 (1 of 2)", "50.0 (1 of 2)"]

    # A setting that came later had its default, one that is gone says nothing.
    for more in ({"precision": "float32"}, {"seed": 3}):
        store(tmp_path / "other", other | {"setup": small["setup"] | more}, {})
        report.main(directory, (tmp_path / "other",))
    store(tmp_path / "other", other | {"setup": small["setup"] | {"precision": "bfloat16"}}, {})
    with pytest.raises(
        SystemExit, match="different precision cannot share a table: float32, bfloat16"
    ):
        report.main(directory, (tmp_path / "other",))
    store(tmp_path / "other", other | {"setup": small["setup"] | {"warmup_epochs": 4}}, {})
    with pytest.raises(SystemExit, match="different warmup_epochs cannot share a table: None, 4"):
        report.main(directory, (tmp_path / "other",))
    with pytest.raises(SystemExit, match="cnn gelu none-0 is in several of the comparisons"):
        report.main(directory, (directory,))
    store(tmp_path / "other", other | {"num_test": 99}, {})
    with pytest.raises(
        SystemExit, match="comparisons of different num_test cannot share a table: 1234"
    ):
        report.main(directory, (tmp_path / "other",))
    there.write_text(json.dumps(comparison()))
    with pytest.raises(SystemExit, match="a comparison for a joint table lacks setup"):
        report.main(directory, (directory,))
    there.write_text(json.dumps(other | {"auto": {"norms": {"linf": [0.1]}, "num_examples": 9}}))
    store(tmp_path / "other", other, {})
    with pytest.raises(
        SystemExit, match="comparisons of different AutoAttack cannot share a table"
    ):
        report.main(directory, (tmp_path / "other",))


def test_a_joint_table_tells_only_of_balls_that_all_were_attacked_in():
    def part(method, *radii):
        """Return a comparison under AutoAttack, with a sign of masking at 0.2 alone."""
        found = {r: {"robust": 0.5, "verdict": "masking" if r == 0.2 else "none"} for r in radii}
        [entry] = numbered_runs([run(method, 0, auto={"l2": found})])
        auto = {"norms": {"l2": list(radii)}, "num_examples": 500}
        return comparison([entry]) | {"auto": auto, "setup": {}}

    head, _, *rows = columns(table(joined([part("none", 0.1, 0.2), part("hessian", 0.1)])))
    place = head.index("AA ℓ₂ 0.1")
    assert head[place + 1] == "masking"
    assert [row[place : place + 2] for row in rows] == [["50.0", "none"]] * 2
    # What is broken at a radius counts as broken at the larger ones.
    with pytest.raises(ValueError, match="different AutoAttack cannot share a table"):
        joined([part("none", 0.1, 0.2), part("hessian", 0.2)])


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
    assert "cross-entropy, then at up to nine targets, the first 1,000 images" in text
    *_, row = [line for line in text.splitlines() if line.startswith("|")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["none", "-", "75.0 ± 7.1", "50.0 ± 0.0", "25.0 ± 0.0"]
    del runs[1]["apgd"]["linf"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"run 1 .* no accuracy under APGD at linf radius 0\.1"):
        read(directory)


def test_small_radii_are_written_in_255ths(tmp_path):
    radius = 2 / 255
    content = comparison([run("none", 0, robust={"linf": {repr(radius): 0.5}})])
    store(tmp_path, content | {"norms": {"linf": [radius]}}, {})
    assert cells(tmp_path)[0][3] == "ℓ∞ 2/255"


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
    elsewhere = part(*other) | {"device": "another processor"}
    assert cells(part(*plain), elsewhere) == ["1.00×", "-"]
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
