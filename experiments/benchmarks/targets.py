"""The ratios that decide whether a step is cheap, and the limits they should meet."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.benchmarks import labels
from experiments.benchmarks.steps import ACCUMULATED, CHUNKED


class Target(NamedTuple):
    """A ratio between two steps of one network.

    Attributes:
        label: what is compared.
        wanted: the limits, in words.
        step: the numerator's name, as in `experiments.benchmarks.steps`.
        unit: the denominator's.
        network: model and activation.
        key: the quantity compared: ``seconds``, ``operations`` or ``temporary_bytes``.
    """

    label: str
    wanted: str
    step: str
    unit: str
    network: tuple[str, str]
    key: str = "seconds"


_GELU, _RELU, _MLP = ("cnn", "gelu"), ("cnn", "relu"), ("mlp", "gelu")
_CHEAP, _PYTORCH = "hessian: none, gradient, 0", "PyTorch: hessian"
_COMPILED, _POWER = "PyTorch: hessian, compiled", "hessian: power, random, 9"
_EXACT, _PARTS = "gauss_newton_operator_norm", "hessian, parts=4"
_MEMORY = "temporary_bytes"
TARGETS = (
    Target("surrogate / plain, operations", "≤ 5.0", "hessian", "none", _GELU, "operations"),
    Target("surrogate / plain, operations", "≤ 3.9", "hessian", "none", _RELU, "operations"),
    Target("without a product / plain, operations", "≤ 4.2", _CHEAP, "none", _GELU, "operations"),
    Target("without a product / plain, operations", "≤ 3.1", _CHEAP, "none", _RELU, "operations"),
    Target("surrogate / plain", "≤ 7", "hessian", "none", _GELU),
    Target("surrogate / textbook", "≤ 0.33", "hessian", "hessian, textbook, 10", _GELU),
    Target("surrogate / PyTorch", "≤ 1", "hessian", _PYTORCH, _GELU),
    Target("surrogate / PyTorch, compiled", "≤ 1", "hessian", _COMPILED, _GELU),
    Target("surrogate / PyTorch", "≤ 1", "hessian", _PYTORCH, _RELU),
    Target("surrogate / PyTorch, compiled", "≤ 1", "hessian", _COMPILED, _RELU),
    Target("surrogate / PyTorch", "≤ 0.5", "hessian", _PYTORCH, _MLP),
    Target("surrogate / PyTorch, compiled", "≤ 0.5", "hessian", _COMPILED, _MLP),
    Target("with four parts / plain", "≤ 2.0", _PARTS, "none", _GELU),
    Target("every fifth step / plain", "≤ 2.0", "hessian, every=5", "none", _GELU),
    Target("surrogate / PGD-10 training", "≤ 0.65", "hessian", "adversarial", _GELU),
    Target("with four parts / PGD-10 training", "≤ 0.3", _PARTS, "adversarial", _GELU),
    Target("exact Gauss-Newton / nine power steps", "< 1", _EXACT, _POWER, _GELU),
    Target("four chunks / plain, memory", "≤ 2", CHUNKED, "none", _GELU, _MEMORY),
    Target("four slices / plain, memory", "≤ 2", ACCUMULATED, "none", _GELU, _MEMORY),
)  # fmt: skip


def measured(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return label, network, limit and ratio of each target found among the rows in float32."""
    known = {
        (row["step"], row["model"], row["activation"]): row
        for row in rows
        if row["kind"] == "step" and labels.precision(row) == labels.USUAL
    }
    lines = []
    for target in TARGETS:
        step, unit = (known.get((name, *target.network)) for name in (target.step, target.unit))
        values = [_value(row, target.key) for row in (step, unit) if row]
        pair = [value for value in values if value is not None]  # some devices report no memory
        if len(pair) == 2:
            ratio = pair[0] / pair[1]
            model, activation = target.network
            network = f"{model.upper()}, {activation}"
            lines.append([target.label, network, target.wanted, f"{ratio:.2f}"])
    return lines


def _value(row: Mapping[str, Any], key: str) -> float | None:
    return row["seconds"]["median"] if key == "seconds" else row.get(key)
