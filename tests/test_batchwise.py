"""Examples are measured in batches of one size, each once and in order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import devices
from experiments.batchwise import in_batches

EXAMPLES = {"x": jnp.arange(14.0).reshape(7, 2), "y": np.arange(7)}


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
@pytest.mark.parametrize("num_devices", [None, 2])
def test_every_example_is_measured_once_in_order(batch_size, num_devices):
    sizes = []

    def measure(batch):
        sizes.append(len(batch["y"]))
        return {"sum": batch["x"].sum(axis=1) + batch["y"], "twice": 2 * batch["x"]}

    mesh = None if num_devices is None else devices.mesh(num_devices)
    found = in_batches(measure, EXAMPLES, batch_size, mesh=mesh)
    np.testing.assert_array_equal(found["sum"], [5 * i + 1 for i in range(7)])
    np.testing.assert_array_equal(found["twice"], 2 * EXAMPLES["x"])
    assert isinstance(found["sum"], np.ndarray)
    at_once = min(7, batch_size * (num_devices or 1))
    assert sizes == [at_once] * -(-7 // at_once)
    assert not any(isinstance(leaf, jax.Array) for leaf in found.values())
