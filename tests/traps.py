"""Trainings that mask gradients instead of removing adversarial examples, for the diagnostics."""

from functools import partial

import jax
import jax.numpy as jnp
from optax.losses import softmax_cross_entropy

from experiments.models import Params
from hessjax import second_order
from hessjax.objective import Apply, Metrics, Objective


def distilled(apply: Apply, teacher: Params, temperature: float) -> Objective:
    """Return the objective of the student in defensive distillation, its second stage.

    The student, of the same architecture, learns the soft labels of a teacher that the method
    ``hot`` trained; both divide their logits by the temperature, which is 1 at test time.

    Args:
        apply: ``(params, x) -> logits`` of one example, for both.
        teacher: the teacher's parameters.
        temperature: T of both trainings.

    Source: Papernot et al., Distillation as a defense to adversarial perturbations against deep
    neural networks, 2016.
    """

    def loss(logits: jax.Array, soft: jax.Array) -> jax.Array:
        return softmax_cross_entropy(logits / temperature, soft)

    plain = second_order(apply, loss, 0, 0)

    def objective(
        params: Params, batch: tuple, key: jax.Array, step: int | jax.Array = 0
    ) -> tuple[jax.Array, Metrics]:
        x, _, *mask = batch
        logits = jax.vmap(partial(apply, teacher))(jnp.asarray(x))
        return plain(params, (x, jax.nn.softmax(logits / temperature), *mask), key, step)

    return objective
