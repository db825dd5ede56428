"""A comparison: networks trained by several methods and seeds, all attacked in the same way."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh

from experiments import apgd, auto, comparison_file, pgd, provenance, report, runs
from experiments.config import Config, Setup, parse_method
from experiments.data import Dataset, check_count
from experiments.files import number_key
from experiments.landscape_pictures import read_landscapes
from experiments.loading import load_for
from experiments.processes import leads, led
from experiments.reading import read
from experiments.session import DivergedError
from experiments.train import check_fits, train


class Attacks(NamedTuple):
    """What the networks of a comparison are attacked with.

    Attributes:
        radii: of the balls by norm, for PGD.
        pgd: from `experiments.pgd.settings`.
        auto_radii: of the balls by norm, for AutoAttack, which is left out where there are none.
        auto_examples: how many images AutoAttack attacks, the first of the test set; all if None.
        apgd_examples: how many APGD attacks, at the radii of PGD; it is left out if 0.
    """

    radii: Mapping[str, Sequence[float]]
    pgd: dict[str, Any]
    auto_radii: Mapping[str, Sequence[float]] = {}
    auto_examples: int | None = None
    apgd_examples: int = 0


def compare(
    setup: Setup,
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    out: Path,
    attacks: Attacks,
    known: bool = False,
    watch: int = 0,
    mesh: Mesh | None = None,
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
) -> dict[str, str]:
    """Train and attack the networks of a comparison, and write each result as it comes.

    Args:
        setup: the settings that the trainings share.
        methods: names with or without their numbers.
        seeds: every method is trained once with each.
        out: folder of the comparison.
        attacks: what the networks are attacked with.
        known: whether results in ``comparison.json``, of the same settings, count as done even if
            the folders of their runs are gone.
        watch: as of `experiments.train.train`; the entries then have a ``trajectory``.
        mesh: devices that share each batch.
        data_dir: folder of prepared data sets.
        manual_dir: folder of the data set's original files.

    Returns:
        For each run that failed, by path, the reason.

    Raises:
        ValueError: if a setting is out of range, a folder holds something else, or results of
            other settings there would be lost.
        OSError: if another process is working on the comparison.
    """
    configs = plan(setup, methods, seeds)
    _check_paths(out, configs)
    dataset = load_for(configs[0], data_dir, manual_dir)
    for config in configs:
        check_fits(config, dataset)
    attacks = attacks._replace(pgd=pgd.fitted(attacks.pgd, dataset))
    for name in ("auto_examples", "apgd_examples"):
        check_count(name, getattr(attacks, name) or None, dataset)
    settings = {
        "data": _describe(setup),
        "num_test": len(dataset.test_labels),
        "norms": _without_empty(attacks.radii),
        "attack": attacks.pgd,
        "auto": {
            "norms": _without_empty(attacks.auto_radii),
            "num_examples": attacks.auto_examples,
        },
        "apgd_examples": attacks.apgd_examples,
        "setup": configs[0].setup,
    }
    paths = {str(folder_of(config)) for config in configs}
    comparison_file.check(out, settings, paths)
    done = (
        {run["path"] for run in comparison_file.earlier(out, settings)["runs"]} if known else set()
    )
    # Where nothing is left to do, another process may be at work.
    with runs.locked(out) if paths - done else nullcontext():
        trained = partial(train, dataset=dataset, resume=True, watch=watch, mesh=mesh)
        evaluated = partial(_evaluated, dataset=dataset, attacks=attacks, mesh=mesh)
        entries, failed = [], {}
        for config in configs:
            path = folder_of(config)
            if str(path) in done:
                continue
            try:
                entries.append(_entry(config, out / path, trained, evaluated))
            except (ValueError, OSError, DivergedError, JaxRuntimeError) as error:
                # Out of memory, say. With several processes, the others may not know of it.
                if isinstance(error, JaxRuntimeError) and jax.process_count() > 1:
                    raise
                failed[str(path)] = next(iter(str(error).splitlines()), type(error).__name__)
                if leads():
                    print(f"failed: {path}: {failed[str(path)]}", file=sys.stderr)
            comparison_file.write(out, settings, entries, failed)
        # If all runs of this command failed, a comparison of other settings may be left there.
        if comparison_file.earlier(out, settings)["runs"]:
            _draw(out)
    return failed


def _without_empty(radii: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    return {norm: list(values) for norm, values in radii.items() if values}


def plan(setup: Setup, methods: Sequence[str], seeds: Sequence[int]) -> list[Config]:
    """Return the configurations to train, all methods with one seed before the next seed.

    Raises:
        ValueError: if there are none, or a method or a number is invalid.
    """
    if not methods or not seeds:
        raise ValueError("a comparison needs at least one method and one seed")
    shared = dataclasses.asdict(setup)
    configs = [
        Config(**shared, **parse_method(method), seed=seed).resolved()
        for seed in seeds
        for method in methods
    ]
    return list(dict.fromkeys(configs))


def folder_of(config: Config) -> Path:
    """Return a run's folder inside that of its comparison."""
    return Path(config.name.replace(":", "-"), f"seed-{config.seed}")


@led
def _check_paths(out: Path, configs: Sequence[Config]) -> None:
    """Raise before any work if a folder holds something else, or two runs would share one."""
    if (out / "config.json").exists() or (out.exists() and not out.is_dir()):
        raise ValueError(f"{out} is a file or the folder of a run: name another for the comparison")
    paths = [folder_of(config) for config in configs]
    for path, config in zip(paths, configs, strict=True):
        if paths.count(path) > 1:
            raise ValueError(f"{config.name} appears twice, with numbers too close to tell apart")
        runs.check_free(out / folder_of(config), config)


def _evaluated(
    run: runs.Run, *, dataset: Dataset, attacks: Attacks, mesh: Mesh | None
) -> dict[str, Any]:
    """Attack a network and return what was found, also under ``auto`` and ``apgd``."""
    found = pgd.evaluate(run, dataset, attacks.radii, attacks.pgd, mesh=mesh)
    origins = [found]
    strongest = auto.settings("standard", attacks.auto_examples, run.config.seed)
    by_norm = {}
    for norm, radii in attacks.auto_radii.items():
        if radii:
            content = auto.evaluate(
                run, dataset, norm=norm, radii=radii, attack=strongest, mesh=mesh
            )
            # Earlier calls may have left results for other radii, too.
            results = {name: content["results"][norm][name] for name in map(number_key, radii)}
            origins += results.values()
            by_norm[norm] = {
                name: {"robust": result["robust"], "verdict": result["verdict"]}
                for name, result in results.items()
            }
    by_apgd = {}
    if attacks.apgd_examples:
        content = apgd.evaluate(run, dataset, attacks.radii, attacks.apgd_examples, mesh=mesh)
        origins.append(content)
        by_apgd = content["robust"]
    return {**found, "auto": by_norm, "apgd": by_apgd, **provenance.combined(*origins)}


def _entry(
    config: Config,
    path: Path,
    trained: Callable[..., Any],
    evaluated: Callable[[runs.Run], dict[str, Any]],
) -> dict[str, Any]:
    """Train and evaluate one network, as far as not done yet, and return its results."""
    if not runs.is_trained(path, config):
        trained(config, path=path)
    with runs.locked(path):
        run = runs.load(path)
        evaluation = evaluated(run)
    if leads():
        print(f"{path}: clean {100 * evaluation['clean']:.2f} %", file=sys.stderr)
    return {
        "method": config.method,
        "seed": config.seed,
        "strength": config.strength,
        "step": config.step,
        "options": config.options,
        "path": str(folder_of(config)),
        "clean": evaluation["clean"],
        "robust": evaluation["robust"],
        "auto": evaluation["auto"],
        "apgd": evaluation["apgd"],
        "train_seconds": run.training["seconds"],
        "seconds_per_step": run.training["seconds_per_step"],
        "gradient_norm_mean": evaluation["gradient_norm_mean"],
        "hessian_norm_mean": evaluation["hessian_norm_mean"],
        "evaluation_seconds": evaluation["seconds"],
        **_trajectory(path),
        **provenance.combined(run.origin, evaluation),
    }


@led
def _trajectory(path: Path) -> dict[str, Any]:
    """Return what a watched training measured on test images, leaving out non-finite lines."""
    file = path / runs.METRICS
    try:
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    except ValueError as error:
        raise ValueError(f"{file} is damaged: delete {path} to train it again") from error
    watched = [
        {name: line[name] for name in ("step", "test_gradient_norm", "test_hessian_norm")}
        for line in lines
        if "test_hessian_norm" in line
    ]
    finite = [line for line in watched if all(map(math.isfinite, line.values()))]
    return (
        {"trajectory": {name: [line[name] for line in finite] for name in finite[0]}}
        if finite
        else {}
    )


@led
def _draw(out: Path) -> None:
    """Write table and figures, unless those there are up to date."""
    comparison = read(out)
    if not report.is_written(out, comparison):
        report.write(out, comparison, read_landscapes(out, comparison))


def _describe(setup: Setup) -> str:
    held_out = f", {setup.validation} training examples held out" if setup.validation else ""
    precision = f", in {setup.precision}" if setup.precision != Setup.precision else ""
    return f"{setup.data}{held_out}{precision}"
