"""How commands end: by Ctrl-C or SIGTERM, what is begun finished and kept, or with a sentence."""

import signal
import sys
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


@contextmanager
def ending(kept: str = "the same command goes on from here") -> Iterator[None]:
    """Decorate a command: what stops it becomes a sentence and an exit status.

    Args:
        kept: what is said of the work so far when a signal stops it.
    """
    try:
        yield
    except (ValueError, ArithmeticError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stop:
        print(f"\ninterrupted; {kept}", file=sys.stderr)
        # What shells give to a program that a signal ended.
        sys.exit(128 + (stop.number if isinstance(stop, Interrupted) else signal.SIGINT))


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
