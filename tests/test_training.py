"""Training steps: the same as by hand, traced once, buffers donated."""

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hessjax
from tests import cases

CASE = cases.mlp("gelu")
BATCH = cases.batch_of(CASE, 8)


def copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def start(optimizer: optax.GradientTransformation) -> hessjax.TrainState:
    return hessjax.TrainState.create(copied(CASE.params), optimizer, jax.random.key(50))


def test_a_new_state() -> None:
    optimizer = optax.adam(1e-2)
    state = start(optimizer)
    assert state.step == 0
    cases.assert_tree_close(state.params, CASE.params)
    cases.assert_tree_close(state.opt_state, optimizer.init(CASE.params))
    assert jnp.all(jax.random.key_data(state.key) == jax.random.key_data(jax.random.key(50)))


@pytest.mark.parametrize(
    ("params", "key", "message"),
    [
        ({"w": 1.0, "act": jnp.tanh}, jax.random.key(0), r"params must .*, got a .* at \['act'\]"),
        (optax.sgd(0.1), jax.random.key(0), r"params must hold arrays alone, got a .* at \.init"),
        ({"w": 1.0}, 0, r"key must be one key, such as jax\.random\.key\(0\), got 0"),
    ],
)
def test_a_state_of_something_else_is_refused(params: Any, key: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        hessjax.TrainState.create(params, optax.sgd(0.1), key)


def test_what_is_given_in_the_wrong_place_is_told() -> None:
    optimizer: Any = optax.sgd(0.1)
    objective: Any = hessjax.second_order(CASE.apply, CASE.loss, 0.7, 0.3)
    with pytest.raises(TypeError, match="objective must be a function, got an object of type Grad"):
        hessjax.train_step(optimizer, objective)
    params: Any = CASE.params
    with pytest.raises(TypeError, match=r"state must be a TrainState, .*create.*, got a dict"):
        hessjax.train_step(objective, optimizer)(params, BATCH)


def test_steps_are_those_by_hand() -> None:
    optimizer = optax.adamw(1e-2, weight_decay=0.1)
    objective = hessjax.second_order(CASE.apply, CASE.loss, 0.7, 0.3)
    step = hessjax.train_step(objective, optimizer)
    state = start(optimizer)
    params, opt_state = copied(CASE.params), optimizer.init(CASE.params)
    by_hand = jax.jit(jax.value_and_grad(objective, has_aux=True))
    for count in range(5):
        # Nothing in this objective is random, so the key does not matter.
        (value, metrics), gradient = by_hand(params, BATCH, jax.random.key(0), count)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
        state, got = step(state, BATCH)
        assert state.step == count + 1
        cases.assert_tree_close(state.params, params, rtol=1e-9, atol=1e-12)
        cases.assert_tree_close({k: got[k] for k in metrics}, metrics, rtol=1e-9)
        assert set(got) >= {"loss", "gradient_norm", "hessian_norm", "residual"}
        if "objective" in got:
            np.testing.assert_allclose(got["objective"], value, rtol=1e-9)


def test_hessjax_may_be_imported_inside_a_traced_function() -> None:
    """A program of its own, whose first import this is; later steps are compiled all the same."""
    program = """
import jax, jax.numpy as jnp, optax

def late(x):
    import hessjax
    return x

jax.jit(late)(1.0)
import hessjax
traced = []
def apply(params, x):
    traced.append(x)
    return params @ x
objective = hessjax.regularized(apply, lambda z, y: z[y] ** 2, {})
state = hessjax.TrainState.create(jnp.ones((2, 3)), optax.sgd(0.1), jax.random.key(0))
step = hessjax.train_step(objective, optax.sgd(0.1))
counts = []
for _ in range(3):
    state, _ = step(state, (jnp.ones((4, 3)), jnp.zeros(4, int)))
    counts.append(len(traced))
assert counts[0] == counts[-1], counts
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.usefixtures("counted")  # with options for the compiler
@pytest.mark.parametrize("every", [1, 2])
def test_a_step_may_stand_in_a_larger_program(every: int) -> None:
    """Also one of whose arguments nothing is traced."""
    optimizer = optax.sgd(1e-2)

    def stepped(weight: Any) -> jax.Array:
        objective = hessjax.second_order(CASE.apply, CASE.loss, weight, 0.0, every=every)
        return hessjax.train_step(objective, optimizer)(start(optimizer), BATCH)[1]["objective"]

    wanted = stepped(0.3)
    np.testing.assert_allclose(jax.jit(lambda: stepped(0.3))(), wanted, rtol=1e-9)
    np.testing.assert_allclose(jax.jit(stepped)(0.3), wanted, rtol=1e-9)
    slope = (stepped(0.4) - wanted) / 0.1
    np.testing.assert_allclose(jax.grad(stepped)(0.3), slope, rtol=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau()),
        optax.polyak_sgd(1.0),
        optax.lbfgs(),
        optax.MultiSteps(optax.adam(1e-2), 2),
        optax.MultiSteps(optax.polyak_sgd(1.0), 2),
        optax.MultiSteps(optax.polyak_sgd(1.0), 2).gradient_transformation(),
    ],
    ids=["plateau", "polyak", "lbfgs", "multi", "multi-polyak", "multi-polyak-as-others"],
)
def test_an_optimizer_is_told_what_it_asks_for(optimizer: Any) -> None:
    objective = hessjax.second_order(CASE.apply, CASE.loss, 0.1, 0.01)
    step, state = hessjax.train_step(objective, optimizer), start(optimizer)
    values = []
    for _ in range(6):
        state, metrics = step(state, BATCH)
        values.append(float(metrics["objective"]))
    assert values[-1] < values[0]


def test_the_schedule_sees_the_step() -> None:
    weights = optax.piecewise_constant_schedule(0.0, {2: 1.0})
    seen = []

    def objective(params: Any, batch: Any, key: Any, step: Any = 0) -> Any:
        del batch, key
        return jnp.sum(params["b2"] ** 2), {"step": step, "weight": weights(step)}

    step = hessjax.train_step(objective, optax.sgd(0.1))
    state = start(optax.sgd(0.1))
    for _ in range(4):
        state, metrics = step(state, BATCH)
        seen.append(int(metrics["step"]))
    assert seen == [0, 1, 2, 3]


def test_every_step_has_a_key_of_its_own() -> None:
    def objective(params: Any, batch: Any, key: Any, step: Any = 0) -> Any:
        del batch, step
        return jnp.sum(params["b2"] ** 2), {"draw": jax.random.uniform(key)}

    def run() -> list[float]:
        step = hessjax.train_step(objective, optax.sgd(0.1))
        state, draws = start(optax.sgd(0.1)), []
        for _ in range(10):
            state, metrics = step(state, BATCH)
            draws.append(float(metrics["draw"]))
        return draws

    draws = run()
    assert len(set(draws)) == 10
    assert draws == run()


def test_one_trace_over_a_run() -> None:
    traces = 0

    def apply(params: Any, x: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return CASE.apply(params, x)

    schedule = optax.linear_schedule(0.0, 1.0, 10)
    objective = hessjax.second_order(apply, CASE.loss, schedule, schedule)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 20))
    step = hessjax.train_step(objective, optimizer)
    state, _ = step(start(optimizer), BATCH)
    first = traces
    for _ in range(19):
        state, _ = step(state, BATCH)
    assert state.step == 20
    assert traces == first > 0


def test_buffers_are_donated() -> None:
    optimizer = optax.adam(1e-2)
    objective = hessjax.regularized(CASE.apply, CASE.loss, {})
    step = hessjax.train_step(objective, optimizer)
    state = start(optimizer)
    leaves = jax.tree.leaves((state.params, state.opt_state))
    new, _ = step(state, BATCH)
    assert all(leaf.is_deleted() for leaf in leaves)
    # The batch is not the step's to consume.
    assert not any(leaf.is_deleted() for leaf in BATCH)
    assert cases.all_finite(new.params)


def test_training_lowers_loss_and_curvature() -> None:
    def train(weight: float) -> dict[str, jax.Array]:
        optimizer = optax.adam(2e-2)
        objective = hessjax.second_order(CASE.apply, CASE.loss, weight, weight)
        step = hessjax.train_step(objective, optimizer)
        state, metrics = step(start(optimizer), BATCH)
        for _ in range(150):
            state, metrics = step(state, BATCH)
        return metrics

    # The tiny weight keeps the metrics and changes nothing else.
    plain, flat = train(1e-9), train(0.5)
    assert flat["hessian_norm"] < 0.5 * plain["hessian_norm"]
    assert flat["gradient_norm"] < 0.5 * plain["gradient_norm"]


@pytest.mark.parametrize("optimizer", [optax.adam(1e-2), optax.contrib.prodigy()])
def test_an_optimizer_may_keep_the_parameters_it_began_with(
    optimizer: optax.GradientTransformation,
) -> None:
    step = hessjax.train_step(hessjax.regularized(CASE.apply, CASE.loss, {}), optimizer)
    state = start(optimizer)
    for _ in range(2):
        state, _ = step(state, BATCH)
    assert state.step == 2
    assert cases.all_finite(state.params)


@pytest.mark.parametrize("bias", [0.5, np.float32(0.5), jnp.asarray(0.5)])
def test_one_trace_whatever_kind_of_number_a_parameter_is(bias: Any) -> None:
    traced: list[None] = []

    def apply(params: Any, x: jax.Array) -> jax.Array:
        traced.append(None)
        return params["w"] @ x + params["b"]

    params = {"w": jnp.eye(5, 6), "b": bias}
    optimizer = optax.sgd(0.1)
    step = hessjax.train_step(hessjax.regularized(apply, CASE.loss, {}), optimizer)
    state = hessjax.TrainState.create(params, optimizer, jax.random.key(0))
    state, _ = step(state, BATCH)
    once = len(traced)
    for _ in range(2):
        state, _ = step(state, BATCH)
    assert len(traced) == once
