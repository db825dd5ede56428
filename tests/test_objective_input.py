"""What objectives refuse: weights, penalties, batches, networks and losses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessjax
from hessjax import regularized, second_order
from tests.objectives import APPLY, BATCH, KEY, LOSS, PARAMS, SHARED, X, Y, value_and_gradient


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_bad_weight(weight: float) -> None:
    for name, build in {
        "gradient_weight": lambda: second_order(APPLY, LOSS, weight, 0.5),
        "hessian_weight": lambda: second_order(APPLY, LOSS, 0.5, weight),
        "the weight of 'slope'": lambda: regularized(
            APPLY, LOSS, {"slope": (weight, hessjax.input_gradient_norm)}
        ),
    }.items():
        with pytest.raises(ValueError, match=f"^{name} must be .* nonnegative .*{weight}"):
            build()


@pytest.mark.parametrize("entry", [hessjax.input_gradient_norm, (1.0,), (1.0, 2.0)])
def test_a_penalty_without_a_weight(entry: Any) -> None:
    with pytest.raises(TypeError, match=r"penalties\['slope'\] must be \(weight, penalty\), got"):
        regularized(APPLY, LOSS, {"slope": entry})


@pytest.mark.parametrize("penalties", [None, [(1.0, hessjax.input_gradient_norm)]])
def test_penalties_without_names(penalties: Any) -> None:
    with pytest.raises(TypeError, match=r"^penalties must be \{name: \(weight, penalty\)\}, got"):
        regularized(APPLY, LOSS, penalties)


@pytest.mark.parametrize(("name", "what"), [("loss", "the metric"), ("objective", "the sum")])
def test_a_penalty_may_not_be_called_what_something_else_is(name: str, what: str) -> None:
    with pytest.raises(ValueError, match=f"^a penalty cannot be named '{name}': that is {what}"):
        regularized(APPLY, LOSS, {name: (1.0, hessjax.input_gradient_norm)})


@pytest.mark.parametrize("options", [{}, {"parts": 2}, {"chunk_size": 2}])
def test_a_penalty_that_is_no_number(options: Any) -> None:
    def squares(f: Any, x: Any, key: Any = None) -> Any:
        del key
        return jax.grad(f)(x) ** 2

    objective = regularized(APPLY, LOSS, {"squares": (1.0, squares)}, **options)
    message = r"^the penalty 'squares' must return one number for one example, got shape \(6,\)"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(objective, PARAMS, BATCH, KEY)


@pytest.mark.parametrize("mask", [(), (jnp.ones(6, bool),)])
@pytest.mark.parametrize(("kind", "name"), [(bool, "bool"), (jnp.int32, "int32")])
def test_a_penalty_of_whole_numbers(mask: Any, kind: Any, name: str) -> None:
    def rounded(f: Any, x: Any, key: Any = None) -> Any:
        del f, key
        return (x[0] > 0).astype(kind)

    objective = regularized(APPLY, LOSS, {"rounded": (1.0, rounded)})
    message = f"^the penalty 'rounded' must return a floating-point number, got dtype {name}"
    with pytest.raises(TypeError, match=message):
        jax.eval_shape(objective, PARAMS, (*BATCH, *mask), KEY)


@pytest.mark.parametrize("weights", [(0.7, 0), (0, 0.3), (0.7, 0.3)])
@pytest.mark.parametrize("options", [{}, {"solver": None}])
def test_inputs_of_whole_numbers(weights: Any, options: Any) -> None:
    objective = second_order(APPLY, LOSS, *weights, **options)
    message = "^x must hold floating-point numbers, got dtype uint8"
    with pytest.raises(TypeError, match=message):
        jax.eval_shape(objective, PARAMS, (X.astype(jnp.uint8), Y), KEY)


OBJECTIVES = {
    "shared": SHARED,
    "parts": regularized(APPLY, LOSS, {"slope": (1.0, hessjax.input_gradient_norm)}),
    "plain": regularized(APPLY, LOSS, {}),
}
objectives = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


@objectives
def test_bad_batches(objective: Any) -> None:
    with pytest.raises(ValueError, match=r"^x, y and mask .* sizes 5, 6$"):
        objective(PARAMS, (X, Y[:5]), KEY)
    with pytest.raises(ValueError, match=r"^x, y and mask .* sizes 4, 6$"):
        objective(PARAMS, (X, Y, jnp.ones(4, bool)), KEY)
    with pytest.raises(ValueError, match=r"mask.*\(6, 1\)"):
        objective(PARAMS, (X, Y, jnp.ones((6, 1), bool)), KEY)
    with pytest.raises(ValueError, match=r"^mask must hold booleans, or 0 and 1, not weights, got"):
        objective(PARAMS, (X, Y, jnp.full(6, 1 / 6)), KEY)
    with pytest.raises(ValueError, match=r"^the batch is empty: it needs at least one example$"):
        objective(PARAMS, (X[:0], Y[:0]), KEY)
    with pytest.raises(ValueError, match=r"^x, y and mask .* one leading axis, .* sizes 6, none$"):
        objective(PARAMS, (X, 3), KEY)
    with pytest.raises(TypeError, match=r"^a batch is \(x, y\) or \(x, y, mask\), got a dict$"):
        objective(PARAMS, {"image": X, "label": Y}, KEY)
    with pytest.raises(ValueError, match="got 4 entries"):
        objective(PARAMS, (X, Y, jnp.ones(6, bool), X), KEY)
    if objective is not OBJECTIVES["plain"]:
        with pytest.raises(TypeError, match="uint8"):
            objective(PARAMS, (X.astype(jnp.uint8), Y), KEY)


@objectives
def test_a_traced_mask_of_weights_is_no_answer(objective: Any) -> None:
    gradient = jax.jit(jax.value_and_grad(lambda *args: objective(*args, KEY)[0]))
    (whole, _), (half, slopes) = (
        gradient(PARAMS, (X, Y, jnp.full(6, entry))) for entry in (1.0, 0.5)
    )
    np.testing.assert_allclose(whole, value_and_gradient(objective)[0][0], rtol=1e-12)
    assert np.isnan(half)
    assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize("shared", [True, False])
def test_apply_or_loss_of_a_wrong_shape(shared: bool) -> None:
    def make(apply: Any, loss: Any) -> Any:
        if shared:
            return second_order(apply, loss, 0.7, 0.3)
        return regularized(apply, loss, {"slope": (1.0, hessjax.input_gradient_norm)})

    def batched(params: Any, x: jax.Array) -> jax.Array:
        return APPLY(params, x)[None]

    with pytest.raises(ValueError, match=r"\(1, 5\)"):
        make(batched, LOSS)(PARAMS, BATCH, KEY)
    with pytest.raises(ValueError, match=r"scalar.*\(5,\)"):
        make(APPLY, lambda z, y: z * y)(PARAMS, BATCH, KEY)
