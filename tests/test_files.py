"""Files that are whole or not there."""

import errno
import multiprocessing

import numpy as np
import pytest

from experiments.files import (
    read_arrays,
    read_json,
    replacing,
    write_arrays,
    write_json,
    write_text,
)


def test_json_and_arrays_come_back(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"ε": [1, None]})
    assert read_json(tmp_path / "new" / "a.json") == {"ε": [1, None]}
    write_arrays(tmp_path / "a.npz", {"dense/0/kernel": np.eye(2), "n": 3})
    arrays = read_arrays(tmp_path / "a.npz")
    assert sorted(arrays) == ["dense/0/kernel", "n"]
    np.testing.assert_array_equal(arrays["dense/0/kernel"], np.eye(2))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with replacing(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_processes_that_write_one_file_at_once_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as partial:
        partial.write_text("ours")
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(write_text, (path, "theirs"))
        assert path.read_text() == "theirs"
    assert path.read_text() == "ours"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_names_the_file(tmp_path):
    said = r"a\.npz could not be written: No space left on device"
    with pytest.raises(OSError, match=said), replacing(tmp_path / "a.npz"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_nothing_that_json_lacks_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_a_file_that_holds_no_dictionary_is_told(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json holds no JSON dictionary"):
        read_json(tmp_path / "a.json")


def test_a_damaged_archive_is_told(tmp_path):
    path = tmp_path / "a.npz"
    write_arrays(path, {"a": np.arange(1000)})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"a\.npz is damaged"):
        read_arrays(path)
