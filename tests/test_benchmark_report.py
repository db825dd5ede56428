"""The report of the benchmarks, from rows written by hand."""

from typing import Any

import pytest

from experiments.benchmarks import estimates, plots, report, targets
from experiments.benchmarks.steps import CHUNKED
from experiments.files import write_json
from tests.stored import columns


def test_steps_in_bfloat16_are_no_steps_in_float32():
    def row(step: str, seconds: float, **told: Any) -> dict[str, Any]:
        network = {"kind": "step", "model": "cnn", "activation": "gelu", "input_shape": [8, 8, 1]}
        times = dict.fromkeys(("median", "lower", "upper"), seconds)
        numbers = {"seconds": times, "plain_steps": seconds / 2, "operations": 10 * seconds}
        return {**network, "step": step, **numbers, "temporary_bytes": 1, **told}

    old = [row("none", 2.0), row("hessian", 8.0)]
    new = [row(one["step"], 3 * one["seconds"]["median"], num_classes=10) for one in old]
    half = [{**one, "precision": "bfloat16"} for one in new]
    settings = {"batch_size": 128}

    def shown(rows: list[dict[str, Any]]) -> str:
        return "\n".join(report._penalty_section({"settings": settings, "rows": rows}))

    assert "Batch 128, float32. Time" in shown(old)
    assert "### CNN, gelu, 8×8×1\n" in shown(old)
    assert "Batch 128, bfloat16. Time" in shown(half)
    both = shown([*new, *half])
    assert "Batch 128, float32 and bfloat16. Time" in both
    assert "### CNN, gelu, 8×8×1, 10 classes\n" in both
    assert "### CNN, gelu, 8×8×1, 10 classes, bfloat16\n" in both
    assert targets.measured([*old, *half]) == targets.measured(old)
    assert targets.measured(half) == []


def test_images_that_were_held_out_are_not_called_test_images():
    told = {"kind": "error", "data": "digits", "model": "mlp", "activation": "gelu", "epochs": 1}
    told |= {"method": "none", "estimate": estimates.DEFAULT}
    old = told | {"error": {"mean": 0.1, "percentile_95": 0.2}}

    def shown(rows: list[dict[str, Any]]) -> str:
        settings = {"batch_size": 128, "num_images": 16}
        return "\n".join(report._penalty_section({"settings": settings, "rows": rows}))

    assert "over the first 16 test images;" in shown([old])
    assert "over the first 16 held-out images;" in shown([old | {"images": "held-out"}])
    assert "over the first 16 test or held-out images;" in shown(
        [old, old | {"images": "held-out"}]
    )


def test_networks_of_one_name_have_columns_of_their_own(tmp_path):
    told = {"kind": "error", "data": "digits", "model": "mlp", "activation": "gelu", "epochs": 1}
    rows = [
        {**told, "method": "none", "estimate": estimates.DEFAULT, "weights": weights}
        | {"error": {"mean": mean, "percentile_95": mean}}
        for weights, mean in (("one", 0.01), ("two", 0.02))
    ]
    head, _, line = columns(report.estimate_table([], rows))
    name = "digits mlp gelu, none, 1 epoch"
    assert head[1:] == [f"{name}, one", f"{name}, two"]
    assert line[1:] == ["1.0 / 1.0", "2.0 / 2.0"]
    [alone, _, _] = columns(report.estimate_table([], rows[:1]))
    assert alone[1:] == [name]
    drawn = []

    def save(page, _):
        drawn.extend(axes.get_title() for axes in page.get_axes() if axes.get_visible())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", save)
        plots.accuracy(tmp_path / "estimates.png", rows)
    titles = [title for title in drawn if "epochs" in title]
    assert titles == [f"digits, mlp gelu\nnone, epochs: 1, {name}" for name in ("one", "two")]


def test_curves_look_as_in_the_legend(tmp_path, monkeypatch):
    told = {"kind": "error", "data": "digits", "model": "mlp", "activation": "gelu", "epochs": 1}
    rows = [
        {**told, "method": "none", "estimate": f"{solver}, {start}, {products}"}
        | {"error": {"mean": 0.1, "percentile_95": 0.2}}
        for solver in ("power", "Lanczos")
        for start in ("gradient", "random")
        for products in (3, 5)
    ]
    pages = []
    monkeypatch.setattr(plots, "save", lambda page, _: pages.append(page))
    plots.accuracy(tmp_path / "estimates.png", rows)

    def looks(lines):
        names = ("color", "marker", "linestyle", "fillstyle")
        return {tuple(getattr(line, f"get_{name}")() for name in names) for line in lines}

    _, body, footer = pages[0].subfigs
    [axes] = body.axes
    drawn = looks(line for line in axes.get_lines() if line.get_marker() != "None")
    assert len(drawn) == 4
    assert looks(footer.legends[0].get_lines()) == drawn


def test_targets_are_ratios_of_what_was_measured():
    def row(step: str, seconds: float, operations: float) -> dict[str, Any]:
        network = {"kind": "step", "model": "cnn", "activation": "gelu"}
        return {**network, "step": step, "seconds": {"median": seconds}, "operations": operations}

    rows = [row("none", 2.0, 10.0), row("hessian", 9.0, 48.0), {"kind": "error"}]
    assert targets.measured(rows) == [
        ["surrogate / plain, operations", "CNN, gelu", "≤ 5.0", "4.80"],
        ["surrogate / plain", "CNN, gelu", "≤ 7", "4.50"],
    ]
    # Some devices tell no memory.
    memory = [row(name, 1.0, 1.0) | {"temporary_bytes": None} for name in ("none", CHUNKED)]
    assert targets.measured(memory) == []
    both = [one | {"temporary_bytes": 6} for one in memory]
    assert targets.measured(both)[0][-1] == "1.00"


def test_a_report_names_the_device_that_its_results_name():
    result = {"device_name": "cpu-one", "settings": {"num_examples": 5, "repeats": 3}, "rows": []}
    told = dict.fromkeys(("command", "commit", "device"), "") | {"versions": {}, "environment": {}}
    assert report.text({"attack_cost": result | told}).startswith("# What it costs on cpu-one\n")


def test_no_results_no_report(tmp_path):
    with pytest.raises(ValueError, match="holds no results"):
        report.write(tmp_path)
    with pytest.raises(SystemExit, match=r"error: .*nowhere holds no results"):
        report.main(tmp_path / "nowhere")


def test_a_file_that_lacks_something_is_told(tmp_path):
    write_json(tmp_path / "scaling.json", {"rows": [], "settings": {}, "commit": "1"})
    with pytest.raises(SystemExit, match=r"error: .*scaling.json lacks command, device, device_n"):
        report.main(tmp_path)


def test_damaged_rows_are_told(tmp_path):
    told = dict.fromkeys(("command", "commit", "device", "device_name"), "one")
    told |= {"versions": {}, "environment": {}, "settings": {"batch_size": 2}}
    write_json(tmp_path / "penalty_cost.json", told | {"rows": [{"step": "none"}]})
    with pytest.raises(SystemExit, match=r"error: .* holds damaged results \(KeyError\('kind'\)\)"):
        report.main(tmp_path)
    assert not (tmp_path / "report.md").exists()


def test_times_without_a_plain_step_are_told(tmp_path):
    told = dict.fromkeys(("command", "commit", "device", "device_name"), "one")
    told |= {"versions": {}, "environment": {}, "settings": {"batch_size": 2}}
    step = {"kind": "step", "step": "hessian", "model": "mlp", "activation": "relu"}
    write_json(tmp_path / "penalty_cost.json", told | {"rows": [step | {"input_shape": [8]}]})
    with pytest.raises(SystemExit, match=r"error: .* holds damaged results"):
        report.main(tmp_path)


@pytest.mark.parametrize("name", ["comparison", "precision"])
def test_a_report_of_something_else_stays(tmp_path, name):
    write_json(tmp_path / f"{name}.json", {"rows": []})
    kept = tmp_path / "report.md"
    kept.write_text("of a comparison")
    with pytest.raises(SystemExit, match=r"error: .* holds no results of attack_cost, hvp_cost, "):
        report.main(tmp_path)
    assert kept.read_text() == "of a comparison"
