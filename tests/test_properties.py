"""Numbers stay numbers: hypotheses over scales, shapes, dtypes and models that tell nothing."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hessjax import LpBall, apgd, fab, fgsm, lanczos, norm_ascent, pgd, power_iteration, square
from hessjax.losses import dlr_loss, margin
from tests import cases
from tests.penalties import CORE, PENALTIES

EVERY = settings(max_examples=60, deadline=None, derandomize=True)
# Of an operator or a loss. Squares are of the scale's square, which float32 has only up to 1e38.
SCALES = st.floats(-30, 30).map(lambda exponent: 10.0**exponent)
SMALLER = st.floats(-15, 15).map(lambda exponent: 10.0**exponent)
SEEDS = st.integers(0, 2**16)
DTYPES = st.sampled_from([jnp.float32, jnp.float64])

SOLVERS = {
    "power": partial(power_iteration, num_iters=5),
    "ascent": partial(norm_ascent, num_iters=3, step_size=0.5),
    "lanczos": partial(lanczos, num_iters=4),
}


@cache
def solved(name: str) -> Any:
    return jax.jit(lambda matrix, v: SOLVERS[name](lambda u: matrix @ u, v))


@st.composite
def matrices(draw: Any) -> np.ndarray:
    """Draw symmetric matrices, of low rank, with ties and zero among them."""
    rng = np.random.default_rng(draw(SEEDS))
    values = [draw(st.sampled_from([0.0, 1.0, -1.0, 0.3, 1e-6])) for _ in range(5)]
    basis = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    matrix = (basis * values) @ basis.T
    return draw(SCALES) * (matrix + matrix.T) / 2


@pytest.mark.parametrize("name", SOLVERS)
@given(matrix=matrices(), dtype=DTYPES, seed=SEEDS)
@EVERY
def test_solvers_are_finite_and_never_above_the_norm(
    name: str, matrix: np.ndarray, dtype: Any, seed: int
) -> None:
    start = np.random.default_rng(seed).normal(size=5)
    pair = solved(name)(jnp.asarray(matrix, dtype), jnp.asarray(start, dtype))
    for part in pair:
        assert np.all(np.isfinite(part))
    norm = np.abs(np.linalg.eigvalsh(np.asarray(jnp.asarray(matrix, dtype), np.float64))).max()
    rounding = 20 * float(jnp.finfo(dtype).eps)
    assert abs(float(pair.value)) <= norm * (1 + rounding)
    np.testing.assert_allclose(np.linalg.norm(pair.vector), 1, rtol=1e-5)


def network(params: Any, x: jax.Array) -> jax.Array:
    return params["head"] @ jnp.tanh(params["hidden"] @ jnp.ravel(x) + params["bias"])


@st.composite
def networks(draw: Any, shape: tuple[int, ...], dtype: Any) -> dict[str, jax.Array]:
    """Draw parameters: ordinary, constant, saturated, sure of a class."""
    rng, size = np.random.default_rng(draw(SEEDS)), int(np.prod(shape))
    params = {
        "hidden": rng.normal(size=(4, size)),
        "bias": rng.normal(size=4),
        "head": rng.normal(size=(4, 4)),
    }
    for name in params:
        params[name] *= draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e3]))
    return {name: jnp.asarray(value, dtype) for name, value in params.items()}


@cache
def penalized(name: str) -> Any:
    """Return a compiled function: value and parameter gradient of a penalty of a scaled loss."""

    def value(params: Any, x: jax.Array, scale: jax.Array) -> jax.Array:
        def loss(logits: jax.Array, y: Any) -> jax.Array:
            return scale * cases.cross_entropy(logits, y)

        f = cases.Case(network, params, x, jnp.asarray(1), loss).function()
        return PENALTIES[name](f, x, jax.random.key(0))

    return jax.jit(jax.value_and_grad(value))


@pytest.mark.parametrize("name", CORE)
@given(data=st.data())
@EVERY
def test_penalties_and_their_gradients_are_finite(name: str, data: Any) -> None:
    # Each pair is compiled, so there are two.
    shape, dtype = data.draw(st.sampled_from([((6,), jnp.float32), ((2, 3, 1), jnp.float64)]))
    params = data.draw(networks(shape, dtype))
    squares = name in {"hessian frobenius", "jacobian frobenius"}
    scale = data.draw(SMALLER if squares else SCALES)
    x = jnp.asarray(np.random.default_rng(data.draw(SEEDS)).uniform(size=shape), dtype)
    value, gradient = penalized(name)(params, x, jnp.asarray(scale, dtype))
    assert np.isfinite(value)
    assert value >= 0
    for leaf in jax.tree.leaves(gradient):
        assert np.all(np.isfinite(leaf))


ATTACKS = {
    "fgsm": fgsm,
    "pgd": partial(pgd, num_steps=3),
    "apgd": partial(apgd, num_steps=3),
    "apgd, dlr": partial(apgd, loss=dlr_loss, num_steps=3),
    "apgd, targeted": partial(apgd, num_targets=2, num_steps=3),
    "fab": partial(fab, num_targets=2, num_steps=3),
    "square": partial(square, num_steps=5),
    "pgd, margin": partial(pgd, loss=margin, num_steps=3),
}


@cache
def attacked(name: str, order: float) -> Any:
    def point(params: Any, x: jax.Array, scale: jax.Array, key: jax.Array) -> jax.Array:
        options = {} if name == "fgsm" else {"key": key}
        ball = LpBall(0.3, order)
        return ATTACKS[name](
            lambda t: scale * network(params, t), x, jnp.asarray(1), ball, **options
        )

    return jax.jit(point)


@pytest.mark.parametrize("order", [2, jnp.inf])
@pytest.mark.parametrize("name", ATTACKS)
@given(data=st.data())
@settings(EVERY, max_examples=25)
def test_attacks_stay_finite_and_in_the_ball(name: str, order: float, data: Any) -> None:
    shape, dtype = (2, 2, 1), jnp.float32
    params = data.draw(networks(shape, dtype))
    scale = data.draw(SCALES)
    # Pixels at their bounds, too.
    x = np.random.default_rng(data.draw(SEEDS)).uniform(-0.3, 1.3, size=shape).clip(0, 1)
    x = jnp.asarray(x, dtype)
    found = attacked(name, order)(params, x, jnp.asarray(scale, dtype), jax.random.key(0))
    assert np.all(np.isfinite(found))
    assert np.all((found >= 0) & (found <= 1))
    if name == "fab" and np.any(found != x):
        # What it found may be of any distance, but it is one.
        logits = jax.jit(network)(params, found)
        assert jnp.argmax(logits) != 1 or jnp.isclose(logits[1], jnp.delete(logits, 1).max())
        return
    distance = np.linalg.norm(np.ravel(np.asarray(found - x, np.float64)), ord=order)
    assert distance <= 0.3 * (1 + 1e-5)
