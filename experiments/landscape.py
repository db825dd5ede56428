"""The numbers behind the figures: how the loss looks around test examples.

Mainly one function, `landscape`: curvature and gradient norm of every test example, the loss over a
plane through a few of them, and a few attacked images. Nothing here draws.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from optax.losses import softmax_cross_entropy_with_integer_labels

from experiments.batchwise import keyed, of_each
from hessjax._numerics import PyTree, ScalarFunction, normalize, safe_norm
from hessjax.attacks import LpBall, pgd
from hessjax.attacks.batches import Examples
from hessjax.attacks.gradient import Loss
from hessjax.eigen import Eigenpair, gradient_start, lanczos
from hessjax.losses import margin
from hessjax.objective import Apply
from hessjax.operators import hessian_operator


def landscape(
    apply: Apply,
    params: PyTree,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    key: jax.Array,
    ball: LpBall,
    radius: float,
    loss: Loss = softmax_cross_entropy_with_integer_labels,
    num_products: int = 10,
    num_steps: int = 40,
    num_examples: int = 4,
    resolution: int = 41,
    batch_size: int = 250,
    mesh: Mesh | None = None,
) -> dict[str, np.ndarray]:
    r"""Measure the loss around test examples, as a function of the input.

    The plane through an example is spanned by two orthonormal directions: the gradient, and the
    part of the top eigenvector of the Hessian that is orthogonal to it. Distances in the plane are
    therefore ℓ2 distances in input units. The points are not clipped to the pixel box.

    Args:
        apply: ``(params, x) -> logits`` for one example.
        params: the parameters.
        images: ``(N, ...)``, in the units of the ball.
        labels: ``(N,)`` integers.
        key: for the starts of the attack (and where a direction is not defined).
        ball: the ball that the shown attack stays in.
        radius: half the width of the plane, in input units.
        loss: ``(logits, label) -> scalar`` for one example.
        num_products: Hessian-vector products per example, Lanczos from the gradient.
        num_steps: steps of the shown PGD attack.
        num_examples: how many examples get a plane and an attack: the first one of each of this
            many classes, so that the same ones are shown for every model.
        resolution: points along one side of the plane; odd, so that the example is one of them.
        batch_size: examples per call on each device; the last batch is padded.
        mesh: devices that share each batch, the default one if not given.

    Returns:
        Arrays by name; M is the number of shown examples, K the resolution.
        ``curvature`` (N,): \|H\|, the largest |eigenvalue|, estimated from below;
        ``gradient_norm`` (N,): \|g\|₂;
        ``shown`` (M,): their indices; ``shown_label`` (M,), ``shown_clean`` (M, ...);
        ``clean_prediction`` (M,), ``attacked`` (M, ...), ``attacked_prediction`` (M,);
        ``attack_epsilon``, ``attack_order``, ``attack_steps`` ();
        ``surface_offsets`` (K,): distances from the example along either axis;
        ``surface_loss`` (M, K, K): row ``i``, column ``j`` at ``offsets[j]`` along the gradient and
        ``offsets[i]`` along the other axis; ``surface_cosine`` (M,): of gradient and top
        eigenvector, nonnegative (1: parallel, and the second axis is a random direction);
        ``boundary_margin`` (M, K, K): the logit of the label less the largest other one, row ``i``,
        column ``j`` at ``offsets[j]`` along the attack and ``offsets[i]`` along a random direction.

    Raises:
        ValueError: if there are no examples, not as many labels, or a setting is out of range.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError(
            f"expected one label for each image, and at least one image, got {len(images)} images "
            f"and {len(labels)} labels"
        )
    if resolution < 3 or resolution % 2 == 0:
        raise ValueError(f"resolution must be odd and at least 3, got {resolution}")
    if radius <= 0:
        raise ValueError(f"radius must be positive, got {radius}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")

    problem, examples = _Problem(apply, loss, num_products), keyed(images, labels, key)
    offsets = np.asarray(jnp.linspace(-radius, radius, resolution, dtype=examples.x.dtype))
    shown = np.sort(np.unique(labels, return_index=True)[1])[:num_examples]
    chosen = Examples(*(array[shown] for array in examples))
    shared, attack = (params, offsets), (problem, ball, num_steps)
    return {
        **of_each(_norms, problem, params, examples, batch_size, mesh=mesh),
        # One example at a time: its plane is a batch of resolution² already.
        **of_each(_plane, problem, shared, chosen, 1, mesh=mesh),
        **of_each(_attacked, attack, shared, chosen, batch_size, mesh=mesh),
        "shown": shown,
        "shown_label": np.asarray(chosen.y),
        "shown_clean": np.asarray(chosen.x),
        "attack_epsilon": np.asarray(ball.epsilon),
        "attack_order": np.asarray(float(ball.order)),
        "attack_steps": np.asarray(num_steps),
        "surface_offsets": offsets,
    }


def norms(
    apply: Apply,
    params: PyTree,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    key: jax.Array,
    mesh: Mesh | None = None,
) -> dict[str, np.ndarray]:
    """Measure ``curvature`` and ``gradient_norm`` of examples as `landscape` does, all at once.

    Uses five Lanczos products instead of ten, because it runs again and again during training.
    """
    problem = _Problem(apply, softmax_cross_entropy_with_integer_labels, 5)
    examples = keyed(images, labels, key)
    return of_each(_norms, problem, params, examples, len(images), mesh=mesh)


class _Problem(NamedTuple):
    """What the measurements are compiled for: equal problems share compiled programs."""

    apply: Apply
    loss: Loss
    num_products: int

    def at(self, params: PyTree, y: jax.Array) -> ScalarFunction:
        """Return the loss of an example as a function of its input."""
        return lambda x: self.loss(self.apply(params, x), y)


def _norms(
    problem: _Problem, params: PyTree, x: jax.Array, y: jax.Array, key: jax.Array
) -> dict[str, jax.Array]:
    gradient, pair = _top_eigenpair(problem.at(params, y), x, key, problem.num_products)
    return {"curvature": jnp.abs(pair.value), "gradient_norm": safe_norm(gradient)}


def _attacked(
    setting: tuple[_Problem, LpBall, int],
    shared: tuple[PyTree, jax.Array],
    x: jax.Array,
    y: jax.Array,
    key: jax.Array,
) -> dict[str, jax.Array]:
    """Return an attack on one example, and the margin over a plane through both."""
    (problem, ball, num_steps), (params, offsets) = setting, shared
    logits = partial(problem.apply, params)
    attacked = pgd(logits, x, y, ball, key, loss=problem.loss, num_steps=num_steps)
    # Where the attack stayed at the example, both directions are random.
    along = gradient_start(attacked - x, jax.random.fold_in(key, 2))
    noise = jax.random.normal(jax.random.fold_in(key, 3), x.shape, x.dtype)
    across, _ = normalize(noise - jnp.vdot(along, noise) * along)
    surface = _surface(lambda point: margin(logits(point), y), x, along, across, offsets)
    return {
        "clean_prediction": jnp.argmax(logits(x)),
        "attacked": attacked,
        "attacked_prediction": jnp.argmax(logits(attacked)),
        "boundary_margin": surface,
    }


def _surface(
    f: ScalarFunction, x: jax.Array, along: jax.Array, across: jax.Array, offsets: jax.Array
) -> jax.Array:
    """Return f over a plane, (K, K): columns vary along ``along``, rows along ``across``."""

    def at(i: jax.Array, j: jax.Array) -> jax.Array:
        return f(x + j * along + i * across)

    return jax.vmap(jax.vmap(at, in_axes=(None, 0)), in_axes=(0, None))(offsets, offsets)


def _top_eigenpair(
    f: ScalarFunction, x: jax.Array, key: jax.Array, num_products: int
) -> tuple[jax.Array, Eigenpair]:
    """Return the gradient and the eigenpair of largest magnitude of the Hessian."""
    gradient = jax.grad(f)(x)
    start = gradient_start(gradient, key)
    return gradient, lanczos(hessian_operator(f, x), start, num_iters=num_products)


def _plane(
    problem: _Problem,
    shared: tuple[PyTree, jax.Array],
    x: jax.Array,
    y: jax.Array,
    key: jax.Array,
) -> dict[str, jax.Array]:
    """Return the loss over the plane, (K, K), and the cosine of its two spanning directions."""
    params, offsets = shared
    f = problem.at(params, y)
    gradient, pair = _top_eigenpair(f, x, key, problem.num_products)
    across = gradient_start(gradient, key)
    cosine = jnp.vdot(across, pair.vector)
    remainder = pair.vector - cosine * across
    # Below the rounding of the dot product the remainder points anywhere, also back to `across`.
    parallel = safe_norm(remainder) <= jnp.sqrt(jnp.finfo(x.dtype).eps)
    noise = jax.random.normal(jax.random.fold_in(key, 1), x.shape, x.dtype)
    noise = noise - jnp.vdot(across, noise) * across
    # An eigenvector has no sign; the one at an acute angle to the gradient points up in the plane.
    signed = jnp.where(cosine < 0, -remainder, remainder)
    upward, _ = normalize(jnp.where(parallel, noise, signed))
    surface = _surface(f, x, across, upward, offsets)
    return {"surface_loss": surface, "surface_cosine": jnp.where(parallel, 1, jnp.abs(cosine))}
