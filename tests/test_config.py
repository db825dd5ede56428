"""What the command line accepts and fills in."""

import math
import re
from pathlib import Path

import pytest

from experiments.config import Config, parse_method
from experiments.methods import METHODS
from experiments.recipes import RECIPES, recipe


@pytest.mark.parametrize("data", [*RECIPES, "cifar10"])
@pytest.mark.parametrize("method", METHODS)
def test_defaults_fill_every_gap(data, method):
    config = Config(data=data, method=method).resolved()
    assert None not in (config.epochs, config.batch_size, config.warmup_epochs)
    assert (METHODS[method].strength is not None) == ("strength" in METHODS[method].takes)
    for name in ("strength", "step", "weight"):
        assert (getattr(config, name) is not None) == (name in METHODS[method].takes)
    assert config.resolved() == config


def test_every_method_is_explained_where_the_help_says():
    text = (Path(__file__).parents[1] / "experiments/README.md").read_text("utf-8")
    explained = text.split("| method | adds to the loss | strength |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", explained, re.MULTILINE) == list(METHODS)


def test_a_shorter_training_warms_up_in_the_same_part_of_it():
    assert Config(data="digits").resolved().warmup_epochs == 10
    assert Config(data="digits", epochs=3).resolved().warmup_epochs == 1
    assert Config(data="digits", epochs=300).resolved().warmup_epochs == 10


@pytest.mark.parametrize("method", ["adversarial", "fgsm"])
def test_the_radius_of_adversarial_training_is_one_of_its_norm(method):
    for data, radius in (("mnist", 0.2), ("fashion_mnist", 0.05), ("cifar10", 4 / 255)):
        assert Config(data=data, method=method, norm="linf").resolved().strength == radius
    given = Config(data="mnist", method=method, norm="linf", strength=0.3)
    assert given.resolved().strength == 0.3


def test_what_is_given_is_kept():
    given = {"epochs": 3, "batch_size": 7, "warmup_epochs": 0.5, "strength": 0.25, "step": 0.125}
    config = Config(data="mnist", method="finite-step", **given).resolved()
    assert {name: getattr(config, name) for name in given} == given
    assert config.name == "finite-step:0.25:0.125"


def test_a_step_is_the_data_sets_unless_the_method_has_its_own():
    steps = {
        method: Config(data="mnist", method=method).resolved().step
        for method in ("finite-step", "curvature", "hessian-inside")
    }
    assert steps == {"finite-step": 1.5, "curvature": 1.5, "hessian-inside": 1.0}
    assert Config(method="hessian-inside").resolved().step == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", {"method": "none"}),
        ("hessian:2", {"method": "hessian", "strength": 2.0}),
        ("finite-step:1:1.5", {"method": "finite-step", "strength": 1.0, "step": 1.5}),
        ("hessian:2,every=4", {"method": "hessian", "strength": 2.0, "every": 4}),
        ("adversarial:0.1,norm=linf", {"method": "adversarial", "strength": 0.1, "norm": "linf"}),
        ("trades:1.5,weight=3", {"method": "trades", "strength": 1.5, "weight": 3.0}),
        (
            "gradient:1,every=2,parts=3",
            {"method": "gradient", "strength": 1.0, "every": 2, "parts": 3},
        ),
        ("adversarial:1.5,num_steps=3", {"method": "adversarial", "strength": 1.5, "num_steps": 3}),
    ],
)
def test_a_method_is_read_with_its_numbers(text, expected):
    assert parse_method(text) == expected
    assert Config(data="mnist", **expected).resolved().name == text


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("adversarial:1.5,num_steps=10", "adversarial:1.5"),
        ("trades:1.5,weight=6,num_steps=10", "trades:1.5,weight=6"),
        ("hessian-inside:1:0.5,num_steps=1", "hessian-inside:1:0.5"),
        ("hessian-inside:1:0.5,num_steps=10", "hessian-inside:1:0.5,num_steps=10"),
    ],
)
def test_the_usual_number_of_steps_is_the_same_method(text, name):
    plain = Config(data="mnist", **parse_method(name)).resolved()
    assert Config(data="mnist", **parse_method(text)).resolved() == plain
    assert plain.name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hesian", "unknown method 'hesian': expected one of none, gradient, hessian"),
        ("hessian:two", "'hessian:two' must be a method, method:strength or"),
        ("hessian:", "'hessian:' must be a method, method:strength or"),
        ("hessian:1,every", "'hessian:1,every' must be a method, .* ,weight=... or ,norm=... or"),
        ("hessian,every=1.5", "'hessian,every=1.5' must be a method, method:strength or"),
        ("hessian,often=2", "'hessian,often=2' must be a method, method:strength or"),
        ("hessian,every=2,every=4", "'hessian,every=2,every=4' gives one of its options twice"),
        ("finite-step:1:2:3", "'finite-step:1:2:3' must be a method, method:strength or"),
    ],
)
def test_a_wrong_method_is_told(text, message):
    with pytest.raises(ValueError, match=message):
        parse_method(text)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "ridge"}, "unknown method 'ridge': expected one of none, "),
        ({"strength": -1.0}, "strength must be a finite number, at least 0, got -1"),
        ({"strength": math.nan}, "strength must be a finite number, at least 0, got nan"),
        ({"method": "none", "strength": 1.0}, "the method 'none' takes no strength, got 1"),
        ({"step": 1.0}, "the method 'hessian' takes no step, got 1"),
        ({"method": "finite-step", "step": 0.0}, "step must be a finite positive number, got 0"),
        ({"method": "adversarial", "strength": 0.0}, "strength, the ε of PGD.* positive, got 0"),
        ({"method": "fgsm", "strength": 0.0}, "strength, the ε of FGSM.* positive, got 0"),
        ({"method": "hot", "strength": 0.0}, "strength, the temp.* must be positive, got 0"),
        ({"every": 0}, "every must be a finite positive number, got 0"),
        ({"parts": 65}, "parts must be at most the 64 examples of a batch, got 65"),
        ({"parts": -1}, "parts must be a finite positive number, got -1"),
        ({"method": "none", "every": 2}, "the method 'none' takes no every, got 2"),
        ({"method": "adversarial", "parts": 2}, "'adversarial' takes no parts, got 2"),
        ({"num_steps": 3}, "the method 'hessian' takes no num_steps, got 3"),
        ({"method": "fgsm", "num_steps": 1}, "'fgsm' takes no num_steps, got 1"),
        ({"method": "trades", "num_steps": 0}, "num_steps must be a finite positive number, got 0"),
        ({"epochs": 0}, "epochs must be a finite positive number, got 0"),
        ({"batch_size": -3}, "batch_size must be a finite positive number, got -3"),
        ({"warmup_epochs": -1.0}, "warmup_epochs must be a finite number, at least 0, got -1"),
        ({"learning_rate": math.inf}, "learning_rate must be a finite positive number, got inf"),
        ({"beta": 0.0}, "beta must be a finite positive number, got 0"),
        ({"validation": -1}, "validation must be a finite number, at least 0, got -1"),
        ({"seed": -1}, "seed must be a finite number, at least 0, got -1"),
        ({"seed": 2**32}, "seed must be less than 2\\*\\*32, got 4294967296"),
        (
            {"epochs": 3, "warmup_epochs": 4.0},
            "warmup_epochs must be at most the 3 epochs .* got 4",
        ),
        ({"model": "vit"}, "unknown model 'vit': expected one of mlp, cnn"),
        ({"activation": "swish"}, "unknown activation 'swish': expected one of relu, softplus"),
        ({"precision": "float16"}, "unknown precision 'float16': expected one of float32, bf"),
        ({"weight": 1.0}, "the method 'hessian' takes no weight, got 1"),
        (
            {"method": "trades", "weight": -1.0},
            "weight must be a finite number, at least 0, got -1",
        ),
        ({"norm": "linf"}, "the method 'hessian' takes no norm, got linf"),
        ({"norm": "l1"}, "unknown norm 'l1': expected one of l2, linf"),
    ],
)
def test_a_wrong_number_is_told(wrong, message):
    with pytest.raises(ValueError, match=message):
        Config(**wrong).resolved()


def test_every_recipe_has_radii_of_both_norms():
    for data in [*RECIPES, "cifar10"]:
        radii = recipe(data).radii
        assert sorted(radii) == ["l2", "linf"]
        assert all(r > 0 for values in radii.values() for r in values)
