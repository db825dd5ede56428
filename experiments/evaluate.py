"""Evaluate a trained network: clean accuracy, accuracy under attack, gradient and curvature."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from experiments import auto, devices, pgd, runs
from experiments.config import ORDERS, Norm, kind_of_images
from experiments.interruption import ending
from experiments.loading import load_for
from experiments.processes import led, start
from experiments.recipes import chosen_radii


@ending()
def main(
    run: tyro.conf.Positional[Path],
    *,
    attack: Literal["pgd", "auto"] = "pgd",
    norm: Norm | None = None,
    epsilon: tuple[float, ...] | None = None,
    num_steps: int | None = None,
    num_restarts: int | None = None,
    version: Literal["standard", "plus"] | None = None,
    num_examples: int | None = None,
    batch_size: int | None = None,
    num_devices: int | None = None,
    distributed: bool = False,
    data_dir: Path | None = None,
) -> None:
    """Attack a trained network on the test set and write what it withstood into its folder.

    The attack pgd is PGD with cross-entropy, then with the DLR loss on what withstood it; it writes
    evaluation.json, and landscape.npz, which experiments.report draws. The attack auto is
    AutoAttack, the strongest available, with a verdict on whether the result can be trusted; it
    writes auto_attack.json and .npz. Both continue where an interrupted call stopped. New radii are
    added to those that are there; results of other settings (steps, restarts, version, number of
    examples) are replaced. For example:

        python -m experiments.evaluate runs/first --norm l2 --epsilon 0.5 1.0
        python -m experiments.evaluate runs/first --attack auto --norm l2 --epsilon 1.5

    Args:
        run: the folder that experiments.train wrote.
        attack: pgd or auto.
        norm: l2 or linf; both if not given.
        epsilon: radii of the balls, pixels in [0, 1]; the data set's if not given.
        num_steps: steps of each PGD attack; 40 if not given.
        num_restarts: random starts of each PGD attack; 1 if not given.
        version: for AutoAttack: standard, or plus with restarts; standard if not given.
        num_examples: for AutoAttack: attack only this many images, the first of the test set.
        batch_size: for AutoAttack: examples at a time; it does not change results.
        num_devices: devices that share each batch; all if not given, but only one on a CPU.
        distributed: run as one of several processes with this same command, as announced by Slurm,
            Open MPI, Kubernetes, a TPU pod or the environment; see experiments/README.md.
        data_dir: folder of prepared data sets; $HESSJAX_DATA or ~/.cache/hessjax if not given.
    """
    others = _given(version=version, num_examples=num_examples, batch_size=batch_size)
    if attack == "auto":
        others = _given(num_steps=num_steps, num_restarts=num_restarts)
    for name in others:
        raise ValueError(f"{name} does not apply to the attack {attack}: leave it out")
    if distributed:
        start()
    data = led(lambda: runs.read_config(run).data)()
    radii = _radii(data, norm, epsilon)
    mesh = devices.mesh(num_devices)
    with runs.locked(run):
        # Not before: another process may train it further.
        loaded = runs.load(run)
        dataset = load_for(loaded.config, data_dir)
        if attack == "auto":
            settings = auto.settings(version or "standard", num_examples, loaded.config.seed)
            for name, values in radii.items():
                if values:
                    found = auto.evaluate(
                        loaded,
                        dataset,
                        norm=name,
                        radii=values,
                        attack=settings,
                        batch_size=batch_size,
                        mesh=mesh,
                    )
                    print(auto.report(found, name, values))
            print(f"written: {run / 'auto_attack.json'}")
        else:
            settings = pgd.settings(**_given(num_steps=num_steps, num_restarts=num_restarts))
            found = pgd.evaluate(loaded, dataset, radii, settings, keep=True, mesh=mesh)
            print(pgd.report(found, kind_of_images(loaded.config.validation)))
            print(f"written: {run / 'evaluation.json'}")


def _radii(
    data: str, norm: Norm | None, epsilon: Sequence[float] | None
) -> dict[str, tuple[float, ...]]:
    """Return what `chosen_radii` returns, for one norm alone, or for both if none is named."""
    if norm is not None:
        others = {other: () for other in ORDERS if other != norm}
        return chosen_radii(data, **others, **({} if epsilon is None else {norm: epsilon}))
    if epsilon is not None:
        raise ValueError("epsilon needs a norm: give --norm l2 or --norm linf, too")
    return chosen_radii(data)


def _given(**options: object) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.evaluate")
