"""The losses of attacks against their formulas, written out with sorting in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessjax.losses import dlr_loss, margin, misclassified, targeted_dlr_loss

RNG = np.random.default_rng(40)
LOGITS = RNG.normal(size=(20, 5)) * 3
LABELS = RNG.integers(5, size=20)
LOSSES = [margin, dlr_loss, misclassified]


def margin_by_sorting(z, y):
    return z[y] - np.sort(np.delete(z, y))[-1]


def dlr_by_sorting(z, y):
    first, _, third = np.sort(z)[::-1][:3]
    return -margin_by_sorting(z, y) / (first - third)


@pytest.mark.parametrize(
    ("loss", "oracle"), [(margin, margin_by_sorting), (dlr_loss, dlr_by_sorting)]
)
def test_formula(loss, oracle):
    got = jax.jit(jax.vmap(loss))(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    wanted = [oracle(z, y) for z, y in zip(LOGITS, LABELS, strict=True)]
    np.testing.assert_allclose(got, wanted, rtol=1e-10)


@pytest.mark.parametrize(("loss", "classes"), [(margin, 2), (dlr_loss, 3)])
def test_fewest_classes(loss, classes):
    z = np.array([0.5, 2.0, 1.0])[:classes]
    oracle = {margin: margin_by_sorting, dlr_loss: dlr_by_sorting}[loss]
    for y in range(classes):
        np.testing.assert_allclose(loss(z, y), oracle(z, y), rtol=1e-10)


def test_gradients_by_finite_differences():
    for loss in (margin, dlr_loss):
        for z, y in zip(LOGITS[:5], LABELS[:5], strict=True):
            steps = 1e-6 * np.eye(5)
            wanted = [(loss(z + step, y) - loss(z - step, y)) / 2e-6 for step in steps]
            np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(z), y), wanted, atol=1e-8)


def test_dlr_does_not_see_scale_and_shift_of_the_logits():
    z, y = LOGITS[0], LABELS[0]
    for scale in (1e-3, 1.0, 1e4):
        np.testing.assert_allclose(dlr_loss(scale * z + 7, y), dlr_loss(z, y), rtol=1e-8)


def test_equal_logits_are_finite():
    assert float(margin(np.ones(4), 1)) == 0
    assert float(dlr_loss(np.ones(4), 1)) == 0
    assert np.all(np.isfinite(jax.grad(dlr_loss)(jnp.ones(4), 1)))


@pytest.mark.parametrize("loss", [margin, dlr_loss])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtype_is_kept(loss, dtype):
    got = loss(jnp.asarray(LOGITS[0], dtype), 3)
    assert got.dtype == dtype
    np.testing.assert_allclose(
        float(got), float(loss(LOGITS[0], 3)), rtol=10 * float(jnp.finfo(dtype).eps)
    )


def test_whole_numbers_are_logits_like_others():
    z = np.array([0, 4, 2, 1])
    assert float(dlr_loss(z, 2)) == pytest.approx(2 / 3)
    assert float(targeted_dlr_loss(z, 2, 1)) == pytest.approx(2 / 3.5)
    assert float(margin(z, 2)) == -2
    assert bool(misclassified(z, 2))


def test_misclassified_agrees_with_the_sign_of_the_margin():
    z, y = jnp.asarray(LOGITS), jnp.asarray(LABELS)
    wrong = jax.vmap(misclassified)(z, y)
    np.testing.assert_array_equal(wrong, jax.vmap(margin)(z, y) < 0)
    assert 0 < int(wrong.sum()) < len(LABELS)


def test_a_tie_goes_to_the_first_class_as_in_argmax():
    z = jnp.array([1.0, 2.0, 2.0])
    assert not misclassified(z, 1)
    assert misclassified(z, 2)


@pytest.mark.parametrize("y", [0, 1, 2])
@pytest.mark.parametrize("place", [0, 2])
def test_nan_is_misclassified_whatever_the_label(y, place):
    assert misclassified(jnp.array([1.0, 2.0, 3.0]).at[place].set(jnp.nan), y)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_is_refused(loss):
    with pytest.raises(ValueError, match=r"got shapes \(20, 5\) and \(20,\); batch with jax.vmap"):
        loss(LOGITS, LABELS)
    with pytest.raises(ValueError, match=r"got shapes \(5,\) and \(1,\)"):
        loss(LOGITS[0], LABELS[:1])


@pytest.mark.parametrize("loss", LOSSES)
def test_a_label_that_is_no_whole_number_is_refused(loss):
    with pytest.raises(TypeError, match="y must be a whole number, got dtype float"):
        loss(LOGITS[0], 1.0)


@pytest.mark.parametrize(("loss", "least"), [(margin, 2), (dlr_loss, 3), (misclassified, 2)])
def test_too_few_classes_are_refused(loss, least):
    with pytest.raises(ValueError, match=f"at least {least} classes, got {least - 1} logits"):
        loss(np.ones(least - 1), 0)


@pytest.mark.parametrize("loss", [margin, dlr_loss])
@pytest.mark.parametrize("y", [-1, 5])
def test_a_label_that_is_no_class_gives_nan(loss, y):
    assert jnp.isnan(loss(LOGITS[0], y))


def test_a_label_of_eight_bits_is_no_class_of_many():
    for classes in (128, 300):
        for loss in (margin, dlr_loss):
            assert jnp.isnan(loss(np.arange(classes, dtype=float), np.int8(-1)))
    assert margin(np.arange(300.0), np.uint8(255)) == 255 - 299


def test_a_masked_class_leaves_a_ratio():
    z = jnp.array([3.0, 1.0, 2.0, -jnp.inf])
    assert float(dlr_loss(z[jnp.array([0, 1, 3])], 0)) == pytest.approx(-1)
    # 3 - (1 + 1) / 2 = 2
    assert float(targeted_dlr_loss(z, 0, 2)) == pytest.approx(-1 / 2)
    gradient = jax.grad(targeted_dlr_loss)(z, 0, 2)
    np.testing.assert_allclose(gradient, [-1 / 2 + 1 / 4, -1 / 4, 1 / 2, 0], rtol=1e-9)


@pytest.mark.parametrize(("y", "target"), [(-1, 2), (5, 2), (2, -1), (2, 5)])
def test_a_target_that_is_no_class_gives_nan(y, target):
    assert jnp.isnan(targeted_dlr_loss(LOGITS[0], y, target))
    assert not jnp.isnan(targeted_dlr_loss(LOGITS[0], 2, 1))


def test_a_target_that_is_no_whole_number_is_named():
    with pytest.raises(TypeError, match=r"^the target must be a whole number, got dtype float"):
        targeted_dlr_loss(LOGITS[0], 1, 2.0)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_equal_logits_in_half_precision_lie_on_the_boundary(dtype):
    assert dlr_loss(jnp.ones(4, dtype), 2) == 0
