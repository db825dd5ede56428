"""The shortest way to a hyperplane inside a box, against the reference and linear programming."""

import jax
import numpy as np
import pytest
import torch
from pyautoattack.fab_projections import projection_l2, projection_linf

from hessjax import LpBall
from hessjax.attacks.hyperplane import to_hyperplane

ORIGINALS = {2: projection_l2, np.inf: projection_linf}


@pytest.mark.parametrize("order", ORIGINALS)
@pytest.mark.parametrize("scale", [0.01, 0.3, 3.0, 1000.0])
def test_moves_are_those_of_the_reference(order, scale):
    """From a short way over entries at their bound to a hyperplane that the box does not reach."""
    rng = np.random.default_rng(0)
    count, size = 200, 37
    points = np.round(rng.uniform(size=(count, size)), 1)  # many at a bound
    normals = rng.normal(size=(count, size)) * (rng.uniform(size=(count, size)) < 0.9)
    excess = scale * rng.normal(size=count)
    offsets = np.sum(normals * points, axis=1) - excess
    torch.set_default_dtype(torch.float64)
    try:
        expected = ORIGINALS[order](*map(torch.from_numpy, (points, normals, offsets))).numpy()
    finally:
        torch.set_default_dtype(torch.float32)
    moves = jax.vmap(lambda *a: to_hyperplane(LpBall(1.0, order), *a))(points, normals, excess)
    np.testing.assert_allclose(moves, expected, atol=1e-9)
