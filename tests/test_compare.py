"""A whole comparison, small, and further commands in its folder."""

import re
import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tyro

from experiments import auto, compare, comparison, evaluate, masking, pgd, provenance
from experiments.data import load
from experiments.files import read_json, write_arrays, write_json
from experiments.reading import read
from hessjax.attacks import apgd_attack
from tests.compared import ARGUMENTS


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
    assert after == before
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
def test_a_result_tells_where_training_and_evaluation_were_done(folder, tmp_path, monkeypatch):
    out = shutil.copytree(folder, tmp_path / "out")
    config = out / "none" / "seed-0" / "config.json"
    trained = read_json(config)["commit"]
    write_json(config, {**read_json(config), "device": "H200"})
    later = {**provenance.collect(), "commit": "feedbeef"}
    monkeypatch.setattr(provenance, "collect", lambda: later)
    options = [*ARGUMENTS, "--linf", "0.2", "--out", str(out)]
    tyro.cli(compare.main, args=options)
    expected = ", ".join(sorted({trained, "feedbeef"}))
    told = read_json(out / "comparison.json")
    assert told["commit"] == expected
    assert told["device"] == f"H200 and {later['device']}"
    assert told["versions"] == later["versions"]
    assert not {"commit", "device", "versions"} & told["runs"][0].keys()


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
        trained | {"config": trained["config"] | {"seed": 1}, "device": "another"},
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


@pytest.mark.usefixtures("undrawn")
def test_two_classes_are_attacked_without_the_loss_that_needs_three(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HESSJAX_DATA", str(tmp_path))
    digits = load("digits")
    arrays: dict[str, Any] = {"num_classes": 2}
    for split in ("train", "test"):
        images, labels = getattr(digits, f"{split}_images"), getattr(digits, f"{split}_labels")
        few = labels < 2
        arrays[f"{split}_images"] = np.asarray(255 * images[few], np.uint8)
        arrays[f"{split}_labels"] = labels[few]
    arrays["train_mean"] = arrays["train_images"].mean() / 255
    write_arrays(tmp_path / "two" / "arrays.npz", arrays)
    out = tmp_path / "out"
    options = ["--data", "two", "--methods", "none", "--model", "mlp", "--activation", "relu"]
    options += ["--epochs", "2", "--batch-size", "32", "--l2", "1", "--linf", "0.1"]
    tyro.cli(compare.main, args=[*options, "--num-steps", "4", "--out", str(out)])
    found = read(out)
    assert found["attack"]["losses"] == ["cross-entropy"]
    (entry,) = found["runs"]
    assert entry["clean"] > entry["robust"]["l2"][1]
    # By itself it is the same attack: nothing is replaced.
    capsys.readouterr()
    tyro.cli(evaluate.main, args=[str(out / "none" / "seed-0"), "--num-steps", "4"])
    assert "replacing" not in capsys.readouterr().err
