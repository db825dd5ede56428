"""The folder of a run: what a training leaves there for everything after it to read.

``config.json`` (what determined the result, and where it was made), ``metrics.jsonl`` (a line of
means every few steps), ``checkpoints``, ``weights.npz``, ``training.json`` (how it ended),
``evaluation.json`` and ``landscape.npz``; ``diverged.json`` if the training did. ``lock`` keeps
other processes out.
"""

import dataclasses
import hashlib
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from filelock import FileLock, Timeout

from experiments import models, provenance
from experiments.config import Config
from experiments.data import Dataset
from experiments.files import UNFINISHED, read_arrays, read_json, write_arrays, write_json
from experiments.processes import led
from hessjax.objective import Apply

_CONFIG = "config.json"
CHECKPOINTS, METRICS = "checkpoints", "metrics.jsonl"
_TRAINED = (METRICS, "weights.npz", "training.json", "diverged.json")
# Files with measurements of the weights, as patterns.
_MEASURED = ("evaluation.json", "landscape.npz", "distances.npz", "apgd.json", "auto_attack*")
# Seconds after which a half-written file is one that a killed process left.
_OLD = 3600
_LOCK = "lock"


class Run(NamedTuple):
    """A trained network.

    Attributes:
        path: its folder.
        config: what it was trained with.
        apply: ``(params, x) -> logits`` of one example.
        params: its weights.
        origin: commit, versions and device of its training.
        training: how the training went, as in ``training.json``.
        architecture: the arguments of `experiments.models.create`.
    """

    path: Path
    config: Config
    apply: Apply
    params: models.Params
    origin: dict[str, Any]
    training: dict[str, Any]
    architecture: dict[str, Any]

    @property
    def logits_fn(self) -> jax.tree_util.Partial:
        """The network as attacks take it; those of one architecture share compiled programs."""
        return jax.tree_util.Partial(self.apply, self.params)

    @property
    def weights(self) -> str:
        """A checksum of the weights: tells apart successive trainings in the same folder."""
        digest = hashlib.sha256()
        for name in sorted(self.params):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.params[name]).tobytes())
        return digest.hexdigest()[:12]


def architecture(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Return the arguments of `experiments.models.create` for a configuration."""
    mean, std = models.pixel_statistics(dataset.train_images)
    return {
        "name": config.model,
        "activation": config.activation,
        "beta": config.beta,
        "precision": config.precision,
        "input_shape": dataset.train_images.shape[1:],
        "num_classes": dataset.num_classes,
        "mean": mean,
        "std": [value or 1.0 for value in std],
    }


@led
def start(path: Path, config: Config, network: dict[str, Any]) -> None:
    """Begin a run's folder, or begin it anew if it holds a run of the same configuration.

    Raises:
        ValueError: if the folder holds something else.
    """
    check_free(path, config)
    for name in _TRAINED:
        (path / name).unlink(missing_ok=True)
    _forget(path)
    shutil.rmtree(path / CHECKPOINTS, ignore_errors=True)
    content = {
        "config": dataclasses.asdict(config),
        "network": network,
        **provenance.collect(),
    }
    write_json(path / _CONFIG, content)


@led
def check_free(path: Path, config: Config) -> None:
    """Raise unless the folder is empty, missing, or holds a run of this configuration.

    Raises:
        ValueError: if it holds something else, naming that.
    """
    # A process that was killed may have left the beginning of a file.
    there = [file.name for file in path.iterdir()] if path.is_dir() else []
    begun = any(name != _LOCK and not name.endswith(UNFINISHED) for name in there)
    if begun and _CONFIG not in there:
        raise ValueError(f"{path} holds something other than a run: name another folder")
    if begun and (other := read_config(path)) != config:
        before, after = dataclasses.asdict(other), dataclasses.asdict(config)
        changed = [f"{n} {before[n]}, not {v}" for n, v in after.items() if before[n] != v]
        raise ValueError(
            f"{path} holds a run with other settings ({'; '.join(changed)}): "
            "delete it or name another folder"
        )


@led
def resume(path: Path) -> None:
    """Record what continues a run, if it is another command, commit, version or device.

    Measurements of the weights so far are deleted: they will not apply to the final weights.
    """
    _forget(path)
    content = _read(path)
    whole = {**content, **provenance.extended(content)}
    if whole != content:
        write_json(path / _CONFIG, whole)


def _forget(path: Path) -> None:
    for pattern in _MEASURED:
        for file in path.glob(pattern):
            file.unlink()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out of a folder.

    Raises:
        OSError: if another process is working in it, or it cannot be created.
    """
    lock = FileLock(path / _LOCK, timeout=0)
    _take(lock, path)
    try:
        yield
    finally:
        lock.release()


@led
def _take(lock: FileLock, path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout as error:
        raise OSError(
            f"another process is working in {path}: wait for it to end, or name another folder"
        ) from error
    for left in path.glob(f"*{UNFINISHED}"):
        with suppress(FileNotFoundError):  # whoever writes it may have finished just now
            if left.stat().st_mtime < time.time() - _OLD:
                left.unlink()


def finish(path: Path, params: models.Params, training: dict[str, Any]) -> None:
    """Save the weights and how the training ended.

    Raises:
        OSError: if the folder was moved or deleted meanwhile, or cannot be written to.
    """
    check_there(path)
    write_arrays(path / "weights.npz", params)
    write_json(path / "training.json", training)


def check_there(path: Path) -> None:
    """Raise if the folder of a training is no longer where it was.

    Raises:
        OSError: saying so.
    """
    if not (path / _CONFIG).is_file():
        raise OSError(f"{path} was moved or deleted during the training, which ends here")


def read_config(path: Path) -> Config:
    """Return the configuration of a run.

    Raises:
        ValueError: if the folder holds no run, or one of another version of this program.
    """
    return _config(path, _read(path))


@led
def is_trained(path: Path, config: Config) -> bool:
    """Return whether the folder holds a completed training with this configuration."""
    try:
        if not (path / "weights.npz").is_file() or read_config(path) != config:
            return False
        return bool(read_json(path / "training.json")["completed"])
    except (OSError, ValueError, KeyError):
        return False


def load(path: Path) -> Run:
    """Read a trained network.

    Raises:
        ValueError: if the folder holds no run, or not the weights of one.
    """
    content, params, training = _left(path)
    config = _config(path, content)
    try:
        network = content["network"]
        model = models.create(**network, seed=config.seed)
        apply, template = models.functional(model)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}/config.json names no network ({error}): train it again"
        ) from error
    except ValueError as error:
        raise ValueError(f"{error}: delete {path} to train it again") from error
    shapes = {name: value.shape for name, value in params.items()}
    expected = {name: value.shape for name, value in template.items()}
    if shapes != expected:
        raise ValueError(f"{path}/weights.npz has the arrays {shapes}, expected {expected}")
    params = jax.tree.map(jax.numpy.asarray, params)
    origin = provenance.combined(content)
    return Run(path, config, apply, params, origin, training, network)


@led
def _left(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """Read what a training left: config.json with a valid configuration, weights, how it ended."""
    content = _read(path)
    _config(path, content)
    for name in ("weights.npz", "training.json"):
        if not (path / name).is_file():
            raise ValueError(f"{path} has no {name}: its training kept nothing, train it again")
    try:
        params, training = read_arrays(path / "weights.npz"), read_json(path / "training.json")
    except ValueError as error:
        raise ValueError(f"{error}: delete {path} to train it again") from error
    if not training.get("completed"):
        print(f"warning: the training of {path} was not completed", file=sys.stderr)
    return content, params, training


def _read(path: Path) -> dict[str, Any]:
    file = path / _CONFIG
    if not file.is_file():
        raise ValueError(
            f"{path} is not a run directory: it has no config.json, "
            "which python -m experiments.train writes"
        )
    return read_json(file)


def _config(path: Path, content: dict[str, Any]) -> Config:
    try:
        return Config(**content["config"]).concise()
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}/config.json holds settings other than a run's: {error}"
        ) from error
