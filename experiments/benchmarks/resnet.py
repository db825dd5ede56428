"""A residual network for images of CIFAR's size, without batch statistics."""

from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx

FILTERS = (16, 32, 64)
_GROUP_SIZE = 8


class GroupNorm(nnx.Module):
    """Normalize groups of 8 channels over all pixels, with or without leading batch axes.

    Flax's own takes the first axis for a batch.
    """

    def __init__(self, features: int) -> None:
        """Begin without scale and shift."""
        self.scale = nnx.Param(jnp.ones(features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the features, (..., H, W, C), normalized."""
        # Sums over many pixels need more than half precision.
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        grouped = wide.reshape(*x.shape[:-1], x.shape[-1] // _GROUP_SIZE, _GROUP_SIZE)
        axes = (-4, -3, -1)
        centered = grouped - grouped.mean(axes, keepdims=True)
        variance = jnp.square(centered).mean(axes, keepdims=True)
        normal = (centered * jax.lax.rsqrt(variance + 1e-6)).reshape(x.shape).astype(x.dtype)
        return normal * self.scale[...] + self.bias[...]


class Block(nnx.Module):
    """Two normalized 3x3 convolutions beside a shortcut, a linear one if the shape changes.

    Maps (..., H, W, C) to (..., H / stride, W / stride, features).
    """

    def __init__(self, before: int, features: int, *, stride: int, rngs: nnx.Rngs) -> None:
        """Draw the weights."""
        self.first = _convolution(before, features, stride=stride, rngs=rngs)
        self.first_norm = GroupNorm(features)
        self.second = _convolution(features, features, rngs=rngs)
        self.second_norm = GroupNorm(features)
        self.shortcut = (
            None
            if (before, stride) == (features, 1)
            else _convolution(before, features, size=1, stride=stride, rngs=rngs)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the features."""
        change = jax.nn.gelu(self.first_norm(self.first(x)))
        change = self.second_norm(self.second(change))
        return jax.nn.gelu(change + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    """A convolution, a block for each of 16, 32 and 64 filters, the mean over pixels, logits.

    Group normalization treats each example by itself, so that the Hessian in one is meaningful.
    Maps (..., H, W, C) with pixels in [0, 1] to logits (..., num_classes).
    """

    def __init__(self, *, channels: int = 3, num_classes: int = 10, rngs: nnx.Rngs) -> None:
        """Draw the weights."""
        self.stem = _convolution(channels, FILTERS[0], rngs=rngs)
        self.stem_norm = GroupNorm(FILTERS[0])
        self.blocks = nnx.List([Block(FILTERS[0], FILTERS[0], stride=1, rngs=rngs)])
        for before, features in pairwise(FILTERS):
            self.blocks.append(Block(before, features, stride=2, rngs=rngs))
        self.dense = nnx.Linear(FILTERS[-1], num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits of one example, or of a batch."""
        x = jax.nn.gelu(self.stem_norm(self.stem(x - 0.5)))
        for block in self.blocks:
            x = block(x)
        return self.dense(x.mean(axis=(-3, -2)))


def _convolution(
    before: int, features: int, *, size: int = 3, stride: int = 1, rngs: nnx.Rngs
) -> nnx.Conv:
    return nnx.Conv(before, features, (size, size), strides=stride, use_bias=False, rngs=rngs)
