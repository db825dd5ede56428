"""The signs of masked gradients, on models that show one or none, and the verdict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

from experiments import masking
from hessjax import LpBall, dlr_loss, hessian_matrix, margin
from hessjax.attacks import apgd_attack, auto_attack, square_attack
from tests import originals

KEY = jax.random.key(0)
CLEAN = {sign.figure: 0.0 for sign in masking.SIGNS}
CE = apgd_attack(num_steps=10, name="apgd-ce")
DLR = apgd_attack(num_steps=10, name="apgd-dlr", loss=dlr_loss)
ATTACKS = (CE, DLR, square_attack(num_steps=60))
NAMES = [attack.name for attack in ATTACKS]
PARAMS = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), originals.weights())


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(masking, "_ONE", (CE,))
    monkeypatch.setattr(masking, "_BOTH", (CE, DLR))
    monkeypatch.setattr(masking, "_MORE", (CE, DLR))


def smooth(params, x):
    return originals.logits_fn(params, x)


def scaled(params, x):
    return 1000 * smooth(params, x)


def rounded(params, x):
    return smooth(params, jnp.round(6 * x) / 6)


def wavy(params, x):
    """Right at the example and after a full step, wrong between."""
    score = jnp.cos(2 * jnp.pi * (jnp.sum(x) - params["sum"]) / params["step"])
    return jnp.stack([score, -score, -10 - 0 * score])


def figures(function, epsilon, params=PARAMS, *, order: float = 2, images=None, met=None):
    images = originals.examples(originals.weights(), 40)[0] if images is None else images
    x = jnp.asarray(images, jnp.float32)
    if function is rounded:
        x = jnp.round(6 * x) / 6
    logits_fn = jax.tree_util.Partial(function, params)
    y = jnp.argmax(jax.vmap(logits_fn)(x), axis=1)
    ball = LpBall(epsilon, order)
    result = auto_attack(logits_fn, x, y, ball, KEY, attacks=ATTACKS, batch_size=160)
    seen = masking.examine(logits_fn, x, y, ball, KEY, result=result, names=NAMES, met=met)
    return seen, logits_fn, x, y


def test_no_sign_no_masking():
    assert masking.verdict({**CLEAN, "num_examples": 1000}).startswith("trustworthy")


@pytest.mark.parametrize("sign", masking.SIGNS, ids=lambda sign: sign.figure)
def test_each_sign_is_seen_above_its_limit(sign):
    at = {**CLEAN, "num_examples": 10_000, sign.figure: sign.limit}
    assert masking.verdict(at).startswith("trustworthy")
    above = masking.verdict({**at, sign.figure: sign.limit + 0.1})
    assert above == f"masking: {sign.says.format(sign.limit + 0.1)} (limit {sign.limit:g} %)"


def test_one_example_is_no_sign():
    """Of 50, it would be 2 %."""
    assert masking.verdict({**CLEAN, "num_examples": 50, "square_gain": 2}).startswith("trust")
    assert masking.verdict({**CLEAN, "num_examples": 50, "square_gain": 4}).startswith("masking")


def test_all_signs_are_told():
    told = masking.verdict({**{sign.figure: 99.0 for sign in masking.SIGNS}, "num_examples": 100})
    assert told.count("limit") == len(masking.SIGNS)


def test_a_smooth_network_is_trusted():
    seen, logits_fn, x, y = figures(smooth, 0.1)
    assert masking.verdict(seen).startswith("trustworthy")
    accuracies = list(seen["by_epsilon"].values())
    assert list(seen["by_epsilon"])[:3] == ["0.1", "0.2", "0.4"]
    assert 100 > accuracies[0] > accuracies[1]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[-1] == 0
    assert 100 > seen["fgsm"] > accuracies[0]
    # Shares of 40 examples, to the last digit: the limits are within a hair of one example.
    for share in (*accuracies, *(seen[sign.figure] for sign in masking.SIGNS[:5])):
        assert 0.4 * share == pytest.approx(round(0.4 * share), rel=1e-12)
    assert 0 < seen["missed_by_fgsm"] < 95

    def dense(point, label):
        def f(t):
            return cross_entropy(logits_fn(t), label)

        return margin(logits_fn(point), label), jax.grad(f)(point), hessian_matrix(f, point)

    margins, gradients, hessians = jax.jit(jax.vmap(dense))(x, y)
    slopes = np.linalg.norm(gradients.reshape(len(x), -1), axis=1)
    curvatures = np.abs(np.linalg.eigvalsh(hessians)).max(axis=1)
    np.testing.assert_allclose(seen["margin"], np.mean(margins), rtol=1e-5)
    np.testing.assert_allclose(seen["gradient_norm"], np.mean(slopes), rtol=1e-5)
    np.testing.assert_allclose(seen["hessian_norm"], np.mean(curvatures), rtol=0.05)  # from below


def test_large_logits_are_seen():
    """The softmax saturates in float32: cross-entropy is blind, the DLR loss is not."""
    seen, *_ = figures(scaled, 0.1)
    assert seen["zero_gradients"] > 50
    assert seen["rescaling_gain"] > 10
    told = masking.verdict(seen)
    assert "the gradient of cross-entropy is zero at" in told
    assert "cross-entropy of rescaled logits breaks" in told


def test_gradients_rounded_away_are_seen():
    seen, *_ = figures(rounded, 0.25, order=np.inf)
    assert seen["zero_gradients"] == 100
    assert seen["square_gain"] > 5
    assert "Square breaks" in masking.verdict(seen)
    # What it broke in a smaller ball, no gradient was tried on in this one.
    before, *_ = figures(rounded, 0.25, order=np.inf, met=np.zeros(40, bool))
    assert before == {**seen, "square_gain": 0}


def test_what_only_a_single_step_spares_is_seen():
    (image,) = originals.examples(originals.weights(), 1)[0]
    x = np.stack([image, image[::-1]])  # of the same sum
    # Every entry moves by ε, so the sum by 25 ε, which is a whole period; and the example lies off
    # the top, where there is a gradient.
    params = {"sum": jnp.float32(image.sum() + 1e-3), "step": jnp.float32(25 * 0.02)}
    seen, *_ = figures(wavy, 0.02, params=params, order=np.inf, images=x)
    assert seen["fgsm"] == 100
    assert seen["by_epsilon"]["0.02"] == 0
    assert seen["missed_by_fgsm"] == 100
    assert "FGSM misses 100.0 % of what AutoAttack breaks" in masking.verdict(seen)
    # One alone is no sign, though it be all of what is broken, and a tenth of the examples or more.
    one, *_ = figures(wavy, 0.02, params=params, order=np.inf, images=x[:1])
    assert (one["fgsm"], one["by_epsilon"]["0.02"], one["missed_by_fgsm"]) == (100, 0, 0)
