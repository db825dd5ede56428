"""The same weights give the same numbers, whatever framework holds them."""

from collections.abc import Callable
from functools import cache
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import hessjax
from tests import cases

CASE = cases.mlp("gelu")
BATCH = cases.batch_of(CASE, 4)
KEY = jax.random.key(70)

Model = tuple[Callable[[Any, jax.Array], jax.Array], Any, Callable[[Any], dict[str, Any]]]
"""``apply(params, x)``, the parameters, and what brings back the names of the plain weights."""


def plain() -> Model:
    return CASE.apply, CASE.params, lambda params: params


def flax_nnx() -> Model:
    class Perceptron(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.first = nnx.Linear(6, 8, rngs=rngs, param_dtype=jnp.float64)
            self.second = nnx.Linear(8, 5, rngs=rngs, param_dtype=jnp.float64)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.second(jax.nn.gelu(self.first(x)))

    model: Any = Perceptron()
    model.first.kernel[...] = CASE.params["W1"]
    model.first.bias[...] = CASE.params["b1"]
    model.second.kernel[...] = CASE.params["W2"]
    model.second.bias[...] = CASE.params["b2"]
    graph, params = nnx.split(model)

    def names(params: Any) -> dict[str, Any]:
        tree = nnx.to_pure_dict(params)
        first, second = tree["first"], tree["second"]
        return by_name(first["kernel"], first["bias"], second["kernel"], second["bias"])

    return lambda params, x: nnx.merge(graph, params)(x), params, names


def flax_linen() -> Model:
    class Perceptron(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            assert x.ndim == 2, "linen models are written for batches"
            hidden = linen.gelu(linen.Dense(8)(x))
            return linen.Dense(5)(hidden)

    weights = CASE.params
    layers = {
        "Dense_0": {"kernel": weights["W1"], "bias": weights["b1"]},
        "Dense_1": {"kernel": weights["W2"], "bias": weights["b2"]},
    }
    model: Any = Perceptron()

    def names(params: Any) -> dict[str, Any]:
        first, second = params["params"]["Dense_0"], params["params"]["Dense_1"]
        return by_name(first["kernel"], first["bias"], second["kernel"], second["bias"])

    return lambda params, x: model.apply(params, x[None])[0], {"params": layers}, names


def equinox() -> Model:
    keys = jax.random.split(jax.random.key(0))
    model = eqx.nn.Sequential(
        [
            eqx.nn.Linear(6, 8, key=keys[0]),
            eqx.nn.Lambda(jax.nn.gelu),
            eqx.nn.Linear(8, 5, key=keys[1]),
        ]
    )
    weights = (CASE.params["W1"].T, CASE.params["b1"], CASE.params["W2"].T, CASE.params["b2"])

    def leaves(model: Any) -> tuple[Any, ...]:
        return model[0].weight, model[0].bias, model[2].weight, model[2].bias

    params, static = eqx.partition(eqx.tree_at(leaves, model, weights), eqx.is_inexact_array)

    def names(params: Any) -> dict[str, Any]:
        first, bias, second, last = leaves(params)
        return by_name(first.T, bias, second.T, last)

    return lambda params, x: eqx.combine(params, static)(x), params, names


def haiku() -> Model:
    def forward(x: jax.Array) -> jax.Array:
        hidden = jax.nn.gelu(hk.Linear(8)(x))
        return hk.Linear(5)(hidden)

    model = hk.without_apply_rng(hk.transform(forward))
    weights = CASE.params
    params = {
        "linear": {"w": weights["W1"], "b": weights["b1"]},
        "linear_1": {"w": weights["W2"], "b": weights["b2"]},
    }

    def names(params: Any) -> dict[str, Any]:
        first, second = params["linear"], params["linear_1"]
        return by_name(first["w"], first["b"], second["w"], second["b"])

    return model.apply, params, names


def by_name(first: Any, bias: Any, second: Any, last: Any) -> dict[str, Any]:
    return {"W1": first, "b1": bias, "W2": second, "b2": last}


@cache
def results(build: Callable[[], Model]) -> Any:
    """Return values, metrics and parameter gradients, by the names of the plain weights."""
    apply, params, names = build()
    penalties = {
        "finite_step": (0.2, lambda f, x, _: hessjax.finite_step_operator_norm(f, x, step=0.5)),
        "gauss_newton": (0.1, hessjax.gauss_newton_operator_norm),
        "frobenius": (0.1, hessjax.hessian_squared_frobenius_norm),
        "jacobian": (0.1, hessjax.jacobian_squared_frobenius_norm),
    }
    collected = []
    for objective in (
        hessjax.second_order(apply, CASE.loss, 0.7, 0.3),
        hessjax.regularized(apply, CASE.loss, penalties),
    ):
        evaluate = jax.jit(jax.value_and_grad(objective, has_aux=True))
        value, gradient = evaluate(params, BATCH, KEY)
        collected.append((value, names(gradient)))
    return collected


FRAMEWORKS = [flax_nnx, flax_linen, equinox, haiku]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_outputs_are_those_of_the_plain_function(framework: Callable[[], Model]) -> None:
    apply, params, _ = framework()
    np.testing.assert_allclose(apply(params, CASE.x), CASE.apply(CASE.params, CASE.x), rtol=1e-12)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_objectives_and_gradients_are_those_of_the_plain_function(
    framework: Callable[[], Model],
) -> None:
    cases.assert_tree_close(results(framework), results(plain), rtol=1e-9, atol=1e-13)
