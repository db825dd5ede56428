"""A small network, a batch for it, and what is evaluated of objectives, compiled once."""

from functools import cache
from typing import Any

import jax

from hessjax import second_order
from tests import cases

KEY = jax.random.key(40)
CASE = cases.mlp("gelu")
PARAMS = CASE.params
X, Y = cases.batch_of(CASE, 6)
BATCH = (X, Y)
APPLY, LOSS = CASE.apply, CASE.loss


@cache
def compiled(objective: Any) -> Any:
    return jax.jit(jax.value_and_grad(objective, has_aux=True))


def value_and_gradient(objective: Any, batch: Any = BATCH, step: Any = 0) -> Any:
    return compiled(objective)(PARAMS, batch, KEY, step)


SHARED = second_order(APPLY, LOSS, 0.7, 0.3)
