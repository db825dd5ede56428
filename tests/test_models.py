"""The networks, against the same arithmetic in plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.models import (
    convolve_by_patches,
    create,
    functional,
    pixel_statistics,
    softplus,
)

ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "softplus": lambda x: np.log1p(np.exp(8 * x)) / 8,
    "gelu": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "tanh": np.tanh,
}


def network(name="mlp", activation="gelu", **changed):
    settings = {"input_shape": (7, 8, 2), "num_classes": 3, "seed": 0, "widths": (6, 5)} | changed
    return create(name, activation, **settings)


def examples(*shape):
    return np.random.default_rng(0).uniform(size=shape)


def dense_layers(params, x, activation):
    for i in range(3):
        x = x @ np.float64(params[f"dense/{i}/kernel"]) + np.float64(params[f"dense/{i}/bias"])
        x = activation(x) if i < 2 else x
    return x


def convolve(x, kernel, bias):
    """Convolve with stride 2, padded so that half the pixels, rounded up, come out."""
    height, width = -(-x.shape[0] // 2), -(-x.shape[1] // 2)
    padding = (2 * height + 2 - x.shape[0], 2 * width + 2 - x.shape[1])
    x = np.pad(x, [(p // 2, p - p // 2) for p in padding] + [(0, 0)])
    patches = [
        [x[2 * i : 2 * i + 4, 2 * j : 2 * j + 4] for j in range(width)] for i in range(height)
    ]
    return np.einsum("ijhwc,hwcf->ijf", np.array(patches), np.float64(kernel)) + np.float64(bias)


def rounded(array):
    """Return the numbers that bfloat16 has, in double precision."""
    return np.asarray(array).astype(jnp.bfloat16).astype(np.float64)


def with_random_biases(params):
    """Biases start at zero, which would hide a missing one."""
    random = np.random.default_rng(1)
    return {
        name: jnp.asarray(random.normal(size=value.shape), value.dtype)
        if name.endswith("bias")
        else value
        for name, value in params.items()
    }


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_is_the_formula(activation):
    apply, params = functional(network("mlp", activation, mean=(0.2, 0.4), std=(0.5, 2.0)))
    params = with_random_biases(params)
    x = examples(7, 8, 2)
    normalized = (x - [0.2, 0.4]) / [0.5, 2.0]
    expected = dense_layers(params, normalized.reshape(-1), ACTIVATIONS[activation])
    np.testing.assert_allclose(apply(params, x), expected, rtol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_cnn_is_the_formula(activation):
    apply, params = functional(network("cnn", activation, mean=(0.3,), std=(0.1,)))
    params = with_random_biases(params)
    hidden = x = examples(7, 8, 2)
    hidden = (hidden - 0.3) / 0.1
    for i in range(2):
        kernel, bias = params[f"convolutions/{i}/kernel"], params[f"convolutions/{i}/bias"]
        hidden = ACTIVATIONS[activation](convolve(hidden, kernel, bias))
    expected = dense_layers(params, hidden.reshape(-1), ACTIVATIONS[activation])
    np.testing.assert_allclose(apply(params, x), expected, rtol=1e-11)


@pytest.mark.parametrize("channels", [1, 2])
def test_in_bfloat16_products_and_activations_are_rounded_and_nothing_else(channels):
    shape = {"input_shape": (7, 8, channels), "mean": (0.3,), "std": (0.1,)}
    apply, params = functional(network("cnn", "relu", precision="bfloat16", **shape))
    params = with_random_biases(params)
    x = np.float32(examples(7, 8, channels))
    hidden = rounded((x - np.float32(0.3)) / np.float32(0.1))
    for i in range(2):
        kernel, bias = params[f"convolutions/{i}/kernel"], params[f"convolutions/{i}/bias"]
        product = rounded(convolve(hidden, rounded(kernel), np.zeros_like(bias)))
        hidden = rounded(np.maximum(product + np.float64(bias), 0))
    hidden = hidden.reshape(-1)
    for i in range(2):
        kernel, bias = params[f"dense/{i}/kernel"], params[f"dense/{i}/bias"]
        product = rounded(hidden @ rounded(kernel))
        hidden = rounded(np.maximum(product + np.float64(bias), 0))
    expected = hidden @ np.float64(params["dense/2/kernel"]) + np.float64(params["dense/2/bias"])
    # One operation after the other: where XLA compiles several as one, it leaves roundings out.
    logits = apply(params, x)
    assert logits.dtype == jnp.float32
    # Sums in single precision round to another number than those in double here and there.
    tolerance = 2e-3 * np.linalg.norm(expected)
    assert np.linalg.norm(logits - expected) < tolerance
    single = functional(network("cnn", "relu", **shape))[0](params, x)
    assert np.linalg.norm(single - expected) > tolerance


def test_in_bfloat16_sums_over_batch_and_positions_are_of_single_precision():
    """A sum in bfloat16 stops growing long before a thousand terms."""
    apply, params = functional(network("cnn", input_shape=(7, 8, 1), precision="bfloat16"))
    image = jnp.asarray(examples(7, 8, 1), jnp.float32)

    def gradient(count):
        def mean(params):
            logits = jax.vmap(apply, (None, 0))(params, jnp.stack([image] * count))
            return jnp.mean(jnp.sum(logits**2, axis=-1))

        return jax.jit(jax.grad(mean))(params)

    one, many = gradient(1), gradient(1024)
    for path, value in one.items():
        assert value.dtype == jnp.float32
        # 1024 is a power of two: what is summed are the same numbers, smaller.
        scale = np.max(np.abs(value))
        np.testing.assert_allclose(many[path], value, atol=1e-5 * scale, rtol=0, err_msg=path)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 6), (7, 9), (5, 4), (1, 2)])
def test_patches_are_the_convolution(size, channels):
    """SAME padding puts the odd pixel behind; the gradients, of both factors, agree as well."""
    x, kernel = (
        jnp.asarray(examples(*shape)) for shape in ((2, *size, channels), (4, 4, channels, 5))
    )

    def by_xla(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    expected, pull = jax.vjp(by_xla, x, kernel)
    got, pull_got = jax.vjp(convolve_by_patches, x, kernel)
    np.testing.assert_allclose(got, expected, rtol=1e-12, strict=True)
    cotangent = examples(*expected.shape)
    for gradient, wanted in zip(pull_got(cotangent), pull(cotangent), strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-12, atol=1e-14)
    by_one = jnp.stack([convolve_by_patches(image, kernel) for image in x])
    np.testing.assert_allclose(by_one, expected, rtol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_cnn_is_that_of_its_convolutions(channels):
    """In whichever way they are computed, in single precision too, biases included."""
    model = network("cnn", input_shape=(7, 8, channels))
    x = jnp.asarray(examples(2, 3, 7, 8, channels), jnp.float32)
    for convolution in model.convolutions:
        convolution.bias[...] += 0.5
    hidden = x
    for convolution in model.convolutions:
        hidden = jax.nn.gelu(convolution(hidden))
    hidden = hidden.reshape(2, 3, -1)
    for layer in model.dense[:-1]:
        hidden = jax.nn.gelu(layer(hidden))
    np.testing.assert_allclose(model(x), model.dense[-1](hidden), rtol=1e-5, strict=True)


@pytest.mark.parametrize(
    ("name", "input_shape", "expected"),
    [
        ("mlp", (8, 8, 1), 64 * 256 + 256 + 256 * 256 + 256 + 2560 + 10),
        ("mlp", (28, 28, 1), 784 * 256 + 256 + 256 * 256 + 256 + 2560 + 10),
        ("cnn", (8, 8, 1), 16 * 16 + 16 + 16 * 16 * 32 + 32 + 2 * 2 * 3200 + 100 + 1000 + 10),
        ("cnn", (28, 28, 1), 16 * 16 + 16 + 16 * 16 * 32 + 32 + 7 * 7 * 3200 + 100 + 1000 + 10),
        ("cnn", (32, 32, 3), 48 * 16 + 16 + 16 * 16 * 32 + 32 + 8 * 8 * 3200 + 100 + 1000 + 10),
    ],
)
def test_default_sizes(name, input_shape, expected):
    """The networks that README and tables speak of; the normalization is no parameter."""

    def shapes():
        model = create(name, "relu", input_shape=input_shape, num_classes=10, seed=0)
        apply, params = functional(model)
        return params, apply(params, jnp.zeros(input_shape))

    # Nothing is computed: only the shapes count.
    params, logits = jax.eval_shape(shapes)
    assert sum(value.size for value in params.values()) == expected
    assert logits.shape == (10,)
    assert {name.split("/")[-1] for name in params} == {"kernel", "bias"}


@pytest.mark.parametrize("beta", [0.5, 8.0, 30.0])
def test_softplus_is_the_closed_form(beta):
    x = jnp.linspace(-2, 2, 41)
    np.testing.assert_allclose(softplus(x, beta), np.log1p(np.exp(beta * x)) / beta, rtol=1e-12)
    slope = jax.vmap(jax.grad(lambda x: softplus(x, beta)))(x)
    np.testing.assert_allclose(slope, 1 / (1 + np.exp(-beta * x)), rtol=1e-12)
    curvature = jax.grad(jax.grad(lambda x: softplus(x, beta)))(0.0)
    np.testing.assert_allclose(curvature, beta / 4, rtol=1e-12)


def test_beta_reaches_the_network():
    apply, params = functional(network(activation="softplus", beta=2.0))
    x = examples(7, 8, 2)
    expected = dense_layers(params, x.reshape(-1), lambda x: np.log1p(np.exp(2 * x)) / 2)
    np.testing.assert_allclose(apply(params, x), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_vmap_is_the_batch_and_the_loop(name):
    model = network(name)
    apply, params = functional(model)
    batch = jnp.asarray(examples(4, 7, 8, 2))
    logits = jax.vmap(apply, (None, 0))(params, batch)
    assert logits.shape == (4, 3)
    np.testing.assert_allclose(logits, model(batch), rtol=1e-12)
    np.testing.assert_allclose(logits, [apply(params, x) for x in batch], rtol=1e-12)
    np.testing.assert_allclose(logits, jax.jit(jax.vmap(apply, (None, 0)))(params, batch), 1e-12)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_gradients_are_the_finite_differences(name):
    """In the parameters and in the input; apply reads nothing but its arguments."""
    apply, params = functional(network(name, "tanh"))
    params = jax.tree.map(lambda value: value.astype(jnp.float64), params)
    x = jnp.asarray(examples(7, 8, 2))
    random = np.random.default_rng(2)
    step = jax.tree.map(lambda value: random.normal(size=value.shape), (params, x))

    def along(t):
        return jnp.sum(apply(*jax.tree.map(lambda a, b: a + t * b, (params, x), step)) ** 2)

    expected = (along(1e-6) - along(-1e-6)) / 2e-6
    # The difference quotient rounds at 1e-16 / 1e-6 and truncates at 1e-12.
    np.testing.assert_allclose(jax.grad(along)(0.0), expected, rtol=1e-7)


def test_seed_decides_the_weights():
    first, second, other = (functional(network("cnn", seed=seed))[1] for seed in (3, 3, 4))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    kernels = [name for name in first if name.endswith("kernel")]
    assert not any(np.array_equal(first[name], other[name]) for name in kernels)


def test_parameters_survive_npz(tmp_path):
    """Weights by path need no pickle, and fit a network of another seed."""
    _, params = functional(network("cnn"))
    np.savez(tmp_path / "weights.npz", allow_pickle=False, **params)
    with np.load(tmp_path / "weights.npz", allow_pickle=False) as file:
        loaded = dict(file)
    apply, _ = functional(network("cnn", seed=1))
    x = examples(7, 8, 2)
    np.testing.assert_array_equal(
        apply(loaded, x), functional(network("cnn"))[0](params, x), strict=True
    )


def test_networks_that_differ_in_their_weights_alone_share_what_is_compiled():
    def apply(**changed):
        return functional(network("cnn", **changed))[0]

    assert apply(seed=0) is apply(seed=1)
    assert apply(activation="softplus", seed=0) is apply(activation="softplus", seed=1)
    first = apply(activation="softplus")
    others = [{"beta": 2.0}, {"mean": (0.2,)}, {"std": (0.2,)}, {"activation": "relu"}]
    for changed in [*others, {"precision": "bfloat16"}]:
        assert apply(**({"activation": "softplus"} | changed)) is not first


def test_functional_takes_any_nnx_module():
    model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    apply, params = functional(model)
    x = examples(4)
    np.testing.assert_allclose(
        apply(params, x), x @ np.float64(params["kernel"]) + params["bias"], rtol=1e-12
    )


def test_pixel_statistics():
    images = np.zeros((4, 2, 2, 2), np.float32)
    images[..., 0] = np.array([0, 1, 0, 1])[:, None, None]
    images[:, 0, :, 1] = 0.5
    mean, std = pixel_statistics(images)
    np.testing.assert_allclose(mean, [0.5, 0.25], rtol=1e-12)
    np.testing.assert_allclose(std, [0.5, 0.25], rtol=1e-12)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"name": "resnet"}, "unknown model 'resnet': expected one of mlp, cnn"),
        ({"activation": "elu"}, "unknown activation 'elu': expected one of relu, softplus, gelu"),
        ({"precision": "half"}, "unknown precision 'half': expected one of float32, bfloat16"),
        ({"input_shape": (8, 8)}, r"inputs of shape \(8, 8\)"),
        ({"input_shape": (8, 0, 1)}, r"inputs of shape \(8, 0, 1\)"),
        ({"num_classes": 1}, "1 classes"),
        ({"beta": 0.0}, "β of 0.0"),
        ({"beta": float("nan")}, "β of nan"),
        ({"std": (0.5, 0.0)}, r"deviation of \(0.5, 0.0\)"),
        ({"mean": (0.1, 0.2, 0.3)}, "3 means and 1 deviations for 2 channels"),
        ({"widths": (4, 0)}, r"widths of \(4, 0\)"),
    ],
)
def test_bad_input_is_refused(changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        network(**changed)
