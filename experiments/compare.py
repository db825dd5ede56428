"""Train networks by several methods on one data set and compare them."""

import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from experiments import devices, pgd
from experiments.comparison import Attacks, compare, plan
from experiments.config import Setup
from experiments.interruption import ending
from experiments.processes import led, start
from experiments.reading import read
from experiments.recipes import chosen_radii
from experiments.table import table
from experiments.words import failures_of

_METHODS = ("none", "gradient", "hessian", "finite-step", "adversarial")


@ending()
def main(
    setup: tyro.conf.OmitArgPrefixes[Setup],
    *,
    out: Path,
    methods: tuple[str, ...] = _METHODS,
    seeds: tuple[int, ...] = (0,),
    l2: tuple[float, ...] | None = None,
    linf: tuple[float, ...] | None = None,
    num_steps: int = 40,
    num_restarts: int = 1,
    auto_l2: tuple[float, ...] = (),
    auto_linf: tuple[float, ...] = (),
    auto_examples: int | None = None,
    apgd_examples: int = 0,
    num_devices: int | None = None,
    distributed: bool = False,
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
) -> None:
    """Train several methods with the same seeds and budget, attack them, write table and figures.

    If stopped with Ctrl-C, give the same command again: nothing is done twice, and a training
    continues from its last checkpoint. A run that fails does not stop the others and is named at
    the end. A later command with the same folder adds its methods and seeds to those there.

    A method may be given with its strength and its step: hessian, hessian:2, finite-step:1:1.5.
    Options may follow: ,every=N or ,parts=N evaluates the penalty on every N-th step only, or on
    one of N parts of each batch; ,norm=linf trains for ℓ∞ balls; ,weight=X is the second weight of
    a method that has two; ,num_steps=N is the number of steps of its attack. To tune strengths,
    compare them on examples held out of the training set. For example:

        python -m experiments.compare --methods none gradient hessian --out runs/demo
        python -m experiments.compare --data mnist --methods hessian:1 hessian:2 hessian:3
            --validation 5000 --out runs/tune

    Args:
        setup: the settings that the trainings share.
        out: folder for comparison.json, report.md, the figures and the runs.
        methods: names with or without numbers, as above; experiments/README.md lists them.
        seeds: every method is trained once with each.
        l2: radii of the ℓ₂ balls, pixels in [0, 1]; the data set's if not given.
        linf: radii of the ℓ∞ balls, pixels in [0, 1]; the data set's if not given.
        num_steps: steps of each PGD attack.
        num_restarts: random starts of each PGD attack.
        auto_l2: radii of the ℓ₂ balls for AutoAttack, which is much slower; none if not given.
        auto_linf: radii of the ℓ∞ balls for AutoAttack; none if not given.
        auto_examples: how many images AutoAttack attacks, the first of the test set; all if not
            given.
        apgd_examples: also attack this many images by AutoAttack's first two attacks alone, at all
            radii.
        num_devices: devices that share each batch; all if not given, but only one on a CPU.
        distributed: run as one of several processes with this same command, as announced by Slurm,
            Open MPI, Kubernetes, a TPU pod or the environment; see experiments/README.md.
        data_dir: folder of prepared data sets; $HESSJAX_DATA or ~/.cache/hessjax if not given.
        manual_dir: folder with the data set's original files, if they cannot be downloaded.
    """
    if distributed:
        start()
    radii = chosen_radii(setup.data, l2=l2, linf=linf)
    attack = pgd.settings(num_steps=num_steps, num_restarts=num_restarts)
    strongest = _strongest(setup.data, auto_l2, auto_linf, auto_examples)
    if apgd_examples < 0:
        raise ValueError(f"apgd_examples must be at least 0, got {apgd_examples}")
    failed = compare(
        setup,
        methods,
        seeds,
        out=out,
        attacks=Attacks(radii, attack, strongest, auto_examples, apgd_examples),
        mesh=devices.mesh(num_devices),
        data_dir=data_dir,
        manual_dir=manual_dir,
    )
    # If this command added nothing, the table there belongs to another one.
    if len(failed) < len(plan(setup, methods, seeds)):
        _tell(out)
    if failed:
        sys.exit(failures_of(failed))


def _strongest(
    data: str, l2: Sequence[float], linf: Sequence[float], num_examples: int | None
) -> dict[str, tuple[float, ...]]:
    """Return the radii for AutoAttack by norm, and check its options."""
    if not (l2 or linf):
        if num_examples is not None:
            raise ValueError(
                "auto_examples needs a radius for AutoAttack: give --auto-l2 or --auto-linf, too"
            )
        return {}
    if num_examples is not None and num_examples < 1:
        raise ValueError(f"auto_examples must be at least 1, got {num_examples}")
    return chosen_radii(data, l2=l2, linf=linf)


@led
def _tell(out: Path) -> None:
    """Print the table."""
    print(table(read(out)))
    print(f"\nWritten: {out / 'comparison.json'}, {out / 'report.md'} and figures beside them")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.compare")
