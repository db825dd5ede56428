"""AutoAttack that goes on with earlier progress or an earlier result, or refuses it."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessjax import LpBall, dlr_loss
from hessjax.attacks import apgd_attack, fab_attack
from tests import originals
from tests.short import LOGITS, RADII, SHORT, attacked, same


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
    options = "loss=softmax_cross_entropy_with_integer_labels, num_targets=0"
    steps = rf"apgd-ce \(1 × 4 steps, {options}\)"
    told = rf"resume is the progress of '{steps} in the l2 ball of 0\.1 and {box}'"
    # As many runs of another attack, of other steps or another loss; balls of either size, and of
    # another norm.
    different = (
        fab_attack(num_steps=4, num_targets=0),
        apgd_attack(num_steps=5),
        apgd_attack(num_steps=4, name="apgd-ce", loss=dlr_loss),
    )
    for attack in different:
        refused(f"{told}, expected that of '{attack.name} ", attacks=(attack,))
    for epsilon, order, name in ((0.2, 2, "l2"), (0.05, 2, "l2"), (0.1, np.inf, "linf")):
        expected = f"{told}, expected that of '.* in the {name} ball of {epsilon} and {box}'"
        refused(expected, ball=LpBall(epsilon, order))
    refused(rf"{told}, expected that of '.* the box \[-1\.0, 2\.0\]'", ball=LpBall(0.1, 2, (-1, 2)))
