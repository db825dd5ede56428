"""What the study does on each data set: its candidates, seeds, radii and sizes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

QUICK = "digits"


class Plan(NamedTuple):
    """What the study does on one data set.

    Attributes:
        candidates: settings to choose from, by what a row of the table is to be; as many for every
            method that has a number.
        epsilon: radius by norm at which they are chosen, each at the norm that it trains for, and
            at which AutoAttack runs.
        radii: by norm, for PGD.
        validation: training examples held out for the choice.
        seeds: of the headline.
        few: how many of them for the rest.
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
    few: int = 2
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
        # What fewer steps are worth, alone and with the penalty on a quarter of the examples.
        "adversarial,num_steps=3": _weights("adversarial", *l2, after=",num_steps=3"),
        "hessian-inside,parts=4,num_steps=4": _weights(
            f"hessian-inside:{l2[0] / 2:g}", *l2, after=",parts=4,num_steps=4"
        ),
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
    QUICK: Plan(
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
        few=1,
        auto_examples=50,
        apgd_examples=100,
        num_steps=(5, 10),
        epochs=3,
    ),
}
