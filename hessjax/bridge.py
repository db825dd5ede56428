"""Wrap a model as a PyTorch module, for attacks that are written for PyTorch.

The reference implementation of AutoAttack (pyautoattack) and foolbox attack a ``torch.nn.Module``.
Only this module needs PyTorch, so ``import hessjax`` does not import it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hessjax._compilation import as_partial, compiled
from hessjax._numerics import check_count

try:
    import torch
    from torch.autograd.function import FunctionCtx
except ImportError as error:
    raise ImportError(
        f"hessjax.bridge needs PyTorch ({error}); the extra hessjax[reference] installs it"
    ) from error

Logits = Callable[[jax.Array], jax.Array]


def torch_module(logits_fn: Logits, *, batch_size: int = 250) -> torch.nn.Module:
    r"""Return a PyTorch module that computes logits and their input gradients in JAX.

    .. math:: (x_1, \dots, x_N) \mapsto (z(x_1), \dots, z(x_N))

    Arrays pass through NumPy and host memory. Compiled code depends on the shape of one example and
    on ``batch_size`` but not on N, so an attack that drops the examples it has broken recompiles
    nothing. Modules of the same function with different weights, passed as
    ``Partial(apply, params)``, share compiled code.

    Args:
        logits_fn: maps one example, of any shape, to logits ``(C,)``. Either a function, whose
            weights are fixed when the module is first called, and which JAX keeps until the
            process ends; or a `jax.tree_util.Partial`, whose leaves are weights that are not
            compiled in.
        batch_size: number of examples per call of the compiled function: a batch is cut into parts
            of this size, the last padded with copies. The attack's own batch size is best.

    Returns:
        A module without parameters that maps a batch ``(N, ...)`` to logits ``(N, C)``, with the
        dtype and device of the batch. A four-dimensional batch is taken for images
        ``(N, C, H, W)``, which the function gets as ``(H, W, C)``; any other is passed unchanged.
        The dtype must be float32, or with ``jax_enable_x64`` may be float64.

    Raises:
        TypeError: if ``logits_fn`` is not callable or ``batch_size`` is not a whole number; when
            called, if the batch has any other dtype.
        ValueError: if ``batch_size`` is less than 1; when called, if the batch is empty or the
            function does not return a vector of floating-point logits.
        RuntimeError: if a gradient is differentiated again.

    Cost: forward and backward passes cost as much as for N rounded up to a multiple of
    ``batch_size``. A forward pass keeps what backward passes need, so none of them repeats it.

    >>> weights = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    >>> module = torch_module(lambda x: weights @ x, batch_size=4)
    >>> module(torch.tensor([[3.0, 4.0]]))
    tensor([[3., 8.]])
    """
    if not callable(logits_fn):
        raise TypeError(f"logits_fn must be a function of one example, got {logits_fn!r}")
    batch_size = check_count("batch_size", batch_size)
    # NumPy weights would be moved to the device at every call.
    return _Module(jax.device_put(as_partial(logits_fn)), batch_size)


class _Module(torch.nn.Module):
    def __init__(self, logits_fn: Logits, batch_size: int) -> None:
        super().__init__()
        self.logits_fn, self.batch_size = logits_fn, batch_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _check(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return _Differentiable.apply(x, self.logits_fn, self.batch_size)
        compute = compiled(_logits)
        return _joined([compute(self.logits_fn, part) for part in _parts(x, self.batch_size)], x)


class _Context(FunctionCtx):
    """What the backward pass needs from the forward pass."""

    pullbacks: Sequence[Callable[..., Any]]
    batch_size: int


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: torch.Tensor, logits_fn: Logits, batch_size: int) -> torch.Tensor:
        compute = compiled(_logits_and_pullback)
        results = [compute(logits_fn, part) for part in _parts(x, batch_size)]
        logits, ctx.pullbacks = zip(*results, strict=True)
        ctx.batch_size = batch_size
        return _joined(logits, x)

    @staticmethod
    def backward(ctx: _Context, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        # Only create_graph enables it here, and PyTorch would take this gradient for a constant.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "gradients through the bridge cannot be differentiated again: "
                "ask for them without create_graph, or differentiate in JAX"
            )
        (cotangent,) = grad_outputs
        compute = compiled(_pulled_back)
        parts = zip(ctx.pullbacks, _parts(cotangent, ctx.batch_size), strict=True)
        gradients = [compute(pullback, part) for pullback, part in parts]
        return _joined(gradients, cotangent), None, None


def _check(x: torch.Tensor) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"inputs must be float32 or float64, got {x.dtype}")
    if x.dtype == torch.float64 and jnp.result_type(float) != jnp.float64:
        raise TypeError(
            "inputs are float64, but JAX computes in float32: convert them with x.float(), or set "
            "jax_enable_x64"
        )
    if x.ndim < 2 or not len(x):
        raise ValueError(
            f"inputs must be a batch (N, ...) of one example or more, got shape {tuple(x.shape)}"
        )


def _parts(x: torch.Tensor, size: int) -> list[np.ndarray]:
    """Cut a batch into parts of equal size."""
    array = x.detach().cpu().numpy()
    # Padded with an example, because a model may be NaN at zeros; `_joined` cuts the padding off.
    filling = np.repeat(array[-1:], -len(array) % size, axis=0)
    array = np.concatenate([array, filling])
    return np.split(array, len(array) // size)


def _joined(parts: Sequence[jax.Array], like: torch.Tensor) -> torch.Tensor:
    """Join the results for the parts of a batch; as a copy, since a tensor may be written to."""
    array = np.concatenate([np.asarray(part) for part in parts])[: len(like)]
    return torch.from_numpy(array).to(like.device)


def _logits(logits_fn: Logits, x: jax.Array) -> jax.Array:
    def one(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 0, -1) if x.ndim == 3 else x
        logits = jnp.asarray(logits_fn(x))
        if logits.ndim != 1 or not jnp.issubdtype(logits.dtype, jnp.floating):
            raise ValueError(
                "logits_fn must return floating-point logits (C,) of one example, got "
                f"{logits.dtype} of shape {logits.shape} for an example of shape {x.shape}"
            )
        return logits.astype(x.dtype)

    return jax.vmap(one)(x)


def _logits_and_pullback(logits_fn: Logits, x: jax.Array) -> tuple[jax.Array, Callable[..., Any]]:
    return jax.vjp(lambda x: _logits(logits_fn, x), x)


def _pulled_back(pullback: Callable[..., Any], cotangent: jax.Array) -> jax.Array:
    return pullback(cotangent)[0]
