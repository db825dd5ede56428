"""Train one network by one method."""

import sys
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.sharding import Mesh

from experiments import devices, methods, models, runs
from experiments.checkpoints import Checkpoints, Snapshot
from experiments.config import ORDERS, Config
from experiments.data import Dataset, batch_indices, check_count
from experiments.files import read_json
from experiments.interruption import ending
from experiments.landscape import norms
from experiments.loading import load_for
from experiments.metrics import Log
from experiments.models import Params
from experiments.processes import leads, led, start
from experiments.session import Session, check_converging
from experiments.wrappers import refusing, with_accuracy
from hessjax import TrainState, check_apply, train_step
from hessjax._placement import replicated
from hessjax.objective import Apply, Objective
from hessjax.training import Step

T = TypeVar("T")

# An epoch may be short, and a checkpoint takes a few tenths of a second.
_LEAST_BETWEEN_CHECKPOINTS = 100
# For apply_if_finite: refuse every update that is not finite, however many there were.
_ALWAYS = np.iinfo(np.int32).max


@ending("--resume continues from what was kept")
def main(
    config: tyro.conf.OmitArgPrefixes[Config],
    *,
    out: Path | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    watch: int = 0,
    num_devices: int | None = None,
    distributed: bool = False,
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
) -> None:
    """Train one network and save it in a folder.

    The folder holds config.json, metrics.jsonl, weights.npz, training.json and checkpoints. On
    Ctrl-C, SIGTERM or a closed terminal, the current step is finished and saved; --resume continues
    from there, or from the last checkpoint, to the same result as without the interruption. For
    example:

        python -m experiments.train --data digits --method hessian --strength 1 --out runs/first
        python -m experiments.evaluate runs/first

    Args:
        config: the settings that determine the result.
        out: the folder; runs/DATA/METHOD/seed-SEED if not given.
        resume: continue from the newest intact checkpoint, or start if there is none. Without it, a
            run of the same settings is trained anew, and its measurements are deleted.
        checkpoint_every: steps between checkpoints; an epoch, but at least 100, if not given.
        watch: during training, also measure gradient and curvature at this many test images.
        num_devices: devices that share each batch; all if not given, but only one on a CPU.
        distributed: run as one of several processes with this same command, as announced by Slurm,
            Open MPI, Kubernetes, a TPU pod or the environment; see experiments/README.md.
        data_dir: folder of prepared data sets; $HESSJAX_DATA or ~/.cache/hessjax if not given.
        manual_dir: folder with the data set's original files, if they cannot be downloaded.
    """
    if distributed:
        start()
    config = config.resolved()
    path = out or Path("runs", config.data.replace("/", "-"), config.name, f"seed-{config.seed}")
    mesh = devices.mesh(num_devices)
    dataset = load_for(config, data_dir, manual_dir)
    training = train(
        config,
        dataset,
        path,
        resume=resume,
        checkpoint_every=checkpoint_every,
        watch=watch,
        mesh=mesh,
    )
    print(f"trained {training['steps']} steps in {training['seconds']:.0f} s: {path}")


def train(
    config: Config,
    dataset: Dataset,
    path: Path,
    *,
    resume: bool = False,
    checkpoint_every: int | None = None,
    watch: int = 0,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Train a network and save it in a folder.

    Args:
        config: a resolved configuration.
        dataset: its data.
        path: the run's folder, see `experiments.runs`.
        resume: continue from the newest intact checkpoint there, if there is one.
        checkpoint_every: steps between checkpoints; an epoch, but at least 100, if not given.
        watch: number of test images, the first ones, over which each line of the metrics also gives
            the means of ‖∇f‖₂ and ‖∇²f‖ (from below, by five Lanczos products); 0 for none. The
            time this takes is not part of ``seconds_per_step``.
        mesh: devices that share each batch, the default one if not given; they change results by
            rounding only.

    Returns:
        What ``training.json`` holds: ``steps`` taken; ``completed``, False after an interruption;
        ``seconds`` in all; ``compile_seconds``, the first step's; ``seconds_per_step``, the median
        of the others, None if there were none. The last two only count since the last resumption.

    Raises:
        ValueError: if a setting is out of range, or the folder holds another run.
        OSError: if another process is using the folder, or it cannot be written to.
        DivergedError: if loss or gradient is not finite for ten steps in a row; the folder then
            keeps the weights from before them, and lists these steps and their examples.
        Interrupted: after SIGINT, SIGTERM or SIGHUP, once the step is finished and saved.
    """
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1, got {checkpoint_every}")
    if watch < 0:
        raise ValueError(f"watch must be at least 0, got {watch}")
    check_count("watch", watch or None, dataset)
    images, labels = dataset.train_images, dataset.train_labels
    apply, step, state = first_step(config, dataset)
    batch_size, steps_per_epoch = _filled_in(config.batch_size), _steps_per_epoch(config, dataset)

    def batch(index: np.ndarray) -> tuple:
        found = images[index], labels[index]
        return found if mesh is None else devices.sharded(mesh, found)

    def look(params: Params) -> dict[str, float]:
        if not watch:
            return {}
        shown = dataset.test_images[:watch], dataset.test_labels[:watch]
        found = norms(apply, params, *shown, key=jax.random.key(config.seed), mesh=mesh)
        gradient, hessian = found["gradient_norm"].mean(), found["curvature"].mean()
        return {"test_gradient_norm": float(gradient), "test_hessian_norm": float(hessian)}

    runs.check_free(path, config)
    with runs.locked(path):
        if resume and runs.is_trained(path, config):
            return led(read_json)(path / "training.json")
        log, seconds = Log(path / runs.METRICS), 0.0
        found = _newest(path, state) if resume else None
        if found is None:
            if leads() and (path / "config.json").is_file():
                print(f"{path}: training anew; what was there is deleted", file=sys.stderr)
            runs.start(path, config, runs.architecture(config, dataset))
        else:
            check_converging(path)
            runs.resume(path)
            # Copied, because steps donate their buffers.
            state, seconds = jax.tree.map(jnp.array, found.state), found.progress["seconds"]
            log.go_on(found.progress["log"])
            if leads():
                print(f"{path}: continuing after step {int(state.step)}", file=sys.stderr)
        return Session(
            path=path,
            config=config,
            state=replicated(mesh, state),
            step=step,
            batch=batch,
            indices=partial(
                batch_indices, num_examples=len(labels), batch_size=batch_size, seed=config.seed
            ),
            total=_filled_in(config.epochs) * steps_per_epoch,
            steps_per_epoch=steps_per_epoch,
            checkpoint_every=checkpoint_every or max(steps_per_epoch, _LEAST_BETWEEN_CHECKPOINTS),
            log=log,
            look=look,
            checkpoints=Checkpoints(path / runs.CHECKPOINTS),
            before=seconds,
        ).run()


def _newest(path: Path, like: TrainState) -> Snapshot | None:
    folder = path / runs.CHECKPOINTS
    return Checkpoints(folder).latest(like) if led(folder.is_dir)() else None


def first_step(
    config: Config, dataset: Dataset, *, accuracy: bool = True
) -> tuple[Apply, Step, TrainState]:
    """Return a training's network, its step function, and the state that its first step takes.

    Args:
        config: with its gaps filled in.
        dataset: what it trains on.
        accuracy: whether the step also measures the accuracy on its clean batch.

    Raises:
        ValueError: if a setting does not fit the data.
    """
    check_fits(config, dataset)
    steps_per_epoch = _steps_per_epoch(config, dataset)
    total = _filled_in(config.epochs) * steps_per_epoch
    network = models.create(**runs.architecture(config, dataset), seed=config.seed)
    apply, params = models.functional(network)
    check_apply(apply, params, dataset.train_images)
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, total))
    optimizer = optax.apply_if_finite(optimizer, max_consecutive_errors=_ALWAYS)
    objective = _objective(config, apply, steps_per_epoch)
    if accuracy:
        objective = with_accuracy(apply, objective)
    step = train_step(objective, optimizer)
    return apply, step, TrainState.create(params, optimizer, jax.random.key(config.seed))


def check_fits(config: Config, dataset: Dataset) -> None:
    """Raise unless there are enough examples for a training with these settings.

    Raises:
        ValueError: if a batch has more examples than there are, or no step has a penalty.
    """
    count, batch_size = len(dataset.train_labels), _filled_in(config.batch_size)
    if count < batch_size:
        raise ValueError(
            f"batch_size must be at most the {count} training examples, got {batch_size}"
        )
    total = _filled_in(config.epochs) * _steps_per_epoch(config, dataset)
    if config.every > total:
        raise ValueError(
            f"every must be at most the {total} steps of the training, got {config.every}"
        )


def _steps_per_epoch(config: Config, dataset: Dataset) -> int:
    return len(dataset.train_labels) // _filled_in(config.batch_size)


def _objective(config: Config, apply: Apply, steps_per_epoch: int) -> Objective:
    warmup = round(_filled_in(config.warmup_epochs) * steps_per_epoch)
    setting = methods.Setting(
        strength=config.strength or 0.0,
        step=config.step or 0.0,
        weight=config.weight or 0.0,
        order=ORDERS[config.norm],
        ramp=optax.linear_schedule(0, 1, warmup) if warmup else optax.constant_schedule(1),
        every=config.every,
        parts=config.parts,
        num_steps=config.num_steps,
    )
    return refusing(methods.find(config.method).build(apply, setting))


def _filled_in(value: T | None) -> T:
    if value is None:
        raise ValueError("the configuration has gaps: call resolved() first")
    return value


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.train")
