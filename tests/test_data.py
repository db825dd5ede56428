"""The data sets: digits, the checked cache of prepared ones, and splitting them into batches."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from experiments import data

ROOT = Path(__file__).parents[1]


def arrays(**changed):
    random = np.random.default_rng(0)
    result = {
        "train_images": random.integers(0, 256, (6, 4, 4, 1), np.uint8),
        "train_labels": np.array([0, 1, 2, 0, 1, 2], np.int32),
        "test_images": random.integers(0, 256, (3, 4, 4, 1), np.uint8),
        "test_labels": np.array([0, 1, 2], np.int32),
        "num_classes": np.array(3),
    } | changed
    if "train_mean" not in result:
        result["train_mean"] = result["train_images"].mean() / 255
    return {name: value for name, value in result.items() if value is not None}


def mnist_like(mean):
    """Arrays of the size of MNIST whose training pixels have a mean."""
    images = np.zeros(60_000 * 28 * 28, np.uint8)
    whole, part = divmod(mean * 255, 1)
    images[:] = whole
    images[: round(part * images.size)] += 1
    return arrays(
        train_images=images.reshape(60_000, 28, 28, 1),
        train_labels=np.arange(60_000, dtype=np.int32) % 10,
        test_images=np.full((10_000, 28, 28, 1), 51, np.uint8),
        test_labels=np.arange(10_000, dtype=np.int32) % 10,
        num_classes=np.array(10),
    )


def keep(root, name, kept):
    """Write a cache as an earlier start did."""
    (root / name).mkdir(parents=True)
    np.savez(root / name / "arrays.npz", allow_pickle=False, **kept)
    return root / name / "arrays.npz"


# Digits


def test_digits_are_those_of_scikit_learn():
    digits = data.load("digits")
    assert digits.name == "digits"
    assert digits.num_classes == 10
    assert digits.train_images.shape == (1347, 8, 8, 1)
    assert digits.test_images.shape == (450, 8, 8, 1)
    for images, labels in (digits[1:3], digits[3:5]):
        assert images.dtype == np.float32
        assert labels.dtype == np.int32
        # Sixteenths are exact in float32, so that nothing need be tolerated.
        assert (images.min(), images.max()) == (0, 1)
    np.testing.assert_allclose(digits.train_images.mean(), 0.3053, atol=1e-3)
    images, labels = load_digits(return_X_y=True)
    expected = np.column_stack([labels, images])
    rows = [
        np.column_stack([labels, 16 * images.reshape(-1, 64)])
        for images, labels in (digits[1:3], digits[3:5])
    ]
    found = np.concatenate(rows)
    np.testing.assert_array_equal(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])


def test_digits_split_is_stratified_and_always_the_same():
    first, second = data.load("digits"), data.load("digits")
    np.testing.assert_array_equal(first.test_images, second.test_images)
    share = np.bincount(load_digits(return_X_y=True)[1]) * 450 / 1797
    assert abs(np.bincount(first.test_labels) - share).max() < 1
    # In the order of the original, the classes follow one another.
    assert list(first.train_labels[:10]) != list(range(10))


# The cache


def test_second_start_is_quick_and_needs_no_preparing(tmp_path):
    kept = mnist_like(0.13066)
    kept["train_images"][0, :2, 0, 0] = (0, 255)
    keep(tmp_path, "mnist", kept)
    program = """
import sys, time
start = time.process_time()
from experiments.data import load
mnist = load("mnist")
seconds = time.process_time() - start
heavy = {"tensorflow", "tensorflow_datasets", "sklearn", "jax", "flax"} & set(sys.modules)
print(seconds, sorted(heavy), mnist.train_images.dtype, *mnist.train_images[0, :2, 0, 0])
"""
    environment = os.environ | {"HESSJAX_DATA": str(tmp_path)}
    output = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    seconds, rest = output.split(maxsplit=1)
    assert rest.strip() == "[] float32 0.0 1.0"
    # Of the processor: the time that other processes take from this one is no fault of it.
    assert float(seconds) < 2


def test_pixels_become_fractions(tmp_path):
    kept = arrays()
    keep(tmp_path, "kmnist", kept)
    loaded = data.load("kmnist", data_dir=tmp_path)
    assert loaded.name == "kmnist"
    assert loaded.num_classes == 3
    for split in ("train", "test"):
        images = getattr(loaded, f"{split}_images")
        assert images.dtype == np.float32
        np.testing.assert_allclose(images, kept[f"{split}_images"] / 255, rtol=1e-7)
        np.testing.assert_array_equal(
            getattr(loaded, f"{split}_labels"), kept[f"{split}_labels"], strict=True
        )


def test_where_prepared_sets_are_kept(tmp_path, monkeypatch):
    """The argument before the environment variable before the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    folders = [tmp_path / ".cache" / "hessjax", tmp_path / "variable", tmp_path / "argument"]
    for label, folder in enumerate(folders):
        keep(folder, "kmnist", arrays(test_labels=np.full(3, label, np.int32)))
    monkeypatch.delenv("HESSJAX_DATA", raising=False)
    assert data.load("kmnist").test_labels[0] == 0
    monkeypatch.setenv("HESSJAX_DATA", "~/variable")
    assert data.load("kmnist").test_labels[0] == 1
    assert data.load("kmnist", data_dir="~/argument").test_labels[0] == 2


def test_one_mnist_is_not_taken_for_the_other(tmp_path):
    keep(tmp_path, "fashion_mnist", mnist_like(0.13066))
    with pytest.raises(ValueError, match=r"fashion_mnist have mean 0\.13066, expected 0\.28604"):
        data.load("fashion_mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"train_mean": np.array(0.3)}, "mean 0.5.*, expected 0.30000, .* delete .*kmnist to prep"),
        ({"train_mean": np.array(np.nan)}, "expected nan"),
        ({"train_mean": None}, "has the arrays"),
        ({"extra": np.zeros(1)}, "has the arrays .*'extra'"),
        ({"train_images": np.zeros((6, 4, 4, 1), np.float32)}, "train images .*float32"),
        ({"train_images": np.zeros((6, 4, 4), np.uint8)}, "train images .*uint8"),
        ({"train_images": np.zeros((5, 4, 4, 1), np.uint8)}, "train images"),
        ({"test_images": np.zeros((3, 4, 5, 1), np.uint8)}, "test images"),
        ({"test_labels": np.zeros(3)}, "test .*float64"),
        ({"test_labels": np.zeros((3, 1), np.int32)}, "test images and labels"),
        ({"test_labels": np.array([0, 1, 3], np.int32)}, "test labels .* from 0 to 2"),
        ({"train_labels": np.array([0, 1, 2, 0, 1, -1], np.int32)}, "train labels .* from 0 to 2"),
        (
            {"test_images": np.zeros((0, 4, 4, 1), np.uint8), "test_labels": np.zeros(0, np.int32)},
            "test labels .* must be one or more",
        ),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, changed, sentence):
    keep(tmp_path, "kmnist", arrays(**changed))
    with pytest.raises(ValueError, match=sentence):
        data.load("kmnist", data_dir=tmp_path)


def test_mnist_of_another_size_is_refused(tmp_path):
    kept = mnist_like(0.13066)
    for name in ("test_images", "test_labels"):
        kept[name] = kept[name][:5000]
    keep(tmp_path, "mnist", kept)
    with pytest.raises(ValueError, match=r"test images .* expected uint8 \(10000, 28, 28, 1\)"):
        data.load("mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[:-100], lambda raw: raw[:300], lambda _: b"", lambda _: b"no archive"],
)
def test_damaged_cache_is_refused(tmp_path, damage):
    cache = keep(tmp_path, "kmnist", arrays())
    cache.write_bytes(damage(cache.read_bytes()))
    with pytest.raises(ValueError, match=r"arrays\.npz is damaged .*delete it"):
        data.load("kmnist", data_dir=tmp_path)


def test_changed_bits_are_refused(tmp_path):
    """A flipped pixel of the test set, which no mean would show."""
    kept = arrays()
    cache = keep(tmp_path, "kmnist", kept)
    raw, pixels = bytearray(cache.read_bytes()), kept["test_images"].tobytes()
    raw[raw.index(pixels)] ^= 1
    cache.write_bytes(raw)
    with pytest.raises(ValueError, match="damaged"):
        data.load("kmnist", data_dir=tmp_path)


def test_pickles_are_refused(tmp_path):
    (tmp_path / "kmnist").mkdir()
    np.savez(tmp_path / "kmnist" / "arrays.npz", train_images=np.array([{}], object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        data.load("kmnist", data_dir=tmp_path)


# Splits and batches


def numbered(size):
    """Images that hold their own number, and labels that do."""
    labels = np.arange(size, dtype=np.int32)
    return np.broadcast_to(labels[:, None, None, None], (size, 2, 3, 1)).astype(np.float32), labels


def test_validation_is_the_end_of_training():
    images, labels = numbered(10)
    dataset = data.Dataset("numbers", images, labels, images[:2] + 100, labels[:2] + 100, 200)
    split = data.validation_split(dataset, 3)
    assert (split.name, split.num_classes) == ("numbers", 200)
    np.testing.assert_array_equal(split.train_labels, range(7))
    np.testing.assert_array_equal(split.test_labels, range(7, 10))
    np.testing.assert_array_equal(split.train_images[:, 1, 2, 0], range(7))
    np.testing.assert_array_equal(split.test_images[:, 1, 2, 0], range(7, 10))


@pytest.mark.parametrize("size", [0, -1, 10])
def test_impossible_validation_is_refused(size):
    dataset = data.Dataset("numbers", *numbered(10), *numbered(2), 10)
    with pytest.raises(ValueError, match=f"cannot hold out {size} of 10 training examples"):
        data.validation_split(dataset, size)


def test_epoch_is_a_permutation_without_remainder():
    drawn = [data.batch_indices(step, 11, 3, seed=0) for step in range(3)]
    assert [batch.shape for batch in drawn] == [(3,)] * 3
    seen = set(np.concatenate(drawn))
    assert len(seen) == 9
    assert seen <= set(range(11))
    whole = np.concatenate([data.batch_indices(step, 11, 1, seed=0) for step in range(11)])
    np.testing.assert_array_equal(np.sort(whole), range(11))


def test_seed_and_epoch_decide_the_order():
    def order(seed, epoch):
        return data.batch_indices(epoch, 40, 40, seed=seed)

    np.testing.assert_array_equal(order(1, 2), order(1, 2))
    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1), np.arange(40)]
    assert len({tuple(each) for each in orders}) == 5
    # A step is the same one whichever were asked for before.
    late = data.batch_indices(7, 40, 8, seed=0)
    data.batch_indices(2, 40, 8, seed=1)
    np.testing.assert_array_equal(data.batch_indices(7, 40, 8, seed=0), late)
    np.testing.assert_array_equal(late, order(0, 1)[16:24])


@pytest.mark.parametrize("size", [0, 5])
def test_impossible_batches_are_refused(size):
    with pytest.raises(ValueError, match=f"4 examples do not fill a batch of {size}"):
        data.batch_indices(0, 4, size, seed=0)
