"""The comparisons with other packages, on a small network, with short attacks."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from time import sleep

import numpy as np
import pyautoattack
import pytest
import tyro

from experiments import cells, crosscheck, parity
from experiments.files import read_json, write_json
from experiments.loading import load_for
from hessjax.attacks import STANDARD, square_attack
from tests.stored import columns

SHORT = (*STANDARD[:1], square_attack(num_steps=30))


class Short(pyautoattack.AutoAttack):
    """The reference with as little to do."""

    def __init__(self, model, *, norm, eps, seed):
        super().__init__(
            model, norm=norm, eps=eps, seed=seed, version="custom", attacks=["apgd-ce", "square"]
        )
        self.apgd.n_restarts, self.square.n_queries = 1, 30


def test_both_implementations_agree(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parity, "STANDARD", SHORT)
    monkeypatch.setattr(parity, "AutoAttack", Short)
    out = tmp_path / "parity.json"
    options = [str(run), "--norm", "linf", "--epsilon", "0.05", "--num-examples", "60"]
    tyro.cli(parity.main, args=[*options, "--out", str(out)])
    (cell,) = read_json(out)["cells"]
    robust = cell["robust"]
    assert 0.1 < robust["hessjax"] < 0.9
    assert abs(robust["hessjax"] - robust["reference"]) <= 1 / 60
    only = cell["only_robust"]
    apart = round(60 * (robust["hessjax"] - robust["reference"]))
    assert apart == only["hessjax"] - only["reference"]
    assert set(cell["seconds"]) == {"compile", "hessjax", "reference"}
    *_, row = columns(capsys.readouterr().out)
    assert row[:5] == ["digits", "mlp", "none", "ℓ∞ 0.05", f"{100 * robust['hessjax']:.1f}"]

    monkeypatch.setattr(parity, "compare", None)  # what is there is not done again
    tyro.cli(parity.main, args=[*options, "--out", str(out)])
    assert len(read_json(out)["cells"]) == 1


def test_foolbox_breaks_little_that_withstood(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(crosscheck._ATTACKS, "linf", {"PGD": crosscheck._ATTACKS["linf"]["PGD"]})
    seen = []

    def short(*args, **options):
        result = original(*args, attacks=SHORT, **options)
        seen.append(np.asarray(result.robust))
        return result

    original = crosscheck.auto_attack
    monkeypatch.setattr(crosscheck, "auto_attack", short)
    out = tmp_path / "crosscheck.json"
    options = [str(run), "--norm", "linf", "--epsilon", "0.05", "--num-examples", "60"]
    tyro.cli(crosscheck.main, args=[*options, "--out", str(out)])
    (cell,) = read_json(out)["cells"]
    assert cell["robust"] == seen[0].mean()
    assert cell["foolbox"]["PGD"]["broken"] <= 1
    assert abs(cell["foolbox"]["PGD"]["robust"] - cell["robust"]) < 0.1
    *_, row = columns(capsys.readouterr().out)
    assert row[:4] == ["digits", "mlp", "none", "ℓ∞ 0.05"]


def test_an_example_only_foolbox_breaks_is_counted(run, monkeypatch):
    """A single query breaks little here; foolbox goes on."""
    monkeypatch.setitem(crosscheck._ATTACKS, "linf", {"PGD": crosscheck._ATTACKS["linf"]["PGD"]})
    original = crosscheck.auto_attack
    none = (square_attack(num_steps=1),)
    monkeypatch.setattr(crosscheck, "auto_attack", lambda *a: original(*a, attacks=none))
    loaded = crosscheck.runs.load(run)
    found = crosscheck.crosscheck(loaded, load_for(loaded.config), "linf", 0.05, 60)
    assert found["foolbox"]["PGD"]["broken"] > 2


@pytest.mark.parametrize("module", [parity, crosscheck])
def test_radii_and_runs_have_to_match(module, tmp_path):
    options = ["runs/a", "runs/b", "--epsilon", "1", "2", "3"]
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(module.main, args=[*options, "--out", str(tmp_path / "x.json")])
    assert "epsilon must be one radius, or one for each of the 2 runs, got 3" in str(
        stopped.value.code
    )


def refused(module, *options):
    """Return what a command ends with."""
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(module.main, args=[str(option) for option in options])
    return str(stopped.value.code)


@pytest.fixture(params=[parity, crosscheck], ids=["parity", "crosscheck"])
def idle(request, monkeypatch):
    """A program that must not come to its first attack."""
    monkeypatch.setattr(request.param, "auto_attack", None)
    return request.param


@pytest.fixture
def in_bfloat16(run, tmp_path):
    """The run as one that computes in bfloat16."""
    path = shutil.copytree(run, tmp_path / "bfloat16")
    content = read_json(path / "config.json")
    content["network"]["precision"] = "bfloat16"
    write_json(path / "config.json", content)
    return path


@pytest.mark.parametrize("count", [0, 451])
def test_there_have_to_be_so_many_examples(idle, run, tmp_path, count):
    told = refused(idle, run, "--num-examples", count, "--out", tmp_path / "x.json")
    assert told == (
        f"error: num_examples must be from 1 to 450, the number of test images, got {count}"
    )


def test_without_a_run_there_is_nothing_to_do(idle, tmp_path):
    told = refused(idle, "--out", tmp_path / "x.json")
    assert told == "error: no run is named, expected a folder that experiments.train wrote"


def test_all_is_looked_at_before_the_first_attack(idle, run, in_bfloat16, tmp_path):
    out = ["--out", tmp_path / "x.json"]
    assert "nothing is not a run directory" in refused(idle, run, tmp_path / "nothing", *out)
    assert "computes in bfloat16" in refused(idle, run, in_bfloat16, *out)
    assert "epsilon must be" in refused(idle, run, run, "--epsilon", 1, -1, *out)
    assert not (tmp_path / "x.json").exists()


def test_a_network_without_twin_is_refused_before_autoattack(idle, in_bfloat16):
    loaded = parity.runs.load(in_bfloat16)
    measure = idle.compare if idle is parity else idle.crosscheck
    with pytest.raises(ValueError, match="computes in bfloat16"):
        measure(loaded, load_for(loaded.config), "linf", 0.05, 60)


def test_results_are_not_added_to_something_else(idle, run, tmp_path):
    told = refused(idle, run, "--out", tmp_path)
    assert told == f"error: out must be a JSON file, but {tmp_path} is a folder"
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "x.json"
    assert f"error: {place} cannot be written: " in refused(idle, run, "--out", place)
    theirs = {"data": "digits", "model": "mlp", "method": "none", "norm": "l2", "epsilon": 1.0}
    for content in ({"rows": []}, {"cells": {"a": 1}}, {"cells": [theirs]}):
        out = tmp_path / "other.json"
        write_json(out, content)
        told = refused(idle, run, "--out", out)
        assert told == (
            f"error: {out} holds something other than this program's results: name another file"
        )
        assert read_json(out) == content


def test_processes_that_measure_at_once_keep_the_results_of_all(run, tmp_path, monkeypatch):
    out, meeting = tmp_path / "x.json", Barrier(3)

    def slowly(path, content):
        sleep(0.1)  # as long as others may need to read what this is about to replace
        write_json(path, content)

    def by(*_, epsilon, num_examples):
        meeting.wait(60)
        return {"product": epsilon * num_examples}

    def measure(epsilon):
        cells.measure_each(
            [run], [{"epsilon": epsilon, "num_examples": 10}], out=out, data_dir=None, by=by,
            shown=lambda found: "\n".join(str(cell["product"]) for cell in found),
        )  # fmt: skip

    monkeypatch.setattr(cells, "write_json", slowly)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(measure, [1.0, 2.0, 3.0]))
    assert sorted(cell["product"] for cell in read_json(out)["cells"]) == [10, 20, 30]
