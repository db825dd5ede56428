"""The price of a step, counted in operations of a plain one by the compiler."""

import re
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hessjax
from experiments.benchmarks import textbook
from hessjax import lanczos
from tests import cases

BATCH_SIZE = 32


def widths(filters: int, size: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network whose second convolution has twice the filters."""
    first, second = (size, size, 1, filters), (size, size, filters, 2 * filters)
    return {"K1": first, "b1": (filters,), "K2": second, "b2": (2 * filters,)} | {
        "W1": (49 * 2 * filters, hidden),
        "c1": (hidden,),
        "W2": (hidden, 10),
        "c2": (10,),
    }


# The network of the limits, and a similar one.
STANDARD, SIMILAR = (16, 4, 100), (16, 3, 100)
OPTIMIZER = optax.adam(2e-3)


def apply(activation: str, params: Any, x: jax.Array) -> jax.Array:
    """Apply two convolutions with stride 2, a hidden layer, and 10 outputs."""
    sigma = cases.ACTIVATIONS[activation]
    convolve = partial(
        jax.lax.conv_general_dilated,
        window_strides=(2, 2),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    hidden = sigma(convolve(x[None], params["K1"]) + params["b1"])
    hidden = sigma(convolve(hidden, params["K2"]) + params["b2"])
    hidden = sigma(hidden.reshape(-1) @ params["W1"] + params["c1"])
    return hidden @ params["W2"] + params["c2"]


def compiled_step(objective: Any, shape: tuple[int, int, int] = STANDARD) -> Any:
    """Return the compiled optimizer step: objective, gradient and update of the parameters."""
    params = cases.random_tree(widths(*shape), seed=60, dtype=jnp.float32)
    # Threefry, also inside fold_in of an rbg key, is a loop on the CPU.
    key = jax.random.key(0, impl="unsafe_rbg")
    state = hessjax.TrainState.create(params, OPTIMIZER, key)
    x = jnp.zeros((BATCH_SIZE, 28, 28, 1), jnp.float32)
    y = jnp.zeros(BATCH_SIZE, jnp.int32)
    lowered = jax.jit(hessjax.train_step(objective, OPTIMIZER)).lower(state, (x, y))
    # Operations are counted in the optimized program; only machine code for it is made quickly.
    return lowered.compile(cases.COUNTED)


def operations(compiled: Any) -> float:
    assert not re.search(r"\bwhile\b", compiled.as_text()), "a loop body would be counted once"
    return compiled.cost_analysis()["flops"]


@cache
def plain(activation: str, shape: tuple[int, int, int] = STANDARD) -> float:
    """Count the operations of a plain step."""
    model = partial(apply, activation)
    objective = hessjax.regularized(model, cases.cross_entropy, {})
    return operations(compiled_step(objective, shape))


@cache
def default(activation: str, shape: tuple[int, int, int] = STANDARD) -> float:
    """Count the operations of a step with the default second-order objective."""
    model = partial(apply, activation)
    objective = hessjax.second_order(model, cases.cross_entropy, 1.5, 1.125)
    return operations(compiled_step(objective, shape))


def test_a_plain_step_is_counted_whole() -> None:
    # Three passes over the products of the network: forward, and backward to both factors.
    products = 14 * 14 * 16 * 16 + 7 * 7 * 32 * 16 * 16 + 1568 * 100 + 100 * 10
    wanted = 3 * 2 * BATCH_SIZE * products
    # Padding is not multiplied and the input needs no gradient; activations and Adam add.
    assert 0.7 * wanted < plain("relu") < 1.3 * wanted


@pytest.mark.parametrize(
    ("activation", "shape", "limit"),
    [
        ("gelu", STANDARD, 5.0),
        ("relu", STANDARD, 3.9),
        ("gelu", SIMILAR, 5.3),
        ("relu", SIMILAR, 4.1),
    ],
)
def test_the_default_objective_in_plain_steps(
    activation: str, shape: tuple[int, int, int], limit: float
) -> None:
    ratio = default(activation, shape) / plain(activation, shape)
    # Below two plain steps something would be missing: loss and gradient norm alone cost that.
    assert 2.0 < ratio <= limit


@cache
def textbook_operations() -> float:
    model = partial(apply, "gelu")
    objective = textbook.objective(model, cases.cross_entropy, 1.5, 1.125)
    return operations(compiled_step(objective))


def test_the_default_is_cheaper_than_the_textbook() -> None:
    assert default("gelu") < 0.4 * textbook_operations()


def slope_by_textbook(f: Any, x: jax.Array, key: Any) -> jax.Array:
    del key
    return textbook.gradient_norm(f, x)


def test_the_gradient_norm_is_cheaper_than_double_backpropagation() -> None:
    model = partial(apply, "gelu")
    penalties = {"slope": (1.5, hessjax.input_gradient_norm)}
    slope = hessjax.second_order(model, cases.cross_entropy, 1.5, 0.0)
    alone = operations(compiled_step(hessjax.regularized(model, cases.cross_entropy, penalties)))
    penalties = {"slope": (1.5, slope_by_textbook)}
    double = operations(compiled_step(hessjax.regularized(model, cases.cross_entropy, penalties)))
    shared = operations(compiled_step(slope))
    # By itself the penalty goes back through the network once more than the loss it stands beside.
    assert shared < 0.9 * alone
    assert shared < 0.95 * double


def test_one_lanczos_product_more_costs_at_most_an_operator_product() -> None:
    model = partial(apply, "gelu")
    steps = [
        hessjax.second_order(
            model, cases.cross_entropy, 1.5, 1.125, solver=partial(lanczos, num_iters=num_iters)
        )
        for num_iters in (2, 3)
    ]
    two, three = (operations(compiled_step(step)) / plain("gelu") for step in steps)
    # A linearized product is about one gradient in the input, 0.7 plain steps.
    assert 0.3 < three - two < 0.9


def test_the_textbook_agrees_with_the_converged_norm() -> None:
    case = cases.mlp("gelu")
    f = case.function()
    solver = partial(lanczos, num_iters=6)

    @jax.jit
    def norms(x: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
        return (
            # A gap of 0.56 between the largest eigenvalues, squared, 30 times.
            textbook.hessian_norm(f, x, key, num_iters=30),
            hessjax.hessian_operator_norm(f, x, solver=solver),
            textbook.gradient_norm(f, x),
            hessjax.input_gradient_norm(f, x),
        )

    by_textbook, exact, slope, got_slope = norms(case.x, jax.random.key(0))
    np.testing.assert_allclose(exact, by_textbook, rtol=1e-8)
    np.testing.assert_allclose(got_slope, slope, rtol=1e-12)


def test_the_textbook_objective_agrees_with_the_converged_one() -> None:
    case = cases.mlp("relu")
    batch = cases.batch_of(case, 4)
    slow = textbook.objective(case.apply, case.loss, 0.7, 0.3, num_iters=30)
    solver = partial(lanczos, num_iters=6)
    fast = hessjax.second_order(case.apply, case.loss, 0.7, 0.3, solver=solver)
    key = jax.random.key(0)
    (value, _), gradient = jax.jit(jax.value_and_grad(slow, has_aux=True))(case.params, batch, key)
    (got, _), got_gradient = jax.jit(jax.value_and_grad(fast, has_aux=True))(
        case.params, batch, key
    )
    np.testing.assert_allclose(got, value, rtol=1e-8)
    cases.assert_tree_close(got_gradient, gradient, rtol=1e-6, atol=1e-8)
