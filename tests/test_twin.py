"""The PyTorch networks, against those that they are twins of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from experiments import models, runs
from experiments.config import Config
from experiments.twin import run_twin, torch_twin

# What single precision leaves of numbers around 1, and double precision.
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}


def architecture(name="cnn", activation="gelu", input_shape=(7, 8, 2), **changed):
    settings = {"num_classes": 3, "mean": (0.4,), "std": (0.3,)} | changed
    return {"name": name, "activation": activation, "input_shape": input_shape, **settings}


def original(settings):
    """The network in JAX, with weights from NumPy: drawing them by JAX would compile for long."""
    apply, shapes = models.functional(nnx.eval_shape(lambda: models.create(**settings, seed=0)))
    rng = np.random.default_rng(2)
    params = {}
    for name, value in shapes.items():
        scale = 0.25 if name.endswith("bias") else np.sqrt(2 / np.prod(value.shape[:-1]))
        params[name] = jnp.asarray(rng.normal(size=value.shape) * scale, value.dtype)
    return apply, params


def images(shape, dtype, count=3):
    """Images for JAX, and the same for PyTorch."""
    x = torch.from_numpy(np.random.default_rng(1).uniform(size=(count, *shape))).to(dtype)
    return x.numpy(), x.movedim(-1, 1).contiguous().requires_grad_()


def assert_twins(settings, dtype):
    apply, params = original(settings)
    x, inputs = images(settings["input_shape"], dtype)
    direction = np.random.default_rng(3).normal(size=(len(x), 3)).astype(x.dtype)

    @jax.jit
    def expect(x):
        logits, pull = jax.vjp(jax.vmap(lambda x: apply(params, x)), x)
        return logits, pull(direction)[0]

    expected, gradient = expect(x)
    logits = torch_twin(settings, params, dtype=dtype)(inputs)
    assert logits.dtype == dtype
    tolerance = TOLERANCES[dtype]
    np.testing.assert_allclose(logits.detach(), expected, rtol=tolerance, atol=tolerance)
    (found,) = torch.autograd.grad(logits, inputs, torch.from_numpy(direction))
    gradient = np.moveaxis(gradient, -1, 1)
    np.testing.assert_allclose(found, gradient, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("activation", ["relu", "softplus", "gelu", "tanh"])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_logits_and_gradients_are_those_of_the_original(name, activation, dtype):
    # A softplus of large β would be relu to single precision.
    assert_twins(architecture(name, activation, beta=2.0), dtype)


@pytest.mark.parametrize("shape", [(8, 6, 1), (7, 9, 3), (5, 4, 4), (1, 2, 1)])
def test_odd_sizes_are_padded_as_in_jax(shape):
    assert_twins(architecture(input_shape=shape), torch.float64)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_statistics_of_each_channel_and_widths(name):
    changed = {"mean": (0.2, 0.7), "std": (0.5, 2.0), "widths": (6, 5, 4)}
    assert_twins(architecture(name, **changed), torch.float64)


def test_a_network_in_bfloat16_has_no_twin():
    with pytest.raises(ValueError, match="computes in bfloat16, and its PyTorch twin in float32"):
        torch_twin(architecture(precision="bfloat16"), {})


def test_softplus_keeps_double_precision():
    """PyTorch's own threshold takes what is lost here for nothing."""
    settings = architecture("mlp", "softplus", (1, 1, 1), widths=(1,), beta=8.0)
    apply, params = original(settings)
    params = {name: jnp.ones(value.shape) for name, value in params.items()}
    x = torch.tensor([[0.05], [0.9]], dtype=torch.float64).reshape(2, 1, 1, 1)
    expected = jax.vmap(lambda x: apply(params, x))(x.numpy())
    twin = torch_twin(settings, params, dtype=torch.float64)
    np.testing.assert_allclose(twin(x), expected, rtol=1e-14)


def test_only_images_are_differentiated():
    settings = architecture()
    twin = torch_twin(settings, original(settings)[1])
    assert not twin.training
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert not twin(images((7, 8, 2), torch.float32)[1].detach()).requires_grad


def test_the_twin_of_a_run(tmp_path):
    config = Config(data="digits", model="mlp", activation="softplus", beta=3.0)
    settings = architecture("mlp", "softplus", (8, 8, 1), num_classes=10, beta=3.0)
    apply, params = original(settings)
    runs.start(tmp_path, config, settings)
    runs.finish(tmp_path, params, {"completed": True})
    x, inputs = images((8, 8, 1), torch.float64)
    expected = jax.vmap(lambda x: apply(params, x))(x)
    twin = run_twin(runs.load(tmp_path), dtype=torch.float64)
    np.testing.assert_allclose(twin(inputs.detach()), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"activation": "elu"}, "unknown activation 'elu': expected one of relu, softplus, gelu"),
        ({"input_shape": (9, 8, 2)}, "dense layer 192 inputs, but it has weights for 128"),
    ],
)
def test_what_does_not_fit_is_refused(changed, sentence):
    settings = architecture()
    with pytest.raises(ValueError, match=sentence):
        torch_twin(settings | changed, original(settings)[1])
