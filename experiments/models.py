"""Small networks in Flax NNX, and the pure functions of parameters that hessjax differentiates."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.typing import ArrayLike, DTypeLike

Params = dict[str, Any]
Activation = Callable[[jax.Array], jax.Array]
Apply = Callable[[Params, ArrayLike], jax.Array]
# A PyTreeDef, which type checkers mistake for a variable.
_Structure = Any

_ACTIVATIONS = ("relu", "softplus", "gelu", "tanh")
# What the layers cast to; for float32 nothing, so that double precision stays what it is.
_PRECISIONS = {"float32": None, "bfloat16": jnp.bfloat16}
# The filters of the convolutions and the widths of the dense layers between input and logits.
_MODELS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "mlp": ((), (256, 256)),
    "cnn": ((16, 32), (100,)),
}


def softplus(x: jax.Array, beta: float) -> jax.Array:
    r"""Evaluate :math:`\log(1 + e^{\beta x}) / \beta`, a ReLU with second derivative up to β/4."""
    return jax.nn.softplus(beta * x) / beta


@dataclass(frozen=True)
class _Softplus:
    """Softplus of one β; equal to another of the same β, unlike a `functools.partial`."""

    beta: float

    def __call__(self, x: jax.Array) -> jax.Array:
        return softplus(x, self.beta)


class Network(nnx.Module):
    """Strided convolutions, if any, then dense layers; without batch statistics.

    Batch normalization would couple the examples of a batch, and a Hessian with respect to one of
    them would mean nothing. Maps (..., H, W, C) with pixels in [0, 1] to logits (..., num_classes).

    With a ``dtype``, everything between the normalized pixels and the logits is computed in it: the
    hidden layers' products and activations. Weights stay as they are, and so does the last layer's
    product, a small one: rounded logits would tie, and their loss would change in jumps.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        filters: Sequence[int],
        widths: Sequence[int],
        activation: Activation,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the weights; ``mean`` and ``std``, one for all channels or for each, are fixed."""
        height, width, channels = input_shape
        self.activation, self.mean, self.std, self.dtype = activation, mean, std, dtype
        options: dict[str, Any] = {"dtype": dtype, "promote_dtype": _promoted, "rngs": rngs}
        self.convolutions = nnx.List()
        for features in filters:
            self.convolutions.append(nnx.Conv(channels, features, (4, 4), strides=2, **options))
            height, width, channels = math.ceil(height / 2), math.ceil(width / 2), features
        sizes = (height * width * channels, *widths)
        self.dense = nnx.List(nnx.Linear(*pair, **options) for pair in itertools.pairwise(sizes))
        self.dense.append(nnx.Linear(sizes[-1], num_classes, rngs=rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits of one example, or of a batch."""
        x = (x - jnp.asarray(self.mean, x.dtype)) / jnp.asarray(self.std, x.dtype)
        for convolution in self.convolutions:
            x = self._activated(_convolve(convolution, x))
        x = x.reshape(*x.shape[:-3], -1)
        *hidden, last = self.dense
        for layer in hidden:
            x = self._activated(layer(x))
        return last(x)

    def _activated(self, x: jax.Array) -> jax.Array:
        return self.activation(x if self.dtype is None else x.astype(self.dtype))


def _promoted(arrays: tuple, *, dtype: DTypeLike | None) -> tuple:
    """Cast a layer's input and kernel to ``dtype``, but not its bias.

    What is added at all examples and positions has a gradient that is a sum over them. For a bias
    in bfloat16 it would be summed in bfloat16, and 50,000 terms leave no correct digit.
    """
    if dtype is None:
        return promote_dtype(arrays)
    *factors, bias = arrays
    return (*(factor.astype(dtype) for factor in factors), bias)


def _convolve(convolution: nnx.Conv, x: jax.Array) -> jax.Array:
    """Apply a convolution of `Network`; with a single input channel, as a product of patches."""
    # On a CPU, XLA's convolution of one channel takes five times as long as the patches' product.
    # With three channels, patches make attacks faster but third-order derivatives slower.
    if x.shape[-1] > 1:
        return convolution(x)
    bias = None if convolution.bias is None else convolution.bias[...]
    x, kernel, bias = convolution.promote_dtype(
        (x, convolution.kernel[...], bias), dtype=convolution.dtype
    )
    product = convolve_by_patches(x, kernel)
    return product if bias is None else product + bias


def convolve_by_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve with a 4x4 kernel, stride 2 and SAME padding, as one matrix product.

    The patches are four shifted copies of the image's blocks of 2x2 pixels.

    Args:
        x: ``(..., H, W, C)``.
        kernel: ``(4, 4, C, F)``.

    Returns:
        ``(..., ⌈H/2⌉, ⌈W/2⌉, F)``, like `jax.lax.conv_general_dilated` up to rounding.
    """
    *batch, height, width, channels = x.shape
    rows, columns = math.ceil(height / 2), math.ceil(width / 2)
    after = (2 * rows + 1 - height, 2 * columns + 1 - width)
    x = jnp.pad(x, [(0, 0)] * len(batch) + [(1, after[0]), (1, after[1]), (0, 0)])
    blocks = x.reshape(*batch, rows + 1, 2, columns + 1, 2, channels).swapaxes(-4, -3)
    blocks = blocks.reshape(*batch, rows + 1, columns + 1, 4 * channels)
    shifted = [blocks[..., i : i + rows, j : j + columns, :] for i in (0, 1) for j in (0, 1)]
    weights = kernel.reshape(2, 2, 2, 2, channels, -1).swapaxes(1, 2)
    return jnp.concatenate(shifted, axis=-1) @ weights.reshape(16 * channels, -1)


def create(
    name: str,
    activation: str,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    seed: int,
    widths: Sequence[int] | None = None,
    beta: float = 8.0,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    precision: str = "float32",
) -> Network:
    """Create a network by name.

    Args:
        name: ``mlp``, two dense layers of 256, or ``cnn``, convolutions of 16 and 32 filters of
            4x4 with stride 2 and a dense layer of 100.
        activation: ``relu``, ``softplus``, ``gelu`` or ``tanh``.
        input_shape: (H, W, C) of one example.
        num_classes: Number of logits.
        seed: The same seed gives the same weights.
        widths: The dense layers' widths, if not those above.
        beta: Sharpness of ``softplus``; the others have none.
        mean: Subtracted from the pixels: one number, or one for each channel.
        std: What they are then divided by, one or one for each. `pixel_statistics` gives both.
        precision: ``float32``, or ``bfloat16`` between the normalized pixels and the logits.

    Raises:
        ValueError: if there is no such network, activation or precision, or a number is out of
            range.
    """
    activations: dict[str, Activation] = {
        "relu": jax.nn.relu,
        "softplus": _Softplus(beta),
        "gelu": jax.nn.gelu,
        "tanh": jnp.tanh,
    }
    check_names(name, activation, precision)
    if len(input_shape) != 3 or min(input_shape) < 1 or num_classes < 2:
        raise ValueError(
            f"got inputs of shape {tuple(input_shape)} and {num_classes} classes, "
            "expected (H, W, C) and at least 2"
        )
    if widths is not None and min(widths, default=1) < 1:
        raise ValueError(f"got widths of {tuple(widths)}, expected positive numbers")
    if not beta > 0:
        raise ValueError(f"got a softplus β of {beta}, expected a positive number")
    if not min(std) > 0:
        raise ValueError(f"got a pixel deviation of {tuple(std)}, expected positive numbers")
    height, width, channels = input_shape
    if {len(mean), len(std)} - {1, channels}:
        raise ValueError(
            f"got {len(mean)} means and {len(std)} deviations for {channels} channels, "
            f"expected 1 or {channels} of each"
        )
    filters, default_widths = _MODELS[name]
    return Network(
        (height, width, channels),
        num_classes,
        filters=filters,
        widths=default_widths if widths is None else widths,
        activation=activations[activation],
        mean=tuple(mean),
        std=tuple(std),
        dtype=_PRECISIONS[precision],
        rngs=nnx.Rngs(seed),
    )


def check_names(model: str, activation: str, precision: str) -> None:
    """Raise unless model, activation and precision have known names, listing the known ones."""
    for kind, name, known in (
        ("model", model, _MODELS),
        ("activation", activation, _ACTIVATIONS),
        ("precision", precision, _PRECISIONS),
    ):
        if name not in known:
            raise ValueError(f"unknown {kind} {name!r}: expected one of {', '.join(known)}")


def pixel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each channel of images (N, H, W, C)."""
    axes = (0, 1, 2)
    mean = images.mean(axes, dtype=np.float64)
    std = images.std(axes, dtype=np.float64)
    return tuple(mean.tolist()), tuple(std.tolist())


def functional(model: nnx.Module) -> tuple[Apply, Params]:
    """Split a network into a pure function and its parameters.

    Returns:
        ``apply(params, x)``, from one example (H, W, C) to logits (num_classes,), and the
        parameters by their paths, such as ``dense/0/kernel``. Networks that differ only in their
        weights get the very same function, and so share what is compiled for it.
    """
    graph, state = nnx.split(model)
    paths, structure = jax.tree.flatten_with_path(nnx.to_pure_dict(state))
    names = tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths)
    return _apply(graph, structure, names), dict(
        zip(names, (value for _, value in paths), strict=True)
    )


@cache
def _apply(graph: nnx.GraphDef, structure: _Structure, names: Sequence[str]) -> Apply:
    def apply(params: Params, x: ArrayLike) -> jax.Array:
        tree = structure.unflatten([params[name] for name in names])
        return nnx.merge(graph, tree)(jnp.asarray(x))

    return apply
