"""A training that another process kills; imported by a server that forks it ready to go."""

from pathlib import Path

import jax

from experiments.config import Config
from experiments.data import load
from experiments.train import train

CONFIG = Config(method="none", model="mlp", activation="relu", epochs=10).resolved()
EVERY = 2
DATA = load("digits")


def run(path: Path, cache: Path) -> None:
    """Go on with the training."""
    # Each life would compile the same step.
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    train(CONFIG, DATA, path, resume=True, checkpoint_every=EVERY)
