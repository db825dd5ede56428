"""The metrics of a training: a line of means every few steps, in ``metrics.jsonl``."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import jax
import numpy as np

from experiments.files import naming
from experiments.processes import led

_STEP = "step"
# Among the metrics of a step: its place in a sequence of refused ones, from 1; 0 if it was applied.
_REFUSED = "refused"


class Log:
    """What the steps since the last line measured, and the file of the lines.

    A line is the same whether or not the training was interrupted before it.

    Attributes:
        accuracy: that of the last line, 0 before the first.
    """

    def __init__(self, path: Path) -> None:
        """Begin a file, or continue at the end of one."""
        self._path = path
        self._waiting: list[dict[str, Any]] = []
        self.accuracy = 0.0

    def __len__(self) -> int:
        """Return the number of steps since the last line."""
        return len(self._waiting)

    def add(self, step: int, metrics: Mapping[str, jax.Array], refused: jax.Array) -> None:
        """Add a step, without waiting for it.

        Args:
            step: its number.
            metrics: scalars.
            refused: how many steps in a row, up to this one, were not applied.
        """
        self._waiting.append({_STEP: step, **metrics, _REFUSED: refused})

    def write(self, epoch: int, looks: Mapping[str, float] | None = None) -> dict[str, float]:
        """Write a line, and return it: means over the steps applied since the last line.

        Args:
            epoch: that of the last step, from 0.
            looks: what else was measured, after the last step.
        """
        steps = self._fetched()
        line: dict[str, float] = {
            _STEP: steps[-1][_STEP],
            "epoch": epoch,
            **_means(steps),
            **(looks or {}),
        }
        if refused := sum(step[_REFUSED] > 0 for step in steps):
            line[_REFUSED] = refused
        self._append(json.dumps(line) + "\n")
        self._waiting = []
        self.accuracy = line.get("accuracy", 0.0)
        return line

    def refused(self) -> list[int]:
        """Return the longest sequence of refused steps that reaches beyond the last line."""
        longest = max(self._fetched(), key=lambda step: step[_REFUSED], default={_REFUSED: 0})
        if not longest[_REFUSED]:
            return []
        return list(range(longest[_STEP] - longest[_REFUSED] + 1, longest[_STEP] + 1))

    def content(self) -> dict[str, Any]:
        """Return what `go_on` needs, in a form that JSON can hold."""
        content = {"waiting": self._fetched(), "size": self._size()}
        return {**content, "accuracy": self.accuracy}

    def go_on(self, content: Mapping[str, Any]) -> None:
        """Go back to where `content` was taken; lines of later steps are removed.

        Raises:
            ValueError: if earlier lines are missing.
        """
        self._cut(content["size"])
        self._waiting, self.accuracy = list(content["waiting"]), content["accuracy"]

    @led
    def _append(self, line: str) -> None:
        # In one piece, so that a concurrent reader never sees half a line.
        with naming(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(line)

    @led
    def _cut(self, size: int) -> None:
        there = self._size()
        if there < size:
            raise ValueError(
                f"{self._path} has {there} bytes, but {size} when its checkpoint was made: "
                f"delete {self._path.parent} to train anew"
            )
        if there > size:
            os.truncate(self._path, size)

    def _fetched(self) -> list[dict[str, Any]]:
        """Fetch what is still on the device, as plain numbers."""
        self._waiting = [
            {name: np.asarray(value).item() for name, value in step.items()}
            for step in jax.device_get(self._waiting)
        ]
        return self._waiting

    def _size(self) -> int:
        return self._path.stat().st_size if self._path.is_file() else 0


def _means(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    applied = [step for step in steps if not step[_REFUSED]]
    # Not every step of a lazy objective measures everything.
    names = dict.fromkeys(name for step in applied for name in step)
    return {
        name: mean(step[name] for step in applied if name in step)
        for name in names
        if name not in {_STEP, _REFUSED}
    }
