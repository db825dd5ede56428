"""What several devices compute and tell each other: each its share, with one exchange."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import hessjax
from experiments import batchwise, devices, landscape, robustness
from hessjax import _placement
from hessjax._placement import replicated
from hessjax.attacks import STANDARD, batches
from tests import cases, layouts
from tests.layouts import adversarial

KEY = jax.random.key(3)
CNN = cases.cnn("relu", jnp.float32)
GRADIENT_BYTES = sum(leaf.nbytes for leaf in jax.tree.leaves(CNN.params))
NUM_METRICS = 4  # loss, gradient_norm, hessian_norm, residual

WIDTHS = {
    "f64": 8,
    "s64": 8,
    "u64": 8,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "bf16": 2,
    "f16": 2,
    "pred": 1,
}
EXCHANGES = (
    "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
    "|ragged-all-to-all|send|recv"
)


def exchanges(program: str) -> list[tuple[str, int]]:
    """Return the kind and the bytes of whatever the devices tell each other."""
    found = []
    for shapes, kind in re.findall(rf"= (.*?) ({EXCHANGES})(?:-start)?\(", program):
        sizes = [
            WIDTHS[dtype] * int(np.prod([int(n) for n in dims.split(",") if n]))
            for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        ]
        found.append((kind, sum(sizes)))
    return found


def test_exchanges_are_found() -> None:
    """The oracle of what follows."""
    mesh = devices.mesh(8)
    rows = NamedSharding(mesh, PartitionSpec("batch"))
    x = jax.device_put(jnp.ones((16, 3), jnp.float32), rows)

    def found(function: Any) -> list[tuple[str, int]]:
        program: Any = jax.jit(function).lower(x).compile(cases.COUNTED)
        return exchanges(program.as_text())

    assert found(lambda x: 2 * x) == []
    assert found(lambda x: x.sum(axis=0)) == [("all-reduce", 12)]
    assert found(lambda x: x[::-1]) != []


def by_rows(mesh: Mesh, leaf: Any) -> jax.ShapeDtypeStruct:
    """Return what a leaf with a leading axis is like when its rows are dealt to the devices."""
    rows = NamedSharding(mesh, PartitionSpec("batch"))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows)


def surrogate(**options: Any) -> Any:
    return hessjax.second_order(CNN.apply, CNN.loss, 0.7, 0.3, **options)


def step_program(
    count: int, size: int, *, masked: bool = False, objective: Any = None, case: cases.Case = CNN
) -> Any:
    """Return the compiled training step for a batch of this size, in float32."""
    mesh = devices.mesh(count)
    objective = surrogate() if objective is None else objective
    # Threefry is a loop on the CPU.
    key = jax.random.key(0, impl="unsafe_rbg")
    state = hessjax.TrainState.create(case.params, layouts.OPTIMIZER, key)
    shapes = [((size, *case.x.shape), jnp.float32), ((size,), jnp.int32), ((size,), jnp.bool)]
    batch = [by_rows(mesh, jax.ShapeDtypeStruct(*shape)) for shape in shapes[: 2 + masked]]
    with jax.set_mesh(mesh):
        step = jax.jit(hessjax.train_step(objective, layouts.OPTIMIZER), donate_argnums=0)
        lowered = step.lower(replicated(mesh, state), tuple(batch))
    program: Any = lowered.compile(cases.COUNTED)
    assert not re.search(r"\bwhile\b", program.as_text()), "a loop body would be counted once"
    return program


@pytest.mark.parametrize("parts", [1, 4])
def test_a_step_divides_and_exchanges_the_gradient_alone(parts: int) -> None:
    objective = surrogate(parts=parts)
    programs = {count: step_program(count, 512, objective=objective) for count in (1, 2, 4, 8)}
    alone = programs[1].cost_analysis()["flops"]
    assert exchanges(programs.pop(1).as_text()) == []
    for count, program in programs.items():
        told = exchanges(program.as_text())
        assert {kind for kind, _ in told} == {"all-reduce"}
        assert sum(size for _, size in told) == GRADIENT_BYTES + 4 * NUM_METRICS
        # Beyond its share each device has the optimizer's update.
        share = program.cost_analysis()["flops"] * count / alone
        assert 0.98 < share < 1.05, (count, share)


def test_padding_costs_an_example_and_a_few_numbers_more() -> None:
    told = exchanges(step_program(8, 512, masked=True).as_text())
    assert {kind for kind, _ in told} == {"all-reduce"}
    size = sum(size for _, size in told) - GRADIENT_BYTES - 4 * NUM_METRICS
    assert 0 < size <= 4 * (CNN.x.size + 1) + 4 * 3 * NUM_METRICS


def test_parts_that_no_share_divides_are_shared_all_the_same() -> None:
    """Sixty blocks of eight are filled up to sixty-four."""
    objective = surrogate(parts=8)
    alone, program = (step_program(count, 480, objective=objective) for count in (1, 8))
    told = exchanges(program.as_text())
    assert sum(size for kind, size in told if kind == "all-reduce") == GRADIENT_BYTES + 16
    share = program.cost_analysis()["flops"] * 8 / alone.cost_analysis()["flops"]
    assert 64 / 60 - 0.02 < share < 64 / 60 + 0.05


def test_adversarial_training_divides_and_exchanges_the_gradient_alone() -> None:
    case = cases.mlp("gelu", jnp.float32)
    programs = [
        step_program(count, 512, objective=adversarial(case), case=case) for count in (1, 8)
    ]
    told = exchanges(programs[1].as_text())
    assert {kind for kind, _ in told} == {"all-reduce"}
    gradient = sum(leaf.nbytes for leaf in jax.tree.leaves(case.params))
    assert sum(size for _, size in told) == gradient + 4 * 2  # loss, accuracy
    alone, eighth = (program.cost_analysis()["flops"] for program in programs)
    assert 0.98 < 8 * eighth / alone < 1.05


def test_a_step_of_the_evaluation_divides_and_exchanges_what_it_found() -> None:
    size, x = 64, jnp.zeros((100, *layouts.IMAGES.shape[1:]))
    examples = batches.Examples(x, jnp.zeros(100, int), jax.random.split(KEY, 100))
    state = robustness._State(jnp.copy(x), jnp.zeros(100, bool))
    kind = robustness._Kind(layouts.logits_fn, 2, robustness.LOSSES["DLR"], 5)
    flops = {}
    for count in (1, 2, 8):
        mesh = devices.mesh(count)
        given = replicated(mesh, (layouts.WEIGHTS, examples, state))
        with _placement.following(mesh):
            lowered = jax.jit(robustness._advance, static_argnums=0).lower(
                kind, *given, np.arange(size), epsilon=0.1, step_size=0.1
            )
        program: Any = lowered.compile(cases.COUNTED)
        told = exchanges(program.as_text())
        # The points and whether they are broken, once in five steps, and the numbers of the rows.
        assert {kind for kind, _ in told} == ({"all-gather"} if count > 1 else set())
        rows = size * (x[0].nbytes + 1)
        assert count == 1 or 0 <= sum(size for _, size in told) - rows <= 2 * 8 * size
        flops[count] = count * program.cost_analysis()["flops"]
    np.testing.assert_allclose(list(flops.values()), flops[1], rtol=0.02)


def test_the_norms_of_the_test_set_are_shared() -> None:
    problem = landscape._Problem(layouts.logits_fn, robustness.LOSSES["DLR"], 2)
    measure = landscape._norms, problem
    x, y = jnp.zeros((64, *layouts.IMAGES.shape[1:])), jnp.zeros(64, int)
    examples = batches.Examples(x, y, jax.random.split(KEY, 64))
    flops = []
    for count in (1, 8):
        mesh = devices.mesh(count)
        given = replicated(mesh, (layouts.WEIGHTS, examples))
        with _placement.following(mesh):
            lowered = jax.jit(batchwise._of_each, static_argnums=0).lower(measure, *given)
        program: Any = lowered.compile(cases.COUNTED)
        assert {kind for kind, _ in exchanges(program.as_text())} <= {"all-gather"}
        flops.append(count * program.cost_analysis()["flops"])
    np.testing.assert_allclose(flops[1], flops[0], rtol=0.02)


@pytest.mark.parametrize("attack", STANDARD, ids=lambda attack: attack.name)
def test_a_step_of_an_attack_divides_and_exchanges_nothing(attack: Any) -> None:
    size = 64
    network = jax.tree_util.Partial(layouts.logits_fn, layouts.WEIGHTS)
    given = batches.problem(network, hessjax.LpBall(0.15, 2), jnp.float64)
    examples = batches.Examples(
        jnp.zeros((size, *layouts.IMAGES.shape[1:])),
        jnp.zeros(size, int),
        jax.random.split(KEY, size),
    )
    numbers = jnp.int32(0), jnp.int32(0)
    start = partial(batches._start, attack.init)
    batch, state, _ = jax.eval_shape(start, given, examples, jnp.arange(size), numbers)
    flops = {}
    for count in (1, 2, 4, 8):
        mesh = devices.mesh(count)
        placed, carried = jax.tree.map(partial(by_rows, mesh), (batch, state))
        step = jax.jit(batches._step, static_argnums=0, donate_argnames="state")
        with _placement.following(mesh):
            shared = replicated(mesh, given)
            lowered = step.lower(attack.step, shared, placed, state=carried)
        program: Any = lowered.compile(cases.COUNTED)
        assert exchanges(program.as_text()) == []
        flops[count] = count * program.cost_analysis()["flops"]
    # A loop's body is counted once, but it is the same for a share of the examples.
    np.testing.assert_allclose(list(flops.values()), flops[1], rtol=0.02)
