"""What a step of each method of a comparison costs, measured separately from the trainings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from experiments.benchmarks import harness, records
from experiments.config import Config, parse_method
from experiments.data import Dataset
from experiments.files import write_json
from experiments.interruption import ending
from experiments.loading import load_for
from experiments.reading import STEP_TIMES, read, setup_of
from experiments.train import first_step
from hessjax.objective import Metrics


@ending("nothing is written")
def main(
    directory: tyro.conf.Positional[Path],
    *,
    repeats: int = 20,
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
) -> None:
    """Time the steps of a comparison's methods in turns, for its table and its figure of costs.

    A training's own time per step is only reliable if its machine was otherwise idle, and trainings
    that ran at different times, or side by side, cannot be compared. Here the methods take turns:
    in each round, every method takes a step of its training, all on the same batch. The accuracy on
    clean images that a training logs is left out: methods that evaluate the network there anyway
    get it for nothing, PGD training would pay for it. The times are written to step_times.json in
    the folder, where `python -m experiments.report` finds them. For example:

        python -m experiments.benchmarks.step_times runs/study/mnist/headline
        python -m experiments.report runs/study/mnist/headline

    Args:
        directory: the folder of the comparison; the folders of its runs need not be there.
        repeats: measurements of each step, at least 10.
        data_dir: folder of prepared data sets; $HESSJAX_DATA or ~/.cache/hessjax if not given.
        manual_dir: folder with the data set's original files, if they cannot be downloaded.
    """
    harness.check_repeats(repeats)
    comparison = read(directory)
    configs = _configs(comparison)
    dataset = load_for(next(iter(configs.values())), data_dir, manual_dir)
    calls = {name: _stepping(config, dataset) for name, config in configs.items()}
    timings = harness.measure(calls, repeats=repeats)
    seconds = {name: t.times(1 / configs[name].every)._asdict() for name, t in timings.items()}
    content = {**records.conditions(), "setup": comparison["setup"], "seconds": seconds}
    write_json(directory / STEP_TIMES, content)
    for name, times in seconds.items():
        print(f"{name}: {1e3 * times['median']:.1f} ms")
    print(f"written: {directory / STEP_TIMES}")


def _configs(comparison: dict[str, Any]) -> dict[str, Config]:
    """Return how each method was trained, by the name of its folder."""
    if "setup" not in comparison:
        raise ValueError("the comparison does not record its setup: run it again")
    configs: dict[str, Config] = {}
    for run in comparison["runs"]:
        numbers = (f":{run[name]}" for name in ("strength", "step") if run[name] is not None)
        method = ",".join(["".join([run["method"], *numbers]), *run.get("options", ())])
        config = Config(**setup_of(comparison), **parse_method(method), seed=run["seed"]).resolved()
        configs.setdefault(Path(run["path"]).parent.name, config)
    return configs


def _stepping(config: Config, dataset: Dataset) -> Callable[[], Metrics]:
    """Return a call that takes a step of a training, or a whole cycle if the penalty is lazy."""
    _, step, state = first_step(config, dataset, accuracy=False)
    examples = slice(config.batch_size)
    batch = jnp.asarray(dataset.train_images[examples]), jnp.asarray(dataset.train_labels[examples])
    current = [jax.block_until_ready(state)]

    def call() -> Metrics:
        metrics: Metrics = {}
        for _ in range(config.every):
            current[0], metrics = step(current[0], batch)
        return metrics

    return call


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.step_times")
