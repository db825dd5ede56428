"""The package's shape: which module may know which, and that what is public is explained."""

import ast
import inspect
import sys
from pathlib import Path

import pytest

import hessjax

PACKAGE = Path(hessjax.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# Who may import whom inside the package; what is not listed may not be imported.
NUMERICS, OPERATORS, EIGEN = "hessjax._numerics", "hessjax.operators", "hessjax.eigen"
BRIDGE, COMPILATION = "hessjax.bridge", "hessjax._compilation"
BATCHING, LAZY, PLACEMENT = "hessjax._batching", "hessjax.lazy", "hessjax._placement"
ARROWS: dict[str, set[str]] = {
    NUMERICS: set(),
    COMPILATION: set(),
    LAZY: {NUMERICS},
    PLACEMENT: {NUMERICS},
    "hessjax.losses": {NUMERICS},
    "hessjax.bounds": {NUMERICS},
    OPERATORS: {NUMERICS},
    EIGEN: {NUMERICS},
    "hessjax.penalties": {NUMERICS, OPERATORS, EIGEN},
    "hessjax.composite_penalties": {NUMERICS, OPERATORS, EIGEN, "hessjax.penalties"},
    # An objective knows a penalty by its call signature alone.
    BATCHING: {NUMERICS, OPERATORS, LAZY, PLACEMENT},
    "hessjax.objective": {NUMERICS, OPERATORS, EIGEN, BATCHING, LAZY},
    "hessjax.checks": {NUMERICS, BATCHING},
    "hessjax.training": {NUMERICS, COMPILATION, LAZY, PLACEMENT},
    BRIDGE: {NUMERICS, COMPILATION},
}
OUTSIDE = {"jax", "numpy", "optax"}


def imported(path: Path) -> set[str]:
    """Return the dotted names of all imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            inner = {f"{module}.{alias.name}" for alias in node.names}
            names |= {name for name in inner if name in MODULES} or {module}
    return names


def allowed(module: str) -> set[str]:
    """Return the modules of the package that this one may import."""
    if module.endswith("__init__") or module in ARROWS:
        # What every user imports must not ask for PyTorch.
        return ARROWS.get(module, set(MODULES) - {BRIDGE} | {"hessjax.attacks"})
    assert module.startswith("hessjax.attacks."), f"{module} has no place in the layout"
    attacks = {name for name in MODULES if name.startswith("hessjax.attacks.")}
    return {NUMERICS, COMPILATION, PLACEMENT, "hessjax.losses", "hessjax.attacks", *attacks}


@pytest.mark.parametrize("module", MODULES)
def test_dependencies_run_one_way(module: str) -> None:
    inside = {name for name in imported(MODULES[module]) if name.split(".")[0] == "hessjax"}
    assert inside <= allowed(module)


@pytest.mark.parametrize("module", MODULES)
def test_only_light_dependencies(module: str) -> None:
    outside = {name.split(".")[0] for name in imported(MODULES[module])} - {"hessjax"}
    # The bridge exists to be attacked by what is written for PyTorch; nothing else imports it.
    extra = {"torch"} if module == BRIDGE else set()
    assert outside <= OUTSIDE | extra | sys.stdlib_module_names


@pytest.mark.parametrize("module", MODULES)
def test_the_library_is_silent_and_reads_nothing(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"print", "open", "input", "exec", "eval"}
    assert not imported(MODULES[module]) & {"logging", "pathlib", "os", "io", "warnings"}


def test_every_module_of_the_layout_exists() -> None:
    assert set(ARROWS) <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_short_and_say_what_they_are(module: str) -> None:
    text = MODULES[module].read_text()
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) < 300, "divide it by content: see CONTRIBUTING.md"


def test_public_names_are_those_of_the_contract() -> None:
    assert hessjax.__all__ == [
        "Composite",
        "Eigenpair",
        "Lazy",
        "LpBall",
        "TrainState",
        "apgd",
        "attacks",
        "auto_attack",
        "bounds",
        "check_apply",
        "check_batch",
        "curvature_along_gradient",
        "directional_derivative",
        "dlr_loss",
        "fab",
        "fgsm",
        "finite_step_operator_norm",
        "gauss_newton_matrix",
        "gauss_newton_operator",
        "gauss_newton_operator_norm",
        "gradient_start",
        "hessian_matrix",
        "hessian_operator",
        "hessian_operator_norm",
        "hessian_squared_frobenius_norm",
        "hvp",
        "input_gradient_norm",
        "jacobian_operator_norm",
        "jacobian_squared_frobenius_norm",
        "lanczos",
        "margin",
        "norm_ascent",
        "pgd",
        "power_iteration",
        "random_start",
        "regularized",
        "second_directional_derivative",
        "second_order",
        "square",
        "targeted_dlr_loss",
        "train_step",
    ]
    assert isinstance(hessjax.__version__, str)


@pytest.mark.parametrize("name", sorted(set(hessjax.__all__) - {"__version__"}))
def test_public_names_are_explained(name: str) -> None:
    thing = getattr(hessjax, name)
    docstring = inspect.getdoc(thing) or ""
    assert docstring.splitlines()[0].rstrip().endswith(".")
    # NamedTuples and dataclasses bring a docstring that repeats their fields: not an explanation.
    assert not docstring.startswith(f"{name}(")
    assert len(docstring) > 80


@pytest.mark.parametrize(
    "name", sorted(n for n in hessjax.__all__ if inspect.isfunction(getattr(hessjax, n)))
)
def test_public_functions_describe_each_argument(name: str) -> None:
    function = getattr(hessjax, name)
    docstring = inspect.getdoc(function) or ""
    for parameter in inspect.signature(function).parameters:
        assert parameter in docstring
