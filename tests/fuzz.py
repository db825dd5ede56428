"""Damage the files of a run at random and read them: ``python -m tests.fuzz SECONDS [SEED]``.

A loader may refuse a file with ValueError or OSError; anything else is a find, which is printed
with its seed. What was found stands as tests in tests/test_runs.py.
"""

import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax

from experiments import models, pgd, runs
from experiments.checkpoints import Checkpoints, checksums
from experiments.config import Config
from experiments.data import load
from experiments.files import read_arrays, read_json, write_json
from experiments.reading import read
from experiments.table import table
from experiments.train import train
from hessjax import TrainState

CONFIG = Config(method="none", model="mlp", activation="relu", epochs=1).resolved()
_VALUES: list[Any] = [None, True, -1, 0, 1e400, "x", [], {}, [[]], "\0", 10**30, {"a": None}]


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return other bytes: flipped, cut, repeated, inserted."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(data) + 1)
        end = min(len(data), place + chance.choice([1, 1, 2, 8, 100]))
        how = chance.randrange(5)
        if how == 0 and data:
            data[place % len(data)] ^= 1 << chance.randrange(8)
        elif how == 1:
            del data[place:end]
        elif how == 2:
            data[place:place] = data[place:end]
        elif how == 3:
            data[place:end] = chance.randbytes(end - place)
        else:
            data = data[:place]
    return bytes(data)


def restructured(content: bytes, chance: random.Random) -> bytes:
    """Return JSON in which a value somewhere is another one, or missing."""
    found = json.loads(content)
    place: Any = found
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return content
        key = chance.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and chance.random() < 0.8:
            place = place[key]
            continue
        if chance.random() < 0.3:
            del place[key]
        else:
            place[key] = chance.choice(_VALUES)
        return json.dumps(found).encode()


def _checkpoint(path: Path) -> None:
    folder = path / runs.CHECKPOINTS
    # The hand that changed it mended its checksums.
    for step in folder.iterdir():
        write_json(step / "checksums.json", checksums(step))
    model = models.create(**runs.architecture(CONFIG, load("digits")), seed=0)
    params = models.functional(model)[1]
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, 21))
    optimizer = optax.apply_if_finite(optimizer, max_consecutive_errors=5)
    Checkpoints(folder).latest(TrainState.create(params, optimizer, jax.random.key(0)))


def _loaders(path: Path) -> dict[str, tuple[Path, Callable[[], Any]]]:
    step = next((path / runs.CHECKPOINTS).iterdir())
    inside = {
        f"checkpoint {file.relative_to(step)}": (file, lambda: _checkpoint(path))
        for file in step.rglob("*")
        if file.is_file() and file.name != "checksums.json"
    }
    comparison = path.parent / "comparison"
    return {
        "weights": (path / "weights.npz", lambda: read_arrays(path / "weights.npz")),
        "weights of a run": (path / "weights.npz", lambda: runs.load(path)),
        "configuration": (path / "config.json", lambda: runs.load(path)),
        "training": (path / "training.json", lambda: runs.load(path)),
        "evaluation": (path / "evaluation.json", lambda: read_json(path / "evaluation.json")),
        "comparison": (comparison / "comparison.json", lambda: table(read(comparison))),
        **inside,
    }


def fuzz(folder: Path, seconds: float, seed: int) -> int:
    """Read damaged files for some seconds, and return how many finds there were."""
    folder.mkdir()
    path, finds, tried = folder / "run", 0, 0
    train(CONFIG, load("digits"), path)
    radii, attack = {"l2": [0.5], "linf": []}, pgd.settings(num_steps=1)
    pgd.evaluate(runs.load(path), load("digits"), radii, attack)
    source = Path(__file__).parents[1] / "experiments" / "results" / "mnist" / "comparison.json"
    (folder / "comparison").mkdir()
    shutil.copy(source, folder / "comparison")
    pristine = folder.with_name(folder.name + "-pristine")
    shutil.copytree(folder, pristine)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        chance = random.Random(seed + tried)
        tried += 1
        name, (file, loader) = chance.choice(sorted(_loaders(path).items()))
        content = file.read_bytes()
        try:
            change = restructured if file.suffix == ".json" and chance.random() < 0.5 else damaged
            file.write_bytes(change(content, chance))
            loader()
        except (ValueError, OSError):
            pass
        except BaseException:  # noqa: BLE001 - whatever it is, it is a find
            finds += 1
            print(f"seed {seed + tried - 1}, {name}:\n{traceback.format_exc(limit=-4)}", flush=True)
        finally:
            shutil.rmtree(folder)
            shutil.copytree(pristine, folder)
    print(f"{tried} files read, {finds} finds")
    return finds


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        arguments = [int(word) for word in sys.argv[1:]]
        sys.exit(min(fuzz(Path(place, "files"), *[*arguments, 0][:2]), 1))
