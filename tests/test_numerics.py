"""The bottom layer: norms that survive zero, tiny and huge entries."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessjax._numerics import (
    DIRECTION,
    as_point,
    as_tangent,
    check_count,
    check_key,
    check_number,
    check_scalar,
    hold,
    normalize,
    safe_norm,
    tree_vdot,
)
from tests import cases

TREE = {"a": jnp.arange(6.0).reshape(2, 3), "b": (jnp.asarray([-2.0, 0.5]), jnp.asarray(3.0))}
ZERO = jax.tree.map(jnp.zeros_like, TREE)


def flat(tree: object) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_norm_is_euclidean_over_all_leaves() -> None:
    np.testing.assert_allclose(safe_norm(TREE), np.linalg.norm(flat(TREE)), rtol=1e-15)


def test_norm_of_zero_is_zero() -> None:
    assert safe_norm(ZERO) == 0
    assert safe_norm(jnp.asarray(0.0)) == 0


def test_a_leaf_without_entries_adds_nothing() -> None:
    assert safe_norm((jnp.ones(0), jnp.asarray(0.1))) == 0.1


@pytest.mark.parametrize("scale", [1e-300, 1e-18, 1.0, 1e12, 1e300])
def test_norm_is_homogeneous_in_float64(scale: float) -> None:
    tree = jax.tree.map(lambda leaf: scale * leaf, TREE)
    np.testing.assert_allclose(safe_norm(tree), scale * np.linalg.norm(flat(TREE)), rtol=1e-14)


@pytest.mark.parametrize("scale", [1e-35, 1e-18, 1.0, 1e12, 1e35])
def test_norm_is_homogeneous_in_float32(scale: float) -> None:
    # The squares of the first and last under- and overflow in float32.
    tree = jax.tree.map(lambda leaf: (scale * leaf).astype(jnp.float32), TREE)
    norm = safe_norm(tree)
    assert norm.dtype == jnp.float32
    np.testing.assert_allclose(norm, scale * np.linalg.norm(flat(TREE)), rtol=1e-6)


def test_norm_of_entries_of_very_different_size() -> None:
    np.testing.assert_allclose(safe_norm((jnp.asarray(1e200), jnp.asarray(1e-200))), 1e200)


def test_norm_of_bfloat16_sums_in_float32() -> None:
    # A running sum in bfloat16 stops at 256, where adding 1 no longer changes it.
    ones = jnp.ones(4096, jnp.bfloat16)
    np.testing.assert_allclose(safe_norm(ones), 64.0, rtol=1e-6)
    np.testing.assert_allclose(tree_vdot(ones, ones), 4096.0, rtol=1e-6)


def test_gradient_of_norm_is_the_unit_vector() -> None:
    cases.assert_tree_close(jax.grad(safe_norm)(TREE), normalize(TREE)[0], rtol=1e-14)


def test_second_derivative_of_norm() -> None:
    vector = jnp.asarray(cases.vector(5))
    unit = np.asarray(vector) / np.linalg.norm(vector)
    wanted = (np.eye(5) - np.outer(unit, unit)) / np.linalg.norm(vector)
    np.testing.assert_allclose(jax.hessian(safe_norm)(vector), wanted, rtol=1e-12, atol=1e-14)


def test_gradient_of_norm_at_zero_is_zero() -> None:
    cases.assert_tree_close(jax.grad(safe_norm)(ZERO), ZERO)
    cases.assert_tree_close(jax.jit(jax.grad(safe_norm))(ZERO), ZERO)
    assert jax.jvp(safe_norm, (jnp.zeros(3),), (jnp.ones(3),))[1] == 0


def test_gradient_of_norm_through_a_function_that_vanishes() -> None:
    # What a Hessian of zero looks like to the parameters.
    assert jax.grad(lambda t: safe_norm(t * jnp.zeros(3)))(2.0) == 0


def test_nan_and_infinity_are_not_hidden() -> None:
    assert jnp.isnan(safe_norm(jnp.asarray([1.0, jnp.nan])))
    assert not jnp.isfinite(safe_norm(jnp.asarray([1.0, jnp.inf])))


@pytest.mark.parametrize("scale", [1e-35, 1e-18, 1.0, 1e12, 1e35])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_normalize_gives_a_unit_tree(scale: float, dtype: type) -> None:
    tree = jax.tree.map(lambda leaf: (scale * leaf).astype(dtype), TREE)
    unit, norm = normalize(tree)
    np.testing.assert_allclose(np.linalg.norm(flat(unit)), 1.0, rtol=1e-6)
    np.testing.assert_allclose(norm, np.linalg.norm(flat(tree).astype(np.float64)), rtol=1e-6)
    np.testing.assert_allclose(flat(unit) * norm, flat(tree), rtol=1e-6)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(unit))


@pytest.mark.parametrize("norm", [2.0**125, 9e37, 3.4e38])
def test_normalize_up_to_the_largest_number(norm: float) -> None:
    vector = jnp.asarray([0.6 * norm, 0, -0.8 * norm], jnp.float32)
    unit, found = jax.jit(normalize)(vector)
    np.testing.assert_allclose(unit, [0.6, 0, -0.8], rtol=1e-6)
    np.testing.assert_allclose(found, norm, rtol=1e-6)


def test_normalize_keeps_zero_and_its_derivative_finite() -> None:
    unit, norm = normalize(ZERO)
    cases.assert_tree_close(unit, ZERO)
    assert norm == 0
    assert cases.all_finite(jax.jacobian(lambda t: normalize(t)[0])(jnp.zeros(3)))


def test_inner_product_over_all_leaves() -> None:
    other = jax.tree.map(jnp.cos, TREE)
    np.testing.assert_allclose(tree_vdot(TREE, other), flat(TREE) @ flat(other), rtol=1e-14)


def test_norm_is_the_same_under_jit_and_vmap() -> None:
    rows = jnp.asarray(np.vstack([cases.vector(4), np.zeros(4), 1e-200 * cases.vector(4, seed=1)]))
    loop = jnp.stack([safe_norm(row) for row in rows])
    np.testing.assert_allclose(jax.jit(jax.vmap(safe_norm))(rows), loop, rtol=1e-15)


@pytest.mark.parametrize("number", [1.5, 2, np.float32(1.5), np.int64(2), jnp.float32(1.5)])
def test_a_constant_is_a_number_inside_a_traced_function_too(number: Any) -> None:
    @jax.jit
    def double(x: jax.Array) -> jax.Array:
        check_number("step", number, positive=True)
        return 2 * x

    assert double(1.0) == 2


@pytest.mark.parametrize("value", ["1", None, np.ones(2), True, 1j])
def test_what_is_no_number_is_named(value: Any) -> None:
    with pytest.raises(TypeError, match="step must be a number, got "):
        check_number("step", value, positive=True)


@pytest.mark.parametrize("count", [3, np.int64(3), np.asarray(3)])
def test_whole_numbers_are_counts(count: Any) -> None:
    got = check_count("num_iters", count)
    assert got == 3
    assert type(got) is int


@pytest.mark.parametrize("count", [True, 3.0, "3", None, np.ones(2)])
def test_what_is_no_whole_number_is_named(count: Any) -> None:
    with pytest.raises(TypeError, match="num_iters must be a whole number, got "):
        check_count("num_iters", count)


def test_counts_and_numbers_at_the_ends_of_their_ranges() -> None:
    assert check_count("num_iters", 1) == 1
    assert check_count("num_iters", 6, at_most=6) == 6
    for number in (0.0, 0.5, 1.0):
        check_number("weight", number, positive=False)
    for number in (0.5, 1.0):
        check_number("step", number, positive=True)


def test_what_is_held_is_constant_and_bears_the_name() -> None:
    cases.assert_tree_close(hold(TREE), TREE)
    assert jax.grad(lambda x: x * hold(x))(3.0) == 3
    assert f"name={DIRECTION}" in str(jax.make_jaxpr(hold)(3.0))


def test_points_and_tangents_are_arrays_of_the_point_s_dtype() -> None:
    x = as_point({"a": 1.0, "b": np.ones(2, np.float32)})
    v = as_tangent(x, {"a": np.float16(2.0), "b": jnp.ones(2)})
    for tree in (x, v):
        assert [leaf.dtype for leaf in jax.tree.leaves(tree)] == [jnp.float64, jnp.float32]
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree))


POINT, OTHER = jnp.ones(3), {"a": jnp.ones(3)}
ONE, TREE_OF_ONE = jax.tree.structure(POINT), jax.tree.structure(OTHER)
SCALAR = (
    "f must return a scalar for one example, got shape (3,); batch with jax.vmap around the call"
)
MESSAGES: list[tuple[Callable[[], object], str]] = [
    (
        lambda: as_point(jnp.ones(3, jnp.int32)),
        "x must hold floating-point numbers, got dtype int32",
    ),
    (lambda: as_point(jnp.ones(0)), "x holds no numbers: there is nothing to differentiate"),
    (lambda: as_tangent(POINT, jnp.ones(2)), "v must have the shape of x, (3,), got (2,)"),
    (
        lambda: as_tangent(POINT, jnp.ones(3, bool), "u"),
        "u must hold floating-point numbers, got dtype bool",
    ),
    (
        lambda: as_tangent(POINT, OTHER),
        f"v must have the structure of x, {ONE}, got {TREE_OF_ONE}",
    ),
    (lambda: check_scalar(jnp.sin, POINT), SCALAR),
    (
        lambda: check_scalar(lambda x: x[0].astype(jnp.int32), POINT),
        "f must return a floating-point number, got dtype int32",
    ),
    (
        lambda: check_scalar(lambda x: {"a": x}, POINT),
        f"f must return one scalar, got {TREE_OF_ONE}",
    ),
    (lambda: check_count("num_iters", 0), "num_iters must be at least 1, got 0"),
    (
        lambda: check_count("num_iters", 7, at_most=6),
        "num_iters must be at most 6, the size of the input, got 7",
    ),
    *(
        (
            partial(check_number, "step", number, positive=kind == "positive"),
            f"step must be a finite {kind} number, got {number}",
        )
        for number, kind in [
            (0.0, "positive"),
            (-0.5, "positive"),
            (float("nan"), "positive"),
            (-0.5, "nonnegative"),
            (float("inf"), "nonnegative"),
        ]
    ),
]


@pytest.mark.parametrize(("call", "message"), MESSAGES, ids=[message for _, message in MESSAGES])
def test_messages(call: Callable[[], object], message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        call()
    assert str(raised.value) == message


def test_a_key_is_one_key_of_either_style() -> None:
    for impl in ("threefry2x32", "rbg"):
        key: Any = jax.random.key(0, impl=impl)
        old = jax.random.key_data(key)
        check_key(key)
        check_key(old)
        numpy: Any = np.asarray(old)
        check_key(numpy)
        jax.vmap(check_key)(jax.random.split(key))
    told = r"key must be one key, such as jax.random.key\(0\), got"
    wrong: Any
    for wrong in (0, None, jax.random.split(jax.random.key(0)), np.zeros(2), np.uint32(1)):
        with pytest.raises(TypeError, match=told):
            check_key(wrong)
