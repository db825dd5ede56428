"""Packages that only some programs need: the extras of the installation."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def of_extra(extra: str) -> Iterator[None]:
    """End the program with a sentence where an import inside fails, as a package is missing."""
    try:
        yield
    except ImportError as error:
        program = getattr(sys.modules["__main__"].__spec__, "name", "this program")
        sys.exit(
            f"error: {program} needs the extra {extra} ({error}): "
            f"pip install '.[{extra}]' in a checkout of hessjax"
        )
