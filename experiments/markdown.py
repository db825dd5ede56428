"""A Markdown table that can be read as it stands, too."""

from collections.abc import Sequence

# What a cell says where there is nothing to tell.
NOTHING = "-"


def number(value: float | None, form: str = ".2f") -> str:
    """Return a number for a cell, `NOTHING` for None."""
    return NOTHING if value is None else format(value, form)


def markdown(rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Return rows, the heads first, as a table: so many columns of words, then numbers.

    >>> print(markdown([["method", "clean"], ["none", "9.5"]]))
    | method | clean |
    | :----- | ----: |
    | none   |   9.5 |
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # The columns of words stand left, the numbers right.
    head, *lines = [
        [
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    rule = [":" + "-" * (w - 1) if i < words else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *lines])
