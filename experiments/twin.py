"""The networks of `experiments.models` in PyTorch, with the same weights."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from experiments.extras import of_extra
from experiments.models import Params
from experiments.runs import Run

with of_extra("reference"):
    import torch
    from torch import nn
    from torch.nn.utils import skip_init

# Beyond this input PyTorch replaces softplus by the identity. Its default of 20 costs half of the
# digits of double precision, 40 costs none.
_THRESHOLD = 40


class Normalize(nn.Module):
    """Subtract the mean of each channel and divide by its deviation."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Keep both, ``(C, 1, 1)``, or ``(1, 1, 1)`` for all channels."""
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the images ``(N, C, H, W)``, normalized."""
        return (x - self.mean) / self.std


def torch_twin(
    architecture: Mapping[str, Any], params: Params, *, dtype: torch.dtype = torch.float32
) -> nn.Sequential:
    """Build the PyTorch network with the same weights.

    It consists of plain layers, as one would write it in PyTorch: attacks written for PyTorch are
    timed on it, and those of hessjax on the original.

    Args:
        architecture: the arguments of `experiments.models.create`, as `runs.Run` has them.
        params: the parameters, as `experiments.models.functional` returns them.
        dtype: of weights and images.

    Returns:
        A network in evaluation mode, from images ``(N, C, H, W)`` in [0, 1] to logits
        ``(N, num_classes)``. Its weights are frozen: only images have gradients.

    Raises:
        ValueError: if the images do not fit the parameters, the activation is unknown, or the
            network computes in bfloat16, which the plain layers here do not.
    """
    if (precision := architecture.get("precision", "float32")) != "float32":
        raise ValueError(
            f"the network computes in {precision}, and its PyTorch twin in float32 would be "
            "another function"
        )
    height, width, channels = architecture["input_shape"]
    activation = _activation(architecture)
    statistics = [
        torch.tensor(architecture.get(name, (default,)), dtype=dtype).reshape(-1, 1, 1)
        for name, default in (("mean", 0.0), ("std", 1.0))
    ]
    layers: list[nn.Module] = [Normalize(*statistics)]
    for kernel, bias in _weights(params, "convolutions"):
        # SAME padding for size 4, stride 2: a pixel on each side, and one more after an odd size.
        if height % 2 or width % 2:
            layers.append(nn.ZeroPad2d((0, width % 2, 0, height % 2)))
        *_, channels, features = kernel.shape
        layer = skip_init(nn.Conv2d, channels, features, 4, stride=2, padding=1, dtype=dtype)
        layers += [_filled(layer, kernel.transpose(3, 2, 0, 1), bias), activation()]
        height, width, channels = math.ceil(height / 2), math.ceil(width / 2), features
    layers.append(nn.Flatten())
    (first, bias), *others = _weights(params, "dense")
    if len(first) != height * width * channels:
        raise ValueError(
            f"images of shape {tuple(architecture['input_shape'])} give the dense layer "
            f"{height * width * channels} inputs, but it has weights for {len(first)}"
        )
    # PyTorch flattens (C, H, W), JAX (H, W, C).
    blocks = first.reshape(height, width, channels, -1)
    first = blocks.transpose(2, 0, 1, 3).reshape(first.shape)
    for kernel, vector in [(first, bias), *others]:
        layer = skip_init(nn.Linear, *kernel.shape, dtype=dtype)
        layers += [_filled(layer, kernel.T, vector), activation()]
    # The logits are the output of the last layer, without an activation.
    return nn.Sequential(*layers[:-1]).requires_grad_(requires_grad=False).eval()


def run_twin(run: Run, *, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Build the PyTorch network of a trained run, as `torch_twin` does."""
    return torch_twin(run.architecture, run.params, dtype=dtype)


def twin_batch(images: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images ``(N, H, W, C)`` as a twin takes them, ``(N, C, H, W)``, and their labels."""
    return torch.from_numpy(np.moveaxis(images, -1, 1).copy()), torch.from_numpy(labels).long()


def _activation(architecture: Mapping[str, Any]) -> partial[nn.Module]:
    activations = {
        "relu": partial(nn.ReLU),
        "softplus": partial(nn.Softplus, architecture.get("beta", 8.0), threshold=_THRESHOLD),
        "gelu": partial(nn.GELU, approximate="tanh"),
        "tanh": partial(nn.Tanh),
    }
    name = architecture["activation"]
    if name not in activations:
        raise ValueError(f"unknown activation {name!r}: expected one of {', '.join(activations)}")
    return activations[name]


def _weights(params: Params, kind: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return kernel and bias of each layer of a kind, in order."""
    count = sum(name.startswith(kind) and name.endswith("kernel") for name in params)
    return [
        (np.asarray(params[f"{kind}/{i}/kernel"]), np.asarray(params[f"{kind}/{i}/bias"]))
        for i in range(count)
    ]


def _filled(layer: nn.Module, weight: np.ndarray, bias: np.ndarray) -> nn.Module:
    layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    return layer
