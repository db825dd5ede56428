"""Files that are never half-written."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from filelock import FileLock

UNFINISHED = ".part"


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Lock a file to which several processes add, after waiting for any that is adding to it.

    Raises:
        OSError: if its folder cannot be created or written to.
    """
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file that could not be written: the error of a full disk does not.

    Raises:
        OSError: with the file's name.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(f"{path} could not be written: {error.strerror or error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Provide a temporary path to write to, and move it to ``path`` once it is complete.

    Several processes may write to one path: each has its own temporary one, and the last wins.

    Raises:
        OSError: if it cannot be written, naming it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid4().hex[:12]}{UNFINISHED}")
    try:
        with naming(path):
            yield partial
            with partial.open("rb") as file:  # the content reaches the disk before the name does
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def number_key(number: float) -> str:
    """Return a number as JSON writes it, with all digits, for a key that must be found again.

    >>> number_key(1.0), number_key(2 / 255)
    ('1', '0.00784313725490196')
    """
    return repr(float(number)).removesuffix(".0")


def write_text(path: Path, text: str) -> None:
    """Write a text, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary in human-readable form."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a dictionary.

    Raises:
        ValueError: if the file holds none.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} holds no JSON dictionary: {error}") from error


def kept(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file holds if it includes these settings, and an empty dictionary otherwise.

    Prints a message if results of other settings are about to be replaced.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        content = read_json(path) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{error}: delete it to measure anew") from error
    if all(content.get(name) == value for name, value in settings.items()):
        return content
    if content:
        print(f"{path}: replacing results of other settings", file=sys.stderr)
    return {}


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Write arrays by name."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **{k: np.asarray(v) for k, v in arrays.items()})


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read arrays by name.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        # Opened here: np.load would leave the file of a damaged archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except OSError:
        raise
    except Exception as error:  # what a damaged archive raises depends on the damaged part
        raise ValueError(f"{path} is damaged ({error})") from error
