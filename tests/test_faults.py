"""A run that is killed again and again ends like one that was not."""

import multiprocessing
import random
import time

import numpy as np

from experiments import runs
from experiments.files import read_json
from tests import killed

KILLS = 30


def newest(path):
    """Return the step of the newest checkpoint that is whole."""
    return max((int(p.parent.name) for p in path.glob("checkpoints/*/checksums.json")), default=0)


def test_a_run_that_is_killed_thirty_times_ends_like_an_undisturbed_one(tmp_path):
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.killed"])
    moments = random.Random(0)

    def begin(name):
        life = server.Process(target=killed.run, args=(tmp_path / name, tmp_path / "cache"))
        life.start()
        return life

    whole = begin("whole")
    whole.join()
    assert whole.exitcode == 0

    path, lost = tmp_path / "killed", []
    for _ in range(KILLS):
        before, life = newest(path), begin("killed")
        # From the first moment on; later ones fall on a step, or in the middle of a checkpoint.
        wanted = before + killed.EVERY * moments.choice([0, 1, 1, 2, 3])
        while newest(path) < wanted and life.is_alive():
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.03 if wanted > before else 0.5))
        assert life.is_alive(), "the run ended before it was killed often enough"
        life.kill()
        life.join()
        lost.append(newest(path) - before)
    assert max(lost) > 0
    last = begin("killed")
    last.join()
    assert last.exitcode == 0

    assert read_json(path / "training.json")["completed"]
    there, here = (tmp_path / "whole", path)
    assert (here / "metrics.jsonl").read_bytes() == (there / "metrics.jsonl").read_bytes()
    weights = runs.load(there).params
    for name, value in runs.load(here).params.items():
        np.testing.assert_array_equal(value, weights[name])
