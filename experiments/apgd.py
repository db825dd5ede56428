"""APGD on a trained network, at every radius: the first two attacks of AutoAttack."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments import provenance, runs
from experiments.config import ORDERS
from experiments.data import Dataset, check_count
from experiments.files import kept, number_key, write_json
from experiments.processes import leads, led, progress_bar
from hessjax import LpBall
from hessjax._placement import replicated
from hessjax.attacks import STANDARD, AttackResult, auto_attack
from hessjax.attacks.autoattack import ROBUST

_ATTACKS = STANDARD[:2]  # by cross-entropy, then by the DLR loss at up to nine targets


def evaluate(
    run: runs.Run,
    dataset: Dataset,
    radii: Mapping[str, Sequence[float]],
    num_examples: int,
    *,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Find the accuracy of the first test examples under APGD.

    The result is kept in ``apgd.json``. What is there for the same examples and the same radii of
    a norm is not computed again. Results for other radii are replaced, with a message: what
    withstands one radius counts at the smaller ones, too.

    Args:
        run: the network.
        dataset: its data.
        radii: of the balls by norm, in input units.
        num_examples: how many test examples, the first ones.
        mesh: devices to attack on, the default one if not given; they change no result.

    Returns:
        ``robust``, by norm and radius, and ``commit``, ``versions`` and ``device`` of the attacks.
    """
    check_count("num_examples", num_examples, dataset)
    path = run.path / "apgd.json"
    settings = {"num_examples": num_examples, "seed": run.config.seed}
    content = {**settings, "robust": {}, **led(kept)(path, settings)}
    x = jnp.asarray(dataset.test_images[:num_examples])
    y = jnp.asarray(dataset.test_labels[:num_examples])
    logits_fn, x, y = replicated(mesh, (run.logits_fn, x, y))
    wanted = {norm: sorted(set(values)) for norm, values in radii.items() if values}
    for norm, values in wanted.items():
        there, names = content["robust"].get(norm, {}), [number_key(radius) for radius in values]
        if set(names) != set(there):
            if (lost := [name for name in there if name not in names]) and leads():
                print(f"{path}: replacing results at {norm} {', '.join(lost)}", file=sys.stderr)
            key = jax.random.key(run.config.seed)
            found = {
                number_key(radius): float(right.mean())
                for radius, right in _withstood(
                    logits_fn, x, y, key, order=ORDERS[norm], radii=values
                )
            }
            here = provenance.extended(content if content["robust"] else {})
            content["robust"][norm] = {name: found[name] for name in names}
            content |= here
            led(write_json)(path, content)
    robust = {norm: content["robust"][norm] for norm in wanted}
    return {"robust": robust, **provenance.combined(content)}


def _withstood(
    logits_fn: jax.tree_util.Partial,
    x: jax.Array,
    y: jax.Array,
    key: jax.Array,
    *,
    order: float,
    radii: Sequence[float],
) -> Iterator[tuple[float, np.ndarray]]:
    """Attack from the largest radius down; what withstands it counts at the smaller ones, too."""
    resume, robust = None, np.zeros(len(x), bool)
    with progress_bar(total=len(radii), desc="APGD", unit=" radii") as bar:
        for radius in sorted(radii, reverse=True):
            ball = LpBall(radius, order)
            result = auto_attack(logits_fn, x, y, ball, key, attacks=_ATTACKS, resume=resume)
            robust = robust | np.asarray(result.robust)
            # What is marked as broken is not attacked.
            broken_by = np.where(
                robust, 0, np.where(np.asarray(result.broken_by) >= 0, ROBUST, result.broken_by)
            )
            distance = jnp.zeros(len(x), x.dtype)
            resume = AttackResult(x, jnp.asarray(~robust), jnp.asarray(broken_by), distance, ())
            bar.update()
            yield radius, robust
