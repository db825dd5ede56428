"""Runs of a comparison that fail or are interrupted."""

import shutil
import signal
from functools import partial

import jax
import pytest
import tyro

from experiments import compare, comparison, session
from experiments.files import read_json, write_json
from experiments.reading import read
from tests.compared import ARGUMENTS


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


@pytest.mark.usefixtures("undrawn")
def test_damaged_metrics_are_told_with_a_remedy(folder, tmp_path):
    out = shutil.copytree(folder, tmp_path / "out")
    path = out / "none" / "seed-0"
    (path / "metrics.jsonl").write_text('{"step": 1, "lo')
    remedy = rf"metrics.jsonl is damaged: delete {path} to train it again"
    with pytest.raises(SystemExit, match=f"1 of the runs failed:\n.*{remedy}"):
        tyro.cli(compare.main, args=[*ARGUMENTS, "--out", str(out)])
