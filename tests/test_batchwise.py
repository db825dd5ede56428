"""Examples are measured in batches of one size, each once and in order."""

import jax
import numpy as np
import pytest

from experiments import batchwise, devices
from experiments.batchwise import keyed, of_each

X, Y = np.arange(14.0).reshape(7, 2), np.arange(7)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
@pytest.mark.parametrize("num_devices", [None, 2])
def test_every_example_is_measured_once_in_order(batch_size, num_devices, monkeypatch):
    traced, sizes = [], []

    def measure(setting, shared, x, y):
        traced.append(x.shape)
        return {"sum": x.sum() + y + shared["offset"], "scaled": setting * x}

    def noting(batch):
        sizes.append(len(batch[1]))
        return mesh_of(batch)

    mesh_of = batchwise.mesh_of
    monkeypatch.setattr(batchwise, "mesh_of", noting)
    mesh = None if num_devices is None else devices.mesh(num_devices)
    found = of_each(measure, 3, {"offset": 0.5}, (X, Y), batch_size, mesh=mesh)
    np.testing.assert_array_equal(found["sum"], [5 * i + 1.5 for i in range(7)])
    np.testing.assert_array_equal(found["scaled"], 3 * X)
    assert not any(isinstance(leaf, jax.Array) for leaf in found.values())
    at_once = min(7, batch_size * (num_devices or 1))
    assert sizes == [at_once] * -(-7 // at_once)
    once = len(traced)
    assert set(traced) == {(2,)}
    # Other weights and examples of the same shapes are no other program; another setting is.
    of_each(measure, 3, {"offset": 1.0}, (X + 1, Y), batch_size, mesh=mesh)
    assert len(traced) == once
    assert of_each(measure, 4, {"offset": 0.5}, (X, Y), batch_size, mesh=mesh)["scaled"][6, 1] == 52
    assert len(traced) > once


def test_the_key_of_an_example_is_that_of_its_place():
    key = jax.random.key(3)
    examples = keyed(X, Y, key)
    assert len(examples.key) == 7
    for place in (0, 6):
        assert examples.key[place] == jax.random.fold_in(key, place)
    np.testing.assert_array_equal(examples.x, X)
    np.testing.assert_array_equal(examples.y, Y)
