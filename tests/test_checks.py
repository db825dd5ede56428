"""Checks of models and data before any work."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import hessjax
from hessjax import check_apply

IMAGES = np.random.default_rng(0).uniform(size=(5, 6, 6, 2)).astype(np.float32)
VECTORS = IMAGES.reshape(5, -1)


class Normalized(linen.Module):
    """A network with batch normalization."""

    convolves: bool
    train: bool

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.Conv(4, (3, 3))(x) if self.convolves else linen.Dense(4)(x)
        x = linen.BatchNorm(use_running_average=not self.train)(x)
        return linen.Dense(3)(jax.nn.relu(x).reshape(len(x), -1))


def normalized(*, convolves: bool, train: bool) -> tuple[Any, Any, Any]:
    model = Normalized(convolves, train)
    x = IMAGES if convolves else VECTORS
    params = model.init(jax.random.key(0), x[:1])
    # Not those of a batch, as after some training.
    params["batch_stats"] = jax.tree.map(lambda a: a + 0.3, params["batch_stats"])

    def batched(params: Any, x: jax.Array) -> jax.Array:
        if not train:
            return model.apply(params, x)  # pyright: ignore[reportReturnType]
        return model.apply(params, x, mutable=["batch_stats"])[0]

    return (lambda params, x: batched(params, x[None])[0]), params, batched


@pytest.mark.parametrize("convolves", [False, True])
def test_evaluation_mode_passes(convolves: bool) -> None:
    apply, params, batched = normalized(convolves=convolves, train=False)
    x = IMAGES if convolves else VECTORS
    check_apply(apply, params, x)
    check_apply(apply, params, x, batched=batched)


def test_batch_normalization_in_training_mode_is_told() -> None:
    apply, params, batched = normalized(convolves=False, train=True)
    with pytest.raises(ValueError, match="same for different inputs: batch normalization in train"):
        check_apply(apply, params, VECTORS)
    apply, params, batched = normalized(convolves=True, train=True)
    with pytest.raises(ValueError, match=r"change with its batch, by up to [\d.]+: batch normaliz"):
        check_apply(apply, params, IMAGES, batched=batched)


@pytest.mark.parametrize("scale", [0.0, 1e-3])
def test_a_small_last_layer_hides_no_batch_normalization(scale: float) -> None:
    apply, params, batched = normalized(convolves=True, train=True)
    params["params"]["Dense_0"] = jax.tree.map(lambda a: scale * a, params["params"]["Dense_0"])
    with pytest.raises(ValueError, match=r"change with its batch, by up to [\d.e-]+: batch norma"):
        check_apply(apply, params, IMAGES, batched=batched)


def test_layers_that_take_the_first_axis_for_the_batch_are_told() -> None:
    """Without a batch axis, group normalization normalizes each row of an image."""
    model = nnx.Sequential(
        nnx.GroupNorm(2, num_groups=1, rngs=nnx.Rngs(0)), lambda x: jnp.max(x, axis=(-3, -2))
    )
    graph, params = nnx.split(model)

    def batched(params: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(x)

    check_apply(lambda params, x: batched(params, x[None])[0], params, IMAGES, batched=batched)
    with pytest.raises(ValueError, match=r"or a layer that takes the first axis .*: apply x\[None"):
        check_apply(batched, params, IMAGES, batched=batched)


def test_layers_that_cancel_pass() -> None:
    """Two equal branches, one taken from the other: moved alike they'd still cancel."""
    params = {"a": jnp.ones((3, 72)), "b": jnp.ones((3, 72))}
    check_apply(lambda params, x: (params["a"] - params["b"]) @ x, params, VECTORS)


@pytest.mark.parametrize("last", [1.0, 0.0], ids=["trained", "new"])
def test_units_that_saturate_pass(last: float) -> None:
    """Moved by a hundredth, the many positive weights of a unit would drive it to its end."""
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "first": jax.random.normal(keys[0], (128, 3072), jnp.float32) / 55,
        "last": last * jax.random.normal(keys[1], (10, 128), jnp.float32),
    }

    def saturating(params: Any, x: jax.Array) -> jax.Array:
        return params["last"] @ jnp.tanh(params["first"] @ x.ravel())

    pixels = jax.random.uniform(jax.random.key(1), (3, 32, 32, 3), jnp.float32)
    check_apply(saturating, params, pixels)


def test_a_masked_class_passes() -> None:
    def masked(params: Any, x: jax.Array) -> jax.Array:
        return (x @ params).at[..., 0].set(-jnp.inf)

    params = jnp.ones((72, 3))
    check_apply(masked, params, VECTORS, batched=masked)


def test_dropout_without_a_fixed_key_is_told() -> None:
    rng = np.random.default_rng(0)

    def dropout(params: Any, x: jax.Array) -> jax.Array:
        return params @ (x * rng.integers(0, 2, x.shape))

    with pytest.raises(ValueError, match=r"two different results for one input, .*: dropout"):
        check_apply(dropout, jnp.ones((3, 72)), VECTORS)


def test_dropout_with_a_fixed_key_passes() -> None:
    layer = eqx.nn.Dropout(0.5)

    def dropout(params: Any, x: jax.Array) -> jax.Array:
        return params @ layer(x, key=jax.random.key(1))

    check_apply(dropout, jnp.ones((3, 72)), VECTORS)


def test_a_last_layer_of_zeros_passes() -> None:
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(4, 72)), jnp.float32)
    params = {"hidden": hidden, "head": jnp.zeros((3, 4)), "steps": jnp.int32(7)}
    check_apply(lambda p, x: p["head"] @ jnp.tanh(p["hidden"] @ x), params, VECTORS)


def test_parameters_may_be_numbers_of_python() -> None:
    params = {"scale": 2.0, "power": 3, "head": np.ones((3, 72), np.float32)}
    check_apply(lambda p, x: p["scale"] * (p["head"] @ x) ** p["power"], params, VECTORS)


def test_other_libraries_pass() -> None:
    graph, params = nnx.split(nnx.Linear(72, 3, rngs=nnx.Rngs(0)))
    check_apply(lambda params, x: nnx.merge(graph, params)(x), params, VECTORS)
    params, static = eqx.partition(eqx.nn.Linear(72, 3, key=jax.random.key(0)), eqx.is_array)
    check_apply(lambda params, x: eqx.combine(params, static)(x), params, VECTORS)


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (
            lambda p, x: (p @ x)[None],
            r"shape \(classes,\), got \(1, 3\): index the batch",
        ),
        (lambda p, x: (p @ x, {"mean": 0.0}), "return the logits alone, got a tuple: does the mod"),
        (lambda p, x: jnp.argmax(p @ x, keepdims=True), "must return floats, got int"),
        (lambda p, x: jnp.sum(p @ x), r"got \(\): this check is for classifiers"),
    ],
)
def test_outputs_that_are_no_logits_are_told(apply: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        check_apply(apply, jnp.ones((3, 72)), VECTORS)


def test_examples_and_batches_of_a_wrong_shape() -> None:
    def apply(params: Any, x: jax.Array) -> jax.Array:
        return params @ x

    params = jnp.ones((3, 72))
    with pytest.raises(ValueError, match="at least two examples, got 1"):
        check_apply(apply, params, VECTORS[:1])
    with pytest.raises(ValueError, match=r"must have shape \(3, 3\) for 3 examples, got \(3,\)"):
        check_apply(apply, params, VECTORS, batched=lambda params, x: jnp.sum(x @ params.T, axis=1))


def check(images: Any = None, labels: Any = None, **options: Any) -> None:
    images = np.full((4, 3, 3, 1), 0.5, np.float32) if images is None else images
    labels = np.arange(4) if labels is None else labels
    hessjax.check_batch((images, labels), num_classes=4, **options)


def test_good_batches_pass_the_check() -> None:
    check()
    check(np.stack([np.zeros((2, 2)), np.ones((2, 2))]), np.asarray([0, 3]))
    check(np.full((4, 2), -3.0), bounds=(-5, 5))
    hessjax.check_batch((np.zeros((2, 3)), np.zeros(2, int), np.ones(2, bool)), num_classes=1)


def test_padding_is_not_checked() -> None:
    images, labels = np.full((3, 2), 0.5), np.asarray([0, 1, 99])
    images[2] = np.nan
    hessjax.check_batch((images, labels, np.asarray([True, True, False])), num_classes=4)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (None, np.asarray([0, 1, 2, 4]), "4"),
        (None, np.asarray([0, 1, -7, 3]), "-7"),
        (None, np.asarray([0.0, 1.0, 2.0, 3.0]), "float64"),
        (np.full((4, 2), 1.5), None, r"1\.5"),
        (np.full((4, 2), -0.25), None, r"-0\.25"),
        (np.full((4, 2), np.nan), None, "nan"),
        (np.zeros((0, 2)), np.zeros(0, int), "empty|no example"),
        (np.zeros((4, 2)), np.zeros(3, int), "4.*3|3.*4"),
        (None, np.eye(4, dtype=int), r"shape \(4,\), one class each and not one-hot, got \(4, 4\)"),
        (None, np.zeros((4, 1), int), r"got \(4, 1\)"),
        (np.full((4, 2), 255, np.uint8), None, "255"),
    ],
)
def test_bad_data_on_the_host(images: Any, labels: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        check(images, labels)


def test_bounds_of_the_check() -> None:
    for bounds in ((1, 0), (0, 0), (0, None)):
        with pytest.raises(
            ValueError, match="bounds must be a pair of numbers, the lower one first"
        ):
            check(bounds=bounds)
    with pytest.raises(ValueError, match=r"2\.0"):
        check(np.full((4, 2), 2.0), bounds=(-1, 1))
    end = float(np.float32(2.8215))  # a little more than 2.8215
    with jax.enable_x64(False):
        check(np.full((4, 2), end), bounds=(0, 2.8215))
