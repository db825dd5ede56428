"""What grows with the input or the classes, on networks whose own cost stays the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import plots, scaling


def test_networks_of_other_sizes_cost_the_same():
    def multiplications(size: int, classes: int) -> int:
        def network():
            apply, params = scaling.network(size, classes)
            return apply(params, jnp.zeros((size, size, 1))), params

        logits, params = jax.eval_shape(network)
        assert logits.shape == (classes,)
        return sum(
            int(np.prod(params[name].shape))
            for name in params
            if name.startswith("dense") and "kernel" in name
        )

    wanted = multiplications(28, 10)
    for size, classes in ((56, 10), (28, 100), (28, 1000)):
        assert multiplications(size, classes) == pytest.approx(wanted, rel=0.01)


def test_a_larger_image_is_averaged():
    apply, params = scaling.network(56, 10)
    inner, same = scaling.network(28, 10)
    x = np.random.default_rng(0).uniform(size=(28, 28, 1))
    np.testing.assert_allclose(
        apply(params, jnp.asarray(x.repeat(2, 0).repeat(2, 1))), inner(same, x), rtol=1e-6
    )


def test_a_figure_says_what_stayed_the_same(tmp_path, monkeypatch):
    rows = [
        {"step": "hessian", "size": size, "classes": classes, "plain_steps": 5.0}
        for size, classes in ((56, 30), (56, 100), (112, 30))
    ]
    labels = []
    monkeypatch.setattr(
        plots, "save", lambda page, _: labels.extend(axes.get_xlabel() for axes in page.get_axes())
    )
    content = {"rows": rows, "settings": {"batch_size": 2}, "device_name": "one"}
    plots.scaling(tmp_path / "scaling.png", content)
    assert labels[-2:] == [
        "side of the image, pixels (30 classes)",
        "number of classes (56x56 pixels)",
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sizes": (30,)}, "sizes must be multiples of 28, got 30"),
        ({"classes": (1,)}, "expected at least 2 classes and 1 example, got 1 and 2"),
        ({"sizes": (), "classes": ()}, "there is nothing to measure: give sizes or classes"),
        ({"repeats": 3}, "repeats must be at least 10, got 3"),
    ],
)
def test_bad_settings_of_scaling(tmp_path, wrong, message):
    given = {"sizes": (28,), "classes": (10,), "repeats": 10, **wrong}
    sizes, classes = given.pop("sizes"), given.pop("classes")
    with pytest.raises(ValueError, match=message):
        scaling.run(sizes, classes, 2, path=tmp_path / "x.json", **given)


def test_what_is_given_goes_before_what_is_quick(monkeypatch):
    seen = []
    monkeypatch.setattr(scaling, "run", lambda *args, **_: seen.append(args))
    scaling.main()
    scaling.main(quick=True)
    scaling.main(quick=True, sizes=(56,), classes=(), batch_size=3)
    assert seen == [
        ((28, 56, 112, 224), (10, 30, 100, 300, 1000), 16),
        ((28, 112), (10, 100), 8),
        ((56,), (), 3),
    ]


def test_a_mistake_is_told_in_a_sentence():
    with pytest.raises(SystemExit, match="error: sizes must be multiples of 28, got 30"):
        scaling.main(sizes=(30,))
