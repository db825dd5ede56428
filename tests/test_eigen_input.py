"""What eigen-solvers refuse."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import pytest

from hessjax import lanczos, norm_ascent, power_iteration
from tests.solvers import START, solve_with

SOLVERS: dict[str, Any] = {
    "power": power_iteration,
    "ascent": partial(norm_ascent, step_size=1.0),
    "lanczos": lanczos,
}


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_bad_number_of_iterations(solver: Any) -> None:
    for count in (0, -3):
        with pytest.raises(ValueError, match=f"^num_iters must .*{count}"):
            solver(jnp.negative, START, num_iters=count)
    with pytest.raises(TypeError, match=r"^num_iters must .*2\.5"):
        solver(jnp.negative, START, num_iters=2.5)


def test_lanczos_has_no_more_products_than_dimensions() -> None:
    with pytest.raises(ValueError, match=r"num_iters.*6.*7"):
        lanczos(jnp.negative, START, num_iters=7)
    assert solve_with("lanczos")(-jnp.eye(6), START).value == pytest.approx(-1)


@pytest.mark.parametrize("step_size", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_step_size(step_size: float) -> None:
    with pytest.raises(ValueError, match=f"^step_size must .*{step_size}"):
        norm_ascent(jnp.negative, START, num_iters=1, step_size=step_size)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_integer_start(solver: Any) -> None:
    with pytest.raises(TypeError, match=r"^v0 must .*int32"):
        solver(jnp.negative, jnp.ones(3, jnp.int32), num_iters=1)
