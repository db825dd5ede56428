"""Checkpoints: what was saved comes back, and what was damaged since is not read."""

import errno
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import checkpoints
from experiments.checkpoints import Checkpoints, Snapshot
from hessjax import TrainState

OPTIMIZER = optax.adam(1e-3)
PARAMS = {
    "kernel": jnp.asarray(np.random.default_rng(0).normal(size=(20, 30)), jnp.float32),
    "bias": jnp.arange(3, dtype=jnp.bfloat16) / 3,
}


def state_at(step, params=PARAMS):
    state = TrainState.create(params, OPTIMIZER, jax.random.key(7))
    return state._replace(
        step=jnp.asarray(step, jnp.int32), params=jax.tree.map(lambda a: a * step, state.params)
    )


def saved(folder, *accuracies):
    """Save a checkpoint of each accuracy, of steps 10, 20, ..."""
    store = Checkpoints(folder)
    for number, accuracy in enumerate(accuracies, start=1):
        snapshot = Snapshot(state_at(10 * number), {"seconds": 0.1 * number})
        store.save(snapshot, accuracy=accuracy)
    return store


def steps(folder):
    """Return the steps of the checkpoints; what is half written goes with the next one."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def test_a_snapshot_comes_back_bit_for_bit(tmp_path):
    progress = {"seconds": 1 / 3, "log": {"waiting": [{"loss": float(np.float32(0.1))}]}}
    before = state_at(3)
    Checkpoints(tmp_path).save(Snapshot(before, progress), accuracy=0.5)
    found = Checkpoints(tmp_path).latest(state_at(0))
    assert found is not None
    assert found.progress == progress
    assert jax.tree.structure(found.state) == jax.tree.structure(before)
    after = found.state._replace(key=jax.random.key_data(found.state.key))
    wanted = before._replace(key=jax.random.key_data(before.key))
    for there, here in zip(jax.tree.leaves(after), jax.tree.leaves(wanted), strict=True):
        assert there.dtype == here.dtype
        np.testing.assert_array_equal(np.asarray(there), np.asarray(here))
    drawn = [jax.random.normal(state.key) for state in (before, found.state)]
    assert drawn[0] == drawn[1]


def test_the_last_three_and_the_best_are_kept(tmp_path):
    saved(tmp_path, 0.1, 0.9, 0.3, 0.4, 0.5)
    assert steps(tmp_path) == [20, 30, 40, 50]
    # The best one is known to the next process, too.
    Checkpoints(tmp_path).save(Snapshot(state_at(60), {}), accuracy=0.2)
    assert steps(tmp_path) == [20, 40, 50, 60]


def test_a_step_that_is_there_is_not_written_again(tmp_path):
    saved(tmp_path, 0.5).save(Snapshot(state_at(10), {"seconds": 9}), accuracy=0.5)
    found = Checkpoints(tmp_path).latest(state_at(0))
    assert found is not None
    assert found.progress == {"seconds": 0.1}


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda path: path.stat().st_size)


def truncate(folder):
    path = largest(folder)
    path.write_bytes(path.read_bytes()[:-1])
    return path.name


def flip(folder):
    path = largest(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path.name


def lose(folder):
    path = largest(folder)
    path.unlink()
    return f"{path.name} is missing"


def lose_sums(folder):
    (folder / "checksums.json").unlink()
    return "checksums.json is missing"


def break_sums(folder):
    (folder / "checksums.json").write_text('{"a": ')
    return "holds no JSON dictionary"


def add(folder):
    (folder / "state" / "more").write_text("")
    return "state/more has another checksum"


def cut_metrics(folder):
    path = folder / "metrics" / "metrics"
    path.write_bytes(path.read_bytes()[:-1])
    return "metrics/metrics has another checksum"


@pytest.mark.parametrize("damage", [truncate, flip, lose, lose_sums, break_sums, add, cut_metrics])
@pytest.mark.parametrize(("which", "newest"), [(30, 20), (10, 30)])
def test_a_damaged_one_is_named_and_the_newest_other_used(tmp_path, capsys, damage, which, newest):
    saved(tmp_path, 0.1, 0.2, 0.3)
    fault = damage(tmp_path / str(which))
    found = Checkpoints(tmp_path).latest(state_at(0))
    assert found is not None
    assert int(found.state.step) == newest
    told = capsys.readouterr().err
    assert f"the checkpoint {tmp_path / str(which)} was damaged" in told
    assert fault in told
    assert steps(tmp_path) == sorted({10, 20, 30} - {which})
    # If it was the newest, the training comes by the same step again.
    Checkpoints(tmp_path).save(Snapshot(state_at(30), {}), accuracy=0.3)
    assert steps(tmp_path) == sorted({10, 20, 30} - {which} | {30})


def test_one_that_cannot_be_read_is_not_taken_for_damaged(tmp_path, monkeypatch):
    saved(tmp_path, 0.1, 0.2)

    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "checksums", fail)
        with pytest.raises(OSError, match="Input/output error"):
            Checkpoints(tmp_path)
    assert steps(tmp_path) == [10, 20]


def test_what_is_no_checkpoint_stays(tmp_path):
    saved(tmp_path, 0.1)
    (tmp_path / "7").write_text("")
    found = Checkpoints(tmp_path).latest(state_at(0))
    assert found is not None
    assert int(found.state.step) == 10
    assert (tmp_path / "7").is_file()


def test_if_all_are_damaged_there_is_none(tmp_path, capsys):
    saved(tmp_path, 0.1, 0.2)
    for name in ("10", "20"):
        flip(tmp_path / name)
    assert Checkpoints(tmp_path).latest(state_at(0)) is None
    assert capsys.readouterr().err.count("was damaged") == 2


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    saved(tmp_path, 0.1)
    shutil.copytree(tmp_path / "10", tmp_path / "20.orbax-checkpoint-tmp")
    store = Checkpoints(tmp_path)
    found = store.latest(state_at(0))
    assert found is not None
    assert int(found.state.step) == 10
    store.save(Snapshot(state_at(20), {}), accuracy=0.3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "20"]


def test_arrays_of_another_training_are_refused(tmp_path):
    saved(tmp_path, 0.1)
    for other in ({**PARAMS, "kernel": jnp.zeros((20, 31), jnp.float32)}, {"kernel": jnp.zeros(2)}):
        with pytest.raises(ValueError, match="10 does not fit this training: "):
            Checkpoints(tmp_path).latest(state_at(0, other))


def test_a_checkpoint_that_cannot_be_written_leaves_the_others(tmp_path):
    """As on a full disk."""
    store = saved(tmp_path, 0.1, 0.2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match=r"30 could not be written: .*File too large"):
            store.save(Snapshot(state_at(30), {}), accuracy=0.3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert steps(tmp_path) == [10, 20]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "20"]
    found = Checkpoints(tmp_path).latest(state_at(0))
    assert found is not None
    assert int(found.state.step) == 20
    store.save(Snapshot(state_at(30), {}), accuracy=0.3)
    assert steps(tmp_path) == [10, 20, 30]


def test_one_whose_checksums_cannot_be_written_goes(tmp_path, monkeypatch):
    store = saved(tmp_path, 0.1)

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints, "write_json", fail)
    with pytest.raises(OSError, match="20 could not be written: No space left on device"):
        store.save(Snapshot(state_at(20), {}), accuracy=0.3)
    assert steps(tmp_path) == [10]


def test_a_disk_too_full_for_one_is_told_before_anything_is_written(tmp_path, monkeypatch):
    store, size = saved(tmp_path, 0.1), 4 * 3 * 20 * 30
    left = shutil.disk_usage(tmp_path)._replace(free=size)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: left)
    said = r"20 could not be written: it needs 0\.0 MB, but the disk has only 0\.0 MB left"
    with pytest.raises(OSError, match=said):
        store.save(Snapshot(state_at(20), {}), accuracy=0.3)
    assert steps(tmp_path) == [10]


def test_the_cause_comes_without_the_details_of_tensorstore(tmp_path, monkeypatch):
    store = saved(tmp_path, 0.1)

    def fail(*_, **__):
        raise ValueError(
            'RESOURCE_EXHAUSTED: Error writing "a/b": Failed to write 100 bytes: No space left on '
            "device [os_error_code='28'] [tensorstore_spec='{\"context\": {}}']"
        )

    monkeypatch.setattr(store._manager, "save", fail)
    with pytest.raises(OSError, match=r"20 could not be written: No space left on device$"):
        store.save(Snapshot(state_at(20), {}), accuracy=0.3)
