"""APGD at several radii: against one radius alone, and a linear network's distances."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import apgd, devices, runs
from experiments.data import Dataset
from experiments.files import read_json, write_json
from experiments.loading import load_for
from hessjax import LpBall
from hessjax.attacks import AttackResult, apgd_attack, auto_attack
from hessjax.attacks.autoattack import ROBUST

SHORT = (apgd_attack(num_steps=4), apgd_attack(num_steps=4, num_targets=2))
RADII = {"l2": (0.2, 0.4, 0.6), "linf": (0.05,)}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apgd, "_ATTACKS", SHORT)


@pytest.fixture
def network(run: Path, tmp_path: Path) -> tuple[runs.Run, Dataset]:
    loaded = runs.load(run)
    return loaded._replace(path=tmp_path), load_for(loaded.config)


def alone(run: runs.Run, dataset: Dataset, radius: float, order: float) -> np.ndarray:
    """Return which of the first 40 examples withstand the attacks at one radius."""
    x, y = jnp.asarray(dataset.test_images[:40]), jnp.asarray(dataset.test_labels[:40])
    logits_fn = jax.tree_util.Partial(run.apply, run.params)
    key = jax.random.key(run.config.seed)
    result = auto_attack(logits_fn, x, y, LpBall(radius, order), key, attacks=SHORT)
    return np.asarray(result.robust)


def test_a_curve_counts_what_withstands_a_larger_radius(
    network: tuple[runs.Run, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = []

    def noting(*given: Any, resume: AttackResult | None, **options: Any) -> AttackResult:
        left.append(40 if resume is None else int(jnp.sum(resume.broken_by == ROBUST)))
        return auto_attack(*given, resume=resume, **options)

    monkeypatch.setattr(apgd, "auto_attack", noting)
    found = apgd.evaluate(*network, RADII, 40)["robust"]
    # Only what was broken at the radius before is attacked, and what is misclassified never is.
    clean = alone(*network, 1e-6, 2).mean()
    broken = [round(40 * (clean - found["l2"][name])) for name in ("0.6", "0.4")]
    assert left == [40, *broken, 40]
    assert list(found["l2"]) == ["0.2", "0.4", "0.6"]
    robust = np.zeros(40, bool)
    for radius in (0.6, 0.4, 0.2):
        robust = robust | alone(*network, radius, 2)
        assert found["l2"][f"{radius}"] == robust.mean()
    assert found["linf"]["0.05"] == alone(*network, 0.05, np.inf).mean()
    assert 0 < found["l2"]["0.6"] < found["l2"]["0.2"] < 1, "the radii are to matter"
    on_two = apgd.evaluate(*_elsewhere(network), RADII, 40, mesh=devices.mesh(2))["robust"]
    assert on_two == found


def _elsewhere(network: tuple[runs.Run, Dataset]) -> tuple[runs.Run, Dataset]:
    run, dataset = network
    (run.path / "other").mkdir()
    return run._replace(path=run.path / "other"), dataset


def test_what_is_there_is_not_attacked_again(
    network: tuple[runs.Run, Dataset],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, _ = network
    there = {"num_examples": 9, "seed": run.config.seed, "robust": {"l2": {"0.2": 0.5, "1": 0.25}}}
    write_json(run.path / "apgd.json", there)
    called = []

    def noted(*_: object, radii: tuple[float, ...], **__: object) -> list[tuple[float, np.ndarray]]:
        called.append(tuple(radii))
        return [(radius, np.array([True, False])) for radius in radii]

    monkeypatch.setattr(apgd, "_withstood", noted)
    found = apgd.evaluate(*network, {"l2": (1.0, 0.2), "linf": ()}, 9)["robust"]
    assert found == there["robust"]
    assert called == []
    assert not capsys.readouterr().err
    # At 0.2 alone, what withstood 1 would not count.
    found = apgd.evaluate(*network, {"l2": (0.3, 0.2)}, 9)["robust"]
    assert found == {"l2": {"0.2": 0.5, "0.3": 0.5}}
    assert called == [(0.2, 0.3)]
    assert "apgd.json: replacing results at l2 1\n" in capsys.readouterr().err
    apgd.evaluate(*network, {"linf": (0.1,)}, 9)
    told = read_json(run.path / "apgd.json")["robust"]
    assert told == {**found, "linf": {"0.1": 0.5}}
    assert not capsys.readouterr().err
    # Of other examples it tells nothing.
    apgd.evaluate(*network, {"l2": (0.2,)}, 8)
    assert called == [(0.2, 0.3), (0.1,), (0.2,)]
    assert "apgd.json: replacing results of other settings" in capsys.readouterr().err
    (run.path / "apgd.json").write_text("half of a fi", encoding="utf-8")
    with pytest.raises(ValueError, match=r"apgd.json holds no JSON .*: delete it to measure anew"):
        apgd.evaluate(*network, {"l2": (0.2,)}, 8)
