"""Train one network by one method; the loop."""

import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median
from types import FrameType
from typing import Any, TypeVar

import jax
import numpy as np
import optax
import tyro
from tqdm import tqdm

from experiments import methods, models, runs
from experiments.config import ORDERS, Config
from experiments.data import Dataset, batches, load, validation_split
from hessjax import TrainState, check_batch, train_step
from hessjax.objective import Apply, Objective

T = TypeVar("T")

_LOG_EVERY = 20
# For apply_if_finite: refuse every update that is not finite, however many there were.
_ALWAYS = np.iinfo(np.int32).max


class DivergedError(ArithmeticError):
    """The loss or its gradient is no number any more; the run's folder keeps the last that was."""


def main(
    config: tyro.conf.OmitArgPrefixes[Config],
    *,
    out: Path | None = None,
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
) -> None:
    """Train one network and leave it in a folder.

    The folder holds config.json, metrics.jsonl, weights.npz and training.json. Ctrl-C keeps what
    was trained so far. For example:

        python -m experiments.train --data digits --method hessian --strength 1 --out runs/first
        python -m experiments.evaluate runs/first

    Args:
        config: what decides the result.
        out: the folder; runs/DATA/METHOD/seed-SEED if not given.
        data_dir: folder of prepared data sets, $HESSJAX_DATA or ~/.cache/hessjax if not given.
        manual_dir: folder of the data set's original files, where they cannot be downloaded.
    """
    try:
        config = config.resolved()
        path = out or Path(
            "runs", config.data.replace("/", "-"), config.name, f"seed-{config.seed}"
        )
        dataset = load_for(config, data_dir, manual_dir)
        training = train(config, dataset, path)
    except (ValueError, ImportError, OSError, DivergedError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    if not training["completed"]:
        print(f"interrupted after step {training['steps']}: its weights are in {path}")
        sys.exit(130)
    print(f"trained {training['steps']} steps in {training['seconds']:.0f} s: {path}")


def load_for(
    config: Config, data_dir: Path | None = None, manual_dir: Path | None = None
) -> Dataset:
    """Load the data of a configuration, its validation split if it has one, and check them.

    Raises:
        ValueError: if labels or pixels are out of range, or as `experiments.data.load`.
    """
    dataset = load(config.data, data_dir=data_dir, manual_dir=manual_dir)
    if config.validation:
        dataset = validation_split(dataset, config.validation)
    check_batch((dataset.train_images, dataset.train_labels), num_classes=dataset.num_classes)
    check_batch((dataset.test_images, dataset.test_labels), num_classes=dataset.num_classes)
    return dataset


def train(config: Config, dataset: Dataset, path: Path) -> dict[str, Any]:
    """Train a network and leave it in a folder.

    Args:
        config: a resolved configuration.
        dataset: its data.
        path: the run's folder, see `experiments.runs`.

    Returns:
        What ``training.json`` holds: ``steps`` taken; ``completed``, False after Ctrl-C;
        ``seconds`` in all; ``compile_seconds``, the first step's; ``seconds_per_step``, the median
        of the others, None if there were none.

    Raises:
        ValueError: if a setting is out of range, or the folder holds another run.
        DivergedError: at a loss that is not finite; the folder then keeps the last finite
            weights.
    """
    epochs, batch_size = _given(config.epochs), _given(config.batch_size)
    images, labels = dataset.train_images, dataset.train_labels
    steps_per_epoch = len(labels) // batch_size
    if not steps_per_epoch:
        raise ValueError(
            f"batch_size must be at most the {len(labels)} training examples, got {batch_size}"
        )
    total = epochs * steps_per_epoch
    architecture = runs.network(config, dataset)
    apply, params = models.functional(models.create(**architecture, seed=config.seed))
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, total))
    optimizer = optax.apply_if_finite(optimizer, max_consecutive_errors=_ALWAYS)
    step = train_step(_objective(config, apply, steps_per_epoch), optimizer)
    state = TrainState.create(params, optimizer, jax.random.key(config.seed))
    runs.start(path, config, architecture)

    training: dict[str, Any] = {"completed": False, "steps": 0}
    # A step gives its old buffers away: what an interruption is to leave lies on the host.
    kept = jax.device_get(state.params)
    waiting: list[dict[str, jax.Array]] = []
    laps: list[tuple[int, float]] = []
    begun = lap = time.perf_counter()
    numbered = (
        (epoch, batch)
        for epoch in range(epochs)
        for batch in batches(images, labels, batch_size, seed=config.seed, epoch=epoch)
    )
    try:
        with _interrupt() as interrupted, _bar(config, total * batch_size) as bar:
            for taken, (epoch, batch) in enumerate(numbered, start=1):
                state, metrics = step(state, batch)
                waiting.append(metrics)
                # The first step is awaited by itself, for it is the one that compiles.
                if taken not in {1, total} and len(waiting) < _LOG_EVERY and not interrupted:
                    continue
                line = _means(jax.device_get(waiting), first=training["steps"] + 1)
                laps.append((len(waiting), (now := time.perf_counter()) - lap))
                lap = now
                training["steps"], kept = taken, jax.device_get(state.params)
                runs.append_metrics(path, {"step": taken, "epoch": epoch, **line})
                bar.set_postfix({n: f"{value:.3g}" for n, value in line.items()}, refresh=False)
                bar.update(len(waiting) * batch_size)
                waiting = []
                if interrupted:
                    break
        training["completed"] = training["steps"] == total
    finally:
        training["seconds"] = time.perf_counter() - begun
        training["compile_seconds"] = laps[0][1] if laps else None
        training["seconds_per_step"] = median(t / n for n, t in laps[1:]) if laps[1:] else None
        runs.finish(path, kept, training)
    return training


def _objective(config: Config, apply: Apply, steps_per_epoch: int) -> Objective:
    warmup = round(_given(config.warmup_epochs) * steps_per_epoch)
    setting = methods.Setting(
        strength=config.strength or 0.0,
        step=config.step or 0.0,
        order=ORDERS[config.norm],
        ramp=optax.linear_schedule(0, 1, warmup) if warmup else optax.constant_schedule(1),
        every=config.every,
        parts=config.parts,
    )
    return methods.with_accuracy(apply, methods.find(config.method).build(apply, setting))


def _means(metrics: Sequence[Mapping[str, np.ndarray]], *, first: int) -> dict[str, float]:
    """Average the metrics of some steps, the first of which has this number."""
    for number, step in enumerate(metrics, start=first):
        wrong = [f"{name} is {value}" for name, value in step.items() if not np.isfinite(value)]
        if wrong:
            raise DivergedError(
                f"training diverged at step {number}: {', '.join(wrong)}; the folder keeps finite "
                "weights. A smaller learning rate or strength may help"
            )
    # Not every step of a lazy objective measures everything.
    names = dict.fromkeys(name for step in metrics for name in step)
    return {name: mean(float(s[name]) for s in metrics if name in s) for name in names}


def _bar(config: Config, total: int) -> tqdm:
    """Return a progress bar in images that is silent when not on a terminal."""
    return tqdm(
        total=total,
        desc=f"{config.data} {config.name} seed {config.seed}",
        unit=" images",
        unit_scale=True,
        disable=None,
        leave=False,
        dynamic_ncols=True,
    )


@contextmanager
def _interrupt() -> Iterator[list[int]]:
    """Note Ctrl-C in a list, so that the step is finished and kept; a second one stops at once."""
    noted: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, before)

    if threading.current_thread() is not threading.main_thread():
        yield noted  # only the main thread may set handlers, and only it is interrupted
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _given(value: T | None) -> T:
    if value is None:
        raise ValueError("the configuration has gaps: call resolved() first")
    return value


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.train")
