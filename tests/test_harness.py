"""What compiles, times and writes the benchmarks, on functions whose answers are known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from experiments.benchmarks import harness
from hessjax import _compilation


def test_a_matrix_product_costs_two_operations_for_each_pair():
    m, n, k = 30, 20, 50
    left, right = jnp.ones((m, k)), jnp.ones((k, n))
    program = harness.compile_program(jnp.matmul, left, right)
    assert program.operations == 2 * m * n * k
    assert program.compile_seconds > 0
    np.testing.assert_allclose(program.call(left, right), np.full((m, n), k))


def test_shapes_are_enough_to_compile():
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    program = harness.compile_program(jnp.sin, shape)
    assert program.call(jnp.zeros(3, jnp.float32)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("num_steps", [5, jnp.int32(5)])
def test_operations_of_a_loop_are_not_told(num_steps):
    def power(x, num_steps):
        return jax.lax.fori_loop(0, num_steps, lambda _, y: x @ y, x)

    if isinstance(num_steps, int):
        program = harness.compile_program(lambda x: power(x, num_steps), jnp.ones((3, 3)))
    else:
        program = harness.compile_program(power, jnp.ones((3, 3)), num_steps)
    assert program.operations is None


@pytest.mark.parametrize(("num_steps", "unroll"), [(4, True), (1, 1)])
def test_a_loop_that_is_gone_is_counted_whole(num_steps, unroll):
    """JAX writes the first one out, XLA the second, whose instructions are still named after it."""

    def power(x):
        return jax.lax.fori_loop(0, num_steps, lambda _, y: x @ y, x, unroll=unroll)

    assert harness.compile_program(power, jnp.ones((20, 20))).operations == num_steps * 2 * 20**3


def test_memory_is_that_of_arguments_results_and_what_lies_between():
    x = jnp.ones(300)

    def product(x):
        return jnp.outer(x, x) @ jnp.outer(x, x + 1)

    program = harness.compile_program(product, x)
    # XLA may make the factors as it multiplies; the result has to be somewhere.
    assert program.temporary_bytes is not None
    assert program.temporary_bytes <= 2 * 300 * 300 * 8
    assert program.peak_bytes == program.temporary_bytes + 300 * 300 * 8 + 300 * 8


def test_what_lies_between_is_part_of_the_peak():
    def sines(x):
        return jnp.sum(jnp.sort(jnp.outer(x, x), axis=1)[:, 0])

    program = harness.compile_program(sines, jnp.ones(300))
    assert program.peak_bytes is not None
    assert program.peak_bytes >= 300 * 300 * 8


def test_donated_memory_is_counted_once_and_used_up():
    x = jnp.ones((100, 100))
    kept = harness.compile_program(jnp.sin, x)
    donated = harness.compile_program(jnp.sin, x, donate=(0,))
    assert kept.peak_bytes == 2 * x.nbytes
    assert donated.peak_bytes == x.nbytes
    kept.call(x)
    donated.call(x)
    assert x.is_deleted()


def test_a_state_can_go_from_call_to_call():
    state = {"x": jnp.zeros(3)}
    program = harness.compile_program(lambda x: x + 1, state["x"], donate=(0,))

    def step():
        state["x"] = program.call(state["x"])
        return state["x"]

    harness.measure({"step": step})
    assert state["x"].tolist() == [12, 12, 12]


def test_a_jitted_function_keeps_its_own_settings():
    jitted = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros(3)
    harness.compile_program(jitted, x).call(x)
    assert x.is_deleted()


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit])
def test_the_processor_gets_the_options_of_the_library(jit, monkeypatch):
    monkeypatch.setitem(_compilation.CPU_OPTIONS, "no_such_option", value=True)
    with pytest.raises(Exception, match="no_such_option"):
        harness.compile_program(jit(jnp.sin), jnp.zeros(3))


def test_a_function_is_compiled_anew_each_time():
    traced = []

    def function(x):
        traced.append(x)
        return x

    for _ in range(2):
        harness.compile_program(function, jnp.zeros(3))
    assert len(traced) == 2


def test_calls_run_in_turns_after_two_runs_each():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    harness.measure(calls, repeats=11)
    assert sorted(order[:6]) == list("aabbcc")
    rounds = ["".join(order[first : first + 3]) for first in range(6, len(order), 3)]
    assert rounds == (["abc", "bca", "cab"] * 4)[:11]


def test_timings_are_of_the_clock(monkeypatch):
    """The n-th measured call takes n seconds."""
    ends = itertools.accumulate(itertools.chain.from_iterable((0, n) for n in range(1, 12)))
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(ends))
    assert harness.measure({"slow": lambda: None}, repeats=11) == {
        "slow": harness.Timing(median=6, lower=3.5, upper=8.5, repeats=11)
    }


def test_results_are_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(harness.jax, "block_until_ready", lambda x: waited.append(x) or x)
    harness.measure({"name": lambda: 1.0})
    assert len(waited) == 12


@pytest.mark.parametrize("repeats", [9, 0])
def test_few_repeats_are_refused(repeats):
    with pytest.raises(ValueError, match=f"repeats must be at least 10, got {repeats}"):
        harness.measure({"a": lambda: None}, repeats=repeats)


@pytest.mark.parametrize(
    "result",
    [
        jnp.array([0.0, jnp.inf]),
        {"a": [jnp.zeros(2), jnp.array(jnp.nan, jnp.bfloat16)]},
        np.float32("nan"),
        float("nan"),
        torch.tensor([1.0, float("nan")], requires_grad=True),
    ],
)
def test_a_result_that_is_not_finite_is_an_error(result):
    with pytest.raises(ArithmeticError, match="broken gave a result that is not finite"):
        harness.measure({"fine": lambda: None, "broken": lambda: result})


@pytest.mark.parametrize(
    "result",
    [None, 1, "text", jax.random.key(0), jnp.arange(3), torch.ones(2, requires_grad=True)],
)
def test_other_results_pass(result):
    assert harness.measure({"fine": lambda: result})["fine"].repeats == 10
