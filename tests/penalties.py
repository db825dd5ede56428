"""Every penalty in the configurations that are tested, and oracles by dense derivatives."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import hessjax
from hessjax import Eigenpair, lanczos, norm_ascent, power_iteration
from tests import cases

STEP = 0.5
KEY = jax.random.key(30)


def fixed_start(gradient: Any, key: Any) -> Any:
    """Start at a direction that has nothing to do with the gradient."""
    del key
    flat, unravel = ravel_pytree(gradient)
    return unravel(jnp.cos(jnp.arange(flat.size)).astype(flat.dtype))


def converged_lanczos(matvec: Any, v0: Any) -> Eigenpair:
    """Take as many products as the space has dimensions, but 14 at most."""
    size = ravel_pytree(v0)[0].size
    return lanczos(matvec, v0, num_iters=min(size, 14))


PENALTIES: dict[str, Callable[..., jax.Array]] = {
    "gradient": hessjax.input_gradient_norm,
    "gradient squared": partial(hessjax.input_gradient_norm, squared=True),
    "gradient, linf ball": partial(hessjax.input_gradient_norm, order=jnp.inf),
    "gradient, l1 ball": partial(hessjax.input_gradient_norm, order=1),
    "hessian": hessjax.hessian_operator_norm,
    "hessian squared": partial(hessjax.hessian_operator_norm, squared=True),
    "hessian, three products": partial(
        hessjax.hessian_operator_norm, solver=partial(power_iteration, num_iters=3)
    ),
    "hessian, fixed start": partial(hessjax.hessian_operator_norm, start=fixed_start),
    "hessian, ascent": partial(
        hessjax.hessian_operator_norm, solver=partial(norm_ascent, num_iters=2, step_size=0.7)
    ),
    "hessian, two lanczos": partial(
        hessjax.hessian_operator_norm, solver=partial(lanczos, num_iters=2)
    ),
    "hessian, converged": partial(hessjax.hessian_operator_norm, solver=converged_lanczos),
    "finite step": partial(hessjax.finite_step_operator_norm, step=STEP),
    "finite step squared": partial(hessjax.finite_step_operator_norm, step=STEP, squared=True),
    "finite step, three": partial(hessjax.finite_step_operator_norm, step=STEP, num_iters=3),
    "curvature": partial(hessjax.curvature_along_gradient, step=STEP),
    "gauss-newton": hessjax.gauss_newton_operator_norm,
    "hessian frobenius": partial(hessjax.hessian_squared_frobenius_norm, num_samples=2),
    "jacobian frobenius": partial(hessjax.jacobian_squared_frobenius_norm, num_samples=2),
    "jacobian operator": partial(
        hessjax.jacobian_operator_norm, solver=partial(lanczos, num_iters=6)
    ),
}
# One configuration of each kind, where the others would only repeat it.
CORE = [
    "gradient",
    "gradient, linf ball",
    "gradient, l1 ball",
    "hessian",
    "hessian, ascent",
    "hessian, converged",
    "finite step",
    "curvature",
    "gauss-newton",
    "hessian frobenius",
    "jacobian frobenius",
    "jacobian operator",
]
# One for each way to find a direction.
FEW = [
    "gradient",
    "hessian",
    "hessian, converged",
    "gauss-newton",
    "hessian frobenius",
    "jacobian operator",
]
NEEDS_KEY = ["hessian frobenius", "jacobian frobenius"]
OF_A_COMPOSITE = [name for name in PENALTIES if name.startswith(("gauss", "jacobian"))]


def unit(vector: Any) -> np.ndarray:
    return np.asarray(vector) / np.linalg.norm(vector)


def krylov_ritz_vector(matrix: np.ndarray, start: np.ndarray, count: int) -> np.ndarray:
    """Return the Ritz vector of largest |Ritz value|, from powers and a QR decomposition."""
    columns = [np.linalg.matrix_power(matrix, k) @ start for k in range(count)]
    basis = np.linalg.qr(np.stack([unit(column) for column in columns], axis=1))[0]
    values, vectors = np.linalg.eigh(basis.T @ matrix @ basis)
    return basis @ vectors[:, np.argmax(abs(values))]


def frozen_oracles(name: str) -> dict[str, Callable[[Any], jax.Array]]:
    """Return each penalty as a function of the parameters, by dense derivatives.

    Directions are found here, in numpy, at the parameters of the case, and stay there. What has no
    direction in its definition, or a converged one, is the total quantity.
    """
    case, dense = cases.ALL[name](), cases.dense(name)
    gradient, hessian = np.asarray(dense.gradient), np.asarray(dense.hessian)

    def slope(params: Any, offset: np.ndarray | float = 0.0) -> jax.Array:
        point = case.x + np.reshape(offset * np.ones(case.x.size), case.x.shape)
        return cases.dense_gradient(case.function(params), point)

    def curve(params: Any) -> jax.Array:
        return cases.dense_hessian(case.function(params), case.x)

    def product_norm(v: np.ndarray) -> Callable[[Any], jax.Array]:
        return lambda params: jnp.linalg.norm(curve(params) @ v)

    def change(v: np.ndarray) -> Callable[[Any], jax.Array]:
        return lambda params: jnp.linalg.norm(slope(params, STEP * v) - slope(params))

    def itself(penalty: str) -> Callable[[Any], jax.Array]:
        # Its probes depend on the key alone, so its total derivative is the one wanted.
        return lambda params: PENALTIES[penalty](case.function(params), case.x, KEY)

    along = unit(gradient)
    thrice = unit(hessian @ hessian @ along)
    fixed = unit(np.cos(np.arange(case.x.size)))
    ascended = along
    for _ in range(2):
        image = hessian @ ascended
        ascended = unit(ascended + 0.7 * hessian @ image / np.linalg.norm(image))
    moved = along
    for _ in range(2):
        moved = unit(slope(case.params, STEP * moved) - slope(case.params))
    sign = unit(np.sign(gradient))
    return {
        "gradient": lambda p: jnp.linalg.norm(slope(p)),
        "gradient squared": lambda p: jnp.sum(slope(p) ** 2),
        "gradient, linf ball": lambda p: jnp.sum(jnp.abs(slope(p))),
        "gradient, l1 ball": lambda p: jnp.max(jnp.abs(slope(p))),
        "hessian": product_norm(along),
        "hessian squared": lambda p: product_norm(along)(p) ** 2,
        "hessian, three products": product_norm(thrice),
        "hessian, fixed start": product_norm(fixed),
        "hessian, ascent": product_norm(ascended),
        "hessian, two lanczos": product_norm(krylov_ritz_vector(hessian, along, 2)),
        "hessian, converged": lambda p: cases.operator_norm(curve(p)),
        "finite step": lambda p: change(along)(p) / STEP,
        "finite step squared": lambda p: (change(along)(p) / STEP) ** 2,
        "finite step, three": lambda p: change(moved)(p) / STEP,
        "curvature": change(sign),
        "gauss-newton": lambda p: jnp.max(
            jnp.linalg.eigvalsh(cases.dense_gauss_newton(case.function(p), case.x))
        ),
        "hessian frobenius": itself("hessian frobenius"),
        "jacobian frobenius": itself("jacobian frobenius"),
        "jacobian operator": lambda p: jnp.linalg.norm(
            cases.dense_jacobian(case.function(p).model, case.x), 2
        ),
    }


# Gradients on all networks would take most of the suite's time.
DIFFERENTIATED = {"mlp gelu": list(PENALTIES), "cnn softplus": CORE, "cnn maxpool": CORE}


@cache
def values(name: str) -> dict[str, jax.Array]:
    """Return every penalty at a case that is differentiated, and the most telling at others."""
    if name in DIFFERENTIATED:
        return {penalty: value for penalty, (value, _) in differentiated(name).items()}
    case = cases.ALL[name]()

    @jax.jit
    def evaluate(params: Any) -> dict[str, jax.Array]:
        f = case.function(params)
        return {penalty: PENALTIES[penalty](f, case.x, KEY) for penalty in FEW}

    return evaluate(case.params)


@cache
def differentiated(name: str) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Return every penalty at a case with its raveled parameter gradient."""
    case = cases.ALL[name]()
    flat, unravel = ravel_pytree(case.params)

    @jax.jit
    def evaluate(flat: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        return {
            penalty: jax.value_and_grad(
                lambda p, penalty=penalty: PENALTIES[penalty](
                    case.function(unravel(p)), case.x, KEY
                )
            )(flat)
            for penalty in DIFFERENTIATED[name]
        }

    return evaluate(flat)


class Oracle(NamedTuple):
    """A quantity at a case and its central differences along directions in the parameters."""

    value: np.ndarray
    differences: np.ndarray


@cache
def oracle(name: str) -> tuple[np.ndarray, dict[str, Oracle]]:
    """Return directions in the parameters, one per row, and the oracle of every penalty."""
    case = cases.ALL[name]()
    flat, _ = ravel_pytree(case.params)
    directions = np.stack([unit(cases.vector(flat.size, seed)) for seed in range(100, 112)])
    frozen = frozen_oracles(name)
    functions = {penalty: frozen[penalty] for penalty in DIFFERENTIATED[name]}
    value, differences = cases.directional_differences(
        lambda params: jnp.stack([function(params) for function in functions.values()]),
        case.params,
        directions,
    )
    return directions, dict(zip(functions, map(Oracle, value, differences.T), strict=True))
