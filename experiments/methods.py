"""Training methods by name: each turns one number, its strength, into an objective."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

from experiments.models import Params
from hessjax import (
    Lazy,
    curvature_along_gradient,
    finite_step_operator_norm,
    gauss_newton_operator_norm,
    jacobian_squared_frobenius_norm,
    lanczos,
    regularized,
    second_order,
)
from hessjax._placement import each
from hessjax.attacks import LpBall, fgsm, pgd_init, pgd_step
from hessjax.eigen import ONE_PRODUCT, Solver
from hessjax.lazy import Metrics, Objective
from hessjax.objective import Apply, Penalty

_ATTACK_STEPS = 10
Logits = Callable[[jax.Array], jax.Array]
_Attack = Callable[[Logits, jax.Array, jax.Array, LpBall, jax.Array], jax.Array]


class Setting(NamedTuple):
    """What a method is told.

    Attributes:
        strength: see `METHODS`; not negative.
        step: h, the length of a finite step in input units, where the method takes one.
        order: p of the ball of adversarial training.
        ramp: schedule of the training step from 0 to 1 that every weight is multiplied by.
        every, parts: as in `hessjax.regularized`; for methods with a penalty.
    """

    strength: float
    step: float
    order: float
    ramp: optax.Schedule
    every: int = 1
    parts: int = 1

    @property
    def savings(self) -> dict[str, Any]:
        """Keyword arguments of the objective."""
        return {"every": self.every, "parts": self.parts}


class Method(NamedTuple):
    """How to train.

    Attributes:
        build: ``(apply, setting) -> objective``.
        strength: what the strength is, in a word or two; None if there is none.
        takes_step: whether it takes a finite step.
        takes_ball: whether its strength is the radius of a ball.
        positive: whether its strength must not be 0.
        penalizes: whether it adds a penalty, which can be left to some of the steps or examples.
    """

    build: Callable[[Apply, Setting], Objective]
    strength: str | None
    takes_step: bool = False
    takes_ball: bool = False
    positive: bool = False
    penalizes: bool = True


def _none(apply: Apply, _: Setting) -> Objective:
    return second_order(apply, cross_entropy, 0, 0)


def _gradient(apply: Apply, setting: Setting) -> Objective:
    weight = _ramped(setting, setting.strength)
    return second_order(apply, cross_entropy, weight, 0, **setting.savings)


def _hessian(apply: Apply, setting: Setting, *, solver: Solver | None = ONE_PRODUCT) -> Objective:
    epsilon = setting.strength
    weights = (_ramped(setting, epsilon), _ramped(setting, epsilon**2 / 2))
    return second_order(apply, cross_entropy, *weights, solver=solver, **setting.savings)


def _hessian_only(apply: Apply, setting: Setting) -> Objective:
    weight = _ramped(setting, setting.strength)
    return second_order(apply, cross_entropy, 0, weight, **setting.savings)


def _finite_step(apply: Apply, setting: Setting) -> Objective:
    penalty = partial(finite_step_operator_norm, step=setting.step, squared=True)
    return _penalized(apply, setting, "finite_step_norm", penalty)


def _curvature(apply: Apply, setting: Setting) -> Objective:
    penalty = partial(curvature_along_gradient, step=setting.step)
    return _penalized(apply, setting, "curvature", penalty)


def _jacobian(apply: Apply, setting: Setting) -> Objective:
    return _penalized(apply, setting, "jacobian_norm", jacobian_squared_frobenius_norm)


def _gauss_newton(apply: Apply, setting: Setting) -> Objective:
    return _penalized(apply, setting, "gauss_newton_norm", gauss_newton_operator_norm)


def _hot(apply: Apply, setting: Setting) -> Objective:
    # Hot from the first step on, without the ramp: the temperature is no weight.
    def cooled(logits: jax.Array, y: jax.Array) -> jax.Array:
        return cross_entropy(logits / setting.strength, y)

    return second_order(apply, cooled, 0, 0)


def _attacked(apply: Apply, setting: Setting, attack: _Attack) -> Objective:
    plain = second_order(apply, cross_entropy, 0, 0)

    def objective(
        params: Params, batch: tuple, key: jax.Array, step: int | jax.Array = 0
    ) -> tuple[jax.Array, Metrics]:
        x, y, *mask = batch
        epsilon = jnp.maximum(setting.strength * setting.ramp(step), 1e-6)

        def one(shared: tuple, x: jax.Array, y: jax.Array, place: jax.Array) -> jax.Array:
            params, epsilon, key = shared
            ball = LpBall(epsilon, setting.order)
            return attack(partial(apply, params), x, y, ball, jax.random.fold_in(key, place))

        shared = jax.lax.stop_gradient(params), epsilon, key
        hard = each(one, shared, jnp.asarray(x), jnp.asarray(y), jnp.arange(len(x)))
        return plain(params, (hard, y, *mask), key, step)

    return objective


def _by_pgd(
    logits_fn: Logits, x: jax.Array, y: jax.Array, ball: LpBall, key: jax.Array
) -> jax.Array:
    state = pgd_init(logits_fn, x, y, ball, key)
    # Written out: a loop over convolutions is slow on the CPU. The last iterate, not the first
    # misclassified one, which would be an easier example to train on.
    for _ in range(_ATTACK_STEPS):
        length = 2.5 * ball.epsilon / _ATTACK_STEPS
        state = pgd_step(logits_fn, x, y, ball, state, step_size=length)
    return state.x


def _by_fgsm(
    logits_fn: Logits, x: jax.Array, y: jax.Array, ball: LpBall, key: jax.Array
) -> jax.Array:
    del key
    return fgsm(logits_fn, x, y, ball)


def _ramped(setting: Setting, weight: float) -> Callable[[Any], Any]:
    return lambda step: weight * setting.ramp(step)


def _penalized(apply: Apply, setting: Setting, name: str, penalty: Penalty) -> Objective:
    weight = _ramped(setting, setting.strength)
    return regularized(apply, cross_entropy, {name: (weight, penalty)}, **setting.savings)


METHODS = {
    "none": Method(_none, None, penalizes=False),
    "gradient": Method(_gradient, "weight of ‖∇f‖₂"),
    "hessian": Method(_hessian, "ε of the surrogate f + ε‖∇f‖₂ + ½ε²‖∇²f‖"),
    "hessian-cheap": Method(
        partial(_hessian, solver=None), "ε of the surrogate with |ĝᵀ∇²f ĝ|, ĝ = ∇f/‖∇f‖"
    ),
    "hessian-lanczos": Method(
        partial(_hessian, solver=partial(lanczos, num_iters=5)),
        "ε of the surrogate, ‖∇²f‖ by five Lanczos products",
    ),
    "hessian-only": Method(_hessian_only, "weight of ‖∇²f‖"),
    "finite-step": Method(_finite_step, "weight of (‖∇f(x+hv) − ∇f(x)‖₂/h)²", takes_step=True),
    "curvature": Method(_curvature, "weight of CURE's ‖∇f(x+hz) − ∇f(x)‖₂", takes_step=True),
    "jacobian": Method(_jacobian, "weight of ‖J‖²_F"),
    "gauss-newton": Method(_gauss_newton, "weight of the Gauss-Newton norm"),
    "adversarial": Method(
        partial(_attacked, attack=_by_pgd),
        f"ε of PGD-{_ATTACK_STEPS} training",
        takes_ball=True,
        positive=True,
        penalizes=False,
    ),
    # The last two mask gradients rather than withstand: an evaluation has to find them out.
    "fgsm": Method(
        partial(_attacked, attack=_by_fgsm),
        "ε of FGSM training",
        takes_ball=True,
        positive=True,
        penalizes=False,
    ),
    "hot": Method(_hot, "temperature of the cross-entropy", positive=True, penalizes=False),
}


def find(name: str) -> Method:
    """Return the method of a name.

    Raises:
        ValueError: if there is none, naming those that there are.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: there are {', '.join(METHODS)}")
    return METHODS[name]


def with_accuracy(apply: Apply, objective: Objective) -> Objective:
    """Add the metric ``accuracy``, on the clean batch; its forward pass is shared on compiling."""
    if isinstance(objective, Lazy):
        return objective.map(partial(with_accuracy, apply))

    def measured(
        params: Params, batch: tuple, key: jax.Array, step: int | jax.Array = 0
    ) -> tuple[jax.Array, Metrics]:
        x, y, mask = (*batch, None)[:3]
        value, metrics = objective(params, batch, key, step)
        predicted = jnp.argmax(each(apply, params, x), axis=-1)
        accuracy = jnp.mean(predicted == y, where=None if mask is None else jnp.asarray(mask, bool))
        return value, {**metrics, "accuracy": accuracy}

    return measured


def refusing(objective: Objective) -> Objective:
    """Make the gradient of a value that is not finite NaN, so that no optimizer step is made of it.

    `optax.apply_if_finite` looks at the gradients alone, and an infinite loss may have finite ones.
    """
    if isinstance(objective, Lazy):
        return objective.map(refusing)

    def refused(
        params: Params, batch: tuple, key: jax.Array, step: int | jax.Array = 0
    ) -> tuple[jax.Array, Metrics]:
        value, metrics = objective(params, batch, key, step)
        factor = jnp.where(jnp.isfinite(value), jnp.ones((), value.dtype), jnp.nan)
        return value * factor, metrics

    return refused
