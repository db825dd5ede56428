"""The study: every training method on one footing, from the choice of weights to the table."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

from experiments.comparison import Attacks, compare, folder_of
from experiments.comparison import plan as planned
from experiments.config import Setup
from experiments.evaluate import attack_settings
from experiments.files import replacing
from experiments.interruption import exit_code
from experiments.reading import joined, read
from experiments.table import table
from experiments.words import attacked, explained, failures_of, under_apgd

Part = Literal["headline", "wider", "activations", "mlp"]
PARTS: tuple[Part, ...] = ("headline", "wider", "activations", "mlp")
HEADLINE = ("none", "gradient", "hessian", "hessian-inside", "finite-step", "adversarial")
# The folders of a data set's study that make its table, one network after the other.
_TABLED = ("headline", "wider", "mlp", "relu", "softplus")
_QUICK = "digits"


class Plan(NamedTuple):
    """What the study does on one data set.

    Attributes:
        candidates: settings to choose from, by what a row of the table is to be; as many for every
            method that has a number.
        epsilon: radius by norm at which they are chosen, each at the norm that it trains for, and
            at which AutoAttack runs.
        radii: by norm, for PGD.
        validation: training examples held out for the choice.
        seeds: of the headline; two of them for the rest.
        auto_examples: for AutoAttack, the first of the test set.
        apgd_examples: likewise for APGD at all radii.
        num_steps: of PGD, on the validation and on the test set.
        epochs: as in `Setup`.
    """

    candidates: Mapping[str, Sequence[str]]
    epsilon: Mapping[str, float]
    radii: Mapping[str, Sequence[float]]
    validation: int = 5000
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    auto_examples: int = 500
    apgd_examples: int = 1000
    num_steps: tuple[int, int] = (20, 100)
    epochs: int | None = None


def _weights(method: str, *values: float, after: str = "") -> tuple[str, ...]:
    return tuple(f"{method}:{value:g}{after}" for value in values)


def _candidates(
    *,
    gradient: Sequence[float],
    dual: Sequence[float],
    surrogate: Sequence[float],
    inside: Sequence[tuple[float, float]],
    curvature: Sequence[float],
    pairs: Sequence[tuple[float, float]],
    frobenius: Sequence[float],
    finite: Sequence[float],
    cure: Sequence[float],
    jacobian: Sequence[float],
    l2: Sequence[float],
    linf: Sequence[float],
) -> dict[str, tuple[str, ...]]:
    """Return the candidates of every method but ``none``; relatives share their numbers."""
    only = ("hessian-only", "hessian-only-power", "hessian-only-ascent", "hessian-only-lanczos")
    betas = (1, 3, 6)
    return {
        "gradient": _weights("gradient", *gradient),
        "gradient,norm=linf": _weights("gradient", *dual, after=",norm=linf"),
        **{method: _weights(method, *curvature) for method in (*only, "gauss-newton")},
        "hessian": _weights("hessian", *surrogate),
        "hessian-inside": tuple(f"hessian-inside:{epsilon:g}:{h:g}" for epsilon, h in inside),
        "gradient-hessian": tuple(f"gradient-hessian:{g:g},weight={h:g}" for g, h in pairs),
        "hessian-frobenius": _weights("hessian-frobenius", *frobenius),
        "finite-step": _weights("finite-step", *finite),
        "curvature": _weights("curvature", *cure),
        "jacobian-operator": _weights("jacobian-operator", *(10 * value for value in jacobian)),
        "jacobian": _weights("jacobian", *jacobian),
        "adversarial": _weights("adversarial", *l2),
        "adversarial,norm=linf": _weights("adversarial", *linf, after=",norm=linf"),
        "trades": tuple(f"trades:{l2[1]:g},weight={beta}" for beta in betas),
        "trades,norm=linf": tuple(f"trades:{linf[1]:g},weight={beta},norm=linf" for beta in betas),
        "fgsm": _weights("fgsm", *l2),
        "fgsm,norm=linf": _weights("fgsm", *linf, after=",norm=linf"),
    }


PLANS = {
    "mnist": Plan(
        candidates=_candidates(
            gradient=(4, 12, 36),
            dual=(0.1, 0.3, 0.9),
            surrogate=(3, 6, 12),
            inside=((1.25, 1), (1.75, 1), (2.5, 1)),
            curvature=(1, 3, 9),
            pairs=((12, 6), (6, 36), (24, 24)),
            frobenius=(0.1, 1, 10),
            finite=(3, 10, 30),
            cure=(1, 4, 16),
            jacobian=(0.01, 0.03, 0.1),
            l2=(1, 1.5, 2),
            linf=(0.1, 0.2, 0.3),
        ),
        epsilon={"l2": 1.5, "linf": 0.2},
        radii={"l2": (0.5, 1.0, 1.5, 2.0), "linf": (0.1, 0.2, 0.3)},
    ),
    "fashion_mnist": Plan(
        candidates=_candidates(
            gradient=(0.7, 2, 6),
            dual=(0.02, 0.06, 0.2),
            surrogate=(0.6, 1.1, 2),
            inside=((0.25, 0.5), (0.5, 0.5), (1, 0.5)),
            curvature=(0.3, 1, 3),
            pairs=((2, 0.6), (1, 2), (4, 2)),
            frobenius=(0.03, 0.3, 3),
            finite=(0.3, 1, 3),
            cure=(0.3, 1, 3),
            jacobian=(0.003, 0.01, 0.03),
            l2=(0.5, 1, 1.5),
            linf=(0.03, 0.05, 0.1),
        ),
        epsilon={"l2": 1.0, "linf": 0.05},
        radii={"l2": (0.5, 1.0, 1.5, 2.0), "linf": (0.03, 0.05, 0.1)},
    ),
    _QUICK: Plan(
        candidates={
            "gradient": _weights("gradient", 0.5, 1),
            "hessian": _weights("hessian", 0.5, 1),
            "hessian-inside": ("hessian-inside:0.25:0.25", "hessian-inside:0.5:0.25"),
            "hessian-only": _weights("hessian-only", 0.5, 1),
            "finite-step": _weights("finite-step", 0.5, 1),
            "adversarial": _weights("adversarial", 0.5, 1),
        },
        epsilon={"l2": 0.5, "linf": 0.05},
        radii={"l2": (0.5, 1.0), "linf": (0.05,)},
        validation=300,
        seeds=(0, 1),
        auto_examples=50,
        apgd_examples=100,
        num_steps=(5, 10),
        epochs=3,
    ),
}


def main(
    data: tuple[Literal["mnist", "fashion_mnist"], ...] = ("mnist", "fashion_mnist"),
    *,
    parts: tuple[Part, ...] = PARTS,
    quick: bool = False,
    out: Path = Path("runs/study"),
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
) -> None:
    """Choose weights on held-out examples, train every method, attack, and write one table.

    It takes days on a CPU. Stop it with Ctrl-C and give the same command again: what is done is not
    done twice, and what the comparison.json files of the folder tell of counts as done, although
    the folders of its runs may be gone. Processes that work on different data sets, or on
    different parts once the weights are chosen, may run side by side. For example:

        python -m experiments.study --quick --out runs/study-quick
        python -m experiments.study --data mnist --parts headline mlp

    Args:
        data: the data sets.
        parts: headline (six methods, five seeds, AutoAttack too), wider (the other methods, two
            seeds), activations (the headline's methods with relu and softplus), mlp (all methods on
            the smaller network). Each chooses the weights that it needs first; activations takes
            those of gelu.
        quick: everything small, on the digits, in minutes: a try of the program, not of the
            methods.
        out: folder of the study; it gets a folder for each data set, with its table, report.md.
        data_dir: folder of prepared data sets, $HESSJAX_DATA or ~/.cache/hessjax if not given.
        manual_dir: folder of one data set's original files, where they cannot be downloaded.
    """
    failed: dict[str, str] = {}
    try:
        for name in (_QUICK,) if quick else data:
            run = partial(compare, known=True, watch=100, data_dir=data_dir, manual_dir=manual_dir)
            failed |= study(name, PLANS[name], parts, out=out / name, run=run)
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stop:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(exit_code(stop))
    if failed:
        sys.exit(failures_of(failed))


def study(
    data: str, plan: Plan, parts: Sequence[Part], *, out: Path, run: Callable[..., dict[str, str]]
) -> dict[str, str]:
    """Do parts of the study on one data set, and write the table of all that is there.

    Args:
        data: its name.
        plan: what to do.
        parts: in any order.
        out: folder of the data set's part of the study.
        run: `experiments.comparison.compare`, or what stands for it.

    Returns:
        By folder, why those runs that failed did.
    """
    shared = Setup(data=data, epochs=plan.epochs)
    failed: dict[str, str] = {}

    def done(
        folder: str, setup: Setup, methods: Sequence[str], seeds: Sequence[int], attacks: Attacks
    ) -> None:
        failures = run(setup, methods, seeds, out=out / folder, attacks=attacks)
        failed.update({f"{out / folder / path}": why for path, why in failures.items()})

    short, long = (attack_settings(num_steps=steps) for steps in plan.num_steps)
    attacks = Attacks(plan.radii, long, {}, None)
    strongest = {norm: (radius,) for norm, radius in plan.epsilon.items()}

    def chosen(model: str, rows: Sequence[str]) -> list[str]:
        setup = replace(shared, model=model, validation=plan.validation)
        candidates = [name for row in rows for name in plan.candidates.get(row, ())]
        folder = f"tuning-{model}"
        done(folder, setup, candidates, [0], Attacks(strongest, short, {}, None))
        found = read(out / folder)
        return [best(found, setup, plan, row) for row in rows]

    every, few = ["none", *plan.candidates], plan.seeds[:2]
    if "headline" in parts:
        strong = Attacks(plan.radii, long, strongest, plan.auto_examples, plan.apgd_examples)
        done("headline", shared, chosen("cnn", HEADLINE), plan.seeds, strong)
    if "wider" in parts:
        others = [row for row in every if row not in HEADLINE]
        done("wider", shared, chosen("cnn", others), few, attacks)
    for activation in ("relu", "softplus") if "activations" in parts else ():
        setup = replace(shared, activation=activation)
        done(activation, setup, chosen("cnn", HEADLINE), few, attacks)
    if "mlp" in parts:
        done("mlp", replace(shared, model="mlp"), chosen("mlp", every), few, attacks)
    _write_table(out)
    return failed


def best(comparison: dict[str, Any], setup: Setup, plan: Plan, row: str) -> str:
    """Return the candidate for a row of the highest accuracy in the ball that it trains for.

    Args:
        comparison: of the candidates.
        setup: its own.
        plan: of the study.
        row: of the table; one without candidates is a method without a number.

    Raises:
        ValueError: if the comparison lacks one of them.
    """
    robust = {run["path"]: run["robust"] for run in comparison["runs"]}

    def accuracy(name: str) -> float:
        [config] = planned(setup, [name], [0])
        path = str(folder_of(config))
        if path not in robust:
            raise ValueError(f"{name} was not trained, so no weight can be chosen: see what failed")
        return robust[path][config.norm][plan.epsilon[config.norm]]

    return max(plan.candidates[row], key=accuracy) if row in plan.candidates else row


def _write_table(out: Path) -> None:
    """Write the table of all that is there of a data set's study."""
    folders = [out / name for name in _TABLED if (out / name / "comparison.json").is_file()]
    if not folders:
        return
    whole = joined([read(folder) for folder in folders])
    lines = [
        f"# The study on {whole['data']}\n",
        "From comparison.json of " + ", ".join(folder.name for folder in folders),
        "(command, commit, versions and device are told there).\n",
        *attacked(whole),
        "",
        table(whole),
        f"\n{explained(whole)}\n",
        *under_apgd(whole),
    ]
    with replacing(out / "report.md") as unfinished:
        unfinished.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.study")
