"""Where a result comes from: the origin that is stored with it."""

import importlib.metadata
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax

_VERSIONED = ("hessjax", "jax", "jaxlib", "flax", "optax", "numpy")
# They say where data are on a machine and do not affect results.
_PLACES = ("--data-dir", "--manual-dir")
_ROOT = Path(__file__).parents[1]


def collect() -> dict[str, Any]:
    """Return the origin to store with a result: command, commit, versions and device."""
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
    """Return the origin of a result of which this process makes a part, as `merged` does.

    Args:
        earlier: the result so far. What it lacks is taken from this process, except the commit,
            which is then unknown. If it is empty, the origin is that of this process alone.
    """
    here = collect()
    return merged({**here, "commit": "unknown", **earlier}, here) if earlier else here


def merged(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Return the origin of a result made in two parts, one after the other.

    Commands, commits, devices and versions each list all that were involved.
    """
    # In the order of the commands; a repeated one keeps its place.
    command = _both(" && ", earlier["command"], later["command"])
    return {"command": command, **combined(earlier, later)}


def combined(*origins: Mapping[str, Any]) -> dict[str, Any]:
    """Return commit, versions and device of a result that several origins have a part in.

    Each names all that were involved. An origin that lacks a commit has an unknown one.
    """
    versions: dict[str, str] = {}
    for origin in origins:
        for name, version in origin.get("versions", {}).items():
            versions[name] = _both(", ", *filter(None, [versions.get(name), version]))
    devices = [origin["device"] for origin in origins if "device" in origin]
    return {
        "commit": joined(*(origin.get("commit", "unknown") for origin in origins)),
        "versions": versions,
        "device": _both(" and ", *devices),
    }


def _both(separator: str, *lists: str) -> str:
    words = [word for several in lists for word in several.split(separator)]
    return separator.join(dict.fromkeys(words))


def joined(*commits: str) -> str:
    """Return the distinct commits among these strings, each of which may list several."""
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


# Now, because what runs is the code as it is at this moment, whatever is committed meanwhile.
_commit()
