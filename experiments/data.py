"""Image classification sets as plain arrays."""

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.files import read_arrays, write_arrays
from experiments.preparing import prepare, unknown

# Mean of the training pixels in [0, 1]: these two have the same shapes, classes and file names, so
# nothing cheaper tells one from the other.
_TRAIN_MEANS = {"mnist": 0.13066, "fashion_mnist": 0.28604}
_KEYS = {"train_images", "train_labels", "test_images", "test_labels", "num_classes", "train_mean"}


class Dataset(NamedTuple):
    """A classification set in memory.

    Attributes:
        name: The name it was loaded by.
        train_images: (N, H, W, C), float32 in [0, 1].
        train_labels: (N,), int32 in [0, num_classes).
        test_images, test_labels: (M, H, W, C) and (M,), likewise.
        num_classes: Number of classes, whether or not all of them occur.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int


def load(
    name: str, *, data_dir: str | Path | None = None, manual_dir: str | Path | None = None
) -> Dataset:
    """Load an image classification set, preparing it the first time.

    The first time, TensorFlow Datasets builds it from what it downloads or finds in ``manual_dir``.
    From then on plain arrays are read from ``data_dir``, with no need for TensorFlow or TensorFlow
    Datasets.

    Args:
        name: ``digits``, which come with scikit-learn and need no preparation, or a name in
            TensorFlow Datasets such as ``mnist`` or ``emnist/balanced``.
        data_dir: Folder of prepared sets, ``$HESSJAX_DATA`` or ``~/.cache/hessjax`` by default.
        manual_dir: Folder with the set's original files, for a machine that cannot download them.

    Returns:
        The set, in the order in which it is stored, which is shuffled.

    Raises:
        ValueError: if there is no such set, it does not classify images of one shape, the manual
            folder lacks a file or has a wrong one, or the arrays are not those of the set.
        ImportError: if a package that preparing needs is missing.
        OSError: if the set cannot be downloaded.
    """
    if name == "digits":
        return _digits()
    if not re.fullmatch(r"[a-z0-9_]+(/\w[\w.-]*)?", name):
        raise unknown(name, ["digits", *_TRAIN_MEANS])
    root = data_dir or os.environ.get("HESSJAX_DATA") or Path.home() / ".cache" / "hessjax"
    # A folder for each set: in a common download folder, TensorFlow Datasets would extract files of
    # equal names, such as those of both MNISTs, to one path, and mistake the first for the second.
    folder = Path(root).expanduser() / name
    cache = folder / "arrays.npz"
    cached = cache.is_file()
    arrays = _read(cache) if cached else prepare(name, folder, manual_dir)
    _check(name, arrays, folder)
    if not cached:
        write_arrays(cache, arrays)
    return Dataset(
        name,
        arrays["train_images"].astype(np.float32) / np.float32(255),
        arrays["train_labels"],
        arrays["test_images"].astype(np.float32) / np.float32(255),
        arrays["test_labels"],
        int(arrays["num_classes"]),
    )


def _digits() -> Dataset:
    from sklearn.datasets import load_digits  # noqa: PLC0415 - a second of imports
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int32)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=450, stratify=labels, random_state=0
    )
    return Dataset("digits", images[train], labels[train], images[test], labels[test], 10)


def _read(cache: Path) -> dict[str, np.ndarray]:
    try:
        return read_arrays(cache)
    except ValueError as error:
        raise ValueError(f"{error}: delete it to prepare it anew") from error


def _check(name: str, arrays: dict[str, np.ndarray], folder: Path) -> None:
    """Refuse arrays that are not those of the set, before anything is computed from them."""
    remedy = f"delete {folder} to prepare it anew"
    if arrays.keys() != _KEYS:
        raise ValueError(f"{name} has the arrays {sorted(arrays)}, not {sorted(_KEYS)}: {remedy}")
    num_classes = arrays["num_classes"]
    for split, size in (("train", 60_000), ("test", 10_000)):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        shape = (labels.size, *arrays["train_images"].shape[1:])
        if name in _TRAIN_MEANS:
            shape = (size, 28, 28, 1)
        kinds = [(array.dtype.name, array.shape) for array in (images, labels)]
        if kinds != [("uint8", shape), ("int32", shape[:1])] or len(shape) != 4:
            raise ValueError(
                f"the {split} images and labels of {name} are {kinds}, expected uint8 {shape} and "
                f"int32 {shape[:1]}: {remedy}"
            )
        if not labels.size or labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(
                f"the {split} labels of {name} must be one or more from 0 to {num_classes - 1}: "
                f"{remedy}"
            )
    mean = arrays["train_images"].mean() / 255
    expected = _TRAIN_MEANS.get(name, arrays["train_mean"])
    if not abs(mean - expected) < 1e-5:
        raise ValueError(
            f"the training pixels of {name} have mean {mean:.5f}, expected {expected:.5f}, so they "
            f"are those of another set: {remedy}"
        )


def validation_split(dataset: Dataset, size: int) -> Dataset:
    """Hold out the last ``size`` training examples in place of the test set, for tuning.

    The stored order is shuffled, so they are as good as a random choice, and always the same.

    Raises:
        ValueError: if nothing would be held out, or nothing left to train on.
    """
    if not 0 < size < len(dataset.train_labels):
        raise ValueError(
            f"cannot hold out {size} of {len(dataset.train_labels)} training examples: "
            "at least one, and not all"
        )
    return dataset._replace(
        train_images=dataset.train_images[:-size],
        train_labels=dataset.train_labels[:-size],
        test_images=dataset.train_images[-size:],
        test_labels=dataset.train_labels[-size:],
    )


def check_count(name: str, count: int | None, dataset: Dataset) -> None:
    """Raise unless there are at least ``count`` test images; None means all."""
    most = len(dataset.test_labels)
    if count is not None and not 1 <= count <= most:
        raise ValueError(f"{name} must be from 1 to {most}, the number of test images, got {count}")


def batch_indices(step: int, num_examples: int, batch_size: int, *, seed: int) -> np.ndarray:
    """Return the indices of the examples of one training step, a batch.

    Each epoch is its own permutation of all examples, cut into N // batch_size batches; the
    remainder, which differs from epoch to epoch, is dropped.

    Args:
        step: its number, from 0.
        num_examples: N.
        batch_size: examples per step.
        seed: of the order.

    Raises:
        ValueError: if the examples do not fill one batch.
    """
    if batch_size < 1 or batch_size > num_examples:
        raise ValueError(f"{num_examples} examples do not fill a batch of {batch_size}")
    epoch, place = divmod(step, num_examples // batch_size)
    return _order(num_examples, seed, epoch)[place * batch_size : (place + 1) * batch_size]


@lru_cache(maxsize=1)
def _order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_examples)
