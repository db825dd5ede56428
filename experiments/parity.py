"""AutoAttack here and in its reference implementation, on networks with the same weights."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

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
from hessjax.attacks import STANDARD, auto_attack

with of_extra("reference"):
    import torch
    from pyautoattack import AutoAttack

_REFERENCE_NORMS: dict[str, Literal["L2", "Linf"]] = {"l2": "L2", "linf": "Linf"}


@ending()
def main(
    run: tyro.conf.Positional[tuple[Path, ...]],
    *,
    norm: Norm = "l2",
    epsilon: tuple[float, ...] = (1.5,),
    num_examples: int = 200,
    out: Path = Path("runs/parity.json"),
    data_dir: Path | None = None,
) -> None:
    """Compare AutoAttack, standard version, with pyautoattack on a PyTorch network.

    The two attack the same examples on networks with the same weights, one after the other. PyTorch
    is set to one thread; restrict XLA to one as well:

        export XLA_FLAGS=--xla_cpu_multi_thread_eigen=false OMP_NUM_THREADS=1
        python -m experiments.parity runs/first --norm l2 --epsilon 1.5

    Needs the extra hessjax[reference]. Results that are in the file already are not computed again.

    Args:
        run: folders that experiments.train wrote.
        norm: norm of the balls.
        epsilon: radius of the balls, pixels in [0, 1]: one for all runs, or one for each.
        num_examples: how many examples, the first of the test set.
        out: the JSON file that results are added to.
        data_dir: folder of prepared data sets; $HESSJAX_DATA or ~/.cache/hessjax if not given.
    """
    torch.set_num_threads(1)
    settings = balls(run, norm, epsilon, num_examples)
    measure_each(run, settings, out=out, data_dir=data_dir, by=compare, shown=table)


def compare(
    run: runs.Run, dataset: Dataset, norm: Norm, epsilon: float, num_examples: int
) -> dict[str, Any]:
    """Attack a network and its twin.

    Returns:
        For ``hessjax`` and ``reference``, the robust accuracy and the seconds of wall clock and of
        processor time; those of hessjax exclude compilation on first use, which is ``compile``; and
        in how many examples the verdicts differ.

    Raises:
        ValueError: if the network has no twin.
    """
    twin = run_twin(run)
    images, labels = dataset.test_images[:num_examples], dataset.test_labels[:num_examples]
    x, y = jnp.asarray(images), jnp.asarray(labels)
    ball, key = LpBall(epsilon, ORDERS[norm]), jax.random.key(run.config.seed)

    seconds: dict[str, dict[str, float]] = {}
    with _timed(seconds, "compile"):
        short = tuple(attack._replace(num_steps=1, num_runs=1) for attack in STANDARD)
        # All of the examples fill long batches, eight fill a short one.
        for n in (len(x), 8):
            auto_attack(run.logits_fn, x[:n], y[:n], LpBall(1e-6, ORDERS[norm]), key, attacks=short)
    with _timed(seconds, "hessjax"):
        ours = np.asarray(auto_attack(run.logits_fn, x, y, ball, key).robust)
    tensors = twin_batch(images, labels)
    with _timed(seconds, "reference"):
        reference = AutoAttack(twin, norm=_REFERENCE_NORMS[norm], eps=epsilon, seed=0)
        x_adv, _ = reference.run_standard_evaluation(*tensors)
        with torch.no_grad():
            theirs = (twin(x_adv).argmax(dim=1) == tensors[1]).numpy()
    return {
        "robust": {"hessjax": float(ours.mean()), "reference": float(theirs.mean())},
        "only_robust": {
            "hessjax": int(np.sum(ours & ~theirs)), "reference": int(np.sum(theirs & ~ours))
        },
        "seconds": seconds,
    }  # fmt: skip


def table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as a Markdown table.

    It has accuracies in percent, how many examples only hessjax and only the reference call robust,
    and seconds of processor time.
    """
    heads = [*COLUMNS, "hessjax", "reference", "only one"]
    heads += ["hessjax, s", "reference, s", "ratio"]
    rows = [heads]
    for cell in cells:
        robust, only = cell["robust"], cell["only_robust"]
        ours, theirs = (cell["seconds"][name]["processor"] for name in ("hessjax", "reference"))
        rows.append([
            *columns(cell),
            f"{100 * robust['hessjax']:.1f}", f"{100 * robust['reference']:.1f}",
            f"{only['hessjax']} / {only['reference']}",
            f"{ours:.1f}", f"{theirs:.1f}", f"{theirs / ours:.2f}",
        ])  # fmt: skip
    return markdown(rows, words=len(COLUMNS))


@contextmanager
def _timed(seconds: dict[str, dict[str, float]], name: str) -> Iterator[None]:
    clock, processor = time.perf_counter(), time.process_time()
    yield
    seconds[name] = {
        "clock": time.perf_counter() - clock, "processor": time.process_time() - processor
    }  # fmt: skip


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.parity")
