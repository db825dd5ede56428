"""Several processes as one: the first keeps the files, and all of them see the same."""

import os
import sys
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from flax.serialization import msgpack_restore, msgpack_serialize
from jax.experimental import multihost_utils
from tqdm import tqdm

Given = ParamSpec("Given")
Result = TypeVar("Result")

_ADDRESS, _COUNT, _NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# All leave within moments of each other: one that is waited for longer has failed by itself.
_LEAVING_SECONDS = 30
# What a user can mend, said by one sentence; anything else ends its process, and thus the others.
_TOLD = {kind.__name__: kind for kind in (ValueError, ImportError, OSError)}
_leading = ContextVar("_leading", default=False)


def start() -> None:
    """Join the other processes of the run; before any computation of JAX.

    All run the same command, each on the same data. Which they are is told by Slurm, Open MPI,
    Kubernetes or Cloud TPU, or by ``JAX_COORDINATOR_ADDRESS``, ``host:port`` of the first,
    ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``, from 0.

    Raises:
        ValueError: if nothing tells, or a number is malformed or out of range.
    """
    address, count, number = os.environ.get(_ADDRESS), _whole(_COUNT, 1), _whole(_NUMBER, 0)
    if count is not None and number is not None and number >= count:
        raise ValueError(
            f"{_NUMBER} must be from 0 to {count - 1}, as {_COUNT} is {count}, got {number}"
        )
    # JAX would hear SIGTERM in Python's place, and do nothing about it.
    jax.config.update("jax_enable_preemption_service", False)  # noqa: FBT003
    try:
        jax.distributed.initialize(
            address,
            num_processes=count,
            process_id=number,
            shutdown_timeout_seconds=_LEAVING_SECONDS,
        )
    except ValueError as error:
        raise ValueError(
            f"there are no processes to join, set {_ADDRESS}, {_COUNT} and {_NUMBER}: {error}"
        ) from error
    if not leads():
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def _whole(name: str, least: int) -> int | None:
    given = os.environ.get(name)
    if given is None:
        return None
    if not given.isdecimal() or int(given) < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {given!r}")
    return int(given)


def leads() -> bool:
    """Tell whether this process is the one that reads and writes files and shows progress."""
    return jax.process_index() == 0


def led(work: Callable[Given, Result]) -> Callable[Given, Result]:
    """Make a function one that the first process calls, while all return or raise what it does.

    All processes have to come by it, in the same order, and its arguments count in the first one
    alone. It returns what JSON could hold, and arrays; a tuple arrives as a list. Inside of another
    such function, and in a process alone, it is the function itself.
    """

    @wraps(work)
    def shared(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        if jax.process_count() == 1 or _leading.get():
            return work(*args, **kwargs)
        told: Any = None
        if leads():
            token = _leading.set(True)
            try:
                told = [work(*args, **kwargs), None, None]
            except tuple(_TOLD.values()) as error:
                kind = next(name for name, kind in _TOLD.items() if isinstance(error, kind))
                told = [None, kind, str(error)]
            finally:
                _leading.reset(token)
        result, kind, sentence = _from_first(told)
        if kind is not None:
            raise _TOLD[kind](sentence)
        return result

    return shared


def _from_first(told: object) -> Any:  # noqa: ANN401 - what it is only the first one knows
    """Return what the first process was given in every one."""
    data = np.frombuffer(msgpack_serialize(_listed(told)), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.uint32(len(data))))
    # Of few lengths, for each is a program of its own.
    padded = np.zeros(1 << size.bit_length(), np.uint8)
    if leads():
        padded[:size] = data
    received = multihost_utils.broadcast_one_to_all(padded)
    return msgpack_restore(received[:size].tobytes())


def _listed(value: Any) -> Any:  # noqa: ANN401 - likewise
    """Return a value with lists in place of its tuples."""
    if isinstance(value, dict):
        return {key: _listed(inner) for key, inner in value.items()}
    return [_listed(inner) for inner in value] if isinstance(value, list | tuple) else value


def heard(signals: Sequence[int], *, now: bool) -> int:
    """Return a signal that one of the processes has heard, the same in all, or 0.

    Args:
        signals: what this one has heard.
        now: whether to ask the others. Without that there is none, unless it is alone.
    """
    own = signals[0] if signals else 0
    if jax.process_count() == 1:
        return own
    return int(multihost_utils.process_allgather(np.int32(own)).max()) if now else 0


def progress_bar(
    *,
    total: float,
    desc: str,
    unit: str = "it",
    unit_scale: float = False,
    bar_format: str | None = None,
) -> tqdm:
    """Return a progress bar, silent when not on a terminal and in all processes but the first."""
    return tqdm(
        total=total,
        desc=desc,
        unit=unit,
        unit_scale=unit_scale,
        bar_format=bar_format,
        disable=None if leads() else True,
        leave=False,
        dynamic_ncols=True,
    )
