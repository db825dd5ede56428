"""Evaluation by AutoAttack from the command line, on a small network, with short attacks."""

import json
import shutil

import numpy as np
import pytest
import tyro

from experiments import auto, devices, evaluate, masking, runs, train
from experiments.files import read_arrays, read_json, write_arrays, write_json
from experiments.loading import load_for
from hessjax.attacks import Progress, apgd_attack, fab_attack, square_attack

SHORT = (
    apgd_attack(num_steps=5, name="apgd-ce"),
    fab_attack(num_steps=3, num_targets=2),
    square_attack(num_steps=20),
)
OPTIONS = ["--attack", "auto", "--norm", "l2", "--num-examples", "40"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    options = [
        "--model",
        "mlp",
        "--activation",
        "relu",
        "--epochs",
        "2",
        "--method",
        "none",
        "--out",
    ]
    tyro.cli(train.main, args=[*options, str(path)])
    return path


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(auto.VERSIONS, "standard", SHORT)
    monkeypatch.setattr(masking, "_ONE", SHORT[:1])
    monkeypatch.setattr(masking, "_BOTH", SHORT[:1])
    monkeypatch.setattr(masking, "_MORE", SHORT[:1])
    return shutil.copytree(trained, tmp_path / "run")


def call(path, *radii, options=()):
    tyro.cli(evaluate.main, args=[str(path), *OPTIONS, *options, "--epsilon", *map(str, radii)])
    return read_json(path / "auto_attack.json")


def test_devices_change_nothing(run, monkeypatch):
    used, attack = [], auto.auto_attack

    def noting(logits_fn, x, *args, **options):
        used.append(len(x.sharding.device_set))
        return attack(logits_fn, x, *args, **options)

    monkeypatch.setattr(auto, "auto_attack", noting)
    monkeypatch.setitem(auto.VERSIONS, "standard", SHORT[:1])
    loaded = runs.load(run)
    dataset = load_for(loaded.config)
    told = auto.settings("standard", 40, 0)
    results = []
    for mesh in (None, devices.mesh(2)):
        content = auto.evaluate(
            loaded, dataset, norm="l2", radii=[0.3], attack=told, batch_size=32, mesh=mesh
        )
        (run / "auto_attack.json").unlink()
        result = content["results"]["l2"]["0.3"]
        results.append({name: result[name] for name in ("robust", "broken_by", "masking")})
    assert used == [1, 2]
    counts = ("robust", "broken_by")
    assert [results[1][name] for name in counts] == [results[0][name] for name in counts]
    assert results[1]["masking"]["by_epsilon"] == results[0]["masking"]["by_epsilon"]


def test_a_curve_with_every_setting(run, capsys):
    content = call(run, 0.5, 0.1)
    results = content["results"]["l2"]
    assert list(results) == ["0.1", "0.5"]
    assert content["clean"] >= results["0.1"]["robust"] > results["0.5"]["robust"]
    for result in results.values():
        assert sum(result["broken_by"].values()) == round(40 * (1 - result["robust"]))
        assert result["verdict"] == masking.verdict(result["masking"])
        assert {"command", "commit", "versions", "device", "seconds"} <= set(result)
    first = content["attack"]["attacks"][0]
    loss = "softmax_cross_entropy_with_integer_labels"
    assert first == {
        "name": "apgd-ce", "loss": loss, "num_targets": 0, "num_restarts": 1, "num_steps": 5,
        "num_runs": 1,
    }  # fmt: skip
    with np.load(run / "auto_attack.npz") as arrays:
        small, large = arrays["l2/0.1/broken_by"], arrays["l2/0.5/broken_by"]
        assert np.all(small[small != -1] == large[small != -1])
        distances = arrays["l2/0.5/distance"]
        assert np.all(distances[large >= 0] <= 0.5 * (1 + 1e-6))
        assert np.all(distances[small >= 0] <= 0.1 * (1 + 1e-6))
        assert np.all((distances == 0) == (large < 0))
    text = capsys.readouterr().out
    assert f"under AutoAttack, l2 0.5: {100 * results['0.5']['robust']:.2f} %" in text
    assert results["0.5"]["verdict"] in text
    assert not list(run.glob("*.part*"))


def test_it_goes_on_where_it_was_interrupted(run, monkeypatch, capsys):
    expected = call(shutil.copytree(run, run.parent / "other"), 0.3)
    original, batches = auto.auto_attack, []

    def interrupted(*args, on_batch, **options):
        def note(progress):
            on_batch(progress)
            batches.append(progress)
            if len(batches) == 2:
                raise KeyboardInterrupt

        return original(*args, on_batch=note, **options)

    monkeypatch.setattr(auto, "auto_attack", interrupted)
    with pytest.raises(SystemExit) as stopped:
        call(run, 0.3)
    assert stopped.value.code == 130
    assert "the same command continues from here" in capsys.readouterr().err
    assert len(list(run.glob("auto_attack.l2-0.3.*.part.npz"))) == 1

    resumed = []

    def watched(*args, resume, **options):
        resumed.append(resume)
        return original(*args, resume=resume, **options)

    monkeypatch.setattr(auto, "auto_attack", watched)
    after = call(run, 0.3)
    np.testing.assert_array_equal(resumed[0].tried, batches[-1].tried)
    for name in ("robust", "broken_by", "masking"):
        assert after["results"]["l2"]["0.3"][name] == expected["results"]["l2"]["0.3"][name]
    assert not list(run.glob("*.part.npz"))


@pytest.mark.parametrize(("first", "then"), [((0.1, 0.3), (0.3,)), ((0.3,), (0.1, 0.3))])
def test_it_goes_on_only_after_the_same_smaller_radius(run, monkeypatch, first, then):
    """What is broken at the smaller radius is not attacked at the larger one."""
    original, resumed = auto.auto_attack, []

    def interrupted(logits_fn, x, y, ball, key, **options):
        def note(progress):
            options["on_batch"](progress)
            if ball.epsilon == 0.3:
                raise KeyboardInterrupt

        return original(logits_fn, x, y, ball, key, **{**options, "on_batch": note})

    def watched(*args, resume, **options):
        resumed.append(resume)
        return original(*args, resume=resume, **options)

    with monkeypatch.context() as patched:
        patched.setattr(auto, "auto_attack", interrupted)
        with pytest.raises(SystemExit):
            call(run, *first)
    with monkeypatch.context() as patched:
        patched.setattr(auto, "auto_attack", watched)
        call(run, *then)
    assert not any(isinstance(given, Progress) for given in resumed)


def test_an_attack_leaves_the_progress_of_others(run, monkeypatch):
    """In another ball, and of other settings in the same one."""
    original = auto.auto_attack

    def interrupted(*args, on_batch, **options):
        def note(progress):
            on_batch(progress)
            raise KeyboardInterrupt

        return original(*args, on_batch=note, **options)

    with monkeypatch.context() as patched:
        patched.setattr(auto, "auto_attack", interrupted)
        for radius in (0.1, 0.3):
            with pytest.raises(SystemExit):
                call(run, radius)
    parts = sorted(run.glob("*.part.npz"))
    assert len(parts) == 2
    call(run, 0.1, options=["--num-examples", "9"])
    assert sorted(run.glob("*.part.npz")) == parts
    call(run, 0.1)
    assert list(run.glob("*.part.npz")) == parts[1:]


def test_results_whose_arrays_are_gone_are_found_again(run, capsys):
    first = call(run, 0.1)
    older = (run / "auto_attack.npz").read_bytes()
    both = call(run, 0.1, 0.3)
    (run / "auto_attack.npz").write_bytes(older)
    again = call(run, 0.1, 0.3)["results"]["l2"]
    assert "auto_attack.npz lacks l2 0.3, to be" in capsys.readouterr().err
    assert again["0.1"] == first["results"]["l2"]["0.1"]
    assert again["0.3"]["broken_by"] == both["results"]["l2"]["0.3"]["broken_by"]
    (run / "auto_attack.npz").unlink()
    assert call(run, 0.1)["results"]["l2"]["0.1"]["broken_by"] == again["0.1"]["broken_by"]
    assert "auto_attack.npz lacks l2 0.1, 0.3, to be" in capsys.readouterr().err
    write_json(run / "auto_attack.json", {"attack": first["attack"]})
    assert call(run, 0.1)["results"]["l2"]["0.1"]["robust"] == again["0.1"]["robust"]


def test_an_interrupted_examination_costs_no_attack(run, monkeypatch):
    original, tried = auto.auto_attack, []

    def examined(*_, **__):
        raise KeyboardInterrupt

    def watched(*args, resume, **options):
        tried.append(None if resume is None else int(np.sum(resume.tried)))
        return original(*args, resume=resume, **options)

    monkeypatch.setattr(auto, "auto_attack", watched)
    with monkeypatch.context() as patched:
        patched.setattr(masking, "examine", examined)
        with pytest.raises(SystemExit):
            call(run, 0.3)
    withstood = round(40 * call(run, 0.3)["results"]["l2"]["0.3"]["robust"])
    # What withstood all of it went through every run: one, two targets, one.
    assert tried[0] is None
    assert tried[1] >= 4 * withstood > 0


def test_what_is_done_is_kept(run, monkeypatch):
    before = call(run, 0.1)
    monkeypatch.setattr(auto, "auto_attack", None)
    assert call(run, 0.1) == before


def test_other_settings_begin_anew(run, capsys):
    call(run, 0.1)
    other = call(run, 0.2, options=["--num-examples", "30"])
    assert list(other["results"]["l2"]) == ["0.2"]
    assert other["attack"]["num_examples"] == 30
    assert "auto_attack.json: replacing results of other settings" in capsys.readouterr().err


def test_progress_of_other_settings_is_not_taken(run):
    identity = json.dumps({"place": "l2/9"})
    np.savez(run / "part.npz", identity=identity)
    assert auto._read_part(run / "part.npz", "another") == (None, 0.0)
    # Nor that of another network, say of the folder's last one.
    seen, weights = [], run / "weights.npz"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(auto, "_read_part", lambda _, identity: seen.append(identity) or (None, 0))
        for _ in range(2):
            call(run, 0.05)
            (run / "auto_attack.json").unlink()
            changed = {key: 1.01 * value for key, value in read_arrays(weights).items()}
            write_arrays(weights, changed)
    assert seen[0] != seen[1]
    assert call(run, 0.1)["results"]["l2"]["0.1"]["robust"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epsilon", "1"], "epsilon needs a norm: give --norm l2 or --norm linf, too"),
        (
            ["--norm", "l2", "--epsilon", "0"],
            "a radius of l2 must be a finite positive number, got 0",
        ),
        (["--attack", "auto", "--num-examples", "0"], "num_examples must be at least 1, got 0"),
        (["--attack", "auto", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (
            ["--attack", "auto", "--num-examples", "451"],
            "num_examples must be from 1 to 450, the number of test images, got 451",
        ),
        (
            ["--attack", "auto", "--num-steps", "9"],
            "num_steps does not apply to the attack auto: leave it",
        ),
        (["--version", "plus"], "version does not apply to the attack pgd: leave it out"),
        (["--num-examples", "9"], "num_examples does not apply to the attack pgd: leave it out"),
    ],
)
def test_bad_input_is_one_sentence(run, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(evaluate.main, args=[str(run), *arguments])
    assert str(stopped.value.code).startswith("error: ")
    assert message in str(stopped.value.code)


def test_damaged_files_are_told(run):
    call(run, 0.1)
    (run / "auto_attack.npz").write_bytes(b"no archive")
    with pytest.raises(SystemExit) as stopped:
        call(run, 0.2)
    assert "delete it to attack anew" in str(stopped.value.code)


def test_both_norms_of_the_data_set_by_default(run, monkeypatch):
    asked = {}
    monkeypatch.setattr(auto, "evaluate", lambda *_, norm, radii, **__: asked.update({norm: radii}))
    monkeypatch.setattr(auto, "report", lambda *_: "")
    tyro.cli(evaluate.main, args=[str(run), "--attack", "auto", "--num-examples", "10"])
    assert asked == {"l2": (0.25, 0.5, 0.75, 1.0), "linf": (0.05, 0.1, 0.15)}
