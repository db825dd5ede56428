"""What bfloat16 costs and changes, on a small network."""

import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

from experiments import models, runs
from experiments.benchmarks import precision
from experiments.files import read_json
from experiments.loading import load_for
from hessjax import second_order
from tests.stored import columns
from tests.test_records import clean
from tests.twins import twin

OPTIONS = ["--num-images", "60", "--batch-size", "16"]
QUANTITIES = ("‖Hĝ‖, one product", "finite step 1", "finite step 0.01")


def unattacked(apply, params, images, labels, *, radii, **_):
    """Stand in for the attacks, which have tests of their own."""
    right = np.asarray(apply(params, images)).argmax(axis=1) == labels
    yield from ((radius, right) for radius in (0.0, *radii))


@pytest.fixture(scope="module")
def rows(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("precision") / "precision.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "QUANTITIES", {n: precision.QUANTITIES[n] for n in QUANTITIES})
        patch.setattr(precision, "_STEPS", ("none",))
        patch.setattr(precision, "withstood", unattacked)
        tyro.cli(precision.main, args=[str(run), *OPTIONS, "--out", str(out)])
        found = read_json(out)["rows"]
        return found, precision.table(found)


def test_a_network_is_evaluated_in_both_precisions(rows, run):
    loaded = runs.load(run)
    dataset = load_for(loaded.config)
    logits = np.asarray(loaded.apply(loaded.params, dataset.test_images))
    single, half = (row for row in rows[0] if "evaluated" in row)
    assert (single["evaluated"], half["evaluated"]) == ("float32", "bfloat16")
    assert single["clean"] == np.mean(logits.argmax(axis=1) == dataset.test_labels)
    assert single["changed"] == 0
    assert abs(single["clean"] - half["clean"]) * 450 <= half["changed"] < 10
    right = logits[:60].argmax(axis=1) == dataset.test_labels[:60]
    assert single["robust"] == right.mean()
    assert half["robust"] == pytest.approx(single["robust"], abs=0.05)


def test_norms_differ_by_what_is_rounded(rows):
    found = {row["quantity"]: row for row in rows[0] if "quantity" in row}
    curvature, long, short = (found[name] for name in QUANTITIES)
    # Rounding by 2^-10 on average, in a few layers, and the logits' errors in the exponent.
    assert 0.0005 < curvature["median"] < 0.02
    assert curvature["median"] < curvature["percentile_95"] < 0.05
    assert curvature["mean"]["bfloat16"] == pytest.approx(curvature["mean"]["float32"], rel=0.02)
    # A short step drowns in the rounding of the two gradients that are subtracted.
    assert 10 * long["median"] < short["median"]


def test_what_is_0_has_no_relative_error(run, monkeypatch):
    monkeypatch.setattr(precision, "_predictions", lambda *_: np.zeros(450))
    monkeypatch.setattr(precision, "_robust", lambda *_: 0.5)
    monkeypatch.setattr(precision, "_values", lambda *_: np.array([1.0, 0.0]))
    loaded = runs.load(run)
    applies = {"float32": loaded.apply, "bfloat16": loaded.apply}
    settings = precision.Settings(0.5, 2, 60, 16, 10)
    with pytest.raises(ValueError, match="is 0 at 1 of 2 images, where the network is too certain"):
        precision._run_rows(applies, loaded, settings, load_for(loaded.config))


def test_a_network_of_other_weights_is_another_one(run, tmp_path, monkeypatch):
    clean(monkeypatch)
    monkeypatch.setattr(precision, "_step_rows", lambda *_: [{"step": "none"}])
    monkeypatch.setattr(precision, "_run_rows", lambda _, run, *__: [{"by": str(run.path)}])
    monkeypatch.setattr(precision, "table", lambda _: "")
    runs_ = [str(run), str(twin(run, tmp_path / "other", scale=2.0))]
    out = tmp_path / "precision.json"
    for _ in range(2):
        tyro.cli(precision.main, args=[*runs_, *OPTIONS, "--out", str(out)])
    rows = read_json(out)["rows"]
    assert [row["by"] for row in rows if row["kind"] == "run"] == runs_
    [step] = [row for row in rows if row["kind"] == "step"]
    assert step["num_classes"] == 10


def test_networks_of_one_name_have_lines_of_their_own():
    told = {"data": "digits", "method": "none", "seed": 0, "trained": "float32", "kind": "run"}
    rows = [
        {**told, "weights": weights, "quantity": name, "median": median, "percentile_95": 1.0}
        for weights, median in (("one", 0.01), ("two", 0.02))
        for name in precision.QUANTITIES
    ]
    *_, first, second = columns(precision.table(rows))
    assert first[:5] == ["digits", "none", "0", "float32", "1 / 1e+02"]
    assert second[:5] == ["digits", "none", "0", "float32", "2 / 1e+02"]


def test_a_step_in_bfloat16_keeps_half_the_bytes():
    batch = jnp.zeros((512, 8, 8, 1), jnp.float32), jnp.zeros(512, int)
    shape = {"input_shape": (8, 8, 1), "num_classes": 3, "widths": (16,), "seed": 0}

    def kept(precision_):
        apply, params = models.functional(
            models.create("mlp", "gelu", precision=precision_, **shape)
        )
        objective = second_order(apply, cross_entropy, 1, 1)
        return precision.kept_bytes(objective, params, batch)

    # All but the images' gradients, the directions and the logits.
    assert 0.45 < kept("bfloat16") / kept("float32") < 0.7


def test_kept_bytes_are_those_between_the_ways():
    """Of the square of an output, the outputs; neither batch nor parameters."""

    def apply(params, x):
        return x @ params["w"]

    objective = second_order(apply, lambda z, _: z @ z, 0, 0)
    params = {"w": jnp.ones((6, 8), jnp.float32)}
    batch = jnp.ones((4, 6), jnp.float32), jnp.zeros(4)
    assert precision.kept_bytes(objective, params, batch) == 4 * 8 * 4


def test_the_table_has_every_row(rows):
    steps, accuracies, errors = map(columns, rows[1].split("\n\n"))
    assert [row[1] for row in steps[2:]] == ["none", "none, bfloat16"]
    assert len(accuracies) == 2 + 2
    assert len(errors) == 2 + 1
    assert ["digits", "none", "0", "float32", "bfloat16"] in [row[:5] for row in accuracies]


def test_without_a_run_nothing_is_said_to_be_written(tmp_path):
    with pytest.raises(SystemExit, match="error: no run is named, expected a folder that exper"):
        tyro.cli(precision.main, args=["--out", str(tmp_path / "precision.json")])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--epsilon", "-0.3"], "epsilon must be a finite positive number, got -0.3"),
        (["--num-steps", "0"], "num_steps must be at least 1, got 0"),
        (["--num-images", "0"], "num_images must be a finite positive number, got 0"),
        (["--repeats", "3"], "repeats must be at least 10, got 3"),
        (["--num-images", "451"], "num_images must be from 1 to 450, the number of test images"),
    ],
)
def test_bad_settings_are_told_before_any_work(wrong, message, run, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "_step_rows", lambda *_: pytest.fail("timed first"))
    monkeypatch.setattr(precision, "withstood", lambda *_, **__: pytest.fail("attacked first"))
    with pytest.raises(SystemExit, match=f"error: {message}"):
        tyro.cli(precision.main, args=[str(run), *OPTIONS, *wrong, "--out", str(tmp_path / "x")])
