"""FAB against the reference implementation, step by step, and by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from pyautoattack.fab_pt import FABAttack_PT

from hessjax import LpBall
from hessjax.attacks.fab import fab, fab_attack
from tests import originals

RADII = {2: 0.6, np.inf: 0.12}


@pytest.fixture(autouse=True)
def float64(monkeypatch):
    """The reference casts its inputs to float32, which is too little for a comparison."""
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("order", RADII)
@pytest.mark.parametrize("rank", [None, 2, 6])
def test_iterates_are_those_of_the_reference(order, rank):
    params = originals.weights()
    x, y = originals.examples(params, 4)
    ball = LpBall(RADII[order], order)

    model, seen = originals.network(params)
    images, labels = originals.batch(x, y)
    attack = FABAttack_PT(model, norm=originals.NORMS[order], n_iter=100, eps=RADII[order])
    attack.device = "cpu"
    attack.target_class = rank
    with torch.no_grad():
        found = attack.attack_single_run(images, labels, is_targeted=rank is not None)
    # It evaluates the inputs first, and once more for the ranks.
    expected = np.stack(seen[1 if rank is None else 2 :])

    ours = fab_attack(num_targets=0 if rank is None else 9)
    runs = np.full(len(x), 0 if rank is None else rank - 2)
    states = originals.iterates(ours, params, x, y, ball, run=runs)
    # At every iterate the reference evaluates the gradient, then the point it steps to.
    np.testing.assert_allclose(
        np.stack([state.x for state in states[:-1]]),
        expected[::2].reshape(100, len(x), -1),
        atol=1e-9,
    )
    assert np.all(np.isfinite(states[-1].distance))
    np.testing.assert_allclose(states[-1].best, found.numpy().reshape(len(x), -1), atol=1e-9)


@pytest.mark.parametrize("num_targets", [0, 2])
@pytest.mark.parametrize("dtypes", [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.bfloat16)])
def test_logits_may_have_other_digits_than_inputs(dtypes, num_targets):
    """The distance of a linear classifier is its margin over the norm of the slope."""
    of_x, of_logits = dtypes
    weights = np.array([[4.0, 0, 0, 0], [0, 1, 2, 0], [0, 0, 0, 3]])
    x = jnp.array([0.75, 0.25, 0.5, 0.5], of_x)

    def logits_fn(x):
        return jnp.asarray(weights, of_logits) @ x.astype(of_logits)

    @jax.jit
    def attacked(x):
        return fab(
            logits_fn, x, 0, LpBall(1.0, 2), jax.random.key(0),
            num_targets=num_targets, num_steps=10,
        )  # fmt: skip

    found = attacked(x)
    margins = (weights[0] - weights[1:]) @ np.asarray(x, float)
    nearest = np.min(margins / np.linalg.norm(weights[0] - weights[1:], axis=1))
    assert found.dtype == of_x
    # The last of its steps overshoots by 5 %; three digits make as much again.
    distance = np.linalg.norm(np.asarray(found - x, float))
    assert 0.95 * nearest < distance < 1.1 * nearest
