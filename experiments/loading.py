"""The data that a configuration refers to."""

from collections.abc import Sequence
from pathlib import Path

from experiments.config import Config
from experiments.data import Dataset, load, validation_split
from hessjax import check_batch


def load_for(
    config: Config, data_dir: Path | None = None, manual_dir: Path | None = None
) -> Dataset:
    """Load the data of a configuration, its validation split if it has one, and check them.

    Raises:
        ValueError: if labels or pixels are out of range, or as for `experiments.data.load`.
    """
    dataset = load(config.data, data_dir=data_dir, manual_dir=manual_dir)
    if config.validation:
        dataset = validation_split(dataset, config.validation)
    check_batch((dataset.train_images, dataset.train_labels), num_classes=dataset.num_classes)
    check_batch((dataset.test_images, dataset.test_labels), num_classes=dataset.num_classes)
    return dataset


def data_of(configs: Sequence[Config], data_dir: Path | None) -> list[Dataset]:
    """Load the data of each configuration; data that several share are loaded once."""
    found: dict[tuple[str, int], Dataset] = {}
    for config in configs:
        if (kind := (config.data, config.validation)) not in found:
            found[kind] = load_for(config, data_dir)
    return [found[config.data, config.validation] for config in configs]
