"""Where measurements are kept, under which conditions, and which need not be repeated."""

import json
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments import provenance
from experiments.files import read_json, shared, write_json

Row = dict[str, Any]
Cell = tuple[Row, Callable[[], Sequence[Row]]]

RESULTS = Path(__file__).parent / "results"
SCRATCH = Path("runs/benchmarks")
# Threads; and the size from which on glibc returns memory after each call, which costs time.
_ENVIRONMENT = (
    *("XLA_FLAGS", "OMP_NUM_THREADS"),
    *("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"),
)
# What has to be the same for measurements to be in one file.
_CONDITIONS = ("commit", "versions", "device", "device_name", "environment")


def device_name() -> str:
    """Return the device in the form of a folder's name, such as ``cpu-amd-epyc-2-cores``."""
    first, *others = jax.devices()
    if first.platform == "cpu":
        cores = _usable_cores()
        return f"cpu-{_slug(_processor())}-{cores}-core{'s' if cores > 1 else ''}"
    kind = _slug(first.device_kind)
    return f"{len(others) + 1}-x-{kind}" if others else kind


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    text = information.read_text(encoding="utf-8") if information.is_file() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()


def _usable_cores() -> int:
    # Not every system can report to which cores a process is bound.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _slug(name: str) -> str:
    name = re.sub(r"\((r|tm)\)", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def place(name: str, out: Path | None, *, quick: bool = False) -> Path:
    """Return the file of a benchmark: the given one, or the one among this device's results.

    A quick run's file is elsewhere, so that it does not replace results that are to be kept.
    """
    return out or (SCRATCH if quick else RESULTS / device_name()) / f"{name}.json"


def conditions() -> dict[str, Any]:
    """Return the conditions under which this process measures.

    They are those of `experiments.provenance.collect`, ``device_name``, ``environment`` variables,
    and ``dirty``: whether the code may differ from the commit's.
    """
    collected = provenance.collect()
    commit = collected["commit"]
    return {
        **collected,
        "dirty": commit == "unknown" or commit.endswith(" with changes"),
        "device_name": device_name(),
        "environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    }


def write(name: str, content: dict[str, Any], path: Path) -> Path:
    """Write results with the conditions they were measured under, and return the file."""
    commands = [conditions()["command"]]
    if "settings" in content and earlier(path, content["settings"]):
        # An earlier command measured the rows that are kept.
        commands = [*read_json(path)["command"].split(" && "), *commands]
    joined = {"command": " && ".join(dict.fromkeys(commands))}
    write_json(path, {"benchmark": name, **conditions(), **joined, **content})
    return path


def told(cell: Row, rows: Sequence[Row]) -> str:
    """Return a line that says which cell has been measured."""
    del rows
    return "measured: " + ", ".join(map(str, cell.values()))


def collect(
    name: str,
    settings: dict[str, Any],
    cells: Iterable[Cell],
    path: Path,
    *,
    shown: Callable[[Row, Sequence[Row]], str] = told,
) -> Path:
    """Measure the cells that are not in the file yet, and add the rows of each as they come.

    Other processes may add to the same file meanwhile.

    Args:
        name: of the benchmark.
        settings: what all cells share; if those of the file differ, its rows are dropped, and their
            number is printed.
        cells: a description of each cell, and the function that measures it.
        path: the JSON file.
        shown: what is printed about a cell and its rows.

    Raises:
        ValueError: as `check` does, before anything is measured.
        OSError: likewise.
    """
    check(name, settings, path)
    done: list[tuple[Row, list[Row]]] = []
    if said := _dropped(path, settings, done):
        print(said, file=sys.stderr)
    for cell, measured in cells:
        if any(cell.items() <= row.items() for row in _joined(earlier(path, settings), done)):
            continue
        found = measured()
        with shared(path):
            # Again: a measurement takes minutes, and others add theirs.
            if (lost := _dropped(path, settings, done)) and lost != said:
                print(lost, file=sys.stderr)
            done.append((cell, [{**cell, **row} for row in found]))
            rows = _joined(earlier(path, settings), done)
            write(name, {"settings": settings, "rows": rows}, path)
        print(shown(cell, found))
    return path


def _joined(rows: Sequence[Row], done: Sequence[tuple[Row, Sequence[Row]]]) -> list[Row]:
    """Return the rows of a file with those of the cells that this process measured."""
    return [*_others(rows, done), *(row for _, own in done for row in own)]


def _others(rows: Sequence[Row], done: Sequence[tuple[Row, Sequence[Row]]]) -> list[Row]:
    return [row for row in rows if not any(cell.items() <= row.items() for cell, _ in done)]


def check(name: str, settings: dict[str, Any], path: Path) -> None:
    """Raise unless a benchmark's rows can be kept in a file; nothing is created yet.

    Raises:
        ValueError: if it is a folder, or holds something other than this benchmark's results.
        OSError: if it cannot be written.
    """
    if path.is_dir():
        raise ValueError(f"out must be a JSON file, but {path} is a folder")
    if path.is_file() and not _holds(read_json(path), name, settings):
        raise ValueError(
            f"{path} holds something other than the results of {name}: name another file"
        )
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise OSError(f"{path} cannot be written: {there} is not a writable folder")


def _holds(content: dict[str, Any], name: str, settings: dict[str, Any]) -> bool:
    """Return whether a file is of a benchmark; older ones are known by their settings' names."""
    there = content.get("settings"), content.get("rows")
    if not isinstance(there[0], dict) or not isinstance(there[1], list):
        return False
    return content.get("benchmark", name) == name and (
        "benchmark" in content or there[0].keys() <= settings.keys()
    )


def _dropped(
    path: Path, settings: dict[str, Any], done: Sequence[tuple[Row, Sequence[Row]]]
) -> str:
    """Return a line on how many rows of others a file will lose and why, empty if none."""
    content = read_json(path) if path.is_file() else {}
    number, why = len(_others(content.get("rows", []), done)), _change(content, settings)
    if not (number and why):
        return ""
    return f"{path}: {number} row{'s' if number > 1 else ''} will be replaced, {why}"


def earlier(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the ``rows`` of a file if its ``settings`` and conditions are the present ones.

    There are none if either code was not committed: it may have changed.

    Raises:
        ValueError: if the file holds no JSON dictionary.
    """
    if not path.is_file():
        return []
    content = read_json(path)
    return [] if _change(content, settings) else content.get("rows", [])


def _change(content: dict[str, Any], settings: dict[str, Any]) -> str:
    """Return why the contents of a file may come out differently now, "" if they would not."""
    here = conditions()
    # As JSON has them: a tuple comes back as a list.
    pairs = {name: (content.get(name), here[name]) for name in _CONDITIONS}
    pairs["settings"] = content.get("settings"), json.loads(json.dumps(settings))
    changed = [name.replace("_", " ") for name, (was, now) in pairs.items() if was != now]
    if changed:
        return f"measured under other {', '.join(changed)}"
    return "because the code is not that of a commit" if here["dirty"] else ""
