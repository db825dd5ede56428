"""Every published number is in the committed results, and every result says where it is from."""

from pathlib import Path

import pytest

from experiments import crosscheck, parity, theory
from experiments.benchmarks import precision, records, report
from experiments.files import read_json
from experiments.joining import joined
from experiments.plans import PLANS
from experiments.reading import read
from experiments.study import HEADLINE, tuning, winners
from experiments.table import group, table
from experiments.words import about

ROOT = Path(__file__).parents[1]
DEVICES = sorted(path for path in records.RESULTS.iterdir() if path.is_dir())
# The device of the README's table.
CPU = records.RESULTS / "cpu-amd-epyc-1-core"
RESULTS = sorted(path.parent for path in ROOT.glob("experiments/results/*/comparison.json"))
STUDY = sorted(path.parent for path in ROOT.glob("experiments/results/study/*/*/comparison.json"))


def test_there_are_results_of_both_data_sets():
    assert {"mnist", "fashion_mnist"} <= {path.name for path in RESULTS}


@pytest.mark.parametrize("folder", RESULTS + STUDY, ids=lambda path: path.name)
def test_a_result_says_where_it_is_from(folder):
    comparison = read(folder)
    for key in ("command", "commit", "versions", "device"):
        assert comparison[key], key
    assert "with changes" not in comparison["commit"]
    places = [word for word in comparison["command"].split() if "/" in word]
    assert all(place.startswith("runs/") for place in places)


@pytest.mark.parametrize("folder", RESULTS + STUDY, ids=lambda path: path.name)
def test_a_report_says_which_images_and_no_two_of_its_methods_look_alike(folder):
    comparison = read(folder)
    assert about(comparison) in (folder / "report.md").read_text(encoding="utf-8")
    methods = group(comparison)
    if len(methods) <= 24:
        assert len({method.style for method in methods}) == len(methods)


@pytest.mark.parametrize("folder", RESULTS, ids=lambda path: path.name)
def test_published_tables_are_those_of_the_results(folder):
    published = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    assert table(read(folder)) in published
    assert table(read(folder)) in (folder / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", STUDY, ids=lambda path: f"{path.parent.name} {path.name}")
def test_tables_of_the_study_are_those_of_the_results(folder):
    found, page = read(folder), (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    # Of the candidates the page has the headline's alone, and of the others what was chosen.
    if folder.name == "tuning-cnn":
        candidates = PLANS[folder.parent.name].candidates
        methods = {row for row in HEADLINE if row in candidates}
        shown = [run for run in found["runs"] if run["method"] in methods and not run["options"]]
        assert len(shown) == sum(len(candidates[row]) for row in methods)
        assert table({**found, "runs": shown}) in page
    elif folder.name != "tuning-mlp":
        assert table(found) in page
    assert table(found) in (folder / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("data", "push"), [("mnist", "push-test"), ("fashion_mnist", "push-1-test")]
)
def test_the_study_opens_with_one_table_of_a_data_set(data, push):
    folder = ROOT / "experiments" / "results" / "study" / data
    parts = ("headline", push, "parts-test", "cure", "trades")
    whole = joined([read(folder / part) for part in parts])
    published = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    assert table(whole, brief=True) in published.split("\n## ")[1]


@pytest.mark.parametrize("network", ["mlp", "cnn", "relu", "softplus"])
@pytest.mark.parametrize("data", ["mnist", "fashion_mnist"])
def test_the_study_trained_with_the_weights_that_it_chose(data, network):
    folder, plan = ROOT / "experiments" / "results" / "study" / data, PLANS[data]
    chosen = winners(read(folder / f"tuning-{network}"), tuning(data, plan, network), plan)
    parts = {"cnn": ["headline", "wider"]}.get(network, [network])
    trained = [
        {Path(run["path"]).parent for run in read(folder / part)["runs"]} - {Path("none")}
        for part in parts
    ]
    assert len(trained[0]) == (len(plan.candidates) if network == "mlp" else len(HEADLINE) - 1)
    assert set.union(*trained) <= {Path(run["path"]).parent for run in chosen["runs"]}


def test_the_study_tells_what_autoattack_found():
    cells = read_json(ROOT / "experiments" / "results" / "study" / "autoattack.json")["cells"]
    published = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    for cell in cells:
        assert "with changes" not in cell["commit"]
        start = f"| {cell['data']} | `{cell['network']}` |"
        [row] = [line for line in published.splitlines() if line.startswith(start)]
        verdict = cell["verdict"].split(":")[0]
        assert row.endswith(f"| {100 * cell['robust']:.1f} | {verdict} |")


@pytest.mark.parametrize("name", ["cost", "cost-batch-256"])
def test_the_study_tells_what_its_steps_cost(name):
    results = read_json(ROOT / "experiments" / "results" / "study" / f"{name}.json")
    published = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    rows = {row["step"]: row for row in results["rows"]}
    plain, adversarial = rows["none"], rows["adversarial"]
    for step, row in rows.items():
        operations, seconds = (
            [_value(row, key) / _value(other, key) for other in (plain, adversarial)]
            for key in ("operations", "seconds")
        )
        told = [operations[0], seconds[0], operations[1], seconds[1]]
        megabytes = round(row["temporary_bytes"] / 1e6)
        line = f"| `{step}` | {' | '.join(f'{ratio:.2f}' for ratio in told)} | {megabytes} |"
        assert line in published
    assert not results["dirty"]
    assert {"command", "commit", "versions", "device", "environment"} <= set(results)


@pytest.mark.parametrize(("data", "name"), [("mnist", "MNIST"), ("fashion_mnist", "Fashion-MNIST")])
def test_the_study_tells_how_the_estimates_of_the_distance_did(data, name):
    folder = ROOT / "experiments" / "results" / "study" / data
    cells = read_json(folder / "theory.json")["cells"]
    published = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    assert theory.table(cells) in published
    prose = " ".join(published.split())
    trained = [cell for cell in cells if cell["method"] != "none"]
    told = f"{theory.across(cells):.2f} on {name} ({theory.across(trained):.2f} without `none`)"
    assert told.replace("-0.", "−0.") in prose
    assert f"the {len(cells)} networks of a data set" in prose
    assert f"results/study/{data}/theory.png" in published
    assert (folder / "theory.png").is_file()
    for cell in cells:
        assert "with changes" not in cell["commit"]
        assert {"command", "versions", "device"} <= set(cell)


def test_the_readme_shows_the_headline_of_the_study_in_a_few_lines():
    published = (ROOT / "README.md").read_text(encoding="utf-8")
    [results] = [part for part in published.split("\n## ") if part.startswith("Results\n")]
    for data in ("mnist", "fashion_mnist"):
        folder = ROOT / "experiments" / "results" / "study" / data / "headline"
        assert table(read(folder), brief=True) in results
    assert len([line for line in results.splitlines() if line]) <= 25


@pytest.mark.parametrize(
    ("name", "shown"), [("parity", parity.table), ("crosscheck", crosscheck.table)]
)
def test_published_comparisons_with_other_packages_are_those_of_the_results(name, shown):
    cells = read_json(ROOT / "experiments" / "results" / "autoattack" / f"{name}.json")["cells"]
    assert shown(cells) in (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    for cell in cells:
        assert "with changes" not in cell["commit"]
        assert {"command", "versions", "device"} <= set(cell)


def test_published_verdicts_are_those_of_the_results():
    cells = read_json(ROOT / "experiments" / "results" / "autoattack" / "verdicts.json")["cells"]
    published = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    for cell in cells:
        assert f"{100 * cell['robust']:.1f} | {cell['verdict']} |" in published


def test_published_attacks_on_lazy_trainings_are_those_of_the_results():
    cells = read_json(ROOT / "experiments" / "results" / "autoattack" / "lazy.json")["cells"]
    published = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    for data, network in {(cell["data"], cell["network"]) for cell in cells}:
        found = [100 * c["robust"] for c in cells if (c["data"], c["network"]) == (data, network)]
        told = ", ".join(f"{accuracy:.1f}" for accuracy in found)
        assert f"| {data} | {network} | {told} | {sum(found) / len(found):.1f} |" in published
    for cell in cells:
        assert "with changes" not in cell["commit"] + cell["training_commit"]


def test_published_effects_of_bfloat16_are_those_of_the_results():
    results = read_json(ROOT / "experiments" / "results" / "bfloat16" / "precision.json")
    published = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    for table_ in precision.table(results["rows"]).split("\n\n"):
        assert table_ in published
    assert not results["dirty"]
    assert {"command", "commit", "versions", "device", "environment"} <= set(results)


@pytest.mark.parametrize("folder", DEVICES, ids=lambda path: path.name)
def test_reports_of_benchmarks_are_those_of_the_measurements(folder):
    results = report.read(folder)
    assert (folder / "report.md").read_text(encoding="utf-8") == report.text(results)
    for content in results.values():
        assert not content["dirty"]
        assert {"command", "commit", "versions", "device", "environment"} <= set(content)
        assert content["device_name"] == folder.name


# A row of the README's table by the step that it is about.
CHOICES = {
    "`input_gradient_norm`": "input_gradient_norm",
    "`second_order(…, λ, 0)`": "gradient",
    "`second_order`": "hessian",
    "`second_order(…, solver=None)`": "hessian: none, gradient, 0",
    "`second_order(…, parts=4)`": "hessian, parts=4",
    "`hessian_operator_norm`": "hessian_operator_norm",
    "`finite_step_operator_norm`": "finite_step_operator_norm",
    "`curvature_along_gradient` (CURE)": "curvature_along_gradient",
    "`gauss_newton_operator_norm`": "gauss_newton_operator_norm",
    "`jacobian_squared_frobenius_norm`": "jacobian_squared_frobenius_norm",
    "`jacobian_operator_norm`": "jacobian_operator_norm",
    "`hessian_squared_frobenius_norm`": "hessian_squared_frobenius_norm",
    "PGD-10 training": "adversarial",
}


@pytest.mark.parametrize("label", CHOICES)
def test_the_costs_of_the_readme_are_measured(label):
    rows = read_json(CPU / "penalty_cost.json")["rows"]
    found = {(r["step"], r["model"], r["activation"]): r for r in rows if r["kind"] == "step"}

    def ratio(key: str, activation: str) -> str:
        row, plain = (found[name, "cnn", activation] for name in (CHOICES[label], "none"))
        return f"{_value(row, key) / _value(plain, key):.1f}"

    def ratios(key: str) -> str:
        return " / ".join(ratio(key, activation) for activation in ("gelu", "relu"))

    published = (ROOT / "README.md").read_text(encoding="utf-8")
    [line] = [line for line in published.splitlines() if line.startswith(f"| {label} |")]
    assert line.split(" | ")[2:4] == [ratios("operations"), ratios("seconds")]


def _value(row, key: str) -> float:
    return row[key]["median"] if key == "seconds" else row[key]
