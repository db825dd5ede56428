"""What is no function, where one is expected, is named before anything is computed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import hessjax
from hessjax import Composite, LpBall, TrainState, attacks, train_step
from tests.objectives import APPLY, KEY, LOSS, PARAMS

X, BALL = jnp.array([0.25, 0.5]), LpBall(0.1, 2)


def f(x: jax.Array) -> jax.Array:
    return jnp.sum(x**3)


def logits_fn(x: jax.Array) -> jax.Array:
    return x - 0.3


COMPOSITE = Composite(logits_fn, jnp.sum)
CASES: dict[str, Callable[[Any], Any]] = {
    "f": lambda wrong: hessjax.input_gradient_norm(wrong, X),
    "f of an operator": lambda wrong: hessjax.hessian_operator(wrong, X),
    "solver": lambda wrong: hessjax.hessian_operator_norm(f, X, solver=wrong),
    "start": lambda wrong: hessjax.hessian_operator_norm(f, X, start=wrong),
    "start without a solver": lambda wrong: hessjax.hessian_operator_norm(
        f, X, solver=None, start=wrong
    ),
    "solver of a Jacobian": lambda wrong: hessjax.jacobian_operator_norm(
        COMPOSITE, X, solver=wrong
    ),
    "start of a Jacobian": lambda wrong: hessjax.jacobian_operator_norm(COMPOSITE, X, start=wrong),
    "model": lambda wrong: Composite(wrong, jnp.sum),
    "loss of a Composite": lambda wrong: Composite(logits_fn, wrong),
    "matvec": lambda wrong: hessjax.power_iteration(wrong, X, num_iters=1),
    "matvec of Lanczos": lambda wrong: hessjax.lanczos(wrong, X, num_iters=1),
    "matvec of ascent": lambda wrong: hessjax.norm_ascent(wrong, X, num_iters=1, step_size=1.0),
    "apply": lambda wrong: hessjax.second_order(wrong, LOSS, 1.0, 1.0),
    "apply of any penalties": lambda wrong: hessjax.regularized(wrong, LOSS, {}),
    "loss": lambda wrong: hessjax.second_order(APPLY, wrong, 1.0, 1.0),
    "solver of second_order": lambda wrong: hessjax.second_order(
        APPLY, LOSS, 1.0, 1.0, solver=wrong
    ),
    "start of second_order": lambda wrong: hessjax.second_order(APPLY, LOSS, 1.0, 1.0, start=wrong),
    "logits_fn": lambda wrong: hessjax.fgsm(wrong, X, 0, BALL),
    "logits_fn of PGD": lambda wrong: hessjax.pgd(wrong, X, 0, BALL, KEY),
    "logits_fn of APGD": lambda wrong: attacks.apgd(wrong, X, 0, BALL, KEY),
    "logits_fn of AutoAttack": lambda wrong: hessjax.auto_attack(
        wrong, X[None], jnp.zeros(1, int), BALL, KEY
    ),
    "loss of FGSM": lambda wrong: hessjax.fgsm(logits_fn, X, 0, BALL, loss=wrong),
    "loss of PGD": lambda wrong: hessjax.pgd(logits_fn, X, 0, BALL, KEY, loss=wrong),
    "loss of APGD": lambda wrong: attacks.apgd_attack(loss=wrong),
    "objective": lambda wrong: train_step(wrong, optax.adam(1e-3)),
}


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        ("lanczos", "'lanczos'"),
        (jnp.eye(2), "an object of type array"),
        ({"w": 1}, "an object of type dict"),
    ],
)
@pytest.mark.parametrize("what", CASES)
def test_what_is_no_function_is_named(what: str, wrong: Any, shown: str) -> None:
    name = what.split(maxsplit=1)[0]
    with pytest.raises(TypeError, match=f"^{name} must be a function, got {shown}$"):
        CASES[what](wrong)


@pytest.mark.parametrize("wrong", ["adam", optax.adam, None])
def test_an_optimizer_that_is_none_is_told(wrong: Any) -> None:
    objective = hessjax.second_order(APPLY, LOSS, 1.0, 1.0)
    for call in (
        partial(train_step, objective, wrong),
        partial(TrainState.create, PARAMS, wrong, KEY),
    ):
        kind = type(wrong).__name__
        said = (
            rf"^optimizer must be an optax transformation, such as optax.adam\(1e-3\), got a {kind}"
        )
        with pytest.raises(TypeError, match=said):
            call()
