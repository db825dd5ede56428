"""A small training, attack and evaluation, on whatever devices; as a process, one of several."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import hessjax
from experiments import auto, devices, masking, methods, runs, wrappers
from experiments.config import Config
from experiments.data import Dataset
from experiments.files import write_json
from experiments.robustness import withstood
from hessjax import _compilation
from hessjax._placement import replicated
from hessjax.attacks import AttackResult, apgd_attack, auto_attack, fab_attack, square_attack
from tests import cases, several

SIZE = 12
# Every estimate starts from the example's own key.
OBJECTIVE = hessjax.second_order(
    partial(cases.mlp_apply, "gelu"), cases.cross_entropy, 0.7, 0.3, start=hessjax.random_start
)

ATTACKS = (
    apgd_attack(num_steps=4, name="apgd-ce"),
    fab_attack(num_steps=4, num_targets=2),
    square_attack(num_steps=25),
)
IMAGES = np.random.default_rng(1).uniform(0.05, 0.95, size=(13, 4, 4, 1))
WEIGHTS = {
    "inner": np.random.default_rng(2).normal(size=(16, 12)),
    "outer": 3 * np.random.default_rng(3).normal(size=(12, 5)),
}


def logits_fn(weights: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh((x.reshape(-1) - 0.5) @ weights["inner"]) @ weights["outer"]


def keeping() -> optax.GradientTransformation:
    """Keep the last gradient as the state."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del state, params
        return updates, updates

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


OPTIMIZER = optax.chain(keeping(), optax.adam(1e-2))


def trained(
    mesh: Mesh | None, dtype: Any, objective: Any = OBJECTIVE, *, steps: int = 20
) -> dict[str, Any]:
    """Train on these devices; None is one device, and batches without padding or a mask."""
    cast = partial(jax.tree.map, lambda leaf: np.asarray(leaf, dtype))
    case = cases.mlp("gelu")
    step = hessjax.train_step(objective, OPTIMIZER)
    state: Any = hessjax.TrainState.create(cast(case.params), OPTIMIZER, jax.random.key(50))
    x, y = cases.batch_of(case, 5 * SIZE)
    x, y = cast(x).reshape(5, SIZE, -1), np.asarray(y).reshape(5, SIZE)
    if mesh is not None:
        state = replicated(mesh, state)
    told = []
    for i in range(steps):
        batch = (x[i % 5], y[i % 5])
        state, metrics = step(state, batch if mesh is None else devices.sharded(mesh, batch))
        told.append(metrics)
    return {
        "params": state.params,
        "gradient": state.opt_state[0],
        "losses": jnp.stack([metrics["objective"] for metrics in told]),
        "metrics": told[0],
    }


def adversarial(case: cases.Case) -> Any:
    """Return the objective of PGD training as the scripts have it."""
    setting = methods.Setting(0.5, 0, 2, optax.constant_schedule(1))
    objective = methods.METHODS["adversarial"].build(case.apply, setting)
    return wrappers.refusing(wrappers.with_accuracy(case.apply, objective))


def labels() -> np.ndarray:
    y = np.array(jnp.argmax(jax.vmap(partial(logits_fn, WEIGHTS))(jnp.asarray(IMAGES)), axis=1))
    y[0] = (y[0] + 1) % 5  # misclassified from the start
    return y


def attacked(mesh: Mesh | None, **options: Any) -> AttackResult:
    """Attack on these devices."""
    x = jnp.asarray(IMAGES) if mesh is None else replicated(mesh, IMAGES)
    network, y = jax.tree_util.Partial(logits_fn, WEIGHTS), labels()
    given = {"attacks": ATTACKS, "batch_size": 32, **options}
    return auto_attack(network, x, y, hessjax.LpBall(0.15, 2), jax.random.key(7), **given)


def found(result: AttackResult) -> dict[str, Any]:
    return {"broken_by": result.broken_by, "x": result.x, "distance": result.distance}


def evaluated(mesh: Mesh | None, path: Path) -> dict[str, Any]:
    """Evaluate on these devices as the scripts do; a folder takes what they write.

    The looks for masked gradients are left out: compiling them takes longest.
    """
    given, key, y = (logits_fn, WEIGHTS), jax.random.key(3), labels()
    verdicts = dict(
        withstood(*given, IMAGES, y, order=2, radii=[0.1, 0.2], key=key, num_steps=2, mesh=mesh)
    )
    run = runs.Run(path, Config().resolved(), *given, {}, {}, {})
    unseen = {"num_examples": len(y), **{sign.figure: 0 for sign in masking.SIGNS}}
    with (
        mock.patch.dict(auto.VERSIONS, standard=ATTACKS[:1]),
        mock.patch.object(masking, "examine", return_value=unseen),
    ):
        content = auto.evaluate(
            run, Dataset("", IMAGES, y, IMAGES, y, 5), norm="l2", radii=[0.1, 0.15],
            attack=auto.settings("standard", None, 0), batch_size=32, mesh=mesh,
        )  # fmt: skip
    told = ("robust", "broken_by")
    judged = {
        radius: {name: result[name] for name in told}
        for radius, result in content["results"]["l2"].items()
    }
    return {"verdicts": verdicts, "judged": judged}


def everything(mesh: Mesh | None, path: Path) -> list[Any]:
    """Return the leaves of all results, in an order."""
    results = [
        *(trained(mesh, dtype) for dtype in (np.float64, np.float32)),
        found(attacked(mesh)),
        evaluated(mesh, path),
    ]
    return jax.device_get(jax.tree.leaves(results))


def main(path: Path) -> None:
    """Be one of the processes that the environment tells of, and write what it sees."""
    _compilation.CPU_OPTIONS.clear()
    own = path / os.environ["JAX_PROCESS_ID"]
    told = several.trainings(own)
    assert len(jax.devices()) == 2 * jax.process_count() > len(jax.local_devices())
    left = sorted(found.name for found in own.glob("*"))
    write_json(own / "told.json", {**told, "left": left})
    np.savez(own / "found.npz", *everything(devices.mesh(), own))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
