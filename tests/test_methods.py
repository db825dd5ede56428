"""Each training method is the objective that its name and strength promise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

from experiments import adversarial
from experiments.methods import METHODS, Setting, find
from hessjax import Lazy, LpBall, penalties
from hessjax.composite_penalties import (
    gauss_newton_operator_norm,
)
from hessjax.operators import Composite
from tests import traps

H = 0.3
WEIGHT = 0.4
KEY = jax.random.key(0)


def apply(params, x):
    return params["out"] @ jnp.tanh(params["in"] @ x)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    params = {
        "in": jnp.asarray(rng.normal(size=(4, 5))),
        "out": jnp.asarray(rng.normal(size=(3, 4))),
    }
    x = jnp.asarray(rng.uniform(0.3, 0.7, size=(5, 5)))
    return params, (x, jnp.array([0, 1, 2, 0, 1]))


def plain(name, strength, *, ramp=1.0, order=2, weight=WEIGHT, num_steps=None):
    setting = Setting(
        strength, H, order, optax.constant_schedule(ramp), weight, num_steps=num_steps
    )
    return METHODS[name].build(apply, setting)


def build(name, strength, **options):
    return jax.jit(plain(name, strength, **options))


@jax.jit
def dense(params, batch):
    """Return the mean loss, ‖g‖ and ‖Hĝ‖ by the dense Hessian."""

    def one(x, y):
        def f(t):
            return cross_entropy(apply(params, t), y)

        g = jax.grad(f)(x)
        return f(x), jnp.linalg.norm(g), jnp.linalg.norm(jax.hessian(f)(x) @ g) / jnp.linalg.norm(g)

    return [jnp.mean(value) for value in jax.vmap(one)(*batch)]


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("none", (1, 0, 0)),
        ("gradient", (1, 0.7, 0)),
        ("hessian", (1, 0.7, 0.7**2 / 2)),
        ("gradient-hessian", (1, 0.7, WEIGHT)),
        ("hessian-only", (1, 0, 0.7)),
    ],
)
def test_value_is_the_weighted_sum_of_dense_terms(problem, name, weights):
    value, _ = build(name, 0.7)(*problem, KEY)
    expected = sum(w * term for w, term in zip(weights, dense(*problem), strict=True))
    np.testing.assert_allclose(value, expected, rtol=1e-10)


@jax.jit
def hessians(params, batch):
    """Return the dense Hessian of each example."""

    def one(x, y):
        return jax.hessian(lambda t: cross_entropy(apply(params, t), y))(x)

    return jax.vmap(one)(*batch)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("hessian-only-lanczos", 1e-8),
        # Five products from a random start leave a part of the error there was.
        ("hessian-only-power", 0.05),
        ("hessian-only-ascent", 0.05),
    ],
)
def test_hessian_alone_by_other_solvers(problem, name, tolerance):
    params, batch = problem
    norm = jnp.mean(jnp.max(jnp.abs(jnp.linalg.eigvalsh(hessians(params, batch))), axis=1))
    value, metrics = build(name, 0.7)(params, batch, KEY)
    assert (1 - tolerance) * norm <= metrics["hessian_norm"] <= norm * (1 + 1e-9)
    np.testing.assert_allclose(value, dense(*problem)[0] + 0.7 * metrics["hessian_norm"])
    other, _ = build(name, 0.7)(params, batch, jax.random.key(1))
    assert (abs(other - value) > 1e-9) == (name != "hessian-only-lanczos")


def test_the_frobenius_norm_is_that_of_the_hessian_on_average(problem):
    params, (x, y) = problem
    repeated = (jnp.repeat(x, 4000, axis=0), jnp.repeat(y, 4000))
    value, metrics = build("hessian-frobenius", 0.7)(params, repeated, KEY)
    exact = jnp.mean(jnp.sum(hessians(params, (x, y)) ** 2, axis=(1, 2)))
    # 20,000 probes: the standard error is below one percent.
    np.testing.assert_allclose(metrics["squared_hessian_norm"], exact, rtol=0.03)
    np.testing.assert_allclose(value, metrics["loss"] + 0.7 * metrics["squared_hessian_norm"])


def test_jacobian_operator_is_its_largest_singular_value(problem):
    params, (x, _) = problem
    jacobians = jax.vmap(jax.jacobian(partial(apply, params)))(x)
    exact = jnp.mean(jnp.linalg.svd(jacobians, compute_uv=False)[:, 0])
    value, metrics = build("jacobian-operator", 0.7)(*problem, KEY)
    np.testing.assert_allclose(metrics["jacobian_operator_norm"], exact, rtol=1e-8)
    np.testing.assert_allclose(value, dense(*problem)[0] + 0.7 * exact, rtol=1e-8)


def test_gradient_of_an_infinite_ball_is_the_dual_norm(problem):
    params, (x, y) = problem
    gradient = jax.vmap(jax.grad(lambda t, label: cross_entropy(apply(params, t), label)))(x, y)
    value, _ = build("gradient", 0.7, order=np.inf)(*problem, KEY)
    dual = jnp.mean(jnp.sum(jnp.abs(gradient), axis=1))
    np.testing.assert_allclose(value, dense(*problem)[0] + 0.7 * dual, rtol=1e-10)


@pytest.mark.parametrize("order", [2, np.inf])
def test_trades_adds_the_largest_divergence_in_the_ball(problem, order):
    """In a small ball it is a quadratic form of the probabilities' covariance."""
    params, (x, y) = problem
    radius = 1e-3
    value, metrics = build("trades", radius, order=order)(params, (x, y), KEY)
    largest = []
    for example in x:
        jacobian = jax.jacobian(partial(apply, params))(example)
        p = jax.nn.softmax(apply(params, example))
        form = jacobian.T @ (jnp.diag(p) - jnp.outer(p, p)) @ jacobian
        corners = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 5), axis=-1).reshape(-1, 5)
        by_corner = np.max(np.einsum("ki,ij,kj->k", corners, form, corners))
        top = jnp.linalg.eigvalsh(form)[-1] if order == 2 else by_corner
        largest.append(top * radius**2 / 2)
    expected = np.mean(largest)
    # Steps of one length end beside the top, and among corners at one that no neighbor betters.
    assert (0.9 if order == 2 else 0.75) * expected < metrics["divergence"] < expected * 1.01
    np.testing.assert_allclose(value, dense(*problem)[0] + WEIGHT * metrics["divergence"])


def test_the_gradient_of_trades_is_that_at_a_fixed_attack(problem):
    params, (x, y) = problem
    objective = plain("trades", 0.3)

    def point(x, key):
        logits_fn = partial(apply, params)
        fixed = logits_fn(x)
        away = lambda logits, _: jnp.sum(  # noqa: E731
            jax.nn.softmax(fixed) * (jax.nn.log_softmax(fixed) - jax.nn.log_softmax(logits))
        )
        return adversarial.by_pgd(logits_fn, x, jnp.argmax(fixed), LpBall(0.3, 2), key, loss=away)

    keys = jnp.stack([jax.random.fold_in(jax.random.fold_in(KEY, i), 0) for i in range(len(x))])
    hard = jax.jit(jax.vmap(point))(x, keys)

    def at(params):
        p, q = (jax.nn.softmax(jax.vmap(partial(apply, params))(z)) for z in (x, hard))
        losses = jax.vmap(cross_entropy)(jax.vmap(partial(apply, params))(x), y)
        return jnp.mean(losses + WEIGHT * jnp.sum(p * jnp.log(p / q), axis=1))

    got = jax.jit(jax.grad(lambda params: objective(params, (x, y), KEY)[0]))(params)
    for name, leaf in jax.jit(jax.grad(at))(params).items():
        np.testing.assert_allclose(got[name], leaf, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["hessian-lanczos", "hessian-cheap"])
def test_other_estimates_of_the_norm(problem, name):
    params, batch = problem

    def one(x, y):
        def f(t):
            return cross_entropy(apply(params, t), y)

        g, hessian = jax.grad(f)(x), jax.hessian(f)(x)
        along = jnp.abs(g @ hessian @ g) / (g @ g)
        # Five products on five pixels are exact.
        exact = jnp.max(jnp.abs(jnp.linalg.eigvalsh(hessian)))
        return along if name == "hessian-cheap" else exact

    value, metrics = build(name, 0.7)(*problem, KEY)
    loss, slope, _ = dense(*problem)
    norm = jnp.mean(jax.jit(jax.vmap(one))(*batch))
    np.testing.assert_allclose(metrics["hessian_norm"], norm, rtol=1e-8)
    np.testing.assert_allclose(value, loss + 0.7 * slope + 0.7**2 / 2 * norm, rtol=1e-8)


@pytest.mark.parametrize(
    ("name", "penalty"),
    [
        ("finite-step", partial(penalties.finite_step_operator_norm, step=H, squared=True)),
        ("curvature", partial(penalties.curvature_along_gradient, step=H)),
        ("gauss-newton", gauss_newton_operator_norm),
    ],
)
def test_value_is_the_loss_plus_the_weighted_penalty(problem, name, penalty):
    params, batch = problem

    def one(x, y):
        return penalty(Composite(partial(apply, params), partial(cross_entropy, labels=y)), x)

    values = jax.jit(jax.vmap(one))(*batch)
    value, _ = build(name, 0.7)(params, batch, KEY)
    np.testing.assert_allclose(value, dense(*problem)[0] + 0.7 * jnp.mean(values), rtol=1e-10)


def test_jacobian_is_the_squared_frobenius_norm_on_average(problem):
    params, (x, y) = problem
    repeated = (jnp.repeat(x, 4000, axis=0), jnp.repeat(y, 4000))
    value, metrics = build("jacobian", 0.7)(params, repeated, KEY)
    exact = jnp.mean(jnp.sum(jax.vmap(jax.jacobian(partial(apply, params)))(x) ** 2, axis=(1, 2)))
    # 20,000 probes: the standard error is below one percent.
    np.testing.assert_allclose(metrics["jacobian_norm"], exact, rtol=0.03)
    np.testing.assert_allclose(value, metrics["loss"] + 0.7 * metrics["jacobian_norm"])


@pytest.mark.parametrize("order", [2, np.inf])
def test_adversarial_is_the_loss_at_attacked_inputs(problem, order):
    params, (x, y) = problem
    value, _ = build("adversarial", 0.1, order=order)(params, (x, y), KEY)
    # The worst loss in a small ball is that of the dual norm, to first order.
    gradient = jax.vmap(jax.grad(lambda t, label: cross_entropy(apply(params, t), label)))(x, y)
    dual = jnp.mean(jnp.linalg.norm(gradient, 2 if order == 2 else 1, axis=1))
    loss = dense(*problem)[0]
    assert loss + 0.08 * dual < value < loss + 0.13 * dual


@pytest.mark.parametrize("ramp", [1.0, 0.5])
def test_inside_is_the_surrogate_after_one_step(problem, ramp):
    """With a step that the box cuts for some of the examples, and grows with the weights."""
    params, (x, y) = problem
    x = jnp.where(x > 0.5, x + 0.25, x - 0.25)
    slopes = jax.vmap(jax.grad(lambda t, label: cross_entropy(apply(params, t), label)))(x, y)
    step = ramp * H * slopes / jnp.linalg.norm(slopes, axis=1, keepdims=True)
    moved = jnp.clip(x + step, 0, 1)
    assert 0 < jnp.sum(moved != x + step) < x.size
    weights = (1, 0.7 * ramp, 0.7**2 / 2 * ramp)
    expected = sum(w * t for w, t in zip(weights, dense(params, (moved, y)), strict=True))
    value, metrics = build("hessian-inside", 0.7, ramp=ramp)(params, (x, y), KEY)
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    np.testing.assert_allclose(metrics["gradient_norm"], dense(params, (moved, y))[1], rtol=1e-10)


def test_inside_takes_as_many_steps_as_it_is_told(problem):
    """Of 2.5 h / 4 each; a ball, no box, stops them here."""
    params, (x, y) = problem
    slope = jax.grad(lambda t, label: cross_entropy(apply(params, t), label))
    moved = x
    for _ in range(4):
        slopes = jax.vmap(slope)(moved, y)
        moved = moved + 2.5 * H / 4 * slopes / jnp.linalg.norm(slopes, axis=1, keepdims=True)
        away = jnp.linalg.norm(moved - x, axis=1, keepdims=True)
        moved = x + (moved - x) * jnp.minimum(1, H / away)
    assert jnp.all((moved > 0) & (moved < 1))
    one = jnp.linalg.norm(jax.vmap(slope)(x, y), axis=1, keepdims=True)
    assert jnp.max(jnp.abs(moved - x - H * jax.vmap(slope)(x, y) / one)) > 1e-3
    weights = (1, 0.7, 0.7**2 / 2)
    expected = sum(w * t for w, t in zip(weights, dense(params, (moved, y)), strict=True))
    value, _ = build("hessian-inside", 0.7, num_steps=4)(params, (x, y), KEY)
    np.testing.assert_allclose(value, expected, rtol=1e-10)


@pytest.mark.parametrize("name", ["adversarial", "trades"])
def test_the_steps_of_an_attack_can_be_chosen(problem, name):
    usual, ten, three = (
        build(name, 0.3, num_steps=count)(*problem, KEY)[0] for count in (None, 10, 3)
    )
    np.testing.assert_array_equal(usual, ten)
    assert three != ten


def test_inside_can_be_lazy(problem):
    params, (x, y) = problem
    setting = Setting(0.7, H, 2, optax.constant_schedule(1), every=3)
    lazy = METHODS["hessian-inside"].build(apply, setting)
    assert isinstance(lazy, Lazy)
    skipped, _ = lazy.at(1)(params, (x, y), KEY, 1)
    one_step, _ = plain("fgsm", H)(params, (x, y), KEY)
    np.testing.assert_allclose(skipped, one_step, rtol=1e-12)


@pytest.mark.parametrize("order", [2, np.inf])
def test_fgsm_is_the_loss_after_one_full_step_from_the_image(problem, order):
    params, (x, y) = problem
    gradient = jax.vmap(jax.grad(lambda t, label: cross_entropy(apply(params, t), label)))(x, y)
    length = jnp.linalg.norm(gradient, axis=1, keepdims=True)
    step = gradient / length if order == 2 else jnp.sign(gradient)
    value, _ = build("fgsm", 0.1, order=order)(params, (x, y), KEY)
    np.testing.assert_allclose(value, dense(params, (x + 0.1 * step, y))[0], rtol=1e-6)


@pytest.mark.parametrize("ramp", [0.0, 1.0])
def test_hot_is_the_loss_of_the_divided_logits(problem, ramp):
    """From the first step on."""
    params, batch = problem
    value, _ = build("hot", 7.0, ramp=ramp)(params, batch, KEY)
    cooled = {"in": params["in"], "out": params["out"] / 7}
    np.testing.assert_allclose(value, dense(cooled, batch)[0], rtol=1e-12)


def test_distillation_learns_the_soft_labels_of_the_teacher(problem):
    teacher, (x, _) = problem
    student = jax.tree.map(lambda value: 3 * value, teacher)
    objective = traps.distilled(apply, teacher, 7.0)
    soft = np.exp(jax.vmap(partial(apply, teacher))(x) / 7)
    soft /= soft.sum(axis=1, keepdims=True)
    guess = np.exp(jax.vmap(partial(apply, student))(x) / 7)
    guess /= guess.sum(axis=1, keepdims=True)
    # The labels of the batch are not used.
    value, _ = objective(student, (x, jnp.zeros(5, int)), KEY)
    np.testing.assert_allclose(value, -np.mean(np.sum(soft * np.log(guess), axis=1)), rtol=1e-12)
    slope = jax.grad(lambda params: objective(params, problem[1], KEY)[0])(teacher)
    np.testing.assert_allclose(slope["out"], 0, atol=1e-15)


@pytest.mark.parametrize("name", METHODS)
def test_ramp_scales_the_strength(problem, name):
    # A temperature is no weight: that of `hot` does not grow, so it is 1 here.
    strength = 1.0 if name == "hot" else 0.7
    start, _ = build(name, strength, ramp=0.0)(*problem, KEY)
    np.testing.assert_allclose(start, dense(*problem)[0], rtol=1e-5)


def test_unknown_method_names_those_that_exist():
    with pytest.raises(ValueError, match="unknown method 'hesian': expected one of none, gradient"):
        find("hesian")
