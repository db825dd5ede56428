"""The defaults of each data set, for what the command line does not specify."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Recipe:
    """Defaults of one data set.

    Attributes:
        epochs, batch_size, warmup_epochs: as in `Setup`.
        strengths: those of methods whose strength is not the usual one; experiments/README.md says
            which ones are tuned, on a validation split.
        step: h of the methods that take a step, in input units.
        steps: h of those methods for which it differs from ``step``.
        radii: ε by norm, for evaluating.
    """

    epochs: int = 6
    batch_size: int = 256
    warmup_epochs: float = 2
    strengths: Mapping[str, float] = field(default_factory=dict)
    step: float = 1.0
    steps: Mapping[str, float] = field(default_factory=dict)
    radii: Mapping[str, Sequence[float]] = field(
        default_factory=lambda: {"l2": (0.25, 0.5, 0.75, 1.0), "linf": (2 / 255, 4 / 255, 8 / 255)}
    )


RECIPES = {
    "digits": Recipe(
        epochs=30,
        batch_size=64,
        warmup_epochs=10,
        radii={"l2": (0.25, 0.5, 0.75, 1.0), "linf": (0.05, 0.1, 0.15)},
    ),
    "mnist": Recipe(
        strengths={
            "gradient": 12,
            "hessian": 6,
            "hessian-cheap": 6,
            "hessian-lanczos": 6,
            "hessian-inside": 1.75,
            "hessian-only": 3,
            "finite-step": 10,
            "adversarial": 1.5,
        },
        step=1.5,
        steps={"hessian-inside": 1.0},
        radii={"l2": (0.5, 1.0, 1.5, 2.0), "linf": (0.1, 0.2)},
    ),
    "fashion_mnist": Recipe(
        epochs=5,
        strengths={
            "gradient": 2,
            "hessian": 1.1,
            "hessian-cheap": 1.1,
            "hessian-lanczos": 1.1,
            "hessian-inside": 0.5,
        },
        steps={"hessian-inside": 0.5},
        radii={"l2": (0.5, 1.0, 1.5, 2.0), "linf": (0.03, 0.05, 0.1)},
    ),
}


def recipe(data: str) -> Recipe:
    """Return the defaults of a data set, general ones if it was never tuned."""
    return RECIPES.get(data, Recipe())


def chosen_radii(data: str, **given: Sequence[float] | None) -> dict[str, tuple[float, ...]]:
    """Return the radii by norm in increasing order, the data set's where none are given.

    Raises:
        ValueError: if a radius is not positive, or there is none.
    """
    radii = {}
    for norm, usual in recipe(data).radii.items():
        values = usual if (values := given.get(norm)) is None else values
        for value in values:
            if not 0 < value < math.inf:
                raise ValueError(
                    f"a radius of {norm} must be a finite positive number, got {value}"
                )
        radii[norm] = tuple(sorted(set(values)))
    if not any(radii.values()):
        raise ValueError(
            "there is no radius to attack with: give one for l2 or linf, or leave both out for "
            "those of the data set"
        )
    return radii
