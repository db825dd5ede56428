"""What AutoAttack refuses before any work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessjax import LpBall
from hessjax.attacks.checks import check_classes
from tests import originals
from tests.short import LOGITS, PARAMS, SHORT, attacked


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_probabilities_are_refused_in_any_precision(dtype):
    logits = np.random.default_rng(0).normal(size=(9, 10))
    outputs = np.asarray(jax.nn.softmax(jnp.asarray(logits, dtype)))
    with pytest.raises(ValueError, match="sum to 1 for every example, so they are probabilities"):
        check_classes(outputs, np.zeros(9, int))
    check_classes(np.asarray(jnp.asarray(np.abs(logits), dtype)), np.zeros(9, int))


def test_an_attack_without_a_stand_in_is_told_what_it_lacks(examples):
    x, y = examples
    picky = SHORT[0]._replace(name="picky", min_classes=11)
    with pytest.raises(ValueError, match="picky needs at least 11 classes, got 10"):
        attacked(LOGITS, x, y, LpBall(0.1, 2), attacks=(picky,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"resume": lambda _: {}},
            "resume must be a Progress or an AttackResult, got a dict",
        ),
        ({"x": lambda x: {"image": x}}, "x must be one array, got a dict"),
        ({"attacks": lambda _: "standard"}, r"attacks must be a tuple such as .*, got 'standard'"),
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
