"""Networks of a comparison, evaluated by themselves."""

import shutil

import numpy as np
import pytest
import tyro

from experiments import evaluate, pgd, provenance, runs
from experiments.files import read_json
from experiments.loading import load_for


@pytest.fixture(scope="module")
def folder(folder, tmp_path_factory):
    """Return a copy, in which runs are evaluated anew."""
    return shutil.copytree(folder, tmp_path_factory.mktemp("evaluated") / "out")


def test_an_evaluation_counts_the_whole_test_set(folder):
    run = runs.load(folder / "none" / "seed-0")
    dataset = load_for(run.config)
    result = read_json(run.path / "evaluation.json")
    predicted = np.argmax(run.apply(run.params, dataset.test_images), axis=1)
    assert result["clean"] == np.mean(predicted == dataset.test_labels)
    with np.load(run.path / "landscape.npz") as looks:
        assert looks["curvature"].shape == (450,)
        assert result["hessian_norm_mean"] == pytest.approx(looks["curvature"].mean())
        assert result["gradient_norm_mean"] == pytest.approx(looks["gradient_norm"].mean())


def test_evaluating_by_itself_is_the_same(folder, capsys, monkeypatch):
    path = folder / "gradient-0.5" / "seed-0"
    before = read_json(path / "evaluation.json")
    (path / "evaluation.json").unlink()
    options = [str(path), "--num-steps", "4", "--norm"]
    tyro.cli(evaluate.main, args=[*options, "l2", "--epsilon", "0.25", "0.5"])
    first = read_json(path / "evaluation.json")
    assert list(first["robust"]) == ["l2"]
    second = {**provenance.collect(), "command": "second", "device": "another"}
    monkeypatch.setattr(provenance, "collect", lambda: second)
    tyro.cli(evaluate.main, args=[*options, "linf", "--epsilon", "0.1"])
    after = read_json(path / "evaluation.json")
    assert after["robust"] == before["robust"]
    assert after["clean"] == before["clean"]
    # It was made by both commands.
    assert after["command"] == f"{first['command']} && second"
    assert after["device"] == f"{first['device']} and another"
    clean = f"clean accuracy on 450 test images: {100 * after['clean']:.2f} %"
    assert clean in capsys.readouterr().out


def test_radii_add_to_those_that_are_there(folder, tmp_path, monkeypatch, capsys):
    path = shutil.copytree(folder / "none" / "seed-0", tmp_path / "run")
    options = [str(path), "--num-steps", "4", "--norm", "linf", "--epsilon"]
    tyro.cli(evaluate.main, args=[*options, "0.05"])
    found = read_json(path / "evaluation.json")
    assert found["radii"]["linf"] == [0.05, 0.1]
    assert list(found["robust"]["linf"]) == ["0.05", "0.1"]
    assert "replacing" not in capsys.readouterr().err
    monkeypatch.setattr(pgd, "_accuracies", lambda *_, **__: pytest.fail("attacked again"))
    tyro.cli(evaluate.main, args=[*options, "0.1"])
    assert read_json(path / "evaluation.json")["robust"] == found["robust"]
    assert "under PGD, linf radius 0.05" in capsys.readouterr().out


def test_what_is_shown_is_drawn_again_in_its_own_ball(folder, tmp_path):
    path = shutil.copytree(folder / "none" / "seed-0", tmp_path / "run")
    shown = read_json(path / "evaluation.json")["shown"]
    (path / "landscape.npz").unlink()
    options = ["--norm", "linf", "--epsilon", "0.1", "--num-steps", "4"]
    tyro.cli(evaluate.main, args=[str(path), *options])
    assert read_json(path / "evaluation.json")["shown"] == shown
    with np.load(path / "landscape.npz") as looks:
        assert looks["attack_order"] == 2
        assert looks["attack_epsilon"] == shown["epsilon"]


@pytest.mark.usefixtures("undrawn")
def test_damaged_or_diverged_runs_are_told(folder, tmp_path, monkeypatch, capsys):
    path = shutil.copytree(folder / "none" / "seed-0", tmp_path / "run")
    whole = (path / "evaluation.json").read_bytes()
    (path / "evaluation.json").write_text("{")
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(evaluate.main, args=[str(path)])
    assert "evaluation.json" in str(stopped.value.code)
    assert "delete it to measure anew" in str(stopped.value.code)
    (path / "evaluation.json").write_bytes(whole)

    nothing = {"gradient_norm": np.array([1.0]), "curvature": np.array([np.nan])}
    monkeypatch.setattr(pgd, "landscape", lambda *_, **__: nothing)
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(
            evaluate.main,
            args=[str(path), *["--norm", "l2", "--epsilon", "0.1", "--num-steps", "1"]],
        )
    assert f"the curvature of {path} is not finite: did it diverge?" in str(stopped.value.code)
    told = f"{path / 'evaluation.json'}: replacing results of other settings"
    assert told in capsys.readouterr().err


def test_evaluating_what_is_no_run_is_told(tmp_path):
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(evaluate.main, args=[str(tmp_path / "nowhere")])
    assert "is not a run directory: it has no config.json" in str(stopped.value.code)
    assert not (tmp_path / "nowhere").exists()
