"""The bridge to PyTorch, and the attacks that are written for it, sent over the bridge."""

import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.tree_util import Partial
from pyautoattack import AutoAttack

from experiments.twin import torch_twin
from hessjax.bridge import torch_module
from tests.test_twin import original

SHAPE = (4, 3, 2)
EPSILON = {"Linf": 0.02, "L2": 0.2}
TRACES = []


def weights(seed=0, size=24):
    rng = np.random.default_rng(seed)
    return {"inner": rng.normal(size=(size, 8)), "outer": rng.normal(size=(8, 5))}


def apply(params, x):
    """Of no symmetry in its axes: channels in the wrong place would show."""
    TRACES.append(x.shape)
    return jnp.tanh(x.reshape(-1) @ params["inner"]) @ params["outer"]


def examples(count, shape=SHAPE, dtype="float64"):
    """Inputs for JAX, and the same for PyTorch, channels first."""
    x = np.random.default_rng(1).uniform(size=(count, *shape)).astype(dtype)
    return x, torch.from_numpy(
        np.ascontiguousarray(np.moveaxis(x, -1, 1)) if len(shape) == 3 else x.copy()
    )


def test_logits_are_those_of_the_function():
    params = weights()
    x, images = examples(7)
    expected = jax.vmap(lambda x: apply(params, x))(x)
    for logits_fn in (lambda x: apply(params, x), Partial(apply, params)):
        logits = torch_module(logits_fn, batch_size=3)(images)
        np.testing.assert_allclose(logits, expected, rtol=1e-12, strict=True)


def test_gradients_are_those_of_jax():
    params = weights()
    x, images = examples(7)
    direction = np.random.default_rng(2).normal(size=(7, 5))

    def value(x):
        return jnp.sum(jax.vmap(lambda x: apply(params, x))(x) * direction)

    images.requires_grad_()
    logits = torch_module(Partial(apply, params), batch_size=3)(images)
    (gradient,) = torch.autograd.grad(logits, images, torch.from_numpy(direction))
    expected = np.moveaxis(jax.grad(value)(x), -1, 1)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, strict=True)


@pytest.mark.parametrize("shape", [(6,), (3, 2), (1, 2, 1, 3)])
def test_what_is_no_image_goes_as_it_is(shape):
    params = weights(size=6)
    x, inputs = examples(4, shape)
    seen = len(TRACES)
    logits = torch_module(Partial(apply, params), batch_size=4)(inputs.requires_grad_())
    assert TRACES[seen:] == [shape]
    expected = jax.vmap(lambda x: apply(params, x))(x)
    np.testing.assert_allclose(logits.detach(), expected, rtol=1e-12)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), inputs)
    expected = jax.vmap(jax.grad(lambda x: apply(params, x)[0]))(x)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, strict=True)


@pytest.mark.parametrize("x64", [True, False])
def test_single_precision_stays_single(x64):
    """With weights in double precision, too."""
    params = weights()
    x, images = examples(5, dtype="float32")
    expected = jax.vmap(lambda x: apply(params, x))(np.float64(x))
    with jax.enable_x64(x64):
        logits = torch_module(Partial(apply, params), batch_size=4)(images.requires_grad_())
        (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert logits.dtype == gradient.dtype == torch.float32
    np.testing.assert_allclose(logits.detach(), expected, rtol=1e-5)


def test_a_shrinking_batch_compiles_nothing_anew():
    module = torch_module(Partial(apply, weights()), batch_size=8)
    _, images = examples(20)
    for differentiated in (False, True):
        start = len(TRACES)
        whole = module(images.clone().requires_grad_(differentiated)).detach()
        for count in (20, 8, 7, 3, 1):
            part = images[:count].clone().requires_grad_(differentiated)
            logits = module(part)
            np.testing.assert_allclose(logits.detach(), whole[:count], rtol=1e-12)
            if differentiated:
                logits.sum().backward()
        assert len(TRACES) == start + 1


def test_weights_of_a_partial_are_no_constants():
    _, images = examples(3)
    first = torch_module(Partial(apply, weights()), batch_size=3)(images)
    start = len(TRACES)
    other = torch_module(Partial(apply, weights(seed=5)), batch_size=3)(images)
    assert len(TRACES) == start
    assert not torch.allclose(first, other)


def test_a_plain_function_is_asked_for_the_weights_that_it_has_now():
    model = {"params": weights()}

    def logits_fn(x):
        return apply(model["params"], x)

    x, images = examples(3)
    first = torch_module(logits_fn, batch_size=3)(images)
    model["params"] = weights(seed=5)
    other = torch_module(logits_fn, batch_size=3)(images)
    assert not torch.allclose(first, other)
    expected = jax.vmap(lambda x: apply(model["params"], x))(x)
    np.testing.assert_allclose(other, expected, rtol=1e-12)


def test_without_gradients_nothing_is_kept():
    module = torch_module(Partial(apply, weights()), batch_size=3)
    _, images = examples(3)
    assert module(images).grad_fn is None
    images.requires_grad_()
    with torch.no_grad():
        assert module(images).grad_fn is None
    assert module(images).grad_fn is not None


def test_backward_again_and_again():
    """One class after the other from one forward pass, as untargeted FAB does."""
    params = weights()
    x, images = examples(4)
    images.requires_grad_()
    logits = torch_module(Partial(apply, params), batch_size=3)(images)
    jacobian = np.moveaxis(jax.vmap(jax.jacrev(lambda x: apply(params, x)))(x), -1, 2)
    start = len(TRACES)
    for i in range(5):
        direction = torch.eye(5, dtype=torch.float64)[i].expand(4, 5)
        (gradient,) = torch.autograd.grad(logits, images, direction, retain_graph=True)
        np.testing.assert_allclose(gradient, jacobian[:, i], rtol=1e-12)
    assert len(TRACES) == start


def test_changing_tensors_in_place_changes_nothing_else():
    """Attacks write to their iterates, to logits and to gradients."""
    module = torch_module(lambda x: x**2, batch_size=64)
    x = torch.linspace(1, 2, 64 * 512, dtype=torch.float64).reshape(64, 512)
    iterate = x.clone().requires_grad_()
    logits = module(iterate)
    iterate.data.zero_()
    logits.detach().zero_()
    for _ in range(2):
        (gradient,) = torch.autograd.grad(logits, iterate, torch.ones_like(x), retain_graph=True)
        np.testing.assert_array_equal(gradient, 2 * x)
        gradient.zero_()


def test_gradients_of_gradients_are_refused():
    """Instead of being zero, which they would be where the loss is linear in the logits."""
    _, images = examples(2)
    images.requires_grad_()
    logits = torch_module(Partial(apply, weights()), batch_size=2)(images)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(logits.sum(), images, create_graph=True)


@pytest.mark.parametrize(
    ("logits_fn", "batch_size", "error", "sentence"),
    [
        (None, 2, TypeError, "logits_fn must be a function of one example, got None"),
        (jnp.sum, 0, ValueError, "batch_size must be at least 1, got 0"),
        (jnp.sum, 2.5, TypeError, "batch_size must be a whole number, got 2.5"),
    ],
)
def test_bad_modules_are_refused(logits_fn, batch_size, error, sentence):
    with pytest.raises(error, match=sentence):
        torch_module(logits_fn, batch_size=batch_size)


@pytest.mark.parametrize(
    ("logits_fn", "x", "error", "sentence"),
    [
        (jnp.sum, torch.ones(2, 3), ValueError, r"got float32 of shape \(\) for .* shape \(3,\)"),
        (lambda x: x, torch.ones(2, 3, 4, 5), ValueError, r"of shape \(4, 5, 3\) for an example"),
        (jnp.isnan, torch.ones(2, 3), ValueError, "got bool of shape"),
        (
            lambda x: x,
            torch.ones(2, 3, dtype=torch.int64),
            TypeError,
            "or float64, got torch.int64",
        ),
        (lambda x: x, torch.ones(2, 3).half(), TypeError, "or float64, got torch.float16"),
        (lambda x: x, torch.ones(3), ValueError, r"one example or more, got shape \(3,\)"),
        (lambda x: x, torch.ones(0, 3), ValueError, r"one example or more, got shape \(0, 3\)"),
    ],
)
def test_bad_inputs_are_refused(logits_fn, x, error, sentence):
    with pytest.raises(error, match=sentence):
        torch_module(logits_fn, batch_size=2)(x)


def test_double_precision_is_never_silently_single():
    module = torch_module(lambda x: x, batch_size=2)
    with jax.enable_x64(False), pytest.raises(TypeError, match=r"x.float\(\), or set jax_enable"):
        module(torch.ones(2, 3, dtype=torch.float64))


def test_without_pytorch_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "hessjax.bridge")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"the extra hessjax\[reference\] installs it"):
        importlib.import_module("hessjax.bridge")


# The attacks themselves: what they find through the bridge is what they find on the twin.

ARCHITECTURE = {
    "name": "cnn",
    "activation": "gelu",
    "input_shape": (7, 8, 2),
    "num_classes": 5,
    "mean": (0.4, 0.6),
    "std": (0.3,),
}


@pytest.fixture(scope="module")
def opponents():
    """A network over the bridge and its twin, images and the labels that it gives them."""
    network, params = original(ARCHITECTURE | {"widths": (16,)})
    module = torch_module(Partial(network, params), batch_size=12).eval()
    twin = torch_twin(ARCHITECTURE, params, dtype=torch.float64)
    _, images = examples(20, ARCHITECTURE["input_shape"])
    return module, twin, images, twin(images).argmax(dim=1)


# Rounding of single precision could tip an example that is nearly broken.
@pytest.mark.usefixtures("torch_float64")
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("attack", ["apgd-ce", "fab", "square"])
def test_the_reference_attacks_over_the_bridge(opponents, attack, norm):
    *networks, images, labels = opponents
    found = []
    for network in networks:
        reference = AutoAttack(
            network, norm=norm, eps=EPSILON[norm], version="custom", attacks=[attack], seed=0
        )
        reference.apgd.n_iter, reference.apgd.n_restarts = 5, 1
        reference.fab.n_iter, reference.fab.n_restarts = 3, 1
        reference.square.n_queries = 20
        points, predictions = reference.run_standard_evaluation(images, labels, batch_size=12)
        found.append((points, predictions == labels))
    (points, robust), (expected_points, expected_robust) = found
    np.testing.assert_array_equal(robust, expected_robust)
    assert 0 < robust.sum() < len(labels)
    np.testing.assert_allclose(points, expected_points, rtol=1e-7, atol=1e-9)


@pytest.fixture
def foolbox(monkeypatch):
    """It asks at import for a git program, which it then needs for its model zoo only."""
    monkeypatch.setenv("GIT_PYTHON_REFRESH", "quiet")
    return importlib.import_module("foolbox")


def test_foolbox_over_the_bridge(foolbox, opponents):
    *networks, images, labels = opponents
    attack = foolbox.attacks.LinfPGD(steps=5, random_start=False)
    found = []
    for network in networks:
        model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
        found.append(attack(model, images, labels, epsilons=EPSILON["Linf"]))
    (_, points, broken), (_, expected_points, expected_broken) = found
    np.testing.assert_array_equal(broken, expected_broken)
    assert 0 < broken.sum() < len(labels)
    np.testing.assert_allclose(points, expected_points, rtol=1e-7, atol=1e-9)
