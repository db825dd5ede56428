"""A small network, examples of it, and Square on one of them, step by step."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from hessjax.attacks import LpBall
from hessjax.attacks.square import draw, side_lengths, square_init, square_step

NORMS = {2: "L2", math.inf: "Linf"}
KEY = jax.random.key(60)
SHAPE = (11, 11, 3)
NUM_STEPS = 260
RNG = np.random.default_rng(61)
INNER = RNG.normal(size=(math.prod(SHAPE), 20)) / 6
OUTER = RNG.normal(size=(20, 5))
X = RNG.uniform(size=(150, *SHAPE))


def network(x):
    return jnp.tanh((x.reshape(-1) - 0.5) @ INNER) @ OUTER


LOGITS = np.asarray(jax.vmap(network)(jnp.asarray(X)))
Y = LOGITS.argmax(axis=1)
# From the example that is hardest to break on.
HARDEST = np.argsort(np.diff(np.sort(LOGITS, axis=1)[:, -2:], axis=1)[:, 0])[::-1]


@cache
def trajectory(order):
    """Return ``run(x, y, epsilon, key)``, which runs the attack.

    It returns the state after each step, with the start first, and what was drawn and proposed.
    """

    @jax.jit
    def run(x, y, epsilon, key):
        ball = LpBall(epsilon, order)
        sides = side_lengths(ball, SHAPE, 0.8)

        def step(state, _):
            drawn = draw(SHAPE, sides, state.key, state.step)
            evaluated = []
            after = square_step(lambda x: evaluated.append(x) or network(x), x, y, ball, state)
            return after, (state, drawn, evaluated[0])

        first = square_init(network, x, y, ball, key)
        last, (states, drawn, proposals) = jax.lax.scan(step, first, length=NUM_STEPS)
        whole = jax.tree.map(lambda most, one: jnp.concatenate([most, one[None]]), states, last)
        return whole, drawn, proposals

    return run
