"""How far the decision boundary is from test examples: estimated, and found by attacks."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

from experiments import runs
from experiments.batchwise import keyed, of_each
from experiments.data import Dataset
from experiments.extras import of_extra
from experiments.models import Params
from experiments.twin import run_twin, twin_batch
from hessjax import LpBall, hessian_operator, lanczos
from hessjax._numerics import ScalarFunction, safe_norm
from hessjax.attacks import apgd, fab
from hessjax.attacks.batches import Examples
from hessjax.bounds import (
    cross_entropy_gap,
    first_order_distance_estimate,
    second_order_distance_estimate,
)
from hessjax.eigen import ONE_PRODUCT, gradient_start
from hessjax.objective import Apply

with of_extra("reference"):
    import torch
    from foolbox.attacks.ddn import DDNAttack
    from foolbox.models.pytorch import PyTorchModel

_PRODUCTS = 10
# This many products leave an error of less than a tenth of a percent.
_EXACT_PRODUCTS = 30
# How much smaller the balls are in which APGD, one after the other, looks for nearer points.
_SHRINKING = (0.08, 0.04, 0.02, 0.01, 0.005)
_BATCH = 50
_FAB_STEPS, _DDN_STEPS, _APGD_STEPS = 50, 200, 30
ESTIMATES = ("loss_first", "loss_second", "margin_first", "margin_second")


class _Network(NamedTuple):
    """What the measurements are compiled for."""

    apply: Apply
    num_classes: int


def measure(run: runs.Run, dataset: Dataset, num_examples: int) -> dict[str, np.ndarray]:
    """Measure estimated and found distances of the first correctly classified test examples.

    Returns:
        Arrays with an entry per example: ``index`` in the test set; the `ESTIMATES`, in input
        units; ``found``, the least ℓ₂ distance that any attack needed, and that of ``fab`` and
        ``ddn`` alone; ``gradient_norm`` and ``hessian_norm`` of the cross-entropy, the latter by 30
        Lanczos products; ``one_product``, its default estimate, and that one's ``residual``.

    Raises:
        ValueError: if no example is correctly classified, no attack breaks one of them, or the
            network has no twin in PyTorch.
    """
    network, twin = _Network(run.apply, dataset.num_classes), run_twin(run)
    whole = keyed(dataset.test_images, dataset.test_labels, jax.random.key(run.config.seed))
    right = of_each(_rightly, network, run.params, whole[:2], 500)["right"]
    index = np.flatnonzero(right)[:num_examples]
    if len(index) == 0:
        raise ValueError(f"{run.path} classifies no test example correctly: nothing to measure")
    examples = Examples(*(array[index] for array in whole))
    looks = of_each(_look, network, run.params, examples, _BATCH)
    by_fab = of_each(_by_fab, network, run.params, examples, _BATCH)["distance"]
    by_ddn = _by_ddn(twin, dataset.test_images[index], dataset.test_labels[index])
    nearest = np.minimum(by_fab, by_ddn)
    for shrinking in _SHRINKING:
        shared = run.params, jnp.asarray(1 - shrinking, nearest.dtype)
        nearest = of_each(_nearer, network, shared, (examples, nearest), _BATCH)["found"]
    if missing := np.sum(np.isinf(nearest)):
        raise ValueError(
            f"no attack finds the decision boundary of {run.path} from {missing} of {len(index)} "
            "examples: is it constant there?"
        )
    return {
        "index": index,
        **looks,
        "fab": by_fab,
        "ddn": by_ddn,
        "found": nearest,
    }


def _rightly(network: _Network, params: Params, x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    return {"right": jnp.argmax(network.apply(params, x)) == y}


def _look(
    network: _Network, params: Params, x: jax.Array, y: jax.Array, key: jax.Array
) -> dict[str, jax.Array]:
    """Return the estimates of one example, and the norms behind them."""
    logits_fn = partial(network.apply, params)

    def loss(t: jax.Array) -> jax.Array:
        return cross_entropy(logits_fn(t), y)

    slope, norm = _norms(loss, x, key, _EXACT_PRODUCTS)
    default = ONE_PRODUCT(hessian_operator(loss, x), gradient_start(jax.grad(loss)(x), key))
    gap = cross_entropy_gap(loss(x))

    def to_class(j: jax.Array) -> tuple[jax.Array, jax.Array]:
        def f(t: jax.Array) -> jax.Array:
            logits = logits_fn(t)
            return logits[j] - logits[y]

        slope, norm = _norms(f, x, key, _PRODUCTS)
        first = first_order_distance_estimate(-f(x), slope)
        second = second_order_distance_estimate(-f(x), slope, norm)
        return jnp.where(j == y, jnp.inf, first), jnp.where(j == y, jnp.inf, second)

    first, second = jax.vmap(to_class)(jnp.arange(network.num_classes))
    return {
        "loss_first": first_order_distance_estimate(gap, slope),
        "loss_second": second_order_distance_estimate(gap, slope, norm),
        "margin_first": jnp.min(first),
        "margin_second": jnp.min(second),
        "gradient_norm": slope,
        "hessian_norm": norm,
        "one_product": jnp.abs(default.value),
        "residual": default.residual,
    }


def _norms(
    f: ScalarFunction, x: jax.Array, key: jax.Array, num_products: int
) -> tuple[jax.Array, jax.Array]:
    """Return the norms of gradient and Hessian."""
    gradient = jax.grad(f)(x)
    start = gradient_start(gradient, key)
    pair = lanczos(hessian_operator(f, x), start, num_iters=num_products)
    return safe_norm(gradient), jnp.abs(pair.value)


def _by_fab(
    network: _Network, params: Params, x: jax.Array, y: jax.Array, key: jax.Array
) -> dict[str, jax.Array]:
    """Return the distance of the point that FAB finds, infinite if there is none."""
    found = fab(
        partial(network.apply, params), x, y, LpBall(1.0, 2), key,
        num_targets=network.num_classes - 1, num_steps=_FAB_STEPS,
    )  # fmt: skip
    distance = safe_norm(found - x)
    return {"distance": jnp.where(distance == 0, jnp.inf, distance)}


def _by_ddn(twin: torch.nn.Module, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the distances of the points that DDN finds, infinite where there is none."""
    model = PyTorchModel(twin, bounds=(0, 1), device="cpu")
    tensors = twin_batch(images, labels)
    torch.manual_seed(0)
    found, _, success = DDNAttack(steps=_DDN_STEPS)(model, *tensors, epsilons=None)
    distance = np.sqrt(np.sum((found.numpy() - tensors[0].numpy()) ** 2, axis=(1, 2, 3)))
    return np.where(success.numpy() & (distance > 0), distance, np.inf)


def _nearer(
    network: _Network, shared: tuple[Params, jax.Array], example: Examples, nearest: jax.Array
) -> dict[str, jax.Array]:
    """Try APGD in a ball a little smaller than the distance found so far."""
    (params, factor), (x, y, key) = shared, example
    logits_fn = partial(network.apply, params)
    # Where nothing was found yet, in one that contains the whole box.
    radius = factor * jnp.where(jnp.isfinite(nearest), nearest, 2 * jnp.sqrt(x.size))
    point = apgd(logits_fn, x, y, LpBall(radius, 2), key, num_steps=_APGD_STEPS)
    wrong = jnp.argmax(logits_fn(point)) != y
    return {"found": jnp.where(wrong, jnp.minimum(safe_norm(point - x), nearest), nearest)}
