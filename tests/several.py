"""One of several processes that train by the script, each with a disk of its own."""

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro

from experiments import data, processes, train

# As tests/conftest.py trains alone.
TRAINING = ["--model", "mlp", "--activation", "relu", "--epochs", "3", "--method", "none"]
STOPPED_AT, FULL_AT = 25, 30


def ended(*arguments: str | Path) -> Any:
    """Return what a training ends with."""
    try:
        tyro.cli(train.main, args=[*TRAINING, *map(str, arguments)])
    except SystemExit as end:
        return end.code
    return 0


@contextmanager
def before_step(step: int, act: Callable[[], None]) -> Iterator[None]:
    """Do something before a step of a training."""
    indices = data.batch_indices

    def acting(place: int, *arguments: Any, **options: Any) -> np.ndarray:
        if place == step - 1:
            act()
        return indices(place, *arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train, "batch_indices", acting)
        yield


def stop_another() -> None:
    """Let one hear SIGTERM that isn't the one which writes."""
    if not processes.leads():
        signal.raise_signal(signal.SIGTERM)


def fill_the_disk() -> None:
    """Let nothing be written any more by the one which writes."""
    if processes.leads():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))


def trainings(path: Path) -> dict[str, Any]:
    """Join the others, train, be stopped, and so on; return how each training ended."""
    run, full = path / "run", path / "full"
    with before_step(STOPPED_AT, stop_another):
        told = {"stopped": ended("--out", run, "--distributed")}
    told["refused"] = ended("--out", run, "--seed", "1")
    told["resumed"] = ended("--out", run, "--resume")
    with before_step(FULL_AT, fill_the_disk):
        told["full"] = ended("--out", full)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return told
