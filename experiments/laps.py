"""How long the steps of a training take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median


class Laps:
    """The times at which certain steps, and all before them, were done."""

    def __init__(self, step: int, *, alike: bool = True) -> None:
        """Begin after this step; ``alike`` says whether all laps do the same amount of work."""
        self._alike = alike
        self._begun = time.perf_counter()
        self._paused = 0.0
        self._marks = [(step, 0.0)]

    def mark(self, step: int) -> None:
        """Note that this step is done."""
        self._marks.append((step, self.seconds - self._paused))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of what is done inside: it is not part of a step."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - begun

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._begun

    @property
    def first(self) -> float | None:
        """Seconds of the first lap, a step that compiles; None if there was none."""
        return self._marks[1][1] if len(self._marks) > 1 else None

    @property
    def seconds_per_step(self) -> float | None:
        """The median over the other laps, the mean if they are unlike; None if there are none."""
        others = list(zip(self._marks[1:], self._marks[2:], strict=False))
        if not self._alike:
            # In the second lap, a lazy penalty's other program may still have to be compiled.
            begun = self._marks[min(2, len(self._marks) - 2)]
            others = [(begun, self._marks[-1])] if others else []
        return median((b - a) / (n - m) for (m, a), (n, b) in others) if others else None
