"""Ways to estimate the operator norm of the input Hessian, and how far each stays below it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.models import Params
from hessjax import (
    gradient_start,
    hessian_matrix,
    hessian_operator_norm,
    lanczos,
    norm_ascent,
    power_iteration,
    random_start,
)
from hessjax._compilation import compiler_options
from hessjax.eigen import Solver, Start
from hessjax.objective import Apply

# Solvers are compared at equal numbers of products. Ascent takes two per step, and a final one.
PRODUCTS = (1, 3, 5, 9)
# For norm_ascent; with norms from 0.01 to 10 it is nearly as good as any larger one.
_ASCENT_STEP = 10.0


class Estimate(NamedTuple):
    """How a norm is estimated: the options of `hessjax.second_order`."""

    solver: Solver | None
    start: Start

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of an objective or a penalty."""
        return self._asdict()


def _by_products(start: Start, name: str) -> dict[str, Estimate]:
    found: dict[str, Estimate] = {}
    for count in PRODUCTS:
        solvers: dict[str, Solver] = {"power": partial(power_iteration, num_iters=count)}
        if count > 1:
            steps = (count - 1) // 2
            solvers |= {
                "ascent": partial(norm_ascent, num_iters=steps, step_size=_ASCENT_STEP),
                "Lanczos": partial(lanczos, num_iters=count),
            }
        found |= {
            f"{solver}, {name}, {count}": Estimate(by, start) for solver, by in solvers.items()
        }
    return found


ESTIMATES: dict[str, Estimate] = {
    "none, gradient, 0": Estimate(None, gradient_start),
    **_by_products(gradient_start, "gradient"),
    **_by_products(random_start, "random"),
}
"""By solver, start and number of products, as in ``power, gradient, 1``."""

DEFAULT = "power, gradient, 1"


def relative_errors(
    apply: Apply, params: Params, x: np.ndarray, y: np.ndarray, estimates: Mapping[str, Estimate]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Compare estimates with the largest eigenvalue of the dense Hessian, one image at a time.

    Args:
        apply: ``(params, x) -> logits`` of one example.
        params: trained parameters, float32.
        x: images.
        y: labels.
        estimates: by name.

    Returns:
        The norms, from dense Hessians; and by name ``1 - estimate / norm`` for each image. All use
        `exact_cross_entropy`, so that rounding does not add to the errors of the estimates.

    Raises:
        ValueError: if a norm is 0.
    """

    def loss_at(y: jax.Array) -> Callable[[jax.Array], jax.Array]:
        return lambda t: exact_cross_entropy(apply(params, t), y)

    hessian = jax.jit(
        lambda x, y: hessian_matrix(loss_at(y), x), compiler_options=compiler_options()
    )
    norms = np.array([largest_eigenvalue(hessian(*pair)) for pair in zip(x, y, strict=True)])
    check_positive("the Hessian's norm", norms)
    keys = jax.random.split(jax.random.key(0), len(x))
    errors = {}
    for name, estimate in estimates.items():

        def one(x: jax.Array, y: jax.Array, key: jax.Array, options: dict[str, Any]) -> jax.Array:
            return hessian_operator_norm(loss_at(y), x, key, **options)

        batched = jax.jit(
            jax.vmap(partial(one, options=estimate.options)), compiler_options=compiler_options()
        )
        errors[name] = 1 - np.asarray(batched(x, y, keys), np.float64) / norms
    return norms, errors


def check_positive(name: str, values: np.ndarray) -> None:
    """Raise unless all are positive, so that errors relative to them are defined."""
    if lost := int(np.sum(values <= 0)):
        raise ValueError(
            f"{name} is 0 at {lost} of {len(values)} images, where the network is too certain "
            "for float32: relative errors are undefined, leave this run out"
        )


def exact_cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Return the cross-entropy in a form that keeps all digits of float32 where it is tiny.

    ``log(1 + sum_k exp(z_k - z_y))`` over the other classes. In the usual form, the derivatives at
    an image of which the network is certain are differences of nearly equal numbers.
    """
    others = jnp.where(jnp.arange(logits.size) == y, -jnp.inf, logits)
    return jax.nn.softplus(jax.nn.logsumexp(others) - logits[y])


def largest_eigenvalue(matrix: jax.Array) -> float:
    """Return the operator norm of a dense symmetric matrix, in float64."""
    return float(np.max(np.abs(np.linalg.eigvalsh(np.asarray(matrix, np.float64)))))


def summary(norms: np.ndarray, errors: np.ndarray) -> dict[str, float]:
    """Summarize one estimate's errors: mean, median, 95th percentile, and that of the mean norm."""
    distance = np.abs(errors)
    return {
        "mean": float(distance.mean()),
        "median": float(np.median(distance)),
        "percentile_95": float(np.quantile(distance, 0.95)),
        "of_mean_norm": float(np.sum(norms * errors) / np.sum(norms)),
    }
