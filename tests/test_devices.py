"""Several devices and processes: the same results as on one, and where a batch lies."""

import json
import os
import signal
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import hessjax
from experiments import devices, processes, runs, wrappers
from experiments.files import read_json
from hessjax._placement import replicated
from hessjax.attacks import AttackResult
from tests import cases, layouts
from tests.layouts import adversarial

COUNTS = (1, 2, 8)
KEY = jax.random.key(3)
CASE = cases.mlp("gelu")
SECOND_ORDER = hessjax.second_order(CASE.apply, CASE.loss, 0.7, 0.3)


@cache
def trained_on_one(dtype: Any) -> dict[str, Any]:
    return layouts.trained(None, dtype)


@cache
def attacked_on_one() -> AttackResult:
    return layouts.attacked(None)


def assert_same_training(got: Any, dtype: Any) -> None:
    tolerance = 1e-6 if dtype == np.float64 else 1e-4
    cases.assert_tree_close(got, trained_on_one(dtype), rtol=tolerance, atol=tolerance / 10)


def assert_same_verdicts(got: Any) -> None:
    one = layouts.found(attacked_on_one())
    np.testing.assert_array_equal(got["broken_by"], one["broken_by"])
    cases.assert_tree_close(got, one, rtol=0, atol=1e-9)


# The same results.


@pytest.mark.parametrize(
    ("count", "dtype"), [(1, np.float64), (2, np.float64), (8, np.float64), (8, np.float32)]
)
def test_training_is_that_on_one_device(count: int, dtype: Any) -> None:
    """On eight, the batches of twelve are filled up to sixteen."""
    got = layouts.trained(devices.mesh(count), dtype)
    assert_same_training(got, dtype)
    for leaf in jax.tree.leaves(got):
        assert leaf.sharding.is_fully_replicated
        assert len(leaf.sharding.device_set) == count


@pytest.mark.parametrize("count", [2, 8])
def test_verdicts_are_those_on_one_device(count: int) -> None:
    result = layouts.attacked(devices.mesh(count))
    assert set(np.asarray(attacked_on_one().broken_by)) == {-2, -1, 0, 1}
    assert_same_verdicts(layouts.found(result))


def test_an_attack_goes_on_with_other_devices() -> None:
    seen: list[Any] = []
    layouts.attacked(devices.mesh(8), on_batch=seen.append)
    early = seen[1]
    assert np.any(early.tried[early.broken_by == -1] < early.num_runs)
    resumed = early._replace(x=np.asarray(early.x))
    assert_same_verdicts(layouts.found(layouts.attacked(None, resume=resumed)))
    resumed = seen[2]._replace(x=np.asarray(seen[2].x))
    assert_same_verdicts(layouts.found(layouts.attacked(devices.mesh(8), resume=resumed)))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of two processes that are done, of two devices each, over the loopback."""
    path = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    told = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_COORDINATOR_BIND_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_ENABLE_X64": "1",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "JAX_PLATFORMS": "cpu",
        # Most of their time they compile.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    command = [sys.executable, "-m", "tests.layouts", str(path)]
    both = [
        subprocess.Popen(
            command,
            env={**os.environ, **told, "JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    try:
        for process in both:
            output, _ = process.communicate(timeout=600)
            assert process.returncode == 0, output
    finally:
        for process in both:
            process.kill()
    return path


def test_processes_see_the_same(pair: Path, tmp_path: Path) -> None:
    precisions = (np.float64, np.float32)
    evaluation = layouts.evaluated(None, tmp_path)
    wanted = [*map(trained_on_one, precisions), layouts.found(attacked_on_one()), evaluation]
    for number in range(2):
        with np.load(pair / str(number) / "found.npz") as file:
            leaves = [file[name] for name in file.files]
        *training, found, evaluated = jax.tree.unflatten(jax.tree.structure(wanted), leaves)
        for got, dtype in zip(training, precisions, strict=True):
            assert_same_training(got, dtype)
        assert_same_verdicts(found)
        cases.assert_tree_close(evaluated, evaluation, rtol=1e-9, atol=1e-9)


def test_processes_train_as_one_does(pair: Path, run: Path) -> None:
    """Stopped by a signal to the second, and gone on with."""
    both = [read_json(pair / str(number) / "told.json") for number in range(2)]
    assert [told["left"] for told in both] == [["full", "run"], []]
    for told in both:
        assert told["stopped"] == 128 + signal.SIGTERM
        assert told["resumed"] == 0
        assert "run holds a run with other settings (seed 0, not 1)" in told["refused"]
        assert told["full"].startswith("error: ")
        assert told["full"].endswith(" could not be written: File too large")
    there, here = pair / "0" / "run", run
    alone = [json.loads(line) for line in (here / "metrics.jsonl").read_text().splitlines()]
    lines = [json.loads(line) for line in (there / "metrics.jsonl").read_text().splitlines()]
    for line, wanted in zip(lines, alone, strict=True):
        assert line == pytest.approx(wanted, rel=1e-4)
    cases.assert_tree_close(runs.load(there).params, runs.load(here).params, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", COUNTS)
def test_keys_are_those_of_places_in_the_batch(count: int) -> None:
    size = 12

    def draw(f: Any, x: jax.Array, key: Any = None) -> jax.Array:
        del f
        assert key is not None
        return x[0] * jax.random.uniform(key)

    objective = hessjax.regularized(CASE.apply, CASE.loss, {"draw": (1.0, draw)})
    x, y = (np.array(leaf) for leaf in cases.batch_of(CASE, size))
    x[:, 0] = 2.0 ** np.arange(size)  # so that the mean tells each draw from the others
    mesh = devices.mesh(count)
    step = hessjax.train_step(objective, optax.sgd(0.1))
    state = hessjax.TrainState.create(CASE.params, optax.sgd(0.1), KEY)
    _, metrics = step(replicated(mesh, state), devices.sharded(mesh, (x, y)))

    own = [jax.random.fold_in(jax.random.fold_in(KEY, 0), place) for place in range(size)]
    draws = [jax.random.uniform(jax.random.fold_in(key, 0)) for key in own]
    np.testing.assert_allclose(metrics["draw"], np.mean(x[:, 0] * np.asarray(draws)), rtol=1e-14)


def test_a_device_may_have_padding_only() -> None:
    """And a network may have no derivative at zero: another's example stands there."""

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return CASE.apply(params, x / jnp.linalg.norm(x))

    objective = hessjax.second_order(apply, CASE.loss, 0.7, 0.3)
    x, y = (np.array(leaf) for leaf in cases.batch_of(CASE, 16))
    mask = np.arange(16) >= 5  # of two each, the first two devices have nothing, the third one
    gradient_of = jax.value_and_grad(objective, has_aux=True)
    wanted = jax.jit(gradient_of)(CASE.params, (x[mask], y[mask]), KEY)
    x[~mask] = np.nan
    mesh = devices.mesh(8)
    batch = devices.sharded(mesh, (x, y, mask))
    with jax.set_mesh(mesh):
        got = jax.jit(gradient_of)(replicated(mesh, CASE.params), batch, KEY)
    cases.assert_tree_close(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", [{"every": 2}, {"chunk_size": 2}, {"parts": 2}, {"parts": 3}])
def test_savings_are_those_on_one_device(options: Any) -> None:
    """On eight, the batches of twelve are filled up to sixteen; a share of two has no three."""
    objective = hessjax.second_order(CASE.apply, CASE.loss, 0.7, 0.3, **options)
    both = [
        layouts.trained(mesh, np.float64, objective, steps=4) for mesh in (None, devices.mesh(8))
    ]
    cases.assert_tree_close(both[1], both[0], rtol=1e-9, atol=1e-12)


def test_adversarial_training_is_that_on_one_device() -> None:
    objective = adversarial(CASE)
    both = [
        layouts.trained(mesh, np.float64, objective, steps=2) for mesh in (None, devices.mesh(8))
    ]
    cases.assert_tree_close(both[1], both[0], rtol=1e-9, atol=1e-12)


def test_the_accuracy_is_that_of_what_counts() -> None:
    x, y = cases.batch_of(CASE, 11)
    objective = wrappers.with_accuracy(CASE.apply, SECOND_ORDER)
    metrics = [
        jax.jit(objective)(CASE.params, batch, KEY)[1]
        for batch in [(x, y), devices.sharded(devices.mesh(8), (np.asarray(x), np.asarray(y)))]
    ]
    assert 0 < metrics[0]["accuracy"] < 1
    np.testing.assert_allclose(metrics[1]["accuracy"], metrics[0]["accuracy"], rtol=1e-12)


# Where a batch lies.


@pytest.mark.parametrize(("size", "count"), [(8, 8), (12, 2), (12, 8), (3, 8)])
def test_examples_keep_their_places(size: int, count: int) -> None:
    x, y = np.random.default_rng(0).normal(size=(size, 3)), np.arange(size)
    batch = devices.sharded(devices.mesh(count), ({"a": x, "b": x[:, 0]}, y))
    whole = -(-size // count) * count
    for leaf in jax.tree.leaves(batch):
        assert len(leaf) == whole
        assert {len(shard.data) for shard in leaf.addressable_shards} == {whole // count}
    np.testing.assert_array_equal(batch[0]["a"][:size], x)
    np.testing.assert_array_equal(batch[1][:size], y)
    assert len(batch) == (2 if size == whole else 3)
    if size < whole:
        np.testing.assert_array_equal(batch[2], np.arange(whole) < size)
        np.testing.assert_array_equal(batch[0]["a"][size:], x[[-1] * (whole - size)])


def test_a_mask_is_kept() -> None:
    x, y, mask = np.ones((5, 3)), np.arange(5), np.arange(5) != 1
    for count in (1, 2):
        *_, got = devices.sharded(devices.mesh(count), (x, y, mask))
        np.testing.assert_array_equal(got, [*mask, False][: len(got)])


def test_what_is_wrong_is_told(monkeypatch: Any) -> None:
    with pytest.raises(ValueError, match="num_devices must be from 1 to the 8 there are, got 9"):
        devices.mesh(9)
    explicit = jax.make_mesh((8,), ("batch",), (AxisType.Explicit,))
    batch = devices.sharded(explicit, cases.batch_of(CASE, 8))
    state = hessjax.TrainState.create(CASE.params, optax.sgd(0.1), KEY)
    told = r"axis_types=\(AxisType.Auto,\)\), got \(Explicit,\)"
    with pytest.raises(ValueError, match=told):
        hessjax.train_step(SECOND_ORDER, optax.sgd(0.1))(replicated(explicit, state), batch)
    # Outside of jax.set_mesh the arrays alone tell.
    for call in (SECOND_ORDER, jax.jit(SECOND_ORDER)):
        with pytest.raises(ValueError, match=told):
            call(replicated(explicit, CASE.params), batch, KEY)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES must be a whole number of at least 1"):
        processes.start()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "2")
    with pytest.raises(ValueError, match=r"JAX_PROCESS_ID must be from 0 to 1, as .* is 2, got 2"):
        processes.start()


def test_without_others_to_join_it_is_told_what_is_missing(monkeypatch: Any) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="no processes to join, set JAX_COORDINATOR_ADDRESS, "):
        processes.start()
    assert processes.leads()
