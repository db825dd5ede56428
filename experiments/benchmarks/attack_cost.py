"""What an evaluation under attack costs, and what accuracy it finds."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

from experiments import runs
from experiments.benchmarks import harness, records
from experiments.config import ORDERS, Config, Norm
from experiments.data import Dataset, check_count
from experiments.interruption import ending
from experiments.loading import load_for
from experiments.recipes import recipe
from experiments.robustness import withstood
from experiments.train import train
from hessjax import LpBall
from hessjax.attacks import STANDARD, Attack, auto_attack

NAME = "attack_cost"
AUTO_ATTACK, PGD = "auto_attack", "pgd-40"
_PGD_STEPS = 40
# As many steps as `withstood` takes per call, so that this compiles what 40 steps use.
_PGD_WARM_STEPS = 5
# Nothing breaks in this ball, so all examples reach every attack.
_TINY = 1e-6


class Target(NamedTuple):
    """What is attacked.

    Attributes:
        run: the network.
        x: images ``(N, ...)``.
        y: labels ``(N,)``.
        norm: of the ball.
        epsilon: its radius.
        batch_size: of AutoAttack and its parts; None for their default.
    """

    run: runs.Run
    x: np.ndarray
    y: np.ndarray
    norm: Norm
    epsilon: float
    batch_size: int | None = None


@ending("nothing is written")
def main(
    run: tyro.conf.Positional[Path | None] = None,
    *,
    quick: bool = False,
    norm: Norm = "l2",
    epsilon: float | None = None,
    num_examples: int | None = None,
    batch_size: int | None = None,
    repeats: int | None = None,
    out: Path | None = None,
    data_dir: Path | None = None,
) -> None:
    """Time PGD, AutoAttack and the parts of AutoAttack on a trained network, in seconds.

    Times are scaled to 1,000 images. The accuracy in the ball is given beside them, because a
    broken example costs no further steps. There are three repeats, not ten as in the other
    benchmarks: AutoAttack takes minutes, compared with which the machine's jitter is small. The
    rows for a network and ball are written together; others in the file are kept if they were
    measured on the same commit without changes. For example:

        python -m experiments.benchmarks.attack_cost --quick
        python -m experiments.benchmarks.attack_cost runs/first --norm l2 --epsilon 1.5

    Args:
        run: the folder that experiments.train wrote; if not given, the default network is trained
            on scikit-learn's digits, and not kept.
        quick: 30 images, 3 epochs of training, one repeat: takes under two minutes, and writes to
            runs/benchmarks.
        norm: norm of the ball.
        epsilon: its radius, pixels in [0, 1]; the middle one of the data set's if not given.
        num_examples: how many images, the first of the test set; 200 if not given.
        batch_size: for AutoAttack, examples at a time; its own default if not given.
        repeats: measurements of each attack; 3 if not given.
        out: the JSON file; if not given, this device's in experiments/benchmarks/results.
        data_dir: folder of prepared data sets; $HESSJAX_DATA or ~/.cache/hessjax if not given.
    """
    num_examples = (30 if quick else 200) if num_examples is None else num_examples
    repeats = (1 if quick else 3) if repeats is None else repeats
    path = records.place(NAME, out, quick=quick)
    _check(norm, epsilon, repeats, batch_size)
    records.check(NAME, _settings(repeats, num_examples, batch_size), path)
    loaded, dataset = _network(run, data_dir, num_examples, epochs=3 if quick else None)
    radii = recipe(loaded.config.data).radii[norm]
    target = choose(
        loaded,
        dataset,
        norm=norm,
        epsilon=radii[len(radii) // 2] if epsilon is None else epsilon,
        num_examples=num_examples,
        batch_size=batch_size,
    )
    add(target, repeats=repeats, path=path)
    print(f"written: {path}")


def _check(norm: Norm, epsilon: float | None, repeats: int, batch_size: int | None) -> None:
    """Raise unless the numbers that need no data are in range."""
    if epsilon is not None:
        LpBall(epsilon, ORDERS[norm])
    for name, value in (("repeats", repeats), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _network(
    path: Path | None, data_dir: Path | None, num_examples: int, *, epochs: int | None
) -> tuple[runs.Run, Dataset]:
    """Load a network and its data, or train one on the digits if they have enough test images."""
    if path is not None:
        loaded = runs.load(path)
        return loaded, load_for(loaded.config, data_dir)
    config = Config(epochs=epochs).resolved()
    dataset = load_for(config)
    check_count("num_examples", num_examples, dataset)
    with tempfile.TemporaryDirectory() as folder:
        train(config, dataset, Path(folder, "run"))
        return runs.load(Path(folder, "run")), dataset


def choose(
    run: runs.Run,
    dataset: Dataset,
    *,
    norm: Norm,
    epsilon: float,
    num_examples: int,
    batch_size: int | None = None,
) -> Target:
    """Return the first test images as a target.

    Raises:
        ValueError: if there are too few images, or epsilon or batch_size is not positive.
    """
    _check(norm, epsilon, 1, batch_size)
    check_count("num_examples", num_examples, dataset)
    images, labels = dataset.test_images[:num_examples], dataset.test_labels[:num_examples]
    return Target(run, images, labels, norm, epsilon, batch_size)


def add(target: Target, *, repeats: int, path: Path) -> Path:
    """Measure a target that is not in the file yet, and add it."""
    config = target.run.config
    settings = _settings(repeats, len(target.y), target.batch_size)
    cell = {
        "data": config.data, "model": config.model, "activation": config.activation,
        "method": config.name, "strength": config.strength, "seed": config.seed,
        "epochs": config.epochs, "trained_at": target.run.origin["commit"],
        "weights": target.run.weights,
        "norm": target.norm, "epsilon": target.epsilon,
    }  # fmt: skip
    measured = partial(measure_attacks, target, repeats=repeats)
    return records.collect(NAME, settings, [(cell, measured)], path, shown=_summary)


def _settings(repeats: int, num_examples: int, batch_size: int | None) -> dict[str, Any]:
    return {"repeats": repeats, "num_examples": num_examples, "batch_size": batch_size}


def measure_attacks(target: Target, *, repeats: int) -> list[dict[str, Any]]:
    """Time the attacks in turns, after all that they use has been compiled.

    Returns:
        A row for each attack: ``attack``; ``clean`` and ``robust``, accuracies without and under
        it; ``seconds_per_1000``, wall-clock time; ``compile_seconds``, of a short run of the same
        shapes beforehand; for AutoAttack, the sum over its parts.
    """
    begun = time.perf_counter()
    right = by_pgd(target, _TINY, num_steps=_PGD_WARM_STEPS)["clean"]
    compiling = {PGD: time.perf_counter() - begun}
    calls = {PGD: lambda: by_pgd(target, target.epsilon)["robust"]}
    for attack in STANDARD:
        begun = time.perf_counter()
        _prepare(target, attack, right)
        compiling[attack.name] = time.perf_counter() - begun
        calls[attack.name] = partial(by_attacks, target, (attack,))
    compiling[AUTO_ATTACK] = sum(compiling[attack.name] for attack in STANDARD)
    calls[AUTO_ATTACK] = partial(by_attacks, target, STANDARD)
    robust: dict[str, float] = {}

    def noting(name: str) -> Callable[[], None]:
        def call() -> None:
            robust[name] = float(np.mean(calls[name]()))

        return call

    timings = harness.take_turns({name: noting(name) for name in calls}, repeats=repeats)
    return [
        {
            "attack": name,
            "clean": float(np.mean(right)),
            "robust": robust[name],
            "seconds_per_1000": timing.times(1000 / len(target.y))._asdict(),
            "compile_seconds": compiling[name],
        }
        for name, timing in timings.items()
    ]


def by_pgd(target: Target, epsilon: float, *, num_steps: int = _PGD_STEPS) -> dict[str, np.ndarray]:
    """Return which examples are right ``clean`` and which are ``robust`` under PGD.

    The attack maximizes the cross-entropy.
    """
    (_, clean), (_, robust) = withstood(
        target.run.apply, target.run.params, target.x, target.y,
        order=ORDERS[target.norm], radii=[epsilon], key=jax.random.key(target.run.config.seed),
        num_steps=num_steps, losses=[cross_entropy],
    )  # fmt: skip
    return {"clean": clean, "robust": robust}


def by_attacks(target: Target, attacks: Sequence[Attack]) -> np.ndarray:
    """Return which examples withstand attacks one after the other."""
    ball = LpBall(target.epsilon, ORDERS[target.norm])
    logits_fn = target.run.logits_fn
    result = auto_attack(
        logits_fn, target.x, target.y, ball, jax.random.key(target.run.config.seed),
        attacks=attacks, batch_size=target.batch_size,
    )  # fmt: skip
    return np.asarray(result.robust)


def _prepare(target: Target, attack: Attack, right: np.ndarray) -> None:
    """Compile an attack for both lengths of its batches, by one step where nothing breaks."""
    short = attack._replace(num_steps=1, num_runs=1)
    # One example fills a short batch; all fill long ones if there are enough. An example with a
    # wrong label is skipped, and yet the shapes are those of the whole set.
    others = right & (np.cumsum(right) > 1)
    wrong = np.where(target.y > 0, target.y - 1, 1)
    for y in (target.y, np.where(others, wrong, target.y)):
        by_attacks(target._replace(y=y, epsilon=_TINY), (short,))


def _summary(_: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"clean {100 * rows[0]['clean']:.1f} %; seconds for 1,000 images, accuracy under it"]
    lines += [
        f"  {row['attack']:<12}{row['seconds_per_1000']['median']:8.1f}{100 * row['robust']:8.1f} %"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.attack_cost")
