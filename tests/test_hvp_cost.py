"""The forms of a Hessian-vector product against the dense Hessian, and what the script writes."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from flax import nnx

import hessjax
from experiments.benchmarks import hvp_cost, hvp_forms, records, resnet
from experiments.files import read_json
from experiments.models import functional
from tests import cases

pytestmark = pytest.mark.usefixtures("counted")

FORMS = hvp_forms.forms([1, 3])
CASE = cases.mlp("gelu")


@cache
def derivatives():
    """Return the gradient and the dense Hessian."""
    f = CASE.function()
    both = jax.jit(lambda x: (jax.grad(f)(x), hessjax.hessian_matrix(f, x)))(CASE.x)
    return tuple(np.asarray(value) for value in both)


def directions():
    v, u = (cases.vector(CASE.x.size, seed) for seed in (5, 6))
    return v / np.linalg.norm(v), u / np.linalg.norm(u)


def dense(form, v, u):
    """Return what a form should give, from the whole Hessian."""
    slope, hessian = derivatives()
    if form == "input gradient":
        return slope
    if form == "mixed derivative":
        return u @ hessian @ v
    for _ in range(FORMS[form].num_products - 1):
        v = hessian @ v
        v = v / np.linalg.norm(v)
    return hessian @ v


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_agrees_with_the_dense_hessian(form, exact):
    f, x = CASE.function(), CASE.x
    v, u = directions()
    expected = dense(form, v, u)
    derivative = FORMS[form].exact if exact else FORMS[form].apply
    # A central difference has an error of the order of its squared step.
    rtol = 1e-7 if form == "finite difference" and not exact else 1e-11
    got = jax.jit(lambda x, v, u: derivative(f, x, v, u))(x, v, u)
    atol = rtol * float(np.linalg.norm(expected))
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)


def test_the_forms_are_those_of_the_comparison():
    assert list(FORMS) == [
        "input gradient",
        "forward over reverse",
        "reverse over forward",
        "reverse over reverse",
        "linearized, 1 applied",
        "linearized, 3 applied",
        "finite difference",
        "mixed derivative",
    ]


def test_the_finite_step_balances_rounding_and_curvature(monkeypatch):
    """In single precision a much shorter or longer one is less accurate."""
    v = directions()[0]
    params, x, direction = jax.tree.map(jnp.float32, (CASE.params, CASE.x, v))
    f, step, expected = CASE.function(params), hvp_forms.difference_step, derivatives()[1] @ v

    @jax.jit
    def difference(x, factor):
        monkeypatch.setattr(hvp_forms, "difference_step", lambda t: factor * step(t))
        return hvp_forms.finite_difference(f, x, direction, direction)

    short, best, long = (
        np.linalg.norm(difference(x, jnp.float32(factor)) - expected) for factor in (0.03, 1, 10)
    )
    assert best < 3e-4 * np.linalg.norm(expected)
    assert min(short, long) > 2 * best


def test_a_batch_is_its_examples():
    """Each with its own label, image and directions."""
    scales, y = np.array([1.0, 2.0]), jnp.array([0, 1])
    x, v, u = (np.multiply.outer(scales, value) for value in (CASE.x, *directions()))
    derivative = hvp_cost.batched(CASE.apply, hvp_forms.mixed_derivative)
    got = jax.jit(derivative)(CASE.params, x, y, v, u)
    single = jax.jit(lambda x, y, v, u: u @ hessjax.hvp(CASE._replace(y=y).function(), x, v))
    expected = [single(*arguments) for arguments in zip(x, y, v, u, strict=True)]
    np.testing.assert_allclose(got, expected, rtol=1e-10)


def tiny(params, x):
    return jnp.tanh(x.reshape(-1) @ params["hidden"]) @ params["logits"]


TINY_PARAMS = {
    "hidden": jnp.asarray(np.random.default_rng(3).normal(size=(16, 5)), jnp.float32),
    "logits": jnp.asarray(np.random.default_rng(4).normal(size=(5, 10)), jnp.float32),
}


@pytest.fixture
def small(monkeypatch):
    """A network that compiles quickly; nothing of it stays in a cache."""
    monkeypatch.setitem(hvp_cost.IMAGES, "mlp", (4, 4, 1))
    monkeypatch.setattr(hvp_cost, "network", lambda _: (tiny, TINY_PARAMS))
    monkeypatch.setattr(hvp_cost, "exact_results", cache(hvp_cost.exact_results.__wrapped__))


def call(*options):
    tyro.cli(hvp_cost.main, args=[str(option) for option in options])


@pytest.mark.usefixtures("small")
def test_results_are_complete(tmp_path, capsys):
    out = tmp_path / "cost.json"
    call("--quick", "--models", "mlp", "--dtypes", "float32", "bfloat16",
         "--batch-sizes", 17, "--products", 2, "--out", out)  # fmt: skip
    found = read_json(out)
    assert {"commit", "versions", "dirty", "environment", "settings"} <= set(found)
    rows = found["rows"]
    assert len(rows) == 2 * 8
    for row in rows:
        assert row["timing"]["repeats"] == 10
        assert 0 < row["timing"]["lower"] <= row["timing"]["median"] <= row["timing"]["upper"]
        assert row["compile_seconds"] > 0
        assert row["operations"] > 0
        assert row["peak_bytes"] > row["temporary_bytes"] >= 0
        if row["form"] == "parameter gradient":
            assert row["relative_error"] is None
        elif row["dtype"] == "bfloat16" or row["form"] == "finite difference":
            assert 1e-5 < row["relative_error"] < 0.5
        else:
            assert 0 < row["relative_error"] < 1e-5
    by_form = {row["form"]: row for row in rows if row["dtype"] == "float32"}
    unit, twice = by_form["input gradient"], by_form["linearized, 2 applied"]
    assert (unit["ratio"], twice["num_products"]) == (1, 2)
    half = twice["timing"]["median"] / unit["timing"]["median"] / 2
    assert twice["ratio"] == pytest.approx(half)
    assert by_form["forward over reverse"]["operations"] > 1.2 * unit["operations"]
    assert "mlp, bfloat16, batch 17" in capsys.readouterr().out


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(records.provenance, "_commit", lambda: "0123456789ab")
    out, measured = tmp_path / "cost.json", []

    def fake(name, _, batch_size, *__, **___):
        if batch_size == 4:
            raise KeyboardInterrupt
        measured.append((name, batch_size))
        return [{"form": "input gradient", "ratio": 1.0, "relative_error": 0.0}]

    monkeypatch.setattr(hvp_cost, "measure_cell", fake)
    models = ["--models", "mlp", "cnn", "--dtypes", "float32", "--out", out]
    with pytest.raises(SystemExit) as stopped:
        call(*models, "--batch-sizes", 1, 4)
    assert stopped.value.code == 130
    assert measured == [("mlp", 1)]
    call(*models, "--batch-sizes", 1, 2)
    assert measured == [("mlp", 1), ("mlp", 2), ("cnn", 1), ("cnn", 2)]
    call(*models, "--batch-sizes", 2)
    assert (len(measured), len(read_json(out)["rows"])) == (4, 4)
    call(*models, "--batch-sizes", 2, "--repeats", 11)
    assert len(measured) == 6


def test_without_options_the_models_and_batches_are_those_of_the_comparison(monkeypatch):
    seen = {}
    monkeypatch.setattr(hvp_cost, "run", lambda *args, **options: seen.update(options, args=args))
    call()
    assert seen["args"] == (
        ("mlp", "cnn", "resnet"),
        ("float32", "bfloat16"),
        (1, 8, 64, 512),
    )
    assert seen["path"].is_relative_to(records.RESULTS)
    call("--quick")
    assert not seen["path"].resolve().is_relative_to(records.RESULTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--repeats", 3], "error: repeats must be at least 10, got 3"),
        (["--batch-sizes", 8, 0], "error: batch_sizes must be at least 1, got 0"),
        (["--products", 0], "error: products must be at least 1, got 0"),
    ],
)
def test_bad_numbers_get_one_sentence(options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(hvp_cost, "measure_cell", None)  # they are refused before
    with pytest.raises(SystemExit) as stopped:
        call("--quick", *options, "--out", tmp_path / "cost.json")
    assert stopped.value.code == message


@pytest.mark.parametrize("options", [["--models", "vgg"], ["--dtypes", "float16"]])
def test_unknown_names_are_refused(options, capsys):
    with pytest.raises(SystemExit) as stopped:
        call("--quick", *options)
    assert stopped.value.code == 2
    assert options[1] in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_a_result_that_is_not_finite_ends_the_benchmark(tmp_path, monkeypatch):
    broken = FORMS["input gradient"]._replace(apply=lambda f, x, _v, _u: jax.grad(f)(x) * jnp.inf)
    monkeypatch.setattr(hvp_cost, "forms", lambda _: {"input gradient": broken})
    with pytest.raises(SystemExit) as stopped:
        call("--quick", "--models", "mlp", "--batch-sizes", 1, "--out", tmp_path / "cost.json")
    assert "input gradient gave a result that is not finite" in str(stopped.value.code)
    assert not (tmp_path / "cost.json").exists()


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_networks_take_their_images(name):
    def logits():
        apply, params = hvp_cost.network.__wrapped__(name)
        return apply(params, jnp.zeros(hvp_cost.IMAGES[name], jnp.float32))

    assert jax.eval_shape(logits).shape == (10,)


# The residual network.


@pytest.fixture(scope="module")
def network():
    """The residual network with weights drawn by NumPy: to compile Flax's drawing takes long."""
    applies = []

    def drawn():
        apply, params = functional(resnet.ResNet(rngs=nnx.Rngs(0)))
        applies.append(apply)
        return params

    shapes, random = jax.eval_shape(drawn), np.random.default_rng(0)
    return applies[0], {name: random.normal(size=s.shape) for name, s in shapes.items()}


def test_the_residual_network_has_its_parameters(network):
    _, params = network

    def convolution(size, before, after):
        return size**2 * before * after

    blocks = [
        convolution(3, before, after)
        + convolution(3, after, after)
        + (convolution(1, before, after) if before != after else 0)
        + 4 * after
        for before, after in [(16, 16), (16, 32), (32, 64)]
    ]
    stem, dense_layer = convolution(3, 3, 16) + 2 * 16, 64 * 10 + 10
    assert sum(value.size for value in params.values()) == stem + sum(blocks) + dense_layer


def test_examples_of_the_residual_network_do_not_know_each_other(network):
    apply, params = network
    x = np.random.default_rng(1).random((2, 8, 8, 3))
    batch = jax.jit(apply)(params, x)
    single = jax.jit(apply)
    np.testing.assert_allclose(batch, [single(params, image) for image in x], rtol=1e-9)
    assert batch.shape == (2, 10)


def test_groups_are_normalized():
    norm = resnet.GroupNorm(16)
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (5, 4, 16)))
    groups = norm(x).reshape(20, 2, 8)
    np.testing.assert_allclose(groups.mean((0, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(groups.std((0, 2)), 1, atol=1e-5)
    oracle = nnx.GroupNorm(16, num_groups=2, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(norm(x), oracle(x[None])[0], atol=1e-6)


def test_the_residual_network_keeps_the_precision_it_is_given(network):
    apply, params = network
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
    logits = jax.eval_shape(apply, half, jnp.zeros((32, 32, 3), jnp.bfloat16))
    assert (logits.shape, logits.dtype) == ((10,), jnp.bfloat16)


def test_the_residual_network_halves_its_images_twice(network):
    apply, params = network
    text = str(jax.make_jaxpr(apply)(params, np.zeros((32, 32, 3))))
    assert [text.count(f"f64[1,{size},{size},{f}]") > 0 for size, f in SHAPES] == [True] * 3


SHAPES = [(32, 16), (16, 32), (8, 64)]
