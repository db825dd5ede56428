"""Steps timed apart from their trainings, and the table that takes its times from there."""

import pytest
import tyro

from experiments.benchmarks import harness, records, step_times
from experiments.benchmarks.harness import Timing
from experiments.config import Config, parse_method
from experiments.data import load
from experiments.files import read_json, write_json
from experiments.reading import read
from experiments.table import table
from experiments.words import explained
from tests.stored import comparison, run

METHODS = ("none", "hessian-inside:0.5:0.25", "gradient:2,every=3")
SETUP = {"data": "digits", "model": "mlp", "activation": "relu", "batch_size": 8, "epochs": 1}


def entry(name):
    config = Config(**SETUP, **parse_method(name)).resolved()
    numbers = {key: getattr(config, key) for key in ("method", "strength", "step", "options")}
    path = f"{config.name.replace(':', '-')}/seed-0"
    return run(config.method, 0, path=path, seconds_per_step=None) | numbers


@pytest.fixture
def folder(tmp_path):
    content = comparison([entry(name) for name in METHODS]) | {"setup": SETUP}
    write_json(tmp_path / "comparison.json", content)
    return tmp_path


def times(folder):
    head, _, *rows = (line.split("|") for line in table(read(folder)).splitlines())
    column = [cell.strip() for cell in head].index("time/step")
    return [row[column].strip() for row in rows]


def test_steps_are_those_of_the_trainings_and_their_times_go_into_the_table(folder, monkeypatch):
    monkeypatch.setattr(harness, "_MIN_REPEATS", 1)
    tyro.cli(step_times.main, args=[str(folder), "--repeats", "1"])
    seconds = read_json(folder / "step_times.json")["seconds"]
    assert list(seconds) == ["none", "hessian-inside-0.5-0.25", "gradient-2,every=3"]
    assert all(0 < told["lower"] <= told["median"] <= told["upper"] for told in seconds.values())
    plain, inside, lazy = (told["median"] for told in seconds.values())
    assert times(folder) == ["1.00×", f"{inside / plain:.2f}×", f"{lazy / plain:.2f}×"]


def test_the_accuracy_that_a_training_logs_is_not_timed():
    config = Config(**SETUP, **parse_method("none")).resolved()
    assert set(step_times._stepping(config, load("digits"))()) == {"loss", "objective"}


def test_steps_of_a_comparison_of_other_settings_have_their_defaults(folder):
    """Settings that went, as these have in earlier comparisons, say nothing."""
    content = read_json(folder / "comparison.json")
    gone = {"norm": "l2", "method": "hessian", "strength": 2.0, "step": None, "seed": 7}
    earlier = step_times._configs(content | {"setup": SETUP | gone})
    assert earlier == step_times._configs(content)
    assert {config.learning_rate for config in earlier.values()} == {Config().learning_rate}


def test_a_lazy_penalty_is_timed_over_a_whole_cycle(folder, monkeypatch):
    def first_step(config, dataset, *, accuracy):
        assert not accuracy
        assert len(dataset.train_labels) > config.batch_size

        def step(state, batch):
            assert [len(leaf) for leaf in batch] == [8, 8]
            return state + 1, {"steps": state + 1}

        return None, step, 0

    def measured(calls, *, repeats):
        assert [call()["steps"] for call in calls.values()] == [1, 1, 3]
        return {name: Timing(6.0, 3.0, 9.0, repeats) for name in calls}

    monkeypatch.setattr(step_times, "first_step", first_step)
    monkeypatch.setattr(harness, "measure", measured)
    tyro.cli(step_times.main, args=[str(folder)])
    assert times(folder) == ["1.00×", "1.00×", "0.33×"]
    assert f"`none`, measured in turns on {records.device_name()}, " in explained(read(folder))


def test_a_method_that_came_later_has_no_time(folder):
    told = {"none": {"median": 2.0}, "gradient-2,every=3": {"median": 3.0}}
    write_json(folder / "step_times.json", {"seconds": told, "device": "one", "commit": "1"})
    assert times(folder) == ["1.00×", "-", "1.50×"]


def test_times_of_other_trainings_are_not_taken(folder):
    path = f"{METHODS[0]}/seed-0"
    content = read_json(folder / "comparison.json")
    content["runs"] = [one | {"seconds_per_step": 7.0} for one in content["runs"]]
    write_json(folder / "comparison.json", content)
    told = {"seconds": {"none": {"median": 2.0}}, "device": "one", "commit": "1"}
    # A setting that came later is in one of them alone.
    write_json(folder / "step_times.json", told | {"setup": {"later": 1, **SETUP}})
    assert {run["path"]: run["seconds_per_step"] for run in read(folder)["runs"]}[path] == 2.0
    write_json(folder / "step_times.json", told | {"setup": SETUP | {"batch_size": 9}})
    found = read(folder)
    assert {run["path"]: run["seconds_per_step"] for run in found["runs"]}[path] == 7.0
    assert "measured in turns" not in explained(found)


@pytest.mark.parametrize(
    ("change", "option", "message"),
    [
        (lambda content: content.pop("setup"), "20", "does not record its setup"),
        (lambda content: content.pop("norms"), "20", "lacks norms"),
        (lambda _: None, "9", "repeats must be at least 10, got 9"),
    ],
    ids=["setup", "norms", "repeats"],
)
def test_what_cannot_be_timed_is_said_before_any_work(folder, change, option, message, monkeypatch):
    monkeypatch.setattr(step_times, "first_step", lambda *_, **__: pytest.fail("began before"))
    content = read_json(folder / "comparison.json")
    change(content)
    write_json(folder / "comparison.json", content)
    with pytest.raises(SystemExit, match=message):
        tyro.cli(step_times.main, args=[str(folder), "--repeats", option])
    assert not (folder / "step_times.json").exists()
