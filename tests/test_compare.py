"""A whole comparison, small."""

import re
import shutil
import signal
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import tyro

from experiments import auto, compare, comparison, evaluate, masking, pgd, provenance, runs, session
from experiments.files import read_json, write_json
from experiments.loading import load_for
from experiments.reading import read
from hessjax.attacks import apgd_attack

ARGUMENTS = [
    *("--methods", "none", "gradient:0.5", "--model", "mlp", "--activation", "relu"),
    *("--epochs", "2", "--l2", "0.5", "0.25", "--linf", "0.1", "--num-steps", "4"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("comparison") / "out"
    tyro.cli(compare.main, args=[*ARGUMENTS, "--out", str(out)])
    return out


def test_a_comparison_is_complete(folder):
    comparison = read_json(folder / "comparison.json")
    assert comparison["norms"] == {"l2": [0.25, 0.5], "linf": [0.1]}
    assert comparison["num_test"] == 450
    assert [run["method"] for run in comparison["runs"]] == ["none", "gradient"]
    assert [run["strength"] for run in comparison["runs"]] == [None, 0.5]
    for run in comparison["runs"]:
        robust = run["robust"]["l2"]
        assert 1 > run["clean"] > robust["0.25"] > robust["0.5"] > 0
        assert run["clean"] > run["robust"]["linf"]["0.1"]
        assert (folder / run["path"] / "weights.npz").is_file()
    figures = {path.name for path in (folder / "figures").iterdir()}
    names = ("accuracy", "cost", "norms", "planes", "boundaries", "attacks")
    assert figures == {f"{name}.png" for name in names}
    report = (folder / "report.md").read_text()
    assert re.search(r"\| none +\| - ", report)
    assert re.search(r"\| gradient +\| 0.5 ", report)


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


def test_the_same_command_does_nothing_twice(folder, monkeypatch):
    before = read_json(folder / "comparison.json")["runs"]

    def refuse(*_, **__):
        pytest.fail("done before")

    monkeypatch.setattr(comparison, "train", refuse)
    monkeypatch.setattr(pgd, "withstood", refuse)
    monkeypatch.setattr(pgd, "landscape", refuse)
    tyro.cli(compare.main, args=[*ARGUMENTS, "--out", str(folder)])
    assert read_json(folder / "comparison.json")["runs"] == before


@pytest.mark.usefixtures("undrawn")
def test_the_same_command_elsewhere_does_not_claim_what_was_there(folder, tmp_path, monkeypatch):
    out = shutil.copytree(folder, tmp_path / "out")
    before = read_json(out / "comparison.json")
    elsewhere = {**provenance.collect(), "command": before["command"], "device": "another"}
    monkeypatch.setattr(provenance, "collect", lambda: elsewhere)
    tyro.cli(compare.main, args=[*ARGUMENTS, "--out", str(out)])
    after = read_json(out / "comparison.json")
    assert after == before | {"device": f"{before['device']} and another"}
    assert f"- Device: {after['device']}\n" in (out / "report.md").read_text()


@pytest.mark.usefixtures("undrawn")
def test_the_table_of_another_command_is_not_told_as_this_ones(folder, tmp_path, capsys):
    out = shutil.copytree(folder, tmp_path / "out")
    before = {name: (out / name).read_bytes() for name in ("comparison.json", "report.md")}
    for method in ("none", "gradient-0.5"):
        (out / method / "seed-0" / "weights.npz").write_bytes(b"PK")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2 of the runs failed"):
        tyro.cli(compare.main, args=[*ARGUMENTS, "--num-steps", "5", "--out", str(out)])
    assert {name: (out / name).read_bytes() for name in before} == before
    assert not capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_autoattack_is_part_of_it_where_it_is_asked_for(folder, tmp_path, monkeypatch, capsys):
    """A short one."""
    out = shutil.copytree(folder, tmp_path / "out")
    short = (apgd_attack(num_steps=2, name="apgd-ce"),)
    monkeypatch.setitem(auto.VERSIONS, "standard", short)
    for name in ("_ONE", "_BOTH", "_MORE"):
        monkeypatch.setattr(masking, name, short)
    options = [*ARGUMENTS, "--auto-linf", "0.1", "--auto-examples", "6", "--out", str(out)]
    tyro.cli(compare.main, args=options)
    found = read(out)
    assert found["auto"] == {"norms": {"linf": [0.1]}, "num_examples": 6}
    for run in found["runs"]:
        there = read_json(out / run["path"] / "auto_attack.json")
        assert there["attack"]["num_examples"] == 6
        told = there["results"]["linf"]["0.1"]
        wanted = {"robust": told["robust"], "verdict": told["verdict"]}
        assert run["auto"] == {"linf": {0.1: wanted}}
        assert 0 <= 6 * told["robust"] <= 6
    text = (out / "report.md").read_text()
    assert "| AA ℓ∞ 0.1 | masking |" in text
    assert "- AA: AutoAttack, standard version, on the first 6 images; masking: " in text
    # Another radius in the same folder: the table has what is asked for.
    capsys.readouterr()
    tyro.cli(compare.main, args=[*options, "--auto-linf", "0.05"])
    assert [list(run["auto"]["linf"]) for run in read(out)["runs"]] == [[0.05], [0.05]]
    told = "comparison.json: results under AutoAttack at linf 0.1 leave the table\n"
    assert told in capsys.readouterr().err
    # A comparison without it, or by another one, is another comparison.
    tyro.cli(compare.main, args=[*ARGUMENTS, "--out", str(out)])
    assert [run["auto"] for run in read(out)["runs"]] == [{}, {}]
    assert "results under AutoAttack at linf 0.05 leave the table" in capsys.readouterr().err
    tyro.cli(compare.main, args=options)
    assert [run["auto"] for run in read(out)["runs"]] == [run["auto"] for run in found["runs"]]
    assert "leave the table" not in capsys.readouterr().err


def test_other_settings_are_refused_before_any_work(folder):
    arguments = [*ARGUMENTS, "--epochs", "3", "--out", str(folder)]
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(compare.main, args=arguments)
    assert "holds a run with other settings (epochs 2, not 3;" in str(stopped.value.code)


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--auto-l2", "0.5", "--auto-examples", "451"],
            "auto_examples must be from 1 to 450, the number of test images, got 451",
        ),
        (["--apgd-examples", "451"], "apgd_examples must be from 1 to 450, the number of test"),
        (["--methods"], "a comparison needs at least one method and one seed"),
        (["--methods", "hesian"], "unknown method 'hesian': expected one of none, gradient"),
        (["--l2", "-1"], "a radius of l2 must be a finite positive number, got -1"),
        (["--linf", "nan"], "a radius of linf must be a finite positive number, got nan"),
        (["--methods", "hessian:1", "hessian:1.0000001"], "hessian:1 appears twice"),
        (["--num-steps", "0"], "num_steps must be at least 1, got 0"),
        (["--data", "minst!"], "unknown data set 'minst!'"),
        (["--l2", "--linf"], "there is no radius to attack with: give one for l2 or linf"),
        (["--apgd-examples", "-1"], "apgd_examples must be at least 0, got -1"),
        (["--auto-l2", "-1"], "a radius of l2 must be a finite positive number, got -1"),
        (["--auto-examples", "9"], "auto_examples needs a radius for AutoAttack"),
        (
            ["--auto-linf", "0.1", "--auto-examples", "0"],
            "auto_examples must be at least 1, got 0",
        ),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(arguments, message, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(compare.main, args=[*arguments, "--out", str(tmp_path / "out")])
    assert str(stopped.value.code).startswith("error: ")
    assert message in str(stopped.value.code)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("undrawn")
def test_radii_of_many_digits_are_found_again(folder, tmp_path):
    radii = ["0.00784313725490196", "0.0078431372", "0.03"]
    path = shutil.copytree(folder / "none" / "seed-0", tmp_path / "out" / "none" / "seed-0").parent
    options = ["--model", "mlp", "--activation", "relu", "--epochs", "2", "--num-steps", "1"]
    options += ["--methods", "none", "--l2", "--linf", *radii, "--out", str(path.parent)]
    tyro.cli(compare.main, args=options)
    comparison = read(path.parent)
    assert comparison["norms"]["linf"] == sorted(map(float, radii))
    assert sorted(comparison["runs"][0]["robust"]["linf"]) == sorted(map(float, radii))


@pytest.mark.usefixtures("undrawn")
def test_a_result_tells_the_commits_of_training_and_evaluation(folder, tmp_path, monkeypatch):
    out = shutil.copytree(folder, tmp_path / "out")
    trained = read_json(out / "none" / "seed-0" / "config.json")["commit"]
    later = {**provenance.collect(), "commit": "feedbeef"}
    monkeypatch.setattr(provenance, "collect", lambda: later)
    options = [*ARGUMENTS, "--linf", "0.2", "--out", str(out)]
    tyro.cli(compare.main, args=options)
    expected = ", ".join(sorted({trained, "feedbeef"}))
    assert read_json(out / "comparison.json")["commit"] == expected


def test_a_result_tells_the_commits_of_every_attack(monkeypatch):
    result = {"robust": 0.5, "verdict": "", "commit": "by-auto"}
    found = {
        "pgd.evaluate": {"commit": "by-pgd"},
        "auto.evaluate": {"results": {"l2": {"0.5": result}}},
        "apgd.evaluate": {"robust": {"l2": {"0.5": 0.25}}, "commit": "by-apgd"},
    }
    for name, value in found.items():
        where = f"experiments.comparison.{name}"
        monkeypatch.setattr(where, lambda *_, value=value, **__: value)
    run: Any = SimpleNamespace(config=SimpleNamespace(seed=0))
    attacks = comparison.Attacks({"l2": [0.5]}, {}, {"l2": [0.5]}, apgd_examples=3)
    nothing: Any = None
    told = comparison._evaluated(run, dataset=nothing, attacks=attacks, mesh=None)
    assert told["commit"] == "by-apgd, by-auto, by-pgd"
    assert told["apgd"] == {"l2": {"0.5": 0.25}}


@pytest.mark.usefixtures("undrawn")
def test_a_later_command_adds_its_runs_to_those_of_the_same_settings(folder, tmp_path, monkeypatch):
    out = shutil.copytree(folder, tmp_path / "out")
    before = read_json(out / "comparison.json")
    # As one that was made before there was this setting.
    del before["setup"]["precision"]
    write_json(out / "comparison.json", before)
    shutil.copytree(out / "none" / "seed-0", out / "none" / "seed-1")
    trained = read_json(out / "none" / "seed-1" / "config.json")
    write_json(
        out / "none" / "seed-1" / "config.json",
        trained | {"config": trained["config"] | {"seed": 1}},
    )
    second = {**provenance.collect(), "command": "second", "device": "another"}
    monkeypatch.setattr(provenance, "collect", lambda: second)
    options = [*ARGUMENTS[3:], "--methods", "none", "--seeds", "1", "--out", str(out)]
    after = {}
    for _ in range(2):
        tyro.cli(compare.main, args=options)
        after = read_json(out / "comparison.json")
        assert [run["path"] for run in after["runs"]] == [
            "none/seed-0",
            "gradient-0.5/seed-0",
            "none/seed-1",
        ]
        assert after["runs"][:2] == before["runs"]
        assert after["command"] == f"{before['command']} && second"
        assert after["device"] == f"{before['device']} and another"
        assert after["setup"]["precision"] == "float32"

    # Other radii: the earlier accuracies do not belong into the same table, and are not lost.
    with pytest.raises(
        SystemExit, match=r"other settings \(norms\), and none/seed-0, gradient-0.5"
    ):
        tyro.cli(compare.main, args=[*options, "--linf", "0.2"])
    assert read_json(out / "comparison.json") == after
    write_json(out / "comparison.json", after | {"runs": after["runs"][2:]})
    tyro.cli(compare.main, args=[*options, "--linf", "0.2"])
    after = read_json(out / "comparison.json")
    assert [run["path"] for run in after["runs"]] == ["none/seed-1"]
    assert after["command"] == "second"
    # Shown is a ball of this command, not of what the run was attacked with before.
    tyro.cli(compare.main, args=[*options, "--l2", "--linf", "0.2"])
    found = read_json(out / "none" / "seed-1" / "evaluation.json")
    assert (found["shown"]["norm"], found["shown"]["epsilon"]) == ("linf", 0.2)
    assert "l2" in found["robust"]


def test_the_folder_of_a_run_holds_no_comparison(folder):
    out = folder / "none" / "seed-0"
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(compare.main, args=[*ARGUMENTS, "--out", str(out)])
    assert "is a file or the folder of a run: name another" in str(stopped.value.code)


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


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("program", [compare, evaluate])
def test_weights_are_read_when_no_other_process_can_train_further(
    folder, tmp_path, monkeypatch, program
):
    out, read_run, seen = shutil.copytree(folder, tmp_path / "out"), runs.load, []

    def checked(path):
        with pytest.raises(OSError, match="another process is working in"), runs.locked(path):
            pass
        seen.append(path)
        return read_run(path)

    monkeypatch.setattr(runs, "load", checked)
    path = out / "none" / "seed-0"
    options = ["--norm", "linf", "--epsilon", "0.1", "--num-steps", "4"]
    given = [*ARGUMENTS, "--out", str(out)] if program is compare else [str(path), *options]
    tyro.cli(program.main, args=given)
    assert path in seen


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_fails_stops_no_other_and_is_named_at_the_end(folder, tmp_path, capsys):
    out = shutil.copytree(folder, tmp_path / "out")
    shutil.rmtree(out / "gradient-0.5")
    (out / "none" / "seed-0" / "weights.npz").write_bytes(b"PK")
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(compare.main, args=[*ARGUMENTS, "--out", str(out)])
    reason = f"{out}/none/seed-0/weights.npz is damaged"
    assert str(stopped.value.code).startswith(
        f"error: 1 of the runs failed:\n  none/seed-0: {reason}"
    )
    assert f"failed: none/seed-0: {reason}" in capsys.readouterr().err
    comparison = read(out)
    # What an earlier command found of it, still stands.
    assert [run["path"] for run in comparison["runs"]] == ["none/seed-0", "gradient-0.5/seed-0"]
    assert comparison["failed"] == {}
    # A command of which nothing succeeded is told, too.
    shutil.copytree(out / "none" / "seed-0", out / "none" / "seed-1")
    content = read_json(out / "none" / "seed-1" / "config.json")
    content["config"]["seed"] = 1
    write_json(out / "none" / "seed-1" / "config.json", content)
    only = ["--methods", "none", "--seeds", "1"]
    with pytest.raises(SystemExit):
        tyro.cli(compare.main, args=[*ARGUMENTS[3:], *only, "--out", str(out)])
    assert list(read(out)["failed"]) == ["none/seed-1"]
    assert len(read(out)["runs"]) == 2
    assert "- Failed: none/seed-1: " in (out / "report.md").read_text()

    # Nor does a command without it forget it.
    tyro.cli(compare.main, args=[*ARGUMENTS[3:], "--methods", "gradient:0.5", "--out", str(out)])
    assert list(read(out)["failed"]) == ["none/seed-1"]

    (out / "comparison.json").unlink()
    with pytest.raises(SystemExit):
        tyro.cli(compare.main, args=[*ARGUMENTS, "--out", str(out)])
    comparison = read(out)
    assert [run["path"] for run in comparison["runs"]] == ["gradient-0.5/seed-0"]
    assert list(comparison["failed"]) == ["none/seed-0"]
    assert f"- Failed: none/seed-0: {reason}" in (out / "report.md").read_text()

    shutil.rmtree(out / "none" / "seed-0")
    shutil.copytree(folder / "none" / "seed-0", out / "none" / "seed-0")
    tyro.cli(compare.main, args=[*ARGUMENTS, "--out", str(out)])
    assert read(out)["failed"] == {}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("RESOURCE_EXHAUSTED: 9 GB\nwhere it was", "RESOURCE_EXHAUSTED: 9 GB"),
        ("", "JaxRuntimeError"),
    ],
)
def test_a_method_that_needs_too_much_memory_stops_no_other(
    folder, tmp_path, monkeypatch, text, told
):
    out, train = shutil.copytree(folder, tmp_path / "out"), comparison.train
    shutil.rmtree(out / "gradient-0.5")
    (out / "comparison.json").unlink()

    def exhausted(config, **options):
        if config.method == "gradient":
            raise jax.errors.JaxRuntimeError(text)
        return train(config, **options)

    monkeypatch.setattr(comparison, "train", exhausted)
    with pytest.raises(SystemExit, match=rf"gradient-0.5/seed-0: {told}$"):
        tyro.cli(compare.main, args=[*ARGUMENTS, "--out", str(out)])
    assert [run["path"] for run in read(out)["runs"]] == ["none/seed-0"]


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_training_goes_on_by_the_same_command(tmp_path, monkeypatch, capsys):
    arguments = [*ARGUMENTS, "--methods", "none", "--out", str(tmp_path)]
    run = session.Session.run

    def at_the_first_step(self):
        self.step = partial(raise_then, self.step)
        return run(self)

    def raise_then(step, *arguments):
        signal.raise_signal(signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(session.Session, "run", at_the_first_step)
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(compare.main, args=arguments)
    assert stopped.value.code == 143
    monkeypatch.setattr(session.Session, "run", run)
    tyro.cli(compare.main, args=arguments)
    assert f"{tmp_path / 'none' / 'seed-0'}: continuing after step 1" in capsys.readouterr().err
    assert read_json(tmp_path / "none" / "seed-0" / "training.json")["completed"]


def test_a_second_process_in_the_same_folder_is_refused(folder):
    run = folder / "none" / "seed-0"
    for path, main, arguments in (
        (folder, compare.main, [*ARGUMENTS, "--out", str(folder)]),
        (run, evaluate.main, [str(run), "--num-steps", "1"]),
    ):
        with runs.locked(path), pytest.raises(SystemExit) as stopped:
            tyro.cli(main, args=arguments)
        assert f"another process is working in {path}" in str(stopped.value.code)
