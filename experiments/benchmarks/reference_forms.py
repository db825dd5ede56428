"""Objectives in PyTorch for the estimates that hessjax makes, each in the fastest form found.

An objective is ``(network, x, y, noise) -> scalar``: the mean over the batch of per-example losses
and penalties. Losses are summed, not averaged, before they are differentiated in the images, so
that no gradient or Hessian of an example carries a factor 1/B. ``noise`` is the random input that
the objective needs, or None.

Tried and rejected, by the time of a whole step of the surrogate on one CPU thread at batch 128:
reverse over reverse over a forward tangent and reverse over forward over reverse (1.3 to 1.8 times
as long as double backpropagation), ``uᵀHv`` at a frozen u in place of ``‖Hv‖`` (no difference), and
channels-last memory (up to a quarter longer).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.functional import cross_entropy

Objective = Callable[[nn.Module, Tensor, Tensor, Tensor | None], Tensor]
Matvec = Callable[[Tensor], Tensor]
Locate = Callable[[Matvec, Tensor], Tensor]

_ATTACK_STEPS = 10


class LogisticGELU(nn.Module):
    """Equals ``nn.GELU(approximate="tanh")``, for objectives that differentiate it three times.

    PyTorch's own takes longer in the third derivative (a step of the surrogate on the CNN takes a
    tenth to a fifth longer), which in single precision is NaN for inputs of ±14 and beyond.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x σ(2 √(2/π) (x + 0.044715 x³))``."""
        slope = math.sqrt(8 / math.pi)
        return x * torch.sigmoid(x * (slope + 0.044715 * slope * x.square()))


def thrice_differentiable(network: nn.Sequential) -> nn.Sequential:
    """Replace each GELU by `LogisticGELU`, and return the network."""
    for i, layer in enumerate(network):
        if isinstance(layer, nn.GELU):
            network[i] = LogisticGELU()
    return network


def norms(v: Tensor) -> Tensor:
    """Return the norm of each example of a batch, ``(N,)``; its gradient at zero is zero."""
    return torch.linalg.vector_norm(v.flatten(1), dim=1)


def unit(v: Tensor) -> Tensor:
    """Normalize each example of a batch; zero stays zero."""
    lengths = norms(v).clamp_min(torch.finfo(v.dtype).tiny)
    return v / lengths.reshape(-1, *[1] * (v.ndim - 1))


def _losses(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(network(x), y, reduction="none")


def _gradients(network: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the images as a leaf, their losses, and gradients to be differentiated again."""
    x = x.detach().requires_grad_()
    losses = _losses(network, x, y)
    (gradients,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
    return x, losses, gradients


def plain(network: nn.Module, x: Tensor, y: Tensor, noise: Tensor | None = None) -> Tensor:
    """Evaluate the loss."""
    del noise
    return _losses(network, x, y).mean()


def gradient(
    network: nn.Module, x: Tensor, y: Tensor, noise: Tensor | None = None, *, weight: float
) -> Tensor:
    """Add the norm of the gradient in the image, by double backpropagation."""
    del noise
    _, losses, gradients = _gradients(network, x, y)
    return (losses + weight * norms(gradients)).mean()


def start(matvec: Matvec, v: Tensor) -> Tensor:
    """Stay at the start: the only product is the differentiated one."""
    del matvec
    return v


def power_iteration(matvec: Matvec, v: Tensor, *, num_iters: int) -> Tensor:
    """Return the unit vector that the last of ``num_iters`` products is applied to.

    That last one is the differentiated one, so only ``num_iters - 1`` are computed here.
    """
    for _ in range(num_iters - 1):
        v = unit(matvec(v))
    return v


def lanczos(matvec: Matvec, v: Tensor, *, num_iters: int) -> Tensor:
    """Return the unit Ritz vectors of largest magnitude, from ``num_iters`` products.

    With full reorthogonalization, as in hessjax. The differentiated product comes on top.
    """
    basis = v.new_zeros(len(v), num_iters, v[0].numel())
    images = torch.zeros_like(basis)
    # What rounding leaves of an image that lies in the space is not a new direction.
    rounding = 10 * math.sqrt(v[0].numel()) * torch.finfo(v.dtype).eps
    for i in range(num_iters):
        image = matvec(v).flatten(1)
        basis[:, i], images[:, i] = v.flatten(1), image
        following = unit(image)
        for _ in range(2):
            coefficients = basis[:, : i + 1] @ following[..., None]
            following = following - (basis[:, : i + 1].mT @ coefficients)[..., 0]
        following = torch.where(norms(following)[:, None] > rounding, unit(following), 0)
        v = following.view_as(v)
    projected = basis @ images.mT
    values, vectors = torch.linalg.eigh((projected + projected.mT) / 2)
    top = values.abs().argmax(dim=1)
    coefficients = vectors[torch.arange(len(v), device=v.device), :, top]
    return unit(coefficients[:, None] @ basis).view_as(v)


def second_order(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    noise: Tensor | None = None,
    *,
    gradient_weight: float,
    hessian_weight: float,
    locate: Locate = start,
) -> Tensor:
    """Add the norms of gradient and of a Hessian-vector product, by double backpropagation.

    As published reimplementations do it: the direction is sought without a graph, then one product
    is differentiated in the weights, through ``‖Hv‖``.

    Args:
        network: images to logits.
        x: images, ``(N, C, H, W)``.
        y: labels, ``(N,)``.
        noise: the start of the search, like x; the gradient if None.
        gradient_weight: of the gradient's norm.
        hessian_weight: of ``‖Hv‖``.
        locate: ``(matvec, unit start) -> v`` for a batch, such as `power_iteration`.
    """
    x, losses, gradients = _gradients(network, x, y)

    def matvec(v: Tensor) -> Tensor:
        return torch.autograd.grad(gradients, x, v, retain_graph=True)[0]

    v = locate(matvec, unit(gradients.detach() if noise is None else noise))
    (product,) = torch.autograd.grad(gradients, x, v, create_graph=True)
    penalties = gradient_weight * norms(gradients) + hessian_weight * norms(product)
    return (losses + penalties).mean()


def second_order_forward(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    noise: Tensor | None = None,
    *,
    gradient_weight: float,
    hessian_weight: float,
) -> Tensor:
    """Evaluate `second_order`, one product from the gradient, as hessjax does: by jvp of jvp."""
    del noise
    leaf, _, gradients = _gradients(network, x, y)
    v = unit(gradients.detach())
    u = unit(torch.autograd.grad(gradients, leaf, v)[0])

    def evaluate(t: Tensor) -> Tensor:
        return _losses(network, t, y)

    (losses, slopes), (_, curvatures) = jvp(lambda t: jvp(evaluate, (t,), (v,)), (x,), (u,))[:2]
    return (losses + gradient_weight * slopes + hessian_weight * curvatures).mean()


def curvature(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    noise: Tensor | None = None,
    *,
    weight: float,
    step: float,
) -> Tensor:
    """Add CURE's change of the gradient over a step along its sign, as its published code does.

    By double backpropagation; the change is neither divided by the step nor squared.
    """
    del noise
    x, losses, gradients = _gradients(network, x, y)
    _, _, moved = _gradients(network, x + step * unit(gradients.detach().sign()), y)
    return (losses + weight * norms(moved - gradients)).mean()


def jacobian(
    network: nn.Module, x: Tensor, y: Tensor, noise: Tensor | None, *, weight: float
) -> Tensor:
    """Add the Jacobian's squared Frobenius norm, estimated by one probe shaped like the logits."""
    x = x.detach().requires_grad_()
    logits = network(x)
    (rows,) = torch.autograd.grad(logits, x, noise, create_graph=True)
    penalties = rows.square().flatten(1).sum(1)
    return (cross_entropy(logits, y, reduction="none") + weight * penalties).mean()


def _project(x: Tensor, center: Tensor, epsilon: float, order: float) -> Tensor:
    difference = x - center
    if order == 2:
        lengths = norms(difference).clamp_min(epsilon).reshape(-1, 1, 1, 1)
        difference = difference * (epsilon / lengths)
    else:
        difference = difference.clamp(-epsilon, epsilon)
    return (center + difference).clamp(0, 1)


def adversarial(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    noise: Tensor | None,
    *,
    epsilon: float,
    order: float,
) -> Tensor:
    """Evaluate the loss at the last iterate of PGD-10, with the settings of `experiments.methods`.

    Args:
        network: images to logits.
        x: images in [0, 1].
        y: labels.
        noise: the first iterate, in the ball and the box.
        epsilon: the radius.
        order: 2 or infinity.
    """
    iterate = x if noise is None else noise
    for _ in range(_ATTACK_STEPS):
        leaf = iterate.detach().requires_grad_()
        # Asked only for the image, the engine does not compute the gradients in the weights.
        (ascent,) = torch.autograd.grad(_losses(network, leaf, y).sum(), leaf)
        ascent = unit(ascent) if order == 2 else ascent.sign()
        iterate = iterate + 2.5 * epsilon / _ATTACK_STEPS * ascent
        iterate = _project(iterate, x, epsilon, order)
    return plain(network, iterate, y)


def random_point(x: Tensor, epsilon: float, order: float) -> Tensor:
    """Draw where an attack starts, as `hessjax.attacks` does."""
    if order == 2:
        radii = torch.rand(len(x), 1, 1, 1, dtype=x.dtype, device=x.device)
        offset = radii * unit(torch.randn_like(x))
    else:
        offset = 2 * torch.rand_like(x) - 1
    return (x + epsilon * offset).clamp(0, 1)
