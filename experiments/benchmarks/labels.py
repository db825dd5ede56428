"""How tables and figures name the networks of their rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
USUAL = "float32"


def precision(row: Row) -> str:
    """Return what a network computes in; rows from before it was recorded are of float32."""
    return row.get("precision", USUAL)


def architecture(row: Row) -> str:
    """Return model, activation, image size, number of classes if known, and unusual precision."""
    shape = "×".join(map(str, row["input_shape"]))
    classes = [f"{row['num_classes']} classes"] if "num_classes" in row else []
    return ", ".join([row["model"].upper(), row["activation"], shape, *classes, *_unusual(row)])


def network(row: Row) -> str:
    """Return data, model and training of a network."""
    epochs = f"{row['epochs']} epoch{'s' if row['epochs'] > 1 else ''}"
    named = f"{row['data']} {row['model']} {row['activation']}"
    return ", ".join([named, row["method"], epochs, *_unusual(row)])


def _unusual(row: Row) -> list[str]:
    return [precision(row)] if precision(row) != USUAL else []


def apart(rows: Sequence[Row], name: Callable[[Row], str]) -> list[str]:
    """Return the name of each row's network, with its weights' checksum if several share it."""
    having: dict[str, set[str]] = {}
    for row in rows:
        having.setdefault(name(row), set()).add(row.get("weights", "unknown"))
    return [
        name(row) + (f", {row.get('weights', 'unknown')}" if len(having[name(row)]) > 1 else "")
        for row in rows
    ]
