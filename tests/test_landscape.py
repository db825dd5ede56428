"""The numbers behind the figures, on losses whose Hessian and surface are known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import devices
from experiments.landscape import landscape
from hessjax.attacks import LpBall

SHAPE = (3, 1, 1)
SIZE = 3
BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(SIZE, SIZE)))[0]
SPECTRUM = np.array([2.0, -1.0, -4.0])
MATRIX = BASIS * SPECTRUM @ BASIS.T
SLOPE = np.random.default_rng(1).normal(size=SIZE)
IMAGES = np.random.default_rng(2).uniform(size=(5, *SHAPE))
LABELS = np.array([1, 1, 0, 2, 0])
KEY = jax.random.key(0)


def quadratic(params, x):
    """Three outputs, of which the first is the loss: ½ xᵀAx + bᵀx."""
    matrix, slope = params
    x = x.ravel()
    return jnp.stack([x @ matrix @ x / 2 + slope @ x, jnp.zeros((), x.dtype), 1 - x[0]])


def linear(weights, x):
    return x.ravel() @ weights


def first_output(logits, label):
    del label
    return logits[0]


def measure(
    matrix: np.ndarray = MATRIX,
    slope: np.ndarray = SLOPE,
    images: np.ndarray = IMAGES,
    labels: np.ndarray = LABELS,
    **settings,
):
    defaults = {"key": KEY, "ball": LpBall(0.3, 2), "radius": 1.5, "loss": first_output}
    defaults |= {"num_products": SIZE, "num_steps": 3, "num_examples": 3, "resolution": 7}
    params = (jnp.asarray(matrix), jnp.asarray(slope))
    return landscape(quadratic, params, images, labels, **(defaults | settings))


@pytest.fixture(scope="module")
def measured():
    return measure()


def test_curvature_is_the_largest_absolute_eigenvalue(measured):
    np.testing.assert_allclose(measured["curvature"], np.full(5, 4.0), rtol=1e-10)


def test_gradient_norm_is_that_of_every_example(measured):
    gradients = IMAGES.reshape(5, SIZE) @ MATRIX + SLOPE
    expected = np.sqrt((gradients**2).sum(axis=1))
    np.testing.assert_allclose(measured["gradient_norm"], expected, rtol=1e-12)


def test_fewer_products_estimate_from_below_and_fewer_examples_are_shown():
    found = measure(num_products=1, num_examples=1)
    assert (found["curvature"] < 4.0 - 1e-3).all()
    assert found["shown"].tolist() == [0]


def test_tiny_gradients_do_not_underflow():
    """In float32 the square of 1e-25 is zero."""
    matrix, slope = (1e-25 * array for array in (MATRIX, SLOPE))
    matrix, slope, images = (array.astype(np.float32) for array in (matrix, slope, IMAGES))
    small = measure(matrix, slope, images)
    gradients = IMAGES.reshape(5, SIZE) @ MATRIX + SLOPE
    expected = 1e-25 * np.linalg.norm(gradients, axis=1)
    np.testing.assert_allclose(small["gradient_norm"], expected, rtol=1e-5)


def test_shown_are_the_first_of_each_class(measured):
    assert measured["shown"].tolist() == [0, 2, 3]
    assert measured["shown_label"].tolist() == [1, 0, 2]
    np.testing.assert_array_equal(measured["shown_clean"], IMAGES[[0, 2, 3]])


def test_surface_is_the_closed_form(measured):
    """Gradient across, the rest of the eigenvector (at an acute angle to it) upward."""
    offsets = np.linspace(-1.5, 1.5, 7)
    np.testing.assert_allclose(measured["surface_offsets"], offsets, atol=1e-12)
    top = BASIS[:, 2]
    for place, i in enumerate([0, 2, 3]):
        x = IMAGES[i].ravel()
        gradient = MATRIX @ x + SLOPE
        across = gradient / np.linalg.norm(gradient)
        cosine = top @ across
        rest = np.sign(cosine) * (top - cosine * across)
        upward = rest / np.linalg.norm(rest)
        expected = np.empty((7, 7))
        for row, up in enumerate(offsets):
            for column, along in enumerate(offsets):
                point = x + along * across + up * upward
                expected[row, column] = point @ MATRIX @ point / 2 + SLOPE @ point
        np.testing.assert_allclose(measured["surface_loss"][place], expected, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(measured["surface_cosine"][place], abs(cosine), rtol=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parallel_gradient_and_eigenvector_get_an_orthogonal_second_axis(dtype):
    """For ½ c |x|² the loss over the plane tells nothing but that the axes are orthonormal."""
    matrix, slope = 3 * np.eye(SIZE, dtype=dtype), np.zeros(SIZE, dtype)
    found = measure(matrix, slope, IMAGES.astype(dtype))
    np.testing.assert_array_equal(found["surface_cosine"], np.ones(3))
    offsets = np.linspace(-1.5, 1.5, 7)
    up, along = offsets[:, None], offsets[None, :]
    for place, i in enumerate([0, 2, 3]):
        expected = 1.5 * ((np.linalg.norm(IMAGES[i]) + along) ** 2 + up**2)
        np.testing.assert_allclose(found["surface_loss"][place], expected, rtol=3e-6)


def test_vanishing_gradient_gives_finite_numbers():
    found = measure(slope=np.zeros(SIZE), images=np.zeros_like(IMAGES))
    np.testing.assert_array_equal(found["gradient_norm"], np.zeros(5))
    np.testing.assert_allclose(found["curvature"], np.full(5, 4.0), rtol=1e-8)
    assert np.isfinite(found["surface_loss"]).all()


@pytest.mark.parametrize("batch_size", [2, 100])
def test_batch_size_changes_nothing(measured, batch_size):
    for name, array in measure(batch_size=batch_size).items():
        np.testing.assert_allclose(array, measured[name], rtol=1e-10, err_msg=name)


def test_devices_change_nothing(measured):
    """Two batches of four on two of them, the last one filled up."""
    for name, array in measure(batch_size=2, mesh=devices.mesh(2)).items():
        np.testing.assert_allclose(array, measured[name], rtol=1e-10, err_msg=name)


def test_what_is_compiled_serves_every_batch_and_the_next_network():
    traces = []

    def counted(params, x):
        traces.append(x.shape)
        return quadratic(params, x)

    def count(factor, images, labels):
        traces.clear()
        params = (jnp.asarray(factor * MATRIX), jnp.asarray(SLOPE))
        settings: dict[str, Any] = {"key": KEY, "ball": LpBall(0.3, 2), "radius": 1.0}
        settings |= {"num_products": 1, "num_steps": 1, "resolution": 3, "batch_size": 2}
        landscape(counted, params, images, labels, loss=first_output, **settings)
        return len(traces)

    # One batch of two, and three, of which the last has a rest.
    alone = count(1, IMAGES[:2], LABELS[:2])
    assert alone > 0
    shown = np.array([1, 1, 1, 1, 1])
    assert count(2, IMAGES, shown) == 0


def test_the_boundary_is_seen_along_the_attack():
    """A linear model's margin falls along an ℓ2 attack by nearly its slope."""
    weights = np.array([[1.0, -1.0], [0.5, 0.5], [0.5, 2.0]])
    images = np.array([[0.5, 0.5, 0.5], [0.25, 0.25, 0.75]]).reshape(2, *SHAPE)
    found = landscape(
        linear,
        jnp.asarray(weights),
        images,
        np.array([0, 1]),
        key=KEY,
        ball=LpBall(0.2, 2),
        radius=0.6,
        num_products=SIZE,
        num_steps=40,
        resolution=5,
    )
    offsets = np.linspace(-0.6, 0.6, 5)
    for surface, image, sign, moved in zip(
        found["boundary_margin"], images, (1, -1), found["attacked"] - images, strict=True
    ):
        slope = sign * (weights[:, 0] - weights[:, 1])
        along = moved.ravel() / np.linalg.norm(moved)
        assert slope @ along < 0
        expected = image.ravel() @ slope + offsets * (slope @ along)
        np.testing.assert_allclose(surface[2], expected, rtol=1e-10)
        # Across, too, it is linear, and the same everywhere.
        np.testing.assert_allclose(
            surface - surface[:, :1], np.tile(surface[2] - surface[2, 0], (5, 1))
        )
        np.testing.assert_allclose(surface[::-1, 2] + surface[:, 2], 2 * surface[2, 2])


def test_the_boundary_of_an_attack_that_goes_nowhere_is_finite():
    nothing = np.zeros((SIZE, 2))
    found = landscape(
        linear,
        jnp.asarray(nothing),
        IMAGES,
        LABELS % 2,
        key=KEY,
        ball=LpBall(0.2, 2),
        radius=0.5,
        num_products=SIZE,
    )
    assert np.all(found["boundary_margin"] == 0)


@pytest.mark.parametrize("order", [2, np.inf])
def test_attack_stays_in_the_ball_and_predictions_are_those_of_the_model(order):
    weights = np.random.default_rng(3).normal(size=(SIZE, 3))
    # An example that is wrong already would be left where it is.
    labels = (IMAGES.reshape(5, SIZE) @ weights).argmax(axis=1)
    found = landscape(
        linear, jnp.asarray(weights), IMAGES, labels, key=KEY, ball=LpBall(0.3, order), radius=1.0,
        num_products=1, num_steps=3, num_examples=3, resolution=3,
    )  # fmt: skip
    count = len(found["shown"])
    moved = (found["attacked"] - found["shown_clean"]).reshape(count, SIZE)
    sizes = np.linalg.norm(moved, ord=order, axis=1)
    assert (sizes <= 0.3 + 1e-9).all()
    assert (sizes > 0.1).all()
    for name, images in (("clean", "shown_clean"), ("attacked", "attacked")):
        logits = found[images].reshape(count, SIZE) @ weights
        np.testing.assert_array_equal(found[f"{name}_prediction"], logits.argmax(axis=1))
    assert found["attack_epsilon"] == 0.3
    assert found["attack_order"] == order
    assert found["attack_steps"] == 3


def test_survives_the_disk(measured, tmp_path):
    np.savez(tmp_path / "landscape.npz", **measured)
    with np.load(tmp_path / "landscape.npz", allow_pickle=False) as archive:
        assert set(archive) == set(measured)
        for name in archive:
            np.testing.assert_array_equal(archive[name], measured[name])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "at least one image, got 0 images and 0"),
        ({"labels": LABELS[:3]}, "got 5 images and 3 labels"),
        ({"resolution": 10}, "odd and at least 3, got 10"),
        ({"resolution": 1}, "odd and at least 3, got 1"),
        ({"radius": -1.0}, "radius must be positive, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_bad_input_is_told(changed, message):
    with pytest.raises(ValueError, match=message):
        measure(**changed)
