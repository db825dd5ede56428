"""The comparisons with other packages, on a small network, with short attacks."""

import numpy as np
import pyautoattack
import pytest
import tyro

from experiments import crosscheck, parity
from experiments.files import read_json
from experiments.train import load_for
from hessjax.attacks import STANDARD, square_attack

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
    row = f"| digits | mlp | none | ℓ∞ 0.05 | {100 * robust['hessjax']:.1f} |"
    assert row in capsys.readouterr().out

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
    assert "| digits | mlp | none | ℓ∞ 0.05 |" in capsys.readouterr().out


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
