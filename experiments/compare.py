"""Train networks by several methods on one data set and compare them."""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from experiments import devices, report, runs
from experiments.config import Config, Setup, parse_method
from experiments.evaluate import attack_settings, chosen_radii, evaluate
from experiments.files import read_json, write_json
from experiments.interruption import exit_code
from experiments.session import DivergedError
from experiments.table import read, table
from experiments.train import load_for, train

_DEFAULTS = dataclasses.asdict(Setup())
_METHODS = ("none", "gradient", "hessian", "finite-step", "adversarial")


def main(
    setup: tyro.conf.OmitArgPrefixes[Setup],
    *,
    out: Path,
    methods: tuple[str, ...] = _METHODS,
    seeds: tuple[int, ...] = (0,),
    l2: tuple[float, ...] | None = None,
    linf: tuple[float, ...] | None = None,
    num_steps: int = 40,
    num_restarts: int = 1,
    num_devices: int | None = None,
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
) -> None:
    """Train several methods with the same seeds and budget, attack them, write table and figures.

    Stop it with Ctrl-C and give the same command again: what is done is not done twice, and a
    training goes on from its last checkpoint. A run that fails stops no other and is named at the
    end. Methods or seeds of a later command into the same folder join those that are there. A
    method may carry its strength, and its step: hessian, hessian:2, finite-step:1:1.5. With
    ,every=N or ,parts=N behind it, it pays for its penalty on every N-th step, or on one of N parts
    of each batch. To tune strengths, compare them on examples held out of the training set. For
    example:

        python -m experiments.compare --methods none gradient hessian --out runs/demo
        python -m experiments.compare --data mnist --methods hessian:1 hessian:2 hessian:3
            --validation 5000 --out runs/tune

    Args:
        setup: what the trainings share.
        out: folder of the comparison; it gets comparison.json, report.md, figures and the runs.
        methods: none, gradient, hessian, hessian-cheap, hessian-lanczos, hessian-only, finite-step,
            curvature, jacobian, gauss-newton, adversarial, fgsm or hot, each with or without its
            numbers.
        seeds: every method is trained once with each.
        l2: radii of the ℓ₂ balls, pixels in [0, 1]; the data set's if not given.
        linf: radii of the ℓ∞ balls, likewise.
        num_steps: steps of each attack.
        num_restarts: random starts of each attack.
        num_devices: devices that share each batch of a training; all if not given, but one of a
            CPU's.
        data_dir: folder of prepared data sets, $HESSJAX_DATA or ~/.cache/hessjax if not given.
        manual_dir: folder of the data set's original files, where they cannot be downloaded.
    """
    try:
        configs = plan(setup, methods, seeds)
        radii = chosen_radii(setup.data, l2=l2, linf=linf)
        attack = attack_settings(num_steps=num_steps, num_restarts=num_restarts)
        _check_paths(out, configs)
        dataset = load_for(configs[0], data_dir, manual_dir)
        with runs.locked(out):
            mesh = devices.mesh(num_devices)
            trained = partial(train, dataset=dataset, resume=True, mesh=mesh)
            evaluated = partial(evaluate, dataset=dataset, radii=radii, attack=attack)
            entries, failed = _entries(configs, out, trained, evaluated)
            if entries:
                settings = {
                    "data": _describe(setup),
                    "num_test": len(dataset.test_labels),
                    "norms": {norm: list(values) for norm, values in radii.items() if values},
                    "attack": attack,
                    "setup": {name: getattr(configs[0], name) for name in _DEFAULTS},
                }
                _write(out, settings, entries, failed)
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stop:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(exit_code(stop))
    if failed:
        lines = [f"\n  {path}: {reason}" for path, reason in failed.items()]
        sys.exit(f"error: {len(failed)} of {len(configs)} runs failed:{''.join(lines)}")


def plan(setup: Setup, methods: Sequence[str], seeds: Sequence[int]) -> list[Config]:
    """Return the configurations to train, every method with one seed before the next seed.

    Raises:
        ValueError: if there are none, or a method or a number is wrong.
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


def _path(config: Config) -> Path:
    """Return a run's folder inside that of its comparison."""
    return Path(config.name.replace(":", "-"), f"seed-{config.seed}")


def _check_paths(out: Path, configs: Sequence[Config]) -> None:
    """Raise before any work if a folder holds something else, or two runs would share one."""
    if (out / "config.json").exists() or (out.exists() and not out.is_dir()):
        raise ValueError(f"{out} is a file or the folder of a run: name another for the comparison")
    paths = [_path(config) for config in configs]
    for path, config in zip(paths, configs, strict=True):
        if paths.count(path) > 1:
            raise ValueError(f"{config.name} is there twice, with numbers too near to tell apart")
        runs.check_free(out / _path(config), config)


def _entries(
    configs: Sequence[Config],
    out: Path,
    trained: Callable[..., Any],
    evaluated: Callable[[runs.Run], dict[str, Any]],
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the results of the runs, and by path why those that have none failed."""
    entries, failed = [], {}
    for config in configs:
        path = _path(config)
        try:
            entries.append(_entry(config, out / path, trained, evaluated))
        except (ValueError, OSError, DivergedError) as error:
            failed[str(path)] = str(error)
            print(f"failed: {path}: {error}", file=sys.stderr)
    return entries, failed


def _entry(
    config: Config,
    path: Path,
    trained: Callable[..., Any],
    evaluated: Callable[[runs.Run], dict[str, Any]],
) -> dict[str, Any]:
    """Train and evaluate one network, as far as that is not done, and return its results."""
    if not runs.is_trained(path, config):
        trained(config, path=path)
    run = runs.load(path)
    with runs.locked(path):
        evaluation = evaluated(run)
    print(f"{path}: clean {100 * evaluation['clean']:.2f} %", file=sys.stderr)
    return {
        "method": config.method,
        "seed": config.seed,
        "strength": config.strength,
        "step": config.step,
        "savings": config.savings,
        "path": str(_path(config)),
        "clean": evaluation["clean"],
        "robust": evaluation["robust"],
        "train_seconds": run.training["seconds"],
        "seconds_per_step": run.training["seconds_per_step"],
        "gradient_norm_mean": evaluation["gradient_norm_mean"],
        "hessian_norm_mean": evaluation["hessian_norm_mean"],
        "evaluation_seconds": evaluation["seconds"],
        "commit": runs.joined_commits(run.commit, evaluation["commit"]),
    }


def _write(
    out: Path,
    settings: dict[str, Any],
    entries: Sequence[dict[str, Any]],
    failed: Mapping[str, str],
) -> None:
    """Write comparison, report and figures, with the runs of earlier commands, and tell of them."""
    comparison = {
        **runs.provenance(),
        "commit": runs.joined_commits(*(entry.pop("commit") for entry in entries)),
        **settings,
        "runs": list(entries),
        "failed": dict(failed),
    }
    write_json(out / "comparison.json", _with_earlier(out / "comparison.json", comparison))
    comparison = read(out)
    written = report.write(out, comparison, report.read_landscapes(out, comparison))
    print(table(comparison))
    print("\nWritten:", *written, sep="\n  ")


def _with_earlier(path: Path, comparison: dict[str, Any]) -> dict[str, Any]:
    """Add the runs that an earlier command, of the same settings, left in the file."""
    earlier: dict[str, Any] = read_json(path) if path.is_file() else {"runs": []}
    same = ("data", "num_test", "norms", "attack", "setup")
    paths = {run["path"] for run in comparison["runs"]}
    others = [run for run in earlier["runs"] if run["path"] not in paths]
    # A setting that came after the file had its default.
    earlier["setup"] = _DEFAULTS | earlier.get("setup", {})
    if not others or any(earlier.get(key) != comparison[key] for key in same):
        return comparison
    # In the order of the commands; one that is given again keeps its place.
    commands = dict.fromkeys([*earlier["command"].split(" && "), comparison["command"]])
    known = {run["path"] for run in earlier["runs"]}
    new = {run["path"]: run for run in comparison["runs"]}
    failed = {**earlier.get("failed", {}), **comparison["failed"]}
    return {
        **comparison,
        "command": " && ".join(commands),
        "commit": runs.joined_commits(earlier["commit"], comparison["commit"]),
        "runs": [
            *(new.get(run["path"], run) for run in earlier["runs"]),
            *(run for run in comparison["runs"] if run["path"] not in known),
        ],
        "failed": {path: why for path, why in failed.items() if path not in known | paths},
    }


def _describe(setup: Setup) -> str:
    held_out = f", {setup.validation} training examples held out" if setup.validation else ""
    precision = f", in {setup.precision}" if setup.precision != Setup.precision else ""
    return f"{setup.data}{held_out}{precision}"


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.compare")
