"""Penalties on every n-th step: right on average, and the skipped work is not done."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hessjax
from hessjax import Lazy, regularized, second_order, training
from tests import cases

CASE = cases.mlp("gelu")
BATCH = cases.batch_of(CASE, 6)
KEY = jax.random.key(70)
APPLY, LOSS = CASE.apply, CASE.loss
PENALTIES = {
    "slope": (0.7, hessjax.input_gradient_norm),
    "probe": (lambda step: 0.1 + 0 * step, hessjax.hessian_squared_frobenius_norm),
}


def objective(kind: str, every: int) -> Any:
    if kind == "shared":
        return second_order(APPLY, LOSS, 0.7, 0.3, every=every)
    return regularized(APPLY, LOSS, PENALTIES, every=every)


@cache
def compiled(part: Any) -> Any:
    return jax.jit(jax.value_and_grad(part, has_aux=True))


def value_and_gradient(function: Any, step: int) -> Any:
    part = function.at(step) if isinstance(function, Lazy) else function
    return compiled(part)(CASE.params, BATCH, KEY, step)


@pytest.mark.parametrize(("kind", "every"), [("shared", 2), ("separate", 5)])
def test_the_mean_over_a_cycle_is_that_of_every_step(kind: str, every: int) -> None:
    (value, _), gradient = value_and_gradient(objective(kind, 1), 0)
    lazy = objective(kind, every)
    cycle = [value_and_gradient(lazy, step) for step in range(3, 3 + every)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / every, *[(v, g) for (v, _), g in cycle])
    cases.assert_tree_close(mean, (value, gradient), rtol=1e-9, atol=1e-14)
    # Weights grow, metrics don't.
    (_, metrics), _ = value_and_gradient(lazy, 0)
    (_, wanted), _ = value_and_gradient(objective(kind, 1), 0)
    cases.assert_tree_close(metrics, wanted, rtol=1e-9)


def metrics_at(lazy: Any, step: Any) -> set[str]:
    """Return what a step that is known measures."""
    return set(jax.eval_shape(lambda: lazy(CASE.params, BATCH, KEY, step))[1])


def test_steps_between_are_the_loss_alone() -> None:
    lazy = objective("shared", 3)
    assert isinstance(lazy, Lazy)
    value, metrics = lazy(CASE.params, BATCH, KEY, 1)
    assert value == metrics["loss"]
    assert [metrics_at(lazy, step) for step in (1, 2, 4)] == [{"loss"}] * 3
    every_one = {"loss", "gradient_norm", "hessian_norm", "residual"}
    assert [metrics_at(lazy, step) for step in (0, 3, np.int32(6))] == [every_one] * 3
    # Step 0, if none is said.
    assert set(jax.eval_shape(lambda: lazy(CASE.params, BATCH, KEY))[1]) == every_one


def test_every_step_is_no_lazy_objective() -> None:
    assert not isinstance(objective("shared", 1), Lazy)
    # Nor is one without a penalty.
    assert not isinstance(second_order(APPLY, LOSS, 0, 0, every=4), Lazy)


def test_a_step_known_only_at_run_time_branches() -> None:
    lazy = objective("shared", 3)
    branching = compiled(lazy)
    for step in (0, 1, 4, 6):
        (value, metrics), gradient = branching(CASE.params, BATCH, KEY, step)
        (wanted, known), wanted_gradient = value_and_gradient(lazy, step)
        np.testing.assert_allclose(value, wanted, rtol=1e-12)
        cases.assert_tree_close(gradient, wanted_gradient, rtol=1e-9, atol=1e-14)
        assert set(metrics) == metrics_at(lazy, 0)
        cases.assert_tree_close({name: metrics[name] for name in known}, known, rtol=1e-9)
        assert all(np.isnan(m) for name, m in metrics.items() if name not in known)


def test_what_a_branch_does_not_evaluate_is_nan_like_the_metric() -> None:
    def penalized(value: Any, *_: Any) -> Any:
        return value, {"loss": value, "pair": jnp.ones(2, jnp.float32)}

    lazy = Lazy(penalized, lambda value, *_: (value, {"loss": value}), 3)
    metrics = jax.jit(lazy)(1.5, (), KEY, 1)[1]
    assert metrics["loss"] == 1.5
    assert metrics["pair"].dtype == jnp.float32
    np.testing.assert_array_equal(metrics["pair"], [np.nan, np.nan])


def test_a_metric_that_cannot_be_nan_is_refused() -> None:
    def penalized(value: Any, *_: Any) -> Any:
        return value, {"loss": value, "count": jnp.int32(5)}

    lazy = Lazy(penalized, lambda value, *_: (value, {"loss": value}), 3)
    with pytest.raises(TypeError, match=r"metric 'count', .* must be floating point, got int32"):
        jax.jit(lazy)(1.5, (), KEY, 1)


def test_branches_are_of_one_dtype_where_a_penalty_has_more_digits_than_the_loss() -> None:
    def square(f: Any, x: Any, key: Any = None) -> Any:
        del key
        return jnp.sum(jax.grad(f)(x).astype(jnp.float32) ** 2)

    def half(params: Any, x: Any) -> Any:
        return params.astype(jnp.bfloat16) @ x.astype(jnp.bfloat16)

    lazy = hessjax.regularized(half, LOSS, {"square": (1.0, square)}, every=2)
    batch = (jnp.ones((4, 3), jnp.float32), jnp.zeros(4, int))
    params = jnp.eye(2, 3, dtype=jnp.float32)
    for step in (0, 1):
        value, _ = jax.jit(lazy)(params, batch, KEY, step)
        wanted, _ = lazy(params, batch, KEY, step)
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, wanted.astype(jnp.float32), rtol=1e-6)


def step_operations(part: Any) -> float:
    optimizer = optax.sgd(0.1)
    state = hessjax.TrainState.create(CASE.params, optimizer, KEY)
    compiled: Any = (
        jax.jit(hessjax.train_step(part, optimizer)).lower(state, BATCH).compile(cases.COUNTED)
    )
    return compiled.cost_analysis()["flops"]


def test_a_skipped_step_costs_a_plain_one() -> None:
    lazy = objective("shared", 4)
    plain, full = (step_operations(second_order(APPLY, LOSS, w, w)) for w in (0, 0.7))
    assert step_operations(lazy.at(1)) == plain
    assert step_operations(lazy.at(4)) == pytest.approx(full, rel=0.02)
    assert full > 2 * plain


def counting(seen: list[str]) -> Lazy:
    """Return a lazy objective that notes which part is traced, and as which one it ran."""

    def part(name: str, number: float) -> Any:
        def evaluate(params: Any, batch: Any, key: Any, step: Any = 0) -> Any:
            del batch, key
            seen.append(name)
            return jnp.sum(params["b2"] ** 2), {"part": jnp.asarray(number), "step": step}

        return evaluate

    return Lazy(part("penalized", 1.0), part("plain", 0.0), 3)


def start() -> hessjax.TrainState:
    return hessjax.TrainState.create(CASE.params, optax.sgd(0.1), KEY)


def test_training_compiles_two_steps_and_takes_the_right_one() -> None:
    seen: list[str] = []
    step = hessjax.train_step(counting(seen), optax.sgd(0.1))
    state, parts = start(), []
    for _ in range(7):
        state, metrics = step(state, BATCH)
        parts.append((int(metrics["step"]), float(metrics["part"])))
    assert parts == [(i, float(i % 3 == 0)) for i in range(7)]
    assert sorted(seen) == ["penalized", "plain"]


def test_training_goes_on_from_any_state() -> None:
    step = hessjax.train_step(counting([]), optax.sgd(0.1))

    def parts(state: hessjax.TrainState, count: int) -> tuple[hessjax.TrainState, list[float]]:
        found = []
        for _ in range(count):
            state, metrics = step(state, BATCH)
            found.append(float(metrics["part"]))
        return state, found

    # Two runs in turns, and one from the middle, by one compiled step.
    one, first = parts(start(), 2)
    _, other = parts(start(), 4)
    assert (first, other) == ([1, 0], [1, 0, 0, 1])
    assert parts(one, 3)[1] == [0, 1, 0]
    late = start()._replace(step=jnp.asarray(5, jnp.int32))
    assert parts(late, 3)[1] == [0, 1, 0]


def test_steady_training_does_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counted(number: Any) -> int:
        asked.append(number)
        return number.item()

    # A name of the module goes before the built-in one.
    monkeypatch.setattr(training, "int", counted, raising=False)
    step = hessjax.train_step(counting([]), optax.sgd(0.1))
    state = start()
    for _ in range(5):
        state, _ = step(state, BATCH)
    assert len(asked) == 1


def test_a_compiled_loop_of_steps_branches() -> None:
    step = hessjax.train_step(counting([]), optax.sgd(0.1))
    loop = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s, BATCH), s, length=7))
    _, metrics = loop(start())
    np.testing.assert_array_equal(metrics["part"], [1, 0, 0, 1, 0, 0, 1])


def test_lazy_training_is_that_by_hand() -> None:
    optimizer = optax.adam(1e-2)
    step = hessjax.train_step(second_order(APPLY, LOSS, 0.7, 0.3, every=2), optimizer)
    state = hessjax.TrainState.create(CASE.params, optimizer, KEY)
    heavy = hessjax.train_step(second_order(APPLY, LOSS, 1.4, 0.6), optimizer)
    plain = hessjax.train_step(second_order(APPLY, LOSS, 0, 0), optimizer)
    by_hand = hessjax.TrainState.create(CASE.params, optimizer, KEY)
    for each in (heavy, plain, heavy):
        state, _ = step(state, BATCH)
        by_hand, _ = each(by_hand, BATCH)
    cases.assert_tree_close(state.params, by_hand.params, rtol=1e-9, atol=1e-13)


def test_a_schedule_sees_every_step() -> None:
    weight = optax.linear_schedule(0.0, 1.0, 10)
    penalties = {"slope": (weight, hessjax.input_gradient_norm)}
    lazy = regularized(APPLY, LOSS, penalties, every=5)
    value, metrics = lazy(CASE.params, BATCH, KEY, 5)
    np.testing.assert_allclose(value, metrics["loss"] + 5 * 0.5 * metrics["slope"], rtol=1e-6)


def test_both_parts_can_be_given_more_metrics() -> None:
    def more(part: Any) -> Any:
        def with_one(*arguments: Any) -> Any:
            value, metrics = part(*arguments)
            return value, {**metrics, "one": jnp.ones(())}

        return with_one

    lazy = objective("shared", 2).map(more)
    assert isinstance(lazy, Lazy)
    assert [metrics_at(lazy, step) for step in (1, 2)] == [
        {"loss", "one"},
        {"loss", "one", "gradient_norm", "hessian_norm", "residual"},
    ]


@pytest.mark.parametrize("option", ["every", "parts", "chunk_size"])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-2, ValueError), (1.5, TypeError)])
def test_bad_options(option: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{option} must"):
        second_order(APPLY, LOSS, 1.0, 0.5, **{option: value})
    with pytest.raises(error, match=f"^{option} must"):
        regularized(APPLY, LOSS, PENALTIES, **{option: value})
