"""Checkpoints of a training: orbax writes them; they are read only if their checksums match."""

import hashlib
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from experiments.files import read_json, write_json
from experiments.processes import led
from hessjax import TrainState

_SUMS = "checksums.json"
# How many of the newest are kept, in case one is damaged.
_KEPT = 3
# The metric by which one is the best.
_SCORE = "accuracy"


class Snapshot(NamedTuple):
    """All that a training needs to continue as if it had not been interrupted.

    Attributes:
        state: parameters, state of the optimizer, step and key. The step is also the position in
            the data: together with the seed it determines the batches to come.
        progress: everything that is not an array, for a JSON file.
    """

    state: TrainState
    progress: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, by step: the last three, and the one with the best accuracy."""

    def __init__(self, folder: Path) -> None:
        """Open them; damaged ones are removed and named on stderr.

        What a killed process left half-written is removed before the next write.

        Raises:
            OSError: if one cannot be read, which does not say that it is damaged.
        """
        self._folder = folder.absolute()
        self._sift()
        self._open()

    @led
    def _sift(self) -> None:
        # Before they are opened, because orbax then reads the metrics of all.
        for folder in self._folder.glob("[0-9]*"):
            if not (folder.name.isdecimal() and folder.is_dir()):
                continue
            if (fault := _fault(folder)) is not None:
                shutil.rmtree(folder)
                print(
                    f"warning: the checkpoint {folder} was damaged ({fault}) and is removed",
                    file=sys.stderr,
                )

    @led
    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        keep = policies.AnyPreservationPolicy(
            [policies.LatestN(_KEPT), policies.BestN(get_metric_fn=_score, n=1)]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep,
            best_fn=_score,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
            # By default all processes write, each its own part.
            multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes={0}),
            create=False,
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, snapshot: Snapshot, *, accuracy: float) -> None:
        """Write a checkpoint, unless this step has one, and delete those that are no longer kept.

        Raises:
            OSError: if it cannot be written; the existing ones are still there.
        """
        self._write(Snapshot(_plain(snapshot.state), snapshot.progress), accuracy)

    @led
    def _write(self, snapshot: Snapshot, accuracy: float) -> None:
        step = int(snapshot.state.step)
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(snapshot.state),
            progress=ocp.args.JsonSave(snapshot.progress),
        )
        folder = self._folder / str(step)
        if not self._folder.is_dir():
            raise OSError(f"{folder} could not be written: {self._folder} is gone")
        # Looked at first: once a writer of tensorstore has failed, the others print tracebacks.
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(snapshot.state))
        free = shutil.disk_usage(self._folder).free
        if free < size:
            raise OSError(
                f"{folder} could not be written: it needs {size / 1e6:.1f} MB, but the disk has "
                f"only {free / 1e6:.1f} MB left"
            )
        try:
            with _quiet():
                self._manager.save(step, args=items, metrics={_SCORE: accuracy})
            write_json(folder / _SUMS, checksums(folder))
        except Exception as error:  # tensorstore's are of several kinds
            # Its other writers may still be at work, and what they leave would take up space.
            with _quiet(), suppress(Exception):
                self._manager.close()
            for left in (folder, *self._folder.glob(f"{step}.orbax-checkpoint-tmp*")):
                shutil.rmtree(left, ignore_errors=True)
            self._open()
            raise OSError(f"{folder} could not be written: {_reason(error)}") from error

    def latest(self, like: TrainState) -> Snapshot | None:
        """Return the newest one.

        Args:
            like: a state of the same shapes.

        Returns:
            The snapshot, its arrays on the host, or None if there is none.

        Raises:
            ValueError: if it is that of another program, with other arrays.
        """
        found = self._newest(like)
        if found is None:
            return None
        leaves, progress = found
        state: TrainState = jax.tree.unflatten(jax.tree.structure(_plain(like)), leaves)
        key = jax.random.wrap_key_data(state.key, impl=jax.random.key_impl(like.key))
        return Snapshot(state._replace(key=key), progress)

    @led
    def _newest(self, like: TrainState) -> tuple[list[np.ndarray], dict[str, Any]] | None:
        """Return the arrays and the progress of the snapshot that `latest` returns."""
        step = self._manager.latest_step()
        return None if step is None else self._read(step, like)

    def _read(self, step: int, like: TrainState) -> tuple[list[np.ndarray], dict[str, Any]]:
        wanted = jax.tree.map(np.asarray, _plain(like))
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(wanted), progress=ocp.args.JsonRestore()
        )
        folder = self._folder / str(step)
        try:
            found: Any = self._manager.restore(step, args=items)
        except Exception as error:  # whatever a difference between the trees may raise
            raise ValueError(f"{folder} does not fit this training: {_reason(error)}") from error
        leaves = jax.tree.leaves(found.state)
        for there, here in zip(leaves, jax.tree.leaves(wanted), strict=True):
            if (there.shape, there.dtype) != (here.shape, here.dtype):
                raise ValueError(
                    f"{folder} does not fit this training: it has an array of {there.dtype} "
                    f"{there.shape}, expected {here.dtype} {here.shape}"
                )
        return leaves, found.progress


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep orbax from logging pages of text about an error that is raised anyway."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _reason(error: Exception) -> str:
    """Return the cause, with which tensorstore's messages end, but for details in brackets."""
    return str(error).split("\n", 1)[0].split(" [", 1)[0].rsplit(": ", 1)[-1]


def _score(metrics: dict[str, float]) -> float:
    return metrics[_SCORE]


def _plain(state: TrainState) -> TrainState:
    """Replace the key by its bits, and bring everything to the host."""
    return jax.device_get(state._replace(key=jax.random.key_data(state.key)))


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _SUMS)
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def _fault(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, or None if nothing is."""
    try:
        wanted = read_json(folder / _SUMS)
    except FileNotFoundError:
        return f"{_SUMS} is missing"
    except ValueError as error:
        return str(error)
    found = checksums(folder)
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if wanted.get(name) != found[name]:
            return f"{name} has another checksum"
    return None
