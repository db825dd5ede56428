"""The training steps in PyTorch, against those that they are compared with."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from experiments.benchmarks import reference, textbook
from experiments.benchmarks import reference_forms as forms
from experiments.methods import METHODS, Setting
from experiments.twin import torch_twin
from hessjax import (
    curvature_along_gradient,
    jacobian_squared_frobenius_norm,
    lanczos,
    regularized,
    second_order,
)
from hessjax.attacks import LpBall
from hessjax.attacks.balls import random_point
from hessjax.penalties import rademacher_probes
from tests.cases import cross_entropy
from tests.test_twin import architecture, original

# PyTorch says so of itself at the first forward tangent.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

COUNT, EPSILON, WEIGHT, STEP, PRODUCTS = 4, 0.8, 0.6, 0.5, 3
KEY = jax.random.key(7)
EACH = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(COUNT))


@cache
def network(name, activation):
    settings = architecture(name, activation, (5, 6, 2), widths=(7,), beta=2.0)
    apply, params = original(settings)
    return settings, apply, jax.tree.map(lambda leaf: jnp.asarray(leaf, float), params)


def setup(name="mlp", activation="relu", order: float = 2):
    """Return the network in JAX, the batch, and the steps in PyTorch on the same weights."""
    settings, apply, params = network(name, activation)
    rng = np.random.default_rng(4)
    x, y = rng.uniform(size=(COUNT, 5, 6, 2)), rng.integers(3, size=COUNT)
    made = reference.steps(
        settings, params, x, y, epsilon=EPSILON, weight=WEIGHT, step=STEP, order=order,
        power_iters=PRODUCTS, lanczos_iters=PRODUCTS, dtype=torch.float64,
    )  # fmt: skip
    return settings, apply, params, (x, y), made


def like_torch(array):
    """Move the channels of images to where PyTorch has them."""
    array = torch.from_numpy(np.array(array))
    return array.movedim(-1, 1).contiguous() if array.ndim == 4 else array


def surrogate(apply, **settings):
    return second_order(apply, cross_entropy, EPSILON, EPSILON**2 / 2, **settings)


def penalized(apply, penalty):
    return regularized(apply, cross_entropy, {"penalty": (WEIGHT, penalty)})


def originals(apply, x, order: float = 2):
    """Return the objective in JAX, and the noise that it draws, by the name of the step."""
    weights = (EPSILON, EPSILON**2 / 2)
    # The textbook multiplies once more after its iterations.
    power = textbook.objective(apply, cross_entropy, *weights, num_iters=PRODUCTS - 1)
    starts = jax.vmap(lambda key, x: jax.random.normal(key, x.shape, x.dtype))
    keys = jax.vmap(jax.random.fold_in, (0, None))(EACH, 0)
    probes = jax.vmap(lambda key: rademacher_probes(jnp.zeros(3), key, 1)[0])
    ball = LpBall(EPSILON, order)
    setting = Setting(EPSILON, STEP, order, lambda _: 1.0)
    return {
        "none": (second_order(apply, cross_entropy, 0, 0), None),
        "gradient": (second_order(apply, cross_entropy, EPSILON, 0), None),
        "hessian": (surrogate(apply), None),
        "hessian-forward": (surrogate(apply), None),
        "hessian-power": (power, starts(jax.random.split(KEY, COUNT), x)),
        "hessian-lanczos": (surrogate(apply, solver=partial(lanczos, num_iters=PRODUCTS)), None),
        "curvature": (penalized(apply, partial(curvature_along_gradient, step=STEP)), None),
        "jacobian": (penalized(apply, jacobian_squared_frobenius_norm), probes(keys)),
        "adversarial": (
            METHODS["adversarial"].build(apply, setting),
            jax.vmap(partial(random_point, ball))(x, EACH),
        ),
    }


def assert_same_step(name, model, activation, order: float = 2):
    settings, apply, params, (x, y), made = setup(model, activation, order)
    objective, noise = originals(apply, jnp.asarray(x), order)[name]
    evaluate = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (value, _), gradient = evaluate(params, (x, y), KEY)
    noise = None if noise is None else like_torch(noise)
    got, got_gradient = made[name].value_and_gradient(noise)
    np.testing.assert_allclose(got, value, rtol=1e-10)
    # The derivatives take the places of the weights, and so PyTorch's order.
    wanted = torch_twin(settings, gradient, dtype=torch.float64)
    assert got_gradient.keys() == dict(wanted.named_parameters()).keys()
    for weight, expected in wanted.named_parameters():
        np.testing.assert_allclose(got_gradient[weight], expected, rtol=1e-7, atol=1e-10)


NAMES = (
    "none",
    "gradient",
    "hessian",
    "hessian-forward",
    "hessian-power",
    "hessian-lanczos",
    "curvature",
    "jacobian",
    "adversarial",
)


@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_are_those_of_the_original(name):
    assert_same_step(name, "mlp", "relu")


@pytest.mark.parametrize(
    ("model", "activation", "name"),
    [
        ("cnn", "gelu", "hessian"),
        ("cnn", "gelu", "hessian-forward"),
        ("cnn", "gelu", "curvature"),
        ("cnn", "relu", "hessian"),
        ("cnn", "softplus", "hessian"),
        ("mlp", "softplus", "hessian-forward"),
        ("mlp", "softplus", "hessian-power"),
        ("mlp", "gelu", "hessian"),
        ("mlp", "gelu", "hessian-lanczos"),
        ("mlp", "gelu", "jacobian"),
    ],
)
def test_second_derivatives_of_other_networks(model, activation, name):
    assert_same_step(name, model, activation)


def test_an_attack_in_the_other_ball():
    assert_same_step("adversarial", "mlp", "relu", math.inf)


def test_these_are_all_steps():
    *_, made = setup()
    assert tuple(made) == NAMES == reference.STEPS


def test_a_step_is_one_of_adam():
    settings, apply, params, batch, made = setup()
    objective = second_order(apply, cross_entropy, EPSILON, EPSILON**2 / 2)
    optimizer = optax.adam(2e-3)

    @jax.jit
    def update(params, state):
        (value, _), gradient = jax.value_and_grad(objective, has_aux=True)(params, batch, KEY)
        updates, state = optimizer.update(gradient, state)
        return value, optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(3):
        value, params, state = update(params, state)
        np.testing.assert_allclose(made["hessian"](), value, rtol=1e-9)
    wanted = torch_twin(settings, params, dtype=torch.float64).parameters()
    for got, expected in zip(made["hessian"].network.parameters(), wanted, strict=True):
        np.testing.assert_allclose(got.detach(), expected, rtol=1e-7, atol=1e-10)


def test_each_step_has_weights_of_its_own():
    *_, made = setup()
    before = made["gradient"].value_and_gradient()[0]
    made["hessian"]()
    assert made["gradient"].value_and_gradient()[0] == before
    made["gradient"]()
    assert made["gradient"].value_and_gradient()[0] < before


@pytest.mark.parametrize("name", ["hessian-power", "jacobian", "adversarial"])
def test_chance_is_drawn_anew(name):
    *_, made = setup()
    torch.manual_seed(0)
    values = {float(made[name].value_and_gradient()[0]) for _ in range(8)}
    assert len(values) > 2
    torch.manual_seed(0)
    assert float(made[name]()) in values


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("name", ["hessian", "hessian-lanczos", "curvature", "adversarial"])
def test_no_gradient_no_nan(name, activation):
    """Images that the network is sure of beyond single precision."""
    settings, _, params, (x, _), _ = setup(activation=activation)
    params = {key: leaf * 1e3 for key, leaf in params.items()}
    logits = torch_twin(settings, params)(like_torch(x).float())
    made = reference.steps(
        settings, params, x, logits.argmax(1).numpy(), epsilon=1e-3, weight=1.0, step=1e-3
    )
    value, gradient = made[name].value_and_gradient()
    assert value == 0
    assert all(bool((leaf == 0).all()) for leaf in gradient.values())


@pytest.mark.parametrize("order", [2, math.inf])
def test_attacks_start_in_ball_and_box(order):
    torch.manual_seed(0)
    x = torch.rand(200, 1, 5, 5)
    moved = forms.random_point(x, 0.4, order)
    assert moved.min() >= 0
    assert moved.max() <= 1
    lengths = torch.linalg.vector_norm((moved - x).flatten(1), ord=order, dim=1)
    assert lengths.max() <= 0.4 + 1e-6
    assert lengths.max() > 0.35
    # Near the image, too: in ℓ∞ some entry of 25 is nearly always far.
    assert (lengths.min() < 0.05) == (order == 2)


@pytest.mark.parametrize(
    "spectrum", [(5.0, 3.0, 1.0, 0.1), (2.0, 1.0, 0.0, -4.0), (0.0, 0.0, 0.0, -7.0)]
)
def test_lanczos_finds_the_top_of_a_batch(spectrum):
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 4, 4)))
    matrices = torch.from_numpy(basis * np.array(spectrum) @ basis.swapaxes(1, 2))
    start = forms.unit(torch.from_numpy(np.random.default_rng(1).normal(size=(3, 2, 2))))

    def matvec(v):
        return (matrices @ v.flatten(1)[..., None]).view_as(v)

    v = forms.lanczos(matvec, start, num_iters=4)
    top = int(np.argmax(np.abs(spectrum)))
    cosines = np.abs(np.einsum("bi,bi->b", v.flatten(1), basis[:, :, top]))
    np.testing.assert_allclose(cosines, 1, rtol=1e-12)


def test_lanczos_stays_in_an_invariant_space():
    start = torch.eye(4, dtype=torch.float64)[2:3]
    matrix = torch.tensor([[5.0, 1, 0, 0], [1, 4, 0, 0], [0, 0, 1, 0], [0, 0, 0, -7]]).double()
    basis, _ = torch.linalg.qr(torch.from_numpy(np.random.default_rng(0).normal(size=(4, 4))))
    matrix, start = basis @ matrix @ basis.mT, start @ basis.mT
    v = forms.lanczos(lambda v: v @ matrix, start, num_iters=4)
    np.testing.assert_allclose(abs(v @ start.mT), 1, rtol=1e-12)


def test_the_gelu_that_is_differentiated_three_times():
    x = torch.linspace(-4, 4, 33, dtype=torch.float64, requires_grad=True)
    got = forms.LogisticGELU()(x)
    expected = torch.nn.functional.gelu(x, approximate="tanh")
    for _ in range(4):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
        (got,) = torch.autograd.grad(got.sum(), x, create_graph=True)
        (expected,) = torch.autograd.grad(expected.sum(), x, create_graph=True)


def test_a_compiled_step_is_the_same():
    _, _, _, _, made = setup()
    _, _, _, _, others = setup()
    # The backend that generates no code: what is traced is what the other backends get.
    compiled = made["hessian"].compile(backend="aot_eager")
    for _ in range(2):
        np.testing.assert_allclose(compiled(), others["hessian"](), rtol=1e-12)
    value, gradient = compiled.value_and_gradient()
    expected, expected_gradient = others["hessian"].value_and_gradient()
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    for name, leaf in expected_gradient.items():
        np.testing.assert_allclose(gradient[name], leaf, rtol=1e-9, atol=1e-12)


def test_a_form_that_does_not_compile_says_so():
    *_, made = setup()
    with pytest.raises(RuntimeError, match=r"\w"):
        made["hessian-forward"].compile(backend="aot_eager")
    assert made["hessian-forward"]().isfinite()


def test_any_number_of_steps_can_be_compiled():
    """PyTorch gives up a function that it has compiled for eight shapes."""
    settings, _, params, (x, y), _ = setup()
    kept = []
    for count in range(1, 11):
        batch = np.tile(x[:1], (count, 1, 1, 1)), np.tile(y[:1], count)
        made = reference.steps(settings, params, *batch, epsilon=1.0, weight=1.0, step=1.0)
        kept.append(made["none"].compile(backend="eager"))
    values = [float(step()) for step in kept]
    np.testing.assert_allclose(values, values[0], rtol=1e-5)
