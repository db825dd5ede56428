"""The study: every training method on an equal footing, from choosing weights to the table."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro

from experiments import pgd
from experiments.comparison import Attacks, compare, folder_of
from experiments.comparison import plan as planned
from experiments.config import Config, Setup
from experiments.files import write_text
from experiments.interruption import ending
from experiments.joining import joined
from experiments.plans import PLANS, QUICK, Plan
from experiments.reading import read
from experiments.table import table
from experiments.words import failures_of, results

# By the name in the folder of their choices, what sets networks apart.
NETWORKS: Mapping[str, Mapping[str, str]] = {
    "cnn": {"model": "cnn"},
    "mlp": {"model": "mlp"},
    "relu": {"model": "cnn", "activation": "relu"},
    "softplus": {"model": "cnn", "activation": "softplus"},
}
Part = Literal["headline", "activations", "wider", "mlp"]
PARTS: tuple[Part, ...] = ("headline", "activations", "wider", "mlp")
HEADLINE = ("none", "gradient", "hessian", "hessian-inside", "finite-step", "adversarial")
# The folders of a data set's study that make up its table, one network after the other.
_TABLED = ("headline", "wider", "mlp", "relu", "softplus")


@ending()
def main(
    data: tuple[Literal["mnist", "fashion_mnist"], ...] | None = None,
    *,
    parts: tuple[Part, ...] = PARTS,
    quick: bool = False,
    out: Path = Path("runs/study"),
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
) -> None:
    """Choose weights on held-out examples, train every method, attack, and write one table.

    It takes days on a CPU. If stopped with Ctrl-C, give the same command again: nothing is done
    twice, and results in the folder's comparison.json files count as done even if the folders of
    their runs are gone. Processes that work on different data sets or networks may run side by
    side, and so may headline and wider, once the weights of the headline are chosen.
    A table row with a candidate that fails is left out, and the others continue. For example:

        python -m experiments.study --quick --out runs/study-quick
        python -m experiments.study --data mnist --parts headline mlp

    Args:
        data: the data sets; mnist and fashion_mnist if not given.
        parts: headline (six methods, five seeds, also AutoAttack), activations (the same methods
            with relu and softplus, two seeds), wider (the other methods of experiments/plans.py,
            two seeds), mlp (all of these on the smaller network, two seeds). Each part first
            chooses the weights that it needs, all but the headline one row at a time.
        quick: everything small, on the digits, in a quarter of an hour: to try out the program, not
            the methods.
        out: folder of the study, with a subfolder per data set for its runs and table, report.md.
        data_dir: folder of prepared data sets; $HESSJAX_DATA or ~/.cache/hessjax if not given.
        manual_dir: folder with one data set's original files, if they cannot be downloaded.
    """
    failed: dict[str, str] = {}
    for name, given in (("data", data), ("parts", parts)):
        if given is not None and not given:
            raise ValueError(f"{name} must name at least one, got nothing")
    if quick and data is not None:
        raise ValueError(f"quick takes the digits: leave data out, got {' '.join(data)}")
    for name in (QUICK,) if quick else data or ("mnist", "fashion_mnist"):
        run = partial(compare, known=True, watch=100, data_dir=data_dir, manual_dir=manual_dir)
        failed |= study(name, PLANS[name], parts, out=out / name, run=run)
    if failed:
        sys.exit(failures_of(failed))


def study(
    data: str, plan: Plan, parts: Sequence[Part], *, out: Path, run: Callable[..., dict[str, str]]
) -> dict[str, str]:
    """Do parts of the study on one data set, and write the table of all results there are.

    Args:
        data: its name.
        plan: what to do.
        parts: in any order.
        out: folder of the data set's part of the study.
        run: `experiments.comparison.compare`, or a stand-in for it.

    Returns:
        For each run that failed, by folder, the reason.
    """
    shared = Setup(data=data, epochs=plan.epochs)
    failed: dict[str, str] = {}

    def done(
        folder: str, setup: Setup, methods: Sequence[str], seeds: Sequence[int], attacks: Attacks
    ) -> None:
        if not methods:
            return  # every row had a candidate that failed
        failures = run(setup, methods, seeds, out=out / folder, attacks=attacks)
        failed.update({f"{out / folder / path}": why for path, why in failures.items()})

    short, long = (pgd.settings(num_steps=steps) for steps in plan.num_steps)
    attacks = Attacks(plan.radii, long)
    strongest = {norm: (radius,) for norm, radius in plan.epsilon.items()}

    def chosen(network: str, rows: Sequence[str]) -> list[str]:
        setup = tuning(data, plan, network)
        candidates = [name for row in rows for name in plan.candidates.get(row, ())]
        folder = f"tuning-{network}"
        done(folder, setup, candidates, [0], Attacks(strongest, short))
        if not (out / folder / "comparison.json").is_file():
            return [row for row in rows if row not in plan.candidates]  # all of them failed
        found = read(out / folder)
        # Failures are reported at the end; no weight is chosen from fewer candidates than planned.
        return [best(found, setup, plan, row) for row in rows if _tried(found, setup, plan, row)]

    if "headline" in parts:
        strong = Attacks(plan.radii, long, strongest, plan.auto_examples, plan.apgd_examples)
        done("headline", shared, chosen("cnn", HEADLINE), plan.seeds, strong)
    every = ["none", *plan.candidates]
    others = [row for row in every if row not in HEADLINE]
    by_row: tuple[tuple[Part, str, str, Sequence[str]], ...] = (
        ("activations", "relu", "relu", HEADLINE),
        ("activations", "softplus", "softplus", HEADLINE),
        ("wider", "wider", "cnn", others),
        ("mlp", "mlp", "mlp", every),
    )
    # These take days: row by row, an interruption leaves some rows complete, not all in part.
    few = plan.seeds[: plan.few]
    for part, folder, network, rows in by_row:
        setup = replace(shared, **NETWORKS[network])
        for row in rows if part in parts else ():
            done(folder, setup, chosen(network, [row]), few, attacks)
    _write_table(out, data, plan, failed)
    return failed


def tuning(data: str, plan: Plan, network: str) -> Setup:
    """Return the settings of the trainings from which a network's weights are chosen."""
    shared = Setup(data=data, epochs=plan.epochs, validation=plan.validation)
    return replace(shared, **NETWORKS[network])


def best(comparison: dict[str, Any], setup: Setup, plan: Plan, row: str) -> str:
    """Return a row's candidate with the highest accuracy in the ball that it trains for.

    Args:
        comparison: that of the candidates.
        setup: the comparison's.
        plan: the study's.
        row: of the table; one without candidates is a method without a number.
    """
    robust = {run["path"]: run["robust"] for run in comparison["runs"]}

    def accuracy(name: str) -> float:
        norm = _config(setup, name).norm
        return robust[_path(setup, name)][norm][plan.epsilon[norm]]

    return max(plan.candidates[row], key=accuracy) if row in plan.candidates else row


def winners(comparison: dict[str, Any], setup: Setup, plan: Plan) -> dict[str, Any]:
    """Return a comparison of candidates, as `best` takes it, with only the runs that it chooses.

    Rows that lack a candidate are left out.
    """
    runs = {run["path"]: run for run in comparison["runs"]}
    rows = [row for row in plan.candidates if _tried(comparison, setup, plan, row)]
    chosen = [runs[_path(setup, best(comparison, setup, plan, row))] for row in rows]
    return {**comparison, "runs": chosen}


def _tried(comparison: dict[str, Any], setup: Setup, plan: Plan, row: str) -> bool:
    """Return whether all candidates for a row were trained."""
    paths = {run["path"] for run in comparison["runs"]}
    return all(_path(setup, name) in paths for name in plan.candidates.get(row, ()))


def _config(setup: Setup, name: str) -> Config:
    [config] = planned(setup, [name], [0])
    return config


def _path(setup: Setup, name: str) -> str:
    return str(folder_of(_config(setup, name)))


def _write_table(out: Path, data: str, plan: Plan, failed: Mapping[str, str]) -> None:
    """Write the table of all results of a data set's study, and the weights that it chose."""
    names = (*_TABLED, *(f"tuning-{network}" for network in NETWORKS))
    there = {name: read(out / name) for name in names if (out / name / "comparison.json").is_file()}
    tabled = [name for name in _TABLED if name in there]
    if not tabled:
        return
    whole = joined([there[name] for name in tabled])
    earlier = {
        f"{out / name / path}": why
        for name, one in there.items()
        for path, why in one.get("failed", {}).items()
    }
    lines = [
        f"# The study on {whole['data']}\n",
        f"From comparison.json of {', '.join(tabled)}",
        "(command, commit, versions and device are told there).\n",
        *results(whole, {**earlier, **failed}),
    ]
    for network in NETWORKS:
        if found := there.get(f"tuning-{network}"):
            setup = tuning(data, plan, network)
            which = f"{setup.model} with {setup.activation}"
            title = f"\n## The weights chosen for the {which}, on held-out images\n"
            lines += [title, table(winners(found, setup, plan))]
    write_text(out / "report.md", "\n".join(lines))


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.study")
