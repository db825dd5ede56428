"""The settings that determine the result of a training, and how a command line spells them."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from experiments import methods, models
from experiments.recipes import recipe

Norm = Literal["l2", "linf"]
ORDERS: dict[str, float] = {"l2": 2, "linf": math.inf}
NORM_NAMES = {"l2": "ℓ₂", "linf": "ℓ∞"}
# The options that may follow a method's numbers, as in ``hessian:2,every=4``, and their types.
_OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "weight": float,
    "norm": str,
    "every": int,
    "parts": int,
    "num_steps": int,
}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The settings that the trainings of a comparison share.

    Attributes:
        data: digits (need no download), mnist, fashion_mnist, or the name of any other image
            classification set of TensorFlow Datasets.
        model: mlp or cnn.
        activation: relu, softplus, gelu or tanh.
        beta: sharpness of softplus.
        precision: float32, or bfloat16 for the network's products and activations; weights, logits,
            loss, penalties and optimizer stay in float32.
        epochs: passes over the training set; the data set's default if not given.
        batch_size: training examples per step; the data set's default if not given.
        warmup_epochs: epochs over which the penalty's weight grows from 0 to its full value; the
            data set's default if not given, in proportion if epochs are fewer than the default.
        learning_rate: Adam's learning rate at the start of its cosine decay.
        validation: hold out this many training examples and evaluate on them instead of the test
            set; for tuning.
    """

    data: str = "digits"
    model: str = "cnn"
    activation: str = "gelu"
    beta: float = 8.0
    precision: str = "float32"
    epochs: int | None = None
    batch_size: int | None = None
    warmup_epochs: float | None = None
    learning_rate: float = 2e-3
    validation: int = 0


@dataclass(frozen=True, kw_only=True)
class Config(Setup):
    """The settings that determine the result of one training.

    Attributes:
        method: name of the training method. experiments/README.md lists the methods and their
            defaults; an unknown name is answered with the list of names.
        strength: the method's one number: a penalty's weight, the ε of hessian, adversarial, trades
            and fgsm in input units, or the temperature of hot; the data set's default if not given
            (for an ℓ∞ ball: the middle one of the data set's ℓ∞ radii).
        step: length h of the step of finite-step, curvature and hessian-inside, in input units;
            the data set's default if not given.
        weight: the second weight, λ_h of gradient-hessian or β of trades; the method's default if
            not given.
        norm: norm of the ball for gradient, adversarial, trades and fgsm.
        every: evaluate the penalty only once in this many steps, multiplied by this number.
        parts: evaluate the penalty on only one of this many random parts of each batch, multiplied
            by this number.
        num_steps: steps of the attack that adversarial and trades train with, 10 if not given; for
            hessian-inside, steps to the point where it evaluates, 1 if not given.
        seed: seed of the weights, the order of the examples and all random starts.
    """

    method: str = "hessian"
    strength: float | None = None
    step: float | None = None
    weight: float | None = None
    norm: Norm = "l2"
    every: int = 1
    parts: int = 1
    num_steps: int | None = None
    seed: int = 0

    def resolved(self) -> Self:
        """Fill in the data set's defaults and check the numbers.

        Raises:
            ValueError: if a value is wrong, naming it and what was expected.
        """
        method, defaults = methods.find(self.method), recipe(self.data)
        epochs = defaults.epochs if self.epochs is None else self.epochs
        known: dict[str, Any] = {
            "epochs": epochs,
            "batch_size": defaults.batch_size,
            # A shorter training warms up over the same fraction of its epochs.
            "warmup_epochs": defaults.warmup_epochs * min(1, epochs / defaults.epochs),
        }
        usual = {
            "strength": defaults.strengths.get(self.method, method.usual),
            "step": defaults.steps.get(self.method, defaults.step),
            "weight": method.usual_weight,
        }
        if self.norm == "linf":
            usual["strength"] = defaults.radii["linf"][len(defaults.radii["linf"]) // 2]
        known |= {name: value for name, value in usual.items() if name in method.takes}
        missing = {name: value for name, value in known.items() if getattr(self, name) is None}
        config = dataclasses.replace(self, **missing)
        config.check()
        return config.concise()

    def concise(self) -> Self:
        """Leave out a number of steps that is the method's usual one: it is the same method.

        Raises:
            ValueError: if there is no such method.
        """
        usual = self.num_steps == methods.find(self.method).usual_steps
        return dataclasses.replace(self, num_steps=None) if usual else self

    def check(self) -> None:
        """Raise unless every number is in its range."""
        positive = ("epochs", "batch_size", "step", "learning_rate", "beta", "num_steps")
        for name in (*positive, "every", "parts"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a finite positive number, got {value}")
        for name in ("strength", "weight", "warmup_epochs", "validation", "seed"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number, at least 0, got {value}")
        # JAX uses 32 bits of a seed: a larger one would repeat a smaller one's random numbers.
        if self.seed >= 2**32:
            raise ValueError(f"seed must be less than 2**32, got {self.seed}")
        epochs, warmup = self.epochs, self.warmup_epochs
        if epochs is not None and warmup is not None and warmup > epochs:
            raise ValueError(
                f"warmup_epochs must be at most the {epochs} epochs of the training, got {warmup}"
            )
        if self.batch_size is not None and self.parts > self.batch_size:
            raise ValueError(
                f"parts must be at most the {self.batch_size} examples of a batch, got {self.parts}"
            )
        models.check_names(self.model, self.activation, self.precision)
        if self.beta != Setup.beta and self.activation != "softplus":
            raise ValueError(
                f"beta applies to softplus only, got {self.beta:g} with the activation "
                f"{self.activation}"
            )
        if self.norm not in ORDERS:
            raise ValueError(f"unknown norm {self.norm!r}: expected one of {', '.join(ORDERS)}")
        self._check_method()

    def _check_method(self) -> None:
        method = methods.find(self.method)
        if method.positive and self.strength == 0:
            raise ValueError(f"strength, the {method.strength}, must be positive, got 0")
        for name in ("strength", "step", *_OPTIONS):
            value = getattr(self, name)
            if value != getattr(Config, name) and name not in method.takes:
                raise ValueError(f"the method {self.method!r} takes no {name}, got {value}")

    @property
    def setup(self) -> dict[str, Any]:
        """The settings that the trainings of a comparison share, by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Setup)}

    @property
    def name(self) -> str:
        """The method and its numbers, as in ``finite-step:1:1.5`` or ``hessian:2,every=4``."""
        numbers = [f"{n:g}" for n in (self.strength, self.step) if n is not None]
        return ",".join([":".join([self.method, *numbers]), *self.options])

    @property
    def options(self) -> list[str]:
        """The options that follow the numbers, as in ``every=4`` or ``norm=linf``."""
        given = {name: getattr(self, name) for name in _OPTIONS}
        return [
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in given.items()
            if value != getattr(Config, name)
        ]


def parse_method(text: str) -> dict[str, Any]:
    """Read a method and its numbers: ``hessian``, ``finite-step:1:1.5``, ``hessian:2,every=4``.

    Raises:
        ValueError: if the method is unknown, or what follows it is malformed.
    """
    first, *words = text.split(",")
    name, *numbers = first.split(":")
    methods.find(name)
    try:
        values = [float(number) for number in numbers]
        given = [(key, _OPTIONS[key](value)) for key, value in (w.split("=") for w in words)]
    except (ValueError, KeyError):
        values, given = [math.nan] * 3, []
    if len(values) > 2:
        raise ValueError(
            f"{text!r} must be a method, method:strength or method:strength:step, "
            f"optionally followed by {' or '.join(f',{key}=...' for key in _OPTIONS)}"
        )
    options = dict(given)
    if len(options) < len(given):
        raise ValueError(f"{text!r} gives one of its options twice")
    return {"method": name, **dict(zip(("strength", "step"), values, strict=False)), **options}


def kind_of_images(validation: int) -> str:
    """Return which images a network is measured on: held-out ones if it held any out."""
    return "held-out" if validation else "test"
