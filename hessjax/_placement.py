"""Let each device work on examples of its own, where a batch lies on several."""

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
    """Return the mesh of several devices that arrays of a tree lie on, None if there is none."""
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree)]
    meshes = [sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding)]
    return next((mesh for mesh in meshes if isinstance(mesh, Mesh) and mesh.size > 1), None)


def following(mesh: Mesh | None) -> AbstractContextManager[object]:
    """Return a context in which `spread` and `gathered` know the mesh; nothing changes if None."""
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def replicated(mesh: Mesh | None, tree: Result) -> Result:
    """Return a tree of arrays, the same in every process, whole on each device of the mesh.

    As it is, if the mesh is None.
    """
    if mesh is None:
        return tree
    whole = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, whole)

    def put(leaf: jax.Array) -> jax.Array:
        # To devices of other processes go arrays of the host, and no keys.
        if not getattr(leaf, "is_fully_addressable", True):
            return jax.device_put(leaf, whole)
        if jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key):
            data = put(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return jax.device_put(np.asarray(leaf), whole)

    return jax.tree.map(put, tree)


def filled(examples: Result, multiple: int) -> Result:
    """Return examples as many as a multiple, by repeating the last one."""
    size = jax.tree.leaves(examples)[0].shape[0]
    if size % multiple == 0:
        return examples
    places = np.arange(size + -size % multiple).clip(max=size - 1)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[places], examples)


def _dealt_out(examples: PyTree) -> Iterator[tuple[AxisType, ...]]:
    """Tell of which types the axes of the meshes are that leading axes are known to lie on."""
    for leaf in jax.tree.leaves(examples):
        sharding = jax.typeof(leaf).sharding
        if len(sharding.spec) and sharding.spec[0] is not None:
            yield sharding.mesh.axis_types


def spread(function: Callable[..., Result], shared: PyTree, *examples: PyTree) -> Result:
    """Return ``function(shared, *examples)``, from each device for a share of the examples.

    The function takes and returns trees of arrays with one leading axis, that of the examples, and
    treats each by itself. Otherwise the compiler would sum each contribution to a gradient over
    the devices separately, three times a weight's size for a second derivative, and gather all
    examples on every device where it cannot tell that they are independent. Here the gradient in
    ``shared`` is summed over the devices once.

    Where equal shares of the examples lie on the devices, they stay there; other numbers are filled
    up with the last one. Outside a mesh of one axis this is the function itself.

    Raises:
        ValueError: if the mesh is one with explicit axes.
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
    # Unchecked: a loop of the user's may start from a constant, which is the same on all devices.
    return jax.shard_map(function, in_specs=specs, out_specs=rows, check_vma=False)(
        shared, *examples
    )


def each(function: Callable[..., Result], shared: PyTree, *examples: PyTree) -> Result:
    """Apply ``(shared, *example) -> tree`` to each example, as `spread` deals them out."""
    return spread(jax.vmap(function, (None, *(0 for _ in examples))), shared, *examples)


def gathered(tree: Result) -> Result:
    """Return arrays whole on every device of the mesh, so that each process can read them."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec())
