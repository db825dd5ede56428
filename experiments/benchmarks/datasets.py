"""The data of networks that are measured together."""

from collections.abc import Sequence
from pathlib import Path

from experiments.config import Config
from experiments.data import Dataset
from experiments.train import load_for


def data_of(configs: Sequence[Config], data_dir: Path | None) -> list[Dataset]:
    """Load the data of each configuration, those that several have in common once."""
    found: dict[tuple[str, int], Dataset] = {}
    for config in configs:
        if (kind := (config.data, config.validation)) not in found:
            found[kind] = load_for(config, data_dir)
    return [found[config.data, config.validation] for config in configs]
