"""Settings of the whole test process."""

import jax

from hessjax import _compilation
from tests import cases

jax.config.update("jax_enable_x64", True)
# TF32 and bfloat16 products keep three digits, fewer than most tolerances here.
jax.config.update("jax_default_matmul_precision", "highest")

# As tests/cases.py says of its own.
_compilation.CPU_OPTIONS.update(cases.QUICK)
