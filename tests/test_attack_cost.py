"""What an evaluation under attack costs: a short one, on a network that is trained quickly."""

import shutil
from functools import partial

import jax
import numpy as np
import pytest
import tyro

from experiments import runs
from experiments.benchmarks import attack_cost, harness
from experiments.config import Config
from experiments.files import read_json
from experiments.loading import load_for
from hessjax.attacks import STANDARD, square_attack
from tests.test_records import clean

SHORT = (*STANDARD[:1], square_attack(num_steps=30))
ATTACKS = ["pgd-40", "apgd-ce", "square", "auto_attack"]


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(attack_cost, "STANDARD", SHORT)


@pytest.fixture
def target(run):
    loaded = runs.load(run)
    dataset = load_for(loaded.config)
    return attack_cost.choose(loaded, dataset, norm="linf", epsilon=0.05, num_examples=40)


def call(*options):
    tyro.cli(attack_cost.main, args=[str(option) for option in options])


@pytest.mark.usefixtures("short")
def test_results_are_complete(run, tmp_path, capsys):
    out = tmp_path / "cost.json"
    options = [run, "--norm", "linf", "--epsilon", 0.05, "--num-examples", 40, "--repeats", 2]
    call(*options, "--out", out)
    found = read_json(out)
    assert {"commit", "versions", "dirty", "environment"} <= set(found)
    assert found["settings"] == {"repeats": 2, "num_examples": 40, "batch_size": None}
    rows = {row["attack"]: row for row in found["rows"]}
    assert list(rows) == ATTACKS
    for row in rows.values():
        assert (row["data"], row["model"], row["method"]) == ("digits", "mlp", "none")
        assert (row["norm"], row["epsilon"]) == ("linf", 0.05)
        assert row["clean"] >= row["robust"] >= rows["auto_attack"]["robust"]
        seconds = row["seconds_per_1000"]
        assert 0 < seconds["lower"] <= seconds["median"] <= seconds["upper"]
        assert seconds["repeats"] == 2
        assert row["compile_seconds"] > 0
    assert rows["pgd-40"]["robust"] < rows["pgd-40"]["clean"]
    parts = sum(rows[attack.name]["compile_seconds"] for attack in SHORT)
    assert rows["auto_attack"]["compile_seconds"] == pytest.approx(parts)
    assert "seconds for 1,000 images" in capsys.readouterr().out


@pytest.mark.usefixtures("short")
def test_seconds_are_for_1000_images(target, monkeypatch):
    monkeypatch.setattr(
        harness,
        "take_turns",
        lambda calls, *, repeats: {
            name: (call(), harness.Timing(2.0, 1.0, 3.0, repeats))[1]
            for name, call in calls.items()
        },
    )
    for row in attack_cost.measure_attacks(target, repeats=1):
        expected = {"median": 50, "lower": 25, "upper": 75, "repeats": 1}
        assert row["seconds_per_1000"] == expected


@pytest.mark.usefixtures("short")
def test_nothing_is_compiled_while_the_clock_runs(target, monkeypatch):
    """Neither for long batches nor for the short ones of what is left, here 8 and 2 examples.

    Two long ones come to the first attack, two short ones to the next.
    """
    found = attack_cost.by_pgd(target, 0.15)
    withstand, break_ = found["robust"], found["clean"] & ~found["robust"]
    few = np.concatenate([np.flatnonzero(withstand)[:3], np.flatnonzero(break_)[:13]])
    target = target._replace(x=target.x[few], y=target.y[few], epsilon=0.15, batch_size=8)
    compiled, counting = [], []

    def listen(event, *_, **__):
        if counting and event.endswith("backend_compile_duration"):
            compiled.append(event)

    def turns(calls, *, repeats):
        counting.append(True)
        result = original(calls, repeats=repeats)
        counting.clear()
        return result

    original = harness.take_turns
    monkeypatch.setattr(harness, "take_turns", turns)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        rows = attack_cost.measure_attacks(target, repeats=1)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert [round(16 * row["robust"]) for row in rows] == [3, 3, pytest.approx(8, abs=8), 3]
    assert compiled == []


def test_accuracies_are_those_of_the_attacks(target):
    found = attack_cost.by_pgd(target, 1e-6)
    apply, params = target.run.apply, target.run.params
    logits = jax.vmap(partial(apply, params))(target.x)
    np.testing.assert_array_equal(found["clean"], np.argmax(logits, axis=1) == target.y)
    np.testing.assert_array_equal(found["robust"], found["clean"])
    assert not attack_cost.by_pgd(target, 1.0)["robust"].any()


@pytest.mark.usefixtures("short")
def test_what_is_there_is_not_measured_again(run, tmp_path, monkeypatch):
    clean(monkeypatch)
    measured = []

    def fake(target, *, repeats):
        measured.append((target.epsilon, repeats))
        row = {"attack": "pgd-40", "clean": 1, "robust": 1, "seconds_per_1000": {"median": 1}}
        return [row]

    monkeypatch.setattr(attack_cost, "measure_attacks", fake)
    out = tmp_path / "cost.json"
    for epsilon in (0.05, 0.1, 0.05):
        call(run, "--norm", "linf", "--epsilon", epsilon, "--out", out)
    assert measured == [(0.05, 3), (0.1, 3)]
    assert [row["epsilon"] for row in read_json(out)["rows"]] == [0.05, 0.1]
    call(run, "--norm", "linf", "--epsilon", 0.05, "--repeats", 1, "--out", out)
    assert measured[2:] == [(0.05, 1)]


def test_a_network_of_other_weights_is_another_one(target, tmp_path, monkeypatch):
    clean(monkeypatch)
    row = {"attack": "pgd-40", "clean": 1, "robust": 1, "seconds_per_1000": {"median": 1}}
    measured = []
    monkeypatch.setattr(
        attack_cost, "measure_attacks", lambda target, **_: measured.append(target) or [row]
    )
    doubled = jax.tree.map(lambda weight: 2 * weight, target.run.params)
    other = target._replace(run=target.run._replace(params=doubled))
    for one in (target, other, target):
        attack_cost.add(one, repeats=1, path=tmp_path / "cost.json")
    assert measured == [target, other]


def test_without_a_run_the_default_network_is_trained(run, monkeypatch, tmp_path):
    seen = []

    def fake(config, _, path):
        seen.append((config, path))
        shutil.copytree(run, path)

    monkeypatch.setattr(attack_cost, "train", fake)
    monkeypatch.setattr(
        attack_cost, "add", lambda target, **options: seen.append((target, options))
    )
    call("--out", tmp_path / "cost.json")
    (config, path), (target, options) = seen
    assert config == Config().resolved()
    assert not path.exists()
    assert (target.norm, target.epsilon, len(target.y), options["repeats"]) == ("l2", 0.75, 200, 3)
    assert target.run.config.model == "mlp"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--num-examples", 0],
            "error: num_examples must be from 1 to 450, the number of test images, got 0",
        ),
        (
            ["--num-examples", 9999],
            "error: num_examples must be from 1 to 450, the number of test images, got 9999",
        ),
        (["--repeats", 0], "error: repeats must be at least 1, got 0"),
        (["--epsilon", -1], "error: epsilon must be a finite positive number, got -1.0"),
        (["--batch-size", 0], "error: batch_size must be at least 1, got 0"),
    ],
)
def test_bad_numbers_get_one_sentence_before_any_work(run, options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(attack_cost, "train", lambda *_: pytest.fail("trained before"))
    monkeypatch.setattr(attack_cost, "measure_attacks", lambda *_: pytest.fail("attacked before"))
    for network in ([run], []):
        with pytest.raises(SystemExit) as stopped:
            call(*network, *options, "--out", tmp_path / "cost.json")
        assert stopped.value.code == message


def test_another_file_is_refused_before_any_training(monkeypatch, tmp_path):
    monkeypatch.setattr(attack_cost, "train", lambda *_: pytest.fail("trained before"))
    (tmp_path / "cost.json").write_text('{"cells": []}')
    for out, message in ((tmp_path, "is a folder"), (tmp_path / "cost.json", "something other")):
        with pytest.raises(SystemExit, match=message):
            call("--out", out)


def test_a_folder_that_is_no_run_gets_one_sentence(tmp_path):
    with pytest.raises(SystemExit) as stopped:
        call(tmp_path)
    assert "is not a run directory" in str(stopped.value.code)


def test_an_unknown_norm_is_refused(run, capsys):
    with pytest.raises(SystemExit) as stopped:
        call(run, "--norm", "l1")
    assert stopped.value.code == 2
    assert "l1" in capsys.readouterr().err
