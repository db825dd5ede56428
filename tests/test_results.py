"""Every published number is in the committed results, and every result says where it is from."""

from pathlib import Path

import pytest

from experiments import crosscheck, parity
from experiments.files import read_json
from experiments.table import read, table

ROOT = Path(__file__).parents[1]
RESULTS = sorted(path.parent for path in ROOT.glob("experiments/results/*/comparison.json"))


def test_there_are_results_of_both_data_sets():
    assert {"mnist", "fashion_mnist"} <= {path.name for path in RESULTS}


@pytest.mark.parametrize("folder", RESULTS, ids=lambda path: path.name)
def test_a_result_says_where_it_is_from(folder):
    comparison = read(folder)
    for key in ("command", "commit", "versions", "device"):
        assert comparison[key], key
    assert "with changes" not in comparison["commit"]
    assert "/" not in comparison["command"].replace("runs/", "")


@pytest.mark.parametrize("folder", RESULTS, ids=lambda path: path.name)
def test_published_tables_are_those_of_the_results(folder):
    published = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    assert table(read(folder)) in published
    assert table(read(folder)) in (folder / "report.md").read_text(encoding="utf-8")


def test_the_readme_shows_the_table_of_mnist():
    published = (ROOT / "README.md").read_text(encoding="utf-8")
    assert table(read(ROOT / "experiments" / "results" / "mnist")) in published


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
