"""What AutoAttack warns of: NaN, few classes, randomness and masked gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessjax import LpBall
from hessjax.attacks import apgd_attack, fab_attack, square_attack
from hessjax.attacks.checks import randomness_warnings
from tests.short import LOGITS, SHORT, attacked


def test_nan_counts_as_broken_and_is_told(examples):
    x, y = examples
    sick = x.copy()
    sick[5:8, 0, 0] = 0.999

    def logits_fn(x):
        return LOGITS(x) / jnp.where(x[0, 0, 0] > 0.99, jnp.nan, 1)

    few = (SHORT[0], SHORT[2])
    result = attacked(logits_fn, sick, y, LpBall(0.01, 2), attacks=few)
    assert list(np.asarray(result.broken_by)[5:8]) == [-2, -2, -2]
    assert any(
        text.startswith("the logits of 3 of 40 examples are NaN") for text in result.warnings
    )

    far = attacked(logits_fn, np.clip(x, 0, 0.95), y, LpBall(2.0, 2), attacks=few)
    assert not jnp.any(far.robust)
    assert jnp.all(jnp.isfinite(far.x))


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_few_classes_fall_back_and_tell(num_classes):
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(num_classes, 9)))
    x = rng.uniform(0.3, 0.7, size=(30, 3, 3))

    def logits_fn(x):
        return w @ (x.ravel() - 0.5)

    z = np.asarray(jax.vmap(logits_fn)(x))
    y = z.argmax(axis=1)
    gaps = np.asarray(jnp.linalg.norm(w[:, None] - w[None], axis=-1))
    away = np.where(np.arange(num_classes) == y[:, None], np.inf, z.max(axis=1)[:, None] - z)
    distance = np.min(away / np.where(gaps[y] == 0, 1, gaps[y]), axis=1)
    epsilon = float(np.median(distance))
    attacks = (apgd_attack(num_targets=9), fab_attack(num_steps=5, num_targets=9))
    result = attacked(logits_fn, x, y, LpBall(epsilon, 2), attacks=attacks)
    clear = np.abs(distance / epsilon - 1) > 0.01
    np.testing.assert_array_equal(np.asarray(result.robust)[clear], (distance > epsilon)[clear])
    told = " ".join(result.warnings)
    assert ("its loss needs 4 classes" in told) == (num_classes < 4)
    assert f"9 targets are asked for but there are only {num_classes - 1} wrong classes" in told


def test_randomness_is_told(examples):
    x, y = examples
    rng = np.random.default_rng(0)

    def logits_fn(x):
        noise = jax.pure_callback(
            lambda t: rng.normal(size=(*t.shape[:-3], 10)),
            jax.ShapeDtypeStruct((10,), jnp.float64), x, vmap_method="expand_dims",
        )  # fmt: skip
        return LOGITS(x) + noise

    few = (square_attack(num_steps=2),)
    result = attacked(logits_fn, x[:6], y[:6], LpBall(0.01, 2), attacks=few)
    assert any("the logits differ from call to call" in text for text in result.warnings)


def test_masked_gradients_are_told(examples):
    """Rounded inputs have no gradient; only what needs none finds what is wrong."""

    def logits_fn(x):
        return LOGITS(jnp.round(8 * x) / 8)

    x = np.round(8 * examples[0]) / 8
    y = np.asarray(jax.vmap(logits_fn)(x)).argmax(axis=1)
    # Whatever it is called.
    attacks = (SHORT[0], square_attack(num_steps=150)._replace(name="search"))
    result = attacked(logits_fn, x, y, LpBall(0.4, np.inf), attacks=attacks)
    told = " ".join(result.warnings)
    assert "the gradient of the DLR loss is zero at 40 of 40" in told
    assert "search broke" in told


def test_square_is_no_sign_where_no_gradient_was_tried_before(examples):
    x, y = examples
    ball, square = LpBall(0.4, np.inf), square_attack(num_steps=25)
    first = attacked(LOGITS, x, y, ball, attacks=(square, SHORT[0]))
    assert np.mean(first.broken_by == 0) > 0.5
    assert not first.warnings


def test_square_is_no_sign_of_what_other_attacks_broke(examples):
    """The entries of an earlier result are numbers of its own attacks."""
    x, y = examples
    ball, nothing = LpBall(0.4, np.inf), SHORT[0]._replace(num_steps=0)
    earlier = attacked(LOGITS, x, y, ball, attacks=(nothing, SHORT[1]))
    assert np.mean(earlier.broken_by == 1) > 0.5
    attacks = (SHORT[0], square_attack(num_steps=1))
    assert not attacked(LOGITS, x, y, ball, attacks=attacks, resume=earlier).warnings


def test_a_masked_class_is_no_randomness(recwarn):
    """Its logit is minus infinity; the others tell whether they differ from call to call."""
    logits = np.array([[1.0, 2.0, -np.inf], [2.0, 1.0, -np.inf]])
    assert randomness_warnings(logits, logits) == []
    assert randomness_warnings(logits, logits + np.array([[0, 0, 0], [0, 0.1, 0]]))
    assert not recwarn.list
