"""Several processes as one: the first handles the files, and all of them see the same."""

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
# All leave within moments of each other: one that takes longer has failed by itself.
_LEAVING_SECONDS = 30
# What a user can fix is raised in all; any other error ends its process, and thus the others.
_TOLD = {kind.__name__: kind for kind in (ValueError, ImportError, OSError)}
_leading = ContextVar("_leading", default=False)


def start() -> None:
    """Join the other processes of the run; call this before any JAX computation.

    All run the same command, each on the same data. Slurm, Open MPI, Kubernetes or Cloud TPU say
    which processes there are, or else ``JAX_COORDINATOR_ADDRESS``, the ``host:port`` of the first,
    ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``, from 0.

    Raises:
        ValueError: if nothing says so, or a number is malformed or out of range.
    """
    address, count, number = os.environ.get(_ADDRESS), _whole(_COUNT, 1), _whole(_NUMBER, 0)
    if count is not None and number is not None and number >= count:
        raise ValueError(
            f"{_NUMBER} must be from 0 to {count - 1}, as {_COUNT} is {count}, got {number}"
        )
    # JAX would catch SIGTERM in Python's place, and do nothing about it.
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
    """Return whether this process is the one that reads and writes files and shows progress."""
    return jax.process_index() == 0


def led(work: Callable[Given, Result]) -> Callable[Given, Result]:
    """Make only the first process call a function, while all return or raise what it does there.

    All processes have to call it, in the same order; its arguments matter in the first one only. It
    may return what JSON can hold, and arrays; a tuple arrives as a list. Within another such
    function, or with a single process, it is a plain call.
    """

    @wraps(work)
    def shared(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        if jax.process_count() == 1 or _leading.get():
            return work(*args, **kwargs)
        outcome: Any = None
        if leads():
            token = _leading.set(True)
            try:
                outcome = [work(*args, **kwargs), None, None]
            except tuple(_TOLD.values()) as error:
                kind = next(name for name, kind in _TOLD.items() if isinstance(error, kind))
                outcome = [None, kind, str(error)]
            finally:
                _leading.reset(token)
        result, kind, sentence = _from_first(outcome)
        if kind is not None:
            raise _TOLD[kind](sentence)
        return result

    return shared


def _from_first(value: object) -> Any:  # noqa: ANN401 - only the first one knows what it is
    """Return, in every process, the value that the first one was given."""
    data = np.frombuffer(msgpack_serialize(_listed(value)), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.uint32(len(data))))
    # To one of a few lengths, because each length compiles a program of its own.
    padded = np.zeros(1 << size.bit_length(), np.uint8)
    if leads():
        padded[:size] = data
    received = multihost_utils.broadcast_one_to_all(padded)
    return msgpack_restore(received[:size].tobytes())


def _listed(value: Any) -> Any:  # noqa: ANN401 - as above
    """Return a value with lists in place of its tuples."""
    if isinstance(value, dict):
        return {key: _listed(inner) for key, inner in value.items()}
    return [_listed(inner) for inner in value] if isinstance(value, list | tuple) else value


def heard(signals: Sequence[int], *, now: bool) -> int:
    """Return a signal that one of the processes has received, the same in all, or 0.

    Args:
        signals: those that this process has received.
        now: whether to ask the others. If not, the result is 0, unless this process is alone.
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
