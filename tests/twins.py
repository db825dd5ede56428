"""Networks that are told apart by little."""

import shutil
from pathlib import Path

from experiments.files import read_arrays, read_json, write_arrays, write_json


def twin(run: Path, path: Path, *, scale: float = 1.0, precision: str = "float32") -> Path:
    """Copy a run, its weights times a number, and return the folder of the copy."""
    shutil.copytree(run, path)
    weights = read_arrays(path / "weights.npz")
    write_arrays(path / "weights.npz", {name: scale * value for name, value in weights.items()})
    told = read_json(path / "config.json")
    for part in ("config", "network"):
        told[part]["precision"] = precision
    write_json(path / "config.json", told)
    return path
