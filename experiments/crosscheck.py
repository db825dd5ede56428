"""Attacks by foolbox on the examples that AutoAttack calls robust."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import runs
from experiments.cells import COLUMNS, balls, columns, measure_each
from experiments.config import ORDERS, Norm
from experiments.data import Dataset
from experiments.extras import of_extra
from experiments.interruption import ending
from experiments.markdown import markdown
from experiments.twin import run_twin, twin_batch
from hessjax import LpBall
from hessjax.attacks import auto_attack

with of_extra("reference"):
    import torch
    from foolbox.attacks.carlini_wagner import L2CarliniWagnerAttack
    from foolbox.attacks.ddn import DDNAttack
    from foolbox.attacks.deepfool import L2DeepFoolAttack, LinfDeepFoolAttack
    from foolbox.attacks.fast_minimum_norm import L2FMNAttack, LInfFMNAttack
    from foolbox.attacks.projected_gradient_descent import (
        L2ProjectedGradientDescentAttack,
        LinfProjectedGradientDescentAttack,
    )
    from foolbox.models.pytorch import PyTorchModel

_ATTACKS: dict[str, dict[str, partial[Any]]] = {
    "l2": {
        "DDN": partial(DDNAttack, steps=300),
        "DeepFool": partial(L2DeepFoolAttack, steps=100),
        "C&W": partial(L2CarliniWagnerAttack, binary_search_steps=5, steps=300, stepsize=0.02),
        "FMN": partial(L2FMNAttack, steps=300),
        "PGD": partial(L2ProjectedGradientDescentAttack, steps=100, rel_stepsize=0.025),
    },
    "linf": {
        "DeepFool": partial(LinfDeepFoolAttack, steps=100),
        "FMN": partial(LInfFMNAttack, steps=300),
        "PGD": partial(LinfProjectedGradientDescentAttack, steps=100, rel_stepsize=0.025),
    },
}


@ending()
def main(
    run: tyro.conf.Positional[tuple[Path, ...]],
    *,
    norm: Norm = "l2",
    epsilon: tuple[float, ...] = (1.5,),
    num_examples: int = 200,
    out: Path = Path("runs/crosscheck.json"),
    data_dir: Path | None = None,
) -> None:
    """Count the examples that AutoAttack calls robust but an attack of foolbox breaks.

    foolbox attacks a PyTorch network with the same weights. Needs the extra hessjax[reference].
    Results that are in the file already are not computed again.

    Args:
        run: folders that experiments.train wrote.
        norm: norm of the balls.
        epsilon: radius of the balls, pixels in [0, 1]: one for all runs, or one for each.
        num_examples: how many examples, the first of the test set.
        out: the JSON file that results are added to.
        data_dir: folder of prepared data sets; $HESSJAX_DATA or ~/.cache/hessjax if not given.
    """
    settings = balls(run, norm, epsilon, num_examples)
    measure_each(run, settings, out=out, data_dir=data_dir, by=crosscheck, shown=table)


def crosscheck(
    run: runs.Run, dataset: Dataset, norm: Norm, epsilon: float, num_examples: int
) -> dict[str, Any]:
    """Attack a network by AutoAttack and its PyTorch twin by foolbox.

    Returns:
        ``robust``, the accuracy under AutoAttack; and under ``foolbox``, for each of its attacks,
        the accuracy and how many of AutoAttack's robust examples it breaks, ``broken``.

    Raises:
        ValueError: if the network has no twin.
    """
    model = PyTorchModel(run_twin(run), bounds=(0, 1), device="cpu")
    images, labels = dataset.test_images[:num_examples], dataset.test_labels[:num_examples]
    ball, key = LpBall(epsilon, ORDERS[norm]), jax.random.key(run.config.seed)
    result = auto_attack(run.logits_fn, jnp.asarray(images), jnp.asarray(labels), ball, key)
    ours = np.asarray(result.robust)
    tensors = twin_batch(images, labels)
    found = {}
    for name, attack in _ATTACKS[norm].items():
        torch.manual_seed(0)
        broken = attack()(model, *tensors, epsilons=epsilon)[2].numpy()
        found[name] = {"robust": float(np.mean(~broken)), "broken": int(np.sum(ours & broken))}
    return {"robust": float(ours.mean()), "foolbox": found}


def table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as a Markdown table: accuracy under each attack / robust ones broken."""
    names = list(_ATTACKS["l2"])
    rows = [[*COLUMNS, "AutoAttack", *names]]
    for cell in cells:
        found = cell["foolbox"]
        rows.append([
            *columns(cell), f"{100 * cell['robust']:.1f}",
            *(
                f"{100 * found[name]['robust']:.1f} / {found[name]['broken']}"
                if name in found
                else "-"
                for name in names
            ),
        ])  # fmt: skip
    return markdown(rows, words=len(COLUMNS))


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.crosscheck")
