"""AutoAttack on a trained network: curves over the radius, resumable, with a verdict on each."""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments import masking, provenance, runs
from experiments.config import ORDERS
from experiments.data import Dataset, check_count
from experiments.files import kept, number_key, read_arrays, write_arrays, write_json
from experiments.processes import leads, led, progress_bar
from hessjax import LpBall
from hessjax._placement import replicated
from hessjax.attacks import PLUS, STANDARD, Attack, AttackResult, Progress, auto_attack
from hessjax.attacks.autoattack import MISCLASSIFIED, ROBUST

VERSIONS: dict[str, tuple[Attack, ...]] = {"standard": STANDARD, "plus": PLUS}
_SAVE_EVERY = 20.0  # seconds


def settings(version: str, num_examples: int | None, seed: int) -> dict[str, Any]:
    """Return the settings that determine the result, as the file records them.

    Raises:
        ValueError: if the version is unknown or there are no examples.
    """
    if version not in VERSIONS:
        raise ValueError(f"unknown version {version!r}: expected one of {', '.join(VERSIONS)}")
    if num_examples is not None and num_examples < 1:
        raise ValueError(f"num_examples must be at least 1, got {num_examples}")
    return {
        "name": "AutoAttack",
        "version": version,
        "attacks": [_described(attack) for attack in VERSIONS[version]],
        "num_examples": num_examples,
        "seed": seed,
    }


def evaluate(
    run: runs.Run,
    dataset: Dataset,
    *,
    norm: str,
    radii: Sequence[float],
    attack: dict[str, Any],
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Attack a network by AutoAttack and write ``auto_attack.json`` and ``auto_attack.npz``.

    Radii are attacked in increasing order, each only on what withstood the smaller ones: the balls
    are nested. What an earlier call with the same settings found is kept; an interrupted call
    continues after its last batch, from ``auto_attack.NORM-RADIUS.SETTINGS.part.npz``. Results of
    other settings are replaced, with a message.

    Args:
        run: the network.
        dataset: its data; the first examples of the test set are attacked.
        norm: ``l2`` or ``linf``.
        radii: of the balls, in input units.
        attack: from `settings`.
        batch_size: examples at a time, see `hessjax.attacks.autoattack`.
        mesh: devices to attack on, the default one if not given; they change no result.

    Returns:
        What the JSON file holds: ``attack``; ``clean``; ``results`` by norm and radius, each with
        ``robust``, the accuracy, ``broken_by``, examples by attack, ``warnings``, ``masking``, the
        figures of `experiments.masking`, ``verdict``, ``seconds``, and where it was measured.
        For each norm and radius, the archive holds ``broken_by`` and ``distance`` of each example.
    """
    check_count("num_examples", attack["num_examples"], dataset)
    count = attack["num_examples"] or len(dataset.test_labels)
    x, y = jnp.asarray(dataset.test_images[:count]), jnp.asarray(dataset.test_labels[:count])
    key = jax.random.key(attack["seed"])
    logits_fn, x, y = replicated(mesh, (run.logits_fn, x, y))
    content, arrays = _earlier(run.path, attack)
    smaller: AttackResult | None = None
    after: str | None = None
    for radius in sorted(set(radii)):
        name = number_key(radius)
        place = f"{norm}/{name}"
        ball = LpBall(radius, ORDERS[norm])
        if name not in content["results"].get(norm, {}):
            label = f"{norm} radius {name} on {run.config.data} {run.config.name}"
            part = _part_of(run, place, attack)
            identity = json.dumps(
                {**attack, "place": place, "weights": run.weights, "after": after}
            )
            begun = time.perf_counter()
            with _resumable(part, identity, label) as going:
                result = auto_attack(
                    logits_fn, x, y, ball, key, attacks=VERSIONS[attack["version"]],
                    batch_size=batch_size, resume=going.resume or smaller, on_batch=going.note,
                )  # fmt: skip
            met = None if smaller is None else smaller.robust
            figures = masking.examine(
                logits_fn, x, y, ball, key, result=result, names=_names(attack), met=met
            )
            distance = np.asarray(result.distance)
            if smaller is not None:
                nearer = np.asarray(smaller.broken_by) >= 0
                distance = np.where(nearer, smaller.distance, distance)
            arrays[f"{place}/broken_by"] = np.asarray(result.broken_by)
            arrays[f"{place}/distance"] = distance
            led(write_arrays)(run.path / "auto_attack.npz", arrays)
            content["clean"] = float(np.mean(arrays[f"{place}/broken_by"] != MISCLASSIFIED))
            content["results"].setdefault(norm, {})[name] = {
                "robust": float(np.mean(np.asarray(result.robust))),
                "broken_by": _counts(result, attack),
                "warnings": list(result.warnings),
                "masking": figures,
                "verdict": masking.verdict(figures),
                "seconds": going.seconds + time.perf_counter() - begun,
                **provenance.collect(),
            }
            led(write_json)(run.path / "auto_attack.json", content)
            led(part.unlink)(missing_ok=True)
        broken_by = arrays[f"{place}/broken_by"]
        robust, by = jnp.asarray(broken_by == ROBUST), jnp.asarray(broken_by)
        smaller = AttackResult(x, robust, by, jnp.asarray(arrays[f"{place}/distance"]), ())
        after = name
    return content


def report(content: dict[str, Any], norm: str, radii: Sequence[float]) -> str:
    """Return some lines about the results at these radii."""
    lines = [f"clean accuracy: {100 * content['clean']:.2f} %"]
    for radius in sorted(set(radii)):
        result = content["results"][norm][number_key(radius)]
        by = ", ".join(f"{name} {number}" for name, number in result["broken_by"].items())
        accuracy, seconds = f"{100 * result['robust']:.2f} %", f"{result['seconds']:.0f} s"
        lines += [
            f"under AutoAttack, {norm} {number_key(radius)}: {accuracy} (broken: {by}; {seconds})",
            f"  {result['verdict']}",
            *(f"  warning: {warning}" for warning in result["warnings"]),
        ]
    return "\n".join(lines)


class _Going(NamedTuple):
    """A resumable attack: where it resumes, after how many seconds, and what notes its progress."""

    resume: Progress | None
    seconds: float
    note: Callable[[Progress], None]


@contextmanager
def _resumable(path: Path, identity: str, label: str) -> Iterator[_Going]:
    """Resume from what an interrupted call left, show the progress, and save it at the end."""
    begun = saved = time.perf_counter()
    resume, before = _read_part(path, identity)
    latest: Progress | None = None

    def save() -> None:
        if latest is not None and leads():
            taken = before + time.perf_counter() - begun
            part = {"identity": identity, "seconds": taken, **latest._asdict()}
            write_arrays(path, part)

    looks = "{desc}: {percentage:3.0f} % [{elapsed}{postfix}]"
    with progress_bar(total=100.0, desc=label, bar_format=looks) as bar:

        def note(progress: Progress) -> None:
            nonlocal latest, saved
            latest = progress
            done = np.where(progress.broken_by == ROBUST, progress.tried / progress.num_runs, 1)
            bar.update(100 * float(done.mean()) - bar.n)
            robust = 100 * float(np.mean(progress.broken_by == ROBUST))
            bar.set_postfix_str(f"{progress.attack}, {robust:.1f} % withstand")
            if time.perf_counter() - saved > _SAVE_EVERY:
                save()
                saved = time.perf_counter()

        try:
            yield _Going(resume, before, note)
        finally:
            # Even a finished attack is saved: examining it takes another quarter of its time.
            save()


def _part_of(run: runs.Run, place: str, attack: dict[str, Any]) -> Path:
    """Return where the unfinished attack in one ball is kept: a file of its own per settings."""
    which = hashlib.sha256(json.dumps(attack).encode()).hexdigest()[:8]
    return run.path / f"auto_attack.{place.replace('/', '-')}.{which}.part.npz"


def _read_part(path: Path, identity: str) -> tuple[Progress | None, float]:
    """Return what an interrupted call left, and its seconds; nothing if it had other settings."""
    part = _part(path, identity)
    if part is None:
        return None, 0.0
    seconds = part.pop("seconds")
    return Progress(**{**part, "x": jnp.asarray(part["x"])}), seconds


@led
def _part(path: Path, identity: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        part = read_arrays(path)
        if str(part["identity"]) != identity:
            return None
        whole = {name: part[name] for name in ("x", "broken_by", "tried")}
        numbers = {"num_runs": int(part["num_runs"]), "seconds": float(part["seconds"])}
        return {**whole, **numbers, **{name: str(part[name]) for name in ("attack", "call")}}
    except (ValueError, KeyError) as error:
        raise ValueError(f"{error}: delete {path} to attack anew") from error


@led
def _earlier(path: Path, attack: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what earlier calls with the same settings found."""
    archive = path / "auto_attack.npz"
    content = kept(path / "auto_attack.json", {"attack": attack})
    if not content:
        return {"attack": attack, "results": {}}, {}
    try:
        arrays = read_arrays(archive) if archive.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{error}: delete it to attack anew") from error
    results: dict[str, dict[str, Any]] = {}
    for norm, found in content.get("results", {}).items():
        # After an interrupted write, or a copy, the two files may cover different radii.
        whole = {name for name in found if f"{norm}/{name}/broken_by" in arrays}
        results[norm] = {name: result for name, result in found.items() if name in whole}
        if lost := [name for name in found if name not in whole]:
            named = f"{norm} {', '.join(lost)}"
            print(f"{archive} lacks {named}, to be attacked anew if asked for", file=sys.stderr)
    return {**content, "results": results}, arrays


def _names(attack: dict[str, Any]) -> list[str]:
    return [part["name"] for part in attack["attacks"]]


def _counts(result: AttackResult, attack: dict[str, Any]) -> dict[str, int]:
    """Return how many examples each attack broke, and how many were misclassified without one."""
    broken_by = np.asarray(result.broken_by)
    counts = {"misclassified": int(np.sum(broken_by == MISCLASSIFIED))}
    for place, name in enumerate(_names(attack)):
        counts[name] = int(np.sum(broken_by == place))
    return counts


def _described(attack: Attack) -> dict[str, Any]:
    """Return the numbers of an attack, and the options of its parts."""
    described: dict[str, Any] = {"name": attack.name}
    for part in (attack.init, attack.step):
        given = getattr(part, "keywords", {})
        described |= {name: getattr(value, "__name__", value) for name, value in given.items()}
    return {**described, "num_steps": attack.num_steps, "num_runs": attack.num_runs}
