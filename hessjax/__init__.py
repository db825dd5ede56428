"""Regularize the curvature of a loss with respect to its input, in JAX."""

from hessjax import attacks, bounds
from hessjax.attacks import LpBall, apgd, auto_attack, fab, fgsm, pgd, square
from hessjax.checks import check_apply, check_batch
from hessjax.composite_penalties import (
    gauss_newton_operator_norm,
    jacobian_operator_norm,
    jacobian_squared_frobenius_norm,
)
from hessjax.eigen import (
    Eigenpair,
    gradient_start,
    lanczos,
    norm_ascent,
    power_iteration,
    random_start,
)
from hessjax.lazy import Lazy
from hessjax.losses import dlr_loss, margin, targeted_dlr_loss
from hessjax.objective import regularized, second_order
from hessjax.operators import (
    Composite,
    directional_derivative,
    gauss_newton_matrix,
    gauss_newton_operator,
    hessian_matrix,
    hessian_operator,
    hvp,
    second_directional_derivative,
)
from hessjax.penalties import (
    curvature_along_gradient,
    finite_step_operator_norm,
    hessian_operator_norm,
    hessian_squared_frobenius_norm,
    input_gradient_norm,
)
from hessjax.training import TrainState, train_step

__version__ = "0.1.0"

__all__ = [
    "Composite",
    "Eigenpair",
    "Lazy",
    "LpBall",
    "TrainState",
    "apgd",
    "attacks",
    "auto_attack",
    "bounds",
    "check_apply",
    "check_batch",
    "curvature_along_gradient",
    "directional_derivative",
    "dlr_loss",
    "fab",
    "fgsm",
    "finite_step_operator_norm",
    "gauss_newton_matrix",
    "gauss_newton_operator",
    "gauss_newton_operator_norm",
    "gradient_start",
    "hessian_matrix",
    "hessian_operator",
    "hessian_operator_norm",
    "hessian_squared_frobenius_norm",
    "hvp",
    "input_gradient_norm",
    "jacobian_operator_norm",
    "jacobian_squared_frobenius_norm",
    "lanczos",
    "margin",
    "norm_ascent",
    "pgd",
    "power_iteration",
    "random_start",
    "regularized",
    "second_directional_derivative",
    "second_order",
    "square",
    "targeted_dlr_loss",
    "train_step",
]
