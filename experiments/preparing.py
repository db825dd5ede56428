"""Prepare a data set once, by TensorFlow Datasets: only this module needs it, or TensorFlow."""

import difflib
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

_PREPARE = "pip install '.[prepare]' in the checkout brings it; it is needed only the first time"

# A tfds.core.DatasetBuilder: naming it would need the import that only `prepare` should do.
_Builder = Any


def prepare(name: str, folder: Path, manual_dir: str | Path | None) -> dict[str, np.ndarray]:
    """Build a set, and return the arrays that `experiments.data` keeps, with 8-bit pixels.

    Args:
        name: of the set, known to TensorFlow Datasets.
        folder: where it downloads and extracts files of this set.
        manual_dir: the folder with the set's original files, None to download them.

    Raises:
        ValueError, ImportError, OSError: as for `experiments.data.load`.
    """
    try:
        tfds = importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise ImportError(f"{name} needs TensorFlow Datasets: {_PREPARE}") from error
    builder = _builder(tfds, name, folder / "records")
    if not builder.is_prepared():
        if manual_dir is not None:
            _check_manual_dir(name, Path(manual_dir).expanduser(), builder)
        if importlib.util.find_spec("tensorflow") is None:
            raise ImportError(f"preparing {name} needs TensorFlow: {_PREPARE}")
        folder.mkdir(parents=True, exist_ok=True)
        print(f"Preparing {name} in {folder}, once", file=sys.stderr)
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
        try:
            builder.download_and_prepare(download_dir=folder / "downloads", download_config=config)
        except OSError as error:
            hint = "where it cannot be downloaded, manual_dir names a folder of its original files"
            raise OSError(f"{name} could not be prepared ({error}); {hint}") from error
    features = builder.info.features
    arrays = {"num_classes": np.array(features["label"].num_classes)}
    for split in ("train", "test"):
        source = builder.as_data_source(split)
        images = np.empty((len(source), *features["image"].shape), np.uint8)
        labels = np.empty(len(source), np.int32)
        for i, example in enumerate(source):
            images[i], labels[i] = example["image"], example["label"]
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    return arrays | {"train_mean": arrays["train_images"].mean() / 255}


def _builder(tfds: ModuleType, name: str, records: Path) -> _Builder:
    """Find the set, and check that it is an image classification set."""
    try:
        # Array records are the format that is read without TensorFlow.
        builder = tfds.builder(name, data_dir=records, file_format="array_record")
    except (ValueError, tfds.core.DatasetNotFoundError) as error:
        names = tfds.list_builders(with_community_datasets=False)
        raise unknown(name, ["digits", *names]) from error
    features = builder.info.features
    named: Any = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = named.get("image"), named.get("label")
    if not (
        isinstance(image, tfds.features.Image)
        and isinstance(label, tfds.features.ClassLabel)
        and image.np_dtype == np.uint8
        and None not in image.shape
    ):
        raise ValueError(
            f"{name} is not a classification set of 8-bit images of one shape: "
            f"its image is {image}, its label {label}"
        )
    # Before the set is prepared, its splits are known only if the catalog can be reached.
    splits = builder.info.splits
    if splits and not {"train", "test"} <= splits.keys():
        raise ValueError(f"{name} has the splits {', '.join(splits)}, expected train and test")
    return builder


def unknown(name: str, names: Iterable[str]) -> ValueError:
    """Return the error for a set that is not among these; its message suggests the nearest."""
    near = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(
        f"unknown data set {name!r}: there are digits, mnist, fashion_mnist and every image "
        f"classification set of TensorFlow Datasets, by its name there{hint}"
    )


def _check_manual_dir(name: str, manual_dir: Path, builder: _Builder) -> None:
    """Compare the files with the sizes and SHA-256 sums that TensorFlow Datasets knows."""
    if not manual_dir.is_dir():
        raise ValueError(f"manual_dir {manual_dir} is not a folder")
    infos = {info.filename: info for info in (builder.url_infos or {}).values() if info.filename}
    missing = [filename for filename in infos if not (manual_dir / filename).is_file()]
    # Which configuration of a set needs which file is not known: with several, one file must do.
    if missing and not (builder.BUILDER_CONFIGS and len(missing) < len(infos)):
        raise ValueError(f"the manual folder {manual_dir} lacks {', '.join(missing)} of {name}")
    for info in [info for filename, info in infos.items() if filename not in missing]:
        path = manual_dir / info.filename
        with path.open("rb") as file:
            found = (path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
        if found != (info.size, info.checksum):
            raise ValueError(
                f"{path} is not the file of {name}: it has {found[0]} bytes and the SHA-256 sum "
                f"{found[1]}, expected {int(info.size)} bytes and {info.checksum}"
            )
