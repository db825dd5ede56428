"""Training steps in PyTorch, in the fastest form found, to compare the times of hessjax with."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo

from experiments.benchmarks import reference_forms as forms
from experiments.models import Params
from experiments.twin import torch_twin

# What `steps` makes.
STEPS = (
    *("none", "gradient", "hessian", "hessian-forward", "hessian-power", "hessian-lanczos"),
    *("curvature", "jacobian", "adversarial"),
)


class Step:
    """One whole training step: the objective, its gradient in the weights, and Adam's update.

    Each call takes a step on the network it holds and returns the objective before it. On a GPU it
    waits for the result.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: forms.Objective,
        x: Tensor,
        y: Tensor,
        draw: Callable[[], Tensor] | None = None,
        *,
        learning_rate: float = 2e-3,
    ) -> None:
        """Unfreeze the network, and keep it and the batch; ``draw`` draws the noise."""
        self.network, self._objective, self._draw = network.requires_grad_(), objective, draw
        self._x, self._y = x, y
        self._weights = list(network.parameters())
        # On the CPU, a step with the fused form takes 0.85 to 0.95 of the time with the default.
        self._optimizer = torch.optim.Adam(self._weights, learning_rate, fused=True)
        self._evaluate = self._value_and_gradient

    def _value_and_gradient(self, noise: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        value = self._objective(self.network, self._x, self._y, noise)
        return value.detach(), torch.autograd.grad(value, self._weights)

    def value_and_gradient(self, noise: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Evaluate without an update; ``noise`` replaces what the step would draw."""
        if noise is None and self._draw is not None:
            noise = self._draw()
        value, gradients = self._evaluate(noise)
        names = [name for name, _ in self.network.named_parameters()]
        return value, dict(zip(names, gradients, strict=True))

    def __call__(self) -> Tensor:
        """Take one step and return the objective before it, scalar."""
        value, gradients = self._evaluate(None if self._draw is None else self._draw())
        for weight, derivative in zip(self._weights, gradients, strict=True):
            weight.grad = derivative
        self._optimizer.step()
        if value.is_cuda:
            torch.cuda.synchronize(value.device)
        return value

    def compile(self, *, backend: str = "inductor") -> "Step":
        """Compile objective and gradient as one program, now, and return the step.

        A compiled network cannot be differentiated twice ("does not currently support double
        backward"), but a program that contains all the derivatives can be compiled. It needs a C++
        compiler and, on one core, up to minutes. PyTorch 2.13 cannot compile the forward-mode form.

        Args:
            backend: as in `torch.compile`.

        Raises:
            RuntimeError: if this PyTorch cannot trace derivatives, or the form does not compile.
        """
        if not hasattr(dynamo, "trace_autograd_ops"):
            raise RuntimeError(f"PyTorch {torch.__version__} cannot compile derivatives")
        evaluate = torch.compile(
            self._value_and_gradient, fullgraph=True, dynamic=False, backend=backend
        )
        # Around each call, which may trace anew. For the limit, all steps count as one function.
        evaluate = dynamo.patch(trace_autograd_ops=True, recompile_limit=1000)(evaluate)
        evaluate(None if self._draw is None else self._draw())
        self._evaluate = evaluate
        return self


def steps(
    architecture: Mapping[str, Any],
    params: Params,
    x: np.ndarray,
    y: np.ndarray,
    *,
    epsilon: float,
    weight: float,
    step: float,
    order: float = 2,
    power_iters: int = 10,
    lanczos_iters: int = 5,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> dict[str, Step]:
    """Make the training steps by name, each on a network of its own with the same weights.

    Of the first two forms of ``hessian``, the faster one is the one to compare with, compiled or
    not. The precision in which a GPU multiplies is a setting of the process, to be made equal to
    JAX's by `torch.set_float32_matmul_precision`.

    Args:
        architecture: as for `torch_twin`.
        params: as for `torch_twin`.
        x: images as hessjax takes them, ``(N, H, W, C)`` in [0, 1].
        y: labels, ``(N,)``.
        epsilon: of the surrogate in ``gradient`` (its first order) and ``hessian…``, and the radius
            of ``adversarial``, in input units.
        weight: of the penalties of ``curvature`` and ``jacobian``.
        step: length of the step of ``curvature``, in input units.
        order: of the ball of ``adversarial``, 2 or infinity.
        power_iters: products of ``hessian-power``, from random starts, including the differentiated
            one.
        lanczos_iters: products of ``hessian-lanczos``, from the gradient, excluding that one.
        dtype: of weights and images.
        device: where they are placed.
    """
    images = torch.tensor(np.asarray(x), dtype=dtype).movedim(-1, 1).contiguous().to(device)
    labels = torch.tensor(np.asarray(y), dtype=torch.long, device=device)
    weights = {"gradient_weight": epsilon, "hessian_weight": epsilon**2 / 2}
    hessian = partial(forms.second_order, **weights)
    power = partial(forms.power_iteration, num_iters=power_iters)
    krylov = partial(forms.lanczos, num_iters=lanczos_iters)
    shape = (len(images), architecture["num_classes"])

    def signs() -> Tensor:
        return 2 * torch.randint(0, 2, shape, device=device).to(dtype) - 1

    objectives: dict[str, tuple[forms.Objective, Callable[[], Tensor] | None]] = {
        "none": (forms.plain, None),
        "gradient": (partial(forms.gradient, weight=epsilon), None),
        "hessian": (hessian, None),
        "hessian-forward": (partial(forms.second_order_forward, **weights), None),
        "hessian-power": (partial(hessian, locate=power), lambda: torch.randn_like(images)),
        "hessian-lanczos": (partial(hessian, locate=krylov), None),
        "curvature": (partial(forms.curvature, weight=weight, step=step), None),
        "jacobian": (partial(forms.jacobian, weight=weight), signs),
        "adversarial": (
            partial(forms.adversarial, epsilon=epsilon, order=order),
            partial(forms.random_point, images, epsilon, order),
        ),
    }
    # Those that differentiate the network once are faster with PyTorch's own layers.
    once = {"none", "adversarial"}
    made = {}
    for name, (objective, draw) in objectives.items():
        network = torch_twin(architecture, params, dtype=dtype).to(device)
        if name not in once:
            network = forms.thrice_differentiable(network)
        made[name] = Step(network, objective, images, labels, draw)
    return made
