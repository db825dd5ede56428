"""What reports and figures say about a comparison: data, attacks, columns."""

from collections.abc import Iterable, Mapping
from typing import Any

from experiments.config import kind_of_images
from experiments.table import apgd_table, group, table


def results(comparison: dict[str, Any], failed: Mapping[str, str]) -> list[str]:
    """Return the results in a report: attacks, what failed and why, tables with explanations."""
    return [
        *_attacked(comparison),
        *(f"- Failed: {path}: {why}" for path, why in failed.items()),
        "",
        table(comparison),
        f"\n{explained(comparison)}\n",
        *_under_apgd(comparison),
    ]


def _attacked(comparison: dict[str, Any]) -> list[str]:
    """Return what the networks were attacked with, as items of a Markdown list."""
    strongest = auto_of(comparison)
    seen = "masking: at how many of its runs and balls a sign of masked gradients was seen"
    return [
        f"- Attack: {attack_of(comparison['attack'])}",
        *([f"- AA: {strongest}; {seen}"] if strongest else []),
    ]


def explained(comparison: dict[str, Any]) -> str:
    """Return an explanation of the table's columns."""
    several = any(len(method.runs) > 1 for method in group(comparison))
    spread = "; mean ± sample standard deviation over seeds" if several else ""
    return (
        "strength: the ε of hessian, hessian-cheap, -lanczos and -inside, adversarial, trades and "
        "fgsm, the temperature of hot, a penalty's weight otherwise. "
        "Accuracy in percent of the images, clean and under attack in the ball of the norm "
        f"and radius at the head of the column (pixels in [0, 1]){spread}. ‖g‖₂: norm of the "
        "gradient of the loss in the input. ‖H‖: largest |eigenvalue| of its Hessian in the "
        f"input, estimated from below. Both are means over images and seeds.{_timed(comparison)}"
    )


def _timed(comparison: dict[str, Any]) -> str:
    """Return what the step times are, and their source if it is not the trainings."""
    if "time/step" not in table(comparison):
        return ""
    times = comparison.get("step_times")
    turns = ""
    if times:
        # The machine's name says how many of its cores could be used.
        machine = times.get("device_name", times["device"])
        turns = f", measured in turns on {machine}, commit {times['commit']}"
    return f" time/step: seconds per training step over those of `none`{turns}."


def about(comparison: dict[str, Any]) -> str:
    """Return which images and seeds a comparison covers."""
    named = seeds_of(run["seed"] for run in comparison["runs"])
    return f"{comparison['num_test']:,} {images_of(comparison)}; {named}"


def images_of(comparison: dict[str, Any]) -> str:
    """Return which images the networks were attacked on: held-out ones, if there were any."""
    # Comparisons from before setups were recorded are of the test set.
    kind = kind_of_images(comparison.get("setup", {}).get("validation", 0))
    return f"{kind} images of {comparison['data']}"


def auto_of(comparison: dict[str, Any]) -> str:
    """Return what AutoAttack attacked, "" if it did not run."""
    auto = comparison.get("auto", {})
    if not auto.get("norms"):
        return ""
    count = auto["num_examples"]
    examples = "all images" if count is None else f"the first {count:,} images"
    return f"AutoAttack, standard version, on {examples}"


def seeds_of(seeds: Iterable[int]) -> str:
    """Return seeds as words.

    >>> seeds_of([2, 0, 2])
    'seeds 0, 2'
    """
    unique = sorted(set(seeds))
    return f"seed{'s' if len(unique) > 1 else ''} {', '.join(map(str, unique))}"


def attack_of(settings: dict[str, Any]) -> str:
    """Return the attack's settings as words: {"num_steps": 40} is "40 steps"."""
    words = []
    for name, value in settings.items():
        word = " and ".join(map(str, value)) if isinstance(value, list) else str(value)
        noun = name.removeprefix("num_").replace("_", " ")
        if name == "name":
            words.append(word)
        elif noun != name.replace("_", " "):
            words.append(f"{word} {noun.removesuffix('s') if value == 1 else noun}")
        else:
            words.append(f"{noun} {word}")
    return ", ".join(words)


def _under_apgd(comparison: dict[str, Any]) -> list[str]:
    """Return the table of accuracies under APGD with a line before it, if there is one."""
    found = apgd_table(comparison)
    if not found or not comparison.get("apgd_examples"):
        return []
    examples = f"the first {comparison['apgd_examples']:,} images"
    return [f"Under APGD with cross-entropy, then at up to nine targets, {examples}:\n\n{found}\n"]


def failures_of(failed: Mapping[str, str]) -> str:
    """Return a list of the runs that failed, for the end of a program."""
    lines = [f"\n  {path}: {reason}" for path, reason in failed.items()]
    return f"error: {len(failed)} of the runs failed:{''.join(lines)}"
