"""The benchmark of optimizer steps: what it measures is right, and what it writes is whole."""

import shlex
import sys
from functools import partial
from pathlib import Path

import pytest

from experiments import runs
from experiments.benchmarks import (
    estimates,
    penalty_cost,
    records,
    reference,
    report,
    steps,
)
from experiments.config import Config
from experiments.data import load
from experiments.files import read_json
from experiments.train import train
from tests.stored import columns
from tests.test_records import clean
from tests.twins import twin

pytestmark = pytest.mark.usefixtures("counted")

DOUBLE = "gradient, double backpropagation"


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    config = Config(model="mlp", method="none", epochs=1).resolved()
    train(config, load("digits"), folder / "run")
    settings = penalty_cost.Settings(8, 2, 10, quick=True, reference=True)
    with pytest.MonkeyPatch.context() as patched:
        # Each step compiles for seconds.
        patched.setattr(penalty_cost, "_QUICK_STEPS", ("none", "hessian", "PyTorch: hessian"))
        for _ in range(2):
            penalty_cost.measure([folder / "run"], settings, folder / "penalty_cost.json", None)
    return folder


def test_named_steps_are_measured_alone(measured, tmp_path):
    settings = penalty_cost.Settings(
        8, 2, 10, quick=False, reference=False, steps=("hessian-inside", "adversarial")
    )
    penalty_cost.measure([measured / "run"], settings, tmp_path / "cost.json", None)
    rows = read_json(tmp_path / "cost.json")["rows"]
    assert [row["step"] for row in rows] == ["none", "hessian-inside", "adversarial"]
    assert {row["kind"] for row in rows} == {"step"}
    plain, inside, adversarial = (row["operations"] for row in rows)
    assert 3 * plain < inside < adversarial < 12 * plain


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("name", ["newton", "newton, parts=4", "PyTorch: newton"])
def test_unknown_names_of_steps(reference, name, monkeypatch):
    monkeypatch.setattr(penalty_cost, "train", lambda *_: pytest.fail("trained a network first"))
    with pytest.raises(SystemExit) as stopped:
        penalty_cost.main(steps=("none", name), reference=reference)
    message, there = str(stopped.value.code).split(": expected some of ")
    assert message == f"error: unknown steps {shlex.quote(name)}"
    told = shlex.split(there)
    # A name with commas and spaces is one word.
    assert told[:5] == ["none", "gradient", DOUBLE, "hessian", "hessian, every=5"]
    assert ("PyTorch: hessian, compiled" in told) == (reference and name.startswith("PyTorch"))


def test_the_steps_that_are_told_are_those_that_can_be_timed(run):
    loaded = runs.load(run)
    settings = penalty_cost.Settings(8, 2, 10, quick=False, reference=True)
    own, of_pytorch = (
        [name for name in settings.known if name.startswith("PyTorch: ") == theirs]
        for theirs in (False, True)
    )
    assert own == [*steps.objectives(loaded.apply, 8), steps.ACCUMULATED]
    names = (*reference.STEPS, "hessian, compiled")
    assert of_pytorch == [f"PyTorch: {name}" for name in names]


def test_without_pytorch_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(penalty_cost, "train", lambda *_: pytest.fail("trained a network first"))
    with pytest.raises(SystemExit) as stopped:
        penalty_cost.main(quick=True)
    assert stopped.value.code == (
        "error: PyTorch's forms need the extra: pip install '.[reference]', or give --no-reference"
    )
    settings = penalty_cost.Settings(8, 2, 10, quick=True, reference=False)
    settings.check()
    settings._replace(reference=True, steps=("hessian",)).check()


def test_what_compiles_nothing_of_pytorch_is_left_out(measured, tmp_path, monkeypatch, capsys):
    def refuse(_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(reference.Step, "compile", refuse)
    names = ("PyTorch: none", "PyTorch: hessian, compiled")
    settings = penalty_cost.Settings(8, 2, 10, quick=False, reference=True, steps=names)
    penalty_cost.measure([measured / "run"], settings, tmp_path / "cost.json", None)
    rows = read_json(tmp_path / "cost.json")["rows"]
    assert [row["step"] for row in rows] == ["none", "PyTorch: none"]
    assert "without PyTorch's compiled form: no compiler" in capsys.readouterr().err


@pytest.fixture
def noted(monkeypatch):
    """Note what is measured instead of measuring it."""
    clean(monkeypatch)
    seen = []
    for name in ("_step_rows", "_error_rows"):
        row = {"step": "none"} if name == "_step_rows" else {"estimate": estimates.DEFAULT}

        def note(run, *_, name=name, row=row):
            seen.append((name, run.path.name))
            return [row]

        monkeypatch.setattr(penalty_cost, name, note)
    return seen


def test_a_network_is_known_by_its_weights_and_a_step_by_its_precision(run, tmp_path, noted):
    doubled = twin(run, tmp_path / "doubled", scale=2.0)
    half = twin(run, tmp_path / "half", precision="bfloat16", scale=3.0)
    settings = penalty_cost.Settings(8, 2, 10, quick=True, reference=False)
    for _ in range(2):
        penalty_cost.measure([run, doubled, half], settings, tmp_path / "cost.json", None)
    assert sorted(noted) == [
        *(("_error_rows", name) for name in ("doubled", "half", "run")),
        *(("_step_rows", name) for name in ("half", "run")),
    ]
    rows = read_json(tmp_path / "cost.json")["rows"]
    assert {row["num_classes"] for row in rows if row["kind"] == "step"} == {10}


def test_pytorch_does_not_stand_beside_bfloat16(run, tmp_path, monkeypatch, capsys):
    half = twin(run, tmp_path / "half", precision="bfloat16")
    monkeypatch.setattr(penalty_cost, "_reference_calls", lambda *_: pytest.fail("made"))
    monkeypatch.setattr(penalty_cost, "measure_steps", lambda *_, **__: [{"step": "none"}])
    names = ("PyTorch: hessian", "none")
    settings = penalty_cost.Settings(8, 2, 10, quick=False, reference=True, steps=names)
    penalty_cost.measure([half], settings, tmp_path / "cost.json", None)
    assert "without PyTorch's forms, which have no bfloat16" in capsys.readouterr().err


def test_more_images_than_there_are_are_refused_before_any_step(run, tmp_path, noted):
    settings = penalty_cost.Settings(8, 451, 10, quick=False, reference=False)
    path = tmp_path / "cost.json"
    with pytest.raises(ValueError, match=r"num_images must be from 1 to 450, .* got 451"):
        penalty_cost.measure([run], settings, path, None)
    assert noted == []
    # Steps alone need none.
    penalty_cost.measure([run], settings._replace(steps=("none",)), path, None)
    assert noted == [("_step_rows", "run")]


def test_every_step_and_estimate_is_written(measured):
    rows = read_json(measured / "penalty_cost.json")["rows"]
    by_step = {row["step"]: row for row in rows if row["kind"] == "step"}
    assert by_step["none"]["plain_steps"] == 1
    assert set(by_step) == {"none", "hessian", "PyTorch: hessian"}
    for row in by_step.values():
        seconds = row["seconds"]
        assert 0 < seconds["lower"] <= seconds["median"] <= seconds["upper"]
        assert seconds["repeats"] == 10
    assert 2 < by_step["hessian"]["operations"] / by_step["none"]["operations"] < 8
    found = {row["estimate"]: row["error"]["mean"] for row in rows if row["kind"] == "error"}
    assert {row["images"] for row in rows if row["kind"] == "error"} == {"test"}
    assert 0 <= found["Lanczos, gradient, 3"] < found[estimates.DEFAULT] < 1


def test_the_report_is_made_of_the_results_alone(measured):
    written = report.write(measured)
    text = written[0].read_text(encoding="utf-8")
    assert text == report.text(report.read(measured))
    assert {path.name for path in written} == {"report.md", "estimates.png"}
    rows = read_json(measured / "penalty_cost.json")["rows"]
    [hessian] = [row for row in rows if row.get("step") == "hessian"]
    milliseconds = f"{1e3 * hessian['seconds']['median']:.1f}"
    assert ["hessian", milliseconds] in [row[:2] for row in columns(text)]
    assert "digits mlp gelu, none, 1 epoch" in text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (partial(penalty_cost.main), 96),
        (partial(penalty_cost.main, quick=True), 16),
        (partial(penalty_cost.main, quick=True, num_images=5), 5),
    ],
)
def test_given_images_go_before_those_of_a_quick_run(monkeypatch, given, expected):
    images = []
    monkeypatch.setattr(
        penalty_cost, "measure", lambda _, settings, *__: images.append(settings.num_images)
    )
    monkeypatch.setattr(penalty_cost.records, "check", lambda *_: None)
    given((Path("run"),), reference=False)
    assert images == [expected]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (partial(penalty_cost.main, (Path("nowhere"),)), "nowhere is not a run directory"),
        (partial(penalty_cost.main, batch_size=0), "batch_size must be at least 1, got 0"),
        (partial(penalty_cost.main, batch_size=6), "batch_size must be a multiple of 4, .* got 6"),
        (partial(penalty_cost.main, repeats=9), "repeats must be at least 10, got 9"),
        (partial(penalty_cost.main, num_images=451), "num_images must be from 1 to 450, the num"),
        (partial(penalty_cost.main, steps=("x",), num_images=0), "num_images must be at least 1"),
        (partial(penalty_cost.main, out=records.RESULTS), "out must be a JSON file, but .* is a "),
        (
            partial(
                penalty_cost.main, out=records.RESULTS / "cpu-amd-epyc-1-core" / "scaling.json"
            ),
            ".* holds something other than the results of penalty_cost",
        ),
    ],
    ids=["run", "batch", "slices", "repeats", "images", "none", "folder", "other"],
)
def test_mistakes_are_told_in_a_sentence_before_any_work(mistake, message, monkeypatch):
    monkeypatch.setattr(penalty_cost, "train", lambda *_: pytest.fail("trained a network first"))
    with pytest.raises(SystemExit, match=f"error: {message}"):
        mistake()
