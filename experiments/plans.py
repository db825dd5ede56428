"""What the study does on each data set: its candidates, seeds, radii and sizes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

QUICK = "digits"


class Plan(NamedTuple):
    """What the study does on one data set.

    Attributes:
        candidates: settings to choose from, by row of the table to be; equally many for every
            method that has a number.
        epsilon: radius by norm at which AutoAttack runs and the choice is made, for each setting in
            the norm that it trains for.
        radii: by norm, for PGD.
        validation: number of training examples held out for the choice.
        seeds: those of the headline.
        few: how many of these seeds the rest uses.
        auto_examples: number of examples for AutoAttack, the first of the test set.
        apgd_examples: number of examples for APGD at all radii, the first of the test set.
        num_steps: of PGD, on the validation set and on the test set.
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


# The values of candidates, by row; a string holds more than the one number.
_Table = Mapping[str, Sequence[float | str]]


def _rows(table: _Table) -> dict[str, tuple[str, ...]]:
    """Return the candidates of each row: its method, a value, and the row's options."""

    def candidate(row: str, value: float | str) -> str:
        method, comma, options = row.partition(",")
        return f"{method}:{value if isinstance(value, str) else f'{value:g}'}{comma}{options}"

    return {row: tuple(candidate(row, value) for value in table[row]) for row in table}


def _alone(*weights: float) -> _Table:
    """Return the rows of the norms of the Hessian, or of its Gauss-Newton part, alone."""
    only = ("hessian-only", "hessian-only-power", "hessian-only-ascent", "hessian-only-lanczos")
    return dict.fromkeys((*only, "gauss-newton"), weights)


def _jacobians(*weights: float) -> _Table:
    """Return the rows of both norms of the Jacobian, given the weights of the squared one."""
    return {"jacobian-operator": [10 * weight for weight in weights], "jacobian": weights}


def _in_balls(*, l2: Sequence[float], linf: Sequence[float]) -> _Table:
    """Return the rows of the methods that train inside a ball, given its radii."""
    betas = (1, 3, 6)
    return {
        "adversarial": l2,
        "adversarial,norm=linf": linf,
        # To see what fewer steps achieve, alone and with the penalty on a quarter of the examples.
        "adversarial,num_steps=3": l2,
        "hessian-inside,parts=4,num_steps=4": [f"{l2[0] / 2:g}:{h:g}" for h in l2],
        "fgsm": l2,
        "fgsm,norm=linf": linf,
        # Last, because their steps cost most.
        "trades": [f"{l2[1]:g},weight={beta}" for beta in betas],
        "trades,norm=linf": [f"{linf[1]:g},weight={beta}" for beta in betas],
    }


PLANS = {
    "mnist": Plan(
        candidates=_rows(
            {
                "gradient": (4, 12, 36),
                "gradient,norm=linf": (0.1, 0.3, 0.9),
                **_alone(1, 3, 9),
                "hessian": (3, 6, 12),
                "hessian-inside": ("1.25:1", "1.75:1", "2.5:1"),
                "gradient-hessian": ("12,weight=6", "6,weight=36", "24,weight=24"),
                "hessian-frobenius": (0.1, 1, 10),
                "finite-step": (3, 10, 30),
                "curvature": (1, 4, 16),
                **_jacobians(0.01, 0.03, 0.1),
                **_in_balls(l2=(1, 1.5, 2), linf=(0.1, 0.2, 0.3)),
            }
        ),
        epsilon={"l2": 1.5, "linf": 0.2},
        radii={"l2": (0.5, 1.0, 1.5, 2.0), "linf": (0.1, 0.2, 0.3)},
    ),
    "fashion_mnist": Plan(
        candidates=_rows(
            {
                "gradient": (0.7, 2, 6),
                "gradient,norm=linf": (0.02, 0.06, 0.2),
                **_alone(0.3, 1, 3),
                "hessian": (0.6, 1.1, 2),
                "hessian-inside": ("0.25:0.5", "0.5:0.5", "1:0.5"),
                "gradient-hessian": ("2,weight=0.6", "1,weight=2", "4,weight=2"),
                "hessian-frobenius": (0.03, 0.3, 3),
                "finite-step": (0.3, 1, 3),
                "curvature": (0.3, 1, 3),
                **_jacobians(0.003, 0.01, 0.03),
                **_in_balls(l2=(0.5, 1, 1.5), linf=(0.03, 0.05, 0.1)),
            }
        ),
        epsilon={"l2": 1.0, "linf": 0.05},
        radii={"l2": (0.5, 1.0, 1.5, 2.0), "linf": (0.03, 0.05, 0.1)},
    ),
    QUICK: Plan(
        candidates=_rows(
            {
                "gradient": (0.5, 1),
                "hessian": (0.5, 1),
                "hessian-inside": ("0.25:0.25", "0.5:0.25"),
                "hessian-only": (0.5, 1),
                "finite-step": (0.5, 1),
                "adversarial": (0.5, 1),
            }
        ),
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
