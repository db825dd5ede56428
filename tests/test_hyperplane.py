"""The shortest way to a hyperplane inside a box, against the reference and linear programming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from pyautoattack.fab_projections import projection_l2, projection_linf

from hessjax import LpBall
from hessjax.attacks.hyperplane import to_hyperplane

ORIGINALS = {2: projection_l2, np.inf: projection_linf}


@pytest.mark.usefixtures("torch_float64")
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
    expected = ORIGINALS[order](*map(torch.from_numpy, (points, normals, offsets))).numpy()
    moves = jax.vmap(lambda *a: to_hyperplane(LpBall(1.0, order), *a))(points, normals, excess)
    np.testing.assert_allclose(moves, expected, atol=1e-9)


@pytest.mark.parametrize("order", ORIGINALS)
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(np.float32, s) for s in (1e-37, 1e-25, 1e20, 1e37)] + [(np.float16, s) for s in (1e-4, 1e4)],
)
def test_the_scale_of_the_equation_changes_nothing(order, dtype, scale):
    """Squares of the normal's entries are no numbers of the format."""
    point, normal = jnp.array([0.5, 0.25], dtype), np.array([2.0, 1.0])
    way = np.array([-0.2, -0.1]) if order == 2 else np.array([-1, -1]) / 6
    for bounds in ((0, 1), (-np.inf, np.inf)):
        ball = LpBall(1.0, order, bounds)
        equation = jnp.asarray(scale * normal, dtype), jnp.asarray(scale / 2, dtype)
        move = to_hyperplane(ball, point, *equation)
        assert move.dtype == dtype
        np.testing.assert_allclose(move, way, rtol=0.01 if dtype == np.float16 else 1e-5)
