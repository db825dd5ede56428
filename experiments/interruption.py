"""How commands end: on a signal such as Ctrl-C, or with an error message of one sentence."""

import io
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# That the terminal is closed, which several others tell, one after the other. Windows lacks it.
_HANGUP = getattr(signal, "SIGHUP", None)
_HEARD = tuple(filter(None, (signal.SIGINT, signal.SIGTERM, _HANGUP)))


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to end; what was done so far is kept."""

    def __init__(self, number: int) -> None:
        """Name the signal."""
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def ending(kept: str = "the same command continues from here") -> Iterator[None]:
    """Decorate a command: whatever stops it becomes a message and an exit status.

    Args:
        kept: what the message says about the work so far when a signal stops it.
    """
    try:
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            # As stderr does: a table with an escape for ℓ₂ is better than none.
            sys.stdout.reconfigure(errors="backslashreplace")
        yield
    except (ValueError, ArithmeticError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stop:
        with suppress(OSError):  # the terminal may be gone
            print(f"\ninterrupted; {kept}", file=sys.stderr)
        # The status that shells give to a program ended by a signal.
        sys.exit(128 + (stop.number if isinstance(stop, Interrupted) else signal.SIGINT))


@contextmanager
def noted() -> Iterator[list[int]]:
    """Record signals in a list, so that a step can be finished; a second one acts at once.

    Except for SIGHUP: a closed terminal is often told of twice.
    """
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard  # only the main thread may set handlers, and only it is interrupted
        return

    def note(number: int, _: FrameType | None) -> None:
        heard.append(number)
        restore()
        if _HANGUP is not None and _HANGUP in before:
            signal.signal(_HANGUP, signal.SIG_IGN)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    # What nohup has had ignored stays so; SIGINT is also ignored in the background of a script.
    heeded = [n for n in _HEARD if n == signal.SIGINT or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heeded}
    try:
        yield heard
    finally:
        restore()
