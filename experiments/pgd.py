"""PGD on a trained network, at each radius, and the loss around its test images."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments import provenance, runs
from experiments.config import ORDERS
from experiments.data import Dataset
from experiments.files import kept, number_key, write_arrays, write_json
from experiments.landscape import landscape
from experiments.processes import leads, led, progress_bar
from experiments.robustness import LOSSES, losses_for, withstood
from hessjax import LpBall

_NAME = "evaluation.json"


def settings(*, num_steps: int = 40, num_restarts: int = 1) -> dict[str, Any]:
    """Return the description of the attack in ``evaluation.json``, on three classes or more.

    Raises:
        ValueError: if a count is less than 1.
    """
    for name, count in (("num_steps", num_steps), ("num_restarts", num_restarts)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    return {
        "name": "PGD",
        "num_steps": num_steps,
        "num_restarts": num_restarts,
        "losses": list(LOSSES),
        # Before this was recorded, the smallest came first.
        "radii": "from the largest",
    }


def fitted(attack: dict[str, Any], dataset: Dataset) -> dict[str, Any]:
    """Return the description of an attack with the losses that suit the number of classes."""
    return {**attack, "losses": list(losses_for(dataset.num_classes))}


def evaluate(
    run: runs.Run,
    dataset: Dataset,
    radii: Mapping[str, Sequence[float]],
    attack: dict[str, Any],
    *,
    keep: bool = False,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Attack a network on the whole test set and write ``evaluation.json`` and ``landscape.npz``.

    What an earlier call with the same attack wrote for the same radii of a norm is not done again,
    and results for a norm that is not asked for stay. Those for other radii of a norm are replaced,
    with a message, because what an attack at one radius finds counts at the others, too.

    Args:
        run: the network.
        dataset: its data; the test set is attacked.
        radii: of the balls by norm, ``l2`` and ``linf``, in input units.
        attack: from `settings`; of its losses, those that suit the number of classes.
        keep: add these radii to those of an earlier call, and leave its landscape as it is,
            whatever ball it shows, because all runs of a comparison have to show the same one.
        mesh: devices that share each batch, the default one if not given; they change results by
            rounding only.

    Returns:
        What ``evaluation.json`` holds: ``num_test``; ``clean``, the accuracy; ``robust``, by norm
        and radius; ``gradient_norm_mean`` and ``hessian_norm_mean`` over the test examples (the
        latter by ten Lanczos products, from below); ``radii``, ``attack``, the ``shown`` ball of
        the landscape, ``seconds``, and where all this was measured.
    """
    file, attack = run.path / _NAME, fitted(attack, dataset)
    earlier = led(kept)(file, {"attack": attack})
    here = provenance.extended(earlier)
    empty = {"num_test": len(dataset.test_labels), "robust": {}, "radii": {}, "seconds": 0.0}
    result: dict[str, Any] = {**empty, **here, **earlier, "attack": attack}
    there = result["radii"] if keep else {}
    wanted = {n: sorted({*values, *there.get(n, ())}) for n, values in radii.items() if values}

    def write(begun: float) -> None:
        result.update({"seconds": result["seconds"] + time.perf_counter() - begun, **here})
        led(write_json)(file, result)

    for norm, values in wanted.items():
        if (before := result["radii"].get(norm, [])) != values:
            if (lost := sorted(set(before) - set(values))) and leads():
                named = ", ".join(map(number_key, lost))
                print(f"{file}: replacing results at {norm} {named}", file=sys.stderr)
            begun = time.perf_counter()
            result["clean"], result["robust"][norm] = _accuracies(
                run, dataset, norm, values, attack, mesh=mesh
            )
            result["radii"][norm] = values
            write(begun)
    # From this call, not from earlier ones: the runs of a comparison show the same ball.
    norm, values = next((norm, wanted[norm]) for norm in ORDERS if norm in wanted)
    shown = {
        "norm": norm,
        "epsilon": values[len(values) // 2],
        "plane": 1.5 * max(wanted.get("l2", [1.0])),
        "boundary": True,  # older landscapes have none
    }
    if keep:
        shown = result.get("shown", shown)
    if result.get("shown") != shown or not led((run.path / "landscape.npz").is_file)():
        begun = time.perf_counter()
        result |= {"shown": shown, **_look(run, dataset, shown, attack["num_steps"], mesh=mesh)}
        write(begun)
    return result


def _accuracies(
    run: runs.Run,
    dataset: Dataset,
    norm: str,
    radii: Sequence[float],
    attack: dict[str, Any],
    *,
    mesh: Mesh | None,
) -> tuple[float, dict[str, float]]:
    """Return the clean accuracy, and the accuracies under attack by radius."""
    accuracies: dict[float, float] = {}
    with progress_bar(
        total=1 + len(radii),
        desc=f"{norm} attacks on {run.config.data} {run.config.name} seed {run.config.seed}",
        unit=" radii",
    ) as bar:
        for radius, right in withstood(
            run.apply, run.params, dataset.test_images, dataset.test_labels,
            order=ORDERS[norm], radii=radii, key=jax.random.key(run.config.seed),
            num_steps=attack["num_steps"], num_restarts=attack["num_restarts"],
            losses=[LOSSES[name] for name in attack["losses"]], mesh=mesh,
        ):  # fmt: skip
            accuracies[float(radius)] = float(right.mean())
            bar.update()
            bar.set_postfix_str(f"radius {radius:g}: {100 * right.mean():.1f} %")
    return accuracies.pop(0.0), {number_key(r): a for r, a in sorted(accuracies.items())}


def _look(
    run: runs.Run, dataset: Dataset, shown: Mapping[str, Any], num_steps: int, *, mesh: Mesh | None
) -> dict[str, float]:
    """Write ``landscape.npz``, and return the means of its norms over the test set.

    Raises:
        ValueError: if they are not finite.
    """
    looks = landscape(
        run.apply, run.params, dataset.test_images, dataset.test_labels,
        key=jax.random.key(run.config.seed),
        ball=LpBall(shown["epsilon"], ORDERS[shown["norm"]]),
        radius=shown["plane"], num_steps=num_steps, mesh=mesh,
    )  # fmt: skip
    for name in ("gradient_norm", "curvature"):
        if not np.all(np.isfinite(looks[name])):
            raise ValueError(f"the {name} of {run.path} is not finite: did it diverge?")
    led(write_arrays)(run.path / "landscape.npz", looks)
    return {
        "gradient_norm_mean": float(looks["gradient_norm"].mean()),
        "hessian_norm_mean": float(looks["curvature"].mean()),
    }


def report(result: Mapping[str, Any], kind: str) -> str:
    """Return a few lines on what was found on images of this kind."""
    lines = [f"clean accuracy on {result['num_test']} {kind} images: {100 * result['clean']:.2f} %"]
    lines += [
        f"under PGD, {norm} radius {radius}: {100 * accuracy:.2f} %"
        for norm, accuracies in result["robust"].items()
        for radius, accuracy in accuracies.items()
    ]
    return "\n".join(lines)
