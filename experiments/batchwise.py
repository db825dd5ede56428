"""Measurements of many examples, each by itself, in batches of a fixed size."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hessjax._compilation import compiled
from hessjax._numerics import PyTree
from hessjax._placement import each, following, gathered, mesh_of, replicated
from hessjax.attacks.batches import Examples

# ``(setting, shared, *example)`` to arrays by name.
_Measure = Callable[..., dict[str, jax.Array]]


def keyed(images: np.ndarray, labels: np.ndarray, key: jax.Array) -> Examples:
    """Return examples with a key each, folded from its index: independent of the batch size."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(images)))
    return Examples(jnp.asarray(images), jnp.asarray(labels), keys)


def of_each(
    measure: _Measure,
    setting: Hashable,
    shared: PyTree,
    examples: tuple[PyTree, ...],
    batch_size: int,
    *,
    mesh: Mesh | None = None,
) -> dict[str, np.ndarray]:
    """Return ``measure(setting, shared, *example)`` of all examples.

    Args:
        measure: returns arrays by name. It is compiled once for equal settings, so it should be a
            function that lives as long as the program.
        setting: whatever it needs to know that is not an array.
        shared: a tree of arrays that the examples have in common.
        examples: trees of arrays with one leading axis, N examples.
        batch_size: examples at a time on each device, or N if there are fewer.
        mesh: devices that share each batch; those that hold the examples if not given.

    Returns:
        The arrays by name, of N entries each, on the host.
    """
    program = partial(compiled(_of_each, 0), (measure, setting), replicated(mesh, shared))
    count = len(jax.tree.leaves(examples)[0])
    size = min(batch_size * (1 if mesh is None else mesh.size), count)
    parts = []
    for first in range(0, count, size):
        # The last batch is padded with the last example; the padding is cut off below.
        index = np.minimum(np.arange(first, first + size), count - 1)
        batch = replicated(mesh, jax.tree.map(lambda array, index=index: array[index], examples))
        with following(mesh_of(batch)):
            parts.append(jax.device_get(program(batch)))
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}


def _of_each(
    static: tuple[_Measure, Hashable], shared: PyTree, examples: tuple[Any, ...]
) -> dict[str, jax.Array]:
    measure, setting = static
    return gathered(each(partial(measure, setting), shared, *examples))
