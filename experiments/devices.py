"""Devices to train and attack on: those of this process and of others."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def mesh(count: int | None = None) -> Mesh:
    """Return a mesh of the first ``count`` devices of all processes.

    If ``count`` is not given, of all; but of one for a single process on a CPU, where further
    devices are only simulated.

    Raises:
        ValueError: if there are fewer, or devices of other processes would be left out.
    """
    devices = jax.devices()
    if count is None:
        alone = jax.default_backend() == "cpu" and jax.process_count() == 1
        count = 1 if alone else len(devices)
    if not 1 <= count <= len(devices):
        raise ValueError(f"num_devices must be from 1 to the {len(devices)} there are, got {count}")
    if jax.process_count() > 1 and count < len(devices):
        raise ValueError(f"num_devices must be all {len(devices)} of all processes, got {count}")
    return jax.make_mesh((count,), ("batch",), (AxisType.Auto,), devices=devices[:count])


def sharded(mesh: Mesh, batch: tuple) -> tuple:
    """Return a batch with equal shares of its examples on the devices.

    A batch that does not divide evenly is padded with its last example, and a mask excludes the
    padding. Positions in the batch do not change, and so neither does any example's key.

    Args:
        mesh: the devices.
        batch: ``(x, y)`` or ``(x, y, mask)`` on the host, the same in every process; each copies to
            its devices what they need.

    Returns:
        The batch on the devices, ``(x, y, mask)`` if it had a mask or was padded.
    """
    size = len(batch[1])
    if missing := -size % mesh.size:
        x, y, mask = (*batch, np.ones(size, bool))[:3]
        last = [*range(size), *[size - 1] * missing]
        x, y = jax.tree.map(lambda leaf: np.asarray(leaf)[last], (x, y))
        batch = (x, y, np.append(mask, np.zeros(missing, bool)))
    rows = NamedSharding(mesh, PartitionSpec("batch"))

    def put(leaf: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(rows, np.asarray(leaf), np.shape(leaf))

    return jax.tree.map(put, batch)
