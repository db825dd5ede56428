"""Functions whose input Hessians are known, and independent oracles for them."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from hessjax import Composite

# The compiler's optimizations take most of a test's time and change no value beyond rounding. So
# tests/conftest.py has it leave them out, unless it is given one of the following.
_OLDER = jax.__version_info__ < (0, 11)
QUICK: dict[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
    # Older code for fusions, which is compiled in two thirds of the time.
    **({"xla_cpu_use_fusion_emitters": False} if _OLDER else {}),
}
# The loops of that code hide from the count of operations what is done in them.
COUNTED: dict[str, Any] = {"xla_cpu_use_fusion_emitters": True} if _OLDER else {}
USUAL: dict[str, Any] = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    **COUNTED,
}

cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels


# Symmetric matrices with prescribed spectra.

SPECTRA = {
    "definite": (5.0, 3.0, 2.0, 1.0, 0.5, 0.1),
    "indefinite": (2.0, 1.5, 0.5, -0.2, -1.0, -4.0),
    "tie": (3.0, 1.0, 0.5, 0.2, -0.5, -3.0),
    "double": (3.0, 3.0, 1.0, 0.5, -0.5, -1.0),
    "rank one": (0.0, 0.0, 0.0, 0.0, 0.0, -7.0),
    "zero": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
}
SCALES = (1.0, 1e-18, 1e12)


def rotation(size: int, seed: int = 0) -> np.ndarray:
    """Return a random orthogonal matrix."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def symmetric(spectrum: tuple[float, ...], scale: float = 1.0) -> np.ndarray:
    """Return a dense symmetric matrix with these eigenvalues times ``scale``."""
    basis = rotation(len(spectrum))
    return scale * (basis * np.asarray(spectrum)) @ basis.T


def vector(size: int, seed: int = 0) -> np.ndarray:
    """Return a random vector of standard normal entries."""
    return np.random.default_rng(seed).normal(size=size)


# Families of functions: apply(params, x) -> outputs, loss(outputs, y) -> scalar.


class Case(NamedTuple):
    """One example of a parametrized model with its loss."""

    apply: Callable[[Any, Any], jax.Array]
    params: Any
    x: Any
    y: Any
    loss: Callable[[jax.Array, Any], jax.Array] = cross_entropy

    def function(self, params: Any = None) -> Composite:
        """Return the loss of the example as a function of the input."""
        params = self.params if params is None else params
        return Composite(partial(self.apply, params), lambda z: self.loss(z, self.y))


def quadratic_apply(params: Any, x: jax.Array) -> jax.Array:
    """Return ``b·x + ½ xᵀAx``, whose Hessian is A."""
    return params["b"] @ x + 0.5 * x @ params["A"] @ x


def output_itself(z: jax.Array, y: Any) -> jax.Array:
    """Return the output: the loss of a model that computes its own."""
    del y
    return z


def quadratic(name: str, scale: float = 1.0, dtype: Any = jnp.float64) -> Case:
    """Return a quadratic with the named spectrum; its gradient is no eigenvector."""
    params = {
        "A": jnp.asarray(symmetric(SPECTRA[name], scale), dtype),
        "b": jnp.asarray(scale * vector(6, seed=1), dtype),
    }
    return Case(quadratic_apply, params, jnp.asarray(vector(6, seed=2), dtype), 0, output_itself)


def saddle(t: Any, x: jax.Array) -> jax.Array:
    """Return ``t (x₀² - 3 x₁²)``, with gradient t (2 x₀, -6 x₁) and Hessian t diag(2, -6)."""
    return t * (x[0] ** 2 - 3 * x[1] ** 2)


# ‖Hv‖ at (1, 1) by one product, Hĝ = (2, 18)/√10, and by the next, along (1, 9)/√82.
SADDLE_NORMS = np.sqrt(328 / 10), np.sqrt(2920 / 82)


def second_axis(gradient: Any, key: Any) -> jax.Array:
    """Return the start (0, 2), of a length that does not matter; it takes a key."""
    return 0 * gradient + jnp.array([0.0, 2.0]) + 0 * jax.random.normal(key)


def linear_apply(params: Any, x: jax.Array) -> jax.Array:
    """Return ``Wx + b``."""
    return params["W"] @ x + params["b"]


def linear_softmax() -> Case:
    """Return multinomial logistic regression, whose Hessian has a closed form."""
    rng = np.random.default_rng(3)
    params = {"W": jnp.asarray(rng.normal(size=(4, 6))), "b": jnp.asarray(rng.normal(size=4))}
    return Case(linear_apply, params, jnp.asarray(rng.normal(size=6)), 2)


def linear_softmax_hessian(case: Case) -> np.ndarray:
    """Return ``Wᵀ(diag p - ppᵀ)W``."""
    weights = np.asarray(case.params["W"])
    logits = weights @ np.asarray(case.x) + np.asarray(case.params["b"])
    p = np.exp(logits - logits.max())
    p /= p.sum()
    return weights.T @ (np.diag(p) - np.outer(p, p)) @ weights


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "softplus": jax.nn.softplus,
    "gelu": jax.nn.gelu,
    "tanh": jnp.tanh,
}


def mlp_apply(activation: str, params: Any, x: jax.Array) -> jax.Array:
    """Apply a perceptron with one hidden layer."""
    hidden = ACTIVATIONS[activation](x @ params["W1"] + params["b1"])
    return hidden @ params["W2"] + params["b2"]


def cnn_apply(activation: str, params: Any, x: jax.Array) -> jax.Array:
    """Apply two convolutions and a dense layer; 'maxpool' pools between relu convolutions."""
    pooled = activation == "maxpool"
    sigma = ACTIVATIONS["relu" if pooled else activation]
    convolve = partial(jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    strides = (1, 1) if pooled else (2, 2)
    hidden = sigma(convolve(x[None], params["K1"], strides, "SAME") + params["b1"])
    if pooled:
        hidden = jax.lax.reduce_window(
            hidden, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        )
    hidden = sigma(convolve(hidden, params["K2"], (2, 2), "SAME") + params["b2"])
    return hidden.reshape(-1) @ params["W"] + params["b"]


def random_tree(shapes: Any, seed: int, dtype: Any = jnp.float64) -> Any:
    """Return normal arrays of the given shapes, matrices and kernels scaled by their fan-in."""
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> jax.Array:
        fan_in = float(np.prod(shape[:-1])) if len(shape) > 1 else 4.0
        return jnp.asarray(rng.normal(size=shape) * 1.5 / np.sqrt(fan_in), dtype)

    return jax.tree.map(draw, shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))


MLP_SHAPES = {"W1": (6, 8), "b1": (8,), "W2": (8, 5), "b2": (5,)}
CNN_SHAPES = {
    "K1": (3, 3, 1, 3),
    "b1": (3,),
    "K2": (3, 3, 3, 4),
    "b2": (4,),
    "W": (16, 5),
    "b": (5,),
}


def mlp(activation: str, dtype: Any = jnp.float64) -> Case:
    """Return a 6-8-5 perceptron with cross-entropy."""
    params = random_tree(MLP_SHAPES, seed=4, dtype=dtype)
    x = jnp.asarray(vector(6, seed=5), dtype)
    return Case(partial(mlp_apply, activation), params, x, 3)


def cnn(activation: str, dtype: Any = jnp.float64) -> Case:
    """Return a small convolutional network on 6 by 6 pixels with cross-entropy."""
    params = random_tree(CNN_SHAPES, seed=6, dtype=dtype)
    x = jnp.asarray(np.random.default_rng(7).uniform(size=(6, 6, 1)), dtype)
    return Case(partial(cnn_apply, activation), params, x, 1)


PIECEWISE_LINEAR = {
    "mlp relu": partial(mlp, "relu"),
    "cnn relu": partial(cnn, "relu"),
    "cnn maxpool": partial(cnn, "maxpool"),
}
SMOOTH = {
    "mlp softplus": partial(mlp, "softplus"),
    "mlp gelu": partial(mlp, "gelu"),
    "mlp tanh": partial(mlp, "tanh"),
    "cnn softplus": partial(cnn, "softplus"),
    "cnn gelu": partial(cnn, "gelu"),
    "cnn tanh": partial(cnn, "tanh"),
}
NETWORKS = PIECEWISE_LINEAR | SMOOTH
ALL: dict[str, Callable[[], Case]] = {
    **{f"quadratic {name}": partial(quadratic, name) for name in SPECTRA},
    "linear softmax": linear_softmax,
    **NETWORKS,
}


def batch_of(case: Case, size: int, num_classes: int = 5) -> tuple[jax.Array, jax.Array]:
    """Return inputs around that of the case and labels that cycle through the classes."""
    noise = np.random.default_rng(8).normal(size=(size, *case.x.shape)) * 0.3
    return jnp.asarray(case.x + noise, case.x.dtype), jnp.arange(size) % num_classes


# Oracles: dense linear algebra and finite differences.


def dense_hessian(f: Callable[[Any], jax.Array], x: Any) -> jax.Array:
    """Return the Hessian in the raveled input, by two reverse sweeps."""
    flat, unravel = ravel_pytree(x)
    return jax.jacrev(jax.jacrev(lambda t: f(unravel(t))))(flat)


def dense_gradient(f: Callable[[Any], jax.Array], x: Any) -> jax.Array:
    """Return the raveled gradient."""
    return ravel_pytree(jax.grad(f)(x))[0]


def operator_norm(matrix: Any) -> jax.Array:
    """Return the largest absolute eigenvalue of a symmetric matrix."""
    return jnp.max(jnp.abs(jnp.linalg.eigvalsh(matrix)))


def dense_jacobian(model: Callable[[Any], jax.Array], x: Any) -> jax.Array:
    """Return the Jacobian in the raveled input, shape ``(C, n)``."""
    flat, unravel = ravel_pytree(x)
    return jnp.atleast_2d(jax.jacrev(lambda t: model(unravel(t)))(flat))


def dense_gauss_newton(f: Composite, x: Any) -> jax.Array:
    """Return ``Jᵀ ∇²ℓ J``."""
    jacobian = dense_jacobian(f.model, x)
    return jacobian.T @ jnp.atleast_2d(dense_hessian(f.loss, f.model(x))) @ jacobian


class Dense(NamedTuple):
    """The dense derivatives of one example."""

    gradient: jax.Array
    hessian: jax.Array
    jacobian: jax.Array
    gauss_newton: jax.Array


@cache
def dense(name: str) -> Dense:
    """Return the dense derivatives of the named case."""
    case = ALL[name]()

    @jax.jit
    def evaluate(params: Any, x: Any) -> Dense:
        f = case.function(params)
        return Dense(
            dense_gradient(f, x),
            dense_hessian(f, x),
            dense_jacobian(f.model, x),
            dense_gauss_newton(f, x),
        )

    return evaluate(case.params, case.x)


def directional_differences(
    value: Callable[[Any], jax.Array], params: Any, directions: np.ndarray, step: float = 1e-5
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``value`` and its central differences along each row of ``directions``."""
    flat, unravel = ravel_pytree(params)
    offsets = step * jnp.concatenate([directions, -directions, jnp.zeros((1, flat.size))])

    # A loop, because the compiler is slow at convolutions of a batch of kernels.
    @jax.jit
    def evaluate(points: jax.Array) -> jax.Array:
        return jax.lax.map(lambda point: value(unravel(point)), points)

    values = np.asarray(evaluate(flat + offsets))
    forward, backward = values[: len(directions)], values[len(directions) : -1]
    return values[-1], (forward - backward) / (2 * step)


def finite_difference_gradient(value: Callable[[Any], jax.Array], params: Any) -> np.ndarray:
    """Return the raveled gradient of ``value`` by central differences in every parameter."""
    size = ravel_pytree(params)[0].size
    return directional_differences(value, params, np.eye(size))[1]


def assert_gradient(
    value: Callable[[Any], jax.Array],
    oracle: Callable[[Any], jax.Array],
    params: Any,
    rtol: float = 1e-6,
) -> None:
    """Check the parameter gradient of ``value`` against finite differences of ``oracle``."""
    got = np.asarray(ravel_pytree(jax.jit(jax.grad(value))(params))[0])
    wanted = finite_difference_gradient(oracle, params)
    assert np.linalg.norm(wanted) > 1e-3, "the oracle's gradient must be something to test with"
    assert np.linalg.norm(got - wanted) <= rtol * np.linalg.norm(wanted)


def assert_tree_close(got: Any, wanted: Any, rtol: float = 1e-12, atol: float = 0.0) -> None:
    """Check two trees of one structure leaf by leaf."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def all_finite(tree: Any) -> bool:
    """Say whether every entry is a finite number."""
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree))


# The same function on a tree of inputs.


def tree_input(x: jax.Array) -> dict[str, Any]:
    """Split six numbers into a tree of a matrix, a vector and a scalar."""
    return {"matrix": x[:2].reshape(2, 1), "rest": (x[2:5], x[5])}


def from_tree_input(tree: dict[str, Any]) -> jax.Array:
    """Join what `tree_input` split."""
    vector, scalar = tree["rest"]
    return jnp.concatenate([tree["matrix"].reshape(-1), vector, jnp.reshape(scalar, 1)])
