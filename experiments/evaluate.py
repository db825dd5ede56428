"""Evaluate a trained network: accuracy clean and under attack, gradient and curvature."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import tyro
from tqdm import tqdm

from experiments import runs
from experiments.config import ORDERS, recipe
from experiments.data import Dataset
from experiments.files import write_arrays, write_json
from experiments.landscape import landscape
from experiments.robustness import LOSSES, withstood
from experiments.train import load_for
from hessjax import LpBall


def main(
    run: tyro.conf.Positional[Path],
    *,
    l2: tuple[float, ...] | None = None,
    linf: tuple[float, ...] | None = None,
    num_steps: int = 40,
    num_restarts: int = 1,
    data_dir: Path | None = None,
) -> None:
    """Attack a trained network on the whole test set and write evaluation.json into its folder.

    PGD with cross-entropy, then with the DLR loss on what withstood it. Also writes what
    experiments.report draws, landscape.npz. For example:

        python -m experiments.evaluate runs/first --l2 0.5 1.0 --linf 0.1

    Args:
        run: the folder that experiments.train wrote.
        l2: radii of the ℓ₂ balls, pixels in [0, 1]; the data set's if not given.
        linf: radii of the ℓ∞ balls, likewise.
        num_steps: steps of each attack.
        num_restarts: random starts of each attack.
        data_dir: folder of prepared data sets, $HESSJAX_DATA or ~/.cache/hessjax if not given.
    """
    try:
        loaded = runs.load(run)
        radii = chosen_radii(loaded.config.data, l2=l2, linf=linf)
        dataset = load_for(loaded.config, data_dir)
        attack = attack_settings(num_steps=num_steps, num_restarts=num_restarts)
        result = evaluate(loaded, dataset, radii, attack)
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"clean accuracy on {result['num_test']} test images: {100 * result['clean']:.2f} %")
    for norm, accuracies in result["robust"].items():
        for radius, accuracy in accuracies.items():
            print(f"under attack, {norm} radius {radius}: {100 * accuracy:.2f} %")
    print(f"written: {run / 'evaluation.json'}")


def chosen_radii(data: str, **given: Sequence[float] | None) -> dict[str, tuple[float, ...]]:
    """Return the radii by norm in growing order, the data set's where none are given.

    Raises:
        ValueError: if a radius is not positive, or there is none.
    """
    defaults = recipe(data).radii
    radii = {}
    for norm, order in ORDERS.items():
        values = defaults[norm] if (values := given.get(norm)) is None else values
        for value in values:
            LpBall(value, order)  # refuses what is no radius
        radii[norm] = tuple(sorted(set(values)))
    if not any(radii.values()):
        raise ValueError("name a radius of one norm at least, or none to get the data set's")
    return radii


def attack_settings(*, num_steps: int = 40, num_restarts: int = 1) -> dict[str, Any]:
    """Return what stands for the attack in ``evaluation.json``.

    Raises:
        ValueError: if a count is less than 1.
    """
    for name, count in (("num_steps", num_steps), ("num_restarts", num_restarts)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    return {
        "name": "PGD", "num_steps": num_steps, "num_restarts": num_restarts, "losses": list(LOSSES)
    }  # fmt: skip


def evaluate(
    run: runs.Run, dataset: Dataset, radii: Mapping[str, Sequence[float]], attack: dict[str, Any]
) -> dict[str, Any]:
    """Attack a network on the whole test set and write ``evaluation.json`` and ``landscape.npz``.

    Args:
        run: the network.
        dataset: its data; the test set is attacked.
        radii: of the balls by norm, ``l2`` and ``linf``, in input units.
        attack: from `attack_settings`.

    Returns:
        What ``evaluation.json`` holds: ``num_test``; ``clean``, the accuracy; ``robust``, by norm
        and radius; ``gradient_norm_mean`` and ``hessian_norm_mean`` over the test examples (the
        latter by ten Lanczos products, from below); ``radii``, ``attack``, ``seconds``, and where
        they were measured.
    """
    begun = time.perf_counter()
    images, labels = dataset.test_images, dataset.test_labels
    key = jax.random.key(run.config.seed)
    radii = {norm: list(values) for norm, values in radii.items()}
    clean, robust = 0.0, {}
    with tqdm(
        total=sum(1 + len(values) for values in radii.values()),
        desc=f"attacks on {run.config.data} {run.config.name} seed {run.config.seed}",
        unit=" radii", disable=None, leave=False, dynamic_ncols=True,
    ) as bar:  # fmt: skip
        for norm, values in radii.items():
            robust[norm] = {}
            for radius, right in withstood(
                run.apply, run.params, images, labels, order=ORDERS[norm], radii=values, key=key,
                num_steps=attack["num_steps"], num_restarts=attack["num_restarts"],
            ):  # fmt: skip
                accuracy = float(right.mean())
                if radius:
                    robust[norm][f"{radius:g}"] = accuracy
                else:
                    clean = accuracy
                bar.update()
                bar.set_postfix_str(f"{norm} {radius:g}: {100 * accuracy:.1f} %")
    norm = "l2" if radii["l2"] else "linf"
    middle = radii[norm][len(radii[norm]) // 2]
    looks = landscape(
        run.apply, run.params, images, labels, key=key, ball=LpBall(middle, ORDERS[norm]),
        radius=1.5 * max(radii["l2"], default=1.0), num_steps=attack["num_steps"],
    )  # fmt: skip
    write_arrays(run.path / "landscape.npz", looks)
    result = {
        "num_test": len(labels),
        "clean": clean,
        "robust": robust,
        "gradient_norm_mean": float(looks["gradient_norm"].mean()),
        "hessian_norm_mean": float(looks["curvature"].mean()),
        "radii": radii,
        "attack": attack,
        "seconds": time.perf_counter() - begun,
        **runs.provenance(),
    }
    write_json(run.path / "evaluation.json", result)
    return result


if __name__ == "__main__":
    tyro.cli(main)
