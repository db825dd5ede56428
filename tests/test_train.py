"""The training loop, on the embedded digits."""

import dataclasses
import json
import shutil
import signal

import jax
import numpy as np
import pytest
import tyro
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

from experiments import data, devices, loading, provenance, runs, train
from experiments.checkpoints import Checkpoints
from experiments.config import Config, parse_method
from experiments.files import read_json
from experiments.interruption import Interrupted
from experiments.session import DivergedError
from hessjax import train_step

CONFIG = Config(method="none", model="mlp", activation="relu", epochs=2).resolved()


@pytest.fixture(scope="module")
def digits():
    return loading.load_for(CONFIG)


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    return path, train.train(CONFIG, digits, path)


@pytest.fixture(autouse=True)
def _signals_are_heard():
    """A test that runs in the background starts with SIGINT ignored, under nohup with SIGHUP."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        **{n: signal.signal(n, signal.SIG_DFL) for n in (signal.SIGTERM, signal.SIGHUP)},
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_training_learns_and_leaves_everything(trained, digits):
    path, training = trained
    steps = 2 * (len(digits.train_labels) // 64)
    assert training == read_json(path / "training.json")
    assert training["completed"]
    assert training["steps"] == steps
    # An epoch is so short that there is one at the end only.
    assert [folder.name for folder in (path / "checkpoints").iterdir()] == [str(steps)]
    assert 0 < training["seconds_per_step"] < training["seconds"]
    metrics = lines(path)
    assert [line["step"] for line in metrics] == [1, 21, 41, steps]
    assert metrics[-1]["accuracy"] > 0.85 > metrics[0]["accuracy"]
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    run = runs.load(path)
    predicted = np.argmax(run.apply(run.params, digits.test_images), axis=1)
    assert np.mean(predicted == digits.test_labels) > 0.8


def test_a_watched_training_is_the_same_and_tells_gradient_and_curvature(trained, digits, tmp_path):
    path, _ = trained
    train.train(CONFIG, digits, tmp_path / "watched", watch=4)
    watched = runs.load(tmp_path / "watched")
    for name, value in runs.load(path).params.items():
        np.testing.assert_array_equal(watched.params[name], value)

    def loss(x, y):
        return cross_entropy(watched.apply(watched.params, x), y)

    def dense(x, y):
        return jax.grad(loss)(x, y).ravel(), jax.hessian(loss)(x, y).reshape(x.size, x.size)

    images = np.asarray(digits.test_images[:4], np.float64)
    slopes, hessians = jax.jit(jax.vmap(dense))(images, digits.test_labels[:4])
    gradients = np.linalg.norm(slopes, axis=1)
    curvatures = np.abs(np.linalg.eigvalsh(hessians)).max(axis=1)
    before, after = lines(path), lines(tmp_path / "watched")
    looks = [(line.pop("test_gradient_norm"), line.pop("test_hessian_norm")) for line in after]
    assert after == before
    # Five Lanczos products for a matrix whose rank is at most nine.
    np.testing.assert_allclose(looks[-1], [np.mean(gradients), np.mean(curvatures)], rtol=0.02)
    assert looks[0] != looks[-1]


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


def interrupting(monkeypatch, step, number=signal.SIGINT, times=1):
    """Send a signal before a step."""
    indices = data.batch_indices

    def interrupted(place, *arguments, **options):
        if place == step - 1:
            for _ in range(times):
                signal.raise_signal(number)
        return indices(place, *arguments, **options)

    monkeypatch.setattr(train, "batch_indices", interrupted)


ARGUMENTS = ["--method", "none", "--model", "mlp", "--activation", "relu", "--epochs", "2"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_keeps_what_was_trained(digits, tmp_path, monkeypatch, capsys, number):
    interrupting(monkeypatch, 5, number)
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(train.main, args=[*ARGUMENTS, "--out", str(tmp_path / "run")])
    assert stopped.value.code == 128 + number
    assert "interrupted; --resume continues from what was kept" in capsys.readouterr().err
    training = read_json(tmp_path / "run" / "training.json")
    assert (training["completed"], training["steps"]) == (False, 5)
    run = runs.load(tmp_path / "run")
    assert np.all(np.isfinite(run.apply(run.params, digits.test_images)))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interruption_at_the_last_step_ends_the_program_and_not_the_training(
    tmp_path, monkeypatch
):
    interrupting(monkeypatch, 42, signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(train.main, args=[*ARGUMENTS, "--out", str(tmp_path / "run")])
    assert stopped.value.code == 143
    training = read_json(tmp_path / "run" / "training.json")
    assert (training["completed"], training["steps"]) == (True, 42)


@pytest.mark.parametrize(
    ("method", "steps"), [("none", (5,)), ("none", (1, 21, 30)), ("hessian:1,every=3", (1, 22))]
)
def test_a_resumed_training_is_the_undisturbed_one_bit_for_bit(
    digits, tmp_path, capsys, method, steps
):
    config = Config(**parse_method(method), model="mlp", epochs=2).resolved()
    train.train(config, digits, tmp_path / "whole")
    for step in steps:
        with pytest.MonkeyPatch.context() as patched:
            interrupting(patched, step)
            with pytest.raises(Interrupted):
                train.train(config, digits, tmp_path / "parts", resume=True)
    training = train.train(config, digits, tmp_path / "parts", resume=True)
    assert training["completed"]
    assert f"continuing after step {steps[-1]}\n" in capsys.readouterr().err
    whole, parts = ((tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    assert parts.read_bytes() == whole.read_bytes()
    there, here = (runs.load(tmp_path / name).params for name in ("whole", "parts"))
    for name, value in there.items():
        np.testing.assert_array_equal(value, here[name])


@pytest.mark.parametrize("at", [30, 42])  # within the training, and as it is about to be saved
def test_a_folder_that_is_moved_meanwhile_is_not_begun_anew(tmp_path, monkeypatch, at):
    here, there = tmp_path / "here", tmp_path / "there"
    indices = data.batch_indices

    def moving(place, *arguments, **options):
        if place == at - 1:
            here.rename(there)
        return indices(place, *arguments, **options)

    monkeypatch.setattr(train, "batch_indices", moving)
    with pytest.raises(SystemExit, match=r"error: .*here was moved or deleted during the training"):
        tyro.cli(train.main, args=[*ARGUMENTS, "--checkpoint-every", "1", "--out", str(here)])
    assert not here.exists()
    monkeypatch.undo()
    tyro.cli(train.main, args=[*ARGUMENTS, "--resume", "--out", str(there)])
    assert read_json(there / "training.json")["steps"] == 42
    assert [line["step"] for line in lines(there)] == [1, 21, 41, 42]


def test_lines_after_the_last_checkpoint_are_written_anew(digits, tmp_path, monkeypatch):
    """As after a kill."""
    train.train(CONFIG, digits, tmp_path / "whole")
    interrupting(monkeypatch, 30)
    with pytest.raises(Interrupted):
        train.train(CONFIG, digits, tmp_path / "parts", resume=True)
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "ep')
    train.train(CONFIG, digits, tmp_path / "parts", resume=True)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")


def test_devices_share_the_batches(digits, tmp_path, trained, monkeypatch):
    """Three, by which a batch of 64 does not divide; the rest on others."""
    used = []

    def noting(objective, optimizer):
        step = train_step(objective, optimizer)

        def noted(state, batch):
            state, metrics = step(state, batch)
            used.append({len(a.devices()) for a in (*batch, *jax.tree.leaves(state))})
            return state, metrics

        return noted

    monkeypatch.setattr(train, "train_step", noting)
    with monkeypatch.context() as patched:
        interrupting(patched, 30)
        with pytest.raises(Interrupted):
            train.train(CONFIG, digits, tmp_path, mesh=devices.mesh(3))
    train.train(CONFIG, digits, tmp_path, resume=True, mesh=devices.mesh(2))
    assert used == [{3}] * 30 + [{2}] * 12
    alone = lines(trained[0])
    for there, here in zip(lines(tmp_path), alone, strict=True):
        assert there == pytest.approx(here, rel=1e-4)


def test_resuming_what_is_done_or_not_begun(digits, tmp_path, trained, monkeypatch):
    begun = train.train(CONFIG, digits, tmp_path / "new", resume=True)
    assert begun["completed"]
    path, before = trained
    monkeypatch.setattr(train.Session, "run", lambda _: pytest.fail("done before"))
    assert train.train(CONFIG, digits, path, resume=True) == before


def test_without_resume_a_training_begins_again(digits, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        interrupting(patched, 5)
        with pytest.raises(Interrupted):
            train.train(CONFIG, digits, tmp_path)
    training = train.train(CONFIG, digits, tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [1, 21, 41, training["steps"]]


def test_checkpoints_of_another_configuration_are_not_gone_on_from(digits, trained):
    other = dataclasses.replace(CONFIG, epochs=3)
    with pytest.raises(ValueError, match=r"holds a run with other settings \(epochs 2, not 3\)"):
        train.train(other, digits, trained[0], resume=True)


def test_a_resumption_by_another_commit_or_device_is_noted(digits, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        interrupting(patched, 5)
        with pytest.raises(Interrupted):
            train.train(CONFIG, digits, tmp_path)
    later = {**provenance.collect(), "commit": "feedbeef", "device": "another", "command": "second"}
    before = read_json(tmp_path / "config.json")
    monkeypatch.setattr(provenance, "collect", lambda: later)
    train.train(CONFIG, digits, tmp_path, resume=True)
    after = read_json(tmp_path / "config.json")
    assert after["commit"] == ", ".join(sorted({before["commit"], "feedbeef"}))
    assert after["device"] == f"{before['device']} and another"
    assert after["command"] == f"{before['command']} && second"


def test_a_second_process_is_refused(digits, trained):
    with runs.locked(trained[0]), pytest.raises(OSError, match="another process is working in"):
        train.train(CONFIG, digits, trained[0])
    assert runs.is_trained(trained[0], CONFIG)


def test_a_failed_checkpoint_is_told_and_the_training_goes_on(
    digits, tmp_path, monkeypatch, capsys
):
    def fail(*_, **__):
        raise OSError("21 could not be written: No space left on device")

    monkeypatch.setattr(Checkpoints, "save", fail)
    assert train.train(CONFIG, digits, tmp_path)["completed"]
    told = capsys.readouterr().err
    assert "warning: 21 could not be written: No space left on device; the training" in told
    # At an interruption nothing goes on.
    interrupting(monkeypatch, 5)
    with pytest.raises(OSError, match="No space left"):
        train.train(CONFIG, digits, tmp_path / "second")


def test_training_anew_tells_what_it_deletes(trained, digits, tmp_path, monkeypatch, capsys):
    path = shutil.copytree(trained[0], tmp_path / "run")
    interrupting(monkeypatch, 1)
    with pytest.raises(Interrupted):
        train.train(CONFIG, digits, path)
    assert f"{path}: training anew; what was there is deleted\n" in capsys.readouterr().err
    with pytest.raises(Interrupted):
        train.train(CONFIG, digits, tmp_path / "first")
    assert "anew" not in capsys.readouterr().err


def test_a_second_ctrl_c_stops_at_once(digits, tmp_path, monkeypatch):
    interrupting(monkeypatch, 5, times=2)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train.train(CONFIG, digits, tmp_path)
    assert not isinstance(stopped.value, Interrupted)


def test_stopped_inside_a_step_the_weights_before_it_are_kept(digits, tmp_path, monkeypatch):
    """Inside, the state that went into the step is gone: its buffers were donated."""
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


def test_steps_without_a_finite_loss_are_refused_and_counted(digits, tmp_path):
    labels = digits.train_labels.copy()
    labels[data.batch_indices(30, len(labels), 64, seed=0)[7]] = 10  # no class: its loss is NaN
    poisoned = digits._replace(train_labels=labels)
    assert train.train(CONFIG, poisoned, tmp_path)["completed"]
    metrics = lines(tmp_path)
    # One example, so one step in each epoch.
    assert sum(line.get("refused", 0) for line in metrics) == 2
    assert metrics[2]["refused"] == 1
    assert np.all(np.isfinite([line["loss"] for line in metrics]))
    assert not (tmp_path / "diverged.json").exists()
    run = runs.load(tmp_path)
    predicted = np.argmax(run.apply(run.params, digits.test_images), axis=1)
    assert np.mean(predicted == digits.test_labels) > 0.8


def test_a_diverged_training_stops_and_says_where(digits, tmp_path):
    config = dataclasses.replace(CONFIG, learning_rate=1e30)
    message = r"diverged: loss or gradient was not finite in steps 2 to 21; .*diverged.json names"
    with pytest.raises(DivergedError, match=message):
        train.train(config, digits, tmp_path)
    assert read_json(tmp_path / "training.json")["completed"] is False
    for value in runs.load(tmp_path).params.values():
        assert np.all(np.isfinite(value))
    told = read_json(tmp_path / "diverged.json")
    assert told["steps"] == list(range(2, 22))
    wanted = data.batch_indices(1, len(digits.train_labels), 64, seed=0)
    assert told["examples"]["2"] == wanted.tolist()
    # To go on changes nothing, and makes no whole training of it.
    for _ in range(2):
        with pytest.raises(DivergedError, match=message):
            train.train(config, digits, tmp_path, resume=True)
    assert not runs.is_trained(tmp_path, config)


def test_a_training_that_diverged_at_its_end_is_not_complete(digits, tmp_path):
    config = dataclasses.replace(CONFIG, learning_rate=1e30, batch_size=1347, epochs=12)
    message = "in steps 2 to 12"
    for _ in range(2):
        with pytest.raises(DivergedError, match=message):
            train.train(config, digits, tmp_path, resume=True)
    assert not runs.is_trained(tmp_path, config)


def test_a_validation_split_is_held_out(digits):
    split = loading.load_for(dataclasses.replace(CONFIG, validation=100))
    np.testing.assert_array_equal(split.test_images, digits.train_images[-100:])
    np.testing.assert_array_equal(split.train_images, digits.train_images[:-100])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "ridge"], "unknown method 'ridge': expected one of none, gradient"),
        (["--model", "vit"], "unknown model 'vit': expected one of mlp, cnn"),
        (["--data", "Digits!"], "unknown data set 'Digits!'"),
        (["--strength", "-1"], "strength must be a finite number, at least 0, got -1"),
        (["--num-devices", "9"], "num_devices must be from 1 to the 8 there are, got 9"),
        (["--watch", "-1"], "watch must be at least 0, got -1"),
        (["--watch", "451"], "watch must be from 1 to 450, the number of test images, got 451"),
        (["--beta", "3"], "beta applies to softplus only, got 3 with the activation gelu"),
        (["--checkpoint-every", "0"], "checkpoint_every must be at least 1, got 0"),
        (["--batch-size", "5000"], "batch_size must be at most the 1347 training examples, got 5"),
        (["--every", "631"], "every must be at most the 630 steps of the training, got 631"),
        (["--validation", "1347"], "cannot hold out 1347 of 1347 training examples"),
        (["--activation", "swish"], "unknown activation 'swish': expected one of relu"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(arguments, message, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(train.main, args=[*arguments, "--out", str(tmp_path / "run")])
    assert str(stopped.value.code).startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()


def test_wrong_data_are_told(digits, monkeypatch):
    wrong = digits._replace(test_labels=digits.test_labels + 1)
    monkeypatch.setattr(loading, "load", lambda *_, **__: wrong)
    with pytest.raises(ValueError, match="labels must be from 0 to 9, got 10"):
        loading.load_for(CONFIG)
