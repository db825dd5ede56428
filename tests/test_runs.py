"""A run's folder: what it keeps, and what it refuses."""

import dataclasses
import os

import numpy as np
import pytest

from experiments import models, provenance, runs
from experiments.config import Config
from experiments.data import Dataset
from experiments.files import read_arrays, read_json, write_arrays, write_json

CONFIG = Config(data="digits", method="gradient", model="mlp").resolved()
IMAGES = np.linspace(0, 1, 32, dtype=np.float32).reshape(2, 4, 4, 1)
LABELS = np.array([0, 1], np.int32)
DATA = Dataset("toy", IMAGES, LABELS, IMAGES, LABELS, 3)

MEASURED = (
    *("evaluation.json", "landscape.npz", "distances.npz", "apgd.json"),
    *("auto_attack.json", "auto_attack.npz", "auto_attack.l2-0.5.0f1e2d3c.part.npz"),
)


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run"
    architecture = runs.architecture(CONFIG, DATA)
    _, params = models.functional(models.create(**architecture, seed=1))
    runs.start(path, CONFIG, architecture)
    runs.finish(path, params, {"completed": True, "steps": 3})
    return path


def test_a_network_comes_back_as_it_was(run):
    loaded = runs.load(run)
    apply, params = models.functional(models.create(**runs.architecture(CONFIG, DATA), seed=1))
    np.testing.assert_array_equal(loaded.apply(loaded.params, IMAGES[0]), apply(params, IMAGES[0]))
    assert loaded.config == CONFIG
    assert loaded.training == {"completed": True, "steps": 3}
    assert loaded.origin == provenance.combined(provenance.collect())


def test_a_training_that_was_not_completed_is_told(run, capsys):
    runs.load(run)
    assert not capsys.readouterr().err
    runs.finish(run, read_arrays(run / "weights.npz"), {"completed": False})
    runs.load(run)
    told = f"warning: the training of {run} was not completed\n"
    assert capsys.readouterr().err == told


def test_a_run_from_before_a_setting_has_its_default(run):
    content = read_json(run / "config.json")
    for part in ("config", "network"):
        del content[part]["precision"]
    write_json(run / "config.json", content)
    assert runs.read_config(run) == CONFIG
    assert runs.is_trained(run, CONFIG)
    loaded = runs.load(run)
    assert (
        loaded.apply
        is models.functional(models.create(**runs.architecture(CONFIG, DATA), seed=1))[0]
    )


def test_a_run_in_bfloat16_comes_back_in_it(tmp_path):
    config = dataclasses.replace(CONFIG, precision="bfloat16")
    architecture = runs.architecture(config, DATA)
    apply, params = models.functional(models.create(**architecture, seed=1))
    runs.start(tmp_path, config, architecture)
    runs.finish(tmp_path, params, {"completed": True})
    assert runs.load(tmp_path).apply is apply
    assert {value.dtype.name for value in runs.load(tmp_path).params.values()} == {"float32"}


def test_normalization_is_that_of_the_training_images():
    architecture = runs.architecture(CONFIG, DATA)
    np.testing.assert_allclose(architecture["mean"], [IMAGES.mean()])
    np.testing.assert_allclose(architecture["std"], [IMAGES.std()])
    blank = DATA._replace(train_images=np.zeros_like(IMAGES))
    assert runs.architecture(CONFIG, blank)["std"] == [1.0]


def test_a_run_with_other_settings_is_not_overwritten(run):
    other = dataclasses.replace(CONFIG, strength=7.0)
    with pytest.raises(ValueError, match=r"other settings \(strength 1, not 7.0\): delete it or"):
        runs.start(run, other, runs.architecture(other, DATA))
    assert runs.read_config(run) == CONFIG


def test_a_folder_of_something_else_is_not_written_to(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds something other than a run: name another folder"):
        runs.start(tmp_path, CONFIG, runs.architecture(CONFIG, DATA))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_starting_again_forgets_the_old_results(run):
    for left in ("metrics.jsonl", *MEASURED):
        (run / left).write_text("{}")
    (run / "checkpoints").mkdir()
    runs.start(run, CONFIG, runs.architecture(CONFIG, DATA))
    assert [path.name for path in run.iterdir()] == ["config.json"]
    assert not runs.is_trained(run, CONFIG)


def test_what_was_half_written_goes_once_nobody_writes_it(run):
    old, new = run / "evaluation.json.1.part", run / "evaluation.json.2.part"
    for path in (old, new):
        path.write_text("{")
    os.utime(old, (0, 0))
    # As one that is moved to its place between being seen and being looked at.
    (run / "gone.3.part").symlink_to(run / "nowhere")
    with runs.locked(run):
        (run / "gone.3.part").unlink()
        assert list(run.glob("*.part")) == [new]


def test_the_usual_number_of_steps_written_out_is_no_other_setting(run):
    content = read_json(run / "config.json")
    written_out = {**content["config"], "method": "adversarial", "num_steps": 10}
    write_json(run / "config.json", {**content, "config": written_out})
    assert runs.read_config(run).num_steps is None


def test_what_was_measured_of_an_unfinished_training_is_not_of_the_finished_one(run):
    for left in ("metrics.jsonl", *MEASURED):
        (run / left).write_text("{}")
    (run / "checkpoints").mkdir()
    runs.resume(run)
    left = {path.name for path in run.iterdir()}
    assert left == {"checkpoints", "config.json", "metrics.jsonl", "training.json", "weights.npz"}


def test_the_beginning_of_a_file_is_no_run(tmp_path):
    """It is there if a process was killed as it wrote the first one."""
    (tmp_path / "config.json.123.part").write_text("{")
    runs.check_free(tmp_path, CONFIG)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds something other than a run"):
        runs.check_free(tmp_path, CONFIG)


def test_only_a_completed_training_of_the_same_settings_counts(run, tmp_path):
    assert runs.is_trained(run, CONFIG)
    assert not runs.is_trained(run, dataclasses.replace(CONFIG, seed=1))
    assert not runs.is_trained(tmp_path / "nowhere", CONFIG)
    runs.finish(run, read_arrays(run / "weights.npz"), {"completed": False})
    assert not runs.is_trained(run, CONFIG)
    (run / "training.json").write_text("{")
    assert not runs.is_trained(run, CONFIG)


def test_what_is_no_run_is_told(run, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is not a run directory: it has no config\.json"):
        runs.load(tmp_path / "nowhere")
    weights = read_arrays(run / "weights.npz")
    write_arrays(run / "weights.npz", {**weights, "dense/0/bias": np.zeros(5)})
    with pytest.raises(ValueError, match=r"weights.npz has the arrays .* expected"):
        runs.load(run)
    (run / "weights.npz").write_bytes(b"PK")
    with pytest.raises(
        ValueError, match=r"weights\.npz is damaged .*: delete .* to train it again"
    ):
        runs.load(run)
    (run / "weights.npz").unlink()
    with pytest.raises(ValueError, match=r"has no weights\.npz: its training kept nothing"):
        runs.load(run)
    write_arrays(run / "weights.npz", weights)
    content = read_json(run / "config.json")
    write_json(run / "config.json", {**content, "network": {"name": "mlp"}})
    with pytest.raises(ValueError, match=r"config\.json names no network .*: train it again"):
        runs.load(run)
    # Found by tests/fuzz.py.
    write_json(run / "config.json", {**content, "network": {**content["network"], "mean": [{}]}})
    with pytest.raises(ValueError, match=r"config\.json names no network .*: train it again"):
        runs.load(run)
    (run / "training.json").unlink()
    with pytest.raises(ValueError, match=r"has no training\.json: its training kept nothing"):
        runs.load(run)
    (run / "config.json").write_text('{"config": {"temperature": 1}, "network": {}}')
    with pytest.raises(ValueError, match=r"config\.json holds settings other than a run's: .*temp"):
        runs.load(run)
