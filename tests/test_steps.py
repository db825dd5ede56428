"""The optimizer steps that are timed are those of their names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

from experiments.benchmarks import penalty_cost, steps, targets
from hessjax import Lazy, second_order
from tests.narrow import APPLY, PARAMS, X, Y

pytestmark = pytest.mark.usefixtures("counted")


def test_the_steps_are_those_of_their_names():
    found = steps.objectives(APPLY, 6)

    def evaluated(objective):
        return jax.jit(objective)(PARAMS, (X, Y), jax.random.key(0))

    value, metrics = evaluated(second_order(APPLY, cross_entropy, 1.0, 0.5))
    assert evaluated(found["hessian"])[0] == value
    assert evaluated(found["none"])[0] == metrics["loss"]
    wanted = {
        "hessian, in four chunks": value,
        "gradient, double backpropagation": metrics["loss"] + metrics["gradient_norm"],
    }
    for name, expected in wanted.items():
        np.testing.assert_allclose(evaluated(found[name])[0], expected, rtol=1e-5)
    lazy = found["hessian, every=5"]
    assert isinstance(lazy, Lazy)
    assert lazy.every == 5


def test_a_lazy_step_is_a_whole_cycle():
    found = steps.objectives(APPLY, 6)
    batch = jnp.asarray(X), jnp.asarray(Y)
    every, plain, full = (
        steps.compile_step(found[name], PARAMS, batch)
        for name in ("hessian, every=5", "none", "hessian")
    )
    assert len(every.programs) == 5
    [count, least, most] = [step.facts["operations"] or 0 for step in (every, plain, full)]
    assert count == pytest.approx((most + 4 * least) / 5, rel=0.05)
    assert every.facts["compile_seconds"] == sum(p.compile_seconds for p in every.programs[:2])
    # Steps go on from each other.
    first, second = plain.call()["loss"], plain.call()["loss"]
    assert second < first


def test_slices_of_a_batch_are_one_step():
    found = steps.objectives(APPLY, 6)["hessian"]
    whole = steps.compile_step(found, PARAMS, (jnp.asarray(X), jnp.asarray(Y)))
    # Slices that are all the same batch: their mean gradient is that of one.
    batch = jnp.tile(X, (3, 1, 1, 1)), jnp.tile(Y, 3)
    sliced = steps.compile_accumulated(found, PARAMS, batch, 3)
    assert (sliced.num_steps, len(sliced.programs)) == (1, 3)
    for _ in range(5):
        np.testing.assert_allclose(sliced.call()["loss"], whole.call()["loss"], rtol=1e-5)


def test_targets_name_steps_that_there_are():
    known = {*steps.objectives(APPLY, 4), steps.ACCUMULATED}
    named = {name for target in targets.TARGETS for name in (target.step, target.unit)}
    named |= set(penalty_cost._QUICK_STEPS)
    assert {name for name in named if not name.startswith("PyTorch: ")} <= known
