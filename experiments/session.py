"""A training in progress: its loop, and what it saves in the run's folder."""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from experiments import runs
from experiments.checkpoints import Checkpoints, Snapshot
from experiments.config import Config
from experiments.files import read_json, write_json
from experiments.interruption import Interrupted, noted
from experiments.laps import Laps
from experiments.metrics import Log
from experiments.models import Params
from experiments.processes import heard, leads, led, progress_bar
from hessjax import TrainState
from hessjax.training import Step

_LOG_EVERY = 20
# This many steps in a row without a finite loss and gradient end a training.
_MOST_REFUSED = 10
_DIVERGED = "diverged.json"


class DivergedError(ArithmeticError):
    """Loss or gradient is no longer finite; the run's folder keeps the weights from before."""


def check_converging(path: Path) -> None:
    """Raise if the training in a folder diverged: continuing would not change that.

    Raises:
        DivergedError: naming the steps.
    """
    steps = led(_refused)(path)
    if steps:
        raise DivergedError(
            f"training diverged: loss or gradient was not finite in steps {steps[0]} to "
            f"{steps[-1]}; {path}/{_DIVERGED} names their examples, and the weights "
            "before them are kept. A smaller learning rate or strength may help"
        )


def _refused(path: Path) -> list[int]:
    return read_json(path / _DIVERGED)["steps"] if (path / _DIVERGED).is_file() else []


@dataclass
class Session:
    """A training from where it stands to its end or its interruption.

    Attributes:
        path: the run's folder.
        config: its configuration.
        state: after the steps so far; its optimizer is wrapped by `optax.apply_if_finite`.
        step: from `hessjax.train_step`.
        batch: from the indices of examples to the batch of them.
        indices: from a step's number, counted from 0, to the indices of its examples.
        total: steps of the whole training.
        steps_per_epoch: for the metrics.
        checkpoint_every: steps between checkpoints.
        log: of its metrics.
        look: from the parameters to what else a line of the metrics should contain.
        checkpoints: where it is saved.
        before: seconds that earlier sessions took.
    """

    path: Path
    config: Config
    state: TrainState
    step: Step
    batch: Callable[[np.ndarray], tuple]
    indices: Callable[[int], np.ndarray]
    total: int
    steps_per_epoch: int
    checkpoint_every: int
    log: Log
    look: Callable[[Params], dict[str, float]]
    checkpoints: Checkpoints
    before: float

    def run(self) -> dict[str, Any]:
        """Take the remaining steps; returns and raises as `experiments.train.train` does."""
        # A lap in which the lazy penalty is due more often than in others takes longer.
        laps = Laps(first := int(self.state.step), alike=_LOG_EVERY % self.config.every == 0)
        training: dict[str, Any] = {"completed": False, "steps": first}
        # A step donates its old buffers: what an interruption should leave is kept on the host.
        kept = jax.device_get(self.state.params)
        try:
            with noted() as signals, self._bar() as bar:
                bar.update(first)
                for number in range(first + 1, self.total + 1):
                    self._advance(number)
                    writes = number in {1, self.total} or len(self.log) >= _LOG_EVERY
                    saves = number % self.checkpoint_every == 0 or number == self.total
                    stop = heard(signals, now=writes or saves)
                    # The first step is awaited by itself, because it is the one that compiles.
                    if not (writes or saves or stop) and number > first + 1:
                        continue
                    refused = self.log.refused()
                    laps.mark(number)
                    kept, training["steps"] = jax.device_get(self.state.params), number
                    if writes:
                        with laps.paused():
                            looks = self.look(self.state.params)
                        line = self.log.write((number - 1) // self.steps_per_epoch, looks)
                        values = {name: f"{value:.3g}" for name, value in line.items()}
                        bar.set_postfix(values, refresh=False)
                    bar.update(number - bar.n)
                    if len(refused) >= _MOST_REFUSED:
                        self._give_up(refused, laps)
                    if saves or stop:
                        self._save(laps, needed=bool(stop))
                    if stop and number < self.total:
                        raise Interrupted(stop)
                # A signal during the last step ends the program, but the training is complete.
                stop = heard(signals, now=True)
            training["completed"] = True
        finally:
            training["seconds"] = self.before + laps.seconds
            training["compile_seconds"] = laps.first
            training["seconds_per_step"] = laps.seconds_per_step
            if training["completed"]:
                led(runs.finish)(self.path, kept, training)
            elif leads():  # alone, because the others may be at another point
                runs.finish(self.path, kept, training)
        if stop:
            raise Interrupted(stop)
        return training

    def _advance(self, number: int) -> None:
        self.state, metrics = self.step(self.state, self.batch(self.indices(number - 1)))
        refused = optax.tree.get(self.state.opt_state, "notfinite_count")
        # Copied, because the next step donates it.
        self.log.add(number, metrics, jnp.copy(refused))

    def _save(self, laps: Laps, *, needed: bool) -> None:
        """Write a checkpoint; one that is not needed right now may fail, say on a full disk."""
        progress = {
            "config": dataclasses.asdict(self.config),
            "seconds": self.before + laps.seconds,
            "log": self.log.content(),
        }
        try:
            with laps.paused():
                self.checkpoints.save(Snapshot(self.state, progress), accuracy=self.log.accuracy)
        except OSError as error:
            if needed:
                raise
            print(f"warning: {error}; the training continues without it", file=sys.stderr)

    def _give_up(self, refused: list[int], laps: Laps) -> None:
        """Record which steps and examples had no finite loss or gradient, and stop."""
        examples = {str(number): self.indices(number - 1).tolist() for number in refused}
        led(runs.check_there)(self.path)
        led(write_json)(self.path / _DIVERGED, {"steps": refused, "examples": examples})
        self._save(laps, needed=False)
        check_converging(self.path)

    def _bar(self) -> tqdm:
        """Return a progress bar that counts images."""
        return progress_bar(
            total=self.total,
            desc=f"{self.config.data} {self.config.name} seed {self.config.seed}",
            unit=" images",
            unit_scale=self.config.batch_size or 1,
        )
