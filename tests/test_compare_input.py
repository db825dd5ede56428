"""What a comparison refuses: bad options, and folders that hold something else or are in use."""

import shutil

import pytest
import tyro

from experiments import compare, comparison, evaluate, runs
from experiments.files import read_json, write_json
from tests.compared import ARGUMENTS


def test_other_settings_are_refused_before_any_work(folder):
    arguments = [*ARGUMENTS, "--epochs", "3", "--out", str(folder)]
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(compare.main, args=arguments)
    assert "holds a run with other settings (epochs 2, not 3;" in str(stopped.value.code)


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
        (["--methods", "none", "hessian:1,every=9999"], "every must be at most the 630 steps of"),
        (["--batch-size", "2000"], "batch_size must be at most the 1347 training examples, got"),
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


def test_a_damaged_comparison_is_told_before_any_work(folder, tmp_path, monkeypatch):
    """Whether or not it is of the same settings."""
    monkeypatch.setattr(comparison, "train", lambda *_, **__: pytest.fail("trained"))
    out = tmp_path / "out"
    out.mkdir()
    content = read_json(folder / "comparison.json")
    for damage in ({"runs": [{}]}, {"runs": None}, {"versions": None}, {"failed": None}):
        write_json(out / "comparison.json", {**content, **damage})
        for options in ([], ["--epochs", "3"]):
            with pytest.raises(SystemExit, match=r"error: .*comparison\.json.*: restore it, or"):
                tyro.cli(compare.main, args=[*ARGUMENTS, *options, "--out", str(out)])


def test_what_a_name_does_not_keep_needs_another_folder(folder, tmp_path):
    content = read_json(folder / "comparison.json")
    # As written before these settings existed.
    del content["setup"]["precision"], content["apgd_examples"]
    write_json(tmp_path / "comparison.json", content)
    options = [*ARGUMENTS, "--methods", "none", "--out", str(tmp_path)]
    for more, remedy in (
        (["--num-steps", "5"], "name their methods and seeds, too, or another folder"),
        (["--epochs", "3"], "name another folder"),
    ):
        lost = rf"\(\w+\), and gradient-0.5/seed-0 would be lost: {remedy}$"
        with pytest.raises(SystemExit, match=lost):
            tyro.cli(compare.main, args=[*options, *more])


def test_the_folder_of_a_run_holds_no_comparison(folder):
    out = folder / "none" / "seed-0"
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(compare.main, args=[*ARGUMENTS, "--out", str(out)])
    assert "is a file or the folder of a run: name another" in str(stopped.value.code)


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


def test_a_second_process_in_the_same_folder_is_refused(folder):
    run = folder / "none" / "seed-0"
    for path, main, arguments in (
        (folder, compare.main, [*ARGUMENTS, "--out", str(folder)]),
        (run, evaluate.main, [str(run), "--num-steps", "1"]),
    ):
        with runs.locked(path), pytest.raises(SystemExit) as stopped:
            tyro.cli(main, args=arguments)
        assert f"another process is working in {path}" in str(stopped.value.code)
