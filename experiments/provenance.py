"""Where a result comes from: what it has to carry."""

import importlib.metadata
import os
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jax

_VERSIONED = ("hessjax", "jax", "jaxlib", "flax", "optax", "numpy")
# They say where data lie on a machine and decide nothing.
_PLACES = ("--data-dir", "--manual-dir")
_ROOT = Path(__file__).parents[1]


def collect() -> dict[str, Any]:
    """Return what a result has to carry: command, commit, versions and device."""
    return {
        "command": _command(sys.argv[1:]),
        "commit": _commit(),
        "versions": {
            "python": ".".join(map(str, sys.version_info[:3])),
            **{name: importlib.metadata.version(name) for name in _VERSIONED},
        },
        "device": _device(),
    }


def extended(earlier: dict[str, Any]) -> dict[str, Any]:
    """Return what a result has to carry of which this process makes a part, `merged`.

    Args:
        earlier: the result so far; what it does not carry is that of this process, but the commit
            unknown, and nothing at all is no result.
    """
    here = collect()
    return merged({**here, "commit": "unknown", **earlier}, here) if earlier else here


def merged(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Return what a result has to carry that was made of one and then of another.

    Commands, commits, devices and versions each name all that there were.
    """
    versions = later["versions"]
    return {
        # In the order of the commands; one that is given again keeps its place.
        "command": _both(" && ", earlier["command"], later["command"]),
        "commit": joined(earlier["commit"], later["commit"]),
        "versions": {
            name: _both(", ", earlier["versions"].get(name, version), version)
            for name, version in versions.items()
        },
        "device": _both(" and ", earlier["device"], later["device"]),
    }


def _both(separator: str, earlier: str, later: str) -> str:
    return separator.join(dict.fromkeys([*earlier.split(separator), *later.split(separator)]))


def joined(*commits: str) -> str:
    """Return the different commits among these, each of which may be several."""
    return ", ".join(sorted({commit for several in commits for commit in several.split(", ")}))


def _command(arguments: list[str]) -> str:
    main = sys.modules["__main__"].__spec__
    kept = [
        word
        for before, word in zip(["", *arguments], arguments, strict=False)
        if before not in _PLACES and word.split("=")[0] not in _PLACES
    ]
    return shlex.join(["python", *(["-m", main.name] if main else []), *kept])


@cache
def _commit() -> str:
    try:
        revision, changes = (
            subprocess.run(
                ["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True
            ).stdout.strip()
            for arguments in (
                ["rev-parse", "--short=12", "HEAD"],
                ["status", "--porcelain", "--", "hessjax", "experiments/*.py"],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{revision} with changes" if changes else revision


def _device() -> str:
    first, *others = jax.devices()
    if first.platform == "cpu":
        return f"CPU, {os.cpu_count()} cores"
    return f"{len(others) + 1} × {first.device_kind}" if others else first.device_kind


# Now, for what runs is the code of this moment, whatever is committed meanwhile.
_commit()
