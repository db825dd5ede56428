"""Being stopped by Ctrl-C or SIGTERM: what is begun is finished and kept, then the program ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_HEARD = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal asked for the end, and what was done so far is kept."""

    def __init__(self, number: int) -> None:
        """Name the signal."""
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(stop: KeyboardInterrupt) -> int:
    """Return the exit status that shells give to a program which a signal ended."""
    return 128 + (stop.number if isinstance(stop, Interrupted) else signal.SIGINT)


@contextmanager
def noted() -> Iterator[list[int]]:
    """Note the signals in a list, so that a step can be finished; a second one acts at once."""
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard  # only the main thread may set handlers, and only it is interrupted
        return

    def note(number: int, _: FrameType | None) -> None:
        heard.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, note) for number in _HEARD}
    try:
        yield heard
    finally:
        restore()
