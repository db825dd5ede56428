"""Compile, time and write down: what all benchmarks share.

Programs are compiled ahead of time, so that no timing has compilation in it. What is compared is
run in turns, so that a machine that slows down slows all of it.
"""

import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import runs
from experiments.files import read_json, write_json
from hessjax import _compilation

PyTree = Any

RESULTS = Path(__file__).parent / "results"
_QUICK = Path("runs/benchmarks")
_MIN_REPEATS = 10
# Threads; and from which size on glibc gives memory back after each call, which costs time.
_ENVIRONMENT = (
    *("XLA_FLAGS", "OMP_NUM_THREADS"),
    *("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"),
)
# What has to be the same for measurements to stand in one file.
_CONDITIONS = ("commit", "versions", "device", "device_name", "environment")


class Program(NamedTuple):
    """A compiled function and what the compiler says about it.

    Attributes:
        call: the executable; takes the arguments, without the static ones.
        compile_seconds: of tracing, lowering and compiling.
        operations: floating-point operations of a call as XLA counts them, where a custom call such
            as an eigendecomposition counts as nothing; None if there is a loop over such numbers,
            of which XLA counts the body once.
        temporary_bytes: of intermediate results; None if the backend does not tell.
        peak_bytes: of arguments, results and intermediate results together, all of which are held
            during a call; likewise.
    """

    call: Callable[..., Any]
    compile_seconds: float
    operations: float | None
    temporary_bytes: int | None
    peak_bytes: int | None


class Timing(NamedTuple):
    """Seconds of the clock that a call takes.

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


def compile_program(
    function: Callable[..., Any], *arguments: PyTree, donate: tuple[int, ...] = ()
) -> Program:
    """Compile a function ahead of time, for the shapes of these arguments.

    Args:
        function: what to compile. One that is jitted already keeps its own static and donated
            arguments if ``donate`` names none.
        *arguments: arrays, trees of arrays, or their `jax.ShapeDtypeStruct`.
        donate: positions of the arguments whose memory a call may reuse; they can be passed once.
    """
    options = _compilation.CPU_OPTIONS if jax.default_backend() == "cpu" else None

    # A new function each time: what JAX remembers of an earlier one would not be compiled.
    def fresh(*given: PyTree) -> PyTree:
        return function(*given)

    jitted: Any = function
    if donate or not hasattr(function, "lower"):
        jitted = jax.jit(fresh, donate_argnums=donate)
    begun = time.perf_counter()
    compiled = jitted.lower(*arguments).compile(compiler_options=options)
    seconds = time.perf_counter() - begun
    return Program(compiled, seconds, _operations(compiled), *_bytes(compiled))


def _operations(compiled: jax.stages.Compiled) -> float | None:
    # Of a loop the body is counted once. One that carries integers alone, as the generators of
    # random numbers do on a CPU, has no floating-point operations to miss.
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
        calls: by name, without arguments. JAX arrays among their results are waited for; what else
            works in the background has to be waited for inside.
        repeats: rounds, at least 10.

    Returns:
        The timings by name.

    Raises:
        ValueError: if there are too few rounds.
        ArithmeticError: naming the call whose result in the last round is not finite.
    """
    check_repeats(repeats)
    for call in calls.values():
        for _ in range(2):
            jax.block_until_ready(call())
    return take_turns(calls, repeats=repeats)


def take_turns(calls: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, Timing]:
    """Time calls as `measure` does, without runs before and as few rounds as one: for long ones."""
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
            # Its memory must not stand beside that of the next call.
            del result
    return {name: timing(values) for name, values in seconds.items()}


def check_repeats(repeats: int) -> None:
    """Raise unless there are enough for quartiles.

    Raises:
        ValueError: with the number that was expected.
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
        ArithmeticError: with the name.
    """
    for leaf in jax.tree.leaves(result):
        array = leaf.detach().cpu().numpy() if hasattr(leaf, "detach") else leaf
        # Keys and what is no array have no numbers to check.
        if jnp.issubdtype(getattr(array, "dtype", type(array)), jnp.inexact) and not bool(
            jnp.all(jnp.isfinite(array))
        ):
            raise ArithmeticError(f"{name} gave a result that is not finite: nothing is measured")


def device_name() -> str:
    """Return the device in the form of a folder's name, such as ``cpu-amd-epyc-2-cores``."""
    first, *others = jax.devices()
    if first.platform == "cpu":
        cores = _usable_cores()
        return f"cpu-{_slug(_processor())}-{cores}-core{'s' if cores > 1 else ''}"
    kind = _slug(first.device_kind)
    return f"{len(others) + 1}-x-{kind}" if others else kind


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    text = information.read_text(encoding="utf-8") if information.is_file() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()


def _usable_cores() -> int:
    # Not every system can tell to which ones a process is bound.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _slug(name: str) -> str:
    name = re.sub(r"\((r|tm)\)", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def place(name: str, out: Path | None, *, quick: bool = False) -> Path:
    """Return the file of a benchmark: the given one, or that of the device's results.

    A quick run's stands elsewhere, so that it does not replace results that are kept.
    """
    return out or (_QUICK if quick else RESULTS / device_name()) / f"{name}.json"


@cache
def conditions() -> dict[str, Any]:
    """Return under which conditions this process measures.

    What `experiments.runs.provenance` tells, ``device_name``, what the ``environment`` sets, and
    ``dirty``: whether the code may be another than the commit's. Asked for once: what runs is the
    code from before a commit made meanwhile.
    """
    provenance = runs.provenance()
    commit = provenance["commit"]
    return {
        **provenance,
        "dirty": commit == "unknown" or commit.endswith(" with changes"),
        "device_name": device_name(),
        "environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    }


def write(name: str, content: dict[str, Any], out: Path | None, *, quick: bool = False) -> Path:
    """Write results with the conditions they were measured under, and return the file."""
    path, commands = place(name, out, quick=quick), [conditions()["command"]]
    if "settings" in content and earlier(path, content["settings"]):
        # What is kept of an earlier command was measured by it.
        commands = [*read_json(path)["command"].split(" && "), *commands]
    joined = {"command": " && ".join(dict.fromkeys(commands))}
    write_json(path, {**conditions(), **joined, **content})
    return path


def earlier(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the ``rows`` of a file if the same ``settings`` and conditions would give them again.

    None from or for code that is not committed: it may have changed.

    Raises:
        ValueError: if the file holds no JSON dictionary.
    """
    if not path.is_file():
        return []
    found, here = read_json(path), conditions()
    same = all(found.get(name) == here[name] for name in _CONDITIONS)
    same = same and found.get("settings") == settings and not here["dirty"]
    return found.get("rows", []) if same else []
