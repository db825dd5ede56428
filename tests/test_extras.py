"""Programs whose packages are not all there."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A package that cannot be found; None in sys.modules is more than some libraries bear.
_WITHOUT = """
import runpy, sys
from importlib.abc import MetaPathFinder

class Without(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'")

sys.meta_path.insert(0, Without())
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("program", ["theory", "parity", "crosscheck"])
def test_a_missing_extra_is_told_in_a_sentence(program):
    name = f"experiments.{program}"
    ended = subprocess.run(
        [sys.executable, "-c", _WITHOUT, name, "--help"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr == (
        f"error: {name} needs the extra reference (No module named 'torch'): "
        "pip install '.[reference]' in a checkout of hessjax\n"
    )
