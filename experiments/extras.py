"""Packages that only some programs need: the optional extras of the installation."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def of_extra(extra: str) -> Iterator[None]:
    """End the program with a clear message if an import inside fails for a missing package."""
    try:
        yield
    except ImportError as error:
        program = getattr(sys.modules["__main__"].__spec__, "name", "this program")
        sys.exit(
            f"error: {program} needs the extra {extra} ({error}): "
            f"pip install '.[{extra}]' in a checkout of hessjax"
        )
