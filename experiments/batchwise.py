"""Measurements of many examples, in batches of one size."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from hessjax._numerics import PyTree
from hessjax._placement import following, mesh_of, replicated


def in_batches(
    measure: Callable[[PyTree], dict[str, jax.Array]],
    examples: PyTree,
    batch_size: int,
    *,
    mesh: Mesh | None = None,
) -> dict[str, np.ndarray]:
    """Measure all examples in batches of one size, for which a program is compiled once.

    Args:
        measure: a tree like ``examples``, with fewer of them, to arrays by name, an entry each.
        examples: a tree of arrays with one leading axis, N examples.
        batch_size: so many at a time, or N if they are fewer; for each device.
        mesh: devices that share each batch; those on which the examples lie if not given.

    Returns:
        The arrays by name, of N entries each, on the host.
    """
    count = len(jax.tree.leaves(examples)[0])
    size = min(batch_size * (1 if mesh is None else mesh.size), count)
    parts = []
    for first in range(0, count, size):
        # The last batch is filled up with the last example; what that adds is cut off below.
        index = np.minimum(np.arange(first, first + size), count - 1)
        batch = replicated(mesh, jax.tree.map(lambda array, index=index: array[index], examples))
        with following(mesh_of(batch)):
            parts.append(jax.device_get(measure(batch)))
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}
