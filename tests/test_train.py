"""The training loop, on the embedded digits."""

import dataclasses
import json
import signal

import numpy as np
import pytest
import tyro

from experiments import data, runs, train
from experiments.config import Config
from experiments.files import read_json

CONFIG = Config(method="none", model="mlp", activation="relu", epochs=2).resolved()


@pytest.fixture(scope="module")
def digits():
    return train.load_for(CONFIG)


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    return path, train.train(CONFIG, digits, path)


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard():
    """A test that runs in the background starts with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_training_learns_and_leaves_everything(trained, digits):
    path, training = trained
    steps = 2 * (len(digits.train_labels) // 64)
    assert training == read_json(path / "training.json")
    assert training["completed"]
    assert training["steps"] == steps
    assert 0 < training["seconds_per_step"] < training["seconds"]
    metrics = lines(path)
    assert [line["step"] for line in metrics] == [1, 21, 41, steps]
    assert metrics[-1]["accuracy"] > 0.85 > metrics[0]["accuracy"]
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    run = runs.load(path)
    predicted = np.argmax(run.apply(run.params, digits.test_images), axis=1)
    assert np.mean(predicted == digits.test_labels) > 0.8


def test_the_seed_decides_everything(trained, digits, tmp_path):
    path, _ = trained
    train.train(CONFIG, digits, tmp_path / "again")
    train.train(dataclasses.replace(CONFIG, seed=1), digits, tmp_path / "other")
    weights, again, other = (
        runs.load(p).params for p in (path, tmp_path / "again", tmp_path / "other")
    )
    for name, value in weights.items():
        np.testing.assert_array_equal(value, again[name])
    assert np.any(weights["dense/0/kernel"] != other["dense/0/kernel"])


def test_the_penalty_grows_during_the_warmup(digits, tmp_path):
    config = dataclasses.replace(
        CONFIG, method="gradient", strength=2.0, epochs=3, warmup_epochs=2.0
    )
    train.train(config, digits, tmp_path)
    weights = {
        line["step"]: (line["objective"] - line["loss"]) / line["gradient_norm"]
        for line in lines(tmp_path)
    }
    assert weights[1] == 0
    # Lines are means over the twenty steps up to theirs.
    assert weights[21] == pytest.approx(2 * 10.5 / 42, rel=0.1)
    assert weights[63] == pytest.approx(2, rel=1e-4)


def interrupting(step, times=1):
    """Return a stand-in for the batches that presses Ctrl-C before a step."""

    def batches(*arguments, **options):
        for number, batch in enumerate(data.batches(*arguments, **options), start=1):
            if number == step:
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)
            yield batch

    return batches


def test_ctrl_c_keeps_what_was_trained(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "batches", interrupting(5))
    arguments = ["--method", "none", "--model", "mlp", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(train.main, args=arguments)
    assert stopped.value.code == 130
    assert "interrupted after step 5: its weights are in" in capsys.readouterr().out
    assert read_json(tmp_path / "run" / "training.json")["completed"] is False
    assert lines(tmp_path / "run")[-1]["step"] == 5
    run = runs.load(tmp_path / "run")
    assert np.all(np.isfinite(run.apply(run.params, digits.test_images)))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_stops_at_once(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "batches", interrupting(5, times=2))
    with pytest.raises(KeyboardInterrupt):
        train.train(CONFIG, digits, tmp_path)


def test_stopped_inside_a_step_the_weights_before_it_are_kept(digits, tmp_path, monkeypatch):
    """Inside, the state that went into the step is gone: its buffers were given away."""
    build = train.train_step

    def interrupted_in_step(objective, optimizer):
        step, taken = build(objective, optimizer), iter(range(100))

        def inside(state, batch):
            after = step(state, batch)
            if next(taken) == 30:
                raise KeyboardInterrupt
            return after

        return inside

    monkeypatch.setattr(train, "train_step", interrupted_in_step)
    with pytest.raises(KeyboardInterrupt):
        train.train(CONFIG, digits, tmp_path)
    assert read_json(tmp_path / "training.json")["steps"] == 21
    run = runs.load(tmp_path)
    predicted = np.argmax(run.apply(run.params, digits.test_images), axis=1)
    assert np.mean(predicted == digits.test_labels) > 0.2


def test_a_loss_of_nan_stops_and_keeps_finite_weights(digits, tmp_path):
    config = dataclasses.replace(CONFIG, learning_rate=1e30)
    with pytest.raises(train.DivergedError, match=r"diverged at step 2: .*loss is nan.*smaller"):
        train.train(config, digits, tmp_path)
    assert read_json(tmp_path / "training.json")["completed"] is False
    for value in runs.load(tmp_path).params.values():
        assert np.all(np.isfinite(value))


def test_a_validation_split_is_held_out(digits):
    split = train.load_for(dataclasses.replace(CONFIG, validation=100))
    np.testing.assert_array_equal(split.test_images, digits.train_images[-100:])
    np.testing.assert_array_equal(split.train_images, digits.train_images[:-100])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "ridge"], "unknown method 'ridge': there are none, gradient"),
        (["--model", "vit"], "unknown model 'vit': there are mlp, cnn"),
        (["--data", "Digits!"], "unknown data set 'Digits!'"),
        (["--strength", "-1"], "strength must be a finite number, at least 0, got -1"),
        (["--batch-size", "5000"], "batch_size must be at most the 1347 training examples, got 5"),
        (["--validation", "1347"], "cannot hold out 1347 of 1347 training examples"),
        (["--activation", "swish"], "unknown activation 'swish': there are relu"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(arguments, message, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(train.main, args=[*arguments, "--out", str(tmp_path / "run")])
    assert str(stopped.value.code).startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()


def test_wrong_data_are_told(digits, monkeypatch):
    wrong = digits._replace(test_labels=digits.test_labels + 1)
    monkeypatch.setattr(train, "load", lambda *_, **__: wrong)
    with pytest.raises(ValueError, match="labels must be from 0 to 9, got 10"):
        train.load_for(CONFIG)
