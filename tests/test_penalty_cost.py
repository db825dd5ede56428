"""The benchmark of optimizer steps: what it measures is right, and what it writes is whole."""

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

from experiments import models, runs
from experiments.benchmarks import (
    estimates,
    penalty_cost,
    plots,
    records,
    reference,
    report,
    scaling,
    steps,
    targets,
)
from experiments.config import Config
from experiments.data import load
from experiments.files import read_json, write_json
from experiments.train import train
from hessjax import Lazy, second_order
from tests import cases
from tests.test_records import clean
from tests.twins import twin

pytestmark = pytest.mark.usefixtures("counted")

DOUBLE = "gradient, double backpropagation"
NARROW = partial(models.create, "mlp", "gelu", input_shape=(4, 4, 1), num_classes=3, widths=(6,))
APPLY, PARAMS = models.functional(NARROW(seed=0))
RNG = np.random.default_rng(0)
X, Y = RNG.uniform(size=(6, 4, 4, 1)).astype(np.float32), np.arange(6) % 3


def test_errors_are_against_dense_eigenvalues():
    chosen = {
        name: estimates.ESTIMATES[name]
        for name in (
            "none, gradient, 0",
            estimates.DEFAULT,
            "power, random, 1",
            "Lanczos, gradient, 9",
        )
    }
    norms, errors = estimates.relative_errors(APPLY, PARAMS, X, Y, chosen)

    def norm(x, y):
        hessian = cases.dense_hessian(lambda t: cross_entropy(APPLY(PARAMS, t), y), x)
        return cases.operator_norm(hessian.reshape(16, 16))

    np.testing.assert_allclose(norms, jax.jit(jax.vmap(norm))(X, Y), rtol=1e-4)
    # More products, less error; and no estimate is above the norm.
    means = [float(error.mean()) for error in errors.values()]
    assert means[3] < 1e-4 < means[1] < means[0] < means[2] < 1
    assert all(np.all(error > -1e-4) for error in errors.values())


def test_the_norm_of_a_dense_hessian_may_be_a_negative_eigenvalue():
    assert estimates.largest_eigenvalue(jnp.diag(jnp.array([-3.0, 2.0]))) == 3


def test_an_estimate_is_what_the_objective_of_its_name_takes():
    assert all(
        int(name.split(", ")[2]) == _products(e.solver) for name, e in estimates.ESTIMATES.items()
    )
    assert len({str(estimate) for estimate in estimates.ESTIMATES.values()}) == len(
        estimates.ESTIMATES
    )


def _products(solver) -> int:
    """Count the products that a solver asks for."""
    counted = []

    def matvec(v):
        counted.append(None)
        return 2.0 * v

    if solver is not None:
        with jax.disable_jit():
            solver(matvec, jnp.eye(16)[0] + 0.1 * jnp.arange(16))
    return len(counted)


def test_the_exact_cross_entropy_is_the_usual_one_with_more_digits():
    for logits in ([1.0, -2.0, 0.5], [12.0, 0.0, -3.0]):
        for y in range(3):
            got = estimates.exact_cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(y))
            wanted = cross_entropy(jnp.asarray(logits, jnp.float64), y)
            np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_the_summary_of_errors():
    summary = estimates.summary(np.array([1.0, 3.0]), np.array([0.2, -0.4]))
    assert summary["mean"] == pytest.approx(0.3)
    assert summary["median"] == pytest.approx(0.3)
    assert summary["percentile_95"] == pytest.approx(0.39)
    assert summary["of_mean_norm"] == pytest.approx((0.2 - 1.2) / 4)


def test_the_steps_are_those_of_their_names():
    found = steps.objectives(APPLY, 6)

    def evaluated(objective):
        return jax.jit(objective)(PARAMS, (X, Y), jax.random.key(0))

    value, metrics = evaluated(second_order(APPLY, cross_entropy, 1.0, 0.5))
    assert evaluated(found["hessian"])[0] == value
    assert evaluated(found["none"])[0] == metrics["loss"]
    wanted = {
        "hessian, in four chunks": value,
        "gradient, double backpropagation": metrics["loss"] + metrics["gradient_norm"],
    }
    for name, expected in wanted.items():
        np.testing.assert_allclose(evaluated(found[name])[0], expected, rtol=1e-5)
    lazy = found["hessian, every=5"]
    assert isinstance(lazy, Lazy)
    assert lazy.every == 5


def test_a_lazy_step_is_a_whole_cycle():
    found = steps.objectives(APPLY, 6)
    batch = jnp.asarray(X), jnp.asarray(Y)
    every, plain, full = (
        steps.compile_step(found[name], PARAMS, batch)
        for name in ("hessian, every=5", "none", "hessian")
    )
    assert len(every.programs) == 5
    [count, least, most] = [step.facts["operations"] or 0 for step in (every, plain, full)]
    assert count == pytest.approx((most + 4 * least) / 5, rel=0.05)
    assert every.facts["compile_seconds"] == sum(p.compile_seconds for p in every.programs[:2])
    # Steps go on from each other.
    first, second = plain.call()["loss"], plain.call()["loss"]
    assert second < first


def test_slices_of_a_batch_are_one_step():
    found = steps.objectives(APPLY, 6)["hessian"]
    whole = steps.compile_step(found, PARAMS, (jnp.asarray(X), jnp.asarray(Y)))
    # Slices that are all the same batch: their mean gradient is that of one.
    batch = jnp.tile(X, (3, 1, 1, 1)), jnp.tile(Y, 3)
    sliced = steps.compile_accumulated(found, PARAMS, batch, 3)
    assert (sliced.num_steps, len(sliced.programs)) == (1, 3)
    for _ in range(5):
        np.testing.assert_allclose(sliced.call()["loss"], whole.call()["loss"], rtol=1e-5)


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
    message, there = str(stopped.value.code).split(": there are ")
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
    assert of_pytorch == list(penalty_cost._reference_makers(loaded, np.zeros((8, 8, 8, 1)), Y))


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


def test_networks_of_one_name_have_columns_of_their_own(tmp_path):
    told = {"kind": "error", "data": "digits", "model": "mlp", "activation": "gelu", "epochs": 1}
    rows = [
        {**told, "method": "none", "estimate": estimates.DEFAULT, "weights": weights}
        | {"error": {"mean": mean, "percentile_95": mean}}
        for weights, mean in (("one", 0.01), ("two", 0.02))
    ]
    head, _, line = report.estimate_table([], rows).splitlines()
    assert head.endswith(
        "| digits mlp gelu, none, 1 epoch, one | digits mlp gelu, none, 1 epoch, two |"
    )
    assert line.endswith("| 1.0 / 1.0 | 2.0 / 2.0 |")
    [alone, _, _] = report.estimate_table([], rows[:1]).splitlines()
    assert alone.endswith("| digits mlp gelu, none, 1 epoch |")
    drawn = []

    def save(page, _):
        drawn.extend(axes.get_title() for axes in page.get_axes() if axes.get_visible())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", save)
        plots.accuracy(tmp_path / "estimates.png", rows)
    titles = [title for title in drawn if "epochs" in title]
    assert titles == [f"digits, mlp gelu\nnone, epochs: 1, {name}" for name in ("one", "two")]


def test_pytorch_does_not_stand_beside_bfloat16(run, tmp_path, monkeypatch, capsys):
    half = twin(run, tmp_path / "half", precision="bfloat16")
    monkeypatch.setattr(penalty_cost, "_reference_makers", lambda *_: pytest.fail("made"))
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
    assert 0 <= found["Lanczos, gradient, 3"] < found[estimates.DEFAULT] < 1


def test_the_report_is_made_of_the_results_alone(measured):
    written = report.write(measured)
    text = written[0].read_text(encoding="utf-8")
    assert text == report.text(measured, report.read(measured))
    assert {path.name for path in written} == {"report.md", "estimates.png"}
    rows = read_json(measured / "penalty_cost.json")["rows"]
    [hessian] = [row for row in rows if row.get("step") == "hessian"]
    assert f"| hessian | {1e3 * hessian['seconds']['median']:.1f} | " in text
    assert "digits mlp gelu, none, 1 epoch" in text


def test_targets_are_ratios_of_what_was_measured():
    def row(step: str, seconds: float, operations: float) -> dict[str, Any]:
        network = {"kind": "step", "model": "cnn", "activation": "gelu"}
        return {**network, "step": step, "seconds": {"median": seconds}, "operations": operations}

    rows = [row("none", 2.0, 10.0), row("hessian", 9.0, 48.0), {"kind": "error"}]
    assert targets.measured(rows) == [
        ["surrogate / plain, operations", "CNN, gelu", "≤ 5.0", "4.80"],
        ["surrogate / plain", "CNN, gelu", "≤ 7", "4.50"],
    ]


def test_targets_name_steps_that_there_are():
    known = {*steps.objectives(APPLY, 4), steps.ACCUMULATED}
    named = {name for target in targets.TARGETS for name in (target.step, target.unit)}
    named |= set(penalty_cost._QUICK_STEPS)
    assert {name for name in named if not name.startswith("PyTorch: ")} <= known


def test_no_results_no_report(tmp_path):
    with pytest.raises(ValueError, match="holds no results"):
        report.write(tmp_path)


@pytest.mark.parametrize("name", ["comparison", "precision"])
def test_a_report_of_something_else_stays(tmp_path, name):
    write_json(tmp_path / f"{name}.json", {"rows": []})
    kept = tmp_path / "report.md"
    kept.write_text("of a comparison")
    with pytest.raises(SystemExit, match=r"error: .* holds no results of attack_cost, hvp_cost, "):
        report.main(tmp_path)
    assert kept.read_text() == "of a comparison"


def test_networks_of_other_sizes_cost_the_same():
    def multiplications(size: int, classes: int) -> int:
        def network():
            apply, params = scaling.network(size, classes)
            return apply(params, jnp.zeros((size, size, 1))), params

        logits, params = jax.eval_shape(network)
        assert logits.shape == (classes,)
        return sum(
            int(np.prod(params[name].shape))
            for name in params
            if name.startswith("dense") and "kernel" in name
        )

    wanted = multiplications(28, 10)
    for size, classes in ((56, 10), (28, 100), (28, 1000)):
        assert multiplications(size, classes) == pytest.approx(wanted, rel=0.01)


def test_a_larger_image_is_averaged():
    apply, params = scaling.network(56, 10)
    inner, same = scaling.network(28, 10)
    x = RNG.uniform(size=(28, 28, 1))
    np.testing.assert_allclose(
        apply(params, jnp.asarray(x.repeat(2, 0).repeat(2, 1))), inner(same, x), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sizes": (30,)}, "sizes must be multiples of 28, got 30"),
        ({"classes": (1,)}, "expected at least 2 classes and 1 example, got 1 and 2"),
        ({"sizes": (), "classes": ()}, "there is nothing to measure: give sizes or classes"),
        ({"repeats": 3}, "repeats must be at least 10, got 3"),
    ],
)
def test_bad_settings_of_scaling(tmp_path, wrong, message):
    given = {"sizes": (28,), "classes": (10,), "repeats": 10, **wrong}
    sizes, classes = given.pop("sizes"), given.pop("classes")
    with pytest.raises(ValueError, match=message):
        scaling.run(sizes, classes, 2, path=tmp_path / "x.json", **given)


def test_what_is_given_goes_before_what_is_quick(monkeypatch):
    seen = []
    monkeypatch.setattr(scaling, "run", lambda *args, **_: seen.append(args))
    scaling.main()
    scaling.main(quick=True)
    scaling.main(quick=True, sizes=(56,), classes=(), batch_size=3)
    assert seen == [
        ((28, 56, 112, 224), (10, 30, 100, 300, 1000), 16),
        ((28, 112), (10, 100), 8),
        ((56,), (), 3),
    ]


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
        (partial(penalty_cost.main, (Path("nowhere"),)), "nowhere is no run directory"),
        (partial(penalty_cost.main, batch_size=0), "batch_size must be at least 1, got 0"),
        (partial(penalty_cost.main, repeats=9), "repeats must be at least 10, got 9"),
        (partial(penalty_cost.main, num_images=451), "num_images must be from 1 to 450, the num"),
        (partial(penalty_cost.main, steps=("x",), num_images=0), "num_images must be at least 1"),
        (partial(penalty_cost.main, out=records.RESULTS), "out must be a JSON file, but .* is a "),
        (
            partial(
                penalty_cost.main, out=records.RESULTS / "cpu-amd-epyc-1-core" / "scaling.json"
            ),
            ".* holds something else than the results of penalty_cost",
        ),
        (partial(scaling.main, sizes=(30,)), "sizes must be multiples of 28, got 30"),
        (partial(report.main, Path("nowhere")), "nowhere holds no results"),
    ],
    ids=["run", "batch", "repeats", "images", "none", "folder", "other", "sizes", "report"],
)
def test_mistakes_are_told_in_a_sentence_before_any_work(mistake, message, monkeypatch):
    monkeypatch.setattr(penalty_cost, "train", lambda *_: pytest.fail("trained a network first"))
    with pytest.raises(SystemExit, match=f"error: {message}"):
        mistake()
