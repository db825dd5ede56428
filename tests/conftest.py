"""Settings of the whole test process."""

import gc
import os
import tempfile

import jax
import pytest
import tyro

from experiments import canvas, compare, figures, report, surfaces, train, trends
from hessjax import _compilation
from tests import cases, compared, stored

jax.config.update("jax_enable_x64", True)
# Simulated, for the tests of several devices. What is put nowhere stays on the first of them.
jax.config.update("jax_num_cpu_devices", 8)
# TF32 and bfloat16 products keep three digits, fewer than most tolerances here.
jax.config.update("jax_default_matmul_precision", "highest")

# Tracing makes many objects that stay, and going through them again and again takes a twentieth.
gc.set_threshold(100_000, 50, 100)

# A command, which needs more than the tests do.
collect_ignore = ["mutants.py"]

# Read when the first program is compiled, of which there are many that say nothing of their own.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), *(f"--{name}={value}" for name, value in cases.QUICK.items())]
)
_compilation.CPU_OPTIONS.clear()

# Many tests compile what others did, as functions of their own. Each process has its own folder,
# for JAX writes these files in place, and another process might read half of one.
_COMPILED = tempfile.TemporaryDirectory(prefix="hessjax-tests-")
# tests/mutants.py keeps one. JAX doesn't declare its options, of which this is one.
if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_compilation_cache_dir", _COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# Begun at the end, they would leave all processes but one without work.
_LONG = (
    *("test_faults.py", "test_penalty_cost.py", "test_devices.py", "test_devices_cost.py"),
    "README.md",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture(scope="module")
def counted():
    """Have operations counted in what the package compiles, at the price of compile time."""
    _compilation.CPU_OPTIONS.update(cases.COUNTED)
    yield
    _compilation.CPU_OPTIONS.clear()


@pytest.fixture
def torch_float64(monkeypatch):
    """Have PyTorch and the reference attacks compute in float64; float32 compares too little."""
    import torch  # noqa: PLC0415 - seconds of imports, which few tests need

    default = torch.get_default_dtype()
    # The reference attacks cast to single precision by this method.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


@pytest.fixture(scope="module")
def examples():
    """Return some of a small network; read them only."""
    from tests import originals, short  # noqa: PLC0415 - they import PyTorch

    x, y = originals.examples(short.PARAMS, 40)
    y[:2] = (y[:2] + 1) % 10  # misclassified from the start
    return x, y


@pytest.fixture
def undrawn(monkeypatch):
    """Write reports without figures, which take seconds."""
    monkeypatch.setattr(report, "draw", lambda *_: [])


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Return the folder of a small network, trained on the digits; read it only."""
    path = tmp_path_factory.mktemp("runs") / "run"
    options = ["--model", "mlp", "--activation", "relu", "--epochs", "3", "--method", "none"]
    tyro.cli(train.main, args=[*options, "--out", str(path)])
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Return the folder of a small comparison of two methods on the digits; read it only."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    tyro.cli(compare.main, args=[*compared.ARGUMENTS, "--out", str(out)])
    return out


@pytest.fixture
def directory(tmp_path):
    """Return the folder of a comparison of two methods with what its figures show."""
    content = stored.comparison()
    landscapes = {one["path"]: stored.landscape(i) for i, one in enumerate(content["runs"])}
    return stored.store(tmp_path, content, landscapes)


@pytest.fixture
def drawn(monkeypatch):
    """Catch what the figures are given."""
    calls = {}
    drawings = {
        figures: ("accuracy", "ranking", "histograms", "attacks"),
        surfaces: ("planes", "boundaries"),
        trends: ("frontier", "tradeoff", "trajectories"),
    }
    for module, names in drawings.items():
        for name in names:

            def catch(_, *data, name=name, **told):
                calls[name] = (data, told)

            monkeypatch.setattr(module, name, catch)
    return calls


@pytest.fixture
def pages(monkeypatch):
    """Keep every page that is saved, for a look at its axes."""
    kept = []

    def keep(page, path):
        kept.append(page)
        canvas.save(page, path)

    for module in (figures, surfaces, trends):
        monkeypatch.setattr(module, "save", keep)
    return kept
