"""Parts and chunks of a batch: the same on average, or the same at once, for less."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

import hessjax
from hessjax import Lazy, regularized, second_order
from tests import cases
from tests.penalties import PENALTIES

CASE = cases.mlp("gelu")
SIZE = 7
X, Y = cases.batch_of(CASE, SIZE)
KEY = jax.random.key(80)
APPLY, LOSS = CASE.apply, CASE.loss
MASK = jnp.arange(SIZE) != 2
NOTHING = (X.at[2].set(jnp.nan), Y, MASK)

SHARED = partial(second_order, APPLY, LOSS, 0.7, 0.3)
SEPARATE = partial(
    regularized,
    APPLY,
    LOSS,
    {
        "slope": (0.7, hessjax.input_gradient_norm),
        "probe": (0.2, hessjax.hessian_squared_frobenius_norm),
        "jacobian": (0.1, hessjax.jacobian_operator_norm),
    },
)


@cache
def compiled(objective: Any) -> Any:
    return jax.jit(jax.value_and_grad(objective, has_aux=True))


def value_and_gradient(objective: Any, batch: Any, step: int = 0, key: Any = KEY) -> Any:
    """Return (value, metrics) and the gradient in the parameters."""
    return compiled(objective)(CASE.params, batch, key, step)


WHOLE = (X, Y)
BATCHES = {"whole": WHOLE, "masked": NOTHING}


@cache
def at_once(build: Any, kind: str) -> Any:
    """Return value, metrics and gradient of the objective with neither parts nor chunks."""
    return value_and_gradient(build(), BATCHES[kind])


@pytest.mark.parametrize(("parts", "kind"), [(2, "whole"), (3, "masked"), (9, "masked")])
@pytest.mark.parametrize("build", [SHARED, SEPARATE], ids=["shared", "separate"])
def test_the_mean_over_all_parts_is_the_whole(build: Any, parts: int, kind: str) -> None:
    objective, batch = build(parts=parts), BATCHES[kind]
    each = [value_and_gradient(objective, batch, step) for step in range(4, 4 + parts)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / parts, *each)
    cases.assert_tree_close(mean, at_once(build, kind), rtol=1e-9, atol=1e-13)


def chosen(
    steps: Any, *, keys: Any = KEY[None], size: int = SIZE, padding: int = 0, parts: int = 3
) -> list[set[int]]:
    """Return the places of the examples that pay for the penalty, at each step with each key."""

    def place(f: Any, x: Any, key: Any = None) -> jax.Array:
        del f, key
        return x[0]

    # The first entries tell the examples apart.
    whole = size + padding
    x = jnp.zeros((whole, *CASE.x.shape)).at[:, 0].set(2.0 ** jnp.arange(whole))
    batch = (x, jnp.zeros(whole, int), jnp.arange(whole) < size)[: 3 if padding else 2]
    objective = regularized(APPLY, LOSS, {"place": (1.0, place)}, parts=parts)

    def total(key: Any, step: Any) -> jax.Array:
        return objective(CASE.params, batch, key, step)[1]["place"] * size / parts

    totals = jax.jit(jax.vmap(jax.vmap(total, (None, 0)), (0, None)))
    sums = totals(keys, jnp.asarray(steps)).ravel()
    np.testing.assert_allclose(sums, np.round(sums), rtol=1e-9)
    return [{i for i in range(size) if round(float(found)) >> i & 1} for found in sums]


def test_a_mask_needs_no_promotion_of_numbers() -> None:
    def apply(params: Any, x: Any) -> Any:
        return jnp.sum(params * x)

    objective = hessjax.regularized(apply, lambda z, _: z, {})
    batch = (jnp.ones((3, 2), jnp.float32), jnp.zeros(3, jnp.int32), jnp.arange(3) > 0)
    with jax.numpy_dtype_promotion("strict"):
        assert objective(jnp.ones(2, jnp.float32), batch, KEY)[0] == 2


@pytest.mark.parametrize("masked", [False, True])
def test_means_of_short_logits_have_the_digits_of_float32(masked: bool) -> None:
    params, count = 3 * jnp.eye(3, 4, dtype=jnp.bfloat16), 5 if masked else 7
    x, y = jax.random.uniform(KEY, (7, 4), jnp.bfloat16), jnp.arange(7) % 3
    batch = (x, y, jnp.arange(7) < count) if masked else (x, y)
    objective = second_order(jnp.matmul, cross_entropy, 0.5, 0.1)
    (value, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(params, batch, KEY)
    assert {value.dtype, *(metric.dtype for metric in metrics.values())} == {jnp.dtype("float32")}
    assert gradient.dtype == params.dtype
    losses = jax.vmap(lambda x, y: cross_entropy(params @ x, y))(x[:count], y[:count])
    np.testing.assert_allclose(metrics["loss"], np.mean(np.asarray(losses, float)), rtol=1e-6)


def test_nothing_promotes_ranks() -> None:
    """Under a setting of JAX that refuses it."""

    def apply(params: Any, x: Any) -> Any:
        return params @ x

    every = {name: (1.0, penalty) for name, penalty in PENALTIES.items()}
    objective = partial(second_order, apply, cross_entropy, 1.0, 0.5)
    objectives = (
        regularized(apply, cross_entropy, every),
        objective(),
        objective(parts=2),
        objective(solver=None, chunk_size=2),
    )
    batch = jnp.ones((4, 8)), jnp.zeros(4, int), jnp.arange(4) > 0
    with jax.numpy_rank_promotion("raise"):
        for each in objectives:
            value, _ = jax.eval_shape(each, jnp.ones((2, 8)), batch, KEY)
            assert value.shape == ()


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (None, "got None"),
        (-1.0, "a finite nonnegative number, got -1.0"),
        (jnp.ones(2), "a number"),
    ],
)
def test_a_schedule_of_what_is_no_weight_is_told(weight: Any, message: str) -> None:
    penalty = {"slope": (lambda _: weight, hessjax.input_gradient_norm)}
    objective = hessjax.regularized(lambda params, x: params * x, lambda z, _: z.sum(), penalty)
    batch = (jnp.ones((3, 2)), jnp.zeros(3, int))
    with pytest.raises((TypeError, ValueError), match="the weight of 'slope' at this step") as told:
        objective(jnp.ones(2), batch, KEY)
    assert message in str(told.value)


def test_a_part_is_one_of_so_many_in_a_row() -> None:
    turns = chosen([3, 4, 5])
    assert set.union(*turns) == set(range(SIZE))
    assert sum(map(len, turns)) == SIZE
    for turn in turns:
        assert [sum(i // 3 == block for i in turn) for block in (0, 1)] == [1, 1]
    # At random: two blocks have nine pairs, of which each is the part of some key.
    pairs = chosen([0], keys=jax.random.split(KEY, 80), size=6)
    assert len(set(map(frozenset, pairs))) == 9


@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}])
def test_a_part_of_inputs_without_entries(options: Any) -> None:
    def partial_apply(params: Any, x: Any) -> jax.Array:
        return APPLY(params, x["whole"])

    batch = ({"whole": X, "nothing": np.zeros((SIZE, 0))}, Y)
    given = (partial_apply, LOSS, 0.7, 0.3)
    value, _ = second_order(*given, parts=3, **options)(CASE.params, batch, KEY)
    wanted, _ = SHARED(parts=3)(CASE.params, WHOLE, KEY)
    np.testing.assert_allclose(value, wanted, rtol=1e-12)


def test_a_part_depends_neither_on_padding_nor_on_the_size() -> None:
    (wanted,) = chosen([1])
    assert chosen([1], padding=5) == [wanted]
    (larger,) = chosen([1], size=12)
    assert {i for i in larger if i < 6} == {i for i in wanted if i < 6}


def test_the_loss_is_that_of_all_examples() -> None:
    whole, part = (
        jax.jit(objective)(CASE.params, WHOLE, KEY, 1)[1]["loss"]
        for objective in (SHARED(), SHARED(parts=4))
    )
    np.testing.assert_allclose(part, whole, rtol=1e-12)


def operations(objective: Any, batch: Any) -> float:
    gradient_of = jax.jit(jax.value_and_grad(objective, has_aux=True))
    compiled: Any = gradient_of.lower(CASE.params, batch, KEY, 0).compile(cases.COUNTED)
    return compiled.cost_analysis()["flops"]


def test_the_rest_of_the_batch_pays_for_the_loss_alone() -> None:
    batch = cases.batch_of(CASE, 64)
    plain = operations(second_order(APPLY, LOSS, 0, 0), batch)
    full, quarter = (operations(SHARED(parts=parts), batch) for parts in (1, 4))
    assert quarter < plain + 0.4 * (full - plain)


@pytest.mark.parametrize(("chunk_size", "kind"), [(1, "whole"), (3, "masked"), (100, "whole")])
@pytest.mark.parametrize("build", [SHARED, SEPARATE], ids=["shared", "separate"])
def test_chunks_change_nothing(build: Any, chunk_size: int, kind: str) -> None:
    got = value_and_gradient(build(chunk_size=chunk_size), BATCHES[kind])
    cases.assert_tree_close(got, at_once(build, kind), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("parts", [2, 3])
def test_options_combine(parts: int) -> None:
    objective = SHARED(every=2, parts=parts, chunk_size=2)
    assert isinstance(objective, Lazy)
    length = 2 * parts
    cycle = [value_and_gradient(objective.at(i), WHOLE, i) for i in range(length)]
    mean = jax.tree.map(
        lambda *leaves: sum(leaves) / length, *[(value, g) for (value, _), g in cycle]
    )
    (value, _), gradient = at_once(SHARED, "whole")
    # The parts take turns on the steps that have penalties, not on all.
    cases.assert_tree_close(mean, (value, gradient), rtol=1e-9, atol=1e-13)


def wide(activation: str, params: Any, x: jax.Array) -> jax.Array:
    """Apply layers whose intermediate values outweigh the weights."""
    h = jnp.outer(x, params["spread"])
    for _ in range(4):
        h = cases.ACTIVATIONS[activation](h @ params["mix"])
    return jnp.sum(h, 0) @ params["read"]


WIDE = cases.random_tree({"spread": (32,), "mix": (32, 32), "read": (32, 10)}, 5, jnp.float32)
IMAGES = (jnp.ones((128, 64), jnp.float32), jnp.zeros(128, jnp.int32))


def temporary_bytes(objective: Any) -> int:
    optimizer = optax.sgd(0.1)
    state = hessjax.TrainState.create(WIDE, optimizer, jax.random.key(0))
    step: Any = jax.jit(hessjax.train_step(objective, optimizer))
    return step.lower(state, IMAGES).compile(cases.COUNTED).memory_analysis().temp_size_in_bytes


def test_chunks_keep_a_penalty_below_twice_the_memory_of_a_plain_step() -> None:
    apply = partial(wide, "gelu")
    plain = temporary_bytes(second_order(apply, cases.cross_entropy, 0, 0))
    build = partial(second_order, apply, cases.cross_entropy, 0.7, 0.3)
    assert temporary_bytes(build()) > 2.5 * plain
    assert temporary_bytes(build(chunk_size=32)) < 2 * plain
    assert temporary_bytes(build(chunk_size=8)) < plain


def test_a_chunk_locates_its_directions_once() -> None:
    # Eight products are worth several plain steps; the sweep that is evaluated anew, hardly one.
    build = partial(SHARED, solver=partial(hessjax.power_iteration, num_iters=8))
    plain = operations(second_order(APPLY, LOSS, 0, 0), WHOLE)
    # One chunk, for the body of the loop is counted once.
    assert operations(build(chunk_size=SIZE), WHOLE) < operations(build(), WHOLE) + 2.5 * plain


def test_a_model_may_bring_its_own_checkpoints() -> None:
    saved = second_order(jax.checkpoint(APPLY), LOSS, 0.7, 0.3)
    got = value_and_gradient(saved, (X, Y))
    cases.assert_tree_close(got, value_and_gradient(SHARED(), WHOLE), rtol=1e-9, atol=1e-13)
