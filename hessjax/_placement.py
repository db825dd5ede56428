"""Let each device work on its own examples if a batch lies on several devices."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hessjax._numerics import PyTree

Result = TypeVar("Result")


def mesh_of(tree: PyTree) -> Mesh | None:
    """Return the multi-device mesh on which a tree's arrays lie, or None if there is none."""
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree)]
    meshes = [sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding)]
    return next((mesh for mesh in meshes if isinstance(mesh, Mesh) and mesh.size > 1), None)


def following(mesh: Mesh | None) -> AbstractContextManager[object]:
    """Return a context in which `spread` and `gathered` use the mesh; None changes nothing."""
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def replicated(mesh: Mesh | None, tree: Result) -> Result:
    """Copy a tree of arrays, the same in every process, whole to each device of the mesh.

    If the mesh is None, return the tree unchanged.
    """
    if mesh is None:
        return tree
    whole = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, whole)

    def put(leaf: jax.Array) -> jax.Array:
        # Only host arrays, and no keys, can be sent to devices of other processes.
        if not getattr(leaf, "is_fully_addressable", True):
            return jax.device_put(leaf, whole)
        if jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key):
            data = put(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return jax.device_put(np.asarray(leaf), whole)

    return jax.tree.map(put, tree)


def filled(examples: Result, multiple: int) -> Result:
    """Pad examples to a multiple of ``multiple`` by repeating the last one."""
    size = jax.tree.leaves(examples)[0].shape[0]
    if size % multiple == 0:
        return examples
    places = np.arange(size + -size % multiple).clip(max=size - 1)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[places], examples)


def _dealt_out(examples: PyTree) -> Iterator[tuple[AxisType, ...]]:
    """Yield the mesh's axis types for each leaf whose leading axis is known to be sharded."""
    for leaf in jax.tree.leaves(examples):
        sharding = jax.typeof(leaf).sharding
        if len(sharding.spec) and sharding.spec[0] is not None:
            yield sharding.mesh.axis_types


def spread(function: Callable[..., Result], shared: PyTree, *examples: PyTree) -> Result:
    """Return ``function(shared, *examples)``, computed by each device for its share of examples.

    The function takes and returns trees of arrays whose leading axis is that of the examples, and
    treats each example independently. Without this, the compiler would sum each contribution to a
    gradient over the devices separately, three times a weight's size for a second derivative, and
    gather all examples on every device if it cannot tell that they are independent. Here the
    gradient with respect to ``shared`` is summed over the devices once.

    Examples that lie on the devices in equal shares stay there; a number that cannot be shared
    equally is padded with the last one. Without a one-axis mesh this just calls the function.

    Raises:
        ValueError: if the mesh has explicit axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    for axis_types in (mesh.axis_types, *_dealt_out(examples)):
        if AxisType.Explicit in axis_types:
            raise ValueError(
                "hessjax needs a mesh whose sharding the compiler works out, "
                f"jax.make_mesh(..., axis_types=(AxisType.Auto,)), got {axis_types}"
            )
    if tuple(mesh.axis_types) != (AxisType.Auto,) or mesh.size == 1:
        return function(shared, *examples)
    size = jax.tree.leaves(examples)[0].shape[0]
    if size % mesh.size:
        results = spread(function, shared, *filled(examples, mesh.size))
        return jax.tree.map(lambda leaf: leaf[:size], results)
    rows, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    specs = (whole, *(rows for _ in examples))
    # Unchecked: a user's loop may start from a constant, which is the same on all devices.
    return jax.shard_map(function, in_specs=specs, out_specs=rows, check_vma=False)(
        shared, *examples
    )


def each(function: Callable[..., Result], shared: PyTree, *examples: PyTree) -> Result:
    """Apply ``(shared, *example) -> tree`` to each example, distributed as by `spread`."""
    return spread(jax.vmap(function, (None, *(0 for _ in examples))), shared, *examples)


def gathered(tree: Result) -> Result:
    """Replicate arrays on every device of the mesh, so that each process can read them."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec())
