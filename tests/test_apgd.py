"""Auto-PGD against the reference implementation, step by step, and by itself."""

import gc
import weakref
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

from hessjax import LpBall, dlr_loss
from hessjax.attacks.apgd import apgd, apgd_attack
from hessjax.attacks.apgd_steps import checkpoints
from hessjax.attacks.balls import distance as measure
from hessjax.attacks.balls import sphere_point
from hessjax.losses import targeted_dlr_loss
from tests import originals

pytestmark = pytest.mark.usefixtures("torch_float64")

RADII = {2: 0.6, np.inf: 0.12}
# The reference adds 1e-12 to the norms of gradients, which here are as small as 1e-6.
TOLERANCE = 1e-6
KEY = jax.random.key(0)


def original(model, order, loss, rank):
    """The reference attack, as AutoAttack sets it up."""
    options = {"n_iter": 100, "norm": originals.NORMS[order], "eps": RADII[order], "device": "cpu"}
    if rank is None:
        attack = APGDAttack(model, loss=loss, **options)
    else:
        attack = APGDAttack_targeted(model, **options)
    return attack


@pytest.mark.parametrize("order", RADII)
@pytest.mark.parametrize(
    ("loss", "name", "rank"),
    [(cross_entropy, "ce", None), (dlr_loss, "dlr", None), (targeted_dlr_loss, "t", 2),
     (targeted_dlr_loss, "t", 7)],
)  # fmt: skip
def test_iterates_are_those_of_the_reference(order, loss, name, rank):
    params = originals.weights()
    x, y = originals.examples(params, 4)
    start = np.clip(x + np.random.default_rng(2).uniform(-0.1, 0.1, x.shape), 0, 1)
    ball = LpBall(RADII[order], order)

    model, seen = originals.network(params)
    attack = original(model, order, name, rank)
    images, labels = originals.batch(x, y)
    attack.init_hyperparam(images)
    if rank is not None:
        setattr(attack, "y_target", model(images).argsort(dim=1)[:, -rank])  # noqa: B010
        seen.clear()
    _, right, best_loss, _ = attack.attack_single_run(images, labels, originals.batch(start, y)[0])

    ours = apgd_attack(loss=loss, num_targets=0 if rank is None else 9)
    runs = np.full(len(x), 0 if rank is None else rank - 2)
    states = originals.iterates(ours, params, x, y, ball, start=start, run=runs)
    for i, expected in enumerate(seen):
        if i not in checkpoints(100):  # there it goes back: the next iterate tells
            compared = np.ones(len(x), bool)
            if loss is dlr_loss:
                # Where the label ranks third the loss is 1, its gradient nothing but rounding.
                compared = ~np.any([state.found for state in states[:i]], axis=0)
            np.testing.assert_allclose(
                np.asarray(states[i].x)[compared],
                expected.reshape(len(x), -1)[compared],
                atol=TOLERANCE,
            )
    if loss is not dlr_loss:
        np.testing.assert_allclose(states[-1].best_loss, best_loss, rtol=TOLERANCE)
    np.testing.assert_array_equal(states[-1].found, ~right.numpy())


@pytest.mark.parametrize("num_steps", [1, 2, 5, 10, 17, 40, 50, 100, 1000])
def test_checkpoints_are_those_of_the_reference(num_steps):
    """Windows of 22 % of the steps, each 3 % shorter than the one before, 6 % at least."""
    attack = APGDAttack(None, n_iter=num_steps, norm="L2", eps=1.0)
    window, since, expected = attack.n_iter_2, 0, []
    for i in range(num_steps):
        since += 1
        if since == window:
            expected.append(i + 1)
            window, since = max(window - attack.size_decr, attack.n_iter_min), 0
    assert checkpoints(num_steps) == tuple(expected)


def linear(x):
    """Two classes along one direction and three that are never near."""
    score = jnp.vdot(jnp.array([[3.0, -1.0], [2.0, 0.5]]), x) - 2
    return jnp.stack([score, -score, *(-50 - jnp.arange(3) - 0 * score)])


@pytest.mark.parametrize("order", RADII)
@pytest.mark.parametrize(
    "options", [{}, {"loss": dlr_loss}, {"num_targets": 4}], ids=["ce", "dlr", "targeted"]
)
def test_a_linear_model_is_broken_from_its_distance_on(order, options):
    x = jnp.array([[0.6, 0.4], [0.5, 0.3]])
    dual = jnp.abs(jnp.array([3, 1, 2, 0.5]))
    score = linear(x)[0]
    distance = score / (jnp.linalg.norm(dual) if order == 2 else jnp.sum(dual))
    for share, broken in ((0.98, False), (1.02, True)):
        ball = LpBall(share * distance, order)
        x_adv = jax.jit(partial(apgd, linear, ball=ball, **options))(x, 0, key=jax.random.key(0))
        assert bool(linear(x_adv)[0] < linear(x_adv)[1]) == broken
        assert measure(ball, x_adv - x) <= ball.epsilon * (1 + 1e-12)
        if not broken:  # it went as far as it could
            np.testing.assert_allclose(measure(ball, x_adv - x), ball.epsilon, rtol=1e-6)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_of_few_classes_another_loss_stands_in(num_classes):
    x, ball, key = jnp.array([[0.6, 0.4], [0.5, 0.3]]), LpBall(0.4, 2), jax.random.key(0)
    assert linear(x)[0] > linear(x)[1]
    for options in ({"num_targets": 9}, {"loss": dlr_loss}):
        attack = partial(apgd, lambda x: linear(x)[:num_classes], ball=ball, num_steps=9, **options)
        assert jnp.argmax(linear(jax.jit(attack)(x, 0, key=key))) == 1


def test_steps_need_no_promotion_of_numbers():
    x = jnp.array([[0.6, 0.4], [0.5, 0.3]], jnp.float32)
    weights = jnp.asarray([[3, -1, 2, 0.5], [-3, 1, -2, -0.5]], jnp.float32)
    given = (x, 0, LpBall(0.1, 2), jax.random.key(0))
    with jax.numpy_dtype_promotion("strict"):
        x_adv = apgd(lambda x: weights @ x.ravel(), *given, num_steps=2)
    assert x_adv.dtype == x.dtype


def test_it_returns_a_misclassified_example_as_it_is():
    x = jnp.array([[0.6, 0.4], [0.5, 0.3]])
    x_adv = apgd(linear, x, 3, LpBall(0.1, 2), jax.random.key(0), num_steps=3)
    np.testing.assert_array_equal(x_adv, x)


def test_restarts_and_targets_only_find_more():
    """A score with many maxima: what one short run misses, several find."""

    def bumpy(x):
        score = jnp.sum(jnp.sin(40 * x)) + 0.5
        return jnp.stack([score, -score, -100 - 0 * score, -101 + 0 * score])

    x = jnp.asarray(np.random.default_rng(1).uniform(0.2, 0.8, size=(60, 2)))
    x = x[jax.vmap(bumpy)(x)[:, 0] > 0]

    def broken(**options):
        run = partial(apgd, bumpy, y=0, ball=LpBall(0.05, 2), num_steps=3, **options)
        keys = jax.random.split(KEY, len(x))
        points = jax.jit(jax.vmap(lambda x, key: run(x, key=key)))(x, keys)
        return np.asarray(jax.vmap(bumpy)(points)[:, 0] < 0)

    once, often = broken(), broken(num_restarts=6)
    assert not np.any(once & ~often)
    assert once.sum() < often.sum()
    assert broken(num_targets=3).sum() > 0


def test_a_loss_is_kept_by_nobody():
    x, ball = jnp.full((2, 2), 0.5), LpBall(0.1, 2)

    def broken(scale):
        def loss(logits, y):
            return cross_entropy(logits * scale, y)

        losses.append(weakref.ref(loss))
        return apgd(linear, x, 0, ball, KEY, loss=loss, num_steps=2)

    losses = []
    with jax.checking_leaks():
        jax.jit(broken)(2.0)
    gc.collect()
    assert losses[0]() is None


def test_a_start_is_where_it_begins():
    x = jnp.full((2, 2), 0.5)
    start = x + jnp.array([[0.0, 0.02], [0.0, 0.0]])
    state = apgd_attack().init(linear, x, 0, LpBall(0.1, 2), KEY, start=start)
    np.testing.assert_array_equal(state.x, start.ravel())
    far = apgd_attack().init(linear, x, 0, LpBall(0.1, np.inf), KEY, start=start + 1)
    np.testing.assert_allclose(far.x, x.ravel() + 0.1)


@pytest.mark.parametrize("options", [{"num_targets": 9}, {"loss": dlr_loss}])
def test_a_start_is_also_that_of_another_loss(options):
    """It is misclassified, and so what comes back."""
    x, start = jnp.array([[0.6, 0.4], [0.5, 0.3]]), jnp.array([[0.4, 0.4], [0.3, 0.3]])
    assert linear(start)[0] < linear(start)[1]
    run = partial(apgd, lambda x: linear(x)[:2], ball=LpBall(0.4, 2), num_steps=1, **options)
    np.testing.assert_array_equal(run(x=x, y=0, key=KEY, start=start), start)


def test_random_starts_lie_on_the_surface():
    x = jnp.full((50, 2, 2), 0.5)
    for order in RADII:
        ball = LpBall(0.1, order)
        starts = jax.vmap(partial(sphere_point, ball))(x, jax.random.split(KEY, 50))
        lengths = jax.vmap(partial(measure, ball))(starts - x)
        np.testing.assert_allclose(lengths, 0.1, rtol=1e-12)
        assert len(np.unique(np.asarray(starts))) > 150


@pytest.mark.parametrize("order", RADII)
def test_a_model_of_nan_is_broken_and_inputs_stay_finite(order):
    def nan(x):
        return jnp.full(4, jnp.nan) * jnp.sum(x)

    state = apgd_attack(num_steps=3).init(nan, jnp.full((2, 2), 0.5), 0, LpBall(0.1, order), KEY)
    assert state.found
    x_adv = apgd(nan, jnp.full((2, 2), 0.5), 0, LpBall(0.1, order), KEY, num_steps=3)
    assert jnp.all(jnp.isfinite(x_adv))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"num_restarts": 1.5}, "num_restarts must be a whole number, got 1.5"),
        ({"num_targets": -1}, "num_targets must be at least 1, got -1"),
        ({"num_targets": None}, "num_targets must be a whole number, got None"),
        (
            {"loss": cross_entropy, "num_targets": 2},
            r"num_targets=2 the loss must take \(logits, y, target\), got .* \(logits, labels\)",
        ),
        (
            {"loss": targeted_dlr_loss},
            r"num_targets=0 the loss must take \(logits, y\), got .* \(logits, y, target\)",
        ),
        ({"start": np.full(4, 0.5)}, r"start must have the shape of x, \(2, 2\), got \(4,\)"),
        ({"start": 0.5}, r"start must have the shape of x, \(2, 2\), got \(\)"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        apgd(linear, jnp.full((2, 2), 0.5), 0, LpBall(0.1, 2), KEY, **options)


@pytest.mark.parametrize("order", RADII)
@pytest.mark.parametrize("entry", [np.inf, -np.inf])
def test_an_infinite_start_leads_to_no_infinite_point(order, entry):
    x = jnp.full(4, 0.5)
    ball = LpBall(0.1, order)
    point = apgd(lambda x: 3 * x, x, 0, ball, KEY, num_steps=2, start=x.at[0].set(entry))
    assert jnp.all(jnp.isfinite(point))
    assert measure(ball, point - x) <= 0.1 + 1e-12


def test_a_start_that_is_nan_is_the_example():
    x, ball = jnp.full((2, 2), 0.5), LpBall(0.1, 2)
    options = {"num_steps": 2, "start": x.at[0].set(jnp.nan)}
    np.testing.assert_array_equal(
        apgd(linear, x, 0, ball, KEY, **options),
        apgd(linear, x, 0, ball, KEY, num_steps=2, start=x),
    )
