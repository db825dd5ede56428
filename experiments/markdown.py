"""A Markdown table that is also readable as plain text."""

from collections.abc import Sequence

# The content of a cell without a value.
NOTHING = "-"


def number(value: float | None, form: str = ".2f") -> str:
    """Return a number for a cell, `NOTHING` for None."""
    return NOTHING if value is None else format(value, form)


def markdown(rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Return rows, the heads first, as a table: ``words`` columns of words, then numbers.

    >>> print(markdown([["method", "clean"], ["none", "9.5"]]))
    | method | clean |
    | :----- | ----: |
    | none   |   9.5 |
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # Words are aligned to the left, numbers to the right.
    head, *lines = [
        [
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    rule = [":" + "-" * (w - 1) if i < words else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *lines])
