"""A short AutoAttack on the small network of the reference implementations."""

from functools import partial

import jax
import numpy as np

from hessjax.attacks import apgd_attack, auto_attack, fab_attack, square_attack
from tests import originals

KEY = jax.random.key(0)
# Short, so that weak examples differ from strong ones; each kind of attack is there.
SHORT = (
    apgd_attack(num_steps=4, name="apgd-ce"),
    fab_attack(num_steps=6, num_targets=2),
    square_attack(num_steps=25),
)
# Batches of a quarter of it, 16, in most tests: each size is compiled.
attacked = partial(auto_attack, key=KEY, attacks=SHORT, batch_size=64)
PARAMS = originals.weights()
LOGITS = jax.tree_util.Partial(originals.logits_fn, PARAMS)
RADII = {2: 0.1, np.inf: 0.02}


def same(a, b):
    np.testing.assert_array_equal(a.broken_by, b.broken_by)
    np.testing.assert_allclose(a.x, b.x, atol=1e-9)
