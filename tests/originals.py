"""The reference implementations of attacks, and one small network in both frameworks."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

# Of an input: a small image of one channel, so that the order of channels does not matter.
SHAPE = (5, 5, 1)
NORMS: dict[float, Any] = {2: "L2", np.inf: "Linf"}


def weights(seed=0, hidden=24, num_classes=10):
    rng = np.random.default_rng(seed)
    size = int(np.prod(SHAPE))
    return {
        "inner": rng.normal(size=(size, hidden)) / np.sqrt(size) * 3,
        "bias": rng.normal(size=hidden) / 2,
        "outer": rng.normal(size=(hidden, num_classes)) / np.sqrt(hidden) * 4,
    }


def logits_fn(params, x):
    return jnp.tanh((x.reshape(-1) - 0.5) @ params["inner"] + params["bias"]) @ params["outer"]


def network(params) -> tuple[Any, list]:
    """The same in PyTorch, with a list of all inputs that it was evaluated at."""
    tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in params.items()}
    seen = []

    def model(x):
        seen.append(x.detach().clone().numpy().reshape(len(x), *SHAPE))
        inner = (x.reshape(len(x), -1) - 0.5) @ tensors["inner"] + tensors["bias"]
        return torch.tanh(inner) @ tensors["outer"]

    return model, seen


def examples(params, count, seed=1):
    """Inputs and the labels that the network gives them."""
    x = np.random.default_rng(seed).uniform(0.05, 0.95, size=(count, *SHAPE))
    return x, np.asarray(jax.vmap(partial(logits_fn, params))(x)).argmax(axis=1)


def batch(x, y):
    """The same for PyTorch: channels first."""
    images = torch.from_numpy(np.asarray(x)).reshape(len(x), SHAPE[2], *SHAPE[:2])
    return images, torch.from_numpy(np.asarray(y)).long()


def iterates(attack, params, x, y, ball, **init):
    """Run an attack on a batch, step by step.

    Returns the states before each step and after the last.
    """
    logits = partial(logits_fn, params)
    key = jax.random.key(0)
    state = jax.jit(jax.vmap(lambda x, y, o: attack.init(logits, x, y, ball, key, **o)))(x, y, init)
    step = jax.jit(jax.vmap(lambda x, y, state: attack.step(logits, x, y, ball, state)))
    states = [state]
    for _ in range(attack.num_steps):
        states.append(step(x, y, states[-1]))
    return states
