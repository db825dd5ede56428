"""What an objective makes of a batch: a mean over examples with keys of their own, and masks."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessjax
from hessjax import regularized, second_order
from tests import cases
from tests.objectives import APPLY, BATCH, KEY, LOSS, PARAMS, SHARED, X, Y, value_and_gradient


def per_example(objective: Any, batch: Any, place: int) -> Any:
    """Return value and gradient of one example, by a mask of all others."""
    mask = jnp.arange(len(batch[0])) == place
    return value_and_gradient(objective, (*batch, mask))


RANDOM = {
    "shared": second_order(APPLY, LOSS, 0.7, 0.3, start=hessjax.random_start),
    "separate": regularized(
        APPLY,
        LOSS,
        {
            "norm": (0.3, partial(hessjax.hessian_operator_norm, start=hessjax.random_start)),
            "frobenius": (0.1, hessjax.hessian_squared_frobenius_norm),
        },
    ),
}


@pytest.mark.parametrize("objective", RANDOM.values(), ids=RANDOM)
def test_values_of_an_example_do_not_depend_on_the_batch(objective: Any) -> None:
    small = (X[:3], Y[:3])
    for place in (0, 2):
        in_large, in_small = (per_example(objective, batch, place) for batch in (BATCH, small))
        cases.assert_tree_close(in_large, in_small, rtol=1e-9, atol=1e-13)
    # The whole is the mean of the parts: no 1/B in a penalty.
    singles = [per_example(objective, small, place) for place in range(3)]
    mean = jax.tree.map(lambda *parts: sum(parts) / 3, *singles)
    cases.assert_tree_close(value_and_gradient(objective, small), mean, rtol=1e-9, atol=1e-13)


def test_examples_draw_different_directions_and_the_key_decides_them() -> None:
    objective = RANDOM["shared"]
    twins = (jnp.stack([X[0], X[0]]), jnp.stack([Y[0], Y[0]]))
    one, other = (per_example(objective, twins, place)[0][0] for place in (0, 1))
    assert one != other
    evaluate = jax.jit(objective)
    assert evaluate(PARAMS, BATCH, KEY)[0] == evaluate(PARAMS, BATCH, KEY)[0]
    assert evaluate(PARAMS, BATCH, KEY)[0] != evaluate(PARAMS, BATCH, jax.random.key(41))[0]


def test_penalties_of_one_example_draw_independently() -> None:
    # One random product and one probe of the same key would be the same vector, rescaled.
    def first(f: Any, x: Any, key: Any) -> jax.Array:
        del f
        return jax.random.uniform(key, dtype=x.dtype)

    objective = regularized(APPLY, LOSS, {"a": (1.0, first), "b": (1.0, first)})
    metrics = objective(PARAMS, BATCH, KEY)[1]
    assert metrics["a"] != metrics["b"]
    # Leaving one out does not change what another draws.
    alone = regularized(APPLY, LOSS, {"a": (0.0, first), "b": (1.0, first)})
    assert alone(PARAMS, BATCH, KEY)[1]["b"] == metrics["b"]


@pytest.mark.parametrize(
    ("objective", "kind"),
    [(SHARED, "bool"), (SHARED, "float"), (SHARED, "int"), (RANDOM["separate"], "bool")],
)
def test_padded_examples_do_not_count(objective: Any, kind: str) -> None:
    nothing = jnp.full((2, *X.shape[1:]), jnp.nan)
    padded = (jnp.concatenate([X[:4], nothing]), jnp.concatenate([Y[:4], jnp.zeros(2, Y.dtype)]))
    mask = (jnp.arange(6) < 4).astype(kind)
    got = value_and_gradient(objective, (*padded, mask))
    assert cases.all_finite(got)
    cases.assert_tree_close(
        got, value_and_gradient(objective, (X[:4], Y[:4])), rtol=1e-10, atol=1e-14
    )


def test_arrays_of_numpy_may_have_a_mask() -> None:
    # NumPy's own dtypes are too wide here, of which JAX would warn.
    with jax.enable_x64(False):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS)
        batch = (np.asarray(X), np.asarray(Y, np.int64), np.arange(6) < 5)
        # Traced for speed: the batch stays NumPy's.
        value, _ = jax.jit(lambda params: SHARED(params, batch, KEY))(params)
    (wanted, _), _ = value_and_gradient(SHARED, (X[:5], Y[:5]))
    np.testing.assert_allclose(value, wanted, rtol=1e-5)


def test_nan_in_an_example_that_counts_is_not_hidden() -> None:
    broken = (X.at[2].set(jnp.nan), Y, jnp.ones(6, bool))
    assert jnp.isnan(value_and_gradient(SHARED, broken)[0][0])


@pytest.mark.parametrize("padding", [0.5, float("nan")])
def test_a_batch_of_padding_alone_is_zero(padding: float) -> None:
    nothing = (jnp.full(X.shape, padding), Y, jnp.zeros(6, bool))
    (value, metrics), gradient = value_and_gradient(SHARED, nothing)
    assert value == 0
    assert cases.all_finite((metrics, gradient))


def test_no_mask_is_one_of_all_examples() -> None:
    got = value_and_gradient(SHARED, (*BATCH, None))
    cases.assert_tree_close(got, value_and_gradient(SHARED))
    hessjax.check_batch((np.zeros((2, 3)), np.zeros(2, int), None), num_classes=1)


def test_means_of_half_precision_do_not_overflow() -> None:
    # Eight losses of 2e4: their sum is no float16.
    def apply(params: Any, x: jax.Array) -> jax.Array:
        return params * x

    objective = regularized(apply, LOSS, {})
    x = jnp.tile(jnp.asarray([1.0, -1.0], jnp.float16), (8, 1))
    for rest in ((), (jnp.ones(8, bool),)):
        value, _ = objective(jnp.float16(1e4), (x, jnp.ones(8, int), *rest), KEY)
        assert value == 2e4
        assert value.dtype == jnp.float32


def test_keys_among_the_labels_stay_under_a_mask() -> None:
    """One of each example, of a noise that its loss draws by itself."""
    keys = jax.random.split(KEY, 6)

    def noisy(z: jax.Array, y_and_key: Any) -> jax.Array:
        y, key = y_and_key
        return LOSS(z + jax.random.normal(key, z.shape), y)

    objective = regularized(APPLY, noisy, {})
    kept = jnp.arange(6) < 4
    masked, _ = objective(PARAMS, (X.at[4:].set(jnp.nan), (Y, keys), kept), KEY)
    wanted, _ = objective(PARAMS, (X[:4], (Y[:4], keys[:4])), KEY)
    np.testing.assert_allclose(masked, wanted, rtol=1e-12)
