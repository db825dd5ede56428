"""Compile and time: what all benchmarks share.

Programs are compiled ahead of time, so that timings do not include compilation. What is compared is
run in turns, so that when the machine slows down, everything slows down alike.
"""

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hessjax._compilation import compiler_options

PyTree = Any

_MIN_REPEATS = 10


class Program(NamedTuple):
    """A compiled function and what the compiler says about it.

    Attributes:
        call: the executable; takes the arguments, without the static ones.
        compile_seconds: for tracing, lowering and compiling.
        operations: floating-point operations of a call as XLA counts them, where a custom call such
            as an eigendecomposition counts as nothing; None if there is a loop that carries
            floating-point numbers, because XLA counts its body only once.
        temporary_bytes: of intermediate results; None if the backend does not report it.
        peak_bytes: of arguments, results and intermediate results together, all of which are held
            during a call; None if the backend does not report it.
    """

    call: Callable[..., Any]
    compile_seconds: float
    operations: float | None
    temporary_bytes: int | None
    peak_bytes: int | None


class Timing(NamedTuple):
    """Wall-clock seconds that a call takes.

    Attributes:
        median: of the repeats.
        lower: the first quartile.
        upper: the third quartile.
        repeats: how many calls were measured.
    """

    median: float
    lower: float
    upper: float
    repeats: int

    def times(self, factor: float) -> "Timing":
        """Return what ``factor`` calls take; it may be a fraction."""
        median, lower, upper = (factor * seconds for seconds in self[:3])
        return Timing(median, lower, upper, self.repeats)


def compile_program(
    function: Callable[..., Any], *arguments: PyTree, donate: tuple[int, ...] = ()
) -> Program:
    """Compile a function ahead of time, for the shapes of these arguments.

    Args:
        function: what to compile. One that is already jitted keeps its own static and donated
            arguments if ``donate`` names none.
        *arguments: arrays, trees of arrays, or their `jax.ShapeDtypeStruct`.
        donate: positions of the arguments whose memory a call may reuse; each such array can be
            passed only once.
    """

    # A new function each time: JAX would reuse what it has compiled for an earlier one.
    def fresh(*given: PyTree) -> PyTree:
        return function(*given)

    jitted: Any = function
    if donate or not hasattr(function, "lower"):
        jitted = jax.jit(fresh, donate_argnums=donate)
    begun = time.perf_counter()
    compiled = jitted.lower(*arguments).compile(compiler_options=compiler_options())
    seconds = time.perf_counter() - begun
    return Program(compiled, seconds, _operations(compiled), *_bytes(compiled))


def _operations(compiled: jax.stages.Compiled) -> float | None:
    # The body of a loop is counted once. A loop that carries only integers, as random number
    # generators do on a CPU, has no floating-point operations to miss.
    carried = re.findall(r" = (.*) while\(", compiled.as_text() or "")
    if any(re.search(r"\b(bf|f)\d+", types) for types in carried):
        return None
    analysis = compiled.cost_analysis()
    return None if analysis is None or "flops" not in analysis else float(analysis["flops"])


def _bytes(compiled: jax.stages.Compiled) -> tuple[int | None, int | None]:
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None, None
    # Not its peak_memory_in_bytes: on the CPU that leaves the intermediate results out.
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    held += analysis.temp_size_in_bytes - analysis.alias_size_in_bytes
    return analysis.temp_size_in_bytes, held


def measure(
    calls: Mapping[str, Callable[[], Any]], *, repeats: int = _MIN_REPEATS
) -> dict[str, Timing]:
    """Time calls against each other.

    Each runs twice unmeasured; then come rounds in which each runs once, in an order that is
    rotated by one from round to round.

    Args:
        calls: by name, without arguments. JAX arrays among their results are waited for; a call
            has to wait itself for anything else that works in the background.
        repeats: rounds, at least 10.

    Returns:
        The timings by name.

    Raises:
        ValueError: if there are too few rounds.
        ArithmeticError: if a result in the last round is not finite, naming the call.
    """
    check_repeats(repeats)
    for call in calls.values():
        for _ in range(2):
            jax.block_until_ready(call())
    return take_turns(calls, repeats=repeats)


def take_turns(calls: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, Timing]:
    """Time long calls as `measure` does, but without a warm-up and with as few rounds as one."""
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(repeats):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            begun = time.perf_counter()
            result = jax.block_until_ready(calls[name]())
            seconds[name].append(time.perf_counter() - begun)
            if number == repeats - 1:
                check_finite(name, result)
            # Its memory must not be held during the next call.
            del result
    return {name: timing(values) for name, values in seconds.items()}


def check_repeats(repeats: int) -> None:
    """Raise unless there are enough repeats for quartiles.

    Raises:
        ValueError: if not, with the number that was expected.
    """
    if repeats < _MIN_REPEATS:
        raise ValueError(f"repeats must be at least {_MIN_REPEATS}, got {repeats}")


def timing(seconds: list[float]) -> Timing:
    """Summarize measurements."""
    lower, median, upper = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist()
    return Timing(median, lower, upper, len(seconds))


def check_finite(name: str, result: PyTree) -> None:
    """Raise unless every number in a tree of arrays, of JAX, NumPy or PyTorch, is finite.

    Raises:
        ArithmeticError: if one is not, with the name.
    """
    for leaf in jax.tree.leaves(result):
        array = leaf.detach().cpu().numpy() if hasattr(leaf, "detach") else leaf
        # Keys, and anything that is not an array, have no numbers to check.
        if jnp.issubdtype(getattr(array, "dtype", type(array)), jnp.inexact) and not bool(
            jnp.all(jnp.isfinite(array))
        ):
            raise ArithmeticError(f"{name} gave a result that is not finite: nothing is measured")
