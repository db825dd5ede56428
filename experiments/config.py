"""What decides the result of a training, and what is used where the command line is silent."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from experiments import methods, models

Norm = Literal["l2", "linf"]
ORDERS: dict[str, float] = {"l2": 2, "linf": math.inf}
_SAVINGS = ("every", "parts")


@dataclass(frozen=True)
class Recipe:
    """Defaults of one data set.

    Attributes:
        epochs, batch_size, warmup_epochs: as in `Setup`.
        strengths: of each method; which ones are tuned, on a validation split, is told in
            experiments/README.md.
        step: h of the finite-step methods, in input units.
        radii: ε by norm, for evaluating.
    """

    epochs: int = 6
    batch_size: int = 256
    warmup_epochs: float = 2
    strengths: Mapping[str, float] = field(default_factory=dict)
    step: float = 1.0
    radii: Mapping[str, Sequence[float]] = field(
        default_factory=lambda: {"l2": (0.25, 0.5, 0.75, 1.0), "linf": (2 / 255, 4 / 255, 8 / 255)}
    )


_UNTUNED = {
    "none": 0,
    "gradient": 1,
    "hessian": 1,
    "hessian-cheap": 1,
    "hessian-lanczos": 1,
    "hessian-only": 1,
    "finite-step": 1,
    "curvature": 1,
    "jacobian": 0.01,
    "gauss-newton": 1,
    "adversarial": 1,
    "fgsm": 1,
    "hot": 100,
}
RECIPES = {
    "digits": Recipe(
        epochs=30,
        batch_size=64,
        warmup_epochs=10,
        strengths=_UNTUNED,
        radii={"l2": (0.25, 0.5, 0.75, 1.0), "linf": (0.05, 0.1, 0.15)},
    ),
    "mnist": Recipe(
        strengths={
            **_UNTUNED,
            "gradient": 12,
            "hessian": 6,
            "hessian-cheap": 6,
            "hessian-lanczos": 6,
            "hessian-only": 3,
            "finite-step": 10,
            "adversarial": 1.5,
        },
        step=1.5,
        radii={"l2": (0.5, 1.0, 1.5, 2.0), "linf": (0.1, 0.2)},
    ),
    "fashion_mnist": Recipe(
        epochs=5,
        strengths={
            **_UNTUNED,
            "gradient": 2,
            "hessian": 1.1,
            "hessian-cheap": 1.1,
            "hessian-lanczos": 1.1,
        },
        radii={"l2": (0.5, 1.0, 1.5, 2.0), "linf": (0.03, 0.05, 0.1)},
    ),
}


def recipe(data: str) -> Recipe:
    """Return the defaults of a data set; one that was never tuned gets general ones."""
    return RECIPES.get(data, Recipe(strengths=_UNTUNED))


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the trainings of a comparison share.

    Attributes:
        data: digits (embedded), mnist, fashion_mnist, or an image classification set of
            TensorFlow Datasets by its name there.
        model: mlp or cnn.
        activation: relu, softplus, gelu or tanh.
        beta: sharpness of softplus.
        precision: float32, or bfloat16 for the network's products and activations; weights, logits,
            loss, penalties and optimizer stay in float32.
        norm: norm of the ball of adversarial and fgsm training.
        epochs: passes over the training set; the data set's default if not given.
        batch_size: training examples a step; likewise.
        warmup_epochs: epochs over which the penalty's weight grows from 0 to its value; the data
            set's default if not given, in proportion if the training is shorter.
        learning_rate: of Adam, at the start of its cosine decay.
        validation: hold out so many training examples and evaluate on them instead of on the test
            set; tune with it.
    """

    data: str = "digits"
    model: str = "cnn"
    activation: str = "gelu"
    beta: float = 8.0
    precision: str = "float32"
    norm: Norm = "l2"
    epochs: int | None = None
    batch_size: int | None = None
    warmup_epochs: float | None = None
    learning_rate: float = 2e-3
    validation: int = 0


@dataclass(frozen=True, kw_only=True)
class Config(Setup):
    """What decides the result of one training.

    Attributes:
        method: none, gradient, hessian, hessian-cheap, hessian-lanczos, hessian-only, finite-step,
            curvature, jacobian, gauss-newton, adversarial, fgsm or hot.
        strength: the method's one number: a penalty's weight, the ε of hessian, adversarial and
            fgsm in input units, or the temperature of hot; the data set's default if not given
            (in an ℓ∞ ball: the middle one of its ℓ∞ radii). experiments/README.md lists methods
            and defaults.
        step: length h of the finite step of finite-step and curvature, in input units; likewise.
        every: evaluate the penalty on every so many steps only, so many times as heavy.
        parts: evaluate it on one of so many random parts of each batch only, likewise.
        seed: of the weights, the order of the examples and every random start.
    """

    method: str = "hessian"
    strength: float | None = None
    step: float | None = None
    every: int = 1
    parts: int = 1
    seed: int = 0

    def resolved(self) -> Self:
        """Fill in the data set's defaults and check the numbers.

        Raises:
            ValueError: naming the value that is wrong, and what was expected.
        """
        method, defaults = methods.find(self.method), recipe(self.data)
        epochs = defaults.epochs if self.epochs is None else self.epochs
        known: dict[str, Any] = {
            "epochs": epochs,
            "batch_size": defaults.batch_size,
            # A shorter training warms up in the same part of it.
            "warmup_epochs": defaults.warmup_epochs * min(1, epochs / defaults.epochs),
        }
        if method.takes_ball and self.norm == "linf":
            known["strength"] = defaults.radii["linf"][len(defaults.radii["linf"]) // 2]
        elif method.strength is not None:
            known["strength"] = defaults.strengths[self.method]
        elif self.strength is not None:
            raise ValueError(f"the method {self.method!r} has no strength, got {self.strength:g}")
        if method.takes_step:
            known["step"] = defaults.step
        elif self.step is not None:
            raise ValueError(f"the method {self.method!r} takes no step, got {self.step:g}")
        missing = {name: value for name, value in known.items() if getattr(self, name) is None}
        config = dataclasses.replace(self, **missing)
        config.check()
        return config

    def check(self) -> None:
        """Raise unless every number is in its range."""
        for name in ("epochs", "batch_size", "step", "learning_rate", "beta", *_SAVINGS):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a finite positive number, got {value}")
        for name in ("strength", "warmup_epochs", "validation", "seed"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number, at least 0, got {value}")
        # JAX takes 32 bits of a seed: a larger one would repeat a smaller one's numbers.
        if self.seed >= 2**32:
            raise ValueError(f"seed must be less than 2**32, got {self.seed}")
        epochs, warmup = self.epochs, self.warmup_epochs
        if epochs is not None and warmup is not None and warmup > epochs:
            raise ValueError(
                f"warmup_epochs must be at most the {epochs} epochs of the training, got {warmup}"
            )
        models.check_names(self.model, self.activation, self.precision)
        if self.norm not in ORDERS:
            raise ValueError(f"unknown norm {self.norm!r}: there are {', '.join(ORDERS)}")
        self._check_method()

    def _check_method(self) -> None:
        method = methods.find(self.method)
        if method.positive and self.strength == 0:
            raise ValueError(f"strength, the {method.strength}, must be positive, got 0")
        if self.savings and not method.penalizes:
            raise ValueError(f"the method {self.method!r} has no penalty, got {self.savings[0]}")

    @property
    def name(self) -> str:
        """The method and its numbers, as in ``finite-step:1:1.5`` or ``hessian:2,every=4``."""
        numbers = [f"{n:g}" for n in (self.strength, self.step) if n is not None]
        return ",".join([":".join([self.method, *numbers]), *self.savings])

    @property
    def savings(self) -> list[str]:
        """What is not paid for on every step and example, as in ``every=4``."""
        return [f"{name}={n}" for name in _SAVINGS if (n := getattr(self, name)) != 1]


def parse_method(text: str) -> dict[str, Any]:
    """Read a method and its numbers: ``hessian``, ``finite-step:1:1.5``, ``hessian:2,every=4``.

    Raises:
        ValueError: if the method is unknown, or what follows it is something else.
    """
    first, *options = text.split(",")
    name, *numbers = first.split(":")
    methods.find(name)
    try:
        values = [float(number) for number in numbers]
        savings = {key: int(value) for key, value in (word.split("=") for word in options)}
    except ValueError:
        values, savings = [math.nan] * 3, {}
    if len(values) > 2 or not savings.keys() <= set(_SAVINGS):
        raise ValueError(
            f"{text!r} must be a method, method:strength or method:strength:step, "
            "and may go on with ,every=N or ,parts=N"
        )
    return {"method": name, **dict(zip(("strength", "step"), values, strict=False)), **savings}
