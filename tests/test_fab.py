"""FAB against the reference implementation, step by step, and by itself."""

import numpy as np
import pytest
import torch
from pyautoattack.fab_pt import FABAttack_PT

from hessjax import LpBall
from hessjax.attacks.fab import fab_attack
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
