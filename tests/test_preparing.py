"""Preparing a data set: by TensorFlow Datasets, mocked, so without TensorFlow and downloads."""

import hashlib
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments import data, preparing
from tests.test_data import mnist_like

MNIST_FILES = {
    "t10k-images-idx3-ubyte.gz": 1_648_877,
    "t10k-labels-idx1-ubyte.gz": 4_542,
    "train-images-idx3-ubyte.gz": 9_912_422,
    "train-labels-idx1-ubyte.gz": 28_881,
}


@pytest.fixture(autouse=True)
def no_litter(tmp_path, monkeypatch):
    """TensorFlow Datasets leaves empty temporary folders behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def tensorflow(monkeypatch):
    """Let TensorFlow seem installed, for a mocked preparation that does not use it."""
    found = {"tensorflow": object()}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found.get(name) or find_spec(name))


def small_set(builder, split, **_):
    """Four examples in place of a set, of a gray value that its download folder holds."""
    gray = (
        int((Path(builder.folder) / "extracted").read_text()) if hasattr(builder, "folder") else 7
    )
    image = np.full(builder.info.features["image"].shape, gray, np.uint8)
    return [{"image": image, "label": label} for label in range(4 if split == "train" else 2)]


@pytest.mark.usefixtures("tensorflow")
def test_mocked_cifar10_is_prepared_once(tmp_path, monkeypatch):
    with tfds.testing.mock_data(num_examples=5):
        first = data.load("cifar10", data_dir=tmp_path)
        source: Any = tfds.data_source("cifar10", split="train")
    assert first.num_classes == 10
    for images in (first.train_images, first.test_images):
        assert (images.shape, images.dtype) == ((5, 32, 32, 3), np.float32)
    np.testing.assert_array_equal(
        first.train_images, np.stack([e["image"] for e in source]) / np.float32(255)
    )
    np.testing.assert_array_equal(first.train_labels, [e["label"] for e in source])
    assert [path.name for path in (tmp_path / "cifar10").iterdir()] == ["arrays.npz"]
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    second = data.load("cifar10", data_dir=tmp_path)
    for before, after in zip(first, second, strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.usefixtures("tensorflow")
def test_sets_do_not_share_extracted_files(tmp_path, monkeypatch):
    """TensorFlow Datasets keeps an extracted file of the same name, whichever set it is from."""

    def prepare(builder, *, download_dir, download_config):
        extracted = Path(download_dir) / "extracted"
        if not extracted.exists():
            extracted.parent.mkdir(parents=True, exist_ok=True)
            original = Path(download_config.manual_dir) / "train-images-idx3-ubyte.gz"
            extracted.write_bytes(original.read_bytes())
        builder.folder = download_dir

    monkeypatch.setattr(preparing, "_check_manual_dir", lambda *_: None)
    for name, gray in {"kmnist": "51", "emnist": "102"}.items():
        (tmp_path / f"{name}-files").mkdir()
        (tmp_path / f"{name}-files" / "train-images-idx3-ubyte.gz").write_text(gray)
    with tfds.testing.mock_data(as_data_source_fn=small_set):
        monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", prepare)
        for name, gray in {"kmnist": 51, "emnist": 102}.items():
            manual_dir = tmp_path / f"{name}-files"
            loaded = data.load(name, data_dir=tmp_path / "data", manual_dir=manual_dir)
            np.testing.assert_array_equal(loaded.train_images, np.float32(gray / 255))


@pytest.mark.usefixtures("tensorflow")
def test_wrong_pixels_are_never_kept(tmp_path):
    pixels = mnist_like(0.13066)

    def source(_, split):
        images, labels = pixels[f"{split}_images"], pixels[f"{split}_labels"]
        return [{"image": x, "label": y} for x, y in zip(images, labels, strict=True)]

    with (
        tfds.testing.mock_data(as_data_source_fn=source),
        pytest.raises(ValueError, match=r"fashion_mnist have mean 0\.13066, expected 0\.28604"),
    ):
        data.load("fashion_mnist", data_dir=tmp_path)
    assert not list((tmp_path / "fashion_mnist").rglob("*.npz"))


@pytest.mark.usefixtures("tensorflow")
def test_interrupted_start_leaves_no_cache(tmp_path, monkeypatch):
    def interrupted(file, **_):
        file.write(b"half")
        raise KeyboardInterrupt

    with tfds.testing.mock_data(as_data_source_fn=small_set):
        with monkeypatch.context() as patch:
            patch.setattr(np, "savez", interrupted)
            with pytest.raises(KeyboardInterrupt):
                data.load("cifar10", data_dir=tmp_path)
        assert not list((tmp_path / "cifar10").iterdir())
        loaded = data.load("cifar10", data_dir=tmp_path)
    np.testing.assert_array_equal(loaded.train_images, np.full((4, 32, 32, 3), np.float32(7 / 255)))


def test_missing_tensorflow_is_said(tmp_path, monkeypatch):
    hidden = {"tensorflow"}
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name in hidden else find_spec(name)
    )
    with (
        tfds.testing.mock_data(),
        pytest.raises(ImportError, match=r"cifar10 needs TensorFlow: pip install '.\[prepare"),
    ):
        data.load("cifar10", data_dir=tmp_path)
    assert not (tmp_path / "cifar10").exists()


def test_missing_tensorflow_datasets_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"TensorFlow Datasets: pip install '.\[prepare\]'"):
        data.load("cifar10", data_dir=tmp_path)


@pytest.mark.usefixtures("tensorflow")
def test_failed_download_is_said(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route to host")

    with tfds.testing.mock_data():
        monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
        with pytest.raises(OSError, match=r"cifar10 .*\(no route to host\).* manual_dir"):
            data.load("cifar10", data_dir=tmp_path)


# Names


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("fashionmnist", "; did you mean 'fashion_mnist'?"),
        ("MNIST", "; did you mean 'mnist'?"),
        ("cifar1o", "; did you mean 'cifar10'?"),
        ("cifar_10", "; did you mean 'cifar10'?"),
        ("emnist/nothing", "; did you mean 'emnist'?"),
        ("../elsewhere", ""),
        ("", ""),
    ],
)
def test_unknown_set_is_said(tmp_path, name, hint):
    with pytest.raises(ValueError, match="there are digits, mnist, fashion_mnist and") as caught:
        data.load(name, data_dir=tmp_path)
    assert str(caught.value).startswith(f"unknown data set {name!r}: ")
    assert str(caught.value).endswith(f"by its name there{hint}")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("imdb_reviews", "its image is None"),
        ("food101", r"shape=\(None, None, 3\)"),
        ("dsprites", "its label None"),
    ],
)
def test_set_of_another_kind_is_refused(tmp_path, name, sentence):
    with pytest.raises(ValueError, match=f"{name} is not a classification set .*{sentence}"):
        data.load(name, data_dir=tmp_path)


def test_set_without_a_test_split_is_refused(tmp_path):
    known = mock.PropertyMock(return_value={"train": None, "extra": None})
    with (
        mock.patch.object(tfds.core.DatasetInfo, "splits", known),
        pytest.raises(ValueError, match="cifar10 has the splits train, extra, expected train and"),
    ):
        data.load("cifar10", data_dir=tmp_path)


# The manual folder


def test_missing_manual_folder_is_said(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        data.load("mnist", data_dir=tmp_path, manual_dir=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"t10k-images-idx3-ubyte.gz": None}, "lacks t10k-images-idx3-ubyte.gz of mnist"),
        ({"train-labels-idx1-ubyte.gz": None}, "lacks train-labels-idx1-ubyte.gz of mnist"),
        (dict.fromkeys(MNIST_FILES), "lacks t10k-images.*, t10k-labels.*, train-images.*, train-l"),
        ({"t10k-images-idx3-ubyte.gz": 1_648_876}, "has 1648876 bytes .* expected 1648877 bytes"),
        ({}, "t10k-images-idx3-ubyte.gz is not the file of mnist: .*expected .* 8d422c7b0a1c1c79"),
    ],
)
def test_bad_manual_folder_is_said_before_any_work(tmp_path, changed, sentence):
    folder = tmp_path / "files"
    folder.mkdir()
    for name, size in (MNIST_FILES | changed).items():
        if size is not None:
            with (folder / name).open("wb") as file:
                file.truncate(size)
    with pytest.raises(ValueError, match=sentence):
        data.load("mnist", data_dir=tmp_path / "data", manual_dir=folder)
    assert not (tmp_path / "data").exists()


def manual(tmp_path, contents, *, configs=()):
    """A manual folder with some of the files of a set whose files a and b hold their names."""
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    infos = {
        f"http://example.org/{name}": SimpleNamespace(
            filename=name, size=1, checksum=hashlib.sha256(name.encode()).hexdigest()
        )
        for name in ("a", "b")
    }
    unnamed = {"http://example.org/c": SimpleNamespace(filename=None, size=1, checksum="")}
    builder = SimpleNamespace(url_infos=infos | unnamed, BUILDER_CONFIGS=configs)
    preparing._check_manual_dir("letters", tmp_path, builder)


def test_right_manual_folder_passes(tmp_path):
    assert manual(tmp_path, {"a": "a", "b": "b", "other": "c"}) is None


def test_every_manual_file_is_checked(tmp_path):
    with pytest.raises(ValueError, match="b is not the file of letters"):
        manual(tmp_path, {"a": "a", "b": "a"})


def test_manual_folder_of_one_configuration(tmp_path):
    """Which of its files each configuration needs is not known, so some are enough, but right."""
    with pytest.raises(ValueError, match="lacks a, b of letters"):
        manual(tmp_path, {}, configs=("upper", "lower"))
    assert manual(tmp_path, {"b": "b"}, configs=("upper", "lower")) is None
    with pytest.raises(ValueError, match="b is not the file of letters"):
        manual(tmp_path, {"b": "a"}, configs=("upper", "lower"))
