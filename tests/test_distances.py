"""Estimates and found distances where the boundary is known, and what is told of them."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from experiments import distances, models, runs, theory, trends
from experiments.config import Config
from experiments.data import load
from experiments.files import read_arrays, read_json, write_arrays, write_json
from tests.stored import columns

SHAPE = (8, 8, 1)


def linear(tmp_path: Path) -> runs.Run:
    """Return a network without a bend: all layers but the last one copy."""
    config = Config(data="digits", model="mlp", activation="relu", method="none").resolved()
    network = {"name": "mlp", "activation": "relu", "input_shape": SHAPE, "num_classes": 10}
    apply, template = models.functional(models.create(**network, seed=0))
    rng = np.random.default_rng(0)
    copy = np.eye(256)
    params = {
        "dense/0/kernel": copy[:64],
        "dense/0/bias": np.zeros(256),
        "dense/1/kernel": copy,
        "dense/1/bias": np.zeros(256),
        "dense/2/kernel": np.vstack([rng.normal(size=(64, 10)), np.zeros((192, 10))]),
        "dense/2/bias": np.zeros(10),
    }
    assert {name: leaf.shape for name, leaf in params.items()} == {
        name: leaf.shape for name, leaf in template.items()
    }
    params = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in params.items()}
    return runs.Run(tmp_path, config, apply, params, {}, {}, network)


def test_the_distance_of_a_linear_network_is_its_margin_over_the_slope(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A Hessian of rank 9 needs no more, that of a linear margin none; it saves compiling.
    monkeypatch.setattr(distances, "_EXACT_PRODUCTS", 6)
    monkeypatch.setattr(distances, "_PRODUCTS", 1)
    run = linear(tmp_path)
    dataset = load("digits")
    # Away from the box, so that it takes no perturbation away.
    images = 0.3 + 0.4 * dataset.test_images[:40].astype(np.float32)
    weights = np.asarray(run.params["dense/2/kernel"])[:64]
    logits = images.reshape(40, -1) @ weights
    labels = logits.argmax(axis=1).astype(np.int32)
    labels[3] = (labels[3] + 1) % 10
    dataset = dataset._replace(test_images=images, test_labels=labels)
    found = distances.measure(run, dataset, 6)
    np.testing.assert_array_equal(found["index"], [0, 1, 2, 4, 5, 6])
    exact = []
    for i in found["index"]:
        others = np.delete(np.arange(10), labels[i])
        slopes = np.linalg.norm(weights[:, others].T - weights[:, labels[i]], axis=1)
        exact.append(np.min((logits[i, labels[i]] - logits[i, others]) / slopes))
    np.testing.assert_allclose(found["margin_first"], exact, rtol=1e-4)
    np.testing.assert_allclose(found["margin_second"], exact, rtol=1e-4)
    # An attack stops a little behind the boundary.
    assert np.all(found["found"] > np.asarray(exact) * (1 - 1e-4))
    np.testing.assert_allclose(found["found"], exact, rtol=0.02)
    assert np.all(found["found"] <= np.minimum(found["fab"], found["ddn"]))
    # Of a piecewise-linear network the loss is convex: the tangent sees the boundary too far.
    assert np.all(found["loss_second"] <= found["loss_first"])
    x, y = images[found["index"]], labels[found["index"]]
    loss = lambda t, label: -jax.nn.log_softmax(t.ravel() @ weights)[label]  # noqa: E731
    slope = jnp.linalg.norm(jax.vmap(jax.grad(loss))(x, y).reshape(6, -1), axis=1)
    np.testing.assert_allclose(found["gradient_norm"], slope, rtol=1e-3, atol=1e-6)
    hessian = jax.vmap(jax.hessian(loss))(x, y).reshape(6, 64, 64)
    norm = np.abs(np.linalg.eigvalsh(hessian)).max(axis=1)
    np.testing.assert_allclose(found["hessian_norm"], norm, rtol=1e-2, atol=1e-6)


def test_a_summary_counts_what_it_says() -> None:
    found = np.array([1.0, 2.0, 3.0, 4.0])
    arrays = {
        "found": found,
        "gradient_norm": found,
        "hessian_norm": np.array([4.0, 3.0, 2.0, 1.0]),
        # Off: the first two. Warned of: the first and the last.
        "one_product": np.array([3.0, 2.0, 1.9, 1.0]),
        "residual": np.array([0.4, 0.1, 0.1, 0.2]),
        **dict(zip(distances.ESTIMATES, (2 * found, found, 0.5 * found, 1.5 * found), strict=True)),
    }
    told = theory.summary(arrays)
    assert told["found"] == 2.5
    assert told["curvature_correlation"] == pytest.approx(-1)
    assert (told["off"], told["warned"], told["false_alarms"]) == (0.5, 0.5, 0.5)
    assert [told["estimates"][name]["ratio"] for name in distances.ESTIMATES] == [2, 1, 0.5, 1.5]
    assert [told["estimates"][name]["too_large"] for name in distances.ESTIMATES] == [1, 0, 0, 1]
    assert told["estimates"]["loss_first"]["rank_correlation"] == pytest.approx(1)
    nothing = theory.summary(
        {**arrays, "residual": 0 * found, "one_product": arrays["hessian_norm"]}
    )
    assert (nothing["off"], nothing["warned"], nothing["false_alarms"]) == (0, None, None)
    # Of saturated examples there is no gradient, and nothing that JSON could not hold.
    flat = theory.summary({**arrays, "loss_first": np.full(4, np.inf)})["estimates"]["loss_first"]
    assert flat == {"rank_correlation": None, "ratio": None, "too_large": 1}
    cell = {"data": "digits", "method": "none", **told}
    assert columns(theory.table([cell]))[-1][-5:] == ["-1.00", "50 %", "50 %", "50 %", "1"]


def test_a_table_has_means_over_the_networks_of_a_method() -> None:
    def cell(method: str, value: float, **given: Any) -> dict[str, Any]:
        estimate = {"rank_correlation": value, "ratio": value, "too_large": value}
        return {
            "data": "digits",
            "method": method,
            **dict.fromkeys(("found", "hessian_norm", "curvature_correlation", "off"), value),
            "estimates": dict.fromkeys(distances.ESTIMATES, estimate),
            "warned": None,
            "false_alarms": value,
            **given,
        }

    lost = cell("none", 0.6, false_alarms=None)
    cells = [cell("none", 0.2), cell("none", 0.4), cell("hessian", 0.1), lost]
    _, _, *rows = columns(theory.table([*cells, cell("none", 0.7, num_examples=9)]))
    estimates = ["0.40, 0.40, 40 %"] * 4
    assert rows[0] == [
        "digits",
        "none",
        "0.40",
        "0.4",
        *estimates,
        "0.40",
        "40 %",
        "-",
        "30 %",
        "3",
    ]
    assert [row[1:3] for row in rows[1:]] == [["hessian", "0.10"], ["none", "0.70"]]
    assert [row[-1] for row in rows] == ["3", "1", "1"]
    # Other trainings of a method are rows of their own; a data set has its epochs.
    setups = [
        {"data": data, "activation": activation, "epochs": epochs}
        for data, activation, epochs in (("a", "gelu", 5), ("a", "relu", 5), ("b", "gelu", 6))
    ]
    several = [cell("none", 0.1, setup=setup, data=setup["data"]) for setup in setups]
    _, _, *rows = columns(theory.table([*several, several[0], lost]))
    assert [row[:2] for row in rows] == [
        ["a", "none, activation gelu"],
        ["a", "none, activation relu"],
        ["b", "none"],
        ["digits", "none"],
    ]


def test_across_networks_means_are_ranked() -> None:
    means = [(4.0, 1.0), (1.0, 2.0), (0.5, 3.0)]
    cells = [{"hessian_norm": norm, "found": found} for norm, found in means]
    assert theory.across(cells) == pytest.approx(-1)
    assert theory.across([*cells[1:], {"hessian_norm": 2.0, "found": 9.0}]) == pytest.approx(0.5)
    assert theory.across(cells[:1]) is None


def scaled(arrays, factor):
    return {name: factor * value for name, value in arrays.items()}


def test_runs_are_measured_once_and_arrays_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("found", "gradient_norm", "hessian_norm", "one_product", "residual")
    arrays = {name: np.arange(1.0, 4.0) for name in (*names, *distances.ESTIMATES)}
    monkeypatch.setattr(theory, "measure", lambda *_: arrays)
    copy = shutil.copytree(run, tmp_path / "run")
    arguments = [str(copy), "--num-examples", "5", "--out", str(tmp_path / "theory.json")]
    tyro.cli(theory.main, args=arguments)
    (cell,) = read_json(tmp_path / "theory.json")["cells"]
    assert (cell["num_examples"], cell["num_right"], cell["found"]) == (5, 3, 2)
    [row, *_] = columns(capsys.readouterr().out)
    assert row[:3] == ["digits", "none", "2.00"]
    kept = read_arrays(copy / "distances.npz")
    assert kept.keys() == {*arrays, "num_examples", "weights"}
    assert (kept["num_examples"], kept["weights"]) == (5, runs.load(copy).weights)
    assert (tmp_path / "theory.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(theory, "measure", None)
    tyro.cli(theory.main, args=arguments)
    # Another network that is called the same is another one.
    other = shutil.copytree(copy, tmp_path / "other")
    write_arrays(other / "weights.npz", scaled(read_arrays(other / "weights.npz"), 2))
    monkeypatch.setattr(theory, "measure", lambda *_: scaled(arrays, 2))
    capsys.readouterr()
    tyro.cli(theory.main, args=[str(copy), str(other), *arguments[1:]])
    last = "rank correlation of mean norm and mean distance, 2 networks on digits: +1.00\n"
    assert capsys.readouterr().out.endswith(last)
    assert len(read_json(tmp_path / "theory.json")["cells"]) == 2
    # Each counts once, in spite of what the file has from other calls.
    factors = iter((1, 2))
    monkeypatch.setattr(theory, "measure", lambda *_: scaled(arrays, next(factors)))
    tyro.cli(theory.main, args=[str(copy), str(other), *arguments[1:], "--num-examples", "6"])
    assert capsys.readouterr().out.endswith(last)
    content = read_json(other / "config.json")
    content["config"]["validation"] = 50
    write_json(other / "config.json", content)
    with pytest.raises(SystemExit, match="the runs held out different numbers of examples"):
        tyro.cli(theory.main, args=[str(copy), str(other), *arguments[1:]])
    with runs.locked(copy), pytest.raises(SystemExit, match="another process is working in"):
        tyro.cli(theory.main, args=[*arguments, "--num-examples", "7"])
    for count in ("0", "451"):
        sentence = (
            f"error: num_examples must be from 1 to 450, the number of test images, got {count}"
        )
        with pytest.raises(SystemExit, match=sentence):
            tyro.cli(theory.main, args=[*arguments, "--num-examples", count])
    with pytest.raises(SystemExit, match="error: no run is named, expected a folder"):
        tyro.cli(theory.main, args=arguments[1:])
    with pytest.raises(SystemExit, match=r"out must not end with \.png, because the plot does"):
        tyro.cli(theory.main, args=[*arguments[:-1], str(tmp_path / "theory.png")])


def test_arrays_that_are_gone_or_of_others_are_measured_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("found", "gradient_norm", "hessian_norm", "one_product", "residual")
    measured: list[int] = []
    drawn: list[int] = []
    labels: list[str] = []

    def measure(_run: runs.Run, _dataset: object, count: int) -> dict[str, np.ndarray]:
        measured.append(count)
        return {name: np.arange(1.0, count + 1) for name in (*names, *distances.ESTIMATES)}

    def note(_path: Path, networks: list[trends.Distances], **_: object) -> None:
        drawn.extend(len(network.found) for network in networks)
        labels[:] = [network.label for network in networks]

    monkeypatch.setattr(theory, "measure", measure)
    monkeypatch.setattr(theory, "calibration", note)
    copy, out = shutil.copytree(run, tmp_path / "run"), tmp_path / "theory.json"

    def command(count: int, path: Path) -> None:
        options = ["--num-examples", str(count), "--out", str(path)]
        tyro.cli(theory.main, args=[str(copy), *options])

    command(12, out)
    command(3, tmp_path / "theory3.json")
    assert (measured, drawn) == ([12, 3], [12, 3])
    command(12, out)
    assert (measured, drawn) == ([12, 3, 12], [12, 3, 12])
    # Another seed of the method is a part of the same curve.
    again = shutil.copytree(copy, tmp_path / "again")
    content = read_json(again / "config.json")
    content["config"]["seed"] += 1
    write_json(again / "config.json", content)
    theory.draw(tmp_path / "theory.png", [runs.load(copy), runs.load(again)], 12)
    assert (drawn.pop(), labels) == (24, ["none"])
    content["config"]["batch_size"] = 7
    write_json(again / "config.json", content)
    theory.draw(tmp_path / "theory.png", [runs.load(copy), runs.load(again)], 12)
    assert labels == [f"none, batch_size {size}" for size in (runs.load(copy).config.batch_size, 7)]
    content["config"] |= {"batch_size": runs.load(copy).config.batch_size, "data": "mine"}
    write_json(again / "config.json", content)
    theory.draw(tmp_path / "theory.png", [runs.load(copy), runs.load(again)], 12)
    assert labels == ["digits none", "mine none"]
    drawn[-4:] = []
    with pytest.raises(ValueError, match=r"distances.npz holds no distances of 3 examples"):
        theory.draw(tmp_path / "theory.png", [runs.load(copy)], 3)
    archive = copy / "distances.npz"
    whole = read_arrays(archive)
    archive.unlink()
    command(12, out)
    archive.write_bytes(b"half of an arch")
    command(12, out)
    write_arrays(archive, {**whole, "weights": "another"})
    command(12, out)
    # Before it was written what they are of.
    write_arrays(archive, {name: whole[name] for name in (*names, *distances.ESTIMATES)})
    command(12, out)
    command(12, out)  # nothing new
    assert (measured, drawn) == ([12, 3] + 5 * [12], [12, 3] + 6 * [12])
    # One network and one number of examples are one cell, however often it is measured.
    assert len(read_json(out)["cells"]) == 1


def test_a_constant_network_has_no_boundary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = {"right": np.ones(450, bool), "distance": np.inf}
    monkeypatch.setattr(distances, "of_each", lambda *_, **__: nothing)
    monkeypatch.setattr(distances, "_SHRINKING", ())
    monkeypatch.setattr(distances, "_by_ddn", lambda *_: np.full(3, np.inf))
    with pytest.raises(ValueError, match=r"no attack finds .* from 3 of 3 examples"):
        distances.measure(linear(tmp_path), load("digits"), 3)
