"""What a training puts around an objective: the accuracy, and refusal of what is not finite."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.wrappers import refusing, with_accuracy
from hessjax import Lazy, regularized
from tests import cases

CASE = cases.mlp("gelu")
X, _ = cases.batch_of(CASE, 5)
KEY = jax.random.key(0)


def test_accuracy_counts_the_clean_predictions():
    predicted = jnp.argmax(jax.vmap(partial(CASE.apply, CASE.params))(X), axis=1)
    labels = predicted.at[3:].set((predicted[3:] + 1) % 5)
    objective = regularized(CASE.apply, CASE.loss, {})
    value, metrics = with_accuracy(CASE.apply, objective)(CASE.params, (X, labels), KEY)
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert value == objective(CASE.params, (X, labels), KEY)[0]


@pytest.mark.parametrize("every", [1, 2])
def test_a_loss_that_is_not_finite_has_no_finite_gradient(every):
    """The loss alone may be infinite; an optimizer sees the gradient alone."""

    def loss(params, batch, key, step=0):
        del key, step
        return params * 3.0 + batch[0], {}

    objective = loss if every == 1 else Lazy(loss, loss, every)
    for step in (0, 1):
        for constant, finite in ((1.0, True), (np.inf, False), (np.nan, False)):
            gradient_of = jax.value_and_grad(refusing(objective), has_aux=True)
            (value, _), gradient = gradient_of(2.0, (constant,), KEY, step)
            assert np.isfinite(value) == finite
            assert np.isnan(gradient) != finite
            if finite:
                assert (value, gradient) == (7.0, 3.0)
