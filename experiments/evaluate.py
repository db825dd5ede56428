"""Evaluate a trained network: accuracy clean and under attack, gradient and curvature."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from jax.sharding import Mesh

from experiments import auto, devices, provenance, runs
from experiments.config import ORDERS, Norm, kind_of_images, recipe
from experiments.data import Dataset, load_for
from experiments.files import kept, number_key, write_arrays, write_json
from experiments.interruption import ending
from experiments.landscape import landscape
from experiments.processes import leads, led, progress_bar, start
from experiments.robustness import LOSSES, withstood
from hessjax import LpBall

_NAME = "evaluation.json"


@ending()
def main(
    run: tyro.conf.Positional[Path],
    *,
    attack: Literal["pgd", "auto"] = "pgd",
    norm: Norm | None = None,
    epsilon: tuple[float, ...] | None = None,
    num_steps: int | None = None,
    num_restarts: int | None = None,
    version: Literal["standard", "plus"] | None = None,
    num_examples: int | None = None,
    batch_size: int | None = None,
    num_devices: int | None = None,
    distributed: bool = False,
    data_dir: Path | None = None,
) -> None:
    """Attack a trained network on the test set and write what it withstood into its folder.

    By PGD with cross-entropy, then with the DLR loss on what withstood it: evaluation.json, and
    landscape.npz, what experiments.report draws. By AutoAttack, the strongest there is, with a
    verdict whether the result can be trusted: auto_attack.json and .npz. Both go on where an
    interrupted call stopped. Radii add to those that are there; results of other settings (steps,
    restarts, version, number of examples) are replaced. For example:

        python -m experiments.evaluate runs/first --norm l2 --epsilon 0.5 1.0
        python -m experiments.evaluate runs/first --attack auto --norm l2 --epsilon 1.5

    Args:
        run: the folder that experiments.train wrote.
        attack: pgd or auto.
        norm: l2 or linf; both if not given.
        epsilon: radii of the balls, pixels in [0, 1]; the data set's if not given.
        num_steps: steps of each PGD attack; 40 if not given.
        num_restarts: random starts of each PGD attack; 1 if not given.
        version: of AutoAttack: standard, or plus with restarts; standard if not given.
        num_examples: for AutoAttack: attack only so many, the first of the test set.
        batch_size: for AutoAttack: examples at a time, which changes no result.
        num_devices: devices that share each batch; all if not given, but one of a CPU's.
        distributed: join the processes that Slurm, Open MPI, Kubernetes, a TPU pod or the
            environment tells of, each given this same command; see experiments/README.md.
        data_dir: folder of prepared data sets, $HESSJAX_DATA or ~/.cache/hessjax if not given.
    """
    others = _given(version=version, num_examples=num_examples, batch_size=batch_size)
    if attack == "auto":
        others = _given(num_steps=num_steps, num_restarts=num_restarts)
    for name in others:
        raise ValueError(f"{name} is not of the attack {attack}: leave it out")
    if distributed:
        start()
    data = led(lambda: runs.read_config(run).data)()
    radii = _radii(data, norm, epsilon)
    mesh = devices.mesh(num_devices)
    with runs.locked(run):
        # Not before: another process may train it further.
        loaded = runs.load(run)
        dataset = load_for(loaded.config, data_dir)
        if attack == "auto":
            told = auto.settings(version or "standard", num_examples, loaded.config.seed)
            for name, values in radii.items():
                if values:
                    found = auto.evaluate(
                        loaded,
                        dataset,
                        norm=name,
                        radii=values,
                        attack=told,
                        batch_size=batch_size,
                        mesh=mesh,
                    )
                    print(auto.report(found, name, values))
            print(f"written: {run / 'auto_attack.json'}")
        else:
            told = attack_settings(**_given(num_steps=num_steps, num_restarts=num_restarts))
            kind = kind_of_images(loaded.config.validation)
            found = evaluate(loaded, dataset, radii, told, keep=True, mesh=mesh)
            print(_report(found, kind))
            print(f"written: {run / _NAME}")


def _radii(
    data: str, norm: Norm | None, epsilon: Sequence[float] | None
) -> dict[str, tuple[float, ...]]:
    """Return what `chosen_radii` does for one norm alone, or for both where none is named."""
    if norm is not None:
        others = {other: () for other in ORDERS if other != norm}
        return chosen_radii(data, **others, **({} if epsilon is None else {norm: epsilon}))
    if epsilon is not None:
        raise ValueError("epsilon needs a norm: give --norm l2 or --norm linf, too")
    return chosen_radii(data)


def _given(**options: object) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _report(result: Mapping[str, Any], kind: str) -> str:
    lines = [f"clean accuracy on {result['num_test']} {kind} images: {100 * result['clean']:.2f} %"]
    lines += [
        f"under PGD, {norm} radius {radius}: {100 * accuracy:.2f} %"
        for norm, accuracies in result["robust"].items()
        for radius, accuracy in accuracies.items()
    ]
    return "\n".join(lines)


def chosen_radii(data: str, **given: Sequence[float] | None) -> dict[str, tuple[float, ...]]:
    """Return the radii by norm in growing order, the data set's where none are given.

    Raises:
        ValueError: if a radius is not positive, or there is none.
    """
    defaults = recipe(data).radii
    radii = {}
    for norm in ORDERS:
        values = defaults[norm] if (values := given.get(norm)) is None else values
        for value in values:
            if not 0 < value < math.inf:
                raise ValueError(
                    f"a radius of {norm} must be a finite positive number, got {value}"
                )
        radii[norm] = tuple(sorted(set(values)))
    if not any(radii.values()):
        raise ValueError(
            "there is no radius to attack with: give l2 or linf one, or leave both out for those "
            "of the data set"
        )
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
        "name": "PGD",
        "num_steps": num_steps,
        "num_restarts": num_restarts,
        "losses": list(LOSSES),
        # Before this was told, the smallest came first.
        "radii": "from the largest",
    }


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
    and results for a norm that is not asked for stay. Those for other radii are replaced, which is
    told: what an attack at one radius finds counts at the others, too.

    Args:
        run: the network.
        dataset: its data; the test set is attacked.
        radii: of the balls by norm, ``l2`` and ``linf``, in input units.
        attack: from `attack_settings`.
        keep: add these radii to those of an earlier call, and leave its landscape as it is,
            whatever ball it shows: that of a comparison, whose runs all show the same.
        mesh: devices that share each batch, the default one if not given; they change no result
            beyond rounding.

    Returns:
        What ``evaluation.json`` holds: ``num_test``; ``clean``, the accuracy; ``robust``, by norm
        and radius; ``gradient_norm_mean`` and ``hessian_norm_mean`` over the test examples (the
        latter by ten Lanczos products, from below); ``radii``, ``attack``, the ``shown`` ball of
        the landscape, ``seconds``, and where they were measured.
    """
    earlier = led(kept)(run.path / _NAME, {"attack": attack})
    here = provenance.extended(earlier)
    start = {"num_test": len(dataset.test_labels), "robust": {}, "radii": {}, "seconds": 0.0}
    result: dict[str, Any] = {**start, **here, **earlier, "attack": attack}
    there = result["radii"] if keep else {}
    wanted = {n: sorted({*values, *there.get(n, ())}) for n, values in radii.items() if values}
    for norm, values in wanted.items():
        if (before := result["radii"].get(norm, [])) != values:
            if (lost := sorted(set(before) - set(values))) and leads():
                named = ", ".join(map(number_key, lost))
                print(f"{run.path / _NAME}: replacing results at {norm} {named}", file=sys.stderr)
            begun = time.perf_counter()
            result["clean"], result["robust"][norm] = _accuracies(
                run, dataset, norm, values, attack, mesh=mesh
            )
            result["radii"][norm] = values
            result |= {"seconds": result["seconds"] + time.perf_counter() - begun, **here}
            led(write_json)(run.path / _NAME, result)
    # Of this call, not of earlier ones: the runs of a comparison show the same ball.
    norm, values = next((norm, wanted[norm]) for norm in ORDERS if norm in wanted)
    shown = {
        "norm": norm,
        "epsilon": values[len(values) // 2],
        "plane": 1.5 * max(wanted.get("l2", [1.0])),
        "boundary": True,  # earlier ones were drawn without
    }
    if keep:
        shown = result.get("shown", shown)
    if result.get("shown") != shown or not led((run.path / "landscape.npz").is_file)():
        begun = time.perf_counter()
        looks = landscape(
            run.apply, run.params, dataset.test_images, dataset.test_labels,
            key=jax.random.key(run.config.seed),
            ball=LpBall(shown["epsilon"], ORDERS[shown["norm"]]),
            radius=shown["plane"], num_steps=attack["num_steps"], mesh=mesh,
        )  # fmt: skip
        for name in ("gradient_norm", "curvature"):
            if not np.all(np.isfinite(looks[name])):
                raise ValueError(f"the {name} of {run.path} is not finite: did it diverge?")
        led(write_arrays)(run.path / "landscape.npz", looks)
        result["shown"] = shown
        result["gradient_norm_mean"] = float(looks["gradient_norm"].mean())
        result["hessian_norm_mean"] = float(looks["curvature"].mean())
        result |= {"seconds": result["seconds"] + time.perf_counter() - begun, **here}
        led(write_json)(run.path / _NAME, result)
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
    """Return the clean accuracy and those under attack, by radius."""
    accuracies: dict[float, float] = {}
    with progress_bar(
        total=1 + len(radii),
        desc=f"{norm} attacks on {run.config.data} {run.config.name} seed {run.config.seed}",
        unit=" radii",
    ) as bar:
        for radius, right in withstood(
            run.apply, run.params, dataset.test_images, dataset.test_labels,
            order=ORDERS[norm], radii=radii, key=jax.random.key(run.config.seed),
            num_steps=attack["num_steps"], num_restarts=attack["num_restarts"], mesh=mesh,
        ):  # fmt: skip
            accuracies[float(radius)] = float(right.mean())
            bar.update()
            bar.set_postfix_str(f"radius {radius:g}: {100 * right.mean():.1f} %")
    return accuracies.pop(0.0), {number_key(r): a for r, a in sorted(accuracies.items())}


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.evaluate")
