"""Files of a comparison, with numbers made by hand."""

import json

import numpy as np

from experiments.reading import read
from experiments.table import table


def run(method, seed, **changed):
    """Return one run; accuracies in steps of a point per seed."""
    clean = 0.9 + 0.01 * seed
    return {
        "method": method,
        "seed": seed,
        "strength": None,
        "step": None,
        "path": f"{method}-{seed}",
        "clean": clean,
        "robust": {"l2": {"0.5": clean - 0.1, "1.0": clean - 0.3}, "linf": {"0.1": clean - 0.5}},
        "train_seconds": 10.0,
        "seconds_per_step": 0.01,
        "gradient_norm_mean": 0.25,
        "hessian_norm_mean": 12.0,
    } | changed


def comparison(runs=None):
    plain = [run("none", seed) for seed in range(3)]
    hessian = [
        run(
            "hessian",
            seed,
            strength=1.5,
            seconds_per_step=0.04 + 0.01 * seed,
            gradient_norm_mean=0.1 + 0.1 * seed,
            hessian_norm_mean=1.0,
        )
        for seed in range(2)
    ]
    return {
        "command": "python -m experiments.compare --data digits",
        "commit": "0123abc",
        "versions": {"jax": "0.10.2", "flax": "0.12.8"},
        "device": "one processor",
        "data": "digits",
        "num_test": 1234,
        "norms": {"l2": [0.5, 1.0], "linf": [0.1]},
        "attack": {"name": "PGD", "num_steps": 40, "losses": ["cross-entropy", "dlr"]},
        "runs": plain + hessian if runs is None else runs,
    }


def landscape(seed=0, **changed):
    random = np.random.default_rng(seed)
    clean = random.uniform(size=(3, 4, 4, 1))
    return {
        "curvature": random.uniform(0.1, 10, size=20),
        "gradient_norm": random.uniform(0.1, 1, size=20),
        "shown": np.array([0, 4, 9]),
        "shown_label": np.array([7, 3, 1]),
        "shown_clean": clean,
        "clean_prediction": np.array([7, 3, 1]),
        "attacked": np.clip(clean + 0.1, 0, 1),
        "attacked_prediction": np.array([7, 8, 1]),
        "attack_epsilon": np.array(1.5),
        "attack_order": np.array(2.0),
        "attack_steps": np.array(40),
        "surface_offsets": np.linspace(-1, 1, 5),
        "surface_loss": random.uniform(0, 3, size=(3, 5, 5)),
        "surface_cosine": np.array([0.5, 0.6, 0.7]),
        "boundary_margin": random.uniform(-1, 1, size=(3, 5, 5)),
    } | changed


def store(directory, content, landscapes):
    (directory / "comparison.json").write_text(json.dumps(content))
    for path, arrays in landscapes.items():
        (directory / path).mkdir()
        np.savez(directory / path / "landscape.npz", **arrays)
    return directory


def columns(markdown):
    """Return the cells of a table's lines, without what aligns them."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]


def cells(directory):
    return columns(table(read(directory)))


def numbered_runs(runs):
    """Return runs with accuracies keyed by numbers, as `read` leaves them."""
    return [
        one
        | {
            "robust": {
                norm: {float(radius): accuracy for radius, accuracy in known.items()}
                for norm, known in one["robust"].items()
            }
        }
        for one in runs
    ]


def without(content, key):
    return {name: value for name, value in content.items() if name != key}
