"""AutoAttack against the reference implementation, and the promises of its driver."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pyautoattack import AutoAttack

from hessjax import LpBall
from hessjax.attacks import (
    STANDARD,
    Attack,
    Outcome,
    apgd_attack,
    auto_attack,
    fab_attack,
    square_attack,
)
from hessjax.attacks.attack import with_options
from hessjax.attacks.batches import put
from hessjax.attacks.checks import check_classes, randomness_warnings
from hessjax.losses import targeted_dlr_loss
from tests import originals

KEY = jax.random.key(0)
# Short, so that weak examples differ from strong ones; each kind of attack is there.
SHORT = (
    apgd_attack(num_steps=4, name="apgd-ce"),
    fab_attack(num_steps=6, num_targets=2),
    square_attack(num_steps=25),
)
# Batches of a quarter of it, 16, in most tests: each size is compiled.
attacked = partial(auto_attack, key=KEY, attacks=SHORT, batch_size=64)
PARAMS = originals.weights()
LOGITS = jax.tree_util.Partial(originals.logits_fn, PARAMS)
RADII = {2: 0.1, np.inf: 0.02}
CORNER = np.sign(np.random.default_rng(5).normal(size=originals.SHAPE))


@pytest.fixture(scope="module")
def examples():
    x, y = originals.examples(PARAMS, 40)
    y[:2] = (y[:2] + 1) % 10  # misclassified from the start
    return x, y


def same(a, b):
    np.testing.assert_array_equal(a.broken_by, b.broken_by)
    np.testing.assert_allclose(a.x, b.x, atol=1e-9)


@pytest.mark.usefixtures("torch_float64")
@pytest.mark.parametrize("order", RADII)
def test_verdicts_are_those_of_the_reference(order):
    """Few queries of Square, the only attack that need not find the same: it finds nothing here."""
    x, y = originals.examples(PARAMS, 60, seed=3)
    model, _ = originals.network(PARAMS)
    reference = AutoAttack(model, norm=originals.NORMS[order], eps=RADII[order], seed=0)
    reference.square.n_queries = 100
    images, labels = originals.batch(x, y)
    x_adv, _ = reference.run_standard_evaluation(images, labels)
    expected = np.asarray(model(x_adv).argmax(dim=1) == labels)

    attacks = (*STANDARD[:3], square_attack(num_steps=100))
    result = auto_attack(LOGITS, x, y, LpBall(RADII[order], order), KEY, attacks=attacks)
    assert 0.1 < np.mean(expected) < 0.9, "the radius is to matter"
    np.testing.assert_array_equal(result.robust, expected)
    assert not result.warnings


@pytest.mark.parametrize("order", RADII)
def test_the_fields_fit_each_other(examples, order):
    x, y = examples
    ball = LpBall(RADII[order], order)
    result = attacked(LOGITS, x, y, ball)
    broken_by = np.asarray(result.broken_by)
    assert set(broken_by) >= {-2, -1, 0}
    assert list(broken_by[:2]) == [-2, -2]
    np.testing.assert_array_equal(result.robust, broken_by == -1)
    right = np.asarray(jax.vmap(LOGITS)(result.x)).argmax(axis=1) == y
    np.testing.assert_array_equal(right, broken_by == -1)
    np.testing.assert_array_equal(np.asarray(result.x)[broken_by < 0], x[broken_by < 0])
    assert np.all((np.asarray(result.x) >= 0) & (np.asarray(result.x) <= 1))
    lengths = np.linalg.norm((result.x - x).reshape(len(x), -1), ord=order, axis=1)
    np.testing.assert_allclose(result.distance, lengths, atol=1e-15)
    assert np.all(lengths <= ball.epsilon * (1 + 1e-12))


@pytest.mark.parametrize("order", RADII)
@pytest.mark.parametrize("epsilon", [1 / 255, 8 / 255])
def test_a_point_on_the_surface_counts_in_float32(order, epsilon):
    """What is found lies outside by the rounding of its entries, which are far larger than ε."""
    rng = np.random.default_rng(0)
    w, base = rng.normal(size=(20, 20)), rng.uniform(0.6, 0.9, size=(20, 20))
    reach = epsilon * (np.abs(w).sum() if order == np.inf else np.linalg.norm(w))
    scores = np.linspace(0.1, 0.99, 40) * reach
    x = (base + scores[:, None, None] * w / np.sum(w**2)).astype(np.float32)
    offset = jnp.float32(np.sum(w * base))

    def logits_fn(x):
        score = jnp.sum(jnp.asarray(w, jnp.float32) * x) - offset
        return jnp.stack([score, -score])

    result = attacked(logits_fn, x, np.zeros(40, int), LpBall(epsilon, order), attacks=SHORT[:1])
    assert not jnp.any(result.robust)
    assert jnp.all(result.distance <= epsilon * (1 + 1e-4))


def test_attacks_come_one_after_the_other_on_what_is_left(examples):
    x, y = examples
    ball = LpBall(RADII[2], 2)
    whole = attacked(LOGITS, x, y, ball)
    first = attacked(LOGITS, x, y, ball, attacks=SHORT[:1])
    broken = np.asarray(first.broken_by) == 0
    np.testing.assert_array_equal(np.asarray(whole.broken_by) == 0, broken)
    np.testing.assert_array_equal(np.asarray(whole.x)[broken], np.asarray(first.x)[broken])


@pytest.mark.parametrize("batch_size", [3, 100])
def test_the_batch_size_changes_nothing(examples, batch_size):
    x, y = examples
    ball = LpBall(RADII[2], 2)
    same(attacked(LOGITS, x, y, ball, batch_size=batch_size), attacked(LOGITS, x, y, ball))


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_nor_does_it_with_keys_whose_numbers_depend_on_the_batch(examples, impl):
    x, y = examples
    ball, key = LpBall(RADII[2], 2), jax.random.key(0, impl=impl)
    results = [
        attacked(LOGITS, x, y, ball, key=key, batch_size=size, attacks=SHORT[2:])
        for size in (8, 64)
    ]
    same(*results)


@pytest.mark.parametrize(
    "make",
    [
        partial(apgd_attack, num_steps=3),
        partial(apgd_attack, num_steps=3, num_targets=2, loss=targeted_dlr_loss),
        partial(fab_attack, num_targets=0),
        partial(square_attack, initial_share=0.5),
    ],
    ids=["apgd", "apgd-t", "fab", "square"],
)
def test_what_is_compiled_of_an_attack_is_found_again_when_it_is_made_anew(make):
    """Programs are found by the functions that they were made of, which partials hide."""
    assert make() == make()
    assert make() != make(num_steps=4)


def test_the_options_of_an_attack_may_be_unhashable():
    def step(*, options: object) -> object:
        return options

    options = {"share": 0.5}
    assert with_options(step, options=options)() is options


def test_what_fills_a_batch_is_not_kept():
    """A randomized model may break the copy of an example that it leaves."""
    points = jnp.arange(4.0)[:, None]
    kept = put(jnp.full((3, 1), 9.0), np.array([0, 2, 2, 2]), points, 2)
    np.testing.assert_array_equal(kept, [[0], [9], [1]])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_probabilities_are_refused_in_any_precision(dtype):
    logits = np.random.default_rng(0).normal(size=(9, 10))
    outputs = np.asarray(jax.nn.softmax(jnp.asarray(logits, dtype)))
    with pytest.raises(ValueError, match="sum to 1 for every example, so they are probabilities"):
        check_classes(outputs, np.zeros(9, int))
    check_classes(np.asarray(jnp.asarray(np.abs(logits), dtype)), np.zeros(9, int))


def test_keys_are_those_of_places(examples):
    """The first examples alone are attacked as they are among others."""
    x, y = examples
    ball = LpBall(RADII[2], 2)
    whole, part = attacked(LOGITS, x, y, ball), attacked(LOGITS, x[:9], y[:9], ball)
    np.testing.assert_array_equal(part.broken_by, whole.broken_by[:9])
    np.testing.assert_allclose(part.x, whole.x[:9], atol=1e-9)


def test_chance_is_that_of_the_key_and_the_place(examples):
    """One example at two places is broken at two points, and by another key at others."""
    x, y = np.repeat(examples[0][5:6], 2, axis=0), np.repeat(examples[1][5:6], 2)
    points = [
        attacked(LOGITS, x, y, LpBall(1.0, 2), key=jax.random.key(seed), attacks=SHORT[:1]).x
        for seed in (0, 1)
    ]
    assert len(np.unique(np.concatenate(points)[:, 0, 0, 0])) == 4


def test_nothing_is_compiled_anew(examples):
    """Not as batches shrink, nor for another radius, nor for other weights."""
    traced = []

    def apply(params, x):
        traced.append(x.shape)
        return originals.logits_fn(params, x)

    x, y = examples
    run = partial(attacked, x=x, y=y, attacks=SHORT[:2])
    run(jax.tree_util.Partial(apply, PARAMS), ball=LpBall(0.02, 2))
    before = len(traced)
    other = jax.tree_util.Partial(apply, originals.weights(seed=0))
    for epsilon in (0.1, 0.3, 1.0):
        run(other, ball=LpBall(epsilon, 2))
    assert len(traced) == before


def test_a_plain_function_is_asked_for_the_weights_that_it_has_now():
    model = {"w": np.array([[1.0, -1.0], [-1.0, 1.0]])}

    def logits_fn(x):
        return jnp.asarray(model["w"]) @ x

    x, y = jnp.array([[0.9, 0.2], [0.6, 0.5]]), np.array([0, 0])
    run = partial(attacked, x=x, y=y, ball=LpBall(0.1, 2), attacks=SHORT[:1])
    assert run(logits_fn).broken_by.tolist() == [-1, 0]
    model["w"] = -model["w"]
    assert run(logits_fn).broken_by.tolist() == [-2, -2]


@pytest.mark.parametrize("batches", [1, 4, 7])
def test_it_goes_on_where_it_was_interrupted(examples, batches):
    x, y = examples
    run = partial(attacked, LOGITS, x, y, LpBall(RADII[2], 2))
    seen = []
    expected = run(on_batch=seen.append)
    assert len(seen) > 7

    latest = []

    def interrupt(progress):
        latest.append(progress)
        if len(latest) == batches:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(on_batch=interrupt)
    # From a file it may come as arrays of either kind.
    for kind in (np.asarray, jnp.asarray):
        arrays = {name: kind(getattr(latest[-1], name)) for name in ("x", "broken_by", "tried")}
        left = []
        same(run(on_batch=left.append, resume=latest[-1]._replace(**arrays)), expected)
        assert len(left) == len(seen) - batches


def test_progress_only_grows(examples):
    x, y = examples
    seen = []
    attacked(LOGITS, x, y, LpBall(RADII[2], 2), on_batch=seen.append)
    assert seen[-1].num_runs == 1 + 2 + 1
    assert {progress.attack for progress in seen} == {attack.name for attack in SHORT}
    for before, after in itertools.pairwise(seen):
        assert np.all(before.tried <= after.tried)
        broken = before.broken_by != -1
        np.testing.assert_array_equal(before.broken_by[broken], after.broken_by[broken])
    assert np.all(seen[-1].tried[seen[-1].broken_by == -1] == seen[-1].num_runs)


def test_attacks_may_come_one_by_one(examples):
    x, y = examples
    run = partial(attacked, LOGITS, x, y, LpBall(RADII[2], 2))
    same(run(attacks=(attack for attack in SHORT[:1])), run(attacks=SHORT[:1]))


def test_what_a_smaller_ball_broke_is_not_attacked_again(examples):
    x, y = examples
    small = attacked(LOGITS, x, y, LpBall(0.05, 2))
    large = attacked(LOGITS, x, y, LpBall(0.2, 2), resume=small)
    broken = np.asarray(small.broken_by) != -1
    np.testing.assert_array_equal(
        np.asarray(large.broken_by)[broken], np.asarray(small.broken_by)[broken]
    )
    np.testing.assert_array_equal(np.asarray(large.x)[broken], np.asarray(small.x)[broken])
    assert jnp.sum(large.robust) < jnp.sum(small.robust)


@pytest.mark.parametrize(
    ("before", "ball", "others"),
    [
        (LpBall(0.2, 2), LpBall(0.1, 2), False),
        (LpBall(0.05, np.inf), LpBall(0.1, 2), False),
        (LpBall(0.3, np.inf, (-1, 2)), LpBall(0.3, np.inf), False),
        (LpBall(0.2, 2), LpBall(0.2, 2), True),
    ],
    ids=["radius", "norm", "box", "examples"],
)
def test_points_outside_this_ball_or_box_are_refused(examples, before, ball, others):
    x, y = examples
    run, seen = partial(attacked, LOGITS, attacks=SHORT[:1]), []
    earlier = [run(x=x, y=y, ball=before, on_batch=seen.append)]
    if others:
        x, earlier = 1 - x, [*earlier, seen[-1]]
        # The same are misclassified from the start: only the points tell.
        y = np.asarray(jax.vmap(LOGITS)(x)).argmax(axis=1)
        y = np.where(np.asarray(earlier[0].broken_by) == -2, (y + 1) % 10, y)
    told = rf"the same examples, .* a point at distance \S+ for a radius of {ball.epsilon}, with en"
    for resume in earlier:
        with pytest.raises(ValueError, match=told):
            run(x=x, y=y, ball=ball, resume=resume)


@pytest.mark.parametrize(
    ("dtype", "order", "epsilon"),
    [(jnp.float32, np.inf, 1e-5), (jnp.float32, 2, 1e-5), (jnp.bfloat16, np.inf, 0.01)],
)
def test_a_result_in_the_same_ball_is_taken(dtype, order, epsilon):
    """Its points lie outside by the rounding of their entries, which are far larger than ε."""
    shares = np.linspace(0.1, 0.9, 9)[:, None]
    x = jnp.asarray(0.75 - shares * epsilon / 2 * np.ones(4), dtype)

    def logits_fn(x):
        score = jnp.sum(x.astype(jnp.float32) - 0.75)
        return jnp.stack([-score, score])

    run = partial(attacked, logits_fn, x, np.zeros(9, int), LpBall(epsilon, order))
    first = run(attacks=(apgd_attack(num_steps=9),))
    assert np.any(np.asarray(first.broken_by) == 0)
    assert np.max(first.distance.astype(jnp.float32)) > epsilon * 1.001
    same(run(attacks=SHORT[:1], resume=first), first)


def test_another_calls_progress_is_refused(examples):
    x, y = examples
    seen = []
    given = {"logits_fn": LOGITS, "x": x, "y": y, "ball": LpBall(0.1, 2), "attacks": SHORT[:1]}
    attacked(**given, on_batch=seen.append)

    def refused(message, **changed):
        with pytest.raises(ValueError, match=message):
            attacked(**{**given, **changed}, resume=seen[-1])

    others = "resume must be the progress of a call with the same examples and model, got inputs of"
    refused(others, x=x[:5], y=y[:5])
    refused(others, logits_fn=jax.tree_util.Partial(originals.logits_fn, originals.weights(seed=1)))
    box = r"the box \[0\.0, 1\.0\]"
    told = rf"resume is the progress of 'apgd-ce \(1 × 4 steps\) in the l2 ball of 0\.1 and {box}'"
    # As many runs of another attack, or of other steps; balls of either size, and of another norm.
    for attack in (fab_attack(num_steps=4, num_targets=0), apgd_attack(num_steps=5)):
        refused(f"{told}, expected that of '{attack.name} ", attacks=(attack,))
    for epsilon, order, name in ((0.2, 2, "l2"), (0.05, 2, "l2"), (0.1, np.inf, "linf")):
        expected = f"{told}, expected that of '.* in the {name} ball of {epsilon} and {box}'"
        refused(expected, ball=LpBall(epsilon, order))
    refused(rf"{told}, expected that of '.* the box \[-1\.0, 2\.0\]'", ball=LpBall(0.1, 2, (-1, 2)))


@pytest.mark.parametrize("bounds", [(0, 1), (0.05, 0.95)])
def test_an_attack_of_ones_own(examples, bounds):
    """Anything of an init, a step and an outcome takes part; outside the box nothing counts."""
    x, y = examples

    def init(*given, run):
        return given[1] + 0.0 * run  # the example

    def step(*given):
        return given[1] + given[3].epsilon * CORNER

    def outcome(*given):
        return Outcome(given[1], jnp.zeros(()), jnp.bool(1))

    lame = Attack("lame", init, step, outcome, num_steps=1)
    ball = LpBall(0.03, np.inf, bounds)
    result = attacked(LOGITS, x, y, ball, attacks=(lame,))
    points = x + 0.03 * CORNER
    moved = np.asarray(jax.vmap(LOGITS)(points)).argmax(axis=1) != y
    moved &= np.asarray(result.broken_by) != -2
    assert moved.any()
    inside = np.all((bounds[0] <= points) & (points <= bounds[1]), axis=(1, 2, 3))
    assert np.all(inside) == (bounds == (0, 1))
    np.testing.assert_array_equal(np.asarray(result.broken_by) == 0, moved & inside)


def test_an_attack_without_a_stand_in_is_told_what_it_lacks(examples):
    x, y = examples
    picky = SHORT[0]._replace(name="picky", min_classes=11)
    with pytest.raises(ValueError, match="picky needs at least 11 classes, got 10"):
        attacked(LOGITS, x, y, LpBall(0.1, 2), attacks=(picky,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resume": lambda _: {}}, "resume must be a Progress or an AttackResult, got {}"),
        ({"x": lambda x: x + 1}, r"x must lie in the box \[0, 1\], got entries from 1.0"),
        ({"x": lambda x: x * np.nan}, r"x must lie in the box \[0, 1\], got entries from nan"),
        ({"x": lambda x: (255 * x).astype(np.uint8) // 255}, "floating-point numbers, got dtype u"),
        (
            {"y": lambda y: y + 3},
            "y must hold classes from 0 to 9, as there are 10 logits, got",
        ),
        ({"y": lambda y: y - 20}, "y must hold classes from 0 to 9, as there are 10 logits, got l"),
        ({"y": lambda y: y / 1.0}, "y must hold whole numbers, the classes, got dtype float64"),
        ({"y": lambda y: y[:-1]}, r"x and y must be a batch, of shapes \(N, ...\) and \(N,\), got"),
        ({"x": lambda x: x[0, 0, 0]}, "x and y must be a batch"),
        ({"attacks": lambda _: ()}, "attacks must hold at least one attack, got none"),
        ({"attacks": lambda _: iter(())}, "attacks must hold at least one attack, got none"),
        ({"attacks": lambda _: None}, r"attacks must be a tuple such as .*, got None"),
        ({"attacks": lambda some: some[0]}, r"attacks must be a tuple such as \(square_attack"),
        ({"attacks": lambda _: ("apgd",)}, r"must be a tuple such as .*, got \('apgd',\)"),
        ({"batch_size": lambda _: 0}, "batch_size must be at least 1, got 0"),
        ({"x": lambda x: x[:0], "y": lambda y: y[:0]}, "the batch is empty: it needs at least one"),
        ({"key": lambda _: 0}, "key must be one key, such as .*, got 0"),
        (
            {"logits_fn": lambda f: lambda x: jax.nn.softmax(f(x))},
            "sum to 1 for every example",
        ),
        (
            {"logits_fn": lambda f: lambda x: (f(x), {})},
            "the logits alone, got a tuple: does the model return its state",
        ),
        (
            {"logits_fn": lambda f: lambda x: f(x)[None]},
            r"logits of shape \(C,\), C at least 2, got",
        ),
        ({"logits_fn": lambda f: lambda x: f(x)[:1]}, r"logits of shape \(C,\), C at least 2, got"),
    ],
)
def test_bad_input_is_named_before_any_work(examples, change, message):
    given = {"logits_fn": LOGITS, "x": examples[0], "y": examples[1], "attacks": SHORT[:1]}
    given = {**given, **{name: f(given.get(name)) for name, f in change.items()}}
    with pytest.raises((ValueError, TypeError), match=message):
        attacked(ball=LpBall(0.1, 2), **given)


def test_inside_of_traced_code_it_says_where_to_call_it(examples):
    x, y = examples

    def robust(params, x, epsilon):
        logits_fn = jax.tree_util.Partial(originals.logits_fn, params)
        return attacked(logits_fn, x, y, LpBall(epsilon, 2), attacks=SHORT[:1]).robust

    def closed(scale):
        ball = LpBall(0.1, 2)
        return attacked(lambda t: scale * LOGITS(t), x, y, ball, attacks=SHORT[:1]).robust

    calls = (
        lambda: jax.jit(lambda x: robust(PARAMS, x, 0.1))(x),
        lambda: jax.jit(lambda params: robust(params, x, 0.1))(PARAMS),
        lambda: jax.jit(lambda epsilon: robust(PARAMS, x, epsilon))(0.1),
        lambda: jax.vmap(lambda x: robust(PARAMS, x, 0.1))(x[None]),
        lambda: jax.vmap(closed)(jnp.ones(1)),
    )
    for call in calls:
        with pytest.raises(TypeError, match=r"loops in Python .* outside of jax\.jit"):
            call()


@pytest.mark.parametrize("epsilon", [0, -1.0, np.inf])
def test_no_ball_without_a_radius(epsilon):
    with pytest.raises(ValueError, match="epsilon must be a finite positive number"):
        LpBall(epsilon, 2)


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
    attacks = (SHORT[0], square_attack(num_steps=150))
    result = attacked(logits_fn, x, y, LpBall(0.4, np.inf), attacks=attacks)
    told = " ".join(result.warnings)
    assert "the gradient of the DLR loss is zero at 40 of 40" in told
    assert "Square broke" in told


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
