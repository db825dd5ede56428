"""Training methods by name: each turns one number, its strength, into an objective."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

from experiments import adversarial
from hessjax import (
    curvature_along_gradient,
    finite_step_operator_norm,
    gauss_newton_operator_norm,
    hessian_squared_frobenius_norm,
    input_gradient_norm,
    jacobian_operator_norm,
    jacobian_squared_frobenius_norm,
    lanczos,
    norm_ascent,
    power_iteration,
    random_start,
    regularized,
    second_order,
)
from hessjax.attacks import LpBall
from hessjax.eigen import ONE_PRODUCT, Solver, Start, gradient_start
from hessjax.objective import Apply, Objective, Penalty


class Setting(NamedTuple):
    """The numbers that a method is built with.

    Attributes:
        strength: see `METHODS`; not negative.
        step: h, the length of a finite step in input units, where the method takes one.
        order: p of the ball, where the method has one.
        ramp: schedule over the training steps, from 0 to 1, that multiplies every weight.
        weight: the second weight, where the method takes one.
        every, parts: as in `hessjax.regularized`; for methods with a penalty.
        num_steps: of the attack, where the method has one of several steps; its default if None.
    """

    strength: float
    step: float
    order: float
    ramp: optax.Schedule
    weight: float = 0.0
    every: int = 1
    parts: int = 1
    num_steps: int | None = None

    @property
    def savings(self) -> dict[str, Any]:
        """Keyword arguments of the objective."""
        return {"every": self.every, "parts": self.parts}

    @property
    def attack_options(self) -> dict[str, Any]:
        """Keyword arguments of the attack."""
        return {} if self.num_steps is None else {"num_steps": self.num_steps}


# What every method with a penalty takes: the penalty can be limited to some steps or examples.
_PENALTY = ("strength", "every", "parts")


class Method(NamedTuple):
    """How to train.

    Attributes:
        build: ``(apply, setting) -> objective``.
        strength: what the strength is, in a word or two; None if there is none.
        takes: the names of the settings that apply to it, as in `Setting`; ``norm`` if it trains
            for a ball of either norm, with the radius as its strength.
        usual: the strength for a data set that does not define its own.
        usual_weight: the default of the second weight.
        usual_steps: the number of steps of its attack if none is given.
        positive: whether its strength must not be 0.
    """

    build: Callable[[Apply, Setting], Objective]
    strength: str | None
    takes: tuple[str, ...] = _PENALTY
    usual: float = 1
    usual_weight: float | None = None
    usual_steps: int | None = None
    positive: bool = False


def _ramped(setting: Setting, weight: float) -> Callable[[Any], Any]:
    return lambda step: weight * setting.ramp(step)


def _none(apply: Apply, _: Setting) -> Objective:
    return second_order(apply, cross_entropy, 0, 0)


def _gradient(apply: Apply, setting: Setting) -> Objective:
    if setting.order != 2:
        penalty = partial(input_gradient_norm, order=setting.order)
        return _penalized(apply, setting, name="gradient_norm", penalty=penalty)
    weight = _ramped(setting, setting.strength)
    return second_order(apply, cross_entropy, weight, 0, **setting.savings)


def _surrogate(apply: Apply, setting: Setting, *, solver: Solver | None = ONE_PRODUCT) -> Objective:
    epsilon = setting.strength
    weights = (_ramped(setting, epsilon), _ramped(setting, epsilon**2 / 2))
    return second_order(apply, cross_entropy, *weights, solver=solver, **setting.savings)


def _two_weights(apply: Apply, setting: Setting) -> Objective:
    weights = (_ramped(setting, setting.strength), _ramped(setting, setting.weight))
    return second_order(apply, cross_entropy, *weights, **setting.savings)


def _hessian_only(
    apply: Apply, setting: Setting, *, solver: Solver = ONE_PRODUCT, start: Start = gradient_start
) -> Objective:
    weight = _ramped(setting, setting.strength)
    return second_order(
        apply, cross_entropy, 0, weight, solver=solver, start=start, **setting.savings
    )


def _penalized(apply: Apply, setting: Setting, *, name: str, penalty: Penalty) -> Objective:
    weight = _ramped(setting, setting.strength)
    return regularized(apply, cross_entropy, {name: (weight, penalty)}, **setting.savings)


def _stepping(apply: Apply, setting: Setting, *, name: str, penalty: Penalty) -> Objective:
    return _penalized(apply, setting, name=name, penalty=partial(penalty, step=setting.step))


def _attacked(apply: Apply, setting: Setting, *, attack: adversarial.Attack) -> Objective:
    plain, radius = _none(apply, setting), _ramped(setting, setting.strength)
    attack = partial(attack, **setting.attack_options)
    return adversarial.attacked(plain, apply, attack, radius, order=setting.order)


def _inside(apply: Apply, setting: Setting) -> Objective:
    surrogate, radius = _surrogate(apply, setting), _ramped(setting, setting.step)
    attack = partial(adversarial.by_ascent, **setting.attack_options)
    return adversarial.attacked(surrogate, apply, attack, radius, order=2)


def _trades(apply: Apply, setting: Setting) -> Objective:
    ball = LpBall(setting.strength, setting.order)
    penalty = partial(adversarial.divergence, ball=ball, **setting.attack_options)
    weight = _ramped(setting, setting.weight)
    return regularized(apply, cross_entropy, {"divergence": (weight, penalty)}, **setting.savings)


def _hot(apply: Apply, setting: Setting) -> Objective:
    # Hot from the first step on, without the ramp: the temperature is not a weight.
    def cooled(logits: jax.Array, y: jax.Array) -> jax.Array:
        return cross_entropy(logits / setting.strength, y)

    return second_order(apply, cooled, 0, 0)


_FIVE = {
    "power": partial(power_iteration, num_iters=5),
    # A step of α adds at most α‖∇²f‖ to a unit v: with α = 10, ascent is close to power iteration
    # where the norm is above a tenth, as it is without a penalty.
    "ascent": partial(norm_ascent, num_iters=5, step_size=10.0),
    "lanczos": partial(lanczos, num_iters=5),
}
METHODS = {
    "none": Method(_none, None, takes=()),
    "gradient": Method(_gradient, "weight of ‖∇f‖₂", takes=(*_PENALTY, "norm")),
    "hessian": Method(_surrogate, "ε of the surrogate f + ε‖∇f‖₂ + ½ε²‖∇²f‖"),
    "hessian-cheap": Method(
        partial(_surrogate, solver=None), "ε of the surrogate with |ĝᵀ∇²f ĝ|, ĝ = ∇f/‖∇f‖"
    ),
    "hessian-lanczos": Method(
        partial(_surrogate, solver=_FIVE["lanczos"]),
        "ε of the surrogate, ‖∇²f‖ by five Lanczos products",
    ),
    "hessian-inside": Method(
        _inside,
        "ε of the surrogate at x + hĝ, the end of one step or of several",
        takes=(*_PENALTY, "step", "num_steps"),
        usual_steps=1,
    ),
    "gradient-hessian": Method(
        _two_weights,
        "weight of ‖∇f‖₂",
        takes=(*_PENALTY, "weight"),
        usual_weight=1.0,  # of ‖∇²f‖
    ),
    "hessian-only": Method(_hessian_only, "weight of ‖∇²f‖"),
    "hessian-only-lanczos": Method(
        partial(_hessian_only, solver=_FIVE["lanczos"]), "weight of ‖∇²f‖, five Lanczos products"
    ),
    "hessian-only-power": Method(
        partial(_hessian_only, solver=_FIVE["power"], start=random_start),
        "weight of ‖∇²f‖, five power iterations from a random start",
    ),
    "hessian-only-ascent": Method(
        partial(_hessian_only, solver=_FIVE["ascent"], start=random_start),
        "weight of ‖∇²f‖, five steps of gradient ascent from a random start, as published",
    ),
    "hessian-frobenius": Method(
        partial(_penalized, name="squared_hessian_norm", penalty=hessian_squared_frobenius_norm),
        "weight of ‖∇²f‖²_F",
    ),
    "finite-step": Method(
        partial(
            _stepping,
            name="finite_step_norm",
            penalty=partial(finite_step_operator_norm, squared=True),
        ),
        "weight of (‖∇f(x+hv) − ∇f(x)‖₂/h)²",
        takes=(*_PENALTY, "step"),
    ),
    "curvature": Method(
        partial(_stepping, name="curvature", penalty=curvature_along_gradient),
        "weight of CURE's ‖∇f(x+hz) − ∇f(x)‖₂",
        takes=(*_PENALTY, "step"),
    ),
    "jacobian": Method(
        partial(_penalized, name="jacobian_norm", penalty=jacobian_squared_frobenius_norm),
        "weight of ‖J‖²_F",
        usual=0.01,
    ),
    "jacobian-operator": Method(
        partial(
            _penalized,
            name="jacobian_operator_norm",
            penalty=partial(jacobian_operator_norm, solver=_FIVE["lanczos"]),
        ),
        "weight of ‖J‖, five Lanczos products",
        usual=0.1,
    ),
    "gauss-newton": Method(
        partial(_penalized, name="gauss_newton_norm", penalty=gauss_newton_operator_norm),
        "weight of the Gauss-Newton norm",
    ),
    "adversarial": Method(
        partial(_attacked, attack=adversarial.by_pgd),
        f"ε of PGD-{adversarial.STEPS} training",
        takes=("strength", "norm", "num_steps"),
        usual_steps=adversarial.STEPS,
        positive=True,
    ),
    "trades": Method(
        _trades,
        f"ε of TRADES, PGD of {adversarial.STEPS} steps",
        takes=(*_PENALTY, "weight", "norm", "num_steps"),
        usual_weight=6.0,  # β of the divergence
        usual_steps=adversarial.STEPS,
        positive=True,
    ),
    # The last two mask gradients rather than resist attacks: an evaluation has to expose them.
    "fgsm": Method(
        partial(_attacked, attack=adversarial.by_ascent),
        "ε of FGSM training",
        takes=("strength", "norm"),
        positive=True,
    ),
    "hot": Method(
        _hot,
        "temperature of the cross-entropy",
        takes=("strength",),
        usual=100,
        positive=True,
    ),
}


def find(name: str) -> Method:
    """Return the method of this name.

    Raises:
        ValueError: if there is none, listing the known names.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: expected one of {', '.join(METHODS)}")
    return METHODS[name]
