"""Tables for people: rows of cells as lines with aligned columns."""

from collections.abc import Iterable


def aligned(rows: list[list[str]], right: Iterable[int] = ()) -> list[str]:
    """A line for each row, indented; the columns numbered in `right` are right-justified."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = set(right)
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
